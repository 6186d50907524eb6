"""Compare the walked setup with a single model on the whole image, reduced."""

import numpy as np
import torch

from ...ensemble import Forgotten, collect, merge
from ...models.maps import upsample_bilinear
from ...setups import SETUPS
from ...verdicts.thresholds import f1_threshold
from ..drawing import render
from .stage import Stage, heat_map, in_a_row, outlined

CLOSE_UP = 480  # px, side of a close-up


def single_setup(setup):
    """The Setup of one model on the image reduced to 256 px, or to the tile's size if that is
    smaller; None if that is `setup` itself. SM256 for the paper's setups.

    >>> single_setup(SETUPS["ENS9"]).name, single_setup(SETUPS["SM256"])
    ('SM256', None)
    """
    single = SETUPS["SM256"]
    size = tuple(min(pair) for pair in zip(setup.tile_size, single.image_size))
    return None if size == setup.image_size else single.with_sizes(size)


def mask_of(maps, masks):
    """The mask of the first image, at the threshold that a run would choose on the others.

    Parameters: maps float32 (1 + V, H, W); masks bool (V, H, W), the defects in the others.
    Returns the mask bool (H, W), the threshold (the largest value on the others if none has a
    defect), and the best F1 on them.
    """
    threshold, f1 = f1_threshold(maps[1:].ravel(), masks.ravel())
    return maps[0] >= threshold, threshold, f1


def compare(stages, walked, ensemble, images, train, masks, bad, truth, options, progress):
    """Train a single model and draw its predictions beside the walked setup's -> list of Stage.

    Parameters: stages, the walked setup's; walked, its name; ensemble, a TiledEnsemble of
    `single_setup`; images uint8 (1 + V, 3, h, w), the walked one and those that choose the
    threshold, and train (N, 3, h, w), at its size; masks bool (V, H, W), bad bool (V,) and truth
    bool (H, W) or None, as in `walk`; options, a cell.Options; progress.
    """
    recipe, by_name = ensemble.recipe, {stage.name: stage for stage in stages}
    found = ensemble.each_location(train, images, Forgotten(), progress=progress)
    found = collect(found, ensemble.grid, len(images))
    full = np.ascontiguousarray(by_name["image"].array.transpose(1, 2, 0))  # (H, W, 3)
    small, scores = merge(*found, recipe, options.impl, options.threads)
    maps = upsample_bilinear(torch.from_numpy(small), full.shape[:2]).numpy()  # (1 + V, H, W)
    mask = mask_of(maps, masks)[0]
    pairs = [
        (walked, by_name["smoothed-map"].array, by_name["mask"].array,
         by_name["image-scores"].array),
        (recipe.setup.name, maps[0], mask, scores),
    ]  # fmt: skip
    image, (h, w) = images[0].transpose(1, 2, 0), recipe.setup.image_size
    highest = f"the highest of {(~bad).sum()} normal images"
    margins = "; ".join(f"{name} {s[0]:.4g}, {highest} {np.max(s[1:][~bad]):.4g}"
                        for name, _, _, s in pairs)  # fmt: skip
    where = "largest defect" if np.any(truth) else f"maximum of the map of {walked}"
    found = "; ".join(f"{name} {overlap(m, truth)}" for name, _, m, _ in pairs)
    return [
        Stage(
            "single-image", "The same place, as a single model sees it", images[0],
            "data.resizing.resize_image", "Rolih et al. Sec. 4.2",
            f"Left: for {walked}. Right: reduced to {h} x {w} px. Both: at the {where}.",
            in_a_row(_close_ups(full, image, truth, by_name["smoothed-map"].array)),
        ),
        Stage(
            "single-map", f"The map of {recipe.setup.name}", maps[0],
            "ensemble.merge", "Rolih et al. Table 1",
            f"Left: {walked}. Right: one model on {h} x {w} px, enlarged. Each map has its own "
            f"scale. Image scores: {margins}.",
            in_a_row([heat_map(m, truth, title=name) for name, m, _, _ in pairs]),
        ),
        Stage(
            "single-mask", f"The mask of {recipe.setup.name}", mask,
            "thresholds.f1_threshold", "",
            f"White: the masks, on the left that of {walked}, each at its own threshold, chosen on "
            f"{len(masks)} other images. {found}.",
            in_a_row([render.draw_contours(outlined(full, truth), m) for _, _, m, _ in pairs]),
        ),
    ]  # fmt: skip


def overlap(mask, truth):
    """Describe how a mask bool (H, W) fits the truth bool (H, W), None if it is unknown."""
    if truth is None or not truth.any():
        return f"marks {mask.sum():,} px" + ("" if truth is None else ", none is defective")
    both, either = int((mask & truth).sum()), int((mask | truth).sum())
    return (
        f"marks {mask.sum():,} px, {both:,} of the {truth.sum():,} defective ones (intersection "
        f"over union {both / either:.2f})"
    )


def _close_ups(full, image, truth, values):
    """Close-ups of both images: the largest defect, else the maximum of values (H, W)."""
    H, W = full.shape[:2]
    regions = [] if truth is None else render.contours(truth)
    if regions:
        top, left, bottom, right = max(regions, key=lambda region: region.area).box
    else:
        top, left = bottom, right = np.unravel_index(values.argmax(), values.shape)
    side = int(np.clip(3 * max(bottom - top, right - left), min(H, W) // 8, min(H, W)))
    top = int(np.clip((top + bottom - side) // 2, 0, H - side))
    left = int(np.clip((left + right - side) // 2, 0, W - side))

    def part(picture):
        at = (np.arange(CLOSE_UP) + 0.5) * side / CLOSE_UP
        rows, cols = (
            (at + first) * small / large
            for first, small, large in zip((top, left), picture.shape, (H, W))
        )
        return np.ascontiguousarray(picture[rows.astype(int)][:, cols.astype(int)])

    inside = None if truth is None else part(truth)
    return [outlined(part(picture), inside) for picture in (full, image)]
