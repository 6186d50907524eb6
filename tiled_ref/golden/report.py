"""The report of a check, as text and as JSON."""

from ..support.errors import one_line
from .bundle import FORMAT_VERSION, json_number

FIRST = 4  # values shown side by side
MANY = 10_000  # ulps; larger numbers are not shown


def count(found):
    """Count the results of a check. An array is vacuous, because comparing it proves little, if
    the reference is empty or constant."""
    results = [r for stage in found for r in stage.results]
    compared = [r for r in results if r.verdict is not None]
    vacuous = sum(_is_vacuous(r.reference) for r in compared)
    return {
        "stages": len(found),
        "stages_ok": sum(stage.ok for stage in found),
        "outputs": len(results),
        "ok": sum(r.ok for r in results),
        "differing": sum(r.status in ("differs", "shape") for r in results),
        "missing": sum(r.status == "missing" for r in results),
        "unreadable": sum(r.status == "unreadable" for r in results),
        "compared_numbers": sum(r.verdict.n for r in compared),
        "non_vacuous": len(compared) - vacuous,
        "vacuous": vacuous,
    }


def _is_vacuous(reference):
    numbers = reference.reshape(-1)
    return numbers.size != 1 and not (numbers != numbers[:1]).any()


def first_failing(found):
    """Return the first failing StageResult, preferably not one that is left out; or None."""
    failing = [stage for stage in found if not stage.ok]
    return min(failing, key=lambda stage: stage.left_out, default=None)


def unchecked(found, bundle):
    """Return the names of the bundle's stages that were not compared."""
    names = {stage.name for stage in found}
    return [stage["name"] for stage in bundle.stages if stage["name"] not in names]


def as_json(found, extra, bundle, port_folder, status, arithmetic):
    """Return the report in the format of report.schema.json."""
    failing = first_failing(found)
    return {
        "format": "tiled-ref golden report",
        "version": FORMAT_VERSION,
        "port": str(port_folder),
        "reference": str(bundle.folder),
        "reference_sha256": bundle.digest,
        "reference_edition": bundle.edition,
        "arithmetic": arithmetic,
        "exit_status": status,
        "first_failing_stage": failing and failing.name,
        "likely_cause": failing.causes[0] if failing and failing.causes else None,
        "counts": count(found),
        "extra_files": extra,
        "stages_not_checked": unchecked(found, bundle),
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
            largest_difference=json_number(verdict.difference),
            ulps=verdict.ulps,
            index=None if verdict.worst is None else list(verdict.worst),
            reference=json_number(result.reference[verdict.worst].item()) if verdict.n else None,
            port=json_number(result.port[verdict.worst].item()) if verdict.n else None,
        )
    return entry


def as_text(found, extra, bundle, arithmetic):
    """Return the report as text."""
    lines = []
    for place, stage in enumerate(found, start=1):
        lines += _stage_lines(f"{place}/{len(found)}", stage)
    counts = count(found)
    lines += [
        "",
        f"{counts['ok']} of {counts['outputs']} outputs agree; {counts['compared_numbers']:,} "
        f"numbers compared, in {counts['non_vacuous']} informative arrays and "
        f"{counts['vacuous']} that are empty or constant; {counts['missing']} "
        f"missing, {counts['unreadable']} unreadable",
    ]
    if unchecked(found, bundle):
        lines.append(f"not checked: {', '.join(unchecked(found, bundle))}")
    if extra:
        names = ", ".join(map(one_line, extra))
        lines.append(f"FAIL, {len(extra)} files are not outputs of the bundle: {names}")
    failing = first_failing(found)
    if failing is None and not extra:
        lines.append(
            f"OK: all {len(found)} stages agree with {one_line(bundle.folder)} (edition "
            f"{bundle.edition}, SHA-256 {bundle.digest}), in {arithmetic}"
        )
    if failing:
        lines.append(f"FIRST FAILING STAGE: {failing.name} ({failing.title})")
        if failing.causes:
            lines.append(f"LIKELY CAUSE: {failing.causes[0]}")
    return "\n".join(lines) + "\n"


def _stage_lines(place, stage):
    lines = ["", f"{place}  {stage.name}: {stage.title}"]
    missing = [f"{r.case}/{r.output}" for r in stage.results if r.status == "missing"]
    failed = [r for r in stage.results if not r.ok and r.status != "missing"]
    for result in failed[:3] or _largest(stage.results):
        lines += _output_lines(result)
    if len(failed) > 3:
        lines.append(f"  and {len(failed) - 3} more failing outputs")
    if stage.ok:
        lines.append(f"  OK, {len(stage.results)} outputs")
        return lines
    if missing:
        lines.append(f"  missing: {', '.join(missing)}")
    lines.append(f"  FAIL, {len(failed) + len(missing)} of {len(stage.results)} outputs")
    lines += [f"  likely cause: {cause}" for cause in stage.causes[:3]]
    return lines


def _largest(results):
    """Return the compared output with the largest difference, in a list."""
    compared = [r for r in results if r.verdict is not None and r.verdict.n]
    return [max(compared, key=lambda r: (r.verdict.difference, r.verdict.n))] if compared else []


def _output_lines(result):
    head = f"  {result.case}/{result.output}"
    if result.verdict is None:
        return [f"{head}: {result.status}: {one_line(result.message)}"]
    verdict = result.verdict
    lines = [f"{head}, allowed: {result.rule}"]
    for name, array in (("reference", result.reference), ("port", result.port)):
        values = " ".join(f"{v:>14.8g}" for v in array.reshape(-1)[:FIRST].tolist())
        lines.append(f"    first values  {name:<9} {values}")
    few = verdict.ulps is not None and verdict.ulps <= MANY
    steps = f" ({verdict.ulps} ulp at most)" if few else ""
    where = ", ".join(str(k) for k in verdict.worst)
    lines.append(
        f"    largest difference {verdict.difference:.6g} at ({where}): reference "
        f"{result.reference[verdict.worst]:.9g}, port {result.port[verdict.worst]:.9g}{steps}; "
        f"{verdict.n_beyond} of {verdict.n} beyond the tolerance"
    )
    return lines
