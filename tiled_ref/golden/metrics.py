"""The stages of the metrics: regions, AUROC, AUPRO."""

import numpy as np

from .. import metrics
from ..support.errors import InputError
from . import formulas
from .compare import EXACT, close
from .inputs import labels_for
from .numbers import Numbers
from .stage import Case, Mistake, Stage


def _drawn(*lines):
    """Parse a mask drawn in characters, uint8 (1, H, W): # is anomalous."""
    return np.array([[[c == "#" for c in line] for line in lines]]).astype(np.uint8)


DIAGONAL = _drawn(
    "#.....##", ".#....##", "..#.....", "...#..#.", ".....#..", "#.#....#", ".#....#."
)
SPIRAL = _drawn("#######", "......#", "#####.#", "#...#.#", "#.###.#", "#.....#", "#######")


def _region_cases():
    draw = Numbers("regions")
    sparse = (draw.uniform(3, 12, 17) > 0.7).astype(np.uint8)
    dense = (draw.uniform(2, 11, 9) > 0.45).astype(np.uint8)
    numbers = np.zeros((1, 4, 6), np.uint8)
    numbers[0, 1, 1:3], numbers[0, 2, 3], numbers[0, 0, 5] = 1, 7, 255
    late = "one region whose ends meet late in the scan"
    classes = "whatever is not 0 is anomalous: 1, 7 and 255 are not classes"
    for name, masks, flags, comment in (
        ("corners", DIAGONAL, ("touching_regions",), ""),
        ("spiral", SPIRAL, (), late),
        ("sparse", sparse, ("several", "touching_regions", "not_square"), ""),
        ("dense", dense, ("several", "touching_regions", "not_square"), ""),
        ("class_numbers", numbers, ("touching_regions",), classes),
        ("empty", np.zeros((2, 5, 4), np.uint8), ("empty_mask", "several"), ""),
        ("full", np.ones((1, 3, 5), np.uint8), ("full_mask",), ""),
    ):
        yield Case(name, {"masks": masks}, flags, comment)


REGIONS = Stage(
    "regions",
    "anomalous regions, numbered",
    "tiled_ref.metrics.label_regions",
    "8-connected components in the order of their first pixels",
    {"labels": EXACT},
    _region_cases,
    lambda inputs: {"labels": metrics.label_regions(inputs["masks"])},
    lambda inputs, **s: {"labels": formulas.label(inputs["masks"], **s)},
    (
        Mistake(
            "4-connectivity instead of 8: regions that touch at a corner are separated",
            connectivity=4,
        ),
        Mistake("numbers start at 1 again in every image", per_image=True),
        Mistake("only the value 1 is anomalous", above="one"),
        Mistake("only values above 127 are anomalous", above=127),
        Mistake("numbers start at 0", start=0),
        Mistake("numbers start at 2", start=2),
        Mistake(
            "rows and columns are exchanged: regions are numbered down the columns",
            column_major=True,
        ),
    ),
)


def _or_nan(metric, *args, **named):
    """Compute a metric, float64; NaN if it is undefined or rejects its input."""
    try:
        return np.float64(metric(*args, **named))
    except InputError:
        return np.float64(np.nan)


