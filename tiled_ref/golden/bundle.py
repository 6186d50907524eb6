"""A bundle of golden files: writing it, and reading it back with distrust.

    DIR/manifest.json                     everything about every array; see FORMAT.md
    DIR/cases.txt                         the cases and their inputs again, for ports without
                                          a JSON reader
    DIR/<stage>/<case>.in.<name>.npy      what the stage is given
    DIR/<stage>/<case>.out.<name>.npy     what it makes of it
    DIR/models/<model>/<tensor>.npy       weights that several cases share
    DIR/FORMAT.md, *.schema.json          how to read all this

Arrays of at most INLINE numbers are in the manifest (inputs in cases.txt too) and have no file.
"""

import contextlib
import json
import platform
import re
from importlib import resources
from pathlib import Path

import numpy as np
import torch
import torchvision

from .. import __version__
from ..support.errors import InputError
from ..support.files import atomic_write, make_folder
from . import FORMAT_VERSION, npy
from .compare import Compare, compare, differences, ulps_apart
from .numbers import SEED
from .stage import FLAGS, File, Weights

FORMAT = "tiled-ref golden files"
INLINE = 64  # numbers that an array may have to lie in the manifest itself
DOCUMENTS = ("FORMAT.md", "manifest.schema.json", "report.schema.json")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


# -------------------------------------------------------------------------------- writing


def export(folder, stages, models, command):
    """Write a bundle.

    Parameters: folder, made where it is missing, must not hold another bundle's files; stages,
    list of Stage; models, {name: {tensor: array}}; command, the command line that does this.
    Returns the manifest.
    Raises InputError where the folder is not empty and holds no bundle, or cannot be written;
    RuntimeError where the package's own code and the formulas disagree beyond the compare
    class: then one of the two is wrong and nothing must be published.
    """
    folder = Path(folder)
    make_folder(folder)
    with _one_thread():
        return _export(folder, stages, models, command)


@contextlib.contextmanager
def _one_thread():
    """torch with one thread: sums are then in one order, and small arrays gain nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _export(folder, stages, models, command):
    old = _old_files(folder)
    files = {}  # path: bytes; nothing is written before everything is computed
    entries = {
        model: {
            name: _write(files, f"models/{model}/{name}.npy", tensor, inline=0)
            for name, tensor in sorted(tensors.items())
        }
        for model, tensors in sorted(models.items())
    }
    listed = [_write_stage(files, stage, models) for stage in stages]
    used = {flag for stage in listed for case in stage["cases"] for flag in case["flags"]}
    manifest = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "command": command,
        "seed": SEED,
        "versions": {
            "tiled_ref": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
        "counts": _counts(listed),
        "flags": {flag: FLAGS[flag] for flag in sorted(used)},
        "models": entries,
        "stages": listed,
    }
    for name in DOCUMENTS:
        files[name] = (resources.files(__package__) / "reference" / name).read_bytes()
    cases = [_case_text(stage["name"], case) for stage in listed for case in stage["cases"]]
    files["cases.txt"] = "".join(cases).encode()
    text = _text(manifest)
    for file in old:  # the manifest first: half a bundle has none
        file.unlink(missing_ok=True)
    for path, data in files.items():
        npy.write_bytes(folder / path, data)
    with atomic_write(folder / "manifest.json") as file:
        file.write(text)
    return manifest


def _text(manifest):
    """JSON with lists of numbers and words on one line."""
    text = json.dumps(manifest, indent=1, allow_nan=False)
    flat = re.sub(r"\[[^][{}]*\]", lambda m: " ".join(m[0].split()), text)
    return flat.replace("[ ", "[").replace(" ]", "]") + "\n"


def _old_files(folder):
    """What an earlier export wrote, the manifest first; InputError where that is not clear."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        if any(folder.iterdir()):
            raise InputError(
                f"the folder {folder} is not empty and holds no golden files; name another one"
            )
        return []
    try:
        bundle = Bundle(folder)
    except InputError as error:
        raise InputError(
            f"the folder {folder} holds a bundle that cannot be read, so its files cannot be "
            "replaced; remove the folder or name another one"
        ) from error
    return [manifest, *(bundle.path(path) for path in sorted(bundle.paths()))]


def _write_stage(files, stage, models):
    return {
        "name": stage.name,
        "title": stage.title,
        "function": stage.function,
        "source": stage.source,
        "cases": [_write_case(files, stage, case, models) for case in stage.cases()],
    }


def _write_case(files, stage, case, models):
    where = f"{stage.name}/{case.name}"
    inputs = {}
    for name, value in case.inputs.items():
        if isinstance(value, Weights):
            inputs[name] = {"model": value.model}
        elif isinstance(value, File):
            inputs[name] = _write_file(files, f"{where}.in.{value.name}", value.data)
        else:
            inputs[name] = _write(files, f"{where}.in.{name}.npy", value)
    given = {
        name: models[value.model] if isinstance(value, Weights) else value
        for name, value in case.inputs.items()
    }
    results, truth = stage.compute(given), stage.formula(given)
    outputs = {}
    for name, value in results.items():
        rule = case.compare.get(name, stage.outputs[name])
        entry = _write(files, output_path(stage.name, case.name, name), value)
        entry["compare"] = {**rule.as_json(), **_measure(where, name, value, truth[name], rule)}
        outputs[name] = entry
    return {
        "id": where,
        "name": case.name,
        "flags": list(case.flags),
        "comment": case.comment,
        "inputs": inputs,
        "outputs": outputs,
    }


