"""Arrays, tensors, lists and paths as images, labels and masks beside them; what is refused."""

import numpy as np
import pytest
import torch
from toys import toy_images

from tiled_ref.data.encoders import encode_png
from tiled_ref.ensemble import TiledEnsemble
from tiled_ref.setups import SETUPS
from tiled_ref.support.errors import InputError


@pytest.fixture(scope="module")
def ensemble(tiny_backbone):
    """Trained on images of 64 px."""
    setup = SETUPS["ENS4"].with_sizes((64, 64), (32, 32))
    return TiledEnsemble(setup, backbone=tiny_backbone).fit(toy_images(4, side=64))


def test_arrays_tensors_lists_and_paths_are_the_same_images(ensemble, tmp_path):
    images = toy_images(3, side=64)
    last = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    for k, image in enumerate(last):
        (tmp_path / f"{k}.png").write_bytes(encode_png(image))
    maps, scores = ensemble.predict(images)
    for other in (
        torch.from_numpy(images), last, list(images), list(last), [torch.from_numpy(last[0]),
        images[1], tmp_path / "2.png"], tmp_path, str(tmp_path),
        [str(tmp_path / f"{k}.png") for k in range(3)], (x for x in images),
    ):  # fmt: skip
        found = ensemble.predict(other)
        np.testing.assert_array_equal(found[0], maps)
        np.testing.assert_array_equal(found[1], scores)
    one, _ = ensemble.predict(tmp_path / "1.png")
    assert one.shape == (1, 64, 64)


def test_images_of_any_size_are_resized(ensemble):
    sizes = [(64, 64), (100, 70), (33, 200)]
    maps, _ = ensemble.predict([np.full((h, w, 3), 90, np.uint8) for h, w in sizes])
    np.testing.assert_array_equal(maps[1], maps[0])
    np.testing.assert_array_equal(maps[2], maps[0])
    grey, _ = ensemble.predict([np.full((50, 40), 90, np.uint8)])
    np.testing.assert_array_equal(grey[0], maps[0])


def test_one_array_of_images_of_another_size_is_those_images(ensemble, rng):
    images = rng.integers(0, 255, (2, 3, 100, 70), dtype=np.uint8)
    maps, scores = ensemble.predict(list(images))
    for other in (images, images.transpose(0, 2, 3, 1), torch.from_numpy(images)):
        found = ensemble.predict(other)
        np.testing.assert_array_equal(found[0], maps)
        np.testing.assert_array_equal(found[1], scores)


@pytest.mark.parametrize(
    "images, sentence",
    [
        (np.zeros((2, 3, 64, 64)), "must be uint8, 0 to 255, not float64; scale"),
        (np.full((2, 3, 64, 64), np.nan, np.float32), "not float32 with NaNs"),
        (torch.zeros(2, 3, 64, 64, dtype=torch.bfloat16), "must be uint8"),
        (np.zeros((2, 3, 64, 64), np.int64), "must be uint8, 0 to 255, not int64"),
        (np.zeros((0, 3, 64, 64), np.uint8), "no pixels"),
        (np.zeros((2, 3, 0, 64), np.uint8), "no pixels"),
        (np.zeros((64, 64, 3), np.uint8), r"shape \(64, 64, 3\) are not supported"),
        (np.zeros((2, 4, 64, 64), np.uint8), "are not supported"),
        (np.array("x"), "must be uint8"),
        ([], "there are no images"),
        ([np.zeros((4, 4, 2), np.uint8)], "image 0 has the shape"),
        ([np.zeros((4, 4, 3))], "image 0 must be uint8"),
        ([None], "image 0 is a NoneType"),
        (5, "images of type int are not supported"),
        ("no/such/file.png", "no/such/file.png does not exist"),
        (["a\0b.png"], "null"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused(ensemble, images, sentence):
    with pytest.raises(InputError, match=sentence):
        ensemble.predict(images)


def test_labels_and_masks_must_fit(ensemble):
    images = toy_images(3, side=64)
    with pytest.raises(InputError, match="3 images and labels of shape"):
        ensemble.calibrate(images, labels=[0, 1])
    with pytest.raises(InputError, match="the masks have the shape"):
        ensemble.calibrate(images, labels=[0, 1, 1], masks=np.zeros((3, 32, 32), bool))
    masks = np.zeros((3, 64, 64), bool)
    masks[1:, 10:30, 10:30] = True
    found = ensemble.calibrate(images, labels=[0, 7, 1], masks=masks).thresholds
    assert found["n_anomalous"] == 2 and found["pixel"]["rule"] == "f1"
