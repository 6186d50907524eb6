"""Detection and localisation (not in the paper): whose image is called anomalous, and whose defect
has a mark on it."""

import numpy as np

from .results import grouped, setups_of, title_of
from .table import Number, Table, escape

GOOD = "good"
NOTE = (
    "Of each kind of defect: images called anomalous of all its images (detected); defects that a "
    "mark overlaps of all its defects (localised); the part of the defects' pixels that is marked. "
    "Of good images: those called anomalous, and those with a mark. Thresholds as the verdicts use "
    "them; an image that is detected need not have its defect localised. First seed."
)


def detection(collection, dataset, arch):
    """A Table, kinds of defects x setups; None without marks.

    Parameters: collection, a Collection.
    """
    found = collection.cells(dataset=dataset, arch=arch)
    found = [cell for cell in found if cell[1].mark_pixels is not None]
    setups = setups_of([result for result, _ in found])
    rows, records = [], []
    for (category,) in grouped([result for result, _ in found], "category"):
        images = collection.images(dataset, category)
        cells = {  # the first seed of each setup
            r["setup"]: a for r, a in reversed(found) if r["category"] == category
        }
        kinds = sorted(set(images.defects), key=lambda kind: (kind != GOOD, kind))
        for kind in kinds:
            counts = {s: count(images, a, kind) for s, a in cells.items()}
            n_images, n_defects = next(iter(counts.values()))["of"]
            texts = [_text(counts[s], kind) if s in counts else "" for s in setups]
            of = [str(n_images), str(n_defects) if kind != GOOD else ""]
            rows.append([f"{escape(category)}, {escape(kind)}", *of, *texts])
            for setup, values in counts.items():
                for quantity in ("detected", "localised", "marked"):
                    number = Number(values[quantity])
                    place = "detection", dataset, arch, f"{category}, {kind}", setup
                    records.append(number.record(*place, quantity, "%"))
    if not rows:
        return None
    return Table(
        f"detection_{dataset}_{arch}",
        f"Detection and localisation, {title_of(arch)} on {title_of(dataset)}",
        ["category, kind", "images", "defects", *setups], rows, records, [NOTE],
    )  # fmt: skip


def count(images, analysis, kind):
    """What a cell finds of a kind of defect.

    Parameters: images, as Collection.images returns them; analysis, a CellAnalysis with marks;
    kind, text.
    Returns a dict: detected, localised and marked, percent or None; "of", the numbers of images and
    of defects; "found", how many of them are detected and localised. Of good images, localised are
    those with a mark.
    """
    mine = np.array([defect == kind for defect in images.defects])
    detected = int((analysis.scores[mine] >= analysis.threshold).sum())
    if kind == GOOD:
        touched = analysis.mark_pixels[mine] > 0
        of_pixels = analysis.mark_pixels[mine] / images.sizes[mine].prod(1)
        marked = of_pixels.mean() if mine.any() else None
    else:
        regions = mine[images.region_image] if images.region_image.size else np.zeros(0, bool)
        touched, areas = analysis.marked[regions] > 0, images.region_area[regions]
        marked = (analysis.marked[regions] * areas).sum() / areas.sum() if areas.size else None
    n, m = int(mine.sum()), touched.size
    return {
        "of": (n, m), "found": (detected, int(touched.sum())), "detected": 100 * detected / n,
        "localised": 100 * float(touched.mean()) if m else None,
        "marked": None if marked is None else 100 * float(marked),
    }  # fmt: skip


def _text(values, kind):
    (detected, touched), (n, m) = values["found"], values["of"]
    text = f"{detected}/{n}, {touched}/{m}" if m else f"{detected}/{n}"
    return text if values["marked"] is None else f"{text} ({values['marked']:.3g} %)"
