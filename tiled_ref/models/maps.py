"""From distances on a feature grid to an anomaly map in pixels; tensors of any float dtype."""

import functools

import numpy as np
import torch
import torch.nn.functional as F

from ..gaussian import gaussian_taps, reflected

BLOCK = 64  # lines or columns that are blurred by one product


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
    band = torch.from_numpy(_band(sigma)).to(maps)  # (BLOCK + 2r, BLOCK)
    radius = (len(band) - BLOCK) // 2
    height, width = maps.shape[-2:]
    parts = []
    if height > 1:  # a lone pixel is its own mean
        padded = _mirrored(maps, -2, radius)  # (B, H + 2r, W)
        for i in range(0, height, BLOCK):
            n = min(BLOCK, height - i)
            parts.append(band[: n + 2 * radius, :n].T @ padded[:, i : i + n + 2 * radius])
        maps, parts = torch.cat(parts, -2), []
    if width > 1:
        padded = _mirrored(maps, -1, radius)  # (B, H, W + 2r)
        for j in range(0, width, BLOCK):
            n = min(BLOCK, width - j)
            parts.append(padded[..., j : j + n + 2 * radius] @ band[: n + 2 * radius, :n])
        maps = torch.cat(parts, -1)
    return maps


@functools.cache
def _band(sigma):
    """The taps once per column, one row lower each: float64 (BLOCK + 2r, BLOCK).

    A product with it takes more multiplications than a convolution with the taps, and a tenth
    of the time, because oneDNN has no fast convolution of a single channel.
    """
    half = gaussian_taps(sigma)  # centre outwards
    band = np.zeros((BLOCK + 2 * (len(half) - 1), BLOCK))
    for k, tap in enumerate([*half[:0:-1], *half]):
        np.fill_diagonal(band[k:], tap)
    return band


def _mirrored(maps, axis, radius):
    """Maps with radius more pixels on both sides of an axis, see `gaussian.reflected`."""
    places = torch.from_numpy(reflected(maps.shape[axis], radius)).to(maps.device)
    return maps.index_select(axis, places)
