"""A run: load, train, predict, merge, smooth, score, save.

The walk of the data, for 512/256/128 (ENS9), N training and M test images:

    Category                      samples, sorted
    read_images                   (N, 3, 512, 512) uint8, decoded and resized once per run
    LocationImages                (B, 3, 256, 256) float32, one location at a time
    Model.fit, Model.predict      (M, 256, 256) maps and (M,) scores per location, into CellStore
    untile_average                (M, 512, 512)        mean_scores  (M,)
    smooth_seams                  (M, 512, 512), a few images at a time
    auroc, pixel_metrics          metrics.json, a row of results.csv
"""

import csv
import hashlib
import json
import platform
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torchvision

from . import __version__, analysis, features, metrics, validation
from .data import images as image_data
from .distributed import Alone
from .engine import MODES, Residents, make_plan
from .ensemble import MERGE_BUDGET, TiledEnsemble, merge_rows
from .errors import InputError
from .files import atomic_write
from .memory import PeakMemory
from .models.maps import upsample_bilinear
from .progress import Progress
from .saved import FORMAT_VERSION, write_manifest
from .store import CellStore, maps_name, remove_pieces

METRIC_SIZES = ("setup", "original")
IMAGE_BUDGET = 4 << 30  # bytes of decoded images kept in memory, beyond that in a file
WRITE_SECONDS = 5.0  # of training, from which on a model is written before it predicts
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
    """What all cells of a run have in common.

    Parameters
    ----------
    out : Path or None
        Folder of the results; None writes nothing.
    device : torch.device
    weights, weights_digest : str
        What the backbone was made of, "imagenet" or "random", and the digest of its tensors
        (weights.tensors_digest), copied into every result.
    batch_size : int or None
        Images per batch; the architecture's own if None.
    antialias : bool
        Filter before shrinking images (off in the paper).
    score : {"mean", "max"}
        How tile scores become an image score (Eq. 5; "max" is the switch).
    seam_width, seam_sigma : float
        Fraction of the tile's side; pixels.
    metric_size : {"setup", "original"}
        Pixel metrics at the setup's image size (paper) or at each image's own (MVTec protocol;
        deviation D6).
    impl, threads
        See `merging.untile_average`.
    switches : dict
        Architecture name -> keyword arguments of its model.
    resume : bool or store.WHERE_SAME
        Go on with unfinished cells, and take finished ones as they are.
    save : bool
        Keep the trained ensemble in the cell's folder.
    report : bool
        Keep what a report needs: analysis.npz of the cell and images.npz of its category.
    validation : {"same-as-test", "split", "none"}
        Which images decide the thresholds; see `validation.plan`.
    percentile : float
        Of the scores of normal images, the threshold where there is no defective one.
    memory : "low", "resident" or int
        How many locations are on the device at a time, or a cap in bytes; see `engine`.
    precision, compile
        See TiledEnsemble.
    share_features : int
        Bytes on the disk for layers of the backbone that cells of a grid share, at most half of
        what is free there; 0 shares none. See `grid.run`.
    ranks : distributed.Alone or distributed.Ranks
        The processes that share the run.
    """

    out: Path = None
    device: torch.device = torch.device("cpu")
    weights: str = "imagenet"
    weights_digest: str = None
    batch_size: int = None
    antialias: bool = False
    score: str = "mean"
    seam_width: float = 0.1
    seam_sigma: float = 2.0
    metric_size: str = "setup"
    impl: str = "cython"
    threads: int = None
    switches: dict = field(default_factory=dict)
    resume: bool = False
    save: bool = False
    report: bool = False
    validation: str = "same-as-test"
    percentile: float = 100.0
    memory: object = "low"
    precision: str = "float32"
    compile: bool = False
    share_features: int = features.BUDGET
    ranks: Alone = field(default_factory=Alone, compare=False)


