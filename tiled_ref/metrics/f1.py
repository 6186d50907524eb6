"""F1 of images and pixels: the largest over all thresholds, and F1 at a fixed threshold.

    F1(t) = 2 TP / (TP + FP + P)     P anomalous; TP of them, and FP normal ones, score at least t

which is the harmonic mean of precision TP / (TP + FP) and recall TP / P. Everything is counted in
integers; only one division is rounded.

Source of SegF1: Heckler-Kram, Neudeck, Scheler, Koenig, Steger, "The MVTec AD 2 Dataset",
arXiv:2503.21622, 2025: the F1 of all pixels of all test images of an object at one threshold.
"""

import numpy as np

from ..support import arrays
from ..support.errors import InputError
from .regions import UndefinedMetricError

LABELS = (*arrays.MASKS, np.dtype(np.int32), np.dtype(np.int64))


def plain_f1_max(scores, labels):
    """The largest F1 by trying every score as the threshold.

    Parameters: scores (n,) float, labels (n,) integers, 0 normal. Returns float.
    """
    anomalous = labels != 0
    found = scores >= scores[:, None]  # a threshold per row
    tp, fp = (found & anomalous).sum(axis=1), (found & ~anomalous).sum(axis=1)
    return (2 * tp / (tp + fp + anomalous.sum())).max()


def image_f1_max(scores, labels):
    """The largest F1 at any threshold of image scores, score >= threshold being anomalous.

    Parameters: scores (n,) float32 or float64, no NaN; labels (n,) bool or integer, 0 normal.
    Returns float in (0, 1].
    Raises UndefinedMetricError without an anomalous score; InputError for NaN or an invalid shape
    or dtype.

    >>> image_f1_max(np.array([0.1, 0.4, 0.4, 0.8]), np.array([0, 0, 1, 1]))
    0.8
    """
    normal, anomalous = by_label(scores, labels)
    return f1_max_of(normal.size - np.searchsorted(normal, anomalous, "left"))


def by_label(scores, labels):
    """The normal scores in ascending order, and the anomalous ones; arguments and InputError as for
    `image_f1_max`."""
    scores = arrays.host_array("scores", scores, arrays.FLOATS)
    labels = arrays.host_array("labels", labels, LABELS)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise InputError(
            f"scores and labels must have one axis of equal length, got shapes {scores.shape} "
            f"and {labels.shape}"
        )
    arrays.refuse_nan("scores", scores)
    return np.sort(scores[labels == 0]), scores[labels != 0]


def f1_max_of(false_positives):
    """The largest F1. false_positives, int (P,): the number of normal scores at or above each
    anomalous score, since no threshold in between is better. UndefinedMetricError for P = 0.
    """
    fp = np.sort(false_positives).astype(np.int64)  # from the highest anomalous score down
    if not fp.size:
        raise UndefinedMetricError("F1 needs at least one anomalous example, but there is none")
    tp = np.searchsorted(fp, fp, "right")  # equal scores, and any not split by a normal one
    return float((2 * tp / (tp + fp + fp.size)).max())


def seg_f1(maps, masks, threshold):
    """SegF1: the F1 of all pixels of the set at one threshold, value >= threshold being anomalous.

    Parameters: maps (N, H, W) float32 or float64, NumPy or CPU torch, no NaN; masks (N, H, W) bool
    or uint8, anomalous where not 0; threshold, float, compared exactly.
    Returns float in [0, 1].
    Raises UndefinedMetricError without an anomalous pixel; InputError for NaN or an invalid shape
    or dtype.

    >>> maps, masks = np.array([[[0.9, 0.7, 0.2, 0.1]]]), np.array([[[1, 0, 1, 0]]], bool)
    >>> seg_f1(maps, masks, 0.5)
    0.5
    """
    maps = arrays.host_array("maps", maps, arrays.FLOATS)
    masks = arrays.host_array("masks", masks, arrays.MASKS)
    if maps.ndim != 3 or maps.shape != masks.shape:
        raise InputError(
            f"maps and masks must be (N, H, W) of one shape, got {maps.shape} and {masks.shape}"
        )
    return seg_f1_of(zip(maps, masks), threshold)


def seg_f1_of(pairs, threshold):
    """`seg_f1` of pairs, an iterable of (map, mask), (H, W) each, one in memory at a time; the
    same errors, UndefinedMetricError among them."""
    found = right = anomalous = 0
    for k, (image, mask) in enumerate(pairs):
        arrays.refuse_nan("maps", image, k)
        mask, above = mask != 0, image >= at_least(threshold, image.dtype)
        anomalous += np.count_nonzero(mask)
        found += np.count_nonzero(above)
        right += np.count_nonzero(above & mask)
    if not anomalous:
        raise UndefinedMetricError("SegF1 needs at least one anomalous pixel, but there is none")
    return float(2 * right / (found + anomalous))  # found = TP + FP


def at_least(threshold, dtype):
    """The smallest number of a dtype that is at least the threshold, so that comparing with it in
    that dtype is exact."""
    near = np.dtype(dtype).type(threshold)
    return near if float(near) >= threshold else np.nextafter(near, near.dtype.type(np.inf))
