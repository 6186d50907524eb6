"""The command line: parse, call, print.

One file because one parser holds the options of all rooms, in the order of --help-all.
"""

import argparse
import contextlib
import functools
import os
import signal
import sys
import traceback
from dataclasses import astuple
from datetime import date
from pathlib import Path

import torch

from . import __version__
from .data import DATASETS
from .data.decoding import pixel_limit
from .data.disk import counted, nfc, printable
from .ensemble import TiledEnsemble
from .models import MODELS
from .models.backbone import ResNet18Features
from .models.padim import N_FEATURES, STORES, D
from .models.weights import find_weights
from .reporting.page import write_report
from .reporting.summary import result_table, text_table
from .reporting.walk.page import write_walk
from .reporting.walk.stages import BUILT_IN, explain
from .running import shared_layers
from .running.cell import METRIC_SIZES, Options, run_cell
from .running.engine import MEMORY_MODES
from .running.estimate import (
    check_disk,
    disk_needs,
    disk_text,
    measured,
    plan_rows,
    plan_seconds,
    probe,
)
from .running.lock import OutputLock
from .running.pieces import WHERE_SAME
from .running.processes import Ended, Ranks
from .running.results import versions
from .running.sweep import Planned, Sweep, cell_title, exit_status, gather
from .serving.calibrate import run_calibrate
from .serving.export import check_file, export
from .serving.outputs import MAPS, PICTURES, PredictOptions, with_given
from .serving.predict import run_predict
from .serving.sources import Watch
from .serving.submission import Submission
from .setups import OPTIONS, SETUPS, Recipe, is_allowed
from .support import arrays, option_types
from .support.devices import device_name, resolve_device
from .support.errors import InputError, KernelNotBuiltError, one_line, out_of_memory
from .support.files import make_folder
from .support.progress import Progress, duration
from .support.streams import guarded_streams
from .verdicts.deciding import MODES
from .verdicts.marks import read_roi
from .verdicts.thresholds import Rules, describe, doubts

LISTED_IMAGES = 200  # training images for which --list counts a memory bank
IMPL_ARCHS = ("padim", "patchcore", "reverse_distillation")  # they have their own kernels
EXIT_RANK, EXIT_INPUT, EXIT_SIGNAL = 1, 2, 128  # plus the signal's number

# The options that --help shows.
COMMON = {
    "--setup", "--arch", "--dataset", "--root", "--category", "--image-size", "--tile-size",
    "--save", "--load", "--predict",
}  # fmt: skip
EXAMPLES = """\
examples:
  tiled-ref --setup ENS9
      train and score nine models on the built-in images; the results go to results/
  tiled-ref --dataset folder --root DIR --image-size 2048 --tile-size 512 --save
      train on your own images: DIR/train/..., DIR/test/good/..., DIR/test/<defect>/...
  tiled-ref --load results/.../ensemble --predict FOLDER
      score new images with a saved ensemble; the verdicts go to predictions/
"""
SEE_ALL = "\n--help-all lists all options, by topic, and the exit status."
MORE = """\
  tiled-ref --setup all --arch all --dataset mvtec visa --root DIR DIR --seed 42 5125 33 --report
      reproduce the paper's tables and figures; repeat the command to continue after a stop
  torchrun --nproc-per-node 4 run.py --setup ENS9
      share the tile locations among four processes, one GPU each if there are enough

Exit status: 0 success, 1 internal error or a failed process of a shared run,
2 invalid option or file, or not enough memory, 130 interrupted, 143 terminated.
"""

