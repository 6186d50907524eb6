"""Figures of a made-up OUT: which there are, what they show, what is left out and said."""

import io
import json
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from made_up import made_up_cell, made_up_result, small
from PIL import Image

from tiled_ref import metrics
from tiled_ref.reporting import figures
from tiled_ref.running import analysis, stored_images
from tiled_ref.support.errors import InputError

NAME = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Two categories, two architectures, two setups and a second seed of one cell."""
    out = tmp_path_factory.mktemp("out")
    for name in ("one", "two"):
        category = small(name, n_good=3, n_bad=3)
        for arch in ("padim", "patchcore"):
            for setup in ("SM256", "SM512"):
                made_up_cell(out, category, arch, setup)
    made_up_cell(out, category, "padim", "SM256", seed=7)
    return out


@pytest.fixture(scope="module")
def made(out):
    collection = figures.Collection(out)
    found, notes = figures.all_figures(collection)
    return {figure.name: figure for figure in found}, notes, collection


def test_every_figure_is_there(made):
    found, notes, _ = made
    cells = [f"toys_{c}_{a}" for c in ("one", "two") for a in ("patchcore", "padim")]
    want = {"figure_05_memory", "figure_07_defect_size", "figure_09_ratios"}
    for cell in cells:
        want |= {f"{k}_{cell}" for k in ("figure_04_zoom", "figure_06_resolution", "curves",
                                          "scores", "recall_by_size")}  # fmt: skip
    for arch in ("patchcore", "padim"):
        want |= {f"recall_by_size_toys_{arch}", f"pictures_toys_{arch}"}
    assert set(found) == want
    assert notes == ["Figure 8 needs pipeline.json in --out, as bench/pipeline.py writes it."]
    for figure in found.values():
        if isinstance(figure.data, str):
            root = ElementTree.fromstring(figure.data)
            assert "nan" not in figure.data and root.find(f"{NAME}title").text


def test_they_are_written_under_their_names_always_the_same(made, tmp_path):
    found, _, collection = made
    figures.write_figures(found.values(), tmp_path)
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(found)
    again, _ = figures.all_figures(figures.Collection(collection.out))
    assert [(f.name, f.data) for f in again] == [(f.name, f.data) for f in found.values()]


def test_picture_grid_holds_image_truth_heat_map_and_mask_side_by_side(made):
    found, _, collection = made
    picture = np.asarray(Image.open(io.BytesIO(found["pictures_toys_padim"].data)))
    step = figures.PANEL + figures.GAP
    columns = 2 + 2 * 2
    assert picture.shape[0] == figures.HEADER + 2 * step
    left = picture.shape[1] - columns * step
    row = picture[figures.HEADER : figures.HEADER + figures.PANEL, left:]
    panels = [row[:, k * step : k * step + figures.PANEL] for k in range(columns)]
    assert (np.unique(panels[3].reshape(-1, 3)).tolist()) in ([0, 255], [0], [255])  # a mask
    images = collection.images("toys", "one")
    # ground truth is the image with an outline: equal far from the defect
    same = (panels[0] == panels[1]).all(2)
    assert 0.6 < same.mean() < 1
    assert images.labels.sum() == 3


def test_details_by_hand():
    """An image of 8 x 8, the window its rows 2 and 3 and columns 4 to 7; of a map of 4 x 4 one
    row and two columns. Half of the panel's width shows the one column, half the other."""
    window = stored_images.Window(0, 0, 2, 4, 4, 8, (8, 8))
    whole = np.arange(16, dtype=np.uint8).reshape(4, 4)
    seen = figures._seen(whole[window.within((4, 4))], window, (4, 4))
    half = figures.ZOOM_PANEL // 2
    assert seen.shape == (figures.ZOOM_PANEL, figures.ZOOM_PANEL)
    assert np.unique(seen[:, :half]) == [6] and np.unique(seen[:, half:]) == [7]
    window = stored_images.Window(0, 0, 3, 5, 5, 7, (8, 8))  # across the map's pixels
    seen = figures._seen(whole[window.within((4, 4))], window, (4, 4))
    assert seen[0, 0] == 6 and seen[-1, 0] == 10 and seen[0, -1] == 7 and seen[-1, -1] == 11


