"""Several processes that share a run: what they compute, and what happens when one fails."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from crash_server import make_folder, outcome
from ranks_server import OPTIONS
from tiled_ref import cli, distributed
from tiled_ref.distributed import Alone, Ranks, SharedCell, find_ranks
from tiled_ref.errors import InputError
from tiled_ref.store import CellStore

SERVER = Path(__file__).resolve().parent / "ranks_server.py"
RUN = SERVER.parent.parent / "run.py"
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "TILED_REF_THREADS": "1"}
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What tests/ranks_server.py saw."""
    folder = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        [sys.executable, str(SERVER), str(folder)], capture_output=True, text=True, env=ENV
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def results(found):
    """What was computed: all of metrics.json but times, memory and the number of processes."""
    return {
        path: {key: value for key, value in result.items() if key != "n_processes"}
        for path, result in found["results"].items()
    }


def sentences(case, rank):
    lines = case["ranks"][rank]["stderr"].splitlines()
    return [line for line in lines if line.startswith("tiled-ref:")]


@pytest.mark.parametrize("name", ["two", "two again"])
def test_ranks_compute_what_one_process_computes(report, name):
    """Metrics and models bit for bit, the same set of files, one table."""
    one, case = report["one"], report[name]
    assert [rank["status"] for rank in case["ranks"]] == [0] * len(case["ranks"])
    assert results(case["outcome"]) == results(one["outcome"]) and len(results(one["outcome"])) == 2
    assert case["states"] == one["states"] and len(one["states"]) == 4 + 1
    assert case["outcome"]["files"] == one["outcome"]["files"]
    assert case["ranks"][0]["stdout"].count("ENS-32-16-16") == one["ranks"][0]["stdout"].count(
        "ENS-32-16-16"
    )
    for rank in case["ranks"][1:]:
        assert rank["stdout"] == rank["stderr"] == ""


def test_the_work_is_shared(report):
    """Rank 0 shows its own progress only: fewer than all locations, more than none."""
    fits = [report[name]["ranks"][0]["stderr"].count(": fit") for name in ("one", "two")]
    assert fits[0] == 4 + 1 and 0 < fits[1] < fits[0]
    assert "2 processes (gloo) share the tile locations" in report["two"]["ranks"][0]["stderr"]
    counts = {r["n_processes"] for r in report["two"]["outcome"]["results"].values()}
    assert counts == {2}


def test_resuming_skips_what_is_finished(report):
    assert ": fit" not in report["two again"]["ranks"][0]["stderr"]


@pytest.mark.parametrize(
    "name, sentence, status",
    [
        ("killed", "rank 1 has died without a word", (1, None)),
        ("no memory", "rank 1: out of memory (Unable to allocate 9 GiB); choose a smaller", (1, 2)),
        ("mistake", "rank 1: KeyError: 'mistake'", (1, 99)),
    ],
)
def test_a_rank_that_ends_is_reported_by_rank_0(report, name, sentence, status):
    """One sentence; nobody hangs, or the server would kill it; what was complete is kept."""
    case = report[name]
    assert tuple(rank["status"] for rank in case["ranks"]) == status
    (said,) = sentences(case, 0)
    assert said.startswith(f"tiled-ref: error: {sentence}")
    assert sentences(case, 1) == []
    assert case["partial"]


def test_a_cell_that_fails_in_one_rank_is_dropped_by_all_and_the_others_go_on(report):
    """Rank 1 cannot do its second location of ENS4; ST4 is computed all the same."""
    case, one = report["bad input"], report["one"]
    assert [rank["status"] for rank in case["ranks"]] == [2, 0]
    assert sentences(case, 0) == [
        "tiled-ref: error: folder parts padim ENS-32-16-16 seed 1: the image x is damaged"
    ]
    assert case["ranks"][1]["stderr"] == ""
    found = results(case["outcome"])
    assert len(found) == 1 and found.items() <= results(one["outcome"]).items()
    assert "ST-32-16-16" in case["ranks"][0]["stdout"]
    assert "ENS-32-16-16" not in case["ranks"][0]["stdout"] and case["partial"]
    resumed = report["bad input resumed"]
    assert [rank["status"] for rank in resumed["ranks"]] == [0, 0]
    assert results(resumed["outcome"]) == results(one["outcome"])


