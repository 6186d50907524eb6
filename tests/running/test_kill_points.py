"""A run, a report and a prediction that are killed before every rename, removal and write.

Whatever the moment, the same command with --resume leaves the files of an undisturbed one, byte for
byte, no temporary file, and what a user has put there.
"""

import json
import os
import subprocess
import sys

import pytest
from sources import ROOT

SERVER = ROOT / "tests" / "kill_points.py"
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def report_of(folder, kind):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TILED_REF_THREADS": "1"}
    argv = [sys.executable, str(SERVER), str(folder), kind]
    done = subprocess.run(argv, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check(cases, kinds, seen):
    """No difference after any kill, and what was there in between is right."""
    assert {at.split()[1] for at, *_ in cases} == set(kinds)
    for at, between, differences in cases:
        assert seen(between), (at, between)
        assert differences == [], at


def one_runs(identities):
    return len(set(identities.values())) <= 1


RUN = "rename", "remove", "write", "rows"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What tests/kill_points.py saw of PaDiM."""
    return report_of(tmp_path_factory.mktemp("kills"), "padim")


def test_a_run_killed_at_every_rename_and_write_resumes_to_the_same(report):
    check(report["fresh"], RUN, one_runs)


def test_what_lies_in_a_cell_is_one_runs_whenever_another_was_killed(report):
    for at, left, resumed, differences in report["mixed"]:
        assert one_runs(left) and one_runs(resumed) and len(resumed) == 3, at
        assert differences == [], at
    assert any(not left.get("metrics.json") for _, left, *_ in report["mixed"])


@pytest.mark.exhaustive
def test_a_rename_that_fails_is_one_sentence_and_loses_nothing(tmp_path):
    statuses = set()
    for at, status, text, left, differences in report_of(tmp_path, "fail")["failed"]:
        statuses.add(status)
        errors = [line for line in text.splitlines() if line.startswith("tiled-ref: error: ")]
        assert (status, len(errors)) in ((2, 1), (0, 0)), (at, text)
        assert "TRACEBACK" not in text and one_runs(left), (at, text)
        assert differences == [], at
    assert statuses == {0, 2}  # 0 where only a temporary folder keeps its name


def test_a_report_killed_at_every_rename_and_write_is_written_again(tmp_path):
    """Of two cells, over an earlier one: each file is that of the old or the new one."""
    check(report_of(tmp_path, "report")["fresh"], RUN[:3], lambda torn: torn == [])


@pytest.mark.parametrize(
    "kind", ["predict", pytest.param("watch", marks=pytest.mark.exhaustive)]
)
def test_a_prediction_killed_at_any_moment_is_whole_or_says_that_it_is_partial(tmp_path, kind):
    seen = report_of(tmp_path, kind)["fresh"]
    check(seen, (*RUN[:3], "row"), ("whole", "partial").__contains__)
    assert sum(state == "whole" for _, state, _ in seen) < 4  # before the first change, at the end


@pytest.mark.exhaustive
def test_a_sweep_killed_at_every_rename_and_write_resumes_to_the_same(tmp_path):
    check(report_of(tmp_path, "sweep")["fresh"], RUN, lambda _: True)


@pytest.mark.exhaustive
@pytest.mark.parametrize("arch", ["patchcore", "fastflow", "reverse_distillation"])
def test_other_architectures_resume_to_the_same(tmp_path, arch):
    check(report_of(tmp_path, arch)["fresh"], RUN, one_runs)
