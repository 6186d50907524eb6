"""Several processes that share a run: what they compute, and what happens when one fails."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from crash_server import make_folder, outcome
from ranks_server import OPTIONS, environment, together
from sources import ROOT
from toys import toy_category

from tiled_ref import cli
from tiled_ref.running import processes
from tiled_ref.running import results as stored
from tiled_ref.running.category_images import CategoryImages
from tiled_ref.running.cell import Options, run_cell
from tiled_ref.running.pieces import Pieces
from tiled_ref.running.processes import ENDED, Ended, Ranks, Share
from tiled_ref.setups import Recipe, Setup
from tiled_ref.support.devices import resolve_device
from tiled_ref.support.errors import InputError
from tiled_ref.support.progress import Progress

SERVER = ROOT / "tests" / "ranks_server.py"
RUN = SERVER.parent.parent / "run.py"
QUIET = Progress(quiet=True)
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
    return json.loads((folder / "report.json").read_text())


def results(found):
    """What was computed: all of metrics.json but times, memory and the number of processes."""
    return {
        path: {key: value for key, value in result.items() if key != "n_processes"}
        for path, result in found["results"].items()
    }


def statuses(case):
    return [rank["status"] for rank in case["ranks"]]


def sentences(case):
    """(rank, line) of every line of this program that is an error or an interrupt."""
    return [
        (k, line)
        for k, rank in enumerate(case["ranks"])
        for line in rank["stderr"].splitlines()
        if line.startswith("tiled-ref:")
    ]


def said_once(case):
    """The only sentence of all ranks; no rank but one with a mistake shows a traceback."""
    ((_, line),) = sentences(case)
    return line


# ------------------------------------------------------------------- what they compute


@pytest.mark.parametrize("name", ["two", "two again", "two on their own", "restarted by torchrun"])
def test_ranks_compute_what_one_process_computes(report, name):
    """Metrics and models bit for bit, the same set of files, one table. Without torchrun, rank 0
    keeps the store."""
    one, case = report["one"], report[name]
    assert statuses(case) == [0] * len(case["ranks"])
    assert results(case["outcome"]) == results(one["outcome"]) and len(results(one["outcome"])) == 2
    assert case["states"] == one["states"] and len(one["states"]) == 4 + 1
    assert case["outcome"]["files"] == one["outcome"]["files"]
    table = case["ranks"][0]["stdout"]
    assert table.count("ENS-32-16-16") == one["ranks"][0]["stdout"].count("ENS-32-16-16") > 0
    for rank in case["ranks"][1:]:
        assert rank["stdout"] == rank["stderr"] == ""


def test_a_vanished_defect_is_said_once_for_all_cells_and_ranks(report):
    """By rank 0; that the others print nothing stands above."""
    for name in ("one", "two"):
        first = report[name]["ranks"][0]
        assert first["stderr"].count("1 of 3 (at 32x32)") == 1
        assert first["stdout"].count("1 of 3 (parts at 32x32)") == 1


def test_the_work_is_shared(report):
    """Rank 0 shows its own progress only: fewer than all locations, more than none."""
    fits = [report[name]["ranks"][0]["stderr"].count(": fit") for name in ("one", "two")]
    assert fits[0] == 4 + 1 and 0 < fits[1] < fits[0]
    assert "2 processes share the tile locations" in report["two"]["ranks"][0]["stderr"]
    counts = {r["n_processes"] for r in report["two"]["outcome"]["results"].values()}
    assert counts == {2}


@pytest.mark.parametrize("name", ["two again", "restarted by torchrun"])
def test_resuming_skips_what_is_finished(report, name):
    """With --resume, and where torchrun --max-restarts starts the ranks again."""
    assert ": fit" not in report[name]["ranks"][0]["stderr"]


@pytest.mark.parametrize("name", ["resumed by three", "resumed by one"])
def test_any_number_of_processes_resumes(report, name):
    case = report[name]
    assert case["ranks"][0]["stderr"].count(": fit") < 4 + 1
    assert results(case["outcome"]) == results(report["one"]["outcome"])
    assert case["states"] == report["one"]["states"]
    assert case["outcome"]["files"] == report["one"]["outcome"]["files"]


# --------------------------------------------------------------------- when one of them fails


@pytest.mark.parametrize(
    "name, who, sentence, status",
    [
        ("killed", 0, ENDED, [1, None]),
        ("main killed", 1, ENDED, [None, 1]),
        ("no memory", 1, "out of memory (Unable to allocate 9 GiB); choose a smaller", [1, 2]),
        ("mistake", 1, "KeyError: 'mistake'", [1, 99]),
        ("bad input of the only cell", 1, "the image x is damaged", [1, 2]),
    ],
)
def test_a_rank_that_fails_ends_the_run_with_one_sentence(report, name, who, sentence, status):
    """Nobody hangs, or the server would kill it; what was complete is kept."""
    case = report[name]
    ((rank, line),) = sentences(case)
    assert rank == who and line.startswith(f"tiled-ref: error: {sentence}")
    assert statuses(case) == status and case["partial"]
    tracebacks = [rank["stderr"].count("TRACEBACK") for rank in case["ranks"]]
    assert tracebacks == ([0, 1] if name == "mistake" else [0, 0])


def test_who_has_done_its_share_stays_to_say_that_another_was_killed(report):
    case = report["killed at the end"]
    assert sentences(case) == [(0, f"tiled-ref: error: {ENDED}")] and statuses(case) == [1, None]


@pytest.mark.parametrize("name, status", [("lost store", [1, 1]), ("lost host", [None, 1])])
def test_without_the_store_every_rank_that_is_left_says_so(report, name, status):
    """torchrun is killed, or without it rank 0, which keeps the store."""
    case = report[name]
    left = [rank for rank, value in enumerate(status) if value]
    assert sentences(case) == [(rank, f"tiled-ref: error: {ENDED}") for rank in left]
    assert statuses(case) == status and case["partial"]
    assert not any("TRACEBACK" in rank["stderr"] for rank in case["ranks"])


def test_a_cell_that_fails_in_one_rank_is_dropped_by_all_and_the_others_go_on(report):
    """Rank 1 cannot do its second location of ENS4; ST4 is computed all the same."""
    case, one = report["bad input"], report["one"]
    assert statuses(case) == [2, 0] and case["ranks"][1]["stderr"] == ""
    assert said_once(case) == (
        "tiled-ref: error: folder parts padim ENS-32-16-16 seed 1: the image x is damaged"
    )
    found = results(case["outcome"])
    assert len(found) == 1 and found.items() <= results(one["outcome"]).items()
    assert "ST-32-16-16" in case["ranks"][0]["stdout"]
    assert "ENS-32-16-16" not in case["ranks"][0]["stdout"] and case["partial"]
    resumed = report["bad input resumed"]
    assert statuses(resumed) == [0, 0]
    assert results(resumed["outcome"]) == results(one["outcome"])


def test_what_every_rank_finds_wrong_is_told_once(report):
    case = report["bad image"]
    assert statuses(case) == [2, 0]
    assert [(rank, line.split(" seed 1: the image")[0]) for rank, line in sentences(case)] == [
        (0, f"tiled-ref: error: folder parts padim {setup}-32-16-16") for setup in ("ENS", "ST")
    ]
    assert case["ranks"][0]["stdout"] == case["ranks"][1]["stderr"] == ""


def test_an_interrupt_is_one_line(report):
    case = report["interrupted"]
    assert statuses(case) == [130, 130]
    assert said_once(case) == "tiled-ref: interrupted; the same command with --resume continues"


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("no folder", "nowhere does not exist"),
        ("bad option", "argument --setup: invalid choice: 'ENS5'"),
        ("resident", "--memory resident keeps all tile locations in one process, and 2 processes"),
        ("other options", "rank 1 needs the options, weights and versions of rank 0"),
        ("other folder", "the --out of rank 1 is not the folder that rank 0 writes to"),
    ],
)
def test_bad_input_is_one_sentence(report, name, sentence):
    """Of the first rank that finds it; torchrun then ends the others."""
    case = report[name]
    line, ends = said_once(case), {(2, None), (1, None), (None, signal.SIGTERM)}
    assert sentence in line and line.startswith("tiled-ref: error: ")
    assert 2 in statuses(case)
    assert {(rank["status"], rank["signal"]) for rank in case["ranks"]} <= ends
    assert not any("TRACEBACK" in rank["stderr"] for rank in case["ranks"])
    assert case["outcome"]["files"] == []


# ------------------------------------------------------------------------------ the real torchrun


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """(arguments of a run, what one process computes of it)."""
    folder = tmp_path_factory.mktemp("torchrun")
    make_folder(folder / "parts")
    argv = ["--dataset", "folder", "--root", str(folder / "parts"), *OPTIONS, "--quiet"]
    assert cli.main([*argv, "--out", str(folder / "one")]) == 0
    return argv, outcome(folder / "one")


def torchrun(*argv):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*command, "--nproc-per-node", "2", *map(str, argv)],
        capture_output=True, text=True, env=ENV, timeout=250,
    )  # fmt: skip


def test_torchrun_shares_a_run(parts, tmp_path):
    argv, one = parts
    two = torchrun(RUN, *argv, "--out", tmp_path)
    assert two.returncode == 0, two.stderr
    assert "tiled-ref" not in two.stderr and two.stdout.count("category  arch") == 1
    assert results(outcome(tmp_path)) == results(one)
    assert outcome(tmp_path)["files"] == one["files"]


def test_torchrun_ends_a_run_one_of_whose_processes_was_killed(parts, tmp_path):
    """Our sentence stands before torchrun's report, and --resume gives what one process does."""
    argv, one = parts
    argv = [*argv, "--out", str(tmp_path / "two")]
    ended = torchrun(SERVER, "--kill", tmp_path / "marker", *argv)
    assert ended.returncode != 0 and ended.stderr.count("tiled-ref: ") == 1, ended.stderr
    before, _, after = ended.stderr.partition(f"tiled-ref: error: {ENDED}\n")
    assert "Signal 9" in after and "Traceback" not in before
    assert cli.main([*argv, "--resume"]) == 0
    assert results(outcome(tmp_path / "two")) == results(one)
    assert outcome(tmp_path / "two")["files"] == one["files"]


