"""Image AUROC, pixel AUROC and AUPRO, exact, their curves, and all pixel metrics of a set.

The file opens with both metrics in plain form. Below, the same in integers: the area as an exact
fraction, rounded once, so that its bits depend neither on the order of the images nor on the number
of threads. The integer form is the one that runs, in NumPy or in the kernels of
`kernels/aupro.pyx`, called by `support/pixel_ranking.py`.

Source: P. Bergmann, K. Batzner, M. Fauser, D. Sattlegger, C. Steger, "The MVTec Anomaly
Detection Dataset", IJCV 129 (2021), Sec. 5.3: PRO = 1/R sum_k |P_k and Q_k| / |Q_k| with
regions Q_k (8-connected) and the pixels P_k found in them, against the FPR up to 0.3.
Deviation D3: equal scores are one point of the curve, so that no result exceeds 1.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from ..support import arrays, pixel_ranking
from ..support.errors import InputError
from .f1 import by_label, f1_max_of, seg_f1_of
from .regions import UndefinedMetricError, label_mask, label_regions

PIXELS_AT_ONCE = 2**18  # of a ranking, summed together


@dataclass(frozen=True)
class PixelMetrics:
    """What `pixel_metrics` returns, as fractions."""

    aupro: float  # see `aupro`
    pixel_auroc: float  # see `pixel_auroc`
    f1_max: float  # pixel_f1_max
    seg_f1: float = None  # None without a threshold


@dataclass(frozen=True)
class Curve:
    """A curve for plots: fpr and height, float64 (points,), both rising from 0 to 1."""

    fpr: np.ndarray
    height: np.ndarray


# The metrics, plain -----------------------------------------------------------------------


def plain_auroc(scores, labels):
    """The probability that an anomalous score is above a normal one, equal scores counting half.

    Parameters: scores (n,) float, labels (n,) integers, 0 normal. Returns float.
    """
    anomalous, normal = scores[labels != 0][:, None], scores[labels == 0]
    return ((anomalous > normal) + (anomalous == normal) / 2).mean()


def plain_aupro(maps, masks, fpr_limit=0.3):
    """The area under the curve of PRO against FPR up to a limit, divided by the limit.

    Parameters: maps (N, H, W) float; masks (N, H, W) bool or uint8. Returns float.
    """
    regions = label_regions(masks).ravel()  # 0, or the number of the pixel's region
    sizes = np.bincount(regions)  # normal pixels, then each region's
    order = np.argsort(-maps, axis=None)  # a falling threshold: the highest scores first
    scores, regions = maps.ravel()[order], regions[order]
    fpr = np.cumsum(regions == 0) / sizes[0]
    pro = np.cumsum(np.where(regions > 0, 1 / sizes[regions], 0)) / (len(sizes) - 1)
    last = np.append(scores[1:] != scores[:-1], True)  # equal scores are one point of the curve
    fpr, pro = np.append(0, fpr[last]), np.append(0, pro[last])
    x = np.append(fpr[fpr <= fpr_limit], fpr_limit)
    y = np.append(pro[fpr <= fpr_limit], np.interp(fpr_limit, fpr, pro))
    return np.sum(np.diff(x) * (y[1:] + y[:-1])) / 2 / fpr_limit  # straight between the points


# The same in integers ---------------------------------------------------------------------
#
# As a threshold t falls, the height of a curve rises against
#
#     FPR(t) = normal pixels with a score of at least t / N, the number of normal pixels
#
# An anomalous pixel p lifts the curve by its share: 1 / A for the ROC of A anomalous pixels,
# 1 / (R |Q_k|) for PRO, p in region Q_k of R. The rise starts at FPR u / N, where u is the number
# of normal pixels above its score, and ends at v / N, where v counts those at its score too. Its
# area up to an FPR of l / N is its share, divided by N, times
#
#     l - (u + v) / 2          where v <= l
#     (l - u)^2 / (2 (v - u))  where u < l < v
#     0                        where l <= u
#
# So u and v of every anomalous pixel suffice: a ranking, from `rank_pixels` or the kernels.


def auroc(scores, labels):
    """`plain_auroc` by counting: the area under the ROC curve of image scores, exact.

    Parameters: scores (n,) float32 or float64, no NaN; labels (n,) bool or integer, 0 normal,
    anything else anomalous.
    Returns float in [0, 1].
    Raises UndefinedMetricError unless there are normal and anomalous scores; InputError for
    NaN or an invalid shape or dtype.
    Order of arithmetic: pairs are counted in integers, then one division.

    >>> auroc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([0, 0, 1, 1]))
    0.875
    """
    normal, anomalous = by_label(scores, labels)
    if not normal.size or not anomalous.size:
        raise UndefinedMetricError(
            "AUROC needs at least one normal and one anomalous score, got "
            f"{normal.size} normal and {anomalous.size} anomalous"
        )
    # Twice the pairs won: normal scores below count twice, equal ones once.
    below = np.searchsorted(normal, anomalous, "left")
    at_or_below = np.searchsorted(normal, anomalous, "right")
    won = int(below.sum()) + int(at_or_below.sum())
    return won / (2 * normal.size * anomalous.size)


def rank_pixels(walk):
    """The ranking of a set of images: the twin of the ranks of `kernels/aupro.pyx`.

    Parameters: walk, see `pixel_ranking.walk_arrays`.
    Returns (N, areas, regions, ranks, scores): the number of normal pixels; the pixels of each
    region, int (R,); and of the anomalous pixels, in any order, their region, int (A,) from 0, u
    and v, int (A, 2): the normal pixels above the pixel's score, and those at or above it, and
    their scores, float (A,).
    Raises InputError for NaN.
    """
    normal, scores, regions, areas = [np.empty(0, np.float32)], [], [np.empty(0, np.int32)], []
    for k, image, mask in walk():
        arrays.refuse_nan("maps", image, k)
        labels, found = label_mask(mask)
        inside = labels > 0
        normal.append(image[~inside])
        scores.append(image[inside])
        regions.append(labels[inside] - 1 + len(areas))
        areas.extend(np.bincount(labels[inside], minlength=found + 1)[1:])
    normal, scores = np.sort(np.concatenate(normal)), np.concatenate([normal[0], *scores])
    u = normal.size - np.searchsorted(normal, scores, "right")
    v = normal.size - np.searchsorted(normal, scores, "left")
    ranks = np.stack([u, v], axis=1)
    return normal.size, np.array(areas, int), np.concatenate(regions), ranks, scores


def _aupro(ranking, fpr_limit):
    """The area under the PRO curve up to a limit, a Fraction, divided by the limit."""
    normals, areas, regions, ranks = ranking
    limit = fpr_limit * normals  # l
    sizes, group = np.unique(areas, return_inverse=True)  # regions of one size count alike
    risen, ranks_of_risen, rising = np.zeros((3, sizes.size), np.int64)
    u_limit, v_limit = 0, 1  # of the only score at which the curve crosses the limit
    for start in range(0, regions.size, PIXELS_AT_ONCE):
        part = slice(start, start + PIXELS_AT_ONCE)
        k, (u, v) = group[regions[part]], ranks[part].T.astype(np.int64)
        within, across = v <= math.floor(limit), (u < math.ceil(limit)) & (v > math.floor(limit))
        np.add.at(risen, k[within], 1)
        np.add.at(ranks_of_risen, k[within], (u + v)[within])
        np.add.at(rising, k[across], 1)
        if across.any():
            u_limit, v_limit = int(u[across][0]), int(v[across][0])
    # Twice the area of the regions of each size, times the denominators q q w of its terms.
    p, q, w = limit.numerator, limit.denominator, v_limit - u_limit
    total = 0
    for size, n, s, m in zip(*(a.tolist() for a in (sizes, risen, ranks_of_risen, rising))):
        double = n * 2 * p * q * w - s * q * q * w + m * (p - q * u_limit) ** 2
        total += (double << 64) // size  # 64 fractional bits
    return float(Fraction(total, (2 * areas.size * p * q * w) << 64))


def _pixel_auroc(ranking):
    """The area under the whole ROC curve: the mean of N - (u + v) / 2, divided by N."""
    normals, _, regions, ranks = ranking
    pairs = 2 * normals * regions.size
    return (pairs - int(ranks.sum(dtype=np.int64))) / pairs


# Public functions --------------------------------------------------------------------


def aupro(maps, masks, fpr_limit=0.3, impl="cython", threads=None):
    """Area under the per-region-overlap curve up to an FPR limit, divided by the limit.

    The rule of the MVTec evaluation, exactly: 8-connected regions, the FPR over all normal
    pixels of the set, equal scores one curve point, start at (0, 0), linear in between.

    Parameters
    ----------
    maps : (N, H, W) float32 or float64, NumPy or CPU torch
        Anomaly maps, higher is more anomalous; infinities are ranked, NaN is rejected.
    masks : (N, H, W) bool or uint8
        Ground truth, anomalous where not 0.
    fpr_limit : float
        Fraction, 0 < fpr_limit <= 1.

    Returns
    -------
    float in [0, 1].

    Raises
    ------
    UndefinedMetricError
        No anomalous or no normal pixel.
    InputError
        NaN, an invalid shape or dtype, or an image of 2**31 - 1 pixels or more.
    KernelNotBuiltError
        impl="cython" where the kernels are not built.

    Order of arithmetic: integers, then one rounding.

    Four normal pixels, regions {5} and {3}; points (FPR, PRO) of (0, 1/2), (1/4, 1/2), (1/4, 1),
    (1/2, 1): the area up to 1/2 is 3/8.

    >>> maps, masks = np.array([[[5.0, 4, 3, 2, 1, 0]]]), np.array([[[1, 0, 1, 0, 0, 0]]], bool)
    >>> aupro(maps, masks, fpr_limit=0.5, impl="numpy")
    0.75
    """
    limit = _limit(fpr_limit)
    walk = pixel_ranking.walk_arrays(maps, masks)
    return _aupro(_ranking(walk, impl, threads, "AUPRO", limit), limit)


def pixel_auroc(maps, masks, impl="cython", threads=None):
    """Area under the ROC curve of all pixels of the set, exact, ties counting one half.

    Parameters: maps and masks, (N, H, W). All as for `aupro`, Returns and Raises too.
    """
    walk = pixel_ranking.walk_arrays(maps, masks)
    return _pixel_auroc(_ranking(walk, impl, threads, "pixel AUROC"))


def pixel_f1_max(maps, masks, impl="cython", threads=None):
    """The largest F1 of all pixels of the set at any threshold, see `image_f1_max`.

    Parameters: maps and masks, (N, H, W). All as for `aupro`, Returns and Raises too.
    """
    walk = pixel_ranking.walk_arrays(maps, masks)
    return f1_max_of(_ranking(walk, impl, threads, "pixel F1")[3][:, 1])


def best_threshold(pairs, impl="cython", threads=None):
    """The pixel threshold with the best F1, value >= threshold being anomalous.

    Parameters: pairs, impl and threads as for `pixel_metrics`; pairs is called twice.
    Returns (threshold, f1, precision, recall), floats: threshold is the smallest of the best, the
    value of an anomalous pixel; between it and the next lower such value are normal pixels only.
    Raises: as `aupro`, but not for sets without a normal pixel.
    """
    walk = pixel_ranking.walk_pairs(pairs)
    *_, ranks, scores = _ranking(walk, impl, threads, "pixel F1", for_threshold=True)
    order = np.argsort(scores, kind="stable")
    scores, fp = scores[order], ranks[order, 1].astype(np.int64)
    first = np.flatnonzero(np.append(True, scores[1:] != scores[:-1]))  # of each distinct score
    tp, fp = scores.size - first, fp[first]
    f1 = 2 * tp / (tp + fp + scores.size)
    k = int(np.argmax(f1))
    precision, recall = tp[k] / (tp[k] + fp[k]), tp[k] / scores.size
    return float(scores[first[k]]) + 0.0, float(f1[k]), float(precision), float(recall)  # no -0.0


def pixel_metrics(pairs, fpr_limit=0.3, impl="cython", threads=None, threshold=None):
    """AUPRO, pixel AUROC, F1-max and SegF1 of a set given image by image.

    Parameters
    ----------
    pairs : callable without arguments
        pairs() returns a fresh iterator over (map, mask) of one image each, the same images
        in the same order each time: map (H, W) float32 or float64, mask (H, W) bool or
        uint8, sizes may differ from image to image. It is called twice, or three
        times with a threshold. Each thread holds images of about two million pixels; every
        anomalous pixel takes 16 bytes.
    fpr_limit, impl, threads
        See `aupro`. With impl="numpy" all pixels are held at once.
    threshold : float, optional
        Of SegF1, see `seg_f1`.

    Returns PixelMetrics, bit-identical to `aupro`, `pixel_auroc`, `pixel_f1_max` and `seg_f1` on
    the same images as arrays.
    Raises: as `aupro`.
    """
    limit = _limit(fpr_limit)
    ranking = _ranking(pixel_ranking.walk_pairs(pairs), impl, threads, "AUPRO")
    return PixelMetrics(
        _aupro(ranking, limit),
        _pixel_auroc(ranking),
        f1_max_of(ranking[3][:, 1]),
        None if threshold is None else seg_f1_of(pairs(), threshold),
    )


def pixel_curves(pairs, max_points, impl="cython", threads=None):
    """PRO and ROC curves for plots, of a set given image by image.

    Parameters: max_points, int, the most points of a curve; pairs, impl and threads as for
    `pixel_metrics`.
    Returns (pro, roc), two Curve from (0, 0) to (1, 1). The path of the exact
    curve, across plus up, is cut into max_points - 3 equal pieces; each keeps its first corner.
    Raises: as `aupro`.
    """
    walk = pixel_ranking.walk_pairs(pairs)
    normals, areas, regions, ranks = _ranking(walk, impl, threads, "the PRO curve")
    sizes = areas[regions]
    order = np.lexsort((sizes, ranks.sum(axis=1, dtype=np.int64)))  # best first
    u, v = ranks[order].T
    last = np.flatnonzero(np.append((u[1:] != u[:-1]) | (v[1:] != v[:-1]), True))
    covered = np.cumsum(1 / sizes[order])[last]
    fpr = np.stack([u[last], v[last]], axis=1).ravel() / normals  # level, then straight

    def curve(up):
        height = np.stack([np.append(0, up[:-1]), up], axis=1).ravel()
        piece = ((fpr + height) / 2 * (max_points - 4)).astype(np.int64)
        kept = np.flatnonzero(np.diff(piece, prepend=-1))
        return Curve(np.r_[0, fpr[kept], 1], np.r_[0, height[kept], 1])

    return curve(covered / covered[-1]), curve((last + 1) / regions.size)


def _ranking(walk, impl, threads, what, limit=None, for_threshold=False):
    """The ranking of a set, with the scores only if for_threshold; with a limit on the FPR, pixels
    that rise above it can be missing.

    Raises UndefinedMetricError, naming `what`, without anomalous pixels or, unless for_threshold,
    without normal ones.
    """
    arrays.check_impl(impl)
    threads = arrays.thread_count(threads)
    ranking = (
        rank_pixels(walk) if impl == "numpy" else pixel_ranking.rank_pixels(walk, threads, limit)
    )
    normals, areas, *_ = ranking
    if not areas.size or not (normals or for_threshold):
        kind, remedy = (
            ("anomalous", "the masks are empty") if not areas.size
            else ("normal", "the masks cover everything")
        )  # fmt: skip
        raise UndefinedMetricError(
            f"{what} needs normal and anomalous pixels, but there is no {kind} one: {remedy}"
        )
    return ranking if for_threshold else ranking[:4]


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
