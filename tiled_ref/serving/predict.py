"""A saved ensemble on new images: scores, verdicts, maps and pictures of any number of them.

    paths                   a file, a folder with all below it, or a list on standard input
    decode, resize          a batch of images at a time, so memory does not grow with their number
    Predictor               raw maps (B, H, W) and scores (B,)
    predictions.csv         a row per image, in the order of the paths
    maps/, pictures/        what was asked for, regions.csv with the areas

An image that cannot be read costs its own row, not the run.
"""

import csv
import io
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..archive.ensembles import RESIDENT_BUDGET
from ..data import encoders, reading
from ..data.disk import IMAGE_ENDINGS, FileSample, printable
from ..data.samples import NORMAL
from ..models.maps import upsample_bilinear
from ..reporting.drawing import render
from ..running.engine import Engine
from ..support.errors import InputError, one_line
from ..support.files import atomic_write, make_folder
from ..support.progress import Progress
from ..thresholds import normalize

BATCH_BUDGET = 512 << 20  # bytes of decoded images, tile maps and merged maps of a batch
LARGEST_BATCH = 64  # images; more where the models are read again for every batch
LABELLED_REGIONS = 24  # regions of a picture that get their area printed
COLUMNS = (
    "path", "score", "normalised_score", "verdict", "regions", "anomalous_px", "name", "error",
)  # fmt: skip
REGION_COLUMNS = (
    "path", "name", "region", "area_px", "area_map_px", "top", "left", "bottom", "right",
    "normalised_maximum",
)  # fmt: skip
PICTURES = ("anomalous", "all", "none")
MAPS = ("npy", "tiff")
OURS = re.compile(r"\d{6,}_.*(_mask\.png|_overlay\.png|_contours\.png|_regions\.json|\.npy|\.tiff)")


@dataclass(frozen=True)
class PredictOptions:
    """What is written of each image.

    Parameters: maps, None, "npy" or "tiff", the raw map, float32 (H, W) at the setup's image
    size; pictures, of which images mask, overlay and contours are drawn, at the image's own
    size; memory, see `engine`, None keeps all models in memory where they fit a budget.
    """

    maps: str = None
    pictures: str = "anomalous"
    impl: str = "cython"
    threads: int = None
    memory: str = None


