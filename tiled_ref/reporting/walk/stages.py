"""One image walked through the whole method, a picture per stage: `run.py --explain IMAGE`.

Every picture is drawn from the array that the functions of a run return; the Stage keeps it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ... import merging, smoothing
from ...data import reading, resizing
from ...data import images as image_data
from ...data.samples import NORMAL
from ...data.tiles import LocationImages
from ...ensemble import UNTILE, Forgotten, TiledEnsemble, collect
from ...models.backbone import FEATURE_STRIDE
from ...running.category_images import CategoryImages
from ...support.errors import InputError
from ...verdicts.thresholds import f1_threshold
from ..drawing import render

BUILT_IN = "builtin"  # the IMAGE that stands for the data set's first defective one
N_THRESHOLD = 4  # normal and as many defective images on which the threshold is chosen
GAP = 8  # px between the tiles of a picture
PAPER = np.uint8(255)  # grey level between tiles
MERGED = {"mean": "Averaged", "window": "Weighted, less towards the edges of a tile,"}


@dataclass(frozen=True)
class Stage:
    """One stage of an image's walk."""

    name: str  # part of its file's name, such as "tile-maps"
    title: str  # a few words
    array: np.ndarray  # the result of the stage for the one image
    code: str  # the function that made it
    source: str  # the equation or section that it follows, "" where there is none
    text: str  # what the picture shows
    picture: np.ndarray  # uint8 (h, w, 3)

    @property
    def shape(self):
        """Shape and dtype as text, such as "(3, 3, 1, 256, 256) float32"."""
        sides = ", ".join(map(str, self.array.shape))
        return f"({sides}) {self.array.dtype}"


def explain(text, category, recipe, backbone, options, progress):
    """Walk one image through a setup that is trained for it -> a title and the list of Stage.

    Parameters: text, see choose_image; category, recipe, backbone, options and progress as in
    cell.run_cell. Raises InputError for whatever is wrong with images or options.
    """
    size, antialias = recipe.setup.image_size, recipe.antialias
    name, image, sample = choose_image(text, category, size, antialias)
    samples = threshold_samples(category, sample)
    others = reading.read_images(samples, size, antialias=antialias)
    masks = reading.read_masks(samples, size)
    progress.title = f"{name}: {recipe.arch}, {recipe.setup.name}"
    train = CategoryImages(category, options, progress, antialias).images("train", size)
    ensemble = TiledEnsemble(recipe, backbone=backbone, device=options.device)
    truth = None
    if sample is not None and (sample.label == NORMAL or category.has_masks):
        truth = reading.read_masks([sample], size)[0]
    stages = walk(image, train, ensemble, options, others, masks, truth, progress)
    return progress.title, stages


