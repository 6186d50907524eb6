# Untiling with overlap averaging; its twin is TileGrid.untile in tiled_ref/tiling.py. The end of
# the file has untiling with weights; its twin is TileGrid.untile_window.
#
# One pass over the image, row by row. A row of the image is cut where a tile starts or ends;
# inside such a piece the same tiles cover every pixel, so their number is known
# without a count buffer. The covering tiles, in row-major order, are added in pairs, the sums
# in pairs again, then divided once: the bits equal those of the specification. A pixel is
# read once from each tile that covers it and written once.

from libc.string cimport memcpy, memset

ctypedef fused floating:
    float
    double


cdef enum:
    LINE = 128  # pixels at a time on which any number of tiles is averaged
    DEPTH = 24  # allows fewer than 2**24 tiles on one pixel


cdef inline Py_ssize_t smaller(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return a if a < b else b


cdef int check(Py_ssize_t rows, Py_ssize_t cols, Py_ssize_t n_images, Py_ssize_t h, Py_ssize_t w,
               Py_ssize_t H, Py_ssize_t W, Py_ssize_t n_out, Py_ssize_t stride_y,
               Py_ssize_t stride_x, Py_ssize_t start, Py_ssize_t stop) except -1:
    """Reject sizes with which a kernel would access memory out of bounds."""
    if not (rows > 0 and cols > 0 and h > 0 and w > 0 and H > 0 and W > 0):
        raise ValueError("untile: empty axis")
    if not (0 < stride_y <= h and 0 < stride_x <= w):
        raise ValueError("untile: stride not in 1..tile")
    if H > (rows - 1) * stride_y + h or W > (cols - 1) * stride_x + w:
        raise ValueError("untile: the tiles do not cover the image")
    if H <= (rows - 1) * stride_y or W <= (cols - 1) * stride_x:
        raise ValueError("untile: a tile lies outside the image")
    if not (0 <= start <= stop <= n_images and n_out == n_images):
        raise ValueError("untile: images out of range")
    return 0


def untile(const floating[:, :, :, :, ::1] tiles, floating[:, :, ::1] out,
           Py_ssize_t stride_y, Py_ssize_t stride_x, Py_ssize_t start, Py_ssize_t stop):
    """Average tiles (rows, cols, N, h, w) into out (N, H, W), images start to stop - 1.

    The tiles start at multiples of the strides and cover the whole image; the part
    outside, at the bottom and right, is not read.
    """
    cdef Py_ssize_t rows = tiles.shape[0], cols = tiles.shape[1], n_images = tiles.shape[2]
    cdef Py_ssize_t h = tiles.shape[3], w = tiles.shape[4]
    cdef Py_ssize_t H = out.shape[1], W = out.shape[2]
    cdef Py_ssize_t n, y, x, left, right, i_first, i_last, j_first, j_last
    cdef Py_ssize_t u, at, length, n_rows, n_cols

    check(rows, cols, n_images, h, w, H, W, out.shape[0], stride_y, stride_x, start, stop)

    with nogil:
        for n in range(start, stop):
            for y in range(H):
                # Tile rows i with i * stride_y <= y < i * stride_y + h.
                i_first = 0 if y < h else (y - h) // stride_y + 1
                i_last = smaller(y // stride_y, rows - 1)
                n_rows = i_last - i_first + 1
                left = 0
                while left < W:
                    # Tile columns that cover `left`; they stay the same up to `right`.
                    j_first = 0 if left < w else (left - w) // stride_x + 1
                    j_last = smaller(left // stride_x, cols - 1)
                    n_cols = j_last - j_first + 1
                    right = smaller(W, j_first * stride_x + w)
                    if j_last + 1 < cols:
                        right = smaller(right, (j_last + 1) * stride_x)
                    length = right - left
                    u = y - i_first * stride_y
                    x = left - j_first * stride_x
                    if n_rows * n_cols == 1:
                        memcpy(&out[n, y, left], &tiles[i_first, j_first, n, u, x],
                               length * sizeof(floating))
                    elif n_rows == 1 and n_cols == 2:
                        average2(&tiles[i_first, j_first, n, u, x],
                                 &tiles[i_first, j_last, n, u, x - stride_x],
                                 &out[n, y, left], length)
                    elif n_rows == 2 and n_cols == 1:
                        average2(&tiles[i_first, j_first, n, u, x],
                                 &tiles[i_last, j_first, n, u - stride_y, x],
                                 &out[n, y, left], length)
                    elif n_rows == 2 and n_cols == 2:
                        average4(&tiles[i_first, j_first, n, u, x],
                                 &tiles[i_first, j_last, n, u, x - stride_x],
                                 &tiles[i_last, j_first, n, u - stride_y, x],
                                 &tiles[i_last, j_last, n, u - stride_y, x - stride_x],
                                 &out[n, y, left], length)
                    else:
                        at = left
                        while at < right:
                            pairwise(tiles, n, y, at, smaller(LINE, right - at), stride_y,
                                     stride_x, i_first, i_last, j_first, j_last, &out[n, y, at])
                            at += LINE
                    left = right


# The pixel loops. No pair of arguments overlaps. 1/2 and 1/4 are powers of two, so that
# multiplying by them rounds as dividing by 2 and 4 does.

cdef void average2(const floating* a, const floating* b, floating* out,
                   Py_ssize_t length) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(length):
        out[k] = (a[k] + b[k]) * <floating> 0.5


cdef void average4(const floating* a, const floating* b, const floating* c, const floating* d,
                   floating* out, Py_ssize_t length) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(length):
        out[k] = ((a[k] + b[k]) + (c[k] + d[k])) * <floating> 0.25


cdef int pairwise(const floating[:, :, :, :, ::1] tiles, Py_ssize_t n, Py_ssize_t y,
                  Py_ssize_t x, Py_ssize_t length, Py_ssize_t stride_y, Py_ssize_t stride_x,
                  Py_ssize_t i_first, Py_ssize_t i_last, Py_ssize_t j_first, Py_ssize_t j_last,
                  floating* out) except -1 nogil:
    """Average of any number of tiles on up to LINE pixels of row y from column x on."""
    # Like a binary counter: a sum of 2**k tiles meets the next one of 2**k, so that the
    # stack never holds more sums than the number of tiles has bits. The rest at the end is
    # added from the smallest sum up. The pairs are those of rounds over the whole list.
    cdef floating stack[DEPTH][LINE]
    cdef Py_ssize_t depth = 0, met = 0, bits, i, j, k
    cdef floating count = <floating> (i_last - i_first + 1) * <floating> (j_last - j_first + 1)
    for i in range(i_first, i_last + 1):
        for j in range(j_first, j_last + 1):
            if depth == DEPTH:
                raise ValueError("untile: too many tiles on one pixel")
            memcpy(stack[depth], &tiles[i, j, n, y - i * stride_y, x - j * stride_x],
                   length * sizeof(floating))
            depth += 1
            met += 1
            bits = met
            while bits & 1 == 0:
                depth -= 1
                for k in range(length):
                    stack[depth - 1][k] = stack[depth - 1][k] + stack[depth][k]
                bits >>= 1
    while depth > 1:
        depth -= 1
        for k in range(length):
            stack[depth - 1][k] = stack[depth - 1][k] + stack[depth][k]
    for k in range(length):
        out[k] = stack[0][k] / count
    return 0


def untile_window(const floating[:, :, :, :, ::1] tiles, floating[:, :, ::1] out,
                  const floating[:, ::1] weights_y, const floating[:, ::1] weights_x,
                  Py_ssize_t stride_y, Py_ssize_t stride_x, Py_ssize_t start, Py_ssize_t stop):
    """Add tiles (rows, cols, N, h, w), each weighted, into out (N, H, W), images start to stop - 1.

    weights_y (rows, h) and weights_x (cols, w); a pixel's weight is the product of the two. The
    tiles of a pixel are added row-major, which the loops over i and j keep.
    """
    cdef Py_ssize_t rows = tiles.shape[0], cols = tiles.shape[1], n_images = tiles.shape[2]
    cdef Py_ssize_t h = tiles.shape[3], w = tiles.shape[4]
    cdef Py_ssize_t H = out.shape[1], W = out.shape[2]
    cdef Py_ssize_t n, i, j, u, height, width

    check(rows, cols, n_images, h, w, H, W, out.shape[0], stride_y, stride_x, start, stop)
    if weights_y.shape[0] != rows or weights_y.shape[1] != h:
        raise ValueError("untile: weights of another number of rows")
    if weights_x.shape[0] != cols or weights_x.shape[1] != w:
        raise ValueError("untile: weights of another number of columns")

    with nogil:
        for n in range(start, stop):
            memset(&out[n, 0, 0], 0, H * W * sizeof(floating))
            for i in range(rows):
                height = smaller(h, H - i * stride_y)
                for u in range(height):
                    for j in range(cols):
                        width = smaller(w, W - j * stride_x)
                        add_weighted(&tiles[i, j, n, u, 0], weights_y[i, u], &weights_x[j, 0],
                                     &out[n, i * stride_y + u, j * stride_x], width)


cdef void add_weighted(const floating* tile, floating weight, const floating* weights,
                       floating* out, Py_ssize_t length) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(length):
        out[k] = out[k] + (weight * weights[k]) * tile[k]
