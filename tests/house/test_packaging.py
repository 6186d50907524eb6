"""setup.py and MANIFEST.in name every file that the wheel and the sdist need."""

import runpy
from pathlib import Path

import Cython.Build
import pytest
import setuptools
from setuptools.command.egg_info import FileList
from sources import ROOT

FOLDERS = ("tiled_ref", "kernels", "tests", "bench", ".ci")
ALWAYS = {"setup.py", "pyproject.toml", "MANIFEST.in"}  # in every sdist, without being named
NAMED = {"README.md", "LICENSE", "run.py"}
BUILT = {".so", ".pyd", ".pyc"}


def source_files():
    """Names such as "tiled_ref/cli.py" of all files, without those that a build leaves."""
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    found = {
        path.relative_to(ROOT).as_posix()
        for path in paths
        if path.suffix not in BUILT
        and not path.name.startswith(".")
        and not (path.parent.name == "kernels" and path.suffix == ".c")
    }
    return found | ALWAYS | NAMED


@pytest.fixture
def wheel(monkeypatch):
    """(names of the modules, names of the data files) that setuptools takes into the wheel."""
    arguments = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setuptools, "setup", arguments.update)
    monkeypatch.setattr(Cython.Build, "cythonize", lambda extensions, **options: extensions)
    runpy.run_path("setup.py")
    arguments["script_name"] = "setup.py"
    command = setuptools.Distribution(arguments).get_command_obj("build_py")
    command.ensure_finalized()
    modules = {Path(path).as_posix() for _, _, path in command.find_all_modules()}
    chosen = [(folder, name) for _, folder, _, names in command.data_files for name in names]
    return modules, {Path(*pair).as_posix() for pair in chosen}


def test_the_wheel_has_every_file_of_the_package(wheel):
    """Modules by `packages`, all others by `package_data`."""
    package = {name for name in source_files() if name.startswith("tiled_ref/")}
    modules, data = wheel
    assert modules == {name for name in package if name.endswith(".py")}
    assert data == {name for name in package if not name.endswith(".py")}
    assert {"tiled_ref/reporting/assets/report.js", "tiled_ref/golden/reference/FORMAT.md"} <= data


def test_the_sdist_has_every_file_of_the_source_tree(wheel):
    modules, data = wheel
    chosen = FileList()
    for line in (ROOT / "MANIFEST.in").read_text("utf-8").splitlines():
        chosen.process_template_line(line)
    found = {Path(name).as_posix() for name in chosen.files}
    assert source_files() - found - modules - data - ALWAYS == set()
