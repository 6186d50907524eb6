"""AUROC, AUPRO and curves: by hand, equation in scalar loops, invariants, outside oracle,
kernels against specification, memory."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from adversarial import FLOATS, layouts, maps_and_masks

from tiled_ref import metrics
from tiled_ref.errors import InputError
from tiled_ref.metrics import (
    UndefinedMetricError,
    aupro,
    auroc,
    label_regions,
    pixel_auroc,
    pixel_curves,
    pixel_metrics,
    pro_curve,
    roc_curve,
)

IMPLS = ("cython", "numpy")


def defined(masks):
    return masks.any() and not masks.all()


def scalar_points(maps, masks):
    """Bergmann et al. Sec. 5.3 in exact fractions and plain loops: (FPR, PRO) per threshold."""
    scores, wrong = maps.ravel().tolist(), masks.ravel().tolist()
    region = label_regions(masks, impl="numpy").ravel().tolist()
    n_regions = max(region)
    area = [region.count(r) for r in range(1, n_regions + 1)]
    points = [(Fraction(0), Fraction(0))]
    for threshold in sorted(set(scores), reverse=True):
        found = [0] * n_regions
        false = 0
        for score, is_wrong, r in zip(scores, wrong, region):
            if score >= threshold:
                if is_wrong:
                    found[r - 1] += 1
                else:
                    false += 1
        pro = sum(Fraction(n, a) for n, a in zip(found, area)) / n_regions
        points.append((Fraction(false, wrong.count(False)), pro))
    return points


def scalar_area(points, limit):
    """Trapezoids up to the limit, linear in between, divided by the limit."""
    limit, area = Fraction(limit), Fraction(0)
    for (x0, y0), (x1, y1) in zip(points, points[1:]):
        if x1 > limit:
            y1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            x1 = limit
        area += (x1 - x0) * (y0 + y1) / 2
        if x1 == limit and x0 < x1:
            break
    return float(area / limit)


def test_auroc_by_hand():
    """3 anomalous, 2 normal: of 6 pairs 4 are won and 1 is tied."""
    scores, labels = np.array([3.0, 1.0, 2.0, 2.0, 0.5]), np.array([1, 1, 1, 0, 0])
    assert auroc(scores, labels) == 4.5 / 6
    assert auroc(scores.astype(np.float32), labels > 0) == 4.5 / 6
    assert auroc(torch.from_numpy(-scores), torch.from_numpy(labels)) == 1.5 / 6


def test_auroc_against_pairs():
    for seed in range(200):
        maps, masks = maps_and_masks(seed)
        scores, labels = maps.ravel()[:60], masks.ravel()[:60]
        if not defined(labels):
            continue
        good, bad = scores[~labels], scores[labels]
        won = sum((b > good).sum() + 0.5 * (b == good).sum() for b in bad)
        assert auroc(scores, labels) == won / (good.size * bad.size)


def test_auroc_refusals():
    one = np.array([1.0, 2.0])
    with pytest.raises(UndefinedMetricError, match="0 normal and 2 anomalous"):
        auroc(one, np.array([1, 1]))
    with pytest.raises(InputError, match=r"scores holds a NaN at index \(1\)"):
        auroc(np.array([0.0, np.nan]), np.array([0, 1]))
    with pytest.raises(InputError, match="equal length"):
        auroc(one, np.array([0, 1, 1]))


@pytest.mark.parametrize("impl", IMPLS)
def test_aupro_by_hand(impl):
    """One row, regions of 1 and 2 pixels, 4 normal pixels.

    Descending: 9 (region A, the whole of it), 8 (normal), 7 (half of B), 7 (normal, tied),
    6 (half of B), then 2 normals. Points (FPR, PRO): (0, 1/2), (1/4, 1/2), (1/2, 3/4),
    (1/2, 1), (1, 1). Up to 1: 1/8 + 5/32 + 1/2 = 25/32. Up to 3/8: 1/8 + (1/2 + 5/8)/2/8.
    """
    maps = np.array([[[9.0, 8.0, 7.0, 6.0, 7.0, 1.0, 0.0]]])
    masks = np.array([[[1, 0, 1, 1, 0, 0, 0]]], np.uint8)
    assert aupro(maps, masks, 1.0, impl=impl) == 25 / 32
    assert aupro(maps, masks, 0.375, impl=impl) == (1 / 8 + 9 / 128) / 0.375
    assert aupro(maps, masks, 0.25, impl=impl) == 0.5
    # ROC: (0, 1/3), (1/4, 1/3), (1/2, 2/3), (1/2, 1), (1, 1)
    assert pixel_auroc(maps, masks, impl=impl) == float(Fraction(1, 12) + Fraction(1, 8)
                                                        + Fraction(1, 2))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("limit", [0.3, 0.05, 1.0])
def test_aupro_is_the_equation(impl, limit):
    """Exact fractions in scalar loops. Largest deviation measured: 1.1e-16."""
    # Bergmann et al. Sec. 5.3, up to the FPR of Rolih et al. Sec. 4.1.
    tried = 0
    for seed in range(120):
        maps, masks = maps_and_masks(seed)
        maps, masks = maps[:, :9, :11], masks[:, :9, :11]
        if not defined(masks):
            continue
        expected = scalar_area(scalar_points(maps, masks), limit)
        assert abs(aupro(maps, masks, limit, impl=impl) - expected) < 1e-15, seed
        tried += 1
    assert tried > 90


@pytest.mark.parametrize("impl", IMPLS)
def test_pixel_auroc_is_the_auroc_of_all_pixels(impl):
    for seed in range(150):
        maps, masks = maps_and_masks(seed)
        if defined(masks):
            assert pixel_auroc(maps, masks, impl=impl) == auroc(maps.ravel(), masks.ravel())


@pytest.mark.parametrize("impl", IMPLS)
def test_simple_sets(impl):
    maps = np.zeros((1, 4, 5), np.float32)
    masks = np.zeros((1, 4, 5), bool)
    masks[0, 1:3, 1:3] = True
    # A constant map is one curve point: a straight line from (0, 0) to (1, 1).
    assert aupro(maps, masks, 0.5, impl=impl) == 0.25
    assert pixel_auroc(maps, masks, impl=impl) == 0.5
    maps[masks] = np.inf
    maps[0, 0, 0] = -np.inf
    assert aupro(maps, masks, impl=impl) == pixel_auroc(maps, masks, impl=impl) == 1.0
    assert aupro(-maps, masks, impl=impl) == pixel_auroc(-maps, masks, impl=impl) == 0.0


@pytest.mark.parametrize("impl", IMPLS)
def test_zeros_of_both_signs_are_one_score(impl):
    masks = np.array([[[1, 0]]], bool)
    for maps in ([[[0.0, -0.0]]], [[[-0.0, 0.0]]]):
        assert pixel_auroc(np.array(maps), masks, impl=impl) == 0.5
        assert aupro(np.array(maps), masks, 1.0, impl=impl) == 0.5


@pytest.mark.parametrize("dtype", FLOATS)
def test_kernels_equal_specification(dtype, monkeypatch):
    """1,000 random sets, bit for bit: whole, in slabs, streamed, any threads, any order."""
    monkeypatch.setattr(metrics, "SAMPLE_STEP", 1)
    tried, cut = 0, 0
    for seed in range(560):
        maps, masks = maps_and_masks(seed)
        if not defined(masks):
            continue
        threads = 1 if seed % 8 else 3
        with np.errstate(over="ignore"):
            maps, tried = maps.astype(dtype), tried + 1
        limit = (0.3, 0.02, 1.0)[seed % 3]
        before = maps.copy(), masks.copy()
        expected = aupro(maps, masks, limit, impl="numpy")
        expected_roc = pixel_auroc(maps, masks, impl="numpy")
        monkeypatch.setattr(metrics, "SMALLEST_SLAB", (2**16, 20, 7, 40)[seed % 4])
        monkeypatch.setattr(metrics, "SPLIT_BITS", (4, 12)[seed % 40 == 1])
        monkeypatch.setattr(metrics, "STREAM_BUDGET", 0 if seed % 4 else 2**29)
        monkeypatch.setattr(metrics, "POINTS_AT_ONCE", (2**16, 1, 5)[seed % 3])
        monkeypatch.setattr(metrics, "SORTED_AT_ONCE", (2**21, 1)[seed % 2])
        monkeypatch.setattr(metrics, "TABLE_BITS", (20, 4, 1)[seed % 3])
        monkeypatch.setattr(metrics, "COUNTED_AT_ONCE", (2**31 - 1, 1)[seed % 2])
        assert aupro(maps, masks, limit, threads=threads) == expected, seed
        assert pixel_auroc(maps, masks, threads=threads) == expected_roc, seed
        order = np.random.default_rng(seed).permutation(len(maps))
        pairs = [(maps[k], masks[k].view(np.uint8)) for k in order]
        both = pixel_metrics(lambda pairs=pairs: iter(pairs), limit, threads=threads)
        assert (both.aupro, both.pixel_auroc) == (expected, expected_roc)
        assert np.array_equal(maps, before[0]) and np.array_equal(masks, before[1])
        points = metrics._KernelPoints(metrics._from_arrays(maps, masks), 1, Fraction(limit))
        points._survey()
        cut += points.cut > -np.inf
    assert tried > 500 and cut > 50


def test_limit_beyond_the_sampled_cut():
    """A sample that misleads (it sees some pixels only) costs time, not correctness."""
    rng = np.random.default_rng(0)
    maps = rng.random((1, 1, metrics.SAMPLE_STEP * 2000)).astype(np.float32)
    maps[0, 0, :: metrics.SAMPLE_STEP] += 100  # what is sampled is all on top
    masks = rng.random(maps.shape) < 0.01
    points = metrics._KernelPoints(metrics._from_arrays(maps, masks), 1, Fraction(0.3))
    points._survey()
    assert points.cut > 50
    assert aupro(maps, masks) == aupro(maps, masks, impl="numpy")


def test_layouts_threads_and_torch_change_nothing():
    maps, masks = maps_and_masks(11)
    expected = aupro(maps, masks, impl="numpy")
    for name, array in layouts(maps):
        for _, ground in layouts(masks):
            assert aupro(array, ground) == expected, name
    for threads in (1, 2, 5, 40):
        assert aupro(maps, masks, threads=threads) == expected
    assert aupro(torch.from_numpy(maps), torch.from_numpy(masks)) == expected


def test_concurrent_calls():
    sets = [s for s in map(maps_and_masks, range(20)) if defined(s[1])][:8]
    expected = [aupro(*s, impl="numpy") for s in sets]

    def run(k):
        return aupro(*sets[k % 8], threads=2) == expected[k % 8]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(run, range(64)))


@pytest.mark.parametrize("impl", IMPLS)
def test_streams_of_unequal_sizes(impl):
    """Images of different sizes equal one row of all pixels where regions allow it."""
    rng = np.random.default_rng(8)
    pairs = [(rng.random((h, w)), rng.random((h, w)) < 0.2) for h, w in [(1, 9), (1, 4), (1, 30)]]
    both = pixel_metrics(lambda: iter(pairs), impl=impl)
    # A normal pixel between images keeps their regions apart; it scores below all others.
    gap = np.array([[-1.0]]), np.array([[False]])
    row = np.concatenate([part for p in pairs for part in (p[0], gap[0])], axis=1)[:, :-1]
    ground = np.concatenate([part for p in pairs for part in (p[1], gap[1])], axis=1)[:, :-1]
    limit = 0.3 * (~ground).sum()
    narrowed = aupro(row[None], ground[None], 0.3 * ((~ground).sum() - 2) / (~ground).sum())
    assert limit > 0 and both.aupro == pytest.approx(narrowed, abs=1e-14)
    won = auroc(np.concatenate([p[0].ravel() for p in pairs]),
                np.concatenate([p[1].ravel() for p in pairs]))  # fmt: skip
    assert both.pixel_auroc == won


def test_streams_that_are_no_streams():
    image, mask = np.array([[1.0, 0.0]]), np.array([[True, False]])
    with pytest.raises(InputError, match="pairs must be a callable"):
        pixel_metrics([(image, mask)])
    once = iter([(image, mask)])
    with pytest.raises(InputError, match=r"pairs\(\) gave other images"):
        pixel_metrics(lambda: once)
    with pytest.raises(InputError, match="must give .map, mask. for image 0"):
        pixel_metrics(lambda: iter([image, mask]))
    with pytest.raises(InputError, match="give all maps one dtype"):
        pixel_metrics(lambda: iter([(image, mask), (image.astype(np.float32), mask)]))
    with pytest.raises(InputError, match="image 0 must both be"):
        pixel_metrics(lambda: iter([(image, mask[0])]))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("change", ["one more", "one less", "another size", "another kind"])
def test_a_stream_that_changes_from_walk_to_walk_is_refused(impl, change):
    first = [(np.array([[1.0, 0.0]]), np.array([[True, False]]))] * 2
    image, mask = first[1]
    again, k = {
        "one more": (first + first[:1], 2),
        "one less": (first[:1], 1),
        "another size": ([first[0], (image.T, mask.T)], 1),
        "another kind": ([first[0], (image.astype(np.float32), mask)], 1),
    }[change]
    walks = iter([first, again])
    with pytest.raises(InputError, match=rf"other images when it was called again \(image {k}\)"):
        pixel_metrics(lambda: iter(next(walks)), impl=impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_refusals(impl):
    maps, masks = np.zeros((2, 3, 3)), np.zeros((2, 3, 3), bool)
    for metric in (aupro, pixel_auroc, pro_curve, roc_curve):
        with pytest.raises(UndefinedMetricError, match="no anomalous one: the masks are empty"):
            metric(maps, masks, impl=impl)
        with pytest.raises(UndefinedMetricError, match="no normal one: the masks cover every"):
            metric(maps, ~masks, impl=impl)
        with pytest.raises(InputError, match="must both be"):
            metric(maps, masks[:1], impl=impl)
    masks[0, 0, 0] = True
    for place in [(0, 0, 0), (1, 2, 1)]:
        broken = maps.copy()
        broken[place] = np.nan
        where = ", ".join(map(str, place))
        with pytest.raises(InputError, match=rf"maps holds a NaN at index \({where}\)"):
            aupro(broken, masks, impl=impl)
        with pytest.raises(InputError, match=rf"maps holds a NaN at index \({where}\)"):
            pixel_auroc(broken, masks, impl=impl)
    for limit in (0.0, -0.1, 1.5, float("nan"), "much"):
        with pytest.raises(InputError, match="fpr_limit"):
            aupro(maps, masks, limit, impl=impl)
    with pytest.raises(InputError, match="max_points"):
        pro_curve(maps, masks, max_points=3, impl=impl)
    with pytest.raises(UndefinedMetricError):
        pixel_metrics(lambda: iter([]), impl=impl)


@pytest.mark.parametrize("step", [1, 7, 199])
def test_a_nan_is_refused_wherever_it_stands(step, rng, monkeypatch):
    """Normal or anomalous, in the sample or not, one or all; of either sign."""
    monkeypatch.setattr(metrics, "SAMPLE_STEP", step)
    for trial in range(16):
        maps = rng.random((2, 10, 30)).astype(FLOATS[trial % 2])
        masks = rng.random(maps.shape) < 0.1
        places = rng.choice(maps.size, (1, 5, maps.size)[trial % 3], replace=False)
        maps.ravel()[places] = (np.nan, -np.nan)[trial // 2 % 2]
        for metric in (aupro, pixel_auroc, pro_curve):
            with pytest.raises(InputError, match="maps holds a NaN at index"):
                metric(maps, masks)
        with pytest.raises(InputError, match="maps holds a NaN at index"):
            pixel_metrics(lambda maps=maps, masks=masks: zip(maps, masks))


def test_a_nan_of_an_image_that_is_not_held_is_refused_where_it_is_gathered(monkeypatch):
    """The first image alone exceeds what may be held, so that the others are looked at later."""
    monkeypatch.setattr(metrics, "SMALLEST_SLAB", 2)
    monkeypatch.setattr(metrics, "STREAM_BUDGET", 0)
    maps = np.arange(24.0).reshape(3, 2, 4)
    masks = np.ones(maps.shape, bool)
    masks[:, 0, 0] = False
    maps[1, 1, 2] = np.nan
    for metric in (aupro, pixel_auroc):
        with pytest.raises(InputError, match=r"maps holds a NaN at index \(1, 1, 2\)"):
            metric(maps, masks)
    points = metrics._KernelPoints(metrics._from_arrays(maps, masks), 1, None)
    points._survey()
    assert points.kept is None
    with pytest.raises(InputError, match=r"maps holds a NaN at index \(1, 1, 2\)"):
        points._gather(np.float64(-np.inf), np.float64(np.inf), points.n_anomalous)


@pytest.mark.parametrize("dtype", FLOATS)
def test_slabs_that_meet_at_zero_share_no_score(dtype, monkeypatch):
    """So many zeros, of both signs, that they fill a slab of their own, and the next one below
    ends at the smallest negative score: where -0.0 would lie there is nothing."""
    monkeypatch.setattr(metrics, "SMALLEST_SLAB", 4)
    monkeypatch.setattr(metrics, "STREAM_BUDGET", 0)
    monkeypatch.setattr(metrics, "SAMPLE_STEP", 1)
    tiny = np.nextafter(dtype(0), dtype(1))
    normal = np.repeat([3, -1, -2, -5], [20, 20, 20, 40])
    wrong = np.repeat([0, -1, -2, -3, 2], [12, 3, 2, 1, 3])
    scores = np.concatenate([normal, wrong]).astype(dtype) * tiny
    scores[100:106] = -dtype(0)
    maps, masks = scores[None, None], (np.arange(scores.size) >= normal.size)[None, None]
    points = metrics._KernelPoints(metrics._from_arrays(maps, masks), 1, Fraction(0.3))
    points._survey()
    assert points.kept is None and points.cut == -5 * tiny
    slabs = list(points._slabs())
    assert (0.0, 0.0, 12) in slabs and -tiny in [high for _, high, _ in slabs]
    assert sum(n for _, _, n in slabs) == wrong.size
    for limit in (0.3, 0.05, 1.0):
        assert aupro(maps, masks, limit) == aupro(maps, masks, limit, impl="numpy")


@pytest.mark.parametrize("impl", IMPLS)
def test_thinned_curves_keep_the_area(impl, monkeypatch):
    """Area up to 1 as the exact metric, whatever the number of points.

    Largest deviation measured: 3.3e-16.
    """
    for seed in range(60):
        maps, masks = maps_and_masks(seed)
        if not defined(masks):
            continue
        monkeypatch.setattr(metrics, "POINTS_AT_ONCE", (2**16, 1, 3)[seed % 3])
        for max_points in (16, 40, 1000):
            pro = pro_curve(maps, masks, max_points, impl=impl)
            roc = roc_curve(maps, masks, max_points, impl=impl)
            for curve, exact in (
                (pro, aupro(maps, masks, 1.0, impl=impl)),
                (roc, pixel_auroc(maps, masks, impl=impl)),
            ):
                assert abs(curve.area() - exact) < 1e-14
                assert len(curve.fpr) == len(curve.height) <= max_points
                assert (curve.fpr[0], curve.height[0]) == (0, 0)
                assert (curve.fpr[-1], curve.height[-1]) == (1, 1)
                assert np.all(np.diff(curve.fpr) >= 0) and np.all(np.diff(curve.height) >= 0)


def test_thinned_curves_stay_near_and_equal_the_streamed_ones():
    rng = np.random.default_rng(2)
    maps, masks = rng.random((3, 60, 50)), rng.random((3, 60, 50)) < 0.1
    full, thin = pro_curve(maps, masks, 10**6), pro_curve(maps, masks, 100)
    assert len(full.fpr) > 800 > 100 >= len(thin.fpr) > 40
    # 6 / 94 = 0.064; largest distance measured: 0.005.
    assert np.abs(np.interp(thin.fpr, full.fpr, full.height) - thin.height).max() < 6 / 94
    assert abs(full.area(0.3) - aupro(maps, masks)) < 1e-14
    pro, roc = pixel_curves(lambda: zip(maps, masks), 100)
    assert np.array_equal(pro.height, thin.height) and np.array_equal(pro.fpr, thin.fpr)
    assert np.array_equal(roc.height, roc_curve(maps, masks, 100).height)


def test_weights_are_whole_units():
    """The n best pixels of a region of a are worth n/a to half a unit, all of them exactly 1."""
    assert metrics._unit(1) == metrics._unit(511) == 2**52
    for regions in (1, 511, 512, 10**6, 2**31 - 1):
        assert regions * metrics._unit(regions) < 2**61
    for area in (1, 3, 7, 1000, 999_983):
        kernel = metrics._arrays.kernel("_aupro")
        rests = np.array([area // 2], np.uint32)
        points = np.empty((4, area), np.int64)
        stops = np.arange(1, area + 1, dtype=np.int32)
        counts = np.zeros(2 * area + 1, np.int64)
        kernel.climb(np.zeros(area, np.int32), stops, counts, np.array([area], np.int32), rests,
                     2**52, 0, area, np.zeros(3, np.int64), points)  # fmt: skip
        n = np.arange(1, area + 1, dtype=object)
        assert points[2, -1] == 2**52
        assert np.all(abs(points[2].astype(object) * area - n * 2**52) * 2 <= area)


def test_a_mask_of_more_pixels_than_a_label_can_count_is_refused_unread():
    mask = np.broadcast_to(np.uint8(0), (2**16, 2**15))  # one byte of memory
    kernel = metrics._arrays.kernel("_aupro")
    for label in (lambda: metrics._label_runs(kernel, mask), lambda: metrics._label_numpy(mask)):
        with pytest.raises(InputError, match="^a mask of 65536 x 32768 px has more .* smaller"):
            label()


MEMORY = """
import json, sys
import numpy as np
from tiled_ref import metrics
n, fraction, kind = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
rng = np.random.default_rng(0)
maps = rng.random((n, 512, 512), np.float32)
masks = np.zeros(maps.shape, bool)
masks[:, :, : int(512 * fraction)] = True
metrics.aupro(maps[:1], masks[:1])