# Options that are keyword arguments of architectures: flag, architectures, keyword, the variants
# (the paper's first; or a range of whole numbers) and the text of --help-all.
SWITCHES = (
    ("--padim-channels", ("padim",), "n_channels", range(1, N_FEATURES + 1),
     f"keep N of {N_FEATURES} channels; time and memory grow with their square (default {D})"),
    ("--store", ("padim",), "store", tuple(STORES),
     "store PaDiM's factors in this dtype; float16 halves files and memory"),
    ("--steps", ("fastflow", "reverse_distillation"), "steps", option_types.STEPS,
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


@guarded_streams()
def main(argv=None):
    """Run the command line; returns the exit status."""
    ranks, args = Ranks(os.environ), argparse.Namespace(command=None, debug=False)
    try:
        with contextlib.ExitStack() as stack:
            if ranks.size > 1:
                stack.enter_context(ranks.connected())
            if not ranks.is_main:  # rank 0 prints the help, the version and the tables
                nowhere = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(contextlib.redirect_stdout(nowhere))
            args = build_parser().parse_args(argv, argparse.Namespace(ranks=ranks))
            words = sys.argv[1:] if argv is None else argv
            args.given = {w.partition("=")[0] for w in words if w.startswith("--")} - {"--"}
            args.command = _command(args)
            if args.max_pixels:
                stack.enter_context(pixel_limit(args.max_pixels))
            # All ranks share a run; rank 0 alone does anything else.
            return args.command(args) if args.command is run or ranks.is_main else 0
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        sentence = _sentence(error, args.command)
        if sentence is None:  # an internal error
            if ranks.size > 1:  # torchrun ends the others; their errors would hide this one
                ranks.fail(f"tiled-ref: error: {type(error).__name__}: {one_line(error)}")
            raise
        ranks.fail(f"tiled-ref: error: {sentence}")
        return EXIT_INPUT
    except Ended as error:
        ranks.fail(f"tiled-ref: error: {error}")
        return EXIT_RANK
    except KeyboardInterrupt as error:  # its signal, and a function that ignores more
        number, ignore_more = error.args or (signal.SIGINT, bool)
        ignore_more()
        if args.debug:
            traceback.print_exc()
        kept = {
            run: "; the same command with --resume continues",
            predict_images: "; the rows so far are in predictions.partial.csv",
        }.get(None if getattr(args, "watch", None) else args.command, "")  # ends a watch
        ranks.fail(f"tiled-ref: {'interrupted' if number == signal.SIGINT else 'terminated'}{kept}")
        return EXIT_SIGNAL + number


def _command(args):
    """The function for the command that the options select."""
    if args.load is not None or args.given & LOADED.keys():
        return export_ensemble if args.export else calibrate if args.calibrate else predict_images
    return args.command if args.explain is None else explain_image


def _sentence(error, command):
    """The message that a user sees for an exception; None for an internal error."""
    smaller = ["--batch-size, or --memory low"] if command is predict_images else []
    if sentence := out_of_memory(error, *smaller):
        return sentence
    if isinstance(error, (InputError, KernelNotBuiltError)):
        return one_line(error)
    if isinstance(error, OSError) and error.filename:  # such as a name that is too long
        return one_line(error)
    if isinstance(error, UnicodeEncodeError) and sys.getfilesystemencoding() != "utf-8":
        return f"a file's name: {one_line(error)}; set PYTHONUTF8=1"
    return None


def build_parser():
    """The argparse parser of run.py and of the entry point tiled-ref."""
    parser = option_types.Parser(
        prog="tiled-ref",
        usage="%(prog)s [--setup NAME ...] [--dataset NAME --root DIR] [options]",
        description="Detect anomalies in high-resolution images with a tiled ensemble: one model "
        "per tile\nlocation, merged predictions, smoothed seams.",
        epilog=EXAMPLES + MORE,
        formatter_class=option_types.help_formatter,
        add_help=False, allow_abbrev=False,
    )  # fmt: skip
    parser.set_defaults(command=run)
    add = parser.add_argument
    add("-h", "--help", action=option_types.ShortHelp, nargs=0, const=(COMMON, EXAMPLES + SEE_ALL),
        help="show the ten most used options")  # fmt: skip
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
    add("--seed", nargs="+", type=option_types.seed, default=[42], metavar="N",
        help="run once per seed (default 42; the paper's: 42 5125 33)")
    add("--image-size", type=option_types.size_or_native, metavar="SIZE",
        help="resize images to N or HEIGHTxWIDTH pixels; native keeps their own size, which must "
        "be the same for all images of a category (default: the setup's size)")
    add("--tile-size", type=option_types.size, metavar="SIZE",
        help="cut tiles of N or HEIGHTxWIDTH pixels (default: the setup's size)")
    add("--stride", type=option_types.size, metavar="SIZE",
        help="start a tile every N or HEIGHTxWIDTH pixels (default: the setup's stride)")
    add("--groups", type=option_types.size, metavar="RxC",
        help="let blocks of R x C neighbouring tile locations share one model, trained on their "
        "tiles as separate images (default 1x1, one model per location)")
    add("--metric-size", choices=METRIC_SIZES, metavar="|".join(METRIC_SIZES),
        help="compute pixel metrics at the setup's image size or each image's original "
        "(default setup; original for mvtec2)")
    add("--fpr-limit", type=option_types.limit, metavar="X",
        help="compute AUPRO up to this false positive rate (default 0.3; 0.05 for mvtec2)")
    add("--validation", choices=MODES, metavar="|".join(MODES),
        help="set thresholds on the test images, as in the paper; on one half of them, with the "
        "metrics from the other half; on a held-out tenth of the training images; or on the "
        "normal images in the folder validation/good (default folder if it has images, "
        "otherwise same-as-test)")
    add("--percentile", type=option_types.percentile, default=100.0, metavar="P",
        help="without defective images, set the image threshold at this percentile of the normal "
        "scores (default 100, the maximum)")
    add("--false-alarms", type=option_types.share, metavar="RATE",
        help="set the pixel threshold so that at most this fraction of normal images has a mark "
        "(default: the threshold of best F1 if there are masks, otherwise 0; for mvtec2, the "
        "mean plus 3 standard deviations of the normal images' pixels)")
    add("--min-area", type=option_types.pixels, metavar="PX",
        help="mark only regions of at least PX image pixels (default 1)")
    add("--roi", type=Path, metavar="MASK",
        help="inspect only where this mask, of the images' size, is white: no marks outside, and "
        "tiles entirely outside do not count in the image score")


def _data(add):
    add("--dataset", nargs="+", default=["synthetic"], choices=list(DATASETS), metavar="NAME",
        help=f"read {', '.join(DATASETS)} (default synthetic, generated on the fly)")
    add("--root", nargs="+", action="extend", type=Path, metavar="DIR",
        help="read the data set from this folder; for several data sets, give one folder each, in "
        "the order of --dataset, or one folder that holds them all")
    add("--category", nargs="+", metavar="NAME", type=nfc,
        help="run these categories or all (default: board for synthetic, otherwise all)")
    add("--max-pixels", type=option_types.pixels, metavar="N",
        help="read images of up to N pixels each (default 178956970)")
    add("--masks", metavar="NAME",
        help="with --dataset folder, read the masks from this folder beside train and test "
        "(default ground_truth)")


def _models(add):
    add("--arch", nargs="+", metavar="NAME", default=["padim"], choices=[*MODELS, "all"],
        help=f"train {', '.join(MODELS)} or all (default padim)")
    add("--weights", default="auto", metavar="auto|imagenet|random|FILE",
        help="choose the weights of ResNet-18: imagenet searches the torch hub cache, then "
        "downloads; auto does the same and falls back to random with a warning (default auto)")
    add("--batch-size", type=option_types.batch, metavar="N",
        help="process N images per batch (default: the paper's 32; 8 for patchcore)")
    for flag, _, _, variants, text in SWITCHES:
        if isinstance(variants, range):
            add(flag, type=option_types.whole(variants), metavar="N", help=text)
        else:
            add(flag, choices=variants, metavar="|".join(variants),
                help=f"{text} (default {variants[0]})")


def _running(add):
    add("--out", type=Path, default=Path("results"), metavar="DIR",
        help="write all files here (default results; predictions with --predict)")
    add("--device", default="auto", type=device_name, metavar="auto|cpu|cuda",
        help="run the models on this device, such as cuda:1 (default auto: cuda if available)")
    add("--impl", default="cython", choices=arrays.IMPLS, metavar="|".join(arrays.IMPLS),
        help="use the compiled kernels or their NumPy specification; the results are bit-identical "
        "(default cython)")
    add("--threads", type=option_types.whole(arrays.THREADS), metavar="N",
        help="merge, smooth and score with N threads (default: the environment variable "
        f"{arrays.THREADS_VARIABLE}, which PaDiM and PatchCore use too, otherwise 2)")
    add("--memory", type=functools.partial(option_types.memory_mode, modes=MEMORY_MODES),
        metavar="|".join(MEMORY_MODES),
        help="keep one tile location at a time on the device, or all of them and batch the tiles "
        "of an image (default low; resident for --predict up to 2 GiB on a CPU)")
    add("--share-features", type=option_types.bytes_or_off, default=shared_layers.BUDGET,
        metavar="off|BYTES",
        help="on a CPU, compute the backbone's layers once for all cells of a category and keep "
        "them in TMPDIR, at most BYTES and half of the free space; the results do not change "
        f"(default {shared_layers.BUDGET >> 30}GiB)")
    add("--save", action="store_true", help="keep the trained ensembles for --load")
    add("--estimate", action="store_const", const=estimate_run, dest="command",
        help="print how many models, how much time, memory and disk space this command needs, and "
        "exit; the time is measured on one tile location of each kind")
    add("--resume", action="store_true",
        help="continue an interrupted run of the same command; the metrics equal those of an "
        "uninterrupted run")
    add("--quiet", action="store_true", help="hide the progress")
    add("--debug", action="store_true", help="show the traceback of an error")
    add("--compile", action=option_types.Removed, nargs=0, help=argparse.SUPPRESS,
        const="leave it out; the backbone is never compiled")


def _serving(add):
    add("--load", type=Path, metavar="DIR", help="load an ensemble folder that --save wrote")
    add("--predict", metavar="FILE|FOLDER|-",
        help="score an image, all images below a folder, or the paths on standard input as they "
        "arrive, one per line or separated by NUL")
    add("--watch", metavar="FOLDER",
        help="score the images below a folder, and new ones as they appear, until interrupted")
    add("--threshold", type=option_types.threshold, metavar="S",
        help="call images with at least this score anomalous, in the units of predictions.csv")
    add("--pixel-threshold", type=option_types.threshold, metavar="M",
        help="mark pixels with at least this value, in the units of the raw maps")
    add("--calibrate", metavar="FOLDER",
        help="score a folder of normal images, or one with good/ and <defect>/, print false alarms "
        "against misses, and store the thresholds for --false-alarms (default 0) in the ensemble")
    add("--export", type=Path, metavar="FILE.pt2",
        help="write the ensemble as one torch.export program, from an image to map, score and "
        "verdict, that needs only torch and runs on the --device")
    add("--pictures", default="anomalous", choices=PICTURES, metavar="|".join(PICTURES),
        help="draw mask, heat map and contours for the images that are anomalous or have marks, "
        "for all or for none (default anomalous)")
    add("--save-maps", choices=MAPS, metavar="|".join(MAPS),
        help="save the raw anomaly map of every image, in float32")
    add("--submission", type=Path, metavar="DIR",
        help="with --dataset mvtec2: save the ensembles as with --save, predict test_private and "
        "test_private_mixed of all objects, and write the files for the evaluation server to "
        "DIR and DIR.tar.gz")
    add("--allow-version-change", action="store_true",
        help="load an ensemble trained with another minor version of torch")


def _reporting(add):
    add("--report", action="store_true",
        help="write the paper's tables and figures and report.html from all results in OUT to "
        "OUT/report; skip runs that finished with the same options")
    add("--title", default="", metavar="TEXT",
        help="with --report, use TEXT as the heading, such as part, line and customer")
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
                option_types.parse, kind=about["kind"], wanted=about["wanted"],
                fits=functools.partial(is_allowed, option),
            )  # fmt: skip
            text = f"{about['text']} (default {option.default})"
            add(flag, type=parse, metavar=about["metavar"], help=text)


def run(args):
    """Run every selected cell and print the table; returns the exit status.

    Raises InputError for options that conflict, and a single cell's own exception.
    """
    ranks = args.ranks
    progress = Progress(quiet=args.quiet or not ranks.is_main)
    recipes, categories, backbone, options = _prepare(args, progress)
    if ranks.size > 1 and options.memory != "low":
        raise InputError(
            f"--memory {options.memory} keeps all tile locations in one process, and "
            f"{ranks.size} processes share them; leave it out"
        )
    sweep = Sweep(categories, recipes, backbone, options, progress, args.debug)
    submission = _submission(args, categories, recipes) if ranks.is_main else None
    with OutputLock(args.out) if ranks.is_main else contextlib.nullcontext():
        if ranks.is_main:  # the other ranks wait for it before they write
            plan = list(filter(None, sweep.estimates))
            needs = disk_needs(plan, options, submission.needs() if submission else ())
            for line in _plan_lines(plan, needs):
                progress.note(line)
            sweep.share_within(check_disk(needs))
        if ranks.size > 1:
            ranks.start(args.out, _description(args, options))
            progress.note(
                f"{ranks.size} processes share the tile locations, with "
                f"{torch.get_num_threads()} torch threads each; only rank 0 shows its progress"
            )
        probe(backbone.to(options.device), options.device, progress)
        results = []
        for recipe, images, network in sweep.cells():
            with sweep.caught(cell_title(images.category, recipe)):
                results.append(run_cell(recipe, images, network, options, progress))
        failures = sweep.failures
        if ranks.size > 1:
            of_all = ranks.finish([astuple(failure) for failure in failures])
            if not ranks.is_main:
                return 0
            results, failures = gather(sweep, of_all)
        status = _report(args, results, failures, progress)
        if submission is None or status:
            return status
        return _submit(submission, args, results, backbone, options, progress)


def _submission(args, categories, recipes):
    """The Submission of --submission, None without it. Raises InputError if files that it needs
    are missing or an option conflicts with it."""
    if args.submission is None:
        return None
    if args.dataset != ["mvtec2"]:
        raise InputError("--submission is only for MVTec AD 2; give --dataset mvtec2")
    if len(recipes) > 1:
        raise InputError(
            f"a submission takes one ensemble per object, not {len(recipes)}; give "
            "one --setup, one --arch and one --seed"
        )
    if args.validation not in (None, "folder"):
        raise InputError(
            f"--validation {args.validation} cannot be combined with --submission, whose "
            "thresholds come from validation/good; leave it out"
        )
    _refuse(args.given & {"--roi", "--min-area"}, "cannot be combined with --submission, where "
            "every pixel counts; leave it out")  # fmt: skip
    if os.path.realpath(args.submission) == os.path.realpath(args.out):
        raise InputError("--submission and --out name the same folder; choose two")
    for entry in categories:
        entry.load()  # raises InputError for missing files
    root = _roots(args.dataset, args.root)["mvtec2"]
    return Submission(args.submission, root, [entry.name for entry in categories])


def _submit(submission, args, results, backbone, options, progress):
    """Write the submission of a run; returns the exit status. Raises InputError."""
    cells = {}
    for result in results:
        parts = (result[key] for key in ("dataset", "category", "arch", "setup"))
        folder = Path(args.out, *parts, f"seed{result['seed']}", "ensemble")
        cells[result["category"]] = folder, result["identity"]
    load = functools.partial(TiledEnsemble.load, backbone=backbone, device=options.device)
    how = PredictOptions(impl=args.impl, threads=args.threads, memory=args.memory)
    progress.todo.clear()  # of the training
    archive = submission.write(cells, load, how, progress, options.resume)
    print(f"\nSubmission: {printable(archive)}, {archive.stat().st_size:,} bytes")
    return 0


def estimate_run(args):
    """Print the plan of the run with its time; returns the exit status. Raises InputError, also
    if the disk has too little space."""
    progress = Progress(quiet=args.quiet)
    recipes, categories, backbone, options = _prepare(args, progress)
    sweep = Sweep(categories, recipes, backbone, options, progress)
    plan = [sweep.estimate(entry) for entry in sweep.plan]
    submission, more = _submission(args, categories, recipes), ()
    if submission:
        submission.add_work(plan)
        more = submission.needs()
    needs, times = disk_needs(plan, options, more), measured(plan, backbone, options)
    print("\n".join(_plan_lines(plan, needs, times)))
    check_disk(needs)
    return 0


def _plan_lines(plan, needs, times=None):
    """The plan in at most a dozen lines; see estimate.plan_rows."""
    if not plan:  # no category can be run
        return []
    headings, *rows = plan_rows(plan, times)
    took = f"takes about {duration(plan_seconds(plan, times))}, " if times else ""
    return [
        *text_table(headings, rows, left=2).splitlines(), f"the run {took}{disk_text(needs)}"
    ]


def _report(args, results, failures, progress):
    """Print the table of the results and the failures, write the page; returns the status."""
    progress.title = ""
    if results:
        print(result_table(results))
    if args.report and results:
        progress.note("report: tables, figures, report.html")
        page, notes = write_report(args.out, one_line(args.title), date.today().isoformat())
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
    "--share-features", "--estimate", "--false-alarms", "--min-area", "--roi", "--title",
    "--submission", "--fpr-limit",
}  # fmt: skip
ALWAYS = {
    "--load", "--allow-version-change", "--weights", "--device", "--precision", "--quiet",
    "--debug",
}  # fmt: skip
SHARED = {
    "--out", "--batch-size", "--impl", "--threads", "--memory", "--max-pixels", "--min-area",
    "--roi",
}  # fmt: skip
POINT = {"--threshold", "--pixel-threshold", "--pictures", "--save-maps"}
LOADED = {  # the uses of a saved ensemble, and the options that each accepts
    "--predict": SHARED | POINT,
    "--watch": SHARED | POINT,
    "--calibrate": SHARED | {"--false-alarms"},
    "--export": set(),
}
PREDICTION = {"--load", "--allow-version-change", *POINT, *LOADED}


