"""Comparing what a port computed with a bundle, and naming the likely mistake.

Every output of every case is compared by its compare class. Where a stage fails, the known
mistakes of that stage are computed one after the other (see formulas.py): the one whose
numbers are the port's numbers is the likely cause.
"""

from dataclasses import dataclass, field

import numpy as np

from ..support.errors import InputError
from . import FORMAT_VERSION, npy
from .bundle import Bundle, output_path
from .compare import Compare, compare, differences

EXPLAINED = 0.05  # of the mean difference may remain where a mistake explains a port
FIRST = 4  # values shown side by side
MANY = 10_000  # ulps; beyond that their number tells nothing


@dataclass
class Result:
    """One compared output.

    case, output: names. rule: its compare class. reference: the bundle's array. port: the
    port's array, None where missing. status: "ok", "differs", "missing", "unreadable" or
    "shape"; message: a sentence where it is one of the last three. verdict: compare.Verdict,
    None where there was nothing to compare.
    """

    case: str
    output: str
    rule: Compare
    reference: np.ndarray
    port: np.ndarray = None
    status: str = "ok"
    message: str = ""
    verdict: object = None

    @property
    def ok(self):
        """Whether the output counts as equal."""
        return self.status == "ok"


@dataclass
class StageResult:
    """A stage after the comparison.

    name, title: as in the bundle. results: list of Result, all outputs. causes: sentences on
    what may be wrong where it is not ok, the likeliest first.
    """

    name: str
    title: str
    results: list = field(default_factory=list)
    causes: list = field(default_factory=list)

    @property
    def ok(self):
        """Whether something was compared and everything is equal."""
        return all(r.ok for r in self.results) and any(r.reference.size for r in self.results)


def check(port_folder, bundle, stages, chosen=None):
    """Compare a port's folder with a bundle.

    Parameters
    ----------
    port_folder : Path, an existing folder with <stage>/<case>.out.<name>.npy. Small outputs
        may lie in a manifest.json of it instead, as in a bundle
    bundle : Bundle, the reference
    stages : {name: Stage}, for the likely causes
    chosen : list of str, optional
        Names of stages, or what they start with before a dot ("padim"); default: all.

    Returns
    -------
    list of StageResult, in the order of the bundle; extra, sorted paths of .npy files in the
    port's folder that no compared or known array has.

    Raises InputError for an unknown stage or a damaged reference.
    """
    found = []
    port = _Port(port_folder)
    for stage in _choose(bundle, chosen):
        result = StageResult(stage["name"], stage["title"])
        for case in stage["cases"]:
            for name, entry in case["outputs"].items():
                reference = bundle.array(entry)
                one = Result(case["name"], name, Compare.from_json(entry["compare"]), reference)
                _compare_output(one, port, stage["name"])
                result.results.append(one)
        if not result.ok and stage["name"] in stages:
            cases = {case["name"]: case for case in stage["cases"]}
            result.causes = likely_causes(stages[stage["name"]], result.results, bundle, cases)
        found.append(result)
    known = bundle.paths() | {
        output_path(stage["name"], case["name"], name)
        for stage in bundle.stages
        for case in stage["cases"]
        for name in case["outputs"]
    }
    present = (p.relative_to(port_folder).as_posix() for p in port_folder.rglob("*.npy"))
    return found, sorted(path for path in present if path not in known)


def _choose(bundle, chosen):
    if not chosen:
        return bundle.stages
    names = [stage["name"] for stage in bundle.stages]
    for word in chosen:
        if not any(_is(name, word) for name in names):
            raise InputError(
                f"{bundle.folder} has no stage {word!r}; choose from {', '.join(names)}"
            )
    return [s for s in bundle.stages if any(_is(s["name"], word) for word in chosen)]


def _is(name, word):
    return name == word or name.startswith(f"{word}.")


class _Port:
    """The outputs of a port: files, and what its own manifest holds where it has one."""

    def __init__(self, folder):
        self.folder = folder
        self.bundle = Bundle(folder) if (folder / "manifest.json").is_file() else None

    def output(self, stage, case, name):
        """The array, or None; InputError where a file is there and cannot be read."""
        file = self.file(stage, case, name)
        if file.is_file():
            return npy.read(file)
        return self.bundle and self.bundle.small_output(stage, case, name)

    def file(self, stage, case, name):
        """Where the output should lie."""
        return self.folder / output_path(stage, case, name)


def _compare_output(result, port, stage):
    """Fill in what a port's output is like."""
    file, reference = port.file(stage, result.case, result.output), result.reference
    try:
        result.port = port.output(stage, result.case, result.output)
    except InputError as error:
        result.status, result.message = "unreadable", str(error)
        return
    if result.port is None:
        result.status, result.message = "missing", f"there is no file {file}"
        return
    array = result.port
    if array.shape != reference.shape or (array.dtype.kind == "f") != (reference.dtype.kind == "f"):
        result.status = "shape"
        result.message = (
            f"{file} holds {array.dtype.str} of shape {list(array.shape)} where the reference is "
            f"{reference.dtype.str} of shape {list(reference.shape)}"
        )
        return
    result.verdict = compare(array, reference, result.rule)
    if not result.verdict.ok:
        result.status = "differs"


