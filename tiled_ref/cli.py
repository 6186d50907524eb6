"""The command line: parse, call, print."""

import argparse
import contextlib
import functools
import os
import re
import shutil
import sys
import traceback
from dataclasses import astuple
from pathlib import Path

import torch

from . import __version__
from .data import DATASETS
from .ensemble import TiledEnsemble
from .models import MODELS
from .models.backbone import ResNet18Features
from .models.weights import find_weights
from .reporting.page import write_report
from .reporting.summary import result_table, text_table
from .reporting.walk import BUILT_IN, explain, write_walk
from .running import shared_layers
from .running.cell import METRIC_SIZES, Options, run_cell, versions
from .running.engine import MEMORY_MODES
from .running.pieces import WHERE_SAME, OutputLock
from .running.processes import Ended, Ranks
from .running.sweep import (
    Planned,
    Sweep,
    cell_title,
    exit_status,
    gather,
    memory_sentence,
    out_of_memory,
)
from .serving.outputs import MAPS, PICTURES, PredictOptions
from .serving.predict import run_predict
from .setups import OPTIONS, SETUPS, Recipe, is_allowed
from .support import arrays
from .support.errors import InputError, KernelNotBuiltError, one_line
from .support.files import make_folder
from .support.progress import Progress
from .thresholds import MODES, describe

LISTED_IMAGES = 200  # training images for which --list counts a memory bank
IMPL_ARCHS = ("padim", "patchcore", "reverse_distillation")  # they have kernels of their own
EXIT_RANK, EXIT_INPUT, EXIT_INTERRUPTED = 1, 2, 130
BYTES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
BYTES |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}

# The options that --help shows.
COMMON = {
    "--setup", "--arch", "--dataset", "--root", "--category", "--image-size", "--tile-size",
    "--save", "--load", "--predict",
}  # fmt: skip
EXAMPLES = """\
examples:
  tiled-ref --setup ENS9
      run the main job, nine models on the built-in images; the results go to results/
  tiled-ref --dataset folder --root DIR --image-size 2048 --tile-size 512 --save
      train on your own images: DIR/train/..., DIR/test/good/..., DIR/test/<defect>/...
  tiled-ref --load results/.../ensemble --predict FOLDER
      score new images with a saved ensemble; the verdicts go to predictions/
"""
MORE = """\
  tiled-ref --setup all --arch all --dataset mvtec visa --root DIR DIR --seed 42 5125 33 --report
      reproduce the paper's tables and figures; repeat the command to continue after a stop
  torchrun --nproc-per-node 4 run.py --setup ENS9
      share the tile locations among four processes, one GPU each if there are enough

Exit status: 0 success, 1 unexpected failure here or in another process of a shared run,
2 invalid option or file, 130 interrupted.
"""

# Options that are keyword arguments of architectures: flag, architectures, keyword, the variants
# (the paper's first; None for a whole number) and the text of --help-all.
SWITCHES = (
    ("--steps", ("fastflow", "reverse_distillation"), "steps", None,
     "train fastflow and reverse_distillation for N steps (default 200)"),
    ("--patchcore-start", ("patchcore",), "start", ("excluded", "included"),
     "exclude the random starting point from the coreset, or include it"),
    ("--fastflow-kernels", ("fastflow",), "kernels", ("3x3", "alternating"),
     "use 3x3 convolutions in all coupling blocks, or alternate 3x3 and 1x1"),
    ("--rd-loss", ("reverse_distillation",), "loss", ("positions", "flattened"),
     "compare features by their cosine at each position, or over the flattened map"),
    ("--rd-map", ("reverse_distillation",), "combine", ("product", "sum"),
     "multiply the layers' distance maps, or add them"),
)  # fmt: skip


