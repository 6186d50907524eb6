"""A saved ensemble on any number of new images: maps and scores, a batch in memory at a time.

    sources         which images: of a file, a folder, a list on standard input, a watched folder
    read_images     decoded and resized, uint8 (B, 3, H, W)
    Predictor       raw maps float32 (B, H, W) and scores float32 (B,)
    ImageWriter     verdict, rows of the tables, map and pictures (outputs.py)

An image that cannot be read is an error in its own row; the others are scored.
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

BATCH_BUDGET = 512 << 20  # bytes of decoded images, tile maps and merged maps of a batch
LARGEST_BATCH = 64  # images; more where the models are read again for every batch


class Predictor(Engine):
    """What a camera or a service asks for every frame: an Engine that chooses its memory mode.

        maps, scores = predictor.predict([frame])     frame uint8 (h, w, 3), RGB, of any size
        (anomalous,) = ensemble.verdicts(scores)

    `predict` resizes as in training. maps float32 (1, H, W) and scores float32 (1,) are raw;
    several frames are a batch. README.md has the whole loop.
    Parameters: ensemble, a fitted or loaded TiledEnsemble; impl and threads, see
    `merging.untile_average`; memory, see `running.engine`: None keeps all models in memory where
    they fit RESIDENT_BUDGET on a CPU, and the tiles of an image BATCH_BUDGET, else one, as on
    a GPU, where the modes are not measured.
    Raises InputError where nothing was fitted; `predict`, for frames that `data.inputs` refuses.
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
        """Images of a batch that fit into BATCH_BUDGET, at least one."""
        grid, (height, width) = self.ensemble.grid, self.ensemble.setup.image_size
        tiles = grid.rows * grid.cols * grid.tile_size[0] * grid.tile_size[1]
        per_image = 3 * height * width + 4 * tiles + 3 * 4 * height * width
        most = LARGEST_BATCH if self.resident else 1 << 16
        return max(1, min(most, BATCH_BUDGET // per_image))


def predictions(ensemble, samples, *, impl="cython", threads=None, failed=None):
    """Maps and scores of any number of images, a batch in memory at a time.

    Parameters: ensemble, a TiledEnsemble; samples, a list of data.Sample such as
    data.inputs.as_samples makes of arrays and paths; impl and threads, see `Predictor`;
    failed(sample, error) is called for an image that cannot be read, which is then left out;
    without it, the InputError is raised.
    Yields (sample, map, score): map float32 (H, W) raw, score float, in the order of samples.
    Raises InputError where nothing was fitted or an image cannot be read.
    """
    for sample, image_map, score, error in rows_of(Predictor(ensemble, impl, threads), [samples]):
        if error is None:
            yield sample, image_map, score
        elif failed is None:
            raise error
        else:
            failed(sample, error)


def rows_of(predictor, groups):
    """Yield (sample, map, score, None), or (sample, None, None, error), of all samples in order.

    Parameters: predictor, a Predictor; groups, lists of data.Sample, none of which waits for the
    next group. map float32 (H, W) and score, a float, are raw; error, an InputError, is of an image
    that cannot be read.
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
        del images  # before an image is drawn at its own size
        for k, sample in enumerate(batch):
            if k in errors:
                yield sample, None, None, errors[k]
            else:
                image_map, score = next(found)
                yield sample, image_map, float(score), None


def run_predict(ensemble, source, out, options, progress=None):
    """Score images and write the outputs that the options ask for.

    Parameters: ensemble, a TiledEnsemble; source, see `sources.arriving`, or a Watch; out, a
    folder, where an earlier prediction is replaced; options, PredictOptions; progress, a Progress.
    Returns a dict of numbers of images: normal, anomalous, unknown (without thresholds), errors.
    Until the last image is done, the rows are in predictions.partial.csv. A KeyboardInterrupt waits
    for the image that is being written; a Watch keeps it, for that is how it ends.
    Raises InputError where there is nothing to predict, pictures are asked for without
    thresholds, a folder cannot be written, or a watched one has gone.
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
            with ThreadPoolExecutor(1) as pool:  # an interrupt is raised in this thread alone
                pool.submit(int).result()  # one that comes while a thread starts leaves it alone
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
    """(image to draw, None), or (None, error) of this image alone: a full disk ends the run."""
    try:
        return (writer.decide(image_map, score), None) if error is None else (None, error)
    except InputError as failure:
        return None, failure


def _samples(source, progress, out):
    """The samples of a source in groups, and their number, None where it is not known before."""
    if isinstance(source, Watch):
        groups, total = source.arriving(out), None
        progress.note(f"watch {printable(source.folder)} until an interrupt, such as Ctrl-C")
    else:
        groups = arriving(source, progress, out)
        first = next(groups)  # without any, an earlier prediction stays
        groups = itertools.chain([first], groups)
        total = None if os.fspath(source) == "-" else len(first)
    named = ([FileSample(printable(path), NORMAL, "", path) for path in paths] for paths in groups)
    return named, total
