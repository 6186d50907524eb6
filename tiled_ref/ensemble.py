"""One model per tile location, one alive at a time (Sec. 3.2, Eq. 3-4).

    Eq. 3   M = {M_ij | M_ij trained on T_ij}      TiledEnsemble.fit_location
    Eq. 4   A_ij, s_ij = M_ij(T_ij^test)           TiledEnsemble.predict_location

SM and ST setups are ensembles with a single location, so that every setup takes the same
path; an ST model gets the tiles of an image as a batch and puts its features together with
`FeatureUntiler`.
"""

import numpy as np
import torch

from . import merging, saved, smoothing, validation
from .backbone import ResNet18Features
from .data.images import forget_pages, normalize
from .data.inputs import as_images
from .errors import InputError
from .models import MODELS
from .precision import Compiled, MixedPrecision, check_precision
from .setups import SETUPS
from .weights import find_weights

MERGE_BUDGET = 256 << 20  # bytes of tile maps in memory while they are merged
COMBINE = {"mean": merging.mean_scores, "max": merging.max_scores}
KEPT = ("seed", "switches", "antialias", "score", "seam_width", "seam_sigma")  # by save and load


class LocationImages:
    """What the models see: the tiles of one location, cut, normalised and padded on demand.

    Parameters
    ----------
    images : uint8 (N, 3, H, W), NumPy array, memory map or CPU tensor
        Resized images in host memory.
    grid : TileGrid
        The grid of the input, for SM one tile.
    locations : list of (int, int)
        The locations whose tiles make a batch: one for SM and ENS, all for ST.
    device : torch.device

    `len(self)` is N; `self[indices]`, for a list of ints, is float32 (T * B, 3, h, w) on the
    device, tile-major, T the number of locations. The zero padding of tiles that stick out
    of the image is applied after normalisation.
    """

    def __init__(self, images, grid, locations, device):
        grid.check_image(images)
        self.images = images
        self.grid = grid
        self.locations = locations
        self.device = device

    def __len__(self):
        return len(self.images)

    def __getitem__(self, indices):
        tiles = []
        for location in self.locations:
            rows, cols = self.grid.window(*location)
            part = torch.as_tensor(self.images[:, :, rows, cols][indices])
            tiles.append(self.grid.pad_tile(normalize(part.to(self.device))))
        forget_pages(self.images)
        return torch.cat(tiles) if len(tiles) > 1 else tiles[0]  # (T * B, 3, h, w)


class FeatureUntiler:
    """Puts the feature maps of an image's tiles together (the ST setups, Rolih et al. Sec. 4.2).

    Parameters: grid of the input tiles.
    Called with features (T * B, C, h/factor, w/factor), tile-major, and factor, the pixels
    per position; returns (B, C, H/factor, W/factor), overlaps averaged. Differentiable.
    """

    def __init__(self, grid):
        self.grid = grid
        self.n_tiles = grid.rows * grid.cols
        self.tile_size = grid.tile_size

    def __call__(self, features, factor):
        grid = self.grid.scaled(factor)
        shape = grid.rows, grid.cols, features.shape[0] // self.n_tiles, *features.shape[1:]
        return grid.untile(features.reshape(shape))


