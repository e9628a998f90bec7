"""``lms-geometry stack``: align the frames of a stack with one of them, with each other, or with another image."""

import argparse
from pathlib import Path
from typing import Any

import torch

from lms_geometry.cli.align import LOOK, Settings, Side, read_side, say_not_tried
from lms_geometry.cli.console import say
from lms_geometry.cli.drift import smooth_matrices
from lms_geometry.cli.frame_aligner import REFERENCES, FrameAligner, StackOptions
from lms_geometry.cli.frames import FolderFrames, aligned_stems, read_frames
from lms_geometry.cli.images import Frames, suffix_for, write_pictures
from lms_geometry.cli.inputs import InputError, some
from lms_geometry.cli.older import older_files
from lms_geometry.cli.picture import Picture, from_display
from lms_geometry.cli.results import Results
from lms_geometry.cli.warp import warp_picture
from lms_geometry.registration.plotting import overlay
from lms_geometry.registration.transforms import CONVENTION


def run_stack(options: argparse.Namespace) -> int:
    """Align the frames of a file or a folder; returns 0, or 1 if a frame failed or could not be used."""
    settings = Settings.of(options)
    if options.batch < 1:
        raise InputError(f"--batch must be at least 1, got {options.batch}")
    if not 0 <= options.smooth < 1e6:
        raise InputError(f"--smooth must be a number of frames, 0 or more, got {options.smooth}")
    frames, faults, skipped = read_frames(options.frames)
    if len(frames) < 2:
        raise InputError(f"{options.frames} holds one frame: lms-geometry register aligns two images")
    reference: str | Side = options.reference
    inputs = [options.frames, *(options.frames.iterdir() if options.frames.is_dir() else ())]
    if reference not in REFERENCES:
        inputs.append(Path(options.reference))
        reference = read_side(Path(options.reference))
    if skipped:
        say(f"left out, no images by their names: {some(skipped)}")
    for fault in faults:
        say(f"left out: {fault}")
    chosen = StackOptions(options.batch, options.channel, options.smooth)
    results = Results(options.out, inputs, options.overwrite)
    result = align_stack(frames, str(options.frames), reference, settings, results, "", chosen, progress=True)
    failed = [str(row["frame"]) for row in result["frames"] if not row["good"]]
    say(stack_summary(result))
    say_not_tried(result["frames"])
    if failed:
        say(f"not aligned: {some(failed)}")
    say(f"In {options.out}: {', '.join(result['files'])}; overlay.png has the frame with the lowest score in red")
    return 0 if result["good"] and not faults else 1


def stack_summary(result: dict[str, Any]) -> str:
    """A line for a stack."""
    rows = result["frames"]
    good = sum(row["good"] for row in rows)
    verdict = "good" if result["good"] else "FAILED"
    advice = "" if result["good"] else f"; {LOOK}"
    return f"{result['source']}: {verdict}, {good} of {len(rows)} frames, lowest score {result['score']:.3f}{advice}"


def align_stack(
    frames: Frames,
    name: str,
    reference: str | Side,
    settings: Settings,
    results: Results,
    prefix: str = "",
    options: StackOptions = StackOptions(),
    progress: bool = False,
) -> dict[str, Any]:
    """Align the frames, and write them and their matrices; returns what was written as JSON."""
    stems, first = [prefix + stem for stem in _stems(frames)], frames[0]
    suffix = suffix_for(first, len(frames) // len(stems))
    results.check(*(stem + suffix for stem in stems), prefix + "overlay.png", prefix + "registration.json")
    matrices, rows = FrameAligner(frames, name, settings, options, progress).against(reference)
    good = torch.tensor([float(row["good"]) for row in rows], dtype=torch.float64)
    if options.smooth and good.any():
        matrices = smooth_matrices(matrices, good, first.size, settings.motion, options.smooth)
    size = reference.picture.size if isinstance(reference, Side) else first.size

    def warped(index: int) -> Picture:
        return warp_picture(frames[index], matrices[index], size, settings.device)

    if len(stems) == 1:
        files = [write_pictures(results, stems[0], map(warped, range(len(frames))), len(frames))]
    else:
        files = [f"{prefix}aligned/"]
        for index, stem in enumerate(stems):
            write_pictures(results, stem, [warped(index)])
    worst = min(range(len(rows)), key=lambda index: rows[index]["score"])
    beside = max(worst - 1, 0) if reference == "previous" else 0
    target = reference.picture if isinstance(reference, Side) else warped(beside)
    image = overlay(warped(worst).displayed(), target.displayed())
    files += [write_pictures(results, prefix + "overlay", [from_display(image)])]
    files = [file.removeprefix(prefix) for file in (*files, prefix + "registration.json")]
    result = {
        "source": name,
        "target": reference.name if isinstance(reference, Side) else reference,
        "matrix": matrices.tolist(),
        "matrix_convention": CONVENTION,
        "source_size": list(first.size),
        "target_size": list(size),
        "score": rows[worst]["score"],
        "good": all(row["good"] for row in rows),
        "smooth": options.smooth,
        "frames": rows,
        **settings.as_dict(),
        "files": files,
    }
    results.remove(*(prefix + name for name in older_files(results.folder / prefix)))
    results.write_json(prefix + "registration.json", result)
    return result


def _stems(frames: Frames) -> list[str]:
    """How the files of the aligned frames are called, but for the ending: one for a stack, one each for a folder's."""
    if not isinstance(frames, FolderFrames):
        return ["aligned"]
    return [f"aligned/{stem}" for stem in aligned_stems([path.name for path in frames.paths])]
