"""Registration of real pairs beside its peers: a folder of pairs with their truth.

    python -m benchmarks.registration_pairs --data DIR [--json FILE] [--threads N] [--without METHOD ...]

The folder holds image files and ``pairs.json``: a list of objects with a ``name``, the file names ``source`` and
``target``, and the truth: ``source_points`` and ``target_points``, lists of landmarks (x, y), or a ``matrix`` from
source to target; both in pixels with centres at integers. The error of a result is the mean distance of the landmarks,
or else of the source's corners, in the target, over the target's longer side. A peer that is not installed is left out.
"""

import json
import math
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kornia.geometry.linalg import transform_points
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from benchmarks.commands import parser
from benchmarks.registration import roc_auc
from benchmarks.registration_peers import find_ecc
from benchmarks.results import report
from lms_geometry import register

Pixels = NDArray[np.uint8]
# The matrix from source to target; the score and the verdict, if the method has any.
Answer = tuple[NDArray[np.float64], float | None, bool | None]
Method = Callable[[Pixels, Pixels], Answer]

THRESHOLDS = (0.01, 0.003)


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--data", type=Path, required=True, help="the folder of pairs")
    command.add_argument("--json", type=Path, help="write the result to this file")
    command.add_argument("--threads", type=int, default=torch.get_num_threads())
    command.add_argument("--without", nargs="*", default=[], help="methods to leave out")
    options = command.parse_args()
    torch.set_num_threads(options.threads)
    pairs = json.loads((options.data / "pairs.json").read_text())
    found: dict[str, list[dict[str, Any]]] = {}
    for name, method in tqdm(methods(options.threads).items(), desc="methods"):
        if name not in options.without:
            found[name] = [measure(method, options.data, pair) for pair in pairs]
    report(
        options.json,
        "Registration of real pairs",
        f"{len(pairs)} pairs with known truth. Found: the error is below 1 % and below 0.3 % of the target's longer "
        "side. Time: CPU seconds a pair. Good: how many results the method calls good, and how many of these are wrong "
        "(error above 1 %). Area: the chance that a found pair has a higher score than another.",
        ["method", "1 %", "0.3 %", "CPU s", "good", "wrong", "area"],
        [_row(name, results) for name, results in found.items()],
        {name: {pair["name"]: r for pair, r in zip(pairs, results, strict=True)} for name, results in found.items()},
    )


def measure(method: Method, folder: Path, pair: dict[str, Any]) -> dict[str, Any]:
    """The error, the CPU seconds, the score and the verdict of a method on one pair."""
    source, target = (np.asarray(Image.open(folder / pair[name]).convert("RGB")) for name in ("source", "target"))
    begin = time.process_time()
    matrix, score, good = method(source, target)
    seconds = time.process_time() - begin
    error = _error(torch.from_numpy(matrix), pair, source.shape[:2], target.shape[:2])
    return {
        "error": round(min(error, 10.0) if math.isfinite(error) else 10.0, 5),
        "seconds": round(seconds, 2),
        "score": score,
        "good": good,
    }


def methods(threads: int) -> dict[str, Method]:
    """Ours, and the peers that are installed."""
    found: dict[str, Method] = {
        "register": _ours(),
        "register, without features": _ours(starts=("resize", "turns", "phase")),
        "register, structure": _ours(loss="structure"),
    }
    if cv2 := _installed("cv2"):
        cv2.setNumThreads(threads)
        found["OpenCV SIFT and MAGSAC"] = lambda s, t: (_features(cv2, cv2.SIFT_create(8000), s, t), None, None)
        found["SIFT, then ECC"] = lambda s, t: (
            _ecc(cv2, s, t, _features(cv2, cv2.SIFT_create(8000), s, t), 0),
            None,
            None,
        )
        found["OpenCV ORB and MAGSAC"] = lambda s, t: (_features(cv2, cv2.ORB_create(8000), s, t), None, None)
        found["OpenCV ECC, pyramid"] = lambda s, t: (_ecc(cv2, s, t, np.eye(3), 4), None, None)
    if sitk := _installed("SimpleITK"):
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
        found["SimpleITK, Mattes, affine"] = lambda s, t: (_mattes(sitk, s, t), None, None)
    if stackreg := _installed("pystackreg"):
        found["pystackreg, bilinear"] = lambda s, t: (_turboreg(stackreg, s, t), None, None)
    return found


def _ours(**given: Any) -> Method:  # noqa: ANN401
    def align(source: Pixels, target: Pixels) -> Answer:
        images = [torch.from_numpy(i.copy()).permute(2, 0, 1)[None].float() / 255 for i in (source, target)]
        found = register(images[0], images[1], "homography", **given)
        return found.matrix[0].double().numpy(), round(found.score.item(), 4), bool(found.good.item())

    return align


