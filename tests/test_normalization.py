"""Thresholds and normalisation for people (metrics are computed on raw scores)."""

import numpy as np
import pytest

from tiled_ref.normalization import f1_threshold, normalize


def f1_by_counting(scores, labels, threshold):
    called = [s >= threshold for s in scores]
    hits = sum(c and a for c, a in zip(called, labels))
    return 2 * hits / (sum(called) + sum(labels))


def test_by_hand():
    """Scores 1 2 3 4, anomalous 2 and 4: calling 2, 3, 4 gives F1 = 2*2 / (3 + 2) = 0.8."""
    assert f1_threshold(np.array([1.0, 2, 3, 4]), np.array([0, 1, 0, 1])) == (2.0, 0.8)


def test_equal_scores_are_one_threshold():
    """2 2 with one anomalous: both are called, F1 = 2 / (2 + 1)."""
    threshold, f1 = f1_threshold(np.array([1.0, 2, 2]), np.array([0, 0, 1]))
    assert threshold == 2.0 and f1 == 2 / 3


def test_no_other_threshold_is_better_and_the_smallest_of_the_best_is_taken(rng):
    for _ in range(50):
        scores = rng.integers(0, 6, 12).astype(np.float32)
        labels = rng.integers(0, 2, 12)
        labels[0] = 1
        threshold, f1 = f1_threshold(scores, labels)
        candidates = {float(s): f1_by_counting(scores, labels, s) for s in scores}
        best = max(candidates.values())
        assert f1 == best
        assert threshold == min(s for s, value in candidates.items() if value == best)


def test_without_anomalies_the_threshold_is_the_largest_score():
    assert f1_threshold(np.array([1.0, 5, 2]), np.zeros(3)) == (5.0, None)


def test_the_threshold_becomes_one_half(rng):
    values = rng.standard_normal(20)
    threshold, low, high = float(np.median(values)), values.min(), values.max()
    scaled = normalize(values, threshold, low, high)
    np.testing.assert_array_equal(scaled >= 0.5, values >= threshold)
    assert normalize(np.array([threshold]), threshold, low, high) == 0.5
    assert scaled.min() >= 0 and scaled.max() <= 1


def test_values_far_out_are_clamped():
    np.testing.assert_array_equal(normalize(np.array([-9.0, 9.0]), 0.5, 0.0, 1.0), [0, 1])


def test_a_range_of_zero_says_below_at_or_above():
    np.testing.assert_array_equal(normalize(np.array([1.0, 2, 3]), 2.0, 2.0, 2.0), [0, 0.5, 1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_kept(dtype):
    assert normalize(np.zeros(2, dtype), 0.0, 0.0, 1.0).dtype == dtype
