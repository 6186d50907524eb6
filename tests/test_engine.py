"""All ways of arranging the models in memory give the same bits."""

import numpy as np
import pytest
import torch

from tiled_ref.engine import Engine
from tiled_ref.ensemble import TiledEnsemble
from tiled_ref.errors import InputError
from tiled_ref.models import MODELS
from tiled_ref.setups import Setup
from toys import toy_images

ARCHS = sorted(MODELS)
SWITCHES = {"fastflow": {"steps": 2}, "reverse_distillation": {"steps": 2}}
SETUPS = {
    "SM": Setup("SM", "SM", (64, 64), (64, 64), (64, 64)),
    "ST": Setup("ST", "ST", (64, 64), (32, 32), (32, 32)),
    "ENS": Setup("ENS", "ENS", (56, 48), (32, 32), (24, 24)),  # sticks out of the image
}


@pytest.fixture(scope="module")
def fitted(tiny_backbone):
    """fitted(kind, arch) -> a trained ensemble and test images, each made once."""
    made = {}

    def make(kind, arch):
        if (kind, arch) not in made:
            setup = SETUPS[kind]
            height, width = setup.image_size
            images = toy_images(9, side=height)[..., :width].copy()
            ensemble = TiledEnsemble(
                setup, arch, backbone=tiny_backbone, switches=SWITCHES.get(arch)
            )
            made[kind, arch] = ensemble.fit(images[:5]), images[5:]
        return made[kind, arch]

    return make


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("kind", SETUPS)
@pytest.mark.parametrize("memory", ["low", "resident"])
def test_every_arrangement_gives_the_bits_of_one_location_after_the_other(
    fitted, kind, arch, memory
):
    ensemble, images = fitted(kind, arch)
    expected = ensemble.predict(images)
    maps, scores = Engine(ensemble, memory).predict(images)
    np.testing.assert_array_equal(maps, expected[0])
    np.testing.assert_array_equal(scores, expected[1])


@pytest.mark.parametrize("arch", ARCHS)
def test_an_image_alone_gets_the_bits_that_it_gets_in_a_batch(fitted, arch):
    ensemble, images = fitted("ENS", arch)
    expected = ensemble.predict(images)
    for memory in ("low", "resident"):
        engine = Engine(ensemble, memory)
        for k, image in enumerate(images):
            maps, scores = engine.predict(image[None])
            np.testing.assert_array_equal(maps[0], expected[0][k])
            assert scores[0] == expected[1][k]


def test_what_was_not_trained_is_refused(tiny_backbone):
    with pytest.raises(InputError, match="not been trained"):
        Engine(TiledEnsemble(SETUPS["ENS"], backbone=tiny_backbone))


def test_images_stay_as_they_are(fitted):
    ensemble, images = fitted("ENS", "padim")
    before = images.copy()
    Engine(ensemble, "resident").predict(images)
    np.testing.assert_array_equal(images, before)
    assert torch.from_numpy(images).data_ptr() == images.ctypes.data
