"""manifest.json of a saved ensemble: what it was made of, its thresholds, its files' digests."""

import functools
import json
import math
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from .. import __version__
from ..data.disk import printable
from ..models import MODELS
from ..models.weights import tensors_digest
from ..setups import OPTIONS, Recipe, Setup, is_allowed
from ..support.errors import InputError, shortened
from ..support.files import atomic_write, open_regular
from ..thresholds import MODES
from .tensors import DTYPES, REMEDY, file_digest, layout

MANIFEST = "manifest.json"
FORMAT = "tiled-ref ensemble"
FORMAT_VERSION = 2
MANIFEST_BYTES = 64 << 20
LARGEST_SIDE = 1 << 20  # pixels


def location_name(location):
    """The file of a location in the folder of an ensemble."""
    return f"location_{location[0]}_{location[1]}.npz"


def write_manifest(folder, ensemble, *, category=None, versions=None, identity=None):
    """Write manifest.json beside the files of all locations, which it describes.

    Parameters: folder, holds `location_name(location)` of every location; ensemble, a
    TiledEnsemble; category it was trained on and versions of packages, for the reader; identity
    of the run, see results.cell_identity.
    Raises InputError where a file is missing or cannot be read, or the manifest not written.
    """
    files = []
    for location in ensemble.grid.locations():
        path = Path(folder, location_name(location))
        tensors = layout(path)
        size, digest = path.stat().st_size, file_digest(path)
        files.append({"location": location, "bytes": size, "sha256": digest, "tensors": tensors})
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "category": category,
        "identity": identity,
        "setup": asdict(ensemble.setup),
        **ensemble.recipe.values(),
        "weights": ensemble.weights,
        "backbone_digest": tensors_digest(ensemble.backbone.state_dict()),
        "thresholds": ensemble.thresholds,
        "versions": {**(versions or {}), "tiled_ref": __version__, "torch": str(torch.__version__)},
    }
    head = json.dumps(manifest, indent=2, allow_nan=False).removesuffix("\n}")
    lines = ",\n    ".join(json.dumps(entry) for entry in files)  # one line per location
    with atomic_write(Path(folder, MANIFEST)) as file:
        file.write(f'{head},\n  "files": [\n    {lines}\n  ]\n}}\n')


@dataclass(frozen=True)
class Manifest:
    """A manifest.json that has been checked."""

    recipe: Recipe  # of the ensemble
    weights: str  # what the backbone's weights are: "imagenet", "random" or None
    backbone_digest: str  # weights.tensors_digest of the backbone
    thresholds: dict  # of thresholds.find_thresholds, or None
    category: str  # what was trained on
    versions: dict  # package -> version
    files: dict  # location -> StateFile


@dataclass(frozen=True)
class StateFile:
    """The file of a location: path, bytes, sha256, and tensors, name -> (dtype, shape)."""

    path: Path
    bytes: int
    sha256: str
    tensors: dict


def read_manifest(folder):
    """Read and check the manifest.json of an ensemble, and that all its files are there.

    Returns Manifest. Raises InputError for anything that is not a complete ensemble of this
    program, in a version that it reads.
    """
    folder = Path(folder)
    name = printable(folder)
    if not folder.is_dir():
        raise InputError(f"the folder {name} does not exist; give the folder of a saved ensemble")
    path = folder / MANIFEST
    try:
        with open_regular(path, follow=False) as file:
            text = file.read(MANIFEST_BYTES + 1)
        if len(text) > MANIFEST_BYTES:
            raise ValueError(f"it has more than {MANIFEST_BYTES:,} bytes")
        content = json.loads(text.decode("utf-8"), parse_constant=_no_constant)
    except FileNotFoundError as error:
        raise InputError(
            f"the folder {name} holds no {MANIFEST}, so it is not a saved ensemble; give the "
            "folder that --save wrote"
        ) from error
    except OSError as error:
        raise InputError(f"{printable(path)} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{printable(path)} is damaged or no manifest ({shortened(error)}); {REMEDY}"
        ) from error
    try:
        manifest = _checked_manifest(folder, content)
    except (_ManifestError, OverflowError) as error:
        raise InputError(
            f"{printable(path)} does not describe an ensemble of this program ({error}); {REMEDY}"
        ) from error
    for location, file in manifest.files.items():
        _check_file(location, file)
    return manifest


class _ManifestError(ValueError):
    """An entry of a manifest is wrong; the message says how."""


def _no_constant(text):
    raise ValueError(f"it holds {text}")


def _entry(content, key, kinds, fits=lambda value: True):
    """content[key]; _ManifestError unless it is of one of the kinds and fits."""
    if not isinstance(content, dict) or key not in content:
        raise _ManifestError(f"it has no entry {key}")
    value = content[key]
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if type(value) not in kinds or not fits(value):  # type, because True is an int
        raise _ManifestError(f"its entry {key} is {shortened(repr(value))}")
    return value


def _is_short(value):
    return len(value) <= 100


def _is_digest(value):
    return re.fullmatch(r"[0-9a-f]{64}", value) is not None


def _checked_manifest(folder, content):
    _check_format(folder, content)
    recipe = _checked_recipe(content)
    return Manifest(
        recipe=recipe,
        weights=_entry(
            content, "weights", (str, type(None)), lambda x: x in (None, "imagenet", "random")
        ),
        backbone_digest=_entry(content, "backbone_digest", str, _is_digest),
        thresholds=_checked_thresholds(_entry(content, "thresholds", (dict, type(None)))),
        category=_entry(content, "category", (str, type(None))),
        versions=_checked_versions(_entry(content, "versions", dict)),
        files=_checked_files(folder, recipe.grid, _entry(content, "files", list)),
    )


