"""The stages of the metrics: regions, AUROC, AUPRO."""

import numpy as np

from .. import metrics
from . import formulas
from .compare import EXACT, close
from .inputs import labels_for
from .numbers import Numbers
from .stage import Case, Confusion, Stage


def _bytes(*values):
    return np.array(values, np.uint8)


def _text(*lines):
    """A mask drawn in characters, uint8 (1, H, W): # is anomalous."""
    return np.array([[[c == "#" for c in line] for line in lines]]).astype(np.uint8)


DIAGONAL = _text("#.....##", ".#....##", "..#.....", "...#..#.", ".....#..", "#.#....#", ".#....#.")
SPIRAL = _text("#######", "......#", "#####.#", "#...#.#", "#.###.#", "#.....#", "#######")


def _some_masks(draw, n, height, width, share=0.3):
    """Blotchy masks, uint8 (n, height, width)."""
    rough = np.pad(draw.integers(1000, n, height, width), ((0, 0), (1, 1), (1, 1)))
    sums = sum(rough[:, y : y + height, x : x + width] for y in range(3) for x in range(3))
    least = np.sort(sums.reshape(-1))[int((1 - share) * sums.size)]
    return (sums > least).astype(np.uint8)


def _region_cases():
    draw = Numbers("regions")
    sparse = (draw.uniform(3, 12, 17) > 0.7).astype(np.uint8)
    dense = (draw.uniform(2, 11, 9) > 0.45).astype(np.uint8)
    numbers = np.zeros((1, 4, 6), np.uint8)
    numbers[0, 1, 1:3], numbers[0, 2, 3], numbers[0, 0, 5] = 1, 7, 255
    return [
        Case("corners", {"masks": DIAGONAL}, ("touching_regions",)),
        Case("spiral", {"masks": SPIRAL}, (), "one region whose ends meet late in the scan"),
        Case("sparse", {"masks": sparse}, ("several", "touching_regions", "not_square")),
        Case("dense", {"masks": dense}, ("several", "touching_regions", "not_square")),
        Case(
            "class_numbers",
            {"masks": numbers},
            ("touching_regions",),
            "whatever is not 0 is anomalous: 1, 7 and 255 are not classes",
        ),
        Case("empty", {"masks": np.zeros((2, 5, 4), np.uint8)}, ("empty_mask", "several")),
        Case("full", {"masks": np.ones((1, 3, 5), np.uint8)}, ("full_mask",)),
    ]


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
        Confusion(
            "4-connectivity instead of 8: regions that touch at a corner are separated",
            {"connectivity": 4},
        ),
        Confusion("numbers start at 1 again in every image", {"per_image": True}),
        Confusion(
            "rows and columns are exchanged: regions are numbered down the columns",
            {"column_major": True},
        ),
    ),
)


def _auroc_cases():
    draw = Numbers("auroc")
    plain = draw.uniform(50)
    tied = draw.integers(6, 40).astype(np.float32)
    maps = draw.uniform(2, 9, 11)
    masks = labels_for(maps, draw)
    infinite = np.array([1, np.inf, -np.inf, np.inf, 0, -np.inf])
    return [
        Case(
            "by_hand",
            {"scores": np.array([0.1, 0.4, 0.4, 0.8]), "labels": _bytes(0, 0, 1, 1)},
            ("ties",),
            "3 pairs won and a tie of 4: 0.875",
        ),
        Case("images", {"scores": plain, "labels": labels_for(plain, draw)}),
        Case("ties", {"scores": tied, "labels": labels_for(tied / 6, draw)}, ("ties",)),
        Case(
            "all_equal",
            {"scores": np.zeros(6), "labels": _bytes(0, 0, 1, 1, 1, 0)},
            ("ties", "all_equal"),
        ),
        Case(
            "infinite",
            {"scores": infinite, "labels": _bytes(0, 1, 0, 0, 1, 1)},
            ("infinite", "ties", "negative"),
        ),
        Case("class_numbers", {"scores": plain[:8], "labels": _bytes(0, 2, 0, 1, 9, 0, 0, 3)}),
        Case(
            "pixels",
            {"scores": maps.reshape(-1), "labels": masks.reshape(-1)},
            (),
            "pixel AUROC is the same on the pixels of all images",
        ),
    ]


AUROC = Stage(
    "auroc",
    "area under the ROC curve",
    "tiled_ref.metrics.auroc",
    "Mann-Whitney: pairs won, ties one half",
    {"auroc": close(1e-12, 0.0)},
    _auroc_cases,
    lambda inputs: {"auroc": np.float64(metrics.auroc(inputs["scores"], inputs["labels"]))},
    lambda inputs, **s: {
        "auroc": np.float64(formulas.auroc(inputs["scores"], inputs["labels"], **s))
    },
    (
        Confusion("ties count as lost: > without the half for equal scores", {"tie": 0.0}),
        Confusion("ties count as won: >= without the half for equal scores", {"tie": 1.0}),
        Confusion("labels are exchanged: 0 is taken for anomalous", {"flipped": True}),
        Confusion("only labels above 1 count as anomalous", {"strict_label": 1}),
    ),
)


