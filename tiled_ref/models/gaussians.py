"""Distances from Gaussians whose inverse covariances are kept as upper triangles.

Half of a symmetric matrix is enough, and an ensemble's prediction is bound by reading it: nine
locations of PaDiM hold 4096 matrices of 100 x 100 each.
"""

import numpy as np
import torch

from ..support import arrays
from ..support.errors import InputError

LANES = 8
POSITIONS = 128  # a thread's share at a time


def pack(matrices):
    """The upper triangles, row by row: matrices (P, D, D), symmetric, any dtype ->
    (P, D (D + 1) / 2)."""
    rows, cols = torch.triu_indices(*matrices.shape[-2:], device=matrices.device)
    return matrices[..., rows, cols]


def unpack(packed):
    """The inverse of pack: packed (P, D (D + 1) / 2), any dtype -> (P, D, D)."""
    d = int((2 * packed.shape[1]) ** 0.5)
    places = torch.empty(d, d, dtype=torch.int64, device=packed.device)
    rows, cols = torch.triu_indices(d, d, device=packed.device)
    places[rows, cols] = places[cols, rows] = torch.arange(len(rows), device=packed.device)
    return packed.index_select(1, places.flatten()).view(len(packed), d, d)


def mahalanobis(x, mean, packed):
    """Distance of every vector from the Gaussian of its position: the twin of
    `kernels/mahalanobis.pyx`.

    Defard et al. Eq. 2: M(x_ij) = sqrt((x_ij - mu_ij)^T Sigma_ij^-1 (x_ij - mu_ij)), with x_ij
    = x[b, p], mu_ij = mean[p] and Sigma_ij^-1 = the symmetric matrix packed[p].

    Parameters: x float32 (B, P, D); mean float32 (P, D); packed float32 (P, D (D + 1) / 2), see
    pack.
    Returns float32 (B, P), >= 0; a square below zero (rounding) counts as zero.

    Order of arithmetic
    -------------------
    delta = x - mean in float32. With A the matrix, for i = 0, 1, ..., D - 1 in this order:
    lane i mod 8 of eight float64 sums += delta_i (2 y_i + A_ii delta_i), in float64, then
    y_j += A_ij delta_i in float32 for j > i, y starting at zero. The lanes are added as
    ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7)). The root is rounded to float32.
    """
    delta = x - mean  # (B, P, D)
    d = x.shape[2]
    y = np.zeros_like(delta)
    lanes = np.zeros((LANES, *x.shape[:2]))
    first = 0  # where row i starts
    with np.errstate(invalid="ignore", over="ignore"):
        for i in range(d):
            row = packed[:, first : first + d - i]  # A_ii, A_i,i+1, ...
            own = delta[..., i].astype(np.float64)
            lanes[i % LANES] += own * (2.0 * y[..., i] + row[:, 0].astype(np.float64) * own)
            y[..., i + 1 :] += row[:, 1:] * delta[..., i, None]
            first += d - i
        a, b, c, e = lanes[0::2] + lanes[1::2]
        total = (a + b) + (c + e)
        return np.sqrt(np.where(total < 0, 0.0, total)).astype(np.float32)


def distances(x, mean, packed, impl="cython", threads=None):
    """`mahalanobis` by the kernel or the twin.

    Parameters: x, mean and packed, float32 NumPy arrays or CPU tensors, shapes as `mahalanobis`.
    Returns float32 (B, P) NumPy array.
    Raises InputError for other shapes or dtypes, KernelNotBuiltError without the kernel.
    """
    return distances_each([x], [mean], [packed], impl, threads)[0]


def distances_each(xs, means, packeds, impl="cython", threads=None):
    """`distances` for L models at once, which keeps the threads busy to the end.

    Parameters: xs, means and packeds, L arrays float32 (B, P, D), (P, D) and
    (P, D (D + 1) / 2).
    Returns a list of L arrays float32 (B, P).
    Raises the errors of distances.
    """
    arrays.check_impl(impl)
    threads = arrays.thread_count(threads)
    models = [_checked(*arrays) for arrays in zip(xs, means, packeds)]
    if impl == "numpy":
        return [mahalanobis(*arrays) for arrays in models]
    kernel = arrays.kernel("_mahalanobis").mahalanobis
    found = [np.empty(x.shape[:2], np.float32) for x, _, _ in models]

    def work(task):
        k, start = task
        x, mean, packed = models[k]
        scratch = np.empty((2, x.shape[2]), np.float32)
        stop = min(start + POSITIONS, len(mean))
        kernel(x, mean, packed, found[k], *scratch, start, stop)

    tasks = ((k, start) for k, m in enumerate(models) for start in range(0, len(m[1]), POSITIONS))
    arrays.run_threads(work, tasks, threads)
    return found


def _checked(*given):
    x, mean, packed = map(arrays.for_kernel, given)
    fits = x.ndim == 3 and x.shape[2] > 0 and mean.shape == x.shape[1:]
    if not fits or packed.shape != (len(mean), x.shape[2] * (x.shape[2] + 1) // 2):
        raise InputError(
            "x, mean and packed must be (B, P, D), (P, D) and (P, D (D + 1) / 2), got "
            f"{x.shape}, {mean.shape} and {packed.shape}"
        )
    if any(array.dtype != np.float32 for array in (x, mean, packed)):
        raise InputError(
            f"x, mean and packed must be float32, got {x.dtype}, {mean.dtype} and {packed.dtype}"
        )
    return x, mean, packed
