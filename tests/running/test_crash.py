"""Runs that are killed, interrupted or run out of disk, and what --resume makes of them."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from sources import ROOT

from tiled_ref import cli
from tiled_ref.running import lock
from tiled_ref.running.lock import OutputLock
from tiled_ref.running.pieces import Pieces
from tiled_ref.running.rows import RowFile
from tiled_ref.support.errors import InputError

SERVER = ROOT / "tests" / "crash_server.py"
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What tests/crash_server.py saw."""
    folder = tmp_path_factory.mktemp("crash")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TILED_REF_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SERVER), str(folder)], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def cases(report, kind):
    return [case for case in report["cases"] if case["kind"] == kind]


def check_resumed(report, case):
    """As if nothing had happened: metrics bit for bit, models, the set of files."""
    assert case["second"]["status"] == 0, (case["at"], case["second"]["text"])
    assert case["after"] == report["reference"], case["at"]
    assert case["same_models"], case["at"]


def test_an_undisturbed_run_leaves_results_and_ensembles_alone(report):
    assert report["whole"]["status"] == 0, report["whole"]["text"]
    files = report["reference"]["files"]
    assert len(report["reference"]["results"]) == 2
    assert not [name for name in files if "partial" in name or name.endswith((".tmp", ".lock"))]
    assert sum(name.endswith("manifest.json") for name in files) == 2
    assert sum("location_" in name for name in files) == 4 + 4


def test_a_killed_run_is_resumed_bit_for_bit(report):
    killed = cases(report, "kill")
    assert len(killed) >= 20
    assert {case["at"][1] for case in killed} >= {"rename", "sync", "maps", "progress"}
    for case in killed:
        assert case["first"]["signal"] == signal.SIGKILL, case["at"]
        check_resumed(report, case)


def test_resuming_does_not_start_over(report):
    """The later the kill, the fewer stages are left."""
    stages = [case["second"]["text"].count(": fit") for case in cases(report, "kill")]
    assert stages[0] == 8 and stages[-1] == 0 and sorted(stages, reverse=True) == stages


def test_a_run_may_be_killed_twice(report):
    assert report["twice"]["status"] == 0
    assert report["twice"]["after"] == report["reference"]


def test_ctrl_c_is_one_line_and_status_130(report):
    for case in cases(report, "interrupt"):
        assert case["first"]["status"] == 130, case
        assert case["first"]["text"].splitlines()[-1].startswith("tiled-ref: interrupted")
        assert "TRACEBACK" not in case["first"]["text"]
        assert case["temporary"] == []
        check_resumed(report, case)


@pytest.mark.parametrize("kind", ["limit", "no space"])
def test_a_full_disk_is_one_sentence_and_loses_nothing(report, kind):
    for case in cases(report, kind):
        first = case["first"]
        assert first["status"] == 2, (case["at"], first)
        errors = [line for line in first["text"].splitlines() if "tiled-ref: error: " in line]
        assert errors and all("cannot write" in line for line in errors), first["text"]
        assert "TRACEBACK" not in first["text"] and "Traceback" not in first["text"]
        assert case["temporary"] == [], case["at"]
        check_resumed(report, case)


def test_a_second_run_on_the_same_folder_is_refused(tmp_path, capsys):
    argv = ["--out", str(tmp_path), "--weights", "random", "--quiet"]
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:  # another process, as the lock sees it
        with OutputLock(tmp_path):
            os.write(write, b"x")
            signal.pause()
    try:
        os.read(read, 1)
        assert cli.main(argv) == 2
        assert "another run is writing to" in capsys.readouterr().err
        assert not (tmp_path / "synthetic").exists()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with OutputLock(tmp_path):  # the lock has gone with its holder
        pass
    assert not (tmp_path / ".lock").exists()


def test_resuming_with_other_options_is_refused(tmp_path):
    Pieces(tmp_path, {"seed": 1, "score": "mean"})
    Pieces(tmp_path, {"seed": 1, "score": "mean"}, resume=True)
    with pytest.raises(InputError, match="score was mean, is max.*start over without --resume"):
        Pieces(tmp_path, {"seed": 1, "score": "max"}, resume=True)


@pytest.mark.parametrize("content", ["[1]", "{", "7"])
def test_an_unfinished_run_that_cannot_be_read_is_named(tmp_path, content):
    store = Pieces(tmp_path, {})
    run = next(store.folder.rglob("run.json"))
    run.write_text(content)
    with pytest.raises(InputError, match="run.json is damaged .* start over without --resume"):
        Pieces(tmp_path, {}, resume=True)