# ------------------------------------------------------------------------- likely causes


def likely_causes(stage, results, bundle, cases):
    """Sentences that name what may be wrong.

    Parameters: stage, a Stage; results, its list of Result; bundle, the reference; cases,
    the manifest's cases by name.
    Returns list of str, the likeliest first; empty where nothing can be said.

    A known mistake counts where, for the outputs that differ, what it computes is nearer than
    EXPLAINED of the way to the port, and, for those that are equal, it changes nothing. Those
    that explain every output come first, then those that explain most; without any, what the
    numbers themselves look like.
    """
    bad = [r for r in results if r.status in ("differs", "shape")]
    good = [r for r in results if r.ok and r.reference.size]
    if not bad:
        return _absent(results)
    ranked = []
    for place, confusion in enumerate(stage.confusions):
        wrong = _Wrong(stage, confusion, bundle, cases)
        left = [_left(wrong(r), r) for r in bad]
        n = sum(part <= EXPLAINED for part in left)
        if not n:
            continue
        denied = sum(_visible(wrong(r), r) for r in good)
        if denied and n == len(bad):
            denied += 0.5  # it should have been seen elsewhere as well
        ranked.append((denied > 0, len(bad) - n + denied, sum(left), place, confusion.sentence, n))
    ranked.sort(key=lambda row: row[:4])
    sentences = []
    for contradicted, _, _, _, sentence, n in ranked:
        if n < len(bad) or contradicted:
            sentence += f" (explains {n} of {len(bad)} differing outputs)"
        if sentence not in sentences:
            sentences.append(sentence)
    if ranked and not ranked[0][0] and ranked[0][5] == len(bad):
        return sentences
    return sentences + _looks(bad)


class _Wrong:
    """What a mistake computes for the outputs of a stage, a case at a time."""

    def __init__(self, stage, confusion, bundle, cases):
        self.stage, self.confusion, self.bundle, self.cases = stage, confusion, bundle, cases
        self.done = {}

    def __call__(self, result):
        """float64 array, or None where the mistake has no meaning for the case."""
        if result.case not in self.done:
            inputs = self.bundle.inputs(self.cases[result.case])
            with np.errstate(all="ignore"):
                self.done[result.case] = self.stage.formula(inputs, **self.confusion.switches)
        value = self.done[result.case].get(result.output)
        return None if value is None else np.asarray(value)


def _left(wrong, result):
    """How much of the way from the reference to the mistake is left between the mistake and
    the port: 0 where the port's numbers are the mistake's; 1 where they are not at all."""
    if wrong is None or wrong.shape != result.port.shape or not _visible(wrong, result):
        return 1.0
    left = float(differences(result.port, wrong).mean())
    way = float(np.abs(wrong.astype(np.float64)).mean())
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


def _looks(bad):
    """What the numbers of the first differing output look like, without knowing the stage."""
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
        for sentence, view in (
            ("numbers are squares of the reference: a square root is missing", reference**2),
            (
                "numbers are square roots of the reference: a square root too many",
                np.sqrt(np.abs(reference)),
            ),
        ):
            if _same(port, view) and not _same(view, reference):
                return [sentence]
    size = float(np.abs(reference[np.isfinite(reference)]).max(initial=0))
    if result.verdict.difference < 2e-3 * size:
        return [
            "differences are small beside the numbers: rounding, half precision, or another "
            "order of sums"
        ]
    return []


def _rearranged(a):
    """(sentence, array) of simple rearrangements."""
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
    """Whether nearly all numbers of two arrays of one shape are equal up to rounding: a shift
    leaves an edge."""
    size = float(np.abs(view[np.isfinite(view)]).max(initial=0))
    return float((differences(port, view) <= 1e-5 * size).mean()) >= (0.75 if port.size > 16 else 1)


# ------------------------------------------------------------------------------- reports


def count(found):
    """Numbers of a check: outputs, ok, differing, missing, compared numbers, and how many of
    the compared arrays say little, because the reference is empty or one number throughout."""
    results = [r for stage in found for r in stage.results]
    compared = [r for r in results if r.verdict is not None]
    return {
        "stages": len(found),
        "stages_ok": sum(stage.ok for stage in found),
        "outputs": len(results),
        "ok": sum(r.ok for r in results),
        "differing": sum(r.status in ("differs", "shape") for r in results),
        "missing": sum(r.status == "missing" for r in results),
        "unreadable": sum(r.status == "unreadable" for r in results),
        "compared_numbers": sum(r.verdict.n for r in compared),
        "non_vacuous": sum(_says_something(r.reference) for r in compared),
        "vacuous": sum(not _says_something(r.reference) for r in compared),
    }


