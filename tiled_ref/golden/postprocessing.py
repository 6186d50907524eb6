"""The stages after the models: merging, smoothing, thresholds and metrics."""

import numpy as np

from .. import merging, metrics, smoothing, thresholds
from ..tiling import TileGrid
from . import formulas
from .compare import EXACT, close, ulp
from .numbers import Numbers
from .stage import Case, Confusion, Stage


def grid_array(image, tile, stride):
    """A grid as an input of a case: int64 (H, W, h, w, s_h, s_w)."""
    pairs = [side if isinstance(side, tuple) else (side, side) for side in (image, tile, stride)]
    return np.array([*pairs[0], *pairs[1], *pairs[2]], np.int64)


def tile_grid(array):
    """The TileGrid of such an array, int64 (6,): H, W, h, w, s_h, s_w."""
    H, W, h, w, sh, sw = (int(v) for v in array)
    return TileGrid((H, W), (h, w), (sh, sw))


# name, image, tile, stride, flags
GRIDS = (
    ("abutting", 16, 8, 8, ()),
    ("overlap", 24, 12, 6, ("overlap",)),
    ("non_divisible", (23, 31), (10, 12), (7, 5), ("non_divisible", "overlap", "not_square")),
    ("single_tile", (9, 13), (9, 13), (9, 13), ("single_tile", "not_square")),
    ("one_row", (8, 40), (8, 16), (8, 12), ("overlap", "not_square")),
)


# ------------------------------------------------------------------------------- merging


def _untile_cases():
    cases = []
    for name, image, tile, stride, flags in GRIDS:
        grid = grid_array(image, tile, stride)
        rows, cols = formulas.grid_counts(grid)
        draw = Numbers(f"untile/{name}")
        maps = draw.uniform(rows, cols, 2, int(grid[2]), int(grid[3]))
        cases.append(Case(name, {"maps": maps, "grid": grid}, (*flags, "several")))
    draw = Numbers("untile/float64")
    maps = draw.uniform(3, 3, 1, 4, 4).astype(np.float64) / 3
    grid = grid_array(8, 4, 2)
    cases.append(Case("float64", {"maps": maps, "grid": grid}, ("overlap",)))
    return cases


def _untile(inputs):
    return {"map": merging.untile_average(inputs["maps"], tile_grid(inputs["grid"]))}


UNTILE = Stage(
    "untile",
    "tile maps put together, averaged where tiles overlap",
    "tiled_ref.merging.untile_average",
    "Rolih et al. Sec. 3.3",
    {"map": ulp(2)},
    _untile_cases,
    _untile,
    lambda inputs, **s: {"map": formulas.untile(inputs["maps"], inputs["grid"], **s)},
    (
        Confusion("the sum of the tiles is not divided by their count", {"divide": False}),
        Confusion("the largest value where tiles overlap instead of the mean", {"combine": "max"}),
        Confusion("the last tile overwrites the others instead of the mean", {"combine": "last"}),
        Confusion(
            "stride and tile size are exchanged: tiles are laid side by side", {"exchanged": True}
        ),
        Confusion(
            "rows and columns of the tiles are exchanged (column-major order)",
            {"column_major": True},
        ),
    ),
)


def _mean_score_cases():
    draw = Numbers("mean_score")
    inverted = np.float32(1) / (1 + draw.uniform(3, 3, 5))
    return [
        Case("nine_tiles", {"scores": draw.uniform(3, 3, 7)}, ("several",)),
        Case("not_square", {"scores": draw.bell(2, 5, 4)}, ("not_square", "negative", "several")),
        Case("single_tile", {"scores": draw.uniform(1, 1, 3)}, ("single_tile",)),
        Case("float64", {"scores": inverted.astype(np.float64)}),
    ]


def _mean_score(inputs):
    return {"score": merging.mean_scores(inputs["scores"])}


def _mean_score_formula(inputs, combine=np.mean, images_last=True):
    scores = inputs["scores"].astype(np.float64)
    if not images_last:
        rows, cols, n = scores.shape
        scores = scores.reshape(n, rows, cols).transpose(1, 2, 0)
    return {"score": combine(scores.reshape(-1, scores.shape[2]), axis=0)}


