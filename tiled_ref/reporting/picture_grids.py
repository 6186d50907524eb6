"""The paper's Figs. 4 and 12 to 17: images beside the heat maps and masks of all setups, as PNG."""

import random

import numpy as np

from ..data import encoders, resizing
from ..running.analysis import FPRS, REPORT_FPR
from .drawing import render
from .figure import Figure
from .results import categories_of, setups_of, title_of

PANEL, GAP, HEADER, TEXT_HEIGHT = 168, 6, 26, 16  # pixels
ZOOM_PANEL = 236  # pixels, in the grid of details
# The paper has grids of FastFlow on MVTec AD and of every architecture on VisA.
NUMBERS = {
    ("mvtec", "fastflow"): 12, ("visa", "patchcore"): 14, ("visa", "padim"): 15,
    ("visa", "fastflow"): 16, ("visa", "reverse_distillation"): 17,
}  # fmt: skip


def picture_grid(collection, dataset, arch):
    """Figs. 12-17: a defective image of every category, with heat map and mask of each setup.

    The image is drawn at random, seeded by data set and category, so it is the same for every
    architecture. Parameters: collection. Returns [] if no category has a defective image.
    """
    results = [result for result, _ in collection.cells(dataset=dataset, arch=arch)]
    setups = setups_of(results)
    rows = []
    for category in categories_of(dataset, results):
        images = collection.images(dataset, category)
        if not images.labels.any():
            continue
        defective = np.flatnonzero(images.labels)
        n = int(defective[random.Random(f"{dataset}/{category}").randrange(len(defective))])
        cells = collection.first_seeds(dataset=dataset, arch=arch, category=category)
        by_setup = {result["setup"]: analysis for result, analysis in cells}
        rows.append((category, _grid_row(images, n, [by_setup.get(s) for s in setups])))
    if not rows:
        return []
    side = max(_text_width(category) for category, _ in rows) + 2 * GAP
    heads = ["image", "ground truth", *(text for setup in setups for text in (setup, ""))]
    height = HEADER + sum(len(panels[0]) + GAP for _, panels in rows)
    out = np.full((height, side + len(heads) * (PANEL + GAP), 3), 255, np.uint8)
    for k, head in enumerate(heads):
        _write_text(out, head, 5, side + k * (PANEL + GAP))
    top = HEADER
    for category, panels in rows:
        _write_text(out, category, top + len(panels[0]) // 2 - 8, GAP)
        _place(out, panels, top, side)
        top += len(panels[0]) + GAP
    title = f"Heat maps and masks: {title_of(arch)} on {title_of(dataset)}"
    number = NUMBERS.get((dataset, arch))
    stem = "pictures" if number is None else f"figure_{number}_pictures"
    drawing = encoders.encode_png(_beside_bar(out, HEADER))
    return [Figure(stem, title, drawing, dataset, None, arch)]


def _grid_row(images, n, analyses):
    """Return panels uint8 (h, PANEL, 3): image, ground truth, heat map and mask of each setup,
    grey for a setup without a cell."""
    rows, cols = images.sizes[n].tolist()
    shape = (max(24, round(PANEL * rows / cols)), PANEL)
    picture = resizing.resize_image(
        encoders.decode_bytes(images.jpegs[n]), shape, antialias=True
    )
    truth = resizing.resize_mask(images.masks[n], shape)
    panels = [picture, render.draw_contours(picture, truth)]
    for analysis in analyses:
        if analysis is None:
            panels += [np.full((*shape, 3), 235, np.uint8)] * 2
        else:
            values = resized_map(analysis.maps[n], shape)
            mask = resizing.resize_mask(analysis.masks[n], shape)
            panels += [render.overlay(picture, values), _white(mask)]
    return panels


def zoom_grid(cells, images, dataset, category, arch):
    """Fig. 4: a small defect, in full and zoomed: image and ground truth, then heat map and mask of
    each setup, coarse before fine.

    Parameters: cells, pairs (result, CellAnalysis), one per setup; images, as Collection.images
    returns them. Returns [] for fewer than two setups, or if no image has a defect with a mask.
    """
    if not images.windows or len(cells) < 2:
        return []
    number = _worth_showing(cells, images)
    window = images.windows[number]
    full = (max(24, round(ZOOM_PANEL * window.size[0] / window.size[1])), ZOOM_PANEL)
    rows = _zoom_rows(cells, images, number, full)
    labels = [("", "")] + [
        (result["setup"], "x".join(map(str, analysis.map_size)) + " px")
        for result, analysis in cells
    ]
    side = max(_text_width(text) for pair in labels for text in pair) + 2 * GAP
    step = max(full[0], ZOOM_PANEL) + GAP
    out = np.full((2 * HEADER + len(rows) * step, side + 4 * (ZOOM_PANEL + GAP), 3), 255, np.uint8)
    heads = ("image", "zoomed", "ground truth", "zoomed"), ("heat map", "zoomed", "mask", "zoomed")
    for k, row in enumerate(rows):
        top = HEADER * (1 + (k > 0)) + k * step
        for text, down in zip(labels[k], (-20, 2)):
            _write_text(out, text, top + step // 2 + down, GAP)
        for n, head in enumerate(heads[k] if k < 2 else ()):
            _write_text(out, head, top - HEADER + 5, side + n * (ZOOM_PANEL + GAP))
        _place(out, row, top, side)
    title = f"A small defect in detail: {title_of(arch)} on {category}"
    drawing = encoders.encode_png(_beside_bar(out, 2 * HEADER + step))
    return [Figure("figure_04_zoom", title, drawing, dataset, category, arch)]


def _zoom_rows(cells, images, number, full):
    """Return rows of four panels uint8 (h, ZOOM_PANEL, 3): image and truth, then each cell; full,
    the (height, width) of panels of the whole image."""
    window = images.windows[number]
    picture = resizing.resize_image(
        encoders.decode_bytes(images.jpegs[window.image]), full, antialias=True
    )
    close = resizing.resize_image(
        encoders.decode_bytes(images.zooms[number]), (ZOOM_PANEL, ZOOM_PANEL)
    )
    truth = resizing.resize_mask(images.masks[window.image], full)
    close_truth = _seen(images.zoom_masks[number], window, window.size)
    rows = [[picture, close, _white(truth), _white(close_truth)]]
    for _, analysis in cells:
        values = resized_map(analysis.maps[window.image], full)
        zoomed = _seen(analysis.zooms[number], window, analysis.map_size) / 255
        mask = resizing.resize_mask(analysis.masks[window.image], full)
        near = analysis.masks[window.image]
        near = _seen(near[window.within(near.shape)], window, near.shape)
        rows.append([render.overlay(picture, values), render.overlay(close, zoomed),
                     _white(mask), _white(near & (zoomed >= 0.5))])  # fmt: skip
    for row in rows:
        row[0], row[2] = _framed(row[0], window), _framed(row[2], window)
    return rows


def _seen(part, window, shape):
    """Enlarge the part of an array in a Window: uint8 or bool (ZOOM_PANEL, ZOOM_PANEL).

    Parameters: part (a, b), the pixels that the window touches, of an array over the whole
    image; shape (H, W) of that array. Each pixel takes the value at its centre.
    """
    picks = []
    for first, last, n, m in zip(
        (window.top, window.left), (window.bottom, window.right), shape, window.size
    ):
        at = first + (np.arange(ZOOM_PANEL) + 0.5) * (last - first) / ZOOM_PANEL  # in the file
        picks.append((at * n / m).astype(np.int64) - first * n // m)
    return part[np.ix_(*picks)]


def _worth_showing(cells, images):
    """Return the index of the Window of the smallest defect that some setup finds half of at
    REPORT_FPR; of the largest defect if there is none."""
    at = FPRS.index(REPORT_FPR)
    for number, window in enumerate(images.windows):
        if any(analysis.recall[window.region, at] >= 0.5 for _, analysis in cells):
            break
    return number


def _framed(panel, window):
    """Draw the Window's outline into a picture of the whole image, white with a black rim."""
    out = panel.copy()
    part = out[window.within(panel.shape[:2])]
    for colour in (0, 255, 0):
        part[[0, -1]] = part[:, [0, -1]] = colour
        part = part[1:-1, 1:-1]
        if not part.size:
            break
    return out


def _white(mask):
    """Return a mask bool (h, w) as a picture uint8 (h, w, 3), white where True."""
    return np.repeat(np.where(mask, 255, 0).astype(np.uint8)[..., None], 3, 2)


def resized_map(values, shape):
    """Resize a stored map uint8 (h, w) bilinearly to float64 (H, W) from 0 to 1; 128 and above
    become more than 0.5."""
    return resizing.resize_image(np.asarray(values), shape) / 255


def _beside_bar(grid, top):
    """Add the colour bar of the heat maps to the right of a grid, starting at row `top`."""
    bar = render.with_color_bar(np.full((PANEL, 0, 3), 255, np.uint8))
    height = max(len(grid), top + len(bar))
    out = np.full((height, grid.shape[1] + bar.shape[1], 3), 255, np.uint8)
    out[: len(grid), : grid.shape[1]] = grid
    out[top : top + len(bar), grid.shape[1] :] = bar
    return out


def _place(out, panels, top, left):
    """Draw panels side by side."""
    for panel in panels:
        height, width = panel.shape[:2]
        out[top : top + height, left : left + width] = panel
        left += width + GAP


def _text_width(text):
    return encoders.text_coverage(text, TEXT_HEIGHT).shape[1]


def _write_text(out, text, top, left):
    if not text:
        return
    cover = encoders.text_coverage(text, TEXT_HEIGHT)[..., None] / 255
    part = out[top : top + TEXT_HEIGHT, left : left + cover.shape[1]]
    cover = cover[: part.shape[0], : part.shape[1]]
    part[:] = np.rint(part * (1 - cover) + 28 * cover)
