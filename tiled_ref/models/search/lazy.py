"""The greedy choice of coreset.py without measuring every point against every centre.

The fast algorithm on a CPU returns the plain one's indices. It relies on three ideas:

1. Lazy minima. A point's minimum over the centres applied to it so far is an upper bound
   of its minimum over all of them. Only a pool of points with the largest bounds is
   updated; as long as the best of the pool beats the largest bound outside, it is the
   point that the plain algorithm would choose.
2. A filter. A matrix product of short vectors, w, shows for nearly all pairs of point and
   centre that the pair cannot lower the point's minimum; see filter.py for the proof. Matrix
   products run at the speed of the arithmetic units, not of the memory.
3. One distance. Pairs that pass the filter are measured by `squared_distances`, in its order,
   float64. Every minimum is a value of that function, so the choice depends neither on the
   filter nor on its rounding, nor on threads. (The projected points are a product.)
"""

import threading

import numpy as np
import torch

from ...support import arrays
from ...support.errors import InputError
from .filter import Filter, workers

POOL = 16384  # points updated at a time, or a 64th of all
MIN_COMPETING, MAX_COMPETING = 256, 4096  # of these, points that compete
ROWS, BLOCK = 512, 1024  # rows and centres of one matrix product: two megabytes
NOT_TRACKED = np.empty(0, np.int64)  # instead of the nearest centres, which are not needed
KEEP = 0.75  # rows are dropped from the product when a smaller fraction is left


def lazy_greedy(points, count, first, include_first, threads, progress):
    """The indices of `coreset.greedy`: points float32 (N, d), the others as there."""
    kernel = arrays.kernel("_kcenter")
    with workers(threads) as pool:
        search = _Search(kernel, arrays.for_kernel(points), count, first, pool, threads)
        if include_first:
            search.choose(np.array([first]))
            search.applied[:] = 1
        if progress:
            progress(0, count)  # start of the measured work
        while search.done < count:
            search.round()
            if progress:
                progress(search.done, count)
        return search.chosen


