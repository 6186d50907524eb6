"""Naming the likely cause of a port's error: a known mistake, or a pattern in its numbers.

The known mistakes of a stage that fails are computed one after the other (see formulas.py);
the likely cause is the one that gives the port's numbers.
"""

from functools import cache

import numpy as np

from .compare import BITS, ROOM, compare, differences, output_rounding

EXPLAINED = 0.05  # of the mean difference may remain where a mistake explains a port
FACTOR = 16  # between the size of rounding that is expected and that of a port's


def likely_causes(stage, results, bundle, cases):
    """Sentences that name likely causes.

    Parameters: stage, a Stage, or None where its mistakes cannot be computed; results, its list
    of Result; bundle, the reference; cases, the manifest's cases by name.
    Returns list of str, the likeliest first; empty where nothing can be said.

    A known mistake explains an output that differs where its numbers are within EXPLAINED of the
    port's (see _left); an output that is equal contradicts it where it would have changed that
    output. Mistakes that explain every output come first, then those that explain most of them.
    Next comes a pattern of the numbers, unless a mistake explains all; what explains no more than
    half of the outputs, or is contradicted, is last and called "partly like".
    """
    bad = [r for r in results if r.status in ("differs", "shape")]
    good = [r for r in results if r.ok and r.reference.size]
    if not bad:
        return _absent(results)
    ranked = []
    for place, mistake in enumerate(stage.mistakes if stage else ()):
        wrong = _mistaken(stage, mistake, bundle, cases)
        left = [_left(wrong(r), r) for r in bad]
        n = sum(part <= EXPLAINED for part in left)
        if not n:
            continue
        denied = sum(_visible(wrong(r), r) for r in good)
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
    return named + ([] if whole else _looks(results)) + part


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
    reference: 0 where the port's numbers are the mistake's, 1 where they are unrelated."""
    if wrong is None or wrong.shape != result.port.shape or not _visible(wrong, result):
        return 1.0
    if wrong.size > 1 and np.isnan(wrong).mean() > 0.5:  # one NaN is like another
        return 1.0
    with np.errstate(all="ignore"):
        size = np.abs(wrong.astype(np.float64))
        rounding = np.nan_to_num(2.0**-22 * size, posinf=0)  # of float32
    left = float(np.maximum(differences(result.port, wrong) - rounding, 0).mean())
    way = float(size.mean())
    if wrong.shape == result.reference.shape:
        way = float(differences(result.reference, wrong).mean())
    if way == 0 or not np.isfinite(left):
        return 1.0
    return min(1.0, left / way) if np.isfinite(way) else 0.0


def _visible(wrong, result):
    """Whether the mistake would have been noticed in this output."""
    if wrong is None:
        return False
    if wrong.shape != result.reference.shape:
        return True
    cast = wrong.astype(result.reference.dtype) if result.rule.kind in ("exact", "ulp") else wrong
    return not compare(cast, result.reference, result.rule).ok


def _absent(results):
    statuses = {r.status for r in results if not r.ok}
    if all(r.status == "missing" for r in results):
        return ["the port wrote none of the files; --stage leaves out what is not ported yet"]
    if statuses == {"missing"}:
        return ["the port did not write all files"]
    return ["a file could not be read"] if "unreadable" in statuses else []


def _looks(results):
    """A pattern in the numbers of the first differing output, whatever the stage."""
    bad = [r for r in results if r.status in ("differs", "shape")]
    result = next((r for r in bad if r.status == "differs"), None)
    if result is None:
        port, reference = bad[0].port, bad[0].reference
        if port.dtype.kind != reference.dtype.kind:
            return ["another kind of numbers is expected"]
        if sorted(port.shape) == sorted(reference.shape):
            return ["the axes are in another order (rows and columns exchanged?)"]
        return ["the array has another shape"]
    port, reference = (a.astype(np.float64) for a in (result.port, result.reference))
    if np.isnan(port).all():
        return ["all numbers are NaN"]
    if not port.any():
        return ["all numbers are zero: nothing was written to the array"]
    for sentence, view in _rearranged(reference):
        if view.shape == port.shape and _same(port, view) and not _same(view, reference):
            return [sentence]
    with np.errstate(all="ignore"):
        ratio = port[reference != 0] / reference[reference != 0]
        spread = np.ptp(ratio) if ratio.size > 1 else np.inf
        if spread <= 1e-3 * abs(ratio.mean()) and spread < 0.1 * abs(ratio.mean() - 1):
            return [f"every number is {ratio.mean():.6g} times the reference"]
        offset = port - reference
        if offset.size > 1 and np.ptp(offset) <= 1e-3 * abs(offset.mean()):
            return [f"every number is the reference plus {offset.mean():.6g}"]
        squares, roots = reference**2, np.sqrt(np.abs(reference))
        for sentence, view in (
            ("numbers are squares of the reference: a square root is missing", squares),
            ("numbers are square roots of the reference: a square root too many", roots),
        ):
            if _same(port, view) and not _same(view, reference):
                return [sentence]
    return _rounding(results)


def _rounding(results):
    """Rounding, where errors have its size in every output and no direction: a sentence or none.

    The size is that of rounding all inputs, which the manifest states for two arithmetics.
    """
    known = [r for r in results if r.verdict is not None and r.rule.reduced]
    known = [r for r in known if r.reference.size >= 16] or known
    bad = [r for r in known if not r.ok]
    if not bad:
        return []
    with np.errstate(all="ignore"):
        error = np.concatenate([(r.port - r.reference.astype(np.float64)).ravel() for r in bad])
    if error.size < 16 or not abs(error.mean()) < 0.75 * np.abs(error).mean():
        return []

    def expected(result, key):
        output = output_rounding(result.reference, BITS[key])
        return max(0, result.rule.reduced[key] - output) / ROOM + output / 2

    found = []
    for sentence, key, scale in (
        ("rounding to 10 bits, as TF32 and float16 do", "tf32", 1.0),
        ("rounding to 7 bits, as bfloat16 does", "bfloat16", 1.0),
        ("rounding of float32 in another order of sums", "tf32", 2.0**-13),
    ):
        sizes = [r.verdict.difference / (scale * expected(r, key)) for r in known]
        those = [size for size, r in zip(sizes, known) if not r.ok]
        if max(sizes) <= FACTOR and min(those) >= 1 / FACTOR:
            found.append((abs(np.log2(those).mean() + 0.5), sentence))
    return [min(found)[1]] if found else []


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
