"""The command line: parse, call, print."""

import argparse
import contextlib
import functools
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch

from . import __version__, _arrays, features, grid
from .backbone import ResNet18Features
from .data import DATASETS
from .distributed import Alone, RankError, find_ranks
from .engine import parse_memory
from .ensemble import TiledEnsemble
from .errors import InputError, KernelNotBuiltError, one_line
from .experiment import METRIC_SIZES, Options, run_cell, versions
from .explain import BUILT_IN, explain, write_walk
from .files import make_folder
from .html_report import write_report
from .models import MODELS
from .precision import PRECISIONS
from .predict import MAPS, PICTURES, PredictOptions, run_predict
from .progress import Progress
from .report import result_table, text_table
from .setups import SETUPS
from .store import WHERE_SAME, OutputLock
from .validation import MODES, describe
from .weights import find_weights

LISTED_IMAGES = 200  # training images for which --list counts a memory bank
IMPL_ARCHS = ("padim", "patchcore", "reverse_distillation")  # they have kernels of their own
EXIT_RANK, EXIT_INPUT, EXIT_INTERRUPTED = 1, 2, 130

EPILOG = """\
examples:
  tiled-ref --setup ENS9
      the main job: nine models on overlapping tiles of the built-in data set
  tiled-ref --setup all --dataset mvtec --root DIR --category screw --seed 42 5125 33
      all six setups of the paper on MVTec AD screw, three seeds, beside the paper's numbers
  torchrun --nproc-per-node 4 run.py --setup ENS9
      the locations shared out over four processes, each on its own GPU if there are as many
  tiled-ref --setup all --arch all --dataset mvtec visa --root DIR DIR --category all \\
            --seed 42 5125 33 --report
      the paper's tables and figures and report.html; goes on where it was interrupted
  tiled-ref --setup ENS9 --dataset folder --root DIR --image-size 2048 --tile-size 256
      your own images (DIR/train/..., DIR/test/good/..., DIR/test/<defect>/...)

Exit status: 0 done, 1 a cell failed unexpectedly or another process of a shared run did,
2 something is wrong with an option or a file, 130 interrupted.
"""


@dataclass(frozen=True)
class Switch:
    """An option that is a keyword argument of one or more architectures.

    Parameters: flag, such as "--steps"; archs, the architectures that have it; keyword, its
    name there; argument, keywords of argparse's add_argument; help, its text.
    """

    flag: str
    archs: tuple
    keyword: str
    argument: dict
    help: str


def _choice(flag, arch, keyword, choices, text):
    """A Switch between named variants, the first the paper's."""
    argument = {"choices": choices, "metavar": "|".join(choices)}
    return Switch(flag, (arch,), keyword, argument, f"{text} (default {choices[0]})")


SWITCHES = (
    Switch(
        "--steps",
        ("fastflow", "reverse_distillation"),
        "steps",
        {"type": lambda text: _positive(text), "metavar": "N"},
        "optimiser steps of fastflow and reverse_distillation (default 200)",
    ),
    _choice(
        "--patchcore-start", "patchcore", "start", ["excluded", "included"],
        "whether the random start of the coreset belongs to it",
    ),
    _choice(
        "--fastflow-kernels", "fastflow", "kernels", ["3x3", "alternating"],
        "convolutions of the coupling blocks, alternating: 3x3 and 1x1",
    ),
    _choice(
        "--rd-loss", "reverse_distillation", "loss", ["positions", "flattened"],
        "cosine over the channels of each position, or of the flattened map",
    ),
    _choice(
        "--rd-map", "reverse_distillation", "combine", ["product", "sum"],
        "how the layers' distances make a map",
    ),
)  # fmt: skip


