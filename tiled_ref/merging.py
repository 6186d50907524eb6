"""Merging the predictions of the tile models (Sec. 3.3): maps are averaged where tiles
overlap, scores over all tiles.

`untile_average` and `untile_window` have two implementations with equal bits: the specifications,
`TileGrid.untile` and `TileGrid.untile_window`, and the kernel `kernels/untile.pyx`.
"""

import numpy as np

from .support import arrays
from .support.errors import InputError


def untile_average(maps, grid, impl="cython", threads=None):
    """Merge tile maps, averaging where tiles overlap.

    Parameters
    ----------
    maps : (rows, cols, N, h, w) float32 or float64, NumPy or CPU torch
        One map per tile location and image. Any values: NaN and infinities propagate
        through the sum as in IEEE 754. A non-contiguous array is copied first.
    grid : TileGrid
        Where the tiles lie.

    Returns
    -------
    (N, H, W), dtype and kind (NumPy, torch) of maps; padding dropped; a new array.

    Raises
    ------
    InputError
        An invalid shape or dtype, or a tensor on a CUDA device (`grid.untile` works there).
    KernelNotBuiltError
        impl="cython" when the kernel is not built.

    Order of arithmetic: per pixel the covering tiles in row-major order, added in pairs, the
    sums in pairs again, then one division by their count, in the dtype of maps.
    Source: Sec. 3.3, "a pixel-wise averaging strategy is applied on overlapping regions".
    """
    return _merged("untile", maps, grid, impl, threads)


def untile_window(maps, grid, impl="cython", threads=None):
    """Merge tile maps, each weighted less towards its edges where tiles overlap.

    Off by default (deviation D17): the paper takes the plain mean.
    Parameters, Returns and Raises: as for `untile_average`.
    Order of arithmetic and weights: see `TileGrid.untile_window`.
    """
    return _merged("untile_window", maps, grid, impl, threads)


def _merged(name, maps, grid, impl, threads):
    """Merge tile maps with the kernel, or the method of the grid, of this name."""
    arrays.check_impl(impl)
    threads = arrays.thread_count(threads)
    array = arrays.host_array(
        "maps", maps, arrays.FLOATS, f"use grid.{name}(maps) on it, or move it with .cpu()"
    )
    if array.ndim != 5:
        raise InputError(
            f"maps must have the five axes (rows, cols, N, h, w), got shape {array.shape}"
        )
    if impl == "numpy":
        return arrays.like(np.ascontiguousarray(getattr(grid, name)(array)), maps)
    grid.check_tiles(array)
    kernel = getattr(arrays.kernel("_untile"), name)
    array = arrays.for_kernel(array)
    out = np.empty((array.shape[2], *grid.image_size), array.dtype)
    weights = grid.window_weights() if name == "untile_window" else ()
    weights = [part.astype(out.dtype) for part in weights]

    def work(span):
        kernel(array, out, *weights, *grid.stride, *span)

    arrays.run_threads(work, arrays.spans(array.shape[2], threads), threads)
    return arrays.like(out, maps)


def image_scores(scores, rule="mean"):
    """Image scores by a rule: "mean" (`mean_scores`, the paper's), "max" (`max_scores`) or "top:K"
    (`top_scores`). Parameters, Returns and Raises: as for those."""
    if rule.startswith("top:"):
        return top_scores(scores, int(rule[4:]))
    return {"mean": mean_scores, "max": max_scores}[rule](scores)


def mean_scores(scores):
    """Image score: the mean of the scores of all tiles of the image.

    Eq. 5 (Rolih et al. 2024, Sec. 3.3): the score of an image is the average of s_ij over
    all tile locations (i, j).

    Parameters: scores (rows, cols, N) float32 or float64, NumPy or CPU torch.
    Returns (N,), dtype and kind of scores.
    Raises InputError for an invalid shape or dtype.
    Order of arithmetic: row-major float64 sum, one float64 division by rows * cols, then
    one rounding to the dtype of scores.
    """
    array = _tile_scores(scores)
    return _mean(array.reshape(-1, array.shape[2]), scores)


def max_scores(scores):
    """Image score: the largest score of all tiles of the image (deviation D5, a switch).

    Parameters: scores (rows, cols, N) float32 or float64, NumPy or CPU torch.
    Returns (N,), dtype and kind of scores. NaN if any tile's score is NaN.
    Raises InputError for an invalid shape or dtype.
    """
    array = _tile_scores(scores)
    return arrays.like(array.max(axis=(0, 1)), scores)


def top_scores(scores, k):
    """Image score: the mean of the k largest scores of an image (deviation D16, a switch).

    Parameters: scores (rows, cols, N) float32 or float64, NumPy or CPU torch; k, at least 1; all
    tiles count if there are fewer.
    Returns (N,), dtype and kind of scores. NaN if any tile's score is NaN.
    Raises InputError for an invalid shape or dtype.
    Order of arithmetic: float64 sum from the largest down, one division, one rounding.

    >>> top_scores(np.array([[[1.0], [5.0], [3.0]]]), 2)
    array([4.])
    """
    array = _tile_scores(scores)
    ordered = np.sort(array.reshape(-1, array.shape[2]), axis=0)[::-1][:k]
    return _mean(ordered, scores)


def _mean(tiles, scores):
    """The mean of tiles (T, N), in the dtype and kind of scores."""
    total = tiles[0].astype(np.float64)  # (N,)
    for tile in tiles[1:]:
        total += tile
    return arrays.like((total / len(tiles)).astype(tiles.dtype), scores)


def _tile_scores(scores):
    array = arrays.host_array("scores", scores, arrays.FLOATS)
    if array.ndim != 3 or 0 in array.shape[:2]:
        raise InputError(
            f"scores must have the three axes (rows, cols, N), got shape {array.shape}"
        )
    return array
