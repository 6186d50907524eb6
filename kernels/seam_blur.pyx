# Gaussian blur of a band, or of the whole map; its twin is seam_blur in
# tiled_ref/support/gaussian.py, which blurs the whole map and keeps the band.
#
# Row by row, so that the work is proportional to the band and everything but the map stays
# in the cache: the column pass writes one line, as wide as the band of this row and its
# halo; the row pass reads it. Per pixel both passes compute w0*x0, then add
# w_k * (x_{-k} + x_{+k}) for k = 1, 2, ..., each operation rounded separately: the bits
# equal those of the specification. Taps in the outer loop and pixels in the inner one, four taps
# at a time, because the compiler vectorises over the pixels, not the taps.

from libc.string cimport memcpy

ctypedef fused floating:
    float
    double


def seam_blur(const floating[:, :, ::1] maps, floating[:, :, ::1] out,
              const floating[::1] taps, const long long[:, ::1] row_runs,
              const long long[:, ::1] col_runs, const long long[::1] reflect_rows,
              const long long[::1] reflect_cols, floating[::1] line, floating[::1] blurred,
              Py_ssize_t start, Py_ssize_t stop):
    """Blur the band of images start to stop - 1 of maps (N, H, W) into out.

    taps (radius + 1,); row_runs and col_runs (runs, 2), ascending, start and stop of the
    band rows and columns; reflect_rows (H + 2 radius,) and reflect_cols (W + 2 radius,),
    the pixel at position -radius, ...; line and blurred (W + 2 radius,), scratch.
    """
    cdef Py_ssize_t n_images = maps.shape[0], H = maps.shape[1], W = maps.shape[2]
    cdef Py_ssize_t radius = taps.shape[0] - 1
    cdef Py_ssize_t n, y, k, run, row_run, left, right

    if radius < 0 or H < 1 or W < 1:
        raise ValueError("seam_blur: empty axis")
    if out.shape[0] != n_images or out.shape[1] != H or out.shape[2] != W:
        raise ValueError("seam_blur: maps and out differ in shape")
    if not 0 <= start <= stop <= n_images:
        raise ValueError("seam_blur: images out of range")
    if row_runs.shape[1] != 2 or col_runs.shape[1] != 2:
        raise ValueError("seam_blur: runs must have two columns")
    if reflect_rows.shape[0] != H + 2 * radius or reflect_cols.shape[0] != W + 2 * radius:
        raise ValueError("seam_blur: reflection of another size")
    if line.shape[0] != W + 2 * radius or blurred.shape[0] != W + 2 * radius:
        raise ValueError("seam_blur: scratch of another size")
    # Not O(1), but O(H + W): these are indices into the map.
    for k in range(H + 2 * radius):
        if not 0 <= reflect_rows[k] < H:
            raise ValueError("seam_blur: reflected row out of range")
    for k in range(W + 2 * radius):
        if not 0 <= reflect_cols[k] < W:
            raise ValueError("seam_blur: reflected column out of range")
    check_runs(row_runs, H)
    check_runs(col_runs, W)

    with nogil:
        for n in range(start, stop):
            row_run = 0
            for y in range(H):
                while row_run < row_runs.shape[0] and row_runs[row_run, 1] <= y:
                    row_run += 1
                if row_run < row_runs.shape[0] and row_runs[row_run, 0] <= y:
                    blur_piece(maps, out, taps, reflect_rows, reflect_cols, line, blurred,
                               n, y, 0, W)
                    continue
                memcpy(&out[n, y, 0], &maps[n, y, 0], W * sizeof(floating))
                for run in range(col_runs.shape[0]):
                    left, right = col_runs[run, 0], col_runs[run, 1]
                    blur_piece(maps, out, taps, reflect_rows, reflect_cols, line, blurred,
                               n, y, left, right)


cdef int check_runs(const long long[:, ::1] runs, Py_ssize_t size) except -1:
    cdef Py_ssize_t run
    cdef long long before = 0
    for run in range(runs.shape[0]):
        if not before <= runs[run, 0] < runs[run, 1] <= size:
            raise ValueError("seam_blur: runs out of range or order")
        before = runs[run, 1]
    return 0


