"""bench/cuda.py on a CPU: it measures, goes on where it ended, keeps errors and writes tables."""

import contextlib
import importlib
import json
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from sources import ROOT

from tiled_ref.data.encoders import encode_png
from tiled_ref.reporting.charts import read_pipeline
from tiled_ref.running.engine import Resident

TOY = ["--device", "cpu", "--weights", "random", "--shrink", "8", "--n-train", "3", "--steps", "1",
       "--row-seconds", "0.01"]  # fmt: skip


@pytest.fixture(scope="module")
def bench():
    """The script's three files."""
    before = list(sys.path)
    sys.path.insert(0, str(ROOT))
    names = "cuda", "cuda_jobs", "cuda_tables"
    modules = SimpleNamespace(**{name: importlib.import_module(f"bench.{name}") for name in names})
    sys.path[:] = before
    return modules


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A folder of two training and two test images."""
    folder, rng = tmp_path_factory.mktemp("data") / "parts", np.random.default_rng(0)
    for k, name in enumerate(("train/good/0", "train/good/1", "test/good/0", "test/bad/0")):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(rng.integers(0, 99 + 50 * k, (40, 40, 3), np.uint8)))
    return folder


@pytest.fixture
def call(bench, tmp_path):
    """Calls the script: (status, what is measured, the page)."""

    def call(*argv):
        status = bench.cuda.main([*TOY, "--out", str(tmp_path / "out"), *argv])
        kept = json.loads((tmp_path / "out" / "cuda.json").read_text())
        return status, kept["measured"], (tmp_path / "out" / "cuda.md").read_text()

    return call


@pytest.fixture
def machine(bench, monkeypatch):
    """A stand-in for processes and clock: each row takes a minute; some fail."""
    state = SimpleNamespace(clock=0.0, rows=[], fail={}, processes=0)

    def run(command, seconds, on_line):
        state.processes += 1
        for key in json.loads(command[-1])["keys"]:
            if key in state.fail:
                stderr = f"Traceback\n{state.fail[key]}"
                return False, SimpleNamespace(returncode=1, stderr=stderr)
            if seconds < 60:
                state.clock += seconds
                return True, SimpleNamespace(returncode=-15, stderr="")
            seconds, state.clock = seconds - 60, state.clock + 60
            state.rows.append(key)
            on_line(json.dumps({"key": key, "row": {"left_out": "made up"}}) + "\n")
        return False, SimpleNamespace(returncode=0, stderr="")

    clock = SimpleNamespace(monotonic=lambda: state.clock, strftime=lambda form: "2026-11-28")
    monkeypatch.setattr(bench.cuda, "run", run)
    monkeypatch.setattr(bench.cuda, "time", clock)
    return state


ONE = ["--parts", "memory", "--archs", "padim", "--minutes", "8"]


def test_a_call_goes_on_where_the_last_one_ended(call, machine, capsys):
    status, rows, _ = call(*ONE)
    assert status == 3 and len(rows) == 7 and machine.clock == pytest.approx(0.92 * 480)
    assert "left: 4 of 11 measurements, memory/padim/512 is next" in capsys.readouterr().err
    status, rows, _ = call(*ONE)
    assert status == 0 and len(rows) == 11 == len(machine.rows) and machine.processes == 2
    assert call(*ONE)[0] == 0 and machine.processes == 2


def test_what_fails_is_a_row_and_the_others_go_on(call, machine, tmp_path):
    machine.fail = {"memory/padim/ST4": "OutOfMemoryError: CUDA out of memory"}
    status, rows, page = call(*ONE, "--minutes", "80")
    assert status == 1 and len(rows) == 11 and machine.processes == 2
    assert rows["memory/padim/ST4"] == {"error": "OutOfMemoryError: CUDA out of memory"}
    assert "- memory/padim/ST4: OutOfMemoryError: CUDA out of memory" in page
    assert "| ST4 | failed |" in page and "| ST9 | made up |" in page
    assert "Traceback" in (tmp_path / "out" / "errors.txt").read_text()
    machine.fail = {}
    assert call(*ONE, "--minutes", "80")[0] == 1  # a failure is not tried again unless one asks
    again = ["--parts", "latency", "--archs", "padim", "--minutes", "80", "--retry"]
    assert "error" in call(*again)[1]["memory/padim/ST4"]  # which is not among them
    status, rows, page = call(*ONE, "--minutes", "80", "--retry")
    assert status == 0 and "error" not in rows["memory/padim/ST4"] and "failed |" not in page


def test_what_needs_a_whole_call_is_not_begun_for_ever(call, machine):
    argv = [*ONE, "--minutes", "0.9"]  # a row takes a minute
    status, rows, _ = call(*argv)
    assert status == 3 and rows == {"memory/padim/SM256": {"error": "took more than --minutes 0.9"}}
    assert list(call(*argv)[1]) == ["memory/padim/SM256", "memory/padim/SM512"]


def test_rows_of_other_settings_are_not_mixed(call, machine, capsys):
    call(*ONE)
    assert call(*ONE, "--full")[0] == 2
    assert "measured with another passes, row_seconds; choose another" in capsys.readouterr().err


def test_no_gpu_is_one_sentence(bench, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench.cuda.torch.cuda, "is_available", lambda: False)
    assert bench.cuda.main(["--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "torch sees no CUDA device here, so nothing was measured\n"
    assert not (tmp_path / "out").exists()


PATIENT = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "


@pytest.mark.parametrize("before", ["", PATIENT], ids=["ends", "ignores SIGTERM"])
def test_a_process_is_ended_and_what_it_printed_is_kept(bench, monkeypatch, before):
    monkeypatch.setattr(bench.cuda, "GRACE", 0.2)
    code = before + "import time; print('measured', flush=True); time.sleep(60)"
    lines = []
    ended, done = bench.cuda.run([sys.executable, "-c", code], 0.5, lines.append)
    assert ended and lines == ["measured\n"] and done.returncode == (-9 if before else -15)


def test_a_process_that_fails_says_why(bench):
    code = "import sys; print('a'); sys.exit('RuntimeError: broken')"
    ended, done = bench.cuda.run([sys.executable, "-c", code], 60)
    assert not ended and done.returncode == 1
    assert bench.cuda.failure(done) == "RuntimeError: broken"


def test_a_call_that_is_ended_ends_its_process(bench, tmp_path):
    argv = [*TOY, "--parts", "memory", "--archs", "padim", "--out", str(tmp_path)]
    call = [sys.executable, ROOT / "bench" / "cuda.py", *argv]
    with subprocess.Popen(call, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr.readline() == "memory/padim/SM256: measured\n"
        process.terminate()
    assert process.returncode == 128 + signal.SIGTERM
    with bench.cuda.locked(tmp_path):  # which its process would still hold
        assert list(json.loads((tmp_path / "cuda.json").read_text())["measured"])


def test_nothing_is_measured_beside_the_process_of_a_killed_call(bench, machine, tmp_path, capsys):
    argv = [*TOY, *ONE, "--out", str(tmp_path)]
    with bench.cuda.locked(tmp_path):
        left = subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1, stderr=-3, close_fds=False)
    with left:
        assert bench.cuda.main(argv) == 2
        assert "a process of one that was killed, is still measuring" in capsys.readouterr().err
        left.stdin.close()
    assert bench.cuda.main(argv) == 3


@pytest.mark.parametrize("argv, reason", [
    (["--category", "screw"], "--category needs --root"),
    (["--weights", "/nowhere.pth"], "--weights /nowhere.pth: cannot be read"),
    (["--out", "/proc/none/cuda"], "No such file or directory"),
])  # fmt: skip
def test_what_cannot_be_measured_is_one_sentence(bench, tmp_path, capsys, argv, reason):
    assert bench.cuda.main([*TOY, "--out", str(tmp_path), *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bench/cuda.py: ") and reason in line


JUNIT = """import sys; open(sys.argv[-1].partition('=')[2], 'w').write('''<testsuites><testsuite>
<testcase classname="a" name="one"/><testcase classname="a" name="two"><failure/></testcase>
<testcase classname="b" name="three"><skipped/></testcase><testcase classname="b" name="four"/>
</testsuite></testsuites>'''); sys.exit(1)"""


def test_the_cuda_tests_are_counted(bench, call, monkeypatch):
    monkeypatch.setattr(bench.cuda, "CHECKS", [sys.executable, "-c", JUNIT])
    status, rows, page = call("--parts", "checks")
    assert rows["checks"] == {"passed": 2, "skipped": 1, "failed": ["a::two"]} and status == 1
    assert "2 passed, 1 skipped, 1 failed.\n\n- a::two" in page


def test_without_pytest_the_tests_fail(bench, call, monkeypatch):
    monkeypatch.setattr(bench.cuda, "CHECKS", [sys.executable, "-c", "import no_pytest"])
    status, rows, page = call("--parts", "checks")
    assert status == 1 and rows["checks"]["error"].endswith("No module named 'no_pytest'")
    assert "`python -m pytest -m cuda`: failed." in page


@pytest.fixture
def here(bench, monkeypatch):
    """Jobs run in this process."""

    def run(command, seconds, on_line):
        for row in bench.cuda_jobs.rows_of(json.loads(command[-1])):
            on_line(json.dumps(row))
        return False, SimpleNamespace(returncode=0, stderr="")

    def only(*keys):
        monkeypatch.setattr(bench.cuda, "keys_of", lambda parts, archs: list(keys))

    monkeypatch.setattr(bench.cuda, "run", run)
    return only


def test_memory_and_latency_are_measured(call, here, parts, tmp_path):
    modes = "float32/low", "float32/resident", "float16/low", "float32/graph"
    here("memory/padim/ENS4", "memory/patchcore/768", *(f"latency/padim/SM256/{m}" for m in modes))
    status, rows, page = call("--root", str(parts))
    assert status == 0 and len(rows) == 6
    row = rows["memory/padim/ENS4"]
    assert row["low"] > 50 << 20 and row["n_models"] == 4 and row["n_train"] == 2
    row = rows["memory/patchcore/768"]
    assert row["n_models"] == 9 and row["n_train"] == 16 and row["n_trained"] == 2
    for key in ("latency/padim/SM256/float32/low", "latency/padim/SM256/float32/resident"):
        row = rows[key]
        assert 0 < row["latency_ms_min"] <= row["latency_ms_median"] and row["deviation"] == 0
        assert row["images_per_second"] > 0 and 1 <= row["passes"] <= 300 and row["batch"] == 16
    for key in ("latency/padim/SM256/float16/low", "latency/padim/SM256/float32/graph"):
        assert rows[key] == {"left_out": "needs a GPU"}
    assert "| SM256, float16, low | needs a GPU | not measured |" in page
    (figure,) = read_pipeline(tmp_path / "out" / "cuda.json")
    assert (figure["arch"], figure["setup"], figure["device"]) == ("padim", "SM256", "cpu")


@pytest.fixture
def job(bench, parts, tmp_path):
    argv = [*TOY, "--root", str(parts), "--category", "parts", "--out", str(tmp_path)]
    args = bench.cuda.build_parser().parse_args(argv)
    return bench.cuda.job_of(args)


def test_what_deviates_is_not_timed(bench, job, monkeypatch):
    class Off(bench.cuda_jobs.Engine):
        def predict(self, images):
            maps, scores = super().predict(images)
            return maps, scores * np.float32(1.001)

    monkeypatch.setattr(bench.cuda_jobs, "Engine", Off)
    with pytest.raises(SystemExit, match="off by 1.0e-03 of the largest value: nothing is timed"):
        bench.cuda_jobs.measure_latency(job, "padim", "SM256", "float32", "low")
    row = bench.cuda_jobs.measure_latency(job, "padim", "SM256", "bfloat16", "low")
    assert row["deviation"] > 5e-4  # fewer bits have no limit


def test_a_graph_gives_what_the_engine_gives(bench, job, monkeypatch):
    """A stand-in for a graph computes anew into the tensors that were captured."""
    ensemble, image, _ = bench.cuda_jobs.fitted(json.dumps(job), "padim", "ENS4")
    kind, calls = Resident, []
    found = kind.found

    def noted(self, images):
        calls.append((self, images, list(found(self, images))))
        return calls[-1][-1]

    def replay():
        resident, images, captured = calls[-1]
        for old, new in zip(captured, list(found(resident, images))):
            for part, again in zip(old, new):
                part.copy_(again)

    nothing, stream = contextlib.nullcontext, SimpleNamespace(wait_stream=lambda other: None)
    fakes = {
        "Stream": lambda: stream, "current_stream": lambda: stream, "stream": nothing,
        "CUDAGraph": lambda: SimpleNamespace(replay=replay), "graph": nothing,
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(bench.cuda_jobs.torch.cuda, name, fake)
    monkeypatch.setattr(kind, "found", noted)
    predict = bench.cuda_jobs.graph_of(ensemble, image)
    assert len(calls) == 4  # three to warm up
    monkeypatch.setattr(kind, "found", found)
    for other in image, 255 - image:
        for part, same in zip(predict(other), ensemble.predict(other)):
            np.testing.assert_allclose(part, same, rtol=1e-4)


def test_passes_stop_at_the_limit(bench):
    device = SimpleNamespace(type="cpu")
    assert len(bench.cuda_jobs.passes(lambda: None, device, 7, 60)) == 7
    assert len(bench.cuda_jobs.passes(lambda: None, device, 7, -1)) == 1


def test_the_tables(bench):
    memory = {"training": 4 << 20, "training_reserved": 5 << 20, "n_train": 3, "seconds": 1.25}
    latency = {"warmup": 9, "passes": 8, "deviation": 2e-5, "latency_ms": 5, "latency_ms_min": 3}
    rows = {
        "memory/padim/SM256": {**memory, "low": 2 << 20, "low_reserved": 4 << 20},
        "memory/padim/ENS9": {**memory, "low": 3 << 20, "low_reserved": 5 << 20},
        "latency/padim/ST9/float32/resident":
            {**latency, "latency_ms_median": 4, "images_per_second": 99.9},
        "latency/padim/ENS9/float32/resident":
            {**latency, "latency_ms_median": 6, "images_per_second": None},
        "quality/fastflow/42/ENS9": {"image_auroc": 0.5, "pixel_aupro": 0.25},
        "quality/fastflow/33/ENS9": {"image_auroc": 0.75, "pixel_aupro": 0.25},
    }  # fmt: skip
    about = {"category": "screw", "n_train": 3, "kind": "imagenet", "steps": 200, "torch": "2",
             "card": "H", "date": "D", "passes": [100, 300]}  # fmt: skip
    page = bench.cuda_tables.report({"measured": rows, "about": about})
    for text in (
        "D, H, torch 2; screw, memory and latency with 3 training images; imagenet weights; 200 ",
        "| SM256 | 4 / 5 | not measured |", "| ENS9 | 3 / 5 | not measured |",
        "| ENS9 / SM256 (goal: at most 1.10) | 1.50 / 1.25 | not measured |",
        "| ENS9 | 1.2 (3; 975) | not measured |",
        "| ENS9, float32, resident | 5.0 / 6.0 / 3.0 | not measured |",
        "| ENS9 / ST9, resident (goal: at most 1.15) | 1.50 | not measured |",
        "| ST9, float32, resident | 99.9 | not measured |",
        "| ENS9, float32, graph | not measured | - | - | - |",
        "| ENS9, float32, resident | 9 + 8; 2e-05 | not measured |",
        "| ENS9 | AUROC 62.5 (2 seeds, paper 81.2); AUPRO 25.0 (2 seeds, paper 88.6) | not measured",
    ):
        assert text in page, text
    page = bench.cuda_tables.report({"measured": {}, "about": {}})
    assert "Training: not measured." in page and "Images/s, batch of 16, PatchCore 8: not" in page
    assert "| ENS9 / SM256 (goal: at most 1.10) | not measured |" in page and "None" not in page


@pytest.mark.slow
def test_real_processes(bench, call, parts, monkeypatch):
    keys = ["memory/fastflow/ST9", "quality/fastflow/42/ENS4"]
    monkeypatch.setattr(bench.cuda, "keys_of", lambda parts, archs: keys)
    status, rows, _ = call("--root", str(parts))
    assert status == 0 and list(rows) == keys, rows
    assert rows[keys[0]]["n_train"] == 2 and rows[keys[0]]["seconds"] > 0
    assert 0 <= rows[keys[1]]["image_auroc"] <= 1 and rows[keys[1]]["pixel_aupro"] is None
