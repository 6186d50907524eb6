"""How good the scores and maps are: image AUROC, pixel AUROC, AUPRO, and their curves.

All of them are areas under a curve that rises while a threshold falls. The threshold passes
the scores of the anomalous pixels, highest first; at each one stands a point

    across   normal pixels with a score at or above it, of all normal pixels (FPR)
    up       ROC: anomalous pixels at or above it, of all anomalous pixels
             PRO: mean over the regions of the part of the region at or above it

and equal scores are one point. Only the ranks of the scores matter, so only integers are
needed: the pixels are counted, every region is worth the same whole number of units, and the
area is an exact fraction that is rounded once, at the very end. The result is therefore the
same bits whatever the order of the images, the number of threads, and whether the set is
given at once or image by image.

Two implementations give these integers: the specification `_points_numpy` (and
`_label_numpy`), and the kernels of `kernels/aupro.pyx`, driven by `_KernelPoints`, which
count the pixels that can matter below the FPR limit and order the anomalous ones only.

Source: P. Bergmann, K. Batzner, M. Fauser, D. Sattlegger, C. Steger, "The MVTec Anomaly
Detection Dataset", IJCV 129 (2021), Sec. 5.3: PRO = 1/R sum_k |P_k and Q_k| / |Q_k| with
regions Q_k (8-connected) and the pixels P_k found in them, against the FPR up to 0.3.
Deviation D3: equal scores are one point of the curve, so that no result exceeds 1.
"""

import math
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from . import _arrays
from .errors import InputError

LABELS = (*_arrays.MASKS, np.dtype(np.int32), np.dtype(np.int64))

# Memory of the kernel path. A slab of scores is ordered at a time; it holds at most so many
# anomalous pixels that this budget is kept.
STREAM_BUDGET = 512 * 2**20  # bytes, for a stream
ARRAY_BUDGET = 1.2  # times the bytes of the scores, for arrays
SMALLEST_SLAB = 2**20  # anomalous pixels; below that a budget is not worth further passes
POINTS_AT_ONCE = 2**16  # curve points made at a time
SPLIT_BITS = 12  # buckets of a histogram that cuts slabs
TABLE_BITS = 21  # buckets in which a thread counts pixels, the most
TABLE_TAIL = 17  # places of a table beyond its buckets, see kernels/aupro.pyx
COUNTED_AT_ONCE = 2**31 - 1  # pixels, so that no bucket's count meets its mark
SORTED_AT_ONCE = 2**20  # pixels that a thread sorts in one go
SAMPLE_STEP = 199  # one of so many pixels tells roughly where the FPR limit lies
RADIX_BITS = 11  # per pass of the sort


class UndefinedMetricError(InputError):
    """A metric was asked for that needs both normal and anomalous examples."""


@dataclass(frozen=True)
class PixelMetrics:
    """What `pixel_metrics` returns, as fractions: aupro and pixel_auroc."""

    aupro: float
    pixel_auroc: float


@dataclass(frozen=True)
class Curve:
    """A curve for plots: fpr and height, float64 (points,), both rising from 0 to 1."""

    fpr: np.ndarray
    height: np.ndarray

    def area(self, fpr_limit=1.0):
        """Area up to fpr_limit, divided by it: trapezoids, linear in between."""
        n = int(np.searchsorted(self.fpr, fpr_limit, "right"))  # a step at the limit is inside
        x, y = self.fpr[:n], self.height[:n]
        if n < self.fpr.size:
            part = (fpr_limit - x[-1]) / (self.fpr[n] - x[-1])
            x = np.append(x, fpr_limit)
            y = np.append(y, y[-1] + part * (self.height[n] - y[-1]))
        return float(np.sum(np.diff(x) * (y[1:] + y[:-1])) / 2 / fpr_limit)


def auroc(scores, labels):
    """Area under the ROC curve of image scores, exact.

    The probability that an anomalous image scores higher than a normal one, ties counting
    one half (Mann-Whitney).

    Parameters: scores (n,) float32 or float64, no NaN; labels (n,) bool or integer, 0 normal,
    anything else anomalous.
    Returns float in [0, 1].
    Raises UndefinedMetricError unless there are normal and anomalous scores; InputError for
    NaN, another shape or dtype.
    Order of arithmetic: pairs are counted in integers, then one division.

    >>> auroc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([0, 0, 1, 1]))
    0.875
    """
    scores = _arrays.host_array("scores", scores, _arrays.FLOATS)
    labels = _arrays.host_array("labels", labels, LABELS)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise InputError(
            f"scores and labels must have one axis of equal length, got shapes {scores.shape} "
            f"and {labels.shape}"
        )
    _arrays.refuse_nan("scores", scores)
    normal, anomalous = np.sort(scores[labels == 0]), scores[labels != 0]
    if not normal.size or not anomalous.size:
        raise UndefinedMetricError(
            "AUROC needs at least one normal and one anomalous score, got "
            f"{normal.size} normal and {anomalous.size} anomalous"
        )
    # Twice the pairs won: normal scores below, and those equal once more for the half.
    below = np.searchsorted(normal, anomalous, "left")
    at_or_below = np.searchsorted(normal, anomalous, "right")
    won = int(below.sum()) + int(at_or_below.sum())
    return won / (2 * normal.size * anomalous.size)


