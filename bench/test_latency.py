"""From one image in host memory to its map and score, beside the backbone alone."""

import functools
from types import SimpleNamespace

import pytest
import torch

from tiled_ref.data import images as image_data
from tiled_ref.data import reading, synthetic
from tiled_ref.ensemble import TiledEnsemble
from tiled_ref.models import MODELS
from tiled_ref.models.backbone import ResNet18Features, chunks
from tiled_ref.models.weights import find_weights
from tiled_ref.reporting.results import ARCHS as TITLES
from tiled_ref.running.engine import MEMORY_MODES, Engine
from tiled_ref.setups import SETUPS

# Latency does not depend on the length of training: one step on two images.
TRAINED = ("fastflow", "reverse_distillation")
ALONE = "backbone alone on the same tiles"


@functools.cache
def pictures(size, n_train):
    """uint8 (n_train, 3, H, W) and (1, 3, H, W) of the built-in category board."""
    category = synthetic.load(None, "board", n_train=n_train, n_good=0, n_defective=1)
    return [reading.read_images(part, size) for part in (category.train, category.test)]


@pytest.fixture(scope="module")
def backbone():
    """A backbone with random weights: no download, and the time does not depend on them."""
    return ResNet18Features(find_weights("random", seed=0).state_dict)


@pytest.fixture(scope="module", params=SETUPS)
def setup(request, sized):
    setup, shrink = SETUPS[request.param], sized(tiny=8, usual=1, full=1)
    sizes = [
        tuple(side // shrink for side in size)
        for size in (setup.image_size, setup.tile_size, setup.stride)
    ]
    return setup.with_sizes(*sizes[: 1 if setup.kind == "SM" else 3])


def title(setup):
    tiles, models = setup.n_tiles, setup.n_models
    return (
        f"Latency of one image, {setup.name}: {setup.image_size[0]} px, {tiles} tile"
        f"{'s'[: tiles - 1]} of {setup.tile_size[0]} px, {models} model{'s'[: models - 1]}"
    )


def backbone_alone(case):
    image = image_data.normalize(torch.from_numpy(case.image))
    tiles = case.setup.input_grid.tile(image).flatten(0, 2)
    return lambda: [case.backbone(tile) for tile in chunks(tiles)]


def predict(case):
    engine = Engine(case.ensemble, case.memory)
    return lambda: engine.predict(case.image)


def contenders(arch=None, memory=None):
    return {ALONE: (backbone_alone, None), f"{TITLES.get(arch)}, {memory}": (predict, 0)}


def test_backbone(measure, backbone, setup, sized):
    image = pictures(setup.image_size, sized(tiny=2, usual=8, full=16))[1]
    case = SimpleNamespace(title=title(setup), setup=setup, backbone=backbone, image=image)
    measure(case, contenders(), ALONE)


@pytest.fixture(scope="module", params=MODELS)
def trained(request, backbone, setup, sized):
    """(architecture, trained ensemble, one image, TiledEnsemble.predict of it)"""
    train, image = pictures(setup.image_size, sized(tiny=2, usual=8, full=16))
    switches = {}
    if request.param in TRAINED:
        train, switches = train[:2], {"steps": 1}
    ensemble = TiledEnsemble(setup, request.param, backbone=backbone, switches=switches)
    return request.param, ensemble.fit(train), image, ensemble.predict(image)


@pytest.mark.parametrize("memory", MEMORY_MODES)
def test_latency(measure, trained, memory):
    arch, ensemble, image, expected = trained
    case = SimpleNamespace(
        title=title(ensemble.setup), ensemble=ensemble, image=image, memory=memory,
        expected=expected,
    )  # fmt: skip
    rows = contenders(arch, memory)
    measure(case, rows, list(rows)[1])
