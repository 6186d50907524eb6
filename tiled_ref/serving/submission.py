"""Write a submission for the MVTec AD 2 evaluation server: maps of all unlabelled images.

    DIR/anomaly_images/<object>/<split>/NNN_<lighting>.tiff              map, float16 (h, w)
    DIR/anomaly_images_thresholded/<object>/<split>/NNN_<lighting>.png   0 or 255, (h, w)
    DIR.tar.gz                                                           both folders, packed
    DIR.json                                                             a record of the inputs

(h, w) is the image's own size. Maps are raw; if they do not fit into float16, they are scaled by
one power of two per object. The PNG is 255 where the raw map reaches the object's pixel threshold.
"""

import gzip
import hashlib
import io
import itertools
import json
import math
import os
import tarfile
from pathlib import Path

import numpy as np

from ..archive.manifest import read_manifest
from ..data.disk import printable
from ..data.encoders import encode_png, encode_tiff
from ..data.mvtec2 import PRIVATE, private
from ..running.estimate import DECODE
from ..running.results import json_digest
from ..support.errors import InputError
from ..support.files import atomic_write, make_folder, open_regular, remove_leftovers, write_errors
from ..support.schema import digest, named, number, one_of, read_json, whole
from ..verdicts.marks import enlarge
from .predict import Predictor, rows_of

FOLDERS = {"anomaly_images": ".tiff", "anomaly_images_thresholded": ".png"}
LARGEST, SMALLEST = 65504.0, 2.0**-10  # range of a map's peak in float16 (subnormal below 2^-14)
TOP = 8  # rescaled maps of the calibration images peak between 2^(TOP - 1) and 2^TOP
BYTES = 2.1, 2000  # size of an image's two files: per pixel, plus a constant
FORMAT = "tiled-ref submission 1"
ENTRY = {
    "identity": digest,  # results.cell_identity of the ensemble
    "threshold": number(),  # its pixel threshold
    "exponent": whole(-200, 200),  # its maps are multiplied by 2^exponent
    "images": named((digest, digest, digest)),  # digests of the image, the TIFF and the PNG
}
REMEDY = "move it and the submission next to it away, or choose another folder"


