"""analysis.npz: what a report needs of a cell, small.

Maps at full size are too large to keep for every cell, so what pictures and curves need of
them is worked out while they are there: heat maps of MAP_SIDE pixels, thinned curves,
thresholds, and the part of every defect that was found. Reports are made of this file,
images.npz and metrics.json alone, without images or models.
"""

from dataclasses import dataclass

import numpy as np

from .. import metrics
from ..support.errors import InputError
from .stored_images import (
    MAP_SIDE,
    SCHEMA,
    cuts,
    damaged,
    load_images,
    packed,
    read_arrays,
    reduced_size,
    regions_of,
    unpacked,
    write_arrays,
    zoom_windows,
)  # fmt: skip

CURVE_POINTS = 240
FPRS = (0.001, 0.01, 0.05)  # of pixels, at which the recall of defects is told
REPORT_FPR = 0.01  # the one that tables and figures show
BINS = 1 << 16  # of the score histogram behind pixel thresholds: 1/65536 of the range apart
ANALYSIS = "analysis.npz"


@dataclass(frozen=True)
class CellAnalysis:
    """What analysis.npz holds of one cell; N test images, R defects (regions of masks).

    Parameters: scores float64 (N,), raw; threshold of image scores (`thresholds.find_thresholds`);
    pixel_threshold, low and high of raw maps: the threshold (the largest value where there is
    none), the least and the largest value; maps uint8 (N, h, w), block means shaded for people
    (`shade`), 128 and above at or above the threshold; image_roc, pixel_roc and pro, metrics.Curve
    or None where undefined; recall float32 (R, len(FPRS)), the part of each defect above the
    threshold of each FPR, and fpr_thresholds float64 (len(FPRS),); zooms, a list of uint8 (a, b),
    the pixels of a map that each Window of the category touches, at the setup's own resolution;
    map_size (height, width) of a map in pixels; digest, cell.CategoryImages.digest of the
    images.
    """

    scores: np.ndarray
    threshold: float
    pixel_threshold: float
    low: float
    high: float
    maps: np.ndarray
    image_roc: metrics.Curve
    pixel_roc: metrics.Curve
    pro: metrics.Curve
    recall: np.ndarray
    fpr_thresholds: np.ndarray
    zooms: list
    map_size: tuple
    digest: str


def save_analysis(folder, maps, scores, images, setup, options, thresholds):
    """Write analysis.npz of a cell.

    Parameters: folder of the cell; maps float32 (N, H, W) and scores float32 (N,), raw; images
    as in cell.run_cell, setup; options, a cell.Options; thresholds, as
    thresholds.find_thresholds returns them.
    Raises InputError where the file cannot be written.
    """
    analysis = analyse(maps, scores, images, setup, options, thresholds)
    arrays = {
        "schema": np.int64(SCHEMA),
        "scores": analysis.scores,
        "thresholds": np.array([
            analysis.threshold, analysis.pixel_threshold, analysis.low, analysis.high
        ]),
        "maps": analysis.maps,
        "recall": analysis.recall,
        "fpr_thresholds": analysis.fpr_thresholds,
        **packed("zooms", analysis.zooms, np.uint8),
        "map_size": np.array(analysis.map_size),
        "digest": np.frombuffer(analysis.digest.encode(), np.uint8),
    }  # fmt: skip
    for name in ("image_roc", "pixel_roc", "pro"):
        curve = getattr(analysis, name)
        if curve is not None:
            arrays[name] = np.stack([curve.fpr, curve.height])
    write_arrays(folder / ANALYSIS, arrays)


def is_complete(folder, digest):
    """Whether what a report needs of the cell in this folder is there, of these test images."""
    try:
        return load_analysis(folder).digest == load_images(folder.parents[2]).digest == digest
    except InputError:
        return False


def load_analysis(folder):
    """CellAnalysis of a cell's folder; InputError where the file is missing or damaged."""
    path = folder / ANALYSIS
    data = read_arrays(path)
    try:
        curves = {
            name: metrics.Curve(*data[name]) if name in data else None
            for name in ("image_roc", "pixel_roc", "pro")
        }
        return CellAnalysis(
            data["scores"], *map(float, data["thresholds"]), data["maps"],
            **curves, recall=data["recall"], fpr_thresholds=data["fpr_thresholds"],
            zooms=unpacked("zooms", data), map_size=tuple(map(int, data["map_size"])),
            digest=data["digest"].tobytes().decode(),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, error) from error


