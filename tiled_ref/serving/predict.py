"""A saved ensemble on any number of new images: maps and scores, a batch in memory at a time.

    find_paths      a file, a folder with all below it, or a list on standard input
    read_images     decoded and resized, uint8 (B, 3, H, W)
    Predictor       raw maps float32 (B, H, W) and scores float32 (B,)
    ImageWriter     verdict, rows of the tables, map and pictures (outputs.py)

An image that cannot be read is an error in its own row; the others are scored.
"""

import codecs
import os
import sys
from pathlib import Path

from ..archive.ensembles import RESIDENT_BUDGET
from ..data import reading
from ..data.disk import IMAGE_ENDINGS, FileSample, passed_over, printable
from ..data.samples import NORMAL
from ..running.engine import Engine
from ..support.errors import InputError, one_line
from ..support.files import make_folder
from ..support.progress import Progress
from .outputs import COLUMNS, REGION_COLUMNS, ImageWriter, clear, csv_table, is_output, output_name

BATCH_BUDGET = 512 << 20  # bytes of decoded images, tile maps and merged maps of a batch
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)  # or UTF-32
LARGEST_BATCH = 64  # images; more where the models are read again for every batch


class Predictor(Engine):
    """An Engine that chooses its memory mode and the number of images in a batch.

    Parameters: ensemble, a fitted or loaded TiledEnsemble; impl and threads, see
    `merging.untile_average`; memory, see `running.engine`: None keeps all models in memory where
    they fit RESIDENT_BUDGET on a CPU, else one.
    """

    def __init__(self, ensemble, impl="cython", threads=None, memory=None):
        ensemble.check_trained()
        if memory is None:
            first = ensemble.states[ensemble.grid.locations()[0]]
            n_bytes = sum(tensor.nbytes for tensor in first.values())
            fits = n_bytes * ensemble.setup.n_models <= RESIDENT_BUDGET
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
    for sample, image_map, score, error in rows_of(Predictor(ensemble, impl, threads), samples):
        if error is None:
            yield sample, image_map, score
        elif failed is None:
            raise error
        else:
            failed(sample, error)


def rows_of(predictor, samples):
    """Yield (sample, map, score, None), or (sample, None, None, error), of all samples in order.

    Parameters: predictor, a Predictor; samples, a list of data.Sample. map float32 (H, W) and
    score, a float, are raw; error, an InputError, is of an image that cannot be read.
    """
    recipe, step = predictor.ensemble.recipe, predictor.batch
    for start in range(0, len(samples), step):
        batch, errors = samples[start : start + step], {}
        images = reading.read_images(
            batch, recipe.setup.image_size, antialias=recipe.antialias, failed=errors.__setitem__
        )
        read = [k for k in range(len(batch)) if k not in errors]
        if read:
            found = zip(*predictor.predict(images[read] if errors else images))
        for k, sample in enumerate(batch):
            if k in errors:
                yield sample, None, None, errors[k]
            else:
                image_map, score = next(found)
                yield sample, image_map, float(score), None