def main(argv=None):
    """Run the command line; returns the exit status."""
    ranks, args = Ranks(os.environ), None
    try:
        with contextlib.ExitStack() as stack:
            if ranks.size > 1:
                stack.enter_context(ranks.connected())
            if not ranks.is_main:  # rank 0 prints the help, the version and the tables
                nowhere = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(contextlib.redirect_stdout(nowhere))
            args = build_parser().parse_args(argv)
            args.ranks = ranks
            args.given = _given(sys.argv[1:] if argv is None else argv)
            if args.explain is not None:
                args.command = explain_image
            if args.load is not None or args.predict is not None:
                args.command = predict_images
            shared = args.command is run  # anything else is done by one process
            return args.command(args) if shared or ranks.is_main else 0
    except Exception as error:
        if args is not None and args.debug:
            traceback.print_exc()
        if isinstance(error, (InputError, KernelNotBuiltError)):
            ranks.fail(f"tiled-ref: error: {one_line(error)}")
        elif out_of_memory(error):
            ranks.fail(f"tiled-ref: error: {memory_sentence(error)}")
        else:  # a mistake of the program
            if ranks.size > 1:  # torchrun ends the others, whose sentence would hide this one
                ranks.fail(f"tiled-ref: error: {type(error).__name__}: {one_line(error)}")
            raise
        return EXIT_INPUT
    except Ended as error:
        ranks.fail(f"tiled-ref: error: {error}")
        return EXIT_RANK
    except KeyboardInterrupt:
        command = getattr(args, "command", None)
        if args is not None and args.debug:
            traceback.print_exc()
        kept = {
            run: "; the same command with --resume goes on",
            predict_images: "; the rows so far are in predictions.partial.csv",
        }.get(command, "")
        ranks.fail(f"tiled-ref: interrupted{kept}")
        return EXIT_INTERRUPTED


class _Parser(argparse.ArgumentParser):
    """argparse whose complaints are InputErrors, so that one of several processes prints them."""

    def error(self, message):
        raise InputError(f"{message}; see --help-all")


class _Removed(argparse.Action):
    """An option of an earlier version, refused with a sentence that says what to use."""

    def __call__(self, parser, namespace, values, option_string=None):
        parser.error(f"{option_string} was removed: {self.const}")


class _ShortHelp(argparse.Action):
    """Print the help of the options in COMMON."""

    def __call__(self, parser, namespace, values, option_string=None):
        for action in parser._actions:
            if COMMON.isdisjoint(action.option_strings):
                action.help = argparse.SUPPRESS
        parser.epilog = f"{EXAMPLES}\n--help-all lists all options, by room, and the exit status."
        parser.print_help()
        parser.exit()


def _formatter(prog):
    """argparse's formatter, at most 100 columns wide."""
    columns = min(100, shutil.get_terminal_size().columns)
    return argparse.RawDescriptionHelpFormatter(prog, width=columns - 2)


def build_parser():
    """The argparse parser of run.py and of the entry point tiled-ref."""
    parser = _Parser(
        prog="tiled-ref",
        usage="%(prog)s [--setup NAME ...] [--dataset NAME --root DIR] [options]",
        description="Detect anomalies in high-resolution images with a tiled ensemble: one model "
        "per tile\nlocation, merged predictions, smoothed seams.",
        epilog=EXAMPLES + MORE,
        formatter_class=_formatter,
        add_help=False,
        allow_abbrev=False,
    )
    parser.set_defaults(command=run)
    add = parser.add_argument
    add("-h", "--help", action=_ShortHelp, nargs=0, help="show the ten most used options")
    add("--help-all", action="help", help="show all options")
    add("--version", action="version", version=f"tiled-ref {__version__}", help="show the version")
    for room, add_options in {
        "the method": _method,
        "data": _data,
        "models": _models,
        "running": _running,
        "serving a trained ensemble": _serving,
        "reporting": _reporting,
    }.items():
        add = parser.add_argument_group(room).add_argument
        add_options(add)
        _recipe_options(add, room)
    return parser


