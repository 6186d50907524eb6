"""Mutated files of every kind that is read back: each works or is an InputError, and what a run
has written, its results and pieces, is never read as something else.

    python tests/fuzz.py --seed 0 --cases 2000
    python tests/fuzz.py --seed 0 --cases 20000 --kind image      images and masks alone
    python tests/fuzz.py --seed 0 --only 1234        one case again, with its traceback

Every case is a function of the seed and its number alone. A case fails where anything else than
an InputError comes out, where its sentence is longer than LONGEST, where it takes more than
SECONDS or where the process grows by more than MEMORY. The suite runs some of them.
"""

import argparse
import hashlib
import json
import random
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from made_up import made_up_cell, made_up_result
from PIL import Image
from toys import toy_category

from tiled_ref.archive.tensors import layout, read_tensors, write_tensors
from tiled_ref.data import visa
from tiled_ref.data.images import decode_image, decode_mask
from tiled_ref.ensemble import TiledEnsemble
from tiled_ref.models.backbone import ResNet18Features
from tiled_ref.models.weights import random_weights
from tiled_ref.reporting.charts import read_pipeline
from tiled_ref.running import results, stored_images
from tiled_ref.running.analysis import load_analysis
from tiled_ref.running.cell import Options
from tiled_ref.running.pieces import Pieces
from tiled_ref.setups import SETUPS
from tiled_ref.support.errors import InputError, one_line
from tiled_ref.support.memory import PeakMemory

KINDS = (
    "image", "manifest", "manifest bytes", "tensors", "table", "thresholds", "thresholds bytes",
    "location", "result", "piece", "pipeline",
)  # fmt: skip
SECONDS = 30  # of one case, far above the slowest, so that a busy machine fails nothing
MEMORY = 2 << 30  # bytes: the largest image that is not refused, decoded, and a copy of it
LONGEST = 1000  # characters of a sentence
NUMBERS = (0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**32 - 1)
VALUES = (
    None, True, False, 0, -1, 1, 1.5, 2**31, 10**18, 10**400, 1e308, "", "x", "../../x", "\0",
    "\ud800", [], [0], [[]], {}, {"a": 1}, [1, 2, 3], "9" * 5000,
)  # fmt: skip


# Ending, modes and options of the images that are mutated.
SEEDS = [
    ("png", "1 L LA P RGB RGBA I;16", {}), ("bmp", "1 L P RGB RGBA", {}), ("gif", "1 L P RGB", {}),
    ("jpg", "L RGB CMYK", {}), ("webp", "RGB RGBA", {"lossless": True}), ("webp", "RGB RGBA", {}),
    ("pgm", "1 L RGB I;16", {}), ("tif", "L RGB CMYK", {"compression": "jpeg"}),
] + [
    ("tif", "1 L LA P PA RGB RGBA CMYK I;16 I;16B I F", {"compression": name, "strip_size": size})
    for name in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits")
    for size in (65536, 100)
]  # fmt: skip
PLAIN = (
    b"P1 # bits\n4 2\n0110\n1 0 0 1\n", b"P2\n3 2\n4095\n0 1 4095\n7 8 9\n",
    b"P3 2 1 255 # colours\n1 2 3 4 5 6\n", b"P5 3 2 4095\n" + bytes(range(12)),
    b"P6 2 1 100\n\1\2\3\4\5\6",
)  # fmt: skip


