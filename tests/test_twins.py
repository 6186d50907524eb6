"""Every kernel has a public twin, named at the head of its file and in kernels/README.md."""

import importlib
import inspect
import re

import pytest
from sources import ROOT

from tiled_ref.support import arrays

KERNELS = sorted((ROOT / "kernels").glob("*.pyx"))
ROW = re.compile(r"^\| `(\w+)\.pyx` \| ([^|]+) \| ([^|]+) \|", re.MULTILINE)
TABLE = {
    name: ([re.findall(r"\w+", f)[0] for f in functions.split(",")], re.findall(r"`([\w.]+)`", twins))
    for name, functions, twins in ROW.findall((ROOT / "kernels" / "README.md").read_text("utf-8"))
}


def resolve(name):
    """"metrics.label_mask" -> the function."""
    parts = ["tiled_ref", *name.split(".")]
    for n in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for part in parts[n:]:
            found = getattr(found, part)
        return found


def test_the_table_has_all_kernels_and_all_their_functions():
    assert set(TABLE) == {path.stem for path in KERNELS}
    assert {f"_{name}" for name in TABLE} == set(arrays.KERNELS)
    for path in KERNELS:
        public = re.findall(r"^def (\w+)\(", path.read_text("utf-8"), re.MULTILINE)
        named = [name for name in TABLE[path.stem][0] if name in public]
        assert named == public, path.name


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.stem)
def test_the_twin_is_public_and_named_at_the_head_of_the_kernel(path):
    head = path.read_text("utf-8")[:600]
    functions, twins = TABLE[path.stem]
    for twin in twins:
        module, _, name = twin.rpartition(".")
        function = resolve(twin)
        assert inspect.isfunction(function) and not name.startswith("_")
        assert re.search(rf"\b{name}\b", head), f"{path.name} does not name {name} at its head"
        assert "impl" not in inspect.signature(function).parameters
    if len(functions) == 1:
        assert twins[0].rpartition(".")[2] == functions[0]