# fmt: off
def _method(add):
    add("--setup", nargs="+", metavar="NAME", default=["ENS9"], choices=[*SETUPS, "all"],
        help=f"run {', '.join(SETUPS)} or all (default ENS9)")
    add("--list", action="store_const", const=list_setups, dest="command",
        help="print the tiles, models and parameters of every setup, and exit")
    add("--seed", nargs="+", type=_natural, default=[42], metavar="N",
        help="run once per seed (default 42; the paper's: 42 5125 33)")
    add("--image-size", type=_size, metavar="SIZE",
        help="resize images to N or HEIGHTxWIDTH pixels (default: the setup's size)")
    add("--tile-size", type=_size, metavar="SIZE",
        help="cut tiles of N or HEIGHTxWIDTH pixels (default: the setup's size)")
    add("--stride", type=_size, metavar="SIZE",
        help="start a tile every N or HEIGHTxWIDTH pixels (default: the setup's stride)")
    add("--metric-size", default="setup", choices=METRIC_SIZES, metavar="|".join(METRIC_SIZES),
        help="compute pixel metrics at the setup's image size or at each image's own "
        "(default setup)")
    add("--validation", default="same-as-test", choices=MODES, metavar="|".join(MODES),
        help="set thresholds on the test images, as in the paper; on one half of them, and compute "
        "the metrics on the other; or on a held-out tenth of the training images "
        "(default same-as-test)")
    add("--percentile", type=_percentile, default=100.0, metavar="P",
        help="without defective images, set thresholds at this percentile of the normal scores "
        "and pixels (default 100, the maximum)")


def _data(add):
    add("--dataset", nargs="+", default=["synthetic"], choices=list(DATASETS), metavar="NAME",
        help=f"read {', '.join(DATASETS)} (default synthetic, generated on the fly)")
    add("--root", nargs="+", action="extend", type=Path, metavar="DIR",
        help="find the data set here; for several, give one folder each, in the order of "
        "--dataset, or one that holds them all")
    add("--category", nargs="+", metavar="NAME",
        help="run these categories or all (default: board for synthetic, otherwise all)")


def _models(add):
    add("--arch", nargs="+", metavar="NAME", default=["padim"], choices=[*MODELS, "all"],
        help=f"train {', '.join(MODELS)} or all (default padim)")
    add("--weights", default="auto", metavar="auto|imagenet|random|FILE",
        help="choose the weights of ResNet-18: imagenet searches the torch hub cache, then "
        "downloads; auto does the same and falls back to random with a warning (default auto)")
    add("--batch-size", type=_positive, metavar="N",
        help="process N images at once (default: the paper's 32; 8 for patchcore)")
    for flag, _, _, variants, text in SWITCHES:
        add(flag, type=None if variants else _positive, choices=variants,
            metavar="|".join(variants or "N"),
            help=f"{text} (default {variants[0]})" if variants else text)


def _running(add):
    add("--out", type=Path, default=Path("results"), metavar="DIR",
        help="write all files here (default results; predictions with --predict)")
    add("--device", default="auto", type=_device, metavar="auto|cpu|cuda",
        help="run the models on this device, such as cuda:1 (default auto: cuda if available)")
    add("--impl", default="cython", choices=arrays.IMPLS, metavar="|".join(arrays.IMPLS),
        help="use the compiled kernels or their NumPy specification, bit for bit the same "
        "(default cython)")
    add("--threads", type=_positive, metavar="N",
        help="merge, smooth and score with N threads (default: the environment variable "
        f"{arrays.THREADS_VARIABLE}, which PaDiM and PatchCore obey too, otherwise 2)")
    add("--memory", type=_memory, metavar="|".join(MEMORY_MODES),
        help="keep one tile location at a time on the device, or all of them and batch the tiles "
        "of an image (default low; resident for --predict up to 2 GiB on a CPU)")
    add("--share-features", type=_share, default=shared_layers.BUDGET, metavar="off|BYTES",
        help="on a CPU, compute the backbone's layers once for all cells of a category and keep "
        "them in TMPDIR, in at most BYTES and half of the free space; no result depends on it "
        f"(default {shared_layers.BUDGET >> 30}GiB)")
    add("--save", action="store_true", help="keep the trained ensembles for --load")
    add("--resume", action="store_true",
        help="continue an interrupted run of the same command; the metrics equal those of an "
        "uninterrupted run")
    add("--quiet", action="store_true", help="hide the progress")
    add("--debug", action="store_true", help="show the traceback of an error")
    add("--compile", action=_Removed, nargs=0, help=argparse.SUPPRESS,
        const="leave it out; the backbone is never compiled")