def analyse(maps, scores, images, setup, options, thresholds):
    """CellAnalysis of raw maps (N, H, W) and scores (N,); other parameters as save_analysis."""
    category = images.category
    scores = np.asarray(scores, np.float64)
    labels = np.array([sample.label for sample in category.test], np.uint8)
    low, high = value_range(maps)

    def masks():
        return images.masks(setup.image_size) if category.has_masks else [None] * len(labels)

    normal, anomalous = histograms(zip(maps, masks(), labels), low, high)
    edges = bin_edges(low, high)
    pixel = thresholds["pixel"]
    pixel_threshold = high if pixel is None else pixel["threshold"]
    fpr_thresholds = np.array([fpr_edge(normal, edges, fpr) for fpr in FPRS])
    dark = float(edges[np.searchsorted(normal.cumsum(), normal.sum() / 2)])
    pixel_roc = pro = None
    recall = np.zeros((0, len(FPRS)), np.float32)
    zooms = []
    if normal.any() and anomalous.any():
        pro, pixel_roc = metrics.pixel_curves(
            lambda: zip(maps, masks()), CURVE_POINTS, impl=options.impl, threads=options.threads
        )
    if category.has_masks and labels.any():
        recall = region_recall(maps, images, fpr_thresholds, options)
        for window in zoom_windows(images, options):
            detail = maps[window.image][window.within(setup.image_size)]
            zooms.append(shade(detail.astype(np.float64), dark, pixel_threshold, high))
    return CellAnalysis(
        scores=scores,
        threshold=thresholds["image"]["threshold"],
        pixel_threshold=pixel_threshold,
        low=low,
        high=high,
        maps=np.stack([shade(reduce_mean(m), dark, pixel_threshold, high) for m in maps]),
        image_roc=image_roc(scores, labels),
        pixel_roc=pixel_roc,
        pro=pro,
        recall=recall,
        fpr_thresholds=fpr_thresholds,
        zooms=zooms,
        map_size=tuple(setup.image_size),
        digest=images.digest,
    )  # fmt: skip


def value_range(maps):
    """Least and largest value of all maps, as floats."""
    low, high = np.inf, -np.inf
    for image_map in maps:
        low, high = min(low, float(image_map.min())), max(high, float(image_map.max()))
    return low, high


def bin_edges(low, high):
    """The lower edges of BINS equal bins from low to high, float64 (BINS,)."""
    return low + (high - low) * (np.arange(BINS) / BINS)


def histograms(triples, low, high):
    """How many normal and how many anomalous pixels lie in each bin of map values.

    Returns two int64 (BINS,).
    Parameters: triples (map (H, W), mask bool (H, W) or None, label) of each image; low and
    high as of value_range. Without a mask the pixels of a normal image are normal, and those
    of an anomalous one unknown and not counted.
    """
    normal, anomalous = np.zeros((2, BINS), np.int64)
    scale = BINS / (high - low) if high > low else 0.0
    for image_map, mask, label in triples:
        if mask is None and label:
            continue
        bins = ((np.asarray(image_map, np.float64) - low) * scale).astype(np.int64)
        bins = np.minimum(bins, BINS - 1)
        if mask is None:
            mask = np.zeros(bins.shape, bool)
        normal += np.bincount(bins[~mask], minlength=BINS)
        anomalous += np.bincount(bins[mask], minlength=BINS)
    return normal, anomalous


def fpr_edge(normal, edges, fpr):
    """The smallest bin edge at or above which at most the part `fpr` of normal pixels lies.

    Parameters: normal, counts int64 (BINS,); edges, lower ends of the bins, float (BINS,).
    Returns a float, infinity where even the highest bin holds more.

    >>> counts = np.zeros(BINS, np.int64); counts[0] = 98; counts[5] = counts[9] = 1
    >>> fpr_edge(counts, np.arange(BINS), 0.01), fpr_edge(counts, np.arange(BINS), 0.5)
    (6.0, 1.0)
    """
    above = normal[::-1].cumsum()[::-1]
    fits = np.flatnonzero(above <= fpr * normal.sum())
    return float(edges[fits[0]]) if fits.size else float("inf")