def status(field):
    with open("/proc/self/status") as lines:
        return next(int(x.split()[1]) * 1024 for x in lines if x.startswith(field))

before = status("VmRSS:")
with open("/proc/self/clear_refs", "w") as reset:
    reset.write("5")  # the high-water mark starts anew
if kind == "arrays":
    value = metrics.aupro(maps, masks, 1.0)
else:
    value = metrics.pixel_metrics(lambda: zip(maps, masks), threads=1).aupro
print(json.dumps({"value": value, "grown": status("VmHWM:") - before, "scores": maps.nbytes}))
"""


def memory_of(*arguments):
    root = Path(__file__).resolve().parent.parent
    result = subprocess.run(
        [sys.executable, "-c", MEMORY, *map(str, arguments)],
        cwd=root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(result.stdout)


needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@needs_proc
@pytest.mark.parametrize("fraction", [0.02, 0.3])
def test_memory_of_arrays(fraction):
    """At most 1.5 times the scores beyond the inputs. Measured: 0.7 (2 %), 1.2 (90 %)."""
    used = memory_of(40, fraction, "arrays")
    assert used["grown"] <= 1.5 * used["scores"]


@needs_proc
def test_memory_of_a_stream():
    """What grows with the number of images is what is ordered: the anomalous pixels.

    40 more images (40 MiB of maps) add 210,000 anomalous pixels, at about 30 bytes each, and
    fill the buffers. Measured: 12.8 MiB.
    """
    few, many = (memory_of(n, 0.02, "stream") for n in (20, 60))
    assert many["grown"] - few["grown"] < 20 * 2**20
