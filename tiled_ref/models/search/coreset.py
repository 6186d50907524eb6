"""The coreset of PatchCore: k-centre greedy after a sparse random projection.

Roth et al., "Towards Total Recall in Industrial Anomaly Detection", arXiv:2106.08265,
Sec. 3.2:

    Eq. 5       M_C* = argmin_{M_C in M} max_{m in M} min_{n in M_C} |m - n|_2
    greedy      choose the point farthest from all chosen ones next     -> k_centre_greedy
    projection  psi: R^d -> R^d*, distances kept within eps             -> sparse_projection

The plain algorithm (impl="numpy", the specification), `greedy`, measures every point against
every centre. The fast one (impl="cython") is in lazy.py and returns the same indices.
"""

import math

import numpy as np
import torch

from ...support import arrays
from ...support.devices import to_host
from ...support.errors import InputError
from .lazy import check_sizes, lazy_greedy

EPSILON = 0.9  # distortion allowed to the projection, the authors' configuration
PROJECTED_AT_ONCE = 2**26  # bytes of the projection's float64 copies
LANES = 8  # partial sums of a squared distance


def projected_dimensions(n):
    """Dimensions that preserve the distances of n points within 1 +- eps, EPSILON: the
    Johnson-Lindenstrauss bound, int(4 ln n / (eps^2/2 - eps^3/3)), at least 1."""
    return max(1, int(4 * math.log(n) / (EPSILON**2 / 2 - EPSILON**3 / 3)))


def sparse_projection(n_features, n_components, rng):
    """A sparse random matrix that approximately preserves distances.

    Li, Hastie, Church, "Very Sparse Random Projections", KDD 2006: with s = sqrt(n_features)
    and density 1/s, every entry is, independently,
        +sqrt(s)/sqrt(n_components)  with probability 1/(2s)
        -sqrt(s)/sqrt(n_components)  with probability 1/(2s)
        0                            with probability 1 - 1/s
    Parameters: rng, a numpy.random.Generator; one rng.random() per entry, row-major: below
    1/(2s) is +, from there below 1/s is -.
    Returns float64 (n_components, n_features).
    """
    density = 1 / math.sqrt(n_features)
    u = rng.random((n_components, n_features))
    signs = np.where(u < density / 2, 1.0, np.where(u < density, -1.0, 0.0))
    return signs * (math.sqrt(1 / density) / math.sqrt(n_components))


def project(table, matrix):
    """table @ matrix.T, computed in float64 and rounded once, some rows at a time.

    table float32 (N, D), any device; matrix float64 (d, D) -> float32 (N, d), the same device."""
    matrix = torch.from_numpy(matrix).to(table.device)
    out = table.new_empty(len(table), len(matrix))  # (N, d)
    rows = max(1, PROJECTED_AT_ONCE // (8 * (matrix.shape[0] + matrix.shape[1])))
    for chunk, result in zip(table.split(rows), out.split(rows)):
        result.copy_(chunk.double() @ matrix.T)
    return out


def select_coreset(table, ratio, seed, start="excluded", impl="cython", progress=None):
    """Choose the rows of the table that form the coreset; returns them in the order chosen.

    Parameters
    ----------
    table : float32 (N, D), finite
        All patches; on the CPU or a CUDA device, which then does the work.
    ratio : float, 0 < ratio <= 1
    seed : int
        Seeds numpy.random.default_rng, which draws the projection and then the
        start.
    start : {"excluded", "included"}
    progress : callable, optional, progress(done, total)

    Returns
    -------
    int64 (max(1, int(ratio * N)),), on the table's device
    """
    n = len(table)
    count = max(1, int(ratio * n))
    if progress:
        progress(0, count)
    rng = np.random.default_rng(seed)
    matrix = sparse_projection(table.shape[1], projected_dimensions(n), rng)
    first = int(rng.integers(n))
    points = project(table, matrix)  # (N, d)
    options = dict(include_first=start == "included", progress=progress)
    if table.device.type == "cpu":
        return k_centre_greedy(points, count, first, impl=impl, **options)
    return k_centre_greedy_device(points, count, first, **options)


def squared_distances(points, centre):
    """Squared Euclidean distance of every point to one of them, in the order given below.

    Parameters: points float32 (N, d); centre, a row number.
    Returns float64 (N,).
    Order of arithmetic: differences and squares in float64; column k is added to the partial
    sum s_(k mod 8), columns ascending, partial sums starting at zero; the result is
    ((s_0 + s_1) + (s_2 + s_3)) + ((s_4 + s_5) + (s_6 + s_7)).
    """
    s = np.zeros((LANES, len(points)))
    for k in range(points.shape[1]):
        delta = points[:, k].astype(np.float64) - float(points[centre, k])
        s[k % LANES] += delta * delta
    return ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]))


