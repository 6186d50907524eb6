"""Estimate of a run before its first image: models, time, memory, disk space.

Models and bytes are computed. Times are reference seconds, of one core of an AMD EPYC: the sizes of
a cell times the numbers below. A run corrects them by its own measurements (support/progress.py),
`measured` by one tile location of each kind. README.md of this folder says how accurate they are.
"""

import contextlib
import math
import os
import shutil
import tempfile
import time
from dataclasses import dataclass, replace

import torch

from ..archive.ensembles import state_bytes
from ..data.reading import read_images
from ..ensemble import Forgotten, TiledEnsemble
from ..models.backbone import CHUNK
from ..models.cached import BUDGET as FEATURE_BUDGET
from ..models.padim import D
from ..support.errors import InputError
from ..support.progress import Progress, bytes_text, duration
from .category_images import IMAGE_BUDGET, MASK_BUDGET
from .pieces import RESULT
from .results import cell_folder

# Seconds per tile and per pixel of it: through the backbone, and when shared layers are read
# instead; per pixel of an optimiser step, and of a prediction after the backbone.
TILE, LOOK, READ = 5e-3, 9e-7, 6e-8
STEP = {"fastflow": 6.5e-6, "reverse_distillation": 4.2e-6}
HEAD = {"fastflow": 2.4e-6, "reverse_distillation": 1.2e-6}
DECODE, MERGE, SCORE, ANALYSE = 0.03, 1.5e-8, 2e-8, 1.5e-7  # per image; per pixel of a map
FEATURES = 28  # bytes of the backbone's layers per pixel
PROCESS = 880 << 20  # bytes of the interpreter, the libraries, the backbone and its activations
SMALL = 1 << 16  # bytes, more than the files of a location or cell take besides states and maps
MEASURED = 1 << 20  # pixels of tiles on which a location is measured
MOST_ROWS = 9  # of the table; more are grouped by architecture


@dataclass(frozen=True)
class CellEstimate:
    """The estimate of a cell."""

    recipe: object  # Recipe
    costs: dict  # of its stages, see Progress.costs
    work: dict  # kind of work -> reference seconds of the whole cell
    saved: int  # bytes of the states of its locations on the disk
    pieces: int  # most bytes in its folder while it runs, without the saved ensemble
    temporary: int  # bytes in TMPDIR, of features
    memory: int  # bytes, peak


def cell_estimate(recipe, model, n_train, n_test, options, fresh=1.0):
    """The estimate of a cell.

    Parameters: recipe; model, one of its models; n_train and n_test, numbers of images; options, a
    cell.Options; fresh, the fraction of the backbone's layers that no earlier cell shares.
    Returns CellEstimate.
    """
    setup, n_models = recipe.setup, recipe.setup.n_models
    area, grid = math.prod(setup.image_size), recipe.grid
    n_places = grid.rows * grid.cols
    fit, predict = _location_seconds(recipe, n_train, n_test, fresh)
    seconds = {
        "fit": fit, "predict": {None: predict}, "predict all": {None: predict * n_places},
        "merge": {None: MERGE * n_test * setup.n_tiles * math.prod(setup.tile_size)},
        "score": {None: SCORE * n_test * area},
        "analyse": {None: ANALYSE * n_test * area * options.report},
    }  # fmt: skip
    costs = {
        kind: {part: ((recipe.arch, setup.name, kind.split()[0], part), cost)
               for part, cost in parts.items()}
        for kind, parts in seconds.items()
    }  # fmt: skip
    times = {"fit": n_models, "predict": n_places, "predict all": 0}
    work = {
        key: times.get(kind, 1) * cost / options.ranks.size
        for kind, parts in costs.items() if kind != "predict all" for key, cost in parts.values()
    }  # fmt: skip
    n_seen = n_train * setup.group_size
    state = state_bytes(model, n_seen)
    maps = 4 * n_test * (n_places * math.prod(grid.tile_size) + area)
    held = 0 if options.save else state * (1 if options.memory == "low" else n_models)
    features = FEATURES * n_seen * setup.tile_pixels // n_places if recipe.arch in STEP else 0
    return CellEstimate(
        recipe, costs, work, saved=state * n_models,
        pieces=maps + held + SMALL * (n_places + 1 + n_test * options.report),
        temporary=features if features > FEATURE_BUDGET else 0,
        memory=_memory(recipe, n_seen, state, options) + PROCESS,
    )  # fmt: skip