MEAN_SCORE = Stage(
    "mean_score",
    "image score: the mean of the tiles' scores",
    "tiled_ref.merging.mean_scores",
    "Rolih et al. Eq. 5",
    {"score": close(2e-7, 2e-7)},
    _mean_score_cases,
    _mean_score,
    _mean_score_formula,
    (
        Confusion("the maximum of the tiles' scores instead of the mean", {"combine": np.max}),
        Confusion("the sum of the tiles' scores: not divided by their count", {"combine": np.sum}),
        Confusion("the median of the tiles' scores instead of the mean", {"combine": np.median}),
        Confusion("the smallest of the tiles' scores instead of the mean", {"combine": np.min}),
        Confusion(
            "the axis of the images is taken for the first, not the last", {"images_last": False}
        ),
    ),
)


# ------------------------------------------------------------------------------ smoothing

SEAM_GRIDS = (
    ("abutting", 40, 20, 20, ()),
    ("overlap", 48, 24, 12, ("overlap",)),
    ("non_divisible", (45, 62), (20, 30), (15, 20), ("non_divisible", "overlap", "not_square")),
    ("single_tile", (20, 31), (20, 31), (20, 31), ("single_tile", "not_square")),
    ("uneven_overlap", (50, 46), (30, 26), (20, 20), ("overlap", "not_square")),
)


def _seam_cases():
    cases = []
    for name, image, tile, stride, flags in SEAM_GRIDS:
        inputs = {"grid": grid_array(image, tile, stride), "width": np.float64(0.1)}
        cases.append(Case(name, inputs, flags))
    inputs = {"grid": grid_array(40, 20, 20), "width": np.float64(0.0)}
    cases.append(Case("no_width", inputs, (), "a width of 0 leaves no band"))
    inputs = {"grid": grid_array(36, 14, 11), "width": np.float64(0.25)}
    cases.append(Case("wide", inputs, ("overlap",), "3.5 px are 3 px"))
    return cases


def _seam_mask(inputs):
    return {"mask": smoothing.seam_mask(tile_grid(inputs["grid"]), float(inputs["width"]))}


