"""Seam smoothing: by hand, invariants, torch as outside oracle, kernel against specification."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from adversarial import FLOATS, grid, layouts, same_bits, values

from tiled_ref.models.maps import convolved, gaussian_blur
from tiled_ref.smoothing import seam_mask, smooth_seams
from tiled_ref.support.errors import InputError
from tiled_ref.support.gaussian import gaussian_taps, reflected
from tiled_ref.tiling import TileGrid

IMPLS = ("cython", "numpy")
ENS9 = TileGrid(512, 256, 128)


def test_band_of_the_paper():
    """ENS9: 25 px on each side of 128, 256, 384, half of the pixels; ENS4: 18.6 %."""
    # Sec. 3.3: "10% of the tile width on each side of the seam".
    rows = seam_mask(ENS9)[:, 0]
    assert np.flatnonzero(np.diff(rows.astype(int))).tolist() == [102, 152, 230, 280, 358, 408]
    assert round(float(seam_mask(ENS9).mean()), 3) == 0.5
    assert round(float(seam_mask(TileGrid(512, 256, 256)).mean()), 3) == 0.186


@pytest.mark.parametrize("impl", IMPLS)
def test_by_hand(impl):
    """One row, sigma 0.3: radius int(1.2 + 0.5) = 1, weights w0 + 2 w1 = 1.

    The border of two tiles of 10 is at 10, the band holds columns 9 and 10. A step from 0 to
    1 at the border becomes w1 on its left and 1 - w1 on its right.
    """
    w0, w1 = gaussian_taps(0.3)
    step = np.repeat([0.0, 1.0], 10)[None, None]
    result = smooth_seams(step, TileGrid((1, 20), (1, 10), (1, 10)), 0.1, 0.3, impl=impl)
    # The rows' pass comes second; down the columns a single row is its own mirror.
    column = w0 * 1.0 + w1 * (1.0 + 1.0)
    expected = step.copy()
    expected[0, 0, 9] = w0 * 0.0 + w1 * (0.0 + column)
    expected[0, 0, 10] = w0 * column + w1 * (0.0 + column)
    assert same_bits(result, expected)


def test_taps_and_mirror():
    taps = gaussian_taps(2.0)
    assert taps.size == 9
    # Largest deviation measured: 0.0.
    assert abs(taps[0] + 2 * taps[1:].sum() - 1) < 1e-15
    assert taps[1] / taps[0] == pytest.approx(np.exp(-1 / 8), rel=1e-15)
    assert reflected(4, 2).tolist() == [2, 1, 0, 1, 2, 3, 2, 1]
    assert reflected(2, 3).tolist() == [1, 0, 1, 0, 1, 0, 1, 0]
    assert reflected(1, 2).tolist() == [0] * 5


def test_taps_of_another_type_are_refused():
    with pytest.raises(InputError, match="must be float32 or float64, not int64"):
        gaussian_taps(2.0, np.int64)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_outside_the_band_bits_are_kept(impl, dtype):
    rng = np.random.default_rng(3)
    tiles = TileGrid((40, 37), (20, 16), (10, 8))
    outside = ~seam_mask(tiles)
    for name, maps in values(rng, (2, 40, 37), dtype).items():
        result = smooth_seams(maps, tiles, impl=impl)
        assert same_bits(result[:, outside], maps[:, outside]), name
        assert outside.any() and not outside.all()


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 2e-6), (np.float64, 4e-15)])
def test_against_torch(dtype, tolerance):
    """conv2d with the outer product of the taps, mirrored: another order of additions.

    Largest deviation measured: 4.8e-7 (float32), 8.9e-16 (float64).
    """
    rng = np.random.default_rng(4)
    tiles = TileGrid((60, 50), (30, 20), (15, 10))
    maps = rng.standard_normal((3, 60, 50)).astype(dtype)
    half = torch.from_numpy(gaussian_taps(2.0, dtype))
    taps = torch.cat([half.flip(0), half[1:]])
    padded = torch.nn.functional.pad(torch.from_numpy(maps)[:, None], (8,) * 4, mode="reflect")
    blurred = torch.nn.functional.conv2d(padded, torch.outer(taps, taps)[None, None])[:, 0]
    expected = np.where(seam_mask(tiles), blurred.numpy(), maps)
    assert np.abs(smooth_seams(maps, tiles) - expected).max() < tolerance


@pytest.mark.parametrize("dtype", FLOATS)
def test_kernel_equals_specification_on_random_grids(dtype):
    """1,000 random grids, widths and sigmas, values of every kind, bit for bit."""
    for seed in range(500):
        rng = np.random.default_rng((seed, 2))
        tiles = grid(seed)
        width = float(rng.choice([0.0, 0.1, 0.3, 1.0]))
        sigma = float(rng.choice([0.1, 0.3, 0.5, 1.0, 2.0, 3.3]))
        kinds = values(rng, (1 + seed % 2, *tiles.image_size), dtype)
        maps = kinds[list(kinds)[seed % len(kinds)]]
        before = maps.copy()
        expected = smooth_seams(maps, tiles, width, sigma, impl="numpy")
        result = smooth_seams(maps, tiles, width, sigma)
        assert same_bits(result, expected), (seed, width, sigma)
        assert same_bits(maps, before)


def test_layouts_threads_and_torch_change_nothing():
    tiles = TileGrid((21, 18), (8, 6), (4, 3))
    maps = np.random.default_rng(5).standard_normal((7, 21, 18)).astype(np.float32)
    expected = smooth_seams(maps, tiles, 0.3, impl="numpy")
    for name, array in layouts(maps):
        for threads in (1, 2, 3, 16):
            assert same_bits(smooth_seams(array, tiles, 0.3, threads=threads), expected), name
    result = smooth_seams(torch.from_numpy(maps), tiles, 0.3)
    assert isinstance(result, torch.Tensor) and same_bits(result.numpy(), expected)


def test_concurrent_calls():
    sets = []
    for seed in range(8):
        tiles = grid(seed)
        maps = np.random.default_rng(seed).random((3, *tiles.image_size))
        sets.append((maps, tiles, smooth_seams(maps, tiles, 0.3, impl="numpy")))

    def run(k):
        maps, tiles, expected = sets[k % 8]
        return same_bits(smooth_seams(maps, tiles, 0.3, threads=2), expected)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(run, range(80)))


def test_nan_stays_near():
    """A NaN reaches the band pixels within the radius of 8 and no others."""
    maps = np.zeros((1, 40, 40))
    maps[0, 10, 18] = np.nan
    tiles = TileGrid(40, 20, 20)
    expected = np.zeros((40, 40), bool)
    expected[2:19, 10:27] = True
    expected &= seam_mask(tiles)
    assert expected.sum() == 17 * 4 + 17 - 4
    for impl in IMPLS:
        np.testing.assert_array_equal(np.isnan(smooth_seams(maps, tiles, impl=impl)[0]), expected)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ((np.zeros((1, 4, 5)), TileGrid(4, 2, 2)), "for this grid"),
        ((np.zeros((4, 4)), TileGrid(4, 2, 2)), "for this grid"),
        ((np.zeros((1, 4, 4), np.float16), TileGrid(4, 2, 2)), "float32 or float64"),
        ((np.zeros((1, 4, 4)), TileGrid(4, 2, 2), 1.5), "width of the seam band"),
        ((np.zeros((1, 4, 4)), TileGrid(4, 2, 2), 0.1, 0.0), "sigma must be"),
        *(
            ((np.zeros((1, 4, 4)), TileGrid(4, 2, 2), 0.1, sigma), "sigma must be .* at most 4, not")
            for sigma in (float("nan"), float("inf"), -1.0, 1e-200, 4.01, 1e9, 10**400, "x", None)
        ),
        ((np.zeros((1, 4, 4)), TileGrid(4, 2, 2), 10**400), "width of the seam band"),
    ],
)
def test_refusals(arguments, sentence, impl):
    with pytest.raises(InputError, match=sentence):
        smooth_seams(*arguments, impl=impl)


def test_sigma_is_at_most_the_larger_side_wherever_it_enters():
    """A larger one would take hours for the same mean of everything."""
    for width, most in ((20, 20), (5, 16)):  # PaDiM blurs maps of a few pixels, too
        maps = torch.ones(1, 3, width)
        for blur in gaussian_blur, convolved:
            torch.testing.assert_close(blur(maps, float(most)), maps)
            with pytest.raises(InputError, match=f"at most {most}, not {most + 0.5}"):
                blur(maps, most + 0.5)
    with pytest.raises(InputError, match="at most 1048576, not 1e\\+30"):
        gaussian_taps(1e30)