def _load_ensemble(args, progress):
    """The ensemble of --load. Raises InputError, also for options that do not apply to it."""
    modes = sorted(args.given & LOADED.keys())
    if args.load is None or len(modes) != 1:
        raise InputError(f"give --load DIR and exactly one of {', '.join(LOADED)}")
    others = args.given - ALWAYS - LOADED[modes[0]] - {*modes}
    known = set().union(PREDICTION, *LOADED.values())
    _refuse(others & known, f"cannot be combined with {modes[0]}; leave it out")
    _refuse(
        others,
        "does not apply to a saved ensemble, which keeps its training options; leave it out",
    )
    if args.export:
        check_file(args.export)
    _check_kernels(args.impl)
    return TiledEnsemble.load(
        args.load,
        weights=None if args.weights == "auto" else args.weights,
        device=resolve_device(args.device),
        batch_size=args.batch_size,
        allow_version_change=args.allow_version_change,
        precision=args.precision,
        progress=progress.stage(f"check the ensemble {args.load}"),
        say=progress.note,
    )


def predict_images(args):
    """Score images with a saved ensemble; returns 2 if any could not be. Raises InputError."""
    progress = Progress(quiet=args.quiet)
    ensemble = _load_ensemble(args, progress)
    source = args.predict if args.watch is None else Watch(args.watch)
    out = args.out if "--out" in args.given else Path("predictions")
    ensemble.thresholds = with_given(
        ensemble.thresholds, args.threshold, args.pixel_threshold, args.min_area
    )
    ensemble.roi = ensemble.roi if args.roi is None else read_roi(args.roi)
    notes = ["the ensemble has no thresholds: scores only, no verdicts and no pictures"]
    if ensemble.thresholds:
        notes = [describe(ensemble.thresholds), *doubts(ensemble.thresholds)]
    for note in notes:
        progress.note(note)
    make_folder(out)
    options = PredictOptions(args.save_maps, args.pictures, args.impl, args.threads, args.memory)
    with OutputLock(out):
        count = run_predict(ensemble, source, out, options, progress)
    total, words = sum(count.values()), {"errors": "could not be scored"}
    parts = [f"{n} {words.get(key, key)}" for key, n in count.items() if n]
    images = f"{total} image{'s' * (total != 1)}{': ' * (total > 0)}{', '.join(parts)}"
    print(f"{images}; see {out / 'predictions.csv'}")
    if args.watch is not None:
        raise source.interrupt
    return EXIT_INPUT if count["errors"] else 0


