"""What a run leaves on the disk while it goes on, so that a crash costs one tile location.

The folder of a cell, OUT/<dataset>/<category>/<arch>/<setup>/seed<k>/:

    partial/run.json                    options, versions and images of the unfinished run
    partial/ensemble/location_i_j.npz   what the model of a location learnt, unless that is quick
    partial/fit_i_j.json                the seconds that took
    partial/maps_i_j.npy                its maps, float32 (N, h, w)
    partial/scores_i_j.npz              its scores; written last, so the prediction is complete
    metrics.json                        written when all is done, then partial/ is removed
    ensemble/                           with --save: partial/ensemble and its manifest.json

Every file is written under a temporary name, synced and renamed, so a file that has its name
is complete. One process at a time works on OUT (`OutputLock`).
"""

import collections.abc
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np

from ..archive.manifest import location_name
from ..archive.tensors import read_tensors, write_tensors
from ..support.errors import InputError
from ..support.files import atomic_write, make_folder, read_at, sync_folder, write_at

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    fcntl = None


class RowFile:
    """Maps on the disk, float32 (N, H, W) in a .npy file, written and read by rows.

    Behaves like an array: `rows[a:b] = maps` writes, `rows[a:b]` and `rows[n]` read a copy. The
    file is never mapped, so that it does not count as memory of the process however large it is.

    Parameters: path of the file, which has this name when it is complete, see `commit`; shape,
    (N, H, W) of a new file, None opens a complete one.
    Raises InputError where the disk has no room (found out at once, not when half is written),
    or the file is not what it should be.
    """

    def __init__(self, path, shape=None):
        self.path = Path(path)
        self.complete = shape is None
        self._name = self.path if self.complete else temporary_name(self.path)
        try:
            self._file = open(self._name, "rb" if self.complete else "w+b", buffering=0)
            if self.complete:
                np.lib.format.read_magic(self._file)
                header = np.lib.format.read_array_header_1_0(self._file)
                self.shape, fortran, dtype = header
                if fortran or dtype != np.float32:
                    raise ValueError(f"it holds {dtype}, not C-ordered float32")
            else:
                self.shape = tuple(int(side) for side in shape)
                header = {"descr": "<f4", "fortran_order": False, "shape": self.shape}
                np.lib.format.write_array_header_1_0(self._file, header)
            self._start = self._file.tell()
            self._row_bytes = 4 * int(np.prod(self.shape[1:]))
            size = self._start + self.shape[0] * self._row_bytes
            if self.complete:
                if os.fstat(self._file.fileno()).st_size != size:
                    raise ValueError("it is truncated")
            else:
                reserve(self._file, size)
        except (OSError, ValueError) as error:
            self.discard()
            verb = "read" if self.complete else "write"
            raise InputError(
                f"cannot {verb} {self.path}: {getattr(error, 'strerror', None) or error}; "
                + ("start over without --resume" if self.complete else OUT_REMEDY)
            ) from error

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, key):
        start, stop, single = self._range(key)
        rows = np.empty((stop - start, *self.shape[1:]), np.float32)
        try:
            read_at(self._file, rows, self._start + start * self._row_bytes)
        except EOFError as error:
            raise InputError(f"{self.path} is truncated; start over without --resume") from error
        return rows[0] if single else rows

    def __setitem__(self, key, rows):
        start, stop, single = self._range(key)
        rows = np.ascontiguousarray(rows, np.float32).reshape(stop - start, *self.shape[1:])
        try:
            write_at(self._file, rows, self._start + start * self._row_bytes)
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror}; {OUT_REMEDY}") from error

    def _range(self, key):
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step != 1:
                raise IndexError("rows are read and written in steps of 1")
            return start, max(start, stop), False
        row = int(key)
        if not 0 <= row < len(self):  # ends a loop over the rows as well
            raise IndexError(f"row {row} of {len(self)}")
        return row, row + 1, True

    def commit(self):
        """Sync the file and give it its name."""
        try:
            os.fsync(self._file.fileno())
            os.replace(self._name, self.path)
            sync_folder(self.path.parent)
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror}; {OUT_REMEDY}") from error
        self._name, self.complete = self.path, True

    def close(self):
        """Close the file, whatever has been written to it."""
        self._file.close()

    def discard(self):
        """Close, and remove what was not committed."""
        if hasattr(self, "_file"):
            self._file.close()
            if not self.complete:
                Path(self._name).unlink(missing_ok=True)


