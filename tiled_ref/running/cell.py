"""One cell of a run: load, train, predict, merge, smooth, score, save.

The walk of the data, for 512/256/128 (ENS9), N training and M test images:

    Category                      samples, sorted
    read_images                   (N, 3, 512, 512) uint8, decoded and resized once per run
    LocationImages                (B, 3, 256, 256) float32, one location at a time
    each_location                 (M, 256, 256) maps and (M,) scores per location, into Pieces
    untile_average                (M, 512, 512)        mean_scores  (M,)
    smooth_seams                  (M, 512, 512), a few images at a time
    auroc, pixel_metrics          metrics.json, a row of results.csv
"""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from .. import metrics
from ..archive.manifest import write_manifest
from ..data.reading import read_mask_original
from ..ensemble import TiledEnsemble
from ..models.maps import upsample_bilinear
from ..support.errors import InputError
from ..support.memory import PeakMemory
from ..support.progress import Progress
from ..verdicts import thresholds
from . import analysis, results, shared_layers, stored_images
from .engine import Resident
from .pieces import Pieces
from .processes import Ranks, Share
from .rows import Rows, merge_rows

METRIC_SIZES = ("setup", "original")
METRICS = results.METRICS
LARGE = 1 << 24  # pixels of an image


@dataclass(frozen=True)
class Options:
    """The options that all cells of a run share."""

    out: Path = None  # folder of the results; None writes nothing
    device: torch.device = torch.device("cpu")
    weights: str = "imagenet"  # or "random"; copied into every result, like the next
    weights_digest: str = None  # weights.tensors_digest
    metric_size: str = None  # of METRIC_SIZES (deviation D6); None, here and next: the data set's
    fpr_limit: float = None  # of AUPRO, a fraction
    impl: str = "cython"
    threads: int = None
    resume: bool = False  # reuse finished cells, continue unfinished ones; or pieces.WHERE_SAME
    save: bool = False  # keep the trained ensemble in the cell's folder
    native: bool = False  # each category at the size of its images, which must be equal
    report: bool = False  # write analysis.npz of the cell and images.npz of its category
    validation: str = None  # images that determine the thresholds, see deciding.plan
    rules: thresholds.Rules = field(default_factory=thresholds.Rules)  # of thresholds and marks
    memory: str = "low"  # one of engine.MEMORY_MODES
    share_features: int = shared_layers.BUDGET  # bytes on disk for shared layers; 0 shares none
    ranks: Ranks = field(default_factory=Ranks, compare=False)  # the processes of the run


def run_cell(recipe, images, backbone, options, progress=None):
    """Train and test one architecture in one setup on one category with one seed.

    Parameters: recipe; images, a CategoryImages; backbone, a ResNet18Features or SharedLayers.
    Returns a dict, the contents of metrics.json: metrics as fractions (None where undefined),
    counts, seconds, bytes, and everything that determined them. With options.out it is written,
    and OUT/results.csv is updated. Returns None if another process of the run finishes the cell.
    Raises InputError for anything wrong with images, masks or options.
    """
    progress = progress or Progress(quiet=True)
    category, setup = images.category, recipe.setup
    if recipe.antialias != images.antialias:
        raise InputError("all cells of a category need the same antialias")
    progress.title = f"{category.name} {recipe.arch} {setup.name} seed {recipe.seed}"
    with Share(options.ranks, f"{category.dataset} {progress.title}") as share:
        if not share.opens and (share.is_over() or not share.joins(setup.n_models)):
            return None
        ensemble = TiledEnsemble(
            recipe, backbone=backbone, weights=options.weights, device=options.device
        )
        identity = results.cell_identity(recipe, images, options)
        folder = results.cell_folder(options.out, category, recipe)
        if share.opens and folder is not None:
            results.check_folder(options.out, category, identity)
        if options.resume and share.opens and folder is not None:
            digest = images.reported.digest
            finished = results.finished_result(folder, identity, digest, options, progress)
            if finished is not None:
                share.opened("finished")
                return finished
        peak = PeakMemory(options.device)
        with Pieces(
            folder, identity, options.resume, save=options.save,
            hold=options.memory == "resident", network=backbone, note=progress.note,
            joins=not share.opens, places={m: list(setup.inputs(m)) for m in setup.models},
        ) as pieces:  # fmt: skip
            share.opened("ready")
            train = images.images("train", setup.image_size)
            test = images.images("test", setup.image_size)
            if category.has_masks:  # a bad mask fails now, not after the training
                images.defects(setup.image_size)
            _locations(ensemble, train, test, pieces, share, options, progress)
            if not share.finishes:
                return None
            return _finish(ensemble, images, pieces, identity, peak, options, progress)


