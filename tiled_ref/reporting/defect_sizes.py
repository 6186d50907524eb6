"""Recall of defects by size (not in the paper): size classes and their table.

The recall of a defect is the fraction of its pixels above the threshold that REPORT_FPR of all
normal pixels of the test set exceed. The functions here take pairs (result, defects), one for each
category, setup and seed; defects is a dict of "area", int (R,), in pixels of the image file, and
"recall", float (R, len(FPRS)).
"""

import math

import numpy as np

from ..running.analysis import FPRS, REPORT_FPR
from .results import grouped, select, setups_of, title_of
from .table import Number, Table, escape, mean_std, rank, seeds_note, value_cell

AREA_STEP = 4  # ratio of areas between size classes: the side doubles


def defect_sizes(dataset, arch, pairs):
    """Return a Table, size classes x setups, of mean recall over a class's defects and over seeds;
    None without defects. Pairs of other data sets and architectures are ignored."""
    everything = [pair for pair in pairs if select(pair[:1], dataset=dataset, arch=arch)]
    pairs = shared_categories(everything)
    setups = setups_of([result for result, _ in pairs])
    edges = area_edges(pairs)
    if edges is None:
        return None
    rows, records = [], []
    recalls, counts = zip(*(recall_by_area(setup, pairs, edges) for setup in setups))
    spreads = [_spreads(setup, pairs, edges) for setup in setups]
    for k, (low, high) in enumerate(zip(edges[:-1], edges[1:])):
        numbers = [
            Number(None if r[k] is None else 100 * r[k], spread[k])
            for r, spread in zip(recalls, spreads)
        ]
        place = "defect size", dataset, arch, f"area {low} to {high - 1}"
        records += [
            number.record(*place, setup, f"recall at FPR {REPORT_FPR}", "%")
            for setup, number in zip(setups, numbers)
        ]
        if len(setups) > 1:
            rank([number for number in numbers if number.value is not None])
        area = f"{low:,} to {high - 1:,} px² ({math.sqrt(low):g} to {math.sqrt(high):g} px)"
        rows.append([area, str(max(count[k] for count in counts)), *map(value_cell, numbers)])
    found_from = [_found_from(edges, recall) for recall in recalls]
    rows.append(["size from which half of a defect is found", "", *found_from])
    return Table(
        f"defect_size_{dataset}_{arch}",
        f"Recall of defects by size, {title_of(arch)} on {title_of(dataset)}",
        ["area", "defects", *setups], rows, records, _notes(everything, pairs, setups),
    )  # fmt: skip


def _notes(everything, pairs, setups):
    notes = [
        "Mean recall of defects in percent: the fraction of a defect's pixels above the threshold "
        f"that {100 * REPORT_FPR:g} % of all normal pixels exceed. Areas are in pixels of the "
        "image files; sides are those of a square of the same area. Last row: the smallest "
        "class from which the mean recall stays at 50 % or more. "
        + seeds_note([result for result, _ in pairs]),
    ]
    if len(pairs) < len(everything):
        names = sorted({result["category"] for result, _ in pairs})
        notes.append(f"Only categories that every setup has: {', '.join(map(escape, names))}.")
    if len({frozenset(r["category"] for r, _ in pairs if r["setup"] == s) for s in setups}) > 1:
        notes.append(
            "No category was run in every setup, so the columns cover different defects; the "
            "counts are those of the setup with the most."
        )
    return notes


def shared_categories(pairs):
    """Return the pairs whose category every setup has, so setups are compared on the same defects;
    all pairs if no category is shared."""
    setups = grouped([result for result, _ in pairs], "setup").values()
    names = [{result["category"] for result in results} for results in setups]
    shared = set.intersection(*names) if names else set()
    return [pair for pair in pairs if pair[0]["category"] in shared] or list(pairs)


def area_edges(pairs):
    """Return ascending powers of AREA_STEP that enclose all areas in pairs; None without areas.

    >>> area_edges([({}, {"area": np.array([5, 100])})])
    [4, 16, 64, 256]
    """
    areas = [area for _, defects in pairs for area in defects["area"].tolist()]
    if not areas:
        return None
    edges = [1]
    while edges[-1] <= max(areas):
        edges.append(edges[-1] * AREA_STEP)
    while len(edges) > 2 and edges[1] <= min(areas):
        edges.pop(0)
    return edges


def recall_by_area(setup, pairs, edges):
    """Return a setup's (mean recall per class, None for an empty one; defects per class)."""
    at = FPRS.index(REPORT_FPR)
    mine = [(r, defects) for r, defects in pairs if r["setup"] == setup and len(defects["area"])]
    if not mine:
        return [None] * (len(edges) - 1), [0] * (len(edges) - 1)
    area = np.concatenate([defects["area"] for _, defects in mine])
    recall = np.concatenate([defects["recall"][:, at] for _, defects in mine])
    seeds = np.concatenate([np.full(len(defects["area"]), r["seed"]) for r, defects in mine])
    which = np.searchsorted(edges, area, "right") - 1
    values, counts = [], []
    for k in range(len(edges) - 1):
        chosen = which == k
        values.append(float(recall[chosen].mean(dtype=np.float64)) if chosen.any() else None)
        counts.append(int(max((chosen & (seeds == seed)).sum() for seed in np.unique(seeds))))
    return values, counts


def _spreads(setup, pairs, edges):
    """Return the standard deviation over seeds of a setup's recall per class, percent or None."""
    seeds = grouped([result for result, _ in pairs if result["setup"] == setup], "seed")
    of_seeds = [
        recall_by_area(setup, [p for p in pairs if p[0]["seed"] == seed], edges)[0]
        for (seed,) in seeds
    ]
    return [mean_std([100 * v for v in values if v is not None])[1] for values in zip(*of_seeds)]


def _found_from(edges, values):
    """Return the lower edge of the smallest class from which recall stays at 0.5 or more."""
    first = "-"
    for low, value in reversed(list(zip(edges, values))):
        if value is not None:
            if value < 0.5:
                break
            first = f"{low:,} px²"
    return first
