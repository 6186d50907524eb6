"""Exact nearest neighbours in a bank of vectors, in chunks within a byte budget.

A matrix product finds the candidates and the plain difference of vectors measures them: the
product is fast but loses digits if a distance is small relative to the vectors, the difference
is slow but exact to the last bits of float64. The rounding of the product is bounded, and the few
queries that the bound leaves undecided are searched again.
"""

import functools
import threading

import numpy as np
import torch

from ...support import arrays
from ...support.devices import on_cpu
from ...support.errors import InputError
from .filter import Filter, product_roundoff, workers

ROWS, BLOCK = 512, 1024  # queries and bank vectors of one matrix product: two megabytes
SPARE = 3  # candidates measured in addition to the k requested
BUDGET = 2**28  # bytes of scratch memory


class Moments:
    """Values that `nearest` precomputes from a bank float32 (M, D).

    Attributes: centre float32 (D,), the mean vector c; squares float32 (M,), |b - c|^2; largest
    and reach, float64 scalars, the largest |b - c| and the largest |b|.
    """

    CHUNK = 4096  # vectors centred at a time

    @torch.no_grad()
    def __init__(self, bank):
        self.centre = bank.mean(0, dtype=torch.float64).to(bank.dtype)
        parts = bank.split(self.CHUNK)
        norms = torch.cat([_norms(part - self.centre) for part in parts])  # (M,)
        self.squares = norms.square().to(bank.dtype)
        self.largest = norms.amax()
        self.reach = torch.cat([_norms(part) for part in parts]).amax()


def _norms(vectors):
    return torch.linalg.vector_norm(vectors, dim=-1, dtype=torch.float64)


