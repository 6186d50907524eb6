"""One model per tile location, one alive at a time (Sec. 3.2, Eq. 3-4), and their merging.

    Eq. 3   M = {M_ij | M_ij trained on T_ij}      each_location, first half of the loop
    Eq. 4   A_ij, s_ij = M_ij(T_ij^test)           each_location, second half
    Sec. 3.3 and Eq. 5                             merge

SM and ST setups are ensembles with a single location, so that every setup takes the same
code path; an ST model gets the tiles of an image as a batch.
"""

import collections.abc
from dataclasses import replace

import numpy as np
import torch

from . import merging, smoothing
from .archive import ensembles
from .archive.manifest import read_manifest
from .data.inputs import as_images, as_samples
from .data.reading import allocate, forget_pages
from .data.tiles import LocationImages, OneAfterTheOther
from .models.backbone import ResNet18Features
from .models.weights import find_weights
from .setups import Recipe
from .support.devices import full_precision, to_host
from .support.errors import InputError
from .support.progress import Progress
from .verdicts import thresholds
from .verdicts.marks import locations_seen

TILE_BUDGET = 512 << 20  # bytes of tile maps in memory
UNTILE = {"mean": merging.untile_average, "window": merging.untile_window}


def each_location(
    recipe, network, device, train, test, states, *, locations=None, model=None, progress=None
):
    """Train one model per location and predict with it, one location after the other.

    Parameters
    ----------
    recipe : Recipe
    network : callable
        The backbone, see `Recipe.network`.
    device : torch.device
    train : uint8 (N, 3, H, W), or None where all states are known
        Normal images, resized, in host memory.
    test : uint8 (M, 3, H, W)
        Images to predict, resized, in host memory; M can be 0.
    states : mutable mapping, location -> state
        A location in it is loaded; any other is trained and its state stored in it. The mapping
        can keep, write or drop the state, which is not read again.
    locations : iterable of (int, int), optional
        Some of `recipe.setup.models`, all by default.
    model : optional
        From recipe.model(...), to load the known states into; saves making one.
    progress : Progress, optional

    Yields
    ------
    (place, rows, maps, scores) per batch: place a location of `recipe.grid`, one of those of the
    model (`Setup.inputs`); rows a slice of range(M), maps float32 (B, h, w) and scores float32
    (B,) on the host, B the length of rows.
    """
    progress = progress or Progress(quiet=True)
    setup, order, places = recipe.setup, list(recipe.setup.models), recipe.grid.locations()

    def inputs(images):
        """{place: the images as the model of the location sees them there}"""
        return {place: LocationImages(images, setup.input_grid, tiles, device)
                for place, tiles in setup.inputs(location).items()}  # fmt: skip

    for location in order if locations is None else locations:
        kind = "tile" if len(order) == len(places) else "group"
        where = f" {kind} {order.index(location) + 1}/{len(order)}" if len(places) > 1 else ""
        if location in states:
            model = model or recipe.model(network, device)
            model.load_state(states[location])
        else:
            model = None  # free the last one before making the next
            model = recipe.model(network, device)
            tiles = OneAfterTheOther(list(inputs(train).values()))
            with full_precision():
                model.fit(tiles, progress.stage(f"fit{where}", "fit"))  # Eq. 3
            states[location] = model.state()
        for place, tiles in inputs(test).items():
            where = f" tile {places.index(place) + 1}/{len(places)}" if len(places) > 1 else ""
            stage = progress.stage(f"predict{where}", "predict")
            for rows in slices(len(test), recipe.batch_size):
                with full_precision():
                    maps, scores = model.predict(tiles[rows])  # Eq. 4
                yield place, rows, *to_host(maps, scores)
                stage(rows.stop, len(test))


def slices(n, step):
    """range(n) in slices of step."""
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


class Forgotten(collections.abc.MutableMapping):
    """A mapping of states that keeps none of them."""

    def __setitem__(self, location, state):
        pass

    def __getitem__(self, location):
        raise KeyError(location)

    __delitem__ = __getitem__

    def __iter__(self):
        return iter(())

    def __len__(self):
        return 0


def collect(predictions, grid, n):
    """The predictions that `each_location` yields for n images, in any order, as two arrays.

    Returns tile maps float32 (rows, cols, n, h, w), above TILE_BUDGET in a temporary file, and
    tile scores float32 (rows, cols, n).
    """
    tile_maps = allocate((grid.rows, grid.cols, n, *grid.tile_size), TILE_BUDGET, np.float32)
    tile_scores = np.empty((grid.rows, grid.cols, n), np.float32)
    for location, rows, maps, scores in predictions:
        tile_maps[location][rows], tile_scores[location][rows] = maps, scores
        forget_pages(tile_maps)
    return tile_maps, tile_scores


