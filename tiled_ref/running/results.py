"""What a finished cell leaves: metrics.json, and its row of results.csv."""

import csv
import json
import platform
from pathlib import Path

import numpy as np
import torch
import torchvision

from .. import __version__
from ..archive.ensembles import FORMAT_VERSION
from ..support.errors import InputError
from ..support.files import atomic_write
from . import analysis

RESULT_COLUMNS = (
    "dataset", "category", "arch", "setup", "seed",
    "image_auroc", "pixel_auroc", "pixel_aupro",
    "n_parameters", "n_models", "n_train", "n_test",
    "seconds_train", "seconds_test", "peak_memory_bytes", "peak_reserved_bytes",
    "weights", "impl", "device",
)  # fmt: skip


def cell_folder(out, category, recipe):
    """OUT/<dataset>/<category>/<arch>/<setup>/seed<k>, None without OUT.

    Parameters: out; category, of which dataset and name count; recipe, a Recipe.
    """
    if out is None:
        return None
    parts = category.dataset, category.name, recipe.arch, recipe.setup.name
    return Path(out, *parts, f"seed{recipe.seed}")


def cell_identity(recipe, images, options):
    """What decides the metrics of a cell, as JSON values: written into metrics.json, and
    compared before an unfinished run is resumed."""
    setup = recipe.setup
    return {
        "image_size": list(setup.image_size),
        "tile_size": list(setup.tile_size),
        "stride": list(setup.stride),
        **recipe.values(),
        "metric_size": options.metric_size,
        "validation": options.validation,
        "percentile": options.percentile,
        "weights": options.weights,
        "weights_digest": options.weights_digest,
        "images_digest": images.digest,
        "ensemble_format": FORMAT_VERSION,
        "device_type": options.device.type,
        "torch": torch.__version__,
    }


def finished_result(folder, identity, options, digest):
    """What a finished cell has left.

    Returns its metrics.json as a dict if it has this identity, else None.
    Parameters: folder of the cell; identity, see cell_identity; options; digest of the images
    that the metrics are of.
    Raises InputError for a file that is no result.
    """
    path = folder / "metrics.json"
    if not path.is_file():
        return None
    result = read_result(path)
    if any(result.get(key) != value for key, value in json.loads(json.dumps(identity)).items()):
        return None
    if options.save and not (folder / "ensemble").is_dir():
        return None
    if options.report and not analysis.is_complete(folder, digest):
        return None
    return result


def save_result(result, out, table=True):
    """Write metrics.json of a cell and bring results.csv up to date; returns the JSON's path.

    Without table results.csv is left to the rank that writes it.
    """
    parts = [str(result[key]) for key in ("dataset", "category", "arch", "setup")]
    path = Path(out).joinpath(*parts, f"seed{result['seed']}", "metrics.json")
    with atomic_write(path) as file:
        json.dump(result, file, indent=2)
        file.write("\n")
    if table:
        write_results_csv(out)
    return path


def gather_results(cells, options):
    """The results of cells that any rank computed; writes results.csv.

    Parameters: cells, pairs (category, recipe), see cell_folder; options. Returns a list of dicts.
    """
    write_results_csv(options.out)
    return [read_result(cell_folder(options.out, *cell) / "metrics.json") for cell in cells]


def read_result(path):
    """A metrics.json as a dict. Raises InputError unless it is one of this program."""
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
        writer = csv.DictWriter(file, RESULT_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def versions():
    """Versions of everything a result may depend on."""
    return {
        "tiled_ref": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
    }


def device_name(device):
    """Such as "cpu" or "cuda:0 NVIDIA H200"."""
    device = torch.device(device)
    if device.type != "cuda":
        return str(device)
    return f"{device} {torch.cuda.get_device_name(device)}"