def _auroc_cases():
    draw = Numbers("auroc")
    plain = draw.uniform(50)
    tied = draw.integers(6, 40).astype(np.float32)
    maps = draw.uniform(2, 9, 11)
    masks = labels_for(maps, draw)
    infinite = np.array([1, np.inf, -np.inf, np.inf, 0, -np.inf])
    by_hand = np.array([0.1, 0.4, 0.4, 0.8]), [0, 0, 1, 1]
    pairs = "3 pairs won and a tie of 4: 0.875"
    same = "pixel AUROC is the same on the pixels of all images"
    for name, (scores, labels), flags, comment in (
        ("by_hand", by_hand, ("ties",), pairs),
        ("images", (plain, labels_for(plain, draw)), (), ""),
        ("ties", (tied, labels_for(tied / 6, draw)), ("ties",), ""),
        ("all_equal", (np.zeros(6), [0, 0, 1, 1, 1, 0]), ("ties", "all_equal"), ""),
        ("infinite", (infinite, [0, 1, 0, 0, 1, 1]), ("infinite", "ties", "negative"), ""),
        ("class_numbers", (plain[:8], [0, 2, 0, 1, 9, 0, 0, 3]), (), ""),
        ("pixels", (maps.reshape(-1), masks.reshape(-1)), (), same),
        ("one_class", (plain[:5], [1, 1, 1, 1, 1]), ("undefined",), "no normal score"),
        ("no_anomalous", (plain[:5], [0] * 5), ("undefined", "no_anomalous"), ""),
        ("nan", (np.array([0, 1, np.nan, 2]), [0, 1, 1, 0]), ("undefined",), "a NaN has no rank"),
    ):
        yield Case(name, {"scores": scores, "labels": np.uint8(labels)}, flags, comment)


AUROC = Stage(
    "auroc",
    "area under the ROC curve",
    "tiled_ref.metrics.auroc",
    "Mann-Whitney: pairs won, ties one half",
    {"auroc": close(1e-12, 0.0)},
    _auroc_cases,
    lambda inputs: {"auroc": _or_nan(metrics.auroc, **inputs)},
    lambda inputs, **s: {"auroc": np.float64(formulas.auroc(**inputs, **s))},
    (
        Mistake("ties count as lost: > without the half for equal scores", tie=0.0),
        Mistake("ties count as won: >= without the half for equal scores", tie=1.0),
        Mistake("labels are exchanged: 0 is taken for anomalous", flipped=True),
        Mistake("only ties are counted", win=0.0),
        Mistake("divided by the pairs of all scores", all_pairs=True),
        Mistake("only the label 1 counts as anomalous", strict_label="one"),
        Mistake("labels above 1 are left out", strict_label="only"),
        Mistake("only labels above 1 count as anomalous", strict_label=1),
    ),
)


def _blotches(draw, n, height, width, share):
    """Draw masks with a given share of anomalous pixels, uint8 (n, height, width)."""
    rough = np.pad(draw.integers(1000, n, height, width), ((0, 0), (1, 1), (1, 1)))
    sums = sum(rough[:, y : y + height, x : x + width] for y in range(3) for x in range(3))
    least = np.sort(sums.reshape(-1))[int((1 - share) * sums.size)]
    return (sums > least).astype(np.uint8)


