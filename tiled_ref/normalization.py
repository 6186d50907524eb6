"""From raw scores to verdicts: threshold and normalisation (for users and pictures).

Metrics are computed on raw maps and scores, because rank metrics need no normalisation.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from .errors import InputError


def f1_threshold(scores, labels):
    """The threshold with the best F1, where score >= threshold means anomalous.

    Parameters: scores (n,) float, finite; labels (n,) bool or uint8, > 0 anomalous.
    Returns (threshold, f1) as Python floats: threshold is one of the scores, the smallest
    among equally good ones. Without an anomalous example there is no F1 to maximise: the
    threshold is the largest score and f1 is None.
    F1 = 2 TP / (2 TP + FP + FN), over all distinct scores in ascending order, first maximum.

    >>> f1_threshold(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0, 0, 1, 1]))
    (3.0, 1.0)
    """
    scores, labels = np.asarray(scores), np.asarray(labels) > 0
    if not labels.any():
        return float(scores.max()), None
    order = np.argsort(scores, kind="stable")
    ranked, positive = scores[order], labels[order]
    # The first index of each distinct score: everything from there on is called anomalous.
    first = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    total = int(positive.sum())
    true_positives = total - np.r_[0, np.cumsum(positive)][first]
    called = scores.size - first  # TP + FP
    f1 = 2 * true_positives / (called + total)  # TP + FP + TP + FN
    best = int(np.argmax(f1))
    return float(ranked[first[best]]), float(f1[best])


def normalize(values, threshold, minimum, maximum):
    """Map raw values to [0, 1] so that the threshold lands on 0.5.

    clamp((x - threshold) / (maximum - minimum) + 0.5, 0, 1), in the dtype of values.
    Where maximum equals minimum the range says nothing: values below, at and above the
    threshold become 0, 0.5 and 1.
    Parameters: values, any shape, float; the others floats, minimum <= maximum.

    >>> normalize(np.array([0.0, 2.0, 3.0]), 2.0, 0.0, 4.0)
    array([0.  , 0.5 , 0.75])
    """
    values = np.asarray(values)
    if maximum == minimum:
        shifted = np.sign(values - threshold) * 0.5
    else:
        shifted = (values - threshold) / (maximum - minimum)
    return np.clip(shifted + 0.5, 0, 1).astype(values.dtype)


# ------------------------------------------------------- pixels, more than memory can hold


def pixel_statistics(pairs, percentile=None):
    """Threshold and range of the pixels of a set of maps, which is given image by image.

    With percentile None the threshold has the best F1 over all distinct pixel scores, the
    smallest of equally good ones, as `f1_threshold` finds it; without an anomalous pixel it
    is the largest. With a percentile it is the smallest pixel score at or above which at most
    that part of the pixels remains: the smallest v such that at least percentile % of all
    pixels have a score <= v.

    Exact: the pixels are counted by the upper half of the bits of their scores, which orders
    them; then only those halves that can hold the threshold are looked at again, some at a
    time. Memory is about 64 MiB and one image, whatever the set.

    Parameters
    ----------
    pairs : callable without arguments
        pairs() returns a fresh iterator over (map, mask): map (H, W) float32, finite; mask
        (H, W) bool or uint8, anomalous where not 0, or None for a normal image. The same
        each time.
    percentile : float, optional
        0 < percentile <= 100.

    Returns
    -------
    PixelStatistics.

    Raises
    ------
    InputError
        No pixel at all, a map of another type, or one that is not finite.
    """
    counts = _count(pairs)  # (2, 2**16): normal, anomalous
    totals = counts.sum(1)
    if not totals.sum():
        raise InputError("a threshold needs at least one image")
    both = counts.sum(0)
    filled = np.flatnonzero(both)
    ends = [_value(int(end)) for end in _refined_ends(pairs, filled[[0, -1]])]
    if percentile is not None:
        rank = _percentile_rank(int(totals.sum()), percentile)
        threshold, f1 = _value(_refined_rank(pairs, both, rank)), None
    elif totals[1]:
        key, f1 = _best_f1(pairs, counts)
        threshold = _value(key)
    else:
        threshold, f1 = ends[1], None
    return PixelStatistics(threshold, f1, *ends)


@dataclass(frozen=True)
class PixelStatistics:
    """threshold, minimum, maximum: floats, pixels' scores; f1: float, None without defects."""

    threshold: float
    f1: float
    minimum: float
    maximum: float


def percentile_threshold(scores, percentile):
    """The smallest of the scores such that at least percentile % of them are <= it.

    Parameters: scores (n,) float, finite, at least one; percentile, 0 < percentile <= 100.
    Returns a Python float. NumPy calls this method "inverted_cdf".
    Raises InputError without scores.

    >>> percentile_threshold(np.array([5.0, 1.0, 3.0, 4.0]), 75)
    4.0
    """
    scores = np.sort(np.asarray(scores))
    if not scores.size:
        raise InputError("a threshold needs at least one image")
    return float(scores[_percentile_rank(scores.size, percentile)])


def _percentile_rank(n, percentile):
    """Index, in ascending order, of the percentile of n values: ceil(n p / 100) - 1."""
    if not 0 < percentile <= 100:
        raise InputError(f"a percentile must be above 0 and at most 100, not {percentile!r}")
    return max(0, math.ceil(Fraction(percentile) * n / 100) - 1)


