"""Comparing what a port computed with a bundle: every output of every case by its class."""

from dataclasses import dataclass, field

import numpy as np

from ..support.errors import InputError
from . import npy
from .bundle import Bundle, output_path
from .causes import likely_causes
from .compare import Compare, Verdict, compare


@dataclass
class Result:
    """One compared output of a case, by a rule."""

    case: str  # names, as in the bundle
    output: str
    rule: Compare
    reference: np.ndarray  # the bundle's array
    port: np.ndarray = None  # the port's, None where it is missing or unreadable
    status: str = "ok"  # or "differs", "missing", "unreadable" or "shape"
    message: str = ""  # a sentence where it is one of the last three
    verdict: Verdict = None  # where there was something to compare

    @property
    def ok(self):
        """Whether the output counts as equal."""
        return self.status == "ok"


@dataclass
class StageResult:
    """A stage after the comparison, by its name and title."""

    name: str
    title: str
    results: list = field(default_factory=list)  # of Result
    causes: list = field(default_factory=list)  # what may be wrong, the likeliest first

    @property
    def ok(self):
        """Whether something was compared and everything is equal."""
        return all(r.ok for r in self.results) and any(r.reference.size for r in self.results)


def check(port_folder, bundle, stages, chosen=None):
    """Compare a port's folder with a bundle.

    Parameters
    ----------
    port_folder : Path, an existing folder with <stage>/<case>.out.<name>.npy. Small outputs
        may lie in its manifest.json instead, as in a bundle
    bundle : Bundle, the reference
    stages : {name: Stage}, for the likely causes
    chosen : list of str, optional
        Names of stages, or of models ("padim" for padim.embedding and so on); default: all.

    Returns
    -------
    list of StageResult, in the order of the bundle; extra, sorted paths of the .npy files in
    the port's folder that are no array of the bundle.

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
    known = bundle.paths() | {output_path(*names) for names in bundle.outputs()}
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
    """The outputs of a port: files, and small ones in its own manifest where it has one."""

    def __init__(self, folder):
        self.folder = folder
        self.bundle = Bundle(folder) if (folder / "manifest.json").is_file() else None
        self.entries = self.bundle.outputs() if self.bundle else {}

    def output(self, *names):
        """The array, or None; InputError where a file is there and cannot be read."""
        file = self.folder / output_path(*names)
        if file.is_file():
            return npy.read(file)
        entry = self.entries.get(names, {})
        return self.bundle.array(entry) if "values" in entry else None


def _compare_output(result, port, stage):
    """Fill in the port's array, the status, and the message or verdict."""
    names, reference = (stage, result.case, result.output), result.reference
    file = port.folder / output_path(*names)
    try:
        result.port = port.output(*names)
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
