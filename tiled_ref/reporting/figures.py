"""The paper's figures of what a run left on disk: SVG charts and PNG grids.

    Fig. 4    a small defect in full and zoomed, heat map and mask of each setup
    Fig. 5    peak memory of each setup
    Fig. 6    AUPRO and memory against resolution
    Fig. 7    performance against the size of defects, with a trend line
    Fig. 8    latency and throughput, from OUT/pipeline.json
    Fig. 9    size of defects per category
    Fig. 12-17  image, ground truth, heat map and mask of each setup side by side

and, not in the paper, ROC and PRO curves, histograms of scores, recall by size of defect.
"""

import json
import math
import random
from dataclasses import dataclass

import numpy as np

from ..data import images as image_data
from ..running.analysis import FPRS, REPORT_FPR, load_analysis
from ..running.results import read_result
from ..running.stored_images import load_images
from ..support.errors import InputError
from ..support.files import atomic_write
from .drawing import render, svg
from .summary import largest_peak
from .tables import (
    ARCHS,
    DATASETS,
    area_edges,
    category_names,
    file_name,
    ordered,
    recall_by_area,
    setup_names,
    shared_categories,
)  # fmt: skip

PIPELINE = "pipeline.json"
PIPELINE_KEYS = ("arch", "setup", "device", "latency_ms", "images_per_second")
PRO_LIMIT = 0.3
PANEL, GAP, HEADER, TEXT_HEIGHT = 168, 6, 26, 16  # of PNG grids, pixels
ZOOM_PANEL = 236  # of the grid with details, pixels
# Two-sided 95 % points of Student's t with 1 to 30 degrees of freedom.
T_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A figure: name, stem of its file; title; data, text of an SVG or bytes of a PNG; where
    it belongs: dataset, category and arch, None for all."""

    name: str
    title: str
    data: object
    dataset: str = None
    category: str = None
    arch: str = None


class Collection:
    """All finished cells below OUT that have what a report needs.

    Parameters: out, Path. Attributes: results, list of dicts of all finished cells, in the
    order of tables; folders, Path of each; without, folders of cells without analysis.npz, or
    of other test images than those of the cell that ran last.
    Raises InputError for a metrics.json that is none.
    """

    def __init__(self, out):
        self.out = out
        self.results, self.folders, self.without = [], [], []
        paths = sorted(out.glob("*/*/*/*/seed*/metrics.json"))
        found = [(read_result(path), path.parent) for path in paths]
        places = _places([result for result, _ in found])
        for result, folder in sorted(found, key=lambda pair: places(pair[0])):
            self.results.append(result)
            self.folders.append(folder)
        self._analyses, self._images = {}, {}
        for k, folder in enumerate(self.folders):
            result = self.results[k]
            images = self.images(result["dataset"], result["category"])
            try:
                analysis = load_analysis(folder)
            except InputError:
                analysis = None
            if analysis is None or images is None or analysis.digest != images.digest:
                self.without.append(folder)
            else:
                self._analyses[k] = analysis

    def cells(self, **wanted):
        """[(result, CellAnalysis)] of the cells that have these values in their result."""
        return [
            (self.results[k], analysis)
            for k, analysis in self._analyses.items()
            if all(self.results[k][key] == value for key, value in wanted.items())
        ]

    def images(self, dataset, category):
        """analysis.StoredImages, None where images.npz is not there."""
        key = dataset, category
        if key not in self._images:
            try:
                self._images[key] = load_images(self.out / dataset / category)
            except InputError:
                self._images[key] = None
        return self._images[key]

    def defects(self, **wanted):
        """[(result, {"area", "recall"})] as tables.defect_sizes wants them."""
        pairs = []
        for result, analysis in self.cells(**wanted):
            images = self.images(result["dataset"], result["category"])
            pairs.append((result, {"area": images.region_area, "recall": analysis.recall}))
        return pairs

    def groups(self):
        """(dataset, category, arch) that occur among cells with analysis, in table order."""
        results = [self.results[k] for k in self._analyses]
        return [
            (dataset, category, arch)
            for dataset in ordered(results, "dataset", DATASETS)
            for category in category_names(dataset, [r for r in results if r["dataset"] == dataset])
            for arch in ordered(results, "arch", ARCHS)
            if self.cells(dataset=dataset, category=category, arch=arch)
        ]


def all_figures(collection):
    """Every figure that the cells allow, list of Figure, and notes on those left out."""
    figures, notes = [], []
    if not collection.results:
        return figures, notes
    for make in (memory, resolution, defect_performance, latency, ratios):
        made = make(collection)
        figures += made.figures
        notes += made.notes
    for dataset, category, arch in collection.groups():
        cells = _first_seeds(collection.cells(dataset=dataset, category=category, arch=arch))
        figures += curves(cells) + histograms(cells, collection)
        defects = collection.defects(dataset=dataset, category=category, arch=arch)
        figures += recall_figure(defects, dataset, category, arch)
        figures += zoom_grid(cells, collection.images(dataset, category))
    for dataset, arch in dict.fromkeys((d, a) for d, _, a in collection.groups()):
        if len({c for d, c, a in collection.groups() if (d, a) == (dataset, arch)}) > 1:
            defects = collection.defects(dataset=dataset, arch=arch)
            figures += recall_figure(defects, dataset, None, arch)
        figures += picture_grid(collection, dataset, arch)
    return figures, notes


def write_figures(figures, folder):
    """Write each figure as NAME.svg or NAME.png."""
    for figure in figures:
        text = isinstance(figure.data, str)
        with atomic_write(folder / f"{figure.name}.{'svg' if text else 'png'}",
                          "w" if text else "wb") as file:  # fmt: skip
            file.write(figure.data)


@dataclass
class _Made:
    figures: list
    notes: list


# ------------------------------------------------------------------- over setups and sizes


def memory(collection):
    """Fig. 5: peak memory of each setup, the largest of its cells."""
    results = collection.results
    if largest_peak(results) is None:
        return _Made([], ["Figure 5 needs peak memory, which the cells' system did not report."])
    setups, archs = setup_names(results), ordered(results, "arch", ARCHS)
    devices = sorted({str(r["device"]) for r in results})
    chart = svg.Chart(
        f"Peak memory on {', '.join(devices)}", "setup", "peak memory in GiB", x_names=setups,
        width=760,
        note="" if any(d.startswith("cuda") for d in devices) else
        "On a CPU the memory of the whole process counts, decoded images included.",
    )  # fmt: skip
    width = 0.8 / len(archs)
    for k, arch in enumerate(archs):
        x, y = [], []
        for n, setup in enumerate(setups):
            peak = _peak_gib([r for r in results if (r["arch"], r["setup"]) == (arch, setup)])
            if peak is not None:
                x.append(n)
                y.append(peak)
        names = [f"{setups[n]} {ARCHS.get(arch, arch)}: {value:.2f} GiB" for n, value in zip(x, y)]
        offset = (k - (len(archs) - 1) / 2) * width
        chart.bars(x, y, ARCHS.get(arch, arch), k, width * 0.92, offset, names)
    return _Made([Figure("figure_05_memory", "Peak memory", chart.svg())], [])


def resolution(collection):
    """Fig. 6: AUPRO and memory against resolution, where a kind of setup has several sizes."""
    figures = []
    results = collection.results
    for dataset in ordered(results, "dataset", DATASETS):
        for category in category_names(dataset, [r for r in results if r["dataset"] == dataset]):
            for arch in ordered(results, "arch", ARCHS):
                chosen = [
                    r for r in results
                    if (r["dataset"], r["category"], r["arch"]) == (dataset, category, arch)
                ]  # fmt: skip
                series = _by_resolution(chosen)
                if any(len(points) > 1 for points in series.values()):
                    figures.append(_resolution_figure(series, dataset, category, arch))
    if figures:
        return _Made(figures, [])
    return _Made([], ["Figure 6 needs a kind of setup at several --image-size in the same --out."])


def _by_resolution(results):
    """Kind of setup -> {side in px: (AUPRO in percent or None, GiB or None)}, means over seeds."""
    series = {}
    for r in results:
        series.setdefault(kind_of(r), {}).setdefault(max(r["image_size"]), []).append(r)
    return {
        kind: {side: (_mean_percent(rs, "pixel_aupro"), _peak_gib(rs))
               for side, rs in sorted(sides.items())}
        for kind, sides in sorted(series.items())
    }  # fmt: skip


def _peak_gib(results):
    """The largest peak memory of results in GiB, None where no system reported one."""
    peak = largest_peak(results)
    return None if peak is None else peak / 2**30


def kind_of(result):
    """What kind of setup a result is of, in words."""
    if result["tile_size"] == result["image_size"]:
        return "single model"
    kind = "tiled ensemble" if result["n_models"] > 1 else "tiled input"
    return f"{kind}, tile {max(result['tile_size'])}, stride {max(result['stride'])}"


def _resolution_figure(series, dataset, category, arch):
    sides = sorted({side for points in series.values() for side in points})
    charts = [
        svg.Chart("", "resolution in px", label, width=520, height=360, log_x=True, x_ticks=sides,
                  x_range=(min(sides) / 1.12, max(sides) * 1.12))
        for label in ("AUPRO in %", "peak memory in GiB")
    ]  # fmt: skip
    for k, (kind, points) in enumerate(series.items()):
        for at, chart in enumerate(charts):
            known = [
                (side, values[at]) for side, values in points.items() if values[at] is not None
            ]
            if known:
                chart.line(*zip(*known), label=kind, series=k, marks=True)
    title = f"AUPRO and memory against resolution: {ARCHS.get(arch, arch)} on {category}"
    return Figure(
        _file(f"figure_06_resolution_{dataset}_{category}_{arch}"), title,
        svg.page(charts, 2, title), dataset, category, arch,
    )  # fmt: skip


def latency(collection):
    """Fig. 8: latency and throughput, from OUT/pipeline.json."""
    path = collection.out / PIPELINE
    rows = read_pipeline(path) if path.is_file() else []
    if not rows:
        return _Made(
            [], [f"Figure 8 needs {PIPELINE} in --out, as bench/pipeline.py writes it."]
        )  # fmt: skip
    figures = []
    for device in sorted({row["device"] for row in rows}):
        mine = [row for row in rows if row["device"] == device]
        setups = list(dict.fromkeys(row["setup"] for row in mine))
        archs = ordered(mine, "arch", ARCHS)
        charts = [
            svg.Chart(title, "setup", label, x_names=setups, width=560, log_y=True,
                      y_range=_decades([row[key] for row in mine if row[key] is not None]))
            for title, label, key in (
                ("Latency, one image", "latency in ms", "latency_ms"),
                ("Throughput", "images per second", "images_per_second"),
            )
        ]  # fmt: skip
        width = 0.8 / len(archs)
        for k, arch in enumerate(archs):
            for chart, key in zip(charts, ("latency_ms", "images_per_second")):
                at = {row["setup"]: row[key] for row in mine if row["arch"] == arch}
                x = [n for n, setup in enumerate(setups) if at.get(setup) is not None]
                y = [at[setups[n]] for n in x]
                names = [f"{setups[n]} {ARCHS.get(arch, arch)}: {v:.3g}" for n, v in zip(x, y)]
                offset = (k - (len(archs) - 1) / 2) * width
                chart.bars(x, y, ARCHS.get(arch, arch), k, width * 0.92, offset, names)
        title = f"Latency and throughput on {device}"
        name = "figure_08_latency" if len({r["device"] for r in rows}) == 1 else _file(
            f"figure_08_latency_{device}"
        )  # fmt: skip
        figures.append(Figure(name, title, svg.page(charts, 2, title)))
    return _Made(figures, [])


def _decades(values):
    """Whole powers of ten that enclose positive values, so that bars start at a round number."""
    if not values:
        return 1.0, 10.0
    low, high = math.floor(math.log10(min(values)) - 0.05), math.ceil(math.log10(max(values)))
    return 10.0**low, 10.0 ** max(high, low + 1)


def read_pipeline(path):
    """The rows of a pipeline.json.

    Parameters: path of a JSON file that holds a list or an object with the list as "rows".
    Returns a list of dicts with PIPELINE_KEYS.
    Raises InputError where it is not one.
    """
    try:
        rows = json.loads(path.read_text("utf-8"))
        rows = rows["rows"] if isinstance(rows, dict) else rows
        for row in rows:
            for key in PIPELINE_KEYS:
                row[key]  # noqa: B018  it must be there
            for key in PIPELINE_KEYS[3:]:
                if row[key] is not None and not 0 < float(row[key]) < math.inf:
                    raise ValueError(f"{key} is {row[key]}")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} is not a list of rows with {', '.join(PIPELINE_KEYS)} ({error!r}); remove it "
            "or write it anew with bench/pipeline.py"
        ) from error
    return rows


# ----------------------------------------------------------------------- the size of defects


def ratio_of(collection, dataset, category):
    """Mean anomalous part of the defective images of a category, None where unknown."""
    images = collection.images(dataset, category)
    if images is None:
        return None
    values = images.ratios[images.labels > 0]
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else None


def defect_performance(collection):
    """Fig. 7: AUROC and AUPRO of two setups against the size of defects, a point a category."""
    results = collection.results
    setups = setup_names(results)
    pair = [s for s in ("SM256", "ENS9") if s in setups]
    if len(pair) < 2:
        pair = list(dict.fromkeys([setups[0], setups[-1]]))
    charts, drawn = [], 0
    for key, title in (("image_auroc", "Detection"), ("pixel_aupro", "Localisation")):
        label = "image AUROC in %" if key == "image_auroc" else "AUPRO in %"
        chart = svg.Chart(
            title, "mean anomalous part of a defective image in %", label, log_x=True, width=560
        )
        for k, setup in enumerate(pair):
            points = []
            for dataset, category in dict.fromkeys((r["dataset"], r["category"]) for r in results):
                ratio = ratio_of(collection, dataset, category)
                value = _mean_over_archs(results, dataset, category, setup, key)
                if ratio and value is not None:
                    points.append((100 * ratio, value, f"{category}: {value:.1f} %"))
            if not points:
                continue
            drawn = max(drawn, len(points))
            points.sort()
            x, y, names = zip(*points)
            line = trend([math.log(v) for v in x], y)
            if line is not None:
                at = np.linspace(math.log(x[0]), math.log(x[-1]), 60)
                middle, half = line(at)
                low, high = np.clip([middle - half, middle + half], 0, 100)
                chart.band(np.exp(at), low, high, k)
                chart.line(np.exp(at), middle, None, k)
            chart.points(x, y, setup, k, names)
        charts.append(chart)
    if not drawn:
        return _Made([], ["Figure 7 needs defective images with masks and their metrics."])
    title = "Performance against the size of defects"
    note = "Mean over architectures and seeds, a point a category. "
    note += (
        "Lines: least squares in the logarithm of size, with its 95 % confidence band."
        if drawn >= 3 else "A trend line needs three categories."
    )  # fmt: skip
    figure = Figure("figure_07_defect_size", title, svg.page(charts, 2, title, note))
    return _Made([figure], [])


def trend(x, y):
    """Least squares line: a callable at -> (y, half width of its 95 % confidence band).

    y = a + b x; half width t sqrt(s^2 (1/n + (at - mean x)^2 / Sxx)), s^2 the squared residuals
    over n - 2, t Student's 95 % point. x, y (n,). None for fewer than three points or one x.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    n = len(x)
    spread = ((x - x.mean()) ** 2).sum() if n else 0.0
    if n < 3 or not spread > 0:
        return None
    slope = ((x - x.mean()) * (y - y.mean())).sum() / spread
    variance = ((y - y.mean() - slope * (x - x.mean())) ** 2).sum() / (n - 2)
    t = T_95[n - 3] if n - 2 <= len(T_95) else 1.96

    def line(at):
        offset = np.asarray(at, float) - x.mean()
        return y.mean() + slope * offset, t * np.sqrt(variance * (1 / n + offset**2 / spread))

    return line