def calibrate(args):
    """Set the operating point of a saved ensemble; returns the exit status. Raises InputError."""
    progress = Progress(quiet=args.quiet)
    ensemble = _load_ensemble(args, progress)
    before = ensemble.thresholds or {}
    area = before.get("min_area", 1) if args.min_area is None else args.min_area
    rules = Rules(
        false_alarms=args.false_alarms, min_area=area,
        roi=ensemble.roi if args.roi is None else read_roi(args.roi),
    )  # fmt: skip
    options = PredictOptions(impl=args.impl, threads=args.threads, memory=args.memory)
    out = args.out if "--out" in args.given else Path("calibration")
    make_folder(out)
    with OutputLock(out):
        rows = run_calibrate(ensemble, args.load, args.calibrate, out, rules, options, progress)
    cells = [
        ["*" * row["chosen"], f"{row['false_alarms']}/{row['normal_images']}",
         f"{row['image_threshold']:.6g}", f"{row['missed_images']}/{row['defective_images']}",
         f"{row['pixel_threshold']:.6g}", f"{row['missed_defects']}/{row['defects']}"]
        for row in rows
    ]  # fmt: skip
    heads = ["", "false alarms", "image threshold", "missed", "pixel threshold", "not marked"]
    print(text_table(heads, cells))
    for note in describe(ensemble.thresholds), *doubts(ensemble.thresholds):
        progress.note(note)
    if not args.quiet:
        print(f"\nThe row * is stored in {args.load}; see {out / 'calibration.csv'}")
    return 0


