"""Save a trained ensemble as a folder, atomically, and read its states on demand."""

import collections.abc
import math
import os
import re
import shutil
from pathlib import Path

import torch

from ..data.disk import printable
from ..models import MODELS
from ..models.backbone import channels_of
from ..models.gaussians import factors_of_inverses
from ..models.weights import tensors_digest
from ..support.errors import InputError, shortened
from ..support.files import beside, make_folder, remove_leftovers, replace_folder
from .manifest import location_name, write_manifest
from .tensors import REMEDY, file_bytes, read_tensors, write_tensors
from .thresholds import MANIFEST

_OWN = r"(?:manifest\.json|thresholds\.json|location_\d+_\d+\.npz)"
OWN_FILE = re.compile(rf"{_OWN}|\.{_OWN}\.\d+\.tmp")  # an ensemble's files, also half-written
LARGEST_BANK = 1 << 24  # vectors per location
RESIDENT_BUDGET = 2 << 30  # bytes of states kept in memory; the rest is read on demand


def save_ensemble(folder, ensemble):
    """Write a fitted ensemble: one file per location, then manifest.json.

    Parameters: folder, created if missing; an ensemble in it is replaced as a whole once the new
    one is complete; ensemble, a TiledEnsemble.
    Raises InputError if the ensemble is not fitted, or the folder holds anything else
    or cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    ensemble.check_trained()
    remove_leftovers(folder.parent, {folder.name})
    check_replaceable(folder)
    new = beside(folder, "new")
    try:
        make_folder(new)
        for location in ensemble.setup.models:
            write_tensors(new / location_name(location), ensemble.states[location])
        write_manifest(new, ensemble)
        replace_folder(new, folder)
    except OSError as error:
        raise InputError(f"cannot write {printable(folder)}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def check_replaceable(folder):
    """Raise InputError unless a folder is missing, empty, or holds only an ensemble: any other
    file would be lost."""
    name = printable(folder)
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"{name} is not a folder; save to another one")
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    others = [entry for entry in names if not OWN_FILE.fullmatch(entry)]
    if others or (names and MANIFEST not in names):
        raise InputError(
            f"the folder {name} holds something other than an ensemble ({(others or names)[0]}); "
            "save to an empty one"
        )


def check_versions(manifest, allow_change=False):
    """Raise InputError if the ensemble was trained with another major.minor version of torch.

    Results differ between versions in the last bits, sometimes more; allow_change accepts that.
    """
    trained, here = manifest.versions["torch"], str(torch.__version__)
    if not allow_change and _minor(trained) != _minor(here):
        raise InputError(
            f"the ensemble was trained with torch {trained} and this is torch {here}, which may "
            "give different scores; install that version, or pass --allow-version-change"
        )


def _minor(version):
    return version.split("+")[0].split(".")[:2]


def check_backbone(manifest, backbone):
    """Raise InputError unless a backbone has the same tensors as in training."""
    found = tensors_digest(backbone.state_dict())
    if found != manifest.backbone_digest:
        raise InputError(
            f"the ensemble was trained with other backbone weights ({manifest.weights}, "
            f"digest {manifest.backbone_digest[:12]}..., not {found[:12]}...); give those with "
            "--weights"
        )


class States(collections.abc.Mapping):
    """Mapping of location -> state of its model; every read of a file verifies its digest.

    Parameters: manifest, a Manifest; model, of the ensemble's architecture; budget, bytes: states
    stay in memory, from the first location on, as long as they fit; the rest is read every time.
    """

    def __init__(self, manifest, model, budget=RESIDENT_BUDGET):
        self._files, self._model = manifest.files, model
        self._resident, self._room = {}, budget

    def __getitem__(self, location):
        if location in self._resident:
            return self._resident[location]
        file = self._files[location]
        state = read_tensors(file.path, file.tensors, file.sha256)
        state = _checked_state(self._model, state, file.path)
        if file.bytes <= self._room:
            self._room -= file.bytes
            self._resident[location] = state
        return state

    def __contains__(self, location):  # does not read its file
        return location in self._files

    def __iter__(self):
        return iter(self._files)

    def __len__(self):
        return len(self._files)


def load_states(manifest, model, progress=None, budget=RESIDENT_BUDGET):
    """Load the states of an ensemble; each is read and checked once.

    Parameters: manifest; model, an unfitted model of the ensemble; progress, called as
    progress(done, total); budget, see States.
    Returns States.
    Raises InputError for tensors that do not match the model, and for a file whose SHA-256
    differs from the manifest's.
    """
    _check_layout(manifest, model)
    states = States(manifest, model, budget)
    for done, location in enumerate(states, start=1):
        states[location]  # noqa: B018  reads and checks it
        if progress:
            progress(done, len(states))
    return states


# ------------------------------------------------- tensor layout of each architecture's states


def _grid_of(model):
    """Height and width, in positions, of a model that keeps statistics per position."""
    return [math.ceil(side / model.STRIDE) for side in model.output_size]


def state_bytes(model, n_images):
    """Size in bytes of a location's file, for a model trained on n_images: exact for the known
    architectures, for others the size of the learned numbers alone."""
    rows = model.n_vectors(n_images) if hasattr(model, "n_vectors") else None
    tensors = _layout(model, rows)
    return 4 * model.n_learnt(n_images) if tensors is None else file_bytes(tensors)


def _layout(model, rows=None):
    """Return name -> (dtype, shape) of a fitted model's tensors, or None for an unknown
    architecture, whose tensors are limited only by the file size; rows of the memory bank, None if
    unknown."""
    arch = next((name for name, kind in MODELS.items() if type(model) is kind), None)
    if arch == "padim":
        p, d = math.prod(_grid_of(model)), len(model.channels)
        own = {"mean": ("float32", (p, d)), "factors": (model.store, (p, d * (d + 1) // 2))}
        return own | {"channels": ("int64", (d,)), "grid": ("int64", (2,))}
    if arch == "patchcore":
        channels = channels_of(model.backbone)
        width = channels["layer2"] + channels["layer3"]
        own = {"bank": ("float32", (rows, width)), "chosen": ("int64", (rows,))}
        return own | {"grid": ("int64", (2,))}
    if arch in ("fastflow", "reverse_distillation"):
        return {
            name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
            for name, tensor in model.network.state_dict().items()
        }
    return None


def _check_layout(manifest, model):
    """Raise InputError unless the manifest's tensors match the model's."""
    recipe, wanted = manifest.recipe, _layout(model)
    for location, file in manifest.files.items() if wanted is not None else ():
        free = file.tensors.get("chosen", ("", ()))[1][:1]  # (vectors in the memory bank,)
        if "packed" in file.tensors and "factors" in wanted:  # inverse covariances, until format 3
            wanted["packed"] = wanted.pop("factors")
        for name in sorted({*wanted, *file.tensors}):
            if name not in wanted or name not in file.tensors:
                has = "lacks" if name in wanted else "has"
                raise InputError(
                    f"the ensemble's manifest {has} a tensor {shortened(name)} at location "
                    f"{location}, unlike {recipe.arch}; {REMEDY}"
                )
            dtype, shape = file.tensors[name]
            sides = (free if side is None else (side,) for side in wanted[name][1])
            if (dtype, shape) != (wanted[name][0], sum(sides, ())) or free > (LARGEST_BANK,):
                raise InputError(
                    f"the ensemble's manifest declares {name} at location {location} as {dtype} "
                    f"{shape}, which does not fit {recipe.arch} in {recipe.setup.name}; {REMEDY}"
                )


def _checked_state(model, state, path):
    """Return the state in the model's format; InputError for tensors no fit could produce."""

    def wrong(what):
        return InputError(f"the ensemble's file {printable(path)} holds {what}; {REMEDY}")

    for name, tensor in state.items():
        if tensor.is_floating_point():
            if not torch.isfinite(tensor).all():
                raise wrong(f"values that are not finite in {name}")
        elif name.rpartition(".")[2] in ("order", "back"):  # permutations
            if not torch.equal(tensor.sort().values, torch.arange(len(tensor))):
                raise wrong(f"an invalid permutation in {name}")
    if _layout(model) is None:
        return state
    if "grid" in state:
        grid = _grid_of(model)
        if state["grid"].tolist() != grid:
            raise wrong(f"a grid of another size than {grid[0]} x {grid[1]}")
    if "channels" in state:
        top = sum(channels_of(model.backbone).values())
        if not (0 <= int(state["channels"].min()) and int(state["channels"].max()) < top):
            raise wrong("channels that the backbone does not have")
    if "bank" in state and not len(state["bank"]):
        raise wrong("an empty memory bank")
    if "packed" in state:
        try:
            state["factors"] = factors_of_inverses(state.pop("packed"))
        except torch.linalg.LinAlgError as error:
            raise wrong("invalid inverse covariances in packed") from error
    return state