def main(argv=None):
    """Run the command line; returns the exit status."""
    ranks = find_ranks()
    with ranks.main_speaks():
        args = build_parser().parse_args(argv)
    args.ranks = ranks
    args.given = _given(sys.argv[1:] if argv is None else argv)
    if args.explain is not None:
        args.command = explain_image
    if args.load is not None or args.predict is not None:
        args.command = predict_images
    try:
        shared = args.command is run  # anything else is done by one process
        status = args.command(args) if shared or ranks.is_main else 0
        ranks.close()
        return status
    except (InputError, KernelNotBuiltError) as error:
        if args.debug:
            traceback.print_exc()
        ranks.fail(one_line(error))
        return EXIT_INPUT
    except RankError as error:
        ranks.fail(str(error), about_other=True)
        return EXIT_RANK
    except (MemoryError, torch.cuda.OutOfMemoryError) as error:
        if args.debug:
            traceback.print_exc()
        ranks.fail(
            f"out of memory ({str(error).partition('. ')[0]}); choose a smaller --batch-size, "
            "--tile-size or --image-size"
        )
        return EXIT_INPUT
    except KeyboardInterrupt:
        if args.debug:
            traceback.print_exc()
        kept = {
            run: "; the same command with --resume goes on",
            predict_images: "; the rows so far are in predictions.partial.csv",
        }.get(args.command, "")
        ranks.interrupted(f"interrupted{kept}")
        return EXIT_INTERRUPTED
    except Exception as error:  # a mistake of the program, which the other ranks must learn of
        if ranks.size > 1:
            ranks.fail(f"{type(error).__name__}: {error}")
        raise


