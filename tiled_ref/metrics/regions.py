"""Numbered 8-connected regions of masks; specification and kernel."""

import numpy as np

from ..support import arrays, pixel_ranking
from ..support.errors import InputError


class UndefinedMetricError(InputError):
    """A metric is undefined because it lacks normal or anomalous examples."""


def label_regions(masks, impl="cython", threads=None):
    """Number the regions of a set of masks: 8-connected, never across images.

    Parameters
    ----------
    masks : (N, H, W) bool or uint8, NumPy or CPU torch, anomalous where not 0

    Returns
    -------
    (N, H, W) int32, kind of masks: 0 for normal pixels, else the region's number. The
    numbers run from 1 to R through the whole set, in the order of the regions' first pixels
    (images first, then rows, then columns), as scipy.ndimage.label counts.

    Raises
    ------
    InputError
        An invalid shape or dtype, or an image of 2**31 - 1 pixels or more.
    KernelNotBuiltError
        impl="cython" where the kernel is not built.
    """
    arrays.check_impl(impl)
    threads = arrays.thread_count(threads)
    array = pixel_ranking.mask_array("masks", masks)
    if array.ndim != 3:
        raise InputError(f"masks must be (N, H, W), got shape {array.shape}")
    if impl == "cython":
        return arrays.like(pixel_ranking.label_regions(array, threads), masks)
    out, n = np.zeros(array.shape, np.int32), 0
    for mask, labels in zip(array, out):
        labels[:], found = label_mask(mask)
        labels[labels > 0] += n
        n += found
    return arrays.like(out, masks)


def label_mask(mask):
    """Number the regions of one mask: the twin of the labels of `kernels/aupro.pyx`.

    Two passes over the runs, a run being a stretch of anomalous pixels in one row: join the
    runs that touch (corners included), then number the joined ones in row-major order.

    Parameters: mask (H, W) bool or uint8.
    Returns int32 (H, W), 0 for normal pixels, and the number of regions.
    Raises InputError for 2**31 - 1 pixels or more.
    """
    pixel_ranking.check_countable(mask)
    height, width = mask.shape
    padded = np.zeros((height, width + 2), np.int8)
    padded[:, 1:-1] = mask != 0
    change = np.diff(padded, axis=1)
    row, start = np.nonzero(change == 1)
    stop = np.nonzero(change == -1)[1]  # row-major too, so run k ends there

    parent = list(range(row.size))

    def root(run):
        while parent[run] != run:
            run = parent[run]
        return run

    by_row = np.searchsorted(row, np.arange(height + 1))
    for y in range(1, height):
        above = range(by_row[y - 1], by_row[y])
        here = range(by_row[y], by_row[y + 1])
        for run in here:
            for other in above:
                if start[other] <= stop[run] and stop[other] >= start[run]:
                    a, b = root(other), root(run)
                    parent[max(a, b)] = min(a, b)

    numbers, found = np.zeros(row.size, np.int32), 0
    labels = np.zeros((height, width), np.int32)
    for run in range(row.size):
        if root(run) == run:
            found += 1
            numbers[run] = found
        numbers[run] = numbers[root(run)]
        labels[row[run], start[run] : stop[run]] = numbers[run]
    return labels, found
