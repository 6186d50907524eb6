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
# A run is a maximal stretch of anomalous pixels in one row; runs are numbered in row-major
# order. Runs of neighbouring rows that touch, corners included, belong together.

def count_runs(const mask_t[:, ::1] mask):
    """(runs, anomalous pixels) of a mask (H, W)."""
    cdef Py_ssize_t y, x, width = mask.shape[1], runs = 0, pixels = 0
    cdef bint before, now
    with nogil:
        for y in range(mask.shape[0]):
            x = 0
            before = False
            while x < width:
                if not before:
                    x = skip_zeros(mask, y, x)
                    if x == width:
                        break
                now = mask[y, x] != 0
                runs += now and not before
                pixels += now
                before = now
                x += 1
    return runs, pixels


cdef inline Py_ssize_t skip_zeros(const mask_t[:, ::1] mask, Py_ssize_t y,
                                  Py_ssize_t x) noexcept nogil:
    """The first anomalous pixel of row y from column x on, or the width."""
    cdef Py_ssize_t width = mask.shape[1]
    cdef unsigned long long eight[4]
    while x + 32 <= width:
        memcpy(eight, &mask[y, x], 32)
        if eight[0] | eight[1] | eight[2] | eight[3]:
            break
        x += 32
    while x < width and mask[y, x] == 0:
        x += 1
    return x


cdef int root_of(int[::1] parents, int run) except -1 nogil:
    """The first run of the region, as far as is known; halves the path on the way."""
    while parents[run] != run:
        parents[run] = parents[parents[run]]
        run = parents[run]
    return run


def label_runs(const mask_t[:, ::1] mask, int[::1] labels, int[:, ::1] ends):
    """Label every run of mask (H, W) with its 8-connected region.

    labels (runs,) receives 1, 2, ..., in the order of the regions' first pixels. ends is
    scratch, (4, W // 2 + 1). Returns the number of regions.
    """
    cdef Py_ssize_t y, x, width = mask.shape[1], n_runs = labels.shape[0]
    cdef Py_ssize_t before = 0, now, k, touch  # runs of the row above, of this row
    cdef int run = 0, first_before, first = 0, a, b, regions = 0
    cdef int above = 0, here = 2  # rows of ends: starts, then stops
    if ends.shape[0] != 4 or ends.shape[1] < width // 2 + 1:
        raise ValueError("label_runs: scratch of another size")
    if n_runs >= 0x7fffffff or width >= 0x7fffffff:
        raise ValueError("label_runs: too large for 32-bit labels")
    with nogil:
        for y in range(mask.shape[0]):
            first_before, first = first, run
            now, k, x = 0, 0, 0
            while True:
                x = skip_zeros(mask, y, x)
                if x == width:
                    break
                if run == n_runs:
                    raise ValueError("label_runs: more runs than labels")
                ends[here, now] = <int> x
                while x < width and mask[y, x] != 0:
                    x += 1
                ends[here + 1, now] = <int> x
                labels[run] = run
                # Runs above that touch: start <= my stop and stop >= my start.
                while k < before and ends[above + 1, k] < ends[here, now]:
                    k += 1
                touch = k
                while touch < before and ends[above, touch] <= ends[here + 1, now]:
                    a = root_of(labels, first_before + <int> touch)
                    b = root_of(labels, run)
                    # The smaller root wins, so a root is the first run of its region.
                    if a < b:
                        labels[b] = a
                    else:
                        labels[a] = b
                    touch += 1
                run += 1
                now += 1
            before = now
            above, here = here, above
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


def paint(const mask_t[:, ::1] mask, const int[::1] labels, int offset, int[:, ::1] out):
    """out (H, W): offset + label of every anomalous pixel, 0 elsewhere."""
    cdef Py_ssize_t y, x, width = mask.shape[1]
    cdef Py_ssize_t run = -1
    if out.shape[0] != mask.shape[0] or out.shape[1] != width:
        raise ValueError("paint: mask and out differ in shape")
    with nogil:
        for y in range(mask.shape[0]):
            for x in range(width):
                if mask[y, x] == 0:
                    out[y, x] = 0
                    continue
                if x == 0 or mask[y, x - 1] == 0:
                    run += 1
                    if run == labels.shape[0]:
                        raise ValueError("paint: more runs than labels")
                out[y, x] = offset + labels[run]


# Scores --------------------------------------------------------------------------------

def has_nan(const floating[::1] scores):
    """Whether any score of a map is NaN."""
    cdef Py_ssize_t k, stop = 0, n = scores.shape[0]
    cdef int found = 0
    with nogil:
        k = 0
        while k < n and not found:
            stop = stop + PIECE if stop + PIECE < n else n
            while k < stop:
                found |= scores[k] != scores[k]
                k += 1
    return found != 0


