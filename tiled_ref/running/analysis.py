"""analysis.npz of a cell: the maps and scores, reduced to what a report needs.

Maps at full size are too large to keep for every cell, so the inputs of pictures and curves are
computed before the maps are removed: heat maps of MAP_SIDE pixels, thinned curves, thresholds, and
the fraction of every defect that was found. Reports read only this file, images.npz, metrics.json.
"""

from dataclasses import dataclass

import numpy as np

from .. import metrics
from ..support.errors import InputError
from ..verdicts.marks import enlarge, marks
from . import stored_images
from .pieces import ANALYSIS

CURVE_POINTS = 240
FPRS = (0.001, 0.01, 0.05)  # pixel FPRs at which the recall of defects is measured
REPORT_FPR = 0.01  # the one that tables and figures show
BINS = 1 << 16  # of the score histogram for pixel thresholds: 1/65536 of the range apart
CURVES = ("image_roc", "pixel_roc", "pro")
ARRAYS = {  # of analysis.npz, see CellAnalysis
    "scores": ("float64", "N"), "thresholds": ("float64", 4), "maps": ("uint8", "N", "h", "w"),
    "recall": ("float32", "R", len(FPRS)), "fpr_thresholds": ("float64", len(FPRS)),
    "zooms": ("uint8", "pixels"), "zooms_shapes": ("int64", "Z", 2), "map_size": ("int64", 2),
    "digest": ("uint8", "text"), "identity?": ("uint8", "hex"),
    "mark_pixels?": ("int64", "N"), "marked?": ("float32", "R"), "masks?": ("bool", "N", "h", "w"),
    **{f"{name}?": ("float64", 2, name) for name in CURVES},
}  # fmt: skip


@dataclass(frozen=True)
class CellAnalysis:
    """The contents of analysis.npz: N test images with R defects (regions of masks)."""

    scores: np.ndarray  # float64 (N,), raw
    threshold: float  # of image scores, see thresholds.find_thresholds
    pixel_threshold: float  # of raw maps; their largest value if there is none
    low: float  # smallest value of the raw maps
    high: float  # largest value of the raw maps
    maps: np.ndarray  # uint8 (N, h, w), block means as shades (`shade`)
    masks: np.ndarray  # bool (N, h, w), blocks with a mark; in older files those at the threshold
    image_roc: metrics.Curve  # None if undefined, like the next two
    pixel_roc: metrics.Curve  # at most CURVE_POINTS points
    pro: metrics.Curve  # at most CURVE_POINTS points
    recall: np.ndarray  # float32 (R, len(FPRS)), fraction of each defect at or above a threshold
    fpr_thresholds: np.ndarray  # float64 (len(FPRS),), of raw maps
    zooms: list  # uint8 (a, b), shades of a map within each Window of the category, full size
    map_size: tuple  # (height, width) of a map in pixels
    digest: str  # CategoryImages.digest
    identity: str = ""  # of the run, see results.cell_identity; older files have none
    # None in older files and without a pixel threshold:
    mark_pixels: np.ndarray = None  # int64 (N,), pixels of the image in marks, see `marks`
    marked: np.ndarray = None  # float32 (R,), the fraction of each defect's pixels in marks


def save_analysis(folder, maps, scores, images, setup, options, thresholds, identity=""):
    """Write analysis.npz of a cell into its folder; parameters (maps and so on) as for
    `analyse`; identity of the run."""
    analysis = analyse(maps, scores, images, setup, options, thresholds)
    arrays = {
        "scores": analysis.scores,
        "thresholds": np.array([
            analysis.threshold, analysis.pixel_threshold, analysis.low, analysis.high
        ]),
        "maps": analysis.maps,
        "masks": analysis.masks,
        "recall": analysis.recall,
        "fpr_thresholds": analysis.fpr_thresholds,
        **stored_images.packed("zooms", analysis.zooms, np.uint8),
        "map_size": np.array(analysis.map_size),
        "digest": np.frombuffer(analysis.digest.encode(), np.uint8),
        "identity": np.frombuffer(identity.encode(), np.uint8),
    }  # fmt: skip
    for name in ("mark_pixels", "marked"):
        if getattr(analysis, name) is not None:
            arrays[name] = getattr(analysis, name)
    for name in CURVES:
        curve = getattr(analysis, name)
        if curve is not None:
            arrays[name] = np.stack([curve.fpr, curve.height])
    stored_images.write_arrays(folder / ANALYSIS, arrays)