def _aupro_cases():
    draw = Numbers("aupro")
    maps = draw.uniform(3, 14, 17)
    masks = _some_masks(draw, 3, 14, 17, 0.25)
    masks[1] = 0
    better = (maps + np.float32(0.5) * masks).astype(np.float32)
    tied = (draw.integers(5, 3, 14, 17) + 2 * masks.astype(np.int64)).astype(np.float32)
    corner = draw.uniform(*DIAGONAL.shape)
    by_hand = np.array([[[5.0, 4, 3, 2, 1, 0]]])
    by_hand_masks = np.array([[[1, 0, 1, 0, 0, 0]]], np.uint8)
    step = (better >= 0.5).astype(np.float32)
    mixed = draw.uniform(2, 6, 6).astype(np.float64) - 0.5
    mixed[0, 0, 0], mixed[1, 5, 5], mixed[0, 3, 3] = np.inf, -np.inf, np.inf
    all_or_none = np.zeros((2, 6, 6), np.uint8)
    all_or_none[0] = 1
    all_or_none[1, 2, 2] = 1
    return [
        _aupro_case(
            "by_hand",
            by_hand,
            by_hand_masks,
            0.5,
            ("limit_between_points",),
            "4 normal pixels, regions {5} and {3}: points (0, 1/2), (1/4, 1/2), (1/4, 1), "
            "(1/2, 1); the area up to 1/2 is 3/8, divided by 1/2 is 3/4",
        ),
        _aupro_case(
            "several", better, masks, 0.3, ("several", "empty_mask", "limit_between_points")
        ),
        _aupro_case("small_limit", better, masks, 0.05, ("several", "limit_between_points")),
        _aupro_case("whole", maps, masks, 1.0, ("several", "limit_one")),
        _aupro_case("ties", tied, masks, 0.3, ("ties", "several", "limit_between_points")),
        _aupro_case("two_values", step, masks, 0.3, ("ties", "several", "limit_between_points")),
        _aupro_case(
            "all_equal",
            np.zeros((1, 5, 5), np.float32),
            _text("##...", "##...", ".....", ".....", "....#"),
            0.3,
            ("ties", "all_equal", "limit_between_points"),
            "a straight line: half the limit",
        ),
        _aupro_case("corners", corner, DIAGONAL, 0.3, ("touching_regions",)),
        _aupro_case(
            "infinite", mixed, all_or_none, 0.3, ("infinite", "negative", "full_mask", "several")
        ),
    ]


def _aupro_case(name, maps, masks, limit, flags=(), comment=""):
    inputs = {"maps": maps, "masks": masks, "fpr_limit": np.float64(limit)}
    return Case(name, inputs, flags, comment)


def _set(inputs):
    return inputs["maps"], inputs["masks"], float(inputs["fpr_limit"])


AUPRO = Stage(
    "aupro",
    "area under the per-region-overlap curve",
    "tiled_ref.metrics.aupro",
    "Bergmann et al. Sec. 5.3; Rolih et al. Sec. 4.1",
    {"aupro": close(1e-11, 0.0)},
    _aupro_cases,
    lambda inputs: {"aupro": np.float64(metrics.aupro(*_set(inputs)))},
    lambda inputs, **s: {"aupro": np.float64(formulas.aupro(*_set(inputs), **s))},
    (
        Confusion("the area is not divided by the FPR limit", {"divide": False}),
        Confusion(
            "4-connectivity instead of 8: regions that touch at a corner are separated",
            {"connectivity": 4},
        ),
        Confusion("ties are not merged: equal scores are points of their own", {"ties": "first"}),
        Confusion("ties are not merged: equal scores are points of their own", {"ties": "last"}),
        Confusion(
            "no interpolation at the FPR limit: the curve ends at the last point before it",
            {"interpolate": False},
        ),
        Confusion("the FPR is taken over all pixels instead of the normal ones", {"over": "all"}),
        Confusion("recall of pixels instead of the mean over regions", {"per_pixel": True}),
        Confusion(
            "the mean of the images' own areas instead of one curve of the set", {"per_image": True}
        ),
        Confusion("> instead of >=: the lowest scores are never found", {"strict": True}),
        Confusion("100 evenly spaced thresholds instead of all scores", {"points": 100}),
        Confusion("200 evenly spaced thresholds instead of all scores", {"points": 200}),
    ),
)

STAGES = (REGIONS, AUROC, AUPRO)
