"""The result of a cell: metrics.json, and its row of results.csv."""

import hashlib
import json
import platform
from pathlib import Path

import numpy as np
import torch
import torchvision

from .. import __version__
from ..archive.manifest import FORMAT_VERSION, MANIFEST, read_manifest
from ..data.images import EDITION
from ..support.errors import InputError
from ..support.files import atomic_write
from ..support.schema import damaged, maybe, named, number, read_json, scalar, text, whole
from ..support.tables import csv_text
from .analysis import is_complete
from .category_images import LOST
from .pieces import RESULT, identity_in, remove_pieces

METRICS = (
    "image_auroc", "pixel_auroc", "pixel_aupro", "image_f1_max", "pixel_f1_max", "seg_f1",
)  # fmt: skip
OLDER = {"fpr_limit": 0.3} | dict.fromkeys(METRICS[3:])  # for a metrics.json without them
RESULT_COLUMNS = (
    "dataset", "category", "arch", "setup", "seed", *METRICS[:3], "fpr_limit", *METRICS[3:],
    "n_parameters", "n_models", "n_train", "n_test",
    "seconds_train", "seconds_test", "peak_memory_bytes", "peak_reserved_bytes",
    "weights", "impl", "device",
)  # fmt: skip
PAIR = whole(1), whole(1)
SCHEMA = {  # of metrics.json; older versions lack the entries with "?"
    **dict.fromkeys(("dataset", "category", "arch", "setup", "impl", "device"), text()),
    **dict.fromkeys(METRICS[:3], maybe(number(0, 1))), "fpr_limit?": number(0, 1),
    **dict.fromkeys([f"{name}?" for name in METRICS[3:]], maybe(number(0, 1))),
    **dict.fromkeys(("n_parameters", "n_models", "n_train", "n_test"), whole()),
    **dict.fromkeys(("seconds_train", "seconds_test", "seconds_score?"), number(0)),
    **dict.fromkeys(("peak_memory_bytes", "peak_reserved_bytes"), maybe(whole())),
    **dict.fromkeys(("image_size", "tile_size", "stride", "groups?"), PAIR),
    **dict.fromkeys(
        [f"{name}?" for field, (total, _) in LOST.items() for name in (field, total)],
        maybe(whole()),
    ),
    "seed": whole(), "weights": maybe(text()), "features_reused?": number(0, 1),
    "batch_size?": whole(), "switches?": named(scalar), "thresholds?": {"mode": text()},
    "identity?": text(), "folder?": text(1 << 16), "digest?": text(),
}  # fmt: skip


def cell_folder(out, category, recipe):
    """OUT/<dataset>/<category>/<arch>/<setup>/seed<k>, None without OUT."""
    if out is None:
        return None
    parts = category.dataset, category.name, recipe.arch, recipe.setup.name
    return Path(out, *parts, f"seed{recipe.seed}")


def cell_identity(recipe, images, options):
    """Everything that determines a cell's metrics, as JSON values, and its digest as "identity":
    hex, in every file of the cell, so that files of two runs are never mixed."""
    setup = recipe.setup
    values = {
        "dataset": images.category.dataset,
        "category": images.category.name,
        "setup": setup.name,
        "image_size": list(setup.image_size),
        "tile_size": list(setup.tile_size),
        "stride": list(setup.stride),
        "groups": list(setup.groups),
        **recipe.values(),
        "metric_size": images.metric_size,
        "fpr_limit": images.fpr_limit,
        "validation": images.plan.mode,
        "percentile": options.rules.percentile,
        "false_alarms": options.rules.false_alarms,
        "min_area": options.rules.min_area,
        "roi_digest": _roi_digest(options.rules.roi),
        "weights": options.weights,
        "weights_digest": options.weights_digest,
        "images_digest": images.data_digest,
        "pixel_edition": EDITION,
        "ensemble_format": FORMAT_VERSION,
        "device_type": options.device.type,
        "torch": str(torch.__version__),
    }
    return values | {"identity": json_digest(values)}