class _Search:
    """State of the lazy search.

    minimum : float64 (N,), squared distance to the nearest of `first` and the centres
        chosen[: applied[i]], an upper bound for later centres; -1 for a chosen point
    applied : int64 (N,)
    chosen : int64 (count,), of which `done` are valid
    centres : float32 (count, width), their w; half : float32 (count,), |w|^2/2
    """

    def __init__(self, kernel, points, count, first, pool, threads):
        self.kernel, self.points, self.pool = kernel, points, pool
        self.filter = Filter(points, pool)
        self.minimum = np.empty(len(points))
        spans = arrays.spans(len(points), threads)
        list(pool.map(lambda s: kernel.distances_to(points, first, self.minimum, *s), spans))
        self.applied = np.zeros(len(points), np.int64)
        self.chosen, self.done = np.zeros(count, np.int64), 0
        self.centres = torch.empty(count, self.filter.width)
        self.half = np.empty(count, np.float32)
        self.competing = MIN_COMPETING
        self.local = threading.local()

    def choose(self, rows):
        """Append these rows to `chosen`."""
        span = slice(self.done, self.done + len(rows))
        self.chosen[span] = rows
        self.centres[span] = self.filter[rows]
        self.half[span] = self.filter.half[rows]
        self.minimum[rows] = -1.0
        self.done += len(rows)

    def round(self):
        """Update the points with the largest bounds and choose among them.

        Either a point is chosen or the bounds of the whole pool fall, so rounds end.
        """
        rows, rival, rival_row = _top(self.minimum, max(POOL, len(self.points) // 64))
        rows = self.refresh(rows, max(rival, 0.0))
        if not len(rows):
            return
        inside, value, place = _top(self.minimum[rows], self.competing)
        if value > rival:
            rival, rival_row = value, len(self.points)
        if value == rival and place < len(rows):
            rival_row = min(rival_row, int(rows[place]))
        rows = rows[inside]
        minimum, w = self.minimum[rows], self.filter[rows]
        product = self.pool.submit(torch.mm, w, w.T).result().numpy()
        picks = np.empty(min(len(self.chosen) - self.done, len(rows)), np.int64)
        n_picks = self.kernel.greedy(
            self.points, rows, minimum,
            product, self.filter.base[rows], self.filter.half[rows],
            np.empty(len(rows), np.float32), self.filter.scale, self.filter.margin,
            rival, rival_row, picks,
        )  # fmt: skip
        self.minimum[rows] = minimum
        self.choose(rows[picks[:n_picks]])
        self.applied[rows] = self.done
        if n_picks > len(rows) // 4:
            self.competing = min(MAX_COMPETING, 2 * self.competing)
        elif n_picks < len(rows) // 16:
            self.competing = max(MIN_COMPETING, self.competing // 2)

    def refresh(self, rows, lowest):
        """Update these rows, dropping those that fall below `lowest` on the way.

        Returns the remaining rows, ascending.
        """
        rows = rows[self.minimum[rows] >= lowest]
        rows = rows[np.argsort(self.applied[rows], kind="stable")]
        parts = [rows[k : k + ROWS] for k in range(0, len(rows), ROWS)]
        stay = list(self.pool.map(lambda part: self._refresh(part, lowest), parts))
        return np.sort(np.concatenate([rows[:0], *stay]))

    def _refresh(self, rows, lowest):
        f = self.filter
        applied, minimum = self.applied[rows], self.minimum[rows]  # applied ascends
        w, base = self._gather(rows), f.base[rows]
        for first in range(int(applied[0]), self.done, BLOCK):
            last = min(first + BLOCK, self.done)
            n = int(np.searchsorted(applied, last))  # the others have these centres
            self.kernel.apply_centres(
                self.points, rows[:n],
                self.points, self.chosen[first:last], np.maximum(applied[:n] - first, 0),
                minimum[:n], NOT_TRACKED,
                self._product(w[:n], self.centres[first:last]), self.half[first:last],
                base[:n], f.scale, f.margin,
            )  # fmt: skip
            applied[:n] = last
            keep = minimum >= lowest
            if np.count_nonzero(keep) < KEEP * len(rows):
                self.minimum[rows], self.applied[rows] = minimum, applied
                rows, applied, minimum, base = (a[keep] for a in (rows, applied, minimum, base))
                w = w[torch.from_numpy(keep)]
                if not len(rows):
                    return rows
        self.minimum[rows], self.applied[rows] = minimum, applied
        return rows[minimum >= lowest]

    def _gather(self, rows):
        """filter[rows] in this thread's own buffer."""
        f = self.filter
        if f.stored is None:
            return f[rows]
        if not hasattr(self.local, "rows"):
            self.local.rows = torch.empty(ROWS, f.width)
        out = self.local.rows[: len(rows)]
        return torch.index_select(f.stored, 0, torch.from_numpy(rows), out=out)

    def _product(self, w, centres):
        """w @ centres.T in this thread's own buffer, NumPy float32 (rows, centres)."""
        if not hasattr(self.local, "buffer"):
            self.local.buffer = torch.empty(ROWS * BLOCK)
        out = self.local.buffer[: len(w) * len(centres)].view(len(w), len(centres))
        return torch.mm(w, centres.T, out=out).numpy()


def _top(values, size):
    """The `size` largest values, the lowest index first among equals.

    Returns their indices ascending, and a bound on the rest, a value and an index: everything
    outside has a smaller value, or the same value and no lower index.
    """
    n = len(values)
    if n <= size:
        return np.arange(n), -1.0, n
    bound = np.partition(values, n - size)[n - size]
    above = np.flatnonzero(values > bound)
    equal = np.flatnonzero(values == bound)
    taken = size - len(above)
    rival = int(equal[taken]) if taken < len(equal) else n
    return np.sort(np.concatenate([above, equal[:taken]])), float(bound), rival


def check_sizes(shape, count, first):
    """Raise InputError unless the shape is (N, d) and N points hold `count` and `first`."""
    if len(shape) != 2 or 0 in shape:
        raise InputError(f"points must be (N, d) with N, d >= 1, got shape {tuple(shape)}")
    if not 1 <= count <= shape[0]:
        raise InputError(f"count must be between 1 and the {shape[0]} points, not {count}")
    if not 0 <= first < shape[0]:
        raise InputError(f"first must be a row of the {shape[0]} points, not {first}")