def choose_image(text, category, size, antialias=False):
    """The image to walk -> its name, its pixels uint8 (3, H, W), its Sample or None for a file.

    Parameters: text, the path of an image file, or the name of a test sample of the category, or
    BUILT_IN for its first defective one (the first one where none is defective); category, a
    data.Category; size (H, W) in pixels; antialias, see data.resizing.resize_image.
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
    pixels = image_data.decode_image(text) if sample is None else sample.read_image()
    name = sample.name if sample else Path(text).name
    pixels = resizing.resize_image(pixels, size, antialias)
    return name, np.ascontiguousarray(pixels.transpose(2, 0, 1)), sample


def threshold_samples(category, walked=None, n=N_THRESHOLD):
    """The test samples, without the one that is walked, on which the threshold of the mask is
    chosen: n normal ones, training images where there are none, then n defective ones, none
    without masks."""
    others = [sample for sample in category.test if sample is not walked]
    normal = [sample for sample in others if sample.label == NORMAL] or list(category.train)
    defective = [sample for sample in others if sample.label != NORMAL]
    return normal[:n] + (defective[:n] if category.has_masks else [])


def walk(image, train, ensemble, options, others, masks, truth=None, progress=None):
    """Train an ensemble and take one image through every stage of it.

    Parameters: image uint8 (3, H, W); train uint8 (N, 3, H, W), normal images; ensemble, an
    untrained TiledEnsemble; others uint8 (V, 3, H, W), the images on which the threshold of the
    mask is chosen, and masks bool (V, H, W), the defects in them; truth bool (H, W), the defects
    in the image.
    Returns a list of Stage, from the image to the mask, and to the truth where it is known.
    """
    recipe, grid, tile_grid = ensemble.recipe, ensemble.grid, ensemble.setup.input_grid
    everything = np.concatenate([image[None], others])  # (1 + V, 3, H, W)
    found = ensemble.each_location(train, everything, Forgotten(), progress=progress)
    tile_maps, tile_scores = collect(found, grid, len(everything))
    merged = UNTILE[recipe.merge](tile_maps, grid, impl=options.impl, threads=options.threads)
    smooth = smoothing.smooth_seams(
        merged, grid, recipe.seam_width, recipe.seam_sigma, options.impl, options.threads
    )
    photo = np.ascontiguousarray(image.transpose(1, 2, 0))
    stages = [
        Stage(
            "image", "The image, decoded and resized once", image,
            "data.resizing.resize_image", "Rolih et al. Sec. 4.2",
            "8-bit RGB, bilinear; every tile is cut from this array.", photo,
        ),
        _tile_stage(image, tile_grid),
    ]  # fmt: skip
    stages += _feature_stages(_features(image, tile_grid, ensemble), tile_grid)
    stages += _map_stages(photo, tile_maps[:, :, :1], tile_scores, merged[0], smooth[0], recipe)
    stages.append(_mask_stage(photo, smooth, masks))
    return stages if truth is None else [*stages, _truth_stage(photo, truth, stages[-1].array)]


def _features(image, grid, ensemble):
    """Backbone features of every tile of one image: a list of (T, C, hf, wf) on the host."""
    tiles = []
    for location in grid.locations():
        batch = LocationImages(image[None], grid, [location], ensemble.device)[[0]]
        tiles.append([layer.cpu() for layer in ensemble.network(batch)])
    return [torch.cat(layer).numpy() for layer in zip(*tiles)]


def _tile_stage(image, grid):
    tiles = np.ascontiguousarray(grid.tile(image[None]))  # (rows, cols, 1, 3, h, w)
    (h, w), (down, across) = grid.tile_size, grid.stride
    return Stage(
        "tiles", f"{grid.rows} x {grid.cols} tiles", tiles,
        "tiling.TileGrid.tile", "Rolih et al. Eq. 1-2",
        f"Tiles of {h} x {w} px, one every {down} x {across} px, drawn apart; "
        "shared pixels appear in each of them. Zeros fill tiles that extend beyond the image.",
        apart(tiles[:, :, 0].transpose(0, 1, 3, 4, 2)),
    )  # fmt: skip


def _feature_stages(layers, grid):
    """A stage per layer; layers, list of (T, C, hf, wf) of the walked image's tiles."""
    stages = []
    for (name, stride), layer in zip(FEATURE_STRIDE.items(), layers):
        strength = np.sqrt(np.square(layer, dtype=np.float64).mean(1))  # (T, hf, wf)
        enlarged = strength.repeat(stride, axis=1).repeat(stride, axis=2)
        enlarged = enlarged[:, : grid.tile_size[0], : grid.tile_size[1]]  # (T, h, w)
        limits = float(strength.min()), float(strength.max())
        colours = np.stack([_heat(tile, *limits) for tile in enlarged])  # (T, h, w, 3)
        features = layer.reshape(grid.rows, grid.cols, *layer.shape[1:])
        stages.append(Stage(
            f"features-{name}", f"Features of {name}", features,
            "models.backbone.ResNet18Features", "He et al., CVPR 2016",
            f"{features.shape[2]} channels for every {stride} x {stride} px of each tile; the "
            "picture shows the root of their mean square.",
            render.with_color_bar(
                apart(colours.reshape(grid.rows, grid.cols, *colours.shape[1:])), *limits, (), ""
            ),
        ))  # fmt: skip
    return stages


