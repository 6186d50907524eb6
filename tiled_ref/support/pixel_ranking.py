"""Pixel rankings and mask regions, computed by the kernels of `kernels/aupro.pyx`.

The specification, `rank_pixels` and `label_mask` in `metrics`, gives the same integers and defines
the ranking.
"""

import math
import threading

import numpy as np

from . import arrays
from .errors import InputError

SORTED_AT_ONCE = 2**21  # pixels per thread
SAMPLE_STEP = 199  # every 199th pixel is sampled to estimate the score at the FPR limit
RADIX_BITS = 11  # per pass of the sort


def rank_pixels(walk, threads, limit=None):
    """`metrics.rank_pixels` without holding all pixels in memory.

    A first pass collects and sorts the scores of the anomalous pixels. A second pass sorts the
    scores of all pixels, a few images at a time, and counts how many lie between them.

    With a limit on the FPR, a sample of the normal pixels gives a score below which the FPR almost
    certainly exceeds the limit. Pixels with lower scores are skipped. If the FPR turns out not to
    reach the limit, the ranking is repeated with all pixels.

    Parameters: walk, see `walk_arrays`; threads, int; limit, Fraction of the normal pixels.
    Returns (N, areas, regions, ranks, scores), see `metrics.rank_pixels`.
    Raises InputError for NaN, an image of 2**31 - 1 pixels or more, or passes that differ.
    """
    low, part = (-np.inf, 1.0) if limit is None else _score_at_limit(walk, limit)
    n_pixels, areas, scores, regions = _anomalous_scores(walk, threads, low)
    if low == -np.inf and scores.size:
        low = scores[0]  # lower scores exceed no anomalous pixel
    seen, counts = _count(walk, threads, low, part, n_pixels, scores)
    if seen != n_pixels:
        raise InputError(
            f"pairs() gave {n_pixels:,} pixels and {seen:,} when called again; it must "
            "return a fresh iterator over the same images each time"
        )
    normals = n_pixels - int(areas.sum(dtype=np.int64))
    if part < 1 and int(counts.sum(dtype=np.int64)) - scores.size < limit * normals:
        return rank_pixels(walk, threads)
    arrays.kernel("_aupro").rank(scores, counts)
    return normals, areas, regions, counts[:-1].reshape(-1, 2), scores


def _score_at_limit(walk, limit):
    """A score below which the FPR almost certainly exceeds the limit, and the fraction of normal
    pixels above it; -inf and 1 if the sample is too small."""
    sample = [
        image.reshape(-1)[::SAMPLE_STEP][mask.reshape(-1)[::SAMPLE_STEP] == 0]
        for _, image, mask in walk()
    ]
    sample = np.sort(np.concatenate([np.empty(0, np.float32), *sample]))
    expected = float(limit) * sample.size
    enough = math.ceil(1.02 * expected + 4 * math.sqrt(expected) + 16)
    return (sample[-enough], enough / sample.size) if enough < sample.size else (-np.inf, 1.0)


def _anomalous_scores(walk, threads, low):
    """Number of all pixels, areas of the regions, scores >= low in them, region of each score."""
    kernel = arrays.kernel("_aupro")

    def visit(item):
        k, image, mask = item
        runs, labels, found, n = label_runs(mask)
        areas, regions = np.empty(found, np.int32), np.empty(n, np.int32)
        scores = np.empty(n, image.dtype)
        n = kernel.gather(image.reshape(-1), runs, labels, low, areas, scores, regions)
        if np.isnan(scores[:n]).any():
            arrays.refuse_nan("maps", image, k)
        return mask.size, areas, scores[:n].copy(), regions[:n].copy()

    results = arrays.run_threads(visit, walk(), threads)
    if not results:
        return 0, np.empty(0, np.int32), np.empty(0, np.float32), np.empty(0, np.int32)
    sizes, areas, scores, regions = zip(*results)
    first = 0
    for own, of_region in zip(regions, areas):
        own += first
        first += of_region.size
    scores, regions = np.concatenate(scores), np.concatenate(regions)
    del results, own  # copied above
    scores, regions = _sorted(scores, regions)
    # The smallest dtype that can number the regions, to leave memory for the counts.
    return sum(sizes), np.concatenate(areas), scores, regions.astype(np.min_scalar_type(first))


def _sorted(scores, regions):
    """Sort both by ascending score; the arguments are overwritten."""
    kernel = arrays.kernel("_aupro")
    other = np.empty_like(scores), np.empty_like(regions)
    place = np.empty(1 << RADIX_BITS, np.intp)
    for shift in range(0, 8 * scores.itemsize, RADIX_BITS):
        if kernel.sort_pass(scores, regions, shift, *other, place):
            (scores, regions), other = other, (scores, regions)
    return scores, regions