def label_regions(masks, impl="cython", threads=None):
    """Number the regions of a set of masks: 8-connected, never across images.

    Parameters
    ----------
    masks : (N, H, W) bool or uint8, NumPy or CPU torch
        Anomalous where not 0.
    impl : {"cython", "numpy"}
        The kernel or the specification. Equal results.
    threads : int, optional
        Threads over images; see `thread_count`. No influence on the result.

    Returns
    -------
    (N, H, W) int32, kind of masks: 0 for normal pixels, else the region's number. The
    numbers run from 1 to R through the whole set, in the order of the regions' first pixels
    (images first, then rows, then columns), as scipy.ndimage.label counts.

    Raises
    ------
    InputError
        Another shape or dtype, or an image of 2**31 - 1 pixels or more.
    KernelNotBuiltError
        impl="cython" where the kernel is not built.
    """
    _arrays.check_impl(impl)
    threads = _arrays.thread_count(threads)
    array = _mask_array("masks", masks)
    if array.ndim != 3:
        raise InputError(f"masks must be (N, H, W), got shape {array.shape}")
    out = np.empty(array.shape, np.int32)
    if impl == "numpy":
        n = 0
        for mask, labels in zip(array, out):
            labels[:], found = _label_numpy(mask)
            labels[mask != 0] += n
            n += found
        return _arrays.like(out, masks)
    kernel = _arrays.kernel("_aupro")

    def label(mask):
        return _label_runs(kernel, mask)

    results = _arrays.run_threads(label, map(np.ascontiguousarray, array), threads)
    offsets = np.cumsum([0] + [found for runs, labels, found in results])

    def paint(k):
        runs, labels, _ = results[k]
        kernel.paint(runs, labels, offsets[k], out[k].reshape(-1))

    _arrays.run_threads(paint, range(len(array)), threads)
    return _arrays.like(out, masks)


def aupro(maps, masks, fpr_limit=0.3, impl="cython", threads=None):
    """Area under the per-region-overlap curve up to an FPR limit, divided by the limit.

    The rule of the MVTec evaluation, exactly: 8-connected regions, the FPR over all normal
    pixels of the set, equal scores one curve point, start at (0, 0), linear in between.

    Parameters
    ----------
    maps : (N, H, W) float32 or float64, NumPy or CPU torch
        Anomaly maps, higher is more anomalous; infinities are ranked, NaN is refused.
    masks : (N, H, W) bool or uint8
        Ground truth, anomalous where not 0.
    fpr_limit : float
        Fraction, 0 < fpr_limit <= 1.
    impl : {"cython", "numpy"}
        The kernels or the specification. Equal bits.
    threads : int, optional
        Threads over images; see `thread_count`. No influence on the result.

    Returns
    -------
    float in [0, 1].

    Raises
    ------
    UndefinedMetricError
        No anomalous or no normal pixel.
    InputError
        NaN, another shape or dtype, or an image of 2**31 - 1 pixels or more.
    KernelNotBuiltError
        impl="cython" where the kernels are not built.

    Order of arithmetic: integers, then one rounding; see `_unit` for how a region of any
    number of pixels is made a whole number of units (error below 1e-13 for a thousand
    regions or fewer).
    """
    limit = _limit(fpr_limit)
    points = _points(_from_arrays(maps, masks), impl, threads, limit, "AUPRO")
    (area,) = _areas(points, {"pro": limit})
    return area


def pixel_auroc(maps, masks, impl="cython", threads=None):
    """Area under the ROC curve of all pixels of the set, exact, ties counting one half.

    Parameters, Returns, Raises: see `aupro`.
    """
    points = _points(_from_arrays(maps, masks), impl, threads, None, "pixel AUROC")
    (area,) = _areas(points, {"roc": Fraction(1)})
    return area


def pixel_metrics(pairs, fpr_limit=0.3, impl="cython", threads=None):
    """AUPRO and pixel AUROC of a set that is given image by image.

    Parameters
    ----------
    pairs : callable without arguments
        pairs() returns a fresh iterator over (map, mask) of one image each, the same images
        in the same order each time: map (H, W) float32 or float64, mask (H, W) bool or
        uint8, sizes may differ from image to image. It is called twice; more often where
        the anomalous pixels alone exceed the memory budget (25 million with two threads).
        At most `threads` + 1 images are held at a time.
    fpr_limit, impl, threads
        See `aupro`. With impl="numpy" all anomalous pixels are held at once.

    Returns
    -------
    PixelMetrics, bit-identical to `aupro` and `pixel_auroc` on the same images as arrays.

    Raises
    ------
    As `aupro`.
    """
    limit = _limit(fpr_limit)
    points = _points(_from_pairs(pairs), impl, threads, None, "AUPRO")
    return PixelMetrics(*_areas(points, {"pro": limit, "roc": Fraction(1)}))


def pro_curve(maps, masks, max_points=1000, impl="cython", threads=None):
    """The PRO curve up to an FPR of 1, for plots; see `pixel_curves`.

    Parameters, Raises: see `aupro`; max_points as in `pixel_curves`. Returns Curve.
    """
    points = _points(_from_arrays(maps, masks), impl, threads, None, "the PRO curve")
    (curve,) = _thinned(points, ["pro"], max_points)
    return curve