def test_zoom_grid_shows_the_same_defect_at_every_resolution(made):
    """Made-up maps show the masks: in the zoomed masks of both setups lies the true defect."""
    found, _, collection = made
    picture = np.asarray(Image.open(io.BytesIO(found["figure_04_zoom_toys_one_padim"].data)))
    images = collection.images("toys", "one")
    cells = figures._first_seeds(collection.cells(dataset="toys", category="one", arch="padim"))
    number = figures._worth_showing(cells, images)
    window, size = images.windows[number], figures.ZOOM_PANEL
    assert picture.shape[0] == 2 * figures.HEADER + 3 * (size + figures.GAP)
    left = picture.shape[1] - (size + figures.GAP)
    tops = [figures.HEADER * (1 + (k > 0)) + k * (size + figures.GAP) for k in range(3)]
    truth, *masks = (picture[top : top + size, left : left + size, 0] == 255 for top in tops)
    assert (truth == figures._seen(images.zoom_masks[number], window, window.size)).all()
    assert truth.any()
    for mask, (_, cell) in zip(masks, cells):
        assert (mask == (figures._seen(cell.zooms[number], window, cell.map_size) >= 128)).all()
        assert 0 < mask.mean() < 1
        assert mask[truth].mean() > mask[~truth].mean()
    assert figures.zoom_grid(cells[:1], images) == []


def test_the_detail_shown_is_the_smallest_that_a_setup_finds_half_of():
    def cell(*recalls):
        return {}, SimpleNamespace(recall=np.array([[0, r, 1] for r in recalls]))

    windows = [stored_images.Window(region, 0, 0, 0, 1, 1, (9, 9)) for region in (2, 0, 1)]
    images = SimpleNamespace(windows=windows)
    assert figures.FPRS[1] == figures.REPORT_FPR
    assert figures._worth_showing([cell(1, 1, 0.49), cell(0, 0, 0.5)], images) == 0
    assert figures._worth_showing([cell(0.5, 1, 0.49), cell(0, 1, 0)], images) == 1
    assert figures._worth_showing([cell(0.4, 0.4, 0.4)], images) == 2


