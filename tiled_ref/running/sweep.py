"""A sweep of cells: data sets, categories, architectures, setups, seeds, one after the other.

A category is decoded once, shared by all its cells and released before the next. A cell that
fails is reported and the others continue; the final exit status reflects it.
"""

import collections
import contextlib
import functools
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..support.errors import InputError, one_line, out_of_memory
from ..support.progress import bytes_text, duration
from ..verdicts import deciding
from .category_images import CategoryImages
from .estimate import category_estimate
from .results import gather_results
from .shared_layers import SharedLayers, budget_within


@dataclass(frozen=True)
class Planned:
    """A category to run."""

    dataset: str  # its name
    name: str  # of the category
    load: Callable  # load() returns the data.Category, always the same


@dataclass(frozen=True)
class Failure:
    """A cell that failed. It does not hold the exception, whose traceback would keep the
    category's images in memory."""

    cell: str  # its title
    text: str  # what went wrong
    is_input: bool  # whether the user can fix it: a file, an option, or memory

    def __str__(self):
        return f"{self.cell}: {self.text}"


class Sweep:
    """The cells of a run.

    Parameters: plan, Planned categories, whose images are read when their turn comes; recipes, one
    for each cell of a category; backbone, a ResNet18Features; debug, show the traceback of a
    failure. Attribute: failures, a list of Failure in the order of the cells.
    """

    def __init__(self, plan, recipes, backbone, options, progress, debug=False):
        self.plan, self.recipes, self.backbone = list(plan), list(recipes), backbone
        self.options, self.progress, self.debug = options, progress, debug
        self.failures = []
        self.n_cells = len(self.plan) * len(self.recipes)
        self._count, self._todo = 0, collections.Counter()

    def recipes_of(self, entry):
        """The recipes of a Planned category: with options.native at the size of its first
        image. Raises InputError if that cannot be read or the tiles do not fit it."""
        if not self.options.native:
            return self.recipes
        size = entry.load().train[0].read_size()
        return [replace(r, setup=r.setup.with_sizes(size)) for r in self.recipes]

    @functools.cached_property
    def estimates(self):
        """A CategoryEstimate of every category, None for one that cannot be run."""
        found = [None] * len(self.plan)
        for k, entry in enumerate(self.plan):
            with contextlib.suppress(InputError):  # raised again when its turn comes
                found[k] = self.estimate(entry)
        return found

    def estimate(self, entry):
        """The CategoryEstimate of a Planned category. Raises InputError if it cannot be run."""
        category = deciding.plan(entry.load(), self.options.validation).category
        recipes = self.recipes_of(entry)
        return category_estimate(category, recipes, self.backbone, self.options, self._shares)

    def share_within(self, room):
        """Share layers within at most that many bytes on disk."""
        room = min(self.options.share_features, room)
        self.options = replace(self.options, share_features=room)

    def cells(self):
        """Yield (recipe, images, backbone) of every cell, the arguments of cell.run_cell.

        The backbone is a SharedLayers where cells can share its layers: in float32 on the CPU of
        one process. Whether the disk would pay off beside a GPU is not measured.
        """
        for part in filter(None, self.estimates):
            self._plan(part.work, *(cell.work for cell in part.cells))
        for entry, part in zip(self.plan, self.estimates):
            images = None
            with self.caught(cell_title(entry)):
                part = part or self.estimate(entry)  # raises the same error again
                recipes = self.recipes_of(entry)
                images = CategoryImages(
                    entry.load(), self.options, self.progress, recipes[0].antialias,
                    sizes=dict.fromkeys(recipe.setup.image_size for recipe in recipes),
                )  # fmt: skip
            if images is None:
                self._count += len(self.recipes)
                continue
            with self._shared(entry.name) as backbone:
                for k, recipe in enumerate(recipes):
                    if backbone is not self.backbone:
                        later = {_tiles(other) for other in recipes[k + 1 :]}
                        backbone.keeps = _tiles(recipe) in later
                    self.progress.costs = part.costs | part.cells[k].costs
                    yield recipe, images, backbone
                    self._count += 1
                    over = [part.cells[k].work]  # done, finished before or failed
                    over += [part.work] if k + 1 == len(recipes) else []
                    self._plan(*over, sign=-1)
                    self._report_count()

    def _plan(self, *works, sign=1):
        """Add work to the rest of the run, or subtract it."""
        for work in works:
            for key, seconds in work.items():
                self._todo[key] += sign * seconds
                self.progress.todo[key] = max(0.0, self._todo[key])

    def _report_count(self):
        if self.n_cells > 1:
            self.progress.title = ""
            left = self.progress.left() or 0.0
            text = f", about {duration(left)} left" if left >= 0.05 else ""
            self.progress.note(f"cells: {self._count}/{self.n_cells} done{text}")

    @contextlib.contextmanager
    def caught(self, title):
        """A context in which an error of one of several cells, named by title, becomes a Failure.

        In a run of several processes only an InputError does; anything else ends them all. A
        KeyboardInterrupt, or the error of a single cell, always propagates. Yields None."""
        isolated = Exception if self.options.ranks.size == 1 else InputError
        try:
            yield
        except isolated if self.n_cells > 1 else () as error:
            full = out_of_memory(error)
            is_input = isinstance(error, InputError) or bool(full)
            text = full or one_line(error)
            if not is_input:
                text = f"{type(error).__name__}: {text}; --debug shows where"
            if self.debug:
                traceback.print_exception(error)
            self.failures.append(Failure(title, text, is_input))
            self.progress.note(f"failed: {self.failures[-1]}")

    @property
    def _shares(self):
        options = self.options
        plain = all(recipe.precision == "float32" for recipe in self.recipes)
        alone = options.ranks.size == 1 and options.device.type == "cpu"
        return plain and alone and options.share_features > 0 and len(self.recipes) > 1

    @contextlib.contextmanager
    def _shared(self, name):
        """The backbone for the cells of a category, a SharedLayers if they share layers."""

        def note(text):
            self.progress.note(f"{name}: {text}")

        if not self._shares:
            yield self.backbone
        elif budget := budget_within(self.options.share_features):
            note(
                f"{len(self.recipes)} cells share the layers of the backbone, within "
                f"{bytes_text(budget)} in {tempfile.gettempdir()}"
            )
            with SharedLayers(self.backbone, budget, note) as shared:
                yield shared
        else:
            note("no temporary folder has space, so no layers are shared")
            yield self.backbone