def _location_seconds(recipe, n_train, n_test, fresh):
    """Reference seconds of a location: {part of the training: seconds}, and of its prediction."""
    setup, arch, n_places = recipe.setup, recipe.arch, recipe.grid.rows * recipe.grid.cols
    pixels = setup.tile_pixels // n_places  # of a model's input
    n_tiles, n_train = setup.n_tiles // n_places, n_train * setup.group_size
    look = fresh * (TILE * n_tiles + LOOK * pixels) + (1 - fresh) * READ * pixels
    area, head = math.prod(recipe.grid.tile_size), 0.3 * look
    fit = {None: n_train * look}
    if arch == "padim":
        square = area / 16 * recipe.switches.get("n_channels", D) ** 2
        fit = {None: n_train * (look + 6e-10 * square) + 8e-9 * square}
        fit["factors"] = 3.7e-8 * square
        head = 6e-8 * area + 2e-10 * square
    elif arch == "patchcore":
        patches = n_train * area / 64
        fit = {None: n_train * look + 1.8e-5 * patches}
        fit["coreset"] = 2e-5 * patches + 1e-10 * patches**2
        head = area / 64 * (2e-5 + 3.8e-10 * patches)
    elif arch in STEP:
        seen = recipe.switches.get("steps", 200) * min(recipe.batch_size, n_train)  # images
        fit = {"features": n_train * look, None: seen * pixels * STEP[arch]}
        head = 2 * TILE * n_tiles + pixels * HEAD[arch]
    return fit, n_test * (look + head)


def _memory(recipe, n_train, state, options):
    """Peak bytes of training a location, besides the process; state, bytes of its state."""
    setup, arch = recipe.setup, recipe.arch
    area = math.prod(recipe.grid.tile_size)
    pixels = setup.tile_pixels // (recipe.grid.rows * recipe.grid.cols)
    batch = min(recipe.batch_size, n_train)
    if arch == "padim":
        d = recipe.switches.get("n_channels", D)
        need = area // 16 * d * (8 * d + 8 * (batch + 1) + 8 * batch) + state
    elif arch == "patchcore":
        need = n_train * area // 64 * 4 * (384 + 300) + state
    else:
        need = min(FEATURES * n_train * pixels, FEATURE_BUDGET) + 4 * state
        need += 300 * pixels * (batch if arch == "reverse_distillation" else CHUNK)
    return need + (0 if options.memory == "low" else state * setup.n_models)


@dataclass(frozen=True)
class CategoryEstimate:
    """The estimate of a category. memory and temporary are bytes of its images, in memory and
    in TMPDIR; costs and work those of its reading, as in CellEstimate."""

    category: object  # data.Category, to train on and to predict
    cells: list  # of CellEstimate
    costs: dict
    work: dict
    memory: int
    temporary: int


def category_estimate(category, recipes, backbone, options, shares):
    """The estimate of the cells of a category.

    Parameters: category, of a deciding.Plan; recipes, of its cells; backbone, a ResNet18Features;
    options, a cell.Options; shares, whether its cells share layers.
    Returns CategoryEstimate.
    """
    n_train, n_test = len(category.train), len(category.test)
    models, known, cells = {}, set(), []
    for recipe in recipes:
        setup = recipe.setup
        kind = recipe.arch, recipe.grid.tile_size, setup.tile_size, repr(recipe.switches)
        if kind not in models:
            models[kind] = recipe.model(backbone, torch.device("cpu"))
        tiles = {(setup.image_size, setup.tile_size, at) for at in setup.input_grid.origins}
        fresh = len(tiles - known) / len(tiles)
        known |= tiles if shares else set()
        cells.append(cell_estimate(recipe, models[kind], n_train, n_test, options, fresh))
    areas = [math.prod(size) for size in {recipe.setup.image_size for recipe in recipes}]
    images = [3 * area * n for area in areas for n in (n_train, n_test)]
    masks = sum(sample.label for sample in category.test) * category.has_masks
    costs = {
        "decode train": {None: ("decode", DECODE * n_train)},
        "decode test": {None: ("decode", DECODE * n_test)},
        "masks": {None: ("decode", DECODE * masks)},
    }  # fmt: skip
    return CategoryEstimate(
        category, cells, costs,
        work={"decode": DECODE * (n_train + n_test + masks * len(areas))},
        memory=sum(min(n_test * area, MASK_BUDGET) for area in areas)
        + sum(n for n in images if n <= IMAGE_BUDGET),
        temporary=sum(n for n in images if n > IMAGE_BUDGET),
    )  # fmt: skip


def probe(backbone, device, progress):
    """Set progress.speed: the backbone's time on 256 x 256 px, the best of three."""
    image = torch.zeros(1, 3, 256, 256, device=device)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        backbone(image)[-1].cpu()
        seconds.append(time.perf_counter() - started)
    progress.speed = min(seconds) / (TILE + LOOK * 256 * 256)


