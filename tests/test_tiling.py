"""Cutting and untiling: Eq. 1-2, the paper's worked example, padding, averaging."""

import numpy as np
import pytest
import torch

from tiled_ref.support.errors import InputError
from tiled_ref.tiling import TileGrid

GRIDS = [
    (512, 256, 128),
    (512, 256, 256),
    ((64, 96), (32, 48), (16, 24)),
    ((50, 70), (20, 30), (15, 30)),  # padded in both directions
    ((7, 5), (7, 5), (3, 2)),  # a single tile
    ((13, 11), (4, 3), (1, 1)),
    ((33, 1), (8, 1), (5, 1)),
    (40, 32, 2),  # up to 25 tiles over a pixel
    (100, 60, 60),  # the second tile sticks out by 20 px
]


def pixels_of_tile(grid, i, j):
    """Eq. 2, scalar: the set of pixels (a, b) of T_ij."""
    return {
        (a, b)
        for a in range(grid.stride[0] * i, grid.stride[0] * i + grid.tile_size[0])
        for b in range(grid.stride[1] * j, grid.stride[1] * j + grid.tile_size[1])
    }


def test_worked_example_of_the_paper():
    """Sec. 3.1: T_00..T_22; T_00 and T_01 share a in [0, 256), b in [128, 256)."""
    grid = TileGrid(512, 256, 128)
    assert (grid.rows, grid.cols) == (3, 3)
    assert grid.locations()[0] == (0, 0) and grid.locations()[-1] == (2, 2)
    common = pixels_of_tile(grid, 0, 0) & pixels_of_tile(grid, 0, 1)
    assert common == {(a, b) for a in range(256) for b in range(128, 256)}


def test_four_tiles_without_overlap():
    assert TileGrid(512, 256, 256).origins == ((0, 0), (0, 256), (256, 0), (256, 256))


@pytest.mark.parametrize("sizes", GRIDS)
def test_number_of_tiles_is_eq_1_where_the_stride_fits_and_one_more_where_not(sizes):
    grid = TileGrid(*sizes)
    for axis, count in enumerate((grid.rows, grid.cols)):
        rest = grid.image_size[axis] - grid.tile_size[axis]
        floor = rest // grid.stride[axis] + 1
        assert count == floor + (rest % grid.stride[axis] > 0)


def coverage(grid):
    """How many tiles cover each pixel, int (H, W)."""
    count = np.zeros(grid.padded_size, int)
    for a, b in grid.origins:
        count[a : a + grid.tile_size[0], b : b + grid.tile_size[1]] += 1
    return count[: grid.image_size[0], : grid.image_size[1]]


@pytest.mark.parametrize("sizes", GRIDS)
def test_every_pixel_is_covered(sizes):
    assert coverage(TileGrid(*sizes)).min() >= 1


