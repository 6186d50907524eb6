"""The finished cells below OUT and the data of theirs that a report reads."""

from ..running.analysis import load_analysis
from ..running.results import read_result
from ..running.stored_images import load_images
from ..support.errors import InputError
from .results import grouped, select, table_place


class Collection:
    """All finished cells below OUT that have what a report needs.

    Parameters: out, Path. Attributes: results, list of dicts of all finished cells, in the
    order of tables; without, folders of cells whose analysis.npz is missing, is from another run
    or covers different test images from those of the cell that ran last.
    Raises InputError for an invalid metrics.json.
    """

    def __init__(self, out):
        self.out = out
        paths = sorted(out.glob("*/*/*/*/seed*/metrics.json"))
        found = [(read_result(path), path.parent) for path in paths]
        found.sort(key=lambda pair: table_place(pair[0]))
        self.results = [result for result, _ in found]
        self.without, self._cells, self._images = [], [], {}
        for result, folder in found:
            images = self.images(result["dataset"], result["category"])
            try:
                analysis = load_analysis(folder)
            except InputError:
                analysis = None
            if analysis is None or images is None or analysis.digest != images.digest or (
                analysis.identity != result.get("identity", "")
            ):
                self.without.append(folder)
            else:
                self._cells.append((result, analysis))

    def cells(self, **wanted):
        """Return [(result, CellAnalysis)] of the cells whose result has these values."""
        return [cell for cell in self._cells if select(cell[:1], **wanted)]

    def first_seeds(self, **wanted):
        """Return one of these cells per setup, the one with the lowest seed."""
        chosen = {}
        for cell in self.cells(**wanted):
            chosen.setdefault(cell[0]["setup"], cell)
        return list(chosen.values())

    def images(self, dataset, category):
        """Return stored_images.StoredImages, None if images.npz is missing."""
        key = dataset, category
        if key not in self._images:
            try:
                self._images[key] = load_images(self.out / dataset / category)
            except InputError:
                self._images[key] = None
        return self._images[key]

    def defects(self, **wanted):
        """Return pairs (result, {"area", "recall"}) of these cells, see `defect_sizes`."""
        return [
            (r, {"area": self.images(r["dataset"], r["category"]).region_area,
                 "recall": analysis.recall})
            for r, analysis in self.cells(**wanted)
        ]  # fmt: skip

    def groups(self):
        """Return each (dataset, category, arch) of cells with an analysis, in table order."""
        return list(grouped([result for result, _ in self._cells], "dataset", "category", "arch"))
