"""What decides the bits of an ensemble, declared once.

The constructor of TiledEnsemble, the options of the command line, the identity of a result and
the manifest of a saved ensemble are made from the fields of `Recipe`.
"""

from dataclasses import dataclass, field, fields

import torch

from .models import MODELS
from .models.precision import PRECISIONS, MixedPrecision, check_precision
from .setups import SETUPS, Setup
from .support.errors import InputError
from .tiling import FeatureUntiler

LARGEST = 1e300  # of a number; neither infinity nor NaN is below it


def _option(default, group, text, *, choices=None, wanted=None, fits=None, metavar=None):
    """A field that is an option of the command line too, `--name-of-the-field`.

    Parameters: default; group and text, of --help-all; choices, or else wanted and fits, which
    values are allowed, in words and as a function; metavar of --help-all.
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
    """What decides the bits of an ensemble, beside its images and its backbone.

    Parameters
    ----------
    setup : Setup or str
        Or the name of one in `tiled_ref.setups.SETUPS`.
    arch : str
        A key of `tiled_ref.models.MODELS`.
    seed : int
        Set anew before every model, so all locations share channel choices and initial weights.
    batch_size : int, optional
        Images per batch; the architecture's own by default.
    switches : dict
        Keyword arguments of the architecture.
    antialias : bool
        Filter before shrinking images.
    score : {"mean", "max"}
        How tile scores become an image score (Eq. 5; "max" is the switch).
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
        "mean", "the method", "score an image by the mean or the maximum of its tiles",
        choices=("mean", "max"),
    )  # fmt: skip
    seam_width: float = _option(
        0.1, "the method", "smooth this fraction of a tile on each side of a seam",
        wanted="a number from 0 to 1", fits=lambda width: 0 <= width <= 1, metavar="X",
    )  # fmt: skip
    seam_sigma: float = _option(
        2.0, "the method", "smooth seams with a Gaussian of this sigma, in pixels",
        wanted="a positive number up to 1e6", fits=lambda sigma: 0 < sigma <= 1e6, metavar="PX",
    )  # fmt: skip
    antialias: bool = _option(False, "the method", "filter images before shrinking them")
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
        for name, low, high in (("seed", 0, 1 << 63), ("batch_size", 1, (1 << 16) + 1)):
            value = getattr(self, name)
            if type(value) is not int or not low <= value < high:
                raise InputError(f"{name} must be a whole number from {low}, not {value!r}")
        object.__setattr__(self, "switches", dict(self.switches or {}))
        for option in OPTIONS:
            value = getattr(self, option.name)
            if not is_allowed(option, value):
                raise InputError(
                    f"{option.name} must be {option.metadata['wanted']}, not {value!r}"
                )

    @property
    def grid(self):
        """TileGrid of the models' locations."""
        return self.setup.ensemble_grid

    def network(self, backbone, device):
        """The backbone as the models see it, in fewer bits where the precision says so.

        Raises InputError for a precision that the device does not have.
        """
        check_precision(self.precision, torch.device(device))
        return backbone if self.precision == "float32" else MixedPrecision(backbone, self.precision)

    def model(self, network, device, **overrides):
        """A fresh model for any location, seeded; overrides, keyword arguments for this one."""
        tiled_input = len(self.setup.models[0, 0]) > 1
        return MODELS[self.arch](
            network,
            self.grid.tile_size,
            seed=self.seed,
            device=device,
            untile=FeatureUntiler(self.setup.input_grid) if tiled_input else None,
            **{"batch_size": self.batch_size, **self.switches, **overrides},
        )

    def values(self):
        """All fields but the setup as a dict of JSON values."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "setup"}


OPTIONS = tuple(option for option in fields(Recipe) if option.metadata)


def is_allowed(option, value):
    """Whether an option, one of OPTIONS, may have a value: of its type, finite, and fitting."""
    kind, fits = option.metadata["kind"], option.metadata["fits"]
    if kind is float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return is_number and abs(value) <= LARGEST and fits(value)
    return type(value) is kind and fits(value)
