# Regions and exact ranks: the parts of AUPRO and pixel AUROC that touch every pixel. Their
# specification is the NumPy twin in tiled_ref/metrics.py.
#
# Nothing here adds floating-point numbers. Scores are only compared; what is counted are
# pixels, and what is added are integers. So the result depends neither on the number of
# threads nor on the order of images.
#
# The order of scores is the order of their keys: the bits of the float as an unsigned
# integer, the sign bit flipped for positive numbers and all bits for negative ones. Adding
# 0.0 first makes -0.0 and 0.0 one score. NaN never gets here.

from libc.string cimport memcpy

ctypedef fused floating:
    float
    double

ctypedef unsigned char mask_t
ctypedef unsigned long long key_t

cdef enum:
    PIECE = 64  # pixels looked at together
    MARK_BIT = 31  # of a table's counts
    UNUSED = 16  # places of a table for pixels that do not count

cdef unsigned int MARK = <unsigned int> 1 << MARK_BIT

ctypedef fused count_t:
    unsigned int
    long long


cdef inline key_t key_of(floating score) noexcept nogil:
    """Unsigned integer with the order of the scores."""
    cdef floating value = score + <floating> 0.0
    cdef unsigned int bits
    cdef key_t long_bits
    if floating is float:
        memcpy(&bits, &value, 4)
        return bits ^ ((<unsigned int> 0 - (bits >> 31)) | <unsigned int> 0x80000000)
    else:
        memcpy(&long_bits, &value, 8)
        return long_bits ^ ((<key_t> 0 - (long_bits >> 63)) | (<key_t> 1 << 63))


# Regions -------------------------------------------------------------------------------
#
# A run is a maximal stretch of anomalous pixels in one row: its first pixel and one past its
# last, counted through the whole mask row by row. Runs are numbered in row-major order. Runs
# of neighbouring rows that touch, corners included, belong together.

def count_runs(const mask_t[:, ::1] mask):
    """(runs, anomalous pixels) of a mask (H, W)."""
    cdef Py_ssize_t y, x, k, end, width = mask.shape[1], runs = 0, pixels = 0
    cdef unsigned char n_first, n_pixels
    with nogil:
        for y in range(mask.shape[0]):
            x = skip_zeros(mask, y, 0)
            while x < width:
                # Few enough to be counted in a byte, so that many are counted at once.
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
    """The first run of the region, as far as is known; halves the path on the way."""
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
                # Runs above that touch: start <= my stop and stop >= my start, a row lower.
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
        # Roots precede the other runs of their region, so that a parent is labelled already.
        for run in range(<int> n_runs):
            if labels[run] == run:
                regions += 1
                labels[run] = regions
            else:
                labels[run] = labels[labels[run]]
    return regions


cdef int check_runs(const int[:, ::1] runs, const int[::1] labels, Py_ssize_t n_pixels,
                    int most) except -1:
    """Runs inside the mask, labels in 1..most."""
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


def measure(const int[:, ::1] runs, const int[::1] labels, int[::1] areas):
    """areas[label - 1] += pixels of the region with this label."""
    cdef Py_ssize_t run
    if areas.shape[0] > 0x7fffffff:
        raise ValueError("measure: too many areas")
    check_runs(runs, labels, 0x7fffffff, <int> areas.shape[0])
    with nogil:
        for run in range(labels.shape[0]):
            areas[labels[run] - 1] += runs[run, 1] - runs[run, 0]


# Scores --------------------------------------------------------------------------------

def gather(const floating[::1] scores, const int[:, ::1] runs, const int[::1] labels,
           int first, floating low, floating high, floating[::1] values, int[::1] regions):
    """Scores in low..high in runs, and the number first + label - 1 of their region.

    values may be empty where the scores themselves are not wanted. Returns how many; -1
    where a score in a run is NaN.
    """
    cdef Py_ssize_t run, k, n = 0
    cdef bint keep = values.shape[0] > 0
    cdef floating score
    cdef int nan = 0
    check_runs(runs, labels, scores.shape[0], 0x7fffffff)
    if keep and values.shape[0] != regions.shape[0]:
        raise ValueError("gather: values and regions differ in length")
    with nogil:
        for run in range(labels.shape[0]):
            for k in range(runs[run, 0], runs[run, 1]):
                score = scores[k]
                nan |= score != score
                if score >= low and score <= high:
                    if n == regions.shape[0]:
                        raise ValueError("gather: no room")
                    if keep:
                        values[n] = score
                    regions[n] = first + labels[run] - 1
                    n += 1
    return -1 if nan else n