class CategoryImages:
    """The images and masks of one category, decoded once and kept at every size asked for.

    Parameters: category, a data.Category; options; progress.

    Attributes
    ----------
    plan : validation.Plan
        Which images decide the thresholds; options.validation chooses.
    category : data.Category
        What is trained on and predicted: that of the plan.
    memo : features.FeatureMemo or None
        Where the cells find layers of the backbone that another cell has computed.
    """

    def __init__(self, category, options, progress):
        self.plan = validation.plan(category, options.validation)
        self.category = self.plan.category
        self.memo = None
        self._options = options
        self._progress = progress
        self._expected = ()
        self._images = {}
        self._masks = {}
        self._packed = {}  # number of a test image -> bits and shape of its mask

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
                antialias=self._options.antialias,
                budget=_within(IMAGE_BUDGET, self._options),
                progress=self._progress.stage(f"{self.category.name}: decode {split} at {text}"),
            )
            self._images |= {(split, s): images for s, images in zip(sizes, arrays)}
        return self._images[split, size]

    def masks(self, size):
        """The masks bool (H, W) of the test images in their order, to be looped over.

        An array (N, H, W) within MASK_BUDGET; beyond it every loop reads them anew.
        """
        test = self.category.test
        if len(test) * size[0] * size[1] > _within(MASK_BUDGET, self._options):
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
        super().__init__(part, replace(whole._options, validation="same-as-test"), whole._progress)
        self._whole, self._chosen = whole, chosen

    def images(self, split, size):
        images = self._whole.images(split, size)
        return images[self._chosen] if split == "test" else images


def run_cell(setup, arch, images, seed, backbone, options, progress=None):
    """Train and test one architecture in one setup on one category with one seed.

    Parameters
    ----------
    setup : Setup
    arch : str
    images : CategoryImages
    seed : int
    backbone : ResNet18Features
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
    category = images.category
    title = f"{category.name} {arch} {setup.name} seed {seed}"
    ensemble = make_ensemble(setup, arch, seed, backbone, options)
    identity = cell_identity(ensemble, images, options)
    folder = cell_folder(options.out, category, arch, setup, seed)
    cell = options.ranks.cell(f"{category.dataset} {title}", identity)
    with cell.shared_fate():
        return _run_share(cell, ensemble, images, identity, folder, options, progress, title)


def _run_share(cell, ensemble, images, identity, folder, options, progress, title):
    """What run_cell returns: this process's share in a cell, a WholeCell or SharedCell."""
    category, setup = images.category, ensemble.setup
    if not cell.opens and cell.is_finished:
        return None
    if options.resume and cell.opens and folder is not None:
        finished = _take_finished(folder, identity, images, options, progress, title)
        if finished is not None:
            cell.opened(finished=True)
            return finished
    clock = _Clock()
    peak = PeakMemory(options.device)
    if category.has_masks:  # a bad mask is found now, not after the training
        images.masks(setup.image_size)
    with CellStore(folder, identity, options.resume, progress.note, not cell.opens) as store:
        cell.opened()
        show = cell.watch(location_progress(progress, title, ensemble.grid))
        plan = plan_cell(ensemble, images, options, progress, title)
        if images.memo is not None:
            ensemble.network = images.memo.wrap(ensemble.network)
        for group in cell.take(plan.groups(ensemble.grid.locations()), peak):
            train = images.images("train", setup.image_size)
            test = images.images("test", setup.image_size)
            run_locations(ensemble, group, train, test, store, plan, options, show)
        if not cell.finishes:
            return None  # the rank that completes the last location goes on

        with clock("merge"):
            maps = store.new_maps("merged", (len(category.test), *setup.image_size))
            scores = _merge(ensemble.grid, store, maps, options, progress.stage(f"{title}: merge"))
        with clock("score"):
            maps, scores, scored = _score(ensemble, images, maps, scores, options, progress, title)
        result = {
            "dataset": category.dataset,
            "category": category.name,
            **_counts(ensemble, len(category.train), len(scores)),
            **scored,
            **_costs(store, ensemble.grid.locations(), clock),
            **cell.peak(peak),
            **identity,
            "thresholds": ensemble.thresholds,
            **_circumstances(options),
        }
        if folder is not None:
            _keep(result, ensemble, store, maps, scores, images, options, progress, title)
        store.finish()
    return result


def _counts(ensemble, n_train, n_test):
    """The part of a result about the ensemble: names and numbers."""
    return {
        "arch": ensemble.arch,
        "setup": ensemble.setup.name,
        "seed": ensemble.seed,
        "n_parameters": ensemble.n_parameters,
        "n_stored_parameters": ensemble.n_stored_parameters(n_train),
        "n_models": ensemble.setup.n_models,
        "n_train": n_train,
        "n_test": n_test,
    }


