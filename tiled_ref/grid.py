"""A grid of cells: data sets, categories, architectures, setups, seeds, one after the other.

A category is decoded once, shared by all its cells and released before the next. Cells with
equal tiles share the layers of the frozen backbone as well (`schedule`): whatever architecture,
setup or seed, an image passes it once. A cell that fails is reported and the others go on; the
exit status says so at the end. Finished cells are taken as they are where options.resume says
so (`experiment.run_cell`).
"""

import contextlib
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from .errors import InputError, one_line
from .experiment import CategoryImages, gather_results, run_cell
from .features import FeatureMemo, budget_within
from .progress import duration
from .report import bytes_text
from .setups import Setup

# Seconds of one architecture relative to PaDiM's, per tile and image: only the first estimate,
# before a cell of that architecture has been timed.
FIRST_GUESS = {"padim": 1.0, "patchcore": 3.0, "fastflow": 12.0, "reverse_distillation": 10.0}
# The same for a cell that finds the layers of the backbone, as a part of the seconds without.
REUSE_GUESS = {"padim": 0.5, "patchcore": 0.8}


@dataclass(frozen=True)
class Planned:
    """A category that is to be run: dataset and name, the names of its data set and itself, and
    load(), which returns the data.Category."""

    dataset: str
    name: str
    load: Callable


@dataclass(frozen=True)
class Failure:
    """A cell that failed.

    Parameters: cell, its name; text, what went wrong; is_input, whether the user can mend it:
    a file, an option, or memory. The exception itself is not kept, because its traceback would
    keep the category's images.
    """

    cell: str
    text: str
    is_input: bool

    def __str__(self):
        return f"{self.cell}: {self.text}"


@dataclass(frozen=True)
class Cell:
    """A cell of every category.

    Parameters: place, its number in the order of architectures, setups, seeds; arch; setup;
    seed; reuses, whether it finds most of its tiles' layers computed by cells before it.
    """

    place: int
    arch: str
    setup: Setup
    seed: int
    reuses: bool = False


def schedule(archs, setups, seeds, share):
    """The cells of a category in groups that share what the backbone says.

    Parameters: archs, setups, seeds as of `run`; share, whether layers are shared.
    Returns a list of lists of Cell. With share, a group are the cells with the same sizes of
    images and tiles, the groups in the order of their first cell; else there is one group. In a
    group as in the table: architectures, setups, seeds.
    """
    groups, seen = {}, {}
    for place, (arch, setup, seed) in enumerate(
        (arch, setup, seed) for arch in archs for setup in setups for seed in seeds
    ):
        key = (setup.image_size, setup.tile_size) if share else None
        tiles, before = set(setup.input_grid.origins), seen.setdefault(key, set())
        reuses = share and 2 * len(tiles & before) > len(tiles)
        before |= tiles
        groups.setdefault(key, []).append(Cell(place, arch, setup, seed, reuses))
    return list(groups.values())


def run(plan, archs, setups, seeds, backbone, options, progress, debug=False, cell=run_cell):
    """Run every cell of a grid.

    Cells share the layers of the backbone where they may (options.share_features), in float32
    on one process's CPU: a GPU computes them faster than a disk gives them back, and with
    fewer bits or compiled they may depend on the batch. Results are the same bits.

    Parameters
    ----------
    plan : sequence of Planned
        A category is loaded when its turn comes.
    archs, setups, seeds : sequences of str, Setup, int
    backbone : ResNet18Features
    options : experiment.Options
    progress : Progress
    debug : bool
        Show the traceback of a failure.
    cell : callable
        What runs one cell, with the parameters of experiment.run_cell.

    Returns
    -------
    (results, failures): dicts as run_cell returns them, in the order of the plan, archs, setups,
    seeds, without those that another process finishes, and a list of Failure in that order.

    Raises
    ------
    KeyboardInterrupt, and what the only cell of a grid raises. What one of several cells
    raises becomes a Failure; where several processes share the run (options.ranks), an
    InputError alone, and for anything else they stop together.
    """
    results, failures = [], []
    share = shares(options)
    groups = schedule(archs, setups, seeds, share)
    cells = [step for group in groups for step in group]
    clock = Eta(len(plan), cells)
    n_cells = len(plan) * len(cells)
    isolated = Exception if options.ranks.size == 1 else InputError
    isolated = isolated if n_cells > 1 else ()
    for entry in plan:
        where = _title(entry)
        try:
            images = CategoryImages(entry.load(), options, progress)
            images.expect(dict.fromkeys(setup.image_size for setup in setups))
        except isolated as error:
            failures.append(_failed(where, error, options, progress, debug))
            clock.skip_category()
            continue
        done, failed = {}, {}
        for group in groups:
            with _memo(group if share else (), entry.name, options, progress) as images.memo:
                for step in group:
                    if images.memo is not None and step is group[-1]:
                        images.memo.keeps = False  # nobody comes after it
                    started = time.monotonic()
                    seconds = None
                    try:
                        result = cell(
                            step.setup, step.arch, images, step.seed, backbone, options, progress
                        )
                        if result is not None:  # else another process finishes the cell
                            seconds = max(time.monotonic() - started, _recorded(result))
                            done[step.place] = result
                    except isolated as error:
                        title = _title(entry, step.arch, step.setup, step.seed)
                        failed[step.place] = _failed(title, error, options, progress, debug)
                    clock.done(step, seconds)
                    if n_cells > 1:
                        progress.note(f"cells: {clock.count}/{n_cells} done{clock.left()}")
        results += [done[place] for place in sorted(done)]
        failures += [failed[place] for place in sorted(failed)]
    return results, failures


