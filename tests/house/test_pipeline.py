"""bench/pipeline.py on toy sizes: every part measures, the tables and the JSON hold it."""

import importlib.util
import json

import pytest
from sources import ROOT

from tiled_ref.reporting.charts import read_pipeline

SCRIPT = ROOT / "bench" / "pipeline.py"


@pytest.fixture(scope="module")
def pipeline():
    spec = importlib.util.spec_from_file_location("bench_pipeline", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def toy(pipeline, tmp_path, monkeypatch):
    """Calls the script with its jobs in this process; returns (status, JSON, page)."""

    def in_this_process(kind, job, limit=None):
        return pipeline.JOBS[kind](json.loads(json.dumps(job)))

    monkeypatch.setattr(pipeline, "in_own_process", in_this_process)

    def call(*argv):
        status = pipeline.main([
            "--weights", "random", "--shrink", "8", "--n-train", "2",
            "--warmup", "0", "--runs", "1", "--steps", "1", "--tile", "32", "--counts", "1", "3",
            "--max-tiles", "2", "--out", str(tmp_path), "--readme", str(tmp_path / "README.md"),
            *argv,
        ])  # fmt: skip
        path = tmp_path / "pipeline.json"
        return status, json.loads(path.read_text()), (tmp_path / "README.md").read_text()

    return call


def test_every_setup_is_timed_in_both_modes(toy, tmp_path):
    status, kept, page = toy("--parts", "latency", "--archs", "padim")
    assert status == 0
    rows = kept["parts"]["latency"]["rows"]
    assert len({(r["arch"], r["setup"], r["memory"]) for r in rows}) == 6 * 2 == len(rows)
    for row in rows:
        assert 0 < row["latency_ms_min"] <= row["latency_ms_median"]
        assert row["images_per_second"] > 0
    assert "PaDiM: ENS9 / ST9, resident" in page and "<= 1.15" in page
    assert "0 warm-up and 1 measured runs" in page
    figure = read_pipeline(tmp_path / "pipeline.json")  # as the report reads it
    assert len(figure) == 6 and {row["device"] for row in figure} == {"cpu"}


def test_a_part_measured_later_leaves_the_others(toy):
    toy("--parts", "tiles", "--modes", "low")
    status, kept, page = toy(
        "--parts", "memory", "images", "--archs", "padim", "--setups", "SM256", "ENS9",
        "--modes", "low",
    )  # fmt: skip
    assert status == 0 and set(kept["parts"]) == {"tiles", "memory", "images"}
    for title in ("Number of tiles", "Memory and training time", "Number of images"):
        assert page.count(title) == 1
    memory = kept["parts"]["memory"]["rows"]
    assert [row["phase"] for row in memory] == ["training", "inference"] * 2
    for row in memory:
        assert row["peak_memory_bytes"] >= row["before_bytes"] > 0 and row["seconds"] > 0
    assert "PaDiM: ENS9 / SM256, low" in page
    tiles = [r for r in kept["parts"]["tiles"]["rows"] if r["phase"] == "inference"]
    assert [row["n_tiles"] for row in tiles] == [1, 4]
    images = kept["parts"]["images"]["rows"]
    assert [row["n_test"] for row in images] == [1, 3]


def test_trained_architectures_say_how_long(toy):
    page = toy("--parts", "latency", "--archs", "fastflow", "--setups", "SM256")[2]
    assert "with 1 training steps" in page and "FastFlow SM256" in page


def test_what_fails_is_a_row_that_says_so(pipeline, toy, monkeypatch):
    def run_py(args, argv):
        if "ENS4" in argv:
            return {"error": "tiled-ref: error: out of memory"}
        return {
            "n_models": 1, "pixel_aupro": 0.5, "image_auroc": None, "seconds_train": 1.0,
            "seconds_test": 2.0, "peak_memory_bytes": 1 << 20, "seconds": 3.0,
        }  # fmt: skip

    monkeypatch.setattr(pipeline, "run_py", run_py)
    status, kept, page = toy("--parts", "resolution", "--resolutions", "32", "64")
    assert status == 0 and len(kept["parts"]["resolution"]["rows"]) == 3
    assert "| 64 | single (1) | 50.0 |  | 1 |" in page
    assert "- padim, 64, ensemble: tiled-ref: error: out of memory" in page


def test_a_peer_that_is_not_there_is_said(pipeline, toy, monkeypatch):
    def whole(command, folder):
        assert len(list((folder / "parts").rglob("*.png"))) == 3 + 2 + 1
        return {"seconds": 1.0, "cpu_seconds": 1.5, "peak_memory_bytes": 3 << 20}

    monkeypatch.setattr(pipeline, "whole", whole)
    argv = ["--parts", "peer", "--peer-images", "3", "2", "48"]
    page = toy(*argv)[2]
    assert "| run.py | 1.0 | 1.5 | 3 |" in page
    assert "- anomalib: not measured: no --peer-python" in page
    page = toy(*argv, "--peer-python", "py")[2]
    assert "1.0 times faster (target: 4), 1.00 of the memory" in page


def test_a_process_of_its_own_reports_rows_or_its_error(pipeline):
    job = {
        "arch": "padim", "device": "cpu", "weights": "random", "steps": 1, "n_train": 2,
        "shrink": 8, "setup": "SM256", "folder": None,
    }  # fmt: skip
    (row,) = pipeline.in_own_process("train", job)
    assert row["phase"] == "training" and row["peak_memory_bytes"] > 50 << 20
    (row,) = pipeline.in_own_process("train", job, limit=8 << 20)  # too little to start Python
    assert row["error"] and row["arch"] == "padim"


def test_engines_that_differ_are_not_timed(pipeline, monkeypatch):
    class Off(pipeline.Engine):
        def predict(self, images):
            maps, scores = super().predict(images)
            return maps + 1e-6, scores

    monkeypatch.setattr(pipeline, "Engine", Off)
    job = {
        "arch": "padim", "device": "cpu", "weights": "random", "steps": 1, "n_train": 2,
        "shrink": 8, "setups": ["ENS4"], "modes": ["low"], "warmup": 0, "runs": 1, "batches": 0,
    }  # fmt: skip
    with pytest.raises(SystemExit, match="nothing is timed"):
        pipeline.job_latency(job)


def test_the_page_keeps_what_others_wrote(pipeline, tmp_path):
    path = tmp_path / "README.md"
    path.write_text("# What is measured\n\nkernels\n")
    pipeline.write_readme(path, "pipeline cpu", "CPU", "one")
    pipeline.write_readme(path, "cuda", "GPU", "two")
    pipeline.write_readme(path, "pipeline cpu", "CPU", "three")
    page = path.read_text()
    assert page.startswith("# What is measured\n\nkernels\n\n<!-- pipeline cpu: begin -->\n## CPU")
    assert "one" not in page and page.index("three") < page.index("two")
