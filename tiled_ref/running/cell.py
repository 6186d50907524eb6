"""A cell of a run: load, train, predict, merge, smooth, score, save.

The walk of the data, for 512/256/128 (ENS9), N training and M test images:

    Category                      samples, sorted
    read_images                   (N, 3, 512, 512) uint8, decoded and resized once per run
    LocationImages                (B, 3, 256, 256) float32, one location at a time
    each_location                 (M, 256, 256) maps and (M,) scores per location, into Pieces
    untile_average                (M, 512, 512)        mean_scores  (M,)
    smooth_seams                  (M, 512, 512), a few images at a time
    auroc, pixel_metrics          metrics.json, a row of results.csv
"""

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from .. import metrics, thresholds
from ..archive.ensembles import write_manifest
from ..data import images as image_data
from ..ensemble import TiledEnsemble, merge_rows
from ..models.maps import upsample_bilinear
from ..support.errors import InputError
from ..support.memory import PeakMemory
from ..support.progress import Progress
from . import analysis, shared_layers, stored_images
from .engine import Resident
from .pieces import Pieces, remove_pieces
from .processes import Ranks, Share
from .results import (
    cell_folder,
    cell_identity,
    device_name,
    finished_result,
    save_result,
    versions,
    write_results_csv,
)  # fmt: skip

METRIC_SIZES = ("setup", "original")


@dataclass(frozen=True)
class Options:
    """What all cells of a run have in common, beside what their recipes say.

    Parameters: out, folder of the results, None writes nothing; device; weights, "imagenet" or
    "random", and weights_digest (weights.tensors_digest), copied into every result;
    metric_size, pixel metrics at the setup's image size (paper) or at each image's own (MVTec
    protocol; deviation D6); resume, bool or pieces.WHERE_SAME, reuse finished cells and go on
    with unfinished ones; save, keep the trained ensemble in the cell's folder; report, keep
    analysis.npz of the cell and images.npz of its category; validation, which images decide the
    thresholds, see `thresholds.plan`; percentile, of the scores of normal images, the threshold
    where there is no defective one; memory, one of engine.MODES; share_features, bytes on the
    disk for layers that cells share (`sweep.Sweep`), 0 for none; ranks, processes.Ranks.
    """

    out: Path = None
    device: torch.device = torch.device("cpu")
    weights: str = "imagenet"
    weights_digest: str = None
    metric_size: str = "setup"
    impl: str = "cython"
    threads: int = None
    resume: bool = False
    save: bool = False
    report: bool = False
    validation: str = "same-as-test"
    percentile: float = 100.0
    memory: str = "low"
    share_features: int = shared_layers.BUDGET
    ranks: Ranks = field(default_factory=Ranks, compare=False)


def run_cell(recipe, images, backbone, options, progress=None):
    """Train and test one architecture in one setup on one category with one seed.

    Parameters
    ----------
    recipe : Recipe
    images : CategoryImages
    backbone : ResNet18Features or shared_layers.SharedLayers
    options : Options
    progress : Progress, optional

    Returns
    -------
    dict, what metrics.json holds: metrics as fractions (None where undefined), counts,
    seconds, bytes, and what produced them. Written to
    OUT/<dataset>/<category>/<arch>/<setup>/seed<k>/metrics.json, and OUT/results.csv brought
    up to date, if options.out is given. None in a process that shares the run with others, one
    of which finishes the cell.

    Raises
    ------
    InputError
        Whatever is wrong with images, masks or options.
    """
    progress = progress or Progress(quiet=True)
    category, setup = images.category, recipe.setup
    images.check(recipe)
    progress.title = f"{category.name} {recipe.arch} {setup.name} seed {recipe.seed}"
    share = Share(options.ranks, f"{category.dataset} {progress.title}")
    with _shared_fate(share):
        if not share.opens and share.is_over():
            return None
        ensemble = TiledEnsemble(
            recipe, backbone=backbone, weights=options.weights, device=options.device
        )
        identity = cell_identity(recipe, images, options)
        folder = cell_folder(options.out, category, recipe)
        if options.resume and share.opens and folder is not None:
            finished = _take_finished(folder, identity, images, options, progress)
            if finished is not None:
                share.opened("finished")
                return finished
        peak = PeakMemory(options.device)
        if category.has_masks:  # a bad mask is found now, not after the training
            images.masks(setup.image_size)
        with Pieces(
            folder, identity, options.resume, save=options.save,
            hold=options.memory == "resident",
            network=backbone if isinstance(backbone, shared_layers.SharedLayers) else None,
            note=progress.note, joins=not share.opens,
        ) as pieces:  # fmt: skip
            share.opened("ready")
            train = images.images("train", setup.image_size)
            test = images.images("test", setup.image_size)
            _locations(ensemble, train, test, pieces, share, options, progress)
            if not share.finishes:
                return None
            result = _finish(ensemble, images, pieces, identity, peak, options, progress)
    return result