def gather(plan, archs, setups, seeds, failures, options):
    """What all processes that share a run have found, for the one that reports it.

    Parameters: plan, archs, setups, seeds, options as of `run`, which has ended in all of them;
    failures, those of this process.
    Returns (results, failures) as `run` does alone.
    """
    found = {failure.cell: failure for failure in failures}
    for told in options.ranks.told():
        found.setdefault(told[0], Failure(*told))
    cells, ordered = [], []
    for entry in plan:
        ordered.append(_title(entry))
        for arch in archs:
            for setup in setups:
                for seed in seeds:
                    ordered.append(_title(entry, arch, setup, seed))
                    if not {_title(entry), ordered[-1]} & set(found):
                        cells.append((entry, arch, setup, seed))
    return gather_results(cells, options), [found[title] for title in ordered if title in found]


def shares(options):
    """Whether cells of a grid may share the layers of the backbone.

    Parameters: options, an experiment.Options.
    """
    plain = options.precision == "float32" and not options.compile
    alone = options.ranks.size == 1 and options.device.type == "cpu"
    return plain and alone and options.share_features > 0


def _memo(group, name, options, progress):
    """The FeatureMemo of a group of cells, a context; None for fewer than two."""
    if len(group) < 2:
        return contextlib.nullcontext()
    budget = budget_within(options.share_features)
    if not budget:
        progress.note(f"{name}: no temporary folder has room, so no layers are shared")
        return contextlib.nullcontext()
    progress.note(
        f"{name}: {len(group)} cells share the layers of the backbone, within "
        f"{bytes_text(budget)} in {tempfile.gettempdir()}"
    )
    return FeatureMemo(budget, lambda text: progress.note(f"{name}: {text}"))


def exit_status(failures):
    """0 without failures, 2 where options or files are to blame for all of them, else 1."""
    if not failures:
        return 0
    return 2 if all(failure.is_input for failure in failures) else 1


class Eta:
    """How long the cells that are left will take.

    Parameters: n_categories; cells, the Cells of each.

    A cell's work is its tiles' pixels. Its seconds per work are those measured of its
    architecture, separately for cells that reuse layers and those that do not; before there
    are such, those of the architecture, or of all, scaled by FIRST_GUESS and REUSE_GUESS. A
    cell that was taken as finished counts with the seconds that its result tells, one that
    failed not at all.
    """

    def __init__(self, n_categories, cells):
        self.count = 0
        self._cells = cells
        self._left = dict.fromkeys((cell.place for cell in cells), n_categories)
        self._measured = {}  # (arch, reuses) -> [seconds, work]

    def done(self, cell, seconds):
        """A cell, a Cell, ended after these seconds; None where they say nothing."""
        self.count += 1
        self._left[cell.place] -= 1
        if seconds:
            total = self._measured.setdefault((cell.arch, cell.reuses), [0.0, 0.0])
            total[0] += seconds
            total[1] += _work(cell.setup)

    def skip_category(self):
        """A whole category failed."""
        self.count += len(self._cells)
        for place in self._left:
            self._left[place] -= 1

    def seconds_left(self):
        """An estimate in seconds, None before anything was measured."""
        if not self._measured:
            return None
        return sum(
            self._left[cell.place] * _work(cell.setup) * self._rate(cell.arch, cell.reuses)
            for cell in self._cells
        )

    def left(self):
        """Such as ", about 3 min 20 s left"; empty where nothing is known or nothing left."""
        seconds = self.seconds_left()
        return f", about {duration(seconds)} left" if seconds else ""

    def _rate(self, arch, reuses):
        """Seconds per work, from what is most alike among what was measured."""
        measured = self._measured
        for alike in ([(arch, reuses)], [(arch, not reuses)], measured):
            totals = {kind: measured[kind] for kind in alike if kind in measured}
            if totals:
                break
        seconds = sum(seconds for seconds, _ in totals.values())
        work = sum(_guess(*kind) * work for kind, (_, work) in totals.items())
        return _guess(arch, reuses) * seconds / work


def _guess(arch, reuses):
    """Seconds per work relative to PaDiM's without reuse."""
    return FIRST_GUESS.get(arch, 1.0) * (REUSE_GUESS.get(arch, 1.0) if reuses else 1.0)


def _recorded(result):
    return sum(result[key] for key in ("seconds_train", "seconds_test", "seconds_score"))


def _work(setup):
    """Pixels of all tiles of an image."""
    return setup.n_tiles * setup.tile_size[0] * setup.tile_size[1]


def _title(entry, arch=None, setup=None, seed=None):
    """A category, or a cell of it, as failures name it."""
    where = f"{entry.dataset} {entry.name}"
    return where if arch is None else f"{where} {arch} {setup.name} seed {seed}"


def _failed(title, error, options, progress, debug):
    is_input = isinstance(error, InputError) or out_of_memory(error)
    text = one_line(error)
    if out_of_memory(error):
        text = memory_sentence(error)
    elif not is_input:
        text = f"{type(error).__name__}: {text}; --debug shows where"
    if debug:
        traceback.print_exception(error)
    failure = Failure(title, text, is_input)
    progress.note(f"failed: {failure}")
    options.ranks.tell([title, text, is_input])
    return failure


def out_of_memory(error):
    """Whether an exception says that memory ran out, on the host or on the device."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def memory_sentence(error):
    """What the user reads when memory ran out."""
    return (
        f"out of memory ({str(error).partition('. ')[0]}); choose a smaller --batch-size, "
        "--tile-size or --image-size"
    )