def export_ensemble(args):
    """Write a saved ensemble as one program; returns the exit status. Raises InputError."""
    progress = Progress(quiet=args.quiet)
    ensemble = _load_ensemble(args, progress)
    progress.note("export: trace the program and write it")
    export(ensemble, args.export)
    height, width = ensemble.setup.image_size
    verdict = ", verdict" if ensemble.thresholds else " (no verdict without thresholds)"
    print(
        f"{printable(args.export)}: {args.export.stat().st_size:,} bytes, from an RGB image uint8 "
        f"(1, 3, {height}, {width}) to map, score{verdict}"
    )
    return 0


def explain_image(args):
    """Draw every stage of one image in one setup; returns the exit status. Raises InputError."""
    _refuse(args.given & NOT_EXPLAINED, "does not apply to --explain, which keeps pictures only")
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
    recipe = Sweep(categories, recipes, backbone, options, progress).recipes_of(categories[0])[0]
    title, stages = explain(args.explain, category, recipe, backbone, options, progress)
    folder = args.out / "explain"
    names = write_walk(stages, folder, title)
    rows = [[name, s.shape, s.code, s.source] for name, s in zip(names, stages)]
    print(text_table(["picture", "array", "code", "source"], rows, left=4))
    if not args.quiet:
        print(f"\nThe walk of {title}: {folder}/index.html")
    return 0


