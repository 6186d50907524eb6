"""One image walked through the whole method, a picture per stage: `run.py --explain IMAGE`.

Every picture is drawn from an array that a run computes too; the Stage keeps it.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ... import merging, smoothing
from ...data import reading, resizing
from ...data import images as image_data
from ...data.samples import NORMAL
from ...data.tiles import LocationImages
from ...ensemble import UNTILE, TiledEnsemble, collect
from ...models.backbone import FEATURE_STRIDE
from ...running.category_images import CategoryImages
from ...support.devices import full_precision
from ...support.errors import InputError
from ..drawing import render, svg
from .comparison import compare, mask_of, single_setup
from .playground import section
from .position import Latest, position_stages, watch
from .seams import seam_stage
from .setups_figure import setups_stage
from .stage import Stage, apart, heat, heat_map, outlined

BUILT_IN = "builtin"  # the IMAGE that means SHOWN, else the data set's first defective one
SHOWN = "board/test/cut_trace/002.png"  # SM256 misses its three defects, ENS9 marks one
N_THRESHOLD = 4  # normal images, and as many defective ones, to choose the threshold
MERGED = {"mean": "Averaged where tiles overlap", "window": "Weighted, less near a tile's edges"}
SCORED = {"mean": "Rolih et al. Eq. 5", "max": "deviation D5", "top": "deviation D16"}


def explain(text, category, recipe, backbone, options, progress):
    """Train a setup and walk one image through it -> a title and the list of Stage.

    Parameters: text, see choose_image; category, recipe, backbone, options and progress as in
    cell.run_cell. Raises InputError for invalid images or options.
    """
    size, single = recipe.setup.image_size, single_setup(recipe.setup)
    name, _, sample = choose_image(text, category, size)
    samples = threshold_samples(category, sample)
    masks = reading.read_masks(samples, size)
    bad = np.array([sample.label != NORMAL for sample in samples])
    truth = None
    if sample is not None and (sample.label == NORMAL or category.has_masks):
        truth = reading.read_masks([sample], size)[0]
    sizes = [size, *([single.image_size] if single else [])]
    pictures = CategoryImages(category, options, progress, recipe.antialias, sizes)

    def ensemble_and_images(recipe):
        """An ensemble, the walked image and those for the threshold, and the training images."""
        size, antialias = recipe.setup.image_size, recipe.antialias
        progress.title = f"{name}: {recipe.arch}, {recipe.setup.name}"
        walked = choose_image(text, category, size, antialias)[1]
        others = reading.read_images(samples, size, antialias=antialias)
        ensemble = TiledEnsemble(recipe, backbone=backbone, device=options.device)
        images = np.concatenate([walked[None], others])  # (1 + V, 3, H, W)
        return ensemble, images, pictures.images("train", size)

    ensemble, images, train = ensemble_and_images(recipe)
    title = progress.title
    stages = walk(images[0], train, ensemble, options, images[1:], masks, bad, truth, progress)
    if single:
        alone = replace(recipe, setup=single, seam_sigma=1.0)  # a single model has no seams
        walked = recipe.setup.name, *ensemble_and_images(alone)
        stages += compare(stages, *walked, masks, bad, truth, options, progress)
    return title, stages


def choose_image(text, category, size, antialias=False):
    """The image to walk -> its name, its pixels uint8 (3, H, W), its Sample or None for a file.

    Parameters: text, a file, the name of a test sample of the category, or BUILT_IN (the first
    sample if none is defective); category, a data.Category; size (H, W) in px; antialias.
    Raises InputError where there is neither such a file nor such a sample.
    """
    if text == BUILT_IN:
        defective = [sample for sample in category.test if sample.label != NORMAL]
        sample = min(defective or category.test, key=lambda sample: sample.name != SHOWN)
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
    """The test samples, without the walked one, on which the threshold of the mask is chosen: n
    normal ones (training images if there are none), then n defective ones (none without
    masks)."""
    others = [sample for sample in category.test if sample is not walked]
    normal = [sample for sample in others if sample.label == NORMAL] or list(category.train)
    defective = [sample for sample in others if sample.label != NORMAL]
    return normal[:n] + (defective[:n] if category.has_masks else [])


@full_precision()
def walk(image, train, ensemble, options, others, masks, bad, truth=None, progress=None):
    """Train an ensemble and take one image through every stage of it.

    Parameters: image uint8 (3, H, W); train uint8 (N, 3, H, W), normal images; ensemble, an
    untrained TiledEnsemble; others uint8 (V, 3, H, W), the images on which the threshold of the
    mask is chosen, masks bool (V, H, W), the defects in them, and bad bool (V,), whether they are
    defective (a small defect may vanish from its resized mask); truth bool (H, W), the defects in
    the image.
    Returns a list of Stage, from the setups and the image to the mask, and to the truth if it is
    known.
    """
    recipe, grid, tile_grid = ensemble.recipe, ensemble.grid, ensemble.setup.input_grid
    everything = np.concatenate([image[None], others])  # (1 + V, 3, H, W)
    states, best = Latest(), {}
    found = ensemble.each_location(train, everything, states, progress=progress)
    tile_maps, tile_scores = collect(watch(found, states, best), grid, len(everything))
    merged = UNTILE[recipe.merge](tile_maps, grid, impl=options.impl, threads=options.threads)
    smooth = smoothing.smooth_seams(
        merged, grid, recipe.seam_width, recipe.seam_sigma, options.impl, options.threads
    )
    photo = np.ascontiguousarray(image.transpose(1, 2, 0))
    stages = [
        setups_stage(ensemble.setup),
        Stage(
            "image", "The image, decoded and resized once", image,
            "data.resizing.resize_image", "Rolih et al. Sec. 4.2",
            "8-bit RGB, bilinear; every tile is cut from this array."
            + (" Magenta, here and below: the true defects." if truth is not None else ""),
            outlined(photo, truth),
        ),
        _tile_stage(image, tile_grid, truth),
    ]  # fmt: skip
    stages += _feature_stages(_features(image, tile_grid, ensemble), tile_grid, truth)
    stages += position_stages(ensemble, best, image, train, truth)
    stages.append(_map_stage(tile_maps[:, :, 0], tile_scores[:, :, 0], recipe, truth))
    stages.append(_score_stage(merging.image_scores(tile_scores, recipe.score), bad, recipe))
    stages += _merged_stages(photo, merged[0], smooth[0], recipe, tile_maps[:, :, 0], truth)
    stages.append(_mask_stage(photo, smooth, masks, truth))
    play = section(photo, tile_maps[:, :, 0], tile_scores[:, :, 0], mask_of(smooth, masks)[1],
                   recipe, truth)  # fmt: skip
    stages[-1] = replace(stages[-1], play=play)
    return stages if truth is None else [*stages, _truth_stage(photo, truth, stages[-1].array)]


def _features(image, grid, ensemble):
    """Backbone features of every tile of one image: a list of (T, C, hf, wf) on the host."""
    tiles = []
    for location in grid.locations():
        batch = LocationImages(image[None], grid, [location], ensemble.device)[[0]]
        tiles.append([layer.cpu() for layer in ensemble.network(batch)])
    return [torch.cat(layer).numpy() for layer in zip(*tiles)]


def _outlined_tiles(pictures, grid, truth):
    """Pictures uint8 (rows, cols, h, w, 3) of an image's tiles, drawn apart with its defects."""
    parts = pictures.copy()
    for place in grid.locations() if truth is not None else ():
        parts[place] = outlined(parts[place], grid.pad_tile(truth[grid.window(*place)]))
    return apart(parts)