OUT_REMEDY = "choose another --out or make room, and go on with --resume"


WHERE_SAME = "where-same"  # resume what has the same identity, start the rest over
WRITE_SECONDS = 5.0  # of training, from which on a model is written before it predicts


class Pieces(collections.abc.MutableMapping):
    """The pieces of one cell, as a context manager that closes their files.

    As a mapping, location -> what its model learnt (`ensemble.each_location`): written where
    the ensemble is saved or the training took longer than WRITE_SECONDS, else forgotten, so that
    a run never holds all of them.

    Parameters: folder of the cell, None keeps all in memory; identity, a dict of JSON values
    that decide the results; resume, keep the pieces of an earlier, unfinished run, which are
    removed otherwise (WHERE_SAME keeps those of the same identity); save, the models belong to
    the result; hold, keep the models in memory as well; network, a `SharedLayers` whose
    counts are kept; note(text) tells the user what was found; joins, another process has opened
    the cell, so nothing is looked at or removed.
    Raises InputError on resuming a run with another identity, and for a folder that cannot be
    written.
    Attribute: published, whether an earlier run has given the finished ensemble its name.
    """

    def __init__(
        self, folder, identity, resume=False, *, save=False, hold=False, network=None,
        note=lambda text: None, joins=False,
    ):  # fmt: skip
        self.folder = None if folder is None else Path(folder)
        self.published = False
        self._save, self._hold = save, hold
        self._held = {}  # location -> state
        self._memory = {}
        self._open = []
        self._maps, self._scores = {}, {}  # of locations that predict
        self._since = time.perf_counter()
        self._network, self._layers = network, np.zeros(2)
        if folder is None:
            return
        self.partial = self.folder / "partial"
        run = self.partial / "run.json"
        if joins:
            self.published = not self.ensemble_folder.is_dir()
            return
        if self.partial.is_dir() and resume == WHERE_SAME:
            resume = _fits(run, identity, note)
        if self.partial.is_dir() and resume:
            _check_identity(run, identity)
            count = len(list(self.partial.glob("scores_*.npz")))
            note(f"{self.folder}: resumed, {count} tile locations are done")
            self.published = run.is_file() and not self.ensemble_folder.is_dir()
        elif self.partial.exists():
            note(f"{self.folder}: an unfinished run is there and starts over; --resume goes on")
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
        for file in self._open:
            file.discard()

    @property
    def ensemble_folder(self):
        """Where the models lie while the run goes on."""
        return self.partial / "ensemble"

    def missing(self, locations, everything=False):
        """Yield those of the locations that are not done, or everything; the time of each counts
        from here."""
        for location in locations:
            if everything or not self.is_done(location):
                self._lap()
                self._layers_since()
                yield location

    def is_done(self, location):
        """Whether a location has predicted and, where that is asked for, its model is kept."""
        if self.folder is None:
            return ("scores", location) in self._memory
        if not self._piece("scores", location, ".npz").is_file():
            return False
        return self.published or not self._save or self._model(location).is_file()

    # ------------------------------------------------------------ the models, as a mapping

    def __contains__(self, location):
        if location in self._held:
            return True
        return self.folder is not None and self._model(location).is_file()

    def __getitem__(self, location):
        if location not in self:
            raise KeyError(location)
        if location not in self._held:
            return read_tensors(self._model(location))
        return self._held[location]

    def __setitem__(self, location, state):
        seconds = self._lap()
        self._memory["fit", location] = seconds
        if self._hold:
            self._held[location] = state
        if self.folder is None:
            return
        with atomic_write(self._piece("fit", location, ".json")) as file:
            json.dump({"seconds": seconds}, file)
        if self._save or seconds >= WRITE_SECONDS:
            write_tensors(self._model(location), state)
        self._lap()

    def __delitem__(self, location):
        self._held.pop(location, None)
        if self.folder is not None:
            self._model(location).unlink(missing_ok=True)

    def __iter__(self):
        return iter(self._held)

    def __len__(self):
        return len(self._held)

    # --------------------------------------------------------------------- the predictions

    def add(self, location, rows, n, maps, scores):
        """Keep some predictions of a location; those of the last rows complete it.

        Parameters: location (i, j); rows, a slice of range(n), in ascending order; n, images;
        maps float32 (B, h, w) and scores float32 (B,) of these rows.
        """
        if rows.start == 0:
            shape = (n, *maps.shape[1:])
            self._maps[location] = self.new_maps(maps_name(location), shape)
            self._scores[location] = np.empty(n, np.float32)
        self._maps[location][rows], self._scores[location][rows] = maps, scores
        if rows.stop < n:
            return
        maps, scores = self._maps.pop(location), self._scores.pop(location)
        seconds, layers = self._lap(), self._layers_since()
        self._memory["predict", location] = seconds
        self._memory["layers", location] = layers
        if self.folder is None:
            self._memory["scores", location] = scores, maps
            return
        maps.commit()
        maps.close()
        tensors = {"scores": scores, "seconds": np.array(seconds), "layers": layers}
        write_tensors(self._piece("scores", location, ".npz"), tensors)
        if not self._save:
            del self[location]
        self._lap()

    def new_maps(self, name, shape):
        """Room for maps, float32 of this shape: a RowFile, or an array in memory."""
        if self.folder is None:
            return np.empty(shape, np.float32)
        self._open.append(RowFile(self.partial / f"{name}.npy", shape))
        return self._open[-1]

    def prediction(self, location):
        """(maps, scores) of a location: a RowFile or an array (N, h, w), float32 (N,)."""
        if self.folder is None:
            scores, maps = self._memory["scores", location]
            return maps, scores
        scores = read_tensors(self._piece("scores", location, ".npz"))["scores"].numpy()
        self._open.append(RowFile(self.partial / f"{maps_name(location)}.npy"))
        return self._open[-1], scores

    def _lap(self):
        """Seconds since the last one."""
        before, self._since = self._since, time.perf_counter()
        return self._since - before

    def _layers_since(self):
        """float64 (2,): images whose layers were asked for, and read, since the last call."""
        now = np.zeros(2)
        if self._network is not None:
            now[:] = self._network.asked, self._network.reused
        before, self._layers = self._layers, now
        return now - before

    # ------------------------------------------------------------------------------ the end

    def seconds(self, locations):
        """Seconds of (training, prediction) of all locations, earlier runs included."""
        fit = predict = 0.0
        for location in locations:
            if self.folder is None:
                fit += self._memory["fit", location]
                predict += self._memory["predict", location]
                continue
            path = self._piece("fit", location, ".json")
            fit += json.loads(path.read_text("utf-8"))["seconds"]
            path = self._piece("scores", location, ".npz")
            predict += float(read_tensors(path)["seconds"])
        return fit, predict

    def reused(self, locations):
        """Which part of the backbone's layers of all locations was reused, 0 to 1; earlier runs
        included."""
        total = np.zeros(2)
        for location in locations:
            if self.folder is None:
                total += self._memory["layers", location]
            else:
                tensors = read_tensors(self._piece("scores", location, ".npz"))
                total += tensors["layers"].numpy() if "layers" in tensors else 0
        return float(total[1] / total[0]) if total[0] else 0.0

    def publish_ensemble(self):
        """Give the finished ensemble its name, in the place of an earlier one."""
        final, old = self.folder / "ensemble", self.folder / "partial" / "replaced"
        shutil.rmtree(old, ignore_errors=True)
        if self.published:
            return
        if final.exists():
            os.replace(final, old)
        os.replace(self.ensemble_folder, final)
        sync_folder(self.folder)

    def finish(self):
        """Remove the pieces; what is worth keeping has been written."""
        if self.folder is not None:
            for file in self._open:
                file.close()
            remove_pieces(self.folder)

    def _model(self, location):
        return self.ensemble_folder / location_name(location)

    def _piece(self, kind, location, ending):
        return self.partial / f"{kind}_{location[0]}_{location[1]}{ending}"