def _serving(add):
    add("--load", type=Path, metavar="DIR", help="load the folder ensemble that --save wrote")
    add("--predict", metavar="FILE|FOLDER|-",
        help="score an image, all images below a folder, or the paths on standard input, one a "
        "line or separated by NUL")
    add("--pictures", default="anomalous", choices=PICTURES, metavar="|".join(PICTURES),
        help="draw mask, heat map and contours of these images (default anomalous)")
    add("--save-maps", choices=MAPS, metavar="|".join(MAPS),
        help="keep the raw anomaly map of every image, in float32")
    add("--allow-version-change", action="store_true",
        help="load an ensemble that another version of torch trained")


def _reporting(add):
    add("--report", action="store_true",
        help="write the paper's tables and figures and report.html from all results in OUT to "
        "OUT/report; skip runs that finished with the same options")
    add("--explain", nargs="?", const=BUILT_IN, metavar="IMAGE",
        help="draw every stage of one setup into OUT/explain, for a file, a test image's name, or "
        "by default a defective image")
# fmt: on


def _recipe_options(add, room):
    """Add the options that the fields of Recipe declare for a room."""
    for option in OPTIONS:
        about, flag = option.metadata, f"--{option.name.replace('_', '-')}"
        if about["group"] != room:
            continue
        if about["kind"] is bool:
            add(flag, action="store_true", help=about["text"])
        else:
            parse = functools.partial(
                _value, kind=about["kind"], wanted=about["wanted"],
                fits=functools.partial(is_allowed, option),
            )  # fmt: skip
            text = f"{about['text']} (default {option.default})"
            add(flag, type=parse, metavar=about["metavar"], help=text)


def run(args):
    """Run every cell that the options name and print the table.

    Parameters: args, of build_parser. Returns the exit status.
    Raises InputError for options that do not go together, and what the only cell raises.
    """
    ranks = args.ranks
    progress = Progress(quiet=args.quiet or not ranks.is_main)
    recipes, categories, backbone, options = _prepare(args, progress)
    if ranks.size > 1 and options.memory != "low":
        raise InputError(
            f"--memory {options.memory} keeps all tile locations in one process, and "
            f"{ranks.size} processes share them; leave it out"
        )
    with OutputLock(args.out) if ranks.is_main else contextlib.nullcontext():
        if ranks.size > 1:
            ranks.start(args.out, _description(args, options))
            progress.note(
                f"{ranks.size} processes share the tile locations, with "
                f"{torch.get_num_threads()} torch threads each; only rank 0 shows its progress"
            )
        sweep = Sweep(categories, recipes, backbone, options, progress, args.debug)
        results = []
        for recipe, images, network in sweep.cells():
            with sweep.caught(cell_title(images.category, recipe)):
                results.append(run_cell(recipe, images, network, options, progress))
        failures = sweep.failures
        if ranks.size > 1:
            told = ranks.finish([astuple(failure) for failure in failures])
            if not ranks.is_main:
                return 0
            results, failures = gather(sweep, told)
        return _report(args, results, failures, progress)


def _report(args, results, failures, progress):
    """Print the table of the results and the failures, write the page; returns the status."""
    progress.title = ""
    if results:
        print(result_table(results))
    if args.report and results:
        progress.note("report: tables, figures, report.html")
        page, notes = write_report(args.out)
        for note in notes:
            progress.note(f"report: {note}")
    if results and not args.quiet:
        print(f"\nFull precision: {args.out}/results.csv and metrics.json of each run below it")
        if args.report:
            print(f"Report: {page}, tables and figures beside it")
    for failure in failures:
        print(f"tiled-ref: error: {failure}", file=sys.stderr)
    return exit_status(failures)