def _measure(where, name, value, truth, rule):
    """{"measured": the largest difference from the float64 formula}, in ulps for that class,
    rounded up to two digits; for a boundary also the share beyond close."""
    value, truth = np.asarray(value), np.asarray(truth)
    if value.shape != truth.shape:
        raise RuntimeError(
            f"{where}/{name}: the formula gives shape {truth.shape}, not {value.shape}"
        )
    cast = truth.astype(value.dtype)
    verdict = compare(cast if rule.kind in ("exact", "ulp") else truth, value, rule)
    if not verdict.ok:
        raise RuntimeError(
            f"{where}/{name}: package and formula differ by {verdict.difference:g} at "
            f"{verdict.worst}, beyond {rule}; one of the two is wrong"
        )
    if not value.size:
        return {"measured": 0}
    if rule.kind == "ulp":
        return {"measured": int(ulps_apart(cast, value).max())}
    largest = float(differences(truth, value).max()) if rule.kind != "exact" else 0
    measured = {"measured": float(f"{largest:.1e}") if largest else 0}
    if rule.kind == "boundary":
        measured["measured_share"] = float(f"{verdict.n_beyond / value.size:.1e}")
    return measured


def output_path(stage, case, name):
    """Where an output lies, relative to the folder of a bundle or of a port."""
    return f"{stage}/{case}.out.{name}.npy"


def _write(files, path, array, inline=INLINE):
    array = np.asarray(array)
    entry = {"dtype": array.dtype.newbyteorder("<").str, "shape": list(array.shape)}
    data = npy.encode(array)
    if array.size <= inline:
        entry["values"] = [_json_number(value) for value in array.reshape(-1).tolist()]
    else:
        entry["path"] = path
        files[path] = data
    entry["sha256"] = npy.sha256(data)
    return entry


def _json_number(value):
    """What JSON cannot say is "NaN", "Infinity" or "-Infinity"."""
    if isinstance(value, float) and not np.isfinite(value):
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    return value


def _case_text(stage, case):
    """The lines of a case in cases.txt: "case STAGE NAME INPUTS", then a line for each input,
    its name and either a path, or dtype, number of axes, sides and values."""
    lines = [f"case {stage} {case['name']} {len(case['inputs'])}"]
    for name, entry in case["inputs"].items():
        if "model" in entry:
            words = [f"models/{entry['model']}"]
        elif "path" in entry:
            words = [entry["path"]]
        else:
            shape, values = entry["shape"], entry["values"]
            values = [int(v) if isinstance(v, bool) else v for v in values]
            words = [entry["dtype"], len(shape), *shape, *values]
        lines.append(" ".join(str(word) for word in [name, *words]))
    return "\n".join(lines) + "\n"


def _write_file(files, path, data):
    files[path] = data
    return {"path": path, "bytes": len(data), "sha256": npy.sha256(data)}


def _counts(stages):
    """How many stages, cases, output arrays and numbers to compare there are."""
    cases = [case for stage in stages for case in stage["cases"]]
    outputs = [entry for case in cases for entry in case["outputs"].values()]
    numbers = sum(int(np.prod(entry["shape"], dtype=np.int64)) for entry in outputs)
    return {"stages": len(stages), "cases": len(cases), "outputs": len(outputs), "numbers": numbers}


# -------------------------------------------------------------------------------- reading


