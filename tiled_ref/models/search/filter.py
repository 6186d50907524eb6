"""A filter for nearest distances: it proves which pairs of vectors need no measurement.

Used by the greedy choice of lazy.py and the nearest neighbours of neighbours.py, which compare
many distances, few of which matter.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch

PREFIX = 64  # most columns kept


class Filter:
    """Short vectors w whose distances never exceed those of the points.

    Parameters: points float32 (N, D); pool, a ThreadPoolExecutor that computes them.

    With mu the mean of a sample, sigma a power of two that scales the entries of x - mu
    to between -1 and 1, V (d, p) the leading principal axes of the sample with |V| <= 1, and
    x' = sigma (x - mu):

        w(x) = (V^T x', sqrt(|x'|^2 - |V^T x'|^2))      p + 1 numbers, stored

    or, if p columns hold too little of the variance, w(x) = x' itself, computed when
    needed. In exact arithmetic |w(x) - w(c)| <= sigma |x - c|: the last number of w is the
    norm of A x' with A^2 = I - V V^T, so it differs by at most |A (x' - c')| between x and
    c, and |V^T (x' - c')|^2 + |A (x' - c')|^2 = |x' - c'|^2.

    The computed w is off by less than margin/2: it is rounded to float32, and its last
    number is the root of |x'|^2 - |V^T x'|^2 in float64, where V^T x' is off by d sqrt(p)
    2^-53 |x'| and the squares and sums by (2 d + 16) 2^-53 |x'|^2. So a pair cannot lower
    the squared distance m_x where |w(x) - w(c)| >= sigma sqrt(m_x) + margin.

    With g = w(x).w(c) and h = |w|^2/2, |w(x) - w(c)|^2/2 = h(x) + h(c) - g. A float32
    product is off by at most (p + 1) u |w(x)| |w(c)| in every order of summation (Higham,
    "Accuracy and Stability of Numerical Algorithms", Eq. 3.5), and h, the threshold and
    the comparison by a few u |w|^2 more; slack covers them all. The pair is skipped where
        g - h(c) <= base(x) - (sigma sqrt(m_x) + margin)^2/2,   base = h - slack.
    """

    SAMPLE = 4096  # points from which mean and axes come
    VARIANCE = 0.8  # fraction that the axes must hold
    CHUNK = 2048  # points processed at a time

    def __init__(self, points, pool):
        n, d = points.shape
        self.points = points
        largest = float(max(-self.points.min(), self.points.max()))
        self.scale = math.ldexp(1.0, -math.frexp(2 * largest)[1]) if largest > 0 else 1.0
        sample = slice(None, None, -(-n // self.SAMPLE))
        self.mean = points[sample].mean(0, dtype=np.float64)
        self.axes = pool.submit(self._principal_axes, sample, min(PREFIX, d // 4)).result()
        self.stored = None
        self.width = d
        if self.axes is not None:
            self.width = self.axes.shape[1] + 1
            self.stored = torch.empty(n, self.width)  # (N, p + 1)
        half = torch.empty(n, dtype=torch.float64)  # (N,)

        def work(first):
            rows = slice(first, min(first + self.CHUNK, n))
            w = self._vectors(points[rows])
            half[rows] = _half_square(w)
            if self.stored is not None:
                self.stored[rows] = w

        list(pool.map(work, range(0, n, self.CHUNK)))
        reach = math.sqrt(2 * float(half.max())) * (1 + 1e-6)  # no |w| is larger
        p = self.width - 1
        self.rounding = math.sqrt((2 * d * (1 + math.sqrt(p)) + 16) * 2.0**-53) + 2.0**-23
        self.reach = reach
        self.margin, slack = self._allowance(reach)
        self.half = half.float().numpy()  # h, float32 (N,)
        self.base = half.numpy() - slack  # float64 (N,)

    def _allowance(self, reach):
        """margin and slack if no |w| is larger than reach."""
        slack = (self.width + 16) * product_roundoff() * reach * reach
        return 2 * reach * self.rounding, slack

    def of(self, x):
        """For other points, float32 (n, d): w (n, width), base float64 (n,) and margin."""
        w = self._vectors(x)
        half = _half_square(w)
        reach = max(self.reach, math.sqrt(2 * float(half.max())) * (1 + 1e-6))
        margin, slack = self._allowance(reach)
        return w, half.numpy() - slack, margin

    def _scaled(self, x):
        x = x.astype(np.float64)
        x -= self.mean
        x *= self.scale
        return torch.from_numpy(x)  # x', float64 (n, d)

    def _principal_axes(self, sample, p):
        """Float64 (d, p), or None if they hold too little of the variance."""
        if p < 8:
            return None
        sample = self._scaled(self.points[sample])
        values, vectors = torch.linalg.eigh(sample.T @ sample)
        if not float(values[-p:].sum()) > self.VARIANCE * float(values.sum()):
            return None
        axes = vectors[:, -p:]
        return axes / torch.linalg.matrix_norm(axes.T @ axes, ord=1).sqrt() * (1 - 1e-12)

    def _vectors(self, x):
        x = self._scaled(x)
        if self.axes is None:
            return x.float()
        z = x @ self.axes  # (n, p)
        rest = x.square().sum(1) - z.square().sum(1)
        return torch.cat([z, rest.clamp_min(0).sqrt()[:, None]], dim=1).float()

    def __getitem__(self, rows):
        """w of these rows, int64 NumPy array (n,) or slice: float32 tensor (n, width)."""
        if self.stored is None:
            return self._vectors(self.points[rows])
        return self.stored[rows if isinstance(rows, slice) else torch.from_numpy(rows)]


def _half_square(w):
    return 0.5 * torch.linalg.vector_norm(w, dim=1, dtype=torch.float64).square()


def product_roundoff():
    """Unit roundoff of a float32 matrix product: 2^-24, or bfloat16's if torch may use less
    (torch.set_float32_matmul_precision)."""
    return 2.0**-24 if torch.get_float32_matmul_precision() == "highest" else 2.0**-8


@contextmanager
def workers(threads):
    """Threads whose matrix products start no more threads; restores torch's setting on exit."""
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(
            threads, initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)
