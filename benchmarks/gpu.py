"""Whether everything is right on this GPU, and how fast it is, within a few minutes.

    python -m benchmarks.gpu --minutes 8 [--authors DIR] [--json FILE]

The Triton kernels are compared with eager float64 on the CPU, over random cases; under ``compute-sanitizer`` too, where
that is installed. The tests run on the GPU. Then come time and memory beside bilinear sampling, supersampling and the
authors' release, which lies in ``DIR``, and a training step that is compiled or captured in a CUDA graph. What the time
did not suffice for is in the table as not done. Without a GPU, all that can be done is done on the CPU, at a tiny size.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import antialiasing, gpu_cases, gpu_training, peers, speed
from benchmarks.commands import parser
from benchmarks.results import report
from lms_geometry import LinearizedSampling, backends

WHAT = (
    "Checks: the largest error of the kernels over random cases, as a share of what is allowed, which is 1e-5 of the "
    "largest number and what rounding costs eager. Speed: forward and backward, as ratios to bilinear sampling in the "
    "same round, and the peak memory likewise; medians."
)
# B, C, H, W, h, w; how much of the image the view covers along an axis; whether the image takes a gradient.
CASES: tuple[speed.Case, ...] = (
    (64, 3, 224, 224, 224, 224, 1.0, False),
    (64, 3, 224, 224, 224, 224, 2.0, False),
    (64, 3, 224, 224, 64, 64, 1.0, False),
    (8, 64, 64, 64, 64, 64, 1.0, True),
)
TINY: tuple[speed.Case, ...] = ((2, 3, 12, 13, 7, 9, 1.0, False),)
LAYOUTS = {
    "float32": lambda image: image,
    "bfloat16": lambda image: image.bfloat16(),
    "channels last": lambda image: image.contiguous(memory_format=torch.channels_last),
}
# The shares of the time after which the random cases, the sanitizer and the tests end.
CASES_END, SANITIZER_ENDS, TESTS_END = 0.2, 0.35, 0.65

Row = list[str]


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--minutes", type=float, default=8.0, help="how long it may take")
    command.add_argument("--device", type=torch.device, help="cuda if there is one, else the CPU")
    command.add_argument("--authors", type=Path, help="a folder with the authors' release, as one more sampler")
    command.add_argument("--json", type=Path, help="write the result to this file")
    command.add_argument("--only-cases", action="store_true", help="stop after the random cases")
    options = command.parse_args()
    device = options.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clock = Clock(60 * options.minutes)
    backend = "triton" if backends.unavailable_reason("triton") is None else "eager"
    os.environ[backends.VARIABLE] = backend

    rows: list[Row] = []
    raw: dict[str, Any] = {"backend": backend, "triton": backends.unavailable_reason("triton") or "available"}
    failed = add_cases(rows, raw, clock, backend, device)
    if not options.only_cases:
        failed |= add_command(rows, raw, "compute-sanitizer", sanitizer_command(device), clock.left(SANITIZER_ENDS))
        failed |= add_command(rows, raw, "the tests", tests_command(device), clock.left(TESTS_END))
        failed |= add_training(rows, raw, device)
        add_speed(rows, raw, clock, backend, device, options.authors)
    report(options.json, "GPU", WHAT, ["check", "result", ""], rows, raw, device=device)
    raise SystemExit(int(failed))


class Clock:
    """Counts down from a number of seconds."""

    def __init__(self, seconds: float) -> None:
        self._start, self._seconds = time.monotonic(), seconds

    def left(self, share: float = 1.0) -> float:
        """The seconds until a share of the time has passed."""
        return self._start + share * self._seconds - time.monotonic()


def add_cases(rows: list[Row], raw: dict[str, Any], clock: Clock, backend: str, device: torch.device) -> bool:
    """Random cases, until their share of the time has passed, but at least one of every kind. True if one fails."""
    worst: dict[str, dict[str, Any]] = {}
    seed = 0
    while seed < gpu_cases.KINDS or clock.left(CASES_END) > 0:
        name, errors = gpu_cases.compare(seed, backend, device)
        seen = worst.setdefault(name, {"cases": 0, "errors": {}})
        seen["cases"] += 1
        for what, error in errors.items():
            if error >= seen["errors"].get(what, (0.0, 0))[0]:
                seen["errors"][what] = error, seed
        seed += 1
    raw["cases"] = worst
    for name, seen in worst.items():
        result = ", ".join(f"{what} {error:.2f}" for what, (error, _) in seen["errors"].items())
        right = all(error <= 1 for error, _ in seen["errors"].values())
        rows.append([f"{name}, {seen['cases']} cases", result, "right" if right else "WRONG"])
    return any(error > 1 for seen in worst.values() for error, _ in seen["errors"].values())


def sanitizer_command(device: torch.device) -> list[str] | None:
    """The random cases under NVIDIA's memory checker, or ``None`` where there is none."""
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None or device.type != "cuda":
        return None
    run_again = [sys.executable, "-m", "benchmarks.gpu", "--only-cases", "--minutes", "0"]
    return [sanitizer, "--tool", "memcheck", "--error-exitcode", "1", *run_again]


