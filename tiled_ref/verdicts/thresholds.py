"""Thresholds for verdicts, computed from raw maps and scores.

Metrics are computed on raw maps and scores; rank metrics need no normalisation.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from ..data.disk import counted
from ..data.samples import NORMAL
from ..support import arrays
from ..support.errors import InputError
from ..metrics import UndefinedMetricError, best_threshold
from ..metrics.f1 import at_least
from .marks import check_marks, enlarge, mark_value, marks

FOUND = "threshold", "f1", "precision", "recall"
AT_ONCE = 1 << 20  # values summed at a time
LEAST_F1, LEAST_IMAGES = 0.3, 20  # thresholds below either are unreliable


def f1_threshold(scores, labels):
    """The threshold with the best F1, where score >= threshold means anomalous.

    Parameters: scores (n,) float, finite, at least one; labels (n,) bool or integer, > 0 anomalous.
    Returns (threshold, f1) as Python floats: threshold is one of the scores, the smallest
    if several are equally good. Without an anomalous example there is no F1 to maximise: the
    threshold is the largest score and f1 is None.
    F1 = 2 TP / (2 TP + FP + FN), over all distinct scores in ascending order, first maximum.
    Raises InputError without scores, for NaN, and for labels of a different shape.

    >>> f1_threshold(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0, 0, 1, 1]))
    (3.0, 1.0)
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 1 or not scores.size or labels.shape != scores.shape:
        raise InputError(
            "a threshold needs at least one score (n,) and a label (n,) for each, got "
            f"{scores.shape} and {labels.shape}"
        )
    arrays.refuse_nan("scores", scores)
    if labels.dtype.kind == "f":
        arrays.refuse_nan("labels", labels)
    return _best_f1(np.sort(scores), scores[labels > 0])


def _best_f1(ranked, anomalous):
    """`f1_threshold` for all scores in ascending order and the scores of the anomalous examples.

    The best threshold is an anomalous score: lowering it from there, short of the next anomalous
    score, only adds false positives.
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
    """Map raw values to [0, 1] so that the threshold becomes 0.5.

    clamp((x - threshold) / (maximum - minimum) + 0.5, 0, 1), in the dtype of values.
    If maximum equals minimum, there is no scale: values below, at and above the
    threshold become 0, 0.5 and 1.
    Parameters: values, any shape, float; the others floats, minimum <= maximum.

    >>> normalize(np.array([0.0, 2.0, 3.0]), 2.0, 0.0, 4.0)
    array([0.  , 0.5 , 0.75])
    """
    values = np.asarray(values)
    if maximum == minimum:
        shifted = np.sign(values - threshold) * 0.5
    else:
        shifted = values - threshold
        shifted /= maximum - minimum
    shifted += 0.5
    return np.clip(shifted, 0, 1).astype(values.dtype, copy=False)


def percentile_threshold(scores, percentile):
    """The smallest score that at least percentile % of the scores do not exceed.

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
    """Index of the percentile among n values in ascending order: ceil(n p / 100) - 1."""
    if not 0 < percentile <= 100:
        raise InputError(f"a percentile must be above 0 and at most 100, not {percentile!r}")
    return max(0, math.ceil(Fraction(percentile) * n / 100) - 1)


def allowed_alarms(rate, n):
    """The number of n normal images that may have a mark at a rate, 0 <= rate < 1: floor(rate * n),
    with the decimal digits of rate taken exactly, so that 0.29 of 100 is 29."""
    return int(Fraction(str(rate)) * n)


def false_alarm_threshold(values, allowed):
    """The smallest float32 threshold that at most `allowed` of the values reach.

    Parameters: values (n,) float, rounded to float32, of normal images: their scores, or the
    largest thresholds at which they have a mark; allowed, 0 <= allowed < n, see `allowed_alarms`.
    Returns a Python float, one float32 step above a value: a value at the threshold reaches it.

    >>> false_alarm_threshold([1.0, 2.0, 3.0, 4.0], 1)
    3.000000238418579
    """
    ordered = np.sort(np.asarray(values, np.float32))[::-1]
    return float(np.nextafter(ordered[allowed], np.float32(np.inf)))