def ratios(collection):
    """Fig. 9: mean anomalous part of the defective images per category."""
    found = []
    for dataset, category in dict.fromkeys((d, c) for d, c, _ in collection.groups()):
        ratio = ratio_of(collection, dataset, category)
        if ratio is not None:
            found.append((dataset, category, 100 * ratio))
    if not found:
        return _Made([], ["Figure 9 needs defective images with masks."])
    found.sort(key=lambda entry: (-entry[2], entry[1]))
    chart = svg.Chart(
        "Size of defects per category", "category", "mean anomalous part in %",
        x_names=[category for _, category, _ in found], width=max(560, 34 * len(found) + 120),
        note="Of defective images, masks resized to 512 x 512.",
    )  # fmt: skip
    for k, dataset in enumerate(dict.fromkeys(sorted(d for d, _, _ in found))):
        at = [n for n, entry in enumerate(found) if entry[0] == dataset]
        values = [found[n][2] for n in at]
        names = [f"{found[n][1]}: {found[n][2]:.2f} %" for n in at]
        chart.bars(at, values, DATASETS.get(dataset, dataset), k, 0.7, names=names)
    return _Made([Figure("figure_09_ratios", "Size of defects per category", chart.svg())], [])


def recall_figure(defects, dataset, category, arch):
    """Recall of defects by size, a line a setup; [] without defects."""
    defects = shared_categories(defects)
    areas = [d["area"] for _, d in defects if len(d["area"])]
    if not areas:
        return []
    edges = area_edges(np.concatenate(areas))
    setups = setup_names([result for result, _ in defects])
    middles = [math.sqrt(math.sqrt(low * high)) for low, high in zip(edges[:-1], edges[1:])]
    counts = np.max([recall_by_area(setup, defects, edges)[1] for setup in setups], axis=0)
    where = category or DATASETS.get(dataset, dataset)
    title = f"Recall by size of defect: {ARCHS.get(arch, arch)} on {where}"
    chart = svg.Chart(
        title, "side of a square of the defect's area in px", "mean recall in %", width=640,
        log_x=True, y_range=(0, 104), x_range=(math.sqrt(edges[0]), math.sqrt(edges[-1])),
        x_ticks=[math.sqrt(edge) for edge in edges],
        note=f"At a pixel FPR of {100 * REPORT_FPR:g} %. Defects per class: "
        + ", ".join(map(str, counts)),
    )  # fmt: skip
    for k, setup in enumerate(setups):
        values = recall_by_area(setup, defects, edges)[0]
        known = [(x, 100 * v) for x, v in zip(middles, values) if v is not None]
        if known:
            chart.line(*zip(*known), label=setup, series=k, marks=True)
    name = "_".join(filter(None, ["recall_by_size", dataset, category, arch]))
    return [Figure(_file(name), title, chart.svg(), dataset, category, arch)]


