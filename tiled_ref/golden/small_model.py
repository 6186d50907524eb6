"""The backbone of the bundle: ResNet-18 in small, and its weights.

A convolution's weights are stored as (C_out, C_in, kh, kw), a batch normalisation's as
(4, C): weight, bias, running mean, running variance. So names in the bundle are those of the
modules, without ".weight" for batch normalisation.
"""

import numpy as np
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock

from ..models.backbone import ResNet18Features
from .numbers import Numbers

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