@torch.no_grad()
def nearest(queries, bank, k=1, budget=BUDGET, moments=None):
    """The k nearest vectors of the bank to every query, Euclidean.

    Parameters
    ----------
    queries : float32 (Q, D)
    bank : float32 (M, D), same device
    k : int, 1 to M
    budget : int
        Bytes of scratch memory; affects the result only by the order of a float64 sum.
    moments : Moments, optional
        Those of the bank, if it is searched repeatedly.

    Returns
    -------
    distances : float64 (Q, k), ascending
    indices : int64 of the same shape, into the bank; equal distances in ascending order of
        the index; see below for devices other than a CPU

    Raises
    ------
    InputError
        k is not between 1 and M, or the lengths of the vectors differ.

    Order of arithmetic: distance = sqrt(sum of (q - b)^2), differences, squares and sum in
    float64. Candidates come from |b - c|^2 - 2 (q - c).b in float32, which is |q - b|^2
    - |q - c|^2 - 2 (q - c).c, with c the mean of the bank; u = 2^-24 and |fl(x.y) - x.y| <=
    D u |x| |y| for every order of summation (Higham, "Accuracy and Stability of Numerical
    Algorithms", Eq. 3.5) bound its error. Where it leaves a doubt, the query is searched again on a
    CPU. On other devices no step may depend on the data: a vector found is farther than the nearest
    by at most that rounding, and equal distances come in any order.
    """
    if not (queries.ndim == bank.ndim == 2 and queries.shape[1] == bank.shape[1]):
        raise InputError(
            "queries and bank must be (Q, D) and (M, D), got "
            f"{tuple(queries.shape)} and {tuple(bank.shape)}"
        )
    n_bank, dims = bank.shape
    if not 1 <= k <= n_bank:
        raise InputError(f"k must be between 1 and the bank's {n_bank} vectors, not {k}")
    n_candidates = min(n_bank, k + SPARE)
    moments = moments or Moments(bank)
    per_query = 8 * n_bank + 24 * n_candidates * dims
    distances, indices = [], []
    for chunk in queries.split(max(1, budget // per_query)):
        q = chunk - moments.centre  # (q, D)
        q_norms = _norms(q)  # (q,)
        product = torch.addmm(moments.squares, q, bank.T, alpha=-2)  # (q, M)
        lowest = product.topk(n_candidates, largest=False)  # (q, k + SPARE)
        d, j = _measure(chunk, bank, lowest.indices)
        d, j = d[:, :k].contiguous(), j[:, :k].contiguous()
        distances.append(d)
        indices.append(j)
        if n_candidates == n_bank or not on_cpu(bank.device):
            continue
        # No other vector is nearer than this; NaN and infinity count as doubt.
        inner = (q.double() * moments.centre.double()).sum(-1)  # (q,): (q - c).c
        size = q_norms.square() + moments.largest.square() + 2 * q_norms * moments.reach
        slack = (dims + 16) * product_roundoff() * size
        others = lowest.values[:, -1].double() + q_norms.square() + 2 * inner - slack
        for row in torch.nonzero(~(d[:, k - 1].square() * (1 + 1e-12) < others))[:, 0].tolist():
            d[row], j[row] = _search_one(chunk[row], bank, k, budget)
    return torch.cat(distances), torch.cat(indices)


def _measure(queries, bank, candidates):
    """Distances float64 (Q, c) to the candidates (Q, c), by distance, then index."""
    candidates = candidates.sort(-1).values
    delta = bank[candidates].double() - queries[:, None].double()  # (Q, c, D)
    sort = functools.partial(torch.sort, stable=True) if on_cpu(bank.device) else torch.sort
    squares, order = sort(delta.square().sum(-1))  # ONNX has no stable sort
    return squares.sqrt(), candidates.gather(-1, order)


def _search_one(query, bank, k, budget):
    """The k nearest of one query without a filter: float64 (k,) and int64 (k,)."""
    parts = []
    for chunk in bank.split(max(1, budget // (24 * bank.shape[1]))):
        parts.append((chunk.double() - query.double()).square().sum(1))
    squares, order = torch.cat(parts).sort(stable=True)
    return squares[:k].sqrt(), order[:k]


class NearestIndex:
    """The nearest vector of a bank on the CPU, found with the filter of filter.py.

    Same results as `nearest` with k = 1: equal indices, distances equal up to the order of a
    float64 sum (here that of coreset.squared_distances). Takes a third of the CPU time, because
    it mostly reads 65 numbers of a bank vector instead of all.

    Parameters: bank float32 (M, D), CPU, finite.
    """

    def __init__(self, bank):
        self.kernel = arrays.kernel("_kcenter")
        self.threads = arrays.thread_count()
        self.bank = arrays.for_kernel(bank.numpy())
        self.rows = np.arange(len(bank))
        with workers(self.threads) as pool:
            self.filter = Filter(self.bank, pool)

    def _search(self, queries, squares, places, local):
        f, m = self.filter, len(self.bank)
        if not hasattr(local, "buffer"):
            local.buffer = torch.empty(ROWS * BLOCK)
        w, base, margin = f.of(queries)
        rows, begin = np.arange(len(queries)), np.zeros(len(queries), np.int64)
        for first in range(0, m, BLOCK):
            block = self.rows[first : first + BLOCK]
            out = local.buffer[: len(rows) * len(block)].view(len(rows), len(block))
            product = torch.mm(w, f[slice(first, first + len(block))].T, out=out).numpy()
            self.kernel.apply_centres(
                queries, rows,
                self.bank, block, begin,
                squares, places,
                product, f.half[first : first + len(block)],
                base, f.scale, margin,
            )  # fmt: skip


def once_each(function, items):
    """A list of function(item) for all items; called once for items that are the same object,
    with one shared result."""
    alike = {id(item): item for item in items}.items()
    results = {key: function(item) for key, item in alike}
    return [results[id(item)] for item in items]


class Banks:
    """The banks of L models, searched together.

    Parameters: banks, L tensors float32 (M, D), moved to the device; impl: with "cython" the kernel
    searches on a CPU instead of `nearest`.
    """

    def __init__(self, banks, device, impl):
        self.impl = impl
        self.banks = once_each(lambda bank: bank.to(device), banks)
        self.moments = once_each(Moments, self.banks)

    @functools.cached_property
    def indexes(self):
        """A NearestIndex of every bank."""
        return once_each(NearestIndex, self.banks)

    def __len__(self):
        return len(self.banks)

    def nearest(self, queries):
        """The nearest vector of every query: queries float32 (L, Q, D), Q for each bank ->
        distances float64 (L, Q) and places int64 (L, Q)."""
        if self.impl == "cython" and on_cpu(queries.device):
            return search_each(self.indexes, queries)
        each = zip(queries, self.banks, self.moments)
        found = [nearest(q, bank, moments=moments) for q, bank, moments in each]
        return tuple(torch.stack(part)[..., 0] for part in zip(*found))

    def around(self, places, k):
        """The k vectors nearest to those at places int64 (L, B), themselves first: float32
        (L, B, k, D); k is lowered to the size of a bank."""
        found = []
        for bank, moments, own in zip(self.banks, self.moments, places):
            one = 1 if on_cpu(bank.device) else len(own)  # image at a time, like the backbone
            parts = bank[own].split(one)
            near = [nearest(q, bank, min(k, len(bank)), moments=moments)[1] for q in parts]
            found.append(bank[torch.cat(near)])
        return torch.stack(found)


def search_each(indexes, queries):
    """The nearest vector of every query, each in the bank of its own index, all banks at once to
    keep the threads busy.

    Parameters: indexes, L NearestIndex objects; queries float32 (L, Q, D), CPU.
    Returns distances float64 (L, Q) and indices int64 (L, Q), the lowest among equals.
    Raises InputError if a query is not finite.
    """
    array = arrays.for_kernel(queries.numpy())
    squares = np.full(array.shape[:2], np.inf)
    places = np.full(array.shape[:2], -1, np.int64)
    local = threading.local()

    def work(task):
        of, first = task
        part = of, slice(first, min(first + ROWS, array.shape[1]))
        indexes[of]._search(array[part], squares[part], places[part], local)

    tasks = [(of, first) for of in range(len(array)) for first in range(0, array.shape[1], ROWS)]
    with workers(indexes[0].threads) as pool:
        list(pool.map(work, tasks))
    if (places < 0).any():
        raise InputError("the features of an image hold a NaN or an infinity")
    return torch.from_numpy(squares).sqrt(), torch.from_numpy(places)
