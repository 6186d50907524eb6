"""Charts of a made-up OUT: what they show, what is left out and said."""

import json
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from made_up import made_up_result

from tiled_ref import metrics
from tiled_ref.reporting import charts
from tiled_ref.running.analysis import FPRS
from tiled_ref.support.errors import InputError

NAME = "{http://www.w3.org/2000/svg}"


def test_trend_is_least_squares_with_students_band():
    """y = 1 + 2 x with residuals -1, 2, -1 at x = 0, 1, 2: slope 2, s^2 = 6 / 1, so at the mean
    of x the half width is 12.706 sqrt(6 / 3)."""
    line = charts.trend([0, 1, 2], [0, 5, 4])
    y, half = line([1.0])
    assert y[0] == pytest.approx(3) and half[0] == pytest.approx(12.706 * 2**0.5)
    (low, high), (left, right) = line([0.0, 2.0])
    assert (low, high) == (pytest.approx(1), pytest.approx(5)) and left == pytest.approx(right)
    assert left == pytest.approx(12.706 * (6 * (1 / 3 + 1 / 2)) ** 0.5)
    assert charts.trend([0, 1], [0, 1]) is None and charts.trend([1, 1, 1], [0, 1, 2]) is None


@pytest.mark.optional
def test_points_of_students_t():
    stats = pytest.importorskip("scipy.stats")
    for k, value in enumerate(charts.T_95):
        assert value == pytest.approx(stats.t.ppf(0.975, k + 1), abs=6e-4)


def test_curves_end_at_the_limit():
    curve = metrics.Curve(np.array([0, 0.2, 0.4, 1]), np.array([0, 0.5, 0.7, 1]))
    x, y = charts._until(curve, 0.3)
    assert x.tolist() == [0, 0.2, 0.3] and y.tolist() == [0, 0.5, pytest.approx(0.6)]


def test_resolution_needs_several_sizes_of_one_kind():
    def at(side, tile, n_models):
        return made_up_result(setup="SM256", category="a") | {
            "image_size": [side] * 2, "tile_size": [tile] * 2, "stride": [tile] * 2,
            "n_models": n_models,
        }  # fmt: skip

    series = charts._by_resolution([at(256, 256, 1), at(512, 512, 1), at(512, 256, 4)])
    assert {kind: list(points) for kind, points in series.items()} == {
        "single model": [256, 512], "tiled ensemble, tile 256, stride 256": [512],
    }  # fmt: skip
    assert series["single model"][256] == (pytest.approx(80), 1.0)
    assert charts.kind_of(at(512, 256, 1)) == "tiled input, tile 256, stride 256"


def some(results, **more):
    """What a figure of results alone asks of a collection."""
    return SimpleNamespace(results=results, **more)


def bars(text):
    """{tooltip: height} of the bars of a chart."""
    rects = [r for r in ElementTree.fromstring(text).iter(f"{NAME}rect") if len(r)]
    return {rect.find(f"{NAME}title").text: float(rect.get("height")) for rect in rects}


def test_an_architecture_that_lacks_a_setup_has_no_bar_there():
    results = [
        made_up_result(arch=arch, setup=setup, peak_memory_bytes=n << 29)
        for arch, setup, n in (("padim", "SM256", 1), ("patchcore", "ENS9", 3))
    ]
    (figure,), _ = charts.memory(some(results))
    heights = bars(figure.data)
    assert set(heights) == {"SM256 PaDiM: 0.50 GiB", "ENS9 PatchCore: 1.50 GiB"}
    assert heights["ENS9 PatchCore: 1.50 GiB"] == pytest.approx(
        3 * heights["SM256 PaDiM: 0.50 GiB"], abs=0.05
    )


def test_a_peak_that_the_system_did_not_report_has_no_bar():
    results = [made_up_result(setup="SM256"), made_up_result(peak_memory_bytes=None)]
    (figure,), _ = charts.memory(some(results))
    assert set(bars(figure.data)) == {"SM256 PaDiM: 1.00 GiB"}
    found, (note,) = charts.memory(some(results[1:]))
    assert found == [] and "Figure 5 needs peak memory" in note


@pytest.mark.parametrize(
    "aupro, peak, lines", [(0.8, 1 << 30, 2), (None, 1 << 30, 1), (0.8, None, 1)]
)
def test_resolution_shows_what_is_known_of_aupro_and_memory(aupro, peak, lines):
    results = [
        made_up_result(setup=s, pixel_aupro=aupro, peak_memory_bytes=peak)
        for s in ("SM256", "SM512")
    ]
    (figure,), _ = charts.resolution(some(results))
    names = [t.text for t in ElementTree.fromstring(figure.data).iter(f"{NAME}text")]
    assert names.count("single model") == lines and "nan" not in figure.data
    in_legend_of_memory = names[-1] == "single model"
    assert "AUPRO in %" in names and in_legend_of_memory == (peak is not None)


