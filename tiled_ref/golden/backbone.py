"""The bundle's backbone: a small version of ResNet-18, its weights, and its stages.

A convolution's weights are stored as (C_out, C_in, kh, kw), a batch normalisation's as
(4, C): weight, bias, running mean, running variance, under the modules' names.
"""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.resnet import BasicBlock

from ..models.backbone import ResNet18Features
from .compare import close
from .inputs import CHANNELS, tensor
from .numbers import Numbers
from .residual import BLOCK_MISTAKES, KERNEL_MISTAKES, NORM_MISTAKES, SAME, Residual, padded_same
from .stage import Case, Mistake, Stage, Weights

BN = ("weight", "bias", "running_mean", "running_var")


class SmallResNet(nn.Module):
    """A frozen ResNet with one block per layer, without weights: stem and layers 1 to 3.

    The strides are ResNet-18's: 7 x 7 convolution with stride 2, 3 x 3 max pooling with stride 2,
    then strides 1, 2 and 2.
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
        x = F.max_pool2d(self.bn1(self.conv1(images)).relu(), 3, 2, 1)
        layer1 = self.layer1(x)
        layer2 = self.layer2(layer1)
        return [layer1, layer2, self.layer3(layer2)]


def _shortcut(n_in, n_out):
    return nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride=2, bias=False), nn.BatchNorm2d(n_out))


def network(tensors):
    """Build the network of a bundle's weights: SmallResNet, or ResNet-18 if they are its."""
    if "layer1.0.conv1" in tensors:
        return ResNet18Features(unpacked(tensors))
    net = SmallResNet()
    net.load_state_dict(unpacked(tensors), assign=True)
    return net


def unpacked(tensors):
    """Convert {name in the bundle: array} to a state dict of torch modules."""
    state = {}
    for name, array in tensors.items():
        values = tensor(array)
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
    """Draw weights for all convolutions and batch normalisations of a module, by the bundle's
    names: multiples of powers of two, scaled to keep activations near 1. The first
    channel of a batch normalisation has a variance near its epsilon."""
    draw, tensors = Numbers(name), {}
    for key, part in module.named_modules():
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d)):
            shape = tuple(part.weight.shape)
            fan = np.prod(shape[1:]) if isinstance(part, nn.Conv2d) else shape[0]
            scale = 2.0 ** np.round(np.log2(np.sqrt(2 / fan) / 0.577))
            tensors[key] = draw.bell(*shape) * np.float32(scale)
        elif isinstance(part, nn.BatchNorm2d):
            channels = part.num_features
            weight, bias, mean = (draw.bell(channels) / 8 for _ in range(3))
            bias, mean = np.abs(bias) + 2**-4, np.abs(mean) + 2**-4  # no NaN if read as variances
            tensors[key] = np.stack([1 + weight, bias, mean, 0.5 + draw.uniform(channels)])
            tensors[key][::3, 0] *= np.float32([2.0**-8, 2.0**-16])
    return tensors


def _cases(stage="backbone", sizes=((48, 48), (45, 37), (32, 32))):
    odd = "padding", "not_square"
    kinds = ("square", 1, ()), ("rounded_up", 1, odd), ("two", 2, ("several",))
    for (name, n, flags), (h, w) in zip(kinds, sizes):
        images = 2 * Numbers(f"{stage}/{name}").bell(n, 3, h, w)
        flags = (*flags, "small_variance")
        yield Case(name, {"images": images, "weights": Weights("backbone")}, flags)


def _compute_stem(inputs):
    net = network(inputs["weights"])
    with torch.no_grad():
        convolved = net.conv1(tensor(inputs["images"]))
        normalised = net.bn1(convolved)
        pooled = F.max_pool2d(normalised.relu(), 3, 2, 1)
    outputs = {"convolved": convolved, "normalised": normalised, "pooled": pooled}
    return {name: value.contiguous().numpy() for name, value in outputs.items()}


def _compute(inputs):
    with torch.no_grad():
        layers = network(inputs["weights"])(tensor(inputs["images"]))
    return {name: layer.contiguous().numpy() for name, layer in zip(CHANNELS, layers)}