class Predictor:
    """The models of an ensemble, ready for one batch of images after another.

    Parameters: ensemble, a fitted or loaded TiledEnsemble; impl and threads, see
    `merging.untile_average`; memory, see `engine`. Where it is None all models stay in memory if
    they fit RESIDENT_BUDGET, else none.
    """

    def __init__(self, ensemble, impl="cython", threads=None, memory=None):
        ensemble.check_trained()
        self.ensemble = ensemble
        if memory is None:
            first = ensemble.states[ensemble.grid.locations()[0]]
            n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in first.values())
            fits = n_bytes * ensemble.setup.n_models <= RESIDENT_BUDGET
            memory = "resident" if fits and ensemble.device.type == "cpu" else "low"
        self.engine = Engine(ensemble, memory, impl=impl, threads=threads)

    @property
    def batch(self):
        """Images of a batch that fit into BATCH_BUDGET, one at least."""
        grid, (height, width) = self.ensemble.grid, self.ensemble.setup.image_size
        tiles = grid.rows * grid.cols * grid.tile_size[0] * grid.tile_size[1]
        per_image = 3 * height * width + 4 * tiles + 3 * 4 * height * width
        most = LARGEST_BATCH if self.engine.resident else 1 << 16
        return max(1, min(most, BATCH_BUDGET // per_image))

    def __call__(self, images):
        """Raw maps float32 (B, H, W) and scores float32 (B,) of images uint8 (B, 3, H, W)."""
        return self.engine.predict(images)


def predictions(ensemble, samples, *, impl="cython", threads=None, failed=None):
    """Maps and scores of any number of images, a batch in memory at a time.

    Parameters: ensemble, a TiledEnsemble; samples, a list of data.Sample such as
    data.inputs.as_samples makes of arrays and paths; failed(sample, error) is told of an image
    that cannot be read, which is then left out; without it, the InputError is raised.
    Yields (sample, map, score): map float32 (H, W) raw, score float, in the order of samples.
    Raises InputError where nothing was fitted or an image cannot be read.
    """
    for sample, *found in _each_prediction(Predictor(ensemble, impl, threads), samples):
        if len(found) == 2:
            yield (sample, *found)
        elif failed is None:
            raise found[0]
        else:
            failed(sample, found[0])


def _each_prediction(predictor, samples):
    """(sample, map, score) or (sample, error) for every sample, in their order."""
    ensemble = predictor.ensemble
    step = predictor.batch
    for start in range(0, len(samples), step):
        batch = samples[start : start + step]
        errors = {}
        images = reading.read_images(
            batch,
            ensemble.setup.image_size,
            antialias=ensemble.recipe.antialias,
            failed=errors.__setitem__,
        )
        read = [k for k in range(len(batch)) if k not in errors]
        maps, scores = predictor(images[read] if errors else images) if read else ((), ())
        place = {k: n for n, k in enumerate(read)}
        for k, sample in enumerate(batch):
            if k in errors:
                yield sample, errors[k]
            else:
                yield sample, maps[place[k]], float(scores[place[k]])


# ------------------------------------------------------------------------------ the inputs


def find_paths(source):
    """The image files that --predict names.

    Parameters
    ----------
    source : str or path
        A file; a folder, whose image files are taken with those of all folders below it, by
        name (links to folders are not followed); or "-", paths on standard input, separated by
        NUL if there is one in it, else by the ends of lines.

    Returns
    -------
    list of Path, at least one. Whether they are images is found out when they are read.

    Raises
    ------
    InputError
        No such file or folder; no image in it; nothing on standard input.
    """
    if os.fspath(source) == "-":
        data = sys.stdin.buffer.read()
        names = data.split(b"\0") if b"\0" in data else data.splitlines()
        paths = [Path(os.fsdecode(name)) for name in names if name]
        if not paths:
            raise InputError("--predict -: there are no paths on standard input")
        return paths
    source = Path(source)
    if not source.is_dir():
        if not os.path.lexists(source):
            raise InputError(f"--predict {printable(source)}: there is no such file or folder")
        return [source]
    paths = []
    for folder, folders, names in os.walk(source, onerror=_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(IMAGE_ENDINGS) and not name.startswith("."):
                paths.append(Path(folder, name))
    if not paths:
        raise InputError(
            f"the folder {printable(source)} holds no images ({', '.join(IMAGE_ENDINGS)})"
        )
    return paths


def _unreadable(error):
    raise InputError(
        f"the folder {printable(error.filename)} cannot be read: {error.strerror}"
    ) from error


def output_name(index, path):
    """A name for what is written of an image: unique by its number index, safe on any system.

    >>> output_name(7, "line 3/ué part.png")
    '000007_u__part'
    """
    stem = Path(path).stem
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in stem)
    return f"{index:06d}_{safe[:64] or 'image'}"


# ----------------------------------------------------------------------------- the outputs


def run_predict(ensemble, source, out, options, progress=None):
    """Score images and write what was asked for.

    Parameters
    ----------
    ensemble : TiledEnsemble
    source : str or path
        See `find_paths`.
    out : path
        Folder of the results, which replace those of an earlier prediction.
    options : PredictOptions
    progress : Progress, optional

    Returns
    -------
    dict: normal, anomalous, unknown (without thresholds), errors: numbers of images.
    While it goes on the rows are in predictions.partial.csv; they become predictions.csv when
    all is done.

    Raises
    ------
    InputError
        Nothing to predict; pictures without thresholds; a folder that cannot be written.
    """
    progress = progress or Progress(quiet=True)
    out = Path(out)
    thresholds = ensemble.thresholds
    if options.pictures == "all" and (thresholds is None or thresholds["pixel"] is None):
        raise InputError(
            "the ensemble has no threshold for pixels, so no masks can be drawn; train it with "
            "--validation none, or use --pictures none"
        )
    paths = find_paths(source)
    samples = [FileSample(printable(path), NORMAL, "", path) for path in paths]
    make_folder(out)
    _clear(out)
    count = {"normal": 0, "anomalous": 0, "unknown": 0, "errors": 0}
    stage = progress.stage(f"predict with {ensemble.recipe.arch} {ensemble.setup.name}")
    stage(0, len(samples))
    predictor = Predictor(ensemble, options.impl, options.threads, memory=options.memory)
    with (
        _Table(out / "predictions", COLUMNS) as table,
        _Table(out / "regions", REGION_COLUMNS) as regions,
    ):
        for index, (sample, *found) in enumerate(_each_prediction(predictor, samples), start=1):
            writer = _Writer(sample, output_name(index, sample.path), thresholds, out, options)
            try:
                image = writer.judge(*found)
            except InputError as error:  # the image's fault; what the disk refuses ends the run
                row, found_regions = writer.failed(error), []
                print(f"tiled-ref: error: {one_line(error)}", file=sys.stderr, flush=True)
            else:
                row, found_regions = writer.write(image)
            count[{"error": "errors", "": "unknown"}.get(row["verdict"], row["verdict"])] += 1
            table.write(row)
            for region in found_regions:
                regions.write(region)
            stage(index, len(samples))
    return count


class _Writer:
    """Writes what is wanted of one image, and says what belongs into the tables."""

    def __init__(self, sample, name, thresholds, out, options):
        self.sample, self.name, self.thresholds = sample, name, thresholds
        self.out, self.options = out, options

    def failed(self, error):
        row = dict.fromkeys(COLUMNS, "")
        return row | {"path": self.sample.name, "verdict": "error", "error": one_line(error)}

    def judge(self, image_map, score=None):
        """Score and verdict; the image, uint8 (h, w, 3), if it is to be drawn, else None.

        Parameters: image_map (H, W) and score; or the error that reading the image raised.
        Raises InputError where the image cannot be read or its prediction is not finite.
        """
        if score is None:
            raise image_map
        if not np.isfinite(image_map).all() or not np.isfinite(score):
            raise InputError(
                f"the prediction for {self.sample.name} is not finite, so it has no verdict; "
                "train the ensemble again"
            )
        self.map = image_map
        self.row = self.failed("") | {"score": repr(score), "verdict": "", "name": self.name}
        if self.thresholds is None:
            return None
        limits = self.thresholds["image"]
        self.scaled = float(
            normalize(np.float64(score), limits["threshold"], limits["minimum"], limits["maximum"])
        )
        anomalous = score >= limits["threshold"]
        self.row["normalised_score"] = repr(self.scaled)
        self.row["verdict"] = "anomalous" if anomalous else "normal"
        drawn = {"all": True, "none": False, "anomalous": anomalous}[self.options.pictures]
        return self.sample.read_image() if drawn and self.thresholds["pixel"] else None

    def write(self, image):
        """Write the files; the row of predictions.csv, and those of regions.csv."""
        if self.options.maps:
            self._write_map(self.map)
        if image is None:
            return self.row, []
        mask, regions = self._draw(self.map, image)
        self.row |= {"regions": len(regions), "anomalous_px": int(mask.sum())}
        return self.row, regions

    def _write_map(self, image_map):
        path = self.out / "maps" / f"{self.name}.{self.options.maps}"
        if self.options.maps == "tiff":
            data = encoders.encode_tiff(image_map)
        else:
            buffer = io.BytesIO()
            np.save(buffer, image_map, allow_pickle=False)
            data = buffer.getvalue()
        with atomic_write(path, "wb") as file:
            file.write(data)

    def _draw(self, image_map, image):
        """Write the pictures; mask bool (h, w) at the image's size, rows of regions.csv."""
        limits = self.thresholds["pixel"]
        large = enlarge(image_map, image.shape[:2])
        mask = large >= np.float32(limits["threshold"])
        values = normalize(large, limits["threshold"], limits["minimum"], limits["maximum"])
        del large
        regions = render.contours(mask, impl=self.options.impl)
        rows = [
            {
                "path": self.sample.name,
                "name": self.name,
                "region": number,
                "area_px": region.area,
                "area_map_px": f"{region.area * image_map.size / mask.size:.1f}",
                **dict(zip(("top", "left", "bottom", "right"), region.box)),
                "normalised_maximum": repr(float(_within(values, region.box).max())),
            }
            for number, region in enumerate(regions, start=1)
        ]
        heat = render.draw_contours(render.overlay(image, values), mask)
        heat = render.with_color_bar(heat, 0, 1, [(0.5, "0.5 threshold")], "anomaly")
        marked = render.label_regions(render.draw_contours(image, mask), regions, LABELLED_REGIONS)
        shapes = {
            "path": self.sample.name,
            "image_size": list(mask.shape),
            "normalised_score": self.scaled,
            "verdict": self.row["verdict"],
            "regions": [
                {"area_px": r.area, "box": list(r.box), "outline": [p.tolist() for p in r.outline]}
                for r in regions
            ],
        }
        for suffix, data in (
            ("mask.png", encoders.encode_png(mask)),
            ("overlay.png", encoders.encode_png(heat)),
            ("contours.png", encoders.encode_png(marked)),
            ("regions.json", json.dumps(shapes).encode()),
        ):
            with atomic_write(self.out / "pictures" / f"{self.name}_{suffix}", "wb") as file:
                file.write(data)
        return mask, rows


def enlarge(image_map, size):
    """A map at the size of its image, bilinear: float32 (H, W) -> (h, w); itself where equal."""
    if image_map.shape == tuple(size):
        return image_map
    return upsample_bilinear(torch.from_numpy(image_map)[None], tuple(size))[0].numpy()


def _within(values, box):
    return values[box[0] : box[2], box[1] : box[3]]


def _clear(out):
    """Remove what an earlier prediction has written to the folder, and nothing else."""
    for path in (out / "predictions.csv", out / "predictions.partial.csv"):
        if path.is_file():
            break
    else:
        return
    try:
        for table in ("predictions", "regions"):
            for ending in (".csv", ".partial.csv"):
                (out / f"{table}{ending}").unlink(missing_ok=True)
        for folder in (out / "maps", out / "pictures"):
            for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
                if OURS.fullmatch(name):
                    (folder / name).unlink()
    except OSError as error:
        raise InputError(
            f"the earlier prediction in {printable(out)} cannot be removed: {error.strerror}; "
            "choose another --out"
        ) from error


class _Table:
    """A CSV file written row by row, which takes its name when it is complete."""

    def __init__(self, stem, columns):
        self.path, self.partial = stem.with_suffix(".csv"), stem.with_suffix(".partial.csv")
        self.columns = columns

    def __enter__(self):
        try:
            self.file = open(self.partial, "w", encoding="utf-8", newline="")
        except OSError as error:
            raise self._refused(error) from error
        self.writer = csv.DictWriter(self.file, self.columns, lineterminator="\n")
        self._do(self.writer.writeheader)
        return self

    def write(self, row):
        self._do(lambda: self.writer.writerow(row))

    def _do(self, action):
        try:
            action()
            self.file.flush()
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error):
        return InputError(
            f"cannot write {printable(self.partial)}: {error.strerror or error}; choose another "
            "--out or make room"
        )

    def __exit__(self, kind, error, traceback):
        try:
            if kind is None:
                self.file.flush()
                os.fsync(self.file.fileno())
            self.file.close()
            if kind is None:
                os.replace(self.partial, self.path)
        except OSError as failure:
            if kind is None:
                raise self._refused(failure) from failure