NOT_EXPLAINED = {
    "--save", "--resume", "--report", "--memory", "--validation", "--percentile", "--metric-size",
    "--share-features",
}  # fmt: skip
PREDICTION = {"--load", "--predict", "--pictures", "--save-maps", "--allow-version-change"}
SHARED = {
    "--out", "--weights", "--device", "--batch-size", "--impl", "--threads", "--quiet", "--debug",
    "--memory", "--precision",
}  # fmt: skip


def predict_images(args):
    """Score images by a saved ensemble.

    Parameters: args, of build_parser. Returns the exit status, 2 if an image could not be read.
    Raises InputError for options that do not go together, and as `TiledEnsemble.load` and
    `predict.run_predict` do.
    """
    if args.load is None or args.predict is None:
        raise InputError("--load DIR and --predict FILE|FOLDER|- go together; give both")
    alien = sorted(args.given - PREDICTION - SHARED)
    if alien:
        raise InputError(
            f"{alien[0]} does not apply to a saved ensemble, which keeps what it was trained "
            "with; leave it out"
        )
    if args.impl == "cython":
        for name in arrays.KERNELS:
            arrays.kernel(name)
    progress = Progress(quiet=args.quiet)
    out = args.out if "--out" in args.given else Path("predictions")
    ensemble = TiledEnsemble.load(
        args.load,
        weights=None if args.weights == "auto" else args.weights,
        device=_resolve_device(args.device, Ranks()),
        batch_size=args.batch_size,
        allow_version_change=args.allow_version_change,
        precision=args.precision,
        progress=progress.stage(f"check the ensemble {args.load}"),
        say=progress.note,
    )
    if ensemble.thresholds is None:
        progress.note("the ensemble has no thresholds: scores only, no verdicts and no pictures")
    else:
        progress.note(describe(ensemble.thresholds))
    make_folder(out)
    options = PredictOptions(args.save_maps, args.pictures, args.impl, args.threads, args.memory)
    with OutputLock(out):
        count = run_predict(ensemble, args.predict, out, options, progress)
    parts = [f"{count[key]} {key}" for key in ("normal", "anomalous", "unknown") if count[key]]
    if count["errors"]:
        parts.append(f"{count['errors']} could not be read")
    total = sum(count.values())
    images = "image" if total == 1 else "images"
    print(f"{total} {images}: {', '.join(parts)}; see {out / 'predictions.csv'}")
    return EXIT_INPUT if count["errors"] else 0


def _given(argv):
    """The options of a command line, without their values."""
    return {word.partition("=")[0] for word in argv if word.startswith("--") and word != "--"}


def explain_image(args):
    """Walk one image through one setup, a picture per stage, and print what was written.

    Raises InputError where the options name several setups, and as walk.explain does.
    """
    alien = sorted(args.given & NOT_EXPLAINED)
    if alien:
        raise InputError(f"{alien[0]} does not apply to --explain, which keeps pictures only")
    progress = Progress(quiet=args.quiet)
    recipes, categories, backbone, options = _prepare(args, progress)
    for flag, values in (
        ("--setup", {recipe.setup for recipe in recipes}),
        ("--arch", {recipe.arch for recipe in recipes}),
        ("--category", categories),
        ("--seed", args.seed),
    ):
        if len(values) > 1:
            raise InputError(f"--explain walks one image once: give one {flag}, not {len(values)}")
    category = categories[0].load()
    title, stages = explain(args.explain, category, recipes[0], backbone, options, progress)
    folder = args.out / "explain"
    names = write_walk(stages, folder, title)
    rows = [[name, s.shape, s.code, s.source] for name, s in zip(names, stages)]
    print(text_table(["picture", "array", "code", "source"], rows, left=4))
    if not args.quiet:
        print(f"\nThe walk of {title}: {folder}/index.html")
    return 0