def build_parser():
    """The argparse parser of run.py and of the entry point tiled-ref."""
    parser = argparse.ArgumentParser(
        prog="tiled-ref",
        usage="%(prog)s [--setup NAME ...] [--dataset NAME --root DIR] [options]",
        description="Anomaly detection on high-resolution images with a tiled ensemble: one model\n"
        "per tile location, predictions merged, seams smoothed, scored.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(command=run, ranks=Alone())
    parser.add_argument("--version", action="version", version=f"tiled-ref {__version__}")

    group = parser.add_argument_group("what to run")
    group.add_argument(
        "--setup", nargs="+", metavar="NAME", default=["ENS9"], choices=[*SETUPS, "all"],
        help=f"{', '.join(SETUPS)} or all (default ENS9)",
    )  # fmt: skip
    group.add_argument(
        "--arch", nargs="+", metavar="NAME", default=["padim"], choices=[*MODELS, "all"],
        help=f"{', '.join(MODELS)} or all (default padim)",
    )  # fmt: skip
    group.add_argument(
        "--seed", nargs="+", type=_natural, default=[42], metavar="N",
        help="one run per seed (default 42; the paper's are 42 5125 33)",
    )  # fmt: skip
    group.add_argument(
        "--list", action="store_const", const=list_setups, dest="command",
        help="print the setups with tiles, models and parameters as built, and stop",
    )  # fmt: skip
    group.add_argument(
        "--explain", nargs="?", const=BUILT_IN, metavar="IMAGE",
        help="walk one image through one setup and write a picture of every stage to "
        "OUT/explain: a file, a test image's name, or nothing for a defective one",
    )  # fmt: skip

    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset", nargs="+", default=["synthetic"], choices=list(DATASETS), metavar="NAME",
        help=f"{', '.join(DATASETS)} (default synthetic, generated on the fly)",
    )  # fmt: skip
    group.add_argument(
        "--root", nargs="+", action="extend", type=Path, metavar="DIR",
        help="folder of the data set; of several data sets one folder each, in the order of "
        "--dataset, or one that holds them all",
    )  # fmt: skip
    group.add_argument(
        "--category", nargs="+", metavar="NAME",
        help="categories of the data set or all (default: board for synthetic, else all)",
    )  # fmt: skip

    group = parser.add_argument_group("model")
    group.add_argument(
        "--weights", default="auto", metavar="auto|imagenet|random|FILE",
        help="ResNet-18: auto looks in the torch hub cache, then downloads, and falls back to "
        "random weights with a warning; imagenet does not fall back (default auto)",
    )  # fmt: skip
    group.add_argument(
        "--device", default="auto", type=_device, metavar="auto|cpu|cuda",
        help="where the models run (default auto: cuda if there is one)",
    )  # fmt: skip
    group.add_argument(
        "--batch-size", type=_positive, metavar="N",
        help="images per batch (default: the paper's, 32; 8 for patchcore)",
    )  # fmt: skip

    group = parser.add_argument_group(
        "sizes", "in pixels, N or HEIGHTxWIDTH; they replace those of the chosen setup"
    )
    group.add_argument("--image-size", type=_size, metavar="SIZE", help="resize images to this")
    group.add_argument("--tile-size", type=_size, metavar="SIZE", help="side of the tiles")
    group.add_argument(
        "--stride", type=_size, metavar="SIZE", help="distance between neighbouring tiles"
    )

    group = parser.add_argument_group("method (the defaults are the paper's)")
    group.add_argument(
        "--score", default="mean", choices=["mean", "max"],
        help="image score from tile scores (default mean)",
    )  # fmt: skip
    group.add_argument(
        "--seam-width", type=_fraction, default=0.1, metavar="X",
        help="smoothed band on each side of a seam, fraction of the tile (default 0.1)",
    )  # fmt: skip
    group.add_argument(
        "--seam-sigma", type=_positive_float, default=2.0, metavar="PX",
        help="Gaussian of the seam smoothing in pixels (default 2)",
    )  # fmt: skip
    group.add_argument(
        "--antialias", action="store_true", help="filter before shrinking images (default off)"
    )
    group.add_argument(
        "--metric-size", default="setup", choices=METRIC_SIZES,
        help="pixel metrics at the setup's image size or at each image's own (default setup)",
    )  # fmt: skip

    group = parser.add_argument_group("thresholds (verdicts and pictures; metrics need none)")
    group.add_argument(
        "--validation", default="same-as-test", choices=MODES, metavar="|".join(MODES),
        help="images that decide them: the test images (the paper); one half of them, the metrics "
        "are then of the other; or a tenth of the training images, held out "
        "(default same-as-test)",
    )  # fmt: skip
    group.add_argument(
        "--percentile", type=_percentile, default=100.0, metavar="P",
        help="threshold where only normal images decide: the percentile of their scores, and of "
        "their pixels (default 100, their maximum)",
    )  # fmt: skip

    group = parser.add_argument_group("architecture variants (the defaults are the paper's)")
    for switch in SWITCHES:
        group.add_argument(switch.flag, **switch.argument, help=switch.help)

    group = parser.add_argument_group("a saved ensemble on new images")
    group.add_argument(
        "--load", type=Path, metavar="DIR", help="the folder ensemble that --save has written"
    )
    group.add_argument(
        "--predict", metavar="FILE|FOLDER|-",
        help="images to score: a file, a folder with all below it, or paths on standard input, "
        "one a line or separated by NUL; into --out (default predictions)",
    )  # fmt: skip
    group.add_argument(
        "--pictures", default="anomalous", choices=PICTURES, metavar="|".join(PICTURES),
        help="of which images mask, heat map and contours are drawn (default anomalous)",
    )  # fmt: skip
    group.add_argument(
        "--save-maps", choices=MAPS, metavar="|".join(MAPS),
        help="keep the raw anomaly map of every image, float32",
    )  # fmt: skip
    group.add_argument(
        "--allow-version-change", action="store_true",
        help="load an ensemble that another version of torch has trained",
    )  # fmt: skip

    group = parser.add_argument_group("output and running")
    group.add_argument(
        "--out", type=Path, default=Path("results"), metavar="DIR",
        help="folder for metrics.json and results.csv (default results)",
    )  # fmt: skip
    group.add_argument(
        "--impl", default="cython", choices=_arrays.IMPLS,
        help="compiled kernels, or their NumPy specification with the same bits (default cython)",
    )  # fmt: skip
    group.add_argument(
        "--memory", type=_memory, metavar="low|resident|BYTES",
        help="low: one tile location on the device at a time; resident: all of them, the tiles "
        "of an image as one batch; or a cap such as 2GiB, within which the sizes are planned "
        "(default low)",
    )  # fmt: skip
    group.add_argument(
        "--share-features", type=_share, default=features.BUDGET, metavar="off|BYTES",
        help="several cells of a category on a CPU read the layers of the backbone that another "
        "has computed, the same bits, from a temporary file (TMPDIR) of so many bytes, at most "
        f"half of what is free there (default {features.BUDGET >> 30}GiB)",
    )  # fmt: skip
    group.add_argument(
        "--precision", choices=[*PRECISIONS], metavar="|".join(PRECISIONS),
        help="of the networks; statistics and distances stay in float32 (default float32)",
    )  # fmt: skip
    group.add_argument(
        "--compile", action="store_true", help="compile the backbone with torch.compile"
    )
    group.add_argument(
        "--threads", type=_positive, metavar="N",
        help="threads of the kernels that merge, smooth and score (default 2, or "
        f"{_arrays.THREADS_VARIABLE}, which counts for those of PaDiM and PatchCore as well)",
    )  # fmt: skip
    group.add_argument(
        "--resume", action="store_true",
        help="go on with what an interrupted run of the same command left in --out, and skip "
        "what it finished; the metrics are those of an uninterrupted run",
    )  # fmt: skip
    group.add_argument(
        "--save", action="store_true", help="keep the trained ensembles, see --load"
    )
    group.add_argument(
        "--report", action="store_true",
        help="write the paper's tables and figures and report.html of all that is in --out to "
        "OUT/report; what is finished there with the same options is not computed again",
    )  # fmt: skip
    group.add_argument("--quiet", action="store_true", help="no progress on stderr")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run(args):
    """Run every cell that the options name and print the table."""
    ranks = args.ranks
    progress = Progress(quiet=args.quiet or not ranks.is_main)
    setups, archs, categories, backbone, options = _prepare(args, progress)
    with OutputLock(args.out) if ranks.is_main else contextlib.nullcontext():
        ranks.start(options.device, args.out, _description(args, options), progress.note)
        results, failures = grid.run(
            categories, archs, setups, args.seed, backbone, options, progress,
            debug=args.debug, cell=run_cell,
        )  # fmt: skip
        ranks.finish()
        if not ranks.is_main:
            return 0
        if ranks.size > 1:
            results, failures = grid.gather(
                categories, archs, setups, args.seed, failures, options
            )
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
    return grid.exit_status(failures)


