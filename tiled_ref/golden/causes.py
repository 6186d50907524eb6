"""Find the likely cause of a port's error: a known mistake, or a pattern in its numbers.

The known mistakes of a failing stage are computed one by one (see formulas.py);
the likely cause is the mistake that reproduces the port's numbers.
"""

from functools import cache

import numpy as np

from .compare import BITS, ROOM, compare, differences, output_rounding, rounded, rounded_inputs

EXPLAINED = 0.05  # a mistake explains an output if at most this share of the difference remains
FACTORS = 0.25, 5  # a port's rounding error is between this many times the expected one
LEAST = 0.2  # minimum share of the differing outputs that a mistake must explain
ALIKE = 0.12  # errors of many numbers are alike from this correlation on
ONE_WAY = 0.45  # rounding goes up and down: the mean sign of its errors is below this


def likely_causes(stage, results, bundle, cases):
    """Return sentences that name likely causes.

    Parameters: stage, a Stage, or None if its mistakes cannot be computed; results, its list
    of Result; bundle, the reference; cases, the manifest's cases by name.
    Returns list of str, the likeliest first; empty if no cause is found.

    A known mistake explains a differing output if its numbers are within EXPLAINED of the port's
    (see _left). An equal output contradicts a mistake that would have changed it, unless all
    outputs of that name, in several cases, are equal: then the mistake lies elsewhere. Mistakes
    that explain every output come first, then those that explain most of them. Next comes a pattern
    of the numbers, unless a mistake explains all. Mistakes that explain at most half of the
    outputs, or are contradicted, come last and are called "partly like".
    """
    bad = [r for r in results if r.status in ("differs", "shape")]
    good = [r for r in results if r.ok and r.reference.size]
    names = {r.output for r in (bad if len({r.case for r in results}) > 1 else results)}
    if not bad:
        return _absent(results)
    ranked = []
    for place, mistake in enumerate(stage.mistakes if stage else ()):
        wrong = _mistaken(stage, mistake, bundle, cases)
        left = [_left(wrong(r), r) for r in bad]
        n = sum(part <= EXPLAINED for part in left)
        if not n:
            continue
        denied = sum(_visible(wrong(r), r) for r in good if r.output in names)
        if denied > n or n < LEAST * len(bad):
            continue
        partly = denied > 0 or 2 * n <= len(bad)
        rank = partly, len(bad) - n + denied, sum(left), place
        ranked.append((*rank, denied, n, mistake.sentence))
    named, part = [], []
    for partly, *_, denied, n, sentence in sorted(ranked):
        if partly or n < len(bad):
            sentence += f" (explains {n} of {len(bad)} differing outputs"
            sentence += f", but would change {denied} of {len(good)} equal ones)" if denied else ")"
        sentence = f"partly like: {sentence}" if partly else sentence
        if sentence not in named + part:
            (part if partly else named).append(sentence)
    whole = any(not partly and n == len(bad) for partly, *_, n, _ in ranked)
    looks = [] if whole else _looks(bad) or _rounding(stage, results, bundle, cases)
    return named + looks + part


def _mistaken(stage, mistake, bundle, cases):
    """Return a function from a Result to the mistake's array, or None if the formula has none."""

    @cache
    def outputs(case):
        with np.errstate(all="ignore"):
            return stage.formula(bundle.inputs(cases[case]), **mistake.switches)

    def wrong(result):
        value = outputs(result.case).get(result.output)
        return None if value is None else np.asarray(value)

    return wrong


def _left(wrong, result):
    """Return the distance from mistake to port, relative to that from mistake to reference, or to
    0 if that is smaller: 0 if the port's numbers are the mistake's, 1 if they are
    unrelated."""
    if wrong is None or wrong.shape != result.port.shape or not _visible(wrong, result):
        return 1.0
    with np.errstate(all="ignore"):
        size = np.abs(wrong.astype(np.float64))
        rounding = np.nan_to_num(2.0**-22 * size, posinf=0)  # of float32
    left = float(np.maximum(differences(result.port, wrong) - rounding, 0).mean())
    if left == 0 or not np.isfinite(left):
        return 0.0 if left == 0 else 1.0
    way = float(size.mean())
    if wrong.shape == result.reference.shape and np.isfinite(way):
        way = min(way, float(differences(result.reference, wrong).mean()))
    return min(1.0, left / way) if way else 1.0


def _visible(wrong, result):
    """Return whether the mistake would change this output beyond its tolerance."""
    if wrong is None:
        return False
    if wrong.shape != result.reference.shape:
        return True
    with np.errstate(invalid="ignore"):  # NaN as an integer
        wrong = wrong.astype(result.reference.dtype)
    return not compare(wrong, result.reference, result.rule).ok


def _absent(results):
    statuses = {r.status for r in results if not r.ok}
    if all(r.status == "missing" for r in results):
        return ["the port wrote none of the files; use --stage to check only the ported stages"]
    if statuses == {"missing"}:
        return ["the port did not write all files"]
    return ["a file could not be read"] if "unreadable" in statuses else []


def _looks(bad):
    """Return a pattern found in the numbers of every differing output, for any stage."""
    arrays = [(r.port, r.reference) for r in bad if r.status == "differs"]
    if not arrays:
        return [_shape(bad[0].port, bad[0].reference)]
    first, *others = [_patterns(*(a.astype(np.float64) for a in pair)) for pair in arrays]
    return [s for s in first if all(s in sentences for sentences in others)][:1]


