"""Predict any number of new images with a saved ensemble, one batch in memory at a time.

    sources         the images: a file, a folder, a list on standard input, a watched folder
    read_images     decoded and resized, uint8 (B, 3, H, W)
    Predictor       raw maps float32 (B, H, W) and scores float32 (B,)
    ImageWriter     verdict, table rows, map and pictures (outputs.py)

An unreadable image gets an error in its own row; the others are scored.
"""

import itertools
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..archive.ensembles import RESIDENT_BUDGET
from ..data import reading
from ..data.disk import FileSample, printable
from ..data.samples import NORMAL
from ..running.engine import Engine
from ..support.errors import InputError, one_line
from ..support.files import make_folder
from ..support.progress import Progress
from .outputs import COLUMNS, REGION_COLUMNS, ImageWriter, clear, csv_table, output_name
from .sources import Watch, arriving

BATCH_BUDGET = 512 << 20  # bytes of decoded images, tile maps and merged maps per batch
LARGEST_BATCH = 64  # images; more if the models are reloaded for every batch


class Predictor(Engine):
    """Predictor for cameras and services: an Engine that chooses its memory mode.

        maps, scores = predictor.predict([frame])     frame uint8 (h, w, 3), RGB, of any size
        (anomalous,) = ensemble.verdicts(scores)

    `predict` resizes as in training. maps float32 (1, H, W) and scores float32 (1,) are raw;
    several frames form a batch. README.md shows the whole loop.
    Parameters: ensemble, a fitted or loaded TiledEnsemble; impl and threads, see
    `merging.untile_average`; memory, see `running.engine`: on a CPU, None keeps all models in
    memory if they fit RESIDENT_BUDGET and an image's tiles fit BATCH_BUDGET, else one model, as on
    a GPU, where the modes have not been measured.
    Raises InputError if the ensemble is not fitted; `predict`, for frames `data.inputs` rejects.
    """

    def __init__(self, ensemble, impl="cython", threads=None, memory=None):
        ensemble.check_trained()
        if memory is None:
            first = ensemble.states[ensemble.grid.locations()[0]]
            n_bytes = sum(tensor.nbytes for tensor in first.values())
            fits = n_bytes * ensemble.setup.n_models <= RESIDENT_BUDGET
            fits &= 12 * ensemble.setup.tile_pixels <= BATCH_BUDGET  # all tiles are one batch
            memory = "resident" if fits and ensemble.device.type == "cpu" else "low"
        super().__init__(ensemble, memory, impl=impl, threads=threads)

    @property
    def batch(self):
        """Number of images per batch that fit into BATCH_BUDGET, at least one."""
        grid, (height, width) = self.ensemble.grid, self.ensemble.setup.image_size
        tiles = grid.rows * grid.cols * grid.tile_size[0] * grid.tile_size[1]
        per_image = 3 * height * width + 4 * tiles + 3 * 4 * height * width
        most = LARGEST_BATCH if self.resident else 1 << 16
        return max(1, min(most, BATCH_BUDGET // per_image))


def predictions(ensemble, samples, *, impl="cython", threads=None, failed=None):
    """Predict any number of images, one batch in memory at a time.

    Parameters: ensemble, a TiledEnsemble; samples, a list of data.Sample, for example from
    data.inputs.as_samples, which takes arrays and paths; impl and threads, see `Predictor`;
    failed(sample, error) is called for each unreadable image, which is then skipped;
    without it, the InputError is raised.
    Yields (sample, map, score): map float32 (H, W) raw, score float, in the order of samples.
    Raises InputError if the ensemble is not fitted or an image cannot be read.
    """
    for sample, image_map, score, error in rows_of(Predictor(ensemble, impl, threads), [samples]):
        if error is None:
            yield sample, image_map, score
        elif failed is None:
            raise error
        else:
            failed(sample, error)


def rows_of(predictor, groups):
    """Yield (sample, map, score, None) or (sample, None, None, error) for all samples in order.

    Parameters: predictor, a Predictor; groups, lists of data.Sample; a batch never waits for the
    next group. map float32 (H, W) and score, a float, are raw; error, an InputError, explains why
    an image cannot be read.
    """
    recipe, step = predictor.ensemble.recipe, predictor.batch
    batches = (group[k : k + step] for group in groups for k in range(0, len(group), step))
    for batch in batches:
        errors = {}
        images = reading.read_images(
            batch, recipe.setup.image_size, antialias=recipe.antialias, failed=errors.__setitem__
        )
        read = [k for k in range(len(batch)) if k not in errors]
        if read:
            found = zip(*predictor.predict(images[read] if errors else images))
        del images  # frees memory before images are drawn at their own size
        for k, sample in enumerate(batch):
            if k in errors:
                yield sample, None, None, errors[k]
            else:
                image_map, score = next(found)
                yield sample, image_map, float(score), None


def run_predict(ensemble, source, out, options, progress=None):
    """Score images and write the outputs that the options request.

    Parameters: ensemble, a TiledEnsemble; source, see `sources.arriving`, or a Watch; out, a
    folder, whose earlier prediction is replaced; options, PredictOptions; progress, a Progress.
    Returns a dict of image counts: normal, anomalous, unknown (no thresholds), errors.
    Until the last image is done, the rows are in predictions.partial.csv. A KeyboardInterrupt waits
    until the current image is written; a Watch ends normally on one and stores it.
    Raises InputError if there is nothing to predict, pictures are requested without
    thresholds, a folder cannot be written, or the watched folder has disappeared.
    """
    progress = progress or Progress(quiet=True)
    out, watch = Path(out), isinstance(source, Watch)
    options.check(ensemble.thresholds)
    groups, total = _samples(source, progress, os.path.realpath(out))
    make_folder(out)
    clear(out)
    count = {"normal": 0, "anomalous": 0, "unknown": 0, "errors": 0}
    what = f"watch {printable(source.folder)}" if watch else "predict"
    stage = progress.stage(f"{what} with {ensemble.recipe.arch} {ensemble.setup.name}")
    stage(0, total)
    predictor = Predictor(ensemble, options.impl, options.threads, options.memory)
    with (
        csv_table(out / "predictions", COLUMNS) as write_row,
        csv_table(out / "regions", REGION_COLUMNS) as write_region,
    ):

        def record(sample, *found):
            n = sum(count.values()) + 1
            writer = ImageWriter(sample, output_name(n, sample.path), ensemble, out, options)
            image, error = _decided(writer, *found)
            if watch and source.has_changed(sample.path):
                progress.note(f"{sample.name} changed or vanished before it was scored")
                return
            if error is None:
                row, regions = writer.write(image)
            else:
                row, regions = writer.row(verdict="error", error=one_line(error)), []
                print(f"tiled-ref: error: {one_line(error)}", file=sys.stderr, flush=True)
            verdict = row["verdict"] or "unknown"
            count["errors" if error else verdict] += 1
            write_row(row)
            write_region(*regions)
            stage(n, total)
            if watch and error is None:
                progress.note(f"{sample.name}: {', '.join(writer.caption()[:2])}")

        try:
            with ThreadPoolExecutor(1) as pool:  # interrupts are raised only in the main thread
                pool.submit(int).result()  # starts the worker before an interrupt can break it
                for found in rows_of(predictor, groups):
                    pool.submit(record, *found).result()
        except KeyboardInterrupt as error:
            if not watch:
                raise
            source.interrupt = error
    if total is None:
        stage(sum(count.values()), sum(count.values()))
    return count


def _decided(writer, image_map, score, error):
    """Return (image to draw, None) or (None, this image's error); a full disk ends the run."""
    try:
        return (writer.decide(image_map, score), None) if error is None else (None, error)
    except InputError as failure:
        return None, failure


def _samples(source, progress, out):
    """Return the samples of a source in groups, and their total, None if not known in advance."""
    if isinstance(source, Watch):
        groups, total = source.arriving(out), None
        progress.note(f"watch {printable(source.folder)} until interrupted, for example by Ctrl-C")
    else:
        groups = arriving(source, progress, out)
        first = next(groups)  # raises before the earlier prediction is removed
        groups = itertools.chain([first], groups)
        total = None if os.fspath(source) == "-" else len(first)
    named = ([FileSample(printable(path), NORMAL, "", path) for path in paths] for paths in groups)
    return named, total