# -------------------------------------------------------------------- curves and histograms


def curves(cells):
    """Image ROC, pixel ROC and PRO curve of the setups of one category and architecture."""
    result = cells[0][0]
    dataset, category, arch = result["dataset"], result["category"], result["arch"]
    kinds = (
        ("image_roc", "Images: ROC", "false positive rate of images", "true positive rate", 1.0),
        ("pixel_roc", "Pixels: ROC", "false positive rate of pixels", "true positive rate",
         PRO_LIMIT),
        ("pro", "Regions: PRO", "false positive rate of pixels", "per-region overlap", PRO_LIMIT),
    )  # fmt: skip
    charts = []
    for key, title, x_label, y_label, limit in kinds:
        chart = svg.Chart(
            title, x_label, y_label, width=400, height=380, x_range=(0, limit), y_range=(0, 1.02)
        )
        found = False
        for k, (result, analysis) in enumerate(cells):
            curve = getattr(analysis, key)
            if curve is not None:
                chart.line(*_until(curve, limit), label=result["setup"], series=k)
                found = True
        if found:
            charts.append(chart)
    if not charts:
        return []
    title = f"ROC and PRO curves: {ARCHS.get(arch, arch)} on {category}"
    note = f"Seed {cells[0][0]['seed']}. Pixel curves at each setup's image size."
    return [
        Figure(_file(f"curves_{dataset}_{category}_{arch}"), title,
               svg.page(charts, 3, title, note), dataset, category, arch)
    ]  # fmt: skip


