"""A port in C proves the golden files: it agrees with them, and its mistakes are named."""

import re
import sys

import pytest
from sources import ROOT

from tiled_ref.golden import tiny
from tiled_ref.golden.__main__ import REFERENCE, main
from tiled_ref.golden.bundle import Bundle
from tiled_ref.golden.check import check
from tiled_ref.golden.report import as_text, count, first_failing

sys.path.insert(0, str(ROOT / "tests" / "port"))
import build  # noqa: E402

STAGES = {stage.name: stage for stage in tiny.stages()}


@pytest.fixture(scope="module")
def compiler():
    if build.compiler() is None:
        pytest.skip("no C compiler")


@pytest.fixture(scope="module")
def bundle():
    return Bundle(REFERENCE)


def test_the_port_agrees_with_every_golden_file_of_its_stages(compiler, bundle, tmp_path, capsys):
    program = build.build(tmp_path / "port", flags=["-O1", *build.STRICT])
    build.run(program, REFERENCE, tmp_path / "out")
    names = build.stages(program)
    assert main(["check", str(tmp_path / "out"), "--stage", *names]) == 0
    assert "OK: all 16 stages agree" in capsys.readouterr().out
    found, extra = check(tmp_path / "out", bundle, STAGES, names)
    counts = count(found)
    assert counts["stages"] == 16 and counts["missing"] == 0 and extra == []
    assert counts["non_vacuous"] > 80 and counts["compared_numbers"] > 40_000


@pytest.mark.parametrize("bug", build.BUGS)
def test_a_deliberate_mistake_is_found_at_its_stage_and_named(compiler, bundle, tmp_path, bug):
    stage, words = build.BUGS[bug]
    program = build.build(tmp_path / "port", bug, flags=["-O0"])
    build.run(program, REFERENCE, tmp_path / "out")
    found, _ = check(tmp_path / "out", bundle, STAGES, build.stages(program))
    failing = first_failing(found)
    assert failing.name == stage
    assert words in failing.causes[0]
    text = as_text(found, [], bundle, "float32")
    assert f"FIRST FAILING STAGE: {stage} (" in text
    assert re.search(f"LIKELY CAUSE: .*{re.escape(words)}", text)
    others = [result.name for result in found if not result.ok and result.name != stage]
    assert set(others) <= SHARED.get(bug, set())


# Stages that fail besides the first, where a mistake is in a function that several share.
SHARED = {
    8: {"smoothing"},
    9: {"smoothing"},
    10: {"smoothing"},
    11: {"smoothing"},
    15: {"aupro"},
    20: {"padim.map"},
}


def test_every_mistake_in_the_source_is_in_the_table():
    numbers = {int(n) for n in re.findall(r"BUG [!=]= (\d+)", build.SOURCE.read_text("utf-8"))}
    assert numbers == set(build.BUGS) and len(numbers) >= 20


@pytest.mark.real
@pytest.mark.slow
def test_the_second_bundle_has_genuine_weights_and_the_port_agrees_with_it(
    official_weights, compiler, tmp_path, capsys
):
    folder = tmp_path / "genuine"
    assert main(["export", str(folder), "--weights", str(official_weights)]) == 0
    bundle = Bundle(folder)
    names = [stage["name"] for stage in bundle.stages]
    assert names[:5] == ["resize", "normalise", "tile", "backbone", "padim.embedding"]
    assert bundle.array(bundle.manifest["models"]["backbone"]["conv1"]).shape == (64, 3, 7, 7)
    (case,) = bundle.stages[3]["cases"]
    assert case["outputs"]["layer3"]["shape"] == [1, 256, 16, 16]
    program = build.build(tmp_path / "port")
    build.run(program, folder, tmp_path / "out")
    ported = [name for name in names if name in build.stages(program)]
    assert "padim.map" in ported and "normalise" in ported
    options = ["--reference", str(folder), "--stage", *ported]
    assert main(["check", str(tmp_path / "out"), *options]) == 0
    capsys.readouterr()