@pytest.mark.parametrize("sizes", GRIDS)
def test_tiles_hold_the_pixels_of_eq_2_and_zeros_beyond_the_image(sizes):
    grid = TileGrid(*sizes)
    (H, W), (h, w) = grid.image_size, grid.tile_size
    image = np.arange(1, H * W + 1).reshape(1, H, W)
    tiles = grid.tile(image)
    assert tiles.shape == (grid.rows, grid.cols, 1, h, w)
    for i, j in (grid.locations()[0], grid.locations()[-1]):
        for a, b in list(pixels_of_tile(grid, i, j))[:: max(1, h * w // 200)]:
            value = tiles[i, j, 0, a - grid.stride[0] * i, b - grid.stride[1] * j]
            assert value == (a * W + b + 1 if a < H and b < W else 0)
    for i, j in grid.locations():
        rows, cols = grid.window(i, j)
        np.testing.assert_array_equal(grid.pad_tile(image[..., rows, cols]), tiles[i, j])


@pytest.mark.parametrize("sizes", GRIDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_untile_inverts_tile(sizes, dtype, rng):
    """Bit-exact where the count is a power of two, within 1 ulp elsewhere."""
    grid = TileGrid(*sizes)
    image = rng.standard_normal((2, 3, *grid.image_size)).astype(dtype)
    before = image.copy()
    again = grid.untile(grid.tile(image))
    np.testing.assert_array_equal(image, before)
    count = coverage(grid)
    exact = np.broadcast_to((count & (count - 1)) == 0, image.shape)
    np.testing.assert_array_equal(again[exact], image[exact])
    bits = np.int32 if dtype is np.float32 else np.int64
    # Equal signs, so the distance of the bit patterns counts ulps; the largest seen is 1.
    assert np.abs(again.view(bits).astype(np.int64) - image.view(bits)).max() <= 1


def test_untile_averages_by_hand():
    """Tiles 1 and 3 of width 2 overlap in one column: 1, (1 + 3) / 2, 3."""
    grid = TileGrid((1, 3), (1, 2), (1, 1))
    tiles = np.array([[[[1.0, 1.0]], [[3.0, 3.0]]]])[:, :, None]  # (1, 2, 1, 1, 2)
    np.testing.assert_array_equal(grid.untile(tiles), [[[1.0, 2.0, 3.0]]])


@pytest.mark.parametrize("sizes", GRIDS)
def test_torch_and_numpy_agree(sizes, rng):
    grid = TileGrid(*sizes)
    image = rng.standard_normal((2, *grid.image_size)).astype(np.float32)
    tiles = grid.tile(torch.from_numpy(image))
    np.testing.assert_array_equal(tiles.numpy(), grid.tile(image))
    noisy = tiles + torch.from_numpy(rng.standard_normal(tiles.shape).astype(np.float32))
    np.testing.assert_array_equal(grid.untile(noisy).numpy(), grid.untile(noisy.numpy()))


def test_negative_zero_keeps_its_sign():
    grid = TileGrid(4, 2, 2)
    tiles = np.full((2, 2, 1, 2, 2), -0.0, np.float32)
    assert np.signbit(grid.untile(tiles)).all()


def test_gradient_passes_through_untile():
    """Reverse Distillation on tiled input trains through it: d mean / d tile = 1 / count."""
    grid = TileGrid((1, 3), (1, 2), (1, 1))
    tiles = torch.ones(1, 2, 1, 1, 2, requires_grad=True)
    grid.untile(tiles).sum().backward()
    assert tiles.grad.flatten().tolist() == [1.0, 0.5, 0.5, 1.0]


def test_scaled_grid_is_that_of_the_feature_map():
    assert TileGrid(512, 256, 128).scaled(4) == TileGrid(128, 64, 32)
    with pytest.raises(InputError, match="stride that is a multiple of 8 px, not 100 x 100"):
        TileGrid(512, 256, 100).scaled(8)


@pytest.mark.parametrize(
    "sizes, sentence",
    [
        ((128, 256, 128), "tile's height of 256 px is larger than the image's 128 px"),
        (((256, 128), 256, 128), "tile's width of 256 px is larger than the image's 128 px"),
        ((512, 128, 256), "stride of 256 px is larger than the tile's height of 128 px"),
        ((0, 1, 1), "image size must be positive"),
        ((512, 256, -1), "stride must be positive"),
        ((10**30, 10**30, 10**30), "image size must be positive, at most 1,048,576 px, not 1000"),
        ((2**20 + 1, 1, 1), "image size must be positive, at most 1,048,576 px"),
        ((512, (256, 256, 3), 128), "tile size must be one or two whole numbers"),
        ((512, 256.0, 128), "whole numbers"),
        ((512, True, 1), "whole numbers"),
        (("512", 256, 128), "whole numbers"),
    ],
)
def test_impossible_grids_are_refused_with_a_sentence(sizes, sentence):
    with pytest.raises(InputError, match=sentence):
        TileGrid(*sizes)


def test_arrays_of_another_shape_are_refused():
    grid = TileGrid(8, 4, 2)
    with pytest.raises(InputError, match="for images of 8 x 8 px"):
        grid.tile(np.zeros((1, 8, 9)))
    with pytest.raises(InputError, match="has 3 x 3 tiles of 4 x 4 px"):
        grid.untile(np.zeros((2, 3, 1, 4, 4)))
    with pytest.raises(InputError, match="has 3 x 3 tiles of 4 x 4 px"):
        grid.untile(np.zeros((3, 3, 1, 4, 5)))
    with pytest.raises(IndexError, match=r"no tile \(3, 0\)"):
        grid.window(3, 0)