def _refuse(flags, reason):
    if flags:
        raise InputError(f"{min(flags)} {reason}")


def _check_kernels(impl):
    """Raise for a missing kernel now, not after the training."""
    for name in arrays.KERNELS if impl == "cython" else ():
        arrays.kernel(name)


def _prepare(args, progress):
    """The recipes, categories, backbone and Options that the command line specifies."""
    _refuse(args.given & PREDICTION, "needs a saved ensemble; name its folder with --load")
    if not args.report:
        _refuse(args.given & {"--title"}, "is the title of a report; give --report too")
    _check_kernels(args.impl)
    size, native = args.image_size, args.image_size == "native"
    if native:  # a placeholder that fits the tiles, until the images' size is known
        size = tuple(max(512, side) for side in args.tile_size or (512, 512))
    setups = [
        SETUPS[name].with_sizes(size, args.tile_size, args.stride, args.groups)
        for name in _expand(args.setup, SETUPS)
    ]
    chosen = {o.name: value for o in OPTIONS if (value := getattr(args, o.name)) is not None}
    switches = _switches(args)
    recipes = [
        Recipe(setup, arch, seed, args.batch_size, switches.get(arch), **chosen)
        for arch in _expand(args.arch, MODELS)
        for setup in dict.fromkeys(setups)
        for seed in dict.fromkeys(args.seed)
    ]
    categories = _categories(args, progress)
    device = resolve_device(args.device, args.ranks)
    make_folder(args.out)
    with args.ranks.one_at_a_time("weights"):  # one downloads them, the others find them
        weights = find_weights(args.weights, say=progress.note)
    progress.note(f"backbone: {weights.kind} weights, {weights.origin}; device: {device}")
    backbone = ResNet18Features(weights.state_dict)
    options = Options(
        out=args.out, device=device, memory=args.memory or "low", impl=args.impl,
        threads=args.threads, weights=weights.kind, weights_digest=weights.digest,
        metric_size=args.metric_size, fpr_limit=args.fpr_limit, validation=args.validation,
        rules=_rules(args), share_features=args.share_features, report=args.report,
        ranks=args.ranks, native=native, save=args.save or args.submission is not None,
        resume=args.resume or args.ranks.restarts > 0 or (WHERE_SAME if args.report else False),
    )  # fmt: skip
    return recipes, categories, backbone, options