def _tile_stage(image, grid, truth):
    tiles = np.ascontiguousarray(grid.tile(image[None]))  # (rows, cols, 1, 3, h, w)
    (h, w), (down, across) = grid.tile_size, grid.stride
    return Stage(
        "tiles", f"{grid.rows} x {grid.cols} tiles", tiles,
        "tiling.TileGrid.tile", "Rolih et al. Eq. 1-2",
        f"Tiles of {h} x {w} px, one every {down} x {across} px, drawn apart; "
        "shared pixels appear in each tile. Tiles that extend past the image end in zeros.",
        _outlined_tiles(tiles[:, :, 0].transpose(0, 1, 3, 4, 2), grid, truth),
    )  # fmt: skip


def _feature_stages(layers, grid, truth):
    """A stage per layer; layers, list of (T, C, hf, wf) of the walked image's tiles."""
    stages = []
    for (name, stride), layer in zip(FEATURE_STRIDE.items(), layers):
        strength = np.sqrt(np.square(layer, dtype=np.float64).mean(1))  # (T, hf, wf)
        enlarged = strength.repeat(stride, axis=1).repeat(stride, axis=2)
        enlarged = enlarged[:, : grid.tile_size[0], : grid.tile_size[1]]  # (T, h, w)
        features = layer.reshape(grid.rows, grid.cols, *layer.shape[1:])
        stages.append(Stage(
            f"features-{name}", f"Features of {name}", features,
            "models.backbone.ResNet18Features", "He et al., CVPR 2016",
            f"{features.shape[2]} channels for every {stride} x {stride} px of each tile; the "
            "picture shows the root of their mean square.",
            _heat_tiles(enlarged.reshape(grid.rows, grid.cols, *grid.tile_size), grid, truth, ""),
        ))  # fmt: skip
    return stages


def _heat_tiles(values, grid, truth, title="anomaly"):
    """Heat maps of values (rows, cols, h, w), drawn apart, with one scale."""
    limits = float(values.min()), float(values.max())
    colours = np.stack([[heat(tile, *limits) for tile in row] for row in values])
    return render.with_color_bar(_outlined_tiles(colours, grid, truth), *limits, (), title)


