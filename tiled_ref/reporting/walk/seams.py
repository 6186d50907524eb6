"""A profile across the strongest seam of a merged map, before and after smoothing."""

import numpy as np

from ... import smoothing
from ..drawing import svg
from .stage import Stage

WIDTH, HEIGHT = 860, 300  # px of a chart
ROOM = 16  # px of the map on either side of the band, in the close-up


def strongest_seam(merged, grid, width=0.0):
    """Find where neighbouring pixels of a merged map differ most across a seam.

    Parameters: merged (H, W), any dtype; grid, a TileGrid; width, of the band as in
    `smoothing.seam_mask`: lines inside the band of a seam parallel to them count only if all are.
    Returns (axis, border, line), axis 0 for a seam between rows, border its row, line the column;
    axis 1 the reverse; None for a grid without seams.
    """
    bands, best = smoothing.bands(grid, width), None
    for axis, borders in enumerate(smoothing.borders(grid)):
        if borders:
            values = merged.T if axis == 0 else merged  # (lines, side)
            jumps = np.abs(values[:, borders] - values[:, np.array(borders) - 1])
            jumps[bands[1 - axis]] -= 0.0 if bands[1 - axis].all() else np.inf
            line, k = np.unravel_index(jumps.argmax(), jumps.shape)
            if best is None or jumps[line, k] > best[0]:
                best = jumps[line, k], axis, borders[k], int(line)
    return best and best[1:]


def seam_stage(merged, smooth, recipe):
    """The profile across the strongest seam as a list of one Stage, empty if there are no seams.

    Parameters: merged and smooth float (H, W), the map before and after smoothing; recipe.
    """
    found = strongest_seam(merged, recipe.grid, recipe.seam_width)
    if found is None:
        return []
    axis, border, line = found
    maps = [merged, smooth, smoothing.seam_mask(recipe.grid, recipe.seam_width)]
    *profile, band = (values[:, line] if axis == 0 else values[line] for values in maps)
    reach = int(recipe.seam_width * recipe.grid.tile_size[axis]) + ROOM
    near = slice(max(0, border - reach), border + reach)
    kinds = ("row", "column") if axis == 0 else ("column", "row")
    places = smoothing.borders(recipe.grid)[axis]
    charts = [
        _chart(f"Along {kinds[1]} {line}", kinds[0], slice(0, len(band)), profile, band, places),
        _chart(f"Around the seam at {border}", kinds[0], near, profile, band, places),
    ]
    before, after = (abs(float(p[border]) - float(p[border - 1])) for p in profile)
    return [Stage(
        "seam-profile", "Across the strongest seam", np.stack(profile),
        "smoothing.smooth_seams", "Rolih et al. Sec. 3.3",
        f"The merged and the smoothed map along {kinds[1]} {line}. At {kinds[0]} {border}, where "
        f"tiles start or end, the merged map jumps by {before:.3g} from one pixel to the next, the "
        f"smoothed one by {after:.3g}; outside the band they are equal.",
        svg.page(charts, 1, "The seam before and after smoothing",
                 "Dashed: tile borders. Grey: the smoothed band."),
    )]  # fmt: skip


def _chart(title, label, part, profile, band, places):
    start, stop = part.start, min(part.stop, len(band))
    shown = np.concatenate([p[part] for p in profile])
    room = 0.05 * float(shown.max() - shown.min()) or 1.0
    low, high = float(shown.min()) - room, float(shown.max()) + room
    chart = svg.Chart(title, f"{label} (px)", "anomaly", width=WIDTH, height=HEIGHT,
                      x_range=(start, stop - 1), y_range=(low, high))  # fmt: skip
    edges = np.flatnonzero(np.diff(np.pad(band[part], 1).astype(int))).reshape(-1, 2) + start
    for first, last in edges:
        chart.band([first, last - 1], [low, low], [high, high], 6)
    for place in places:
        if start <= place < stop:
            chart.upright(place - 0.5)
    for k, (values, name) in enumerate(zip(profile, ("merged", "smoothed"))):
        chart.line(range(start, stop), values[part], name, 1 - k)
    return chart