def remove_pieces(folder):
    """Remove what a cell's folder holds beside results: the pieces of a run that is done."""
    remove_temporary(folder)
    if Path(folder, "partial").is_dir():
        shutil.rmtree(Path(folder, "partial"))


def maps_name(location):
    """The name of a location's maps in Pieces."""
    return f"maps_{location[0]}_{location[1]}"


class OutputLock:
    """Keeps a second process away from a folder of results, as a context manager.

    The lock is the operating system's and ends with the process, however that ends. Raises
    InputError where another process holds it.
    """

    NAME = ".lock"

    def __init__(self, folder):
        self.path = Path(folder) / self.NAME

    def __enter__(self):
        while True:
            try:
                self._file = open(self.path, "a+b")
            except OSError as error:
                raise InputError(
                    f"cannot write to the folder {self.path.parent}: {error.strerror}; choose "
                    "another --out"
                ) from error
            if not _lock(self._file):
                self._file.close()
                raise InputError(
                    f"another run is writing to {self.path.parent}; wait for it or choose "
                    "another --out"
                )
            try:  # another run may have removed the file between the opening and the locking
                if os.path.samestat(os.stat(self.path), os.fstat(self._file.fileno())):
                    remove_temporary(self.path.parent)  # of a run that was killed
                    return self
            except FileNotFoundError:
                pass
            self._file.close()

    def __exit__(self, *exception):
        if fcntl is not None:  # elsewhere an open file cannot be removed
            self.path.unlink(missing_ok=True)
        self._file.close()


