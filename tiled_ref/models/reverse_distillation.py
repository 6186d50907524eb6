"""Reverse Distillation: a decoder learns to undo the encoder on normal images only.

Deng, Li, "Anomaly Detection via Reverse Distillation from One-Class Embedding", CVPR 2022,
arXiv:2201.10703. Tensors are float32 throughout. Read Sec. 3 beside this file:

    3.1  Eq. 1   M^k(h, w) = 1 - cos(f_E^k(h, w), f_D^k(h, w))       -> cosine_distance
    3.1  Eq. 2   L = sum_k 1/(H_k W_k) sum_h sum_w M^k(h, w)         -> distillation_loss
    3.1  student decoder, symmetrical to the encoder                 -> Decoder
    3.2  one-class bottleneck: multi-scale feature fusion, embedding -> Bottleneck
    3.3  Eq. 3   the anomaly map, from all M^k enlarged     -> ReverseDistillation.anomaly_map
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from ..support.errors import InputError
from .backbone import channels_of
from .maps import gaussian_blur, upsample_bilinear
from .trained import TrainedModel

LEARNING_RATE, BETAS = 0.005, (0.5, 0.999)  # Adam, Deng and Li Sec. 4.1
SIGMA = 4.0  # px, blur of the anomaly map, Deng and Li Sec. 4.1


class ReverseDistillation(TrainedModel):
    """Reverse Distillation on ResNet-18, layers 1-3.

    Parameters: backbone, output_size and the options of `TrainedModel`; with untile, encoder,
    bottleneck and decoder see tiles, and their feature maps are untiled before loss and map.
    loss, "positions" or "flattened": Eq. 2, or one cosine per image and layer as in
    the released code (deviation D10). combine, "product" or "sum": how the layers' maps become
    one; deviation D11: Eq. 3 of the paper is the sum; the tiled ensemble's authors evaluated the
    product. impl, "cython" or "numpy": of the blur on the CPU.
    Attribute student, a Student, the network.
    """

    def __init__(
        self, backbone, output_size, *, loss="positions", combine="product", impl="cython",
        **options,
    ):  # fmt: skip
        if loss not in LOSSES:
            raise InputError(f"loss must be one of {', '.join(LOSSES)}, not {loss!r}")
        if combine not in ("product", "sum"):
            raise InputError(f"combine must be 'product' or 'sum', not {combine!r}")
        super().__init__(backbone, output_size, **options)
        self.loss, self.combine, self.impl = loss, combine, impl
        self.student = Student(channels_of(backbone)["layer1"])
        initialize(self.student, torch.Generator().manual_seed(self.seed))
        self.network = self.student.to(self.device, memory_format=torch.channels_last)

    def check_batch(self, n_images):
        """Raise InputError if the bottleneck would normalise a single value."""
        h, w = self.input_size
        n_tiles = n_images * (1 if self.untile is None else self.untile.n_tiles)
        if n_tiles * math.ceil(h / 32) * math.ceil(w / 32) == 1:
            raise InputError(
                f"a batch of one image of {h} x {w} px is too small for the batch normalisation "
                "of reverse_distillation; use more training images, another --batch-size or "
                "larger images"
            )

    def optimizer(self):
        """Adam as in Deng and Li Sec. 4.1."""
        return torch.optim.Adam(self.student.parameters(), lr=LEARNING_RATE, betas=BETAS)

    @torch.no_grad()
    def loss_value(self, layers):
        """The loss (Deng and Li Eq. 2) of the encoder's layers, a list of float32 (B, C, hf, wf),
        as a scalar tensor; after fit with the running statistics of the batch normalisation,
        before it with the batch's. The statistics stay as they are."""
        buffers = {name: value.clone() for name, value in self.student.named_buffers()}
        return self._loss(functional_call(self.student, buffers, (layers,)))

    def add_gradient(self, layers):
        """Add the gradient of the batch's loss; layers as in loss_value. In one piece: batch
        normalisation needs the whole batch."""
        self._loss(self.student(layers)).backward()

    def _loss(self, outputs):
        whole = self.whole(outputs)
        return LOSSES[self.loss](whole[:3], whole[3:])

    def anomaly_map(self, layers):
        """The map of the student's outputs (Deng and Li Sec. 3.3, Eq. 3).

        Parameters: layers, six tensors (B, C, Hf, Wf) float32, three of the encoder and three
        of the decoder.
        Returns float32 (B, H, W): the layers' distances enlarged (bilinear, align_corners
        True), multiplied (or summed), blurred with sigma 4 px.
        """
        encoded, decoded = layers[:3], layers[3:]
        combined = None
        for e, d in zip(encoded, decoded):
            m = cosine_distance(e, d)  # (B, hf, wf)
            m = upsample_bilinear(m, self.output_size, align_corners=True)  # (B, H, W)
            if combined is None:
                combined = m
            else:
                combined = combined * m if self.combine == "product" else combined + m
        return gaussian_blur(combined, SIGMA, self.impl)


