"""What the terminal shows, and the small things behind it."""

import csv
import io
import json
import subprocess
import sys

from sources import ROOT
from toys import toy_category, write_category

from tiled_ref import cli
from tiled_ref.reporting import summary
from tiled_ref.reporting.paper import paper_result
from tiled_ref.reporting.results import LEFT_OUT, largest_peak
from tiled_ref.support import memory, progress

RESULT = {
    "dataset": "mvtec", "category": "screw", "arch": "padim", "setup": "ENS9", "seed": 42,
    "image_auroc": 0.7043, "pixel_auroc": 0.98, "pixel_aupro": 0.9211, "weights": "imagenet",
    "n_parameters": 25_045_056, "seconds_train": 12.34, "seconds_test": 5.0,
    "peak_memory_bytes": 3 << 29, "fpr_limit": 0.3, "seg_f1": 0.4,
}  # fmt: skip


def cells(line):
    return [cell for cell in line.split("  ") if cell]


def test_table_shows_ours_beside_the_papers():
    """Table 6, screw, ENS9: 69.4/92.2."""
    header, _, row = summary.result_table([RESULT]).splitlines()
    row = [cell.strip() for cell in cells(row)]
    assert row == [
        "screw", "padim", "ENS9", "42", "70.4", "98.0", "92.1", "69.4/92.2", "+1.0/-0.1",
        "25.0 M", "12.3 s", "5.0 s", "1.50 GiB",
    ]  # fmt: skip
    assert "paper AUROC/AUPRO" in header


def test_columns_of_the_paper_are_left_out_where_it_has_no_such_cell():
    for change in ({"dataset": "synthetic"}, {"setup": "ENS-1024-256-256"}, {"weights": "random"}):
        assert "paper" not in summary.result_table([RESULT | change])


def test_aupro_with_another_limit_is_named_and_not_compared():
    header, _, row = summary.result_table([RESULT | {"fpr_limit": 0.05}]).splitlines()
    assert "AUPRO@0.05" in header and "SegF1" not in header
    assert "69.4/-" in row and "+1.0/-" in row
    both = summary.result_table([RESULT, RESULT | {"fpr_limit": 0.05}])
    assert "AUPRO@0.05, 0.3" in both


def test_mvtec_ad_2_shows_its_segf1():
    header, _, row = summary.result_table(
        [RESULT | {"dataset": "mvtec2", "category": "can", "fpr_limit": 0.05}]
    ).splitlines()
    assert [cell.strip() for cell in cells(header)][4:8] == [
        "image AUROC", "pixel AUROC", "AUPRO@0.05", "SegF1",
    ]  # fmt: skip
    assert " 40.0 " in row and "paper" not in header


def test_several_seeds_get_a_mean():
    other = RESULT | {"seed": 33, "image_auroc": 0.6, "pixel_aupro": None}
    lines = summary.result_table([RESULT, other]).splitlines()
    assert len(lines) == 5
    assert "mean of 2" in lines[4] and " 65.2 " in lines[4] and "-4.2/-" in lines[4]


def test_times_of_cells_that_reused_layers_are_left_out():
    alone, shared = RESULT | {"features_reused": 0.0}, RESULT | {"features_reused": 0.25}
    assert LEFT_OUT not in summary.result_table([alone, RESULT])
    lines = summary.result_table([alone, shared | {"seed": 33}]).splitlines()
    assert [[c.strip() for c in cells(line)][10:12] for line in lines[2:5]] == [
        ["12.3 s", "5.0 s"], ["-", "-"], ["-", "-"],
    ]  # fmt: skip
    assert lines[6].startswith(LEFT_OUT) and "--share-features off" in lines[6]


def test_undefined_metrics_are_a_dash():
    assert summary.percent(None) == "-" and summary.percent(0.12345) == "12.3"


def test_columns_line_up():
    lines = summary.text_table(["a", "bb"], [["xxx", "1"], ["y", "222"]]).splitlines()
    assert lines == ["a     bb", "---  ---", "xxx    1", "y    222"]