def _lock(file):
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except BlockingIOError:
        return False
    except PermissionError:  # how msvcrt says that another process holds it
        return False
    return True


def _fits(path, identity, note):
    """Whether an unfinished run can be resumed; if not, note is told why."""
    try:
        _check_identity(path, identity)
    except InputError as error:
        note(f"starting over: {str(error).partition('; use the same')[0]}")
        return False
    return True


def _check_identity(path, identity):
    """Raise InputError unless the JSON file holds the same identity."""
    try:
        stored = json.loads(path.read_text("utf-8"))
        if not isinstance(stored, dict):
            raise ValueError("it holds no object")
    except FileNotFoundError:
        return  # the crash came before anything was computed
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); start over without --resume"
        ) from error
    identity = json.loads(json.dumps(identity))
    differ = [k for k in sorted({*stored, *identity}) if stored.get(k) != identity.get(k)]
    if differ:
        changes = ", ".join(f"{k} was {stored.get(k)}, is {identity.get(k)}" for k in differ)
        raise InputError(
            f"the unfinished run in {path.parent} cannot be resumed, because something else "
            f"would be computed ({changes}); use the same options, or start over without --resume"
        )


def temporary_name(path):
    """The name that a file has until it is complete."""
    path = Path(path)
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def remove_temporary(folder):
    """Remove what a killed process left half-written directly in a folder."""
    for path in Path(folder).glob(".*.tmp"):
        path.unlink()


def reserve(file, size):
    """Make room for size bytes now; raises OSError on a full disk."""
    if hasattr(os, "posix_fallocate"):
        if size:
            os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)