def _aupro_cases():
    draw = Numbers("aupro")
    maps = draw.uniform(3, 14, 17)
    masks = _blotches(draw, 3, 14, 17, 0.25)
    masks[1] = 0
    better = (maps + np.float32(0.5) * masks).astype(np.float32)
    tied = (draw.integers(5, 3, 14, 17) + 2 * masks.astype(np.int64)).astype(np.float32)
    step = (better >= 0.5).astype(np.float32)
    corner = draw.uniform(*DIAGONAL.shape)
    by_hand = np.array([[[5.0, 4, 3, 2, 1, 0]]]), np.uint8([[[1, 0, 1, 0, 0, 0]]])
    flat = np.zeros((1, 5, 5), np.float32), _drawn("##...", "##...", ".....", ".....", "....#")
    mixed = draw.uniform(2, 6, 6).astype(np.float64) - 0.5
    mixed[0, 0, 0], mixed[1, 5, 5], mixed[0, 3, 3] = np.inf, -np.inf, np.inf
    all_or_one = np.zeros((2, 6, 6), np.uint8)
    all_or_one[0] = all_or_one[1, 2, 2] = 1
    first = better.copy()
    first.flat[np.argsort(first.reshape(-1))[-60:]] = 9  # 60 of 714 share the highest score
    lost = np.where(better == better.max(), np.float32(np.nan), better)
    between, several = "limit_between_points", ("several", "limit_between_points")
    points = (
        "4 normal pixels, regions {5} and {3}: points (0, 1/2), (1/4, 1/2), (1/4, 1), "
        "(1/2, 1); the area up to 1/2 is 3/8, divided by 1/2 is 3/4"
    )
    for name, (scores, truth), limit, flags, comment in (
        ("by_hand", by_hand, 0.5, (between,), points),
        ("several", (better, masks), 0.3, ("several", "empty_mask", between), ""),
        ("small_limit", (better, masks), 0.05, several, ""),
        ("whole", (maps, masks), 1.0, ("several", "limit_one"), ""),
        ("ties", (tied, masks), 0.3, ("ties", *several), ""),
        ("two_values", (step, masks), 0.3, ("ties", *several), ""),
        ("first_tie", (first, masks), 0.3, ("ties", *several), "0 < x < limit at the first point"),
        ("no_region", (better[:1], masks[1:2]), 0.3, ("undefined", "empty_mask"), ""),
        ("no_normal", (better[:1], masks[:1] * 0 + 1), 0.3, ("undefined", "full_mask"), ""),
        ("nan", (lost, masks), 0.3, ("undefined", "several"), "a NaN has no rank"),
        ("all_equal", flat, 0.3, ("ties", "all_equal", between), "a straight line: half the limit"),
        ("corners", (corner, DIAGONAL), 0.3, ("touching_regions",), ""),
        (
            "infinite",
            (mixed, all_or_one),
            0.3,
            ("infinite", "negative", "full_mask", "several"),
            "",
        ),
    ):
        inputs = {"maps": scores, "masks": truth, "fpr_limit": np.float64(limit)}
        yield Case(name, inputs, flags, comment)


def _three(inputs):
    return inputs["maps"], inputs["masks"], float(inputs["fpr_limit"])


AUPRO = Stage(
    "aupro",
    "area under the per-region-overlap curve",
    "tiled_ref.metrics.aupro",
    "Bergmann et al. Sec. 5.3; Rolih et al. Sec. 4.1",
    {"aupro": close(1e-11, 0.0)},
    _aupro_cases,
    lambda inputs: {"aupro": _or_nan(metrics.aupro, *_three(inputs))},
    lambda inputs, **s: {"aupro": np.float64(formulas.aupro(*_three(inputs), **s))},
    (
        Mistake("the area is not divided by the FPR limit", divide=0),
        Mistake("the area is divided by the FPR limit twice", divide=2),
        Mistake("the area is cut at 0.3, whatever the limit", end=0.3),
        Mistake(
            "4-connectivity instead of 8: regions that touch at a corner are separated",
            connectivity=4,
        ),
        Mistake("ties are not merged: equal scores are points of their own", ties="first"),
        Mistake("ties are not merged: equal scores are points of their own", ties="last"),
        Mistake(
            "no interpolation at the FPR limit: the curve ends at the last point before it",
            interpolate=False,
        ),
        Mistake("the FPR is taken over all pixels instead of the normal ones", over="all"),
        Mistake("recall of pixels instead of the mean over regions", per_pixel=True),
        Mistake(
            "the mean of the images' own areas instead of one curve of the set", per_image=True
        ),
        Mistake("> instead of >=: the lowest scores are never found", strict=True),
        Mistake("the curve starts at its first point instead of (0, 0)", from_zero=False),
        Mistake("the curve is taken in steps (the point before)", steps="before"),
        Mistake("the curve is taken in steps (the point after)", steps="after"),
        Mistake("the area is not cut at the FPR limit", beyond=True),
        Mistake("the area of the whole curve is divided by the limit", beyond="all"),
        Mistake("low scores come first", ascending=True),
        Mistake("the first region is left out", skip=1),
        Mistake("100 evenly spaced thresholds instead of all scores", points=100),
        Mistake("200 evenly spaced thresholds instead of all scores", points=200),
    ),
)

STAGES = (REGIONS, AUROC, AUPRO)