def cosine_distance(encoded, decoded):
    """Deng and Li Eq. 1: M(h, w) = 1 - f_E(h, w)^T f_D(h, w) / (|f_E(h, w)| |f_D(h, w)|).

    f_E = encoded, f_D = decoded, both (B, C, hf, wf). Returns (B, hf, wf), in [0, 2].
    A vector of zeros has cosine 0 (torch's epsilon 1e-8).
    """
    return 1 - F.cosine_similarity(encoded, decoded, dim=1)


def distillation_loss(encoded, decoded):
    """Deng and Li Eq. 2: L = sum_k 1/(H_k W_k) sum_h sum_w M^k(h, w), mean over the batch.

    encoded, decoded, lists of float (B, C, hf, wf) -> a scalar tensor."""
    return sum(cosine_distance(e, d).mean() for e, d in zip(encoded, decoded))


def flattened_loss(encoded, decoded):
    """The released code's loss: sum_k (1 - cos(flat f_E^k, flat f_D^k)), mean over the batch;
    encoded and decoded as in `distillation_loss`."""
    pairs = zip(encoded, decoded)
    return sum((1 - F.cosine_similarity(e.flatten(1), d.flatten(1))).mean() for e, d in pairs)


LOSSES = {"positions": distillation_loss, "flattened": flattened_loss}


class Student(nn.Module):
    """Bottleneck and decoder; width, channels of layer1, 64 in ResNet-18, scales all others."""

    def __init__(self, width=64):
        super().__init__()
        self.bottleneck = Bottleneck(width)
        self.decoder = Decoder(width)

    def forward(self, encoded):
        """Layers of the encoder, encoded (B, C, hf, wf) -> these and the decoder's outputs, six.

        If a side is not a multiple of 32 px, the bottleneck rounds its grid up and the decoder
        doubles that; its outputs are cropped to the encoder's size, at the bottom and right.
        """
        decoded = self.decoder(self.bottleneck(encoded))
        return [*encoded, *(d[..., : e.shape[-2], : e.shape[-1]] for e, d in zip(encoded, decoded))]


class Bottleneck(nn.Module):
    """One-class bottleneck embedding (Deng and Li Sec. 3.2, Fig. 4).

    Multi-scale feature fusion: layers 1 and 2 are brought to layer 3's grid by 3 x 3
    convolutions with stride 2, and all three are concatenated. One-class embedding: two
    residual blocks to 512 channels on half of that grid. width as in Student.
    """

    def __init__(self, width=64):
        super().__init__()
        c1, c2, c3, c4 = width, 2 * width, 4 * width, 8 * width
        self.fuse1 = nn.Sequential(*_conv_bn_relu(c1, c2, 2), *_conv_bn_relu(c2, c3, 2))
        self.fuse2 = nn.Sequential(*_conv_bn_relu(c2, c3, 2))
        self.embed = nn.Sequential(Block(3 * c3, c4, _down), Block(c4, c4))

    def forward(self, features):
        """[(B, 64, h/4, w/4), (B, 128, h/8, w/8), (B, 256, h/16, w/16)] -> (B, 512, h/32, w/32)."""
        layer1, layer2, layer3 = features
        fused = torch.cat([self.fuse1(layer1), self.fuse2(layer2), layer3], dim=1)
        return self.embed(fused)