def k_centre_greedy(
    points, count, first, include_first=False, impl="cython", threads=None, progress=None
):
    """Choose `count` points, each the farthest from those chosen before it.

    Roth et al. Sec. 3.2, the greedy approximation of Eq. 5: with d_i the squared distance
    of point i to the nearest centre, repeatedly choose argmax_i d_i among the points not
    chosen yet, the lowest index among equals. The distances start from `first`.

    Parameters
    ----------
    points : float32 (N, d), NumPy or CPU torch, finite
    count : int, 1 <= count <= N
    first : int
        Index of the start.
    include_first : bool
        True: the start is the first point chosen (newer anomalib). False: being the start does
        not make it chosen; it has distance zero like any copy of a centre (the paper's
        configuration).
    progress : callable, optional, progress(done, count) until done is count

    Returns
    -------
    int64 (count,), distinct, in the order chosen; NumPy or torch like points

    Raises
    ------
    InputError
        An invalid shape or dtype, a NaN or an infinity, count or first out of range.
    KernelNotBuiltError
        impl="cython" when the kernel is not built.

    Order of arithmetic: see squared_distances; minima and comparisons are exact.
    """
    arrays.check_impl(impl)
    threads = arrays.thread_count(threads)
    array = arrays.host_array("points", points, arrays.FLOATS[:1])
    check_sizes(array.shape, count, first)
    _check_finite(np.array([np.min(array), np.max(array)]))
    search = greedy if impl == "numpy" else lazy_greedy
    return arrays.like(search(array, count, first, include_first, threads, progress), points)


def greedy(points, count, first, include_first=False, threads=None, progress=None):
    """The twin of `kernels/kcenter.pyx`: one pass over all points for every centre.

    Parameters, float32 (N, d), and Returns: see `k_centre_greedy`; threads is unused.
    """
    points = np.asfortranarray(points)  # the same values; squared_distances reads columns
    chosen = np.empty(count, np.int64)
    minimum = squared_distances(points, first)
    done = 0
    if include_first:
        chosen[0], minimum[first], done = first, -1.0, 1
    for step in range(done, count):
        best = int(np.argmax(minimum))  # the first among equals
        chosen[step] = best
        minimum = np.minimum(minimum, squared_distances(points, best))
        minimum[best] = -1.0  # below every distance: never chosen again
        if progress:
            progress(step + 1, count)
    return chosen


def k_centre_greedy_device(points, count, first, include_first=False, progress=None):
    """`greedy` on the points' own device, which the host reads once, to check that all are finite.

    Parameters: points float32 (N, d), any device, finite; the others as in `k_centre_greedy`.
    Returns int64 (count,), distinct, on the device.
    Raises InputError as `k_centre_greedy` does.
    Order of arithmetic: |x - c|^2 = |x|^2 + |c|^2 - 2 x.c on centred float64 points, so
    within about 1e-13 of the largest |x|^2 of `squared_distances`: the indices are the same unless
    two candidates are closer than that to a tie.
    """
    check_sizes(points.shape, count, first)
    _check_finite(*to_host(torch.stack([points.min(), points.max()])))
    x = points.double()
    x -= x.mean(0)
    norms = x.square().sum(1)  # (N,)

    def squares(row):
        return (norms + norms[row] - 2 * (x @ x[row][0])).clamp_min_(0)  # (N,)

    row = torch.full((1,), first, device=points.device)  # the last centre
    minimum = squares(row)
    chosen = row.new_empty(count)
    for step in range(count):
        if step or not include_first:
            row = minimum.argmax(0, keepdim=True)
        chosen[step] = row[0]
        minimum = torch.minimum(minimum, squares(row)).index_fill_(0, row, -1.0)
        if progress:
            progress(step + 1, count)
    return chosen


def _check_finite(extremes):
    """Raise InputError unless the smallest and the largest number, an array (2,), are finite."""
    if not np.isfinite(extremes).all():
        raise InputError("points must be finite: the features hold a NaN or an infinity")