_HALF = 1 << 16  # values of the upper, and of the lower, 16 bits of a score
_BINS_AT_ONCE = 16  # upper halves looked at in one pass; 2**16 counters each, twice


def _keys(image_map):
    """The scores of a map as uint32 (n,) in the same order; -0.0 counts as 0.0."""
    array = np.asarray(image_map)
    if array.dtype != np.float32:
        raise InputError(f"maps must be float32, not {array.dtype}")
    if not np.isfinite(array).all():
        raise InputError("a map holds a value that is not finite, so there is no threshold")
    bits = (array.ravel() + np.float32(0)).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


def _value(key):
    """The score of a key, a Python float: the inverse of _keys."""
    bits = key & 0x7FFFFFFF if key >> 31 else ~key & 0xFFFFFFFF
    return float(np.array(bits, np.uint32).view(np.float32))


def _walk(pairs):
    """(keys uint32 (n,), anomalous bool (n,)) of each image."""
    for image_map, mask in pairs():
        keys = _keys(image_map)
        if mask is None:
            yield keys, np.zeros(keys.shape, bool)
        else:
            yield keys, np.asarray(mask).ravel() != 0


def _count(pairs):
    """int64 (2, 2**16): normal and anomalous pixels by the upper half of their keys."""
    counts = np.zeros(2 * _HALF, np.int64)
    for keys, anomalous in _walk(pairs):
        counts += np.bincount((keys >> 16) + anomalous * np.uint32(_HALF), minlength=2 * _HALF)
    return counts.reshape(2, _HALF)


def _lower_counts(pairs, uppers):
    """int64 (len(uppers), 2, 2**16): pixels by the lower half of their keys, per upper half."""
    counts = np.zeros((len(uppers), 2, _HALF), np.int64)
    place = np.full(_HALF, -1, np.int64)
    place[uppers] = np.arange(len(uppers))
    for keys, anomalous in _walk(pairs):
        at = place[keys >> 16]
        mine = at >= 0
        index = at[mine] * 2 * _HALF + anomalous[mine] * _HALF + (keys[mine] & (_HALF - 1))
        where, many = np.unique(index, return_counts=True)
        counts.reshape(-1)[where] += many
    return counts


def _refined_ends(pairs, uppers):
    """Smallest key of the first upper half and largest of the last."""
    counts = _lower_counts(pairs, np.unique(uppers)).sum(1)  # (1 or 2, 2**16)
    low, high = np.flatnonzero(counts[0])[0], np.flatnonzero(counts[-1])[-1]
    return (int(uppers[0]) << 16) + int(low), (int(uppers[1]) << 16) + int(high)


def _refined_rank(pairs, both, rank):
    """Key of the pixel with this rank, counted from 0 in ascending order."""
    before = np.cumsum(both)
    upper = int(np.searchsorted(before, rank, "right"))
    rank -= int(before[upper] - both[upper])
    lower = np.cumsum(_lower_counts(pairs, [upper]).sum((0, 1)))
    return (upper << 16) + int(np.searchsorted(lower, rank, "right"))


def _best_f1(pairs, counts):
    """Key of the threshold with the best F1, the smallest of equally good ones, and its F1.

    With TP and called = TP + FP at the smallest score of an upper half, F1 there is known.
    Inside it, F1 is at most what it would be if all its anomalous pixels were above all its
    normal ones; halves that cannot reach the best known are left out.
    """
    total = int(counts[1].sum())
    at_or_above = np.cumsum(counts[:, ::-1], axis=1)[:, ::-1]  # (2, 2**16)
    above = at_or_above - counts
    filled = counts.sum(0) > 0
    known = _f1(at_or_above[1], at_or_above.sum(0), total)
    bound = _f1(at_or_above[1], at_or_above[1] + above[0], total)
    best, best_key = -1.0, None
    # The most promising first; and no half is left out that ties, since the smallest wins.
    order = np.flatnonzero(filled)
    order = order[np.argsort(-bound[order], kind="stable")]
    floor = float(known[filled].max())
    while order.size:
        order = order[bound[order] >= max(best, floor)]
        uppers, order = np.sort(order[:_BINS_AT_ONCE]), order[_BINS_AT_ONCE:]
        if not uppers.size:
            break
        lower = _lower_counts(pairs, uppers)
        inside = np.cumsum(lower[:, :, ::-1], axis=2)[:, :, ::-1]
        hits = inside[:, 1] + above[1, uppers][:, None]
        called = inside.sum(1) + above[:, uppers].sum(0)[:, None]
        f1 = np.where(lower.sum(1) > 0, _f1(hits, called, total), -1.0)  # (uppers, 2**16)
        top = float(f1.max())
        row, column = np.argwhere(f1 == top)[0]
        key = (int(uppers[row]) << 16) + int(column)
        if top > best or (top == best and key < best_key):
            best, best_key = top, key
    return best_key, best


def _f1(true_positives, called, total):
    """F1 = 2 TP / (TP + FP + TP + FN); 0 where nothing is called and nothing is anomalous."""
    return 2 * true_positives / np.maximum(called + total, 1)
