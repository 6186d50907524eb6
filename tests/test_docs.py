"""What the documentation says is what the code does."""

import re

from sources import ROOT, SOURCES
from tiled_ref import cli


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