def histogram(const floating[::1] scores, const mask_t[::1] mask, bint anomalous,
              floating low, floating high, int shift, Py_ssize_t step, long long[::1] counts):
    """Count keys: counts[(key - key of low) >> shift] += 1 for every step-th pixel.

    Pixels of the class asked for, scores in low..high; counts must reach up to high.
    """
    cdef Py_ssize_t k
    cdef floating score
    cdef key_t first = key_of(low)
    if scores.shape[0] != mask.shape[0]:
        raise ValueError("histogram: scores and mask differ in shape")
    if step < 1 or not 0 <= shift < 64 or not low <= high:
        raise ValueError("histogram: bad range")
    if (key_of(high) - first) >> shift >= <key_t> counts.shape[0]:
        raise ValueError("histogram: counts too short")
    with nogil:
        k = 0
        while k < scores.shape[0]:
            score = scores[k]
            if (mask[k] != 0) == anomalous and score >= low and score <= high:
                counts[<Py_ssize_t> ((key_of(score) - first) >> shift)] += 1
            k += step


def measure(const mask_t[:, ::1] mask, const int[::1] labels, int[::1] areas):
    """areas[label - 1] += pixels of the region with this label."""
    cdef Py_ssize_t y, x, width = mask.shape[1], run = -1
    cdef int label = 0
    with nogil:
        for y in range(mask.shape[0]):
            if labels.shape[0] == 0:
                break
            x = skip_zeros(mask, y, 0)
            while x < width:
                run += 1
                label = label_of(run, labels, areas.shape[0])
                while x < width and mask[y, x] != 0:
                    areas[label - 1] += 1
                    x += 1
                x = skip_zeros(mask, y, x)


def gather(const floating[:, ::1] scores, const mask_t[:, ::1] mask, const int[::1] labels,
           int first, floating low, floating high, floating[::1] values, int[::1] regions):
    """Scores in low..high of anomalous pixels, and the number first + label - 1 of their region.

    values may be empty where the scores themselves are not wanted. Returns how many.
    """
    cdef Py_ssize_t y, x, width = mask.shape[1], run = -1, n = 0
    cdef bint keep = values.shape[0] > 0
    cdef floating score
    cdef int label = 0
    check_pair(scores, mask)
    if keep and values.shape[0] != regions.shape[0]:
        raise ValueError("gather: values and regions differ in length")
    with nogil:
        for y in range(mask.shape[0]):
            if labels.shape[0] == 0:
                break
            x = skip_zeros(mask, y, 0)
            while x < width:
                run += 1
                label = label_of(run, labels, 0x7fffffff)
                while x < width and mask[y, x] != 0:
                    score = scores[y, x]
                    if score >= low and score <= high:
                        if n == regions.shape[0]:
                            raise ValueError("gather: no room")
                        if keep:
                            values[n] = score
                        regions[n] = first + label - 1
                        n += 1
                    x += 1
                x = skip_zeros(mask, y, x)
    return n


cdef int label_of(Py_ssize_t run, const int[::1] labels, Py_ssize_t most) except -1 nogil:
    """labels[run], checked to be in 1..most."""
    if run >= labels.shape[0]:
        raise ValueError("aupro: more runs than labels")
    if not 1 <= labels[run] <= most:
        raise ValueError("aupro: label out of range")
    return labels[run]


cdef int check_pair(const floating[:, ::1] scores, const mask_t[:, ::1] mask) except -1:
    if scores.shape[0] != mask.shape[0] or scores.shape[1] != mask.shape[1]:
        raise ValueError("aupro: scores and mask differ in shape")
    return 0


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


def collect(const floating[::1] scores, const mask_t[::1] mask, floating low, floating high,
            floating[::1] out, Py_ssize_t n):
    """Append the scores in low..high of normal pixels to out[:n]; returns the new n.

    out must have room for all pixels of the map.
    """
    cdef Py_ssize_t start, stop = 0, n_pixels = scores.shape[0], k
    cdef int any_high
    if n_pixels != mask.shape[0]:
        raise ValueError("collect: scores and mask differ in shape")
    if n < 0 or n_pixels > out.shape[0] - n:
        raise ValueError("collect: no room")
    with nogil:
        while stop < n_pixels:
            start = stop
            stop = start + PIECE if start + PIECE < n_pixels else n_pixels
            # Most pieces lie below what matters: one comparison a pixel, made in vectors.
            any_high = 0
            for k in range(start, stop):
                any_high |= scores[k] >= low
            if not any_high:
                continue
            # Without a branch: write every score, step on where it matters.
            for k in range(start, stop):
                out[n] = scores[k]
                n += (scores[k] >= low) & (scores[k] <= high) & (mask[k] == 0)
    return n


def tally(const floating[::1] values, const floating[::1] scores, long long[::1] counts):
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
            counts[2 * i] += k - before
            before = k
            while k < n_scores and scores[k] == values[i]:
                k += 1
            counts[2 * i + 1] += k - before
        counts[2 * n] += n_scores - k


def climb(const int[::1] regions, const int[::1] stops, const long long[::1] counts,
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
