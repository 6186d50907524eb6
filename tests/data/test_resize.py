"""Resizing and normalising: by hand, by the definition in loops, and against torch."""

import numpy as np
import pytest
import torch
from _data_files import picture

from tiled_ref.data import images, resizing


def resized_by_loops(image, size):
    """Bilinear resize from its definition, scalar float64."""
    height, width, channels = image.shape
    out = np.empty((*size, channels))
    for i in range(size[0]):
        for j in range(size[1]):
            y = min(max((i + 0.5) * height / size[0] - 0.5, 0), height - 1)
            x = min(max((j + 0.5) * width / size[1] - 0.5, 0), width - 1)
            top, left = int(y), int(x)
            below, right = min(top + 1, height - 1), min(left + 1, width - 1)
            for c in range(channels):
                a, b = float(image[top, left, c]), float(image[top, right, c])
                one = a * (1 - (x - left)) + b * (x - left)
                a, b = float(image[below, left, c]), float(image[below, right, c])
                two = a * (1 - (x - left)) + b * (x - left)
                out[i, j, c] = one * (1 - (y - top)) + two * (y - top)
    return out


def test_halving_averages_four_pixels_and_rounds_half_to_even():
    """(0 + 1 + 2 + 3) / 4 = 1.5 -> 2; (0 + 2 + 4 + 4) / 4 = 2.5 -> 2; 255 stays 255."""
    one = np.array([[0, 1, 0, 2, 255, 255], [2, 3, 4, 4, 255, 255]], np.uint8)
    image = np.repeat(one[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(resizing.resize_image(image, (1, 3))[0, :, 0], [2, 2, 255])


@pytest.mark.parametrize("size", [(3, 4), (5, 5), (11, 2), (1, 1), (6, 9)])
def test_resize_is_the_definition(size):
    image = picture(6, 7)
    expected = resized_by_loops(image, size)
    got = resizing.resize_image(image, size)
    assert got.dtype == np.uint8 and got.flags.c_contiguous
    assert np.abs(got - expected).max() <= 0.5 + 1e-4  # measured: 0.5 and 6e-6


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
    # Measured: 0.5 + 9e-6, the rounding to 8 bits and that of the weights to float32.
    assert np.abs(resizing.resize_image(image, size, antialias) - expected).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("shape", "size"), [((90, 70), (45, 31)), ((37, 53), (64, 20))])
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
        constant = np.full((9, 7, 3), value, np.uint8)
        for size in ((4, 5), (30, 3)):
            assert (resizing.resize_image(constant, size, antialias) == value).all()


def test_resize_leaves_its_input_alone_and_accepts_read_only_views():
    image = picture(12, 12)
    before = image.copy()
    image.flags.writeable = False
    view = image[::-1, ::-1]
    np.testing.assert_array_equal(
        resizing.resize_image(view, (5, 5)), resizing.resize_image(view.copy(), (5, 5))
    )
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