def is_complete(folder, digest, identity):
    """Whether this folder holds all that a report needs of the cell, from a run of this identity
    on these test images."""
    try:
        images, cell = stored_images.load_images(folder.parents[2]), load_analysis(folder)
        return cell.digest == images.digest == digest and cell.identity == identity
    except InputError:
        return False


def load_analysis(folder):
    """CellAnalysis of a cell's folder; InputError if the file is missing or damaged."""
    with stored_images.reading(folder / ANALYSIS, ARRAYS) as data:
        return CellAnalysis(
            data["scores"], *map(float, data["thresholds"]), data["maps"],
            masks=data["masks"] if "masks" in data else data["maps"] >= 128,
            **{name: metrics.Curve(*data[name]) if name in data else None for name in CURVES},
            recall=data["recall"], fpr_thresholds=data["fpr_thresholds"],
            zooms=stored_images.unpacked("zooms", data), map_size=tuple(map(int, data["map_size"])),
            digest=data["digest"].tobytes().decode(),
            identity=data["identity"].tobytes().decode() if "identity" in data else "",
            mark_pixels=data.get("mark_pixels"), marked=data.get("marked"),
        )  # fmt: skip


def analyse(maps, scores, images, setup, options, thresholds):
    """CellAnalysis of raw maps float32 (N, H, W) and scores float32 (N,) of images, a
    CategoryImages; thresholds, see thresholds.find_thresholds."""
    category = images.category
    scores = np.asarray(scores, np.float64)
    labels = np.array([sample.label for sample in category.test], np.uint8)
    low, high = value_range(maps)

    def truths():
        return images.masks(setup.image_size) if category.has_masks else [None] * len(labels)

    normal, anomalous = histograms(zip(maps, truths(), labels), low, high)
    edges = low + (high - low) * (np.arange(BINS) / BINS)  # the lower ends of the bins
    pixel = thresholds["pixel"]
    pixel_threshold = high if pixel is None else pixel["threshold"]
    fpr_thresholds = np.array([fpr_edge(normal, edges, fpr) for fpr in FPRS])
    dark = float(edges[np.searchsorted(normal.cumsum(), normal.sum() / 2)])
    pixel_roc = pro = None
    recall, zooms = np.zeros((0, len(FPRS)), np.float32), []
    if normal.any() and anomalous.any():
        pro, pixel_roc = metrics.pixel_curves(
            lambda: zip(maps, truths()), CURVE_POINTS, impl=options.impl, threads=options.threads
        )
    if category.has_masks and labels.any():
        recall = region_recall(maps, images, fpr_thresholds, options)
        for window in stored_images.zoom_windows(images, options):
            detail = maps[window.image][window.within(setup.image_size)]
            zooms.append(shade(detail.astype(np.float64), dark, pixel_threshold, high))
    mark_pixels, marked, masks = marked_pixels(maps, images, thresholds, options)
    small = (stored_images.reduce_mean(image_map) for image_map in maps)
    return CellAnalysis(
        scores, thresholds["image"]["threshold"], pixel_threshold, low, high,
        maps=np.stack([shade(values, dark, pixel_threshold, high) for values in small]),
        masks=masks,
        image_roc=image_roc(scores, labels), pixel_roc=pixel_roc, pro=pro,
        recall=recall, fpr_thresholds=fpr_thresholds,
        zooms=zooms, map_size=tuple(setup.image_size), digest=images.digest,
        mark_pixels=mark_pixels, marked=marked,
    )  # fmt: skip