cdef int blur_piece(const floating[:, :, ::1] maps, floating[:, :, ::1] out,
                     const floating[::1] taps, const long long[::1] reflect_rows,
                     const long long[::1] reflect_cols, floating[::1] line,
                     floating[::1] blurred, Py_ssize_t n, Py_ssize_t y,
                     Py_ssize_t left, Py_ssize_t right) except -1 nogil:
    """Columns left to right - 1 of row y, both passes."""
    cdef Py_ssize_t radius = taps.shape[0] - 1, W = maps.shape[2]
    cdef Py_ssize_t width = right - left, k, x
    # line[k] is the column pass at column left - radius + k, for k < width + 2 radius.
    # Inside the map this is one piece of the row; the part outside is mirrored.
    cdef Py_ssize_t inner_left = left - radius if left > radius else 0
    cdef Py_ssize_t inner_right = right + radius if right + radius < W else W
    cdef Py_ssize_t inner = inner_right - inner_left
    cdef Py_ssize_t offset = inner_left - (left - radius)
    cdef const floating* a0
    cdef const floating* b0

    # Down the columns.
    scale(&maps[n, y, inner_left], taps[0], &line[offset], inner)
    k = 1
    while k + 3 <= radius:
        add4(&maps[n, reflect_rows[radius + y - k], inner_left],
             &maps[n, reflect_rows[radius + y + k], inner_left],
             &maps[n, reflect_rows[radius + y - k - 1], inner_left],
             &maps[n, reflect_rows[radius + y + k + 1], inner_left],
             &maps[n, reflect_rows[radius + y - k - 2], inner_left],
             &maps[n, reflect_rows[radius + y + k + 2], inner_left],
             &maps[n, reflect_rows[radius + y - k - 3], inner_left],
             &maps[n, reflect_rows[radius + y + k + 3], inner_left],
             taps[k], taps[k + 1], taps[k + 2], taps[k + 3], &line[offset], inner)
        k += 4
    while k <= radius:
        add1(&maps[n, reflect_rows[radius + y - k], inner_left],
             &maps[n, reflect_rows[radius + y + k], inner_left],
             taps[k], &line[offset], inner)
        k += 1

    # The mirrored halo: the column pass of the mirrored pixel, which can lie outside the piece
    # if the map is narrow or the band touches the edge.
    for x in range(left - radius, inner_left):
        column(maps, taps, reflect_rows, n, y, reflect_cols[radius + x],
               line, x - (left - radius))
    for x in range(inner_right, right + radius):
        column(maps, taps, reflect_rows, n, y, reflect_cols[radius + x],
               line, x - (left - radius))

    # Along the row.
    scale(&line[radius], taps[0], &blurred[0], width)
    k = 1
    while k + 3 <= radius:
        add4(&line[radius - k], &line[radius + k], &line[radius - k - 1], &line[radius + k + 1],
             &line[radius - k - 2], &line[radius + k + 2],
             &line[radius - k - 3], &line[radius + k + 3],
             taps[k], taps[k + 1], taps[k + 2], taps[k + 3], &blurred[0], width)
        k += 4
    while k <= radius:
        add1(&line[radius - k], &line[radius + k], taps[k], &blurred[0], width)
        k += 1
    memcpy(&out[n, y, left], &blurred[0], width * sizeof(floating))
    return 0


cdef int column(const floating[:, :, ::1] maps, const floating[::1] taps,
                const long long[::1] reflect_rows, Py_ssize_t n, Py_ssize_t y, Py_ssize_t x,
                floating[::1] line, Py_ssize_t at) except -1 nogil:
    """The column pass at one pixel, into line[at]."""
    cdef Py_ssize_t radius = taps.shape[0] - 1, k
    cdef floating total = taps[0] * maps[n, y, x]
    for k in range(1, radius + 1):
        total = total + taps[k] * (maps[n, reflect_rows[radius + y - k], x]
                                   + maps[n, reflect_rows[radius + y + k], x])
    line[at] = total
    return 0


cdef void scale(const floating* a, floating weight, floating* out,
                Py_ssize_t length) noexcept nogil:
    cdef Py_ssize_t x
    for x in range(length):
        out[x] = weight * a[x]


cdef void add1(const floating* a, const floating* b, floating weight, floating* out,
               Py_ssize_t length) noexcept nogil:
    cdef Py_ssize_t x
    for x in range(length):
        out[x] = out[x] + weight * (a[x] + b[x])


cdef void add4(const floating* a0, const floating* b0, const floating* a1, const floating* b1,
               const floating* a2, const floating* b2, const floating* a3, const floating* b3,
               floating w0, floating w1, floating w2, floating w3, floating* out,
               Py_ssize_t length) noexcept nogil:
    cdef Py_ssize_t x
    for x in range(length):
        out[x] = (((out[x] + w0 * (a0[x] + b0[x])) + w1 * (a1[x] + b1[x]))
                  + w2 * (a2[x] + b2[x])) + w3 * (a3[x] + b3[x])
