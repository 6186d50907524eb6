"""From raw scores to verdicts: threshold and normalisation (for users and pictures).

Metrics are computed on raw maps and scores, because rank metrics need no normalisation.
"""

import numpy as np


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
