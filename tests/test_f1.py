"""F1-max and SegF1: by hand, against loops over thresholds, streams, refusals."""

import numpy as np
import pytest
import torch
from adversarial import FLOATS, values

from tiled_ref import metrics
from tiled_ref.metrics import UndefinedMetricError, image_f1_max, pixel_f1_max, seg_f1
from tiled_ref.support.errors import InputError

IMPLS = ("cython", "numpy")


def test_f1_by_hand():
    """Scores 5 4 3 2 1, anomalous 5, 3 and 1: thresholds give 2/4, 2/5, 4/6, 4/7 and 6/8."""
    scores, labels = np.array([5.0, 4, 3, 2, 1]), np.array([1, 0, 1, 0, 1])
    assert image_f1_max(scores, labels) == 6 / 8
    maps, masks = scores.reshape(1, 1, 5), labels.reshape(1, 1, 5).astype(bool)
    for impl in IMPLS:
        assert pixel_f1_max(maps, masks, impl=impl) == 6 / 8
    found = [seg_f1(maps, masks, t) for t in (5.5, 5, 4, 3, 2, 1, -np.inf)]
    assert found == [0, 2 / 4, 2 / 5, 4 / 6, 4 / 7, 6 / 8, 6 / 8]


def every_threshold(scores, labels):
    """F1 at every score, in Python integers."""
    scores, labels = scores.ravel().tolist(), (labels.ravel() != 0).tolist()
    f1 = []
    for t in set(scores):
        tp = sum(label and s >= t for s, label in zip(scores, labels))
        fp = sum(not label and s >= t for s, label in zip(scores, labels))
        f1.append(2 * tp / (tp + fp + sum(labels)))
    return f1


def pro_area(maps, masks, limit):
    """AUPRO by its definition: PRO and FPR at every threshold, straight between, up to a limit."""
    regions = metrics.label_regions(masks, impl="numpy")
    curve = [(0.0, 0.0)]
    for t in sorted(set(maps.ravel().tolist()), reverse=True):
        found = maps >= t
        parts = [found[regions == r].mean() for r in range(1, regions.max() + 1)]
        curve.append((found[regions == 0].mean(), np.mean(parts)))
    area = 0.0
    for (x0, y0), (x1, y1) in zip(curve, curve[1:]):
        if x1 > limit > x0:
            x1, y1 = limit, y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
        if x1 <= limit:
            area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def test_200_random_sets_equal_loops_over_thresholds():
    """AUPRO@0.05, F1-max of pixels and images, SegF1 at every threshold; ties and infinities."""
    for seed in range(200):
        rng = np.random.default_rng((seed, 22))
        shape = tuple(rng.integers(1, 7, 3))
        maps = rng.integers(0, 2 + seed % 9, shape).astype(FLOATS[seed % 2])
        maps[rng.random(shape) < 0.1] = (np.inf, -np.inf)[seed % 2]
        masks = rng.random(shape) < 0.4
        masks.flat[0], maps.flat[-1], masks.flat[-1] = True, 0, maps.size == 1
        if masks.all():
            continue
        expected = every_threshold(maps, masks)
        for impl in IMPLS:
            assert pixel_f1_max(maps, masks, impl=impl) == max(expected), seed
            area = metrics.aupro(maps, masks, 0.05, impl=impl)
            assert abs(area - pro_area(maps, masks, 0.05)) < 1e-12, seed  # measured: 1e-15
        at = [seg_f1(maps, masks, t) for t in set(maps.ravel().tolist())]
        assert sorted(at) == sorted(expected), seed
        scores, labels = maps[0, 0], masks[0, 0].astype(int)
        if labels.any():
            assert image_f1_max(scores, labels) == max(every_threshold(scores, labels))


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_largest_f1_is_that_of_every_threshold_tried(dtype):
    """On adversarial scores; the plain metric is another way of counting."""
    for seed in range(100):
        rng = np.random.default_rng((seed, 23))
        labels = (rng.random(40) < 0.3).astype(int)
        labels[seed % 40] = 1
        for name, scores in values(rng, (40,), dtype).items():
            if not np.isnan(scores).any():
                best = image_f1_max(scores, labels)
                assert best == metrics.plain_f1_max(scores, labels), (seed, name)
                assert best == max(every_threshold(scores, labels)), (seed, name)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_stream_has_the_bits_of_the_arrays(impl):
    rng = np.random.default_rng(1)
    maps, masks = rng.random((5, 20, 30)).astype(np.float32), rng.random((5, 20, 30)) < 0.2

    def pairs():
        return zip(maps, masks)

    found = metrics.pixel_metrics(pairs, 0.05, impl, threshold=0.7)
    assert found == metrics.PixelMetrics(
        metrics.aupro(maps, masks, 0.05, impl), metrics.pixel_auroc(maps, masks, impl),
        pixel_f1_max(maps, masks, impl), seg_f1(maps, masks, 0.7),
    )  # fmt: skip
    assert seg_f1(torch.from_numpy(maps), masks, 0.7) == found.seg_f1
    assert metrics.pixel_metrics(pairs, impl=impl).seg_f1 is None


def test_a_threshold_is_compared_exactly():
    """0.1 lies below the nearest float32, 0.3 above; a float32 next to it must not slip over."""
    masks = np.array([[[1, 1, 1]]], bool)
    for threshold in (0.1, 0.3, 1 / 3, 1e-50):
        near = np.float32(threshold)
        maps = np.array([[[np.nextafter(near, -np.float32(1)), near, 1]]], np.float32)
        n = sum(value >= threshold for value in maps.ravel().tolist())
        assert seg_f1(maps, masks, threshold) == 2 * n / (n + 3)
        assert seg_f1(maps.astype(np.float64), masks, threshold) == 2 * n / (n + 3)


def test_f1_is_undefined_without_an_anomalous_example():
    maps, none = np.zeros((1, 2, 2)), np.zeros((1, 2, 2), bool)
    for call in (
        lambda: image_f1_max(np.zeros(3), np.zeros(3, int)),
        lambda: pixel_f1_max(maps, none),
        lambda: seg_f1(maps, none, 0.5),
    ):
        with pytest.raises(UndefinedMetricError, match="anomalous"):
            call()
    assert image_f1_max(np.zeros(3), np.ones(3, int)) == 1  # no normal one is needed
    assert seg_f1(maps, ~none, 0.5) == 0


def test_refusals():
    maps = np.zeros((1, 2, 2))
    with pytest.raises(InputError, match="scores holds a NaN at index .1"):
        image_f1_max(np.array([0, np.nan]), np.array([0, 1]))
    with pytest.raises(InputError, match="maps holds a NaN at index .0, 0, 0"):
        seg_f1(maps * np.nan, maps == 0, 0.5)
    with pytest.raises(InputError, match="of one shape"):
        seg_f1(maps, maps[:, :1] == 0, 0.5)
    with pytest.raises(InputError, match="masks must be bool or uint8"):
        seg_f1(maps, maps, 0.5)