def _formula_stem(
    inputs, order=1, pool_pad=1, pool=F.max_pool2d, side=3, relu=True, normed=True, **switches
):
    """Compute the stem in plain calls, float64. Switches are mistakes: order of the colours; pool,
    its side and padding; relu or normed False omits that step; others as in Residual."""
    weights = {name: tensor(array).double() for name, array in inputs["weights"].items()}
    net = Residual(weights, **switches)
    x = tensor(np.ascontiguousarray(inputs["images"][:, ::order])).double()
    convolved = net.convolved(x, "conv1", 2)
    normalised = net.normalised(convolved, "bn1") if normed else convolved
    x = normalised.relu() if relu else normalised
    same = net.same is True
    pooled = pool(padded_same(x, 3), 3, 2) if same else pool(x, side, 2, pool_pad)
    outputs = {"convolved": convolved, "normalised": normalised, "pooled": pooled}
    return {name: value.numpy() for name, value in outputs.items()}


def _formula(inputs, order=1, pool_pad=1, pool=F.max_pool2d, relu=True, **switches):
    """Compute the backbone in plain calls, float64; see _formula_stem."""
    weights = {name: tensor(array).double() for name, array in inputs["weights"].items()}
    net = Residual(weights, **switches)
    stem = _formula_stem(inputs, order, pool_pad, pool, relu=relu, **switches)
    x, outputs = tensor(stem["pooled"]), {}
    for name, stride in (("layer1", 1), ("layer2", 2), ("layer3", 2)):
        if f"{name}.conv1" in weights:
            x = net.block(x, name, stride)
        else:  # ResNet-18 has two blocks
            x = net.block(net.block(x, f"{name}.0", stride), f"{name}.1")
        outputs[name] = x.numpy()
    return outputs


def _late_pool(x, side, stride, padding, rows=1, cols=1):
    pads = padding - cols, padding + cols, padding - rows, padding + rows
    return F.max_pool2d(F.pad(x, pads), side, stride)


def _floored_pool(x, side, stride, padding):
    h, w = x.shape[2:]
    return F.max_pool2d(x, side, stride, padding)[..., : h // stride, : w // stride]


MISTAKES = (
    Mistake("BGR instead of RGB", order=-1),
    Mistake(
        "batch normalisation uses the batch's statistics instead of the stored ones",
        training=True,
    ),
    Mistake("the maximum after the stem is not padded", pool_pad=0),
    Mistake("the padding of the first convolution is 2 instead of 3", padding=2),
    Mistake("the grid of the maximum is rounded down, not up", pool=_floored_pool),
    Mistake("a mean instead of a maximum after the stem", pool=F.avg_pool2d),
    Mistake("no ReLU after the first convolution", relu=False),
    *NORM_MISTAKES,
    *KERNEL_MISTAKES,
    *SAME,
    Mistake("the maximum starts one row and column too late", pool=_late_pool),
    Mistake("the maximum starts one row too late", pool=partial(_late_pool, cols=0)),
    Mistake("the maximum starts one column too late", pool=partial(_late_pool, rows=0)),
)

STEM = Stage(
    "stem",
    "first convolution, batch normalisation and maximum of the backbone",
    "tiled_ref.models.backbone.ResNet18Features, here in small",
    "He et al., CVPR 2016; FORMAT.md has the layers",
    {name: close(1e-4, 1e-4) for name in ("convolved", "normalised", "pooled")},
    lambda: _cases("stem", ((24, 20), (21, 17), (16, 16))),
    _compute_stem,
    _formula_stem,
    (
        *MISTAKES,
        Mistake("the maximum is over 2 x 2 pixels instead of 3 x 3", side=2, pool_pad=0),
        Mistake("no batch normalisation after the first convolution", normed=False),
    ),
)

BACKBONE = Stage(
    "backbone",
    "feature maps of three layers",
    "tiled_ref.models.backbone.ResNet18Features, here in small",
    "He et al., CVPR 2016; FORMAT.md has the layers",
    {name: close(1e-4, 1e-4) for name in CHANNELS},
    _cases,
    _compute,
    _formula,
    (
        *MISTAKES,
        *BLOCK_MISTAKES,
        Mistake(
            "stride 2 in the second convolution of a block instead of the first",
            stride_first=False,
        ),
    ),
)

STAGES = (STEM, BACKBONE)