def find_paths(source, progress=None, out=None):
    """The image files that --predict names.

    Parameters: source, str or path: a file; a folder, for its image files and those of all
    folders below it, by name (links to folders are not followed); or "-", for the paths on
    standard input (UTF-8, with or without a byte order mark), separated by NUL if there is one,
    else by the ends of lines; progress, a Progress, notes how many files and folders of a folder
    are passed over; out, a folder that is left out.
    Returns a list of Path, at least one; whether they are images is found when they are read.
    Raises InputError for a file or folder that is not there, and where there is no path.
    """
    if os.fspath(source) == "-":
        try:
            data = sys.stdin.buffer.read().removeprefix(codecs.BOM_UTF8) if sys.stdin else b""
        except OSError as error:
            raise InputError(f"--predict -: standard input cannot be read: {error}") from error
        if data.startswith(UTF_16) and b"\0" in data:
            raise InputError("--predict -: the list is not UTF-8 but UTF-16 or UTF-32; convert it")
        names = data.split(b"\0") if b"\0" in data else data.splitlines()
        paths = [Path(os.fsdecode(name)) for name in names if name.strip()]
        if not paths:
            raise InputError("--predict -: there are no paths on standard input")
        return paths
    source = Path(source)
    if not source.is_dir():
        if not os.path.lexists(source):
            raise InputError(f"--predict {printable(source)}: there is no such file or folder")
        return [source]
    paths, passed = [], []
    for folder, folders, names in os.walk(source, onerror=_unreadable):
        below = [Path(folder, name) for name in folders]
        left = [p for p in below if p.name.startswith(".") or os.path.realpath(p) == out]
        passed += [path for path in below if path in left or path.is_symlink()]
        folders[:] = sorted(path.name for path in below if path not in left)
        for name in sorted(names):
            wanted = name.lower().endswith(IMAGE_ENDINGS) and not name.startswith(".")
            (paths if wanted else passed).append(Path(folder, name))
    if not paths:
        raise InputError(
            f"the folder {printable(source)} holds no images ({', '.join(IMAGE_ENDINGS)})"
        )
    for note in passed_over(passed, source) if progress else ():
        progress.note(note)
    return paths


def _unreadable(error):
    raise InputError(
        f"the folder {printable(error.filename)} cannot be read: {error.strerror}"
    ) from error


def run_predict(ensemble, source, out, options, progress=None):
    """Score images and write the outputs that the options ask for.

    Parameters: ensemble, a TiledEnsemble; source, see `find_paths`; out, a folder, where an
    earlier prediction is replaced; options, PredictOptions; progress, a Progress.
    Returns a dict of numbers of images: normal, anomalous, unknown (without thresholds), errors.
    Until the last image is done, the rows are in predictions.partial.csv.
    Raises InputError where there is nothing to predict, pictures are asked for without
    thresholds, or a folder cannot be written.
    """
    progress = progress or Progress(quiet=True)
    out, thresholds = Path(out), ensemble.thresholds
    if options.pictures == "all" and (thresholds is None or thresholds["pixel"] is None):
        raise InputError(
            "the ensemble has no threshold for pixels, so no masks can be drawn; train it with "
            "--validation none, or use --pictures none"
        )
    found = find_paths(source, progress, os.path.realpath(out))
    paths = [path for path in found if not is_output(path)]
    if not paths:
        raise InputError(
            f"--predict {printable(source)} names pictures of an earlier prediction; name images"
        )
    samples = [FileSample(printable(path), NORMAL, "", path) for path in paths]
    make_folder(out)
    clear(out)
    count = {"normal": 0, "anomalous": 0, "unknown": 0, "errors": 0}
    stage = progress.stage(f"predict with {ensemble.recipe.arch} {ensemble.setup.name}")
    stage(0, len(samples))
    predictor = Predictor(ensemble, options.impl, options.threads, memory=options.memory)
    with (
        csv_table(out / "predictions", COLUMNS) as write_row,
        csv_table(out / "regions", REGION_COLUMNS) as write_region,
    ):
        for index, (sample, *found, failure) in enumerate(rows_of(predictor, samples), start=1):
            writer = ImageWriter(sample, output_name(index, sample.path), ensemble, out, options)
            try:
                if failure is not None:
                    raise failure
                image = writer.decide(*found)
            except InputError as error:  # of this image alone; a full disk ends the run
                row, regions = writer.row(verdict="error", error=one_line(error)), []
                print(f"tiled-ref: error: {one_line(error)}", file=sys.stderr, flush=True)
            else:
                row, regions = writer.write(image)
            count[{"error": "errors", "": "unknown"}.get(row["verdict"], row["verdict"])] += 1
            write_row(row)
            write_region(*regions)
            stage(index, len(samples))
    return count
