"""report.html: one file with the tables, curves and pictures of all cells, for a browser.

The page loads nothing else. File names never become markup: the JSON that the page's script reads
contains no "<", and the script writes names through textContent. Pictures are small, and an SVG
filter colours the heat maps (`heat_filter`), so hundreds of them scroll smoothly and all of them
can be printed.
"""

import base64
import html
import json
import re
from importlib import resources

import numpy as np

from .. import __version__
from ..data import encoders
from ..setups import OPTIONS
from ..support.files import write_files
from ..support.progress import bytes_text
from . import paper
from .collection import Collection
from .detection import detection, verdicts
from .drawing import render, svg
from .drawing.axes import MINUS
from .figures import all_figures, figure_files
from .results import (
    archs_of,
    aupro_name,
    grouped,
    largest_peak,
    left_out,
    lost,
    setups_of,
    timed,
    title_of,
)  # fmt: skip
from .table import mean, mean_std, seeds_note, value_cell
from .tables import all_tables, cell_number, table_files

MAP_QUALITY = 80  # of the JPEG files of maps
THRESHOLDS = {  # deciding.MODES
    "same-as-test": "Verdicts: the thresholds come from the test images themselves, as in the "
    "paper, so the verdicts are optimistic.",
    "split": "Verdicts: the thresholds come from one half of the test images; metrics and "
    "pictures use the other half.",
    "none": "Verdicts: the thresholds come from held-out, defect-free training images.",
    "folder": "Verdicts: the thresholds come from defect-free validation images.",
}
GALLERY_BYTES = 40 << 20  # of all pictures; above it, images with the smallest errors are omitted


def write_report(out, title="", date=""):
    """Write OUT/report/: tables, figures and report.html of all finished cells below OUT.

    Parameters: out, Path; title and date, texts at the top of the page.
    Returns (path of report.html, notes): sentences for the user of the command line, on what is
    missing and how to get it, without those that `summary.result_table` prints.
    Raises InputError for files below OUT that are damaged or were not written by this program.
    """
    folder = out / "report"
    collection = Collection(out)
    tables = all_tables(collection.results, collection.defects())
    kinds = grouped(collection.results, "dataset", "arch")
    tables += filter(None, (detection(collection, *kind) for kind in kinds))
    figures, notes = all_figures(collection)
    for path in collection.without:
        notes.append(
            f"{path.relative_to(out)} has metrics but no picture data of the same test images, "
            "so it appears in the tables only; run it again with --report."
        )
    differing = differing_options(collection.results)
    text = page(collection, tables, figures, differing, title, date)
    files = table_files(tables) | figure_files(figures) | {"report.html": text}
    write_files(folder, files)
    return folder / "report.html", notes + differing


def page(collection, tables, figures, notes, title="", date=""):
    """Return the text of report.html; parameters as for `write_report`, notes for its readers."""
    results = collection.results
    notes = [seeds_note(results), *notes, *left_out(results), *lost(results)]
    charts, overview = {}, []
    for figure in figures:
        if isinstance(figure.data, bytes):
            continue  # a picture grid: the page already has its pictures
        wide = " wide" if svg.file_width(figure.data) > 800 else ""
        chart = f'<div class="figure{wide}">{svg.inline(figure.data)}</div>'
        if figure.category is None:
            overview.append(chart)
        else:
            charts.setdefault((figure.dataset, figure.category, figure.arch), []).append(chart)
    data = {
        "summary": summary(results),
        "setups": setups_of(results),
        "archs": {arch: title_of(arch) for arch in archs_of(results)},
        "categories": gallery(collection, charts),
    }
    parts = {
        "TITLE": html.escape(title or "Tiled ensemble: results"),
        "DATE": html.escape(date),
        "CSS": _asset("report.css"),
        "CHART_CSS": svg.style_sheet("[data-theme=dark] svg.chart"),
        "FILTER": heat_filter(),
        "BAR": color_bar(),
        "NOTES": "".join(f'<p class="note">{html.escape(note)}</p>' for note in notes),
        "OVERVIEW": "".join(overview),
        "DETECTION": "".join(table_html(t) for t in tables if t.name.startswith("detection")),
        "TABLES": "".join(table_html(t) for t in tables if not t.name.startswith("detection")),
        "FOOTER": f"tiled-ref {__version__}. tables.csv beside this file has the same numbers in "
        "full precision.",
        "DATA": script_json(data),
        "JS": _asset("report.js"),
    }
    return re.sub("@([A-Z_]+)@", lambda match: parts[match[1]], _asset("report.html"))