def shade(values, dark, threshold, bright):
    """Raw values as 8-bit shades for pictures: 0 up to `dark`, 127.5 at the threshold, 255 from
    `bright`, linear in between and rounded up.

    `thresholds.normalize` has the threshold in the middle as well, but one extreme pixel
    makes its pictures flat. Here `dark` is the median of the normal pixels, so that what is
    normal stays dark, and `bright` the largest value of all.

    Parameters: values (h, w), any float; dark <= threshold <= bright, else the part between
    them is empty.
    Returns uint8 (h, w).

    >>> shade(np.array([[0.0, 1.0, 1.5, 2.0, 6.0, 9.0]]), 1.0, 2.0, 10.0)
    array([[  0,   0,  64, 128, 192, 240]], dtype=uint8)
    """
    below = np.clip((values - dark) / max(threshold - dark, 1e-300), 0, 1)
    above = np.clip((values - threshold) / max(bright - threshold, 1e-300), 0, 1)
    # Just below the threshold stays just below 128.
    shades = np.where(values < threshold, np.minimum(127.5 * below, 127), 127.5 + 127.5 * above)
    return np.ceil(shades).astype(np.uint8)


def region_recall(maps, images, thresholds, options):
    """The part of each defect that is found at each threshold.

    Parameters: maps float32 (N, H, W); images as in cell.run_cell; thresholds, floats.
    Returns float32 (R, len(thresholds)). Defects are the regions of the masks at the images'
    own sizes, so that they are the same for every setup, also where shrinking to the setup's
    size made one vanish. A pixel of the image file takes the value of the map's pixel that it
    lies in.
    """
    parts = [np.zeros((0, len(thresholds)), np.float32)]
    for k, (image_map, sample) in enumerate(zip(maps, images.category.test)):
        if not sample.label:
            continue
        regions = regions_of(images.original_mask(k), options)
        found = np.stack([image_map >= threshold for threshold in thresholds], -1)  # (H, W, T)
        rows, cols = np.nonzero(regions)
        numbers = regions[rows, cols] - 1
        at = found[
            rows * image_map.shape[0] // regions.shape[0],
            cols * image_map.shape[1] // regions.shape[1],
        ]
        areas = np.bincount(numbers)
        hits = [np.bincount(numbers, at[:, t], len(areas)) for t in range(len(thresholds))]
        parts.append((np.stack(hits, -1) / areas[:, None]).astype(np.float32))
    return np.concatenate(parts)


def image_roc(scores, labels):
    """The ROC curve of image scores, every distinct score a point; None where undefined.

    Parameters: scores (N,) float; labels (N,) int, 0 normal.

    >>> image_roc(np.array([1.0, 2.0, 3.0]), np.array([0, 1, 1]))
    Curve(fpr=array([0., 0., 0., 1.]), height=array([0. , 0.5, 1. , 1. ]))
    """
    if not 0 < labels.sum() < len(labels):
        return None
    order = np.argsort(-scores, kind="stable")
    ranked, positive = scores[order], labels[order].astype(bool)
    last = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True])  # of each distinct score
    height = np.r_[0, np.cumsum(positive)[last] / positive.sum()]
    fpr = np.r_[0, np.cumsum(~positive)[last] / (~positive).sum()]
    return metrics.Curve(fpr, height)


def reduce_mean(values):
    """A map as block means with the longest side at most MAP_SIDE, float64 (h, w)."""
    values = np.asarray(values, np.float64)
    rows, cols = (cuts(n, m) for n, m in zip(values.shape, reduced_size(values.shape, MAP_SIDE)))
    sums = np.add.reduceat(np.add.reduceat(values, rows, 0), cols, 1)
    return sums / np.outer(np.diff(np.r_[rows, values.shape[0]]),
                           np.diff(np.r_[cols, values.shape[1]]))  # fmt: skip