def _prepare(args, progress):
    """What the options name: recipes, categories, the backbone and Options."""
    alien = sorted(args.given & PREDICTION)
    if alien:
        raise InputError(f"{alien[0]} needs a saved ensemble; name its folder with --load")
    if args.impl == "cython":  # a missing kernel is found now, not after the training
        for name in arrays.KERNELS:
            arrays.kernel(name)
    setups = [
        SETUPS[name].with_sizes(args.image_size, args.tile_size, args.stride)
        for name in _expand(args.setup, SETUPS)
    ]
    chosen = {option.name: getattr(args, option.name) for option in OPTIONS}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    switches = _switches(args)
    recipes = [
        Recipe(setup, arch, seed, args.batch_size, switches.get(arch), **chosen)
        for arch in _expand(args.arch, MODELS)
        for setup in dict.fromkeys(setups)
        for seed in dict.fromkeys(args.seed)
    ]
    categories = _categories(args)
    device = _resolve_device(args.device, args.ranks)
    if device.type == "cuda":  # float32 means float32, as on the CPU
        torch.backends.cudnn.allow_tf32 = False
    make_folder(args.out)
    with args.ranks.one_at_a_time("weights"):  # one downloads them, the others find them
        weights = find_weights(args.weights, say=progress.note)
    progress.note(f"backbone: {weights.kind} weights, {weights.origin}; device: {device}")
    backbone = ResNet18Features(weights.state_dict)
    options = Options(
        out=args.out,
        device=device,
        memory=args.memory or "low",
        share_features=args.share_features,
        weights=weights.kind,
        metric_size=args.metric_size,
        impl=args.impl,
        threads=args.threads,
        weights_digest=weights.digest,
        resume=args.resume or args.ranks.restarts > 0 or (WHERE_SAME if args.report else False),
        save=args.save,
        report=args.report,
        validation=args.validation,
        percentile=args.percentile,
        ranks=args.ranks,
    )
    return recipes, categories, backbone, options


def _description(args, options):
    """What ranks of one run must have in common, as text."""
    own = {"ranks", "command", "out", "root", "device", "threads", "quiet", "debug"}
    given = {key: value for key, value in vars(args).items() if key not in own | {"given"}}
    return repr([sorted(given.items()), options.weights_digest, versions()])


def list_setups(args):
    """Print each setup with its grid and its parameters per architecture (Table 3), and what is
    really kept."""
    backbone = ResNet18Features(find_weights("random").state_dict)
    rows, stored = [], []
    for setup in SETUPS.values():
        ensembles = [TiledEnsemble(setup, arch, backbone=backbone) for arch in MODELS]
        parameters = [f"{ensemble.n_parameters:,}" for ensemble in ensembles]
        kept = [f"{ensemble.n_stored_parameters(LISTED_IMAGES):,}" for ensemble in ensembles]
        stored.append([setup.name, *kept])
        sizes = (setup.image_size[0], setup.tile_size[0], setup.stride[0])
        rows.append(
            [setup.name, *map(str, sizes), str(setup.n_tiles), str(setup.n_models), *parameters]
        )
    headers = ["setup", "image", "tile", "stride", "tiles", "models", *MODELS]
    print(text_table(headers, rows))
    print(
        "\nParameters as the paper counts them, the backbone once per model. Numbers really kept, "
        f"\nthe backbone once, statistics included, after training on {LISTED_IMAGES} images:\n"
    )
    print(text_table(["setup", *MODELS], stored))
    return 0


def _expand(names, known):
    """The names in their order, each once; all known ones for "all"."""
    return list(known) if "all" in names else list(dict.fromkeys(names))


