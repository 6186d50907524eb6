"""Untiling with overlap averaging: by hand, invariants, kernel against specification."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from adversarial import FLOATS, grid, layouts, same_bits, values

from tiled_ref.merging import (
    image_scores,
    max_scores,
    mean_scores,
    top_scores,
    untile_average,
    untile_window,
)  # fmt: skip
from tiled_ref.support.errors import InputError
from tiled_ref.tiling import TileGrid

IMPLS = ("cython", "numpy")


@pytest.mark.parametrize("impl", IMPLS)
def test_by_hand(impl):
    """Two tiles of three columns share the middle one of five: 3 and 5 average to 4."""
    # Sec. 3.3: "pixel-wise averaging ... on overlapping regions".
    maps = np.array([[[[[1.0, 2.0, 3.0]]], [[[5.0, 6.0, 7.0]]]]])  # (1, 2, 1, 1, 3)
    result = untile_average(maps, TileGrid((1, 5), (1, 3), (1, 2)), impl=impl)
    np.testing.assert_array_equal(result, [[[1, 2, 4, 6, 7]]])


@pytest.mark.parametrize("impl", IMPLS)
def test_padding_is_dropped(impl):
    """Image of 3, tile 2, stride 2: the second tile sticks out by one column."""
    maps = np.array([[[[[1.0, 2.0]]], [[[3.0, 99.0]]]]])
    result = untile_average(maps, TileGrid((1, 3), (1, 2), (1, 2)), impl=impl)
    np.testing.assert_array_equal(result, [[[1, 2, 3]]])


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_pairwise_sum_of_one_value_is_exact(impl, dtype):
    """1/3 on 4, 16 or 64 tiles a pixel comes back to the bit; 3 tiles: within 1 ulp."""
    third = dtype(1) / dtype(3)
    for stride, exact in ((4, True), (2, True), (1, True)):
        tiles = TileGrid((32, 32), (8, 8), (stride, stride))
        maps = np.full((tiles.rows, tiles.cols, 1, 8, 8), third)
        middle = untile_average(maps, tiles, impl=impl)[0, 8:24, 8:24]
        assert same_bits(middle, np.full_like(middle, third)) is exact
    tiles = TileGrid((3, 9), (3, 3), (3, 1))
    maps = np.full((tiles.rows, tiles.cols, 1, 3, 3), third)
    assert np.all(np.abs(untile_average(maps, tiles, impl=impl) - third) <= np.spacing(third))


@pytest.mark.parametrize("dtype", FLOATS)
def test_kernel_equals_specification_on_random_grids(dtype):
    """1,000 random grids and values of every kind, bit for bit; inputs unchanged."""
    for seed in range(500):
        rng = np.random.default_rng((seed, 1))
        tiles = grid(seed)
        kinds = values(rng, (tiles.rows, tiles.cols, 1 + seed % 3, *tiles.tile_size), dtype)
        for name in [list(kinds)[seed % len(kinds)], list(kinds)[(seed // 7) % len(kinds)]]:
            maps = kinds[name]
            before = maps.copy()
            with np.errstate(all="ignore"):
                expected = untile_average(maps, tiles, impl="numpy")
            assert same_bits(untile_average(maps, tiles), expected), (seed, name)
            assert same_bits(maps, before)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_window_by_hand(impl, dtype):
    """Two tiles of three columns share the middle one of five, each with a weight of 1/2 there; two
    of four share two, with 3/2 and 1/2 against 1/2 and 3/2."""
    maps = np.array([[[[[1.0, 2.0, 3.0]]], [[[5.0, 6.0, 7.0]]]]], dtype)  # (1, 2, 1, 1, 3)
    result = untile_window(maps, TileGrid((1, 5), (1, 3), (1, 2)), impl=impl)
    np.testing.assert_array_equal(result, [[[1, 2, 4, 6, 7]]])
    maps = np.array([[[[[1.0, 1, 4, 8]]], [[[12.0, 0, 1, 1]]]]], dtype)
    result = untile_window(maps, TileGrid((1, 6), (1, 4), (1, 2)), impl=impl)
    np.testing.assert_array_equal(result, [[[1, 1, 4 * 3 / 4 + 12 / 4, 8 / 4, 1, 1]]])


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_window_is_its_definition_and_its_kernel_the_twin(dtype):
    """On 250 random grids: kernel and twin bit for bit, and a sum of products in float64."""
    for seed in range(250):
        rng = np.random.default_rng((seed, 2))
        tiles = grid(seed)
        shape = tiles.rows, tiles.cols, 1 + seed % 3, *tiles.tile_size
        kinds = values(rng, shape, dtype)
        maps = kinds[list(kinds)[seed % len(kinds)]]
        before = maps.copy()
        with np.errstate(all="ignore"):
            expected = untile_window(maps, tiles, impl="numpy")
        assert same_bits(untile_window(maps, tiles, threads=1 + seed % 3), expected), seed
        assert same_bits(maps, before)
        maps = rng.random(shape).astype(dtype)
        np.testing.assert_allclose(
            untile_window(maps, tiles), weighted_mean(maps, tiles), rtol=2e-6
        )  # measured: 4e-7 with float32


def weighted_mean(maps, tiles):
    """sum(w m) / sum(w) per pixel, w the product of the distances to the nearer edges, float64."""
    (h, w), (H, W) = tiles.tile_size, tiles.image_size
    total, weights = np.zeros((maps.shape[2], H + h, W + w)), np.zeros((H + h, W + w))
    near = [np.minimum(np.arange(n) + 0.5, n - np.arange(n) - 0.5) for n in (h, w)]
    for (i, j), (top, left) in zip(tiles.locations(), tiles.origins):
        place = np.s_[top : top + h, left : left + w]
        total[(slice(None), *place)] += np.outer(*near) * maps[i, j]
        weights[place] += np.outer(*near)
    return total[:, :H, :W] / weights[:H, :W]


def test_layouts_and_threads_change_nothing():
    tiles = TileGrid((21, 18), (8, 6), (4, 3))
    rng = np.random.default_rng(5)
    maps = values(rng, (tiles.rows, tiles.cols, 7, 8, 6), np.float32)["normal"]
    expected = untile_average(maps, tiles, impl="numpy")
    for name, array in layouts(maps):
        for threads in (1, 2, 3, 16):
            assert same_bits(untile_average(array, tiles, threads=threads), expected), name


def test_nan_and_torch_pass_through():
    tiles = TileGrid((4, 6), (4, 4), (4, 2))
    maps = np.ones((1, 2, 2, 4, 4), np.float32)
    maps[0, 1, 0, 0, 0] = np.nan
    for impl in IMPLS:
        result = untile_average(torch.from_numpy(maps), tiles, impl=impl)
        assert isinstance(result, torch.Tensor)
        assert torch.isnan(result).nonzero().tolist() == [[0, 0, 2]]


def test_concurrent_calls():
    """Eight threads, each with its own set, at once and again and again."""
    sets = []
    for seed in range(8):
        tiles = grid(seed)
        maps = np.random.default_rng(seed).random((tiles.rows, tiles.cols, 3, *tiles.tile_size))
        sets.append((maps, tiles, untile_average(maps, tiles, impl="numpy")))

    def run(k):
        maps, tiles, expected = sets[k % 8]
        return same_bits(untile_average(maps, tiles, threads=2), expected)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(run, range(80)))


def test_no_image():
    tiles = TileGrid(4, 2, 2)
    for impl in IMPLS:
        assert untile_average(np.zeros((2, 2, 0, 2, 2)), tiles, impl=impl).shape == (0, 4, 4)


@pytest.mark.parametrize(
    "maps, sentence",
    [
        (np.zeros((2, 2, 1, 2, 2), np.int32), "maps must be float32 or float64, not int32"),
        (np.zeros((2, 2, 2, 2)), "the five axes"),
        (np.zeros((2, 1, 1, 2, 2)), "2 x 2 tiles"),
        ([[1.0]], "NumPy array or a CPU tensor, not list"),
        (torch.zeros(2, 2, 1, 2, 2, device="meta"), "maps is on the device meta; .*cpu"),
        (torch.zeros(2, 2, 1, 2, 2).to_sparse(), "maps must be a dense tensor, not torch.sparse"),
        (torch.zeros(2, 2, 1, 2, 2).half(), "maps must be float32 or float64, not torch.float16"),
    ],
)
@pytest.mark.parametrize("impl", IMPLS)
def test_refusals(maps, sentence, impl):
    with pytest.raises(InputError, match=sentence):
        untile_average(maps, TileGrid(4, 2, 2), impl=impl)


def test_unknown_impl_and_threads():
    maps = np.zeros((2, 2, 1, 2, 2))
    with pytest.raises(InputError, match="impl must be"):
        untile_average(maps, TileGrid(4, 2, 2), impl="fortran")
    for threads in (0, True, 1.5, "2"):
        with pytest.raises(InputError, match="threads must be a whole number of at least 1"):
            untile_average(maps, TileGrid(4, 2, 2), threads=threads)


def test_threads_variable(monkeypatch):
    maps, tiles = np.ones((2, 2, 1, 2, 2)), TileGrid(4, 2, 2)
    monkeypatch.setenv("TILED_REF_THREADS", "3")
    assert untile_average(maps, tiles).all()
    monkeypatch.setenv("TILED_REF_THREADS", "many")
    with pytest.raises(InputError, match="TILED_REF_THREADS"):
        untile_average(maps, tiles)


def test_scores_by_hand():
    """Mean of 1, 2, 3, 6 is 3, maximum 6."""
    scores = np.array([[[1.0], [2.0]], [[3.0], [6.0]]], np.float32)  # (2, 2, 1)
    assert mean_scores(scores).tolist() == [3.0]
    assert max_scores(scores).tolist() == [6.0]
    assert mean_scores(scores).dtype == np.float32
    with pytest.raises(InputError, match="three axes"):
        mean_scores(scores[0])


def test_the_mean_of_the_k_highest_scores():
    scores = np.array([[[1.0, 4.0], [2.0, 4.0]], [[8.0, 4.0], [6.0, 0.0]]], np.float32)
    for k, expected in (1, [8, 4]), (2, [7, 4]), (3, [16 / 3, 4]), (4, [4.25, 3]), (9, [4.25, 3]):
        np.testing.assert_array_equal(top_scores(scores, k), np.float32(expected))
        np.testing.assert_array_equal(image_scores(scores, f"top:{k}"), np.float32(expected))
    np.testing.assert_array_equal(image_scores(scores, "max"), top_scores(scores, 1))
    np.testing.assert_array_equal(image_scores(scores), mean_scores(scores))
    assert top_scores(torch.from_numpy(scores), 2).tolist() == [7, 4]
    scores[0, 0, 1] = np.nan
    assert np.isnan(top_scores(scores, 2)).tolist() == [False, True]