def heat_filter():
    """Return an SVG filter that colours a grey map like `render.overlay`: shade v gets the colour
    and opacity of the value v / 255."""
    shades = np.arange(256) / 255
    colors, part = render.colormap(shades[None])[0] / 255, render.opacity(shades)  # (256, 3)

    def table(channel, values):
        numbers = " ".join(f"{value:.4g}" for value in values)
        return f'<feFunc{channel} type="table" tableValues="{numbers}"/>'

    of_shade = "".join(map(table, "RGB", colors.T))
    return (
        '<svg class="filters" width="0" height="0" aria-hidden="true"><filter id="heat" '
        'x="0" y="0" width="1" height="1" color-interpolation-filters="sRGB">'
        '<feColorMatrix values="0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1 0 0 0 0"/>'
        f'<feComponentTransfer result="part">{table("A", part)}</feComponentTransfer>'
        f'<feComponentTransfer in="SourceGraphic">{of_shade}</feComponentTransfer>'
        '<feComposite operator="in" in2="part"/></filter></svg>'
    )


def color_bar():
    """Return the colour bar of the heat maps as HTML, with the scale of `render.with_color_bar`."""
    colors = ",".join(f"rgb({r},{g},{b})" for r, g, b in render.COLORS.tolist())
    (value, text), = render.THRESHOLD
    return (
        f'<span class="scale"><span>anomaly</span><i style="background:linear-gradient(to right,'
        f'{colors})"></i><span class="ends"><span>0</span><span style="left:{100 * value:g}%">'
        f"{text}</span><span>1</span></span></span>"
    )


def _asset(name):
    return resources.files(__package__).joinpath("assets", name).read_text("utf-8")


def script_json(data):
    """Return data as JSON that is safe inside a <script>: no character can end the element.

    >>> script_json({"name": "</script><b>&"})
    '{"name":"\\\\u003c/script\\\\u003e\\\\u003cb\\\\u003e\\\\u0026"}'
    """
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def summary(results):
    """Return the summary table: headers, which columns are text, rows of [text, sort key]."""
    headers = ["data set", "category", "architecture", "setup", "seeds", "image AUROC",
               "pixel AUROC", aupro_name(results), "SegF1", "paper AUROC (difference)",
               "paper AUPRO (difference)",
               "parameters", "training", "test", "peak memory"]  # fmt: skip
    rows = []
    places = {name: k for k, name in enumerate(setups_of(results))}
    cells = grouped(results, "dataset", "category", "arch", "setup")
    for (dataset, category, arch, setup), group in cells.items():
        short = "built-in" if dataset == "synthetic" else title_of(dataset)
        row = [[text] * 2 for text in (short, category, title_of(arch))]
        row += [[setup, places[setup]], [str(len(group)), len(group)]]
        numbers = {
            metric: cell_number(dataset, arch, category, setup, metric, group)
            for metric in ("image_auroc", "pixel_auroc", "pixel_aupro", "seg_f1")
        }
        row += [[value_cell(number), number.value] for number in numbers.values()]
        for metric in ("image_auroc", "pixel_aupro"):
            paper_value, gap = numbers[metric].paper, numbers[metric].difference
            text = "-" if paper_value is None else f"{paper_value:.1f}"
            text += "" if gap is None else f" ({gap:+.1f})".replace("-", MINUS)
            row.append([text, gap])
        n_parameters = group[0]["n_parameters"]
        row.append([f"{n_parameters / 1e6:.1f} M", n_parameters])
        for key in ("seconds_train", "seconds_test"):
            values = [r[key] for r in timed(group)]
            row.append([_seconds(values), mean(values) if values else None])
        peak = largest_peak(group)
        rows.append([*row, [bytes_text(peak), peak]])
    drop = [9, 10] if all(row[9][0] == row[10][0] == "-" for row in rows) else []  # paper columns
    drop += [8] if all(r["dataset"] != "mvtec2" for r in results) else []
    for row in (headers, *rows):
        row[:] = [cell for k, cell in enumerate(row) if k not in drop]
    return {"headers": headers, "text": [1, 1, 1, 1] + [0] * (len(headers) - 4), "rows": rows}