@pytest.mark.parametrize("side, rings", [(24, [0, 255, 0, 90]), (4, [0, 255])])
def test_the_frame_lies_in_the_picture(side, rings):
    panel = np.full((side, side, 3), 90, np.uint8)
    window = stored_images.Window(0, 0, 0, 0, side, side, (side, side))
    out = figures._framed(panel, window)
    assert [out[k, side // 2, 0] for k in range(len(rings))] == rings
    assert [out[-1 - k, side // 2, 0] for k in range(len(rings))] == rings and (panel == 90).all()


def test_the_picture_shown_does_not_depend_on_the_architecture(made):
    found, _, _ = made
    one, other = (
        np.asarray(Image.open(io.BytesIO(found[f"pictures_toys_{arch}"].data)))
        for arch in ("padim", "patchcore")
    )
    left = one.shape[1] - 6 * (figures.PANEL + figures.GAP)
    assert (one[:, left : left + figures.PANEL] == other[:, left : left + figures.PANEL]).all()


def test_trend_is_least_squares_with_students_band():
    """y = 1 + 2 x with residuals -1, 2, -1 at x = 0, 1, 2: slope 2, s^2 = 6 / 1, so at the mean
    of x the half width is 12.706 sqrt(6 / 3)."""
    line = figures.trend([0, 1, 2], [0, 5, 4])
    y, half = line([1.0])
    assert y[0] == pytest.approx(3) and half[0] == pytest.approx(12.706 * 2**0.5)
    (low, high), (left, right) = line([0.0, 2.0])
    assert (low, high) == (pytest.approx(1), pytest.approx(5)) and left == pytest.approx(right)
    assert left == pytest.approx(12.706 * (6 * (1 / 3 + 1 / 2)) ** 0.5)
    assert figures.trend([0, 1], [0, 1]) is None and figures.trend([1, 1, 1], [0, 1, 2]) is None


@pytest.mark.optional
def test_points_of_students_t():
    stats = pytest.importorskip("scipy.stats")
    for k, value in enumerate(figures.T_95):
        assert value == pytest.approx(stats.t.ppf(0.975, k + 1), abs=6e-4)


def test_curves_end_at_the_limit():
    curve = metrics.Curve(np.array([0, 0.2, 0.4, 1]), np.array([0, 0.5, 0.7, 1]))
    x, y = figures._until(curve, 0.3)
    assert x.tolist() == [0, 0.2, 0.3] and y.tolist() == [0, 0.5, pytest.approx(0.6)]


def test_resolution_needs_several_sizes_of_one_kind():
    def at(side, tile, n_models):
        return made_up_result(setup="SM256", category="a") | {
            "image_size": [side] * 2, "tile_size": [tile] * 2, "stride": [tile] * 2,
            "n_models": n_models,
        }  # fmt: skip

    series = figures._by_resolution([at(256, 256, 1), at(512, 512, 1), at(512, 256, 4)])
    assert {kind: list(points) for kind, points in series.items()} == {
        "single model": [256, 512], "tiled ensemble, tile 256, stride 256": [512],
    }  # fmt: skip
    assert series["single model"][256] == (pytest.approx(80), 1.0)
    assert figures.kind_of(at(512, 256, 1)) == "tiled input, tile 256, stride 256"


def some(results, **more):
    """What a figure of results alone asks of a collection."""
    return SimpleNamespace(results=results, **more)


def bars(text):
    """{tooltip: height} of the bars of a chart."""
    rects = [r for r in ElementTree.fromstring(text).iter(f"{NAME}rect") if len(r)]
    return {rect.find(f"{NAME}title").text: float(rect.get("height")) for rect in rects}


def test_without_a_finished_cell_there_is_no_figure(tmp_path):
    assert figures.all_figures(figures.Collection(tmp_path)) == ([], [])


def test_an_architecture_that_lacks_a_setup_has_no_bar_there():
    results = [
        made_up_result(arch=arch, setup=setup, peak_memory_bytes=n << 29)
        for arch, setup, n in (("padim", "SM256", 1), ("patchcore", "ENS9", 3))
    ]
    (figure,) = figures.memory(some(results)).figures
    heights = bars(figure.data)
    assert set(heights) == {"SM256 PaDiM: 0.50 GiB", "ENS9 PatchCore: 1.50 GiB"}
    assert heights["ENS9 PatchCore: 1.50 GiB"] == pytest.approx(
        3 * heights["SM256 PaDiM: 0.50 GiB"], abs=0.05
    )


def test_a_peak_that_the_system_did_not_report_has_no_bar():
    results = [made_up_result(setup="SM256"), made_up_result(peak_memory_bytes=None)]
    (figure,) = figures.memory(some(results)).figures
    assert set(bars(figure.data)) == {"SM256 PaDiM: 1.00 GiB"}
    made = figures.memory(some(results[1:]))
    assert made.figures == [] and "Figure 5 needs peak memory" in made.notes[0]


@pytest.mark.parametrize(
    "aupro, peak, lines", [(0.8, 1 << 30, 2), (None, 1 << 30, 1), (0.8, None, 1)]
)
def test_resolution_shows_what_is_known_of_aupro_and_memory(aupro, peak, lines):
    results = [
        made_up_result(setup=s, pixel_aupro=aupro, peak_memory_bytes=peak)
        for s in ("SM256", "SM512")
    ]
    (figure,) = figures.resolution(some(results)).figures
    names = [t.text for t in ElementTree.fromstring(figure.data).iter(f"{NAME}text")]
    assert names.count("single model") == lines and "nan" not in figure.data
    in_legend_of_memory = names[-1] == "single model"
    assert "AUPRO in %" in names and in_legend_of_memory == (peak is not None)


def test_latency_comes_from_pipeline_json(out, made):
    _, _, collection = made
    path = out / figures.PIPELINE
    rows = [
        {"arch": arch, "setup": setup, "device": "cpu", "latency_ms": ms, "images_per_second": n}
        for arch in ("padim", "patchcore") for setup, ms, n in (("SM256", 20, 60), ("ENS9", 190, 7))
    ]  # fmt: skip
    try:
        path.write_text(json.dumps(rows))
        (figure,) = figures.latency(collection).figures
        assert figure.name == "figure_08_latency" and "Latency and throughput on cpu" in figure.data
        assert "ENS9 PaDiM: 190" in figure.data
        path.write_text(json.dumps({"parts": {}, "rows": []}))  # latency was not measured
        assert figures.latency(collection).figures == []
        negative = json.dumps([rows[0] | {"latency_ms": -1}])
        for broken in ("{", "{}", '[{"arch": "padim"}]', negative):
            path.write_text(broken)
            with pytest.raises(InputError, match="pipeline.json is not a list of rows"):
                figures.latency(collection)
    finally:
        path.unlink()


def test_a_throughput_alone_is_drawn_beside_an_empty_chart_of_latency(tmp_path):
    row = {"arch": "padim", "setup": "SM256", "device": "cpu", "latency_ms": None}
    (tmp_path / figures.PIPELINE).write_text(json.dumps([row | {"images_per_second": 60}]))
    (figure,) = figures.latency(SimpleNamespace(out=tmp_path)).figures
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

    (figure,) = figures.defect_performance(some(results, images=images)).figures
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
    (figure,) = figures.histograms([cell], SimpleNamespace(images=lambda *where: images))
    heights = bars(figure.data)
    assert heights["3 normal"] == pytest.approx(1.5 * heights["2 defective"], abs=0.05)
    rects = [r for r in ElementTree.fromstring(figure.data).iter(f"{NAME}rect") if len(r)]
    assert len(rects) == 2 and all(float(r.get("width")) > 1 for r in rects)


def test_a_setup_without_defects_has_no_line_of_recall():
    found = np.full((1, len(figures.FPRS)), 0.5)
    defects = [
        (made_up_result(category="a", setup="SM256"), {"area": np.array([9]), "recall": found}),
        (made_up_result(category="b", setup="ENS9"), {"area": np.array([]), "recall": found[:0]}),
    ]
    (figure,) = figures.recall_figure(defects, "mvtec", None, "padim")
    texts = [t.text for t in ElementTree.fromstring(figure.data).iter(f"{NAME}text")]
    assert "SM256" in texts and "ENS9" not in texts and "nan" not in figure.data
    assert any(text.endswith("Defects per class: 1") for text in texts)
    (figure,) = figures.recall_figure(defects[::-1], "mvtec", None, "padim")
    assert "Defects per class: 1<" in figure.data
    assert figures.recall_figure(defects[1:], "mvtec", None, "padim") == []


def test_ratios_are_means_over_defective_images(made):
    """A square of 14 x 14 of 96 x 96, resized to 512 x 512."""
    _, _, collection = made
    assert figures.ratio_of(collection, "toys", "one") == pytest.approx(14**2 / 96**2, rel=0.05)


@pytest.mark.parametrize("kind", [{"has_masks": False}, {"n_bad": 0}, {"n_good": 0}])
def test_what_is_missing_is_left_out_without_a_failure(tmp_path, kind):
    undefined = {"image_auroc": None, "pixel_aupro": None, "pixel_auroc": None}
    made_up_cell(tmp_path, small("one", **kind), **undefined)
    found, notes = figures.all_figures(figures.Collection(tmp_path))
    names = {figure.name.partition("_toys")[0] for figure in found}
    assert "figure_05_memory" in names and "scores" in names
    assert ("pictures" in names) == ("n_bad" not in kind)
    assert ("recall_by_size" in names) == ("n_good" in kind)
    assert any("Figure 7" in note for note in notes)


def test_cells_without_analysis_are_told(tmp_path):
    made_up_cell(tmp_path, small("one"))
    folder = made_up_cell(tmp_path, small("two"))
    (folder / analysis.ANALYSIS).unlink()
    collection = figures.Collection(tmp_path)
    assert collection.without == [folder] and len(collection.results) == 2
    assert collection.groups() == [("toys", "one", "padim")]


def test_defects_of_changed_images_are_not_mixed_with_older_cells(tmp_path):
    folder = made_up_cell(tmp_path, small("one"))
    images = folder.parents[2] / stored_images.IMAGES
    kept = images.read_bytes()
    made_up_cell(tmp_path, small("one", n_bad=2), setup="SM512")
    collection = figures.Collection(tmp_path)
    assert [r["setup"] for r, _ in collection.defects()] == ["SM512"]
    assert kept != images.read_bytes()
    assert collection.without == [folder]
    assert any(f.name.startswith("scores") for f in figures.all_figures(collection)[0])


def test_the_image_shows_through_where_the_map_is_low():
    picture = np.full((1, 3, 3), 100, np.uint8)
    got = figures.glow(picture, np.array([[0.0, 0.25, 1.0]]))
    colors = figures.render.colormap(np.array([[0.0, 0.25, 1.0]]))[0].astype(float)
    want = [[100] * 3, (50 + colors[1] / 2).tolist(), (12 + 0.88 * colors[2]).tolist()]
    assert got[0] == pytest.approx(np.array(want), abs=0.51)
