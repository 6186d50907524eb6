# Untiling with overlap averaging; its specification is TileGrid.untile (tiled_ref/tiling.py).
#
# One pass over the image, row by row. A row of the image is cut where a tile starts or ends;
# inside such a piece every pixel is covered by the same tiles, so their number is known
# without a count buffer. The tiles are added in row-major order, then comes one division:
# the bits are those of the specification. A pixel is read once from each tile that covers it
# and written once; only a piece covered more than four times is revisited, in the cache.

from libc.string cimport memcpy

ctypedef fused floating:
    float
    double


cdef inline Py_ssize_t smaller(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return a if a < b else b


def untile(const floating[:, :, :, :, ::1] tiles, floating[:, :, ::1] out,
           Py_ssize_t stride_y, Py_ssize_t stride_x, Py_ssize_t start, Py_ssize_t stop):
    """Average tiles (rows, cols, N, h, w) into out (N, H, W), images start to stop - 1.

    The tiles start at multiples of the strides and cover the whole image; what sticks out
    at the bottom and right is not read.
    """
    cdef Py_ssize_t rows = tiles.shape[0], cols = tiles.shape[1], n_images = tiles.shape[2]
    cdef Py_ssize_t h = tiles.shape[3], w = tiles.shape[4]
    cdef Py_ssize_t H = out.shape[1], W = out.shape[2]
    cdef Py_ssize_t n, y, x, left, right, i, j, i_first, i_last, j_first, j_last
    cdef Py_ssize_t u, length, n_rows, n_cols
    cdef floating count

    if not (rows > 0 and cols > 0 and h > 0 and w > 0 and H > 0 and W > 0):
        raise ValueError("untile: empty axis")
    if not (0 < stride_y <= h and 0 < stride_x <= w):
        raise ValueError("untile: stride not in 1..tile")
    if H > (rows - 1) * stride_y + h or W > (cols - 1) * stride_x + w:
        raise ValueError("untile: the tiles do not cover the image")
    if H <= (rows - 1) * stride_y or W <= (cols - 1) * stride_x:
        raise ValueError("untile: a tile lies outside the image")
    if not (0 <= start <= stop <= n_images and out.shape[0] == n_images):
        raise ValueError("untile: images out of range")

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
                    count = <floating> n_rows * <floating> n_cols
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
                        for i in range(i_first, i_last + 1):
                            for j in range(j_first, j_last + 1):
                                u = y - i * stride_y
                                x = left - j * stride_x
                                if i == i_first and j == j_first:
                                    memcpy(&out[n, y, left], &tiles[i, j, n, u, x],
                                           length * sizeof(floating))
                                else:
                                    add(&tiles[i, j, n, u, x], &out[n, y, left], length)
                        divide(&out[n, y, left], count, length)
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
        out[k] = (((a[k] + b[k]) + c[k]) + d[k]) * <floating> 0.25


cdef void add(const floating* a, floating* out, Py_ssize_t length) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(length):
        out[k] = out[k] + a[k]


cdef void divide(floating* out, floating count, Py_ssize_t length) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(length):
        out[k] = out[k] / count
