"""A port in C proves the golden files: it agrees with them, and its mistakes are named."""

import json
import re
import sys
from pathlib import Path

import pytest

from tiled_ref.golden.__main__ import main

sys.path.insert(0, str(Path(__file__).parent / "port"))
import build  # noqa: E402

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def compiler():
    if build.compiler() is None:
        pytest.skip("no C compiler")


def checked(program, folder, capsys=None):
    """Exit status and JSON report of a check of what a program computes."""
    build.run(program, GOLDEN, folder / "out")
    report = folder / "report.json"
    names = build.stages(program)
    status = main(["check", str(folder / "out"), "--json", str(report), "--stage", *names])
    return status, json.loads(report.read_text("utf-8"))


def test_the_port_agrees_with_every_golden_file_of_its_stages(compiler, tmp_path, capsys):
    program = build.build(tmp_path / "port", flags=["-O1", *build.STRICT])
    status, found = checked(program, tmp_path)
    assert status == 0, found["first_failing_stage"]
    assert found["counts"]["stages"] == 16 and found["counts"]["missing"] == 0
    assert found["counts"]["non_vacuous"] > 80 and found["counts"]["compared_numbers"] > 40_000
    assert "OK: all 16 stages agree" in capsys.readouterr().out


@pytest.mark.parametrize("bug", build.BUGS)
def test_a_deliberate_mistake_is_found_at_its_stage_and_named(compiler, tmp_path, capsys, bug):
    stage, words = build.BUGS[bug]
    program = build.build(tmp_path / "port", bug, flags=["-O0"])
    status, found = checked(program, tmp_path)
    assert status == 1
    assert found["first_failing_stage"] == stage
    assert words in found["likely_cause"]
    text = capsys.readouterr().out
    assert f"FIRST FAILING STAGE: {stage}" in text
    assert re.search(f"LIKELY CAUSE: .*{re.escape(words)}", text)


def test_every_mistake_in_the_source_is_in_the_table():
    numbers = {int(n) for n in re.findall(r"BUG [!=]= (\d+)", build.SOURCE.read_text("utf-8"))}
    assert numbers == set(build.BUGS) and len(numbers) >= 20