def _until(curve, limit):
    """The points of a curve up to x = limit, the last one interpolated."""
    inside = curve.fpr <= limit
    x, y = curve.fpr[inside], curve.height[inside]
    if x[-1] < limit:
        x = np.append(x, limit)
        y = np.append(y, np.interp(limit, curve.fpr, curve.height))
    return x, y


def histograms(cells, collection):
    """Histograms of image scores, normal beside defective, a panel a setup."""
    result = cells[0][0]
    dataset, category, arch = result["dataset"], result["category"], result["arch"]
    images = collection.images(dataset, category)
    charts = []
    for result, analysis in cells:
        chart = svg.Chart(
            result["setup"], "image score", "images", width=400, height=310, whole_y=True
        )
        edges = np.linspace(analysis.scores.min(), analysis.scores.max(), 25)
        if edges[-1] == edges[0]:
            edges = np.linspace(edges[0] - 0.5, edges[0] + 0.5, 25)
        step = edges[1] - edges[0]
        for label, name, series in ((0, "normal", 0), (1, "defective", 1)):
            chosen = analysis.scores[images.labels == label]
            if not chosen.size:
                continue
            counts = np.histogram(chosen, edges)[0]
            centre = (edges[:-1] + edges[1:]) / 2
            at = counts > 0
            names = [f"{count} {name}" for count in counts[at]]
            offset = (series - 0.5) * 0.46 * step
            chart.bars(centre[at], counts[at], name, series, 0.44 * step, offset, names)
        chart.upright(analysis.threshold, "threshold")
        charts.append(chart)
    title = f"Image scores: {ARCHS.get(arch, arch)} on {category}"
    note = f"Seed {cells[0][0]['seed']}."
    return [
        Figure(_file(f"scores_{dataset}_{category}_{arch}"), title,
               svg.page(charts, 3, title, note), dataset, category, arch)
    ]  # fmt: skip