def roc_curve(maps, masks, max_points=1000, impl="cython", threads=None):
    """The ROC curve of all pixels, for plots; see `pixel_curves`.

    Parameters, Raises: see `aupro`; max_points as in `pixel_curves`. Returns Curve.
    """
    points = _points(_from_arrays(maps, masks), impl, threads, None, "the ROC curve")
    (curve,) = _thinned(points, ["roc"], max_points)
    return curve


def pixel_curves(pairs, max_points=1000, impl="cython", threads=None):
    """PRO and ROC curves of a set given image by image, thinned without changing the area.

    Parameters: max_points, at least 16, the most points a curve may have; pairs, impl and
    threads as in `pixel_metrics`.
    Returns (pro, roc), two Curve from (0, 0) to (1, 1). The curve is cut into short pieces;
    of each piece the first and the last point are kept and one point is put between them
    such that the area under the piece stays the same. Their area up to 1 is that of the
    whole curve up to float64 rounding; every kept point lies within 6 / (max_points - 6) of
    the whole curve, across plus up.
    Raises: as `aupro`.
    """
    points = _points(_from_pairs(pairs), impl, threads, None, "the PRO curve")
    return tuple(_thinned(points, ["pro", "roc"], max_points))


# From the caller's arrays to images ------------------------------------------------------


def _limit(fpr_limit):
    """fpr_limit as an exact fraction; InputError unless 0 < fpr_limit <= 1."""
    try:
        limit = float(fpr_limit)
    except (TypeError, ValueError):
        limit = 0.0
    if not 0.0 < limit <= 1.0:
        raise InputError(
            f"fpr_limit must be a fraction above 0 and at most 1, not {fpr_limit!r}"
        )
    return Fraction(limit)


def _mask_array(name, value):
    """A mask or masks as uint8, any strides."""
    return _arrays.host_array(name, value, _arrays.MASKS).view(np.uint8)


@dataclass
class _Images:
    """A set that can be walked through again and again.

    walk() yields (index, map (H, W), mask uint8 (H, W)), checked, C-contiguous.
    budget is the number of bytes that ordering may take. at_hand says that a walk costs
    nothing but looking at the pixels.
    """

    walk: object
    budget: int
    at_hand: bool


def _from_arrays(maps, masks):
    maps = _arrays.host_array("maps", maps, _arrays.FLOATS)
    masks = _mask_array("masks", masks)
    if maps.ndim != 3 or maps.shape != masks.shape:
        raise InputError(
            f"maps and masks must both be (N, H, W), got shapes {maps.shape} and {masks.shape}"
        )

    def walk():
        for k in range(len(maps)):  # a copy of one image at most
            yield k, np.ascontiguousarray(maps[k]), np.ascontiguousarray(masks[k])

    return _Images(walk, min(STREAM_BUDGET, int(ARRAY_BUDGET * maps.nbytes)), True)


def _from_pairs(pairs):
    if not callable(pairs):
        raise InputError(
            "pairs must be a callable that returns a fresh iterator over (map, mask), such as "
            "lambda: zip(maps, masks)"
        )
    seen, walked = [], []  # shapes and dtype of the first walk; whether it has ended

    def walk():
        k = -1
        for k, pair in enumerate(pairs()):
            try:
                image, mask = pair
            except (TypeError, ValueError) as error:
                raise InputError(f"pairs() must give (map, mask) for image {k}") from error
            image = _arrays.host_array(f"the map of image {k}", image, _arrays.FLOATS)
            mask = _mask_array(f"the mask of image {k}", mask)
            if image.ndim != 2 or image.shape != mask.shape:
                raise InputError(
                    f"map and mask of image {k} must both be (H, W), got shapes {image.shape} "
                    f"and {mask.shape}"
                )
            if k == len(seen) and not walked:
                seen.append((image.shape, image.dtype))
                if image.dtype != seen[0][1]:
                    raise InputError(
                        f"the map of image {k} is {image.dtype} and the first one is "
                        f"{seen[0][1]}; give all maps one dtype"
                    )
            elif k >= len(seen) or seen[k] != (image.shape, image.dtype):
                raise _changed(k)
            yield k, np.ascontiguousarray(image), np.ascontiguousarray(mask)
        if k + 1 != len(seen):
            raise _changed(k + 1)
        walked.append(True)

    return _Images(walk, STREAM_BUDGET, False)


def _changed(k):
    return InputError(
        f"pairs() gave other images when it was called again (image {k}); it must return a "
        "fresh iterator over the same images each time"
    )


# Curve points as integers ----------------------------------------------------------------


@dataclass
class _Points:
    """The curve of a set, as integers.

    normals, anomalous, regions: how many of them the set has. unit: what a region is worth.
    chunks: iterator over int64 (4, n), columns in descending order of the threshold, one for
    every different score of an anomalous pixel. Rows: normal pixels above it; normal pixels
    at or above it; units covered at or above it (PRO); anomalous pixels at or above it (ROC).
    """

    normals: int
    anomalous: int
    regions: int
    unit: int
    chunks: object

    def row_and_top(self, kind):
        """Row of a chunk that is the curve's height, and its value at the end."""
        return (2, self.regions * self.unit) if kind == "pro" else (3, self.anomalous)


