"""One image walked through the whole method, a picture per stage: `run.py --explain IMAGE`.

What is drawn is what is computed: every picture is made of the array that the functions of
the run return, and the array stays in its Stage.
"""

import html
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .. import merging, smoothing
from ..data.images import (
    decode_image,
    encode_jpeg,
    encode_png,
    read_images,
    read_masks,
    resize_image,
    text_coverage,
)  # fmt: skip
from ..data.samples import NORMAL
from ..ensemble import COMBINE, Forgotten, LocationImages, TiledEnsemble, collect
from ..models.backbone import FEATURE_STRIDE
from ..running.category_images import CategoryImages
from ..support.errors import InputError
from ..support.files import atomic_write, make_folder
from ..thresholds import f1_threshold
from .drawing import render

BUILT_IN = "builtin"  # the IMAGE that stands for the data set's first defective one
N_JUDGES = 4  # normal and as many defective images on which the threshold is chosen
GAP = 8  # px between the tiles of a picture
MAX_SIDE = 1024  # px, pictures are reduced to this
OVERVIEW_SIDE = 200  # px, height of the pictures of the overview
TITLE = 22  # px, height of the line above each of them
PAPER = np.uint8(255)  # grey level between tiles


@dataclass(frozen=True)
class Stage:
    """One station of an image's walk.

    Parameters: name, short and fit for a file name, such as "tile-maps"; title, a few words;
    array, what the stage hands on for the one image; code, the function that made it; source,
    the equation or section that it follows, "" where there is none; text, what one sees;
    picture, uint8 (h, w, 3).
    """

    name: str
    title: str
    array: np.ndarray
    code: str
    source: str
    text: str
    picture: np.ndarray

    @property
    def shape(self):
        """Shape and dtype as text, such as "(3, 3, 1, 256, 256) float32"."""
        sides = ", ".join(map(str, self.array.shape))
        return f"({sides}) {self.array.dtype}"


def explain(text, category, recipe, backbone, options, progress):
    """Walk one image through a setup that is trained for it.

    Parameters: text, see choose_image; category, a data.Category; recipe, backbone, options
    and progress as in cell.run_cell.
    Returns a title and the list of Stage.
    Raises InputError for whatever is wrong with images or options.
    """
    size, antialias = recipe.setup.image_size, recipe.antialias
    name, image, sample = choose_image(text, category, size, antialias)
    samples = judges(category, sample)
    judging = read_images(samples, size, antialias=antialias)
    masks = read_masks(samples, size)
    progress.title = f"{name}: {recipe.arch}, {recipe.setup.name}"
    train = CategoryImages(category, options, progress, antialias).images("train", size)
    ensemble = TiledEnsemble(recipe, backbone=backbone, device=options.device)
    truth = None
    if sample is not None and (sample.label == NORMAL or category.has_masks):
        truth = read_masks([sample], size)[0]
    stages = walk(image, train, ensemble, options, judging, masks, truth, progress)
    return progress.title, stages


def choose_image(text, category, size, antialias=False):
    """The image to walk.

    Parameters: text, the path of an image file, or the name of a test sample of the
    category, or "builtin" for its first defective one (the first one where none is
    defective); category, a data.Category; size (H, W) in pixels; antialias, see
    data.images.resize_image.
    Returns the name, the image uint8 (3, H, W), and the Sample or None for a file.
    Raises InputError where there is neither such a file nor such a sample.
    """
    if text == BUILT_IN:
        defective = [sample for sample in category.test if sample.label != NORMAL]
        sample = (defective or list(category.test))[0]
    else:
        sample = next((sample for sample in category.test if sample.name == text), None)
    if sample is None and not Path(text).is_file():
        raise InputError(
            f"--explain {text}: there is no such file, and no test image of the category "
            f"{category.name} has this name (such as {category.test[0].name})"
        )
    pixels = decode_image(text) if sample is None else sample.read_image()
    name = sample.name if sample else Path(text).name
    image = np.ascontiguousarray(resize_image(pixels, size, antialias).transpose(2, 0, 1))
    return name, image, sample


