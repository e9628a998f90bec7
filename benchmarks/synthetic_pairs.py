"""Pairs with their truth made of photos, in the form that ``benchmarks.registration_pairs`` takes.

    python -m benchmarks.synthetic_pairs --data PHOTOS --out DIR [--rate 4] [--count 80]

A photo is seen again through a homography, ``rate`` times smaller, in other light, with grain and with a part hidden by
a square of one colour. A third of the motions are large, a third medium, a third small.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.commands import parser
from benchmarks.photos import photo_files

# How large motions are, in turn: the factor of their turn, scale, shift and perspective.
STRENGTHS = (1.0, 0.6, 0.3)


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--data", type=Path, required=True, help="a folder with photos")
    command.add_argument("--out", type=Path, required=True, help="the folder to write, which must not exist yet")
    command.add_argument("--rate", type=int, default=1, help="how many times smaller the second image is")
    command.add_argument("--count", type=int, default=80, help="how many pairs")
    options = command.parse_args()
    files = photo_files(options.data)
    if not files:
        raise SystemExit(f"{options.data} holds no photos")
    options.out.mkdir(parents=True)
    pairs = []
    for number in range(options.count):
        with Image.open(files[number % len(files)]) as photo:
            source = np.array(photo.convert("RGB"))
        matrix, target = make(source, options.rate, STRENGTHS[number % len(STRENGTHS)], number)
        names = {"source": f"{number}_source.png", "target": f"{number}_target.png"}
        for image, name in zip((source, target), names.values(), strict=True):
            Image.fromarray(image).save(options.out / name)
        pairs.append({"name": str(number), **names, "matrix": matrix.tolist()})
    (options.out / "pairs.json").write_text(json.dumps(pairs, indent=1))


def make(
    source: NDArray[np.uint8], rate: int, strength: float, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """The matrix from source to target, in pixels with centres at integers, and the target."""
    import cv2

    choose = np.random.default_rng(seed)
    height, width = source.shape[0] // rate, source.shape[1] // rate
    angle = choose.normal() * np.pi / 4 * strength * 0.7
    scale = 2 ** (choose.normal(size=1).clip(-2, 2)[0] * 0.4 * strength)
    motion = np.eye(3)
    motion[:2, :2] = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    motion[:2, 2] = choose.normal(size=2).clip(-2, 2) * 0.12 * source.shape[1] * strength
    motion[2, :2] = choose.normal(size=2).clip(-2, 2) * 0.25 * strength / source.shape[1]
    to_middle = np.eye(3)
    to_middle[:2, 2] = -(source.shape[1] - 1) / 2, -(source.shape[0] - 1) / 2
    from_middle = np.diag([1 / rate, 1 / rate, 1.0])
    from_middle[:2, 2] = (width - 1) / 2, (height - 1) / 2
    matrix = from_middle @ motion @ to_middle
    larger = np.diag([rate, rate, 1.0])
    larger[:2, 2] = (rate - 1) / 2
    target: Any = cv2.warpPerspective(source.astype(np.float32), larger @ matrix, (width * rate, height * rate))
    target = cv2.resize(target, (width, height), interpolation=cv2.INTER_AREA)

    target = target * 2 ** (0.3 * choose.normal()) + 15 * choose.normal()
    side = height // 4
    top, left = choose.integers(0, height - side), choose.integers(0, width - side)
    target[top : top + side, left : left + side] = choose.uniform(0, 255, 3)
    target = target + 6 * choose.normal(size=target.shape)
    return matrix / matrix[2, 2], target.clip(0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
