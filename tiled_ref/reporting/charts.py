"""The paper's Figs. 5 to 9, and curves, histograms and recall, as SVG.

Functions that take a `Collection` draw all of its cells and return (figures, notes): a list of
Figure, or an empty list and a sentence on what the figure needs.
"""

import math

import numpy as np

from ..running.analysis import REPORT_FPR
from ..support.schema import check, each, maybe, number, read_json, text
from .defect_sizes import area_edges, recall_by_area, shared_categories
from .drawing import svg
from .figure import Figure
from .results import archs_of, aupro_name, grouped, largest_peak, select, setups_of, title_of

PIPELINE = "pipeline.json"
PIPELINE_KEYS = ("arch", "setup", "device", "latency_ms", "images_per_second")
# Two-sided 95 % points of Student's t with 1 to 30 degrees of freedom.
T_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def memory(collection):
    """Fig. 5: peak memory of each setup, the maximum over its cells."""
    results = collection.results
    if largest_peak(results) is None:
        return [], ["Figure 5 needs peak memory, which the system did not report for any cell."]
    setups = setups_of(results)
    devices = sorted({str(r["device"]) for r in results})
    chart = svg.Chart(
        f"Peak memory on {', '.join(devices)}", "setup", "peak memory in GiB", x_names=setups,
        width=760,
        note="" if any(d.startswith("cuda") for d in devices) else
        "On a CPU this is the memory of the whole process, including decoded images.",
    )  # fmt: skip
    peaks = {cell: _peak_gib(rs) for cell, rs in grouped(results, "arch", "setup").items()}
    _bars_of_archs(chart, setups, archs_of(results), peaks, "{:.2f} GiB")
    return [Figure("figure_05_memory", "Peak memory", chart.svg())], []


def _bars_of_archs(chart, setups, archs, values, form):
    """Draw a bar per setup and architecture; values, {(arch, setup): number or None}."""
    width = 0.8 / len(archs)
    for k, arch in enumerate(archs):
        known = {n: values.get((arch, setup)) for n, setup in enumerate(setups)}
        known = {n: value for n, value in known.items() if value is not None}
        names = [f"{setups[n]} {title_of(arch)}: {form.format(v)}" for n, v in known.items()]
        offset = (k - (len(archs) - 1) / 2) * width
        chart.bars(known, known.values(), title_of(arch), k, width * 0.92, offset, names)


def _peak_gib(results):
    """Return the largest peak memory of results in GiB, None if no system reported it."""
    peak = largest_peak(results)
    return None if peak is None else peak / 2**30


def resolution(collection):
    """Fig. 6: AUPRO and memory against resolution, if a kind of setup was run at several sizes."""
    figures = []
    for where, results in grouped(collection.results, "dataset", "category", "arch").items():
        series = _by_resolution(results)
        if any(len(points) > 1 for points in series.values()):
            figures.append(_resolution_figure(series, aupro_name(results), *where))
    if figures:
        return figures, []
    return [], ["Figure 6 needs a kind of setup at several --image-size in the same --out."]


def _by_resolution(results):
    """Return {kind of setup: {side in px: (mean AUPRO in percent, peak GiB)}}, None if unknown."""
    series = {}
    for r in results:
        series.setdefault(kind_of(r), {}).setdefault(max(r["image_size"]), []).append(r)
    return {
        kind: {side: (_mean_percent(rs, "pixel_aupro"), _peak_gib(rs))
               for side, rs in sorted(sides.items())}
        for kind, sides in sorted(series.items())
    }  # fmt: skip


def kind_of(result):
    """Name the kind of setup of a result."""
    if result["tile_size"] == result["image_size"]:
        return "single model"
    is_ensemble = result["n_models"] > 1 or result["setup"].startswith("ENS")
    kind = "tiled ensemble" if is_ensemble else "tiled input"
    groups = "".join(result["setup"].partition("-groups-")[1:]).replace("-", " ")
    return f"{kind}, tile {max(result['tile_size'])}, stride {max(result['stride'])}{groups}"


