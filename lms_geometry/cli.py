"""The command ``lms-geometry``: ``demo`` shows what the method does, ``register`` aligns image files."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.nn.functional as F
from kornia.geometry.conversions import denormalize_homography, normalize_homography
from kornia.geometry.linalg import transform_points
from kornia.geometry.transform import homography_warp, warp_perspective
from torch import Tensor

from lms_geometry.motions import Motion
from lms_geometry.problem import WHOLLY_SEEN
from lms_geometry.registration import Registration, register

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_PIXELS = 64_000_000
_RECOVERED = 0.02
_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
_SQUARES = 8


class InputError(Exception):
    """Something the user gave cannot be used; the message says what, and what to do."""


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
            _demo(options.out, options.seed)
            return 0
        return _register(options)
    except (InputError, OSError, ValueError) as error:
        parser.exit(2, f"lms-geometry: error: {error}\n")
    except ModuleNotFoundError as error:
        parser.exit(2, f"lms-geometry: error: {error.name} is missing; pip install 'lms_geometry[cli]'\n")


def _demo(out: Path, seed: int) -> None:
    """Warp a photo, shrink it 8 times, and recover the warp with bilinear and with linearized sampling."""
    from skimage import data

    photo = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None].float() / 255
    source = F.interpolate(photo, (256, 256), mode="area")
    # Target to source, normalised: a turn of 40 degrees, scales of 1.4 and 0.8, and a move by a tenth of the width.
    angle = torch.deg2rad(torch.tensor(40.0))
    cos, sin = angle.cos().item(), angle.sin().item()
    truth = torch.tensor([[[1.4 * cos, -0.8 * sin, 0.2], [1.4 * sin, 0.8 * cos, -0.1], [0.0, 0.0, 1.0]]])
    target = homography_warp(source, truth, (32, 32))
    out.mkdir(parents=True, exist_ok=True)

    print(f"A photo of 256 x 256 pixels, turned, stretched and moved, seen at 32 x 32. Seed {seed}.")
    found: dict[str, Registration] = {}
    errors: dict[str, float] = {}
    samplers: dict[str, Literal["bilinear"] | None] = {"bilinear": "bilinear", "linearized": None}
    for name, sampling in samplers.items():
        generator = torch.Generator().manual_seed(seed)
        found[name] = register(
            source, target, "anisotropic", sampling=sampling, optimizer="adam", generator=generator, progress=True
        )
        errors[name] = _corner_error(found[name].matrix, truth, _size(source), _size(target))
        verdict = "recovered" if errors[name] < _RECOVERED else "failed"
        print(f"{name:>10}: corner error {errors[name]:.4f} of half the width: {verdict}")
    _draw_demo(source, target, truth, found, errors, out / "demo.png")
    print(f"The picture is {out / 'demo.png'}")


def _register(options: argparse.Namespace) -> int:
    """Align an image file, or each of a folder into a folder of its own; write images and the matrix."""
    from tqdm import tqdm

    if options.size < 8:
        raise InputError(f"--size must be at least 8, got {options.size}")
    if not 0 <= options.min_score <= 1:
        raise InputError(f"--min-score must be from 0 to 1, got {options.min_score}")
    target = _read_image(options.target)
    if not options.source.is_dir():
        result = _register_one(options.source, target, options, options.out, progress=True)
        print(_summary(result))
        print(
            "aligned.png, overlay.png (red: source, cyan: target), checkerboard.png and registration.json are in "
            f"{options.out}"
        )
        return 0 if result["good"] else 1
    paths = sorted(path for path in options.source.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise InputError(f"{options.source} holds no images ({', '.join(sorted(_SUFFIXES))})")
    options.out.mkdir(parents=True, exist_ok=True)
    results = []
    for path in tqdm(paths, desc="register", unit="image"):
        try:
            results.append(_register_one(path, target, options, options.out / path.name, progress=False))
        except InputError as error:
            results.append({"source": str(path), "target": str(options.target), "good": False, "error": str(error)})
        tqdm.write(_summary(results[-1]))
    (options.out / "registrations.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"A folder for each image and registrations.json are in {options.out}")
    return 0 if all(result["good"] for result in results) else 1


def _register_one(path: Path, target: Tensor, options: argparse.Namespace, out: Path, progress: bool) -> dict[str, Any]:
    source = _read_image(path)
    (small_source, source_mask), (small_target, target_mask) = (
        _shrink(image, options.size) for image in (source, target)
    )
    if source_mask is not None and not (source_mask > WHOLLY_SEEN).any():
        raise InputError(f"{path} is nowhere opaque")
    out.mkdir(parents=True, exist_ok=True)
    source, target = source[:, :3], target[:, :3]
    found = register(
        small_source,
        small_target,
        options.motion,
        steps=options.steps,
        generator=torch.Generator().manual_seed(options.seed),
        progress=progress,
        photometric=True,
        loss="huber",
        overlap=not options.black,
        source_mask=source_mask,
        target_mask=target_mask,
    )
    matrix = _resized_matrix(found.matrix, small_source, small_target, source, target)
    aligned = warp_perspective(source, matrix, _size(target))
    _write_image(aligned, out / "aligned.png")
    _write_image(_overlay(aligned, target), out / "overlay.png")
    _write_image(_checkerboard(aligned, target), out / "checkerboard.png")
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


def _read_image(path: Path) -> Tensor:
    """An image file as ``(1, 4, H, W)`` from 0 to 1: red, green, blue, and 1 where it is opaque."""
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise InputError(
                    f"{path} is too large: {image.width} x {image.height} is more than {_MOST_PIXELS:,} pixels"
                )
            upright: Image.Image = ImageOps.exif_transpose(image)
            if upright.mode.startswith(("I", "F")):  # 16 bits or floats, which convert() would clip to 8 bits
                most = 1 if upright.mode == "F" else 65535
                pixels = np.asarray(upright, np.float32)[..., None].repeat(4, -1) / most
                if not 0 <= pixels.min() <= pixels.max() <= 1:
                    raise InputError(f"{path} has values that are not from 0 to {most}: save it with 8 or 16 bits")
                pixels[..., 3] = 1
            else:
                pixels = np.asarray(upright.convert("RGBA"), np.float32) / 255
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except UnidentifiedImageError:
        raise InputError(f"{path} is empty or not an image in a format Pillow reads") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if not pixels[..., 3].any():
        raise InputError(f"{path} is wholly transparent")
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def _write_image(image: Tensor, path: Path) -> None:
    from PIL import Image

    pixels = (image[0].clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    Image.fromarray(pixels.numpy()).save(path)


def _shrink(image: Tensor, size: int) -> tuple[Tensor, Tensor | None]:
    """The colours of an image at a long side of ``size``, and where it is opaque if it is not everywhere."""
    scale = min(1.0, size / max(image.shape[-2:]))
    small = [max(1, round(n * scale)) for n in image.shape[-2:]]
    colours, opaque = image.split((3, 1), 1)
    seen = torch.cat((colours * opaque, opaque), 1)
    seen, mask = F.interpolate(seen, small, mode="bilinear", antialias=True, align_corners=False).split((3, 1), 1)
    return seen / mask.clamp_min(1e-3), None if (opaque == 1).all() else mask.clamp(0, 1)


def _resized_matrix(matrix: Tensor, source: Tensor, target: Tensor, full_source: Tensor, full_target: Tensor) -> Tensor:
    """The matrix between two images, carried over to their full sizes: in normalised coordinates it is the same."""
    normalised = normalize_homography(matrix, _size(source), _size(target), align_corners=False)
    matrix = denormalize_homography(normalised, _size(full_source), _size(full_target), align_corners=False)
    return matrix / matrix[:, 2:, 2:]


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]


def _overlay(aligned: Tensor, target: Tensor) -> Tensor:
    """Red from one image, cyan from the other: grey where they agree."""
    red, cyan = (image.mean(1, keepdim=True) for image in (aligned, target))
    return torch.cat((red, cyan, cyan), 1)


def _checkerboard(aligned: Tensor, target: Tensor) -> Tensor:
    """Squares of one image among squares of the other: edges run on where they agree."""
    height, width = _size(target)
    side = max(1, max(height, width) // _SQUARES)
    odd = (torch.arange(height)[:, None] // side + torch.arange(width) // side) % 2 == 1
    return torch.where(odd, aligned, target)


def _corner_error(matrix: Tensor, truth: Tensor, size: tuple[int, int], dsize: tuple[int, int]) -> float:
    """Mean distance of the target's corners in the source from where they belong, in half widths."""
    found = normalize_homography(matrix, size, dsize, align_corners=False).inverse()
    corners = torch.tensor([[[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]]])
    return (transform_points(found, corners) - transform_points(truth, corners)).norm(dim=-1).mean().item()


