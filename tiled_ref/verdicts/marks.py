"""Marks: regions where an image's map reaches the pixel threshold, at the image's original size.

A mark is an 8-connected region of pixels whose map value is at or above the threshold, inside the
region of interest if one is given, with an area of at least `min_area` pixels of the image.
"""

import bisect

import numpy as np
import torch

from ..data.images import decode_mask
from ..metrics import label_regions
from ..models.maps import upsample_bilinear
from ..support.errors import InputError


def enlarge(image_map, size):
    """Resize a map to its image's size, bilinear: float32 (H, W) -> (h, w); itself if equal."""
    if image_map.shape == tuple(size):
        return image_map
    return upsample_bilinear(torch.from_numpy(image_map)[None], tuple(size))[0].numpy()


def marks(values, threshold, min_area=1, roi=None, impl="cython"):
    """Number the marks of an image.

    Parameters: values (h, w) float32, its map at its original size, see `enlarge`; threshold, in
    the unit of the map; min_area, pixels; roi bool (h, w), True for pixels to inspect, None for
    all; impl, see `metrics.label_regions`.
    Returns int32 (h, w): 0 outside marks, else 1, 2, ... in the order of their first pixels.

    >>> values = np.array([[3, 0, 2], [0, 0, 2]], np.float32)
    >>> marks(values, 2).tolist(), marks(values, 2, min_area=2).tolist()
    ([[1, 0, 2], [0, 0, 2]], [[0, 0, 1], [0, 0, 1]])
    """
    reached = values >= np.float32(threshold)
    if roi is not None:
        reached &= roi
    labels = label_regions(reached[None], impl=impl)[0]
    if min_area > 1:
        kept = np.bincount(labels.ravel()) >= min_area
        kept[0] = False
        labels = np.where(kept, kept.cumsum(), 0).astype(np.int32)[labels]
    return labels


def mark_value(values, min_area=1, roi=None, impl="cython"):
    """The largest threshold at which an image has a mark, a float; -inf if it never has one.

    Parameters: see `marks`. The result is one of the values.

    >>> mark_value(np.array([[3, 0, 1], [0, 0, 2]], np.float32), min_area=2)
    1.0
    """
    inside = values.ravel() if roi is None else values[roi]
    ordered = np.sort(inside)[::-1][min_area - 1 :]
    if min_area > 1:  # a lower threshold marks no fewer pixels
        k = bisect.bisect_left(
            ordered, True, key=lambda value: marks(values, value, min_area, roi, impl).any()
        )
        ordered = ordered[k:]
    return float(ordered[0]) if ordered.size else -np.inf


def check_marks(size, min_area, roi, name="an image"):
    """Raise InputError if no mark fits into an image, or the roi has a different size.

    Parameters: size (h, w) of the image; min_area and roi, see `marks`; name, for the message.
    """
    if roi is not None and roi.shape != tuple(size):
        raise InputError(
            f"the region of interest is {roi.shape[0]} x {roi.shape[1]} px but {name} is "
            f"{size[0]} x {size[1]} px (height x width); draw it at the size of the images"
        )
    if min_area > size[0] * size[1]:
        raise InputError(f"a mark of {min_area} pixels does not fit into {name}, which has fewer")


def read_roi(path):
    """Read a region of interest from an image: bool (h, w), True where it is white.

    Raises InputError if it cannot be read, or no pixel is white.
    """
    roi = decode_mask(path)
    if not roi.any():
        raise InputError(f"--roi {path} is all black; paint the area to inspect white")
    return roi


def locations_seen(grid, roi):
    """Whether each tile location contains a pixel of the region of interest, bool (rows, cols).

    Parameters: grid, a TileGrid; roi bool (h, w), at any size, None for everything.
    """
    seen = np.ones((grid.rows, grid.cols), bool)
    if roi is None:
        return seen
    for location in grid.locations():
        spans = (
            slice(window.start * n // side, -(-window.stop * n // side))  # rounded outwards
            for window, n, side in zip(grid.window(*location), roi.shape, grid.image_size)
        )
        seen[location] = roi[tuple(spans)].any()
    return seen
