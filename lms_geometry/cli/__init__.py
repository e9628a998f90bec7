"""The command ``lms-geometry``: ``demo`` shows the method at work, ``register`` aligns image files."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from lms_geometry.cli.demo import run_demo
from lms_geometry.cli.images import InputError
from lms_geometry.cli.register import run_register
from lms_geometry.registration.motion import Motion


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 if a registration failed, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="lms-geometry", description="Image warps with the linearized multi-sampling gradient."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    demo = commands.add_parser("demo", help="recover a strong warp of a photo from a target 8 times smaller")
    demo.add_argument("--out", type=Path, default=Path("demo"), help="folder for the picture (default: demo)")
    demo.add_argument("--seed", type=int, default=0, help="seed of the samples (default: 0)")

    align = commands.add_parser(
        "register",
        help="align one image file, or all of a folder, with another",
        description="Images are turned upright as their EXIF data says; what is transparent is left out. Exit status: "
        "0; 1 if a score is below --min-score or a file of the folder cannot be used; 2 for other input that cannot be "
        "used.",
    )
    align.add_argument("source", type=Path, help="the image to move, or a folder of such")
    align.add_argument("target", type=Path, help="the image to move it onto")
    align.add_argument("--motion", choices=get_args(Motion), default="affine", help="default: affine")
    align.add_argument(
        "--out", type=Path, default=Path("registered"), help="folder for the results (default: registered)"
    )
    align.add_argument("--size", type=int, default=256, help="long side, in pixels, to work at (default: 256)")
    align.add_argument("--steps", type=int, default=60, help="most steps (default: 60)")
    align.add_argument(
        "--black", action="store_true", help="treat what lies outside the source as black instead of leaving it out"
    )
    align.add_argument(
        "--min-score", type=float, default=0.9, help="a lower score counts as failed, exit status 1 (default: 0.9)"
    )
    align.add_argument("--seed", type=int, default=0, help="seed of the samples (default: 0)")

    options = parser.parse_args(arguments)
    try:
        if not 0 <= options.seed < 2**63:
            raise InputError(f"--seed must be from 0 to 2^63 - 1, got {options.seed}")
        if options.command == "demo":
            run_demo(options.out, options.seed)
            return 0
        return run_register(options)
    except (InputError, OSError, ValueError) as error:
        parser.exit(2, f"lms-geometry: error: {error}\n")
    except ModuleNotFoundError as error:
        parser.exit(2, f"lms-geometry: error: {error.name} is missing; pip install 'lms_geometry[cli]'\n")
