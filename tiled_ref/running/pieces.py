"""The files of an unfinished cell, so that a crash costs one tile location.

README.md beside this file lists them. Each is written under a temporary name, synced and renamed,
so a file under its final name is complete. Each has a digest of its content and of the run's
identity, which is verified before it is reused.
"""

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np

from ..archive.ensembles import check_replaceable
from ..archive.manifest import MANIFEST, location_name
from ..archive.tensors import file_digest, read_tensors, write_tensors
from ..support.errors import InputError, shortened
from ..support.files import (
    Names,
    atomic_write,
    make_folder,
    remove_leftovers,
    replace_folder,
    sync_folder,
    write_errors,
)
from ..support.schema import maybe, number, read_json, text
from .rows import RowFile

RESULT, ANALYSIS = "metrics.json", "analysis.npz"
WRITTEN = Names(r"metrics\.json|analysis\.npz|ensemble(-[0-9a-f]{12})?")  # in a cell's folder
PIECES = Names(  # in partial/ and in partial/ensemble/
    r"(run|metrics|manifest|thresholds|fit_\d+_\d+)\.json|analysis\.npz"
    r"|merged\.npy|(maps|scores|location)_\d+_\d+\.np[yz]"
)
WHERE_SAME = "where-same"  # resume a run of the same identity, restart any other
FIT = {"seconds": number(0), "state": maybe(text()), "digest": text()}  # fit_i_j.json
AGAIN = "its tile location is computed again"
OTHER = "a digest that does not match its content: damaged, or from another run"
WRITE_SECONDS = 5.0  # of training; slower states are written before they predict


