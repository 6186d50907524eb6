"""The stages of thresholds: the best F1, and values normalised around it."""

import numpy as np

from .. import thresholds
from . import formulas
from .compare import EXACT, close
from .inputs import labels_for
from .numbers import Numbers
from .stage import Case, Confusion, Stage


def _threshold_cases():
    draw = Numbers("threshold")
    mixed = (draw.integers(40, 60) / 64).astype(np.float64)
    labels = ((mixed + draw.uniform(60)) > 0.9).astype(np.uint8)
    good = np.array([0.5, 0.25, 0.75, 0.125])
    plain = draw.uniform(30)
    cases = [
        Case("by_hand", {"scores": np.array([1.0, 2, 3, 4]), "labels": _bytes(0, 0, 1, 1)}),
        Case("overlapping", {"scores": plain, "labels": labels_for(plain, draw)}),
        Case("ties", {"scores": mixed, "labels": labels}, ("ties",)),
        Case(
            "equally_good",
            {"scores": np.array([1.0, 2, 3, 4]), "labels": _bytes(1, 0, 0, 1)},
            (),
            "F1 is 2/3 at the thresholds 1 and 4: the first, which is smaller, is taken",
        ),
        Case(
            "all_equal",
            {"scores": np.full(5, 0.5), "labels": _bytes(0, 1, 0, 1, 1)},
            ("ties", "all_equal"),
        ),
        Case(
            "no_anomalous",
            {"scores": good, "labels": _bytes(0, 0, 0, 0)},
            ("no_anomalous",),
            "there is no output f1",
        ),
    ]
    return cases


def _bytes(*values):
    return np.array(values, np.uint8)


def _threshold_outputs(threshold, f1):
    outputs = {"threshold": np.float64(threshold)}
    return outputs if f1 is None else {**outputs, "f1": np.float64(f1)}


THRESHOLD = Stage(
    "threshold",
    "the threshold of the best F1",
    "tiled_ref.thresholds.f1_threshold",
    "F1 = 2 TP / (2 TP + FP + FN)",
    {"threshold": EXACT, "f1": close(1e-12, 0.0)},
    _threshold_cases,
    lambda inputs: _threshold_outputs(*thresholds.f1_threshold(inputs["scores"], inputs["labels"])),
    lambda inputs, **s: _threshold_outputs(
        *formulas.f1_threshold(inputs["scores"], inputs["labels"], **s)
    ),
    (
        Confusion(
            "> instead of >=: the threshold itself is not called anomalous", {"strict": True}
        ),
        Confusion("the last of equally good thresholds instead of the first", {"last": True}),
        Confusion("the middle between two scores instead of a score", {"midpoint": True}),
        Confusion("labels are exchanged: 0 is taken for anomalous", {"flipped": True}),
        Confusion("F2 instead of F1", {"beta": 2.0}),
        Confusion("F0.5 instead of F1", {"beta": 0.5}),
    ),
)


def _normalisation_cases():
    draw = Numbers("normalisation")
    values = draw.uniform(2, 5, 7) * 4
    return [
        _normalisation_case("map", values, 1.75, 0.25, 3.5, ("several", "clamped")),
        _normalisation_case("threshold_is_a_half", np.array([0.0, 2, 3]), 2.0, 0.0, 4.0),
        _normalisation_case(
            "clamped", np.array([-9.0, -1, 0, 1, 9]), 0.0, -1.0, 1.0, ("clamped", "negative")
        ),
        _normalisation_case("no_range", np.array([0.0, 1, 2]), 1.0, 1.0, 1.0, ("no_range",)),
    ]


def _normalisation_case(name, values, threshold, minimum, maximum, flags=()):
    numbers = {"threshold": threshold, "minimum": minimum, "maximum": maximum}
    return Case(name, {"values": values, **{k: np.float64(v) for k, v in numbers.items()}}, flags)


def _range(inputs):
    return inputs["values"], *(float(inputs[k]) for k in ("threshold", "minimum", "maximum"))


NORMALISATION = Stage(
    "normalisation",
    "values to [0, 1] with the threshold at 0.5",
    "tiled_ref.thresholds.normalize",
    "clamp((x - threshold) / (maximum - minimum) + 0.5, 0, 1)",
    {"values": close(5e-7, 5e-7)},
    _normalisation_cases,
    lambda inputs: {"values": thresholds.normalize(*_range(inputs))},
    lambda inputs, **s: {"values": formulas.normalize(*_range(inputs), **s)},
    (
        Confusion("no clamp to [0, 1]", {"clamp": False}),
        Confusion("0.5 is not added", {"shift": 0.0}),
        Confusion(
            "min-max normalisation: the minimum is subtracted, not the threshold", {"centre": False}
        ),
        Confusion("divided by the maximum instead of maximum - minimum", {"spread": False}),
    ),
)

STAGES = (THRESHOLD, NORMALISATION)