def pixel_statistics(pairs, impl="cython", threads=None):
    """Pixel threshold with the best F1, and the range of pixel values, of a set of maps.

    Parameters: pairs() returns a fresh iterator over (map, mask): map (H, W) float, finite; mask
    (H, W) bool or uint8, anomalous where not 0, or None for a normal image; impl and threads, see
    `metrics.aupro`.
    Returns a dict: threshold and f1 as of `f1_threshold`, precision, recall, and minimum and
    maximum, floats; without an anomalous pixel f1, precision and recall are None.
    Raises InputError if there are no pixels or a map is not finite.
    """
    limits = {}

    def walk():
        for image_map, mask in pairs():
            _note_limits(image_map, limits)
            yield image_map, np.zeros(image_map.shape, bool) if mask is None else mask

    try:
        found = best_threshold(walk, impl, threads)
    except UndefinedMetricError as error:  # there is no anomalous pixel
        if not limits:
            raise InputError("a threshold needs at least one image") from error
        found = limits["maximum"], None, None, None
    return {"rule": "f1", "percentile": None} | dict(zip(FOUND, found)) | limits


def _f1_part(ranked, anomalous):
    """The entries of `find_thresholds` from all scores, ascending, and the anomalous ones."""
    threshold, f1 = _best_f1(ranked, anomalous)
    part = {"rule": "f1", "percentile": None, "threshold": threshold + 0.0, "f1": f1}  # no -0.0
    if f1 is not None:
        found = int((anomalous >= threshold).sum())
        called = ranked.size - int(np.searchsorted(ranked, threshold))
        part |= {"precision": found / called, "recall": found / anomalous.size}
    return part | {"minimum": float(ranked[0]) + 0.0, "maximum": float(ranked[-1]) + 0.0}


def _note_limits(image_map, limits):
    """Update the minimum and maximum of the maps in limits, a dict."""
    low, high = float(_finite(image_map).min()) + 0.0, float(image_map.max()) + 0.0
    limits["minimum"] = min(low, limits.get("minimum", low))
    limits["maximum"] = max(high, limits.get("maximum", high))


def _finite(image_map):
    if not np.isfinite(image_map).all():
        raise InputError("a map contains a value that is not finite, so no threshold can be set")
    return image_map


@dataclass(frozen=True)
class Rules:
    """Rules for thresholds and for marks; see `marks`.

    Parameters
    ----------
    percentile : float
        0 < percentile <= 100; this percentile of the normal scores is the image threshold if no
        defective image decides.
    false_alarms : float or None
        Share of normal images that may have a mark, 0 <= rate < 1; sets the pixel threshold. None
        uses the best F1 if masks decide, else the category's deviations, else a share of 0.
    min_area : int
        Minimum area of a mark, in pixels of the image.
    roi : bool (h, w) or None
        The region of interest, at the size of the images; None for everything.
    """

    percentile: float = 100.0
    false_alarms: float = None
    min_area: int = 1
    roi: np.ndarray = None


def find_thresholds(plan, maps, scores, masks=None, rules=None, impl="cython", threads=None):
    """Thresholds and ranges of image scores and pixels, from the deciding images.

    If these include defective images, the image threshold is the one with the best F1; else it is a
    percentile of the normal scores. The pixel threshold is the one with the best F1 if defective
    images with masks decide; else `deviation_threshold` of the normal images if the category's
    evaluation defines deviations and rules set no false_alarms; else the smallest at which at most
    the allowed share of the normal images has a mark.

    Parameters: plan, a deciding.Plan; maps (N, H, W) float32, array or rows.RowFile, merged and
    smoothed, of plan.category.test; scores (N,) float32; masks() returns a fresh iterable over all
    masks, bool (H, W), in order; None if defective images have none; rules, a Rules; impl and
    threads, see `metrics.aupro`.
    Returns a dict of JSON values: mode, n_normal, n_anomalous, min_area, and under "image" and
    "pixel" rule ("f1", "percentile", "false_alarms" or "deviations"), percentile, false_alarms (a
    share), deviations, f1, precision, recall (of the deciding images), threshold, minimum,
    maximum. "pixel" is None if there is neither a mask nor a normal image.
    Raises InputError for a map or score that is not finite, a percentile out of range, and a
    region of interest whose size differs from an image's.
    """
    samples = plan.category.test
    labels = np.array([sample.label for sample in samples])
    return thresholds_of(
        plan.mode, maps, scores, labels, plan.deciding, masks, rules,
        lambda k: samples[k].read_size(), plan.category.evaluation.deviations, impl, threads,
    )  # fmt: skip