def _map_stages(photo, tile_maps, tile_scores, merged, smooth, recipe):
    """tile_maps (rows, cols, 1, h, w), merged and smooth (H, W) are the walked image's, which is
    the first in tile_scores (rows, cols, 1 + V)."""
    scores, score = tile_scores[:, :, 0], merging.image_scores(tile_scores, recipe.score)[0]
    band = smoothing.seam_mask(recipe.grid, recipe.seam_width)  # (H, W)
    low, high = float(tile_maps.min()), float(tile_maps.max())  # of the colours of all maps
    models = "one model" if scores.size == 1 else f"{scores.size} models"
    return [
        Stage(
            "tile-maps", "Anomaly maps of the tiles", tile_maps,
            "ensemble.each_location", "Rolih et al. Eq. 4",
            f"Predicted by {models}; image score {score:.4g}, the {recipe.score} of "
            f"{', '.join(f'{s:.4g}' for s in scores.flat)} (Eq. 5).",
            render.with_color_bar(
                apart(np.stack([[_heat(tile[0], low, high) for tile in row] for row in tile_maps])),
                low, high, (),
            ),
        ),
        Stage(
            "merged-map", "The merged map", merged,
            f"merging.{UNTILE[recipe.merge].__name__}", "Rolih et al. Sec. 3.3",
            f"{MERGED[recipe.merge]} where tiles overlap; colours from {low:.4g} to {high:.4g} in "
            "all maps.",
            render.with_color_bar(_heat(merged, low, high), low, high, ()),
        ),
        Stage(
            "seam-band", "The seam band", band,
            "smoothing.seam_mask", "Rolih et al. Sec. 3.3",
            f"{100 * band.mean():.1f} % of the pixels lie within {recipe.seam_width:g} of a "
            "tile's side from a border between tiles; only these are smoothed.",
            render.overlay(photo, band.astype(np.float32)),
        ),
        Stage(
            "smoothed-map", "The map with smoothed seams", smooth,
            "smoothing.smooth_seams", "Rolih et al. Sec. 3.3",
            f"A Gaussian of {recipe.seam_sigma:g} px inside the band; the largest change is "
            f"{np.abs(smooth - merged).max():.3g}.",
            render.with_color_bar(_heat(smooth, low, high), low, high, ()),
        ),
    ]  # fmt: skip


def _mask_stage(photo, smooth, masks):
    """smooth (1 + V, H, W), the walked image first; masks (V, H, W) of the others."""
    threshold, f1 = f1_threshold(smooth[1:].ravel(), masks.ravel())
    mask = smooth[0] >= threshold
    labelled = masks.any()
    how = "the best F1 over the pixels of" if labelled else "the largest value on"
    return Stage(
        "mask", "The mask", mask,
        "thresholds.f1_threshold", "",
        f"{100 * mask.mean():.2f} % of the pixels reach the threshold {threshold:.4g}, {how} "
        f"{len(masks)} other images{f' (F1 {f1:.2f})' if labelled else ''}.",
        render.draw_contours(photo, mask),
    )  # fmt: skip


def _truth_stage(photo, truth, mask):
    return Stage(
        "truth", "The ground truth", truth,
        "data.reading.read_masks", "",
        f"{truth.sum()} px are defective, {mask.sum()} px are in the mask, "
        f"{(truth & mask).sum()} px in both.",
        render.draw_contours(photo, truth),
    )  # fmt: skip


def _heat(values, low, high):
    """Colours of values from low to high."""
    return render.colormap(np.clip((values - low) / ((high - low) or 1.0), 0, 1))


def apart(tiles, gap=GAP):
    """Tiles uint8 (rows, cols, h, w, 3) side by side, `gap` px apart: uint8 (H, W, 3)."""
    rows, cols, h, w, _ = tiles.shape
    padded = np.pad(tiles, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=PAPER)
    picture = padded.transpose(0, 2, 1, 3, 4).reshape(rows * (h + gap), cols * (w + gap), 3)
    return np.ascontiguousarray(picture[:-gap, :-gap])
