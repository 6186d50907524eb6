"""The threshold stages: the best-F1 threshold, and normalisation around it."""

import numpy as np

from ..support.errors import InputError
from ..verdicts import thresholds
from . import formulas
from .compare import EXACT, close
from .inputs import labels_for
from .numbers import Numbers
from .stage import Case, Mistake, Stage


def _threshold_cases():
    draw = Numbers("threshold")
    mixed = (draw.integers(40, 60) / 64).astype(np.float64)
    mixed_labels = ((mixed + draw.uniform(60)) > 0.9).astype(np.uint8)
    four = np.array([1.0, 2, 3, 4])
    plain = draw.uniform(30)
    better = "F1 is 2/3 at the thresholds 1 and 4: the first, which is smaller, is taken"
    for name, scores, labels, flags, comment in (
        ("by_hand", four, [0, 0, 1, 1], (), ""),
        ("overlapping", plain, labels_for(plain, draw), (), ""),
        ("ties", mixed, mixed_labels, ("ties",), ""),
        ("equally_good", four, [1, 0, 0, 1], (), better),
        ("all_equal", np.full(5, 0.5), [0, 1, 0, 1, 1], ("ties", "all_equal"), ""),
        ("unsorted", four[[3, 0, 2, 1]], [1, 1, 0, 0], (), "F1 is 2/3 at 1 and 4 again"),
        (
            "no_anomalous",
            np.array([0.5, 0.25, 0.75, 0.125]),
            [0, 0, 0, 0],
            ("no_anomalous", "undefined"),
            "there is no F1, so it is NaN",
        ),
        ("nan", np.array([0.5, np.nan, 0.75]), [0, 1, 1], ("undefined",), "a NaN has no rank"),
        ("empty", np.zeros(0), [], ("undefined",), "neither threshold nor F1"),
    ):
        yield Case(name, {"scores": scores, "labels": np.uint8(labels)}, flags, comment)


def _threshold(inputs):
    try:
        return _outputs(*thresholds.f1_threshold(**inputs))
    except InputError:  # raised for empty scores and for NaN
        return _outputs(np.nan, np.nan)


def _outputs(threshold, f1):
    return {"threshold": np.float64(threshold), "f1": np.float64(np.nan if f1 is None else f1)}


THRESHOLD = Stage(
    "threshold",
    "the threshold of the best F1",
    "tiled_ref.verdicts.thresholds.f1_threshold",
    "F1 = 2 TP / (2 TP + FP + FN)",
    {"threshold": EXACT, "f1": close(1e-12, 0.0)},
    _threshold_cases,
    _threshold,
    lambda inputs, **s: _outputs(*formulas.f1_threshold(**inputs, **s)),
    (
        Mistake("> instead of >=: the threshold itself is not called anomalous", strict=True),
        Mistake("the last of equally good thresholds instead of the first", last=True),
        Mistake("the middle between two scores instead of a score", midpoint=True),
        Mistake("labels are exchanged: 0 is taken for anomalous", flipped=True),
        Mistake("accuracy instead of F1", of="accuracy"),
        Mistake("the Jaccard index TP / (TP + FP + FN) instead of F1", of="jaccard"),
        Mistake("the smallest score without an anomalous label", fallback=np.min),
        Mistake("an undefined F1 is 0 instead of NaN", undefined=0.0),
        Mistake("F2 instead of F1", beta=2.0),
        Mistake("F0.5 instead of F1", beta=0.5),
    ),
)


def _normalisation_cases():
    values = Numbers("normalisation").uniform(2, 5, 7) * 4
    for name, values, threshold, minimum, maximum, flags in (
        ("map", values, 1.75, 0.25, 3.5, ("several", "clamped")),
        ("threshold_is_a_half", np.array([0.0, 2, 3]), 2.0, 0.0, 4.0, ()),
        ("clamped", np.array([-9.0, -1, 0, 1, 9]), 0.0, -1.0, 1.0, ("clamped", "negative")),
        ("no_range", np.array([0.0, 1, 2]), 1.0, 1.0, 1.0, ("no_range",)),
    ):
        numbers = {"threshold": threshold, "minimum": minimum, "maximum": maximum}
        numbers = {key: np.float64(value) for key, value in numbers.items()}
        yield Case(name, {"values": values, **numbers}, flags)


def _range(inputs):
    return inputs["values"], *(float(inputs[k]) for k in ("threshold", "minimum", "maximum"))


NORMALISATION = Stage(
    "normalisation",
    "values to [0, 1] with the threshold at 0.5",
    "tiled_ref.verdicts.thresholds.normalize",
    "clamp((x - threshold) / (maximum - minimum) + 0.5, 0, 1)",
    {"values": close(5e-7, 5e-7)},
    _normalisation_cases,
    lambda inputs: {"values": thresholds.normalize(*_range(inputs))},
    lambda inputs, **s: {"values": formulas.normalize(*_range(inputs), **s)},
    (
        Mistake("no clamp to [0, 1]", clamp=False),
        Mistake("0.5 is not added", shift=0.0),
        Mistake(
            "min-max normalisation: the minimum is subtracted, not the threshold", centre=False
        ),
        Mistake("divided by the maximum instead of maximum - minimum", spread=0),
        Mistake("divided by twice the range", spread=2),
        Mistake("the sign: threshold - x", spread=-1),
        Mistake("a sigmoid instead of the clamp", clamp="sigmoid"),
        Mistake("a division by a range of zero", flat="divided"),
        Mistake("all values are 0.5 without a range", flat=lambda d: 0 * d + 0.5),
        Mistake("without a range the threshold itself becomes 1", flat=lambda d: (d >= 0) * 1.0),
        Mistake("without a range the threshold itself becomes 0", flat=lambda d: (d > 0) * 1.0),
    ),
)

STAGES = (THRESHOLD, NORMALISATION)
