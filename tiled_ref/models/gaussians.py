"""Distances from Gaussians stored as triangular factors of their inverse covariances.

Sigma = C C^T (Cholesky), U = C^-T, so that Sigma^-1 = U U^T: a squared distance is a sum of
squares, >= 0 however U is rounded. Its upper triangle has half as many numbers as Sigma^-1, and on
a CPU an ensemble's prediction is limited by reading them: nine locations of PaDiM hold 4096 factors
of 100 x 100 each.
"""

import numpy as np
import torch

from ..support import arrays
from ..support.errors import InputError

LANES = 8
POSITIONS = 128  # per task of a thread
STORED = (np.dtype(np.float32), np.dtype(np.float16))  # types of factors


def pack(matrices):
    """The upper triangles, row by row: matrices (P, D, D), any dtype -> (P, D (D + 1) / 2)."""
    rows, cols = torch.triu_indices(*matrices.shape[-2:], device=matrices.device)
    return matrices[..., rows, cols]


def unpack(packed):
    """The upper triangular matrices of pack: (P, D (D + 1) / 2), any dtype -> (P, D, D)."""
    d = int((2 * packed.shape[1]) ** 0.5)
    places = torch.zeros(d, d, dtype=torch.int64, device=packed.device)
    rows, cols = torch.triu_indices(d, d, device=packed.device)
    places[rows, cols] = torch.arange(len(rows), device=packed.device)
    return packed.index_select(1, places.flatten()).view(len(packed), d, d).triu()


def factors_of(covariances):
    """U with Sigma^-1 = U U^T, upper triangular: Sigma float64 (P, D, D) -> the same shape; NaN
    where Sigma is not positive definite. Nothing here reads a result on the host."""
    roots, failed = torch.linalg.cholesky_ex(covariances)  # C
    roots.masked_fill_(failed[:, None, None] != 0, torch.nan)
    identity = torch.eye(roots.shape[-1], dtype=roots.dtype, device=roots.device)
    return torch.linalg.solve_triangular(roots.mT, identity, upper=True)


def factors_of_inverses(packed, chunk=32):
    """Packed factors of packed Sigma^-1, the form of Gaussians in ensembles before format 4.

    With rows and columns in reversed order, U is the lower triangular Cholesky factor.

    Parameters: packed float32 (P, D (D + 1) / 2); chunk, matrices at a time.
    Returns float32 (P, D (D + 1) / 2). Raises torch.linalg.LinAlgError if one is not positive
    definite.
    """
    out = torch.empty_like(packed)
    for part, found in zip(packed.split(chunk), out.split(chunk)):
        upper = unpack(part.double())
        whole = upper + upper.triu(1).mT
        found.copy_(pack(torch.linalg.cholesky(whole.flip(1, 2)).flip(1, 2)))
    return out


def mahalanobis(x, mean, factors):
    """Distance of every vector from the Gaussian of its position: the twin of
    `kernels/mahalanobis.pyx`.

    Defard et al. Eq. 2: M(x_ij) = sqrt((x_ij - mu_ij)^T Sigma_ij^-1 (x_ij - mu_ij)), with x_ij
    = x[b, p], mu_ij = mean[p] and Sigma_ij^-1 = U U^T, U the triangle factors[p]: the length of
    U^T (x_ij - mu_ij).

    Parameters: x float32 (B, P, D); mean float32 (P, D); factors float32 or float16
    (P, D (D + 1) / 2), see pack.
    Returns float32 (B, P), >= 0.

    Order of arithmetic
    -------------------
    delta = x - mean in float32, U converted to float32. For i = 0, 1, ..., D - 1 in this order
    y_j += U_ij delta_i in float32 for j >= i, y starting at zero. Lane i mod 8 of eight float64
    sums += y_i^2, in float64, in the same order. The lanes are added as
    ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7)). The root is rounded to float32.
    """
    delta = x - mean  # (B, P, D)
    d = x.shape[2]
    y = np.zeros_like(delta)
    lanes = np.zeros((LANES, *x.shape[:2]))
    first = 0  # where row i starts
    with np.errstate(invalid="ignore", over="ignore"):
        for i in range(d):
            row = factors[:, first : first + d - i].astype(np.float32)  # U_ii, U_i,i+1, ...
            y[..., i:] += row * delta[..., i, None]
            lanes[i % LANES] += np.square(y[..., i], dtype=np.float64)
            first += d - i
        a, b, c, e = lanes[0::2] + lanes[1::2]
        return np.sqrt((a + b) + (c + e)).astype(np.float32)


def distances(x, mean, factors, impl="cython", threads=None):
    """`mahalanobis` by the kernel or the twin.

    Parameters: x, mean and factors, NumPy arrays or CPU tensors, types and shapes as for
    `mahalanobis`.
    Returns float32 (B, P) NumPy array.
    Raises InputError for invalid shapes or dtypes, KernelNotBuiltError without the kernel.
    """
    return distances_each([x], [mean], [factors], impl, threads)[0]


def distances_each(xs, means, factors, impl="cython", threads=None):
    """`distances` for L models at once, which keeps all threads busy to the end.

    Parameters: xs, means and factors, L arrays each, as for distances.
    Returns a list of L arrays float32 (B, P).
    Raises the errors of distances.
    """
    arrays.check_impl(impl)
    threads = arrays.thread_count(threads)
    models = [_checked(*arrays) for arrays in zip(xs, means, factors)]
    if impl == "numpy":
        return [mahalanobis(*arrays) for arrays in models]
    kernel = arrays.kernel("_mahalanobis").mahalanobis
    found = [np.empty(x.shape[:2], np.float32) for x, _, _ in models]

    def work(task):
        k, start = task
        x, mean, factors = models[k]
        scratch = np.empty((2, x.shape[2]), np.float32)
        wide = np.empty(factors.shape[1], np.float32)
        stop = min(start + POSITIONS, len(mean))
        kernel(x, mean, factors.view(np.uint8), found[k], *scratch, wide, start, stop)

    tasks = ((k, start) for k, m in enumerate(models) for start in range(0, len(m[1]), POSITIONS))
    arrays.run_threads(work, tasks, threads)
    return found


def _checked(*given):
    x, mean, factors = map(arrays.for_kernel, given)
    fits = x.ndim == 3 and x.shape[2] > 0 and mean.shape == x.shape[1:]
    if not fits or factors.shape != (len(mean), x.shape[2] * (x.shape[2] + 1) // 2):
        raise InputError(
            "x, mean and factors must be (B, P, D), (P, D) and (P, D (D + 1) / 2), got "
            f"{x.shape}, {mean.shape} and {factors.shape}"
        )
    if {x.dtype, mean.dtype} != {STORED[0]} or factors.dtype not in STORED:
        raise InputError(
            "x and mean must be float32 and factors float32 or float16, got "
            f"{x.dtype}, {mean.dtype} and {factors.dtype}"
        )
    return x, mean, factors
