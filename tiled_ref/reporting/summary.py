"""The table that a run prints; full precision stays in metrics.json and results.csv."""

from ..support.progress import bytes_text
from .paper import paper_result
from .results import aupro_name, comparable, grouped, largest_peak, left_out, lost, timed

ALONE = " --share-features off measures each cell alone."
METRICS = ("image_auroc", "pixel_auroc", "pixel_aupro", "seg_f1")


def result_table(results):
    """Format the results of a run as text, metrics in percent.

    Parameters: results, dicts as `cell.run_cell` returns, in the order of the rows.
    Returns lines joined by newlines: a row for each cell and seed, and their mean if a cell was
    run with several seeds. Cells of the paper also show its value and our difference in points.
    LEFT_OUT follows the table if a cell reused layers, then the sentences on what the metrics do
    not cover (`lost`).
    """
    rows = []
    for group in grouped(results, "dataset", "category", "arch", "setup").values():
        rows.extend(_row(result, str(result["seed"])) for result in group)
        if len(group) > 1:
            rows.append(_row(_mean(group), f"mean of {len(group)}"))
    headers = ["category", "arch", "setup", "seed", "image AUROC", "pixel AUROC"]
    headers += [aupro_name(results), "SegF1", "paper AUROC/AUPRO", "difference"]
    headers += ["params", "train", "test", "peak memory"]
    drop = [8, 9] if not any(row[8] for row in rows) else []  # no cell is in the paper
    drop += [7] if all(result["dataset"] != "mvtec2" for result in results) else []
    for row in (headers, *rows):
        row[:] = [cell for k, cell in enumerate(row) if k not in drop]
    not_timed = [sentence + ALONE for sentence in left_out(results)]
    return "\n\n".join([text_table(headers, rows, left=4), *not_timed, *lost(results)])


def text_table(headers, rows, left=1):
    """Align columns with spaces; the first `left` columns to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(headers, *rows)]

    def line(row):
        padded = [
            cell.ljust(width) if k < left else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths))
        ]
        return "  ".join(padded).rstrip()

    return "\n".join([line(headers), line(["-" * width for width in widths]), *map(line, rows)])


def percent(fraction):
    """Format a fraction as percent with one decimal, "-" for None."""
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def _mean(group):
    mean = dict(group[0])
    for key in (*METRICS, "seconds_train", "seconds_test"):
        values = [result[key] for result in group]
        mean[key] = None if None in values else sum(values) / len(values)
    mean["peak_memory_bytes"] = largest_peak(group)
    mean["features_reused"] = max(result.get("features_reused", 0) for result in group)
    return mean


def _row(result, seed):
    paper = difference = ""
    cell = paper_result(result["dataset"], result["arch"], result["category"], result["setup"])
    if cell and comparable([result]):
        ours = result["image_auroc"], result["pixel_aupro"]
        cell = cell if comparable([result], "pixel_aupro") else (cell[0], None)
        paper = "/".join(map(percent, cell))
        difference = "/".join(
            "-" if None in (mine, theirs) else f"{100 * (mine - theirs):+.1f}"
            for mine, theirs in zip(ours, cell)
        )
    times = [
        f"{result[key]:.1f} s" if timed([result]) else "-"
        for key in ("seconds_train", "seconds_test")
    ]
    return [
        *(result[key] for key in ("category", "arch", "setup")), seed,
        *(percent(result[key]) for key in METRICS), paper, difference,
        f"{result['n_parameters'] / 1e6:.1f} M", *times, bytes_text(result["peak_memory_bytes"]),
    ]  # fmt: skip
