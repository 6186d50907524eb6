"""A grid of cells: data sets, categories, architectures, setups, seeds, one after the other.

A category is decoded once, shared by all its cells and released before the next. A cell that
fails is reported and the others go on; the exit status says so at the end. Finished cells
are taken as they are where options.resume says so (`experiment.run_cell`).
"""

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from .errors import InputError, one_line
from .experiment import CategoryImages, run_cell
from .progress import duration

# Seconds of one architecture relative to PaDiM's, per tile and image: only the first estimate,
# before a cell of that architecture has been timed.
FIRST_GUESS = {"padim": 1.0, "patchcore": 3.0, "fastflow": 12.0, "reverse_distillation": 10.0}


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


def run(plan, archs, setups, seeds, backbone, options, progress, debug=False, cell=run_cell):
    """Run every cell of a grid.

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
    (results, failures): dicts as run_cell returns them, in the order of the plan, without
    those that another process finishes, and a list of Failure.

    Raises
    ------
    KeyboardInterrupt, and what the only cell of a grid raises. What one of several cells
    raises becomes a Failure, unless several processes share the run (options.ranks): then
    they have to stop together.
    """
    results, failures = [], []
    clock = Eta(len(plan), archs, setups, len(seeds))
    n_cells = len(plan) * len(archs) * len(setups) * len(seeds)
    isolated = Exception if n_cells > 1 and options.ranks.size == 1 else ()
    for entry in plan:
        where = f"{entry.dataset} {entry.name}"
        try:
            images = CategoryImages(entry.load(), options, progress)
            images.expect(dict.fromkeys(setup.image_size for setup in setups))
        except isolated as error:
            failures.append(_failed(where, error, progress, debug))
            clock.skip_category()
            continue
        for arch in archs:
            for setup in setups:
                for seed in seeds:
                    started = time.monotonic()
                    seconds = None
                    try:
                        result = cell(setup, arch, images, seed, backbone, options, progress)
                        if result is not None:  # else another process finishes the cell
                            seconds = max(time.monotonic() - started, _recorded(result))
                            results.append(result)
                    except isolated as error:
                        title = f"{where} {arch} {setup.name} seed {seed}"
                        failures.append(_failed(title, error, progress, debug))
                    clock.done(arch, setup, seconds)
                    if n_cells > 1:
                        progress.note(f"cells: {clock.count}/{n_cells} done{clock.left()}")
    return results, failures


def exit_status(failures):
    """0 without failures, 2 where options or files are to blame for all of them, else 1."""
    if not failures:
        return 0
    return 2 if all(failure.is_input for failure in failures) else 1


class Eta:
    """How long the cells that are left will take.

    Parameters: n_categories; archs; setups, Setup; n_seeds.

    A cell's work is its tiles' pixels. Its seconds per work are those measured of the same
    architecture; of others, scaled by FIRST_GUESS, until there are such. A cell that was
    taken as finished counts with the seconds that its result tells, one that failed not at all.
    """

    def __init__(self, n_categories, archs, setups, n_seeds):
        self.count = 0
        self._left = {
            (arch, setup.name): n_categories * n_seeds for arch in archs for setup in setups
        }
        self._work = {setup.name: _work(setup) for setup in setups}
        self._per_category = len(archs) * len(setups) * n_seeds
        self._n_seeds = n_seeds
        self._measured = {}  # arch -> [seconds, work]

    def done(self, arch, setup, seconds):
        """A cell ended after these seconds; None where they say nothing."""
        self.count += 1
        self._left[arch, setup.name] -= 1
        if seconds:
            total = self._measured.setdefault(arch, [0.0, 0.0])
            total[0] += seconds
            total[1] += self._work[setup.name]

    def skip_category(self):
        """A whole category failed."""
        self.count += self._per_category
        for key in self._left:
            self._left[key] -= self._n_seeds

    def seconds_left(self):
        """An estimate in seconds, None before anything was measured."""
        if not self._measured:
            return None
        return sum(n * self._seconds(arch, setup) for (arch, setup), n in self._left.items())

    def left(self):
        """Such as ", about 3 min 20 s left"; empty where nothing is known or nothing left."""
        seconds = self.seconds_left()
        return f", about {duration(seconds)} left" if seconds else ""

    def _seconds(self, arch, setup):
        if arch in self._measured:
            seconds, work = self._measured[arch]
            return self._work[setup] * seconds / work
        if not self._measured:
            return None
        seconds = sum(total[0] for total in self._measured.values())
        work = sum(FIRST_GUESS.get(a, 1.0) * total[1] for a, total in self._measured.items())
        return self._work[setup] * FIRST_GUESS.get(arch, 1.0) * seconds / work


def _recorded(result):
    return sum(result[key] for key in ("seconds_train", "seconds_test", "seconds_score"))


def _work(setup):
    """Pixels of all tiles of an image."""
    return setup.n_tiles * setup.tile_size[0] * setup.tile_size[1]


def _failed(title, error, progress, debug):
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