@contextlib.contextmanager
def _shared_fate(share):
    """A context whose InputError lets the other ranks drop the cell as well."""
    try:
        yield
    except InputError:
        share.opened("failed")
        raise


def _locations(ensemble, train, test, pieces, share, options, progress):
    """Train and test the models of this process's locations, as far as the pieces lack them."""
    locations = list(ensemble.setup.models)
    if options.memory == "low":
        todo = pieces.missing(share.take(locations))
        found = ensemble.each_location(train, test, pieces, locations=todo, progress=progress)
    else:  # all states first, then all locations predict together
        if all(map(pieces.is_done, locations)):
            return
        todo = pieces.missing(locations, everything=True)
        for _ in ensemble.each_location(
            train, test[:0], pieces, locations=todo, progress=progress
        ):
            pass  # nothing to predict yet
        resident = Resident(ensemble.recipe, ensemble.network, ensemble.device, pieces)
        work = ensemble.setup.tile_pixels * len(test)
        found = resident.predict(test, progress.stage("predict", work))
    for location, rows, maps, scores in found:
        pieces.add(location, rows, len(test), maps, scores)


def _finish(ensemble, images, pieces, identity, peak, options, progress):
    """Merge, score and write a cell whose locations are done; returns its result."""
    recipe, category = ensemble.recipe, images.category
    clock, n_test = _Clock(), len(category.test)
    with clock("merge"):
        maps = pieces.new_maps("merged", (n_test, *recipe.setup.image_size))
        scores = _merge(recipe, pieces, maps, options, progress.stage("merge"))
    with clock("score"):
        maps, scores, scored = _score(ensemble, images, maps, scores, options, progress)
    result = {
        "dataset": category.dataset,
        "category": category.name,
        **_counts(ensemble, len(category.train), len(scores)),
        **scored,
        **_costs(pieces, recipe.grid.locations(), clock),
        **peak.read(),
        **identity,
        "thresholds": ensemble.thresholds,
        **_circumstances(options),
    }
    if pieces.folder is not None:
        _keep(result, ensemble, pieces, maps, scores, images, options, progress)
    pieces.finish()
    return result


def _counts(ensemble, n_train, n_test):
    """The part of a result about the ensemble: names and numbers."""
    return {
        "setup": ensemble.setup.name,
        "n_parameters": ensemble.n_parameters,
        "n_stored_parameters": ensemble.n_stored_parameters(n_train),
        "n_models": ensemble.setup.n_models,
        "n_train": n_train,
        "n_test": n_test,
    }


def _costs(pieces, locations, clock):
    """The part of a result about time; features_reused, 0 to 1, is what made it shorter."""
    seconds_train, seconds_predict = pieces.seconds(locations)
    return {
        "seconds_train": seconds_train,
        "seconds_test": seconds_predict + clock["merge"],
        "seconds_score": clock["score"],
        "features_reused": pieces.reused(locations),
    }


def _circumstances(options):
    """The part of a result about what it was computed with and does not depend on."""
    return {
        "impl": options.impl,
        "memory": options.memory,
        "device": device_name(options.device),
        "n_processes": options.ranks.size,
        "torch_threads": torch.get_num_threads(),
        "versions": versions(),
    }


def _take_finished(folder, identity, images, options, progress):
    """The result of a cell that was finished with the same options, else None. Logs which."""
    finished = finished_result(folder, identity, options, images.reported.digest)
    if finished is not None:
        progress.note(f"{progress.title}: finished before, taken from {folder / 'metrics.json'}")
        remove_pieces(folder)
        if options.ranks.is_main:
            write_results_csv(options.out)
    elif (folder / "metrics.json").is_file():
        progress.note(f"{progress.title}: finished with other options, so it is computed again")
    return finished