class Fuzz:
    """The seeds of the mutations, made once in a folder.

    Parameters: folder to work in; seed.
    """

    def __init__(self, folder, seed):
        self.folder, self.seed = Path(folder), seed
        picture = np.random.default_rng(0).integers(0, 256, (24, 20, 3)).astype(np.uint8)
        self.images = []
        exif = Image.Exif()
        exif[0x0112] = 6
        for ending, modes, options in SEEDS:
            for mode in modes.split():
                path = self.folder / f"seed.{ending}"
                known = {"exif": exif} if ending in ("png", "tif", "jpg", "webp") else {}
                image = Image.fromarray(picture)
                if mode in ("I;16", "I;16B"):
                    image = image.convert("I").point(lambda v: v * 257).convert("I;16")
                    image = Image.frombytes(mode, image.size, image.tobytes())
                else:
                    image = image.convert("LA" if mode == "PA" else mode).convert(mode)
                image.save(path, **known, **options)
                self.images.append((ending, path.read_bytes()))
        self.images += [("pgm", plain) for plain in PLAIN]
        write_tensors(
            self.folder / "seed.npz",
            {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([True]), "c": torch.tensor(1)},
        )
        self.tensors = (self.folder / "seed.npz").read_bytes()
        backbone = ResNet18Features(random_weights().state_dict)
        setup = SETUPS["ENS4"].with_sizes((32, 32), (16, 16))
        ensemble = TiledEnsemble(setup, backbone=backbone, weights="random")
        ensemble.fit(picture[None, :, :, :].repeat(3, axis=0))
        ensemble.calibrate(picture[None])
        ensemble.save(self.folder / "ensemble")
        self.backbone = backbone
        self.files = {path: path.read_bytes() for path in (self.folder / "ensemble").iterdir()}
        self.manifest, self.thresholds, self.location = (
            self.folder / "ensemble" / name
            for name in ("manifest.json", "thresholds.json", "location_1_0.npz")
        )
        self.ensemble = ensemble
        root = self.folder / "visa"
        for name in ("pcb1", "split_csv"):
            (root / name).mkdir(parents=True)
        lines = ["object,split,label,image,mask"]
        for k in range(3):
            (root / f"pcb1/{k}.png").write_bytes(self.images[0][1])
            label = "anomaly" if k == 2 else "normal"
            mask = "pcb1/0.png" if k == 2 else ""
            lines.append(f"pcb1,{'test' if k else 'train'},{label},pcb1/{k}.png,{mask}")
        self.table = "\n".join(lines).encode()
        self._make_cell(picture)

    def _make_cell(self, picture):
        """A finished cell, an unfinished one, and a table of pipelines."""
        self.cell = made_up_cell(self.folder / "out", toy_category(side=32), setup="SM256")
        result = made_up_result(identity="a" * 64, switches={"impl": "cython"})
        results.save_result(result, self.cell, Options(out=self.folder / "out"))
        with Pieces(self.folder / "cell", {"identity": "a"}, save=True) as pieces:
            pieces[0, 0] = {"mean": torch.arange(4.0)}
            self.maps = (picture[None, :, :, 0] / 7).astype(np.float32)
            pieces.add((0, 0), slice(0, 1), 1, self.maps, self.maps[:, 0, 0])
            self.seconds = pieces.costs([(0, 0)])
        names = ("run.json", "fit_0_0.json", "maps_0_0.npy", "scores_0_0.npz",
                 "ensemble/location_0_0.npz")  # fmt: skip
        partial = self.folder / "cell/partial"
        self.pieces = {partial / name: (partial / name).read_bytes() for name in names}
        self.left = {
            path: (path.read_bytes(), read, read(path))
            for path, read in (
                (self.cell / "metrics.json", self._metrics),
                (self.cell / "analysis.npz", lambda path: repr(load_analysis(path.parent))),
                (self.cell.parents[2] / "images.npz",
                 lambda path: repr(stored_images.load_images(path.parent))),
            )
        }  # fmt: skip
        keys = "arch setup device latency_ms images_per_second"
        self.pipeline = json.dumps([dict(zip(keys.split(), ("padim", "ENS9", "cpu", 2.0, 3.5)))]).encode()

    def _metrics(self, path):
        result = results.read_result(path)
        return {column: result[column] for column in results.RESULT_COLUMNS}

    def kinds(self):
        """Name -> function(random) that makes one mutated input and reads it."""
        return {
            "image": self.image, "manifest": self.json, "manifest bytes": self.json_bytes,
            "tensors": self.npz, "table": self.csv, "thresholds": self.decided,
            "thresholds bytes": self.decided_bytes, "location": self.state,
            "result": self.result, "piece": self.piece, "pipeline": self.rows,
        }  # fmt: skip

    def run(self, case, only=None):
        """One case: (kind, "read" or "refused", sentence); raises what should not happen."""
        rng = random.Random(f"{self.seed} {case}")
        kinds = {name: kind for name, kind in self.kinds().items() if only in (None, name)}
        kind = list(kinds)[case % len(kinds)]
        try:
            kinds[kind](rng)
        except InputError as error:
            sentence = one_line(error)
            if len(sentence) > LONGEST:
                raise AssertionError(f"a sentence of {len(sentence)} characters") from error
            return kind, "refused", sentence
        return kind, "read", ""

    def image(self, rng):
        ending, data = rng.choice(self.images)
        data = mutated(data, rng, head=(200 if ending == "tif" else 64) * (rng.random() < 0.7))
        if ending == "png" and rng.random() < 0.7:
            data = with_checksums(data)
        path = self.folder / f"case.{ending}"
        path.write_bytes(data)
        reader = rng.choice((decode_image, decode_mask))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = reader(path)
        if reader is decode_image:
            assert result.dtype == np.uint8 and result.ndim == 3 and result.shape[2] == 3
        else:
            assert result.dtype == bool and result.ndim == 2

    def json(self, rng):
        self._load(self.manifest, changed(self.files[self.manifest], rng), rng.random() < 0.8)

    def json_bytes(self, rng):
        data = mutated(self.files[self.manifest], rng, text=True)
        self._load(self.manifest, data, rng.random() < 0.8)

    def decided(self, rng):
        self._load(self.thresholds, changed(self.files[self.thresholds], rng))

    def decided_bytes(self, rng):
        self._load(self.thresholds, mutated(self.files[self.thresholds], rng, text=True))

    def state(self, rng):
        self._load(self.location, mutated(self.files[self.location], rng))

    def _load(self, path, data, bound=False):
        """Load the ensemble with another file; bound, thresholds.json is made to belong to it.
        What is loaded otherwise is what was saved."""
        for file, whole in self.files.items():
            file.write_bytes(whole)
        path.write_bytes(data)
        if bound:
            content = json.loads(self.files[self.thresholds])
            content["manifest_sha256"] = hashlib.sha256(data).hexdigest()
            self.thresholds.write_text(json.dumps(content))
        ensemble = TiledEnsemble.load(
            self.folder / "ensemble", backbone=self.backbone, allow_version_change=True
        )
        if not bound:
            assert ensemble.recipe == self.ensemble.recipe
            assert ensemble.thresholds == self.ensemble.thresholds
            for location, state in self.ensemble.states.items():
                for name, tensor in state.items():
                    assert torch.equal(ensemble.states[location][name], tensor)
        image = np.zeros((1, 3, 8, 8), np.uint8)
        if max(ensemble.setup.image_size) <= 256:  # an honest setup, only larger: not tried out
            ensemble.predict(image)

    def npz(self, rng):
        path = self.folder / "case.npz"
        path.write_bytes(mutated(self.tensors, rng))
        layout(path)
        for tensor in read_tensors(path).values():
            assert tensor.device.type == "cpu"

    def csv(self, rng):
        path = self.folder / "visa/split_csv/1cls.csv"
        path.write_bytes(mutated(self.table, rng, text=True))
        category = visa.load(self.folder / "visa", "pcb1")
        assert category.train and category.test

    def result(self, rng):
        path = rng.choice(list(self.left))
        data, read, expected = self.left[path]
        path.write_bytes(either(data, rng, path))
        try:
            assert read(path) == expected, "read as another result"
        finally:
            path.write_bytes(data)

    def piece(self, rng):
        for path, data in self.pieces.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        path = rng.choice(list(self.pieces))
        path.write_bytes(either(self.pieces[path], rng, path))
        with Pieces(self.folder / "cell", {"identity": "a"}, resume=True, save=True) as pieces:
            if not pieces.is_done((0, 0)):
                raise InputError("it is computed again")
            maps, scores = pieces.prediction((0, 0))
            assert (maps[:] == self.maps).all() and (scores == self.maps[:, 0, 0]).all()
            assert pieces[0, 0]["mean"].tolist() == [0, 1, 2, 3]
            assert pieces.costs([(0, 0)]) == self.seconds

    def rows(self, rng):
        path = self.folder / "pipeline.json"
        path.write_bytes(either(self.pipeline, rng, path))
        read_pipeline(path)


