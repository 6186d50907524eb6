"""Compare classes: four definitions of when a port's array counts as equal to the reference.

    exact              the same values (any NaN equals any NaN, -0 equals 0)
    ulp(n)             at most n representable numbers apart
    close(rtol, atol)  |port - reference| <= atol + rtol |reference|
    boundary(rtol, atol, cap, limit)
                       for results that depend on the last bit (rounding to whole levels, the
                       sign of a gradient): at most the share `cap` of the elements is further
                       away than close(rtol, atol), and none further than `limit`

In every class, infinities equal only themselves.

A port that computes with less precision than float32 can request larger tolerances:
see `Compare.in_arithmetic`.
"""

from dataclasses import dataclass, field, replace

import numpy as np

NUMBERS = {  # parameters of each class
    "exact": (),
    "ulp": ("ulps",),
    "close": ("rtol", "atol"),
    "boundary": ("rtol", "atol", "cap", "limit"),
}


# Explicit mantissa bits. float16 counts as tf32, which only has a longer exponent.
BITS = {"tf32": 10, "bfloat16": 7}
CAP = 0.01  # atol / largest value of the reference
ROOM = 8  # tolerance / effect of rounding the inputs once: a port rounds in every layer


@dataclass(frozen=True)
class Compare:
    """A compare class: its kind, its parameters out of ulps, rtol, atol, cap and limit, and
    reduced, the extra absolute tolerance for lower precision, by the keys of BITS."""

    kind: str
    ulps: int = 0
    rtol: float = 0.0
    atol: float = 0.0
    cap: float = 0.0
    limit: float = 0.0
    reduced: dict = field(default_factory=dict)

    def capped(self, reference):
        """Return the class with an atol of at most CAP of the largest value of the reference (...),
        so that zeros are no answer; unchanged for integers and where all is zero."""
        size = output_rounding(reference, 0) if np.asarray(reference).dtype.kind == "f" else 0
        return replace(self, atol=min(self.atol, float(f"{CAP * size:.1e}"))) if size else self

    def in_arithmetic(self, name):
        """Return the class for a port computing in "float32", "tf32", "float16" or "bfloat16"."""
        room = self.reduced.get("tf32" if name == "float16" else name, 0.0)
        if not room:
            return self
        if self.kind in ("exact", "ulp"):
            return replace(self, kind="close", rtol=0.0, atol=room)
        return replace(self, atol=self.atol + room, limit=self.limit + room)

    def as_json(self):
        """Return the manifest's entry."""
        entry = {"class": self.kind, **{key: getattr(self, key) for key in NUMBERS[self.kind]}}
        return {**entry, "reduced": self.reduced} if self.reduced else entry

    @staticmethod
    def from_json(entry):
        """The inverse of as_json; other keys are ignored. Raises KeyError for a missing number,
        ValueError or TypeError for an invalid one."""
        kind = entry["class"]
        if kind not in NUMBERS:
            raise ValueError(f"the compare class {kind!r}")
        numbers = {key: float(entry[key]) for key in NUMBERS[kind]}
        reduced = {key: float(room) for key, room in entry.get("reduced", {}).items()}
        if not all(0 <= value < np.inf for value in (*numbers.values(), *reduced.values())):
            raise ValueError(f"the tolerance {entry!r}")
        return Compare(kind, **numbers, reduced=reduced)

    def __str__(self):
        if self.kind == "exact":
            return "exact"
        if self.kind == "ulp":
            return f"ulp({self.ulps:g})"
        if self.kind == "close":
            return f"close(rtol {self.rtol:g}, atol {self.atol:g})"
        return (
            f"boundary(rtol {self.rtol:g}, atol {self.atol:g}, at most {100 * self.cap:g} % "
            f"beyond it, none by more than {self.limit:g})"
        )


EXACT = Compare("exact")


def ulp(n):
    """The class ulp, see the module."""
    return Compare("ulp", ulps=n)


def close(rtol, atol):
    """The class close, see the module."""
    return Compare("close", rtol=rtol, atol=atol)


def boundary(rtol, atol, cap, limit):
    """The class boundary, see the module."""
    return Compare("boundary", rtol=rtol, atol=atol, cap=cap, limit=limit)


