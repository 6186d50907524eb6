"""thresholds.json of a saved ensemble: a file of its own, so that they can be moved later."""

import hashlib
import json
from pathlib import Path

from ..support import schema
from ..support.files import atomic_write, remove_leftovers
from ..thresholds import MODES
from .tensors import REMEDY

THRESHOLDS, MANIFEST = "thresholds.json", "manifest.json"
FORMAT, FORMAT_VERSION = "tiled-ref thresholds", 1
PART = {
    "rule": schema.one_of("f1", "percentile"),
    "percentile": schema.maybe(schema.number(0, 100)),
    "f1": schema.maybe(schema.number(0, 1)),
    "threshold": schema.number(),
    "minimum": schema.number(),
    "maximum": schema.number(),
}
DECIDED = {
    "mode": schema.one_of(*MODES, "given"),
    "n_normal": schema.whole(),
    "n_anomalous": schema.whole(),
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


def write_thresholds(folder, thresholds):
    """Write thresholds.json beside the manifest.json that it belongs to; an earlier one goes.

    Parameters: folder of an ensemble; thresholds, see thresholds.find_thresholds, or None.
    Raises InputError where they are not such, or the file cannot be written.
    """
    path = Path(folder, THRESHOLDS)
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
    Returns a dict, see thresholds.find_thresholds, or None where none were decided.
    Raises InputError for a file that is missing, damaged, or of another ensemble.
    """
    path = Path(folder, THRESHOLDS)
    content = schema.read_json(path, FILE, REMEDY, follow=False)
    if content["manifest_sha256"] != manifest_sha256:
        raise schema.damaged(path, "it belongs to another manifest.json", REMEDY)
    if content["thresholds_sha256"] != _digest(content["thresholds"]):
        raise schema.damaged(path, "its thresholds have another SHA-256", REMEDY)
    return check_thresholds(content["thresholds"], path)


def check_thresholds(thresholds, path):
    """Check thresholds, or None, in a file. Returns them. Raises InputError."""
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
