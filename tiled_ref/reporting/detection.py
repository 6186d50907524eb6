"""Detection and localisation (not in the paper): which images are called anomalous, and which
defects are marked."""

import numpy as np

from .results import grouped, setups_of, title_of
from .table import Number, Table, escape, mean_std, seeds_note

GOOD = "good"
NOTE = (
    "Detected: images called anomalous, out of all images of a kind of defect. Localised: defects "
    "that a mark overlaps, out of all its defects; an image can be detected without its defect "
    "being localised. Pixels: the marked fraction of the defects. For good images: false alarms, "
    "images with a mark, and the marked fraction of their pixels. Thresholds: as for the verdicts."
)
VERDICTS = {  # (label, whether called anomalous)
    (0, False): ("ok", "normal"), (0, True): ("fp", "anomalous: false alarm"),
    (1, False): ("fn", "normal: missed"), (1, True): ("ok", "anomalous"),
}  # fmt: skip


def detection(collection, dataset, arch):
    """Return a Table with a row for each kind of defect and setup; None without marks.

    Parameters: collection, a Collection.
    """
    found = collection.cells(dataset=dataset, arch=arch)
    found = [cell for cell in found if cell[1].mark_pixels is not None]
    results = [result for result, _ in found]
    rows, records = [], []
    for (category,) in grouped(results, "category"):
        images = collection.images(dataset, category)
        cells = [cell for cell in found if cell[0]["category"] == category]
        for kind in sorted(set(images.defects), key=lambda kind: (kind != GOOD, kind)):
            for setup in setups_of([result for result, _ in cells]):
                counts = [count(images, a, kind) for r, a in cells if r["setup"] == setup]
                name = f"{escape(category)}, {escape(kind)}" + " (false alarms)" * (kind == GOOD)
                rows.append([name, setup, *_texts(counts, kind)])
                place = "detection", dataset, arch, f"{category}, {kind}", setup
                for quantity in ("detected", "localised", "marked"):
                    values = [one[quantity] for one in counts if one[quantity] is not None]
                    number = Number(*mean_std(values), seeds=len(values))
                    records.append(number.record(*place, quantity, "%"))
    if not rows:
        return None
    return Table(
        f"detection_{dataset}_{arch}",
        f"Detection and localisation, {title_of(arch)} on {title_of(dataset)}",
        ["category, kind", "setup", "images", "detected", "defects", "localised", "pixels"],
        rows, records, [NOTE, seeds_note(results)],
    )  # fmt: skip


def count(images, analysis, kind):
    """Count what a cell finds of a kind of defect.

    Parameters: images, as Collection.images returns them; analysis, a CellAnalysis with marks;
    kind, text.
    Returns a dict: detected, localised and marked, percent or None; "of", the numbers of images and
    of defects; "found", how many of them are detected and localised. Good images count as
    localised if they have a mark.
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


def _texts(counts, kind):
    """Return a row's cells after its names; counts, dicts as from `count`, one per seed."""
    n, m = counts[0]["of"]
    detected, localised = (
        _spread([one["found"][k] for one in counts], "g", f" of {total}") if total else "-"
        for k, total in enumerate((n, m))
    )
    marked = [one["marked"] for one in counts if one["marked"] is not None]
    pixels = _spread(marked, ".3g", " %") if marked else "-"
    return [str(n), detected, "-" if kind == GOOD else str(m), localised, pixels]


def _spread(values, form, unit):
    """Format mean and spread with a unit; counts (form "g") are rounded to one decimal."""
    numbers = [value for value in mean_std(values) if value is not None]
    if form == "g":
        numbers = [round(value, 1) for value in numbers]
    return " ± ".join(f"{value:{form}}" for value in numbers) + unit


def verdicts(images, analysis):
    """Return a cell's verdict on each image and how it compares with the truth.

    Parameters: images, as Collection.images returns them; analysis, a CellAnalysis.
    Returns a list of (kind, text): kind is "fn", missed; "fp", a false alarm; "nl", detected
    without a localised defect; or "ok".
    """
    said = []
    for k, label in enumerate(images.labels.tolist()):
        called, defects = bool(analysis.scores[k] >= analysis.threshold), images.region_image == k
        kind, text = VERDICTS[label, called]
        if analysis.mark_pixels is not None:
            pixels, n = int(analysis.mark_pixels[k]), int(defects.sum())
            found, marked = pixels > 0, f"{pixels:,} px marked" if pixels else "no mark"
            if n:
                found = touched = int((analysis.marked[defects] > 0).sum())
                marked = f"{touched} of {n} defect{'s' * (n > 1)} localised"
            if n and called and not found:
                kind, text = "nl", "anomalous: detected, not localised"
            elif called or found or n:
                text += (", " if called == bool(found) else ", but ") + marked
        said.append((kind, text))
    return said
