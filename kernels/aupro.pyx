# Regions and exact ranks: the parts of AUPRO and pixel AUROC that touch every pixel. Their
# twins are `label_mask` and `rank_pixels` of tiled_ref/metrics/;
# tiled_ref/support/pixel_ranking.py calls these functions.
#
# Nothing here adds floating-point numbers. Scores are only compared, pixels counted, and
# integers added. So the result depends neither on the number of threads nor on the order of
# images.

from libc.string cimport memcpy

ctypedef fused floating:
    float
    double

ctypedef unsigned char mask_t
ctypedef unsigned long long key_t

cdef enum:
    PIECE = 64  # pixels processed together

ctypedef fused count_t:
    unsigned int
    long long


# Regions -------------------------------------------------------------------------------
#
# A run is a maximal stretch of anomalous pixels in one row: its first pixel and one past its
# last, counted through the whole mask row by row. Runs are numbered in row-major order. Runs
# of neighbouring rows that touch, corners included, belong to the same region.

def count_runs(const mask_t[:, ::1] mask):
    """(runs, anomalous pixels) of a mask (H, W)."""
    cdef Py_ssize_t y, x, k, end, width = mask.shape[1], runs = 0, pixels = 0
    cdef unsigned char n_first, n_pixels
    with nogil:
        for y in range(mask.shape[0]):
            x = skip_zeros(mask, y, 0)
            while x < width:
                # Few enough to count in a byte, so that the compiler counts many at once.
                end = x + PIECE if x + PIECE < width else width
                n_pixels = 0
                for k in range(x, end):
                    n_pixels += mask[y, k] != 0
                n_first = x == 0 or mask[y, x - 1] == 0
                n_first &= mask[y, x] != 0
                for k in range(x + 1, end):
                    n_first += (mask[y, k] != 0) & (mask[y, k - 1] == 0)
                pixels += n_pixels
                runs += n_first
                x = skip_zeros(mask, y, end)
    return runs, pixels


cdef inline Py_ssize_t skip_zeros(const mask_t[:, ::1] mask, Py_ssize_t y,
                                  Py_ssize_t x) noexcept nogil:
    """The first anomalous pixel of row y from column x on, or the width."""
    cdef Py_ssize_t width = mask.shape[1]
    cdef unsigned long long eight[8]
    while x + 64 <= width and mask[y, x] == 0:
        memcpy(eight, &mask[y, x], 64)
        if (eight[0] | eight[1] | eight[2] | eight[3]
                | eight[4] | eight[5] | eight[6] | eight[7]):
            break
        x += 64
    while x < width and mask[y, x] == 0:
        x += 1
    return x


cdef int root_of(int[::1] parents, int run) except -1 nogil:
    """The first run of the region known so far; halves the path on the way."""
    while parents[run] != run:
        parents[run] = parents[parents[run]]
        run = parents[run]
    return run


def label_runs(const mask_t[:, ::1] mask, int[:, ::1] runs, int[::1] labels):
    """Find every run of mask (H, W) and label it with its 8-connected region.

    runs (runs, 2) receives the runs; labels (runs,) 1, 2, ..., in the order of the regions'
    first pixels. Returns the number of regions.
    """
    cdef Py_ssize_t y, x, width = mask.shape[1], n_runs = labels.shape[0]
    cdef int run = 0, first_above, first = 0, k, touch, start, a, b, regions = 0, row
    if runs.shape[0] != n_runs or runs.shape[1] != 2:
        raise ValueError("label_runs: runs and labels differ in length")
    if mask.shape[0] * width >= 0x7fffffff:
        raise ValueError("label_runs: too large for 32-bit labels")
    with nogil:
        for y in range(mask.shape[0]):
            first_above, first = first, run
            k, x = first_above, 0
            row = <int> (y * width)
            while True:
                x = skip_zeros(mask, y, x)
                if x == width:
                    break
                if run == n_runs:
                    raise ValueError("label_runs: more runs than labels")
                start = row + <int> x
                while x < width and mask[y, x] != 0:
                    x += 1
                runs[run, 0] = start
                runs[run, 1] = row + <int> x
                b = run
                # Touching runs above: start <= this stop and stop >= this start, one row down.
                while k < first and runs[k, 1] + width < start:
                    k += 1
                touch = k
                while touch < first and runs[touch, 0] + width <= runs[run, 1]:
                    a = root_of(labels, touch)
                    # The smaller root wins, so a root is the first run of its region.
                    if a < b:
                        if b != run:
                            labels[b] = a
                        b = a
                    else:
                        labels[a] = b
                    touch += 1
                labels[run] = b
                run += 1
        if run != n_runs:
            raise ValueError("label_runs: fewer runs than labels")
        # Roots precede the other runs of their region, so a parent is already labelled.
        for run in range(<int> n_runs):
            if labels[run] == run:
                regions += 1
                labels[run] = regions
            else:
                labels[run] = labels[labels[run]]
    return regions