def merge(maps, scores, recipe, impl="cython", threads=None, roi=None):
    """Merge tile predictions into image predictions (Sec. 3.3): untile, smooth seams, Eq. 5.

    Parameters: maps (rows, cols, N, h, w), scores (rows, cols, N); recipe, for its merge, score,
    seam_width and seam_sigma; impl and threads, see `merging`; roi bool (h, w), a region of
    interest: locations that see none of it are left out of the scores.
    Returns maps (N, H, W) and scores (N,).
    """
    if roi is not None:
        scores = scores[locations_seen(recipe.grid, roi)][None]
    merged = UNTILE[recipe.merge](maps, recipe.grid, impl=impl, threads=threads)
    merged = smoothing.smooth_seams(
        merged, recipe.grid, recipe.seam_width, recipe.seam_sigma, impl, threads
    )
    return merged, merging.image_scores(scores, recipe.score)


class TiledEnsemble:
    """A set of models, one per tile location (Eq. 3), and the merging of their predictions.

    Parameters
    ----------
    setup : Recipe, Setup or str
        A complete recipe, or a setup or its name.
    arch, options
        The other fields of the recipe, or changes to it; see `setups.Recipe`.
    backbone : ResNet18Features, optional
        Frozen and therefore shared by all locations. By default built from `weights`.
    weights : str
        Where the backbone's weights come from, see `weights.find_weights`; or, with a backbone,
        what it was built from: "imagenet", "random" or None for anything else.
    device : torch.device or str

    Attributes
    ----------
    recipe : Recipe
    states : mapping
        Location -> state of its model, on the host.
    thresholds : dict or None
        The result of `calibrate`, see `thresholds.find_thresholds`.
    roi : bool (h, w) or None
        The region of interest, at the size of the original images.

    Raises
    ------
    InputError
        As for Recipe, and for weights that cannot be found.

    Examples
    --------
    Images are arrays, tensors or paths (`data.inputs.as_samples`), here noise; random
    weights spare this example the download.

    >>> import tempfile
    >>> from tiled_ref.setups import SETUPS
    >>> rng = np.random.default_rng(0)
    >>> normal = rng.integers(0, 100, (6, 64, 64, 3), dtype=np.uint8)
    >>> ensemble = TiledEnsemble(SETUPS["ENS4"].with_sizes((64, 64), (32, 32)), weights="random")
    >>> _ = ensemble.fit(normal[:4])
    >>> _ = ensemble.calibrate(normal[4:])
    >>> maps, scores = ensemble.predict(255 - normal[:2])
    >>> maps.shape, scores.shape
    ((2, 64, 64), (2,))
    >>> ensemble.verdicts(scores).tolist()
    [True, True]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ensemble.save(f"{folder}/parts")
    ...     again = TiledEnsemble.load(f"{folder}/parts")
    ...     bool((again.predict(255 - normal[:2])[0] == maps).all())
    True
    """

    def __init__(
        self, setup, arch=None, *, backbone=None, weights="auto", device="cpu", **options
    ):
        options |= {"arch": arch} if arch else {}
        is_recipe = isinstance(setup, Recipe)
        self.recipe = replace(setup, **options) if is_recipe else Recipe(setup, **options)
        if backbone is None:
            found = find_weights(weights)
            backbone, weights = ResNet18Features(found.state_dict), found.kind
        self.device = torch.device(device)
        self.backbone = backbone.to(self.device)
        self.network = self.recipe.network(self.backbone, self.device)
        self.weights = weights if weights in ("imagenet", "random") else None
        self.states = {}
        self.thresholds = self.roi = None

    @property
    def setup(self):
        """The recipe's Setup."""
        return self.recipe.setup

    @property
    def grid(self):
        """TileGrid of the models' locations."""
        return self.recipe.grid

    @property
    def n_parameters(self):
        """Parameters of all models as Table 3 counts them: the backbone once per model."""
        return self.make_model().n_parameters * self.setup.n_models

    def n_stored_parameters(self, n_images):
        """Numbers actually stored: the backbone's once, and for each location all that its model
        learns from n_images, statistics included."""
        backbone = sum(p.numel() for p in self.backbone.parameters())
        model, setup = self.make_model(), self.setup
        return backbone + sum(
            model.n_learnt(n_images * len(setup.inputs(place))) for place in setup.models
        )

    def make_model(self, **overrides):
        """A new model for any location, see `Recipe.model`."""
        return self.recipe.model(self.network, self.device, **overrides)

    def each_location(self, train, test, states=None, **how):
        """`each_location` with the ensemble's recipe, network, device and, by default, states."""
        states = self.states if states is None else states
        return each_location(
            self.recipe, self.network, self.device, train, test, states, **how
        )

    def as_images(self, images):
        """Images as the models see them, uint8 (N, 3, H, W); images, see `data.inputs`."""
        return as_images(images, self.setup.image_size, antialias=self.recipe.antialias)

    def fit(self, images, progress=None):
        """Train one model per location on normal images and keep what it learnt.

        Parameters: images, see `data.inputs.as_samples`, of any size; progress, a Progress.
        Returns self.
        Raises InputError for invalid images, or too few for the architecture.
        """
        images = self.as_images(images)
        self.states, self.thresholds = {}, None
        for _ in self.each_location(images, images[:0], progress=progress):
            pass  # there are no images to predict
        return self

    def predict(self, images, impl="cython", progress=None, threads=None):
        """Merged anomaly maps and image scores, from one trained model after the other.

        Parameters: images and progress as in `fit`; impl and threads, see `merging`. All images
        are in memory at once; `predict.predictions` takes any number.
        Returns merged, seam-smoothed maps float32 (N, H, W) and scores float32 (N,), raw.
        Raises InputError before `fit`.
        """
        self.check_trained()
        images = self.as_images(images)
        found = self.each_location(None, images, progress=progress)
        found = collect(found, self.grid, len(images))
        return merge(*found, self.recipe, impl, threads, self.roi)

    def check_trained(self):
        """Raise InputError unless every location has a state."""
        if len(self.states) < self.setup.n_models:
            raise InputError("the ensemble has not been trained; call fit before predict")

    def calibrate(self, images, labels=None, masks=None, **rules):
        """Set the thresholds on images that were not used for training.

        Parameters
        ----------
        images : see `data.inputs.as_samples`
        labels : (N,) integers or bool, optional
            Anything but 0 is anomalous; None means that all are normal.
        masks : (N, H, W) bool or uint8, optional
            Ground truth at the setup's image size, for the pixel threshold.
        rules
            percentile, false_alarms, min_area and roi, see `thresholds.Rules`.

        Returns self; `thresholds` holds the result, see `thresholds.find_thresholds`.
        Raises InputError as predict does, and for labels or masks of the wrong number or size.
        """
        rules, samples = thresholds.Rules(**rules), as_samples(images)
        self.roi = rules.roi
        maps, scores = self.predict(samples)
        labels = np.zeros(len(scores), np.uint8) if labels is None else np.asarray(labels)
        if labels.shape != scores.shape:
            raise InputError(f"there are {len(scores)} images and labels of shape {labels.shape}")
        if masks is not None and np.shape(masks) != maps.shape:
            raise InputError(
                f"the masks have the shape {np.shape(masks)}, the maps {maps.shape}; resize them"
            )
        self.thresholds = thresholds.thresholds_of(
            "given", maps, scores, (labels != 0).astype(int), np.arange(len(scores)),
            masks, rules, lambda k: samples[k].read_size(),
        )  # fmt: skip
        return self

    def verdicts(self, scores):
        """Which images are anomalous.

        Parameters: scores (N,), raw, as `predict` returns them.
        Returns bool (N,), True at or above the threshold.
        Raises InputError before `calibrate`.
        """
        if self.thresholds is None:
            raise InputError("the ensemble has no thresholds yet; call calibrate first")
        return np.asarray(scores) >= self.thresholds["image"]["threshold"]

    def save(self, folder):
        """Write the fitted ensemble to a folder; see `ensembles.save_ensemble`."""
        ensembles.save_ensemble(folder, self)

    @classmethod
    def load(
        cls, folder, *, backbone=None, weights=None, device="cpu", batch_size=None,
        precision=None, allow_version_change=False, progress=None, say=None,
    ):  # fmt: skip
        """Load an ensemble written by `save` or by a run with --save; executes nothing from it.

        Parameters: folder; backbone, the ResNet18Features that it was trained with, by default
        built from weights (`weights.find_weights`, by default those that it was trained with,
        say as there); device; batch_size and precision, by default those of the training;
        allow_version_change, load it even if another version of torch trained it; progress,
        called as progress(done, total) while files are compared with their digests.
        Returns TiledEnsemble, its states checked; those above 2 GiB stay in their files.
        Raises InputError for a missing, damaged, incomplete, changed or newer ensemble, a
        different backbone, or a different version of torch.
        """
        manifest = read_manifest(folder)
        ensembles.check_versions(manifest, allow_version_change)
        if backbone is None and weights is None and manifest.weights is None:
            raise InputError(
                "the ensemble was trained with a custom backbone; pass it as backbone="
            )
        recipe = replace(
            manifest.recipe,
            batch_size=batch_size or manifest.recipe.batch_size,
            precision=precision or manifest.recipe.precision,
        )
        weights = weights or manifest.weights
        if backbone is None:
            backbone = ResNet18Features(find_weights(weights, say=say).state_dict)
        ensemble = cls(recipe, backbone=backbone, weights=manifest.weights, device=device)
        try:
            model = ensemble.make_model()
        except (TypeError, InputError) as error:  # an unknown switch or value
            raise InputError(f"the ensemble's manifest is invalid: {error}") from error
        ensembles.check_backbone(manifest, ensemble.backbone)
        ensemble.states = ensembles.load_states(manifest, model, progress)
        ensemble.thresholds, ensemble.roi = manifest.thresholds, manifest.roi
        return ensemble
