"""A made-up OUT for tests of tables, figures and report: cells without any model."""

import json
from dataclasses import replace

import numpy as np
from toys import toy_category

from tiled_ref.running import analysis, stored_images
from tiled_ref.running.category_images import CategoryImages
from tiled_ref.running.cell import Options
from tiled_ref.running.results import RESULT_COLUMNS
from tiled_ref.setups import SETUPS
from tiled_ref.support.progress import Progress
from tiled_ref.verdicts.thresholds import find_thresholds

QUIET = Progress(quiet=True)


def made_up_result(dataset="mvtec", category="screw", arch="padim", setup="ENS9", seed=42, **more):
    """What metrics.json holds of a cell."""
    named = SETUPS[setup]
    result = dict.fromkeys(RESULT_COLUMNS) | {
        "dataset": dataset, "category": category, "arch": arch, "setup": setup, "seed": seed,
        "image_auroc": 0.9, "pixel_auroc": 0.97, "pixel_aupro": 0.8,
        "fpr_limit": 0.3,
        "n_parameters": 2_782_784 * named.n_models, "n_models": named.n_models,
        "n_train": 6, "n_test": 8, "seconds_train": 10.0, "seconds_test": 2.0,
        "seconds_score": 1.0, "peak_memory_bytes": 1 << 30, "weights": "imagenet",
        "impl": "cython", "device": "cpu", "image_size": list(named.image_size),
        "tile_size": list(named.tile_size), "stride": list(named.stride),
    }  # fmt: skip
    return result | more


def made_up_maps(category, setup, seed):
    """Maps that show the masks, float32 (N, H, W), and scores, float32 (N,), of a made-up cell."""
    images, sizes = CategoryImages(category, Options(), QUIET), SETUPS[setup]
    rng = np.random.default_rng([seed, len(setup), sizes.n_models])
    maps = rng.random((len(category.test), *sizes.image_size), np.float32)
    if category.has_masks:
        maps += 0.7 * images.masks(sizes.image_size)
    return maps, maps.reshape(len(maps), -1).mean(1).astype(np.float32)


def made_up_cell(out, category, arch="padim", setup="SM256", seed=42, **more):
    """Write a cell's metrics.json, analysis.npz and images.npz: maps that show the masks."""
    options = Options()
    images = CategoryImages(category, options, QUIET)
    sizes = SETUPS[setup]
    maps, scores = made_up_maps(category, setup, seed)
    thresholds = find_thresholds(
        images.plan, maps, scores,
        masks=(lambda: images.masks(sizes.image_size)) if category.has_masks else None,
    )  # fmt: skip
    folder = out / category.dataset / category.name / arch / setup / f"seed{seed}"
    stored_images.save_images(folder.parents[2], images, sizes, options)
    analysis.save_analysis(folder, maps, scores, images, sizes, options, thresholds)
    result = made_up_result(
        category.dataset, category.name, arch, setup, seed, thresholds=thresholds, **more
    )
    (folder / "metrics.json").write_text(json.dumps(result))
    return folder


def small(name="toy", **more):
    """A toy category under another name."""
    return replace(toy_category(**more), name=name)
