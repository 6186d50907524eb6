"""thresholds.json of a saved ensemble: a separate file, so that thresholds can change later."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np

from ..support import schema
from ..support.files import atomic_write, remove_leftovers
from ..support.option_types import SIDES
from ..verdicts.deciding import MODES
from .tensors import REMEDY

THRESHOLDS, MANIFEST = "thresholds.json", "manifest.json"
FORMAT, FORMAT_VERSION = "tiled-ref thresholds", 1
LARGEST_AREA = 1 << 28  # pixels of an image
PART = {
    "rule": schema.one_of("f1", "percentile", "false_alarms", "deviations", "given"),
    "percentile": schema.maybe(schema.number(0, 100)),
    "f1": schema.maybe(schema.number(0, 1)),
    **{f"{name}?": schema.number(0, 1) for name in ("false_alarms", "precision", "recall")},
    "deviations?": schema.number(0),
    "threshold": schema.number(),
    "minimum": schema.number(),
    "maximum": schema.number(),
}
ROI = {
    "size": (schema.whole(1, SIDES[-1]), schema.whole(1, SIDES[-1])),
    "runs": schema.each(schema.whole()),
}
DECIDED = {
    "mode": schema.one_of(*MODES, "given"),
    "n_normal": schema.whole(),
    "n_anomalous": schema.whole(),
    "min_area?": schema.whole(1),
    "roi?": ROI,
    "image": PART,
    "pixel": schema.maybe(PART),
}
FILE = {
    "format": schema.one_of(FORMAT),
    "format_version": schema.one_of(FORMAT_VERSION),
    "manifest_sha256": schema.digest,
    "thresholds_sha256": schema.digest,
    "thresholds": schema.maybe(DECIDED),
}


def write_thresholds(folder, thresholds, roi=None):
    """Write, or replace, the thresholds.json next to an ensemble's manifest.json.

    Parameters: folder of an ensemble; thresholds, see thresholds.find_thresholds, or None; roi
    bool (h, w), the region of interest, or None.
    Raises InputError if the thresholds are invalid or the file cannot be written.
    """
    path = Path(folder, THRESHOLDS)
    if thresholds and roi is not None:
        thresholds = thresholds | {"roi": _runs(roi)}
    check_thresholds(thresholds, path)
    manifest = schema.read_bytes(Path(folder, MANIFEST), "give the folder of an ensemble", False)
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
        "thresholds_sha256": _digest(thresholds),
        "thresholds": thresholds,
    }
    remove_leftovers(folder, {THRESHOLDS})
    with atomic_write(path) as file:
        json.dump(content, file, indent=2)
        file.write("\n")


def read_thresholds(folder, manifest_sha256):
    """Read the thresholds of an ensemble.

    Parameters: folder; manifest_sha256, of its manifest.json.
    Returns a dict, see thresholds.find_thresholds, or None if there are none; and the region
    of interest, bool (h, w), or None.
    Raises InputError for a file that is missing, damaged, or belongs to another ensemble.
    """
    path = Path(folder, THRESHOLDS)
    content = schema.read_json(path, FILE, REMEDY, follow=False)
    if content["manifest_sha256"] != manifest_sha256:
        raise schema.damaged(path, "it belongs to another manifest.json", REMEDY)
    if content["thresholds_sha256"] != _digest(content["thresholds"]):
        raise schema.damaged(path, "its thresholds have another SHA-256", REMEDY)
    thresholds = check_thresholds(content["thresholds"], path)
    roi = (thresholds or {}).pop("roi", None)
    return thresholds, None if roi is None else _from_runs(roi, path)


def _runs(roi):
    """Encode a region of interest as JSON: its size, and the lengths of alternating runs of
    pixels, outside, inside, outside, ... in row-major order."""
    change = np.flatnonzero(np.diff(roi.ravel(), prepend=False))
    runs = np.diff(change, prepend=0, append=roi.size)
    return {"size": list(roi.shape), "runs": runs.tolist()}


def _from_runs(roi, path):
    """The inverse of `_runs`. Raises InputError."""
    runs = np.array(roi["runs"], np.int64)
    if sum(roi["runs"]) != math.prod(roi["size"]) or math.prod(roi["size"]) > LARGEST_AREA:
        raise schema.damaged(path, "the region of interest does not have its size", REMEDY)
    inside = np.arange(runs.size) % 2 == 1
    return np.repeat(inside, runs).reshape(roi["size"])


def check_thresholds(thresholds, path):
    """Check thresholds, or None, from a file and return them. Raises InputError."""
    schema.check(thresholds, schema.maybe(DECIDED), path, REMEDY)
    for kind in ("image", "pixel") if thresholds else ():
        part = thresholds[kind]
        if part and part["minimum"] > part["maximum"]:
            raise schema.damaged(path, f"its {kind} minimum is above the maximum", REMEDY)
        if part and part["rule"] == "percentile" and part["percentile"] is None:
            raise schema.damaged(path, f"its {kind} threshold has no percentile", REMEDY)
    return thresholds


def _digest(thresholds):
    """SHA-256 of the thresholds as JSON with sorted names."""
    return hashlib.sha256(json.dumps(thresholds, sort_keys=True).encode()).hexdigest()
