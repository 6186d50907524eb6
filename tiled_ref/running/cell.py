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
import csv
import hashlib
import json
import platform
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torchvision

from .. import __version__, metrics, thresholds
from ..archive.manifest import FORMAT_VERSION, write_manifest
from ..data import images as image_data
from ..ensemble import TiledEnsemble, merge_rows
from ..models.maps import upsample_bilinear
from ..support.errors import InputError
from ..support.files import atomic_write
from ..support.memory import PeakMemory
from ..support.progress import Progress
from . import analysis, shared_layers
from .engine import Resident
from .pieces import Pieces, remove_pieces
from .processes import Ranks, Share

METRIC_SIZES = ("setup", "original")
IMAGE_BUDGET = 4 << 30  # bytes of decoded images kept in memory, beyond that in a file
MASK_BUDGET = 1 << 30  # bytes of resized masks kept in memory, beyond that read again and again
RESULT_COLUMNS = (
    "dataset", "category", "arch", "setup", "seed",
    "image_auroc", "pixel_auroc", "pixel_aupro",
    "n_parameters", "n_models", "n_train", "n_test",
    "seconds_train", "seconds_test", "peak_memory_bytes", "peak_reserved_bytes",
    "weights", "impl", "device",
)  # fmt: skip


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


class CategoryImages:
    """The images and masks of one category, decoded once and kept at every size asked for.

    Parameters: category, a data.Category; options; progress, a Progress; antialias, as of
    setups.Recipe.

    Attributes
    ----------
    plan : thresholds.Plan
        Which images decide the thresholds; options.validation chooses.
    category : data.Category
        What is trained on and predicted: that of the plan.
    """

    def __init__(self, category, options, progress, antialias=False):
        self.plan = thresholds.plan(category, options.validation)
        self.category = self.plan.category
        self._options, self._antialias = options, antialias
        self._progress = progress
        self._expected = ()
        self._images = {}
        self._masks = {}
        self._packed = {}  # number of a test image -> bits and shape of its mask

    def check(self, recipe):
        """Raise InputError unless a recipe wants images that are resized as these are."""
        if recipe.antialias != self._antialias:
            raise InputError("all cells of a category need the same antialias")

    def expect(self, sizes):
        """The sizes (H, W) that will be asked for: what is decoded is resized to all of them."""
        self._expected = tuple(sizes)

    def images(self, split, size):
        """uint8 (N, 3, H, W) of split "train" or "test"; a memory map beyond IMAGE_BUDGET."""
        if (split, size) not in self._images:
            sizes = [size, *(s for s in self._expected if (split, s) not in self._images)]
            sizes = list(dict.fromkeys(sizes))
            text = " and ".join(map(_text, sizes))
            arrays = image_data.read_images_at(
                getattr(self.category, split),
                sizes,
                antialias=self._antialias,
                budget=IMAGE_BUDGET,
                progress=self._progress.stage(f"decode {split} at {text}"),
            )
            self._images |= {(split, s): images for s, images in zip(sizes, arrays)}
        return self._images[split, size]

    def masks(self, size):
        """The masks bool (H, W) of the test images in their order, to be looped over.

        An array (N, H, W) within MASK_BUDGET; beyond it every loop reads them anew.
        """
        test = self.category.test
        if len(test) * size[0] * size[1] > MASK_BUDGET:
            return (image_data.read_masks([sample], size)[0] for sample in test)
        if size not in self._masks:
            self._masks[size] = image_data.read_masks(test, size)
        return self._masks[size]

    def original_mask(self, k):
        """bool (h, w), the mask of test image k at its own size; read once, kept as bits."""
        if k not in self._packed:
            mask = image_data.read_mask_original(self.category.test[k])
            self._packed[k] = np.packbits(mask), mask.shape
        bits, shape = self._packed[k]
        return np.unpackbits(bits, count=shape[0] * shape[1]).reshape(shape).view(bool)

    @property
    def digest(self):
        """Hex digest of all samples: changes where an image is added, removed or changed."""
        samples = [sample.version for sample in (*self.category.train, *self.category.test)]
        return hashlib.sha256(json.dumps(samples).encode()).hexdigest()

    @property
    def reported(self):
        """These images with only those test images that the metrics are of."""
        if len(self.plan.reported) == len(self.category.test):
            return self
        return _Reported(self)


