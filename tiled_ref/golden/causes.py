"""Naming the likely cause of a port's error: a known mistake, or a pattern in its numbers.

The known mistakes of a stage that fails are computed one after the other (see formulas.py);
the likely cause is the one that gives the port's numbers.
"""

from functools import cache

import numpy as np

from .compare import (
    BITS,
    ROOM,
    compare,
    differences,
    output_rounding,
    rounded,
    rounded_inputs,
)

EXPLAINED = 0.05  # of the mean difference may remain where a mistake explains a port
FACTOR = 5  # times the rounding that is expected, a port's may be
LEAST = 0.2  # of the outputs that differ, a mistake explains at least
ALIKE = 0.12  # correlation from which errors of many numbers are alike


def likely_causes(stage, results, bundle, cases):
    """Sentences that name likely causes.

    Parameters: stage, a Stage, or None where its mistakes cannot be computed; results, its list
    of Result; bundle, the reference; cases, the manifest's cases by name.
    Returns list of str, the likeliest first; empty where nothing can be said.

    A known mistake explains an output that differs where its numbers are within EXPLAINED of the
    port's (see _left); an output that is equal contradicts it where it would have changed that
    output, unless all outputs of that name are equal: then the mistake is made elsewhere. Mistakes
    that explain every output come first, then those that explain most of them. Next comes a pattern
    of the numbers, unless a mistake explains all; what explains no more than half of the outputs,
    or is contradicted, is last and called "partly like".
    """
    bad = [r for r in results if r.status in ("differs", "shape")]
    good = [r for r in results if r.ok and r.reference.size]
    names = {r.output for r in bad}
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
        ranked.append((*rank, n, mistake.sentence))
    named, part = [], []
    for partly, *_, n, sentence in sorted(ranked):
        if partly or n < len(bad):
            sentence += f" (explains {n} of {len(bad)} differing outputs)"
        sentence = f"partly like: {sentence}" if partly else sentence
        if sentence not in named + part:
            (part if partly else named).append(sentence)
    whole = any(not partly and n == len(bad) for partly, *_, n, _ in ranked)
    looks = [] if whole else _looks(bad) or _rounding(stage, results, bundle, cases)
    return named + looks + part


def _mistaken(stage, mistake, bundle, cases):
    """A function from a Result to the mistake's array, None where the formula gives none."""

    @cache
    def outputs(case):
        with np.errstate(all="ignore"):
            return stage.formula(bundle.inputs(cases[case]), **mistake.switches)

    def wrong(result):
        value = outputs(result.case).get(result.output)
        return None if value is None else np.asarray(value)

    return wrong


def _left(wrong, result):
    """The distance from the mistake to the port, as a share of that from the mistake to the
    reference, or to 0 where that is nearer: 0 where the port's numbers are the mistake's, 1 where
    they are unrelated."""
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
    """Whether the mistake would have been noticed in this output."""
    if wrong is None:
        return False
    if wrong.shape != result.reference.shape:
        return True
    return not compare(wrong.astype(result.reference.dtype), result.reference, result.rule).ok


def _absent(results):
    statuses = {r.status for r in results if not r.ok}
    if all(r.status == "missing" for r in results):
        return ["the port wrote none of the files; --stage leaves out what is not ported yet"]
    if statuses == {"missing"}:
        return ["the port did not write all files"]
    return ["a file could not be read"] if "unreadable" in statuses else []


def _looks(bad):
    """A pattern in the numbers of every output that differs, whatever the stage."""
    arrays = [(r.port, r.reference) for r in bad if r.status == "differs"]
    if not arrays:
        return [_shape(bad[0].port, bad[0].reference)]
    first, *others = [_patterns(*(a.astype(np.float64) for a in pair)) for pair in arrays]
    return [s for s in first if all(s in sentences for sentences in others)][:1]


def _shape(port, reference):
    if port.dtype.kind != reference.dtype.kind:
        return "another kind of numbers is expected"
    if sorted(port.shape) == sorted(reference.shape):
        return "the axes are in another order (rows and columns exchanged?)"
    return "the array has another shape"


