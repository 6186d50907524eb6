"""The six setups of Sec. 4.2 and setups of other sizes."""

import pytest

from tiled_ref.setups import SETUPS, Setup
from tiled_ref.support.errors import InputError


def test_the_six_setups_of_the_paper():
    """Sec. 4.2: image, tile, stride, tiles of an image, models."""
    table = {
        name: (s.image_size[0], s.tile_size[0], s.stride[0], s.n_tiles, s.n_models)
        for name, s in SETUPS.items()
    }
    assert table == {
        "SM256": (256, 256, 256, 1, 1),
        "SM512": (512, 512, 512, 1, 1),
        "ST4": (512, 256, 256, 4, 1),
        "ST9": (512, 256, 128, 9, 1),
        "ENS4": (512, 256, 256, 4, 4),
        "ENS9": (512, 256, 128, 9, 9),
    }


def test_other_sizes_keep_the_kind_and_the_overlap():
    setup = SETUPS["ENS9"].with_sizes(image_size=(3040, 4190), tile_size=(512, 512))
    assert setup.stride == (256, 256) and setup.kind == "ENS"
    assert setup.name == "ENS-3040x4190-512-256"
    # ceil((3040 - 512) / 256) + 1 = 11 rows, ceil((4190 - 512) / 256) + 1 = 16 columns
    assert setup.n_models == 11 * 16
    assert SETUPS["ENS4"].with_sizes(tile_size=(128, 128)).stride == (128, 128)


def test_the_tile_of_a_single_model_follows_its_image():
    setup = SETUPS["SM256"].with_sizes(image_size=(1024, 768))
    assert setup.tile_size == (1024, 768) and setup.name == "SM-1024x768"


def test_the_papers_sizes_keep_the_papers_name():
    assert SETUPS["ENS9"].with_sizes(image_size=(512, 512)) is SETUPS["ENS9"]
    assert SETUPS["ENS9"].with_sizes() is SETUPS["ENS9"]


def test_what_makes_no_setup_is_refused():
    with pytest.raises(InputError, match="SM256 has no tiles"):
        SETUPS["SM256"].with_sizes(tile_size=(128, 128))
    with pytest.raises(InputError, match="larger than the image"):
        SETUPS["ENS9"].with_sizes(image_size=(128, 128))
    with pytest.raises(InputError, match="one of SM, ST, ENS"):
        Setup("X", "XX", (512, 512), (256, 256), (256, 256))
    with pytest.raises(InputError, match="its tile size is its image size"):
        Setup("X", "SM", (512, 512), (256, 256), (256, 256))
