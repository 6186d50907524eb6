"""Smoothing the seams that the borders of the tiles leave in a merged map (Sec. 3.3).

A Gaussian blur, kept only in a narrow band around every tile border.
"""

import math

import numpy as np

from .support import arrays
from .support.errors import InputError
from .support.gaussian import blur_rows_and_columns


def seam_mask(grid, width=0.1):
    """The pixels to smooth.

    The band holds int(width * tile side) pixels on each side of every tile border inside
    the image. Deviation D2: borders are the starts and the ends of tiles; those on or outside
    the image's edge do not count. For 512/256/128 they are 128, 256 and 384 in both directions.

    Parameters: grid, a TileGrid; width, fraction of the tile's side, 0 <= width <= 1.
    Returns bool (H, W), True inside the band.
    Raises InputError for a width out of range.
    Source: Sec. 3.3, "10% of the tile width on each side of the seam".
    """
    rows, cols = bands(grid, width)
    return rows[:, None] | cols[None, :]


def smooth_seams(maps, grid, width=0.1, sigma=2.0, impl="cython", threads=None):
    """Blur the merged maps in the band around the tile borders, and only there.

    Parameters
    ----------
    maps : (N, H, W) float32 or float64, NumPy or CPU torch
        Merged maps. Any values; a non-contiguous array is copied first.
    grid : TileGrid
        The grid whose tiles were merged.
    width : float
        Width of the band on each side of a border, fraction of the tile's side, 0..1.
    sigma : float
        Standard deviation of the Gaussian in pixels, > 0, at most the image's larger side;
        radius int(4 sigma + 0.5).

    Returns
    -------
    (N, H, W), dtype and kind of maps, a new array; pixels outside the band keep their bits.

    Raises
    ------
    InputError
        Invalid shape, dtype, width or sigma.
    KernelNotBuiltError
        impl="cython" when the kernel is not built.

    Order of arithmetic: that of `gaussian.blur_rows_and_columns`.
    Source: Sec. 3.3; sigma and padding from the authors' configuration.
    """
    arrays.check_impl(impl)
    threads = arrays.thread_count(threads)
    array = arrays.host_array("maps", maps, arrays.FLOATS)
    if array.ndim != 3 or tuple(array.shape[1:]) != tuple(grid.image_size):
        raise InputError(
            f"maps must be (N, {grid.image_size[0]}, {grid.image_size[1]}) for this grid, "
            f"got shape {array.shape}"
        )
    rows, cols = bands(grid, width)
    blurred = blur_rows_and_columns(array, sigma, rows, cols, impl, threads, most=1)
    return arrays.like(blurred, maps)


def bands(grid, width):
    """Band rows bool (H,) and band columns bool (W,) of `seam_mask`; raises its InputError."""
    try:
        width = float(width)
    except (TypeError, ValueError, OverflowError):
        width = math.nan
    if not 0.0 <= width <= 1.0:
        raise InputError("the width of the seam band must be a fraction of the tile, 0 to 1")
    bands = []
    for image, tile, places in zip(grid.image_size, grid.tile_size, borders(grid)):
        reach = int(width * tile)
        band = np.zeros(image, dtype=bool)
        for border in places:
            band[max(0, border - reach) : border + reach] = True
        bands.append(band)
    return bands


def borders(grid):
    """The rows and the columns at which tiles start or end inside the image (deviation D2): two
    sorted lists of ints, the first pixel behind each border."""
    sides = zip(grid.image_size, grid.tile_size, grid.stride, (grid.rows, grid.cols))
    return [
        sorted({b for k in range(n) for b in (k * step, k * step + tile) if 0 < b < image})
        for image, tile, step, n in sides
    ]
