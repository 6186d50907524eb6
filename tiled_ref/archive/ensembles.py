"""Trained ensembles on disk: plain tensors and JSON, nothing that runs when it is read."""

import collections.abc
import functools
import hashlib
import json
import math
import os
import re
import shutil
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .. import __version__
from ..data.disk import printable
from ..models import MODELS
from ..models.backbone import channels_of
from ..models.weights import tensors_digest
from ..setups import OPTIONS, Recipe, Setup, is_allowed
from ..support.errors import InputError
from ..support.files import atomic_write, make_folder, sync_folder
from ..thresholds import MODES

# What a tensor file may hold; each is written little-endian.
DTYPES = tuple(
    np.dtype(name) for name in ("bool", "uint8", "int32", "int64", "float16", "float32", "float64")
)
HEADER_BYTES = 1 << 14  # longest header of a tensor that is read
HASHED_AT_ONCE = 1 << 20


# --------------------------------------------------------------------------- tensor files


def write_tensors(path, tensors):
    """Write named tensors to one file, an uncompressed .npz, which appears complete or not.

    Parameters: path; tensors, dict of str to torch.Tensor (or NumPy array) of a type in
    DTYPES. Equal tensors give equal bytes, whenever they are written.
    Raises InputError where the file cannot be written, TypeError for another type.
    """
    with atomic_write(path, "wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, tensor in tensors.items():
                if isinstance(tensor, torch.Tensor):
                    tensor = tensor.detach().cpu().numpy()
                array = np.ascontiguousarray(tensor).reshape(np.shape(tensor))
                if array.dtype not in DTYPES:
                    raise TypeError(f"cannot write {name}: a tensor of type {array.dtype}")
                array = array.astype(array.dtype.newbyteorder("<"), copy=False)
                info = zipfile.ZipInfo(f"{name}.npy")  # with the date of 1980, always
                with archive.open(info, "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, (1, 0), allow_pickle=False)


def read_tensors(path, expected=None):
    """Read what `write_tensors` has written; nothing in the file is ever executed.

    Sizes are compared before anything is allocated: the members are not compressed, so
    together they cannot be larger than the file.

    Parameters: path; expected, name -> (dtype, shape) that the file must hold, no more and no
    less, or None.
    Returns a dict of str to torch.Tensor, in the order of the file.
    Raises InputError for no such file, or not one of ours: truncated, damaged, compressed, with
    other tensors than expected or something else than plain numbers.
    """

    def read(archive, members):
        if expected is not None and set(members) != set(expected):
            raise ValueError("it holds other tensors than expected")
        return {
            key: _read_member(archive, key, info, expected and expected[key])
            for key, info in members.items()
        }

    return _reading(path, read)


def layout(path):
    """What a file of `write_tensors` holds: name -> (dtype, shape), from the headers.

    Raises InputError as read_tensors does.
    """

    def read(archive, members):
        found = {}
        for key, info in members.items():
            with archive.open(info) as member:
                dtype, shape = _read_header(member, key, info)
            found[key] = dtype.name, shape
        return found

    return _reading(path, read)


def _reading(path, read):
    """read(archive, members) of the file; whatever goes wrong becomes an InputError."""
    name = printable(path)
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            return read(archive, _members(archive, os.fstat(file.fileno()).st_size))
    except OSError as error:
        raise InputError(f"the file {name} cannot be read: {error.strerror or error}") from error
    except MemoryError as error:
        raise InputError(f"there is not enough memory to read the file {name}") from error
    except Exception as error:  # zipfile and NumPy raise many types over a damaged file
        raise InputError(
            f"the file {name} is damaged or was not written by this program "
            f"({_short(error)}); restore it from a copy, or train again"
        ) from error


def open_regular(path, follow=True):
    """Open a file for reading bytes; OSError for anything but a regular file.

    Returns the open file. A pipe or a device would be read for ever. Without follow a link is
    refused as well, which could lead anywhere.
    """
    if not follow and os.path.islink(path):
        raise OSError("it is a link")
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("it is not a regular file")
    return open(descriptor, "rb")


def file_digest(path):
    """SHA-256 of a file, hex. Raises OSError."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while piece := file.read(HASHED_AT_ONCE):
            digest.update(piece)
    return digest.hexdigest()


def _members(archive, n_bytes):
    """Tensor name -> ZipInfo; ValueError unless all are stored as they are and fit the file."""
    members = {}
    for info in archive.infolist():
        key, dot, ending = info.filename.rpartition(".")
        if ending != "npy" or not dot or key in members:
            raise ValueError(f"its member {info.filename!r} is not a tensor")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise ValueError(f"its member {info.filename!r} is compressed")
        members[key] = info
    if sum(info.file_size for info in members.values()) > n_bytes:
        raise ValueError("its members are larger than the file")
    return members


def _read_header(member, key, info):
    """dtype and shape of a tensor; ValueError unless they are plain and fit the member."""
    if np.lib.format.read_magic(member) != (1, 0):
        raise ValueError(f"{key} has another version of the format")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(
        member, max_header_size=HEADER_BYTES
    )
    if dtype not in DTYPES or fortran:
        raise ValueError(f"{key} is no plain tensor but {dtype}")
    if any(side < 0 for side in shape):
        raise ValueError(f"{key} has the shape {shape}")
    n_bytes = dtype.itemsize * math.prod(shape)
    if member.tell() + n_bytes != info.file_size:
        raise ValueError(f"{key} declares {n_bytes:,} bytes and holds another number")
    return dtype, shape


def _read_member(archive, key, info, expected):
    with archive.open(info) as member:
        dtype, shape = _read_header(member, key, info)
        if expected is not None and (dtype.name, shape) != (expected[0], tuple(expected[1])):
            raise ValueError(
                f"{key} is {dtype.name} {shape}, expected is {expected[0]} {tuple(expected[1])}"
            )
        n_bytes = info.file_size - member.tell()
        data = bytearray(n_bytes)
        view, done = memoryview(data), 0
        while done < n_bytes:
            count = member.readinto(view[done : done + HASHED_AT_ONCE])
            if not count:
                raise ValueError(f"{key} breaks off")
            done += count
        if member.read(1):
            raise ValueError(f"{key} is longer than declared")
    array = np.frombuffer(data, dtype).reshape(shape)
    if dtype == bool and (array.view(np.uint8) > 1).any():
        raise ValueError(f"{key} holds values that are neither true nor false")
    return torch.from_numpy(array.astype(dtype.newbyteorder("="), copy=False))


# ----------------------------------------------------------------------- the whole ensemble

MANIFEST = "manifest.json"
FORMAT = "tiled-ref ensemble"
FORMAT_VERSION = 2
MANIFEST_BYTES = 64 << 20
LARGEST_SIDE = 1 << 20  # pixels
RESIDENT_BUDGET = 2 << 30  # bytes of models kept in memory; beyond it they are read when needed


def location_name(location):
    """The file of a location in the folder of an ensemble."""
    return f"location_{location[0]}_{location[1]}.npz"


def save_ensemble(folder, ensemble, **facts):
    """Write a fitted ensemble: one file per location, then manifest.json.

    Parameters: folder, is made; an ensemble that is there already is replaced as a whole when the
    new one is complete, any other folder that is not empty is refused; ensemble, a TiledEnsemble;
    facts, see `write_manifest`.
    Raises InputError where the ensemble has not been fitted, or the folder holds something else
    or cannot be written.
    """
    folder = Path(folder)
    ensemble.check_trained()
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"{printable(folder)} is not a folder; choose another one to save to")
    if folder.is_dir() and os.listdir(folder) and not (folder / MANIFEST).is_file():
        raise InputError(
            f"the folder {printable(folder)} holds something else than an ensemble; choose an "
            "empty one to save to"
        )
    new = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        make_folder(new)
        for location in ensemble.grid.locations():
            write_tensors(new / location_name(location), ensemble.states[location])
        write_manifest(new, ensemble, **facts)
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise InputError(f"cannot write {printable(folder)}: {error.strerror or error}") from error
    finally:
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)


def write_manifest(folder, ensemble, *, thresholds=None, category=None, versions=None):
    """Write manifest.json beside the files of all locations, which it describes.

    Parameters: folder, holds `location_name(location)` of every location; ensemble; thresholds
    of thresholds.find_thresholds, by default the ensemble's own; category it was trained on and
    versions to keep, for people.
    Raises InputError where a file is missing or cannot be read, or the manifest not written.
    """
    files = []
    for i, j in ensemble.grid.locations():
        path = Path(folder, location_name((i, j)))
        tensors = {name: [dtype, list(shape)] for name, (dtype, shape) in layout(path).items()}
        files.append(
            {
                "location": [i, j],
                "bytes": path.stat().st_size,
                "sha256": file_digest(path),
                "tensors": tensors,
            }
        )
    setup = ensemble.setup
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "category": category,
        "setup": {
            "name": setup.name,
            "kind": setup.kind,
            "image_size": list(setup.image_size),
            "tile_size": list(setup.tile_size),
            "stride": list(setup.stride),
        },
        **ensemble.recipe.values(),
        "weights": ensemble.weights,
        "backbone_digest": tensors_digest(ensemble.backbone.state_dict()),
        "thresholds": ensemble.thresholds if thresholds is None else thresholds,
        "versions": {**(versions or {}), "tiled_ref": __version__, "torch": str(torch.__version__)},
    }
    head = json.dumps(manifest, indent=2, allow_nan=False).removesuffix("\n}")
    lines = ",\n    ".join(json.dumps(entry) for entry in files)  # one line per location
    with atomic_write(Path(folder, MANIFEST)) as file:
        file.write(f'{head},\n  "files": [\n    {lines}\n  ]\n}}\n')


@dataclass(frozen=True)
class Manifest:
    """A manifest.json that has been checked.

    Parameters: recipe; weights, their kind, and backbone_digest of their tensors; thresholds as
    of thresholds.find_thresholds, or None; category, what was trained on; versions of the
    packages; files, location -> StateFile.
    """

    recipe: Recipe
    weights: str
    backbone_digest: str
    thresholds: dict
    category: str
    versions: dict
    files: dict


@dataclass(frozen=True)
class StateFile:
    """The file of a location: path, bytes, sha256, and tensors, name -> (dtype, shape)."""

    path: Path
    bytes: int
    sha256: str
    tensors: dict


def read_manifest(folder):
    """Read and check the manifest.json of an ensemble, and that all its files are there.

    Returns Manifest. Raises InputError, in one sentence, for anything that is not an ensemble
    of this program, complete and of a version that it reads.
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
            f"the folder {name} holds no {MANIFEST}, so it is no saved ensemble; give the "
            "folder that --save has written"
        ) from error
    except OSError as error:
        raise InputError(f"{printable(path)} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{printable(path)} is damaged or no manifest ({_short(error)}); restore it from a "
            "copy, or train again"
        ) from error
    try:
        manifest = _checked_manifest(folder, content)
    except (_ManifestError, OverflowError) as error:
        raise InputError(
            f"{printable(path)} does not describe an ensemble of this program ({error}); restore "
            "it from a copy, or train again"
        ) from error
    for location, file in manifest.files.items():
        _check_file(location, file)
    return manifest


class States(collections.abc.Mapping):
    """Location -> state of its model, read from the files of an ensemble when asked for.

    Parameters: manifest, a Manifest; model, a model of the kind whose states they are; budget,
    bytes: what fits stays in memory, from the first location on; the rest is read again each
    time. Every file has been compared with its digest before.
    """

    def __init__(self, manifest, model, budget=RESIDENT_BUDGET):
        self._manifest = manifest
        self._model = model
        self._resident = {}
        self._room = budget

    def __getitem__(self, location):
        if location in self._resident:
            return self._resident[location]
        file = self._manifest.files[location]
        state = read_tensors(file.path, file.tensors)
        _check_state(self._model, state, file.path)
        if file.bytes <= self._room:
            self._room -= file.bytes
            self._resident[location] = state
        return state

    def __contains__(self, location):  # without reading its file
        return location in self._manifest.files

    def __iter__(self):
        return iter(self._manifest.files)

    def __len__(self):
        return len(self._manifest.files)


def load_states(manifest, model, progress=None, budget=RESIDENT_BUDGET):
    """The states of an ensemble, after every file has been compared with its digest.

    Parameters: manifest; model, a fresh one of the ensemble; progress, called as
    progress(done, total); budget, see States.
    Returns States.
    Raises InputError for tensors that are not those of the model, and for a file whose SHA-256
    is not that of the manifest.
    """
    recipe, wanted = manifest.recipe, _layout(model)
    for location, file in manifest.files.items() if wanted is not None else ():
        for name in sorted({*wanted, *file.tensors}):
            if name not in wanted or name not in file.tensors:
                has = "lacks" if name in wanted else "has"
                raise InputError(
                    f"the ensemble's manifest {has} a tensor {_short(name)} at location "
                    f"{location}, unlike {recipe.arch}; restore it from a copy, or train again"
                )
            dtype, shape = file.tensors[name]
            same = dtype == wanted[name][0] and len(shape) == len(wanted[name][1])
            if not same or any(b not in (None, a) for a, b in zip(shape, wanted[name][1])):
                raise InputError(
                    f"the ensemble's manifest says that {name} at location {location} is {dtype} "
                    f"{shape}, which does not fit {recipe.arch} in {recipe.setup.name}; "
                    "restore it from a copy, or train again"
                )
    for done, file in enumerate(manifest.files.values(), start=1):
        try:
            digest = file_digest(file.path)
        except OSError as error:
            raise InputError(
                f"the file {printable(file.path)} cannot be read: {error.strerror or error}"
            ) from error
        if digest != file.sha256:
            raise InputError(
                f"the ensemble's file {printable(file.path)} has been changed or is damaged "
                "(its SHA-256 is not that of the manifest); restore it from a copy, or train again"
            )
        if progress:
            progress(done, len(manifest.files))
    return States(manifest, model, budget)


def check_versions(manifest, allow_change=False):
    """Raise InputError where the ensemble was trained with another torch, major.minor.

    Other versions compute other bits, and sometimes other features; allow_change takes that.
    """
    trained, here = manifest.versions["torch"], str(torch.__version__)
    if not allow_change and _minor(trained) != _minor(here):
        raise InputError(
            f"the ensemble was trained with torch {trained} and this is torch {here}, which may "
            "give other scores; install that version, or accept it with --allow-version-change"
        )


def check_backbone(manifest, backbone):
    """Raise InputError unless a backbone has the tensors that the ensemble was trained with."""
    found = tensors_digest(backbone.state_dict())
    if found != manifest.backbone_digest:
        raise InputError(
            f"the ensemble was trained with other weights of the backbone ({manifest.weights}, "
            f"digest {manifest.backbone_digest[:12]}..., not {found[:12]}...); give those with "
            "--weights"
        )


# ------------------------------------------------------------------- checking the manifest


class _ManifestError(ValueError):
    """What is wrong with an entry of a manifest."""


def _no_constant(text):
    raise ValueError(f"it holds {text}")


def _short(error):
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else text[:117] + "..."


def _minor(version):
    return version.split("+")[0].split(".")[:2]


def _entry(content, key, kinds, fits=lambda value: True):
    """content[key], an instance of kinds (bool is no number) that fits; _ManifestError else."""
    if not isinstance(content, dict) or key not in content:
        raise _ManifestError(f"it has no entry {key}")
    value = content[key]
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if type(value) not in kinds or not fits(value):
        raise _ManifestError(f"its entry {key} is {_short(repr(value))}")
    return value


def _checked_manifest(folder, content):
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise _ManifestError(f'it has no entry "format": "{FORMAT}"')
    version = _entry(content, "format_version", int)
    if version > FORMAT_VERSION:
        raise InputError(
            f"the ensemble in {printable(folder)} was written by a newer version of tiled-ref "
            f"(format {_short(version)}, this one reads {FORMAT_VERSION}); update tiled-ref"
        )
    if 1 <= version < FORMAT_VERSION:
        raise InputError(
            f"the ensemble in {printable(folder)} was written by an older version of tiled-ref "
            f"(format {version}, this one reads {FORMAT_VERSION}); train it again"
        )
    if version != FORMAT_VERSION:
        raise _ManifestError(f"its format_version is {_short(version)}")
    setup = _checked_setup(_entry(content, "setup", dict))
    arch = _entry(content, "arch", str, lambda value: value in MODELS)
    switches = _entry(content, "switches", dict)
    for key, value in switches.items():
        _entry(switches, key, (str, int, float, bool, type(None)))
        if isinstance(value, str) and len(value) > 100:
            raise _ManifestError(f"its switch {_short(repr(key))} is too long")
    options = {}
    for option in OPTIONS:
        if option.name == "precision" and option.name not in content:
            continue  # older ensembles have none
        kind = option.metadata["kind"]
        kinds = (int, float) if kind is float else kind
        value = _entry(content, option.name, kinds, functools.partial(is_allowed, option))
        options[option.name] = kind(value)
    recipe = Recipe(
        setup, arch, switches=switches,
        seed=_entry(content, "seed", int, lambda value: 0 <= value < 2**63),
        batch_size=_entry(content, "batch_size", int, lambda value: 1 <= value <= 1 << 16),
        **options,
    )  # fmt: skip
    return Manifest(
        recipe=recipe,
        weights=_entry(
            content, "weights", (str, type(None)), lambda x: x in (None, "imagenet", "random")
        ),
        backbone_digest=_entry(content, "backbone_digest", str, _is_digest),
        thresholds=_checked_thresholds(_entry(content, "thresholds", (dict, type(None)))),
        category=_entry(content, "category", (str, type(None))),
        versions=_checked_versions(_entry(content, "versions", dict)),
        files=_checked_files(folder, setup, _entry(content, "files", list)),
    )


def _checked_setup(content):
    def pair(key):
        sides = _entry(content, key, list, lambda value: len(value) == 2)
        if not all(type(side) is int and 1 <= side <= LARGEST_SIDE for side in sides):
            raise _ManifestError(f"its entry {key} is {_short(repr(sides))}")
        return tuple(sides)

    name = _entry(content, "name", str, lambda value: len(value) <= 100)
    kind = _entry(content, "kind", str, lambda value: len(value) <= 100)
    try:
        return Setup(name, kind, pair("image_size"), pair("tile_size"), pair("stride"))
    except InputError as error:
        raise _ManifestError(f"its setup is impossible: {error}") from error


def _checked_versions(content):
    version = _entry(content, "torch", str, lambda value: len(value) <= 100)
    if not re.fullmatch(r"\d+\.\d+[\w.+-]*", version):
        raise _ManifestError("its version of torch is none")
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


def _checked_files(folder, setup, content):
    grid = setup.ensemble_grid
    if len(content) != grid.rows * grid.cols:
        raise _ManifestError(
            f"it lists {len(content)} files, the setup has {grid.rows * grid.cols} locations"
        )
    files = {}
    for expected, entry in zip(grid.locations(), content):
        location = _entry(entry, "location", list)
        if location != list(expected):
            raise _ManifestError(f"it lists {_short(repr(location))} in the place of {expected}")
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
                raise _ManifestError(f"its tensor {_short(repr(name))} is {_short(repr(value))}")
            tensors[name] = value[0], tuple(value[1])
        files[expected] = StateFile(
            path=folder / location_name(expected),  # never a name from the manifest
            bytes=_entry(entry, "bytes", int, lambda value: 0 <= value < 1 << 48),
            sha256=_entry(entry, "sha256", str, _is_digest),
            tensors=tensors,
        )
    return files


def _is_digest(value):
    return re.fullmatch(r"[0-9a-f]{64}", value) is not None


def _check_file(location, file):
    """InputError unless the file of a location is there, regular, and has the declared size."""
    name = printable(file.path)
    try:
        with open_regular(file.path, follow=False) as opened:
            size = os.fstat(opened.fileno()).st_size
    except FileNotFoundError as error:
        raise InputError(
            f"the ensemble lacks the file {name} of tile location {location}; restore it from a "
            "copy, or train again"
        ) from error
    except OSError as error:
        raise InputError(
            f"the ensemble's file {name} cannot be read: {error.strerror or error}"
        ) from error
    if size != file.bytes:
        raise InputError(
            f"the ensemble's file {name} has {size:,} bytes, not {file.bytes:,} as the manifest "
            "says; restore it from a copy, or train again"
        )


def _layout(model):
    """Name -> (dtype, shape) of the tensors of a fitted model, None for a side that depends
    on the training images; None for an architecture that this module does not know, whose
    tensors are then only bounded by the size of their file."""
    arch = next((name for name in LAYOUTS if type(model) is MODELS.get(name)), None)
    return None if arch is None else LAYOUTS[arch](model)


def _grid_of(model):
    """Height and width in positions of the models that keep statistics per position."""
    return [math.ceil(side / model.STRIDE) for side in model.output_size]


def _padim_layout(model):
    p, d = math.prod(_grid_of(model)), len(model.channels)
    own = {"mean": ("float32", (p, d)), "packed": ("float32", (p, d * (d + 1) // 2))}
    return own | {"channels": ("int64", (d,)), "grid": ("int64", (2,))}


def _patchcore_layout(model):
    channels = channels_of(model.backbone)
    width = channels["layer2"] + channels["layer3"]
    own = {"bank": ("float32", (None, width)), "chosen": ("int64", (None,))}
    return own | {"grid": ("int64", (2,))}


def _network_layout(model):
    return {
        name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in model.state().items()
    }


LAYOUTS = {
    "padim": _padim_layout,
    "patchcore": _patchcore_layout,
    "fastflow": _network_layout,
    "reverse_distillation": _network_layout,
}


def _check_state(model, state, path):
    """InputError for tensors that no fit of this model could have left."""

    def wrong(what):
        return InputError(
            f"the ensemble's file {printable(path)} holds {what}; restore it from a copy, or "
            "train again"
        )

    for name, tensor in state.items():
        if tensor.is_floating_point():
            if not torch.isfinite(tensor).all():
                raise wrong(f"values that are not finite in {name}")
        elif name.rpartition(".")[2] in ("order", "back"):  # permutations
            if not torch.equal(tensor.sort().values, torch.arange(len(tensor))):
                raise wrong(f"no permutation in {name}")
    if _layout(model) is None:
        return
    if "grid" in state:
        grid = _grid_of(model)
        if state["grid"].tolist() != grid:
            raise wrong(f"a grid of another size than {grid[0]} x {grid[1]}")
    if "channels" in state:
        top = sum(channels_of(model.backbone).values())
        if not (0 <= int(state["channels"].min()) and int(state["channels"].max()) < top):
            raise wrong("channels that the backbone has not")
    if "bank" in state and not len(state["bank"]):
        raise wrong("an empty memory bank")
