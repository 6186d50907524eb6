"""The paper's figures for our results: SVG charts and PNG grids.

    Fig. 4      a small defect in full and zoomed, heat map and mask of each setup
    Fig. 5-9    memory, resolution, size of defects, latency, see `charts`
    Fig. 12-17  image, ground truth, heat map and mask of each setup side by side

and, not in the paper, ROC and PRO curves, histograms of scores, recall by size of defect.
"""

from . import charts
from .picture_grids import picture_grid, zoom_grid


def all_figures(collection):
    """Return (every Figure that the cells allow, notes on those left out)."""
    figures, notes = [], []
    if not collection.results:
        return figures, notes
    for make in (charts.memory, charts.resolution, charts.defect_performance, charts.latency,
                 charts.ratios):  # fmt: skip
        made, why_not = make(collection)
        figures += made
        notes += why_not
    groups = collection.groups()
    for where in groups:
        dataset, category, arch = where
        cells = collection.first_seeds(dataset=dataset, category=category, arch=arch)
        images = collection.images(dataset, category)
        figures += charts.curves(cells, *where) + charts.histograms(cells, images, *where)
        defects = collection.defects(dataset=dataset, category=category, arch=arch)
        figures += charts.recall_figure(defects, *where) + zoom_grid(cells, images, *where)
    for dataset, arch in dict.fromkeys((d, a) for d, _, a in groups):
        if sum((d, a) == (dataset, arch) for d, _, a in groups) > 1:  # over all categories
            defects = collection.defects(dataset=dataset, arch=arch)
            figures += charts.recall_figure(defects, dataset, None, arch)
        figures += picture_grid(collection, dataset, arch)
    return figures, notes


def figure_files(figures):
    """Return {NAME.svg or NAME.png: content} of the figures."""
    return {
        f"{figure.name}.{'svg' if isinstance(figure.data, str) else 'png'}": figure.data
        for figure in figures
    }