def thresholds_of(
    mode, maps, scores, labels, deciding, masks=None, rules=None, size_of=None, deviations=None,
    impl="cython", threads=None,
):  # fmt: skip
    """`find_thresholds` for arrays: labels int (N,), deciding int (n,) ascending.

    Parameters: mode; maps (N, H, W) and scores (N,) float; masks, bool (N, H, W) or callable as
    there; rules as there; size_of(k), the size (h, w) of image k, by default that of its map;
    deviations, see data.Evaluation; impl and threads, see `metrics.aupro`.
    Returns and raises InputError as there.
    """
    scores, labels, deciding = np.asarray(scores), np.asarray(labels), np.asarray(deciding)
    rules, mine = rules or Rules(), scores[deciding]
    if not np.isfinite(mine).all():
        raise InputError("an image score is not finite, so no threshold can be set")
    anomalous = labels[deciding] != NORMAL
    if anomalous.any():
        image = _f1_part(np.sort(mine), mine[anomalous])
    else:
        image = {"rule": "percentile", "percentile": rules.percentile, "f1": None}
        image["threshold"] = percentile_threshold(mine, rules.percentile)
        image |= {"minimum": float(mine.min()), "maximum": float(mine.max())}

    pixel, chosen = None, deciding[~anomalous].tolist()
    if anomalous.any() and masks is not None and rules.false_alarms is None:
        known = set(deciding.tolist())

        def pairs():
            every = masks() if callable(masks) else masks
            return ((maps[k], mask) for k, mask in enumerate(every) if k in known)

        pixel = pixel_statistics(pairs, impl, threads)
    elif chosen:
        sized = ((maps[k], size_of(k) if size_of else maps[k].shape) for k in chosen)
        if deviations is not None and rules.false_alarms is None:
            pixel = _deviation_part(sized, deviations, rules)
        else:
            pixel = _false_alarm_part(sized, len(chosen), rules)
    return {
        "mode": mode,
        "n_normal": int((~anomalous).sum()),
        "n_anomalous": int(anomalous.sum()),
        "min_area": rules.min_area,
        "image": image,
        "pixel": pixel,
    }


def _false_alarm_part(sized, n, rules):
    """The entries of `find_thresholds` from n maps of normal images, each with its image's size."""
    rate = rules.false_alarms or 0.0
    most = allowed_alarms(rate, n) + 1  # how many of the largest values are kept
    values, limits = [], {}
    for large in _enlarged(sized, rules, limits):
        if len(values) < most or marks(large, values[0], rules.min_area, rules.roi).any():
            values.append(mark_value(large, rules.min_area, rules.roi))
            values = sorted(values)[-most:]
    return {
        "rule": "false_alarms", "percentile": None, "false_alarms": rate, "f1": None,
        "threshold": false_alarm_threshold(values, most - 1), **limits,
    }  # fmt: skip


def _deviation_part(sized, deviations, rules):
    """The entries of `find_thresholds` from maps of normal images, each with its image's size."""
    limits = {}
    inside = ... if rules.roi is None else rules.roi
    pixels = (large[inside] for large in _enlarged(sized, rules, limits))
    threshold = float(at_least(deviation_threshold(pixels, deviations), np.float32))
    return {
        "rule": "deviations", "percentile": None, "deviations": deviations, "f1": None,
        "threshold": threshold, **limits,
    }  # fmt: skip