class TiledEnsemble:
    """A set of models, one per tile location (Eq. 3), and the merging of what they say.

    Parameters
    ----------
    setup : Setup or str
        Or the name of one in `tiled_ref.setups.SETUPS`.
    arch : str
        A key of `tiled_ref.models.MODELS`.
    backbone : ResNet18Features, optional
        Frozen and therefore shared by all locations. By default made of `weights`.
    weights : str
        Where the backbone's weights come from, see `weights.find_weights`; or, with a backbone,
        what it was made of, "imagenet", "random" or None for something else.
    seed : int
        Set anew before every model, so all locations share channel choices and initial weights.
    device : torch.device or str
    batch_size : int, optional
        Images per batch; the architecture's own by default.
    switches : dict, optional
        Keyword arguments of the architecture.
    antialias : bool
        Filter before shrinking images.
    score : {"mean", "max"}
        How tile scores become an image score (Eq. 5; "max" is the switch).
    seam_width, seam_sigma : float
        See `smoothing.smooth_seams`.
    precision : {"float32", "bfloat16", "float16"}
        Of the networks, see `precision`.
    compile : bool
        Compile the backbone with torch.compile; rounding differs.

    Attributes
    ----------
    states : mapping
        Location -> state of its model, on the host.
    thresholds : dict or None
        What `calibrate` decided, see `validation.find_thresholds`.

    Raises
    ------
    InputError
        For an unknown setup or architecture, and from finding the weights.

    Examples
    --------
    Images are arrays, tensors or paths (`data.inputs.as_samples`), here noise; the random
    weights are only for an example that needs no download.

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
        self,
        setup,
        arch="padim",
        *,
        backbone=None,
        weights="auto",
        seed=42,
        device="cpu",
        batch_size=None,
        switches=None,
        antialias=False,
        score="mean",
        seam_width=0.1,
        seam_sigma=2.0,
        precision="float32",
        compile=False,
    ):
        if arch not in MODELS:
            raise InputError(
                f"unknown architecture {arch!r}; the known ones are {', '.join(MODELS)}"
            )
        if isinstance(setup, str):
            if setup not in SETUPS:
                raise InputError(f"unknown setup {setup!r}; the known ones are {', '.join(SETUPS)}")
            setup = SETUPS[setup]
        if score not in COMBINE:
            raise InputError(f"score must be one of {', '.join(COMBINE)}, not {score!r}")
        if backbone is None:
            found = find_weights(weights)
            backbone, weights = ResNet18Features(found.state_dict), found.kind
        self.setup = setup
        self.arch = arch
        self.seed = seed
        self.device = torch.device(device)
        self.backbone = backbone.to(self.device)
        self.batch_size = batch_size or MODELS[arch].BATCH_SIZE
        self.switches = dict(switches or {})
        self.weights = weights if weights in ("imagenet", "random") else None
        self.antialias, self.score = antialias, score
        self.seam_width, self.seam_sigma = seam_width, seam_sigma
        check_precision(precision, self.device)
        self.precision, self.compile = precision, bool(compile)
        self.network = self.backbone
        if compile:
            self.network = Compiled(self.network)
        if precision != "float32":
            self.network = MixedPrecision(self.network, precision)
        self.states = {}
        self.thresholds = None

    @property
    def grid(self):
        """TileGrid of the models' locations."""
        return self.setup.ensemble_grid

    @property
    def n_parameters(self):
        """Parameters of all models as Table 3 counts them: the backbone once per model."""
        return self.make_model().n_parameters * self.setup.n_models

    def n_stored_parameters(self, n_images):
        """Numbers that are really kept: those of the backbone once, for each location what its
        model learns from n_images, statistics included."""
        backbone = sum(p.numel() for p in self.backbone.parameters())
        return backbone + self.make_model().n_learnt(n_images) * self.setup.n_models

    def make_model(self, **overrides):
        """A fresh model for any location, seeded; overrides, keyword arguments for this one."""
        tiled_input = self.setup.kind == "ST"
        return MODELS[self.arch](
            self.network,
            self.grid.tile_size,
            seed=self.seed,
            device=self.device,
            untile=FeatureUntiler(self.setup.input_grid) if tiled_input else None,
            **{"batch_size": self.batch_size, **self.switches, **overrides},
        )

    def location_images(self, images, location):
        """LocationImages of one location: its tiles, or for ST those of all input tiles.

        Parameters: images uint8 (N, 3, H, W); location (i, j).
        """
        grid = self.setup.input_grid
        locations = grid.locations() if self.setup.kind == "ST" else [location]
        return LocationImages(images, grid, locations, self.device)

    def fit(self, images, progress=None):
        """Train one model per location on normal images and keep what it learnt.

        Parameters: images, see `data.inputs.as_samples`, of any size; progress, if given, is
        called as progress(location, "fit", done, total), or with the name of a part of it.
        Returns self.
        Raises InputError for images that are none, or too few for the architecture.
        """
        images = as_images(images, self.setup.image_size, antialias=self.antialias)
        self.states, self.thresholds = {}, None
        for location in self.grid.locations():
            self.states[location] = self.fit_location(images, location, progress).state()
        return self

    def predict(self, images, impl="cython", progress=None, threads=None):
        """What the trained models say, put together.

        Parameters: images and progress as in `fit`; impl and threads, see `merging`. All images
        are in memory at once; `predict.predictions` takes any number.
        Returns merged, seam-smoothed maps float32 (N, H, W) and scores float32 (N,), raw.
        Raises InputError where nothing was fitted.
        """
        if len(self.states) < self.setup.n_models:
            raise InputError("the ensemble has not been trained; call fit before predict")
        images = as_images(images, self.setup.image_size, antialias=self.antialias)
        maps, scores = self.allocate(len(images))
        for i, j in self.grid.locations():
            model = self.make_model()
            model.load_state(self.states[i, j])
            self.predict_location(model, images, (i, j), maps[i, j], scores[i, j], progress)
        return merge(
            maps, scores, self.grid,
            score=self.score, width=self.seam_width, sigma=self.seam_sigma,
            impl=impl, threads=threads,
        )  # fmt: skip

    def calibrate(self, images, labels=None, masks=None, percentile=100.0):
        """Decide the thresholds on images that were not trained on.

        Parameters
        ----------
        images : see `data.inputs.as_samples`
        labels : (N,) integers or bool, optional
            Not 0 is anomalous; None says that all are normal.
        masks : (N, H, W) bool or uint8, optional
            Ground truth at the setup's image size, for the threshold of the pixels.
        percentile : float
            Of the normal images, where there are no anomalous ones; 100 is their maximum.

        Returns self; `thresholds` holds what was decided, see `validation.find_thresholds`.
        Raises InputError as predict does, and for labels or masks of another number or size.
        """
        maps, scores = self.predict(images)
        labels = np.zeros(len(scores), np.uint8) if labels is None else np.asarray(labels)
        if labels.shape != scores.shape:
            raise InputError(f"there are {len(scores)} images and labels of shape {labels.shape}")
        if masks is not None and np.shape(masks) != maps.shape:
            raise InputError(
                f"the masks have the shape {np.shape(masks)}, the maps {maps.shape}; resize them"
            )
        self.thresholds = validation.thresholds_of(
            "given", maps, scores, (labels != 0).astype(int), np.arange(len(scores)),
            masks=None if masks is None else lambda: masks, percentile=percentile,
        )  # fmt: skip
        return self

    def verdicts(self, scores):
        """Which images are anomalous.

        Parameters: scores (N,), raw, as `predict` returns them.
        Returns bool (N,), True at or above the threshold.
        Raises InputError where no thresholds have been decided.
        """
        if self.thresholds is None:
            raise InputError("the ensemble has no thresholds yet; call calibrate first")
        return np.asarray(scores) >= self.thresholds["image"]["threshold"]

    def save(self, folder):
        """Write the fitted ensemble to a folder; see `saved.save_ensemble`."""
        saved.save_ensemble(folder, self)

    @classmethod
    def load(
        cls,
        folder,
        *,
        backbone=None,
        weights=None,
        device="cpu",
        batch_size=None,
        precision=None,
        compile=False,
        allow_version_change=False,
        progress=None,
        say=None,
    ):
        """The ensemble that `save`, or a run with --save, has written. Nothing is executed.

        Parameters
        ----------
        folder : path-like
        backbone : ResNet18Features, optional
            The one it was trained with; by default made of weights.
        weights : str, optional
            See `weights.find_weights`; by default those that it was trained with.
        device, batch_size, precision, compile
            As of TiledEnsemble; batch size and precision by default those of the training.
        allow_version_change : bool
            Load it although another version of torch trained it.
        progress : callable, optional
            progress(done, total), as the files are compared with their digests.
        say : callable, optional
            See `weights.find_weights`.

        Returns
        -------
        TiledEnsemble, its states in the files until they are used; see `saved.States`.

        Raises
        ------
        InputError
            No ensemble, a damaged, incomplete, changed or newer one, another backbone, another
            version of torch.
        """
        manifest = saved.read_manifest(folder)
        saved.check_versions(manifest, allow_version_change)
        if backbone is None and weights is None and manifest.weights is None:
            raise InputError(
                "the ensemble was trained with a backbone of its own; give it as backbone="
            )
        options = {name: getattr(manifest, name) for name in KEPT}
        options["batch_size"] = batch_size or manifest.batch_size
        options["precision"], options["compile"] = precision or manifest.precision, compile
        weights = weights or manifest.weights
        if backbone is None:
            backbone = ResNet18Features(find_weights(weights, say=say).state_dict)
        try:
            ensemble = cls(
                manifest.setup, manifest.arch, backbone=backbone, weights=manifest.weights,
                device=device, **options,
            )  # fmt: skip
            model = ensemble.make_model()
        except TypeError as error:  # a switch that the architecture has not
            raise InputError(f"the ensemble's manifest is not understood: {error}") from error
        saved.check_backbone(manifest, ensemble.backbone)
        ensemble.states = saved.load_states(manifest, model, progress)
        ensemble.thresholds = manifest.thresholds
        return ensemble

    def allocate(self, n):
        """Room on the host for tile maps (rows, cols, n, h, w) and scores (rows, cols, n)."""
        shape = self.grid.rows, self.grid.cols, n
        return np.empty((*shape, *self.grid.tile_size), np.float32), np.empty(shape, np.float32)

    def fit_location(self, images, location, progress=None, model=None):
        """Eq. 3 for one location: a model trained on its tiles, on the device.

        Parameters: images uint8 (N, 3, H, W); location (i, j); progress as in `fit`; model, one
        of make_model with overrides. Returns the trained model.
        """

        def report(done, total, part="fit"):
            if progress:
                progress(location, part, done, total)

        report(0, len(images))
        model = model or self.make_model()
        model.fit(self.location_images(images, location), progress=report)
        return model

    def predict_location(
        self, model, images, location, maps, scores, progress=None, batch_size=None
    ):
        """Eq. 4 for one location: fills maps (N, h, w) and scores (N,) on the host.

        Parameters: model, trained; images uint8 (N, 3, H, W); location (i, j); maps and scores;
        progress as in `fit`; batch_size, by default the ensemble's.
        """
        source = self.location_images(images, location)
        if progress:
            progress(location, "predict", 0, len(source))
        step = batch_size or self.batch_size
        for start in range(0, len(source), step):
            stop = min(start + step, len(source))
            batch_maps, batch_scores = model.predict(source[list(range(start, stop))])
            maps[start:stop] = batch_maps.cpu().numpy()
            scores[start:stop] = batch_scores.cpu().numpy()
            if progress:
                progress(location, "predict", stop, len(source))


