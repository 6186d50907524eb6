"""manifest.json of a saved ensemble: its recipe, and the digests of its files."""

import functools
import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from .. import __version__
from ..data.disk import printable
from ..models import MODELS
from ..models.weights import tensors_digest
from ..setups import KINDS, OPTIONS, Recipe, Setup, is_allowed
from ..support import schema
from ..support.errors import InputError
from ..support.files import atomic_write, open_regular, recover_folder
from ..support.option_types import BATCHES, MOST_TILES, SIDES, STEPS
from .tensors import DTYPES, REMEDY, file_digest, layout
from .thresholds import (
    LARGEST_AREA,
    MANIFEST,
    THRESHOLDS,
    check_thresholds,
    read_thresholds,
    write_thresholds,
)

FORMAT = "tiled-ref ensemble"
# Also readable: 4, without groups; 3, with PaDiM's inverse covariances; 2, with the thresholds.
FORMAT_VERSION = 5
MOST_BYTES = 1 << 40  # maximum size of a file
OVERHEAD = 4096  # maximum bytes of a file per tensor in addition to its data
BYTES_PER_PIXEL = {"fastflow": 56}  # minimum per pixel of a tile: the flows' two LayerNorms

_side = schema.whole(1, SIDES[-1])
_count = schema.whole(0, MOST_BYTES)
HEAD = {"format": schema.one_of(FORMAT), "format_version": schema.whole(1)}
SETUP = {
    "name": schema.text(100),
    "kind": schema.one_of(*KINDS),
    "image_size": (_side, _side),
    "tile_size": (_side, _side),
    "stride": (_side, _side),
    "groups?": (schema.whole(1, MOST_TILES), schema.whole(1, MOST_TILES)),
}
FILE = {
    "location": (_count, _count),
    "bytes": _count,
    "sha256": schema.digest,
    "tensors": schema.named(
        (schema.one_of(*(dtype.name for dtype in DTYPES)), schema.each(_count, most=8))
    ),
}
SWITCHES = {  # the switches whose numbers need bounds
    "steps?": schema.whole(1, STEPS[-1]),
    "n_channels?": schema.whole(1, 1 << 16),
    "n_neighbours?": schema.whole(1, 1 << 16),
    "ratio?": schema.number(0, 1),
}
CONTENT = {
    "category": schema.maybe(schema.text()),
    "identity?": schema.maybe(schema.digest),
    "setup": SETUP,
    "arch": schema.rule("an architecture", lambda name: type(name) is str and name in MODELS),
    "seed": schema.whole(),
    "batch_size": schema.whole(1, BATCHES[-1]),
    "switches": schema.named(schema.scalar, most=20),
    "weights": schema.one_of("imagenet", "random", None),
    "backbone_digest": schema.digest,
    "versions": schema.named(schema.text(), most=100),
    "files": schema.each(FILE, 1, MOST_TILES),
} | {
    option.name + "?" * (option.name in ("merge", "precision")): schema.rule(  # newer than format 2
        option.metadata["wanted"], functools.partial(is_allowed, option)
    )
    for option in OPTIONS
}


def location_name(location):
    """Return the file name of a location in an ensemble's folder."""
    return f"location_{location[0]}_{location[1]}.npz"


def write_manifest(folder, ensemble, *, category=None, versions=None, identity=None):
    """Write manifest.json, which describes the files of all locations next to it, and the
    ensemble's thresholds.

    Parameters: folder, holds `location_name(location)` of every location; ensemble, a
    TiledEnsemble; category it was trained on and versions of packages, for information; identity
    of the run, see results.cell_identity.
    Raises InputError if a file is missing or unreadable, or the manifest cannot be written.
    """
    files = []
    for location in ensemble.setup.models:
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
        "versions": {**(versions or {}), "tiled_ref": __version__, "torch": str(torch.__version__)},
    }
    head = json.dumps(manifest, indent=2, allow_nan=False).removesuffix("\n}")
    lines = ",\n    ".join(json.dumps(entry) for entry in files)  # one line per location
    with atomic_write(Path(folder, MANIFEST)) as file:
        file.write(f'{head},\n  "files": [\n    {lines}\n  ]\n}}\n')
    write_thresholds(folder, ensemble.thresholds, ensemble.roi)


