"""The files of an unfinished cell, so that a crash costs one tile location.

README.md beside this file lists them. Each is written under a temporary name, synced and renamed,
so a file under its final name is complete.
"""

import contextlib
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np

from ..archive.manifest import location_name
from ..archive.tensors import read_tensors, write_tensors
from ..support.errors import InputError
from ..support.files import atomic_write, make_folder, sync_folder
from .rows import RowFile, remove_temporary

WHERE_SAME = "where-same"  # resume a run of the same identity, start any other over
WRITE_SECONDS = 5.0  # of training, from which on a state is written before it predicts


class Pieces:
    """The pieces of one cell, as a context manager that closes their files.

    Also the `states` of `ensemble.each_location`, location -> learned state: written where the
    ensemble is saved or the training took longer than WRITE_SECONDS, else forgotten, so that a
    run never holds all of them.

    Parameters: folder of the cell, None keeps everything in memory; identity, JSON values that
    decide the results; resume, keep the pieces of an unfinished run (WHERE_SAME: of the same
    identity); save, keep the states until the end; hold, keep them in memory as well; network,
    whose counts of shared layers, if any, are recorded; note(text) reports an unfinished run;
    joins, another process has opened the cell, so nothing is checked or removed.
    Raises InputError on resuming a run of another identity, and for a folder that is not writable.
    Attribute: ensemble_folder, where the states are until the ensemble is published.
    """

    def __init__(
        self, folder, identity, resume=False, *, save=False, hold=False, network=None,
        note=lambda text: None, joins=False,
    ):  # fmt: skip
        self.folder = None if folder is None else Path(folder)
        self._save, self._hold, self._network = save, hold, network
        self._states = {}  # location -> state
        self._fit = {}  # location -> seconds
        self._predicted = {}  # location -> (maps, scores), complete or not
        self._done = {}  # location -> scores, seconds and layers
        self._files = contextlib.ExitStack()
        self._since, self._layers = time.perf_counter(), np.zeros(2)
        if folder is None:
            return
        self.partial = self.folder / "partial"
        self.ensemble_folder = self.partial / "ensemble"
        if joins:
            return
        run = self.partial / "run.json"
        if self.partial.is_dir() and resume:
            try:
                _check_identity(run, identity)
            except InputError as error:
                if resume != WHERE_SAME:
                    raise
                note(f"starting over: {str(error).partition('; use the same')[0]}")
                resume = False
        if self.partial.is_dir() and resume:
            count = len(list(self.partial.glob("scores_*.npz")))
            note(f"{self.folder}: resumed, {count} tile locations are done")
        elif self.partial.exists():
            note(f"{self.folder}: an unfinished run is there and starts over; --resume continues")
            shutil.rmtree(self.partial)
        remove_temporary(self.folder)
        if not run.is_file():
            make_folder(self.ensemble_folder)
            with atomic_write(run) as file:
                json.dump(identity, file, indent=2)
        remove_temporary(self.partial)
        remove_temporary(self.ensemble_folder)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._files.close()

    @property
    def published(self):
        """Whether this or an earlier process has given the finished ensemble its name."""
        return not self.ensemble_folder.is_dir()

    def missing(self, locations, everything=False):
        """Yield the locations that are not done, or everything, and start the clock of each."""
        for location in locations:
            if everything or not self.is_done(location):
                self._lap()
                self._layers_since()
                yield location

    def is_done(self, location):
        """Whether a location has predicted and, if the ensemble is saved, its state is there."""
        if self.folder is None:
            return location in self._done
        if not (self.partial / _name("scores", location, "npz")).is_file():
            return False
        return self.published or not self._save or self._state(location).is_file()

    def __contains__(self, location):
        if location in self._states:
            return True
        return self.folder is not None and self._state(location).is_file()

    def __getitem__(self, location):
        if location not in self:
            raise KeyError(location)
        if location not in self._states:
            return read_tensors(self._state(location))
        return self._states[location]

    def __setitem__(self, location, state):
        seconds = self._fit[location] = self._lap()
        if self._hold:
            self._states[location] = state
        if self.folder is None:
            return
        with atomic_write(self.partial / _name("fit", location, "json")) as file:
            json.dump({"seconds": seconds}, file)
        if self._save or seconds >= WRITE_SECONDS:
            write_tensors(self._state(location), state)
        self._lap()

    def __delitem__(self, location):
        self._states.pop(location, None)
        if self.folder is not None:
            self._state(location).unlink(missing_ok=True)

    def add(self, location, rows, n, maps, scores):
        """Keep some predictions of a location; its last rows complete it.

        Parameters: location (i, j); rows, a slice of range(n), in ascending order; n, images;
        maps float32 (B, h, w) and scores float32 (B,) of these rows.
        """
        if rows.start == 0:
            all_maps = self.new_maps(_name("maps", location, "npy"), (n, *maps.shape[1:]))
            self._predicted[location] = all_maps, np.empty(n, np.float32)
        all_maps, all_scores = self._predicted[location]
        all_maps[rows], all_scores[rows] = maps, scores
        if rows.stop < n:
            return
        seconds, layers = np.array(self._lap()), self._layers_since()
        done = {"scores": all_scores, "seconds": seconds, "layers": layers}
        if self.folder is None:
            self._done[location] = done
            return
        del self._predicted[location]
        all_maps.commit()
        all_maps.close()
        write_tensors(self.partial / _name("scores", location, "npz"), done)
        if not self._save:
            del self[location]
        self._lap()

    def new_maps(self, name, shape):
        """Room for float32 maps of this shape: a RowFile of the name, or an array in memory."""
        if self.folder is None:
            return np.empty(shape, np.float32)
        return self._row_file(name, shape)

    def prediction(self, location):
        """(maps, scores) of a location: a RowFile or an array (N, h, w), float32 (N,)."""
        if self.folder is None:
            return self._predicted[location]
        scores = self._result(location)["scores"].numpy()
        return self._row_file(_name("maps", location, "npy")), scores

    def _row_file(self, name, shape=None):
        return self._files.enter_context(contextlib.closing(RowFile(self.partial / name, shape)))

    def _result(self, location):
        """Scores, seconds and layers of a location that is done."""
        if self.folder is None:
            return self._done[location]
        return read_tensors(self.partial / _name("scores", location, "npz"))

    def _lap(self):
        """Seconds since the last call."""
        before, self._since = self._since, time.perf_counter()
        return self._since - before

    def _layers_since(self):
        """float64 (2,): images whose layers were requested, and reused, since the last call."""
        counts = (getattr(self._network, name, 0) for name in ("asked", "reused"))
        before, self._layers = self._layers, np.array([*counts], np.float64)
        return self._layers - before

    def costs(self, locations):
        """Seconds of training, of prediction, and the part of the backbone's layers that was
        reused, 0 to 1, of all locations, earlier processes included."""
        fit, predict, total = 0.0, 0.0, np.zeros(2)
        for location in locations:
            if location not in self._fit:
                text = (self.partial / _name("fit", location, "json")).read_text("utf-8")
                self._fit[location] = json.loads(text)["seconds"]
            done = self._result(location)
            fit += self._fit[location]
            predict += float(done["seconds"])
            total += np.asarray(done.get("layers", 0))
        return fit, predict, float(total[1] / total[0]) if total[0] else 0.0

    def publish_ensemble(self):
        """Give the finished ensemble its name, replacing an earlier one."""
        final, old = self.folder / "ensemble", self.partial / "replaced"
        shutil.rmtree(old, ignore_errors=True)
        if self.published:
            return
        if final.exists():
            os.replace(final, old)
        os.replace(self.ensemble_folder, final)
        sync_folder(self.folder)

    def finish(self):
        """Remove the pieces; everything worth keeping has been written."""
        self._files.close()
        if self.folder is not None:
            remove_pieces(self.folder)

    def _state(self, location):
        return self.ensemble_folder / location_name(location)


def _name(kind, location, ending):
    return f"{kind}_{location[0]}_{location[1]}.{ending}"


def remove_pieces(folder):
    """Remove the pieces of a finished run from a cell's folder."""
    remove_temporary(folder)
    if Path(folder, "partial").is_dir():
        shutil.rmtree(Path(folder, "partial"))


def _check_identity(path, identity):
    """Raise InputError unless the JSON file holds the same identity."""
    try:
        stored = json.loads(path.read_text("utf-8"))
        if not isinstance(stored, dict):
            raise ValueError("it holds no object")
    except FileNotFoundError:
        return  # the crash happened before anything was computed
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); start over without --resume") from error
    identity = json.loads(json.dumps(identity))
    differ = [k for k in sorted({*stored, *identity}) if stored.get(k) != identity.get(k)]
    if differ:
        changes = ", ".join(f"{k} was {stored.get(k)}, is {identity.get(k)}" for k in differ)
        raise InputError(
            f"the unfinished run in {path.parent} cannot be resumed, because something else "
            f"would be computed ({changes}); use the same options, or start over without --resume"
        )