def _patterns(port, reference):
    """The sentences that hold for an output, float64 arrays of one shape."""
    if np.isnan(port).all():
        return ["all numbers are NaN"]
    if not port.any() and reference.size > 1:
        return ["all numbers are zero: nothing was written to the array"]
    found = [
        sentence
        for sentence, view in _rearranged(reference)
        if view.shape == port.shape and _same(port, view) and not _same(view, reference)
    ]
    with np.errstate(all="ignore"):
        ratio = port[reference != 0] / reference[reference != 0]
        spread = np.ptp(ratio) if ratio.size > 1 else np.inf
        if spread <= 1e-3 * abs(ratio.mean()) and spread < 0.1 * abs(ratio.mean() - 1):
            found.append(f"every number is {ratio.mean():.4g} times the reference")
        offset = port - reference
        if offset.size > 1 and np.ptp(offset) <= 1e-3 * abs(offset.mean()):
            found.append(f"every number is the reference plus {offset.mean():.4g}")
        squares, roots = reference**2, np.sqrt(np.abs(reference))
    for sentence, view in (
        ("numbers are squares of the reference: a square root is missing", squares),
        ("numbers are square roots of the reference: a square root too many", roots),
    ):
        if _same(port, view) and not _same(view, reference):
            found.append(sentence)
    return found


def _rounding(stage, results, bundle, cases):
    """Rounding, as a sentence, or nothing.

    Either all numbers of the port that differ have few bits, or they are off like those of the
    formula whose inputs are rounded: by as much, and in the same places, which no other mistake is.
    """
    known = [r for r in results if r.verdict is not None and r.rule.reduced]
    bad = [r for r in known if not r.ok]
    found = []
    words = {"bfloat16": "bfloat16 does", "tf32": "TF32 and float16 do"}
    for name, bits in sorted(BITS.items(), key=lambda item: item[1]):
        sentence = f"rounding to {bits} bits, as {words[name]}"
        sizes = [r.verdict.difference / _expected(r, name) for r in bad]
        if not bad or max(sizes) > FACTOR:
            continue
        changed = [r.port[r.port != r.reference].astype(np.float32) for r in bad]
        if all((rounded(values, bits) == values).all() for values in changed):
            return [sentence]
        if stage:
            alike = max(_likeness(stage, bad, bundle, cases, bits, k) for k in (False, True))
            n = sum(r.reference.size for r in bad)
            # Chance alone makes n numbers alike by some 1 / sqrt(n).
            found += [(alike, sentence)] if alike > ALIKE + 4 / n**0.5 else []
    if not found and bad and len(bad) == sum(r.status == "differs" for r in results):
        if max(r.verdict.difference / _expected(r, "tf32") for r in bad) < FACTOR * 2.0**-13:
            return ["rounding of float32 in another order of sums"]
    return [max(found)[1]] if found else []


def _expected(result, name):
    """The largest difference where all inputs, and then the output, are rounded once."""
    output = output_rounding(result.reference, BITS[name])
    return max(0, result.rule.reduced[name] - output) / ROOM + output / 2


def _likeness(stage, bad, bundle, cases, bits, kernels):
    """The correlation of the port's errors with those of rounded inputs, or kernels, -1 to 1."""
    products = np.zeros(3)
    for case in {r.case for r in bad}:
        inputs = bundle.inputs(cases[case])
        truth, short = stage.formula(inputs), stage.formula(rounded_inputs(inputs, bits, kernels))
        for result in (r for r in bad if r.case == case):
            ours = np.asarray(short[result.output]) - truth[result.output]
            theirs = result.port - np.asarray(truth[result.output])
            size = np.abs(ours).max() or 1.0  # so that every output counts alike
            ours, theirs = ours.ravel() / size, theirs.ravel() / size
            products += ours @ theirs, ours @ ours, theirs @ theirs
    return products[0] / max(1e-300, (products[1] * products[2]) ** 0.5)


def _rearranged(a):
    """(sentence, array) for simple rearrangements."""
    if a.ndim >= 2:
        yield "rows and columns are exchanged", a.swapaxes(-1, -2)
        yield "rows and columns are exchanged in memory", a.swapaxes(-1, -2).reshape(a.shape)
    for axis in range(a.ndim):
        yield f"axis {axis} runs the other way", np.flip(a, axis)
    for axis in range(a.ndim):
        for step in (1, -1):
            yield f"everything is shifted by {step} along axis {axis}", np.roll(a, step, axis)
    for axis in range(a.ndim - 1):
        yield f"axes {axis} and {axis + 1} are exchanged", a.swapaxes(axis, axis + 1)


def _same(port, view):
    """Whether nearly all numbers of two arrays of one shape are equal up to rounding; not all,
    because a shift leaves an edge."""
    size = float(np.abs(view[np.isfinite(view)]).max(initial=0))
    return float((differences(port, view) <= 1e-5 * size).mean()) >= (0.75 if port.size > 16 else 1)
