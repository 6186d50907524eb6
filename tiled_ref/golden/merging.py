"""The stages that merge tiles: merged maps and scores, the band of seams, its smoothing."""

import numpy as np

from .. import merging, smoothing
from . import formulas
from .compare import EXACT, close, ulp
from .inputs import GRIDS, grid_array, tile_grid
from .numbers import Numbers
from .stage import Case, Confusion, Stage


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

STAGES = (UNTILE, MEAN_SCORE, SEAM_MASK, SMOOTHING)
