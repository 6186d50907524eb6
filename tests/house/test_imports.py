"""Imports run one way only, from the command line down, and only to the packages named."""

import ast
import subprocess
import sys

import pytest
from sources import ROOT, SOURCES, module_of

# The rooms from the ground up, each with the rooms that it imports: only ones further up in this
# table, so that there is no circle. A file of the package's own folder is a room of its own; the
# package itself (its version) is known to all.
ROOMS = {
    "support": "",
    "tiling": "support",
    "data": "support",
    "models.search": "support",
    "models": "models.search support",
    "merging": "support",
    "smoothing": "support",
    "metrics": "support",
    "verdicts": "metrics models data support",
    "setups": "tiling models support",
    "archive": "setups verdicts models data support",
    "ensemble": "archive setups verdicts smoothing merging models data support",
    "method": "metrics models data",
    "golden": "ensemble setups verdicts metrics smoothing merging models "
    "models.search data tiling support",
    "reporting.drawing": "metrics data support",
    "running": "ensemble archive verdicts smoothing metrics merging models data tiling support",
    "serving": "running archive verdicts smoothing metrics models data reporting.drawing "
    "support",
    "reporting.walk": "running ensemble setups verdicts smoothing merging models models.search data "
    "tiling reporting.drawing support",
    "reporting": "running setups data reporting.drawing support",
    "cli": "serving running reporting.walk reporting ensemble setups verdicts models data support",
    "__main__": "cli support",
}
PACKAGES = {"torch", "torchvision", "numpy", "PIL", "tiled_ref"}
WITH_PILLOW = {"tiled_ref.data.decoding", "tiled_ref.data.encoders"}
PATHS = [*SOURCES, ROOT / "run.py"]


def room_of(module):
    """tiled_ref.models.padim -> "models"; the package itself -> "tiled_ref"."""
    parts = module.split(".")
    inner = ".".join(parts[1:3])
    return inner if inner in ROOMS else parts[1] if len(parts) > 1 else parts[0]


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


def violation(source, target):
    """Why a module must not import another one; None if it may."""
    above, below = room_of(source), room_of(target)
    if above == "tiled_ref":
        return f"{source} imports {target}: the package itself imports none of its rooms"
    for room in (above, below):
        if room != "tiled_ref" and room not in ROOMS:
            return f"{room} has no line in the table of tests/house/test_imports.py"
    if below not in (above, "tiled_ref", *ROOMS[above].split()):
        return f"{source} imports {target}: {above} knows only {ROOMS[above] or 'itself'}"
    return None


def test_the_table_has_no_circle():
    seen = set()
    for room, known in ROOMS.items():
        assert set(known.split()) <= seen, room
        seen.add(room)


def test_the_table_allows_nothing_that_is_not_used():
    used = {room: set() for room in ROOMS}
    for path in SOURCES:
        for target in imports(path)[0]:
            used.get(room_of(module_of(path)), set()).add(room_of(target))
    for room, known in ROOMS.items():
        assert used[room] - {room, "tiled_ref"} == set(known.split()), room


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_imports_run_one_way(path):
    own, _ = imports(path)
    assert [v for t in sorted(own) if (v := violation(module_of(path), t))] == []


@pytest.mark.parametrize("path", PATHS, ids=module_of)
def test_only_the_packages_named_are_imported(path):
    _, others = imports(path)
    strangers = others - PACKAGES - set(sys.stdlib_module_names)
    assert not strangers
    assert "PIL" not in others or module_of(path) in WITH_PILLOW


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
from tiled_ref.running import lock
from tiled_ref.support import memory
assert lock.fcntl is None and memory.resource is None
"""


def test_every_module_is_imported_where_the_system_is_not_posix():
    modules = [module_of(path) for path in SOURCES]
    assert "tiled_ref.support.memory" in modules and len(modules) > 50
    child = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *modules], cwd=ROOT, capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr


def test_run_py_imports_the_program_alone():
    own, others = imports(ROOT / "run.py")
    assert own == {"tiled_ref.__main__"} and others == {"sys"}


def test_a_wrong_arrow_is_noticed():
    """The rules themselves: up, sideways, into a room that is closed, into an unknown one."""
    assert violation("tiled_ref.cli", "tiled_ref.running.cell") is None
    assert violation("tiled_ref.models.padim", "tiled_ref.models.maps") is None
    assert "knows only" in violation("tiled_ref.running.cell", "tiled_ref.cli")
    assert "knows only" in violation("tiled_ref.support.files", "tiled_ref.tiling")
    assert "knows only" in violation("tiled_ref.models.padim", "tiled_ref.tiling")
    assert "has no line" in violation("tiled_ref.attic", "tiled_ref.tiling")