def deviation_threshold(arrays, deviations):
    """Mean of the values of all arrays plus `deviations` population standard deviations.

    Parameters: arrays, an iterable of float arrays of any shape, finite, at least one value.
    Returns a Python float, computed in float64 with one array in memory at a time: the mean and sum
    of squared deviations of the values so far and of the next array are merged (Chan, Golub,
    LeVeque, 1979).

    >>> deviation_threshold([np.array([1.0, 3.0]), np.array([5.0, 7.0])], 2.0)  # 4 + 2 sqrt(5)
    8.47213595499958
    """
    n, mean, squares = 0, 0.0, 0.0
    parts = (np.ravel(values) for values in arrays)
    for values in (part[k : k + AT_ONCE] for part in parts for k in range(0, part.size, AT_ONCE)):
        values = values.astype(np.float64)
        own, n = values.mean(), n + values.size
        squares += ((values - own) ** 2).sum()
        squares += (own - mean) ** 2 * values.size * (n - values.size) / n
        mean += (own - mean) * values.size / n
    return float(mean + deviations * math.sqrt(squares / n))


def _enlarged(sized, rules, limits):
    """Yield each map at its image's size; limits, a dict, collects the range of the maps."""
    for image_map, size in sized:
        _note_limits(image_map, limits)
        check_marks(size, rules.min_area, rules.roi)
        yield enlarge(image_map, size)


def doubts(thresholds):
    """Reasons why thresholds are unreliable, a list of sentences."""
    found, n = [], thresholds["n_normal"] + thresholds["n_anomalous"]
    for kind in ("image", "pixel"):
        part = thresholds[kind] or {}
        if part.get("rule") == "f1" and (part["f1"] or 0) < LEAST_F1:
            found.append(
                f"the {kind} threshold has an F1 of only {part['f1'] or 0:.2f}, so its verdicts "
                "are unreliable"
            )
    if 0 < n < LEAST_IMAGES:
        found.append(
            f"only {counted(n, 'image')} decided the thresholds; {LEAST_IMAGES} or more are better"
        )
    return found


def describe(thresholds):
    """Describe the thresholds and the images that decided them in one line for users."""
    source = {
        "same-as-test": "the test images themselves, so the verdicts on them are optimistic",
        "split": "one half of the test images; the metrics are computed on the other half",
        "none": "held-out training images, no defective image",
        "folder": "the images in the folder validation/good",
        "given": "images given for calibration",
    }[thresholds["mode"]]
    n = thresholds["n_normal"]
    images = f"{n} normal, {thresholds['n_anomalous']} defective"
    parts = [f"{kind} {_rule(thresholds[kind], n)}" for kind in ("image", "pixel")]
    area = thresholds.get("min_area", 1)
    parts += [f"marks of at least {area} pixels"] * (area > 1)
    return f"thresholds from {source} ({images}): {', '.join(parts)}"


def _rule(part, n):
    if part is None:
        return "none, because there is neither a mask nor a normal image"
    if part["rule"] == "f1":
        how = "the best F1"
        if part["f1"] is not None:
            how += f", {part['f1']:.3f}"
        if "precision" in part:
            how += f", precision {part['precision']:.3f}, recall {part['recall']:.3f}"
    elif part["rule"] == "false_alarms":
        rate = part["false_alarms"]
        how = f"at most {rate:.2%} of {counted(n, 'normal image')} reach it; no rate below "
        how += f"{1 / n:.2%} can be guaranteed"
    elif part["rule"] == "deviations":
        how = f"mean of all pixels of {counted(n, 'normal image')} plus {part['deviations']:g} "
        how += "standard deviations"
    elif part["rule"] == "given":
        how = "given"
    else:
        how = f"only normal images: percentile {part['percentile']:g}"
        how += ", their maximum" if part["percentile"] == 100 else ""
    return f"{part['threshold']:.5g} ({how})"