def measured(estimates, backbone, options):
    """Train one tile location of each kind, and predict, on a few images of the first category.

    Parameters: estimates, a list of CategoryEstimate; backbone, a ResNet18Features; options, a
    cell.Options.
    Returns a Progress that has seen all kinds of work, for plan_rows and plan_seconds.
    Raises InputError for an image that cannot be read.
    """
    progress, found = Progress(quiet=True), {}
    progress.PRIOR = 1e-9  # no prior for measured work
    probe(backbone.to(options.device), options.device, progress)
    train = estimates[0].category.train
    train[0].read_image()  # the first read takes longer
    for cell in estimates[0].cells:
        recipe, setup = cell.recipe, cell.recipe.setup
        pixels = setup.group_size * setup.tile_pixels // (recipe.grid.rows * recipe.grid.cols)
        kind = recipe.arch, recipe.grid.tile_size, pixels, repr(recipe.switches)
        if kind not in found:
            started, n = time.perf_counter(), max(2, min(len(train), MEASURED // pixels))
            images = read_images(train[:n], setup.image_size, antialias=recipe.antialias)
            progress.count("decode", time.perf_counter() - started, DECODE * len(images))
            steps = {"steps": 1} if recipe.arch in STEP else {}
            few, own = replace(recipe, switches=recipe.switches | steps), Progress(quiet=True)
            ensemble = TiledEnsemble(few, backbone=backbone, device=options.device)
            model, n = ensemble.make_model(), len(images)
            own.costs = cell_estimate(few, model, n, n, options).costs
            where = list(setup.models)[:1]
            for _ in ensemble.each_location(
                images, images, Forgotten(), locations=where, progress=own
            ):
                pass
            found[kind] = {key[2:]: seen for key, seen in own.seen.items()}
        for key, seen in found[kind].items():
            progress.count((recipe.arch, setup.name, *key), *seen)
    return progress


def plan_rows(estimates, progress=None):
    """The plan as rows of text, headings first, at most MOST_ROWS; progress from `measured`
    adds the time."""
    cells = [(part, cell) for part in estimates for cell in part.cells]
    names = {(cell.recipe.arch, cell.recipe.setup.name) for _, cell in cells}
    groups = {}
    for part, cell in cells:
        arch, setup = cell.recipe.arch, cell.recipe.setup.name
        if len(names) > MOST_ROWS:
            setup = f"{sum(arch == other for other, _ in names)} setups"
        groups.setdefault((arch, setup), []).append((part, cell))
    rows = [["arch", "setup", "models", "memory", "bytes with --save"] + ["time"] * bool(progress)]
    for key, group in groups.items():
        models = sum(cell.recipe.setup.n_models for _, cell in group)
        memory = max(part.memory + cell.memory for part, cell in group)
        saved = sum(cell.saved for _, cell in group)
        rows.append([*key, f"{models:,}", bytes_text(memory), f"{saved:,}"])
        if progress:
            rows[-1].append(duration(sum(_seconds(progress, cell.work) for _, cell in group)))
    return rows


def plan_seconds(estimates, progress):
    """Seconds of all cells and of reading their images; progress from `measured`."""
    works = [part.work for part in estimates]
    works += [cell.work for part in estimates for cell in part.cells]
    return sum(_seconds(progress, work) for work in works)


def _seconds(progress, work):
    progress.todo = dict(work)
    return progress.left()


def disk_needs(estimates, options, more=()):
    """[(folder, most bytes that the run writes, bytes free)] for the file systems of more,
    [(folder, bytes)], of OUT and of TMPDIR, the last one; one entry if they are the same."""
    need = kept = temporary = 0
    for part in estimates:
        for cell in part.cells:
            folder = cell_folder(options.out, part.category, cell.recipe)
            replaced = _bytes_in(folder / "ensemble") if options.save else 0
            if options.resume and (folder / RESULT).is_file() and (replaced or not options.save):
                continue  # finished before
            before = _bytes_in(folder / "partial")  # reused, or removed first
            saved = cell.saved + SMALL if options.save else 0
            need = max(need, kept + cell.pieces + saved - before)
            kept += saved - before - replaced
        temporary = max(
            temporary, part.temporary + max((cell.temporary for cell in part.cells), default=0)
        )
    disks, places = {}, [*more, (options.out, need)]
    with contextlib.suppress(FileNotFoundError):  # none is writable; whoever needs one raises
        places.append((tempfile.gettempdir(), temporary))
    for folder, n_bytes in places:
        disk = os.stat(folder).st_dev
        first, before = disks.pop(disk, (folder, 0))
        disks[disk] = first, before + n_bytes  # that of the last place stays last
    return [(folder, n, shutil.disk_usage(folder).free) for folder, n in disks.values()]


def _bytes_in(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def disk_text(needs):
    """The result of `disk_needs` as a line of text."""
    return "; ".join(
        f"writes at most {bytes_text(need)} to the disk of {folder}, {bytes_text(free)} are free"
        for folder, need, free in needs if need
    )  # fmt: skip


def check_disk(needs):
    """Raise InputError if a file system of `disk_needs` has too little space. Returns the bytes
    that the run leaves free on that of TMPDIR, for shared layers."""
    for folder, need, free in needs:
        if need > free:
            raise InputError(
                f"the run writes up to {need:,} bytes to the disk of {folder}, of which {free:,} "
                "are free (maps and states of a cell, ensembles with --save, a submission, images "
                "and features that do not fit into memory); make room, choose another --out or "
                "TMPDIR, or smaller images"
            )
    _, need, free = needs[-1]
    return free - need