def _seconds(values):
    """Format mean and spread of seconds: one decimal below 100, none above."""
    if not values:
        return "-"
    middle, std = mean_std(values)
    digits = 1 if middle < 100 else 0
    return f"{middle:,.{digits}f}" + ("" if std is None else f" ± {std:,.{digits}f}") + " s"


def gallery(collection, charts):
    """Encode the pictures of the page -> a list with a dict per category, see report.js.

    Parameters: collection, a Collection; charts, {(dataset, category, arch): list of HTML}.
    If all pictures together exceed GALLERY_BYTES, the same fraction of every category is kept,
    worst errors first: an image's error is the worst over its setups.
    """
    categories = []
    groups = collection.groups()
    for dataset, category in dict.fromkeys((d, c) for d, c, _ in groups):
        images = collection.images(dataset, category)
        cells = {}
        for arch in (a for d, c, a in groups if (d, c) == (dataset, category)):
            found = collection.first_seeds(dataset=dataset, category=category, arch=arch)
            cells[arch] = {result["setup"]: analysis for result, analysis in found}
        title = f"{category} ({title_of(dataset)})"
        one = {"title": title, "images": [], "cells": {arch: {} for arch in cells}, "omitted": 0}
        one["charts"] = {arch: charts.get((dataset, category, arch), []) for arch in cells}
        categories.append((one, images, cells))
    size = sum(_picture_bytes(images, cells) for _, images, cells in categories)
    part = min(1.0, GALLERY_BYTES / max(1, size))
    for one, images, cells in categories:
        ranked = np.argsort(-severity(images.labels, cells), kind="stable")
        kept = sorted(ranked[: max(1, int(part * len(ranked)))].tolist())
        _fill(one, images, cells, kept)
        one["omitted"] = len(ranked) - len(kept)
    return [one for one, _, _ in categories]


def severity(labels, cells):
    """Return each image's worst error over all cells.

    Parameters: labels (N,), 0 normal; cells, architecture -> setup -> analysis.
    Returns float64 (N,), above 0 where some setup errs: how far the score is on the wrong side of
    the threshold, as a fraction of the cell's range of scores.
    """
    worst = np.full(len(labels), -np.inf)
    for analysis in (a for setups in cells.values() for a in setups.values()):
        worst = np.maximum(worst, _wrong(labels, analysis))
    return worst


def _wrong(labels, analysis):
    """Return each image's error in one cell, see `severity`."""
    margin = (analysis.scores - analysis.threshold) / (np.ptp(analysis.scores) or 1.0)
    return np.where(labels > 0, -margin, margin)


def _picture_bytes(images, cells):
    """Estimate how many bytes a category's pictures take in the page."""
    n_cells = sum(map(len, cells.values()))
    return 4 / 3 * (sum(map(len, images.jpegs)) + 1500 * n_cells * len(images.names))