def _tiles(recipe):
    """A key, equal for recipes that cut the same kind of tiles."""
    return recipe.setup.image_size, recipe.setup.tile_size


def gather(sweep, failures):
    """(results, a list of Failure) of all processes of a run, in the order of the table.
    Parameters: sweep, ended in all of them; failures, as Ranks.finish returns them."""
    found = {}
    for failure in failures:
        found.setdefault(failure[0], Failure(*failure))
    cells, ordered = [], []
    for entry in sweep.plan:
        ordered.append(cell_title(entry))
        for recipe in () if ordered[-1] in found else sweep.recipes_of(entry):
            ordered.append(cell_title(entry, recipe))
            if ordered[-1] not in found:
                cells.append((entry, recipe))
    results = gather_results(cells, sweep.options)
    return results, [found[title] for title in ordered if title in found]


def exit_status(failures):
    """0 without failures, 2 if options or files caused all of them, else 1."""
    if not failures:
        return 0
    return 2 if all(failure.is_input for failure in failures) else 1


def cell_title(entry, recipe=None):
    """The name of a category (anything with dataset and name), or of a cell of it, in failures."""
    cell = f" {recipe.arch} {recipe.setup.name} seed {recipe.seed}" if recipe else ""
    return f"{entry.dataset} {entry.name}{cell}"
