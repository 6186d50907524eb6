"""A run that is killed before every rename and every write, in turn."""

import json
import os
import subprocess
import sys

import pytest
from sources import ROOT

SERVER = ROOT / "tests" / "kill_points.py"
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def report_of(folder, arch):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TILED_REF_THREADS": "1"}
    argv = [sys.executable, str(SERVER), str(folder), arch]
    done = subprocess.run(argv, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What tests/kill_points.py saw of PaDiM."""
    return report_of(tmp_path_factory.mktemp("kills"), "padim")


def check_resumed(report):
    assert {"rename", "maps", "rows"} == set(report["moments"])
    for k, signal, left, status, text, after in report["fresh"]:
        at = k, report["moments"][k]
        assert signal == 9, at
        assert len(set(left.values())) <= 1, at  # what is there is one run's
        assert status == 0, (at, text)
        assert after == report["reference"], at  # metrics and names of files


def test_a_run_killed_at_every_rename_and_write_resumes_to_the_same(report):
    check_resumed(report)


def test_what_lies_in_a_cell_is_one_runs_whenever_another_was_killed(report):
    (metrics,) = report["reference"]["results"].values()
    for k, left, status, text, after, found in report["mixed"]:
        assert len(set(left.values())) <= 1, k
        assert status == 0, (k, text)
        assert after == report["reference"], k
        assert set(found.values()) == {metrics["identity"]} and len(found) == 3, k
    assert any(not left.get("metrics.json") for _, left, *_ in report["mixed"])


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["patchcore", "fastflow", "reverse_distillation"])
def test_other_architectures_resume_to_the_same(tmp_path, arch):
    check_resumed(report_of(tmp_path, arch))