def test_latency_comes_from_pipeline_json(tmp_path):
    collection = SimpleNamespace(out=tmp_path)
    path = tmp_path / charts.PIPELINE
    rows = [
        {"arch": arch, "setup": setup, "device": "cpu", "latency_ms": ms, "images_per_second": n}
        for arch in ("padim", "patchcore") for setup, ms, n in (("SM256", 20, 60), ("ENS9", 190, 7))
    ]  # fmt: skip
    path.write_text(json.dumps(rows))
    (figure,), _ = charts.latency(collection)
    assert figure.name == "figure_08_latency" and "Latency and throughput on cpu" in figure.data
    assert "ENS9 PaDiM: 190" in figure.data
    path.write_text(json.dumps({"parts": {}, "rows": []}))  # latency was not measured
    assert charts.latency(collection)[0] == []
    negative = json.dumps([rows[0] | {"latency_ms": -1}])
    listed = json.dumps([rows[0] | {"setup": []}])
    for broken in ("{", "{}", "7", '[{"arch": "padim"}]', negative, listed):
        path.write_text(broken)
        with pytest.raises(InputError, match="pipeline.json is damaged or was not written by"):
            charts.latency(collection)


def test_a_throughput_alone_is_drawn_beside_an_empty_chart_of_latency(tmp_path):
    row = {"arch": "padim", "setup": "SM256", "device": "cpu", "latency_ms": None}
    (tmp_path / charts.PIPELINE).write_text(json.dumps([row | {"images_per_second": 60}]))
    (figure,), _ = charts.latency(SimpleNamespace(out=tmp_path))
    assert list(bars(figure.data)) == ["SM256 PaDiM: 60"]
    texts = [t.text for t in ElementTree.fromstring(figure.data).iter(f"{NAME}text")]
    latency = texts[: texts.index("latency in ms")]
    assert [text for text in latency if text.isdigit()] == ["1", "2", "5", "10"]


def test_the_trend_of_points_on_a_line_runs_through_them_and_its_band_has_no_width():
    """Ratios 0.01, 0.1 and 1 %, AUROC and AUPRO 10 points higher at each."""
    ratio = {"a": 1e-4, "b": 1e-3, "c": 1e-2}
    results = [
        made_up_result(category=c, setup="SM256", image_auroc=v, pixel_aupro=v)
        for c, v in (("a", 0.7), ("c", 0.9), ("b", 0.8))
    ]

    def images(dataset, category):
        return SimpleNamespace(labels=np.array([0, 1]), ratios=np.array([0, ratio[category]]))

    (figure,), _ = charts.defect_performance(some(results, images=images))
    root = ElementTree.fromstring(figure.data)
    paths = list(root.iter(f"{NAME}path"))
    lines, areas = (
        [[tuple(map(float, point.split())) for point in p.get("d").strip("MZ").split("L")]
         for p in paths if p.get("class") == kind and (p.get("fill") == "none") == (kind == "s0")]
        for kind in ("s0", "f0")
    )  # fmt: skip
    circles = [c for c in root.iter(f"{NAME}circle") if len(c)]
    marks = [(float(c.get("cx")), float(c.get("cy"))) for c in circles]
    assert [c[0].text for c in circles] == ["a: 70.0 %", "b: 80.0 %", "c: 90.0 %"] * 2
    assert len(lines) == len(areas) == 2 and "95 % confidence band" in figure.data
    for k, (line, area) in enumerate(zip(lines, areas)):
        first, middle, last = marks[3 * k : 3 * k + 3]
        assert line[0] == pytest.approx(first, abs=0.02)
        assert line[-1] == pytest.approx(last, abs=0.02)
        assert np.interp(middle[0], *zip(*line)) == pytest.approx(middle[1], abs=0.02)
        assert area[:60] == pytest.approx(np.array(line), abs=0.02)
        assert area[60:] == pytest.approx(np.array(line[::-1]), abs=0.02)


def test_equal_scores_still_have_a_histogram():
    cell = made_up_result(), SimpleNamespace(scores=np.full(5, 2.0), threshold=2.0)
    images = SimpleNamespace(labels=np.array([0, 0, 0, 1, 1]))
    (figure,) = charts.histograms([cell], images, "mvtec", "screw", "padim")
    heights = bars(figure.data)
    assert heights["3 normal"] == pytest.approx(1.5 * heights["2 defective"], abs=0.05)
    rects = [r for r in ElementTree.fromstring(figure.data).iter(f"{NAME}rect") if len(r)]
    assert len(rects) == 2 and all(float(r.get("width")) > 1 for r in rects)


def test_a_setup_without_defects_has_no_line_of_recall():
    found = np.full((1, len(FPRS)), 0.5)
    defects = [
        (made_up_result(category="a", setup="SM256"), {"area": np.array([9]), "recall": found}),
        (made_up_result(category="b", setup="ENS9"), {"area": np.array([]), "recall": found[:0]}),
    ]
    (figure,) = charts.recall_figure(defects, "mvtec", None, "padim")
    texts = [t.text for t in ElementTree.fromstring(figure.data).iter(f"{NAME}text")]
    assert "SM256" in texts and "ENS9" not in texts and "nan" not in figure.data
    assert any(text.endswith("Defects per class: 1") for text in texts)
    (figure,) = charts.recall_figure(defects[::-1], "mvtec", None, "padim")
    assert "Defects per class: 1<" in figure.data
    assert charts.recall_figure(defects[1:], "mvtec", None, "padim") == []


def test_ratios_are_means_over_defective_images(made):
    """A square of 14 x 14 of 96 x 96, resized to 512 x 512."""
    _, _, collection = made
    assert charts.ratio_of(collection, "toys", "one") == pytest.approx(14**2 / 96**2, rel=0.05)
