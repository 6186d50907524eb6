"""python -m tiled_ref.golden: write golden files, or check a port against them.

Checking and archiving need only NumPy; exporting and naming a known mistake also need torch.
"""

import argparse
import json
import os
import stat
import sys
from pathlib import Path

from ..support.errors import InputError, one_line
from ..support.files import atomic_write
from ..support.streams import guarded_streams
from .bundle import EDITION, REFERENCE, Bundle
from .check import check
from .report import as_json, as_text, first_failing


def build_parser():
    """Return the argument parser."""
    parser = argparse.ArgumentParser(
        prog="python -m tiled_ref.golden",
        description="Golden files for ports: inputs and outputs of every stage, and a checker.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("export", help="write a bundle of golden files")
    words = "destination; an earlier export there is replaced"
    one.add_argument("folder", metavar="DIR", help=words)
    one.add_argument(
        "--weights", metavar="imagenet|FILE",
        help="write the second bundle instead: one generated image through ResNet-18 with "
        "genuine weights, found locally or downloaded (imagenet), or read from a file",
    )  # fmt: skip
    two = commands.add_parser("check", help="compare a port's outputs with a bundle")
    words = "the port's outputs, <stage>/<case>.out.<name>.npy"
    two.add_argument("folder", metavar="DIR", help=words)
    two.add_argument(
        "--expect-sha256", metavar="HEX", type=str.lower,
        help="refuse a reference whose archive has another SHA-256",
    )  # fmt: skip
    two.add_argument(
        "--arithmetic", choices=("float32", "tf32", "float16", "bfloat16"), default="float32",
        help="the port's arithmetic (default: float32)",
    )  # fmt: skip
    two.add_argument(
        "--stage", action="append", nargs="+", metavar="STAGE",
        help="compare only these stages; padim selects all whose names start with padim.",
    )  # fmt: skip
    two.add_argument("--json", metavar="FILE", help="write the report as JSON; - prints it")
    three = commands.add_parser("archive", help="write a bundle as one reproducible ZIP file")
    three.add_argument("file", metavar="FILE.zip", help="destination; an existing file is replaced")
    for command in (two, three):
        words = "bundle to use instead of the packaged one"
        command.add_argument("--reference", metavar="DIR|ZIP", default=REFERENCE, help=words)
    return parser


@guarded_streams()
def main(arguments=None):
    """Run a command line; return the exit status: 0 success, 1 the port differs, 2 bad input."""
    options = build_parser().parse_args(arguments)
    run = {"export": run_export, "check": run_check, "archive": run_archive}[options.command]
    try:
        return run(options)
    except (InputError, ImportError) as error:  # torch or a kernel may be missing
        print(f"tiled_ref.golden: error: {one_line(error)}", file=sys.stderr)
        return 2


def run_export(options):
    """Run the command export; return 0."""
    from . import genuine, tiny
    from .export import export

    if options.weights is None:
        source, command = tiny, "python -m tiled_ref.golden export DIR"
    else:
        source = genuine.Genuine(options.weights)
        command = "python -m tiled_ref.golden export DIR --weights imagenet|FILE"
    manifest = export(options.folder, source.stages(), source.models(), command)
    counts = manifest["counts"]
    print(
        f"{options.folder}: {counts['stages']} stages, {counts['cases']} cases, "
        f"{counts['outputs']} output arrays, {counts['numbers']:,} numbers to compare"
    )
    return 0


def run_check(options):
    """Run the command check; return 0 if everything agrees, else 1."""
    folder = Path(options.folder)
    if options.json not in (None, "-"):
        _check_destination(options.json, options.reference, folder)
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}; name the one with your port's outputs")
    bundle = Bundle(options.reference)
    if options.expect_sha256 not in (None, bundle.digest):
        raise InputError(
            f"the reference {bundle.folder} has the SHA-256 {bundle.digest}, not the one given by "
            "--expect-sha256; get the edition you want, or give this digest"
        )
    chosen = [name for names in options.stage or [] for name in names]
    stages, why = _known_stages()
    if bundle.edition != EDITION:  # whose stages may have other inputs
        stages, why = {}, f"they are those of edition {EDITION}"
    found, extra = check(folder, bundle, stages, chosen, options.arithmetic)
    status = 1 if first_failing(found) or extra else 0
    report = as_json(found, extra, bundle, folder, status, options.arithmetic)
    text = json.dumps(report, indent=1, allow_nan=False) + "\n"
    if options.json not in (None, "-"):
        with atomic_write(options.json) as file:
            file.write(text)
    if options.json != "-":
        text = as_text(found, extra, bundle, options.arithmetic)
    sys.stdout.write(text)
    if status and why:
        print(f"tiled_ref.golden: known mistakes were not searched: {why}", file=sys.stderr)
    return status


def _known_stages():
    """Return ({name: Stage}, ""), or ({}, the ImportError) without torch."""
    try:
        from . import tiny
    except ImportError as error:
        return {}, error
    return {stage.name: stage for stage in tiny.stages()}, ""


def run_archive(options):
    """Run the command archive; return 0."""
    _check_destination(options.file, options.reference)
    bundle = Bundle(options.reference)
    data = bundle.archive
    with atomic_write(options.file, "wb") as file:
        file.write(data)
    print(f"{options.file}: {len(bundle.paths())} files, SHA-256 {bundle.digest}")
    return 0


def _check_destination(path, *inputs):
    """Raise InputError if a path exists but is not a regular file (a link, device or folder), or
    lies in an input folder or the packaged reference; links to its folder are followed."""
    file = Path(path)  # without a trailing slash, which would follow a link
    if not path or os.path.lexists(file) and not stat.S_ISREG(os.lstat(file).st_mode):
        raise InputError(f"{path or 'an empty name'} is not a regular file; give another file name")
    if any(file.resolve().is_relative_to(Path(p).resolve()) for p in (*inputs, REFERENCE)):
        raise InputError(f"{path} lies in a folder that is only read; give another file name")


if __name__ == "__main__":
    sys.exit(main())
