"""The frozen feature extractor of every model: ResNet-18 up to layer3.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016. The network
is torchvision's; its weights come from `tiled_ref.models.weights`. Without layer4 and classifier
2,782,784 parameters remain, exactly as many as Table 3 of Rolih et al. counts.
"""

import torch
import torchvision

from ..support.devices import on_cpu

# Pixels of the input per position of each layer's feature map, and channels.
FEATURE_STRIDE = {"layer1": 4, "layer2": 8, "layer3": 16}
CHANNELS = {"layer1": 64, "layer2": 128, "layer3": 256}
CHUNK = 8  # images or tiles that pass through a network together, so that activations fit


def channels_of(backbone):
    """Channels of each layer of a backbone: its attribute `channels`, else ResNet-18's."""
    return getattr(backbone, "channels", CHANNELS)


def chunks(images, size=CHUNK):
    """Split images (or feature maps) into the parts that pass through a network together.

    On a CPU one image at a time: the libraries choose their algorithm, and with it the rounding,
    by the shape of the batch, so only an image alone has bits that depend on nothing else.
    Relative to batches of 8 (AMD EPYC, 2 cores, torch 2.14.1, 2026-11-27): 0.73 of the time at
    512 x 512 px, 1.02 at 256, 1.4 at 128, 2.2 at 64.

    Parameters: images (B, 3, h, w), or maps (B, C, hf, wf), any dtype; size, images at a time
    on other devices.
    Returns a tuple of tensors (b, ...).
    """
    return images.split(1 if on_cpu(images.device) else size)


class ResNet18Features(torch.nn.Module):
    """Feature maps of layer1, layer2 and layer3 of a frozen ResNet-18 in evaluation mode.

    Parameters: state_dict, a torchvision ResNet-18's, with or without layer4 and classifier.
    Raises RuntimeError, from torch, for missing tensors or wrong shapes.
    """

    def __init__(self, state_dict):
        super().__init__()
        with torch.device("meta"):  # no random initialisation, so no global generator is used
            net = torchvision.models.resnet18(weights=None)
        self.stem = torch.nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        self.layer1, self.layer2, self.layer3 = net.layer1, net.layer2, net.layer3
        own = {self._own_name(k): v for k, v in state_dict.items() if self._own_name(k)}
        self.load_state_dict(own, assign=True)
        self.requires_grad_(False)
        self.train(False)
        # On a CPU oneDNN convolves this layout about 1.5 times as fast.
        self.to(memory_format=torch.channels_last)

    def train(self, mode=True):
        """Stay in evaluation mode: batch normalisation keeps its ImageNet statistics."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images):
        """(B, 3, h, w) normalised float32 -> [(B, 64, h/4, w/4), (B, 128, h/8, w/8),
        (B, 256, h/16, w/16)]; sides that are not a multiple of 16 are rounded up."""
        images = images.contiguous(memory_format=torch.channels_last)
        layer1 = self.layer1(self.stem(images))
        layer2 = self.layer2(layer1)
        return [layer1, layer2, self.layer3(layer2)]

    @staticmethod
    def _own_name(name):
        """torchvision's name of a tensor -> the name here; None for an unused tensor."""
        head, _, rest = name.partition(".")
        if head in ("conv1", "bn1"):
            return f"stem.{('conv1', 'bn1').index(head)}.{rest}"
        return name if head in ("layer1", "layer2", "layer3") else None
