"""The result of a cell: metrics.json, and its row of results.csv."""

import json
import platform
from pathlib import Path

import numpy as np
import torch
import torchvision

from .. import __version__
from ..archive.manifest import FORMAT_VERSION
from ..data.images import EDITION
from ..support.errors import InputError
from ..support.files import atomic_write
from ..support.tables import csv_text
from .analysis import is_complete
from .pieces import remove_pieces

RESULT_COLUMNS = (
    "dataset", "category", "arch", "setup", "seed",
    "image_auroc", "pixel_auroc", "pixel_aupro",
    "n_parameters", "n_models", "n_train", "n_test",
    "seconds_train", "seconds_test", "peak_memory_bytes", "peak_reserved_bytes",
    "weights", "impl", "device",
)  # fmt: skip


def cell_folder(out, category, recipe):
    """OUT/<dataset>/<category>/<arch>/<setup>/seed<k>, None without OUT."""
    if out is None:
        return None
    parts = category.dataset, category.name, recipe.arch, recipe.setup.name
    return Path(out, *parts, f"seed{recipe.seed}")


def cell_identity(recipe, images, options):
    """Everything that decides a cell's metrics, as JSON values; compared before resuming."""
    setup = recipe.setup
    return {
        "image_size": list(setup.image_size),
        "tile_size": list(setup.tile_size),
        "stride": list(setup.stride),
        **recipe.values(),
        "metric_size": options.metric_size,
        "validation": images.plan.mode,
        "percentile": options.percentile,
        "weights": options.weights,
        "weights_digest": options.weights_digest,
        "images_digest": images.digest,
        "pixel_edition": EDITION,
        "ensemble_format": FORMAT_VERSION,
        "device_type": options.device.type,
        "torch": torch.__version__,
    }


def finished_result(folder, identity, digest, options, progress):
    """The result of a cell that was finished with the same options, else None. Logs which.

    Parameters: folder of the cell; identity, see cell_identity; digest of the reported images.
    Returns a dict or None. Raises InputError for a metrics.json that is no result.
    """
    path = folder / "metrics.json"
    if not path.is_file():
        return None
    result = read_result(path)
    if (
        any(result.get(key) != value for key, value in json.loads(json.dumps(identity)).items())
        or (options.save and not (folder / "ensemble").is_dir())
        or (options.report and not is_complete(folder, digest))
    ):
        progress.note(f"{progress.title}: finished with other options, so it is computed again")
        return None
    progress.note(f"{progress.title}: finished before, taken from {path}")
    remove_pieces(folder)
    if options.ranks.is_main:
        write_results_csv(options.out)
    return result


def save_result(result, folder, options):
    """Write metrics.json into a cell's folder and, in the main rank, results.csv."""
    with atomic_write(folder / "metrics.json") as file:
        json.dump(result, file, indent=2)
        file.write("\n")
    if options.ranks.is_main:
        write_results_csv(options.out)


def gather_results(cells, options):
    """The results, dicts, of cells (category, recipe) of any rank; writes results.csv."""
    write_results_csv(options.out)
    return [read_result(cell_folder(options.out, *cell) / "metrics.json") for cell in cells]


def read_result(path):
    """A metrics.json as a dict. Raises InputError unless this program wrote it."""
    try:
        result = json.loads(path.read_text("utf-8"))
        missing = [column for column in RESULT_COLUMNS if column not in result]
        if missing:
            raise ValueError(f"it lacks {missing[0]}")
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path} is not a result of this program ({error}), so results.csv was not "
            "brought up to date; remove the file or choose another --out"
        ) from error
    return result


def write_results_csv(out):
    """OUT/results.csv: one row for every metrics.json below OUT, sorted by path."""
    paths = sorted(Path(out).glob("*/*/*/*/seed*/metrics.json"))
    rows = [{column: read_result(path)[column] for column in RESULT_COLUMNS} for path in paths]
    with atomic_write(Path(out) / "results.csv") as file:
        file.write(csv_text(RESULT_COLUMNS, rows))


def versions():
    """Versions of everything that a result may depend on."""
    return {
        "tiled_ref": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
    }