def test_what_every_rank_finds_wrong_is_told_once(report):
    case = report["bad image"]
    assert [rank["status"] for rank in case["ranks"]] == [2, 0]
    said = sentences(case, 0)
    assert [line.split(" seed 1: the image")[0] for line in said] == [
        f"tiled-ref: error: folder parts padim {setup}-32-16-16" for setup in ("ENS", "ST")
    ]
    assert case["ranks"][0]["stdout"] == case["ranks"][1]["stderr"] == ""


def test_a_killed_rank_0_is_missed_by_the_others(report):
    main, other = report["main killed"]["ranks"]
    assert main["signal"] == signal.SIGKILL and other["status"] == 1
    assert "rank 1: lost the connection" in sentences(report["main killed"], 1)[0]
    assert report["main killed"]["partial"]


@pytest.mark.parametrize("name", ["resumed by three", "resumed by one"])
def test_any_number_of_processes_resumes(report, name):
    case = report[name]
    assert case["ranks"][0]["stderr"].count(": fit") < 4 + 1
    assert results(case["outcome"]) == results(report["one"]["outcome"])
    assert case["states"] == report["one"]["states"]
    assert case["outcome"]["files"] == report["one"]["outcome"]["files"]


def test_an_interrupt_is_one_line(report):
    case = report["terminated"]
    assert case["ranks"][0]["status"] == 130 and case["ranks"][1]["status"] in (1, 130)
    assert sentences(case, 0) == ["tiled-ref: interrupted; the same command with --resume goes on"]
    assert sentences(case, 1) == []


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("no folder", "nowhere does not exist"),
        ("bad option", "argument --setup: invalid choice: 'ENS5'"),
        ("other options", "rank 1 runs other options, weights or versions than rank 0"),
        ("other folder", "rank 1 does not see the folder"),
    ],
)
def test_bad_input_is_one_sentence_of_rank_0(report, name, sentence):
    case = report[name]
    assert [rank["status"] for rank in case["ranks"]] == [2, 2]
    (said,) = sentences(case, 0)
    assert sentence in said and said.startswith("tiled-ref: error: ")
    assert case["ranks"][1]["stderr"] == ""
    assert case["outcome"]["files"] == []


def test_torchrun_shares_a_run(tmp_path):
    """The launcher itself, two gloo processes, beside one process."""
    make_folder(tmp_path / "parts")
    argv = ["--dataset", "folder", "--root", str(tmp_path / "parts"), *OPTIONS, "--quiet"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    two = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", str(RUN), *argv, "--out", str(tmp_path / "two")],
        capture_output=True, text=True, env=ENV, timeout=250,
    )  # fmt: skip
    assert two.returncode == 0, two.stderr
    assert "tiled-ref" not in two.stderr and two.stdout.count("category  arch") == 1
    assert cli.main([*argv, "--out", str(tmp_path / "one")]) == 0
    assert results(outcome(tmp_path / "two")) == results(outcome(tmp_path / "one"))
    assert outcome(tmp_path / "two")["files"] == outcome(tmp_path / "one")["files"]