def _locations(ensemble, train, test, pieces, share, options, progress):
    """Train and test this process's locations, except those already among the pieces."""
    locations = list(ensemble.setup.models)
    if options.memory == "low":
        todo = pieces.missing(share.take(locations))
        found = ensemble.each_location(train, test, pieces, locations=todo, progress=progress)
    else:  # all states first, then all locations predict together
        if all(map(pieces.is_done, locations)):
            return
        todo = pieces.missing(locations, everything=True)
        for _ in ensemble.each_location(train, test[:0], pieces, locations=todo, progress=progress):
            pass  # nothing to predict yet
        resident = Resident(ensemble, pieces)
        found = resident.predict(test, progress.stage("predict", "predict all"))
    for location, rows, maps, scores in found:
        pieces.add(location, rows, len(test), maps, scores)


def _finish(ensemble, images, pieces, identity, peak, options, progress):
    """Merge, score and write a cell whose locations are done; returns its result."""
    recipe, category, grid = ensemble.recipe, images.category, ensemble.grid
    started = time.perf_counter()
    maps = pieces.new_maps("merged.npy", (len(category.test), *recipe.setup.image_size))
    tile_maps, tile_scores = zip(*map(pieces.prediction, grid.locations()))
    scores = merge_rows(
        tile_maps, np.stack(tile_scores).reshape(grid.rows, grid.cols, -1), recipe, maps,
        impl=options.impl, threads=options.threads, progress=progress.stage("merge", "merge"),
        roi=options.rules.roi,
    )  # fmt: skip
    merged = time.perf_counter()
    maps, scores, scored = _score(ensemble, images, maps, scores, options, progress)
    seconds_score = time.perf_counter() - merged
    seconds_train, seconds_predict, reused = pieces.costs(recipe.setup.models)
    device, on_gpu = options.device, options.device.type == "cuda"
    result = {
        "dataset": category.dataset,
        "category": category.name,
        "setup": recipe.setup.name,
        "n_parameters": ensemble.n_parameters,
        "n_stored_parameters": ensemble.n_stored_parameters(len(category.train)),
        "n_models": recipe.setup.n_models,
        "n_train": len(category.train),
        "n_test": len(scores),
        **images.counts(recipe.setup.image_size),
        **scored,
        "seconds_train": seconds_train,
        "seconds_test": seconds_predict + (merged - started),
        "seconds_score": seconds_score,
        "features_reused": reused,
        **peak.read(),
        **identity,
        "folder": category.folder,
        "thresholds": ensemble.thresholds,
        "impl": options.impl,
        "memory": options.memory,
        "device": f"{device} {torch.cuda.get_device_name(device)}" if on_gpu else str(device),
        "n_processes": options.ranks.size,
        "torch_threads": torch.get_num_threads(),
        "versions": results.versions(),
    }
    if pieces.folder is not None:
        _keep(result, ensemble, pieces, maps, scores, images, options, progress)
    pieces.finish()
    return result