cdef int check_runs(const int[:, ::1] runs, const int[::1] labels, Py_ssize_t n_pixels,
                    int most) except -1:
    """Check that runs lie inside the mask, and labels in 1..most."""
    cdef Py_ssize_t run
    if runs.shape[0] != labels.shape[0] or runs.shape[1] != 2:
        raise ValueError("aupro: runs and labels differ in length")
    for run in range(labels.shape[0]):
        if not 0 <= runs[run, 0] <= runs[run, 1] <= n_pixels:
            raise ValueError("aupro: run out of range")
        if not 1 <= labels[run] <= most:
            raise ValueError("aupro: label out of range")
    return 0


def paint(const int[:, ::1] runs, const int[::1] labels, int offset, int[::1] out):
    """out (H W,): offset + label of every pixel in a run, 0 elsewhere."""
    cdef Py_ssize_t run, k
    check_runs(runs, labels, out.shape[0], 0x7fffffff)
    with nogil:
        for k in range(out.shape[0]):
            out[k] = 0
        for run in range(labels.shape[0]):
            for k in range(runs[run, 0], runs[run, 1]):
                out[k] = offset + labels[run]


# Scores --------------------------------------------------------------------------------

def gather(const floating[::1] scores, const int[:, ::1] runs, const int[::1] labels,
           floating low, int[::1] areas, floating[::1] values, int[::1] regions):
    """Collect the scores in runs that are not below low, and their regions, label - 1.

    NaN is not below. areas[label - 1] receives the pixel count of every region. Returns the
    number of scores.
    """
    cdef Py_ssize_t run, k, n = 0, room = values.shape[0]
    if areas.shape[0] > 0x7fffffff or regions.shape[0] != room:
        raise ValueError("gather: values and regions differ in length")
    check_runs(runs, labels, scores.shape[0], <int> areas.shape[0])
    with nogil:
        for k in range(areas.shape[0]):
            areas[k] = 0
        for run in range(labels.shape[0]):
            areas[labels[run] - 1] += runs[run, 1] - runs[run, 0]
            for k in range(runs[run, 0], runs[run, 1]):
                if not scores[k] < low:
                    if n == room:
                        raise ValueError("gather: no room")
                    values[n] = scores[k]
                    regions[n] = labels[run] - 1
                    n += 1
    return n


def select(const floating[::1] scores, floating low, floating[::1] out, Py_ssize_t n):
    """Append the scores of a map that are not below low, NaN included, to out[:n].

    out must have space for the whole map. Returns the new n.
    """
    cdef Py_ssize_t k
    if n < 0 or scores.shape[0] > out.shape[0] - n:
        raise ValueError("select: no room")
    with nogil:
        for k in range(scores.shape[0]):  # branch-free: write all, advance on a match
            out[n] = scores[k]
            n += not scores[k] < low
    return n


# Ranks ---------------------------------------------------------------------------------
#
# The order of scores is the order of their keys: the bits of the float as an unsigned
# integer, the sign bit flipped for positive numbers and all bits for negative ones. The key of
# -0.0 is just below that of 0.0, so that the two, equal as scores, are adjacent.