def _resolution_figure(series, aupro, dataset, category, arch):
    sides = sorted({side for points in series.values() for side in points})
    charts = [
        svg.Chart("", "resolution in px", label, width=520, height=360, log_x=True, x_ticks=sides,
                  x_range=(min(sides) / 1.12, max(sides) * 1.12))
        for label in (f"{aupro} in %", "peak memory in GiB")
    ]  # fmt: skip
    for k, (kind, points) in enumerate(series.items()):
        for at, chart in enumerate(charts):
            known = [(side, pair[at]) for side, pair in points.items() if pair[at] is not None]
            if known:
                chart.line(*zip(*known), label=kind, series=k, marks=True)
    title = f"{aupro} and memory against resolution: {title_of(arch)} on {category}"
    drawing = svg.page(charts, 2, title)
    return Figure("figure_06_resolution", title, drawing, dataset, category, arch)


def latency(collection):
    """Fig. 8: latency and throughput, from OUT/pipeline.json."""
    path = collection.out / PIPELINE
    rows = read_pipeline(path) if path.is_file() else []
    if not rows:
        return [], [f"Figure 8 needs {PIPELINE} in --out, as bench/pipeline.py writes it."]
    figures = []
    devices = sorted({row["device"] for row in rows})
    for device in devices:
        mine = select(rows, device=device)
        setups = list(dict.fromkeys(row["setup"] for row in mine))
        charts = []
        for title, label, key in (
            ("Latency, one image", "latency in ms", "latency_ms"),
            ("Throughput", "images per second", "images_per_second"),
        ):
            at = {(row["arch"], row["setup"]): row[key] for row in mine}
            known = [value for value in at.values() if value is not None]
            chart = svg.Chart(title, "setup", label, x_names=setups, width=560, log_y=True,
                              y_range=_decades(known))  # fmt: skip
            _bars_of_archs(chart, setups, archs_of(mine), at, "{:.3g}")
            charts.append(chart)
        title = f"Latency and throughput on {device}"
        stem = "figure_08_latency" + ("" if len(devices) == 1 else f"_{device}")
        figures.append(Figure(stem, title, svg.page(charts, 2, title)))
    return figures, []


def _decades(values):
    """Return powers of ten that enclose positive values, so bars start at a round number."""
    if not values:
        return 1.0, 10.0
    low, high = math.floor(math.log10(min(values)) - 0.05), math.ceil(math.log10(max(values)))
    return 10.0**low, 10.0 ** max(high, low + 1)


def read_pipeline(path):
    """Read the rows of a pipeline.json: a list of dicts with PIPELINE_KEYS.

    The file holds the list, or an object with the list as "rows"; raises InputError otherwise.
    """
    remedy = "remove it or write it again with bench/pipeline.py"
    rows = read_json(path, lambda value, name: None, remedy)
    rows = rows.get("rows") if isinstance(rows, dict) else rows
    texts, numbers = PIPELINE_KEYS[:3], PIPELINE_KEYS[3:]
    row = dict.fromkeys(texts, text()) | dict.fromkeys(numbers, maybe(number(1e-9)))
    return check(rows, each(row), path, remedy)


def ratio_of(collection, dataset, category):
    """Return the mean anomalous fraction of a category's defective images, None if unknown."""
    images = collection.images(dataset, category)
    if images is None:
        return None
    values = images.ratios[images.labels > 0]
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else None


