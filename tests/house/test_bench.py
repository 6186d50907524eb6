"""The benchmarks in bench/ run, compare results before they time, and become tables."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from sources import ROOT


def load(name):
    """A file of bench/ as a module."""
    spec = importlib.util.spec_from_file_location(f"bench_{name}", ROOT / "bench" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """JSON of the suite on the smallest arrays; of the latencies, one stands for all."""
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    child = subprocess.run(
        [sys.executable, "-m", "pytest", "bench", "--sizes", "tiny", "-p", "no:cacheprovider",
         "-k", "not latency or SM256 and (padim or backbone)", "--benchmark-json", str(path)],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert child.returncode == 0, child.stdout + child.stderr
    return path


@pytest.mark.slow
def test_every_contender_gives_the_expected_result_and_stands_in_a_table(measured, tmp_path):
    """The packages of peers may be missing."""
    tables, page = load("tables"), tmp_path / "README.md"
    page.write_text(f"before\n{tables.BEGIN}\nbygone\n{tables.END}\nafter\n")
    tables.main([str(measured), "--readme", str(page)])
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "bygone" not in text
    assert "python -m pytest bench --sizes tiny" in text and str(measured.parent) not in text
    titles = re.findall("#### (.*?)[:,]", text)
    assert list(dict.fromkeys(titles)) == [
        "Untiling", "Seam smoothing", "Blur of anomaly maps", "Labels", "AUPRO", "Pixel AUROC",
        "Resize", "Latency of one image", "Distances", "Coreset",
    ]  # fmt: skip
    assert text.count(" | 1.00 |\n") >= len(titles)
    for name in ("untile_average, 1 thread", "twin (NumPy)", "k_centre_greedy, 2 threads, exact"):
        assert f"\n| {name} | " in text


def made_up(group, contender, least, median, first=False):
    info = {"contender": contender, "first": first}
    stats = {"min": least, "median": median, "rounds": 7}
    return {"group": group, "extra_info": info, "stats": stats}


def test_a_table_divides_by_the_first_contender(tmp_path):
    """Shortest times, the first contender on top whenever it ran."""
    tables = load("tables")
    rows = [made_up("A", "ours", 0.003, 0.009), made_up("A", "limit", 0.002, 0.002, True)]
    ((title, ordered),) = tables.groups({"benchmarks": rows}).items()
    assert tables.table(title, ordered).splitlines() == [
        "#### A", "", "| | min, ms | median, ms | rounds | of the first row |",
        "|---|--:|--:|--:|--:|", "| limit | 2.00 | 2.00 | 7 | 1.00 |",
        "| ours | 3.00 | 9.00 | 7 | 1.50 |",
    ]  # fmt: skip


def test_a_page_without_markers_is_left_alone(tmp_path):
    path, page = tmp_path / "bench.json", tmp_path / "README.md"
    path.write_text(json.dumps({"benchmarks": []}))
    page.write_text("nothing\n")
    with pytest.raises(SystemExit, match="lacks the markers"):
        load("tables").main([str(path), "--readme", str(page)])
    assert page.read_text() == "nothing\n"


@pytest.mark.parametrize("name", ["cuda", "large", "lesson", "pipeline"])
def test_a_script_is_found_and_hides_no_package_of_its_name(name):
    """torch imports NVIDIA's package `cuda`, which bench/cuda.py is not."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / f"{name}.py"), "--help"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.startswith("usage: "), done.stderr


ONE = np.float32(1)
NEXT = np.nextafter(ONE, np.float32(2))


@pytest.mark.parametrize(
    "found, expected, agrees",
    [(NEXT, ONE, 0), ([ONE, NEXT], [ONE, ONE], 0), (np.float64(1), ONE, 0), ([ONE], [ONE, ONE], 0),
     (1.1, 1.0, 1e-2)],
)  # fmt: skip
def test_what_differs_is_not_timed(found, expected, agrees):
    """`benchmark` of a wrong contender is never called."""
    case = SimpleNamespace(title="A", expected=expected)
    with pytest.raises(AssertionError):
        load("conftest").check_and_time(
            None, 1, case, {"ours": (lambda case: lambda: found, agrees)}, "ours"
        )
