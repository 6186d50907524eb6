"""A Gaussian as weights, and the mirrored border: shared by the seam smoothing of merged maps
(sigma 2, 17 taps) and the blur of the models' anomaly maps (sigma 4, 33 taps).
"""

import math

import numpy as np

from .errors import InputError


def gaussian_taps(sigma, dtype=np.float64):
    """Half of a normalised Gaussian: the weights of the centre and of distances 1..radius.

    Parameters: sigma in pixels, finite, > 0; dtype, float32 or float64.
    Returns (radius + 1,) of dtype, radius = int(4 sigma + 0.5); w[0] + 2 sum(w[1:]) = 1
    up to rounding.
    Raises InputError for another sigma or dtype.
    Order of arithmetic: exp(-k^2 / (2 sigma^2)) in float64, divided by the float64 sum of
    all 2 radius + 1 weights taken from the outermost pair inwards, then one rounding to
    dtype.
    """
    dtype = np.dtype(dtype)
    if dtype not in (np.float32, np.float64):
        raise InputError(f"the weights of a Gaussian are float32 or float64, not {dtype}")
    try:
        sigma = float(sigma)
    except (TypeError, ValueError):
        sigma = math.nan
    if not (math.isfinite(sigma) and sigma > 0 and sigma * sigma > 0):
        raise InputError("sigma must be a positive finite number of pixels")
    radius = int(4.0 * sigma + 0.5)
    weights = [math.exp(-(k * k) / (2.0 * sigma * sigma)) for k in range(radius + 1)]
    total = 0.0
    for weight in reversed(weights[1:]):
        total += 2.0 * weight
    total += weights[0]
    return np.array([weight / total for weight in weights], dtype=dtype)


def reflected(n, radius):
    """Index of the pixel that stands at -radius .. n-1+radius, mirrored at both edges.

    Mirrored without repeating the edge, so with period 2 (n - 1); a single pixel stands
    everywhere. Parameters: n >= 1, radius >= 0. Returns int64 (n + 2 radius,).
    """
    if n == 1:
        return np.zeros(1 + 2 * radius, dtype=np.int64)
    index = np.arange(-radius, n + radius) % (2 * (n - 1))
    return np.minimum(index, 2 * (n - 1) - index)
