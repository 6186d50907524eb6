"""Pictures of anomaly maps: colours, overlays, colour bars, regions and their outlines.

Pictures are arrays uint8 (H, W, 3), rows first; `data.encoders.encode_png` encodes them.
"""

from dataclasses import dataclass

import numpy as np

from ... import metrics
from ...data.encoders import text_coverage
from ...support.errors import InputError

# Colours evenly spaced from 0 to 1, linear in between: dark blue, blue, green, yellow, red, dark
# red. Lightness rises to the middle, so that normal regions are dark in greyscale print.
COLORS = np.array(
    [
        (28, 16, 68), (33, 60, 148), (24, 118, 186), (22, 168, 158), (92, 200, 96),
        (206, 214, 58), (250, 176, 44), (242, 108, 34), (208, 44, 28), (128, 8, 20),
    ],
    np.uint8,
)  # fmt: skip
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, weights of red, green and blue
LINE, HALO = (255, 255, 255), (0, 0, 0)  # of contours: one of them is visible on any image
BACKGROUND, INK = (255, 255, 255), (32, 32, 32)
THRESHOLD = ((0.5, "0.5 threshold"),)  # the marks of a colour bar
ROWS_AT_ONCE = 256  # rows blended at a time, to bound the memory of a large picture


def colormap(values):
    """Map values to colours.

    Parameters: values float (H, W), 0 to 1; values outside are clamped, NaN becomes 0.
    Returns uint8 (H, W, 3), from dark blue (0) through green and yellow to dark red (1).
    """
    at, nodes = np.linspace(0, len(COLORS) - 1, 256), np.arange(len(COLORS))
    table = np.stack([np.interp(at, nodes, channel) for channel in COLORS.T], 1)
    table = np.rint(table).astype(np.uint8)  # (256, 3)
    values = np.nan_to_num(np.asarray(values, np.float32), nan=0.0)
    return table[np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)]


def opacity(values):
    """Opacity of a value's colour over an image: twice the value, clamped to 0 to 0.8; values float
    (H, W)."""
    return np.clip(2 * values, 0, 0.8)