def _features(cv2: Any, detector: Any, source: Pixels, target: Pixels) -> NDArray[np.float64]:  # noqa: ANN401
    """Matched by Lowe's ratio of 0.8, the homography by MAGSAC within 3 pixels."""
    found = [detector.detectAndCompute(_grey(image), None) for image in (source, target)]
    if any(descriptors is None or len(descriptors) < 4 for _, descriptors in found):
        return np.eye(3)
    matcher = cv2.BFMatcher(cv2.NORM_HAMMING if found[0][1].dtype == np.uint8 else cv2.NORM_L2)
    pairs = matcher.knnMatch(found[0][1], found[1][1], 2)
    kept = [first for first, second in pairs if first.distance < 0.8 * second.distance]
    if len(kept) < 4:
        return np.eye(3)
    first = np.array([found[0][0][m.queryIdx].pt for m in kept], np.float32)
    second = np.array([found[1][0][m.trainIdx].pt for m in kept], np.float32)
    matrix, _ = cv2.findHomography(first, second, cv2.USAC_MAGSAC, 3.0, maxIters=10000, confidence=0.9999)
    return np.eye(3) if matrix is None else matrix


def _ecc(
    cv2: Any,  # noqa: ANN401
    source: Pixels,
    target: Pixels,
    start: NDArray[np.float64],
    levels: int,
) -> NDArray[np.float64]:
    """``findTransformECC`` for a homography from a start, or its pyramid; the start if it does not converge."""
    moving, fixed = (_grey(image).astype(np.float32) for image in (source, target))
    try:
        matrix = np.linalg.inv(start).astype(np.float32)
        matrix = find_ecc(cv2, moving, fixed, matrix, cv2.MOTION_HOMOGRAPHY, 100, 5, levels)
        return np.asarray(np.linalg.inv(matrix.astype(np.float64)), np.float64)
    except (cv2.error, np.linalg.LinAlgError):
        return start


def _mattes(sitk: Any, source: Pixels, target: Pixels) -> NDArray[np.float64]:  # noqa: ANN401
    """ITK's usual recipe: mutual information, affine about the centre, three levels, a fifth of the pixels."""
    fixed, moving = (sitk.GetImageFromArray(_grey(image).astype(np.float32)) for image in (target, source))
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(50)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.2, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(0.5, 1e-4, 500, 0.7)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2, 1, 0])
    start = sitk.CenteredTransformInitializer(fixed, moving, sitk.AffineTransform(2))
    method.SetInitialTransform(start, inPlace=False)
    try:
        found = method.Execute(fixed, moving)
    except RuntimeError:
        found = start
    origin = np.array(found.TransformPoint((0.0, 0.0)))
    columns = [np.array(found.TransformPoint(point)) - origin for point in ((1.0, 0.0), (0.0, 1.0))]
    matrix = np.eye(3)
    matrix[:2] = np.stack((*columns, origin), 1)
    return np.asarray(np.linalg.inv(matrix), np.float64)


def _turboreg(stackreg: Any, source: Pixels, target: Pixels) -> NDArray[np.float64]:  # noqa: ANN401
    """TurboReg, affine, on images cut to one size."""
    height, width = (min(a, b) for a, b in zip(source.shape[:2], target.shape[:2], strict=True))
    first, second = (_grey(image)[:height, :width].astype(np.float64) for image in (target, source))
    matrix = stackreg.StackReg(stackreg.StackReg.AFFINE).register(first, second)
    return np.asarray(np.linalg.inv(matrix), np.float64)


def _error(matrix: Tensor, pair: dict[str, Any], size: tuple[int, ...], dsize: tuple[int, ...]) -> float:
    """The mean distance of the landmarks, or of the source's corners, over the target's longer side."""
    if "source_points" in pair:
        points = torch.tensor(pair["source_points"], dtype=torch.float64)
        truth = torch.tensor(pair["target_points"], dtype=torch.float64)
    else:
        right, bottom = size[1] - 1.0, size[0] - 1.0
        points = torch.tensor([[0, 0], [right, 0], [0, bottom], [right, bottom]], dtype=torch.float64)
        truth = transform_points(torch.tensor(pair["matrix"], dtype=torch.float64)[None], points[None])[0]
    there = transform_points(matrix[None], points[None])[0]
    return (there - truth).norm(dim=1).mean().item() / max(dsize)


def _row(name: str, results: list[dict[str, Any]]) -> list[str]:
    errors = torch.tensor([r["error"] for r in results])
    counts = [str(int((errors < threshold).sum())) for threshold in THRESHOLDS]
    seconds = sum(r["seconds"] for r in results) / len(results)
    cells = [name, *counts, f"{seconds:.1f}"]
    if results[0]["good"] is None:
        return [*cells, "-", "-", "-"]
    good = torch.tensor([r["good"] for r in results])
    area = roc_auc(torch.tensor([r["score"] for r in results]), errors < THRESHOLDS[0])
    wrong = int((good & (errors >= THRESHOLDS[0])).sum())
    return [*cells, str(int(good.sum())), str(wrong), "-" if math.isnan(area) else f"{area:.2f}"]


def _grey(image: Pixels) -> Pixels:
    return np.asarray(Image.fromarray(image).convert("L"))


def _installed(name: str) -> Any:  # noqa: ANN401
    try:
        return import_module(name)
    except ImportError:
        return None


if __name__ == "__main__":
    main()