def tests_command(device: torch.device) -> list[str] | None:
    """The tests that take a device, or ``None`` where it is the CPU, on which all tests run anyway."""
    if device.type == "cpu" or importlib.util.find_spec("pytest") is None:
        return None
    files = (f"tests/test_{name}.py" for name in ("device", "triton", "triton_area", "backends"))
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--device", str(device), *files]


def add_command(rows: list[Row], raw: dict[str, Any], name: str, command: list[str] | None, seconds: float) -> bool:
    """Run a command for at most some seconds, and note its last line. True if it fails."""
    if command is None or seconds < 5:
        rows.append([name, "", "not done: " + ("no GPU, or not installed" if command is None else "no time was left")])
        return False
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        rows.append([name, "", f"not done: {seconds:.0f} seconds did not suffice"])
        return False
    raw[name] = {"status": ran.returncode, "output": (ran.stdout + ran.stderr)[-20_000:]}
    last = (ran.stdout.strip() or ran.stderr.strip() or " ").splitlines()[-1]
    rows.append([name, last, "right" if ran.returncode == 0 else "WRONG"])
    return ran.returncode != 0


def add_training(rows: list[Row], raw: dict[str, Any], device: torch.device) -> bool:
    """A training step that is compiled, and one in a CUDA graph, beside the plain one. True if one differs."""
    raw["training"] = {}
    for name, difference in gpu_training.differences(device):
        raw["training"][name] = difference
        right = isinstance(difference, float) and difference < 1e-3
        result = f"differs by {difference:.1e}" if isinstance(difference, float) else difference
        rows.append([f"training step, {name}", result, "right" if right else "WRONG"])
    return any(row[2] == "WRONG" for row in rows if row[0].startswith("training"))


def add_speed(
    rows: list[Row], raw: dict[str, Any], clock: Clock, backend: str, device: torch.device, authors: Path | None
) -> None:
    """Time and memory, for every size and layout that there is time for."""
    warnings.filterwarnings("ignore", message="Default grid_sample")  # the authors' release says no align_corners
    samplers: dict[str, speed.Sampler] = {
        "bilinear": lambda image, grid: peers.bilinear(image, grid.to(image.dtype)),
        "supersampled 3 x 3": lambda image, grid: antialiasing.supersampled(image, grid.to(image.dtype), 3),
        f"default, {backend}": speed.linearized(LinearizedSampling(), backend),
        f"paper, {backend}": speed.linearized(LinearizedSampling.paper(), backend),
        "default, eager": speed.linearized(LinearizedSampling(), "eager"),
    }
    raw["speed"] = []
    for case, layout, more in sizes(device, authors):
        if clock.left() < 0:
            rows.append([f"speed, {case}, {layout}", "", "not done: no time was left"])
            continue
        rounds = 20 if device.type == "cuda" else 3
        measured = speed.measure(case, samplers | more, rounds, device, LAYOUTS[layout])
        raw["speed"] += [{**row, "layout": layout} for row in measured]
        first, *others = measured
        for row in others:
            forward, both = row["forward_ratio"][1], row["both_ratio"][1]
            result = f"forward {forward:.2f}, both {both:.2f}, memory {row['memory_ratio']:.2f}"
            beside = f"bilinear: {first['both_ms']:.3f} ms"
            rows.append([f"{row['sampler']}, {row['size']}, {layout}", result, beside])


def sizes(device: torch.device, authors: Path | None) -> Iterator[tuple[speed.Case, str, dict[str, speed.Sampler]]]:
    """Sizes and layouts, the most telling first, each with the samplers that run there alone."""
    for layout in LAYOUTS:
        for case in CASES if device.type == "cuda" else TINY:
            more: dict[str, speed.Sampler] = {}
            if authors is not None and layout == "float32":
                more["authors' code"] = peers.load_authors(authors)
            yield case, layout, more


if __name__ == "__main__":
    main()
