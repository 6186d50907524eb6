"""python -m tiled_ref.golden: write golden files, or check a port against them."""

import argparse
import json
import sys
from pathlib import Path

from ..support.errors import InputError, KernelNotBuiltError
from ..support.files import atomic_write
from ..support.streams import guarded_streams
from . import genuine, tiny
from .bundle import Bundle
from .checker import check
from .export import export
from .report import as_json, as_text, first_failing

REFERENCE = Path(__file__).with_name("reference")


def build_parser():
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tiled_ref.golden",
        description="Golden files for ports: inputs and outputs of every stage, and a checker.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("export", help="write a bundle of golden files")
    one.add_argument(
        "folder", metavar="DIR", help="where to; what an earlier export wrote there is replaced"
    )
    one.add_argument(
        "--weights",
        metavar="imagenet|FILE",
        help="write the second bundle instead: one generated image through ResNet-18 with "
        "genuine weights, found or downloaded (imagenet), or of a file",
    )
    two = commands.add_parser("check", help="compare a port's outputs with a bundle")
    two.add_argument(
        "folder", metavar="DIR", help="the port's outputs, <stage>/<case>.out.<name>.npy"
    )
    two.add_argument(
        "--reference",
        metavar="DIR",
        help="the bundle to compare with; default: the one in the package",
    )
    two.add_argument(
        "--stage",
        action="append",
        nargs="+",
        metavar="STAGE",
        help="compare these stages only; padim stands for all that start with padim.",
    )
    two.add_argument("--json", metavar="FILE", help="write the report to a JSON file too")
    return parser


@guarded_streams()
def main(arguments=None):
    """Run a command line; returns the exit status: 0 all is well, 1 a port differs, 2 wrong use."""
    options = build_parser().parse_args(arguments)
    try:
        return run_export(options) if options.command == "export" else run_check(options)
    except (InputError, KernelNotBuiltError) as error:
        print(f"tiled_ref.golden: error: {error}", file=sys.stderr)
        return 2


def run_export(options):
    """The command export; returns 0."""
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
    """The command check; returns 0 where everything agrees, else 1."""
    folder = Path(options.folder)
    if not folder.is_dir():
        raise InputError(
            f"there is no folder {folder}; name the one your port wrote its outputs to"
        )
    bundle = Bundle(options.reference or REFERENCE)
    chosen = [name for names in options.stage or [] for name in names]
    stages = {stage.name: stage for stage in tiny.stages()}
    found, extra = check(folder, bundle, stages, chosen)
    status = 0 if first_failing(found) is None else 1
    sys.stdout.write(as_text(found, extra, bundle))
    if options.json:
        report = as_json(found, extra, bundle, folder, status)
        text = json.dumps(report, indent=1, allow_nan=False)
        with atomic_write(options.json) as file:
            file.write(text + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