def _score(ensemble, images, maps, scores, options, progress):
    """Thresholds, kept in the ensemble, and metrics.

    Returns maps and scores of the images that metrics are reported of, and the dict of
    score_predictions.
    """
    category, setup = images.category, ensemble.setup
    stage = progress.stage("score")
    ensemble.thresholds = thresholds.find_thresholds(
        images.plan, maps, scores, percentile=options.percentile,
        masks=(lambda: images.masks(setup.image_size)) if category.has_masks else None,
    )  # fmt: skip
    if images.reported is not images:
        maps, scores = Rows(maps, images.plan.reported), scores[images.plan.reported]
    result = score_predictions(maps, scores, images.reported, setup, options, progress)
    stage(len(category.test), len(category.test))
    progress.note(f"{progress.title}: {thresholds.describe(ensemble.thresholds)}")
    return maps, scores, result


def _keep(result, ensemble, pieces, maps, scores, images, options, progress):
    """Write what outlives a cell: the ensemble, what a report needs, and last the result."""
    setup, category = ensemble.setup, images.category
    if options.save:
        if not pieces.published:
            write_manifest(
                pieces.ensemble_folder, ensemble, category=category.name, versions=versions()
            )
        pieces.publish_ensemble()
    if options.report:
        stage = progress.stage("analyse")
        reported = images.reported
        with options.ranks.one_at_a_time(f"images {category.dataset} {category.name}"):
            stored_images.save_images(pieces.folder.parents[2], reported, setup, options)
        analysis.save_analysis(
            pieces.folder, maps, scores, reported, setup, options, ensemble.thresholds
        )
        stage(len(scores), len(scores))
    save_result(result, options.out, table=options.ranks.is_main)


class Rows:
    """Some rows of an array or RowFile, read when they are asked for.

    Parameters: rows (N, ...); chosen int (n,).
    """

    def __init__(self, rows, chosen):
        self.rows, self.chosen = rows, chosen

    def __len__(self):
        return len(self.chosen)

    def __getitem__(self, key):
        if isinstance(key, slice):
            return np.stack([self.rows[int(k)] for k in self.chosen[key]])
        return self.rows[int(self.chosen[key])]


def _merge(recipe, pieces, out, options, progress):
    """Fill out (N, H, W) with the merged maps of all locations; returns the scores (N,)."""
    grid = recipe.grid
    maps, scores = zip(*(pieces.prediction(location) for location in grid.locations()))
    scores = np.stack(scores).reshape(grid.rows, grid.cols, -1)
    return merge_rows(
        maps, scores, recipe, out,
        impl=options.impl, threads=options.threads, progress=progress,
    )  # fmt: skip


def score_predictions(maps, scores, images, setup, options, progress):
    """Image AUROC, pixel AUROC and AUPRO of raw maps and scores.

    Parameters: maps (N, H, W), scores (N,), images a CategoryImages, setup, options, progress.
    Returns a dict of image_auroc, pixel_auroc, pixel_aupro: fractions, or None where a
    metric is undefined (without both kinds of test images, or without masks); progress is
    told why.
    """
    title = f"{images.category.name} {setup.name}"
    labels = np.array([sample.label for sample in images.category.test])
    result = {"image_auroc": None, "pixel_auroc": None, "pixel_aupro": None}
    if not 0 < labels.sum() < len(labels):
        kind = "normal" if labels.any() else "defective"
        progress.note(f"{title}: no metrics, because the test set has no {kind} images")
        return result
    result["image_auroc"] = metrics.auroc(scores, labels)
    if not images.category.has_masks:
        progress.note(f"{title}: no pixel metrics, because the defective images have no masks")
        return result
    if options.metric_size == "setup":

        def pairs():
            return zip(maps, images.masks(setup.image_size))
    else:

        def pairs():
            for image_map, sample in zip(maps, images.category.test):
                mask = image_data.read_mask_original(sample)
                yield _enlarged(image_map, mask.shape), mask

    try:
        pixel = metrics.pixel_metrics(pairs, impl=options.impl, threads=options.threads)
    except metrics.UndefinedMetricError as error:  # every defect vanished in the resizing
        progress.note(f"{title}: no pixel metrics: {error}")
        return result
    return result | {"pixel_auroc": pixel.pixel_auroc, "pixel_aupro": pixel.aupro}


class _Clock:
    """Wall-clock seconds by name."""

    def __init__(self):
        self._seconds = {}

    def __getitem__(self, name):
        return self._seconds[name]

    @contextlib.contextmanager
    def __call__(self, name):
        start = time.perf_counter()
        yield
        self._seconds[name] = time.perf_counter() - start


def _enlarged(image_map, size):
    if image_map.shape == size:
        return image_map
    return upsample_bilinear(torch.from_numpy(image_map)[None], size)[0].numpy()