class Decoder(nn.Module):
    """The student: layers 4 to 2 of ResNet-18 in reverse (Deng and Li Sec. 3.1).

    Where the encoder halves the grid by stride 2, a transposed 2 x 2 convolution with stride 2
    doubles it. width as in Student.
    """

    def __init__(self, width=64):
        super().__init__()
        c1, c2, c3, c4 = width, 2 * width, 4 * width, 8 * width
        self.to_layer3 = nn.Sequential(Block(c4, c3, _up), Block(c3, c3))
        self.to_layer2 = nn.Sequential(Block(c3, c2, _up), Block(c2, c2))
        self.to_layer1 = nn.Sequential(Block(c2, c1, _up), Block(c1, c1))

    def forward(self, embedding):
        """(B, 512, h/32, w/32) -> [(B, 64, h/4, w/4), (B, 128, h/8, w/8), (B, 256, h/16, w/16)]."""
        layer3 = self.to_layer3(embedding)
        layer2 = self.to_layer2(layer3)
        return [self.to_layer1(layer2), layer2, layer3]


class Block(nn.Module):
    """The basic residual block of He et al. (CVPR 2016), Fig. 5 left.

    resize, if given, creates the first convolution and that of the shortcut:
    resize(n_in, n_out) -> (convolution, shortcut convolution).
    """

    def __init__(self, n_in, n_out, resize=None):
        super().__init__()
        self.shortcut = None
        if resize is None:
            self.conv1 = _conv3x3(n_in, n_out)
        else:
            self.conv1, shortcut = resize(n_in, n_out)
            self.shortcut = nn.Sequential(shortcut, nn.BatchNorm2d(n_out))
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = _conv3x3(n_out, n_out)
        self.bn2 = nn.BatchNorm2d(n_out)

    def forward(self, x):
        """(B, n_in, hf, wf) -> (B, n_out, hf', wf')."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += x if self.shortcut is None else self.shortcut(x)
        return F.relu(y, inplace=True)


def _conv3x3(n_in, n_out, stride=1):
    return _empty(nn.Conv2d, n_in, n_out, 3, stride=stride, padding=1, bias=False)


def _conv_bn_relu(n_in, n_out, stride):
    return _conv3x3(n_in, n_out, stride), nn.BatchNorm2d(n_out), nn.ReLU(inplace=True)


def _down(n_in, n_out):
    """Halve the grid: 3 x 3 with stride 2, the shortcut 1 x 1 with stride 2."""
    shortcut = _empty(nn.Conv2d, n_in, n_out, 1, stride=2, bias=False)
    return _conv3x3(n_in, n_out, stride=2), shortcut


def _up(n_in, n_out):
    """Double the grid: transposed 2 x 2 with stride 2, and the same for the shortcut."""
    conv, shortcut = (
        _empty(nn.ConvTranspose2d, n_in, n_out, 2, stride=2, bias=False) for _ in range(2)
    )
    return conv, shortcut


def _empty(kind, *args, **options):
    """A module without initial values, so that no global generator is used."""
    return nn.utils.skip_init(kind, *args, **options)


@torch.no_grad()
def initialize(module, generator):
    """Initial weights, drawn in the order of module.modules().

    Convolutions: normal, variance 2 / fan-out (He et al., arXiv:1502.01852). Transposed
    convolutions: uniform in +-1/sqrt(fan-in), fan-in as torch counts it (n_out * 2 * 2).
    Batch normalisation starts as the identity, which is torch's default.

    Parameters: module; generator, a CPU torch.Generator.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            n_out, _, kh, kw = part.weight.shape
            part.weight.normal_(0, (2 / (n_out * kh * kw)) ** 0.5, generator=generator)
        elif isinstance(part, nn.ConvTranspose2d):
            bound = (part.weight[0].numel()) ** -0.5
            part.weight.uniform_(-bound, bound, generator=generator)
