"""The interactive section at the end of the walk's page: the browser merges, smooths and
thresholds the tile maps of the image again (`assets/playground.js`)."""

import base64
import json
from importlib import resources

import numpy as np

from ...data import encoders
from ...support.errors import InputError
from ...tiling import TileGrid
from ..drawing import render

LEVELS = 2**16 - 1  # the highest level of a map's values in the page
MOST_BYTES = 2_000_000  # of the tile maps in the page
QUALITY = 85  # of the JPEG picture of the image
EMPTY = '<section id="playground">\n<h2>Change the settings yourself</h2>\n<p>{}</p>\n</section>'
ONE = (
    "This setup has one map of the whole image, so there are no tile maps to merge; choose an ENS "
    "setup to change the settings."
)
WEIGHTED = "The browser averages overlapping maps; leave out --merge window to change the settings."
LARGE = (
    "The tile maps of this setup take {} MB, more than the {} MB that this page can hold; "
    "choose a smaller --image-size to change the settings."
)


def section(image, maps, scores, threshold, recipe, truth=None):
    """The HTML of the section, with its style, data and script.

    Parameters: image uint8 (H, W, 3); maps float32 (rows, cols, h, w), the tile maps, and scores
    float32 (rows, cols) of the image; threshold, float, of the pixels; recipe, a Recipe, the
    initial values of the controls; truth bool (H, W), the defects, or None.
    Returns text; a sentence instead of the controls for one location, another merge than the mean,
    and maps of more than MOST_BYTES.
    """
    if scores.size == 1:
        return EMPTY.format(ONE)
    if recipe.merge != "mean":
        return EMPTY.format(WEIGHTED)
    n_bytes = maps.size * 2 * 4 // 3
    if n_bytes > MOST_BYTES:
        return EMPTY.format(LARGE.format(f"{n_bytes / 1e6:.1f}", f"{MOST_BYTES / 1e6:g}"))
    data = playground_data(image, maps, scores, threshold, recipe, truth)
    data = json.dumps(data, separators=(",", ":"), allow_nan=False)  # base64 has no "<"
    text = _asset("html").replace("@CSS@", _asset("css"))
    return text.replace("@DATA@", data).replace("@JS@", _asset("js"))


def playground_data(image, maps, scores, threshold, recipe, truth):
    """The browser's input, a dict for JSON; parameters as for `section`."""
    levels, low, size = quantised(maps)
    grid, rules = recipe.grid, dict.fromkeys(["mean", "max", recipe.score])
    return {
        "image": grid.image_size,
        "tile": grid.tile_size,
        "cols": grid.cols,
        "grids": coarser_grids(grid),
        "low": low,
        "level": size,
        "maps": _base64(levels.tobytes()),
        "scores": scores.ravel().tolist(),
        "rules": list(rules),
        "photo": "data:image/jpeg;base64," + _base64(encoders.encode_jpeg(image, QUALITY)),
        "truth": None if truth is None else _base64(np.packbits(truth).tobytes()),
        "colours": render.COLORS.tolist(),
        "start": {
            "step": 1,
            "rule": recipe.score,
            "width": recipe.seam_width,
            "sigma": recipe.seam_sigma,
            "threshold": float(threshold),
        },
    }


def quantised(maps):
    """Quantise maps: value = low + size * level, off by at most size / 2.

    Parameters: maps, finite floats of any shape.
    Returns (levels uint16, little-endian, in the shape of maps; low; size), both float.

    >>> quantised(np.array([1.0, 2.0, 4.0]))[0]
    array([    0, 21845, 65535], dtype=uint16)
    """
    low = float(maps.min())
    size = (float(maps.max()) - low) / LEVELS or 1.0
    return np.rint((maps.astype(np.float64) - low) / size).astype("<u2"), low, size


def coarser_grids(grid):
    """The grids whose tiles are all tiles of `grid`, itself first: a list of dicts.

    Each has step (it takes every step-th tile of `grid`), stride (down, across) in pixels, rows
    and cols.

    >>> [g["stride"] for g in coarser_grids(TileGrid(512, 256, 128))]
    [(128, 128), (256, 256)]
    """
    grids = []
    for step in range(1, max(grid.rows, grid.cols) + 1):
        stride = grid.stride[0] * step, grid.stride[1] * step
        try:
            part = TileGrid(grid.image_size, grid.tile_size, stride)
        except InputError:  # a larger stride leaves pixels uncovered
            break
        if (part.rows - 1) * step < grid.rows and (part.cols - 1) * step < grid.cols:
            grids.append({"step": step, "stride": stride, "rows": part.rows, "cols": part.cols})
    return grids


def _base64(content):
    return base64.b64encode(content).decode()


def _asset(suffix):
    return resources.files(__package__).joinpath(f"assets/playground.{suffix}").read_text("utf-8")
