"""The six setups of the paper, any other combination of sizes, and the recipe of an ensemble.

Source: Rolih et al., Sec. 4.2. All sizes in pixels, (height, width). A Recipe is everything
that determines the bits of an ensemble, declared once: the constructor of TiledEnsemble, the
command-line options, the identity of a result and the manifest of a saved ensemble use it.
"""

import re
from dataclasses import dataclass, field, fields

import torch

from .models import MODELS
from .models.precision import PRECISIONS, MixedPrecision, check_precision
from .support.errors import InputError
from .support.option_types import BATCHES, SEEDS, SIDES, words
from .tiling import FeatureUntiler, TileGrid

KINDS = ("SM", "ST", "ENS")


@dataclass(frozen=True)
class Setup:
    """One of the paper's setups: the sizes, and which tiles each model sees.

    Parameters
    ----------
    name : str
        "SM256", ..., or a name built from the sizes for a setup that is not in the paper.
    kind : {"SM", "ST", "ENS"}
        SM: one model on the whole image. ST: one model on tiled input. ENS: one model per
        tile location (Eq. 3).
    image_size : (int, int)
        Height and width in pixels to which every image is resized. Eq. 1: h, w.
    tile_size : (int, int)
        Height and width of a tile in pixels; equals image_size for SM. Eq. 1: h^t, w^t.
    stride : (int, int)
        Distance in pixels between the starts of neighbouring tiles. Eq. 1: s_h, s_w.
    groups : (int, int)
        For ENS, the rows and columns of neighbouring tile locations that share a model; (1, 1), one
        model per location, is the paper's. Blocks at the bottom and right can be smaller.

    Raises
    ------
    InputError
        For sizes without a valid grid (see TileGrid), an unknown kind, or groups outside ENS.
    """

    name: str
    kind: str
    image_size: tuple
    tile_size: tuple
    stride: tuple
    groups: tuple = (1, 1)

    def __post_init__(self):
        if self.kind not in KINDS:
            raise InputError(f"setup kind must be one of {', '.join(KINDS)}, not {self.kind!r}")
        self.input_grid  # noqa: B018  reject an impossible grid here, not mid-run
        if self.kind == "SM" and self.tile_size != self.image_size:
            raise InputError("an SM setup has no tiles: its tile size is its image size")
        if min(self.groups) < 1 or (self.kind != "ENS" and self.groups != (1, 1)):
            raise InputError(
                f"groups of {self.groups} locations: they must be at least 1x1, and an "
                f"{self.kind} setup with one model has none; use an ENS setup"
            )

    @property
    def input_grid(self):
        """TileGrid that cuts the input image (one tile for SM)."""
        return TileGrid(self.image_size, self.tile_size, self.stride)

    @property
    def ensemble_grid(self):
        """TileGrid of the models: input_grid for ENS, a single location otherwise."""
        if self.kind == "ENS":
            return self.input_grid
        return TileGrid(self.image_size, self.image_size, self.image_size)

    @property
    def models(self):
        """The models, as a dict: location (i, j) in `ensemble_grid` -> list of the locations in
        `input_grid` whose tiles the model sees. One tile each for SM and ENS, all for ST; with
        groups, the tiles of a block, keyed by its first location.

        >>> SETUPS["ENS4"].models
        {(0, 0): [(0, 0)], (0, 1): [(0, 1)], (1, 0): [(1, 0)], (1, 1): [(1, 1)]}
        >>> SETUPS["ST4"].models
        {(0, 0): [(0, 0), (0, 1), (1, 0), (1, 1)]}
        """
        grid, (down, across) = self.input_grid, self.groups
        if self.kind != "ENS":
            return {(0, 0): grid.locations()}
        groups = {}
        for i, j in grid.locations():
            groups.setdefault((i - i % down, j - j % across), []).append((i, j))
        return groups

    def inputs(self, location):
        """The inputs of the model of a location, a key of `models`: a dict, place in
        `ensemble_grid` -> the locations in `input_grid` whose tiles form one input.

        For an ST model, which untiles features, all tiles of an image form one input; for an ENS
        model, each tile does.

        >>> SETUPS["ST4"].inputs((0, 0))
        {(0, 0): [(0, 0), (0, 1), (1, 0), (1, 1)]}
        >>> SETUPS["ENS4"].with_sizes(groups=(1, 2)).inputs((1, 0))
        {(1, 0): [(1, 0)], (1, 1): [(1, 1)]}
        """
        tiles = self.models[location]
        return {tile: [tile] for tile in tiles} if self.kind == "ENS" else {location: tiles}

    @property
    def group_size(self):
        """The most inputs per image that a model has: 1 without groups."""
        return max(len(self.inputs(location)) for location in self.models)

    @property
    def n_tiles(self):
        """Tiles an image is cut into."""
        return self.input_grid.rows * self.input_grid.cols

    @property
    def tile_pixels(self):
        """Pixels of all tiles of an image."""
        return self.n_tiles * self.tile_size[0] * self.tile_size[1]

    @property
    def n_models(self):
        """Models trained: one per tile location for ENS, else 1 (Eq. 3)."""
        return len(self.models)

    def with_sizes(self, image_size=None, tile_size=None, stride=None, groups=None):
        """The same kind of setup with other sizes, named after them.

        Returns a Setup, this one if nothing changes. image_size, tile_size, stride are
        (height, width) in pixels, groups (rows, cols); None keeps the current value. For SM the
        tile follows the image. If only the tile is given, the stride stays equal to the tile size
        or to half of it, as before; if neither is given, the stride does not change.
        """
        image = tuple(image_size or self.image_size)
        if self.kind == "SM":
            if tile_size or stride:
                raise InputError(
                    f"{self.name} has no tiles, so --tile-size and --stride do not apply; "
                    "use an ST or ENS setup"
                )
            tile = step = image
        else:
            tile = tuple(tile_size or self.tile_size)
            ratio = [t // s for t, s in zip(self.tile_size, self.stride)]
            own = [max(1, t // r) for t, r in zip(tile, ratio)] if tile_size else self.stride
            step = tuple(stride or own)
        groups, name = tuple(groups or self.groups), self.name.partition("-groups-")[0]
        sizes = image, tile, step
        if (*sizes, groups) == (self.image_size, self.tile_size, self.stride, self.groups):
            return self
        if sizes != (self.image_size, self.tile_size, self.stride):
            parts = [image] if self.kind == "SM" else sizes
            name = self.kind + "-" + "-".join(_side(p) for p in parts)
        if groups != (1, 1):
            name += "-groups-{}x{}".format(*groups)
        return Setup(name, self.kind, *sizes, groups)


def _side(size):
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"


def _square(name, kind, image, tile, stride):
    return Setup(name, kind, (image, image), (tile, tile), (stride, stride))


# Rolih et al., Sec. 4.2, in the order of Tables 1-4.
SETUPS = {
    setup.name: setup
    for setup in (
        _square("SM256", "SM", 256, 256, 256),
        _square("SM512", "SM", 512, 512, 512),
        _square("ST4", "ST", 512, 256, 256),
        _square("ST9", "ST", 512, 256, 128),
        _square("ENS4", "ENS", 512, 256, 256),
        _square("ENS9", "ENS", 512, 256, 128),
    )
}


# ------------------------------------------------------------------------------ the recipe

LARGEST = 1e300  # magnitude of a number; infinity and NaN are not below it


def _option(default, group, text, *, choices=None, wanted=None, fits=None, metavar=None):
    """A field that is also a command-line option, `--name-of-the-field`.

    Parameters: default; group and text, of --help-all; choices, or else wanted and fits, the
    allowed values in words and as a function; metavar of --help-all.
    """
    if choices:
        wanted, fits = f"one of {', '.join(choices)}", choices.__contains__
        metavar = "|".join(choices)
    kind = type(default)
    return field(default=default, metadata=dict(
        group=group, text=text, kind=kind, wanted=wanted or kind.__name__,
        fits=fits or (lambda value: True), metavar=metavar,
    ))  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """Everything that determines an ensemble's bits, apart from its images and backbone.

    Parameters
    ----------
    setup : Setup or str
        Or the name of one in `tiled_ref.setups.SETUPS`.
    arch : str
        A key of `tiled_ref.models.MODELS`.
    seed : int
        Set again before every model, so all locations share channel choices and initial weights.
    batch_size : int, optional
        Images per batch; the architecture's own by default.
    switches : dict
        Keyword arguments of the architecture.
    antialias : bool
        Low-pass filter images before shrinking them.
    score : "mean", "max" or "top:K"
        How tile scores become an image score (Eq. 5), see `merging.image_scores`.
    merge : {"mean", "window"}
        How tile maps are merged where they overlap: `merging.untile_average` or `untile_window`.
    seam_width, seam_sigma : float
        See `smoothing.smooth_seams`.
    precision : {"float32", "bfloat16", "float16"}
        Of the networks, see `precision`.

    Raises
    ------
    InputError
        For an unknown setup or architecture, or a value that is not allowed.
    """

    setup: Setup
    arch: str = "padim"
    seed: int = 42
    batch_size: int = None
    switches: dict = field(default_factory=dict)
    score: str = _option(
        "mean", "the method",
        "score an image by the mean, the maximum or the mean of the K highest of its tile scores",
        wanted="mean, max or top:K, such as top:3", metavar="mean|max|top:K",
        fits=lambda rule: re.fullmatch("mean|max|top:[1-9][0-9]{0,8}", rule) is not None,
    )  # fmt: skip
    merge: str = _option(
        "mean", "the method", choices=("mean", "window"),
        text="merge overlapping tile maps by their mean, or with lower weights towards tile edges",
    )  # fmt: skip
    seam_width: float = _option(
        0.1, "the method", "smooth this fraction of a tile on each side of a seam",
        wanted="a number from 0 to 1", fits=lambda width: 0 <= width <= 1, metavar="X",
    )  # fmt: skip
    seam_sigma: float = _option(
        2.0, "the method", "smooth seams with a Gaussian of this sigma, in pixels",
        wanted="a positive number, at most the image's larger side", metavar="PX",
        fits=lambda sigma: 0 < sigma <= SIDES[-1],
    )  # fmt: skip
    antialias: bool = _option(False, "the method", "low-pass filter images before shrinking them")
    precision: str = _option(
        "float32", "models", choices=tuple(PRECISIONS),
        text="run the networks in this precision; statistics and distances stay in float32",
    )  # fmt: skip

    def __post_init__(self):
        if self.arch not in MODELS:
            raise InputError(
                f"unknown architecture {self.arch!r}; the known ones are {', '.join(MODELS)}"
            )
        if isinstance(self.setup, str):
            if self.setup not in SETUPS:
                raise InputError(
                    f"unknown setup {self.setup!r}; the known ones are {', '.join(SETUPS)}"
                )
            object.__setattr__(self, "setup", SETUPS[self.setup])
        if self.batch_size is None:
            object.__setattr__(self, "batch_size", MODELS[self.arch].BATCH_SIZE)
        for name, allowed in (("seed", SEEDS), ("batch_size", BATCHES)):
            value = getattr(self, name)
            if type(value) is not int or value not in allowed:
                raise InputError(f"{name} must be {words(allowed)}, not {value!r}")
        object.__setattr__(self, "switches", dict(self.switches or {}))
        for option in OPTIONS:
            value = getattr(self, option.name)
            about = option.metadata
            most = max(self.setup.image_size) if option.name == "seam_sigma" else LARGEST
            if not is_allowed(option, value) or about["kind"] is float and value > most:
                raise InputError(f"{option.name} must be {about['wanted']}, not {value!r}")

    @property
    def grid(self):
        """TileGrid of the models' locations."""
        return self.setup.ensemble_grid

    def network(self, backbone, device):
        """The backbone as the models see it, in the recipe's precision.

        Raises InputError for a precision that the device does not support.
        """
        check_precision(self.precision, torch.device(device))
        return backbone if self.precision == "float32" else MixedPrecision(backbone, self.precision)

    def model(self, network, device, **overrides):
        """A new, seeded model for any location; overrides, keyword arguments for this one."""
        tiled_input = len(self.setup.inputs((0, 0))[0, 0]) > 1
        return MODELS[self.arch](
            network,
            self.grid.tile_size,
            seed=self.seed,
            device=device,
            untile=FeatureUntiler(self.setup.input_grid) if tiled_input else None,
            **{"batch_size": self.batch_size, **self.switches, **overrides},
        )

    def values(self):
        """All fields except the setup as a dict of JSON values."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "setup"}


OPTIONS = tuple(option for option in fields(Recipe) if option.metadata)


def is_allowed(option, value):
    """Whether an option, one of OPTIONS, allows a value: of its type, finite and in range."""
    kind, fits = option.metadata["kind"], option.metadata["fits"]
    if kind is float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return is_number and abs(value) <= LARGEST and fits(value)
    return type(value) is kind and fits(value)
