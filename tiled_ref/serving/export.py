"""Export a trained ensemble as one torch.export program, which runs without this package.

    image    uint8 (1, 3, H, W), RGB, of the setup's size
    map      float32 (1, H, W), all tile locations untiled, seams smoothed        Sec. 3.3
    score    float32 (1,)                                                         Eq. 5
    verdict  bool (1,), score >= threshold
"""

import os
import warnings
from pathlib import Path

import torch

from ..data.disk import printable
from ..models.maps import convolved
from ..running.engine import Resident
from ..smoothing import seam_mask
from ..support.devices import to_device
from ..support.errors import InputError
from ..support.files import atomic_write
from ..support.memory import available_memory
from ..verdicts.marks import locations_seen

GiB = 2**30


class Program(torch.nn.Module):
    """Prediction as a fixed sequence of torch operations.

    Parameters: ensemble, a TiledEnsemble, fitted or loaded, on the device where the program will
    run.
    """

    def __init__(self, ensemble):
        super().__init__()
        ensemble.check_trained()
        self.recipe = ensemble.recipe
        self.models = Resident(ensemble, ensemble.states, joint=False)
        parts = [ensemble.network, *(getattr(m, "network", None) for m in self.models.heads)]
        self.parts = torch.nn.ModuleList(filter(None, parts)).requires_grad_(False)
        self.threshold = ensemble.thresholds and ensemble.thresholds["image"]["threshold"]
        seen = locations_seen(ensemble.grid, ensemble.roi).ravel()
        self.seen = [k for k, counts in enumerate(seen.tolist()) if counts]
        band = seam_mask(ensemble.grid, self.recipe.seam_width)
        self.band = to_device(band, ensemble.device) if band.any() else None

    def forward(self, image):
        """image uint8 (1, 3, H, W) -> map float32 (1, H, W), score float32 (1,) and, if the
        ensemble has thresholds, verdict bool (1,)."""
        grid = self.recipe.grid
        maps, scores = map(torch.stack, zip(*self.models.found(image)))  # (T, 1, h, w), (T, 1)
        untile = grid.untile if self.recipe.merge == "mean" else grid.untile_window
        merged = untile(maps.unflatten(0, (grid.rows, grid.cols)))  # (1, H, W)
        if self.band is not None:
            merged = torch.where(self.band, convolved(merged, self.recipe.seam_sigma), merged)
        scores = scores[self.seen].double()
        if self.recipe.score != "mean":
            k = int(self.recipe.score[4:] or 1)  # "max" or "top:K"
            scores = scores.sort(dim=0, descending=True).values[:k]
        score = scores.mean(0).float()
        if self.threshold is None:
            return merged, score
        return merged, score, score.double() >= self.threshold


class _Guarded:
    """A file that stores a write error for later: torch's writer aborts the process on an error."""

    def __init__(self, file):
        self.file, self.error = file, None

    def write(self, data):
        try:
            if self.error is None:
                self.file.write(data)
        except BaseException as error:  # an interrupt too
            self.error = error
        return len(data)


def check_file(path):
    """Raise InputError unless a program can be written to a path."""
    path = Path(path)
    named = f"--export {printable(path)}"
    if path.suffix != ".pt2":
        raise InputError(f"{named}: torch.export loads only .pt2 files; add that suffix")
    if path.is_dir():
        raise InputError(f"{named} is a folder; name a file")
    if not path.parent.is_dir():
        raise InputError(f"{named}: no such folder: {printable(path.parent)}; create it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"{named}: the folder is not writable; choose another one")


def export(ensemble, path):
    """Write a Program of an ensemble with torch.export.save, for torch.export.load.

    Parameters: ensemble, a TiledEnsemble, fitted or loaded; path, a .pt2 file; an existing file is
    replaced once the new one is complete.
    Raises InputError as `check_file` does, if the models of all locations do not fit into memory,
    and if the file cannot be written.
    """
    check_file(path)
    ensemble.check_trained()
    first = ensemble.states[ensemble.grid.locations()[0]]
    needed = sum(tensor.nbytes for tensor in first.values()) * ensemble.setup.n_models
    if needed > (free := available_memory()):
        raise InputError(
            f"--export needs the models of all tile locations in memory, {needed / GiB:.1f} GiB, "
            f"but {free / GiB:.1f} GiB are free; export on a larger machine, or train with fewer "
            "tiles"
        )
    image = torch.zeros(1, 3, *ensemble.setup.image_size, dtype=torch.uint8)
    with torch.no_grad():
        program = torch.export.export(Program(ensemble), (to_device(image, ensemble.device),))
    with atomic_write(path, "wb") as file, warnings.catch_warnings():
        # Raised for weights in the channels-last layout, which are saved correctly.
        warnings.filterwarnings("ignore", "No complete tensor found in the group")
        torch.export.save(program, guarded := _Guarded(file))
        if guarded.error is not None:
            raise guarded.error
