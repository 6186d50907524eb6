"""Separable Gaussian blur with mirrored borders, for seams (sigma 2) and anomaly maps (sigma 4).

The specification `seam_blur` blurs whole maps and selects pixels; the kernel
`kernels/seam_blur.pyx` computes only the selected ones, with identical bits.
"""

import math

import numpy as np

from . import arrays
from .errors import InputError
from .option_types import SIDES

SMALL = 16  # px; the largest sigma allowed on a map with smaller sides


def gaussian_taps(sigma, dtype=np.float64, most=SIDES[-1]):
    """Half of a normalised Gaussian: the weights at distances 0..radius from the centre.

    Parameters: sigma in pixels, > 0, at most `most`; dtype, float32 or float64.
    Returns (radius + 1,) of dtype, radius = int(4 sigma + 0.5); w[0] + 2 sum(w[1:]) = 1
    up to rounding. Raises InputError for an invalid sigma or dtype.
    Order of arithmetic: exp(-k^2 / (2 sigma^2)) in float64, divided by the float64 sum of all
    2 radius + 1 weights, added from the outermost pair inwards, then rounded to dtype once.
    """
    dtype = np.dtype(dtype)
    if dtype not in (np.float32, np.float64):
        raise InputError(f"the weights of a Gaussian must be float32 or float64, not {dtype}")
    try:
        sigma = float(sigma)
    except (TypeError, ValueError, OverflowError):
        sigma = math.nan
    if not (0 < sigma <= most and sigma * sigma > 0):
        raise InputError(f"sigma must be a positive number of pixels, at most {most}, not {sigma}")
    radius = radius_of(sigma)
    weights = [math.exp(-(k * k) / (2.0 * sigma * sigma)) for k in range(radius + 1)]
    total = 0.0
    for weight in reversed(weights[1:]):
        total += 2.0 * weight
    total += weights[0]
    return np.array([weight / total for weight in weights], dtype=dtype)


def radius_of(sigma):
    """Pixels on each side of the centre that a Gaussian of this sigma covers."""
    return int(4.0 * sigma + 0.5)


def reflected(n, radius):
    """Index of the pixel at each position -radius .. n-1+radius, mirrored at both edges.

    The edge pixel is not repeated, so the period is 2 (n - 1); for n = 1 every index is 0.
    Parameters: n >= 1, radius >= 0. Returns int64 (n + 2 radius,).
    """
    if n == 1:
        return np.zeros(1 + 2 * radius, dtype=np.int64)
    index = np.arange(-radius, n + radius) % (2 * (n - 1))
    return np.minimum(index, 2 * (n - 1) - index)


def seam_blur(maps, taps, rows, cols):
    """The specification of `kernels/seam_blur.pyx`: blur whole maps and keep the selected bands.

    Parameters: maps (N, H, W) float32 or float64; taps, see `gaussian_taps`; rows (H,) and cols
    (W,), bool. Returns (N, H, W). Order of arithmetic: that of `blur_rows_and_columns`.
    """
    with np.errstate(all="ignore"):  # infinities are valid values here
        blurred = _blur(_blur(maps, taps, axis=1), taps, axis=2)
    return np.where(rows[:, None] | cols[None, :], blurred, maps)


def blur_rows_and_columns(maps, sigma, rows, cols, impl="cython", threads=None, most=SMALL):
    """Blur selected rows and columns of maps; all other pixels stay bit-identical.

    Parameters: maps (N, H, W) float32 or float64, NumPy; sigma, pixels, > 0 and at most the larger
    side or `most`; rows (H,) and cols (W,), bool: a pixel is blurred if its row or column is True;
    impl; threads, int.
    Returns (N, H, W), dtype of maps, a new array.
    Raises InputError for an invalid sigma, KernelNotBuiltError if the kernel is not built.

    Order of arithmetic: separable, down the columns first, then along the rows. Each pass
    computes w0*x0, then adds w_k * (x_{-k} + x_{+k}) for k = 1..radius in this order,
    every multiplication and addition rounded separately, in the dtype of maps. Beyond
    the border the map is mirrored without repeating the edge pixel (repeatedly if
    the map is smaller than the radius).
    """
    arrays.check_impl(impl)
    taps = gaussian_taps(sigma, maps.dtype, max(most, *maps.shape[1:]))
    if impl == "numpy":
        return seam_blur(maps, taps, rows, cols)
    kernel = arrays.kernel("_seam_blur").seam_blur
    maps = arrays.for_kernel(maps)
    out = np.empty(maps.shape, maps.dtype)
    n, height, width = maps.shape
    radius = len(taps) - 1
    reflect_rows, reflect_cols = reflected(height, radius), reflected(width, radius)
    row_runs, col_runs = _runs(rows), _runs(cols)

    def work(span):
        line, blurred = np.empty((2, width + 2 * radius), maps.dtype)  # scratch
        kernel(
            maps, out, taps, row_runs, col_runs, reflect_rows, reflect_cols, line, blurred, *span
        )

    arrays.run_threads(work, arrays.spans(n, threads), threads)
    return out


def _blur(maps, taps, axis):
    """One pass of the separable blur along axis 1 (down) or 2 (across)."""
    radius, n = len(taps) - 1, maps.shape[axis]
    padded = np.take(maps, reflected(n, radius), axis=axis)

    def shifted(offset):
        index = [slice(None)] * 3
        index[axis] = slice(radius + offset, radius + offset + n)
        return padded[tuple(index)]

    total = taps[0] * shifted(0)
    for k in range(1, radius + 1):
        total = total + taps[k] * (shifted(-k) + shifted(k))
    return total


def _runs(band):
    """Start and stop of each run of True, ascending, int64 (runs, 2)."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], band, [False]))))
    return np.ascontiguousarray(edges.reshape(-1, 2), dtype=np.int64)
