"""The backbone of the bundle: ResNet-18 in small, and its weights.

A convolution's weights are stored as (C_out, C_in, kh, kw), a batch normalisation's as
(4, C): weight, bias, running mean, running variance. So names in the bundle are those of the
modules, without ".weight" for batch normalisation.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.resnet import BasicBlock

from ..models.backbone import ResNet18Features
from .compare import close
from .inputs import tensor
from .numbers import Numbers
from .stage import Case, Confusion, Stage, Weights

WIDTH = 4  # channels of layer1; layer2 has twice, layer3 four times as many
CHANNELS = {"layer1": WIDTH, "layer2": 2 * WIDTH, "layer3": 4 * WIDTH}
BN = ("weight", "bias", "running_mean", "running_var")


class SmallResNet(nn.Module):
    """A frozen ResNet of one block a layer: stem and layers 1 to 3 with few channels.

    The grid halves where ResNet-18's does: stem 7 x 7 of stride 2, 3 x 3 maximum of stride 2,
    then strides 1, 2 and 2. Made without random numbers; the weights come from `load`.
    """

    channels = CHANNELS

    def __init__(self):
        super().__init__()
        c1, c2, c3 = CHANNELS.values()
        with torch.device("meta"):
            self.conv1 = nn.Conv2d(3, c1, 7, stride=2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(c1)
            self.layer1 = BasicBlock(c1, c1)
            self.layer2 = BasicBlock(c1, c2, 2, _shortcut(c1, c2))
            self.layer3 = BasicBlock(c2, c3, 2, _shortcut(c2, c3))
        self.requires_grad_(False)
        self.eval()

    def forward(self, images):
        """float32 (B, 3, h, w) -> [(B, 4, h/4, w/4), (B, 8, h/8, w/8), (B, 16, h/16, w/16)],
        rounded up."""
        x = nn.functional.max_pool2d(self.bn1(self.conv1(images)).relu(), 3, 2, 1)
        layer1 = self.layer1(x)
        layer2 = self.layer2(layer1)
        return [layer1, layer2, self.layer3(layer2)]


def _shortcut(n_in, n_out):
    return nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride=2, bias=False), nn.BatchNorm2d(n_out))


def backbone(tensors):
    """The network of a bundle's weights: SmallResNet, or ResNet-18 where they are its."""
    if "layer1.0.conv1" in tensors:
        return ResNet18Features(unpacked(tensors))
    net = SmallResNet()
    net.load_state_dict(unpacked(tensors), assign=True)
    return net


def unpacked(tensors):
    """{name in the bundle: array} -> a state dict of torch modules."""
    state = {}
    for name, array in tensors.items():
        values = torch.from_numpy(np.array(array))
        if values.ndim == 2:
            state.update({f"{name}.{part}": row.clone() for part, row in zip(BN, values)})
            state[f"{name}.num_batches_tracked"] = torch.tensor(0)
        else:
            state[f"{name}.weight"] = values
    return state


def packed(state):
    """The inverse of `unpacked`."""
    tensors = {}
    for name, value in state.items():
        module, _, part = name.rpartition(".")
        if part == "running_mean":
            tensors[module] = torch.stack([state[f"{module}.{p}"].detach() for p in BN]).numpy()
        elif part == "weight" and value.ndim == 4:
            tensors[module] = value.detach().contiguous().numpy()
    return tensors


def drawn(module, name):
    """Weights for all convolutions and batch normalisations of a module, by the bundle's
    names: multiples of powers of two, of the size that keeps activations near 1."""
    draw, tensors = Numbers(name), {}
    for key, part in module.named_modules():
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d)):
            shape = tuple(part.weight.shape)
            fan = shape[1] if isinstance(part, nn.Conv2d) else shape[0]
            fan *= shape[2] * shape[3] if isinstance(part, nn.Conv2d) else 1
            scale = 2.0 ** np.round(np.log2(np.sqrt(2 / fan) / 0.577))
            tensors[key] = draw.bell(*shape) * np.float32(scale)
        elif isinstance(part, nn.BatchNorm2d):
            tensors[key] = _normalisation(draw, part.num_features)
    return tensors


def _normalisation(draw, channels):
    """weight around 1, bias and mean around 0, variance in [0.5, 1.5): float32 (4, C)."""
    eighth = np.float32(0.125)
    rows = [
        1 + draw.bell(channels) * eighth,
        draw.bell(channels) * eighth,
        draw.bell(channels) * eighth,
        np.float32(0.5) + draw.uniform(channels),
    ]
    return np.stack(rows).astype(np.float32)