def _shape(port, reference):
    if port.dtype.kind != reference.dtype.kind:
        return "another kind of number is expected"
    if sorted(port.shape) == sorted(reference.shape):
        return "the axes are in another order (rows and columns exchanged?)"
    return "the array has another shape"


def _patterns(port, reference):
    """Return the sentences that apply to an output, float64 arrays of equal shape."""
    if np.isnan(port).all():
        return ["all numbers are NaN"]
    if not port.any() and reference.size > 1:
        return ["all numbers are zero: the array was never filled"]
    found = [
        sentence
        for sentence, view in _rearranged(reference)
        if view.shape == port.shape and _same(port, view) and not _same(view, reference)
    ]
    with np.errstate(all="ignore"):
        ratio = port[reference != 0] / reference[reference != 0]
        mean, spread = (ratio.mean(), np.ptp(ratio)) if ratio.size > 1 else (1, 0)
        if spread <= 1e-3 * abs(mean) and spread < 0.1 * abs(mean - 1):
            digits = 4 if abs(mean - 1) > 0.01 else 6
            found.append(f"every number is {mean:.{digits}g} times the reference")
        offset = port - reference
        if offset.size > 1 and np.ptp(offset) <= 1e-3 * abs(offset.mean()):
            found.append(f"every number is the reference plus {offset.mean():.4g}")
        squares, roots = reference**2, np.sqrt(np.abs(reference))
    for sentence, view in (
        ("numbers are squares of the reference: a square root is missing", squares),
        ("numbers are square roots of the reference: one square root too many", roots),
    ):
        if _same(port, view) and not _same(view, reference):
            found.append(sentence)
    return found


def _rounding(stage, results, bundle, cases):
    """Return a list with a sentence about rounding, or an empty list.

    Either all differing numbers of the port have few bits, or their errors match those of the
    formula with rounded inputs, in size and place, which no other mistake does.
    """
    known = [r for r in results if r.verdict is not None and r.rule.reduced]
    bad = [r for r in known if not r.ok]
    if any(r.rule.kind == "boundary" for r in bad):  # a few signs decide
        return []
    found = []
    words = {"bfloat16": "bfloat16 does", "tf32": "TF32 and float16 do"}
    for name, bits in sorted(BITS.items(), key=lambda item: item[1]):
        sentence = f"rounding to {bits} bits, as {words[name]}"
        sizes = [r.verdict.difference / _expected(r, name) for r in bad]
        if not bad or max(sizes) > FACTORS[1]:
            continue
        changed = [r.port[r.port != r.reference].astype(np.float32) for r in bad]
        if all((rounded(values, bits) == values).all() for values in changed):
            return [sentence]
        signs = np.concatenate([np.sign(r.port - r.reference)[r.port != r.reference] for r in bad])
        if stage and max(sizes) > FACTORS[0] and abs(signs.mean()) < ONE_WAY:
            alike = max(_likeness(stage, bad, bundle, cases, bits, k) for k in (False, True))
            n = sum(r.reference.size for r in bad)
            # By chance, n numbers correlate by about 1 / sqrt(n).
            found += [(alike, sentence)] if alike > ALIKE + 4 / n**0.5 else []
    if not found and bad and len(bad) == sum(r.status == "differs" for r in results):
        if max(r.verdict.difference / _expected(r, "tf32") for r in bad) < FACTORS[1] * 2.0**-13:
            return ["float32 rounding in another summation order"]
    return [max(found)[1]] if found else []


def _expected(result, name):
    """Return the largest difference expected from rounding all inputs, then the output, once."""
    output = output_rounding(result.reference, BITS[name])
    return max(0, result.rule.reduced[name] - output) / ROOM + output / 2


def _likeness(stage, bad, bundle, cases, bits, kernels):
    """Correlate the port's errors with those of rounded inputs, or kernels: -1 to 1."""
    products = np.zeros(3)
    for case in {r.case for r in bad}:
        inputs = bundle.inputs(cases[case])
        truth, short = stage.formula(inputs), stage.formula(rounded_inputs(inputs, bits, kernels))
        for result in (r for r in bad if r.case == case):
            ours = np.asarray(short[result.output]) - truth[result.output]
            theirs = result.port - np.asarray(truth[result.output])
            size = np.abs(ours).max() or 1.0  # gives all outputs equal weight
            ours, theirs = ours.ravel() / size, theirs.ravel() / size
            products += ours @ theirs, ours @ ours, theirs @ theirs
    return products[0] / max(1e-300, (products[1] * products[2]) ** 0.5)


def _rearranged(a):
    """Yield (sentence, array) for simple rearrangements."""
    if a.ndim >= 2:
        yield "rows and columns are exchanged", a.swapaxes(-1, -2)
        yield "rows and columns are exchanged in memory", a.swapaxes(-1, -2).reshape(a.shape)
    for axis in range(a.ndim):
        yield f"axis {axis} is reversed", np.flip(a, axis)
    for axis in range(a.ndim):
        for step in (1, -1):
            yield f"everything is shifted by {step} along axis {axis}", np.roll(a, step, axis)
    for axis in range(a.ndim - 1):
        yield f"axes {axis} and {axis + 1} are exchanged", a.swapaxes(axis, axis + 1)


def _same(port, view):
    """Return whether nearly all numbers of two arrays of equal shape agree up to rounding; a shift
    can leave an edge that differs."""
    size = float(np.abs(view[np.isfinite(view)]).max(initial=0))
    return float((differences(port, view) <= 1e-5 * size).mean()) >= (0.75 if port.size > 16 else 1)
