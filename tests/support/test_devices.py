"""What float32 means, for how long, and what a transfer is."""

import numpy as np
import pytest
import torch
from toys import toy_images

from tiled_ref.ensemble import TiledEnsemble
from tiled_ref.models.base import Model
from tiled_ref.models.padim import Padim
from tiled_ref.running.engine import Engine
from tiled_ref.setups import Setup
from tiled_ref.support.devices import full_precision, to_host

NEW = hasattr(torch.backends.cudnn, "conv")  # torch 2.9 and later


def settings():
    """Of products and convolutions: torch's own words."""
    if not NEW:
        return torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    parts = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.mkldnn.matmul
    return tuple(part.fp32_precision for part in (*parts, torch.backends.mkldnn.conv))


FULL = ("ieee",) * 4 if NEW else (False, "highest")


@pytest.fixture(params=["untouched", "older names", "newer names"])
def asked(request):
    """The settings of a process that has asked for less precision, in one way or the other."""
    before = settings()
    if request.param == "older names":
        torch.set_float32_matmul_precision("medium")
        torch.backends.cudnn.allow_tf32 = True
    elif request.param == "newer names" and NEW:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    asked = settings()
    yield asked
    assert settings() == asked
    torch.set_float32_matmul_precision("highest")
    if NEW:
        parts = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.mkldnn.matmul
        for part, value in zip((*parts, torch.backends.mkldnn.conv), before):
            part.fp32_precision = value
    assert settings() == before


def test_precision_is_full_inside_and_what_it_was_afterwards(asked):
    with full_precision():
        assert settings() == FULL
    assert settings() == asked
    with pytest.raises(KeyError), full_precision():
        raise KeyError
    assert settings() == asked


def test_an_ensemble_trains_and_predicts_in_full_precision(asked, tiny_backbone, monkeypatch):
    """All that models compute, in both modes; between two batches the caller has its own."""
    seen = []

    def noted(name, function):
        def wrapped(*args, **kwargs):
            seen.append((name, settings()))
            return function(*args, **kwargs)

        return wrapped

    for name in "fit", "features", "head":
        owner = Padim if name in vars(Padim) else Model
        monkeypatch.setattr(owner, name, noted(name, getattr(owner, name)))
    monkeypatch.delattr(Padim, "joint_head")  # which is `head` for all locations
    setup = Setup("ENS", "ENS", (64, 64), (32, 32), (32, 32))
    images = toy_images(4, side=64)
    ensemble = TiledEnsemble(setup, backbone=tiny_backbone, batch_size=2).fit(images)
    for _ in ensemble.each_location(None, images):
        assert settings() == asked
    Engine(ensemble, "resident").predict(images)
    assert {name for name, _ in seen} == {"fit", "features", "head"}
    assert {found for _, found in seen} == {FULL}


class Elsewhere(torch.Tensor):
    """A tensor that says it is on a GPU."""

    device = property(lambda self: torch.device("cuda"))


def test_tensors_come_to_the_host_as_they_are():
    """Together from another device; on the CPU nothing is copied."""
    tensors = torch.arange(24.0).view(2, 4, 3).mT, torch.arange(2.0), torch.ones(0, 3)
    assert to_host(*tensors)[0].ctypes.data == tensors[0].data_ptr()
    for given in tensors, tensors[:1], [x.as_subclass(Elsewhere) for x in tensors]:
        for found, expected in zip(to_host(*given), tensors, strict=len(given) == 3):
            np.testing.assert_array_equal(found, expected)