def _unit(regions):
    """What one region is worth: a power of two.

    So that all regions together stay below 2**61, and never more than 2**52. A region's
    n best of a pixels count for unit * n / a, rounded to the nearest whole unit, so that the
    PRO is wrong by at most 1 / (2 unit): 2**-53 up to 511 regions, 2**-42 for a million.
    """
    return 1 << min(52, 61 - int(regions).bit_length())


def _points(images, impl, threads, limit, what):
    """_Points of a set. With a limit on the FPR the points beyond it may be missing.

    Raises UndefinedMetricError, naming `what`, without anomalous or without normal pixels.
    """
    _arrays.check_impl(impl)
    threads = _arrays.thread_count(threads)
    if impl == "numpy":
        points = _points_numpy(images)
    else:
        points = _KernelPoints(images, threads, limit).points()
    if not points.anomalous or not points.normals:
        kind, remedy = (
            ("anomalous", "the masks are empty") if not points.anomalous
            else ("normal", "the masks cover everything")
        )
        raise UndefinedMetricError(
            f"{what} needs normal and anomalous pixels, and there is no {kind} one: {remedy}"
        )
    return points


def _points_numpy(images):
    """The specification of the points: sort, look up, count."""
    values, regions, areas, n_normal = [], [], [], 0
    n_regions = 0
    for k, image, mask in images.walk():
        _refuse_nan(k, image)
        labels, found = _label_numpy(mask)
        inside = mask != 0
        values.append(image[inside])
        regions.append(labels[inside].astype(np.int64) - 1 + n_regions)
        areas.append(np.bincount(labels[inside], minlength=found + 1)[1:])
        n_regions += found
        n_normal += mask.size - values[-1].size
    if not n_regions or not n_normal:
        return _Points(n_normal, sum(v.size for v in values), n_regions, 1, iter(()))
    values, regions, areas = map(np.concatenate, (values, regions, areas))
    distinct, rank = np.unique(values, return_inverse=True)  # ascending

    # counts[2 i + 1]: normal pixels equal to value i; counts[2 i]: those just below it.
    counts = np.zeros(2 * distinct.size + 1, np.int64)
    for _, image, mask in images.walk():
        normal = np.sort(image[mask == 0])
        below = np.searchsorted(distinct, normal, "left")
        at_or_below = np.searchsorted(distinct, normal, "right")
        counts += np.bincount(below + at_or_below, minlength=counts.size)
    from_here_up = counts[::-1].cumsum()[::-1]

    # The n-th best pixel of a region of a pixels adds share(n) - share(n - 1) units.
    unit = _unit(n_regions)
    order = np.lexsort((-rank, regions))  # region by region, best first
    area = areas[regions[order]]
    first = np.concatenate(([0], np.cumsum(areas)))[regions[order]]
    n = np.arange(1, order.size + 1) - first

    def share(n):
        return unit // area * n + (unit % area * n + area // 2) // area

    units = np.zeros(distinct.size, np.int64)
    np.add.at(units, rank[order], share(n) - share(n - 1))
    chunk = np.stack(
        [
            from_here_up[2::2][::-1],
            from_here_up[1::2][::-1],
            units[::-1].cumsum(),
            np.bincount(rank)[::-1].cumsum(),
        ]
    )
    return _Points(n_normal, values.size, n_regions, unit, iter([chunk]))


def _label_numpy(mask):
    """The specification of the labels of one mask (H, W): int32 (H, W), and their number.

    Two passes over the runs, a run being a stretch of anomalous pixels in one row: join the
    runs that touch (corners included), then number the joined ones in row-major order.
    """
    _check_countable(mask)
    height, width = mask.shape
    padded = np.zeros((height, width + 2), np.int8)
    padded[:, 1:-1] = mask != 0
    change = np.diff(padded, axis=1)
    row, start = np.nonzero(change == 1)
    stop = np.nonzero(change == -1)[1]  # row-major as well, so run k ends there

    parent = list(range(row.size))

    def root(run):
        while parent[run] != run:
            run = parent[run]
        return run

    by_row = np.searchsorted(row, np.arange(height + 1))
    for y in range(1, height):
        above = range(by_row[y - 1], by_row[y])
        here = range(by_row[y], by_row[y + 1])
        for run in here:
            for other in above:
                if start[other] <= stop[run] and stop[other] >= start[run]:
                    a, b = root(other), root(run)
                    parent[max(a, b)] = min(a, b)

    numbers, found = np.zeros(row.size, np.int32), 0
    for run in range(row.size):
        if root(run) == run:
            found += 1
            numbers[run] = found
        else:
            numbers[run] = numbers[root(run)]
    labels = np.zeros((height, width), np.int32)
    for run in range(row.size):
        labels[row[run], start[run] : stop[run]] = numbers[run]
    return labels, found


def _refuse_nan(k, image):
    if np.isnan(np.min(image, initial=np.inf)):
        y, x = np.unravel_index(np.argmax(np.isnan(image)), image.shape)
        raise _arrays.nan_error("maps", [k, int(y), int(x)])


def _check_countable(mask):
    if mask.size >= 2**31 - 1:
        raise InputError(
            f"a mask of {mask.shape[0]} x {mask.shape[1]} px has more pixels than its labels, "
            "of 32 bits, can count; compute the metrics at a smaller image size"
        )