def _score(ensemble, images, maps, scores, options, progress):
    """Set the ensemble's thresholds and score; returns the maps and scores that the metrics
    use, and the metrics."""
    category, setup = images.category, ensemble.setup
    stage = progress.stage("score", "score")
    ensemble.thresholds = thresholds.find_thresholds(
        images.plan, maps, scores, rules=options.rules,
        masks=(lambda: images.masks(setup.image_size)) if category.has_masks else None,
        impl=options.impl, threads=_threads(setup, options),
    )  # fmt: skip
    ensemble.roi = options.rules.roi
    if images.reported is not images:
        maps, scores = Rows(maps, images.plan.reported), scores[images.plan.reported]
    pixel = ensemble.thresholds["pixel"]
    result = score_predictions(
        maps, scores, images.reported, setup, options, progress, pixel and pixel["threshold"]
    )
    stage(len(category.test), len(category.test))
    for note in thresholds.describe(ensemble.thresholds), *thresholds.doubts(ensemble.thresholds):
        progress.note(f"{progress.title}: {note}")
    return maps, scores, result


def score_predictions(maps, scores, images, setup, options, progress, threshold=None):
    """The metrics of raw maps and scores.

    Parameters: maps float32 (N, H, W); scores float32 (N,); images, a CategoryImages; setup;
    threshold, of pixels, for SegF1, or None.
    Returns a dict of METRICS: fractions, or None if a metric is undefined (without both kinds of
    test images, or without masks); progress logs why.
    """
    title = f"{images.category.name} {setup.name}"
    labels = np.array([sample.label for sample in images.category.test])
    result = dict.fromkeys(METRICS)
    if not 0 < labels.sum() < len(labels):
        kind = "normal" if labels.any() else "defective"
        progress.note(f"{title}: no metrics, because the test set has no {kind} images")
        return result
    result["image_auroc"] = metrics.auroc(scores, labels)
    result["image_f1_max"] = metrics.image_f1_max(scores, labels)
    if not images.category.has_masks:
        progress.note(f"{title}: no pixel metrics, because the defective images have no masks")
        return result

    def pairs():
        if images.metric_size == "setup":
            yield from zip(maps, images.masks(setup.image_size))
            return
        for image_map, sample in zip(maps, images.category.test):
            mask = read_mask_original(sample)
            if image_map.shape != mask.shape:
                enlarged = upsample_bilinear(torch.from_numpy(image_map)[None], mask.shape)
                image_map = enlarged[0].numpy()
            yield image_map, mask

    try:
        pixel = metrics.pixel_metrics(
            pairs, images.fpr_limit, options.impl, _threads(setup, options), threshold
        )
    except metrics.UndefinedMetricError as error:  # every defect vanished in resizing
        progress.note(f"{title}: no pixel metrics: {error}")
        return result
    return result | {
        "pixel_auroc": pixel.pixel_auroc, "pixel_aupro": pixel.aupro,
        "pixel_f1_max": pixel.f1_max, "seg_f1": pixel.seg_f1,
    }  # fmt: skip


def _threads(setup, options):
    """Threads that rank pixels: each holds a map and a mask, so large images get only one."""
    return options.threads if math.prod(setup.image_size) <= LARGE else 1


def _keep(result, ensemble, pieces, maps, scores, images, options, progress):
    """Write the files that outlive the run: ensemble, report data, and the result last."""
    setup, category, mark = ensemble.setup, images.category, result["identity"]
    if options.save:
        facts = {"category": category.name, "versions": results.versions(), "identity": mark}
        write_manifest(pieces.ensemble_folder, ensemble, **facts)
    pieces.publish()
    if options.report:
        stage = progress.stage("analyse", "analyse")
        reported = images.reported
        with options.ranks.one_at_a_time(f"images {category.dataset} {category.name}"):
            stored_images.save_images(pieces.folder.parents[2], reported, setup, options)
        analysis.save_analysis(
            pieces.folder, maps, scores, reported, setup, options, ensemble.thresholds, mark
        )
        stage(len(scores), len(scores))
    images.check_unchanged()
    results.save_result(result, pieces.folder, options)
