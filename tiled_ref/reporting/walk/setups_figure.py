"""The setups of the paper, drawn to scale: image, tiles, overlap, models."""

import numpy as np

from ...setups import SETUPS
from ..drawing import svg
from .stage import Stage

SCALE, WIDTH, HEAD, FOOT = 200, 280, 66, 98  # px: largest side, column, above and below a row
COLUMNS, SQUARE = 3, 11  # per row; px, side of the square of a model


def setups_stage(walked):
    """The six setups, and the walked Setup if it is not one of them, as a Stage; its array is int64
    (n, 8): height and width of image, tile and stride, numbers of tiles and models."""
    setups = list(SETUPS.values())
    setups += [] if walked in setups else [walked]
    rows = [[*s.image_size, *s.tile_size, *s.stride, s.n_tiles, s.n_models] for s in setups]
    factor = SCALE / max(max(s.image_size) for s in setups)  # px of the drawing per px
    panels, y = [], HEAD
    for start in range(0, len(setups), COLUMNS):
        row = setups[start : start + COLUMNS]
        for k, setup in enumerate(row):
            panel = _panel(setup, factor, setup == walked)
            panels.append(f'<g transform="translate({20 + k * WIDTH} {y:g})">{panel}</g>')
        y += factor * max(setup.image_size[0] for setup in row) + FOOT
    size = COLUMNS * WIDTH, y - 30
    groups = f", in {walked.name} per group of tiles" if walked.groups != (1, 1) else ""
    heading = _words(14, 27, "The setups to scale; one tile of each in orange", 16, "ink")
    return Stage(
        "setups", "The setups", np.array(rows),
        "setups.SETUPS", "Rolih et al. Sec. 4.2",
        "SM: one model on the whole image. ST: one model on the features of all tiles, put "
        f"together. ENS: one model per tile{groups}. Darker: overlap. Small squares: models.",
        svg.document(heading + "".join(panels), *size, "The setups"),
    )  # fmt: skip


def _panel(setup, factor, walked):
    (height, width), (h, w) = setup.image_size, setup.tile_size
    parts = [_words(0, -10, setup.name + (", walked here" if walked else ""), 13, "ink")]
    for k, (top, left) in enumerate(setup.input_grid.origins):
        inside = min(w, width - left), min(h, height - top)  # a tile may stick out of the image
        place = [side * factor for side in (left, top, *inside)]
        parts.append(_rectangle(*place, *((0, 0.16) if k else (1, 0.55))))
    below, n, m = height * factor, setup.n_tiles, setup.n_models
    tiles = f"{n} tiles of {_side(h, w)}, every {_side(*setup.stride)}" if n > 1 else "one tile"
    models = f"{m} models" if m > 1 else "one model"
    parts.append(_words(0, below + 17, f"image of {_side(height, width)}, {models}"))
    parts.append(_words(0, below + 33, tiles))
    for k in range(min(m, WIDTH // (SQUARE + 3) - 1)):
        parts.append(_rectangle(k * (SQUARE + 3), below + 40, SQUARE, SQUARE, 2, 1))
    return "".join(parts)


def _rectangle(x, y, width, height, series, opacity):
    return (
        f'<rect class="f{series} ink-line" x="{x:g}" y="{y:g}" width="{width:g}" '
        f'height="{height:g}" fill="{svg.SERIES[series][0]}" fill-opacity="{opacity}" '
        f'stroke="{svg.LIGHT["ink"]}" stroke-width="0.8"/>'
    )


def _words(x, y, text, size=svg.TICK, name="soft"):
    color = svg.LIGHT[name]
    return f'<text class="{name}" x="{x}" y="{y:g}" font-size="{size}" fill="{color}">{text}</text>'


def _side(height, width):
    return f"{height} px" if height == width else f"{height} x {width} px"