def _count(walk, threads, low, part, n_pixels, scores):
    """Number of pixels, and how many equal or lie between the scores, see `tally` in the kernel;
    `part` is the approximate fraction of pixels >= low."""
    kernel, lock = arrays.kernel("_aupro"), threading.Lock()
    counts = np.zeros(2 * scores.size + 1, np.uint32 if n_pixels < 2**32 else np.int64)

    def visit(batch):
        every, n = np.empty(sum(image.size for _, image, _ in batch), scores.dtype), 0
        for _, image, _ in batch:
            n = kernel.select(image.reshape(-1), low, every, n)
        every = every[:n]
        every.sort()
        if n and np.isnan(every[-1]):
            for k, image, _ in batch:
                arrays.refuse_nan("maps", image, k)
        with lock:
            kernel.tally(scores, every, counts)
        return sum(image.size for _, image, _ in batch)

    batches = _batches(_slabs(walk()), SORTED_AT_ONCE / part)
    return sum(arrays.run_threads(visit, batches, threads)), counts


def _slabs(items):
    """Yield the images, those with more than SORTED_AT_ONCE pixels in slabs of that size."""
    for k, image, mask in items:
        if image.size <= SORTED_AT_ONCE:
            yield k, image, mask
            continue
        arrays.refuse_nan("maps", image, k)
        pixels = image.reshape(-1)
        for start in range(0, pixels.size, SORTED_AT_ONCE):
            yield k, pixels[start : start + SORTED_AT_ONCE], None


def _batches(items, most):
    """Group images into lists with at least `most` pixels, the last list with fewer."""
    batch, n = [], 0
    for item in items:
        batch.append(item)
        n += item[1].size
        if n >= most:
            yield batch
            batch, n = [], 0
    if batch:
        yield batch


# Iterating over the caller's arrays ------------------------------------------------------


def mask_array(name, value):
    """One or more masks, any shape, as uint8, any strides; InputError for an invalid type."""
    return arrays.host_array(name, value, arrays.MASKS).view(np.uint8)


def walk_arrays(maps, masks):
    """A walk over maps (N, H, W), float32 or float64, and masks (N, H, W), bool or uint8.

    Returns a function without arguments that returns an iterator over (k, map (H, W), mask uint8
    (H, W)) of every image, both C-contiguous. Raises InputError for an invalid shape or dtype.
    """
    maps, masks = arrays.host_array("maps", maps, arrays.FLOATS), mask_array("masks", masks)
    if maps.ndim != 3 or maps.shape != masks.shape:
        raise InputError(
            f"maps and masks must both be (N, H, W), got shapes {maps.shape} and {masks.shape}"
        )

    def walk():
        for k in range(len(maps)):  # copies at most one image at a time
            yield k, arrays.for_kernel(maps[k]), arrays.for_kernel(masks[k])

    return walk


def walk_pairs(pairs):
    """A walk, see `walk_arrays`, over the images of `metrics.pixel_metrics`.

    Raises InputError if pairs is not callable; the walk raises it for an invalid shape or dtype.
    """
    if not callable(pairs):
        raise InputError(
            "pairs must be a callable that returns a fresh iterator over (map, mask), such as "
            "lambda: zip(maps, masks)"
        )
    dtypes = []

    def walk():
        for k, pair in enumerate(pairs()):
            try:
                image, mask = pair
            except (TypeError, ValueError) as error:
                raise InputError(f"pairs() must yield (map, mask) for image {k}") from error
            image = arrays.host_array(f"the map of image {k}", image, arrays.FLOATS)
            mask = mask_array(f"the mask of image {k}", mask)
            if image.ndim != 2 or image.shape != mask.shape:
                raise InputError(
                    f"map and mask of image {k} must both be (H, W), got shapes {image.shape} "
                    f"and {mask.shape}"
                )
            dtypes.append(image.dtype)
            if image.dtype != dtypes[0]:
                raise InputError(
                    f"the map of image {k} is {image.dtype} but the first one is {dtypes[0]}; "
                    "use the same dtype for all maps"
                )
            yield k, arrays.for_kernel(image), arrays.for_kernel(mask)

    return walk


# Regions ---------------------------------------------------------------------------------


def label_regions(masks, threads):
    """The regions of masks uint8 (N, H, W), any strides, as int32; see `metrics.label_regions`."""
    kernel, out = arrays.kernel("_aupro"), np.empty(masks.shape, np.int32)
    results = arrays.run_threads(label_runs, map(arrays.for_kernel, masks), threads)
    offsets = np.cumsum([0] + [found for _, _, found, _ in results])

    def paint(k):
        runs, labels, *_ = results[k]
        kernel.paint(runs, labels, offsets[k], out[k].reshape(-1))

    arrays.run_threads(paint, range(len(masks)), threads)
    return out


def label_runs(mask):
    """Runs int32 (runs, 2) of a mask uint8 (H, W), C-contiguous, their labels int32 (runs,), the
    number of labels and the number of anomalous pixels."""
    check_countable(mask)
    kernel = arrays.kernel("_aupro")
    n_runs, n_pixels = kernel.count_runs(mask)
    runs, labels = np.empty((n_runs, 2), np.int32), np.empty(n_runs, np.int32)
    return runs, labels, kernel.label_runs(mask, runs, labels) if n_runs else 0, n_pixels


def check_countable(mask):
    """Raise InputError for a mask (H, W), any dtype, of 2**31 - 1 pixels or more."""
    if mask.size >= 2**31 - 1:
        raise InputError(
            f"a mask of {mask.shape[0]} x {mask.shape[1]} px has more pixels than 32-bit labels "
            "can count; compute the metrics at a smaller image size"
        )