cdef inline key_t key_of(floating score) noexcept nogil:
    """Unsigned integer with the order of the scores."""
    cdef unsigned int bits
    cdef key_t long_bits
    if floating is float:
        memcpy(&bits, &score, 4)
        return bits ^ ((<unsigned int> 0 - (bits >> 31)) | <unsigned int> 0x80000000)
    else:
        memcpy(&long_bits, &score, 8)
        return long_bits ^ ((<key_t> 0 - (long_bits >> 63)) | (<key_t> 1 << 63))


def sort_pass(const floating[::1] values, const int[::1] regions, int shift,
              floating[::1] values_out, int[::1] regions_out, Py_ssize_t[::1] place):
    """One pass of a radix sort: order by len(place) key values from bit `shift` up, stably.

    place is scratch, its length a power of two. Returns False, and writes nothing, if
    all scores agree in these bits.
    """
    cdef Py_ssize_t n = values.shape[0], k, digit, at, total = 0
    cdef key_t digits = <key_t> place.shape[0] - 1
    if regions.shape[0] != n or values_out.shape[0] != n or regions_out.shape[0] != n:
        raise ValueError("sort_pass: arrays differ in length")
    if place.shape[0] < 1 or place.shape[0] & (place.shape[0] - 1) or not 0 <= shift < 64:
        raise ValueError("sort_pass: not a power of two")
    if n == 0:
        return False
    with nogil:
        for k in range(place.shape[0]):
            place[k] = 0
        for k in range(n):
            digit = <Py_ssize_t> ((key_of(values[k]) >> shift) & digits)
            place[digit] += 1
        if place[<Py_ssize_t> ((key_of(values[0]) >> shift) & digits)] == n:
            with gil:
                return False
        for k in range(place.shape[0]):
            at = place[k]
            place[k] = total
            total += at
        for k in range(n):
            digit = <Py_ssize_t> ((key_of(values[k]) >> shift) & digits)
            at = place[digit]
            place[digit] = at + 1
            values_out[at] = values[k]
            regions_out[at] = regions[k]
    return True


def tally(const floating[::1] values, const floating[::1] scores, count_t[::1] counts):
    """Count ascending scores between and at ascending values (n,).

    counts (2 n + 1,): adds to [2 i + 1] the number of scores equal to value i, to [2 i] of
    those between value i - 1 and value i. Of equal values the first gets all.
    """
    cdef Py_ssize_t i, k = 0, before, n = values.shape[0], n_scores = scores.shape[0]
    if counts.shape[0] != 2 * n + 1:
        raise ValueError("tally: counts must have 2 n + 1 places")
    with nogil:
        for i in range(n):
            before = k
            while k < n_scores and scores[k] < values[i]:
                k += 1
            counts[2 * i] += <count_t> (k - before)
            before = k
            while k < n_scores and scores[k] == values[i]:
                k += 1
            counts[2 * i + 1] += <count_t> (k - before)
        counts[2 * n] += <count_t> (n_scores - k)


def rank(const floating[::1] values, count_t[::1] counts):
    """Turn the counts of `tally` into ranks, in place.

    The counted scores are those of all pixels, the ascending values (n,) those of the anomalous
    ones among them. counts[2 i] becomes the number of normal pixels above value i, and
    counts[2 i + 1] the number at or above it.
    """
    cdef Py_ssize_t first, last, k, n = values.shape[0]
    cdef count_t above, here, below
    if counts.shape[0] != 2 * n + 1:
        raise ValueError("rank: counts must have 2 n + 1 places")
    with nogil:
        last = n - 1
        above = counts[2 * n]
        while last >= 0:
            first = last
            while first > 0 and values[first - 1] == values[last]:
                first -= 1
            # The counted pixels include one anomalous pixel per equal value.
            here = above + counts[2 * first + 1] - <count_t> (last - first + 1)
            below = counts[2 * first]
            for k in range(first, last + 1):
                counts[2 * k] = above
                counts[2 * k + 1] = here
            above = here + below
            last = first - 1