def _says_something(reference):
    """A single number, or numbers that are not all the same."""
    return reference.size == 1 or (
        reference.size > 1 and bool((reference != reference.flat[0]).any())
    )


def first_failing(found):
    """The first StageResult that is not ok, or None."""
    return next((stage for stage in found if not stage.ok), None)


def as_json(found, extra, bundle, port_folder, status):
    """The report as report.schema.json describes it."""
    failing = first_failing(found)
    return {
        "format": "tiled-ref golden report",
        "version": FORMAT_VERSION,
        "port": str(port_folder),
        "reference": str(bundle.folder),
        "reference_sha256": bundle.digest,
        "exit_status": status,
        "first_failing_stage": failing and failing.name,
        "likely_cause": failing.causes[0] if failing and failing.causes else None,
        "counts": count(found),
        "extra_files": extra,
        "stages": [
            {
                "name": stage.name,
                "ok": stage.ok,
                "likely_causes": stage.causes,
                "outputs": [_output_json(r) for r in stage.results],
            }
            for stage in found
        ],
    }


def _output_json(result):
    entry = {
        "case": result.case,
        "output": result.output,
        "status": result.status,
        "compare": result.rule.as_json(),
        "message": result.message,
    }
    verdict = result.verdict
    if verdict is not None:
        entry.update(
            compared=verdict.n,
            beyond=verdict.n_beyond,
            largest_difference=_number(verdict.difference),
            ulps=verdict.ulps,
            index=None if verdict.worst is None else list(verdict.worst),
            reference=_number(result.reference[verdict.worst]) if verdict.n else None,
            port=_number(result.port[verdict.worst]) if verdict.n else None,
        )
    return entry


def _number(value):
    """A JSON number, or the name of what is none."""
    value = np.asarray(value).item()
    if isinstance(value, float) and not np.isfinite(value):
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    return value


def as_text(found, extra, bundle):
    """The report as people read it."""
    lines = []
    for place, stage in enumerate(found, start=1):
        lines += _stage_lines(f"{place}/{len(found)}", stage)
    counts = count(found)
    lines.append("")
    lines.append(
        f"{counts['ok']} of {counts['outputs']} outputs agree; {counts['compared_numbers']:,} "
        f"numbers compared, in {counts['non_vacuous']} arrays that say something and "
        f"{counts['vacuous']} that are empty or one number throughout; {counts['missing']} "
        f"missing, {counts['unreadable']} unreadable"
    )
    if extra:
        shown = ", ".join(extra[:5]) + (", ..." if len(extra) > 5 else "")
        lines.append(
            f"{len(extra)} files are not part of the bundle and were not compared: {shown}"
        )
    failing = first_failing(found)
    if failing is None:
        lines.append(f"OK: all {len(found)} stages agree with {bundle.folder}")
    else:
        lines.append(f"FIRST FAILING STAGE: {failing.name} ({failing.title})")
        if failing.causes:
            lines.append(f"LIKELY CAUSE: {failing.causes[0]}")
    return "\n".join(lines) + "\n"


def _stage_lines(place, stage):
    lines = ["", f"{place}  {stage.name}: {stage.title}"]
    failed = [r for r in stage.results if not r.ok]
    for result in failed[:3] or _largest(stage.results):
        lines += _output_lines(result)
    if len(failed) > 3:
        lines.append(f"  and {len(failed) - 3} more outputs that fail")
    if stage.ok:
        lines.append(f"  OK, {len(stage.results)} outputs")
        return lines
    lines.append(f"  FAIL, {len(failed)} of {len(stage.results)} outputs")
    lines += [f"  likely cause: {cause}" for cause in stage.causes[:3]]
    return lines


def _largest(results):
    """The output with the largest difference beside what is allowed, as a list of one."""
    compared = [r for r in results if r.verdict is not None and r.verdict.n]
    return [max(compared, key=lambda r: (r.verdict.difference, r.verdict.n))] if compared else []


def _output_lines(result):
    head = f"  {result.case}/{result.output}"
    if result.verdict is None:
        return [f"{head}: {result.status}: {result.message}"]
    verdict = result.verdict
    lines = [f"{head}, allowed: {result.rule}"]
    for name, array in (("reference", result.reference), ("port", result.port)):
        values = " ".join(f"{v:>14.8g}" for v in array.reshape(-1)[:FIRST].tolist())
        lines.append(f"    first values  {name:<9} {values}")
    steps = ""
    if verdict.ulps is not None and verdict.ulps <= MANY:
        steps = f" ({verdict.ulps} ulp at most)"
    where = ", ".join(str(k) for k in verdict.worst)
    lines.append(
        f"    largest difference {verdict.difference:.6g} at ({where}): reference "
        f"{result.reference[verdict.worst]:.9g}, port {result.port[verdict.worst]:.9g}{steps}; "
        f"{verdict.n_beyond} of {verdict.n} beyond what is allowed"
    )
    return lines