def defect_performance(collection):
    """Fig. 7: AUROC and AUPRO of two setups against the size of defects, one point per category."""
    setups = setups_of(collection.results)
    pair = [s for s in ("SM256", "ENS9") if s in setups]
    if len(pair) < 2:
        pair = list(dict.fromkeys([setups[0], setups[-1]]))
    charts, drawn = [], 0
    for key, title, label in (
        ("image_auroc", "Detection", "image AUROC in %"),
        ("pixel_aupro", "Localisation", f"{aupro_name(collection.results)} in %"),
    ):
        chart = svg.Chart(
            title, "mean anomalous part of a defective image in %", label, log_x=True, width=560
        )
        for k, setup in enumerate(pair):
            points = _performance(collection, setup, key)
            drawn = max(drawn, len(points))
            if not points:
                continue
            x, y, names = zip(*points)
            line = trend([math.log(v) for v in x], y)
            if line is not None:
                at = np.linspace(math.log(x[0]), math.log(x[-1]), 60)
                middle, half = line(at)
                low, middle, high = np.clip([middle - half, middle, middle + half], 0, 100)
                chart.band(np.exp(at), low, high, k)
                chart.line(np.exp(at), middle, None, k)
            chart.points(x, y, setup, k, names)
        charts.append(chart)
    if not drawn:
        return [], ["Figure 7 needs defective images with masks and their metrics."]
    title = "Performance against the size of defects"
    note = "Mean over architectures and seeds, one point per category." + (
        " Lines: least-squares fits in the logarithm of size, with 95 % confidence bands."
        if drawn >= 3 else ""
    )  # fmt: skip
    return [Figure("figure_07_defect_size", title, svg.page(charts, 2, title, note))], []


def _performance(collection, setup, metric):
    """Return sorted [(anomalous part in percent, mean over architectures of the mean over seeds in
    percent, text)] of the categories that have both."""
    points = []
    for (dataset, category), results in grouped(collection.results, "dataset", "category").items():
        by_arch = grouped(select(results, setup=setup), "arch").values()
        values = [_mean_percent(rs, metric) for rs in by_arch]
        values = [value for value in values if value is not None]
        ratio = ratio_of(collection, dataset, category)
        if ratio and values:
            value = sum(values) / len(values)
            points.append((100 * ratio, value, f"{category}: {value:.1f} %"))
    return sorted(points)


def _mean_percent(results, metric):
    values = [r[metric] for r in results if r[metric] is not None]
    return 100 * math.fsum(values) / len(values) if values else None


