"""``lms-geometry register``: align an image file, or each of a folder, with another, and write what was found."""

import argparse
from pathlib import Path
from typing import Any

import torch

from lms_geometry.cli.align import FAULTS, Settings, Side, align, failure, outcome, read_side, say_not_tried, summary
from lms_geometry.cli.console import say
from lms_geometry.cli.images import checkerboard, open_frames, suffix_for, write_pictures
from lms_geometry.cli.inputs import InputError, list_images, some
from lms_geometry.cli.older import older_files
from lms_geometry.cli.picture import from_display
from lms_geometry.cli.results import Results
from lms_geometry.cli.stack import align_stack, stack_summary
from lms_geometry.cli.warp import warp_picture
from lms_geometry.registration.plotting import overlay
from lms_geometry.registration.transforms import Transform


def run_register(options: argparse.Namespace) -> int:
    """Align a file, or each of a folder into a folder of its own; returns 0, or 1 if any of them failed."""
    settings = Settings.of(options)
    if options.source.is_dir():
        return _register_folder(options, settings)
    masks = [path for path in (options.source_mask, options.target_mask) if path is not None]
    results = Results(options.out, [options.source, options.target, *masks], options.overwrite)
    target = read_side(options.target, options.target_mask)
    result = register_file(options.source, target, options.source_mask, settings, results, progress=True)
    say(_told(result))
    say_not_tried([result])
    say(f"In {options.out}: {', '.join(result['files'])}; in the overlay the source is red, the target cyan")
    return 0 if result["good"] else 1


def _register_folder(options: argparse.Namespace, settings: Settings) -> int:
    from tqdm import tqdm

    if options.source_mask is not None and not options.source_mask.is_dir():
        raise InputError(f"--source-mask must be a folder too, of masks with the sources' names: {options.source_mask}")
    paths, skipped = list_images(options.source)
    masks = [] if options.source_mask is None else [options.source_mask / path.name for path in paths]
    inputs = [*options.source.iterdir(), options.target, *masks]
    inputs += [] if options.target_mask is None else [options.target_mask]
    results = Results(options.out, inputs, options.overwrite)
    results.check("registrations.json", *(f"{path.name}/registration.json" for path in paths))
    target = read_side(options.target, options.target_mask)
    if skipped:
        say(f"left out, no images by their names: {some(skipped)}")
    rows: list[dict[str, Any]] = []
    try:
        for index, path in enumerate(tqdm(paths, desc="register", unit="image")):
            try:
                mask = masks[index] if masks else None
                rows.append(register_file(path, target, mask, settings, results, f"{path.name}/"))
            except FAULTS as error:
                rows.append(failure(path, options.target, error))
            say(_told(rows[-1]))
    finally:
        results.write_json("registrations.json", rows)
    say_not_tried(rows)
    say(f"A folder for each image and registrations.json are in {options.out}")
    return 0 if all(row["good"] for row in rows) else 1


def _told(result: dict[str, Any]) -> str:
    """A line for a file, which may be a stack."""
    return stack_summary(result) if "frames" in result else summary(result)


def register_file(
    path: Path,
    target: Side,
    mask: Path | None,
    settings: Settings,
    results: Results,
    prefix: str = "",
    progress: bool = False,
) -> dict[str, Any]:
    """Align one file, a stack by its frames, and write its images and its matrix; returns what was written."""
    frames = open_frames(path)
    if len(frames) > 1:
        if mask is not None:
            raise InputError(f"{path} is a stack, which takes no mask")
        return align_stack(frames, str(path), target, settings, results, prefix, progress=progress)
    source = read_side(path, mask)
    check_pair(source, results, prefix)
    found = align([source], [target], settings, progress)
    return write_pair(source, target, outcome(found, 0, settings), results, prefix)


def check_pair(source: Side, results: Results, prefix: str) -> None:
    """Raise unless all that ``write_pair`` writes can be written."""
    names = ("overlay.png", "checkerboard.png", "registration.json", "transform.tfm")
    results.check(*(prefix + name for name in (f"aligned{suffix_for(source.picture)}", *names)))


def write_pair(source: Side, target: Side, result: dict[str, Any], results: Results, prefix: str) -> dict[str, Any]:
    """Write the images and the matrix of a pair; returns what was written as JSON."""
    transform = Transform(torch.tensor([result["matrix"]], dtype=torch.float64), source.picture.size)
    aligned = warp_picture(source.picture, transform.matrix[0], target.picture.size, result["device"])
    shown, beside = aligned.displayed(), target.picture.displayed()
    files = [write_pictures(results, f"{prefix}aligned", [aligned])]
    for name, image in (("overlay", overlay(shown, beside)), ("checkerboard", checkerboard(shown, beside))):
        files.append(write_pictures(results, prefix + name, [from_display(image)]))
    if transform.is_affine():
        results.write_text(f"{prefix}transform.tfm", transform.to_tfm())
        files.append("transform.tfm")
    files = [Path(name).name for name in (*files, "registration.json")]
    result = {"source": source.name, "target": target.name, **result, "files": files}
    results.remove(*(prefix + name for name in ("transform.tfm", *older_files(results.folder / prefix))))
    results.write_json(f"{prefix}registration.json", result)
    return result
