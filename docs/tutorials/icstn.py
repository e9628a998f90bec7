"""An inverse compositional STN, written in the call form of such repositories."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


def transformImage(opt, image, pMtrx):
    """Warp by a matrix, on a grid with its corners at -1 and 1."""
    X, Y = np.meshgrid(np.linspace(-1, 1, opt.W), np.linspace(-1, 1, opt.H))
    points = torch.tensor(np.stack([X.ravel(), Y.ravel(), np.ones(X.size)]), dtype=torch.float32)
    points = torch.tensor(opt.refMtrx, dtype=torch.float32) @ pMtrx @ points
    grid = (points[:, :2] / points[:, 2:]).transpose(1, 2).view(len(image), opt.H, opt.W, 2)
    return F.grid_sample(image, grid, mode="bilinear")


def vec2mtrx(p):
    """Six numbers to an affine matrix."""
    return torch.eye(3) + torch.cat((p.view(-1, 2, 3), torch.zeros(len(p), 1, 3)), 1)


class ICSTN(nn.Module):
    """Look, correct the warp, look again."""

    def __init__(self, opt):
        super().__init__()
        self.opt = opt
        self.predict = nn.Sequential(nn.Flatten(), nn.Linear(opt.H * opt.W, 32), nn.Tanh(), nn.Linear(32, 6))
        self.classify = nn.Sequential(nn.Flatten(), nn.Linear(opt.H * opt.W, 10))

    def forward(self, image, mask):
        pMtrx = torch.eye(3).expand(len(image), 3, 3)
        for _ in range(self.opt.warpN):
            pMtrx = vec2mtrx(0.1 * self.predict(transformImage(self.opt, image, pMtrx))) @ pMtrx
        seen = transformImage(self.opt, image, pMtrx)
        return self.classify(seen), self.warp_mask(mask, pMtrx)

    def warp_mask(self, mask, pMtrx):
        return transformImage(self.opt, mask, pMtrx)
