# Mahalanobis distances with packed triangular factors; the twin is mahalanobis in
# tiled_ref/models/gaussians.py.
#
# Reading the factors dominates the time, so each stays in the first-level cache for all images,
# as float32. Float16 is converted at once, so the next factor is prefetched while one is in use;
# the processor prefetches rows of float32 by itself. Row by row of the upper triangle,
# y_j += U_ij delta_i for j >= i. Four rows at a time, because the compiler vectorises over the
# columns; every operation is rounded separately.

from libc.math cimport sqrt

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    #if defined(__GNUC__)
    #define FETCH(address) __builtin_prefetch(address)
    #else
    #define FETCH(address) ((void) (address))
    #endif

    /* y_j += a_j d_0, then + b_j d_1, ... for four rows a, b, c, e. */
    #define ADD_ROWS(name) static void name( \
        float *__restrict y, const float *a, const float *b, const float *c, const float *e, \
        const float *d, Py_ssize_t n) { \
        for (Py_ssize_t j = 0; j < n; j++) \
            y[j] = (((y[j] + a[j] * d[0]) + b[j] * d[1]) + c[j] * d[2]) + e[j] * d[3]; }

    ADD_ROWS(add_rows)

    /* float16 to float32, which is exact; branch-free, so that it vectorises. A NaN becomes quiet,
       as on the processor. */
    static void widen(const uint16_t *from, float *to, Py_ssize_t n) {
        for (Py_ssize_t k = 0; k < n; k++) {
            int32_t size = from[k] & 0x7fff, bits = (size << 13) + (112 << 23), small;
            int32_t tiny = -(size < 0x0400), sign = (int32_t) ((uint32_t) from[k] >> 15 << 31);
            float below_normal = (float) size * 5.9604644775390625e-8f;  /* 2^-24 */
            memcpy(&small, &below_normal, 4);
            bits += -(size >= 0x7c00) & (112 << 23);
            bits |= -(size > 0x7c00) & (1 << 22);
            bits = (small & tiny) | (bits & ~tiny) | sign;
            memcpy(to + k, &bits, 4);
        }
    }

    /* The same bits with wider vectors. Older compilers cannot test for F16C. */
    #if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 18 : __GNUC__ >= 11)
    #include <immintrin.h>
    __attribute__((target("avx"))) ADD_ROWS(add_rows_avx)

    __attribute__((target("avx,f16c")))
    static void widen_avx(const uint16_t *from, float *to, Py_ssize_t n) {
        Py_ssize_t k = 0;
        for (; k + 8 <= n; k += 8)
            _mm256_storeu_ps(to + k, _mm256_cvtph_ps(_mm_loadu_si128((__m128i *) (from + k))));
        widen(from + k, to + k, n - k);
    }
    #define HAS_F16C __builtin_cpu_supports("f16c")  /* implies AVX */
    #else
    #define add_rows_avx add_rows
    #define widen_avx widen
    #define HAS_F16C 0
    #endif
    """
    void FETCH(const void *address) nogil
    void add_rows(
        float *y, const float *a, const float *b, const float *c, const float *e, const float *d,
        Py_ssize_t n,
    ) noexcept nogil
    void add_rows_avx(
        float *y, const float *a, const float *b, const float *c, const float *e, const float *d,
        Py_ssize_t n,
    ) noexcept nogil
    void widen(const unsigned short *halves, float *to, Py_ssize_t n) noexcept nogil
    void widen_avx(const unsigned short *halves, float *to, Py_ssize_t n) noexcept nogil
    int HAS_F16C

cdef enum:
    LANES = 8
    ROWS = 4


def to_float32(const unsigned short[::1] halves, float[::1] out, bint portably):
    """out[k] = the float16 whose bits are halves[k]; both (n,); portably as in mahalanobis."""
    if out.shape[0] != halves.shape[0] or out.shape[0] < 1:
        raise ValueError("to_float32: out of another size")
    (widen if portably or not HAS_F16C else widen_avx)(&halves[0], &out[0], out.shape[0])


def mahalanobis(
    const float[:, :, ::1] x,
    const float[:, ::1] mean,
    const unsigned char[:, ::1] factors,
    float[:, ::1] out,
    float[::1] delta,
    float[::1] y,
    float[::1] wide,
    Py_ssize_t start,
    Py_ssize_t stop,
    bint portably=False,
):
    """out[b, p] = distance of x[b, p] from the Gaussian of position p, start <= p < stop.

    x (B, P, D); mean (P, D); factors (P, n), the bytes of D (D + 1) / 2 numbers, float32 or
    float16, depending on n; out (B, P); delta, y (D,) and wide (D (D + 1) / 2,), scratch;
    portably, run as on a processor without F16C.
    """
    cdef Py_ssize_t n_images = x.shape[0], n = x.shape[1], dims = x.shape[2]
    cdef Py_ssize_t b, p, i, j, r, c, size = dims * (dims + 1) // 2
    cdef Py_ssize_t itemsize = 2 if factors.shape[1] == 2 * size else 4
    cdef const float *factor
    cdef const float *row[ROWS + 1]
    cdef const unsigned char *ahead
    cdef float head[ROWS]
    cdef double lane[LANES]
    cdef bint plain = portably or not HAS_F16C

    if dims < 1:
        raise ValueError("mahalanobis: vectors without entries")
    if mean.shape[0] != n or mean.shape[1] != dims:
        raise ValueError("mahalanobis: x and mean differ in shape")
    if factors.shape[0] != n or factors.shape[1] != itemsize * size:
        raise ValueError("mahalanobis: the factors have another size")
    if out.shape[0] != n_images or out.shape[1] != n:
        raise ValueError("mahalanobis: x and out differ in shape")
    if delta.shape[0] != dims or y.shape[0] != dims or wide.shape[0] != size:
        raise ValueError("mahalanobis: scratch of another size")
    if not 0 <= start <= stop <= n:
        raise ValueError("mahalanobis: positions out of range")

    with nogil:
        for p in range(start, stop):
            factor = <const float *>&factors[p, 0]
            if itemsize == 2:
                (widen if plain else widen_avx)(<const unsigned short *>factor, &wide[0], size)
                factor = &wide[0]
            for b in range(n_images):
                for j in range(LANES):
                    lane[j] = 0.0
                for j in range(dims):
                    delta[j] = x[b, p, j] - mean[p, j]
                    y[j] = 0.0
                i = 0
                row[0] = factor
                # Invariant: row[0] points at entry (i, i), and y has the terms of rows 0..i-1.
                while i + ROWS <= dims:
                    if itemsize == 2 and b == 0 and p + 1 < n:
                        ahead = &factors[p + 1, 0] + 2 * (row[0] - factor)
                        for j in range(0, 2 * ROWS * (dims - i), 64):  # bytes of a cache line
                            FETCH(ahead + j)
                    for c in range(ROWS):
                        head[c] = y[i + c]
                    for r in range(ROWS):
                        for c in range(r, ROWS):
                            head[c] += row[r][c - r] * delta[i + r]
                        lane[(i + r) % LANES] += <double>head[r] * <double>head[r]
                        row[r + 1] = row[r] + (dims - i - r)
                        row[r] += ROWS - r
                    i += ROWS
                    (add_rows if plain else add_rows_avx)(
                        &y[0] + i, row[0], row[1], row[2], row[3], &delta[0] + i - ROWS, dims - i
                    )
                    row[0] = row[ROWS]
                for r in range(i, dims):
                    for j in range(r, dims):
                        y[j] += row[0][j - r] * delta[r]
                    lane[r % LANES] += <double>y[r] * <double>y[r]
                    row[0] += dims - r
                out[b, p] = <float>sqrt(
                    ((lane[0] + lane[1]) + (lane[2] + lane[3]))
                    + ((lane[4] + lane[5]) + (lane[6] + lane[7]))
                )