def histogram(const floating[::1] scores, const mask_t[::1] mask, floating low,
              floating high, int shift, long long[::1] counts):
    """Count keys of anomalous scores in low..high: counts[(key - key of low) >> shift] += 1.

    counts must reach up to high.
    """
    cdef Py_ssize_t k
    cdef floating score
    cdef key_t first = key_of(low)
    if scores.shape[0] != mask.shape[0]:
        raise ValueError("histogram: scores and mask differ in shape")
    if not 0 <= shift < 64 or not low <= high:
        raise ValueError("histogram: bad range")
    if (key_of(high) - first) >> shift >= <key_t> counts.shape[0]:
        raise ValueError("histogram: counts too short")
    with nogil:
        for k in range(scores.shape[0]):
            score = scores[k]
            if mask[k] and score >= low and score <= high:
                counts[<Py_ssize_t> ((key_of(score) - first) >> shift)] += 1


# Ranks ---------------------------------------------------------------------------------

def sort_pass(const floating[::1] values, const int[::1] regions, int shift,
              floating[::1] values_out, int[::1] regions_out, Py_ssize_t[::1] place):
    """One pass of a radix sort: order by len(place) key values from bit `shift` up, stably.

    place is scratch, its length a power of two. Returns False, and writes nothing, where
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


def count_distinct(const floating[::1] values):
    """How many different scores there are in ascending values."""
    cdef Py_ssize_t k, n = values.shape[0] > 0
    with nogil:
        for k in range(1, values.shape[0]):
            n += values[k] != values[k - 1]
    return n


def make_distinct(floating[::1] values, int[::1] stops):
    """Keep one of equal scores of ascending values, in place, at the front.

    stops (distinct,) receives one past the last place that each score had.
    """
    cdef Py_ssize_t k, n = -1
    with nogil:
        for k in range(values.shape[0]):
            if k == 0 or values[k] != values[k - 1 if n < 0 else n]:
                n += 1
                if n == stops.shape[0]:
                    raise ValueError("make_distinct: no room")
                values[n] = values[k]
            stops[n] = <int> (k + 1)


# A table counts scores in buckets: bucket b is for the keys whose difference from that of
# `start`, shifted right by `shift`, is b. Its last bucket is for all scores outside; it is
# followed by UNUSED places that are not read, several of them, so that the processor need
# not wait for one count to be written before it writes the next.

def mark(const floating[::1] values, floating start, int shift, unsigned int[::1] table):
    """Mark the buckets in which one of the ascending values is not alone.

    These are, unless shift is 0, all that hold a value; and the one for what is outside.
    """
    cdef Py_ssize_t k, last = table.shape[0] - UNUSED - 1
    cdef key_t first = key_of(start)
    check_table(table, start, shift)
    with nogil:
        table[last] |= MARK
        if shift:
            for k in range(values.shape[0]):
                table[bucket_of(values[k], start, first, shift, last)] |= MARK


cdef int check_table(const unsigned int[::1] table, floating start, int shift) except -1:
    """A table with a last bucket, whose buckets do not reach beyond the keys there are."""
    cdef key_t most = (<key_t> 0 - 1) >> (64 - 8 * sizeof(floating))
    if not UNUSED < table.shape[0] <= 0x7fffffff:
        raise ValueError("aupro: table too short or long")
    if not 0 <= shift < 8 * <int> sizeof(floating):
        raise ValueError("aupro: bad shift")
    if <key_t> (table.shape[0] - UNUSED - 1) > (most - key_of(start)) >> shift:
        raise ValueError("aupro: table beyond the scores")
    return 0


cdef inline Py_ssize_t bucket_of(floating score, floating start, key_t first, int shift,
                                 Py_ssize_t last) noexcept nogil:
    cdef key_t bucket = (key_of(score) - first) >> shift
    return last if score < start or bucket > <key_t> last else <Py_ssize_t> bucket


cdef inline void find_buckets(const floating* scores, int n, floating low, floating high,
                              floating start, int shift, int last, int* buckets) noexcept nogil:
    """Buckets of n scores, as `bucket_of`; of those outside low..high some place unused.

    In vectors, hence without a branch and with signed integers, which they can compare: the
    difference from the key of start, less half the range of the keys. A score below start
    then becomes larger than every other, and all beyond the table are cut to its last bucket.
    """
    cdef int k
    cdef floating value
    cdef int bits, beyond, inside, bias, most, half = <int> (<unsigned int> 1 << 31)
    cdef long long long_bits, long_beyond, long_bias, long_most
    cdef long long long_half = <long long> (<key_t> 1 << 63)
    value = start + <floating> 0.0
    if floating is float:
        memcpy(&bits, &value, 4)
        bits ^= (bits >> 31) & ~half
        bias = <int> (<unsigned int> bits + <unsigned int> half)
        most = <int> ((<unsigned int> last << shift) + <unsigned int> half)
        for k in range(n):
            value = scores[k] + <floating> 0.0
            memcpy(&bits, &value, 4)
            bits ^= (bits >> 31) & ~half
            bits = <int> (<unsigned int> bits - <unsigned int> bias)
            beyond = -<int> (bits > most)
            bits = (most & beyond) | (bits & ~beyond)
            bits = <int> ((<unsigned int> bits - <unsigned int> half) >> shift)
            inside = -<int> (scores[k] >= low) & -<int> (scores[k] <= high)
            buckets[k] = (bits & inside) | ((last + 1 + (k & (UNUSED - 1))) & ~inside)
    else:
        memcpy(&long_bits, &value, 8)
        long_bits ^= (long_bits >> 63) & ~long_half
        long_bias = <long long> (<key_t> long_bits + <key_t> long_half)
        long_most = <long long> ((<key_t> last << shift) + <key_t> long_half)
        for k in range(n):
            value = scores[k] + <floating> 0.0
            memcpy(&long_bits, &value, 8)
            long_bits ^= (long_bits >> 63) & ~long_half
            long_bits = <long long> (<key_t> long_bits - <key_t> long_bias)
            long_beyond = -<long long> (long_bits > long_most)
            long_bits = (long_most & long_beyond) | (long_bits & ~long_beyond)
            bits = <int> ((<key_t> long_bits - <key_t> long_half) >> shift)
            inside = -<int> (scores[k] >= low) & -<int> (scores[k] <= high)
            buckets[k] = (bits & inside) | ((last + 1 + (k & (UNUSED - 1))) & ~inside)


def place(const floating[::1] scores, floating low, floating high, floating start, int shift,
          unsigned int[::1] table, floating[::1] aside, Py_ssize_t n):
    """Count the scores in low..high of a map in the table.

    Those in marked buckets are also appended to aside[:n], which must have room for the
    whole map. Returns the new n; -1 where a score is NaN, with counts in the table that
    mean nothing.
    """
    cdef Py_ssize_t begin = 0, n_pixels = scores.shape[0], k
    cdef int length
    cdef int last = <int> (table.shape[0] - UNUSED - 1), any_high, nan = 0, any_last
    cdef int buckets[PIECE]
    cdef unsigned int count
    check_table(table, start, shift)
    if n < 0 or n_pixels > aside.shape[0] - n:
        raise ValueError("place: no room")
    with nogil:
        while begin < n_pixels:
            length = PIECE if begin + PIECE <= n_pixels else <int> (n_pixels - begin)
            # Most pieces lie below what matters: one comparison a pixel, made in vectors.
            # A NaN is not below.
            any_high = 0
            for k in range(begin, begin + length):
                any_high |= not scores[k] < low
            if not any_high:
                begin += length
                continue
            for k in range(begin, begin + length):
                nan |= scores[k] != scores[k]
            if length == PIECE:  # the usual case, compiled for this number
                find_buckets(&scores[begin], PIECE, low, high, start, shift, last, buckets)
            else:
                find_buckets(&scores[begin], length, low, high, start, shift, last, buckets)
            if shift:
                # Without a branch: write every score, step on where it is marked.
                for k in range(length):
                    count = table[buckets[k]]
                    table[buckets[k]] = count + 1
                    aside[n] = scores[begin + k]
                    n += count >> MARK_BIT
            else:
                any_last = 0
                for k in range(length):
                    any_last |= buckets[k] == last
                for k in range(length):
                    table[buckets[k]] += 1
                if any_last:  # seldom, and no other bucket is marked
                    for k in range(length):
                        aside[n] = scores[begin + k]
                        n += buckets[k] == last
            begin += length
    return -1 if nan else n


def count_table(const floating[::1] values, floating start, int shift,
                const unsigned int[::1] table, count_t[::1] counts):
    """Add what the unmarked buckets of the table hold to counts (2 n + 1,), as `tally` does.

    The table was marked for these ascending distinct values (n,).
    """
    cdef Py_ssize_t i, bucket = 0, at, n = values.shape[0], last = table.shape[0] - UNUSED - 1
    cdef key_t first = key_of(start)
    cdef long long total
    check_table(table, start, shift)
    if counts.shape[0] != 2 * n + 1:
        raise ValueError("count_table: counts must have 2 n + 1 places")
    with nogil:
        for i in range(n + 1):
            # Up to the bucket of this value all scores lie between the last value and it.
            at = last
            if i < n:
                at = 0 if values[i] < start else bucket_of(values[i], start, first, shift, last)
            total = 0
            while bucket < at:
                total += unmarked(table[bucket])
                bucket += 1
            counts[2 * i] += <count_t> total
            if i < n and shift == 0 and bucket == at and at < last and values[i] >= start:
                counts[2 * i + 1] += table[bucket]
                bucket += 1


cdef inline unsigned int unmarked(unsigned int count) noexcept nogil:
    """A bucket's count, 0 where it is marked."""
    return count & ((count >> MARK_BIT) - 1)