def _map_stage(tile_maps, tile_scores, recipe, truth):
    """tile_maps (rows, cols, h, w) and tile_scores (rows, cols) are the walked image's."""
    models = {1: "one model"}.get(n := recipe.setup.n_models, f"{n} models")
    one, scores = tile_scores.size == 1, ", ".join(f"{s:.4g}" for s in tile_scores.flat)
    how = " and blurred" if recipe.arch != "fastflow" else ""
    how += "; a score is its map's maximum" if recipe.arch != "patchcore" else ""
    scores = f"the score {scores}" if one else f"the scores {scores}, row by row"
    return Stage(
        "tile-maps", "The anomaly map" if one else "Anomaly maps of the tiles",
        tile_maps[:, :, None], "ensemble.each_location", "Rolih et al. Eq. 4",
        f"Predicted by {models}, with {scores}. Enlarged{how}.",
        _heat_tiles(tile_maps, recipe.grid, truth),
    )  # fmt: skip


def _score_stage(scores, bad, recipe):
    """scores (1 + V,), the walked image first; bad bool (V,), whether the others are defective."""
    n, (rule, _, top) = recipe.grid.rows * recipe.grid.cols, recipe.score.partition(":")
    top = min(int(top or 0), n)
    rule = {0: rule, 1: "highest"}.get(top, f"mean of the {top} highest")
    rule = f"the {rule} of the {n} tile scores" if n > 1 else "that of the one map"
    groups = {"normal": scores[1:][~bad], "defective": scores[1:][bad], "walked": scores[:1]}
    chart = svg.Chart("Image scores", "images", "image score", height=300, x_names=list(groups))
    for k, values in enumerate(groups.values()):
        chart.points(np.full(len(values), k), values, series=(2, 3, 1)[k])
    return Stage(
        "image-scores", "The image score", scores,
        "merging.image_scores", SCORED[recipe.score.partition(":")[0]],
        f"The image score {scores[0]:.4g} is {rule}; the others are those of the "
        "images on which the mask's threshold is chosen.",
        chart.svg(),
    )  # fmt: skip


def _merged_stages(photo, merged, smooth, recipe, tile_maps, truth):
    """photo (H, W, 3), merged and smooth (H, W), all of the walked image; the colours are those of
    tile_maps (rows, cols, h, w)."""
    band = smoothing.seam_mask(recipe.grid, recipe.seam_width)  # (H, W)
    low, high = limits = float(tile_maps.min()), float(tile_maps.max())
    how = MERGED[recipe.merge] if tile_maps[..., 0, 0].size > 1 else "As it is"
    return [
        Stage(
            "merged-map", "The merged map", merged,
            f"merging.{UNTILE[recipe.merge].__name__}",
            "Rolih et al. Sec. 3.3" if recipe.merge == "mean" else "deviation D17",
            f"{how}; colours from {low:.4g} to {high:.4g} in all maps.",
            heat_map(merged, truth, limits),
        ),
        Stage(
            "seam-band", "The seam band", band,
            "smoothing.seam_mask", "Rolih et al. Sec. 3.3",
            f"{100 * band.mean():.1f} % of the pixels lie within {recipe.seam_width:g} of a "
            "tile's side of a border between tiles; only these are smoothed."
            if band.any() else "Empty: no pixel is smoothed.",
            outlined(render.overlay(photo, band.astype(np.float32)), truth),
        ),
        Stage(
            "smoothed-map", "The map with smoothed seams", smooth,
            "smoothing.smooth_seams", "Rolih et al. Sec. 3.3",
            f"A Gaussian of {recipe.seam_sigma:g} px inside the band; the largest change is "
            f"{np.abs(smooth - merged).max():.3g}.",
            heat_map(smooth, truth, limits),
        ),
        *seam_stage(merged, smooth, recipe),
    ]  # fmt: skip


def _mask_stage(photo, smooth, masks, truth):
    """smooth (1 + V, H, W), the walked image first; masks (V, H, W) of the others."""
    mask, threshold, f1 = mask_of(smooth, masks)
    labelled = masks.any()
    how = "the best F1 over the pixels of" if labelled else "the largest value on"
    return Stage(
        "mask", "The mask", mask,
        "thresholds.f1_threshold", "",
        f"White: {100 * mask.mean():.2f} % of the pixels reach the threshold {threshold:.4g}, "
        f"{how} {len(masks)} other images{f' (F1 {f1:.2f})' if labelled else ''}.",
        render.draw_contours(outlined(photo, truth), mask),
    )  # fmt: skip


def _truth_stage(photo, truth, mask):
    return Stage(
        "truth", "The ground truth", truth,
        "data.reading.read_masks", "",
        f"{truth.sum():,} px are defective, {mask.sum():,} px are in the mask, "
        f"{(truth & mask).sum():,} px in both.",
        outlined(photo, truth),
    )  # fmt: skip
