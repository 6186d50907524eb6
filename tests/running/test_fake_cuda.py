"""Prediction on a GPU, without one: fake tensors have shapes, dtypes and devices, and no data.

A tensor on the wrong device, and a step that depends on data, are errors of torch there."""

import copy

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from tiled_ref import ensemble as ensembles
from tiled_ref.ensemble import TiledEnsemble
from tiled_ref.models import MODELS, fastflow
from tiled_ref.running import engine
from tiled_ref.running.engine import MEMORY_MODES, Engine
from tiled_ref.setups import SETUPS


def replace_tensors(module, change, recurse=True):
    """Module._apply, on which Module.to is built, with new parameters and buffers: it cannot put
    a fake tensor's data into a real one."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                new = torch.nn.Parameter(change(value.detach()), value.requires_grad)
                part._parameters[name] = new
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = change(value)
    return module


def untrained_state(model):
    """A state with the shapes of a trained one, on the CPU; its values do not matter."""
    if hasattr(model, "network"):
        return model.state()
    grid = [side // model.STRIDE for side in model.output_size]
    if hasattr(model, "bank"):
        own = {"bank": torch.empty(1500, 384), "chosen": torch.arange(1500)}
    else:
        positions, d = grid[0] * grid[1], len(model.channels)
        own = {"mean": torch.empty(positions, d), "channels": torch.tensor(model.channels)}
        own["factors"] = torch.empty(positions, d * (d + 1) // 2)
    return own | {"grid": torch.tensor(grid)}


def came_back(*tensors):
    """Stands for to_host: a fake tensor has no data."""
    assert {str(tensor.device) for tensor in tensors} == {"cuda:0"}
    return [np.zeros(tensor.shape, np.float32) for tensor in tensors]


@pytest.fixture
def fake(monkeypatch):
    """Fake tensors and the two transfers that they need replaced."""
    for room in (ensembles, engine):
        monkeypatch.setattr(room, "to_host", came_back)
    monkeypatch.setattr(torch.nn.Module, "_apply", replace_tensors)
    monkeypatch.setattr(fastflow, "N_BLOCKS", 1)
    return FakeTensorMode(allow_non_fake_inputs=True)


def predict_on_cuda(setup, arch, backbone, fake, **options):
    """The dtypes of layer3 while two images are predicted in all memory modes."""
    state = untrained_state(TiledEnsemble(setup, arch, backbone=backbone).make_model())
    backbone, dtypes = copy.deepcopy(backbone), set()
    backbone.layer3.register_forward_hook(lambda layer, _, out: dtypes.add(out.dtype))
    with fake:
        ensemble = TiledEnsemble(setup, arch, backbone=backbone, device="cuda", **options)
        ensemble.states = dict.fromkeys(ensemble.grid.locations(), state)
        images = np.zeros((2, 3, *ensemble.setup.image_size), np.uint8)
        for memory in MEMORY_MODES:
            maps, scores = Engine(ensemble, memory).predict(images)
            assert maps.shape == (2, *ensemble.setup.image_size) and scores.shape == (2,)
    return dtypes


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("arch", sorted(MODELS))
def test_every_setup_predicts_on_cuda(tiny_backbone, fake, arch, setup):
    assert predict_on_cuda(setup, arch, tiny_backbone, fake) == {torch.float32}


@pytest.mark.parametrize("arch", sorted(MODELS))
def test_float16_predicts_on_cuda(tiny_backbone, fake, arch, monkeypatch):
    available = "amp_definitely_not_available"  # else torch leaves autocast out, with a warning
    monkeypatch.setattr(torch.cuda.amp.common, available, lambda: False)
    found = predict_on_cuda("ENS4", arch, tiny_backbone, fake, precision="float16")
    assert found == {torch.float16}


def test_a_tensor_on_the_wrong_device_and_a_look_at_data_are_noticed(fake):
    with fake:
        images = torch.zeros(2, 3, device="cuda")
        with pytest.raises(RuntimeError, match="same device"):
            images + torch.zeros(3)
        with pytest.raises(DataDependentOutputException):
            bool(images.any())
        with pytest.raises(RuntimeError):
            images.cpu().numpy()