def value_range(maps):
    """Least and largest value of all maps (N, H, W), as floats."""
    low, high = np.inf, -np.inf
    for image_map in maps:
        low, high = min(low, float(image_map.min())), max(high, float(image_map.max()))
    return low, high


def histograms(triples, low, high):
    """Count normal and anomalous pixels in each bin of map values -> int64 (2, BINS).

    Parameters: triples (map (H, W), mask bool (H, W) or None, label) of each image; low and high
    as from value_range. Without a mask all pixels of a normal image are normal, and those of an
    anomalous one are unknown and not counted.
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
    """The smallest bin edge with at most the fraction `fpr` of normal pixels at or above it.

    Parameters: normal, counts int64 (BINS,); edges, lower ends of the bins, float (BINS,).
    Returns a float, infinity if even the highest bin holds more.

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

    `thresholds.normalize` also centres the threshold, but there one extreme pixel flattens the
    picture. Here `dark` is the median of the normal pixels and `bright` the largest value of all.
    Parameters: values (h, w), any float; dark <= threshold <= bright. Returns uint8 (h, w).

    >>> shade(np.array([[0.0, 1.0, 1.5, 2.0, 6.0, 9.0]]), 1.0, 2.0, 10.0)
    array([[  0,   0,  64, 128, 192, 240]], dtype=uint8)
    """
    below = np.clip((values - dark) / max(threshold - dark, 1e-300), 0, 1)
    above = np.clip((values - threshold) / max(bright - threshold, 1e-300), 0, 1)
    # Values just below the threshold stay just below 128.
    shades = np.where(values < threshold, np.minimum(127.5 * below, 127), 127.5 + 127.5 * above)
    return np.ceil(shades).astype(np.uint8)


def region_recall(maps, images, thresholds, options):
    """The fraction of each defect found at each threshold, float32 (R, len(thresholds)).

    Defects are the regions of the masks at the images' own sizes, so they are the same for every
    setup, even if the setup's size loses one. A pixel of the image file takes the value of the
    map's pixel that contains it.
    Parameters: maps float32 (N, H, W); images, a CategoryImages; thresholds -> array.
    """
    parts = [np.zeros((0, len(thresholds)), np.float32)]
    for k, (image_map, sample) in enumerate(zip(maps, images.category.test)):
        if not sample.label:
            continue
        regions = stored_images.regions_of(images.original_mask(k), options)
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


def marked_pixels(maps, images, thresholds, options):
    """The pixels covered by marks, at the images' own sizes.

    Parameters: maps float32 (N, H, W); images, a CategoryImages; thresholds, see
    thresholds.find_thresholds; options, whose rules hold the region of interest.
    Returns int64 (N,), pixels of each image in marks; float32 (R,), the fraction of each
    defect's pixels in marks, above 0 if the defect is localised; both None without a pixel
    threshold; and bool (N, h, w), the marks at the size of stored maps.
    """
    size = stored_images.reduced_size(maps[0].shape, stored_images.MAP_SIDE)
    masks = np.zeros((len(maps), *size), bool)
    if thresholds["pixel"] is None:
        return None, None, masks
    pixels, parts = [], [np.zeros(0, np.float32)]
    for k, (image_map, sample) in enumerate(zip(maps, images.category.test)):
        large = enlarge(image_map, sample.read_size())
        covered = marks(
            large, thresholds["pixel"]["threshold"], thresholds["min_area"], options.rules.roi,
            options.impl,
        ) > 0  # fmt: skip
        pixels.append(int(covered.sum()))
        masks[k] = stored_images.reduce_any(covered, size)
        if sample.label and images.category.has_masks:
            regions = stored_images.regions_of(images.original_mask(k), options).ravel()
            hits, areas = np.bincount(regions, covered.ravel())[1:], np.bincount(regions)[1:]
            parts.append((hits / areas).astype(np.float32))
    return np.array(pixels, np.int64), np.concatenate(parts), masks


def image_roc(scores, labels):
    """The ROC curve of image scores, one point per distinct score; None if undefined.
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