def test_an_unfinished_run_starts_over_without_resume(tmp_path):
    notes = []
    store = Pieces(tmp_path, {})
    maps = np.array([[[1, 2], [3, 4]]], np.float32)
    store[0, 0] = {}
    store.add((0, 0), slice(0, 1), 1, maps, maps[0, 0, :1])
    assert Pieces(tmp_path, {}, resume=True, note=notes.append).is_done((0, 0))
    assert "resumed, 1 tile locations are done" in notes[0]
    assert not Pieces(tmp_path, {}, note=notes.append).is_done((0, 0))
    assert "starts over; --resume continues" in notes[1]


def test_a_published_ensemble_is_published_again(tmp_path):
    """A kill between the ensemble's renaming and the end of the run."""
    for mark in ("mine", "other"):
        store = Pieces(tmp_path / mark, {"identity": "mine"}, save=True)
        (store.ensemble_folder / "manifest.json").write_text(json.dumps({"identity": mark}))
        store.publish()
        again = Pieces(tmp_path / mark, {"identity": "mine"}, resume=True, save=True)
        assert again.ensemble_folder.exists() == (mark == "mine")
        assert (tmp_path / mark / "ensemble").exists() == (mark == "other")
        if mark == "mine":
            again.publish()
        assert mark in (tmp_path / mark / "ensemble" / "manifest.json").read_text()


def test_a_new_ensemble_takes_the_place_of_an_earlier_one(tmp_path):
    for content in ("location_0_0.npz", "location_0_1.npz"):
        store = Pieces(tmp_path, {}, save=True)
        (store.ensemble_folder / "manifest.json").write_text(content)
        (store.ensemble_folder / content).touch()
        store.publish()
        store.finish()
    assert (tmp_path / "ensemble" / "manifest.json").read_text() == "location_0_1.npz"
    assert not (tmp_path / "ensemble" / "location_0_0.npz").exists()


def test_a_lock_whose_file_another_run_removed_is_taken_again(tmp_path, monkeypatch):
    taken = []

    def removed_at_first(file):
        if not taken:
            (tmp_path / ".lock").unlink()  # by a run that ended just now
        taken.append(file)
        return True

    monkeypatch.setattr(lock, "_lock", removed_at_first)
    with OutputLock(tmp_path):
        assert len(taken) == 2 and (tmp_path / ".lock").exists()


def test_rows_are_read_as_they_were_written(tmp_path, rng):
    maps = rng.random((7, 3, 5)).astype("float32")
    rows = RowFile(tmp_path / "m.npy", maps.shape)
    rows[4:7] = maps[4:]
    rows[0:4] = maps[:4]
    assert not (tmp_path / "m.npy").exists()  # before it is complete
    rows.commit()
    assert (rows[2:6] == maps[2:6]).all() and (rows[3] == maps[3]).all()
    assert [row.tolist() for row in rows] == maps.tolist()
    read = RowFile(tmp_path / "m.npy")
    assert read.shape == maps.shape and (read[0:7] == maps).all()
    for bad in (7, -1):
        with pytest.raises(IndexError):
            read[bad]
    with pytest.raises(IndexError, match="in steps of 1"):
        read[0:4:2]


@pytest.mark.parametrize("array", [np.zeros((2, 2)), np.zeros((2, 3), np.float32).T])
def test_rows_of_another_type_or_order_are_refused(tmp_path, array):
    np.save(tmp_path / "m.npy", array)
    with pytest.raises(InputError, match=f"it holds {array.dtype}, not C-ordered float32"):
        RowFile(tmp_path / "m.npy")


def test_a_file_of_rows_that_is_cut_while_it_is_read_is_named(tmp_path):
    rows = RowFile(tmp_path / "m.npy", (2, 2, 2))
    rows.commit()
    os.truncate(tmp_path / "m.npy", os.path.getsize(tmp_path / "m.npy") - 4)
    with pytest.raises(InputError, match="m.npy is truncated; start over without --resume"):
        rows[1]


@pytest.mark.parametrize("damage", ["truncated", "foreign", "missing"])
def test_a_damaged_file_of_rows_is_named(tmp_path, damage):
    path = tmp_path / "m.npy"
    rows = RowFile(path, (2, 2, 2))
    rows.commit()
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "foreign":
        path.write_bytes(b"not an array")
    else:
        path.unlink()
    with pytest.raises(InputError, match="cannot read .*m.npy.*start over without --resume"):
        RowFile(path)
