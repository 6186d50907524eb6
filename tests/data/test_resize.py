"""Resizing and normalising: by hand, by the rule in loops, and against OpenCV and torch."""

import math

import numpy as np
import pytest
import torch
from _data_files import picture

from tiled_ref.data import images, mvtec, resizing


def tap(x, n, m, columns):
    """Output pixel x, from n to m pixels: the two input pixels and their weights."""
    f = np.float32((x + 0.5) * (1 / (m / n)) - 0.5)
    i = math.floor(f)
    f -= np.float32(i)
    if columns and (i < 0 or i >= n - 1):
        f = np.float32(0)
    weights = round(2048 * float(np.float32(1) - f)), round(2048 * float(f))
    return min(max(i, 0), n - 1), min(max(i + 1, 0), n - 1), *weights


def resized_by_loops(image, size):
    """OpenCV's INTER_LINEAR in Python's integers, pixel by pixel."""
    out = np.empty((*size, image.shape[2]), np.uint8)
    for y, x, c in np.ndindex(out.shape):
        top, bottom, b0, b1 = tap(y, image.shape[0], size[0], columns=False)
        left, right, a0, a1 = tap(x, image.shape[1], size[1], columns=True)
        upper, lower = (
            int(image[j, left, c]) * a0 + int(image[j, right, c]) * a1 for j in (top, bottom)
        )
        out[y, x, c] = ((b0 * (upper >> 4) >> 16) + (b1 * (lower >> 4) >> 16) + 2) >> 2
    return out


def test_halving_averages_four_pixels_and_rounds_halves_up():
    """(0 + 1 + 2 + 3) / 4 = 1.5 -> 2; (0 + 2 + 4 + 4) / 4 = 2.5 -> 3; 255 stays 255."""
    image = np.array([[0, 1, 0, 2, 255, 255], [2, 3, 4, 4, 255, 255]], np.uint8)
    np.testing.assert_array_equal(resizing.resize_image(image, (1, 3)), [[2, 3, 255]])


def test_three_pixels_to_two_by_hand():
    """At 0.25 and 1.75 the weights are 1536, 512 and 512, 1536: R = 10 x 1536 + 20 x 512 =
    25,600 and 20 x 512 + 41 x 1536 = 73,216; R >> 4 = 1600 and 4576. One row has b0 = 2048 and
    b1 = 0: 1600 x 2048 >> 16 = 50 and 143; (50 + 2) >> 2 = 13 and (143 + 2) >> 2 = 36."""
    image = np.array([[10, 20, 41]], np.uint8)
    np.testing.assert_array_equal(resizing.resize_image(image, (1, 2)), [[13, 36]])


def test_what_the_shifts_drop_may_cost_a_level():
    """Row 1 of 8 lies at 1.5 x 5 / 8 - 0.5 = 0.4375, so 2 and 1 give 1.5625, which is 2. But
    b0 = 1152, b1 = 896: 1152 x 256 >> 16 = 4, 896 x 128 >> 16 = 1, and (4 + 1 + 2) >> 2 = 1."""
    image = np.array([[2], [1], [0], [0], [0]], np.uint8)
    assert resizing.resize_image(image, (8, 1))[1, 0] == 1


@pytest.mark.parametrize(
    ("shape", "size"),
    [((6, 7), (3, 4)), ((6, 7), (5, 5)), ((6, 7), (11, 2)), ((6, 7), (1, 1)), ((6, 7), (6, 9)),
     ((6, 7), (20, 7)), ((6, 8), (3, 4)), ((6, 8), (3, 8)), ((1, 1), (3, 4)), ((1, 9), (4, 5)),
     ((40, 2), (17, 130)), ((2, 1501), (3, 997)), ((7, 1), (9, 5463)), ((145281, 1), (49728, 1))],
)  # fmt: skip
def test_resize_is_the_rule_in_loops(shape, size):
    """One column to 5463: at pixel 4917 the two weights round to 2049, which f = 0 avoids."""
    image = picture(*shape)
    got = resizing.resize_image(image, size)
    assert got.dtype == np.uint8 and got.flags.c_contiguous
    np.testing.assert_array_equal(got, resized_by_loops(image, size))
    np.testing.assert_array_equal(resizing.resize_image(image[..., 1], size), got[..., 1])


def opencv():
    """cv2.resize with INTER_LINEAR, as resize_image takes its arguments."""
    cv2 = pytest.importorskip("cv2")
    return lambda image, size: cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


@pytest.mark.optional
@pytest.mark.parametrize("channels", [1, 3])
def test_200_random_sizes_have_the_bits_of_opencv(rng, channels):
    resize = opencv()
    for k in range(200):
        shape, size = (tuple(int(n) for n in rng.integers(1, 700, 2)) for _ in range(2))
        if k % 4 == 1:
            shape = 2 * size[0], 2 * size[1]
        if k % 4 == 2:
            size = (size[0], shape[1]) if k % 8 == 2 else (shape[0], size[1])
        image = rng.integers(0, 256, (*shape, channels)[: 2 + (channels > 1)], np.uint8)
        if k % 3 == 0:
            image = 255 * (image > 127).astype(np.uint8)
        got = resizing.resize_image(image, size)
        np.testing.assert_array_equal(got, resize(image, size), str((k, shape, size)))


