"""``lms-geometry register``: align an image file, or each of a folder, with another, and write what was found."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from kornia.geometry.transform import warp_perspective
from torch import Tensor

from lms_geometry._kornia import denormalize_homography, normalize_homography
from lms_geometry.cli.images import SUFFIXES, InputError, checkerboard, read_image, shrink, write_image
from lms_geometry.registration import GaussNewton, register
from lms_geometry.registration.plotting import overlay
from lms_geometry.registration.problem import FULLY_VALID


def run_register(options: argparse.Namespace) -> int:
    """Align a file, or each of a folder into a folder of its own; returns 0, or 1 if any of them failed."""
    from tqdm import tqdm

    if options.size < 8:
        raise InputError(f"--size must be at least 8, got {options.size}")
    if not 0 <= options.min_score <= 1:
        raise InputError(f"--min-score must be from 0 to 1, got {options.min_score}")
    target = read_image(options.target)
    if not options.source.is_dir():
        result = _align(options.source, target, options, options.out, progress=True)
        print(_summary(result))
        print(
            "aligned.png, overlay.png (red: source, cyan: target), checkerboard.png and registration.json are in "
            f"{options.out}"
        )
        return 0 if result["good"] else 1
    paths = sorted(path for path in options.source.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise InputError(f"{options.source} holds no images ({', '.join(sorted(SUFFIXES))})")
    options.out.mkdir(parents=True, exist_ok=True)
    results = []
    for path in tqdm(paths, desc="register", unit="image"):
        try:
            results.append(_align(path, target, options, options.out / path.name, progress=False))
        except InputError as error:
            results.append({"source": str(path), "target": str(options.target), "good": False, "error": str(error)})
        tqdm.write(_summary(results[-1]))
    (options.out / "registrations.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"A folder for each image and registrations.json are in {options.out}")
    return 0 if all(result["good"] for result in results) else 1


def _align(path: Path, target: Tensor, options: argparse.Namespace, out: Path, progress: bool) -> dict[str, Any]:
    """Align one file, write its images and its matrix to the folder ``out``, and return what was written."""
    source = read_image(path)
    (small_source, source_mask), (small_target, target_mask) = (
        shrink(image, options.size) for image in (source, target)
    )
    if source_mask is not None and not (source_mask > FULLY_VALID).any():
        raise InputError(f"{path} is nowhere opaque")
    out.mkdir(parents=True, exist_ok=True)
    source, target = source[:, :3], target[:, :3]
    found = register(
        small_source,
        small_target,
        options.motion,
        GaussNewton(steps=options.steps),
        loss="huber",
        fit_gain_bias=True,
        overlap_only=not options.black,
        source_mask=source_mask,
        target_mask=target_mask,
        generator=torch.Generator().manual_seed(options.seed),
        progress=progress,
    )
    matrix = _resized_matrix(found.matrix, small_source, small_target, source, target)
    aligned = warp_perspective(source, matrix, _size(target))
    write_image(aligned, out / "aligned.png")
    write_image(overlay(aligned, target), out / "overlay.png")
    write_image(checkerboard(aligned, target), out / "checkerboard.png")
    score = found.score.item()
    result = {
        "source": str(path),
        "target": str(options.target),
        "motion": options.motion,
        "matrix": matrix[0].tolist(),
        "matrix_convention": "source to target, pixels, centres at integers",
        "score": score,
        "good": score >= options.min_score,
        "converged": bool(found.converged.item()),
        "loss": {"first": found.loss[0].item(), "last": found.loss[-1].item()},
        "steps": options.steps,
        "seed": options.seed,
    }
    (out / "registration.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


def _summary(result: dict[str, Any]) -> str:
    if "error" in result:
        return f"FAILED: {result['error']}"
    verdict = "good" if result["good"] else "FAILED"
    converged = "converged" if result["converged"] else "not converged"
    return f"{result['source']}: score {result['score']:.3f}, {verdict}, {converged}"


def _resized_matrix(matrix: Tensor, source: Tensor, target: Tensor, full_source: Tensor, full_target: Tensor) -> Tensor:
    """The pixel matrix between two shrunk images as that between the full ones: normalised, they are the same."""
    normalised = normalize_homography(matrix, _size(source), _size(target), align_corners=False)
    matrix = denormalize_homography(normalised, _size(full_source), _size(full_target), align_corners=False)
    return matrix / matrix[:, 2:, 2:]


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]
