"""From raw scores to verdicts: threshold and normalisation (for users and pictures).

Metrics are computed on raw maps and scores, because rank metrics need no normalisation.
"""

import math
from fractions import Fraction

import numpy as np

from .support.errors import InputError


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
    scores, labels = np.asarray(scores), np.asarray(labels)
    return _best_f1(np.sort(scores), scores[labels > 0])


def _best_f1(ranked, anomalous):
    """`f1_threshold` of all scores in ascending order, and those of the anomalous ones.

    The best threshold is an anomalous score: lowered from there to the next one, it adds false
    positives only.
    """
    if not anomalous.size:
        return float(ranked[-1]), None
    candidates, counts = np.unique(anomalous, return_counts=True)
    true_positives = counts[::-1].cumsum()[::-1]
    called = ranked.size - np.searchsorted(ranked, candidates)  # TP + FP
    f1 = 2 * true_positives / (called + anomalous.size)  # TP + FP + TP + FN
    best = int(np.argmax(f1))
    return float(candidates[best]), float(f1[best])


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


def pixel_statistics(pairs, percentile=None):
    """Threshold and range of the pixels of a set of maps.

    Memory: a sorted copy of all pixels and their masks, 5 bytes a pixel of float32 maps.

    Parameters: pairs, an iterable of (map, mask): map (H, W) float, finite; mask (H, W) bool or
    uint8, anomalous where not 0, or None for a normal image; percentile, 0 < percentile <= 100: the
    threshold is then `percentile_threshold` of all pixels, without it `f1_threshold`.
    Returns a dict: threshold, minimum and maximum, scores of pixels; f1, None without an anomalous
    pixel and with a percentile.
    Raises InputError for no pixel at all, or a map that is not finite.
    """
    scores, anomalous = [], []
    for image_map, mask in pairs:
        if not np.isfinite(image_map).all():
            raise InputError("a map holds a value that is not finite, so there is no threshold")
        scores.append(np.ravel(image_map))
        if mask is not None:
            anomalous.append(scores[-1][np.ravel(mask) != 0])
    if not scores:
        raise InputError("a threshold needs at least one image")
    scores = np.concatenate(scores)
    scores.sort()
    if percentile is None:
        threshold, f1 = _best_f1(scores, np.concatenate(anomalous))
    else:
        threshold, f1 = float(scores[_percentile_rank(scores.size, percentile)]), None
    found = {"threshold": threshold, "minimum": scores[0], "maximum": scores[-1]}
    return {key: float(value) + 0.0 for key, value in found.items()} | {"f1": f1}  # no -0.0