def _backbone_cases():
    cases = []
    for name, n, h, w, flags in (
        ("square", 1, 48, 48, ()),
        ("rounded_up", 1, 45, 37, ("padding", "not_square")),
        ("two", 2, 32, 32, ("several",)),
    ):
        draw = Numbers(f"backbone/{name}")
        inputs = {"images": 2 * draw.bell(n, 3, h, w), "weights": Weights("backbone")}
        cases.append(Case(name, inputs, flags))
    return cases


def _backbone(inputs):
    with torch.no_grad():
        layers = backbone(inputs["weights"])(tensor(inputs["images"]))
    return {f"layer{k}": layer.contiguous().numpy() for k, layer in enumerate(layers, start=1)}


def _backbone_formula(inputs, order=1, **switches):
    x = tensor(np.ascontiguousarray(inputs["images"][:, ::order])).double()
    tensors = {k: tensor(v).double() for k, v in inputs["weights"].items()}
    return {f"layer{k}": v.numpy() for k, v in enumerate(_features(x, tensors, **switches), 1)}


def _features(
    x,
    tensors,
    eps=1e-5,
    batch=False,
    pool_pad=1,
    late=False,
    stride_first=True,
    shortcut=True,
    mean=False,
    relu=True,
):
    """The backbone in plain calls, float64. Switches are mistakes: eps of the batch
    normalisation; batch, its statistics from the batch; pool_pad; late, the ReLU before the
    sum; stride_first False, the stride in the second convolution; shortcut False; mean, an
    average instead of a maximum; relu False, no ReLU after the stem."""

    def normalised(x, name):
        weight, bias, mean, var = tensors[name]
        return F.batch_norm(x, mean.clone(), var.clone(), weight, bias, batch, 0.1, eps)

    def block(x, name, stride):
        strides = (stride, 1) if stride_first else (1, stride)
        y = normalised(F.conv2d(x, tensors[f"{name}.conv1"], None, strides[0], 1), f"{name}.bn1")
        y = F.conv2d(y.relu(), tensors[f"{name}.conv2"], None, strides[1], 1)
        y = normalised(y, f"{name}.bn2")
        if f"{name}.downsample.0" in tensors:
            x = normalised(
                F.conv2d(x, tensors[f"{name}.downsample.0"], None, stride), f"{name}.downsample.1"
            )
        if not shortcut:
            return y.relu()
        return y.relu() + x if late else (y + x).relu()

    x = normalised(F.conv2d(x, tensors["conv1"], None, 2, 3), "bn1")
    x = x.relu() if relu else x
    pool = F.avg_pool2d if mean else F.max_pool2d
    x = pool(x, 3, 2, pool_pad)
    layers = []
    for name, stride in (("layer1", 1), ("layer2", 2), ("layer3", 2)):
        if f"{name}.conv1" in tensors:
            x = block(x, name, stride)
        else:  # ResNet-18 has two blocks
            x = block(block(x, f"{name}.0", stride), f"{name}.1", 1)
        layers.append(x)
    return layers


BACKBONE = Stage(
    "backbone",
    "feature maps of three layers",
    "tiled_ref.models.backbone.ResNet18Features, here in small",
    "He et al., CVPR 2016; FORMAT.md has the layers",
    {name: close(1e-4, 1e-4) for name in CHANNELS},
    _backbone_cases,
    _backbone,
    _backbone_formula,
    (
        Confusion("BGR instead of RGB", {"order": -1}),
        Confusion(
            "batch normalisation uses the batch's statistics instead of the stored ones",
            {"batch": True},
        ),
        Confusion(
            "the epsilon of the batch normalisation is 0.001 instead of 0.00001", {"eps": 1e-3}
        ),
        Confusion("the maximum after the stem is not padded", {"pool_pad": 0}),
        Confusion("a mean instead of a maximum after the stem", {"mean": True}),
        Confusion(
            "the ReLU comes before the sum with the shortcut instead of after", {"late": True}
        ),
        Confusion(
            "stride 2 in the second convolution of a block instead of the first",
            {"stride_first": False},
        ),
        Confusion("the shortcuts are not added", {"shortcut": False}),
        Confusion("no ReLU after the first convolution", {"relu": False}),
    ),
)

STAGES = (BACKBONE,)