@dataclass(frozen=True)
class Manifest:
    """The contents of a checked manifest.json."""

    recipe: Recipe  # of the ensemble
    weights: str  # origin of the backbone's weights: "imagenet", "random" or None
    backbone_digest: str  # weights.tensors_digest of the backbone
    thresholds: dict  # of thresholds.find_thresholds, or None
    roi: np.ndarray  # the region of interest, bool (h, w), or None
    category: str  # the training category
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
    """Read and check the manifest.json of an ensemble, and check that all its files exist.

    Returns Manifest. Raises InputError for anything but a complete ensemble of this
    program, in a supported version.
    """
    folder = Path(folder)
    recover_folder(folder)
    name, path = printable(folder), folder / MANIFEST
    if not os.path.isdir(folder):
        raise InputError(f"the folder {name} does not exist; give the folder of a saved ensemble")
    if not os.path.lexists(path):
        raise InputError(
            f"the folder {name} holds no {MANIFEST}, so it is not a saved ensemble; give the "
            "folder that --save wrote"
        )
    data = schema.read_bytes(path, REMEDY, follow=False)
    content = schema.parse_json(data, HEAD, path, REMEDY)
    version = content["format_version"]
    if not 2 <= version <= FORMAT_VERSION:
        older = "an older", "train it again"
        age, what = older if version < 2 else ("a newer", "update tiled-ref")
        raise InputError(
            f"the ensemble in {name} was written by {age} version of tiled-ref (format {version}, "
            f"this version reads 2 to {FORMAT_VERSION}); {what}"
        )
    schema.check(content, CONTENT, path, REMEDY)
    recipe = _checked_recipe(content, path)
    files = _checked_files(content["files"], recipe, path)
    for location, file in files.items():
        _check_file(location, file)
    if version > 2 or os.path.lexists(folder / THRESHOLDS):
        thresholds, roi = read_thresholds(folder, hashlib.sha256(data).hexdigest())
    else:
        thresholds, roi = check_thresholds(content.get("thresholds"), path), None
    facts = {key: content[key] for key in ("weights", "backbone_digest", "category", "versions")}
    return Manifest(recipe=recipe, thresholds=thresholds, roi=roi, files=files, **facts)


def _checked_recipe(content, path):
    """Return the Recipe of a manifest whose entries have been checked individually."""
    keys = "image_size", "tile_size", "stride", "groups"
    sizes = (tuple(content["setup"].get(key, (1, 1))) for key in keys)
    try:
        setup = Setup(content["setup"]["name"], content["setup"]["kind"], *sizes)
    except InputError as error:
        raise schema.damaged(path, f"its setup is invalid: {error}", REMEDY) from error
    if math.prod(setup.image_size) > LARGEST_AREA:
        raise schema.damaged(path, "its setup has too many pixels", REMEDY)
    bounds = {
        "switches": SWITCHES,
        "seam_sigma": schema.number(0, max(setup.image_size)),
        "versions": {"torch": schema.text(100, r"\d+\.\d+[\w.+-]*", "a version")},
    }
    schema.check(content, bounds, path, REMEDY)
    options = {o.name: o.metadata["kind"](content[o.name]) for o in OPTIONS if o.name in content}
    others = {key: content[key] for key in ("arch", "seed", "batch_size", "switches")}
    return Recipe(setup, **others, **options)


def _checked_files(content, recipe, path):
    """Return location -> StateFile of a manifest whose entries have been checked individually."""
    models = recipe.setup.models
    if len(content) != len(models):
        what = f"it lists {len(content)} files, the setup has {len(models)} models"
        raise schema.damaged(path, what, REMEDY)
    least = BYTES_PER_PIXEL.get(recipe.arch, 0) * math.prod(recipe.setup.tile_size)
    files = {}
    for expected, entry in zip(models, content):
        if entry["location"] != list(expected):
            what = f"it lists {entry['location']} instead of {expected}"
            raise schema.damaged(path, what, REMEDY)
        tensors = {key: (dtype, tuple(shape)) for key, (dtype, shape) in entry["tensors"].items()}
        n = sum(np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in tensors.values())
        if not max(n, least) <= entry["bytes"] <= n + OVERHEAD * (len(tensors) + 1):
            what = f"the {entry['bytes']:,} bytes of location {expected} do not fit its tensors"
            raise schema.damaged(path, what, REMEDY)
        name = location_name(expected)  # never one from the manifest
        files[expected] = StateFile(path.with_name(name), entry["bytes"], entry["sha256"], tensors)
    return files


def _check_file(location, file):
    """Raise InputError unless a location's file is regular and has the declared size."""
    name = printable(file.path)
    try:
        with open_regular(file.path, follow=False) as opened:
            size = os.fstat(opened.fileno()).st_size
    except OSError as error:
        raise InputError(
            f"the ensemble's file {name} of tile location {location} cannot be read: "
            f"{error.strerror or error}; {REMEDY}"
        ) from error
    if size != file.bytes:
        raise InputError(
            f"the ensemble's file {name} has {size:,} bytes, not the {file.bytes:,} declared in "
            f"the manifest; {REMEDY}"
        )