def _rules(args):
    """The thresholds.Rules that the command line specifies."""
    area, roi = args.min_area or 1, None if args.roi is None else read_roi(args.roi)
    return Rules(args.percentile, args.false_alarms, area, roi)


def _description(args, options):
    """The settings that all ranks of a run must share, as text."""
    own = {"ranks", "command", "out", "root", "device", "threads", "quiet", "debug"}
    given = {key: value for key, value in vars(args).items() if key not in own | {"given"}}
    return repr([sorted(given.items()), options.weights_digest, versions()])


def list_setups(args):
    """Print every setup's grid, its parameters per architecture (Table 3) and stored numbers."""
    backbone = ResNet18Features(find_weights("random").state_dict)
    rows, stored = [], []
    for setup in SETUPS.values():
        ensembles = [TiledEnsemble(setup, arch, backbone=backbone) for arch in MODELS]
        sizes = (setup.image_size[0], setup.tile_size[0], setup.stride[0])
        grid = map(str, (*sizes, setup.n_tiles, setup.n_models))
        rows.append([setup.name, *grid, *(f"{ensemble.n_parameters:,}" for ensemble in ensembles)])
        kept = (ensemble.n_stored_parameters(LISTED_IMAGES) for ensemble in ensembles)
        stored.append([setup.name, *(f"{n:,}" for n in kept)])
    print(text_table(["setup", "image", "tile", "stride", "tiles", "models", *MODELS], rows))
    print(
        "\nParameters as the paper counts them, the backbone once per model. Numbers stored,"
        f"\nthe backbone once, statistics included, after training on {LISTED_IMAGES} images:\n"
    )
    print(text_table(["setup", *MODELS], stored))
    return 0


