"""Imports run one way only, from the command line down, and only to the packages named."""

import ast
import subprocess
import sys

import pytest
from sources import ROOT, SOURCES, module_of

# The house by floors. A module imports from the floors below it and, inside data/, models/ and
# golden/, from its neighbours in the same folder; never from its own floor or from above.
FLOORS = (
    {"tiled_ref", "errors", "backbone", "memory", "progress", "paper", "svg"},
    {"_arrays", "files", "tiling", "distributed", "report", "precision"},
    {"gaussian"},
    {
        "setups", "weights", "data", "features", "models", "merging", "smoothing",
        "normalization", "pixel_ranking",
    },
    {"metrics", "validation", "recipe"},
    {"render", "analysis"},
    {"saved"},
    {"ensemble", "store", "tables"},
    {"engine"},
    {"experiment", "predict"},
    {"method", "explain", "figures", "grid", "golden"},
    {"html_report"},
    {"cli"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# What a model may know: it sees a batch of small images, and no tiles, files or metrics.
NARROW = {
    "models": {"models", "backbone", "errors", "gaussian", "precision", "_arrays"},
    "data": {"data", "errors", "files"},
    "merging": {"_arrays", "errors"},
    "smoothing": {"_arrays", "errors", "gaussian"},
    "metrics": {"_arrays", "errors", "pixel_ranking"},
    "pixel_ranking": {"_arrays", "errors"},
}
PACKAGES = {"torch", "torchvision", "numpy", "PIL", "tiled_ref"}
PATHS = [*SOURCES, ROOT / "run.py"]


def room_of(module):
    """tiled_ref.models.padim -> "models"; the package itself -> "tiled_ref"."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def imports(path, inside=SOURCES):
    """(full module names inside the package, names of other packages) that a file imports."""
    own, others = set(), set()
    known = {module_of(source) for source in inside}
    package = module_of(path) if path.stem == "__init__" else module_of(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level]
            base = ".".join(
                [*(above if node.level else []), *([node.module] if node.module else [])]
            )
            names = [
                f"{base}.{a.name}" if f"{base}.{a.name}" in known else base for a in node.names
            ]
        else:
            continue
        for name in names:
            if name in known:
                own.add(name)
            else:
                others.add(name.partition(".")[0])
    return own, others


def violations(source, target):
    """Why a module must not import another one; None if it may."""
    above, below = room_of(source), room_of(target)
    for room in (above, below):
        if room not in FLOOR:
            return f"{room} has no floor: place it in tests/house/test_imports.py"
    if above in NARROW and below not in NARROW[above] and below != "tiled_ref":
        return f"{source} imports {target}: {above} knows only {sorted(NARROW[above])}"
    if above != below and FLOOR[above] <= FLOOR[below]:
        return f"{source} (floor {FLOOR[above]}) imports {target} (floor {FLOOR[below]})"
    return None


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_imports_run_one_way(path):
    own, _ = imports(path)
    assert [v for t in sorted(own) if (v := violations(module_of(path), t))] == []


@pytest.mark.parametrize("path", PATHS, ids=module_of)
def test_only_the_packages_named_are_imported(path):
    _, others = imports(path)
    strangers = others - PACKAGES - set(sys.stdlib_module_names)
    assert not strangers
    assert "PIL" not in others or path == ROOT / "tiled_ref" / "data" / "images.py"


def test_there_is_no_ring_of_imports():
    graph = {module_of(path): imports(path)[0] for path in SOURCES}
    done, todo = set(), dict(graph)
    while todo:
        free = [m for m, targets in todo.items() if not (targets - done - {m})]
        assert free, f"these import one another: {sorted(todo)}"
        done.update(free)
        for module in free:
            del todo[module]


# Without the modules that Windows lacks, and with the one that it has instead.
ELSEWHERE = """
import importlib, sys, types
import numpy, torch, torchvision
for name in ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"):
    sys.modules[name] = None
sys.modules["msvcrt"] = types.ModuleType("msvcrt")
for name in sys.argv[1:]:
    importlib.import_module(name)
from tiled_ref import memory, store
assert store.fcntl is None and memory.resource is None
"""


def test_every_module_is_imported_where_the_system_is_not_posix():
    modules = [module_of(path) for path in SOURCES]
    assert "tiled_ref.support.memory" in modules and len(modules) > 50
    child = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *modules], cwd=ROOT, capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr


def test_run_py_imports_the_command_line_alone():
    own, others = imports(ROOT / "run.py")
    assert own == {"tiled_ref.cli"} and others == {"sys"}


def test_a_wrong_arrow_is_noticed():
    """The rules themselves: up, sideways, into a room that is closed, into an unknown one."""
    assert violations("tiled_ref.cli", "tiled_ref.running.cell") is None
    assert violations("tiled_ref.models.padim", "tiled_ref.models.maps") is None
    assert "floor" in violations("tiled_ref.running.cell", "tiled_ref.cli")
    assert "floor" in violations("tiled_ref.support.files", "tiled_ref.tiling")
    assert "knows only" in violations("tiled_ref.models.padim", "tiled_ref.tiling")
    assert "has no floor" in violations("tiled_ref.attic", "tiled_ref.tiling")
