"""The paper's own numbers, for side-by-side tables.

Rolih et al. 2024, in percent unless noted otherwise, mean of three seeds:

    paper_results.csv           Tables 5-12, category by category, image AUROC and pixel AUPRO;
                                the rows "average" (Tables 1-2) have the standard deviation
                                over the seeds, as the paper prints it
    paper_parameters.csv        Table 3, millions
    paper_training_seconds.csv  Table 4, seconds

The numbers are as printed, slips included: `arithmetic_slips` finds those that the paper's
other numbers contradict.
"""

import csv
import functools
from dataclasses import dataclass
from importlib import resources

PAPER_METRICS = {"image_auroc": "AUROC", "pixel_aupro": "AUPRO"}  # our name -> the paper's
AVERAGE = "average"
# Numbers are printed with one decimal: the mean of such numbers is off by at most 0.05, and so is
# the printed mean. A larger difference is not rounding.
ROUNDING = 0.1


@dataclass(frozen=True)
class Printed:
    """A number of the paper."""

    table: int  # number of its table
    value: float  # fraction
    std: float = None  # fraction; None where the paper gives none


def _rows(name):
    text = resources.files(__package__).joinpath(name).read_text("utf-8")
    return list(csv.DictReader(text.splitlines()))


@functools.cache
def _printed():
    """(dataset, arch, category, setup, metric) -> Printed."""
    table = {}
    for row in _rows("paper_results.csv"):
        for metric in PAPER_METRICS:
            key = row["dataset"], row["architecture"], row["category"], row["setup"], metric
            std = row[f"{metric}_std"]
            table[key] = Printed(
                int(row["table"]),
                round(float(row[metric]) / 100, 3),
                round(float(std) / 100, 4) if std else None,
            )
    return table


def paper_result(dataset, arch, category, setup):
    """Return the paper's (image AUROC, pixel AUPRO) of a cell, as fractions; None if none.

    Category "average" is the mean over all. Source: Rolih et al. 2024, Tables 5-12.

    >>> paper_result("mvtec", "padim", "screw", "ENS9")
    (0.694, 0.922)
    """
    cells = [printed(dataset, arch, category, setup, metric) for metric in PAPER_METRICS]
    return None if None in cells else tuple(cell.value for cell in cells)


def printed(dataset, arch, category, setup, metric):
    """Return the Printed of a cell's metric; None if the paper has none.

    >>> printed("mvtec", "padim", "average", "ENS9", "image_auroc")
    Printed(table=6, value=0.897, std=0.0089)
    """
    return _printed().get((dataset, arch, category, setup, metric))


def table_number(dataset, arch):
    """Return which of Tables 5-12 has a data set and architecture, or None."""
    cell = printed(dataset, arch, AVERAGE, "SM256", "image_auroc")
    return cell.table if cell else None


@functools.cache
def categories(dataset):
    """Return the categories in the order of the paper's rows; () for a data set not in it."""
    names = [key[2] for key in _printed() if key[0] == dataset and key[2] != AVERAGE]
    return tuple(dict.fromkeys(names))


@functools.cache
def _by_setup(name):
    return {
        (row["setup"], arch): float(row[arch])
        for row in _rows(name) for arch in row if arch != "setup"
    }  # fmt: skip


def paper_parameters(arch, setup):
    """Return the parameters of a setup in millions (Table 3), None if none.

    >>> paper_parameters("fastflow", "ENS9")
    87.6
    """
    return _by_setup("paper_parameters.csv").get((setup, arch))


def paper_training_seconds(arch, setup):
    """Return a setup's training time in seconds, mean over categories and seeds (Table 4)."""
    return _by_setup("paper_training_seconds.csv").get((setup, arch))


@functools.cache
def arithmetic_slips():
    """Return {(dataset, arch, AVERAGE, setup, metric): mean of the printed categories in percent}
    of every printed average in Tables 5-12 that rounding cannot explain."""
    slips = {}
    for key, cell in _printed().items():
        dataset, arch, category, setup, metric = key
        if category == AVERAGE:
            values = [printed(dataset, arch, c, setup, metric).value for c in categories(dataset)]
            mean = sum(values) / len(values)
            if abs(mean - cell.value) * 100 > ROUNDING:
                slips[key] = round(100 * mean, 2)
    return slips


def impossible_values():
    """Return the keys (dataset, arch, category, setup, metric) of values above 100 %."""
    return tuple(key for key, cell in _printed().items() if cell.value > 1)