def overlay(image, values):
    """Draw a heat map over an image; the image shows through where the map is low.

    Parameters: image uint8 (H, W, 3); values float (H, W), 0 to 1, 0.5 the threshold.
    Returns uint8 (H, W, 3): the image in grey, so that its own colours are not mistaken for heat,
    blended with the colour of each value, see `opacity`.
    Raises InputError for other shapes or types.
    """
    image, values = _checked(image), np.asarray(values)
    if values.shape != image.shape[:2]:
        raise InputError(
            f"the values have the shape {values.shape}, the image {image.shape[:2]}; "
            "enlarge the map to the image's size"
        )
    out = np.empty_like(image)
    for start in range(0, len(image), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        grey = image[rows] @ np.array(LUMA, np.float32)  # (rows, W)
        part = opacity(values[rows])[:, :, None]
        out[rows] = np.rint((1 - part) * grey[:, :, None] + part * colormap(values[rows]))
    return out


def with_color_bar(picture, low=0.0, high=1.0, marks=THRESHOLD, title="anomaly"):
    """Add a colour bar with numbers to the right of a picture.

    Parameters: picture uint8 (H, W, 3); low and high, values of the lowest and highest colour;
    marks, pairs (value, text), each drawn as a line across the bar; the ends are numbered unless a
    mark is near; title, a line above the bar.
    Returns uint8 (max(H, 96), W + about a tenth, 3): the picture, top left, is unchanged.
    """
    picture = _checked(picture)
    height = max(96, len(picture))
    line = int(np.clip(min(height, picture.shape[1]) // 28, 12, 96))  # height of a line of text
    top = 2 * line if title else line
    bottom = height - line
    bar, gap = max(8, line), line // 2
    left = picture.shape[1] + gap
    span = bottom - top  # pixels of the bar, high at the top

    def row_of(value):
        part = (value - low) / (high - low) if high > low else 0.5
        return int(round(bottom - 1 - np.clip(part, 0, 1) * (span - 1)))

    labels = [(row_of(value), text, left) for value, text in marks]
    for value in (high, low):  # beside the bar, not across it
        if all(abs(row_of(value) - row) >= line for row, _, _ in labels):
            labels.append((row_of(value), number(value), left + bar))
    texts = [(row, text_coverage(text, line), tick) for row, text, tick in labels]
    heading = text_coverage(title, line) if title else None
    wide = max([text.shape[1] for _, text, _ in texts], default=0) + line // 2 + bar
    wide = max(wide, heading.shape[1] if title else 0)
    out = np.full((height, picture.shape[1] + wide + 2 * gap, 3), BACKGROUND, np.uint8)
    out[: len(picture), : picture.shape[1]] = picture
    ramp = colormap(np.linspace(1, 0, span)[:, None])  # (span, 1, 3)
    out[top:bottom, left : left + bar] = ramp
    if title:
        _ink(out, heading, line // 2, left)
    for row, text, tick in texts:
        stroke = max(1, line // 10)
        out[max(0, row - stroke // 2) :, tick : left + bar + gap // 2][:stroke] = INK
        _ink(out, text, row - line // 2, left + bar + gap)
    return out


def with_caption(picture, lines):
    """Add lines of text above a picture.

    Parameters: picture uint8 (H, W, 3); lines, texts; the first is larger.
    Returns uint8 (h, W, 3): the picture at the bottom, its pixels unchanged. Text that is too wide
    is drawn smaller.
    """
    width = _checked(picture).shape[1]
    height, rows = int(np.clip(width // 28, 12, 96)), []
    for k, line in enumerate(lines):
        text = text_coverage(line, height if k == 0 else max(11, 3 * height // 4))
        while text.shape[1] > width - 4 and text.shape[0] > 11:
            text = text_coverage(line, text.shape[0] - 1)
        rows.append(np.full((len(text) + 4, width, 3), BACKGROUND, np.uint8))
        _ink(rows[-1], text, 2, 2)
    return np.concatenate([*rows, picture])


def number(value):
    """A value with three significant digits, as text.

    >>> number(0.5), number(1234.5), number(0.00012)
    ('0.5', '1.23e+03', '0.00012')
    """
    return f"{value:.3g}"


@dataclass(frozen=True)
class Region:
    """An 8-connected region of a mask.

    Its outline: closed polygons int32 (n, 2) through pixel corners, as (row, column); corner
    (r, c) is the top left corner of pixel (r, c). First the outer polygon, clockwise, then
    those of the holes, anticlockwise.
    """

    area: int  # pixels
    box: tuple  # first row and column, one past the last row and column
    outline: tuple


def contours(mask, impl="cython"):
    """Find the regions of a mask with their areas and outlines.

    Parameters: mask bool or uint8 (H, W), anomalous where not 0; impl, see
    `metrics.label_regions`.
    Returns list of Region, in the order of the regions' first pixels (8-connected). The areas
    enclosed by the polygons of a region, those of holes negative, add up to its area.
    Raises InputError for another shape or type.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise InputError(f"a mask must be (H, W), not {mask.shape}")
    labels = metrics.label_regions(mask[None], impl=impl)[0]
    areas = np.bincount(labels[labels > 0])[1:].tolist()
    if not areas:
        return []
    outlines = [[] for _ in areas]
    for label, polygon in _polygons(labels):
        outlines[label - 1].append(polygon)
    regions = []
    for area, polygons in zip(areas, outlines):
        polygons.sort(key=_enclosed, reverse=True)  # the outer one encloses the most
        box = (*polygons[0].min(0).tolist(), *polygons[0].max(0).tolist())
        regions.append(Region(area, box, tuple(polygons)))
    return regions


def draw_contours(picture, mask, color=LINE):
    """Draw the outlines of a mask's regions on a picture, white by default, with a black rim.

    Parameters: picture uint8 (H, W, 3); mask bool or uint8 (H, W); color (R, G, B) of the line.
    Returns uint8 (H, W, 3). The line runs outside the region, so that its pixels stay visible;
    it is 1 px wide for every 400 px of the picture's smaller side.
    Raises InputError for other shapes or types.
    """
    picture, mask = _checked(picture), np.asarray(mask) != 0
    if mask.shape != picture.shape[:2]:
        raise InputError(f"the mask is {mask.shape}, the picture {picture.shape[:2]}")
    width = max(1, round(min(mask.shape) / 400))
    out = picture.copy()
    if mask.any():
        line = _grown(mask, width)
        rim = _grown(line, width) & ~line
        out[rim] = HALO
        out[line & ~mask] = color
    return out


def label_regions(picture, regions, mask, most=24):
    """Write number and area beside each region of a picture, such as "2: 1,304 px".

    Parameters: picture uint8 (H, W, 3); regions, a list of Region, numbered from 1; mask, bool
    (H, W), all their pixels; most, the number of labels, largest regions first.
    Returns uint8 (H, W, 3). A label lies above its region, or below or beside it if there is no
    room, and never on another label, a region or its outline; labels that do not fit are left out.
    """
    out = _checked(picture).copy()
    height, width = out.shape[:2]
    line = int(np.clip(min(height, width) // 32, 11, 64))
    taken = []
    largest = sorted(range(len(regions)), key=lambda k: -regions[k].area)[:most]
    for k in largest:
        text = text_coverage(f"{k + 1}: {regions[k].area:,} px", line)
        h, w = text.shape[0] + 4, text.shape[1] + 8
        if h > height or w > width:
            continue
        top, left, bottom, right = regions[k].box
        middle = (left + right - w) // 2
        gap = 3 + round(min(height, width) / 200)  # beside the outline
        for y, x in ((top - h - gap, middle), (bottom + gap, middle), (top, right + gap),
                     (top, left - w - gap)):  # fmt: skip
            y, x = int(np.clip(y, 0, height - h)), int(np.clip(x, 0, width - w))
            near = mask[max(0, y - gap) : y + h + gap, max(0, x - gap) : x + w + gap]
            if not near.any() and all(
                y + h <= upper or y >= lower or x + w <= first or x >= last
                for upper, first, lower, last in taken
            ):
                out[y : y + h, x : x + w] = out[y : y + h, x : x + w] // 4
                _ink(out, text, y + 2, x + 4, LINE)
                taken.append((y, x, y + h, x + w))
                break
    return out


def _checked(picture):
    picture = np.asarray(picture)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise InputError(f"a picture must be uint8 (H, W, 3), not {picture.dtype} {picture.shape}")
    return picture


def _ink(out, coverage, top, left, colour=INK):
    """Draw a line of text, its coverage uint8 (h, w), at (top, left), in place."""
    top = int(np.clip(top, 0, len(out) - len(coverage)))
    part = out[top : top + len(coverage), left : left + coverage.shape[1]]
    share = coverage[:, : part.shape[1], None].astype(np.float32) / 255
    part[:] = np.rint(part * (1 - share) + np.array(colour) * share)


def _grown(mask, pixels):
    """The mask and all pixels at most so many away along rows, columns or both."""
    for _ in range(2):  # the mask, then its transpose
        wide = mask.copy("K")  # in the layout of mask: fast along both axes
        for k in range(1, pixels + 1):
            wide[k:] |= mask[:-k]
            wide[:-k] |= mask[k:]
        mask = wide.T
    return mask


def _enclosed(polygon):
    """Area in a polygon of corners (n, 2): positive clockwise in rows down, columns right."""
    row, col = polygon[:, 0].astype(np.int64), polygon[:, 1].astype(np.int64)
    return int(np.sum(col * np.roll(row, -1) - np.roll(col, -1) * row)) / 2


def _polygons(labels):
    """(label, int32 (n, 2)) for every closed outline of an image of labels (H, W).

    Sides between a region and its outside form straight runs. A run is followed by the one that
    starts where it ends: a left turn if there is one (where two pixels touch at a corner, which
    joins them), else a right turn.
    """
    inside = np.pad(labels != 0, 1)  # pixel (r, c) is inside[r + 1, c + 1]
    here, above, left = inside[1:, 1:], inside[:-1, 1:], inside[1:, :-1]
    starts, ends, directions = [], [], []
    # East, south, west, north, [r, c]: the side from corner (r, c) to (r, c + 1), or to (r + 1, c).
    pairs = (here, above), (left, here), (above, here), (here, left)
    for direction, (inner, outer) in enumerate(pairs):
        sides = inner & ~outer
        lines = sides if direction in (0, 2) else sides.T
        first, last = _runs(lines)  # (runs, 2) each: line, corner
        if direction in (1, 3):
            first, last = first[:, ::-1], last[:, ::-1]
        if direction in (2, 3):
            first, last = last, first
        starts.append(first)
        ends.append(last)
        directions.append(np.full(len(first), direction))
    starts, ends, directions = map(np.concatenate, (starts, ends, directions))
    columns = inside.shape[1]

    def key(corner, direction):
        return (corner[:, 0] * columns + corner[:, 1]) * 4 + direction % 4

    keys = key(starts, directions)
    order = np.argsort(keys)
    ranked = keys[order]

    def find(direction):
        wanted = key(ends, direction)
        at = np.minimum(np.searchsorted(ranked, wanted), len(ranked) - 1)
        return order[at], ranked[at] == wanted

    (to_left, has_left), (to_right, _) = find(directions - 1), find(directions + 1)
    after = np.where(has_left, to_left, to_right).tolist()
    # The pixel to the right of a run's first side belongs to the region.
    beside = np.array([(0, 0), (0, -1), (-1, -1), (-1, 0)])[directions]
    pixel = starts + beside
    names = labels[pixel[:, 0], pixel[:, 1]].tolist()
    seen = bytearray(len(after))
    for first in order.tolist():
        if seen[first]:
            continue
        loop, run = [], first
        while not seen[run]:
            seen[run] = 1
            loop.append(run)
            run = after[run]
        yield names[first], starts[loop].astype(np.int32)


def _runs(lines):
    """First corner and one past the last of each run of True along the lines, (n, 2) each."""
    padded = np.pad(lines, ((0, 0), (1, 1)))
    change = padded[:, 1:] != padded[:, :-1]
    line, corner = np.nonzero(change)
    both = np.stack([line, corner], 1)
    return both[::2], both[1::2]
