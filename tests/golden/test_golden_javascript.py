"""A port in JavaScript, written from FORMAT.md alone, agrees with the golden files."""

import re
import shutil
import subprocess
import sys

import pytest
from sources import ROOT

from tiled_ref.golden import tiny
from tiled_ref.golden.__main__ import REFERENCE
from tiled_ref.golden.bundle import Bundle
from tiled_ref.golden.check import check
from tiled_ref.golden.report import count

PORT = ROOT / "tests" / "port" / "port.js"
sys.path.insert(0, str(PORT.parent))
import planted  # noqa: E402

pytestmark = pytest.mark.optional  # a machine may have no node
ROW = re.compile(r"^\| (\d+) \| (\S+) \| (.+) \| (.+) \| (.+) \|$", re.M)
STAGES = {stage.name: stage for stage in tiny.stages()}


@pytest.fixture(scope="module")
def node():
    if shutil.which("node") is None:
        pytest.skip("no node")


def run(*arguments):
    command = ["node", str(PORT), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def test_the_port_agrees_with_every_golden_file_of_its_stages(node, tmp_path):
    names = run()
    assert set(names) == set(STAGES) - {"draws"}  # of Python's and NumPy's generators
    run(REFERENCE, tmp_path)
    found, extra = check(tmp_path, Bundle(REFERENCE), STAGES, names)
    assert [result.name for result in found if not result.ok] == [] and extra == []
    counts = count(found)
    assert counts["stages"] == 37 and counts["missing"] == 0
    assert counts["non_vacuous"] > 540 and counts["compared_numbers"] > 330_000


def test_it_writes_the_stages_that_are_named_and_no_other(node, tmp_path):
    run(REFERENCE, tmp_path, "untile", "auroc")
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["auroc", "untile"]


def test_the_table_of_planted_mistakes_is_complete():
    rows = ROW.findall((PORT.parent / "planted.md").read_text("utf-8"))
    assert [row[1:3] for row in rows] == [(stage, kind) for stage, _, _, kind in planted.BUGS]
    judged = [row[4] for row in rows]
    assert judged.count("wrong") == 0 and judged.count("right") >= 0.9 * len(rows)


@pytest.mark.parametrize("number", range(1, len(planted.BUGS), 36))
def test_a_planted_mistake_is_found_and_named_as_the_table_says(node, number):
    rows = ROW.findall((PORT.parent / "planted.md").read_text("utf-8"))
    assert planted.cause_of(number) == rows[number - 1][3]