# ---------------------------------------------------------------------------------- part by part


def test_one_process_asks_nobody():
    """Also under torchrun --nproc-per-node 1, and where a variable is somebody else's."""
    half = environment()
    del half["MASTER_PORT"]
    for alone in Ranks(), Ranks(environment(size=1)), Ranks(half), Ranks({}):
        assert alone.size == 1 and alone.is_main
        with alone.one_at_a_time("images a"), alone.one_at_a_time("images a"):
            pass
        share = Share(alone, "cell")
        share.opened("ready")
        assert share.opens and share.finishes and list(share.take([(0, 0)])) == [(0, 0)]
    assert Ranks(environment(1)).size == 2 and not Ranks(environment(1)).is_main


@pytest.mark.parametrize(
    "asked, local_rank, device",
    [("cuda", 2, "cuda:2"), ("auto", 5, "cuda:1"), ("cuda:3", 1, "cuda:3"), ("cpu", 1, "cpu")],
)
def test_every_rank_has_its_own_device(monkeypatch, asked, local_rank, device):
    """The fifth of six ranks shares a device with another."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    ranks = Ranks(environment(local_rank, 6))
    assert resolve_device(asked, ranks) == torch.device(device)
    assert resolve_device("cuda", Ranks()) == torch.device("cuda")


def test_a_cell_is_shared_location_by_location():
    """Each location once; who completes the last one finishes, here the one that was taken
    before it."""
    locations = [(0, 0), (0, 1), (1, 0)]
    a, b = (Share(ranks, "cell") for ranks in together())
    assert a.opens and not b.opens
    a.opened("ready")
    assert not b.is_over()
    first, second = a.take(locations), b.take(locations)
    assert [next(first), next(second), next(second)] == locations
    assert list(second) == [] and not b.finishes
    assert list(first) == [] and a.finishes
    assert not b.finishes


def test_a_rank_that_joins_holds_a_location_from_then_on():
    """So the cell cannot be finished, and its files removed, before it has opened them."""
    locations = [(0, 0), (0, 1)]
    a, b = (Share(ranks, "cell") for ranks in together())
    a.opened("ready")
    first = a.take(locations)
    assert next(first) == (0, 0) and b.joins(2)
    assert list(first) == [] and not a.finishes
    assert list(b.take(locations)) == [(0, 1)] and b.finishes


def test_a_rank_that_comes_when_the_work_is_done_does_nothing(tmp_path, tiny_backbone):
    """The other one has finished the cell and has removed its files; with one location, as of ST
    and SM, that is usual."""
    first, second = (one_cell(tiny_backbone, tmp_path, ranks=ranks) for ranks in together())
    assert first["n_processes"] == 2 and second is None


def one_cell(backbone, out, seed=42, **options):
    """The result of a cell of one location."""
    options = Options(out, **options)
    images = CategoryImages(toy_category(), options, QUIET)
    recipe = Recipe(Setup("SM-48", "SM", (48, 48), (48, 48), (48, 48)), seed=seed)
    return run_cell(recipe, images, backbone, options, QUIET)


def test_a_result_that_another_rank_replaces_has_no_row(tiny_backbone, tmp_path, monkeypatch):
    """It was there when the folder was listed and has been moved away when it is read."""
    for seed in 1, 2:
        one_cell(tiny_backbone, tmp_path, seed)
    gone, left = sorted(tmp_path.rglob("metrics.json"))
    read, rows = stored.read_result, tmp_path / "results.csv"
    assert len(rows.read_text().splitlines()) == 3

    def replaced(path):
        gone.unlink(missing_ok=True)
        return read(path)

    monkeypatch.setattr(stored, "read_result", replaced)
    stored.write_results_csv(tmp_path)
    assert len(rows.read_text().splitlines()) == 2
    left.write_text("{}")
    with pytest.raises(InputError, match="damaged"):
        stored.write_results_csv(tmp_path)


@pytest.mark.parametrize("state", ["finished", "failed"])
def test_a_cell_that_is_over_before_it_was_open_is_over_for_all(state):
    a, b = (Share(ranks, "cell") for ranks in together())
    a.opened(state)
    assert b.is_over() and list(b.take([(0, 0)])) == [] and not b.finishes


def test_a_cell_that_fails_is_over_for_all_and_nobody_finishes_it():
    locations = [(0, 0), (0, 1), (1, 0)]
    a, b = (Share(ranks, "cell") for ranks in together())
    a.opened("ready")
    first, second = a.take(locations), b.take(locations)
    next(first), next(second)
    b.opened("failed")  # the rank that did not open it
    assert list(first) == [] and not a.finishes and not b.finishes


def test_ranks_write_the_images_of_a_category_one_after_the_other():
    """Four threads as ranks: nobody comes in before the one before has gone, also when that one
    raised; another name is another turn."""
    inside, log = [], []

    def work(rank):
        with contextlib.suppress(KeyError), rank.one_at_a_time("images a"):
            assert inside == [], inside
            inside.append(rank)
            time.sleep(0.02)
            log.append(inside.pop().rank)
            if rank.rank == 1:
                raise KeyError
            with rank.one_at_a_time(f"images of {rank.rank}"):
                log.append(rank.rank)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, together(4)))
    assert sorted(log) == [0, 0, 1, 2, 2, 3, 3]


def test_the_main_rank_stays_until_the_others_have_left(monkeypatch):
    """It may keep the store; and it may fail, which must not end those that have done all."""
    main, other = together()
    signals = []

    def ignore(number, handler):
        signals.append((number, handler, main.store.check(["left/1"])))

    monkeypatch.setattr(processes.signal, "signal", ignore)
    with ThreadPoolExecutor(1) as pool:
        other.store.set("failures/1", '[["cell", "text", true]]')
        found = pool.submit(main.finish, [["a", "b", False]])
        time.sleep(5 * processes.POLL_SECONDS)
        assert not found.done()
        other.finish([["cell", "text", True]])
        assert found.result() == [["a", "b", False], ["cell", "text", True]]
    assert signals == [(signal.SIGTERM, signal.SIG_IGN, False)]


@pytest.mark.parametrize(
    "number, raised", [(signal.SIGTERM, Ended), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_that_comes_while_a_destructor_runs_is_not_lost(number, raised):
    """Python ignores an exception of a destructor; the next wait of the rank raises it again."""
    rank, _ = together()
    rank.store.set("key", "text")
    assert rank.read("key") == "text"

    class Temporary:
        def __del__(self):
            with contextlib.suppress(raised):  # as Python does, which prints it
                rank._end(number, None)

    Temporary()
    with pytest.raises(raised):
        rank.read("key")


class Gone:
    """A store whose server has gone."""

    def add(self, key, number):
        raise RuntimeError("Broken pipe")


def test_of_several_failures_the_first_is_printed(capsys):
    for rank in together():
        rank.fail(f"rank {rank.rank} failed")
    assert capsys.readouterr().err == "rank 0 failed\n"
    for store in None, Gone():
        rank.store = store
        rank.fail("alone")
        assert capsys.readouterr().err == "alone\n"


def test_who_joins_a_cell_removes_nothing(tmp_path):
    """Temporary files in the folder belong to ranks that are alive."""
    Pieces(tmp_path, {})
    half = tmp_path / "partial" / ".maps_0_0.npy.999999999.tmp"
    half.write_bytes(b"half")
    pieces = Pieces(tmp_path, {}, joins=True)
    assert half.exists() and not pieces.is_done((0, 0))
    Pieces(tmp_path, {}, resume=True)
    assert not half.exists()
