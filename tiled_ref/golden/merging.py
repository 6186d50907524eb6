"""The stages that merge tiles: merged maps and scores, the seam mask, seam smoothing."""

import numpy as np

from .. import merging, smoothing
from ..tiling import FeatureUntiler
from . import formulas
from .compare import EXACT, close, ulp
from .inputs import GRIDS, grid_array, tensor, tile_grid
from .numbers import Numbers
from .stage import Case, Mistake, Stage


def _untile_cases():
    for name, grid, flags in GRIDS:
        draw = Numbers(f"untile/{name}")
        maps = draw.uniform(*formulas.grid_counts(grid), 2, *grid[2:4])
        yield Case(name, {"maps": maps, "grid": grid}, (*flags, "several"))
    maps = Numbers("untile/float64").uniform(3, 3, 1, 4, 4).astype(np.float64) / 3
    yield Case("float64", {"maps": maps, "grid": grid_array(8, 4, 2)}, ("overlap",))


PLACE_MISTAKES = (  # in tile positions
    Mistake("stride and tile size are exchanged: tiles are laid side by side", exchanged=True),
    Mistake("stride and tile size are exchanged in the rows of tiles", exchanged="rows"),
    Mistake("stride and tile size are exchanged in the columns of tiles", exchanged="cols"),
    Mistake("the strides down and across are exchanged", exchanged="strides"),
    Mistake("the stride down is taken for both directions", exchanged="down"),
    Mistake("rows and columns of the tiles are exchanged (column-major order)", column_major=True),
    Mistake(
        "the last tiles are shifted back into the image instead of padded",
        shifted=("rows", "cols"),
    ),
    Mistake("the last row of tiles is shifted back into the image", shifted=("rows",)),
    Mistake("the last column of tiles is shifted back into the image", shifted=("cols",)),
    Mistake("pixels of a tile are stored column by column", inner=True),
    Mistake("the axis of the images is the first in memory, not the third", images_first=True),
)

UNTILE = Stage(
    "untile",
    "tile maps put together, averaged where tiles overlap",
    "tiled_ref.merging.untile_average",
    "Rolih et al. Sec. 3.3",
    {"map": ulp(16)},  # six tiles: five sums and two roundings of the mean, port and reference
    _untile_cases,
    lambda inputs: {"map": merging.untile_average(inputs["maps"], tile_grid(inputs["grid"]))},
    lambda inputs, **s: {"map": formulas.untile(inputs["maps"], inputs["grid"], **s)},
    (
        Mistake("the sum of the tiles is not divided by their count", combine="sum"),
        Mistake("the largest value where tiles overlap instead of the mean", combine="max"),
        Mistake("the smallest value where tiles overlap instead of the mean", combine="min"),
        Mistake("the last tile overwrites the others instead of the mean", combine="last"),
        Mistake("the last tile, divided by the number of tiles", combine="last mean"),
        Mistake("the first tile, divided by the number of tiles", combine="first mean"),
        Mistake("the largest value, divided by the number of tiles", combine="max mean"),
        Mistake("the first tile stays instead of the mean", combine="first"),
        Mistake("the sum is divided by the same number of tiles everywhere", combine="most"),
        *PLACE_MISTAKES,
    ),
)