def _fill(one, images, cells, kept):
    """Add the images with the indices `kept`, and each cell's results for them."""
    for k in kept:
        height, width = images.sizes[k].tolist()
        entry = {
            "name": images.names[k], "defect": images.defects[k], "label": int(images.labels[k]),
            "w": width, "h": height, "jpeg": _base64(images.jpegs[k]),
        }  # fmt: skip
        entry["truth"] = _outline(images.masks[k])
        one["images"].append(entry)
    for arch, setups in cells.items():
        for setup, analysis in setups.items():
            maps = (encoders.encode_jpeg(analysis.maps[k], MAP_QUALITY) for k in kept)
            said = verdicts(images, analysis)
            one["cells"][arch][setup] = {
                "threshold": analysis.threshold,
                "scores": analysis.scores[kept].tolist(),
                "wrong": _wrong(images.labels, analysis)[kept].tolist(),
                "verdicts": [said[k] for k in kept],
                "maps": [_base64(data) for data in maps],
                "marks": [_outline(analysis.masks[k]) for k in kept],
            }


def _outline(mask):
    """Return a mask's outlines: [height, width, d of an SVG path in pixels of the mask]."""
    polygons = (polygon for region in render.contours(mask) for polygon in region.outline)
    paths = []
    for polygon in polygons:
        row, col = polygon[0].tolist()
        steps = np.diff(polygon, axis=0).tolist()  # along one axis each
        paths.append(f"M{col} {row}" + "".join(f"v{r}" if r else f"h{c}" for r, c in steps) + "z")
    return [*mask.shape, "".join(paths)]


def _base64(data):
    return base64.b64encode(data).decode("ascii")


def table_html(table):
    """Return a Table as HTML."""

    def cells(texts, start, end):
        return "".join(f"{start}{cell_html(text)}{end}" for text in texts)

    head = cells(table.headers, '<th scope="col">', "</th>")
    body = "".join(f"<tr>{cells(row, '<td>', '</td>')}</tr>" for row in table.rows)
    notes = cells(table.notes, '<p class="note">', "</p>")
    shown = " open" * table.name.startswith("detection")
    return (
        f"<details{shown}><summary>{html.escape(table.title)}</summary>"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        f"</div>{notes}</details>"
    )


def cell_html(text):
    r"""Convert a cell's Markdown to HTML: bold, italic, <br>, <sub>; all else stays text.

    >>> cell_html("**1.0**<br><sub>paper 2</sub>"), cell_html(r"a\*b\*&#60;i&#62;")
    ('<b>1.0</b><br><sub>paper 2</sub>', 'a&#42;b&#42;&#60;i&#62;')
    """
    text = re.sub(r"\\(.)", lambda match: f"&#{ord(match[1])};", text)
    parts = re.split(r"(<br>|</?sub>)", text)
    for k in range(0, len(parts), 2):
        part = parts[k].replace("<", "&lt;").replace(">", "&gt;")
        parts[k] = re.sub(r"&(?!#\d+;|lt;|gt;)", "&amp;", part)
    text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", "".join(parts))
    return re.sub(r"\*(.+?)\*", r"<i>\1</i>", text)


def differing_options(results):
    """Return sentences on the options in which the cells differ."""
    notes = []
    own = "metric_size", "fpr_limit", "pixel_edition", "torch"
    for key in ("weights", *(o.name for o in OPTIONS), *own):
        values = sorted({str(r.get(key, "older")) for r in results})
        if len(values) > 1:
            notes.append(f"The results differ in {key.replace('_', ' ')}: {', '.join(values)}.")
    for (arch,), mine in grouped(results, "arch").items():
        kinds = {
            json.dumps([r.get("batch_size"), r.get("switches")], sort_keys=True) for r in mine
        }
        if len(kinds) > 1:
            notes.append(f"The results of {title_of(arch)} differ in batch size or settings.")
    if any(r["weights"] != "imagenet" for r in results) and any(
        paper.categories(r["dataset"]) for r in results
    ):
        notes.append("Results of random weights are not compared with the paper.")
    for mode in sorted({r["thresholds"]["mode"] for r in results if "thresholds" in r}):
        notes.append(THRESHOLDS[mode])
    return notes
