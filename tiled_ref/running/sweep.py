"""A sweep of cells: data sets, categories, architectures, setups, seeds, one after the other.

A category is decoded once, shared by all its cells and released before the next. A cell that
fails is reported and the others go on; the exit status tells at the end.
"""

import contextlib
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from ..support.errors import InputError, one_line, out_of_memory
from ..support.progress import bytes_text, duration
from .category_images import CategoryImages
from .results import gather_results
from .shared_layers import SharedLayers, budget_within


@dataclass(frozen=True)
class Planned:
    """A category that is to be run."""

    dataset: str  # its name
    name: str  # of the category
    load: Callable  # load() returns the data.Category


@dataclass(frozen=True)
class Failure:
    """A cell that failed. It does not keep the exception, whose traceback would keep the
    category's images."""

    cell: str  # its title
    text: str  # what went wrong
    is_input: bool  # whether the user can mend it: a file, an option, or memory

    def __str__(self):
        return f"{self.cell}: {self.text}"


class Sweep:
    """The cells of a run.

    Parameters: plan, Planned categories, each loaded when its turn comes; recipes, one for each
    cell of a category; backbone, a ResNet18Features; debug, show the traceback of a failure.
    Attribute: failures, a list of Failure in the order of the cells.
    """

    def __init__(self, plan, recipes, backbone, options, progress, debug=False):
        self.plan, self.recipes, self.backbone = list(plan), list(recipes), backbone
        self.options, self.progress, self.debug = options, progress, debug
        self.failures = []
        self.n_cells = len(self.plan) * len(self.recipes)
        self._count = 0

    def cells(self):
        """Yield (recipe, images, backbone) of every cell, the arguments of cell.run_cell.

        The backbone is a SharedLayers where cells may share its layers: in float32 on the CPU of
        one process; a GPU computes them faster than a disk returns them.
        """
        for number, entry in enumerate(self.plan):
            images = None
            with self.caught(cell_title(entry)):
                images = CategoryImages(
                    entry.load(), self.options, self.progress, self.recipes[0].antialias,
                    sizes=dict.fromkeys(recipe.setup.image_size for recipe in self.recipes),
                )  # fmt: skip
            if images is None:
                self._count += len(self.recipes)
                continue
            category = images.category
            n_images = (len(category.train) + len(category.test)) / self.options.ranks.size
            of_category = n_images * sum(recipe.setup.tile_pixels for recipe in self.recipes)
            self.progress.work = self.progress.done + (len(self.plan) - number) * of_category
            with self._shared(entry.name) as backbone:
                for k, recipe in enumerate(self.recipes):
                    if backbone is not self.backbone:
                        later = {_tiles(other) for other in self.recipes[k + 1 :]}
                        backbone.keeps = _tiles(recipe) in later
                    before = self.progress.done
                    yield recipe, images, backbone
                    self._count += 1
                    undone = recipe.setup.tile_pixels * n_images - (self.progress.done - before)
                    self.progress.work -= undone  # finished before, failed, or done by others
                    if self.n_cells > 1:
                        self.progress.title = ""
                        left = self.progress.left()
                        text = f", about {duration(left)} left" if left else ""
                        self.progress.note(f"cells: {self._count}/{self.n_cells} done{text}")

    @contextlib.contextmanager
    def caught(self, title):
        """A context in which an error of one of several cells, named by title, becomes a Failure.

        In a run of several processes only an InputError does; anything else ends them all. A
        KeyboardInterrupt, or an error of the only cell, always passes. Yields None."""
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

    @contextlib.contextmanager
    def _shared(self, name):
        """The backbone for the cells of a category, a SharedLayers where they share layers."""

        def note(text):
            self.progress.note(f"{name}: {text}")

        options = self.options
        plain = all(recipe.precision == "float32" for recipe in self.recipes)
        alone = options.ranks.size == 1 and options.device.type == "cpu"
        if not (plain and alone and options.share_features and len(self.recipes) > 1):
            yield self.backbone
        elif budget := budget_within(options.share_features):
            note(
                f"{len(self.recipes)} cells share the layers of the backbone, within "
                f"{bytes_text(budget)} in {tempfile.gettempdir()}"
            )
            with SharedLayers(self.backbone, budget, note) as shared:
                yield shared
        else:
            note("no temporary folder has room, so no layers are shared")
            yield self.backbone


def _tiles(recipe):
    """Equal for recipes that cut the same kind of tiles."""
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
        for recipe in sweep.recipes:
            ordered.append(cell_title(entry, recipe))
            if not {cell_title(entry), ordered[-1]} & set(found):
                cells.append((entry, recipe))
    results = gather_results(cells, sweep.options)
    return results, [found[title] for title in ordered if title in found]


def exit_status(failures):
    """0 without failures, 2 if options or files are to blame for all of them, else 1."""
    if not failures:
        return 0
    return 2 if all(failure.is_input for failure in failures) else 1


def cell_title(entry, recipe=None):
    """The name of a category (anything with dataset and name), or of a cell of it, in failures."""
    cell = f" {recipe.arch} {recipe.setup.name} seed {recipe.seed}" if recipe else ""
    return f"{entry.dataset} {entry.name}{cell}"