@pytest.mark.optional
@pytest.mark.parametrize(
    ("shape", "size"),
    [((2, 117251), (1, 72448)), ((117251, 2), (72448, 1)), ((251389, 1), (260928, 1)),
     ((64, 1), (75, 5463)), ((4190, 3040), (1000, 2048))],
)  # fmt: skip
def test_very_long_sides_have_the_bits_of_opencv(shape, size):
    """Where n / m instead of 1 / (m / n), or f in float64, shows."""
    image = picture(*shape)
    np.testing.assert_array_equal(resizing.resize_image(image, size), opencv()(image, size))


@pytest.mark.optional
@pytest.mark.real
def test_photographs_have_the_bits_of_opencv(screw):
    resize = opencv()
    for sample in mvtec.load(screw, "screw").test[::20]:
        colour = sample.read_image()
        for size in ((256, 256), (300, 211), (700, 900), (100, 640)):
            for image in (colour, np.ascontiguousarray(colour[..., 0])):
                np.testing.assert_array_equal(
                    resizing.resize_image(image, size), resize(image, size), sample.name
                )


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(
    ("shape", "size"),
    [((64, 64), (32, 32)), ((70, 70), (51, 51)), ((37, 53), (64, 20)), ((5, 1), (9, 7)),
     ((128, 96), (9, 13)), ((16, 16), (64, 64))],
)  # fmt: skip
def test_resize_agrees_with_torch(shape, size, antialias):
    image = picture(*shape)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    expected = torch.nn.functional.interpolate(
        tensor, size=size, mode="bilinear", align_corners=False, antialias=antialias
    )
    expected = expected[0].permute(1, 2, 0).numpy()
    # Measured: 0.5 + 9e-6 with antialias, the rounding to 8 bits and that of the weights to
    # float32; 0.77 without (0.83 in 300 random sizes): integers drop low bits.
    allowed = 0.5 + 1e-4 if antialias else 1
    assert np.abs(resizing.resize_image(image, size, antialias) - expected).max() <= allowed


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(
    ("shape", "size"), [((90, 70), (45, 31)), ((37, 53), (64, 20)), ((90, 70), (45, 35))]
)
def test_strips_of_a_large_image_are_the_whole(monkeypatch, shape, size, antialias):
    """Sixteen rows at a time, the last strip shorter: the bits of all rows at once."""
    image = picture(*shape)
    whole = resizing.resize_image(image, size, antialias)
    monkeypatch.setattr(resizing, "STRIP", 0)
    np.testing.assert_array_equal(resizing.resize_image(image, size, antialias), whole)


@pytest.mark.parametrize("antialias", [False, True])
def test_the_same_size_and_constant_images_are_unchanged(antialias):
    image = picture(9, 7)
    np.testing.assert_array_equal(resizing.resize_image(image, (9, 7), antialias), image)
    for value in (0, 1, 127, 254, 255):
        constant = np.full((8, 6, 3), value, np.uint8)
        for size in ((4, 5), (4, 3), (30, 3)):
            assert (resizing.resize_image(constant, size, antialias) == value).all()


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [(5, 5), (6, 6), (30, 12)])
def test_resize_leaves_its_input_alone_and_accepts_read_only_views(size, antialias):
    image = picture(12, 12)
    before = image.copy()
    image.flags.writeable = False
    for view in (image[::-1, ::-1], image.transpose(1, 0, 2), image[..., 1], image[..., :1]):
        got = resizing.resize_image(view, size, antialias)
        assert got.shape == (*size, *view.shape[2:]) and got.flags.c_contiguous
        np.testing.assert_array_equal(got, resizing.resize_image(view.copy(), size, antialias))
    np.testing.assert_array_equal(image, before)


def test_nearest_masks_by_hand():
    """From 6 to 3 rows: 0, 2, 4; from 5 to 3 columns: floor(0, 1.67, 3.33) = 0, 1, 3."""
    mask = np.zeros((6, 5), bool)
    mask[2, 1] = mask[4, 3] = mask[1, 1] = mask[4, 4] = True
    np.testing.assert_array_equal(
        resizing.resize_mask(mask, (3, 3)),
        np.array([[0, 0, 0], [0, 1, 0], [0, 0, 1]], bool),
    )


@pytest.mark.parametrize("size", [(256, 256), (7, 30), (1, 1), (300, 200)])
def test_nearest_masks_agree_with_torch(size):
    mask = picture(128, 100)[..., 0] > 127
    tensor = torch.from_numpy(mask)[None, None].to(torch.uint8)
    expected = torch.nn.functional.interpolate(tensor, size=size, mode="nearest")[0, 0]
    got = resizing.resize_mask(mask, size)
    assert got.flags.c_contiguous and got.dtype == bool
    np.testing.assert_array_equal(got, expected.numpy() > 0)


def test_normalize_by_hand_and_against_torchvision():
    transforms = pytest.importorskip("torchvision.transforms.functional")
    batch = torch.zeros(2, 3, 2, 2, dtype=torch.uint8)
    batch[1] = 255
    before = batch.clone()
    got = images.normalize(batch)
    assert got.dtype == torch.float32 and torch.equal(batch, before)
    # (0 - 0.485) / 0.229 and (1 - 0.406) / 0.225
    assert got[0, 0, 0, 0].item() == pytest.approx(-2.117904, abs=1e-6)
    assert got[1, 2, 1, 1].item() == pytest.approx(2.64, abs=1e-6)
    pixels = torch.from_numpy(picture(16, 16)).permute(2, 0, 1)
    expected = transforms.normalize(pixels / 255, images.MEAN, images.STD)
    assert torch.equal(images.normalize(pixels[None])[0], expected)
