# Mahalanobis distances with packed inverse covariances; the twin is mahalanobis in
# tiled_ref/models/gaussians.py.
#
# Reading the matrices is what takes the time: while one is worked on the next is fetched, and it
# stays in the first-level cache for all images. Row by row of the upper triangle,
# y_j += A_ij delta_i for j > i, so that y_i is complete when row i is reached. Four rows at a
# time, because the compiler makes vectors of the columns; every operation is rounded on its own.

from libc.math cimport sqrt

cdef extern from *:
    """
    #if defined(__GNUC__)
    #define FETCH(address) __builtin_prefetch(address)
    #else
    #define FETCH(address) ((void) (address))
    #endif
    """
    void FETCH(const void *address) nogil

cdef enum:
    LANES = 8
    ROWS = 4


cdef inline void add_rows(
    float *y,
    const float *first,
    const float *second,
    const float *third,
    const float *fourth,
    const float *delta,
    Py_ssize_t n,
) noexcept nogil:
    """y_j += a_j delta_0, then + b_j delta_1, ... for four rows a, b, c, d."""
    cdef float d0 = delta[0], d1 = delta[1], d2 = delta[2], d3 = delta[3]
    cdef Py_ssize_t j
    for j in range(n):
        y[j] = (((y[j] + first[j] * d0) + second[j] * d1) + third[j] * d2) + fourth[j] * d3


def mahalanobis(
    const float[:, :, ::1] x,
    const float[:, ::1] mean,
    const float[:, ::1] packed,
    float[:, ::1] out,
    float[::1] delta,
    float[::1] y,
    Py_ssize_t start,
    Py_ssize_t stop,
):
    """out[b, p] = distance of x[b, p] from the Gaussian of position p, start <= p < stop.

    x (B, P, D); mean (P, D); packed (P, D (D + 1) / 2); out (B, P); delta, y (D,), scratch.
    """
    cdef Py_ssize_t n_images = x.shape[0], n = x.shape[1], dims = x.shape[2]
    cdef Py_ssize_t size = packed.shape[1]
    cdef Py_ssize_t b, p, i, j, r, c, n_rows
    cdef const float *row[ROWS + 1]
    cdef double lane[LANES]
    cdef double wide, total

    if dims < 1:
        raise ValueError("mahalanobis: vectors without entries")
    if mean.shape[0] != n or mean.shape[1] != dims:
        raise ValueError("mahalanobis: x and mean differ in shape")
    if packed.shape[0] != n or size != dims * (dims + 1) // 2:
        raise ValueError("mahalanobis: the matrices have another size")
    if out.shape[0] != n_images or out.shape[1] != n:
        raise ValueError("mahalanobis: x and out differ in shape")
    if delta.shape[0] != dims or y.shape[0] != dims:
        raise ValueError("mahalanobis: scratch of another size")
    if not 0 <= start <= stop <= n:
        raise ValueError("mahalanobis: positions out of range")

    with nogil:
        for p in range(start, stop):
            for b in range(n_images):
                for j in range(LANES):
                    lane[j] = 0.0
                for j in range(dims):
                    delta[j] = x[b, p, j] - mean[p, j]
                    y[j] = 0.0
                i = 0
                row[0] = &packed[p, 0]
                # Invariant: row[0] points at entry (i, i), and y has the terms of rows 0..i-1.
                while i < dims:
                    n_rows = ROWS if i + ROWS <= dims else 1
                    if b == 0 and p + 1 < n:
                        for j in range(0, n_rows * (dims - i), 16):  # floats of a cache line
                            FETCH(row[0] + size + j)
                    for r in range(n_rows):
                        wide = delta[i + r]
                        lane[(i + r) % LANES] += wide * (
                            2.0 * <double>y[i + r] + <double>row[r][0] * wide
                        )
                        for c in range(r + 1, n_rows):
                            y[i + c] += row[r][c - r] * delta[i + r]
                        row[r + 1] = row[r] + (dims - i - r)
                        row[r] += n_rows - r
                    if n_rows == ROWS:
                        add_rows(
                            &y[0] + i + ROWS,
                            row[0],
                            row[1],
                            row[2],
                            row[3],
                            &delta[i],
                            dims - i - ROWS,
                        )
                    else:
                        for j in range(dims - i - 1):
                            y[i + 1 + j] += row[0][j] * delta[i]
                    row[0] = row[n_rows]
                    i += n_rows
                total = ((lane[0] + lane[1]) + (lane[2] + lane[3])) + (
                    (lane[4] + lane[5]) + (lane[6] + lane[7])
                )
                out[b, p] = <float>sqrt(0.0 if total < 0 else total)