class _Reported(CategoryImages):
    """A part of the test images of other CategoryImages, which keep what was decoded."""

    def __init__(self, whole):
        chosen = whole.plan.reported
        test = tuple(whole.category.test[k] for k in chosen)
        part = replace(whole.category, test=test)
        options = replace(whole._options, validation="same-as-test")
        super().__init__(part, options, whole._progress, whole._antialias)
        self._whole, self._chosen = whole, chosen

    def images(self, split, size):
        images = self._whole.images(split, size)
        return images[self._chosen] if split == "test" else images


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
            analysis.save_images(pieces.folder.parents[2], reported, setup, options)
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


def cell_folder(out, category, recipe):
    """OUT/<dataset>/<category>/<arch>/<setup>/seed<k>, None without OUT.

    Parameters: out; category, of which dataset and name count; recipe, a Recipe.
    """
    if out is None:
        return None
    parts = category.dataset, category.name, recipe.arch, recipe.setup.name
    return Path(out, *parts, f"seed{recipe.seed}")


def cell_identity(recipe, images, options):
    """What decides the metrics of a cell, as JSON values: written into metrics.json, and
    compared before an unfinished run is resumed."""
    setup = recipe.setup
    return {
        "image_size": list(setup.image_size),
        "tile_size": list(setup.tile_size),
        "stride": list(setup.stride),
        **recipe.values(),
        "metric_size": options.metric_size,
        "validation": options.validation,
        "percentile": options.percentile,
        "weights": options.weights,
        "weights_digest": options.weights_digest,
        "images_digest": images.digest,
        "ensemble_format": FORMAT_VERSION,
        "device_type": options.device.type,
        "torch": torch.__version__,
    }


def finished_result(folder, identity, options, digest):
    """What a finished cell has left.

    Returns its metrics.json as a dict if it has this identity, else None.
    Parameters: folder of the cell; identity, see cell_identity; options; digest of the images
    that the metrics are of.
    Raises InputError for a file that is no result.
    """
    path = folder / "metrics.json"
    if not path.is_file():
        return None
    result = read_result(path)
    if any(result.get(key) != value for key, value in json.loads(json.dumps(identity)).items()):
        return None
    if options.save and not (folder / "ensemble").is_dir():
        return None
    if options.report and not analysis.is_complete(folder, digest):
        return None
    return result


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


def save_result(result, out, table=True):
    """Write metrics.json of a cell and bring results.csv up to date; returns the JSON's path.

    Without table results.csv is left to the rank that writes it.
    """
    parts = [str(result[key]) for key in ("dataset", "category", "arch", "setup")]
    path = Path(out).joinpath(*parts, f"seed{result['seed']}", "metrics.json")
    with atomic_write(path) as file:
        json.dump(result, file, indent=2)
        file.write("\n")
    if table:
        write_results_csv(out)
    return path


def gather_results(cells, options):
    """The results of cells that any rank computed; writes results.csv.

    Parameters: cells, pairs (category, recipe), see cell_folder; options. Returns a list of dicts.
    """
    write_results_csv(options.out)
    return [read_result(cell_folder(options.out, *cell) / "metrics.json") for cell in cells]


def read_result(path):
    """A metrics.json as a dict. Raises InputError unless it is one of this program."""
    try:
        result = json.loads(path.read_text("utf-8"))
        missing = [column for column in RESULT_COLUMNS if column not in result]
        if missing:
            raise ValueError(f"it lacks {missing[0]}")
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path} is not a result of this program ({error}), so results.csv was not "
            "brought up to date; remove the file or choose another --out"
        ) from error
    return result


def write_results_csv(out):
    """OUT/results.csv: one row for every metrics.json below OUT, sorted by path."""
    paths = sorted(Path(out).glob("*/*/*/*/seed*/metrics.json"))
    rows = [{column: read_result(path)[column] for column in RESULT_COLUMNS} for path in paths]
    with atomic_write(Path(out) / "results.csv") as file:
        writer = csv.DictWriter(file, RESULT_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def versions():
    """Versions of everything a result may depend on."""
    return {
        "tiled_ref": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
    }


def device_name(device):
    """Such as "cpu" or "cuda:0 NVIDIA H200"."""
    device = torch.device(device)
    if device.type != "cuda":
        return str(device)
    return f"{device} {torch.cuda.get_device_name(device)}"


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


def _text(size):
    return f"{size[0]}x{size[1]}"