@dataclass(frozen=True)
class Verdict:
    """The comparison of two arrays of one shape."""

    ok: bool  # whether they count as equal
    n: int  # numbers compared
    n_beyond: int  # those beyond the tolerance
    worst: tuple  # index of the largest difference, None without numbers
    difference: float  # absolute, there; inf where only one of the two is finite
    ulps: int  # largest distance in representable numbers; None where that has no meaning


def compare(port, reference, rule):
    """Return the Verdict on a port's array; rule, a Compare; equal shapes, any dtypes."""
    difference = differences(port, reference)
    if not difference.size:
        return Verdict(True, 0, 0, None, 0.0, 0)
    place = int(np.argmax(difference))
    steps = None
    if port.dtype == reference.dtype and reference.dtype.kind == "f":
        steps = ulps_apart(port, reference)
    if rule.kind == "exact":
        beyond = difference != 0
    elif rule.kind == "ulp":
        with np.errstate(over="ignore"):  # a port in float64 is rounded to the reference's kind
            steps = ulps_apart(port.astype(reference.dtype), reference)
        beyond = steps > rule.ulps
    else:
        with np.errstate(all="ignore"):
            size = np.abs(reference.astype(np.float64))
            beyond = difference > rule.atol + rule.rtol * np.where(np.isfinite(size), size, 0)
    n_beyond = int(np.count_nonzero(beyond))
    ok = n_beyond == 0
    if rule.kind == "boundary":
        ok = n_beyond <= rule.cap * difference.size and float(difference.max()) <= rule.limit
    return Verdict(
        ok,
        difference.size,
        n_beyond,
        tuple(int(k) for k in np.unravel_index(place, difference.shape)),
        float(difference.flat[place]),
        None if steps is None or np.isinf(steps).any() else int(steps.max()),
    )


def rounded(array, bits):
    """Round a float32 array (...) to a number of mantissa bits, halves to even; other dtypes are
    returned unchanged, because float64 holds settings."""
    if getattr(array, "dtype", None) != np.float32:
        return array
    mantissa, exponent = np.frexp(array)
    return np.ldexp(np.rint(np.ldexp(mantissa, bits + 1)), exponent - bits - 1).astype(np.float32)


def rounded_inputs(inputs, bits, kernels=False):
    """Round the inputs of a case, {name: array or {tensor: array}}, see `rounded`; or only the
    convolution kernels, tensors with at least four axes."""

    def short(value):
        if isinstance(value, dict):
            few = {key: v for key, v in value.items() if v.ndim >= 4 or not kernels}
            return {**value, **{key: rounded(v, bits) for key, v in few.items()}}
        return value if kernels else rounded(value, bits)

    return {name: short(value) for name, value in inputs.items()}


def output_rounding(array, bits):
    """Return the spacing of numbers with that many bits at the largest value of an array (...)."""
    finite = np.asarray(array, np.float64)[np.isfinite(array)]
    return float(np.abs(finite).max(initial=0)) * 2.0**-bits


def differences(port, reference):
    """Return |port - reference|, float64: 0 where both are NaN or the same infinity, infinity
    where only one is finite or the infinities differ."""
    port, reference = (np.asarray(a).astype(np.float64) for a in (port, reference))
    with np.errstate(all="ignore"):
        difference = np.abs(port - reference)
    same = (port == reference) | (np.isnan(port) & np.isnan(reference))
    return np.where(same, 0.0, np.where(np.isnan(difference), np.inf, difference))


def ulps_apart(port, reference):
    """Return the distance in representable numbers between two arrays of the same float dtype,
    float64 (exact below 2^53); infinity where only one is NaN."""

    def order(array):
        """Map floats to integers of the same order; -0 and 0 are equal."""
        kind = np.int32 if array.dtype == np.float32 else np.int64
        bits = np.ascontiguousarray(array).view(kind).reshape(array.shape).astype(np.int64)
        return np.where(bits < 0, np.int64(np.iinfo(kind).min) - bits, bits)

    a, b = order(port), order(reference)
    steps = np.abs(a.astype(np.float64) - b.astype(np.float64))
    near = steps < 2**52  # integer subtraction cannot overflow here
    steps = np.where(near, np.abs(np.where(near, a, 0) - np.where(near, b, 0)), steps)
    one_nan = np.isnan(port) != np.isnan(reference)
    both_nan = np.isnan(port) & np.isnan(reference)
    return np.where(both_nan, 0, np.where(one_nan, np.inf, steps))