def test_one_process_asks_nobody(monkeypatch):
    for name in distributed.ENVIRONMENT:
        monkeypatch.setenv(name, "1")  # torchrun --nproc-per-node 1
    assert isinstance(find_ranks(), Alone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_PORT")
    assert isinstance(find_ranks(), Alone)  # a variable of somebody else


class Device:
    """What Ranks.device reads of a rank."""

    def __init__(self, local_rank, local_size):
        self._local_rank, self._local_size, self._own_device = local_rank, local_size, False


@pytest.mark.parametrize(
    "asked, local_rank, local_size, device, own",
    [
        ("cuda", 2, 4, "cuda:2", True),
        ("cuda", 5, 6, "cuda:1", False),  # more ranks than devices: gloo
        ("cuda:3", 1, 2, "cuda:3", False),
        ("cpu", 1, 2, "cpu", False),
    ],
)
def test_every_rank_has_its_own_device(monkeypatch, asked, local_rank, local_size, device, own):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    rank = Device(local_rank, local_size)
    assert Ranks.device(rank, torch.device(asked)) == torch.device(device)
    assert rank._own_device is own


class Silent:
    """A rank on another machine, as Ranks._is_dead sees it."""

    def __init__(self):
        self._places = [["elsewhere", 1, "elsewhere"]]
        self._beats, self.values = {}, {}
        self._store = self

    def has(self, key):
        return key in self.values

    def get(self, key):
        return self.values[key]


def test_a_rank_elsewhere_is_dead_when_its_heart_stops(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(distributed.time, "monotonic", lambda: now[0])
    rank = Silent()
    assert not Ranks._is_dead(rank, 0)
    rank.values["beat/0"] = "1"
    assert not Ranks._is_dead(rank, 0)
    now[0] = distributed.SILENCE_SECONDS
    assert not Ranks._is_dead(rank, 0)
    rank.values["beat/0"] = "2"
    now[0] += 1
    assert not Ranks._is_dead(rank, 0)
    now[0] += distributed.SILENCE_SECONDS + 1
    assert Ranks._is_dead(rank, 0)
    rank.values["left/0"] = ""  # it had done its share
    assert not Ranks._is_dead(rank, 0)


class Peak:
    def __init__(self, n_bytes):
        self.n_bytes = n_bytes

    def read(self):
        return {"peak_memory_bytes": self.n_bytes}


class LocalRank:
    """A rank whose store is a torch.distributed.HashStore in this process."""

    size = 2

    def __init__(self, rank, store):
        self.rank = rank
        self._store = distributed._Store(store)

    def _wait(self, condition):
        assert condition()


def test_a_cell_is_shared_location_by_location():
    """Each location once, the last to complete one finishes, the largest peak counts."""
    store = torch.distributed.HashStore()
    a, b = (SharedCell(LocalRank(k, store), "cell", {"seed": 1}) for k in range(2))
    assert a.opens and not b.opens
    a.opened()
    assert not b.is_finished
    groups = [[(0, 0)], [(0, 1), (1, 0), (1, 1)]]  # the second is too large for two ranks
    first, second = a.take(groups, Peak(5)), b.take([], Peak(7))
    taken = next(first), next(second), next(second)
    assert taken == ([(0, 0)], [(0, 1), (1, 0)], [(1, 1)])
    assert list(second) == [] and not b.finishes
    assert list(first) == [] and a.finishes
    assert a.peak(Peak(6)) == {"peak_memory_bytes": 7}
    other = SharedCell(LocalRank(1, store), "cell", {"seed": 2})
    with pytest.raises(ValueError, match="seed differ"):
        other.is_finished


def test_a_cell_that_fails_is_over_for_all_before_and_after_it_was_opened():
    store = torch.distributed.HashStore()

    def cells(name):
        return [SharedCell(LocalRank(k, store), name, {"seed": 1}) for k in range(2)]

    def fail(cell):
        with pytest.raises(InputError), cell.shared_fate():
            raise InputError("the mask m is damaged")

    a, b = cells("before")
    fail(a)
    assert b.is_finished and list(b.take([], Peak(1))) == [] and not b.finishes
    a, b = cells("after")
    a.opened()
    assert not b.is_finished
    first, second = a.take([[(0, 0)], [(0, 1)], [(1, 0)]], Peak(1)), b.take([], Peak(1))
    next(first), next(second)
    fail(a)
    assert list(second) == [] and not b.finishes


class Patient(LocalRank):
    """A LocalRank that waits."""

    one_at_a_time = Ranks.one_at_a_time

    def _wait(self, condition):
        until = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < until
            time.sleep(0.001)


def test_ranks_write_the_images_of_a_category_one_after_the_other():
    """Four threads as ranks: nobody comes in before the one before has gone, also when that one
    raised; another name is another turn."""
    store, inside, log = torch.distributed.HashStore(), [], []

    def work(k):
        rank = Patient(k, store)
        with contextlib.suppress(KeyError), rank.one_at_a_time("images a"):
            assert inside == [], inside
            inside.append(k)
            time.sleep(0.02)
            log.append(inside.pop())
            if k == 1:
                raise KeyError
            with rank.one_at_a_time(f"images of {k}"):
                log.append(k)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert sorted(log) == [0, 0, 1, 2, 2, 3, 3]
    with Alone().one_at_a_time("images a"), Alone().one_at_a_time("images a"):
        pass


def test_who_joins_a_cell_removes_nothing(tmp_path):
    """Temporary files in the folder belong to ranks that are alive."""
    CellStore(tmp_path, {})
    half = tmp_path / "partial" / ".maps_0_0.npy.1.tmp"
    half.write_bytes(b"half")
    store = CellStore(tmp_path, {}, joins=True)
    assert half.exists() and not store.published and not store.has_prediction((0, 0))
    CellStore(tmp_path, {}, resume=True)
    assert not half.exists()