class Pieces:
    """The pieces of one cell, as a context manager that closes their files.

    Also the `states` of `ensemble.each_location`, location -> learned state: written if the
    ensemble is saved or the training took longer than WRITE_SECONDS, else dropped, so that a
    run never holds all of them.

    Parameters: folder of the cell, None keeps everything in memory; identity, see
    results.cell_identity; resume, keep the pieces of an unfinished run (WHERE_SAME: of the same
    identity); save, keep the states until the end; hold, keep them in memory too; network,
    whose counts of shared layers, if any, are recorded; note(text) reports an unfinished run and
    pieces that are damaged; joins, another process has opened the cell, so nothing is removed;
    places, location of a model -> the locations that it predicts, by default itself.
    Raises InputError on resuming a run of another identity, and for a folder that is not writable.
    Attribute: ensemble_folder, the states' folder until the ensemble is published.
    """

    def __init__(
        self, folder, identity, resume=False, *, save=False, hold=False, network=None,
        note=lambda text: None, joins=False, places=None,
    ):  # fmt: skip
        self.folder = None if folder is None else Path(folder)
        self._save, self._hold, self._network, self._note = save, hold, network, note
        self._mark = identity.get("identity", "")
        self._places = places or {}
        self._owner = {place: model for model, of in self._places.items() for place in of}
        self._states = {}  # location -> state
        self._fit = {}  # location -> seconds of training, digest of the state's file or None
        self._written = set()  # locations whose state is on the disk and verified
        self._predicted = {}  # location -> (maps, scores, digest), complete or not
        self._done = {}  # location -> scores, seconds and layers
        self._files = contextlib.ExitStack()
        self._since, self._layers = time.perf_counter(), np.zeros(2)
        if folder is None:
            return
        self.partial = self.folder / "partial"
        self.ensemble_folder = self.partial / "ensemble"
        run = self.partial / "run.json"
        if joins:
            _check_identity(run, identity)
            return
        final = self.folder / "ensemble"
        remove_leftovers(self.folder, WRITTEN)
        if save:
            check_replaceable(final)
        self._open(run, identity, resume)
        if not run.is_file():
            make_folder(self.ensemble_folder)
            with atomic_write(run) as file:
                json.dump(identity, file, indent=2)
        published = not self.ensemble_folder.exists()
        if save and published and identity_in(final / MANIFEST) == self._mark:
            with write_errors(self.ensemble_folder):
                os.replace(final, self.ensemble_folder)  # published again at the end
        remove_leftovers(self.partial, PIECES)
        remove_leftovers(self.ensemble_folder, PIECES)

    def _open(self, run, identity, resume):
        """Keep the pieces of an unfinished run, or remove them; logs which."""
        if not run.is_file():  # pieces without it belong to no run
            _clear(self.partial)
            return
        reason = f"{self.folder}: the unfinished run in it starts over"
        if resume:
            try:
                _check_identity(run, identity)
                count = len(list(self.partial.glob("scores_*.npz")))
                self._note(f"{self.folder}: resumed, {count} tile locations are done")
                return
            except InputError as error:
                # If that run had begun to publish, the earlier result is gone.
                if resume != WHERE_SAME and not (self.partial / RESULT).exists():
                    raise
                reason = f"starting over: {str(error).partition('; use the same')[0]}"
        else:
            reason += "; --resume continues"
        self._note(reason)
        _clear(self.partial)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._files.close()

    def missing(self, locations, everything=False):
        """Yield the models' locations that are not done, or all, and start the clock of each."""
        for location in locations:
            if everything or not self.is_done(location):
                self._lap()
                self._layers_since()
                yield location

    def is_done(self, location):
        """Whether a model has predicted and, if the ensemble is saved, its state is stored."""
        places = self._places.get(location, [location])
        if self.folder is None:
            return self._done.keys() >= set(places)
        if self._trained(location) is None or None in map(self._result, places):
            return False
        return not self._save or location in self

    def _trained(self, location):
        """Seconds of training and the digest of the state's file or None; None if not trained."""
        path = self._path("fit", location, "json")
        if location not in self._fit and self.folder is not None and path.is_file():
            with self._verified(path):
                fit = read_json(path, FIT, AGAIN)
                found = fit["seconds"], fit["state"]
                if fit["digest"] != self._digest(location, *found).hexdigest():
                    raise ValueError(f"it has {OTHER}")
                self._fit[location] = found
        return self._fit.get(location)

    def __contains__(self, location):
        if location in self._states or location in self._written:
            return True
        seconds, digest = self._trained(location) or (0, None)
        if digest is None or not self._state(location).is_file():
            return False
        with self._verified(self._state(location)):
            if file_digest(self._state(location)) != digest:
                raise ValueError(f"it has {OTHER}")
            self._written.add(location)
        return location in self._written

    @contextlib.contextmanager
    def _verified(self, path):
        """A context that verifies a piece's digest; a piece that fails is reported and removed."""
        try:
            yield
        except (InputError, OSError, ValueError) as error:
            why = shortened(str(error).partition("; ")[0])  # without the remedy
            self._note(f"{path} cannot be reused ({why}), so {AGAIN}")
            path.unlink(missing_ok=True)

    def _digest(self, location, *values):
        """A new SHA-256 of the run's identity, the location and other values."""
        return hashlib.sha256(repr((self._mark, location, *values)).encode())

    def __getitem__(self, location):
        if location not in self:
            raise KeyError(location)
        if location not in self._states:
            return read_tensors(self._state(location))
        return self._states[location]

    def __setitem__(self, location, state):
        seconds, digest = self._lap(), None
        if self._hold:
            self._states[location] = state
        if self.folder is not None and (self._save or seconds >= WRITE_SECONDS):
            write_tensors(self._state(location), state)
            digest = file_digest(self._state(location))
            self._written.add(location)
        self._fit[location] = found = seconds, digest
        if self.folder is None:
            return
        digest = self._digest(location, *found).hexdigest()
        with atomic_write(self._path("fit", location, "json")) as file:
            json.dump(dict(zip(FIT, (*found, digest))), file)
        self._lap()

    def __delitem__(self, location):
        self._states.pop(location, None)
        self._written.discard(location)
        if self.folder is not None:
            self._state(location).unlink(missing_ok=True)

    def add(self, location, rows, n, maps, scores):
        """Store some predictions of a location; its last rows complete it.

        Parameters: location (i, j); rows, a slice of range(n), in ascending order; n, images;
        maps float32 (B, h, w) and scores float32 (B,) of these rows.
        """
        if rows.start == 0:
            all_maps = self.new_maps(_name("maps", location, "npy"), (n, *maps.shape[1:]))
            digest = self._digest(location, all_maps.shape)
            self._predicted[location] = all_maps, np.empty(n, np.float32), digest
        all_maps, all_scores, digest = self._predicted[location]
        all_maps[rows], all_scores[rows] = maps, scores
        if self.folder is not None:
            digest.update(np.ascontiguousarray(maps, np.float32))
        if rows.stop < n:
            return
        seconds, layers = np.array(self._lap()), self._layers_since()
        done = {"scores": all_scores, "seconds": seconds, "layers": layers}
        if self.folder is not None:
            del self._predicted[location]
            all_maps.commit()
            all_maps.close()
            mark = {"digest": _location_digest(digest, done)}
            write_tensors(self._path("scores", location, "npz"), done | mark)
        self._done[location] = done
        model = self._owner.get(location, location)
        if self.folder is not None:
            if not self._save and self._done.keys() >= set(self._places.get(model, [location])):
                del self[model]
            self._lap()

    def new_maps(self, name, shape):
        """Storage for float32 maps of this shape: a RowFile of the name, or an array in memory."""
        if self.folder is None:
            return np.empty(shape, np.float32)
        return self._row_file(name, shape)

    def prediction(self, location):
        """(maps, scores) of a location: a RowFile or an array (N, h, w), float32 (N,)."""
        if self.folder is None:
            return self._predicted[location][:2]
        return self._row_file(_name("maps", location, "npy")), self._result(location)["scores"]

    def _row_file(self, name, shape=None):
        return self._files.enter_context(contextlib.closing(RowFile(self.partial / name, shape)))

    def _result(self, location):
        """Scores, seconds and layers of a location that is done, else None."""
        path = self._path("scores", location, "npz")
        if location not in self._done and self.folder is not None and path.is_file():
            with (
                self._verified(path),
                contextlib.closing(RowFile(self._path("maps", location, "npy"))) as maps,
            ):
                shapes = {"scores": ("float32", (len(maps),)), "seconds": ("float64", ())}
                shapes |= {"layers": ("float64", (2,)), "digest": ("uint8", (32,))}
                found = {key: value.numpy() for key, value in read_tensors(path, shapes).items()}
                mark, digest = found.pop("digest"), self._digest(location, maps.shape)
                for image_map in maps:
                    digest.update(image_map)
                if mark.tobytes() != _location_digest(digest, found).tobytes():
                    raise ValueError(f"with {maps.path.name} it has {OTHER}")
                self._done[location] = found
        return self._done.get(location)

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
        """Seconds of training, of prediction, and the fraction of the backbone's layers that was
        reused, 0 to 1, over the models of all locations, earlier processes included."""
        fit, predict, total = 0.0, 0.0, np.zeros(2)
        for location in locations:
            fit += self._trained(location)[0]
            for done in map(self._result, self._places.get(location, [location])):
                predict += float(done["seconds"])
                total += done["layers"]
        return fit, predict, float(total[1] / total[0]) if total[0] else 0.0

    def publish(self):
        """Move an earlier result into partial/, then rename the finished ensemble to its final
        name; an ensemble of another run that is not replaced gets its own name."""
        final = self.folder / "ensemble"
        move, manifest = (self.ensemble_folder, final), final / MANIFEST
        if not self._save:
            move = None
            if manifest.is_file() and identity_in(manifest) != self._mark:
                move = final, self.folder / f"ensemble-{file_digest(manifest)[:12]}"
                self._note(f"{final} is from another run and is now {move[1].name}")
        with write_errors(self.folder):
            if move:
                check_replaceable(move[1])  # again: a user's file can be new
            for name in (RESULT, ANALYSIS):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(self.folder / name, self.partial / name)
            sync_folder(self.folder)
            if move:
                replace_folder(*move)

    def finish(self):
        """Remove the pieces; the results are already written."""
        self._files.close()
        if self.folder is not None:
            remove_pieces(self.folder, self._mark)

    def _path(self, kind, location, ending):
        return None if self.folder is None else self.partial / _name(kind, location, ending)

    def _state(self, location):
        return self.ensemble_folder / location_name(location)