def merge(maps, scores, grid, *, score="mean", width=0.1, sigma=2.0, impl="cython", threads=None):
    """From tile predictions to image predictions (Sec. 3.3): untile, smooth the seams, Eq. 5.

    Parameters: maps (rows, cols, N, h, w), scores (rows, cols, N), grid; score "mean" or
    "max"; width, sigma, impl, threads: see `smoothing.smooth_seams`.
    Returns maps (N, H, W) and scores (N,).
    """
    merged = merging.untile_average(maps, grid, impl=impl, threads=threads)
    merged = smoothing.smooth_seams(
        merged, grid, width=width, sigma=sigma, impl=impl, threads=threads
    )
    return merged, COMBINE[score](scores)


def merge_rows(maps, scores, grid, out, *, budget=MERGE_BUDGET, progress=None, **options):
    """`merge` for maps that need not fit in memory: a few images at a time.

    Parameters
    ----------
    maps : list of arrays or store.RowFile, (N, h, w)
        Per location in row-major order.
    scores : (rows, cols, N)
    out : array or store.RowFile, (N, H, W)
        Is filled with the merged, smoothed maps.
    budget : int
        Bytes of tile maps read at a time; one image at least.
    progress : callable, optional, progress(done, total)
    options : as of `merge`

    Returns scores (N,).
    """
    n = scores.shape[2]
    per_image = grid.rows * grid.cols * 4 * grid.tile_size[0] * grid.tile_size[1]
    step = max(1, budget // per_image)
    merged_scores = []
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        tiles = np.stack([location[rows] for location in maps])  # (rows * cols, B, h, w)
        tiles = tiles.reshape(grid.rows, grid.cols, *tiles.shape[1:])
        out[rows], part = merge(tiles, scores[:, :, rows], grid, **options)
        merged_scores.append(part)
        if progress:
            progress(rows.stop, n)
    return np.concatenate(merged_scores)
