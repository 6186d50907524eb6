"""Compare a port's outputs with a bundle: every output of every case by its compare class."""

import os
import runpy
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..support.errors import InputError
from . import npy
from .bundle import DOCUMENTS, REFERENCE, output_path
from .causes import likely_causes
from .compare import Compare, Verdict, compare


@dataclass
class Result:
    """The result of comparing one output of a case by a rule."""

    case: str  # names, as in the bundle
    output: str
    rule: Compare
    reference: np.ndarray  # the bundle's array
    port: np.ndarray = None  # the port's, None if missing or unreadable
    status: str = "ok"  # or "differs", "missing", "unreadable" or "shape"
    message: str = ""  # a sentence for the last three statuses
    verdict: Verdict = None  # if the arrays could be compared

    @property
    def ok(self):
        """True if the output counts as equal."""
        return self.status == "ok"


@dataclass
class StageResult:
    """The results of a stage, with its name and title."""

    name: str
    title: str
    results: list = field(default_factory=list)  # of Result
    causes: list = field(default_factory=list)  # possible causes, the likeliest first

    @property
    def ok(self):
        """True if anything was compared and all outputs are equal."""
        return all(r.ok for r in self.results) and any(r.reference.size for r in self.results)

    @property
    def left_out(self):
        """True if the port wrote none of its outputs."""
        return all(r.status == "missing" for r in self.results)


def check(port_folder, bundle, stages, chosen=None, arithmetic="float32"):
    """Compare a port's folder with a bundle.

    Parameters
    ----------
    port_folder : Path, an existing folder with <stage>/<case>.out.<name>.npy
    bundle : Bundle, the reference
    stages : {name: Stage}, the source of known mistakes
    chosen : list of str, optional
        Names of stages, or of models ("padim" for padim.embedding and so on); default: all.
    arithmetic : the port's, see Compare.in_arithmetic

    Returns
    -------
    list of StageResult, in bundle order; extra, sorted paths of the .npy files in
    the port's folder that match no array of the bundle.

    Raises InputError for an unknown stage, a damaged reference, and a port that is the reference.
    """
    outputs = {output_path(*names) for names in bundle.outputs()}
    files = _files(port_folder)
    _refuse_the_reference(port_folder, files, bundle, outputs)
    found = []
    for stage in _choose(bundle, chosen):
        result = StageResult(stage["name"], stage["title"])
        for case in stage["cases"]:
            for name, entry in case["outputs"].items():
                reference = bundle.array(entry)
                rule = Compare.from_json(entry["compare"]).in_arithmetic(arithmetic)
                one = Result(case["name"], name, rule, reference)
                _compare_output(one, port_folder / output_path(stage["name"], one.case, name))
                result.results.append(one)
        if not result.ok:
            cases = {case["name"]: case for case in stage["cases"]}
            known = stages.get(result.name)
            try:
                result.causes = likely_causes(known, result.results, bundle, cases)
            except InputError:
                raise
            except (ArithmeticError, LookupError, TypeError, ValueError) as error:
                raise bundle.damaged(f"mistakes of {result.name}: {error!r}") from error
        found.append(result)
    arrays = {f.relative_to(port_folder).as_posix() for f in files if f.name.endswith(".npy")}
    return found, sorted(arrays - outputs)


def _files(folder):
    """Return the files in a folder at any depth, also behind links; each folder once."""
    found, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        if _identity(place) in seen:
            folders[:] = names = []
        seen.add(_identity(place))
        found += [Path(place, name) for name in sorted(names)]
    return found


def _refuse_the_reference(folder, files, bundle, outputs):
    """Raise InputError if a port's folder, which has these files, holds a reference file under a
    name that is not an output's, a manifest or document anywhere, or an output that is, or links
    to, a file of the reference or of the packaged one."""
    paths = {folder / path for path in bundle.paths() - outputs}
    theirs = [bundle.path(path) for path in bundle.paths()] + list(REFERENCE.rglob("*"))
    theirs = {_identity(file) for file in theirs if os.path.isfile(file)}
    for file in files:
        named = file in paths or file.name in ("manifest.json", *DOCUMENTS)
        if named or _identity(file) in theirs:
            raise InputError(
                f"{file} belongs to the reference and proves nothing about a port; put the "
                "port's outputs in a separate folder"
            )


def _identity(file):
    try:
        status = os.stat(file)
    except OSError:  # a dangling link
        return None
    return status.st_dev, status.st_ino


def _choose(bundle, chosen):
    if not chosen:
        return bundle.stages
    names = [stage["name"] for stage in bundle.stages]
    for word in chosen:
        if not any(f"{name}.".startswith(f"{word}.") for name in names):
            raise InputError(f"no stage {word!r} in {bundle.file}; choose from {', '.join(names)}")
    starts = tuple(f"{word}." for word in chosen)
    return [stage for stage in bundle.stages if f"{stage['name']}.".startswith(starts)]


def _compare_output(result, file):
    """Read the port's array from a file; set array, status, and message or verdict."""
    if not os.path.isfile(file):
        result.status, result.message = "missing", f"no such file: {file}"
        return
    try:
        most = 2**17 + 16 * result.reference.nbytes  # the longest header; 8 times in float64
        array = result.port = npy.read(file, most)
    except InputError as error:
        result.status, result.message = "unreadable", str(error)
        return
    reference = result.reference
    if array.shape != reference.shape or (array.dtype.kind == "f") != (reference.dtype.kind == "f"):
        result.status = "shape"
        result.message = (
            f"{file} holds {array.dtype.str} of shape {list(array.shape)}, the reference "
            f"{reference.dtype.str} of shape {list(reference.shape)}"
        )
        return
    result.verdict = compare(array, reference, result.rule)
    if not result.verdict.ok:
        result.status = "differs"


if __name__ == "__main__":
    sys.argv.insert(1, "check")
    runpy.run_module("tiled_ref.golden", run_name="__main__")
