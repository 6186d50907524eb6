"""Exact k-centre greedy: the distance in its specified order, and the loops that use it.

The twin is greedy in tiled_ref/models/search/coreset.py; the proof of the filter is in filter.py
beside it. Nothing here starts a thread; every function releases the GIL, so callers
can split the rows.

The filter skips a pair (x, c) if w_x . w_c - |w_c|^2/2 <= base_x - (sqrt(m_x) scale +
margin)^2/2, with w the filter vectors and m_x the minimum so far: such a pair cannot lower it.
"""

from libc.math cimport INFINITY, sqrt

cdef enum:
    LANES = 8
    STEP = 64  # products processed together
    MARKS = 32


cdef inline double squared_distance(
    const float *x, const float *y, Py_ssize_t dims
) noexcept nogil:
    """sum (x - y)^2 in float64: column k goes to lane k mod 8, then pairs of lanes."""
    cdef double lane[LANES]
    cdef double delta
    cdef Py_ssize_t k, j
    for j in range(LANES):
        lane[j] = 0.0
    k = 0
    # Invariant: columns 0..k-1 are in their lanes, and k is a multiple of 8.
    while k + LANES <= dims:
        for j in range(LANES):
            delta = <double>x[k + j] - <double>y[k + j]
            lane[j] += delta * delta
        k += LANES
    for j in range(dims - k):
        delta = <double>x[k + j] - <double>y[k + j]
        lane[j] += delta * delta
    return ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]))


cdef inline float threshold(double base, double m, double scale, double margin) noexcept nogil:
    cdef double reach = sqrt(m) * scale + margin
    return <float>(base - 0.5 * reach * reach)


def distances_to(
    const float[:, ::1] points,
    Py_ssize_t centre,
    double[::1] out,
    Py_ssize_t start,
    Py_ssize_t stop,
):
    """out[i] = squared distance of points[i] to points[centre], for start <= i < stop."""
    cdef Py_ssize_t i, dims = points.shape[1]
    if not (0 <= centre < points.shape[0] and 0 <= start <= stop <= points.shape[0]):
        raise IndexError("centre or rows outside the points")
    if out.shape[0] != points.shape[0] or dims == 0:
        raise ValueError("out and points differ in length, or the points have no columns")
    with nogil:
        for i in range(start, stop):
            out[i] = squared_distance(&points[i, 0], &points[centre, 0], dims)


def apply_centres(
    const float[:, ::1] points,
    const long long[::1] rows,
    const float[:, ::1] others,
    const long long[::1] centres,
    const long long[::1] begin,
    double[::1] minimum,
    long long[::1] nearest,
    const float[:, ::1] product,
    const float[::1] half,
    const double[::1] base,
    double scale,
    double margin,
):
    """minimum[i] = min(minimum[i], squared distance of points[rows[i]] to others[centres[j]])
    over begin[i] <= j < len(centres). Unless nearest is empty, nearest[i] becomes the
    centre of the minimum, the lowest number among equals.

    product (rows, centres): w of the row times w of the centre; half (centres,): |w|^2/2.
    """
    cdef Py_ssize_t i, j, k, s, end, best, n_marked, dims = points.shape[1]
    cdef Py_ssize_t n = rows.shape[0], m = centres.shape[0]
    cdef Py_ssize_t marked[MARKS]
    cdef bint tracked = nearest.shape[0] > 0
    cdef float a, top
    cdef int any_above
    cdef double d
    cdef const float *x
    cdef const float *g
    if (
        begin.shape[0] != n
        or minimum.shape[0] != n
        or base.shape[0] != n
        or product.shape[0] != n
        or product.shape[1] != m
        or half.shape[0] != m
        or others.shape[1] != dims
        or (tracked and nearest.shape[0] != n)
        or dims == 0
    ):
        raise ValueError("rows, centres, begin, minimum, product, half and base do not fit")
    for i in range(n):
        if not (0 <= rows[i] < points.shape[0] and begin[i] >= 0):
            raise IndexError("row outside the points")
    for j in range(m):
        if not 0 <= centres[j] < others.shape[0]:
            raise IndexError("centre outside the others")
    if n == 0 or m == 0:
        return
    with nogil:
        for i in range(n):
            x = &points[rows[i], 0]
            g = &product[i, 0]
            a = threshold(base[i], minimum[i], scale, margin)
            k = begin[i]
            # Invariant: minimum[i] covers the centres before k, and a is its threshold.
            while k < m:
                # Collect steps in which a centre passes the filter, then find the best centre.
                n_marked = 0
                while k < m and n_marked < MARKS:
                    end = k + STEP if k + STEP < m else m
                    any_above = 0
                    if end - k == STEP:
                        for j in range(STEP):
                            any_above |= g[k + j] - half[k + j] > a
                    else:
                        any_above = 1
                    if any_above:
                        marked[n_marked] = k
                        n_marked += 1
                    k = end
                best = -1
                top = a
                for s in range(n_marked):
                    end = marked[s] + STEP if marked[s] + STEP < m else m
                    for j in range(marked[s], end):
                        if g[j] - half[j] > top:
                            top = g[j] - half[j]
                            best = j
                if best < 0:
                    continue
                # It goes first, because it lowers a most.
                d = squared_distance(x, &others[centres[best], 0], dims)
                if d < minimum[i]:
                    minimum[i] = d
                    a = threshold(base[i], d, scale, margin)
                    if tracked:
                        nearest[i] = centres[best]
                elif tracked and d == minimum[i] and centres[best] < nearest[i]:
                    nearest[i] = centres[best]
                for s in range(n_marked):
                    end = marked[s] + STEP if marked[s] + STEP < m else m
                    for j in range(marked[s], end):
                        if g[j] - half[j] > a and j != best:
                            d = squared_distance(x, &others[centres[j], 0], dims)
                            if d < minimum[i]:
                                minimum[i] = d
                                a = threshold(base[i], d, scale, margin)
                                if tracked:
                                    nearest[i] = centres[j]
                            elif tracked and d == minimum[i] and centres[j] < nearest[i]:
                                nearest[i] = centres[j]