# ---------------------------------------------------------------------------- picture grids


def picture_grid(collection, dataset, arch):
    """Figs. 12-17: a defective image of every category, with heat map and mask of each setup.

    Parameters: collection, a Collection. The image is drawn at random with a seed made of data
    set and category, so it is the same for every architecture. Returns [] where no category has
    a defective image.
    """
    cells = collection.cells(dataset=dataset, arch=arch)
    setups = setup_names([result for result, _ in cells])
    rows = []
    for category in category_names(dataset, [result for result, _ in cells]):
        images = collection.images(dataset, category)
        if not images.labels.any():
            continue
        defective = np.flatnonzero(images.labels)
        n = int(defective[random.Random(f"{dataset}/{category}").randrange(len(defective))])
        mine = _first_seeds([c for c in cells if c[0]["category"] == category])
        by_setup = {result["setup"]: analysis for result, analysis in mine}
        rows.append((category, _grid_row(images, n, [by_setup.get(s) for s in setups])))
    if not rows:
        return []
    side = max((text_width(category) for category, _ in rows), default=0) + 2 * GAP
    columns = ["image", "ground truth"]
    for setup in setups:
        columns += [setup, ""]
    width = side + len(columns) * (PANEL + GAP)
    height = HEADER + sum(row.shape[0] + GAP for _, row in rows)
    out = np.full((height, width, 3), 255, np.uint8)
    for k, name in enumerate(columns):
        _write_text(out, name, 5, side + k * (PANEL + GAP))
    top = HEADER
    for category, row in rows:
        _write_text(out, category, top + row.shape[0] // 2 - 8, GAP)
        out[top : top + row.shape[0], side : side + row.shape[1]] = row
        top += row.shape[0] + GAP
    title = f"Heat maps and masks: {ARCHS.get(arch, arch)} on {DATASETS.get(dataset, dataset)}"
    name = _file(f"{_grid_number(dataset, arch)}pictures_{dataset}_{arch}")
    return [Figure(name, title, image_data.encode_png(out), dataset, None, arch)]


def zoom_grid(cells, images):
    """Fig. 4: one small defect, in full and zoomed: image and ground truth, then heat map and
    mask of each setup, coarse before fine.

    Parameters: cells, one pair (result, CellAnalysis) per setup, of one category and
    architecture; images, as Collection.images returns them. Of the defects that were kept
    (`analysis.zoom_windows`) the smallest that one of the setups finds half of. Returns [] for
    fewer than two setups, or where no image has a defect with a mask.
    """
    if not images.windows or len(cells) < 2:
        return []
    number = _worth_showing(cells, images)
    window = images.windows[number]
    full = (max(24, round(ZOOM_PANEL * window.size[0] / window.size[1])), ZOOM_PANEL)
    detail = (ZOOM_PANEL, ZOOM_PANEL)
    picture = image_data.resize_image(
        image_data.decode_bytes(images.jpegs[window.image]), full, antialias=True
    )
    close = image_data.resize_image(image_data.decode_bytes(images.zooms[number]), detail)
    truth = image_data.resize_mask(images.masks[window.image], full)
    close_truth = _seen(images.zoom_masks[number], window, window.size)
    rows = [[picture, close, _white(truth), _white(close_truth)]]
    labels = [("", "")]
    for result, analysis in cells:
        values = enlarge(analysis.maps[window.image], full)
        zoomed = _seen(analysis.zooms[number], window, analysis.map_size) / 255
        rows.append([glow(picture, values), glow(close, zoomed),
                     _white(values >= 0.5), _white(zoomed >= 0.5)])  # fmt: skip
        labels.append((result["setup"], "x".join(map(str, analysis.map_size)) + " px"))
    for row in rows:
        row[0], row[2] = (_framed(panel, window) for panel in (row[0], row[2]))
    side = max(text_width(text) for pair in labels for text in pair) + 2 * GAP
    step = max(full[0], ZOOM_PANEL) + GAP
    out = np.full((2 * HEADER + len(rows) * step, side + 4 * (ZOOM_PANEL + GAP), 3), 255, np.uint8)
    heads = ("image", "zoomed", "ground truth", "zoomed"), ("heat map", "zoomed", "mask", "zoomed")
    for k, row in enumerate(rows):
        top = HEADER * (1 + (k > 0)) + k * step
        for text, down in zip(labels[k], (-20, 2)):
            _write_text(out, text, top + step // 2 + down, GAP)
        for n, panel in enumerate(row):
            left = side + n * (ZOOM_PANEL + GAP)
            if k < 2:
                _write_text(out, heads[k][n], top - HEADER + 5, left)
            out[top : top + panel.shape[0], left : left + ZOOM_PANEL] = panel
    dataset, category, arch = (cells[0][0][key] for key in ("dataset", "category", "arch"))
    title = f"A small defect in detail: {ARCHS.get(arch, arch)} on {category}"
    name = _file(f"figure_04_zoom_{dataset}_{category}_{arch}")
    return [Figure(name, title, image_data.encode_png(out), dataset, category, arch)]


def _seen(part, window, shape):
    """What a Window shows of an array, uint8 or bool (ZOOM_PANEL, ZOOM_PANEL).

    Parameters: part (a, b), the pixels that the window touches of an array over the whole
    image; shape (H, W) of that array. Each pixel takes the one that its middle lies in.
    """
    picks = []
    for first, last, n, m in zip(
        (window.top, window.left), (window.bottom, window.right), shape, window.size
    ):
        at = first + (np.arange(ZOOM_PANEL) + 0.5) * (last - first) / ZOOM_PANEL  # in the file
        picks.append((at * n / m).astype(np.int64) - first * n // m)
    return part[np.ix_(*picks)]


def _worth_showing(cells, images):
    """Which Window is shown: that of the smallest defect that one of the setups finds half of,
    at REPORT_FPR; of the largest where there is none."""
    at = FPRS.index(REPORT_FPR)
    for number, window in enumerate(images.windows):
        if any(analysis.recall[window.region, at] >= 0.5 for _, analysis in cells):
            return number
    return len(images.windows) - 1


def _framed(panel, window):
    """A picture of the whole image with the Window's outline in it, white with a black rim."""
    out = panel.copy()
    part = out[window.within(panel.shape[:2])]
    for colour in (0, 255, 0):
        part[[0, -1]] = part[:, [0, -1]] = colour
        part = part[1:-1, 1:-1]
        if not part.size:
            break
    return out


def _white(mask):
    """A mask bool (h, w) as a picture uint8 (h, w, 3), white where it is True."""
    return np.repeat(np.where(mask, 255, 0).astype(np.uint8)[..., None], 3, 2)


def _grid_number(dataset, arch):
    """The paper has grids of FastFlow on MVTec AD (Fig. 12) and all on VisA (Figs. 14-17)."""
    numbers = {
        ("mvtec", "fastflow"): 12, ("visa", "patchcore"): 14, ("visa", "padim"): 15,
        ("visa", "fastflow"): 16, ("visa", "reverse_distillation"): 17,
    }  # fmt: skip
    number = numbers.get((dataset, arch))
    return "" if number is None else f"figure_{number}_"


def _grid_row(images, n, analyses):
    """Image, ground truth, and heat map and mask of each setup, uint8 (h, W, 3)."""
    size = tuple(images.sizes[n])
    height = max(24, round(PANEL * size[0] / size[1]))
    shape = (height, PANEL)
    picture = image_data.resize_image(
        image_data.decode_bytes(images.jpegs[n]), shape, antialias=True
    )
    truth = image_data.resize_mask(images.masks[n], shape)
    panels = [picture, render.draw_contours(picture, truth)]
    for analysis in analyses:
        if analysis is None:
            panels += [np.full((*shape, 3), 235, np.uint8)] * 2
            continue
        values = enlarge(analysis.maps[n], shape)
        panels.append(glow(picture, values))
        panels.append(_white(values >= 0.5))
    gap = np.full((height, GAP, 3), 255, np.uint8)
    return np.concatenate([part for panel in panels for part in (panel, gap)], 1)


def glow(picture, values):
    """A heat map over an image, through which the image shows where the map is low.

    Parameters: picture uint8 (h, w, 3); values float (h, w), 0 to 1, 0.5 the threshold.
    Returns uint8 (h, w, 3): the colour of each value mixed in by twice the value, at most 0.88.
    """
    part = np.clip(2 * values, 0, 0.88)[..., None]
    return np.rint((1 - part) * picture + part * render.colormap(values)).astype(np.uint8)


def enlarge(values, shape):
    """A map at another size, bilinear.

    Parameters: values uint8 (h, w); shape (H, W) in pixels.
    Returns float64 (H, W) from 0 to 1; 128 and above are above 0.5.
    """
    grey = np.repeat(np.asarray(values)[..., None], 3, 2)
    return image_data.resize_image(grey, shape)[..., 0] / 255


def text_width(text):
    """Pixels that a text takes in a picture."""
    return image_data.text_coverage(text, TEXT_HEIGHT).shape[1]


def _write_text(out, text, top, left):
    if not text:
        return
    cover = image_data.text_coverage(text, TEXT_HEIGHT)[..., None] / 255
    part = out[top : top + TEXT_HEIGHT, left : left + cover.shape[1]]
    cover = cover[: part.shape[0], : part.shape[1]]
    part[:] = np.rint(part * (1 - cover) + 28 * cover)


# ------------------------------------------------------------------------- what they share


def _places(results):
    """A sort key of results: data set, category, architecture and setup as tables order them."""
    datasets, archs = ordered(results, "dataset", DATASETS), ordered(results, "arch", ARCHS)
    setups = setup_names(results)
    categories = {
        name: category_names(name, [r for r in results if r["dataset"] == name])
        for name in datasets
    }

    def key(r):
        return (
            datasets.index(r["dataset"]), categories[r["dataset"]].index(r["category"]),
            archs.index(r["arch"]), setups.index(r["setup"]), r["seed"],
        )  # fmt: skip

    return key


def _first_seeds(cells):
    """One cell per setup, that of the least seed, in the order of setups."""
    chosen = {}
    for result, analysis in sorted(cells, key=lambda cell: cell[0]["seed"]):
        chosen.setdefault(result["setup"], (result, analysis))
    return [chosen[setup] for setup in setup_names([result for result, _ in cells])]


def _mean_over_archs(results, dataset, category, setup, key):
    """Mean over architectures of the mean over seeds, in percent; None without any."""
    by_arch = {}
    for r in results:
        if (r["dataset"], r["category"], r["setup"]) == (dataset, category, setup):
            by_arch.setdefault(r["arch"], []).append(r)
    values = [_mean_percent(rs, key) for rs in by_arch.values()]
    values = [value for value in values if value is not None]
    return sum(values) / len(values) if values else None


def _mean_percent(results, key):
    values = [r[key] for r in results if r[key] is not None]
    return 100 * math.fsum(values) / len(values) if values else None


def _file(name):
    return file_name(name)


