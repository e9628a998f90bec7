"""``lms-geometry apply``: warp images, labels and points by a transform that was found before."""

import argparse
from dataclasses import replace
from pathlib import Path

from lms_geometry.cli.align import FAULTS, check_device
from lms_geometry.cli.console import say
from lms_geometry.cli.images import open_frames, suffix_for, write_pictures
from lms_geometry.cli.inputs import InputError, check_readable
from lms_geometry.cli.picture import Picture
from lms_geometry.cli.points import move_points
from lms_geometry.cli.results import Results
from lms_geometry.cli.warp import warp_label_picture, warp_picture
from lms_geometry.registration.transforms import Transform


def run_apply(options: argparse.Namespace) -> int:
    """Warp each file; returns 0, or 1 if any of them could not be."""
    check_device(options.device)
    check_readable(options.transform)
    transform = Transform.load(options.transform)
    transform = transform.inverse() if options.inverse else transform
    inputs = [options.transform, *options.images] + ([] if options.like is None else [options.like])
    results = Results(options.out, inputs, options.overwrite)
    if options.like is not None:
        transform = replace(transform, target_size=open_frames(options.like)[0].size)
    failed = False
    for path in options.images:
        try:
            if path.suffix.lower() == ".csv":
                name = move_points(path, transform, results)
            else:
                name = _warp_file(path, transform, results, options.labels, options.device)
            say(f"{path} -> {options.out / name}")
        except FAULTS as error:
            failed = True
            say(f"FAILED: {error}")
    return 1 if failed else 0


def _warp_file(path: Path, transform: Transform, results: Results, labels: bool, device: str) -> str:
    """Warp an image, or each frame of a stack by its matrix, or all by one; returns the file's name."""
    frames = open_frames(path, labels)
    first = frames[0]
    if transform.source_size is not None and first.size != transform.source_size:
        (height, width), (wanted_height, wanted_width) = first.size, transform.source_size
        raise InputError(f"{path} is {width} x {height}, and the transform is for {wanted_width} x {wanted_height}")
    if len(transform.matrix) not in (1, len(frames)):
        raise InputError(f"{path} must have one frame for each of {len(transform.matrix)} matrices, got {len(frames)}")
    size = transform.target_size or first.size
    matrices = transform.matrix.expand(len(frames), 3, 3)
    stem = path.name.removesuffix(path.suffix).removesuffix(".ome")
    results.check(stem + suffix_for(first, len(frames)))

    def warped(index: int) -> Picture:
        if labels:
            return warp_label_picture(frames[index], matrices[index], size)
        return warp_picture(frames[index], matrices[index], size, device)

    return write_pictures(results, stem, map(warped, range(len(frames))), len(frames))