def _roi_digest(roi):
    """SHA-256 of a region of interest, bool (h, w), hex; None without one."""
    if roi is None:
        return None
    return hashlib.sha256(repr(roi.shape).encode() + np.packbits(roi).tobytes()).hexdigest()


def json_digest(value):
    """SHA-256 of a JSON value, hex: equal for equal values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def check_folder(out, category, identity):
    """Raise InputError if a result of this category is for images of another folder.

    Two data sets of the same name would replace each other's results; changed images in the
    same folder, or the same images in another, can be computed again.
    Parameters: out, Path; category, a data.Category; identity, see cell_identity.
    """
    for path, result in _results(Path(out, category.dataset, category.name), "*/*"):
        before = result.get("folder")
        same = result.get("images_digest") == identity["images_digest"]
        if before and before != category.folder and not same:
            raise InputError(
                f"{path} is for other images, from {before}, not {category.folder}; choose "
                "another --out for these, or rename a folder"
            )


def finished_result(folder, identity, digest, options, progress):
    """The result of a cell finished with this identity, else None. Logs which.

    Parameters: folder of the cell; identity, see cell_identity; digest of the reported images.
    Returns a dict or None. Raises InputError for an invalid metrics.json.
    """
    path = folder / RESULT
    if not path.is_file():
        return None
    result, mark = read_result(path), identity["identity"]
    reason = None
    if "identity" not in result:
        reason = "finished by an older version"
    elif result["identity"] != mark:
        reason = "finished with other options or images"
    elif options.save and not _has_ensemble(folder / "ensemble", mark):
        reason = "finished without its ensemble"
    elif options.report and not is_complete(folder, digest, mark):
        reason = "finished without its analysis"
    if reason:
        progress.note(f"{progress.title}: {reason}, so it is computed again")
        return None
    progress.note(f"{progress.title}: finished before, reused from {path}")
    remove_pieces(folder, mark)
    if options.ranks.is_main:
        write_results_csv(options.out)
    return result


def _has_ensemble(folder, mark):
    try:
        read_manifest(folder)
    except InputError:
        return False
    return identity_in(folder / MANIFEST) == mark


def save_result(result, folder, options):
    """Write metrics.json into a cell's folder and, in the main rank, results.csv."""
    with atomic_write(folder / RESULT) as file:
        json.dump(result | {"digest": json_digest(result)}, file, indent=2)
        file.write("\n")
    if options.ranks.is_main:
        write_results_csv(options.out)


def gather_results(cells, options):
    """The results, dicts, of cells (category, recipe) of any rank; writes results.csv."""
    write_results_csv(options.out)
    return [read_result(cell_folder(options.out, *cell) / RESULT) for cell in cells]


def read_result(path):
    """A metrics.json as a dict. Raises InputError unless this program wrote it, unchanged."""
    remedy = "remove the file or choose another --out"
    result = read_json(path, SCHEMA, remedy)
    digest = result.pop("digest", None)
    if (digest or "identity" in result) and digest != json_digest(result):
        raise damaged(path, "its digest does not match its content", remedy)
    return OLDER | result


def write_results_csv(out):
    """OUT/results.csv: one row for every metrics.json below OUT, sorted by path."""
    found = _results(Path(out), "*/*/*/*")
    rows = [{column: result[column] for column in RESULT_COLUMNS} for _, result in found]
    with atomic_write(Path(out) / "results.csv") as file:
        file.write(csv_text(RESULT_COLUMNS, rows))


def _results(folder, levels):
    """Yield (path, result) of every metrics.json at some levels below a folder, sorted, except
    those that another process of the run has moved away, to replace them, since the listing."""
    for path in sorted(folder.glob(f"{levels}/seed*/{RESULT}")):
        try:
            yield path, read_result(path)
        except InputError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise


def versions():
    """Versions of everything that a result can depend on."""
    return {
        "tiled_ref": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
    }