def judges(category, walked=None, n=N_JUDGES):
    """The test samples on which the threshold of the mask is chosen: n normal, n defective ones.

    Parameters: category; walked, the Sample that is walked and therefore left out.
    Returns a list of Sample, normal ones first. Without masks there are no defective ones;
    without normal test images the training images stand in for them.
    """
    others = [sample for sample in category.test if sample is not walked]
    normal = [sample for sample in others if sample.label == NORMAL] or list(category.train)
    defective = [sample for sample in others if sample.label != NORMAL]
    return normal[:n] + (defective[:n] if category.has_masks else [])


def walk(image, train, ensemble, options, judging, masks, truth=None, progress=None):
    """Train an ensemble and take one image through every stage of it.

    Parameters: image uint8 (3, H, W); train uint8 (N, 3, H, W), normal images; ensemble, a
    TiledEnsemble of any setup and architecture, not trained; options, a cell.Options,
    whose impl and threads count; judging uint8 (V, 3, H, W), on which the threshold of the mask
    is chosen, and masks bool (V, H, W), what is defective in them; truth bool (H, W), what is
    defective in the image; progress, a Progress.
    Returns a list of Stage, from the image to the mask, and to the truth where it is known.
    """
    grid, tile_grid = ensemble.grid, ensemble.setup.input_grid
    everything = np.concatenate([image[None], judging])  # (1 + V, 3, H, W)
    found = ensemble.each_location(train, everything, Forgotten(), progress=progress)
    tile_maps, tile_scores = collect(found, grid, len(everything))
    stages = [_image_stage(image), _tile_stage(image, tile_grid)]
    stages += _feature_stages(_features(image, tile_grid, ensemble), tile_grid)
    stages += _map_stages(image, tile_maps, tile_scores, ensemble.recipe, options, masks)
    return stages if truth is None else [*stages, _truth_stage(image, truth, stages[-1].array)]


def _features(image, grid, ensemble):
    """Backbone features of every tile of one image: a list of (T, C, hf, wf) on the host."""
    tiles = []
    for location in grid.locations():
        batch = LocationImages(image[None], grid, [location], ensemble.device)[[0]]
        tiles.append([layer.cpu() for layer in ensemble.network(batch)])
    return [torch.cat(layer).numpy() for layer in zip(*tiles)]


def _image_stage(image):
    return Stage(
        "image", "The image, decoded and resized once", image,
        "data.images.resize_image", "Rolih et al. Sec. 4.2",
        "8-bit RGB, bilinear; every tile is cut from this array.",
        np.ascontiguousarray(image.transpose(1, 2, 0)),
    )  # fmt: skip


def _tile_stage(image, grid):
    tiles = np.ascontiguousarray(grid.tile(image[None]))  # (rows, cols, 1, 3, h, w)
    return Stage(
        "tiles", f"{grid.rows} x {grid.cols} tiles", tiles,
        "tiling.TileGrid.tile", "Rolih et al. Eq. 1-2",
        f"Tiles of {_text(grid.tile_size)} px, one every {_text(grid.stride)} px, drawn apart; "
        "what two of them share is in both. Zeros fill tiles that stick out of the image.",
        apart(tiles[:, :, 0].transpose(0, 1, 3, 4, 2)),
    )  # fmt: skip


def _feature_stages(layers, grid):
    """A stage per layer; layers, list of (T, C, hf, wf) of the walked image's tiles."""
    stages = []
    for (name, stride), layer in zip(FEATURE_STRIDE.items(), layers):
        strength = np.sqrt(np.square(layer, dtype=np.float64).mean(1))  # (T, hf, wf)
        enlarged = strength.repeat(stride, axis=1).repeat(stride, axis=2)
        enlarged = enlarged[:, : grid.tile_size[0], : grid.tile_size[1]]  # (T, h, w)
        colours = [render.colormap(_unit(tile, strength)) for tile in enlarged]
        pictures = np.stack(colours).reshape(grid.rows, grid.cols, *colours[0].shape)
        features = layer.reshape(grid.rows, grid.cols, *layer.shape[1:])
        stages.append(Stage(
            f"features-{name}", f"Features of {name}", features,
            "backbone.ResNet18Features", "He et al., CVPR 2016",
            f"{features.shape[2]} channels for every {stride} x {stride} px of each tile; drawn "
            "is the root of their mean square.",
            apart(pictures),
        ))  # fmt: skip
    return stages


