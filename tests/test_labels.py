"""Regions: by hand, invariants, scipy as outside oracle, kernel against specification."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from adversarial import layouts, masks

from tiled_ref.metrics import label_regions
from tiled_ref.support.errors import InputError

IMPLS = ("cython", "numpy")


@pytest.mark.parametrize("impl", IMPLS)
def test_by_hand(impl):
    """Corners join; the numbers follow the first pixels; images do not touch."""
    picture = ["..#..#", ".#...#", "......", "#.#...", ".#...#"]
    expected = [[0, 0, 1, 0, 0, 2], [0, 1, 0, 0, 0, 2], [0] * 6, [3, 0, 3, 0, 0, 0],
                [0, 3, 0, 0, 0, 4]]  # fmt: skip
    mask = np.array([[c == "#" for c in row] for row in picture])
    result = label_regions(np.stack([mask, mask]), impl=impl)
    np.testing.assert_array_equal(result[0], expected)
    np.testing.assert_array_equal(result[1], np.where(mask, np.array(expected) + 4, 0))
    assert result.dtype == np.int32


@pytest.mark.parametrize("impl", IMPLS)
def test_a_spiral_is_one_region_and_a_comb_joins_late(impl):
    """Runs that look apart until the last row: the labels have to be joined backwards."""
    comb = np.zeros((1, 5, 9), np.uint8)
    comb[0, :4, ::2] = 255
    assert label_regions(comb, impl=impl).max() == 5
    comb[0, 4] = 1
    assert set(np.unique(label_regions(comb, impl=impl))) == {0, 1}
    spiral = np.array([[1, 1, 1, 1, 1], [0, 0, 0, 0, 1], [1, 1, 1, 0, 1], [1, 0, 0, 0, 1],
                       [1, 1, 1, 1, 1]], np.uint8)[None]  # fmt: skip
    assert label_regions(spiral, impl=impl).max() == 1


@pytest.mark.optional
@pytest.mark.parametrize("impl", IMPLS)
def test_against_scipy(impl):
    """scipy.ndimage.label of the whole set, connected within images only; 1,100 masks."""
    ndimage = pytest.importorskip("scipy.ndimage")
    structure = np.zeros((3, 3, 3))
    structure[1] = 1
    for seed in range(100):
        rng = np.random.default_rng(seed)
        shape = tuple(int(k) for k in rng.integers(1, [4, 14, 40]))
        for name, mask in masks(rng, shape).items():
            expected, n = ndimage.label(mask, structure)
            result = label_regions(mask, impl=impl)
            np.testing.assert_array_equal(result, expected, err_msg=f"{seed} {name}")
            assert result.max(initial=0) == n


def test_kernel_equals_specification():
    """1,100 masks of every kind; threads and layouts change nothing."""
    for seed in range(100):
        rng = np.random.default_rng((seed, 3))
        shape = tuple(int(k) for k in rng.integers(1, [5, 12, 70]))
        for name, mask in masks(rng, shape).items():
            expected = label_regions(mask, impl="numpy")
            result = label_regions(mask, threads=1 + seed % 3)
            np.testing.assert_array_equal(result, expected, err_msg=f"{seed} {name}")
    for name, array in layouts(mask):
        np.testing.assert_array_equal(label_regions(array), expected, err_msg=name)


def test_torch_and_concurrent_calls():
    sets = [masks(np.random.default_rng(seed), (2, 9, 30))["half"] for seed in range(8)]
    expected = [label_regions(mask, impl="numpy") for mask in sets]
    result = label_regions(torch.from_numpy(sets[0]))
    assert isinstance(result, torch.Tensor) and np.array_equal(result.numpy(), expected[0])

    def run(k):
        return np.array_equal(label_regions(sets[k % 8], threads=2), expected[k % 8])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(run, range(80)))


@pytest.mark.parametrize("impl", IMPLS)
def test_empty_and_refusals(impl):
    assert label_regions(np.zeros((0, 3, 3), bool), impl=impl).shape == (0, 3, 3)
    assert label_regions(np.zeros((2, 0, 3), bool), impl=impl).shape == (2, 0, 3)
    assert label_regions(np.zeros((2, 3, 0), bool), impl=impl).shape == (2, 3, 0)
    with pytest.raises(InputError, match="masks must be"):
        label_regions(np.zeros((3, 3), bool), impl=impl)
    with pytest.raises(InputError, match="bool or uint8, not int64"):
        label_regions(np.zeros((1, 3, 3), np.int64), impl=impl)