LETTERS = b"0123456789.-+eE,:;\"'{}[]/\\ \n\0\xff"


def mutated(data, rng, head=0, text=False):
    """Bytes with a few changes; head: within so many first bytes; text: mostly to letters that
    mean something in JSON and CSV."""
    data = bytearray(data)
    byte = (lambda: rng.choice(LETTERS)) if text else (lambda: rng.randrange(256))
    for _ in range(rng.randint(1, 2 if text else 4)):
        end = min(len(data), head) if head else len(data)
        at = rng.randrange(max(1, end))
        kind = rng.randrange(7)
        if kind == 0 and data:
            data[min(at, len(data) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + 1] = bytes([byte()])
        elif kind == 2 and text:
            data[at : at + 1] = str(rng.choice(NUMBERS)).encode()
        elif kind == 2:
            form = rng.choice(("<I", ">I", "<H", ">H"))
            number = rng.choice(NUMBERS) % (1 << 8 * struct.calcsize(form))
            data[at : at + struct.calcsize(form)] = struct.pack(form, number)
        elif kind == 3:
            del data[at : at + rng.randint(1, 8)]
        elif kind == 4:
            data[at:at] = bytes(byte() for _ in range(rng.randint(1, 8)))
        elif kind == 5:
            other = rng.randrange(len(data) or 1)
            data[at:at] = data[other : other + rng.randint(1, 32)]
        elif rng.random() < 0.3:
            del data[at:]
    return bytes(data)


def either(data, rng, path):
    """Mutated bytes of a file; of JSON its entries or its letters."""
    if path.suffix != ".json":
        return mutated(data, rng)
    if rng.random() < 0.4:
        return mutated(data, rng, text=True)
    content = json.loads(data)
    for _ in range(rng.randint(1, 2)):
        change(content, rng)
    return json.dumps(content).encode("utf-8", "replace")


def with_checksums(data):
    """A PNG file whose chunks have the right checksums, so that more of it is looked at."""
    out, at = data[:8], 8
    while at + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        if at + 12 + size > len(data):
            break
        body = data[at + 4 : at + 8 + size]
        out += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + size
    return out + data[at:]


def change(content, rng):
    """Replace, remove or rename one entry somewhere in a JSON value."""
    while True:
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(content[key], (dict, list)) and content[key] and rng.random() < 0.8:
            content = content[key]
            continue
        kind = rng.randrange(4)
        if kind < 2:
            content[key] = rng.choice(VALUES)
        elif kind == 2:
            del content[key]
        elif isinstance(content, dict):
            content[str(rng.choice(VALUES))[:50]] = content.pop(key)
        else:
            content.append(content[key])
        return


def changed(data, rng):
    """The bytes of a JSON file with an entry or two changed."""
    content = json.loads(data)
    for _ in range(rng.randint(1, 2)):
        change(content, rng)
    return json.dumps(content).encode("utf-8", "replace")


def fuzz(folder, seed, cases, say=None, only=None):
    """Run cases; returns (Counter of (kind, outcome), list of (case, what went wrong))."""
    source = Fuzz(folder, seed)
    counts, failures = Counter(), []
    slowest = largest = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in cases:
            peak = PeakMemory("cpu")
            before, start = peak.read()["peak_memory_bytes"], time.monotonic()
            try:
                kind, outcome, _ = source.run(case, only)
            except Exception as error:
                counts["any", "FAILED"] += 1
                failures.append((case, f"{type(error).__name__}: {error}"))
                continue
            counts[kind, outcome] += 1
            seconds = time.monotonic() - start
            grown = 0 if peak.since_start else peak.read()["peak_memory_bytes"] - before
            slowest, largest = max(slowest, seconds), max(largest, grown)
            if seconds > SECONDS:
                failures.append((case, f"took {seconds:.0f} s"))
            if grown > MEMORY:
                failures.append((case, f"took {grown:,} bytes"))
    if say:
        say(f"slowest case {slowest:.2f} s, largest growth {largest / 2**20:.0f} MiB")
    return counts, failures


def main():
    """Print what came out; the exit status is 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--only", type=int, help="one case, with its traceback")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if args.only is not None:
            try:
                print(*Fuzz(folder, args.seed).run(args.only, args.kind))
            except Exception:
                traceback.print_exc()
                return 1
            return 0
        counts, failures = fuzz(folder, args.seed, range(args.cases), print, args.kind)
    for (kind, outcome), n in sorted(counts.items()):
        print(f"{kind:16} {outcome:8} {n}")
    for case, text in failures:
        print(f"case {case}: {text}")
    print(f"{args.cases} cases, seed {args.seed}: {len(failures)} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