def _map_stages(image, tile_maps, tile_scores, recipe, options, masks):
    """From tile maps (rows, cols, 1 + V, h, w) to the mask; place 0 is the walked image."""
    grid, sigma = recipe.grid, recipe.seam_sigma
    merged = merging.untile_average(tile_maps, grid, impl=options.impl, threads=options.threads)
    band = smoothing.seam_mask(grid, recipe.seam_width)  # (H, W)
    smooth = smoothing.smooth_seams(
        merged, grid, recipe.seam_width, sigma, options.impl, options.threads
    )
    score = COMBINE[recipe.score](tile_scores)[0]
    labelled = masks.any()
    threshold, f1 = f1_threshold(smooth[1:].ravel(), masks.ravel())
    mask = smooth[0] >= threshold
    photo = np.ascontiguousarray(image.transpose(1, 2, 0))
    mine, scores = tile_maps[:, :, :1], tile_scores[:, :, 0]
    scale = mine  # one scale of colours for all maps

    def heat(values):
        return render.colormap(_unit(values, scale))

    def heat_with_bar(values):
        return render.with_color_bar(heat(values), float(scale.min()), float(scale.max()))

    pictures = np.stack([[heat(tile[0]) for tile in row] for row in mine])
    n = scores.size
    how = "the best F1 over the pixels of" if labelled else "the largest value on"
    return [
        Stage(
            "tile-maps", "Anomaly maps of the tiles", mine,
            "ensemble.each_location", "Rolih et al. Eq. 4",
            f"What the {'model says' if n == 1 else f'{n} models say'}; image score "
            f"{score:.4g}, the {recipe.score} of {', '.join(f'{s:.4g}' for s in scores.flat)} "
            "(Eq. 5).",
            apart(pictures),
        ),
        Stage(
            "merged-map", "The merged map", merged[0],
            "merging.untile_average", "Rolih et al. Sec. 3.3",
            f"Averaged where tiles overlap; colours from {scale.min():.4g} to "
            f"{scale.max():.4g} in all maps.",
            heat_with_bar(merged[0]),
        ),
        Stage(
            "seam-band", "The seam band", band,
            "smoothing.seam_mask", "Rolih et al. Sec. 3.3",
            f"{100 * band.mean():.1f} % of the pixels lie within {recipe.seam_width:g} of a "
            "tile's side from a border between tiles; only these are smoothed.",
            render.overlay(photo, band.astype(np.float32)),
        ),
        Stage(
            "smoothed-map", "The map with smoothed seams", smooth[0],
            "smoothing.smooth_seams", "Rolih et al. Sec. 3.3",
            f"A Gaussian of {sigma:g} px inside the band; the largest change is "
            f"{np.abs(smooth[0] - merged[0]).max():.3g}.",
            heat_with_bar(smooth[0]),
        ),
        Stage(
            "mask", "The mask", mask,
            "thresholds.f1_threshold", "",
            f"{100 * mask.mean():.2f} % of the pixels reach the threshold {threshold:.4g}, {how} "
            f"{len(masks)} other images{f' (F1 {f1:.2f})' if labelled else ''}.",
            render.draw_contours(photo, mask),
        ),
    ]  # fmt: skip


def _truth_stage(image, truth, mask):
    both = truth & mask
    return Stage(
        "truth", "The ground truth", truth,
        "data.images.read_masks", "",
        f"{truth.sum()} px are defective, {mask.sum()} px are in the mask, {both.sum()} px in "
        "both.",
        render.draw_contours(np.ascontiguousarray(image.transpose(1, 2, 0)), truth),
    )  # fmt: skip


