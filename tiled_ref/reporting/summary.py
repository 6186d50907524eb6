"""Tables for people; full precision stays in metrics.json and results.csv."""

from ..support.progress import bytes_text
from .paper import paper_result

METRICS = (("image_auroc", "image AUROC"), ("pixel_auroc", "pixel AUROC"), ("pixel_aupro", "AUPRO"))


LEFT_OUT = (
    "Cells that read layers of the backbone which another cell had computed have no times here; "
    "--share-features off measures each cell alone."
)


def timed(results):
    """Those results, dicts as `cell.run_cell` returns, whose cells computed all layers."""
    return [result for result in results if not result.get("features_reused")]


def result_table(results):
    """The results of a run as text, metrics in percent.

    Parameters: results, dicts as `cell.run_cell` returns, in the order of the rows.
    Returns lines joined by newlines: a row a cell, a row with the mean where a cell was run
    with several seeds, and, where the paper has the cell, its value and the difference of
    ours in points; below it LEFT_OUT where a cell reused layers.
    """
    rows = []
    for group in _by_cell(results):
        rows.extend(_row(result, str(result["seed"])) for result in group)
        if len(group) > 1:
            rows.append(_row(_mean(group), f"mean of {len(group)}"))
    headers = ["category", "arch", "setup", "seed", *[title for _, title in METRICS]]
    headers += ["paper AUROC/AUPRO", "difference", "params", "train", "test", "peak memory"]
    if not any(row[7] for row in rows):  # no cell of the paper among them
        for row in (headers, *rows):
            del row[7:9]
    note = f"\n\n{LEFT_OUT}" if len(timed(results)) < len(results) else ""
    return text_table(headers, rows, left=4) + note


def text_table(headers, rows, left=1):
    """Columns aligned by spaces; the first `left` to the left, the others to the right."""
    cells = [headers, *rows]
    widths = [max(len(row[k]) for row in cells) for k in range(len(headers))]

    def line(row):
        padded = [
            cell.ljust(width) if k < left else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths))
        ]
        return "  ".join(padded).rstrip()

    return "\n".join([line(headers), line(["-" * width for width in widths]), *map(line, rows)])


def percent(fraction):
    """A fraction with one decimal in percent, "-" for None."""
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def largest_peak(results):
    """The largest peak memory of results in bytes, None where no system reported one."""
    peaks = [result["peak_memory_bytes"] for result in results]
    return max((peak for peak in peaks if peak is not None), default=None)


def _by_cell(results):
    """Lists of results that differ in nothing but the seed, in the order first seen."""
    groups = {}
    for result in results:
        key = tuple(result[k] for k in ("dataset", "category", "arch", "setup"))
        groups.setdefault(key, []).append(result)
    return list(groups.values())


def _mean(group):
    mean = dict(group[0])
    for key in (*[key for key, _ in METRICS], "seconds_train", "seconds_test"):
        values = [result[key] for result in group]
        mean[key] = None if None in values else sum(values) / len(values)
    mean["peak_memory_bytes"] = largest_peak(group)
    mean["features_reused"] = max(result.get("features_reused", 0) for result in group)
    return mean


def _row(result, seed):
    paper = difference = ""
    is_timed = bool(timed([result]))
    cell = paper_result(result["dataset"], result["arch"], result["category"], result["setup"])
    if cell and result["weights"] == "imagenet":
        ours = result["image_auroc"], result["pixel_aupro"]
        paper = "/".join(percent(value) for value in cell)
        difference = "/".join(
            "-" if mine is None else f"{100 * (mine - theirs):+.1f}"
            for mine, theirs in zip(ours, cell)
        )
    return [
        result["category"],
        result["arch"],
        result["setup"],
        seed,
        *[percent(result[key]) for key, _ in METRICS],
        paper,
        difference,
        f"{result['n_parameters'] / 1e6:.1f} M",
        f"{result['seconds_train']:.1f} s" if is_timed else "-",
        f"{result['seconds_test']:.1f} s" if is_timed else "-",
        bytes_text(result["peak_memory_bytes"]),
    ]
