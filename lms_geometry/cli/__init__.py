"""The command ``lms-geometry``: aligns image files, stacks and lists of pairs, and warps others by what was found."""

import argparse
from collections.abc import Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import get_args

from lms_geometry.cli.console import Parser, printable
from lms_geometry.cli.inputs import InputError
from lms_geometry.registration import GaussNewton
from lms_geometry.registration.motion import Motion
from lms_geometry.registration.similarity import Loss

_STATUS = "Exit status: 0; 1 if {}; 2 for other input that cannot be used."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 if something failed, 2 for bad input."""
    parser = _make_parser()
    options = parser.parse_args(arguments)
    try:
        # Imported when it is asked for: each command needs packages that others do not.
        module = import_module(f"lms_geometry.cli.{options.command}")
        status: int = getattr(module, f"run_{options.command}")(options)
        return status
    except (InputError, OSError, ValueError) as error:
        parser.exit(2, printable(f"lms-geometry: error: {error}") + "\n")
    except ModuleNotFoundError as error:
        parser.exit(2, f"lms-geometry: error: {error.name} is missing; pip install 'lms_geometry[cli]'\n")


def _make_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="lms-geometry", description="Image registration and image warps that are antialiased.")
    parser.add_argument("--version", action="version", version=f"lms-geometry {metadata.version('lms_geometry')}")
    commands = parser.add_subparsers(dest="command", required=True)

    align = commands.add_parser(
        "register",
        help="align one image file, or all of a folder, with another",
        description="Images are turned upright as their EXIF data says; what is transparent is left out. A file with "
        "several frames is aligned frame by frame. "
        + _STATUS.format("an answer is not good or a file of the folder cannot be used"),
    )
    align.add_argument("source", type=Path, help="the image to move, or a folder of such")
    align.add_argument("target", type=Path, help="the image to move it onto")
    align.add_argument(
        "--source-mask", type=Path, help="an image of the source's size, 0 where the source is not compared; a folder "
        "of such, with the sources' names, for a folder",
    )  # fmt: skip
    align.add_argument("--target-mask", type=Path, help="an image of the target's size, 0 where it is not compared")
    _add_settings(align, "affine")
    _add_out(align, "registered")

    stack = commands.add_parser(
        "stack",
        help="align the frames of a stack, or of a folder of images",
        description="All channels and planes of a frame move together. "
        + _STATUS.format("a frame is not aligned well or cannot be used"),
    )
    stack.add_argument("frames", type=Path, help="a TIFF or animation of several frames, or a folder of images")
    stack.add_argument(
        "--reference", default="first",
        help="what frames are aligned with: first (frame), previous (frame), mean (of all), or an image file "
        "(default: first)",
    )  # fmt: skip
    stack.add_argument("--channel", type=int, help="the channel that is compared, from 0 (default: all)")
    stack.add_argument(
        "--smooth", type=float, default=0.0, metavar="FRAMES",
        help="smooth the drift by a Gaussian of this deviation, and fill in frames that failed (default: 0, as found)",
    )  # fmt: skip
    stack.add_argument("--batch", type=int, default=8, help="how many frames are aligned at once (default: 8)")
    _add_settings(stack, "rigid")
    _add_out(stack, "stack")

    pairs = commands.add_parser(
        "pairs",
        help="align the many pairs of a CSV file",
        description="The file has columns source and target, and may have name, source_mask and target_mask; its paths "
        "are relative to its folder. results.csv gets a row for each pair as soon as it is done. "
        + _STATUS.format("a pair is not aligned well or cannot be used"),
    )
    pairs.add_argument("pairs", type=Path, help="the CSV file")
    pairs.add_argument("--images", action="store_true", help="write for each pair what register writes, in a folder")
    pairs.add_argument("--resume", action="store_true", help="go on where an earlier run into --out ended")
    pairs.add_argument("--batch", type=int, default=1, help="how many pairs are read at once; those of equal sizes are "
                       "aligned at once (default: 1)")  # fmt: skip
    _add_settings(pairs, "affine")
    _add_out(pairs, "pairs")

    apply = commands.add_parser(
        "apply",
        help="warp images, labels and points by a transform that was found",
        description="Everything keeps its name, its numbers' type and its channels. "
        + _STATUS.format("a file cannot be used"),
    )
    apply.add_argument("transform", type=Path, help="registration.json, or a linear transform of ITK's, .tfm")
    apply.add_argument(
        "images", type=Path, nargs="+", metavar="IMAGE",
        help="an image or stack in the source's frame, or points of it: a .csv with columns x and y in pixels",
    )  # fmt: skip
    apply.add_argument("--labels", action="store_true", help="the images' numbers are names: take the nearest")
    apply.add_argument("--inverse", action="store_true", help="from the target's frame to the source's")
    apply.add_argument("--like", type=Path, metavar="IMAGE", help="an image that has the size wanted (default: the "
                       "target's, if the transform tells, else the image's own)")  # fmt: skip
    apply.add_argument("--device", default="cpu", help="where to compute, such as cuda (default: cpu)")
    _add_out(apply, "applied")

    demo = commands.add_parser("demo", help="recover a strong warp of a photo from a target 8 times smaller")
    _add_out(demo, "demo")
    return parser


def _add_settings(parser: argparse.ArgumentParser, motion: Motion) -> None:
    """The options that ``Settings`` holds."""
    parser.add_argument("--motion", choices=get_args(Motion), default=motion, help=f"default: {motion}")
    parser.add_argument(
        "--loss", choices=get_args(Loss), default="huber", help="how pixels are compared (default: huber)"
    )
    parser.add_argument(
        "--max-size", type=int, metavar="PIXELS",
        help="the long side at which images are compared at most (default: as large as it pays)",
    )  # fmt: skip
    steps = GaussNewton().steps
    parser.add_argument("--steps", type=int, default=steps, help=f"most steps (default: {steps})")
    parser.add_argument(
        "--black", action="store_true", help="treat what lies outside the source as black instead of leaving it out"
    )
    parser.add_argument(
        "--min-score", type=float, metavar="SCORE",
        help="what has this score or more counts as good (default: the verdict of register)",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="where to compute, such as cuda (default: cpu)")


def _add_out(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--out", type=Path, default=Path(default), help=f"folder for the results (default: {default})")
    parser.add_argument("--overwrite", action="store_true", help="replace results that are there already")