def apart(tiles, gap=GAP):
    """Tiles side by side with a gap between them.

    Parameters: tiles uint8 (rows, cols, h, w, 3); gap in pixels.
    Returns uint8 (rows * h + (rows - 1) * gap, cols * w + (cols - 1) * gap, 3).
    """
    rows, cols, h, w, channels = tiles.shape
    sides = rows * (h + gap) - gap, cols * (w + gap) - gap
    picture = np.full((*sides, channels), PAPER)
    for i in range(rows):
        for j in range(cols):
            top, left = i * (h + gap), j * (w + gap)
            picture[top : top + h, left : left + w] = tiles[i, j]
    return picture


def _unit(values, scale):
    """values on a scale of 0 to 1 from the smallest to the largest of `scale`."""
    low, high = float(scale.min()), float(scale.max())
    return np.clip((values - low) / ((high - low) or 1.0), 0, 1)


def _text(size):
    return f"{size[0]} x {size[1]}"


def overview(stages, side=OVERVIEW_SIDE, per_row=6):
    """All stages on one sheet, numbered and named.

    Parameters: stages, list of Stage as walk returns; side, height of each picture in pixels;
    per_row, pictures in a row.
    Returns uint8 (height, width, 3).
    """
    panels = []
    for number, stage in enumerate(stages, start=1):
        h, w = stage.picture.shape[:2]
        picture = resize_image(stage.picture, (side, max(1, round(w * side / h))), antialias=True)
        title = text_coverage(f"{number} {stage.name}", TITLE)[:, : picture.shape[1]]
        panel = np.full((side + TITLE + GAP, picture.shape[1], 3), PAPER)
        panel[:TITLE, : title.shape[1]] -= title[:, :, None]
        panel[TITLE : TITLE + side] = picture
        panels.append(panel)
    rows = [panels[k : k + per_row] for k in range(0, len(panels), per_row)]
    width = max(sum(p.shape[1] + GAP for p in row) for row in rows) - GAP
    sheet = np.full((len(rows) * (side + TITLE + GAP), width, 3), PAPER)
    for k, row in enumerate(rows):
        left = 0
        for panel in row:
            top = k * panel.shape[0]
            sheet[top : top + panel.shape[0], left : left + panel.shape[1]] = panel
            left += panel.shape[1] + GAP
    return sheet


def write_walk(stages, folder, title):
    """One numbered PNG per stage, overview.jpg, and index.html that shows and explains them.

    Parameters: stages, list of Stage; folder, made where it is missing; title, text.
    Returns the list of the PNG files' names.
    Raises InputError where the folder cannot be written.
    """
    folder = Path(folder)
    make_folder(folder)
    names = [f"{number:02d}-{stage.name}.png" for number, stage in enumerate(stages, start=1)]
    files = {name: encode_png(_reduced(stage.picture)) for name, stage in zip(names, stages)}
    files["overview.jpg"] = encode_jpeg(overview(stages), 85)
    files["index.html"] = _page(stages, names, title).encode()
    for name, data in files.items():
        with atomic_write(folder / name, "wb") as file:
            file.write(data)
    return names


def _reduced(picture):
    h, w = picture.shape[:2]
    factor = MAX_SIDE / max(h, w)
    if factor >= 1:
        return picture
    size = max(1, round(h * factor)), max(1, round(w * factor))
    return resize_image(picture, size, antialias=True)


def _page(stages, names, title):
    parts = []
    for number, (stage, name) in enumerate(zip(stages, names), start=1):
        source = f", {html.escape(stage.source)}" if stage.source else ""
        parts.append(
            f"<h2>{number}. {html.escape(stage.title)}</h2>\n"
            f"<p><code>{html.escape(stage.shape)}</code> from "
            f"<code>{html.escape(stage.code)}</code>{source}<br>{html.escape(stage.text)}</p>\n"
            f'<p><img src="{name}" alt="{html.escape(stage.title)}"></p>\n'
        )
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f"<title>{html.escape(title)}</title>\n"
        "<style>body { font: 16px/1.5 sans-serif; max-width: 1060px; margin: 2em auto; "
        "padding: 0 1em } img { max-width: 100% }</style>\n"
        f"<h1>{html.escape(title)}</h1>\n"
        '<p><img src="overview.jpg" alt="all stages"></p>\n' + "".join(parts) + "</html>\n"
    )
