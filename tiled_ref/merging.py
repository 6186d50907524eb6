"""Merging the predictions of the tile models (Sec. 3.3): maps are averaged where tiles
overlap, scores over all tiles.

`untile_average` has two implementations with equal bits: the specification,
`TileGrid.untile`, and the kernel `kernels/untile.pyx`.
"""

import numpy as np

from .support import arrays
from .support.errors import InputError


def untile_average(maps, grid, impl="cython", threads=None):
    """Put tile maps together, averaging where tiles overlap.

    Parameters
    ----------
    maps : (rows, cols, N, h, w) float32 or float64, NumPy or CPU torch
        One map per tile location and image. Any values: NaN and infinities pass through
        the sum as IEEE 754 says. A non-contiguous array is copied first.
    grid : TileGrid
        Where the tiles lie.

    Returns
    -------
    (N, H, W), dtype and kind (NumPy, torch) of maps; padding dropped; a new array.

    Raises
    ------
    InputError
        Another shape or dtype, or a tensor on a CUDA device (`grid.untile` works there).
    KernelNotBuiltError
        impl="cython" where the kernel is not built.

    Order of arithmetic: per pixel the covering tiles in row-major order, added in pairs, the
    sums in pairs again, then one division by their count, in the dtype of maps.
    Source: Sec. 3.3, "a pixel-wise averaging strategy is applied on overlapping regions".
    """
    arrays.check_impl(impl)
    threads = arrays.thread_count(threads)
    array = arrays.host_array(
        "maps", maps, arrays.FLOATS, "use grid.untile(maps) on it, or move it with .cpu()"
    )
    if array.ndim != 5:
        raise InputError(
            f"maps must have the five axes (rows, cols, N, h, w), got shape {array.shape}"
        )
    if impl == "numpy":
        return arrays.like(np.ascontiguousarray(grid.untile(array)), maps)
    grid.check_tiles(array)
    untile = arrays.kernel("_untile").untile
    array = arrays.for_kernel(array)
    out = np.empty((array.shape[2], *grid.image_size), array.dtype)

    def work(span):
        untile(array, out, grid.stride[0], grid.stride[1], span[0], span[1])

    arrays.run_threads(work, arrays.spans(array.shape[2], threads), threads)
    return arrays.like(out, maps)


def mean_scores(scores):
    """Image score: the mean of the scores of all tiles of the image.

    Eq. 5 (Rolih et al. 2024, Sec. 3.3): the score of an image is the average of s_ij over
    all tile locations (i, j).

    Parameters: scores (rows, cols, N) float32 or float64, NumPy or CPU torch.
    Returns (N,), dtype and kind of scores.
    Raises InputError for another shape or dtype.
    Order of arithmetic: row-major float64 sum, one float64 division by rows * cols, then
    one rounding to the dtype of scores.
    """
    array = _tile_scores(scores)
    total = array[0, 0].astype(np.float64)  # (N,)
    for tile in array.reshape(-1, array.shape[2])[1:]:
        total += tile
    count = array.shape[0] * array.shape[1]
    return arrays.like((total / count).astype(array.dtype), scores)


def max_scores(scores):
    """Image score: the largest score of all tiles of the image (deviation D5, a switch).

    Parameters: scores (rows, cols, N) float32 or float64, NumPy or CPU torch.
    Returns (N,), dtype and kind of scores. NaN if any tile's score is NaN.
    Raises InputError for another shape or dtype.
    """
    array = _tile_scores(scores)
    return arrays.like(array.max(axis=(0, 1)), scores)


def _tile_scores(scores):
    array = arrays.host_array("scores", scores, arrays.FLOATS)
    if array.ndim != 3 or 0 in array.shape[:2]:
        raise InputError(
            f"scores must have the three axes (rows, cols, N), got shape {array.shape}"
        )
    return array