def _check_format(folder, content):
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise _ManifestError(f'it has no entry "format": "{FORMAT}"')
    version = _entry(content, "format_version", int)
    if version > FORMAT_VERSION:
        raise InputError(
            f"the ensemble in {printable(folder)} was written by a newer version of tiled-ref "
            f"(format {shortened(version)}, this one reads {FORMAT_VERSION}); update tiled-ref"
        )
    if 1 <= version < FORMAT_VERSION:
        raise InputError(
            f"the ensemble in {printable(folder)} was written by an older version of tiled-ref "
            f"(format {version}, this one reads {FORMAT_VERSION}); train it again"
        )
    if version != FORMAT_VERSION:
        raise _ManifestError(f"its format_version is {shortened(version)}")


def _checked_recipe(content):
    setup = _checked_setup(_entry(content, "setup", dict))
    arch = _entry(content, "arch", str, lambda value: value in MODELS)
    switches = _entry(content, "switches", dict)
    for key, value in switches.items():
        _entry(switches, key, (str, int, float, bool, type(None)))
        if isinstance(value, str) and not _is_short(value):
            raise _ManifestError(f"its switch {shortened(repr(key))} is too long")
    options = {}
    for option in OPTIONS:
        if option.name == "precision" and option.name not in content:
            continue  # older ensembles have none
        kind = option.metadata["kind"]
        kinds = (int, float) if kind is float else kind
        value = _entry(content, option.name, kinds, functools.partial(is_allowed, option))
        options[option.name] = kind(value)
    return Recipe(
        setup, arch, switches=switches,
        seed=_entry(content, "seed", int, lambda value: 0 <= value < 2**63),
        batch_size=_entry(content, "batch_size", int, lambda value: 1 <= value <= 1 << 16),
        **options,
    )  # fmt: skip


def _checked_setup(content):
    def pair(key):
        sides = _entry(content, key, list, lambda value: len(value) == 2)
        if not all(type(side) is int and 1 <= side <= LARGEST_SIDE for side in sides):
            raise _ManifestError(f"its entry {key} is {shortened(repr(sides))}")
        return tuple(sides)

    name, kind = (_entry(content, key, str, _is_short) for key in ("name", "kind"))
    try:
        return Setup(name, kind, pair("image_size"), pair("tile_size"), pair("stride"))
    except InputError as error:
        raise _ManifestError(f"its setup is impossible: {error}") from error


def _checked_versions(content):
    version = _entry(content, "torch", str, _is_short)
    if not re.fullmatch(r"\d+\.\d+[\w.+-]*", version):
        raise _ManifestError("its torch version is not a version number")
    return content


def _checked_thresholds(content):
    if content is None:
        return None
    _entry(content, "mode", str, lambda value: value in (*MODES, "given"))
    for key in ("n_normal", "n_anomalous"):
        _entry(content, key, int, lambda value: value >= 0)
    for kind in ("image", "pixel"):
        part = _entry(content, kind, dict if kind == "image" else (dict, type(None)))
        if part is None:
            continue
        low, high, _ = (
            _entry(part, key, (int, float), math.isfinite)
            for key in ("minimum", "maximum", "threshold")
        )
        if low > high:
            raise _ManifestError(f"the minimum of its {kind} scores is above their maximum")
        _entry(part, "rule", str, lambda value: value in ("f1", "percentile"))
        for key, top in (("f1", 1), ("percentile", 100)):
            _entry(part, key, (int, float, type(None)), lambda x: x is None or 0 <= x <= top)
    return content


def _checked_files(folder, grid, content):
    if len(content) != grid.rows * grid.cols:
        raise _ManifestError(
            f"it lists {len(content)} files, the setup has {grid.rows * grid.cols} locations"
        )
    files = {}
    for expected, entry in zip(grid.locations(), content):
        location = _entry(entry, "location", list)
        if location != list(expected):
            raise _ManifestError(f"it lists {shortened(repr(location))} in the place of {expected}")
        tensors = {}
        for name, value in _entry(entry, "tensors", dict).items():
            if not (
                isinstance(value, list)
                and len(value) == 2
                and value[0] in [dtype.name for dtype in DTYPES]
                and isinstance(value[1], list)
                and len(value[1]) <= 8
                and all(type(side) is int and 0 <= side < 1 << 48 for side in value[1])
            ):
                raise _ManifestError(
                    f"its tensor {shortened(repr(name))} is {shortened(repr(value))}"
                )
            tensors[name] = value[0], tuple(value[1])
        files[expected] = StateFile(
            path=folder / location_name(expected),  # never a name from the manifest
            bytes=_entry(entry, "bytes", int, lambda value: 0 <= value < 1 << 48),
            sha256=_entry(entry, "sha256", str, _is_digest),
            tensors=tensors,
        )
    return files


def _check_file(location, file):
    """InputError unless the file of a location is there, regular, and has the declared size."""
    name = printable(file.path)
    try:
        with open_regular(file.path, follow=False) as opened:
            size = os.fstat(opened.fileno()).st_size
    except FileNotFoundError as error:
        raise InputError(
            f"the ensemble lacks the file {name} of tile location {location}; {REMEDY}"
        ) from error
    except OSError as error:
        raise InputError(
            f"the ensemble's file {name} cannot be read: {error.strerror or error}"
        ) from error
    if size != file.bytes:
        raise InputError(
            f"the ensemble's file {name} has {size:,} bytes, not {file.bytes:,} as the manifest "
            f"says; {REMEDY}"
        )