def trend(x, y):
    """Fit a least-squares line: a callable at -> (y, half width of its 95 % confidence band).

    y = a + b x; half width t sqrt(s^2 (1/n + (at - mean x)^2 / Sxx)), s^2 the squared residuals
    over n - 2, t Student's 95 % point. x, y (n,). None for fewer than three points or a single x.
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
        return [], ["Figure 9 needs defective images with masks."]
    found.sort(key=lambda entry: (-entry[2], entry[1]))
    title = "Size of defects per category"
    chart = svg.Chart(
        title, "category", "mean anomalous part in %", x_names=[c for _, c, _ in found],
        width=max(560, 34 * len(found) + 120),
        note="Of defective images, masks resized to 512 x 512.",
    )  # fmt: skip
    for k, dataset in enumerate(sorted({d for d, _, _ in found})):
        bars = {n: (c, value) for n, (d, c, value) in enumerate(found) if d == dataset}
        names = [f"{category}: {value:.2f} %" for category, value in bars.values()]
        chart.bars(bars, [v for _, v in bars.values()], title_of(dataset), k, 0.7, names=names)
    return [Figure("figure_09_ratios", title, chart.svg())], []


def recall_figure(defects, dataset, category, arch):
    """Recall of defects by size, one line per setup; [] without defects.

    Parameters: defects, pairs as `defect_sizes` takes them; category, None for all.
    """
    defects = shared_categories(defects)
    edges = area_edges(defects)
    if edges is None:
        return []
    setups = setups_of([result for result, _ in defects])
    middles = [math.sqrt(math.sqrt(low * high)) for low, high in zip(edges[:-1], edges[1:])]
    recalls = [recall_by_area(setup, defects, edges) for setup in setups]
    counts = np.max([counts for _, counts in recalls], axis=0)
    title = f"Recall by size of defect: {title_of(arch)} on {category or title_of(dataset)}"
    chart = svg.Chart(
        title, "side of a square of the defect's area in px", "mean recall in %", width=640,
        log_x=True, y_range=(0, 100), x_range=(math.sqrt(edges[0]), math.sqrt(edges[-1])),
        x_ticks=[math.sqrt(edge) for edge in edges],
        note=f"At a pixel FPR of {100 * REPORT_FPR:g} %. Defects per class: "
        + ", ".join(map(str, counts)),
    )  # fmt: skip
    for k, (setup, (values, _)) in enumerate(zip(setups, recalls)):
        known = [(x, 100 * v) for x, v in zip(middles, values) if v is not None]
        if known:
            chart.line(*zip(*known), label=setup, series=k, marks=True)
    return [Figure("recall_by_size", title, chart.svg(), dataset, category, arch)]


def curves(cells, dataset, category, arch):
    """Image ROC, pixel ROC and PRO curves, one line per setup; [] if no cell has any.

    Parameters: cells, pairs (result, CellAnalysis).
    """
    charts, up_to = [], max(result["fpr_limit"] for result, _ in cells)
    for key, title, x_label, y_label, limit in (
        ("image_roc", "Images: ROC", "false positive rate of images", "true positive rate", 1.0),
        ("pixel_roc", "Pixels: ROC", "false positive rate of pixels", "true positive rate",
         up_to),
        ("pro", "Regions: PRO", "false positive rate of pixels", "per-region overlap", up_to),
    ):  # fmt: skip
        known = {
            k: getattr(analysis, key) for k, (_, analysis) in enumerate(cells)
            if getattr(analysis, key) is not None
        }  # fmt: skip
        if known:
            charts.append(svg.Chart(
                title, x_label, y_label, width=400, height=380, x_range=(0, limit),
                y_range=(0, 1),
            ))  # fmt: skip
        for k, curve in known.items():
            charts[-1].line(*_until(curve, limit), label=cells[k][0]["setup"], series=k)
    if not charts:
        return []
    title = f"ROC and PRO curves: {title_of(arch)} on {category}"
    note = f"Seed {cells[0][0]['seed']}. Pixel curves at each setup's image size."
    return [Figure("curves", title, svg.page(charts, 3, title, note), dataset, category, arch)]


def _until(curve, limit):
    """Return the points of a curve up to x = limit, the last one interpolated."""
    inside = curve.fpr <= limit
    x, y = curve.fpr[inside], curve.height[inside]
    if x[-1] < limit:
        x = np.append(x, limit)
        y = np.append(y, np.interp(limit, curve.fpr, curve.height))
    return x, y


def histograms(cells, images, dataset, category, arch):
    """Histograms of image scores, normal beside defective, one panel per cell.

    Parameters: cells, pairs (result, CellAnalysis); images, as Collection.images returns them.
    """
    charts = []
    for result, analysis in cells:
        chart = svg.Chart(
            result["setup"], "image score", "images", width=400, height=310, whole_y=True
        )
        edges = np.linspace(analysis.scores.min(), analysis.scores.max(), 25)
        if edges[-1] == edges[0]:
            edges = np.linspace(edges[0] - 0.5, edges[0] + 0.5, 25)
        step = edges[1] - edges[0]
        centre = (edges[:-1] + edges[1:]) / 2
        for label, name in enumerate(("normal", "defective")):
            chosen = analysis.scores[images.labels == label]
            if not chosen.size:
                continue
            counts = np.histogram(chosen, edges)[0]
            at = counts > 0
            names = [f"{count} {name}" for count in counts[at]]
            offset = (label - 0.5) * 0.46 * step
            chart.bars(centre[at], counts[at], name, label, 0.44 * step, offset, names)
        chart.upright(analysis.threshold, "threshold")
        charts.append(chart)
    title = f"Image scores: {title_of(arch)} on {category}"
    drawing = svg.page(charts, 3, title, f"Seed {cells[0][0]['seed']}.")
    return [Figure("scores", title, drawing, dataset, category, arch)]