class Submission:
    """The files of a submission. The constructor checks its requirements, before any training.

    Parameters: folder, DIR; root of the data set; objects, names of the objects to run.
    Raises InputError if an object, split or image is missing, or the folder contains any other
    file than a submission's: the user's files are neither packed nor removed.
    """

    def __init__(self, folder, root, objects):
        self.folder = Path(os.path.abspath(folder))
        if not self.folder.name:
            raise InputError(f"{folder} cannot be packed; give --submission a folder with a name")
        missing = [name for name in PRIVATE if name not in objects]
        if missing:
            raise InputError(
                f"a submission needs all {len(PRIVATE)} objects, {missing[0]} is missing; give "
                "--category all and the --root of the whole data set"
            )
        self.archive = self.folder.with_name(f"{self.folder.name}.tar.gz")
        self.state = self.folder.with_name(f"{self.folder.name}.json")
        self.images = {  # object -> {"<object>/<split>/NNN_<lighting>": sample}
            name: {f"{name}/{split}/{sample.path.stem}": sample
                   for split, samples in private(root, name).items() for sample in samples}
            for name in PRIVATE
        }  # fmt: skip
        make_folder(self.folder)
        self._check_folder()

    def files(self, key):
        """Return the paths of an image's TIFF and PNG."""
        return [self.folder / kind / f"{key}{suffix}" for kind, suffix in FOLDERS.items()]

    def _check_folder(self):
        """Read the record of the earlier files and remove temporary files of dead processes.
        Raises InputError for any other file."""
        files = {path for key in itertools.chain(*self.images.values()) for path in self.files(key)}
        folders = {parent for path in files for parent in path.parents[:3]}
        names = {path.name for path in files}
        for folder in folders:
            remove_leftovers(folder, names)
        remove_leftovers(self.folder.parent, {self.archive.name, self.state.name})
        present = sorted(self.folder.rglob("*"))
        for path in present:
            belongs = path in folders if path.is_dir() else path in files and path.is_file()
            if path.is_symlink() or not belongs:
                raise InputError(
                    f"{printable(path)} does not belong to a submission; "
                    "move it away, or choose another folder"
                )
        self.record = {}
        if os.path.lexists(self.state):
            schema = {"format": one_of(FORMAT), "objects": named(ENTRY)}
            self.record = read_json(self.state, schema, REMEDY, follow=False)["objects"]
        elif names.intersection(path.name for path in present) or os.path.lexists(self.archive):
            raise InputError(
                f"the submission {printable(self.folder)} lacks its {self.state.name}; "
                "move it away, or choose another folder"
            )

    def needs(self):
        """Return [(folder, bytes)]: the most disk space the submission needs in addition."""
        n_bytes = 0
        for samples in self.images.values():
            area = math.prod(next(iter(samples.values())).read_size())
            n_bytes += 2 * len(samples) * (BYTES[0] * area + BYTES[1])  # files and archive
        before = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        return [(self.folder.parent, max(0, int(n_bytes) - before))]

    def add_work(self, plan):
        """Add the private images to the work of a list of CategoryEstimates."""
        for part in plan:
            n = len(self.images[part.category.name])
            part.work["decode"] += DECODE * n
            for cell in part.cells:
                key, seconds = cell.costs["predict all"][None]
                cell.work[key] += seconds * n / len(part.category.test)

    def write(self, cells, load, options, progress, resume=False):
        """Predict the private images of all objects and pack the files.

        Parameters: cells, {object: (folder of its saved ensemble, its identity)}; load(folder), its
        TiledEnsemble; options, a PredictOptions; progress, a Progress; resume, keep the files that
        come from the same image, ensemble, threshold and scale.
        Returns the path of the archive.
        Raises InputError for an ensemble without a pixel threshold, an unreadable image, a
        non-finite map, and a file that cannot be written.
        """
        entries = {}
        for name, (folder, identity) in cells.items():
            pixel = (read_manifest(folder).thresholds or {}).get("pixel")
            if pixel is None:
                raise InputError(
                    f"the ensemble {printable(folder)} has no pixel threshold; set one with "
                    "--load and --calibrate"
                )
            peak = max(abs(pixel[key]) for key in ("minimum", "maximum", "threshold"))
            entries[name] = {"identity": identity, "threshold": pixel["threshold"],
                             "exponent": _exponent(peak), "images": {}}  # fmt: skip
        self.record = self.record if resume else {}
        for name, entry in entries.items():
            before = self.record.get(name)
            if before and all(before[key] == entry[key] for key in ("identity", "threshold")):
                before["images"] = dict(filter(self._is_whole, before["images"].items()))
            else:
                self._start(name, entry)
        for name, (folder, _) in cells.items():
            if self.record[name]["images"].keys() != self.images[name].keys():
                predictor = Predictor(load(folder), options.impl, options.threads, options.memory)
                while not self._predict(name, predictor, progress):
                    pass
        progress.note(f"pack {printable(self.archive)}")
        return self._pack()

    def _is_whole(self, item):
        """Return whether an image's files match the record; item is one of its images."""
        key, digests = item
        sample = self.images.get(key.partition("/")[0], {}).get(key)
        try:
            return sample is not None and digests == _digests(sample, *map(_read, self.files(key)))
        except InputError:
            return False

    def _start(self, name, entry):
        """Restart an object: delete its files before the record describes the new ones."""
        with write_errors(self.folder):
            for path in itertools.chain(*map(self.files, self.images[name])):
                path.unlink(missing_ok=True)
        self.record[name] = entry
        self._save()

    def _save(self):
        with atomic_write(self.state) as file:
            json.dump({"format": FORMAT, "objects": self.record}, file, sort_keys=True)

    def _predict(self, name, predictor, progress):
        """Write the missing files of an object, in the same batches as an uninterrupted run.
        Returns False if a map did not fit and the object must be restarted."""
        entry, samples, step = self.record[name], self.images[name], predictor.batch
        done, keys = entry["images"], list(samples)
        if entry["exponent"]:
            progress.note(f"{name}: maps are scaled by 2^{entry['exponent']} to fit float16")
        batches = [keys[k : k + step] for k in range(0, len(keys), step)]
        batches = [batch for batch in batches if not done.keys() >= set(batch)]
        rows = rows_of(predictor, ([samples[key] for key in batch] for batch in batches))
        stage = progress.stage(f"submission, {name}")
        for key, (sample, image_map, _, error) in zip(itertools.chain(*batches), rows):
            if error is not None:
                raise error
            if key in done:
                continue
            peak = float(np.abs(image_map).max())
            if not math.isfinite(peak):
                raise InputError(f"the map of {sample.path} is not finite, which a submission does "
                                 "not allow; train with other options")  # fmt: skip
            if math.ldexp(peak, entry["exponent"]) > LARGEST:
                self._start(name, entry | {"exponent": _exponent(peak), "images": {}})
                return False
            done[key] = self._write(key, sample, image_map, entry)
            if len(done) % step == 0 or len(done) == len(keys):
                self._save()
            stage(len(done), len(keys))
        return True

    def _write(self, key, sample, image_map, entry):
        """Write the two files of an image. Returns its entry for the record."""
        large = enlarge(image_map, sample.read_size())
        scaled = np.ldexp(large, entry["exponent"]).astype(np.float16)
        reached = large >= np.float32(entry["threshold"])
        data = encode_tiff(scaled), encode_png(reached)
        for path, content in zip(self.files(key), data):
            with atomic_write(path, "wb") as file:
                file.write(content)
        return _digests(sample, *data)

    def _pack(self):
        """Write the archive, deterministic byte for byte. Returns its path."""
        self._check_folder()
        digests = {path: found for samples in self.images.values() for key in samples
                   for path, found in zip(self.files(key), self._recorded(key))}  # fmt: skip
        base = self.folder.parent
        with (
            atomic_write(self.archive, "wb") as file,
            gzip.GzipFile("", "wb", 1, file, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w") as tar,
        ):
            for path in sorted(digests, key=lambda path: path.relative_to(base).as_posix()):
                content = _read(path)
                if hashlib.sha256(content).hexdigest() != digests[path]:
                    raise InputError(f"{path} was changed; rewrite it with --resume")
                member = tarfile.TarInfo(path.relative_to(base).as_posix())  # no time or user name
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return self.archive

    def _recorded(self, key):
        """Return the digests of an image's files. Raises InputError if one is missing."""
        found = self.record.get(key.partition("/")[0], {"images": {}})["images"].get(key)
        for path in self.files(key):
            if found is None or not path.is_file():
                raise InputError(f"{path} is missing; rewrite it with --resume")
        return found[1:]


def _exponent(peak):
    """Return the exponent of two that scales maps with this peak, 0 if they fit into float16."""
    if peak == 0 or SMALLEST <= peak <= LARGEST:
        return 0
    return TOP - math.frexp(peak)[1]


def _digests(sample, *contents):
    """SHA-256 of an image's version as JSON, and of the bytes of its two files, hex."""
    return [json_digest(sample.version), *(hashlib.sha256(data).hexdigest() for data in contents)]


def _read(path):
    """Read the bytes of a file. Raises InputError."""
    try:
        with open_regular(path, follow=False) as file:
            return file.read()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}; rewrite it "
                         "with --resume") from error  # fmt: skip