NOT_EXPLAINED = {
    "--save", "--resume", "--report", "--memory", "--validation", "--percentile", "--metric-size",
    "--share-features",
}  # fmt: skip
PREDICTION = {"--load", "--predict", "--pictures", "--save-maps", "--allow-version-change"}
SHARED = {
    "--out", "--weights", "--device", "--batch-size", "--impl", "--threads", "--quiet", "--debug",
    "--memory", "--precision", "--compile",
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
        for name in _arrays.KERNELS:
            _arrays.kernel(name)
    progress = Progress(quiet=args.quiet)
    out = args.out if "--out" in args.given else Path("predictions")
    ensemble = TiledEnsemble.load(
        args.load,
        weights=None if args.weights == "auto" else args.weights,
        device=_resolve_device(args.device),
        batch_size=args.batch_size,
        allow_version_change=args.allow_version_change,
        precision=args.precision,
        compile=args.compile,
        progress=progress.stage(f"check the ensemble {args.load}"),
        say=progress.note,
    )
    if ensemble.thresholds is None:
        progress.note("the ensemble has no thresholds: scores only, no verdicts and no pictures")
    else:
        progress.note(describe(ensemble.thresholds))
    make_folder(out)
    options = PredictOptions(
        args.save_maps, args.pictures, args.impl, args.threads, args.memory
    )
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

    Raises InputError where the options name several setups, and as explain.explain does.
    """
    alien = sorted(args.given & NOT_EXPLAINED)
    if alien:
        raise InputError(f"{alien[0]} does not apply to --explain, which keeps pictures only")
    progress = Progress(quiet=args.quiet)
    setups, archs, categories, backbone, options = _prepare(args, progress)
    for flag, values in (
        ("--setup", setups), ("--arch", archs), ("--category", categories), ("--seed", args.seed)
    ):  # fmt: skip
        if len(values) > 1:
            raise InputError(f"--explain walks one image once: give one {flag}, not {len(values)}")
    category = categories[0].load()
    title, stages = explain(
        args.explain, category, setups[0], archs[0], args.seed[0], backbone, options, progress
    )
    folder = args.out / "explain"
    names = write_walk(stages, folder, title)
    rows = [[name, s.shape, s.code, s.source] for name, s in zip(names, stages)]
    print(text_table(["picture", "array", "code", "source"], rows, left=4))
    if not args.quiet:
        print(f"\nThe walk of {title}: {folder}/index.html")
    return 0


def _prepare(args, progress):
    """What the options name: setups, archs, categories, the backbone and Options."""
    alien = sorted(args.given & PREDICTION)
    if alien:
        raise InputError(f"{alien[0]} needs a saved ensemble; name its folder with --load")
    if args.impl == "cython":  # a missing kernel is found now, not after the training
        for name in _arrays.KERNELS:
            _arrays.kernel(name)
    setups = [
        SETUPS[name].with_sizes(args.image_size, args.tile_size, args.stride)
        for name in _expand(args.setup, SETUPS)
    ]
    archs = _expand(args.arch, MODELS)
    categories = _categories(args)
    device = args.ranks.device(_resolve_device(args.device))
    if device.type == "cuda":  # float32 means float32, as on the CPU
        torch.backends.cudnn.allow_tf32 = False
    make_folder(args.out)
    weights = args.ranks.main_first(lambda: find_weights(args.weights, say=progress.note))
    progress.note(f"backbone: {weights.kind} weights, {weights.origin}; device: {device}")
    backbone = ResNet18Features(weights.state_dict)
    options = Options(
        out=args.out,
        device=device,
        memory=args.memory or "low",
        precision=args.precision or "float32",
        compile=args.compile,
        share_features=args.share_features,
        weights=weights.kind,
        batch_size=args.batch_size,
        antialias=args.antialias,
        score=args.score,
        seam_width=args.seam_width,
        seam_sigma=args.seam_sigma,
        metric_size=args.metric_size,
        impl=args.impl,
        threads=args.threads,
        weights_digest=weights.digest,
        switches=_switches(args),
        resume=args.resume or args.ranks.restarted or (WHERE_SAME if args.report else False),
        save=args.save,
        report=args.report,
        validation=args.validation,
        percentile=args.percentile,
        ranks=args.ranks,
    )
    return setups, archs, categories, backbone, options


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
    """The categories that the options name, as grid.Planned."""
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
        planned += [grid.Planned(name, c, functools.partial(data.load, root, c)) for c in chosen]
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
    for switch in SWITCHES:
        value = getattr(args, switch.flag.lstrip("-").replace("-", "_"))
        for arch in switch.archs if value is not None else ():
            given.setdefault(arch, {})[switch.keyword] = value
    return given


def _resolve_device(name):
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no CUDA device here; use --device cpu")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if device.index is not None and device.index >= count:
            raise InputError(f"--device {name}: there are {count} CUDA devices, numbered from 0")
    return device


def _device(text):
    if text == "auto" or text == "cpu":
        return text
    kind, _, index = text.partition(":")
    if kind == "cuda" and (not index or index.isascii() and index.isdigit()):
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is none of auto, cpu, cuda, cuda:0, cuda:1, ...")


def _memory(text):
    try:
        return parse_memory(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _share(text):
    """Bytes, 0 for "off"."""
    try:
        n_bytes = 0 if text == "off" else parse_memory(text)
        if isinstance(n_bytes, int):
            return n_bytes
    except ValueError:
        pass  # it says what --memory may be
    raise argparse.ArgumentTypeError(f"{text!r} is neither off nor a number of bytes such as 8GiB")


def _natural(text):
    return _number(text, int, "a whole number of at least 0", lambda value: 0 <= value < 2**63)


def _positive(text):
    return _number(text, int, "a whole number of at least 1", lambda value: value >= 1)


def _fraction(text):
    return _number(text, float, "a number from 0 to 1", lambda value: 0 <= value <= 1)


def _percentile(text):
    return _number(text, float, "a number above 0 and at most 100", lambda p: 0 < p <= 100)


def _positive_float(text):
    return _number(text, float, "a positive number", lambda value: 0 < value < float("inf"))


def _number(text, kind, wanted, fits):
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