class Bundle:
    """A bundle on disk.

    Parameters: folder.
    Attributes: folder; manifest, the dict.
    Raises InputError, naming the file, where the folder or the manifest is missing, damaged,
    of a newer format, or names files outside the folder.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"there is no folder {self.folder}; export a bundle to it first")
        self.file = self.folder / "manifest.json"
        if not self.file.is_file():
            raise InputError(
                f"the folder {self.folder} has no manifest.json, so it is no bundle of golden "
                "files; export one with python -m tiled_ref.golden export DIR"
            )
        data = npy.read_bytes(self.file)
        self.digest = npy.sha256(data)
        try:
            self.manifest = json.loads(data.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise self._damaged(f"not complete JSON: {error}") from error
        self._check()
        self._arrays, self._inputs, self._outputs = {}, {}, None

    @property
    def stages(self):
        """The manifest's stages, a list of dict."""
        return self.manifest["stages"]

    def path(self, relative):
        """The file of a path of the manifest; InputError where it lies outside the folder."""
        parts = relative.split("/") if isinstance(relative, str) else [""]
        inside = all(NAME.fullmatch(part) for part in parts)
        file = self.folder.joinpath(*parts) if inside else None
        if not inside or not file.resolve().is_relative_to(self.folder.resolve()):
            raise self._damaged(f"it names the path {relative!r} outside its folder")
        return file

    def paths(self):
        """Every path that the manifest names, a set."""
        entries = [e for tensors in self.manifest["models"].values() for e in tensors.values()]
        for stage in self.stages:
            for case in stage["cases"]:
                entries += [*case["inputs"].values(), *case["outputs"].values()]
        return {entry["path"] for entry in entries if "path" in entry}

    def small_output(self, stage, case, name):
        """The array of an output that lies in the manifest itself, or None."""
        if self._outputs is None:
            self._outputs = {
                (s["name"], c["name"], key): entry
                for s in self.stages
                for c in s["cases"]
                for key, entry in c["outputs"].items()
                if "values" in entry
            }
        entry = self._outputs.get((stage, case, name))
        return None if entry is None else self.array(entry)

    def array(self, entry):
        """What an entry of the manifest stands for.

        Returns an array, or the bytes of a file that is no array.
        Raises InputError where it is missing, or its SHA-256, kind of number or shape are not
        those of the manifest.
        """
        if "values" in entry:
            return self._inline(entry)
        file = self.path(entry["path"])
        if file in self._arrays:
            return self._arrays[file]
        data = npy.read_bytes(file)
        if npy.sha256(data) != entry["sha256"]:
            raise InputError(
                f"{file} has not the SHA-256 that {self.file} states; the reference has been "
                "changed or damaged, get or export it again"
            )
        if "bytes" in entry:
            return data
        array = npy.decode(data, file)
        if array.dtype.str != entry["dtype"] or list(array.shape) != entry["shape"]:
            raise InputError(
                f"{file} holds {array.dtype.str} of shape {list(array.shape)}, but {self.file} "
                f"states {entry['dtype']} of shape {entry['shape']}; export the bundle again"
            )
        self._arrays[file] = array
        return array

    def _inline(self, entry):
        """An array that lies in the manifest."""
        try:
            values = np.array([float(v) if isinstance(v, str) else v for v in entry["values"]])
            array = values.astype(entry["dtype"]).reshape(entry["shape"])
        except (ValueError, TypeError, OverflowError) as error:
            raise self._damaged(
                f"the values {entry['values']} are not {entry['dtype']} of shape {entry['shape']}"
            ) from error
        if npy.sha256(npy.encode(array)) != entry["sha256"]:
            raise self._damaged(f"the values {entry['values']} have not the SHA-256 stated")
        return array

    def inputs(self, case):
        """The inputs of a case of this manifest as Stage.compute takes them."""
        if id(case) in self._inputs:
            return self._inputs[id(case)]
        inputs = self._inputs[id(case)] = {}
        for name, entry in case["inputs"].items():
            if "model" in entry:
                tensors = self.manifest["models"][entry["model"]]
                inputs[name] = {key: self.array(tensor) for key, tensor in tensors.items()}
            elif "bytes" in entry:
                inputs[name] = File(entry["path"].rpartition("/")[2], self.array(entry))
            else:
                inputs[name] = self.array(entry)
        return inputs

    def _damaged(self, why):
        return InputError(f"the manifest {self.file} is damaged ({why}); export the bundle again")

    def _check(self):
        """Everything that is used later is there, and of the kind it should be."""
        manifest = self.manifest
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise self._damaged(f'its "format" is not "{FORMAT}"')
        version = manifest.get("version")
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise self._damaged(f'its "version" is {version!r}')
        if version > FORMAT_VERSION:
            raise InputError(
                f"{self.file} has format version {version}, newer than the {FORMAT_VERSION} that "
                "this program reads; update tiled-ref"
            )
        try:
            for tensors in manifest["models"].values():
                for entry in tensors.values():
                    self._check_entry(entry)
            names = set()
            for stage in manifest["stages"]:
                stage["title"]
                for case in stage["cases"]:
                    name = f"{stage['name']}/{case['name']}"
                    if name in names or not all(NAME.fullmatch(p) for p in name.split("/", 1)):
                        raise ValueError(f"the case {name!r}")
                    names.add(name)
                    for entry in case["inputs"].values():
                        if "model" in entry:
                            manifest["models"][entry["model"]]
                        else:
                            self._check_entry(entry)
                    for key, entry in case["outputs"].items():
                        self._check_entry(entry)
                        own = output_path(stage["name"], case["name"], key)
                        if not NAME.fullmatch(key) or entry.get("path", own) != own:
                            raise ValueError(f"the path of output {name}/{key}")
                        Compare.from_json(entry["compare"])
        except InputError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            text = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else error
            raise self._damaged(text) from error

    def _check_entry(self, entry):
        if "values" not in entry:
            self.path(entry["path"])
        elif not isinstance(entry["values"], list):
            raise ValueError("values are no list")
        if not isinstance(entry["sha256"], str):
            raise ValueError("a sha256 is no text")
        if "bytes" not in entry:
            shape = entry["shape"]
            if entry["dtype"] not in npy.DTYPES:
                raise ValueError(f"the dtype {entry['dtype']!r}")
            if not isinstance(shape, list) or not all(
                isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape
            ):
                raise ValueError(f"the shape {shape!r}")
