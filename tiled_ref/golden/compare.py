"""When a port's array counts as equal to the reference: four compare classes.

    exact              the same values (any NaN equals any NaN, -0 equals 0)
    ulp(n)             at most n representable numbers apart
    close(rtol, atol)  |port - reference| <= atol + rtol |reference|
    boundary(rtol, atol, cap, limit)
                       where the last bit decides (rounding to whole levels, the sign of a
                       gradient): at most the share `cap` of the elements is further away than
                       close(rtol, atol), and none further than `limit`

Infinities are equal to themselves only, in every class.
"""

from dataclasses import dataclass

import numpy as np

NUMBERS = {  # of each class
    "exact": (),
    "ulp": ("ulps",),
    "close": ("rtol", "atol"),
    "boundary": ("rtol", "atol", "cap", "limit"),
}


@dataclass(frozen=True)
class Compare:
    """A compare class, its kind, and those of ulps, rtol, atol, cap, limit that it has."""

    kind: str
    ulps: int = 0
    rtol: float = 0.0
    atol: float = 0.0
    cap: float = 0.0
    limit: float = 0.0

    def as_json(self):
        """The manifest's entry."""
        return {"class": self.kind, **{key: getattr(self, key) for key in NUMBERS[self.kind]}}

    @staticmethod
    def from_json(entry):
        """The inverse of as_json; other keys are ignored. Raises KeyError for a missing number,
        ValueError or TypeError for a wrong one."""
        kind = entry["class"]
        if kind not in NUMBERS:
            raise ValueError(f"the compare class {kind!r}")
        numbers = {key: float(entry[key]) for key in NUMBERS[kind]}
        if not all(0 <= value < np.inf for value in numbers.values()):
            raise ValueError(f"the tolerance {entry!r}")
        return Compare(kind, **numbers)

    def __str__(self):
        if self.kind == "exact":
            return "exact"
        if self.kind == "ulp":
            return f"ulp({self.ulps:g})"
        if self.kind == "close":
            return f"close(rtol {self.rtol:g}, atol {self.atol:g})"
        return (
            f"boundary(rtol {self.rtol:g}, atol {self.atol:g}, at most {100 * self.cap:g} % "
            f"beyond it and none by more than {self.limit:g})"
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
    """Verdict on a port's array by a rule, a Compare; both arrays have one shape, any dtypes."""
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


def differences(port, reference):
    """|port - reference|, float64: 0 where both are NaN or the same infinity, infinity where
    only one is finite or the infinities differ."""
    port, reference = (np.asarray(a).astype(np.float64) for a in (port, reference))
    with np.errstate(all="ignore"):
        difference = np.abs(port - reference)
    same = (port == reference) | (np.isnan(port) & np.isnan(reference))
    return np.where(same, 0.0, np.where(np.isnan(difference), np.inf, difference))


def ulps_apart(port, reference):
    """Steps from one representable number to the next between two arrays of one float dtype,
    float64 (exact below 2^53); infinity where only one is a NaN."""

    def order(array):
        """Integers in the order of the floats; -0 and 0 are the same."""
        kind = np.int32 if array.dtype == np.float32 else np.int64
        bits = np.ascontiguousarray(array).view(kind).reshape(array.shape).astype(np.int64)
        return np.where(bits < 0, np.int64(np.iinfo(kind).min) - bits, bits)

    a, b = order(port), order(reference)
    steps = np.abs(a.astype(np.float64) - b.astype(np.float64))
    near = steps < 2**52  # where the subtraction of integers cannot overflow
    steps = np.where(near, np.abs(np.where(near, a, 0) - np.where(near, b, 0)), steps)
    one_nan = np.isnan(port) != np.isnan(reference)
    both_nan = np.isnan(port) & np.isnan(reference)
    return np.where(both_nan, 0, np.where(one_nan, np.inf, steps))
