"""From distances on a feature grid to an anomaly map in pixels; float32 or float64 tensors."""

import numpy as np
import torch
import torch.nn.functional as F

from ..support import arrays
from ..support.devices import on_cpu
from ..support.gaussian import SMALL, blur_rows_and_columns, gaussian_taps
from .backbone import chunks


def upsample_bilinear(maps, size, align_corners=False):
    """(B, hf, wf) -> (B, *size), bilinear; align_corners False has half-pixel centres."""
    parts = [
        F.interpolate(part[:, None], size=size, mode="bilinear", align_corners=align_corners)
        for part in chunks(maps, len(maps))
    ]
    return torch.cat(parts)[:, 0]


def gaussian_blur(maps, sigma=4.0, impl="cython"):
    """Separable Gaussian blur with a mirrored border.

    Parameters: maps (B, H, W) float32 or float64, any device; sigma in pixels, > 0, at most the
    larger side or 16; impl, on a CPU the kernel or its specification, equal bits.
    Returns the same shape and dtype. 33 taps for sigma 4; down the columns, then along the rows, on
    a CPU in the order of `gaussian.blur_rows_and_columns`, elsewhere of torch's convolution.
    Source: PaDiM (Defard et al., arXiv:2011.08785) and PatchCore (Roth et al.,
    arXiv:2106.08265) smooth their maps with sigma 4.
    """
    if on_cpu(maps.device):
        everything = (np.ones(side, bool) for side in maps.shape[1:])
        array, threads = maps.detach().numpy(), arrays.thread_count()
        return torch.from_numpy(blur_rows_and_columns(array, sigma, *everything, impl, threads))
    return convolved(maps, sigma)


def convolved(maps, sigma):
    """gaussian_blur by torch's convolutions: maps (B, H, W), any device, with no
    transfers."""
    radius = len(gaussian_taps(sigma, most=max(SMALL, *maps.shape[1:]))) - 1
    k = torch.arange(-radius, radius + 1, dtype=torch.float64, device=maps.device)
    taps = torch.exp(k.square() / (-2 * sigma * sigma))
    taps = (taps / taps.sum()).to(maps.dtype)  # (2r + 1,)
    rows, cols = (_reflected(n, radius, maps.device) for n in maps.shape[1:])
    padded = maps[:, rows][:, :, cols][:, None]  # (B, 1, H + 2r, W + 2r)
    return F.conv2d(F.conv2d(padded, taps.view(1, 1, -1, 1)), taps.view(1, 1, 1, -1))[:, 0]


def _reflected(n, radius, device):
    """`gaussian.reflected` on a device."""
    k = torch.arange(-radius, n + radius, device=device) % max(1, 2 * (n - 1))
    return torch.minimum(k, 2 * (n - 1) - k)