def _categories(args):
    """The categories that the options name, as Planned."""
    names = _expand(args.dataset, ())
    roots = _roots(names, args.root)
    planned = []
    for name in names:
        data, root = DATASETS[name], roots[name]
        if args.category is None:
            default = getattr(data, "DEFAULT_CATEGORY", None)
            chosen = [default] if default else data.categories(root)
        elif "all" in args.category:
            chosen = data.categories(root)
        else:
            known = data.categories(root)
            chosen = [c for c in _expand(args.category, ()) if c in known]
            if len(names) == 1 and len(chosen) < len(set(args.category)):
                chosen = _expand(args.category, ())
                data.load(root, next(c for c in chosen if c not in known))  # says what is wrong
            if not chosen:
                raise InputError(
                    f"none of --category {' '.join(args.category)} is in the data set {name}; "
                    f"it has: {', '.join(known)}"
                )
        planned += [Planned(name, c, functools.partial(data.load, root, c)) for c in chosen]
    unknown = set(args.category or ()) - {"all"} - {entry.name for entry in planned}
    if unknown and "all" not in args.category:
        raise InputError(f"there is no category {min(unknown)!r} in {', '.join(names)}")
    return planned


def _roots(names, roots):
    """Data set -> its folder, None where none was given.

    Several data sets on disk have a folder each, in their order, or share one: then a data
    set's folder is that of its name below it if there is one, else the folder itself.
    """
    on_disk = [name for name in names if name != "synthetic"]
    found = dict.fromkeys(names)
    if not roots or not on_disk:
        return found
    if len(roots) == len(on_disk):
        return found | dict(zip(on_disk, roots))
    if len(roots) > 1:
        given = ", ".join(map(str, roots))
        raise InputError(
            f"--root names {len(roots)} folders ({given}) for {len(on_disk)} data sets "
            f"({', '.join(on_disk)}); give one folder each, in their order, or one for all"
        )
    root = roots[0]
    return found | {name: root / name if (root / name).is_dir() else root for name in on_disk}


def _switches(args):
    """Architecture -> keyword arguments that the user gave."""
    given = {arch: {"impl": args.impl} for arch in IMPL_ARCHS}
    for flag, archs, keyword, _, _ in SWITCHES:
        value = getattr(args, flag.lstrip("-").replace("-", "_"))
        for arch in archs if value is not None else ():
            given.setdefault(arch, {})[keyword] = value
    return given


def _resolve_device(name, ranks):
    """The torch.device of an option; each of several ranks on a machine has its own GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no CUDA device here; use --device cpu")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if device.index is not None and device.index >= count:
            raise InputError(f"--device {name}: there are {count} CUDA devices, numbered from 0")
        if device.index is None and ranks.size > 1:
            device = torch.device("cuda", ranks.local_rank % count)
    return device


def _device(text):
    if re.fullmatch("auto|cpu|cuda(:[0-9]+)?", text):
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is none of auto, cpu, cuda, cuda:0, cuda:1, ...")


def _memory(text):
    if text in MEMORY_MODES:
        return text
    cap = _bytes(text) is not None
    raise argparse.ArgumentTypeError(
        f"a cap in bytes ({text}) was removed; use low, the memory of one model on one tile"
        if cap else f"{text!r} is neither low nor resident"
    )  # fmt: skip


def _share(text):
    """Bytes, 0 for "off"."""
    n_bytes = 0 if text == "off" else _bytes(text)
    if n_bytes is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither off nor a number of bytes such as 8GiB"
        )
    return n_bytes


def _bytes(text):
    """A number of bytes such as 8GiB or 500MB as an int; None for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in BYTES:
        return None
    return int(float(match[1]) * BYTES[match[2].upper()])


def _natural(text):
    return _value(text, int, "a whole number of at least 0", lambda value: 0 <= value < 2**63)


def _positive(text):
    return _value(text, int, "a whole number of at least 1", lambda value: value >= 1)


def _percentile(text):
    return _value(text, float, "a number above 0 and at most 100", lambda p: 0 < p <= 100)


def _value(text, kind, wanted, fits):
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not fits(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
    return value


def _size(text):
    sides = text.lower().split("x")
    if len(sides) > 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 512 or 3040x4190")
    sides = [_positive(side) for side in sides]
    return (sides[0], sides[-1])


if __name__ == "__main__":
    sys.exit(main())