def _label_runs(kernel, mask):
    """Runs of a mask int32 (runs, 2), their labels int32 (runs,), the number of labels."""
    _check_countable(mask)
    n_runs, _ = kernel.count_runs(mask)
    runs, labels = np.empty((n_runs, 2), np.int32), np.empty(n_runs, np.int32)
    return runs, labels, kernel.label_runs(mask, runs, labels) if n_runs else 0


# Curve points from the kernels -----------------------------------------------------------


class _KernelPoints:
    """The points, computed by the kernels in bounded memory.

    1. One walk through the set: regions, their areas, the scores of the anomalous pixels.
    2. These are sorted.
    3. A second walk: all pixels are counted between the sorted scores, see `_Tally`; what is
       left without the anomalous ones are the normal ones.
    4. From the highest score down the counts and the regions' units add up to points.

    With a limit on the FPR a sample of the normal pixels tells below which score the limit
    is certainly passed; what lies below is looked at only if the consumer asks for more
    points, so that a bad guess costs time and nothing else. Where the anomalous pixels
    exceed the memory budget, steps 1 to 4 are repeated for one slab of scores after the
    other, from the top.
    """

    def __init__(self, images, threads, limit):
        self.images, self.threads, self.limit = images, threads, limit
        self.kernel = _arrays.kernel("_aupro")

    def points(self):
        """_Points."""
        self._survey()
        unit = _unit(self.areas.size)
        defined = self.n_anomalous and self.n_normal
        chunks = self._chunks(unit) if defined else iter(())
        return _Points(self.n_normal, self.n_anomalous, self.areas.size, unit, chunks)

    def _survey(self):
        """The first walk; arrays are walked through for the sample before."""
        kernel, lock = self.kernel, threading.Lock()
        samples, kept, kept_low = [], 0, -np.inf
        if self.images.at_hand:
            samples = [_sample(image, mask) for _, image, mask in self.images.walk()]
            self._use_sample(samples)
            kept_low = self.cut

        def visit(item):
            nonlocal kept
            k, image, mask = item
            runs, labels, n_regions = _label_runs(kernel, mask)
            areas = np.zeros(n_regions, np.int32)
            kernel.measure(runs, labels, areas)
            pixels = int(areas.sum(dtype=np.int64))
            low, high = image.dtype.type(kept_low), image.dtype.type(np.inf)
            values = np.empty(pixels if kept <= self._capacity(image.dtype, 0) else 0, image.dtype)
            regions = np.empty(values.size, np.int32)
            if values.size:
                n = kernel.gather(image.reshape(-1), runs, labels, 0, low, high, values, regions)
                if n < 0:
                    _refuse_nan(k, image)
                if n < pixels:
                    values, regions = values[:n].copy(), regions[:n].copy()
                with lock:
                    kept += n
            sample = None if self.images.at_hand else _sample(image, mask)
            return image.dtype, mask.size, areas, pixels, values, regions, sample

        results = _arrays.run_threads(visit, self.images.walk(), self.threads)
        if not self.images.at_hand:
            self._use_sample([result[6] for result in results])
        self.dtype = results[0][0] if results else _arrays.FLOATS[0]
        self.n_pixels = sum(result[1] for result in results)
        self.first_region = np.cumsum([0] + [result[2].size for result in results])
        self.areas = np.concatenate([np.empty(0, np.int32)] + [result[2] for result in results])
        self.n_anomalous = sum(result[3] for result in results)
        self.n_normal = self.n_pixels - self.n_anomalous
        self.capacity = self._capacity(self.dtype, self.areas.size)
        self.kept, self.kept_low = None, self.dtype.type(kept_low)
        if results and kept <= self.capacity:
            for result, first in zip(results, self.first_region.tolist()):
                result[5][:] += first
            self.kept = tuple(np.concatenate([r[part] for r in results]) for part in (4, 5))

    def _capacity(self, dtype, n_regions):
        """Anomalous pixels that a slab may hold."""
        # A score and its region, twice while they are sorted; afterwards, instead of the
        # second, its stop and two counters.
        bytes_each = dtype.itemsize + 4 + max(dtype.itemsize + 4, 4 + 8)
        left = self.images.budget - 8 * n_regions  # areas and rests
        left -= self.threads * (SORTED_AT_ONCE * dtype.itemsize + (4 << TABLE_BITS))
        return max(SMALLEST_SLAB, left // bytes_each)

    def _use_sample(self, samples):
        """Take from normal scores a score below which the FPR is very probably above the
        limit: the cut, -inf for none."""
        self.sample, self.cut = np.zeros(0), -np.inf
        if samples:
            self.sample = np.sort(np.concatenate(samples))
        if self.limit is not None:
            expected = float(self.limit) * self.sample.size
            enough = math.ceil(1.02 * expected + 4 * math.sqrt(expected) + 16)
            if enough <= self.sample.size:
                self.cut = self.sample[-enough]

    def _chunks(self, unit):
        """The points, one slab of scores after the other, from the top."""
        rests = (self.areas // 2).astype(np.uint32)  # rounds a region's units to the nearest
        state = np.zeros(3, np.int64)
        for low, high, n in self._slabs():
            # What a slab holds dies with its generator, before the next slab is gathered.
            yield from self._slab_chunks(low, high, n, unit, rests, state)

    def _slab_chunks(self, low, high, n, unit, rests, state):
        """The points of one slab."""
        distinct, stops, regions = self._anomalous(low, high, n)
        counts = self._count_normals(low, high, distinct, stops)
        for stop in range(stops.size, 0, -POINTS_AT_ONCE):
            start = max(0, stop - POINTS_AT_ONCE)
            points = np.empty((4, stop - start), np.int64)
            self.kernel.climb(
                regions, stops, counts, self.areas, rests, unit, start, stop, state, points
            )
            yield points
        state[0] += int(counts[0])  # below the lowest anomalous score of the slab

    def _slabs(self):
        """(low, high, anomalous pixels or None) of each slab, from the top, without gaps."""
        bottom, cut, top = map(self.dtype.type, (-np.inf, self.cut, np.inf))
        ranges = [(bottom, top)]
        if cut > bottom:
            ranges = [(cut, top), (bottom, np.nextafter(cut, bottom, dtype=self.dtype))]
        for low, high in ranges:
            if self.kept is not None and (low, high) == (self.kept_low, top):
                yield low, high, None
            else:
                yield from self._split(_key(low), _key(high))

    def _split(self, first, last):
        """Keys first..last cut into slabs of at most `capacity` anomalous pixels.

        A single score that more pixels share stays one slab: it needs no order.
        """
        low, high = self._edges(first, last)
        first, last = _key(low), _key(high)
        shift = max(0, (last - first).bit_length() - SPLIT_BITS)

        def key_range(lowest, highest):
            return first + (lowest << shift), min(last, first + ((highest + 1) << shift) - 1)

        def slab(lowest, highest, n):
            low, high = self._edges(*key_range(lowest, highest))
            return [(low, high, n)] if low <= high else []

        counts = self._histogram(low, high, shift).tolist()
        highest, n = len(counts) - 1, 0
        for bucket in reversed(range(len(counts))):
            if n + counts[bucket] > self.capacity and bucket < highest:
                yield from slab(bucket + 1, highest, n)
                highest, n = bucket, 0
            if counts[bucket] <= self.capacity:
                n += counts[bucket]
                continue
            if shift == 0:
                yield from slab(bucket, bucket, counts[bucket])
            else:
                yield from self._split(*key_range(bucket, bucket))
            highest = bucket - 1
        if highest >= 0:
            yield from slab(0, highest, n)

    def _edges(self, first, last):
        """The scores of keys first and last. No score has the key just below that of 0.0,
        which would be that of -0.0: there the edge moves inwards."""
        low, high = _score(first, self.dtype), _score(last, self.dtype)
        if high == 0 and np.signbit(high):
            high = np.nextafter(high, -np.inf, dtype=self.dtype)
        return low + self.dtype.type(0), high

    def _histogram(self, low, high, shift):
        """Counts of the anomalous pixels by key, from that of low on, int64."""
        size = ((_key(high) - _key(low)) >> shift) + 1
        buffers = _Buffers(lambda: np.zeros(size, np.int64))

        def visit(item):
            _, image, mask = item
            with buffers.borrow() as counts:
                self.kernel.histogram(
                    image.reshape(-1), mask.reshape(-1), low, high, shift, counts
                )

        _arrays.run_threads(visit, self.images.walk(), self.threads)
        return sum(buffers.made)

    def _anomalous(self, low, high, n):
        """Distinct scores in low..high of anomalous pixels, ascending; stops; regions.

        The pixels that share distinct score i are regions[stops[i - 1]:stops[i]].
        """
        if n is None:
            values, regions = self.kept  # all of them lie in the slab
            self.kept = None  # sorting uses them up, and no other slab needs them
        else:
            values, regions = self._gather(low, high, n)
            if low == high:
                distinct = np.full(1 if n else 0, low, self.dtype)
                return distinct, np.full(distinct.size, n, np.int32), regions
        values, regions = self._sort(values, regions)
        stops = np.empty(self.kernel.count_distinct(values), np.int32)
        self.kernel.make_distinct(values, stops)
        return values[: stops.size], stops, regions

    def _gather(self, low, high, n):
        """Another walk: the n scores in low..high of anomalous pixels, and their regions.

        One score needs no values, only the regions.
        """
        regions = np.empty(n, np.int32)
        values = np.empty(0 if low == high else n, self.dtype)
        at = 0
        for k, image, mask in self.images.walk():
            runs, labels, _ = _label_runs(self.kernel, mask)
            found = self.kernel.gather(
                image.reshape(-1), runs, labels, self.first_region[k], low, high,
                values[at:], regions[at:],
            )  # fmt: skip
            if found < 0:
                _refuse_nan(k, image)
            at += found
        return values, regions

    def _sort(self, values, regions):
        """Both arrays in ascending order of the values; the arrays given are used up."""
        other = np.empty_like(values), np.empty_like(regions)
        place = np.empty(1 << RADIX_BITS, np.intp)
        for shift in range(0, 8 * self.dtype.itemsize, RADIX_BITS):
            if self.kernel.sort_pass(values, regions, shift, *other, place):
                (values, regions), other = other, (values, regions)
        return values, regions

    def _count_normals(self, low, high, distinct, stops):
        """Normal pixels in low..high by their place among the distinct scores (2 n + 1,)."""
        counter = np.uint32 if self.n_pixels < 2**32 else np.int64
        counts = np.zeros(2 * distinct.size + 1, counter)
        buckets = self._buckets(low, high)
        buffers = _Buffers(lambda: _Tally(self.kernel, low, high, buckets, distinct, counts, lock))
        lock = threading.Lock()

        def visit(item):
            k, image, _ = item
            with buffers.borrow() as tally:
                if not tally.add(image.reshape(-1), self.n_pixels):
                    _refuse_nan(k, image)

        _arrays.run_threads(visit, self.images.walk(), self.threads)
        _arrays.run_threads(_Tally.flush, buffers.made, self.threads)
        counts[1::2] -= np.diff(stops, prepend=np.int32(0)).astype(counter)
        return counts

    def _buckets(self, low, high):
        """(start, shift, number) of the buckets of a table, see kernels/aupro.pyx.

        They hold the scores of the sample that lie in low..high, one score each where that is
        possible, else nearly all of them; what lies outside is sorted.
        """
        inside = self.sample[np.searchsorted(self.sample, low) :]
        inside = inside[: np.searchsorted(inside, high, "right")]
        if not inside.size:
            inside = np.array([low, high])
        bits = min(TABLE_BITS, max(6, self.n_pixels.bit_length() - 2))
        for start, stop in (
            (inside[0], inside[-1]),
            (inside[inside.size // 256], inside[-1 - inside.size // 64]),
        ):
            span = _key(stop) - _key(start)
            shift = max(0, span.bit_length() - bits)
            if not shift:
                break
        beyond = 2 ** (8 * self.dtype.itemsize) - 1 - _key(start)  # keys that there are
        return start, shift, min((span >> shift) + 1, beyond >> shift)


class _Tally:
    """The pixels of one thread, counted by their place among distinct scores.

    Nearly all are counted in a table of buckets of scores. Where a bucket holds one of the
    distinct scores and others beside it, its pixels are sorted and walked along the distinct
    scores instead, as many at a time as fit in the cache.
    """

    def __init__(self, kernel, low, high, buckets, distinct, counts, lock):
        self.kernel, self.low, self.high, self.distinct = kernel, low, high, distinct
        self.start, self.shift, number = buckets
        self.counts, self.lock = counts, lock  # of all threads
        self.table, self.placed = np.zeros(number + TABLE_TAIL, np.uint32), 0
        self.kernel.mark(distinct, self.start, self.shift, self.table)
        self.aside, self.n = np.empty(0, distinct.dtype), 0

    def add(self, scores, n_pixels):
        """The pixels of one image of a set of n_pixels; False where there is a NaN."""
        if self.n + scores.size > self.aside.size:
            self.sort_aside()
            if scores.size > self.aside.size:
                size = max(scores.size, min(SORTED_AT_ONCE, n_pixels))
                self.aside = np.empty(size, scores.dtype)
        if self.placed + scores.size > COUNTED_AT_ONCE:
            self.empty_table()
        self.placed += scores.size
        self.n = self.kernel.place(
            scores, self.low, self.high, self.start, self.shift, self.table, self.aside, self.n
        )
        return self.n >= 0

    def sort_aside(self):
        """Count what was put aside."""
        scores = self.aside[: self.n]
        scores.sort()
        with self.lock:
            self.kernel.tally(self.distinct, scores, self.counts)
        self.n = 0

    def empty_table(self):
        """Count what is in the table."""
        with self.lock:
            self.kernel.count_table(
                self.distinct, self.start, self.shift, self.table, self.counts
            )
        self.table[:], self.placed = 0, 0
        self.kernel.mark(self.distinct, self.start, self.shift, self.table)

    def flush(self):
        """Count everything."""
        self.sort_aside()
        self.empty_table()


class _Buffers:
    """What threads count in, one for each at a time; integers, so they add up in any order."""

    def __init__(self, new):
        self.new = new
        self.made, self.free = [], []

    @contextmanager
    def borrow(self):
        """One that no other thread uses meanwhile."""
        try:
            buffer = self.free.pop()
        except IndexError:
            buffer = self.new()
            self.made.append(buffer)
        yield buffer
        self.free.append(buffer)


def _sample(image, mask):
    """Some of the normal scores of an image."""
    return image.reshape(-1)[::SAMPLE_STEP][mask.reshape(-1)[::SAMPLE_STEP] == 0]


def _key(score):
    """The kernels' key of a NumPy float: an int with the order of the scores."""
    bits = int((score + score.dtype.type(0)).view(f"u{score.itemsize}"))
    sign = 1 << (8 * score.itemsize - 1)
    return bits ^ (2 * sign - 1 if bits & sign else sign)


def _score(key, dtype):
    """The inverse of `_key`."""
    sign = 1 << (8 * dtype.itemsize - 1)
    bits = key ^ (sign if key & sign else 2 * sign - 1)
    return np.array(bits, f"u{dtype.itemsize}").view(dtype)[()]


# From points to numbers ------------------------------------------------------------------


def _areas(points, limits):
    """Areas of curves up to limits of the FPR, divided by them; limits {kind: Fraction}."""
    areas = [_Area(points, kind, limit) for kind, limit in limits.items()]
    for chunk in points.chunks:
        if all([area.add(chunk) for area in areas]):
            break
    return [area.value() for area in areas]


class _Area:
    """The area under one curve, exactly: in pixels across times units up, twice."""

    def __init__(self, points, kind, limit):
        self.row, self.top = points.row_and_top(kind)
        self.limit = limit * points.normals  # where the area ends, pixels
        self.x, self.height, self.double, self.done = 0, 0, 0, False

    def add(self, chunk):
        """Go on to the chunk's points; True once the limit is reached."""
        if self.done:
            return True
        above, here, height = chunk[0], chunk[1], chunk[self.row]
        n = int(np.searchsorted(here, math.floor(self.limit), "right"))  # points within
        if n:
            x = np.concatenate(([self.x], here[: n - 1]))
            before = np.concatenate(([self.height], height[: n - 1]))
            # Level up to the pixels above the threshold, then straight to those at it.
            self.double += _dot(above[:n] - x, 2 * before)
            self.double += _dot(here[:n] - above[:n], before + height[:n])
            self.x, self.height = int(here[n - 1]), int(height[n - 1])
        if n < here.size:  # the limit lies before the next point
            left, right, up = int(above[n]), int(here[n]), int(height[n])
            self.double += 2 * self.height * (min(self.limit, left) - self.x)
            if left < self.limit:
                part = (self.limit - left) / (right - left)
                at_limit = self.height + (up - self.height) * part
                self.double += (self.height + at_limit) * (self.limit - left)
            self.done = True
        return self.done

    def value(self):
        """The area divided by the limit and the height of the curve's end, rounded once."""
        if not self.done:  # below the lowest anomalous score the curve is level
            self.double += 2 * self.top * (self.limit - self.x)
            self.done = True
        return float(Fraction(self.double) / (2 * self.top * self.limit))


def _dot(a, b):
    """sum(a * b) as a Python int; int64 arrays, a >= 0 with a sum below 2**61, b >= 0."""
    bits = 62 - int(a.sum()).bit_length()  # of b at a time, so that no partial sum overflows
    total, shift = 0, 0
    while b.any():
        total += int(np.dot(a, b & ((1 << bits) - 1))) << shift
        b, shift = b >> bits, shift + bits
    return total


def _thinned(points, kinds, max_points):
    """Curve of each kind with at most max_points points; see `pixel_curves`."""
    if isinstance(max_points, bool) or not isinstance(max_points, (int, np.integer)) or (
        max_points < 16
    ):
        raise InputError(f"max_points must be a whole number of at least 16, not {max_points!r}")
    curves = [_Thinned(points, kind, int(max_points)) for kind in kinds]
    for chunk in points.chunks:
        for curve in curves:
            curve.add(chunk)
    return [curve.value() for curve in curves]


class _Thinned:
    """A curve cut into pieces by the way travelled, across plus up; a piece at a time.

    A piece keeps its first and last point, and gets one between them that lies in the box
    they span, on the diagonal from the lower right corner (the least area a rising curve can
    have) to the upper left one (the most), where the piece's own area puts it.
    """

    def __init__(self, points, kind, max_points):
        self.row, self.top = points.row_and_top(kind)
        self.normals = points.normals
        self.step = 6 / (max_points - 6)
        self.last = np.zeros((2, 1), np.int64)  # where the curve has come to
        self.piece, self.first, self.area, self.n = 0, np.zeros(2), 0.0, 1  # the open piece
        self.kept = []

    def add(self, chunk):
        """Go on to the chunk's points."""
        above, here, height = chunk[0], chunk[1], chunk[self.row]
        before = np.concatenate((self.last[1], height[:-1]))
        corners = np.stack(  # level, then straight
            [np.stack([above, before]), np.stack([here, height])], axis=2
        ).reshape(2, -1)
        self._extend(corners)

    def value(self):
        """Curve."""
        self._extend(np.array([[self.normals], [self.top]], np.int64))
        self._close(self.last[:, 0] / (self.normals, self.top))
        fpr, height = np.array(self.kept).T
        return Curve(fpr, height)

    def _extend(self, corners):
        line = np.concatenate([self.last, corners], axis=1)
        x, y = line / np.array([[self.normals], [self.top]])
        areas = np.diff(x) * (y[1:] + y[:-1]) / 2
        pieces = ((x + y) / self.step).astype(np.int64)
        pieces[0] = self.piece
        # Corners 1.. in runs of one piece each; the first run may continue the open piece.
        starts = np.flatnonzero(np.diff(pieces, prepend=-1))
        stops = np.append(starts[1:], pieces.size)
        for start, stop in zip(starts.tolist(), stops.tolist()):
            if start:
                self._close((x[start - 1], y[start - 1]))
                self.piece, self.first = int(pieces[start]), np.array([x[start], y[start]])
                self.area, self.n = 0.0, 1
            self.area += float(areas[start : stop - 1].sum())
            self.n += stop - 1 - start
        self.last = corners[:, -1:]

    def _close(self, last):
        """Keep the open piece, which ends at `last`."""
        (x0, y0), (x1, y1) = self.first, last
        self.kept.append((x0, y0))
        if self.n > 2 and x1 > x0 and y1 > y0:
            part = (self.area / (x1 - x0) - y0) / (y1 - y0)
            part = min(1.0, max(0.0, part))
            self.kept.append((x1 - part * (x1 - x0), y0 + part * (y1 - y0)))
        if self.n > 1:
            self.kept.append((x1, y1))
