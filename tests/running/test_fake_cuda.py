"""Training and prediction on GPUs, without one: fake tensors have shapes, dtypes and devices, and
no data.

A tensor on the wrong device, and a step that depends on data, are errors of torch there. What
crosses between host and device is counted.
"""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves
from ranks_server import together
from transfers import Transfers

from tiled_ref.ensemble import TiledEnsemble
from tiled_ref.models import MODELS, fastflow, reverse_distillation
from tiled_ref.running.engine import MEMORY_MODES, Engine
from tiled_ref.running.processes import Share
from tiled_ref.setups import SETUPS, Setup
from tiled_ref.support.devices import resolve_device, to_host

pytestmark = pytest.mark.skipif(
    not hasattr(torch.backends.cudnn, "conv"),
    reason="before torch 2.9 fake tensors of a GPU may ask for a driver",
)
ARCHS = sorted(MODELS)
SMALL = {  # a setup of each kind
    "SM": Setup("SM", "SM", (64, 64), (64, 64), (64, 64)),
    "ST": Setup("ST", "ST", (64, 48), (32, 32), (16, 16)),
    "ENS": Setup("ENS", "ENS", (56, 48), (32, 32), (24, 24)),  # tiles stick out
}
STEPS = {"fastflow": {"steps": 2}, "reverse_distillation": {"steps": 2}}


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


def numpy(tensor, real=torch.Tensor.numpy):
    """Stands for Tensor.numpy: a fake tensor, which has to be on the CPU, is full of ones."""
    if not isinstance(tensor, FakeTensor):
        return real(tensor)
    assert tensor.device.type == "cpu", tensor.device
    return np.ones(tensor.shape, str(tensor.dtype).partition(".")[2])


@pytest.fixture
def fake(monkeypatch):
    """Fake tensors, and what they do not have replaced."""
    monkeypatch.setattr(torch.Tensor, "numpy", numpy)
    monkeypatch.setattr(torch.nn.Module, "_apply", replace_tensors)
    monkeypatch.setattr(fastflow, "N_BLOCKS", 1)
    monkeypatch.setattr(reverse_distillation, "initialize", lambda *_: None)  # 14 million numbers
    return FakeTensorMode(allow_non_fake_inputs=True)