def _expand(names, known):
    """The names in order, without duplicates; all known ones for "all"."""
    return list(known) if "all" in names else list(dict.fromkeys(names))


def _categories(args, progress):
    """The categories that the command line specifies, as Planned."""
    names = _expand(args.dataset, ())
    if args.masks is not None and "folder" not in names:
        raise InputError("--masks applies to --dataset folder only; leave it out")
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
            known, wanted = data.categories(root), _expand(args.category, ())
            chosen = [c for c in wanted if c in known]
            if len(names) == 1 and len(chosen) < len(wanted):
                data.load(root, next(c for c in wanted if c not in known))  # raises InputError
            if not chosen:
                raise InputError(
                    f"none of --category {' '.join(args.category)} is in the data set {name}; "
                    f"it has: {', '.join(known)}"
                )
        options = {"mask_folder": args.masks} if name == "folder" else {}
        load = functools.cache(functools.partial(_load, progress, data, root, **options))
        planned += [Planned(name, c, functools.partial(load, c)) for c in chosen]
    unknown = set(args.category or ()) - {entry.name for entry in planned}
    if unknown and "all" not in args.category:
        raise InputError(f"there is no category {min(unknown)!r} in {', '.join(names)}")
    return planned


def _load(progress, data, root, name, **options):
    """data.load; prints the category's notes."""
    category = data.load(root, name, **options)
    for note in category.notes:
        progress.note(f"{name}: {note}")
    return category


def _roots(names, roots):
    """Data set -> its folder, None if none was given.

    Data sets on disk have a folder each, in order, or share one: then each is its subfolder of
    the same name, or else the folder itself.
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
            f"--root names {len(roots)} folders ({given}) for {counted(len(on_disk), 'data set')} "
            f"({', '.join(on_disk)}); give one folder each, in their order, or one for all"
        )
    root = roots[0]
    return found | {name: root / name if (root / name).is_dir() else root for name in on_disk}


def _switches(args):
    """Architecture -> keyword arguments from the command line."""
    given = {arch: {"impl": args.impl} for arch in IMPL_ARCHS}
    for flag, archs, keyword, _, _ in SWITCHES:
        value = getattr(args, flag.lstrip("-").replace("-", "_"))
        for arch in archs if value is not None else ():
            given.setdefault(arch, {})[keyword] = value
    return given