def _name(kind, location, ending):
    return f"{kind}_{location[0]}_{location[1]}.{ending}"


def _location_digest(digest, arrays):
    """The digest of a location, uint8 (32,), after that of its maps."""
    for array in arrays.values():
        digest.update(array.tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


def remove_pieces(folder, mark):
    """Remove the pieces of a finished run, of this identity, from a cell's folder."""
    remove_leftovers(folder, WRITTEN)
    partial = Path(folder, "partial")
    if identity_in(partial / "run.json") in (None, mark):
        _clear(partial)


def _clear(partial):
    """Remove the pieces in a folder partial/, and nothing else."""
    with write_errors(partial):
        (partial / "run.json").unlink(missing_ok=True)  # first: the rest then belongs to no run
        for folder in (partial / "ensemble", partial):
            remove_leftovers(folder, PIECES)
            for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
                if name in PIECES:
                    (folder / name).unlink()
            with contextlib.suppress(OSError):  # missing, or a user's file is in it
                folder.rmdir()


def identity_in(path):
    """The identity in a JSON file of a cell, or None."""
    with contextlib.suppress(InputError):
        return read_json(path, {"identity": text()}, AGAIN)["identity"]
    return None


def _check_identity(path, identity):
    """Raise InputError unless the JSON file holds the same identity."""
    stored = read_json(path, {}, "start over without --resume")
    identity = json.loads(json.dumps(identity))
    differ = [k for k in sorted({*stored, *identity}) if stored.get(k) != identity.get(k)]
    if differ:
        named = [k for k in differ if k != "identity"] or differ
        changes = ", ".join(f"{k} was {stored.get(k)}, is {identity.get(k)}" for k in named)
        changes = changes.encode("utf-8", "backslashreplace").decode()
        raise InputError(
            f"the unfinished run in {path.parent} cannot be resumed, because it would "
            f"compute something else ({shortened(changes, 400)}); use the same options, or "
            "start over without --resume"
        )