class Seen(Transfers):
    """Also the devices, other than the CPU, of all tensors."""

    def __init__(self):
        super().__init__()
        self.devices = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = super().__torch_dispatch__(function, types, args, kwargs)
        found = [x.device for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.devices.update(str(d) for d in found if d.type not in ("cpu", "meta"))
        return result


def pictures(n, setup):
    return np.zeros((n, 3, *setup.image_size), np.uint8)


# ------------------------------------------------------------------------------- prediction


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("arch", ARCHS)
def test_every_setup_predicts_on_cuda(tiny_backbone, fake, arch, setup):
    """In both modes; an image goes up once and its maps and scores come down once, per batch of
    a location in `low`, of all locations in `resident`. In `low` a location's state goes up too."""
    state = untrained_state(TiledEnsemble(setup, arch, backbone=tiny_backbone).make_model())
    backbone = copy.deepcopy(tiny_backbone)
    with fake:
        ensemble = TiledEnsemble(setup, arch, backbone=backbone, device="cuda", batch_size=9)
        ensemble.states = dict.fromkeys(ensemble.setup.models, state)
        model = ensemble.make_model()
        with Transfers() as loading:
            model.load_state(state)
        n_models = ensemble.setup.n_models
        for memory in MEMORY_MODES:
            engine = Engine(ensemble, memory)
            with Seen() as seen:
                maps, scores = engine.predict(pictures(2, ensemble.setup))
            assert maps.shape == (2, *ensemble.setup.image_size) and scores.shape == (2,)
            batches = {"low": n_models, "resident": 2 if n_models == 9 else 1}[memory]
            assert seen.uploads.count(torch.uint8) == batches == len(seen.downloads)
            states = len(loading.uploads) * n_models if memory == "low" else 0
            assert len(seen.uploads) - batches == states
            assert seen.hidden == [] and seen.devices == {"cuda:0"}


@pytest.mark.parametrize("arch", ARCHS)
def test_float16_predicts_on_cuda(tiny_backbone, fake, arch, monkeypatch):
    available = "amp_definitely_not_available"  # else torch leaves autocast out, with a warning
    monkeypatch.setattr(torch.cuda.amp.common, available, lambda: False)
    for precision, dtype in ("float32", torch.float32), ("float16", torch.float16):
        state = untrained_state(TiledEnsemble("ENS4", arch, backbone=tiny_backbone).make_model())
        backbone, dtypes = copy.deepcopy(tiny_backbone), set()
        backbone.layer3.register_forward_hook(lambda layer, _, out: dtypes.add(out.dtype))
        with fake:
            ensemble = TiledEnsemble(
                "ENS4", arch, backbone=backbone, device="cuda", precision=precision
            )
            ensemble.states = dict.fromkeys(ensemble.setup.models, state)
            for memory in MEMORY_MODES:
                Engine(ensemble, memory).predict(pictures(1, ensemble.setup))
        assert dtypes == {dtype}


# --------------------------------------------------------------------------------- training

# Torch's autograd asks the driver about streams of a CUDA device, fake or not; of a "lazy" one,
# which no code here knows, it asks nobody.
DEVICE = "lazy:0"


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("arch", ARCHS)
def test_every_architecture_trains_on_a_device(tiny_backbone, fake, arch, kind):
    """Five images in batches of two: an image goes up once; what comes down is one look at the
    statistics or at each image's features, and the state."""
    setup, backbone = SMALL[kind], copy.deepcopy(tiny_backbone)
    with fake:
        ensemble = TiledEnsemble(
            setup, arch, backbone=backbone, device=DEVICE, batch_size=2, switches=STEPS.get(arch)
        )
        states = {}
        with Seen() as seen:
            found = ensemble.each_location(pictures(5, setup), pictures(0, setup), states)
            assert list(found) == []
    assert states.keys() == setup.models.keys()
    learnt = sum(tensor.is_floating_point() for tensor in states[0, 0].values())
    n_models, n_tensors = setup.n_models, len(states[0, 0])
    images = 5 if arch in STEPS else 3  # one at a time, or batches of two
    looks = 5 if arch in STEPS else 1
    assert seen.uploads.count(torch.uint8) == images * n_models
    on_device = n_tensors if arch in STEPS else learnt + (arch == "patchcore")
    assert len(seen.downloads) == (looks + on_device) * n_models
    assert seen.hidden == [] and seen.devices == {DEVICE}


def test_two_processes_use_a_device_each(tiny_backbone, fake, monkeypatch):
    """They share the locations; each computes on its own device alone. The first one is stopped
    after two of four."""
    setup, states = SMALL["ENS"], {}
    locations = list(setup.models)
    shares = [Share(ranks, "cell") for ranks in together()]
    shares[0].opened("ready")
    for share in shares:
        with monkeypatch.context() as two:
            two.setattr(torch.cuda, "is_available", lambda: True)
            two.setattr(torch.cuda, "device_count", lambda: 2)
            device = resolve_device("cuda", share.ranks)
        assert device == torch.device("cuda", share.ranks.rank)
        own, backbone = torch.device("lazy", device.index), copy.deepcopy(tiny_backbone)
        with fake:
            ensemble = TiledEnsemble(
                setup, "fastflow", backbone=backbone, device=own, switches=STEPS["fastflow"]
            )
            todo = itertools.islice(share.take(locations), 2 if share.opens else 4)
            images = pictures(3, setup)
            with Seen() as seen:
                found = ensemble.each_location(images, images[:1], states, locations=todo)
                places = [place for place, *_ in found]
        assert places == (locations[:2] if share.opens else locations[2:])
        assert seen.devices == {str(own)}
    assert list(states) == locations


def test_a_tensor_on_the_wrong_device_and_a_look_at_data_are_noticed(fake):
    for device in "cuda", DEVICE:
        with fake, Transfers() as seen:
            images = torch.zeros(2, 3, device=device)
            with pytest.raises(RuntimeError, match="same device"):
                images + torch.zeros(3)
            with pytest.raises(DataDependentOutputException):
                bool(images.any())
            with pytest.raises(AssertionError, match=device[:4]):
                images.numpy()
            a, b = to_host(images, images[0])
            images[[0, 1, 1]]
        assert a.shape == (2, 3) and b.shape == (3,)
        assert len(seen.downloads) == 1
        assert len(seen.uploads) + len(seen.hidden) == 1  # the list of rows