_MASK_CONFUSIONS = (
    ("the band is one pixel too wide on each side", {"change": 1}),
    ("the band is one pixel too narrow on each side", {"change": -1}),
    ("the width of the band is rounded up instead of down", {"rounding": lambda v: -int(-v // 1)}),
    ("the band lies on one side of the border only", {"sides": 1}),
    ("the edge of the image is taken for a border", {"image_edge": True}),
    ("only the starts of tiles are borders, their ends are forgotten", {"borders": "starts"}),
    (
        "borders are multiples of the tile size, as if tiles did not overlap",
        {"borders": "tile multiples"},
    ),
    ("stride and tile size are exchanged: the band is a fraction of the stride", {"of": "stride"}),
    ("the band is a fraction of the image instead of the tile", {"of": "image"}),
    ("rows and columns are exchanged", {"exchanged": True}),
    ("only where a row band and a column band cross", {"both": True}),
)

SEAM_MASK = Stage(
    "seam_mask",
    "the band of pixels around tile borders",
    "tiled_ref.smoothing.seam_mask",
    "Rolih et al. Sec. 3.3",
    {"mask": EXACT},
    _seam_cases,
    _seam_mask,
    lambda inputs, **s: {"mask": formulas.seam_mask(inputs["grid"], float(inputs["width"]), **s)},
    tuple(Confusion(sentence, switches) for sentence, switches in _MASK_CONFUSIONS),
)


def _smoothing_cases():
    cases = []
    for name, image, tile, stride, flags in SEAM_GRIDS[:4]:
        grid = grid_array(image, tile, stride)
        draw = Numbers(f"smoothing/{name}")
        cases.append(
            Case(name, _smoothing_inputs(draw.uniform(1, *grid[:2]), grid), (*flags, "reflect"))
        )
    draw = Numbers("smoothing/small")
    grid = grid_array((6, 10), (3, 10), (3, 10))
    inputs = _smoothing_inputs(draw.uniform(2, 6, 10), grid, width=0.4)
    flags = ("reflect", "smaller_than_radius", "not_square", "several")
    cases.append(Case("smaller_than_radius", inputs, flags))
    draw = Numbers("smoothing/float64")
    inputs = _smoothing_inputs(
        draw.uniform(1, 24, 24).astype(np.float64) / 3, grid_array(24, 12, 12)
    )
    cases.append(Case("float64", inputs, ("reflect",)))
    return cases


def _smoothing_inputs(maps, grid, width=0.1, sigma=2.0):
    return {"maps": maps, "grid": grid, "width": np.float64(width), "sigma": np.float64(sigma)}


def _smoothing(inputs):
    return {
        "maps": smoothing.smooth_seams(
            inputs["maps"],
            tile_grid(inputs["grid"]),
            width=float(inputs["width"]),
            sigma=float(inputs["sigma"]),
        )
    }


BLUR_CONFUSIONS = (
    Confusion(
        "the mirrored border repeats the edge pixel (symmetric instead of reflect)",
        {"border": "symmetric"},
    ),
    Confusion(
        "the edge pixel is repeated beyond the border instead of reflect", {"border": "edge"}
    ),
    Confusion("zeros beyond the border instead of reflect", {"border": "zeros"}),
    Confusion("the border wraps around instead of reflect", {"border": "wrap"}),
    Confusion(
        "the radius of the blur is int(3 sigma + 0.5) instead of int(4 sigma + 0.5)", {"span": 3}
    ),
    Confusion(
        "the radius of the blur is int(2 sigma + 0.5) instead of int(4 sigma + 0.5)", {"span": 2}
    ),
    Confusion("sigma is halved", {"factor": 0.5}),
    Confusion("sigma is doubled", {"factor": 2.0}),
    Confusion("sigma is taken for a variance", {"factor": "root"}),
    Confusion("the weights are not normalised to a sum of 1", {"normalised": False}),
    Confusion("the blur runs down the columns only", {"axes": "rows"}),
    Confusion("the blur runs along the rows only", {"axes": "cols"}),
)


# With sigma 4 a half of it is its root.
MAP_BLUR_CONFUSIONS = tuple(c for c in BLUR_CONFUSIONS if c.switches != {"factor": "root"})


def blur_switches(sigma, factor=1.0, span=None, **switches):
    """Switches of BLUR_CONFUSIONS as arguments of formulas.blur."""
    sigma = sigma**0.5 if factor == "root" else sigma * factor
    if span is not None:
        switches["radius"] = int(span * sigma + 0.5)
    return {"sigma": sigma, **switches}


def _smoothing_formula(inputs, **switches):
    own = {
        k: switches.pop(k) for k in ("everywhere", "nowhere", "outside", "mask") if k in switches
    }
    how = blur_switches(float(inputs["sigma"]), **switches)
    return {
        "maps": formulas.smooth(
            inputs["maps"], inputs["grid"], float(inputs["width"]), how.pop("sigma"), **own, **how
        )
    }


SMOOTHING = Stage(
    "smoothing",
    "the merged map blurred inside the band",
    "tiled_ref.smoothing.smooth_seams",
    "Rolih et al. Sec. 3.3",
    {"maps": ulp(4)},
    _smoothing_cases,
    _smoothing,
    _smoothing_formula,
    (
        *BLUR_CONFUSIONS,
        Confusion("the whole map is blurred, not the band alone", {"everywhere": True}),
        Confusion("nothing is blurred", {"nowhere": True}),
        Confusion("what lies outside the band is blurred instead of the band", {"outside": True}),
        *(Confusion(sentence, {"mask": s}) for sentence, s in _MASK_CONFUSIONS),
    ),
)


# ----------------------------------------------------------- thresholds and normalisation


def _threshold_cases():
    draw = Numbers("threshold")
    mixed = (draw.integers(40, 60) / 64).astype(np.float64)
    labels = ((mixed + draw.uniform(60)) > 0.9).astype(np.uint8)
    good = np.array([0.5, 0.25, 0.75, 0.125])
    plain = draw.uniform(30)
    cases = [
        Case("by_hand", {"scores": np.array([1.0, 2, 3, 4]), "labels": _bytes(0, 0, 1, 1)}),
        Case("overlapping", {"scores": plain, "labels": _labels(plain, draw)}),
        Case("ties", {"scores": mixed, "labels": labels}, ("ties",)),
        Case(
            "equally_good",
            {"scores": np.array([1.0, 2, 3, 4]), "labels": _bytes(1, 0, 0, 1)},
            (),
            "F1 is 2/3 at the thresholds 1 and 4: the first, which is smaller, is taken",
        ),
        Case(
            "all_equal",
            {"scores": np.full(5, 0.5), "labels": _bytes(0, 1, 0, 1, 1)},
            ("ties", "all_equal"),
        ),
        Case(
            "no_anomalous",
            {"scores": good, "labels": _bytes(0, 0, 0, 0)},
            ("no_anomalous",),
            "there is no output f1",
        ),
    ]
    return cases


def _bytes(*values):
    return np.array(values, np.uint8)


def _labels(scores, draw):
    """Labels that mostly agree with the scores, never of one kind only."""
    labels = (scores + draw.bell(*scores.shape) / 2 > 0.6).astype(np.uint8)
    labels.flat[:2] = 0, 1
    return labels


def _threshold_outputs(threshold, f1):
    outputs = {"threshold": np.float64(threshold)}
    return outputs if f1 is None else {**outputs, "f1": np.float64(f1)}


THRESHOLD = Stage(
    "threshold",
    "the threshold of the best F1",
    "tiled_ref.thresholds.f1_threshold",
    "F1 = 2 TP / (2 TP + FP + FN)",
    {"threshold": EXACT, "f1": close(1e-12, 0.0)},
    _threshold_cases,
    lambda inputs: _threshold_outputs(
        *thresholds.f1_threshold(inputs["scores"], inputs["labels"])
    ),
    lambda inputs, **s: _threshold_outputs(
        *formulas.f1_threshold(inputs["scores"], inputs["labels"], **s)
    ),
    (
        Confusion(
            "> instead of >=: the threshold itself is not called anomalous", {"strict": True}
        ),
        Confusion("the last of equally good thresholds instead of the first", {"last": True}),
        Confusion("the middle between two scores instead of a score", {"midpoint": True}),
        Confusion("labels are exchanged: 0 is taken for anomalous", {"flipped": True}),
        Confusion("F2 instead of F1", {"beta": 2.0}),
        Confusion("F0.5 instead of F1", {"beta": 0.5}),
    ),
)


def _normalisation_cases():
    draw = Numbers("normalisation")
    values = draw.uniform(2, 5, 7) * 4
    return [
        _normalisation_case("map", values, 1.75, 0.25, 3.5, ("several", "clamped")),
        _normalisation_case("threshold_is_a_half", np.array([0.0, 2, 3]), 2.0, 0.0, 4.0),
        _normalisation_case(
            "clamped", np.array([-9.0, -1, 0, 1, 9]), 0.0, -1.0, 1.0, ("clamped", "negative")
        ),
        _normalisation_case("no_range", np.array([0.0, 1, 2]), 1.0, 1.0, 1.0, ("no_range",)),
    ]


def _normalisation_case(name, values, threshold, minimum, maximum, flags=()):
    numbers = {"threshold": threshold, "minimum": minimum, "maximum": maximum}
    return Case(name, {"values": values, **{k: np.float64(v) for k, v in numbers.items()}}, flags)


def _range(inputs):
    return inputs["values"], *(float(inputs[k]) for k in ("threshold", "minimum", "maximum"))


NORMALISATION = Stage(
    "normalisation",
    "values to [0, 1] with the threshold at 0.5",
    "tiled_ref.thresholds.normalize",
    "clamp((x - threshold) / (maximum - minimum) + 0.5, 0, 1)",
    {"values": close(5e-7, 5e-7)},
    _normalisation_cases,
    lambda inputs: {"values": thresholds.normalize(*_range(inputs))},
    lambda inputs, **s: {"values": formulas.normalize(*_range(inputs), **s)},
    (
        Confusion("no clamp to [0, 1]", {"clamp": False}),
        Confusion("0.5 is not added", {"shift": 0.0}),
        Confusion(
            "min-max normalisation: the minimum is subtracted, not the threshold", {"centre": False}
        ),
        Confusion("divided by the maximum instead of maximum - minimum", {"spread": False}),
    ),
)


# -------------------------------------------------------------------------------- metrics


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
    masks = _labels(maps, draw)
    infinite = np.array([1, np.inf, -np.inf, np.inf, 0, -np.inf])
    return [
        Case(
            "by_hand",
            {"scores": np.array([0.1, 0.4, 0.4, 0.8]), "labels": _bytes(0, 0, 1, 1)},
            ("ties",),
            "3 pairs won and a tie of 4: 0.875",
        ),
        Case("images", {"scores": plain, "labels": _labels(plain, draw)}),
        Case("ties", {"scores": tied, "labels": _labels(tied / 6, draw)}, ("ties",)),
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

STAGES = (
    UNTILE,
    MEAN_SCORE,
    SEAM_MASK,
    SMOOTHING,
    THRESHOLD,
    NORMALISATION,
    REGIONS,
    AUROC,
    AUPRO,
)
