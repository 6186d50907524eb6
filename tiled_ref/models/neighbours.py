"""Exact nearest neighbours in a bank of vectors, in chunks within a byte budget.

A matrix product finds the candidates, the plain difference of vectors measures them: the
product is fast but loses digits where a distance is small beside the vectors, the difference
is slow but exact to the last bits of float64. What the product may have missed by rounding
is bounded, and the few queries for which the bound leaves a doubt are searched again.
"""

import threading

import numpy as np
import torch

from .. import _arrays
from ..errors import InputError
from .filter import Filter, product_roundoff, workers

ROWS, BLOCK = 512, 1024  # queries and bank vectors of one matrix product: two megabytes
SPARE = 3  # candidates measured beyond the k that are asked for
BUDGET = 2**28  # bytes of scratch memory


@torch.no_grad()
def nearest(queries, bank, k=1, budget=BUDGET):
    """The k nearest vectors of the bank to every query, Euclidean.

    Parameters
    ----------
    queries : float32 (Q, D)
    bank : float32 (M, D), same device
    k : int, 1 to M
    budget : int
        Bytes of scratch memory, apart from a centred copy of the bank. No influence on the
        result.

    Returns
    -------
    distances : float64 (Q, k), ascending
    indices : int64 (Q, k) into the bank; equal distances in ascending order of the index

    Raises
    ------
    InputError
        k is not between 1 and M, or the vectors have other lengths.

    Order of arithmetic: distance = sqrt(sum of (q - b)^2), differences, squares and sum in
    float64. Candidates come from |b - c|^2 - 2 (q - c)(b - c) in float32, c the mean of the
    bank; u = 2^-24 and |fl(x.y) - x.y| <= D u |x| |y| for every order of summation (Higham,
    "Accuracy and Stability of Numerical Algorithms", Eq. 3.5) bound its error.
    """
    if queries.ndim != 2 or bank.ndim != 2 or queries.shape[1] != bank.shape[1]:
        raise InputError(
            f"queries and bank must be (Q, D) and (M, D), got {tuple(queries.shape)} and "
            f"{tuple(bank.shape)}"
        )
    n_bank, dims = bank.shape
    if not 1 <= k <= n_bank:
        raise InputError(f"k must be between 1 and the bank's {n_bank} vectors, not {k}")
    n_candidates = min(n_bank, k + SPARE)
    centre = bank.mean(0, dtype=torch.float64).to(bank.dtype)  # (D,)
    centred = bank - centre  # (M, D)
    norms = torch.linalg.vector_norm(centred, dim=1, dtype=torch.float64)  # (M,)
    squares, largest = norms.square().to(bank.dtype), norms.max()
    per_query = 8 * n_bank + 24 * n_candidates * dims
    distances = torch.empty(len(queries), k, dtype=torch.float64, device=bank.device)
    indices = torch.empty(len(queries), k, dtype=torch.int64, device=bank.device)
    first = 0
    for chunk in queries.split(max(1, budget // per_query)):
        rows = slice(first, first + len(chunk))
        first += len(chunk)
        q = chunk - centre  # (q, D)
        q_norms = torch.linalg.vector_norm(q, dim=1, dtype=torch.float64)  # (q,)
        product = torch.addmm(squares, q, centred.T, alpha=-2)  # (q, M): |d|^2 - |q|^2
        lowest = product.topk(n_candidates, largest=False)  # (q, k + SPARE)
        d, j = _measure(chunk, bank, lowest.indices)
        distances[rows], indices[rows] = d[:, :k], j[:, :k]
        if n_candidates == n_bank:
            continue
        # No other vector is nearer than this; NaN and infinity leave a doubt.
        slack = (dims + 16) * product_roundoff() * (q_norms + largest).square()  # (q,)
        others = lowest.values[:, -1].double() + q_norms.square() - slack
        doubt = torch.nonzero(~(d[:, k - 1].square() * (1 + 1e-12) < others))[:, 0]
        for row in doubt.tolist():
            d, j = _search_one(chunk[row], bank, k, budget)
            distances[rows.start + row], indices[rows.start + row] = d, j
    return distances, indices


def _measure(queries, bank, candidates):
    """Distances float64 (Q, c) to the candidates (Q, c), sorted by distance, then index."""
    candidates = candidates.sort(1).values
    delta = bank[candidates].double() - queries[:, None].double()  # (Q, c, D)
    squares, order = delta.square().sum(2).sort(dim=1, stable=True)
    return squares.sqrt(), candidates.gather(1, order)


def _search_one(query, bank, k, budget):
    """The k nearest of one query without a filter: float64 (k,) and int64 (k,)."""
    parts = []
    for chunk in bank.split(max(1, budget // (24 * bank.shape[1]))):
        parts.append((chunk.double() - query.double()).square().sum(1))
    squares, order = torch.cat(parts).sort(stable=True)
    return squares[:k].sqrt(), order[:k]


class NearestIndex:
    """The nearest vector of a bank on the CPU, found with the filter of filter.py.

    The same answers as `nearest` with k = 1: equal indices, distances equal but for the
    order of a float64 sum (that of coreset.squared_distances here). A third of the CPU time,
    because of a bank vector mostly 65 numbers are looked at instead of all.

    Parameters: bank float32 (M, D), CPU, finite; threads, see tiled_ref._arrays.thread_count.
    """

    def __init__(self, bank, threads=None):
        self.kernel = _arrays.kernel("_kcenter")
        self.threads = _arrays.thread_count(threads)
        self.bank = np.ascontiguousarray(bank.numpy())
        self.rows = np.arange(len(bank))
        with workers(self.threads) as pool:
            self.filter = Filter(self.bank, pool)

    def search(self, queries):
        """The nearest vector of every query.

        Parameters: queries float32 (Q, D), CPU.
        Returns distances float64 (Q,) and indices int64 (Q,), the lowest among equals.
        Raises InputError where a query is not finite.
        """
        array = np.ascontiguousarray(queries.numpy())
        squares = np.full(len(array), np.inf)
        places = np.full(len(array), -1, np.int64)
        local = threading.local()

        def work(first):
            part = slice(first, min(first + ROWS, len(array)))
            self._search(array[part], squares[part], places[part], local)

        with workers(self.threads) as pool:
            list(pool.map(work, range(0, len(array), ROWS)))
        if (places < 0).any():
            raise InputError("the features of an image hold a NaN or an infinity")
        return torch.from_numpy(squares).sqrt(), torch.from_numpy(places)

    def _search(self, queries, squares, places, local):
        f, m = self.filter, len(self.bank)
        if not hasattr(local, "buffer"):
            local.buffer = torch.empty(ROWS * BLOCK)
        w, base, margin = f.of(queries)
        rows, begin = np.arange(len(queries)), np.zeros(len(queries), np.int64)
        for first in range(0, m, BLOCK):
            block = self.rows[first : first + BLOCK]
            out = local.buffer[: len(rows) * len(block)].view(len(rows), len(block))
            self.kernel.apply_centres(
                queries,
                rows,
                self.bank,
                block,
                begin,
                squares,
                places,
                torch.mm(w, f[slice(first, first + len(block))].T, out=out).numpy(),
                f.half[first : first + len(block)],
                base,
                f.scale,
                margin,
            )