def tally(const floating[::1] values, const floating[::1] scores, count_t[::1] counts):
    """Where ascending scores stand among ascending distinct values (n,).

    counts (2 n + 1,): [2 i + 1] is added the number of scores equal to value i, [2 i] of
    those between value i - 1 and value i.
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


def climb(const int[::1] regions, const int[::1] stops, const count_t[::1] counts,
          const int[::1] areas, unsigned int[::1] rests, long long unit,
          Py_ssize_t start, Py_ssize_t stop, long long[::1] state, long long[:, ::1] points):
    """Curve points of the values stop - 1 down to start.

    state: normal pixels, covered share and anomalous pixels so far. points (4, stop - start)
    receives for each value the normal pixels above it, those at or above it, the share
    covered at or above it, the anomalous pixels at or above it. A region's pixels are worth
    `unit` together: each unit // area, and one more whenever the remainders, kept in rests
    (regions,), make up a whole area.
    """
    cdef Py_ssize_t i, k, column = 0
    cdef long long above, share, pixels, area, part
    cdef int region
    if not 0 <= start <= stop <= stops.shape[0] or counts.shape[0] != 2 * stops.shape[0] + 1:
        raise ValueError("climb: values out of range")
    if state.shape[0] != 3 or points.shape[0] != 4 or points.shape[1] != stop - start:
        raise ValueError("climb: state or points of another size")
    if areas.shape[0] != rests.shape[0]:
        raise ValueError("climb: areas and rests differ in length")
    above, share, pixels = state[0], state[1], state[2]
    with nogil:
        for i in range(stop - 1, start - 1, -1):
            above += counts[2 * i + 2]
            points[0, column] = above
            above += counts[2 * i + 1]
            points[1, column] = above
            if stops[i] > regions.shape[0] or (i > 0 and stops[i - 1] < 0):
                raise ValueError("climb: stops out of range")
            for k in range(stops[i - 1] if i > 0 else 0, stops[i]):
                region = regions[k]
                if not 0 <= region < areas.shape[0]:
                    raise ValueError("climb: region out of range")
                area = areas[region]
                if area < 1:
                    raise ValueError("climb: region without pixels")
                part = unit // area
                share += part
                rests[region] += <unsigned int> (unit - part * area)
                if rests[region] >= <unsigned int> area:
                    rests[region] -= <unsigned int> area
                    share += 1
                pixels += 1
            points[2, column] = share
            points[3, column] = pixels
            column += 1
    state[0], state[1], state[2] = above, share, pixels
