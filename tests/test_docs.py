"""What the documentation says is what the code does."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import tiled_ref
from tiled_ref import cli

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(tiled_ref.__path__, "tiled_ref.")
    if not module.name.rpartition(".")[2].startswith("_")
)
SOURCES = sorted((ROOT / "tiled_ref").rglob("*.py"))
# Arrows of imports inside the package: nothing imports the command line, models see no tiling.
FORBIDDEN = {
    "tiled_ref/models/": {"tiling", "ensemble", "merging", "smoothing", "metrics", "experiment"},
    "tiled_ref/data/": {"models", "ensemble", "experiment", "metrics", "merging", "smoothing"},
    "tiled_ref/": {"cli"},
}
PACKAGES = {"torch", "torchvision", "numpy", "PIL", "tiled_ref"}


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_give_what_they_say(name):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_has_a_docstring(name):
    module = importlib.import_module(name)
    assert module.__doc__
    for key, value in vars(module).items():
        if getattr(value, "__module__", None) != name or key.startswith("_"):
            continue
        assert value.__doc__, f"{name}.{key}"
        if isinstance(value, type):
            for part, member in vars(value).items():
                if callable(member) and not part.startswith("_"):
                    assert inspect.getdoc(getattr(value, part)), f"{name}.{key}.{part}"


def imports(path):
    """(package or "", module parts) of every import statement of a file."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.partition(".")[0], ()
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                names = [node.module] if node.module else [alias.name for alias in node.names]
                yield "", tuple(name.partition(".")[0] for name in names)
            else:
                yield node.module.partition(".")[0], ()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_imports_run_one_way_and_only_from_the_packages_named(path):
    import sys

    relative = path.relative_to(ROOT).as_posix()
    for package, inside in imports(path):
        if package:
            assert package in PACKAGES or package in sys.stdlib_module_names, package
            assert package != "PIL" or relative == "tiled_ref/data/images.py"
        for folder, forbidden in FORBIDDEN.items():
            if relative.startswith(folder):
                assert not forbidden & set(inside), f"{relative} imports {inside}"


def test_the_readme_has_the_two_commands_that_ci_types():
    text = (ROOT / "README.md").read_text("utf-8")
    for name, words in (("main", "python run.py --setup ENS9"), ("test", "python -m pytest")):
        block = re.search(rf"<!-- ci: {name} -->\n```sh\n(.*?)```", text, re.DOTALL)
        assert block and words in block[1] and "pip install -e" in block[1]


def test_every_option_in_the_readme_exists():
    options = set(cli.build_parser()._option_string_actions)
    text = (ROOT / "README.md").read_text("utf-8")
    commands = [line for line in text.splitlines() if re.search(r"run\.py |tiled-ref --", line)]
    used = {word for line in commands for word in re.findall(r"(?<![\w-])--[a-z-]+", line)}
    assert used and used <= options


def test_every_file_named_in_the_readme_exists():
    text = (ROOT / "README.md").read_text("utf-8")
    for name in re.findall(r"`((?:tests|bench|kernels|tiled_ref)/[\w/.-]+\.\w+)`", text):
        assert (ROOT / name).is_file(), name


def test_every_test_named_in_the_readme_exists():
    text = (ROOT / "README.md").read_text("utf-8")
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", text)
    assert len(named) > 10
    for file, name in named:
        assert f"def {name}(" in (ROOT / file).read_text("utf-8"), f"{file}::{name}"


def test_the_package_holds_its_data_file_and_every_package_folder():
    folders = {p.parent.relative_to(ROOT).as_posix() for p in SOURCES}
    text = (ROOT / "setup.py").read_text("utf-8")
    for folder in folders:
        assert f'"{folder.replace("/", ".")}"' in text
    assert (ROOT / "tiled_ref" / "paper_results.csv").is_file()
