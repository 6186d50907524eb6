"""Write a bundle of golden files; FORMAT.md describes them."""

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
from . import npy
from .bundle import DOCUMENTS, EDITION, FORMAT, FORMAT_VERSION, Bundle, json_number, output_path
from .compare import BITS, ROOM, compare, differences, output_rounding, rounded_inputs, ulps_apart
from .numbers import SEED
from .stage import FLAGS, File, Weights

INLINE = 64  # arrays up to this size are stored in the manifest, without a file


def export(folder, stages, models, command):
    """Write a bundle.

    Parameters: folder, created if missing; stages, list of Stage; models,
    {name: {tensor: array}}; command, the command line of the export.
    Returns the manifest. An existing bundle in the folder is replaced.
    Raises InputError if the folder is neither empty nor a bundle, or cannot be written;
    RuntimeError if the package's own code and the formulas disagree beyond the compare
    class: one of them is wrong, and nothing is written.
    """
    folder = Path(folder)
    make_folder(folder)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # fixes the summation order
    try:
        return _export(folder, stages, models, command)
    finally:
        torch.set_num_threads(n_threads)


def _export(folder, stages, models, command):
    old = _old_files(folder)
    files = {}  # path: bytes; nothing is written before everything is computed
    entries = {
        model: {
            name: _array_entry(files, f"models/{model}/{name}.npy", tensor, inline=0)
            for name, tensor in sorted(tensors.items())
        }
        for model, tensors in sorted(models.items())
    }
    listed = [_stage_entry(files, stage, models) for stage in stages]
    used = {flag for stage in listed for case in stage["cases"] for flag in case["flags"]}
    manifest = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "edition": EDITION,
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
    for name in set(DOCUMENTS) - {"cases.txt"}:
        files[name] = (resources.files(__package__) / "reference" / name).read_bytes()
    cases = [_case_text(stage["name"], case) for stage in listed for case in stage["cases"]]
    files["cases.txt"] = "".join(cases).encode()
    text = _text(manifest)
    for file in old:  # the manifest first: an incomplete bundle has none
        file.unlink(missing_ok=True)
    for path, data in files.items():
        npy.write_bytes(folder / path, data)
    with atomic_write(folder / "manifest.json") as file:
        file.write(text)
    return manifest


def _text(manifest):
    """Format as JSON, with each list of numbers or words on one line."""
    text = json.dumps(manifest, indent=1, allow_nan=False)
    flat = re.sub(r"\[[^][{}]*\]", lambda m: " ".join(m[0].split()), text)
    return flat.replace("[ ", "[").replace(" ]", "]") + "\n"


def _old_files(folder):
    """Return the files of an earlier export, the manifest first; InputError if unclear."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        if any(folder.iterdir()):
            raise InputError(
                f"the folder {folder} is not empty and holds no golden files; choose another one"
            )
        return []
    try:
        bundle = Bundle(folder)
    except InputError as error:
        raise InputError(
            f"the folder {folder} holds a bundle that cannot be read, so its files cannot be "
            "replaced; remove the folder or choose another one"
        ) from error
    return [manifest, *(bundle.path(path) for path in sorted(bundle.paths()))]


def _stage_entry(files, stage, models):
    return {
        "name": stage.name,
        "title": stage.title,
        "function": stage.function,
        "source": stage.source,
        "cases": [_case_entry(files, stage, case, models) for case in stage.cases()],
    }


def _case_entry(files, stage, case, models):
    where = f"{stage.name}/{case.name}"
    inputs, given = {}, dict(case.inputs)
    for name, value in case.inputs.items():
        if isinstance(value, Weights):
            inputs[name] = {"model": value.model}
            given[name] = models[value.model]
        elif isinstance(value, File):
            path, data = f"{where}.in.{value.name}", value.data
            inputs[name] = {"path": path, "bytes": len(data), "sha256": npy.sha256(data)}
            files[path] = data
        else:
            inputs[name] = _array_entry(files, f"{where}.in.{name}.npy", value)
    results, truth = stage.compute(given), stage.formula(given)
    shorter = {key: stage.formula(rounded_inputs(given, bits)) for key, bits in BITS.items()}
    outputs = {}
    for name, value in results.items():
        rule = case.compare.get(name, stage.outputs[name]).capped(value)
        entry = _array_entry(files, output_path(stage.name, case.name, name), value)
        entry["compare"] = {**rule.as_json(), **_measure(where, name, value, truth[name], rule)}
        room = {key: _room(truth[name], shorter[key].get(name), bits) for key, bits in BITS.items()}
        if entry["dtype"] == "<f4" and all(room.values()) and name != "bank":  # a choice
            entry["compare"]["reduced"] = room
        outputs[name] = entry
    return {
        "id": where,
        "name": case.name,
        "flags": list(case.flags),
        "comment": case.comment,
        "inputs": inputs,
        "outputs": outputs,
    }


def _room(truth, shorter, bits):
    """Return ROOM times the largest difference plus the output's rounding, rounded up to two
    digits; at most a third of the largest value, so that zeros are no answer; 0 if not finite."""
    if not np.size(truth):
        return 0
    room = ROOM * float(differences(shorter, truth).max()) + output_rounding(truth, bits)
    room = min(room, output_rounding(truth, 0) / 3)
    return float(f"{room * 1.05:.1e}") if np.isfinite(room) else 0


def _measure(where, name, value, truth, rule):
    """Return {"measured": largest difference from the float64 formula}, in ulps for class ulp,
    rounded to two digits; for class boundary also the share beyond close."""
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


def _array_entry(files, path, array, inline=INLINE):
    array = np.asarray(array)
    entry = {"dtype": array.dtype.newbyteorder("<").str, "shape": list(array.shape)}
    data = npy.encode(array)
    if array.size <= inline:
        entry["values"] = [json_number(value) for value in array.reshape(-1).tolist()]
    else:
        entry["path"] = path
        files[path] = data
    entry["sha256"] = npy.sha256(data)
    return entry


def _case_text(stage, case):
    """Format a case for cases.txt: "case STAGE NAME INPUTS", then a line per input with
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


def _counts(stages):
    """Count the stages, cases, output arrays and numbers to compare."""
    cases = [case for stage in stages for case in stage["cases"]]
    outputs = [entry for case in cases for entry in case["outputs"].values()]
    numbers = sum(int(np.prod(entry["shape"], dtype=np.int64)) for entry in outputs)
    return {"stages": len(stages), "cases": len(cases), "outputs": len(outputs), "numbers": numbers}