def test_paper_results_hold_tables_5_to_12():
    assert paper_result("mvtec", "padim", "average", "ENS9") == (0.897, 0.910)
    assert paper_result("visa", "reverse_distillation", "pcb1", "SM256") == (0.647, 0.940)
    assert paper_result("mvtec", "padim", "screw", "SM1024") is None
    archs = ("patchcore", "padim", "fastflow", "reverse_distillation")
    setups = ("SM256", "SM512", "ST4", "ST9", "ENS4", "ENS9")
    from tiled_ref.data import mvtec, visa

    for dataset, categories in (("mvtec", mvtec.CATEGORIES), ("visa", visa.CATEGORIES)):
        for category in categories:
            assert all(paper_result(dataset, a, category, s) for a in archs for s in setups)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_a_plain_line_per_stage_without_a_terminal():
    stream = io.StringIO()
    stage = progress.Progress(stream=stream).stage("fit tile 3/9")
    for done in range(1, 41):
        stage(done, 40)
    line = stream.getvalue()
    assert line.startswith("fit tile 3/9: 40/40 in ") and line.count("\n") == 1 and "\r" not in line


def test_progress_on_a_terminal_shows_counts_and_time_left(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    stream = Terminal()
    stage = progress.Progress(stream=stream).stage("decode")
    now[0] += 10
    stage(10, 40)
    assert stream.getvalue() == "decode: 10/40, 30.0 s left"
    stage(40, 40)
    assert stream.getvalue().endswith("\rdecode: 40/40 in 10.0 s\n")


def test_quiet_is_quiet():
    stream = Terminal()
    shown = progress.Progress(quiet=True, stream=stream)
    shown.note("x")
    shown.stage("y")(1, 1)
    assert stream.getvalue() == ""


PEAKS = """
import json
from tiled_ref.support import memory
peak = memory.PeakMemory("cpu")
peaks = [peak.read()["peak_memory_bytes"]]
block = bytearray(200 << 20)
peaks.append(peak.read()["peak_memory_bytes"])
del block
if not peak.since_start:
    peak.reset()
    peaks.append(peak.read()["peak_memory_bytes"])
print(json.dumps(peaks))
"""


def test_peak_memory_sees_an_allocation_and_forgets_it():
    """In a process of its own, where no garbage of others is given back in between."""
    child = subprocess.run([sys.executable, "-c", PEAKS], cwd=ROOT, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    before, after, *forgotten = json.loads(child.stdout)
    assert after - before > 150 << 20
    assert all(peak < after - (100 << 20) for peak in forgotten)


def test_a_peak_that_no_system_reports_is_none_and_a_dash(monkeypatch):
    """As on Windows: no resource, no /proc."""

    def no_proc(*args, **kwargs):
        raise FileNotFoundError

    monkeypatch.setattr(memory, "resource", None)
    monkeypatch.setattr(memory, "open", no_proc, raising=False)
    read = memory.PeakMemory("cpu").read()
    assert read["peak_memory_bytes"] is None and read["memory_kind"] == "host, not reported"
    unknown = RESULT | {"peak_memory_bytes": None}
    assert cells(summary.result_table([unknown]).splitlines()[-1])[-1].strip() == "-"
    assert largest_peak([unknown, RESULT]) == 3 << 29
    assert largest_peak([unknown]) is None


def test_a_run_and_its_report_do_without_peaks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory, "_peak_resident", lambda: None)
    write_category(tmp_path / "parts", toy_category(n_train=3, side=64), train="train")
    fixed = ["--dataset", "folder", "--root", tmp_path / "parts", "--weights", "random",
             "--device", "cpu"]  # fmt: skip
    argv = ["--setup", "SM256", "--seed", "1", "2", "--report", "--out", tmp_path / "out"]
    assert cli.main([str(part) for part in fixed + argv]) == 0
    said = capsys.readouterr()
    assert said.out.count(" -\n") == 3  # two seeds and their mean
    assert "Figure 5 needs peak memory" in said.err
    page = (tmp_path / "out" / "report" / "report.html").read_text("utf-8")
    assert '["-",null]' in page and "Figure 5" not in page
    with open(tmp_path / "out" / "results.csv", encoding="utf-8", newline="") as file:
        assert {row["peak_memory_bytes"] for row in csv.DictReader(file)} == {""}


def test_a_peak_that_the_system_forgets_counts_until_reset(monkeypatch):
    readings = iter([7, 5, 9, 5])
    monkeypatch.setattr(memory, "_peak_resident", lambda: next(readings))
    peak = memory.PeakMemory("cpu")
    assert [peak.read()["peak_memory_bytes"] for _ in range(3)] == [7, 7, 9]
    peak.reset()
    assert peak.read()["peak_memory_bytes"] == 5
