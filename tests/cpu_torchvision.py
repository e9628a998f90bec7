"""torchvision, also where its compiled extension cannot load: its wheels need CUDA's libraries.

It imports nevertheless once the two operators exist that it looks up meanwhile. Its RoIAlign then runs in plain Python,
here without compiling it first. Import this module before torchvision.
"""

from importlib import import_module

import torch

try:
    import_module("torchvision")
except RuntimeError:
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    roi_align = import_module("torchvision.ops.roi_align")
    roi_align._roi_align = roi_align._roi_align.__wrapped__
