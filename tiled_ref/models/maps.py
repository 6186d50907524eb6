"""From distances on a feature grid to an anomaly map in pixels; tensors of any float dtype."""

import numpy as np
import torch
import torch.nn.functional as F

from ..backbone import in_company
from ..gaussian import gaussian_taps, reflected


def placed(value, device, old=None):
    """A tensor on a device, in the memory of `old` if that has its shape and is not on the host,
    so that what a model holds is on a device once while another location's takes its place."""
    if old is None or device.type == "cpu" or old.shape != value.shape:
        return value.to(device)
    return old.copy_(value)


def upsample_bilinear(maps, size):
    """(B, hf, wf) -> (B, *size), bilinear with half-pixel centres (align_corners False)."""
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def gaussian_blur(maps, sigma=4.0):
    """Separable Gaussian blur with a mirrored border.

    Parameters: maps (B, H, W) float, any device; sigma in pixels.
    Returns the same shape and dtype. 33 taps for sigma 4; rows first, then columns.
    Source: PaDiM (Defard et al., arXiv:2011.08785) and PatchCore (Roth et al.,
    arXiv:2106.08265) smooth their maps with sigma 4.
    """
    half = gaussian_taps(sigma)  # centre outwards
    taps = torch.from_numpy(np.concatenate([half[:0:-1], half])).to(maps)
    radius = half.size - 1
    rows = torch.from_numpy(reflected(maps.shape[-2], radius)).to(maps.device)
    cols = torch.from_numpy(reflected(maps.shape[-1], radius)).to(maps.device)

    def blur(tensors):
        padded = tensors[0].index_select(-2, rows)  # (B, 1, H + 2r, W)
        blurred = F.conv2d(padded, taps[None, None, :, None])  # (B, 1, H, W)
        padded = blurred.index_select(-1, cols)  # (B, 1, H, W + 2r)
        return [F.conv2d(padded, taps[None, None, None, :])]  # (B, 1, H, W)

    return in_company(blur, [maps[:, None]], maps.shape[1] * maps.shape[2])[0][:, 0]
