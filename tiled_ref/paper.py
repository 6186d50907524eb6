"""The paper's own numbers, for side-by-side tables.

`paper_results.csv` holds Tables 5-12 of Rolih et al. 2024, category by category: image AUROC
and pixel AUPRO in percent, mean of three seeds.
"""

import csv
import functools
from importlib import resources

SEEDS = (42, 5125, 33)  # of the authors' evaluation configuration


@functools.cache
def _results():
    text = resources.files(__package__).joinpath("paper_results.csv").read_text("utf-8")
    return {
        (row["dataset"], row["architecture"], row["category"], row["setup"]): (
            round(float(row["image_auroc"]) / 100, 3),
            round(float(row["pixel_aupro"]) / 100, 3),
        )
        for row in csv.DictReader(text.splitlines())
    }


def paper_result(dataset, arch, category, setup):
    """(image AUROC, pixel AUPRO) that the paper gives for a cell, as fractions; None if none.

    Parameters: names as on the command line; category "average" for the mean over all.
    Source: Rolih et al. 2024, Tables 5-12.

    >>> paper_result("mvtec", "padim", "screw", "ENS9")
    (0.694, 0.922)
    """
    return _results().get((dataset, arch, category, setup))