def _feature_cases():
    for name, image, tile, stride, factor, flags in (
        ("st4", 32, 16, 16, 4, ()),
        ("st9", 32, 16, 8, 8, ("overlap",)),
        ("sticks_out", (41, 50), (16, 24), (8, 16), 4, ("non_divisible", "not_square")),
    ):
        grid = grid_array(image, tile, stride)
        rows, cols = formulas.grid_counts(grid)
        h, w = (grid[2:4] // factor).tolist()
        features = Numbers(f"untile_features/{name}").uniform(rows, cols, 2, 3, h, w)
        inputs = {"features": features, "grid": grid, "factor": np.int64(factor)}
        yield Case(name, inputs, (*flags, "several"))


def _features(inputs):
    features = tensor(inputs["features"]).flatten(0, 2)  # (T * B, C, h, w), tile-major
    untile = FeatureUntiler(tile_grid(inputs["grid"]))
    return {"features": untile(features, int(inputs["factor"])).contiguous().numpy()}


def _features_formula(inputs, down=False, strides=True, **switches):
    rows, cols, n, c, h, w = inputs["features"].shape
    tiles, grid, factor = inputs["features"], inputs["grid"], inputs["factor"]
    grid = np.concatenate([(grid[:2] if down else grid[:2] + factor - 1), grid[2:]]) // factor
    grid = grid if strides else np.concatenate([grid[:4], inputs["grid"][4:]])
    merged = formulas.untile(tiles.reshape(rows, cols, n * c, h, w), grid, **switches)
    return {"features": merged.reshape(n, c, *merged.shape[1:])}


FEATURES = Stage(
    "untile_features",
    "feature maps of the tiles put together (the ST setups)",
    "tiled_ref.tiling.FeatureUntiler",
    "Rolih et al. Sec. 4.2",
    {"features": ulp(16)},
    _feature_cases,
    _features,
    _features_formula,
    (
        *UNTILE.mistakes,
        Mistake("the grid of the features is rounded down", down=True),
        Mistake("the strides are not divided by the factor", strides=False),
    ),
)


def _mean_score_cases():
    draw = Numbers("mean_score")
    inverted = np.float32(1) / (1 + draw.uniform(3, 3, 5))
    yield Case("nine_tiles", {"scores": draw.uniform(3, 3, 7)}, ("several",))
    flags = ("not_square", "negative", "several")
    yield Case("not_square", {"scores": draw.bell(2, 5, 4)}, flags)
    yield Case("single_tile", {"scores": draw.uniform(1, 1, 3)}, ("single_tile",))
    yield Case("float64", {"scores": inverted.astype(np.float64)})


def _mean_score_formula(inputs, combine=np.mean, images_last=True, over=None):
    scores = inputs["scores"].astype(np.float64)
    if over:
        return {"score": scores.sum((0, 1)) / over(scores)}
    if not images_last:
        rows, cols, n = scores.shape
        scores = scores.reshape(n, rows, cols).transpose(1, 2, 0)
    return {"score": combine(scores.reshape(-1, scores.shape[2]), axis=0)}


MEAN_SCORE = Stage(
    "mean_score",
    "image score: the mean of the tiles' scores",
    "tiled_ref.merging.mean_scores",
    "Rolih et al. Eq. 5",
    {"score": close(6e-7, 1.2e-6)},  # (n + 1) u of at most nine scores below 2, u = 2^-24
    _mean_score_cases,
    lambda inputs: {"score": merging.mean_scores(inputs["scores"])},
    _mean_score_formula,
    (
        Mistake("the maximum of the tiles' scores instead of the mean", combine=np.max),
        Mistake("the sum of the tiles' scores: not divided by their count", combine=np.sum),
        Mistake("the median of the tiles' scores instead of the mean", combine=np.median),
        Mistake("the smallest of the tiles' scores instead of the mean", combine=np.min),
        Mistake("the axis of the images is taken for the first, not the last", images_last=False),
        Mistake("divided by the number of tiles minus one", over=lambda s: s[..., 0].size - 1),
        Mistake("divided by the number of images", over=lambda s: s.shape[2]),
    ),
)


SEAM_GRIDS = (  # name, grid, flags
    ("abutting", grid_array(40, 20, 20), ()),
    ("overlap", grid_array(48, 24, 12), ("overlap",)),
    (
        "non_divisible",
        grid_array((45, 62), (20, 30), (15, 20)),
        ("non_divisible", "overlap", "not_square"),
    ),
    ("single_tile", grid_array((20, 31), (20, 31), (20, 31)), ("single_tile", "not_square")),
    ("uneven_overlap", grid_array((50, 46), (30, 26), (20, 20)), ("overlap", "not_square")),
)


def _seam_cases():
    for name, grid, flags in SEAM_GRIDS:
        yield Case(name, {"grid": grid, "width": np.float64(0.1)}, flags)
    inputs = {"grid": grid_array(40, 20, 20), "width": np.float64(0.0)}
    yield Case("no_width", inputs, comment="a width of 0 leaves no band")
    inputs = {"grid": grid_array(36, 14, 11), "width": np.float64(0.25)}
    yield Case("wide", inputs, ("overlap",), "3.5 px are 3 px")


MASK_MISTAKES = (
    Mistake("the band is one pixel too wide on each side", change=1),
    Mistake("the band is one pixel too narrow on each side", change=-1),
    Mistake(
        "the width of the band is rounded up instead of down", rounding=lambda v: -int(-v // 1)
    ),
    Mistake("the width of the band is rounded to the nearest instead of down", rounding=round),
    Mistake("the band starts one pixel too early", before=1),
    Mistake("the band starts one pixel too late", before=-1),
    Mistake("the band ends one pixel too late", after=1),
    Mistake("the band ends one pixel too early", after=-1),
    Mistake("the band lies one pixel too far to the bottom and right", before=-1, after=1),
    Mistake("the band lies one pixel too far to the top and left", before=1, after=-1),
    Mistake("the band lies on one side of the border only", sides=1),
    Mistake("the edge of the image is taken for a border", image_edge=True),
    Mistake("only the starts of tiles are borders, their ends are forgotten", borders="starts"),
    Mistake("only the ends of tiles are borders, their starts are forgotten", borders="finish"),
    Mistake("the width of the band is doubled", rounding=lambda v: int(2 * v)),
    Mistake("the width is that of the whole band: half of it", rounding=lambda v: int(v / 2)),
    Mistake(
        "borders are multiples of the tile size, as if tiles did not overlap",
        borders="tile multiples",
    ),
    Mistake(
        "stride and tile size are exchanged: the band is a fraction of the stride", of="stride"
    ),
    Mistake("the band is a fraction of the image instead of the tile", of="image"),
    Mistake("the tile's width is taken for its height", square=True),
    Mistake("the rows of the band are a fraction of the image", of=("image", "tile")),
    Mistake("the columns of the band are a fraction of the image", of=("tile", "image")),
    Mistake("rows and columns are exchanged", exchanged=True),
    Mistake("only where a row band and a column band cross", both=True),
)

SEAM_MASK = Stage(
    "seam_mask",
    "the band of pixels around tile borders",
    "tiled_ref.smoothing.seam_mask",
    "Rolih et al. Sec. 3.3",
    {"mask": EXACT},
    _seam_cases,
    lambda inputs: {"mask": smoothing.seam_mask(tile_grid(inputs["grid"]), float(inputs["width"]))},
    lambda inputs, **s: {"mask": formulas.seam_mask(inputs["grid"], float(inputs["width"]), **s)},
    MASK_MISTAKES,
)


def _smoothing_cases():
    for name, grid, flags in SEAM_GRIDS:
        maps = Numbers(f"smoothing/{name}").uniform(1, *grid[:2])
        yield _smoothing_case(name, maps, grid, (*flags, "reflect"))
    maps = Numbers("smoothing/one_pixel").uniform(1, 1, 12)
    grid = grid_array((1, 12), (1, 6), (1, 6))
    yield _smoothing_case("one_pixel", maps, grid, ("reflect", "one_pixel"), width=0.4)
    maps = Numbers("smoothing/small").uniform(2, 6, 10)
    grid = grid_array((6, 10), (3, 10), (3, 10))
    flags = ("reflect", "smaller_than_radius", "not_square", "several")
    yield _smoothing_case("smaller_than_radius", maps, grid, flags, width=0.4)
    maps = Numbers("smoothing/float64").uniform(1, 24, 24).astype(np.float64) / 3
    yield _smoothing_case("float64", maps, grid_array(24, 12, 12), ("reflect",))
    for name, sigma in (("sigma_below", 1.3), ("sigma_above", 1.4)):
        maps = Numbers(f"smoothing/{name}").uniform(1, 20, 18)
        yield _smoothing_case(name, maps, grid_array((20, 18), 10, 10), ("reflect",), 0.2, sigma)


def _smoothing_case(name, maps, grid, flags, width=0.1, sigma=2.0):
    numbers = {"width": np.float64(width), "sigma": np.float64(sigma)}
    return Case(name, {"maps": maps, "grid": grid, **numbers}, flags)


def _smoothing(inputs):
    width, sigma = float(inputs["width"]), float(inputs["sigma"])
    grid = tile_grid(inputs["grid"])
    return {"maps": smoothing.smooth_seams(inputs["maps"], grid, width=width, sigma=sigma)}


def _smoothing_formula(inputs, **switches):
    width, sigma = float(inputs["width"]), float(inputs["sigma"])
    return {"maps": formulas.smooth(inputs["maps"], inputs["grid"], width, sigma, **switches)}


BLUR_MISTAKES = (
    Mistake(
        "the mirrored border repeats the edge pixel (symmetric instead of reflect)",
        border="symmetric",
    ),
    Mistake("the edge pixel is repeated beyond the border instead of reflect", border="edge"),
    Mistake("zeros beyond the border instead of reflect", border="zeros"),
    Mistake("the border wraps around instead of reflect", border="wrap"),
    Mistake("the radius of the blur is int(3 sigma + 0.5) instead of int(4 sigma + 0.5)", span=3),
    Mistake("the radius of the blur is int(2 sigma + 0.5) instead of int(4 sigma + 0.5)", span=2),
    Mistake("sigma is halved", of=0.5),
    Mistake("sigma is doubled", of=2.0),
    Mistake("the weights are not normalised to a sum of 1", normalised=False),
    Mistake("the radius of the blur is one pixel too small", less=1),
    Mistake("the factor 2 is missing in the Gaussian's exponent", factor=1.0),
    Mistake("sigma is not squared in the Gaussian's exponent", power=1),
    Mistake("the blur runs down the columns only", axes="rows"),
    Mistake("the blur runs along the rows only", axes="cols"),
)
RADIUS_MISTAKES = (  # not visible at sigma 4, which the models' maps use
    Mistake("sigma is taken for a variance", of="root"),
    Mistake("the radius of the blur is int(4 sigma): 0.5 is not added", more=0.0),
    Mistake("the radius of the blur is 4 sigma, rounded up", more=1 - 1e-9),
)

BILINEAR_MISTAKES = (
    Mistake("bilinear enlargement with align_corners", align_corners=True),
    Mistake("bilinear enlargement from the corners of pixels, not their centres", half=0.0),
    Mistake("nearest enlargement instead of bilinear", mode="nearest"),
)

# For the models' maps, as `how`. Their sigma is 4, for which halving equals the square root.
MAP_BLUR_MISTAKES = (
    Mistake("the map is not blurred", how={"axes": "none"}),
    *(Mistake(m.sentence, how=m.switches) for m in BLUR_MISTAKES),
)

SMOOTHING = Stage(
    "smoothing",
    "the merged map blurred inside the band",
    "tiled_ref.smoothing.smooth_seams",
    "Rolih et al. Sec. 3.3",
    # Two passes of 17 products, in any order: 2 (17 + 1) u, and the reference's own error.
    {"maps": ulp(40)},
    _smoothing_cases,
    _smoothing,
    _smoothing_formula,
    (
        *BLUR_MISTAKES,
        *RADIUS_MISTAKES,
        Mistake("the whole map is blurred, not only the band", where="everywhere"),
        Mistake("nothing is blurred", where="nowhere"),
        Mistake("the outside of the band is blurred instead of the band", where="outside"),
        *(Mistake(m.sentence, mask=m.switches) for m in MASK_MISTAKES),
    ),
)

STAGES = (UNTILE, FEATURES, MEAN_SCORE, SEAM_MASK, SMOOTHING)
