"""Golden files: the committed bundle is what this machine computes, and the checker sees faults."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tiled_ref.golden import npy
from tiled_ref.golden.__main__ import main

COMMITTED = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A bundle that this machine exports."""
    folder = tmp_path_factory.mktemp("golden") / "bundle"
    assert main(["export", str(folder)]) == 0
    return folder


def report(folder, tmp_path, *options):
    """Exit status and JSON report of a check against the committed bundle."""
    file = tmp_path / "report.json"
    status = main(["check", str(folder), "--json", str(file), *options])
    return status, json.loads(file.read_text("utf-8"))


def test_exporting_again_stays_within_the_compare_classes(exported, tmp_path):
    status, found = report(exported, tmp_path, "--reference", str(COMMITTED))
    assert status == 0, found["first_failing_stage"]
    assert found["counts"]["missing"] == 0 and found["extra_files"] == []
    assert found["counts"]["compared_numbers"] > 30_000


def test_a_changed_number_is_found_in_its_stage(exported, tmp_path):
    port = tmp_path / "port"
    shutil.copytree(exported, port)
    file = port / "untile" / "overlap.out.map.npy"
    maps = np.array(npy.read(file))
    maps[0, 3, 4] += 0.25
    npy.write(file, maps)
    status, found = report(port, tmp_path)
    assert status == 1 and found["first_failing_stage"] == "untile"
    (bad,) = [o for s in found["stages"] for o in s["outputs"] if o["status"] != "ok"]
    assert bad["case"] == "overlap" and bad["index"] == [0, 3, 4] and bad["beyond"] == 1