def greedy(
    const float[:, ::1] points,
    const long long[::1] rows,
    double[::1] minimum,
    const float[:, ::1] gram,
    const double[::1] base,
    const float[::1] half,
    float[::1] above,
    double scale,
    double margin,
    double rival,
    Py_ssize_t rival_row,
    long long[::1] picks,
):
    """Plain greedy among `rows` (ascending) while the best of them beats the rival.

    The best is the largest minimum, the lowest row among equals; it beats the rival if
    its minimum is larger, or equal and its row lower. picks[0], picks[1], ... become
    positions in rows, and a pick's minimum becomes -1. gram (rows, rows): w times w;
    above (rows,) is scratch. Returns the number of picks, at most len(picks).
    """
    cdef Py_ssize_t n = rows.shape[0], dims = points.shape[1], i, k, end, best, count = 0
    cdef int any_above
    cdef float h
    cdef double d, largest
    cdef const float *x
    cdef const float *g
    if (
        minimum.shape[0] != n
        or gram.shape[0] != n
        or gram.shape[1] != n
        or base.shape[0] != n
        or half.shape[0] != n
        or above.shape[0] != n
        or dims == 0
    ):
        raise ValueError("rows, minimum, gram, base, half and above differ in length")
    for i in range(n):
        if not 0 <= rows[i] < points.shape[0]:
            raise IndexError("row outside the points")
    if n == 0:
        return 0
    with nogil:
        for i in range(n):
            above[i] = INFINITY
            if minimum[i] >= 0:
                above[i] = threshold(base[i], minimum[i], scale, margin)
        # Invariant: minimum covers all centres picked so far, and above holds its thresholds.
        while count < picks.shape[0]:
            best = 0
            largest = minimum[0]
            for i in range(1, n):
                if minimum[i] > largest:
                    largest = minimum[i]
                    best = i
            if largest < 0 or largest < rival or (largest == rival and rows[best] > rival_row):
                break
            picks[count] = best
            count += 1
            minimum[best] = -1.0
            above[best] = INFINITY
            x = &points[rows[best], 0]
            g = &gram[best, 0]
            h = half[best]
            k = 0
            while k < n:
                end = k + STEP
                if end <= n:
                    any_above = 0
                    for i in range(STEP):
                        any_above |= g[k + i] - h > above[k + i]
                    if not any_above:
                        k = end
                        continue
                else:
                    end = n
                for i in range(k, end):
                    if g[i] - h > above[i]:
                        d = squared_distance(&points[rows[i], 0], x, dims)
                        if d < minimum[i]:
                            minimum[i] = d
                            above[i] = threshold(base[i], d, scale, margin)
                k = end
    return count