def _draw_demo(
    source: Tensor,
    target: Tensor,
    truth: Tensor,
    found: dict[str, Registration],
    errors: dict[str, float],
    path: Path,
) -> None:
    """The paper's Fig. 1: what is sought, and for each sampler the path it took and what it found."""
    from matplotlib.figure import Figure

    size, dsize = _size(source), _size(target)
    outline = torch.tensor([[[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0]]])
    sought = transform_points(truth, outline)

    figure = Figure(figsize=(11, 6.6), layout="constrained")
    axes = figure.subplots(2, 3)
    _show(axes[0, 0], source, "source, 256 x 256 (white: what is sought)")
    _draw_outline(axes[0, 0], sought, size, color="white", linewidth=2)
    _show(axes[1, 0], target, "target, 32 x 32")
    for column, name in enumerate(found, start=1):
        path_matrices = normalize_homography(found[name].path[:, 0], size, dsize, align_corners=False).inverse()
        outlines = transform_points(path_matrices, outline.expand(len(path_matrices), -1, -1))
        _show(axes[0, column], source, f"{name}: its path, dark to bright")
        for step in range(0, len(outlines), 10):
            shade = step / (len(outlines) - 1)
            _draw_outline(axes[0, column], outlines[step], size, color=(1.0, shade, 0.0), linewidth=0.8)
        _draw_outline(axes[0, column], sought, size, color="white", linewidth=2)
        _draw_outline(axes[0, column], outlines[-1], size, color="yellow", linewidth=2, linestyle="--")
        _show(
            axes[1, column],
            warp_perspective(source, found[name].matrix, dsize),
            f"{name}: corner error {errors[name]:.4f}",
        )
    figure.savefig(path, dpi=120)


def _show(axes: "Axes", image: Tensor, title: str) -> None:
    axes.imshow(image[0].clamp(0, 1).permute(1, 2, 0).numpy())
    axes.set_title(title, fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])


def _draw_outline(axes: "Axes", outline: Tensor, size: tuple[int, int], **style: Any) -> None:  # noqa: ANN401
    height, width = size
    x, y = outline.reshape(-1, 2).unbind(-1)
    axes.plot((x + 1) * width / 2 - 0.5, (y + 1) * height / 2 - 0.5, **style)
    axes.set_facecolor("black")
    axes.set_xlim(-0.4 * width, 1.4 * width)
    axes.set_ylim(1.4 * height, -0.4 * height)