def _costs(store, locations, clock):
    """The part of a result about time; features_reused, 0 to 1, is what made it shorter."""
    seconds_train, seconds_predict = store.seconds(locations)
    return {
        "seconds_train": seconds_train,
        "seconds_test": seconds_predict + clock["merge"],
        "seconds_score": clock["score"],
        "features_reused": store.reused(locations),
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


def make_ensemble(setup, arch, seed, backbone, options):
    """The TiledEnsemble of a cell, untrained. Parameters: see run_cell."""
    return TiledEnsemble(
        setup,
        arch,
        backbone=backbone,
        seed=seed,
        device=options.device,
        batch_size=options.batch_size,
        switches=options.switches.get(arch),
        weights=options.weights,
        antialias=options.antialias,
        score=options.score,
        seam_width=options.seam_width,
        seam_sigma=options.seam_sigma,
        precision=options.precision,
        compile=options.compile,
    )


def _take_finished(folder, identity, images, options, progress, title):
    """The result of a cell that was finished with the same options, else None; both is said."""
    finished = finished_result(folder, identity, options, images.reported.digest)
    if finished is not None:
        progress.note(f"{title}: finished before, taken from {folder / 'metrics.json'}")
        remove_pieces(folder)
        if options.ranks.is_main:
            write_results_csv(options.out)
    elif (folder / "metrics.json").is_file():
        progress.note(f"{title}: finished before with other options, so it is computed again")
    return finished


def _score(ensemble, images, maps, scores, options, progress, title):
    """Thresholds, kept in the ensemble, and metrics.

    Returns maps and scores of the images that metrics are reported of, and the dict of
    score_predictions.
    """
    category, setup = images.category, ensemble.setup
    stage = progress.stage(f"{title}: score")
    ensemble.thresholds = validation.find_thresholds(
        images.plan, maps, scores, percentile=options.percentile,
        masks=(lambda: images.masks(setup.image_size)) if category.has_masks else None,
    )  # fmt: skip
    if images.reported is not images:
        maps, scores = Rows(maps, images.plan.reported), scores[images.plan.reported]
    result = score_predictions(maps, scores, images.reported, setup, options, progress)
    stage(len(category.test), len(category.test))
    progress.note(f"{title}: {validation.describe(ensemble.thresholds)}")
    return maps, scores, result


def _keep(result, ensemble, store, maps, scores, images, options, progress, title):
    """Write what outlives a cell: the ensemble, what a report needs, and last the result."""
    setup, category = ensemble.setup, images.category
    if options.save:
        if not store.published:
            write_manifest(
                store.ensemble_folder, ensemble, category=category.name, versions=versions()
            )
        store.publish_ensemble()
    if options.report:
        stage = progress.stage(f"{title}: analyse")
        reported = images.reported
        with options.ranks.one_at_a_time(f"images {category.dataset} {category.name}"):
            analysis.save_images(store.folder.parents[2], reported, setup, options)
        analysis.save_analysis(
            store.folder, maps, scores, reported, setup, options, ensemble.thresholds
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


def _within(budget, options):
    """A budget of bytes on the host, smaller where a cap on the memory of a CPU leaves less."""
    if options.memory in MODES or options.device.type != "cpu":
        return budget
    return min(budget, options.memory // 8)


def plan_cell(ensemble, images, options, progress, title):
    """The engine.Plan of a cell; one with a cap is told to the user.

    Parameters: ensemble; images, a CategoryImages; options; progress; title, of the cell.
    """
    if options.memory in MODES:
        return make_plan(ensemble, options.memory)
    train = images.images("train", ensemble.setup.image_size)
    test = images.images("test", ensemble.setup.image_size)
    plan = make_plan(ensemble, options.memory, train, len(test))
    progress.note(f"{title}: {plan.describe()}")
    return plan


def run_locations(ensemble, group, train, test, store, plan, options, show=None):
    """Train and test the models of some locations, as far as `store` does not hold them yet.

    Parameters: ensemble; group, a list of locations (i, j) that are on the device together;
    train and test uint8 (N, 3, H, W); store, a CellStore; plan, an engine.Plan; options; show
    as `progress` of TiledEnsemble.fit.

    A model that took less than WRITE_SECONDS to train and predicts at once is written only for
    --save: to train it again after a crash costs no more than to write it would.
    """

    def is_done(location):
        kept = store.published or store.has_model(location) or not options.save
        return store.has_prediction(location) and kept

    group = [location for location in group if not is_done(location)]
    if not group:
        return
    clock = _Clock()
    before = _layers(ensemble)
    models = []
    for location in group:
        model = ensemble.make_model(**plan.fit_overrides)
        if store.has_model(location):
            model.load_state(store.load_model(location))
        else:
            with clock("train", options.device):
                ensemble.fit_location(train, location, show, model)
            seconds = clock.pop("train")
            written = options.save or len(group) > 1 or seconds >= WRITE_SECONDS
            store.save_model(location, model.state() if written else None, seconds)
        models.append(model)
    maps = [
        store.new_maps(maps_name(location), (len(test), *ensemble.grid.tile_size))
        for location in group
    ]
    scores = np.empty((len(group), len(test)), np.float32)
    with clock("test", options.device):
        if len(group) == 1:
            ensemble.predict_location(
                models[0], test, group[0], maps[0], scores[0], show, plan.batch
            )
        else:
            predict_together(ensemble, group, models, test, maps, scores, plan, show)
    layers = (_layers(ensemble) - before) / len(group)
    for k, location in enumerate(group):
        store.save_prediction(location, maps[k], scores[k], clock["test"] / len(group), layers)
        if not options.save:
            store.drop_model(location)


def _layers(ensemble):
    """float64 (2,): images whose layers were asked for and those reused so far, zero unless the
    ensemble shares them."""
    network = ensemble.network
    return np.array([getattr(network, "asked", 0), getattr(network, "reused", 0)], np.float64)


def predict_together(ensemble, group, models, test, maps, scores, plan, show=None):
    """Fill maps, a list of (N, h, w), and scores (L, N) of locations that are on the device.

    Parameters: as of run_locations; models, trained, one per location of the group.
    """
    residents = Residents(ensemble, group, models=models)
    place = {location: k for k, location in enumerate(group)}
    for location, rows, *prediction in residents.predict(test, plan.batch):
        maps[place[location]][rows], scores[place[location], rows] = prediction
        if show:
            show(location, "predict", rows.stop, len(test))


def _merge(grid, store, out, options, progress):
    """Fill out (N, H, W) with the merged maps of all locations; returns the scores (N,)."""
    maps, scores = zip(*(store.prediction(location) for location in grid.locations()))
    scores = np.stack(scores).reshape(grid.rows, grid.cols, -1)
    return merge_rows(
        maps, scores, grid, out,
        score=options.score, width=options.seam_width, sigma=options.seam_sigma,
        impl=options.impl, threads=options.threads, progress=progress,
        budget=_within(MERGE_BUDGET, options),
    )  # fmt: skip


def cell_folder(out, category, arch, setup, seed):
    """OUT/<dataset>/<category>/<arch>/<setup>/seed<k>, None without OUT."""
    if out is None:
        return None
    return Path(out, category.dataset, category.name, arch, setup.name, f"seed{seed}")


def cell_identity(ensemble, images, options):
    """What decides the metrics of a cell, as JSON values: written into metrics.json, and
    compared before an unfinished run is resumed."""
    setup = ensemble.setup
    return {
        "image_size": list(setup.image_size),
        "tile_size": list(setup.tile_size),
        "stride": list(setup.stride),
        "batch_size": ensemble.batch_size,
        "antialias": options.antialias,
        "score": options.score,
        "seam_width": options.seam_width,
        "seam_sigma": options.seam_sigma,
        "metric_size": options.metric_size,
        "validation": options.validation,
        "percentile": options.percentile,
        "precision": ensemble.precision,
        "compile": ensemble.compile,
        "switches": ensemble.switches,
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

    Parameters: cells, tuples (category, arch, setup, seed); options. Returns a list of dicts.
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
    """Adds up wall-clock seconds by name."""

    def __init__(self):
        self._seconds = {}

    def __getitem__(self, name):
        return self._seconds[name]

    def pop(self, name):
        """The seconds of a name, which then start anew."""
        return self._seconds.pop(name)

    @contextmanager
    def __call__(self, name, device=None):
        start = time.perf_counter()
        yield
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start


def location_progress(progress, title, grid):
    """The progress(location, name, done, total) that TiledEnsemble calls: a stage a location.

    Parameters: progress, a Progress; title, text before the stage's name; grid, TileGrid of
    the locations. Returns the callable.
    """
    stages = {}
    n = grid.rows * grid.cols

    def show(location, name, done, total):
        if (location, name) not in stages:
            number = location[0] * grid.cols + location[1] + 1
            of = f" tile {number}/{n}" if n > 1 else ""
            stages[location, name] = progress.stage(f"{title}: {name}{of}")
        stages[location, name](done, total)

    return show


def _enlarged(image_map, size):
    if image_map.shape == size:
        return image_map
    return upsample_bilinear(torch.from_numpy(image_map)[None], size)[0].numpy()


def _text(size):
    return f"{size[0]}x{size[1]}"
