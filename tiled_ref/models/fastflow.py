"""FastFlow: a normalising flow on the feature maps, one flow per layer.

Yu, Zheng, Wang, Li, Wu, Zhao, Wu, "FastFlow: Unsupervised Anomaly Detection and Localization
via 2D Normalizing Flows", arXiv:2111.07677. Read Sec. 3 beside this file:

    3.2  feature extractor   layers 1 to 3 of ResNet-18, each normalised -> FastFlow.fit
    3.3  the loss            log p_X(x) = log p_Z(z) + log|det dz/dx|    -> nll
    3.3  a flow step         y_a, y_b = split(x); y_a' = y_a; y_b' = s(y_a) * y_b + b(y_a)
                                                                         -> CouplingBlock
    3.3  the map             likelihood per position, mean over layers   -> likelihood_map

and Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", ICLR 2017,
arXiv:1605.08803, for the coupling: Eq. 4-5, its Jacobian Eq. 6, its inverse Eq. 7-8. Tensors
are float32. The soft clamp of the scale, the global affine map and the permutation after each
coupling are those of the framework in which the authors' evaluation builds its flows.
"""

import math

import torch
import torch.nn.functional as F

from ..support.errors import InputError
from .backbone import CHUNK, FEATURE_STRIDE, channels_of
from .maps import upsample_bilinear
from .trained import LAYERS, TrainedModel

N_BLOCKS = 8  # coupling blocks per layer for ResNet-18, Yu et al., implementation details
CLAMP = 2.0  # of the logarithm of the scale
DAMPING = 0.1  # of the subnet's output
KERNELS = {"3x3": (3, 3), "alternating": (3, 1)}  # of block 0, 1, 0, 1, ...
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 1e-5  # Adam, Yu et al., implementation details


class FastFlow(TrainedModel):
    """FastFlow on ResNet-18, layers 1-3; attribute flows, the network.

    Parameters: backbone, output_size and the options of `TrainedModel`; seed also draws the
    permutations; with untile the flows have the tile's size and train on single tiles, and
    the latent variables are untiled. kernels, "3x3" or "alternating": convolutions of the
    subnets, 3 x 3 in all blocks, or alternating 3 x 3 and 1 x 1 (deviation D9).
    """

    def __init__(self, backbone, output_size, *, kernels="3x3", **options):
        if kernels not in KERNELS:
            raise InputError(f"kernels must be one of {', '.join(KERNELS)}, not {kernels!r}")
        super().__init__(backbone, output_size, **options)
        generator = torch.Generator().manual_seed(self.seed)
        h, w = self.input_size
        flows = [
            LayerFlow(
                channels_of(backbone)[name],
                (math.ceil(h / FEATURE_STRIDE[name]), math.ceil(w / FEATURE_STRIDE[name])),
                KERNELS[kernels],
                generator,
            )
            for name in LAYERS
        ]
        self.flows = self.network = Flows(flows).to(self.device)

    @property
    def n_parameters(self):
        """Parameters as Table 3 counts them: backbone, LayerNorm and flows; a permutation
        counts as a C x C matrix and its inverse."""
        fixed = sum(2 * block.order.numel() ** 2 for flow in self.flows for block in flow.blocks)
        return super().n_parameters + fixed

    def optimizer(self):
        """Adam as in Yu et al., implementation details."""
        parameters = self.flows.parameters()
        return torch.optim.Adam(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    @torch.no_grad()
    def loss_value(self, layers):
        """The loss of the encoder's layers, a list of float32 (B, C, hf, wf), as a scalar tensor:
        the sum over the layers of the mean `nll` of the images."""
        return sum(nll(*flow(layer)).mean() for flow, layer in zip(self.flows, layers))

    def add_gradient(self, layers):
        """Add the gradient of the batch's loss, the negative log-likelihood of the encoder's
        layers, a list of float32 (B, C, hf, wf): summed chunk by chunk and layer by layer, so that
        one chunk of one layer is in memory at a time."""
        for flow, layer in zip(self.flows, layers):
            for chunk in layer.split(CHUNK):
                (nll(*flow(chunk)).sum() / len(layer)).backward()

    def anomaly_map(self, layers):
        """The map of latent variables (Yu et al. Sec. 3.3).

        Parameters: layers, a tensor z (B, C, Hf, Wf) float32 per layer.
        Returns float32 (B, H, W) in [-1, 0]: the negative likelihood per position
        (unnormalised), bilinear, mean over the layers, not blurred.
        """
        maps = [upsample_bilinear(likelihood_map(z), self.output_size) for z in layers]
        return sum(maps) / len(LAYERS)


def nll(z, log_det):
    """Negative log-likelihood of each image without the constant C hf wf / 2 log(2 pi).

    Yu et al. Sec. 3.3, Dinh et al. Eq. 2-3, with p_Z the standard normal:
    -log p_X(x) = 1/2 sum z^2 - log|det dz/dx|, z = z (B, C, hf, wf), log|det| = log_det (B,).
    Returns (B,).
    """
    return 0.5 * z.square().sum((1, 2, 3)) - log_det


def likelihood_map(z):
    """-exp(-1/2 mean over channels of z^2): (B, C, hf, wf) -> (B, hf, wf), in [-1, 0].

    Yu et al. Sec. 3.3: the likelihood of each position. Deviation D14: the mean over channels
    instead of the sum, and no normalising constant, as in the authors' configuration, so
    that layers of different width weigh the same.
    """
    return -torch.exp(-0.5 * z.square().mean(1))


class Flows(torch.nn.ModuleList):
    """A LayerFlow for each of the layers."""

    def forward(self, layers):
        """Layers of the backbone -> latent variables z, lists of float32 (B, C, hf, wf)."""
        return [flow(layer)[0] for flow, layer in zip(self, layers)]


class LayerFlow(torch.nn.Module):
    """LayerNorm and the flow of one layer's feature map.

    Parameters: channels C, even; size (hf, wf); kernels, sides of the convolutions, used
    in turn; generator, a CPU torch.Generator.
    """

    def __init__(self, channels, size, kernels, generator):
        super().__init__()
        # Channels last, the layout of all computations here.
        self.norm_weight = torch.nn.Parameter(torch.ones(*size, channels))  # (hf, wf, C)
        self.norm_bias = torch.nn.Parameter(torch.zeros(*size, channels))  # (hf, wf, C)
        self.blocks = torch.nn.ModuleList(
            CouplingBlock(channels, kernels[k % len(kernels)], generator) for k in range(N_BLOCKS)
        )

    def forward(self, x):
        """(B, C, hf, wf) -> z (B, C, hf, wf) and log|det dz/dx'| (B,), x' after LayerNorm.

        LayerNorm is part of the feature extractor: its Jacobian is not in the likelihood.
        """
        z, log_det = self.normalize(x), x.new_zeros(len(x))
        for block in self.blocks:
            z, change = block(z)
            log_det = log_det + change
        return z, log_det

    def normalize(self, x):
        """Each image normalised to mean 0, variance 1 over (C, hf, wf), then an affine map."""
        x = x.permute(0, 2, 3, 1)  # (B, hf, wf, C)
        x = F.layer_norm(x, x.shape[1:], self.norm_weight, self.norm_bias)
        return x.permute(0, 3, 1, 2)  # (B, C, hf, wf)

    def inverse(self, z):
        """z -> x', the features after LayerNorm."""
        for block in reversed(self.blocks):
            z = block.inverse(z)
        return z


class CouplingBlock(torch.nn.Module):
    """An invertible step: half of the channels scale and shift the other half.

    Yu et al. Sec. 3.3, Dinh et al. Eq. 4-5: y_a, y_b = split(x); y_a' = y_a;
    y_b' = s(y_a) * y_b + b(y_a); with y_a = first, y_b = second, s = exp(log_scale),
    log_scale = 2 tanh(0.1 subnet_1), b = 0.1 subnet_2 = shift. Then every channel is scaled
    and shifted, y * gain + offset with gain = 0.1 softplus(global_scale), and the channels
    are permuted (deviation D15: neither clamp nor gain nor permutation is in the paper).
    log|det| = sum log_scale + hf wf sum log gain (Dinh et al. Eq. 6).

    Parameters: channels C, even; kernel, side of the convolutions; generator.
    """

    def __init__(self, channels, kernel, generator):
        super().__init__()
        half = channels // 2
        self.conv1 = _conv(half, half, kernel, generator)
        self.conv2 = _conv(half, channels, kernel, generator)
        # Here 0.1 times the softplus with beta 0.5 is 1.
        start = 2 * math.log(math.exp(0.5 * 10) - 1)
        self.global_scale = torch.nn.Parameter(torch.full((channels,), start))
        self.global_offset = torch.nn.Parameter(torch.zeros(channels))
        order = torch.randperm(channels, generator=generator)
        self.register_buffer("order", order)
        self.register_buffer("back", order.argsort())

    def forward(self, x):
        """(B, C, hf, wf) -> y (B, C, hf, wf) and log|det dy/dx| (B,)."""
        first, second = x.chunk(2, dim=1)
        log_scale, shift = self._subnet(first)
        y = torch.cat([first, second * log_scale.exp() + shift], dim=1)
        gain = self._gain()
        # Gain, offset and order in one product: each row of the matrix has a single entry,
        # so it rounds as the separate steps do; on a CPU several times faster than moving channels.
        matrix = gain.diag().index_select(0, self.order)  # (C, C)
        offset = self.global_offset.index_select(0, self.order)
        y = F.linear(y.permute(0, 2, 3, 1), matrix, offset).permute(0, 3, 1, 2)
        positions = x.shape[2] * x.shape[3]
        return y, log_scale.sum((1, 2, 3)) + positions * gain.log().sum()

    def inverse(self, y):
        """y (B, C, hf, wf) -> x, the same shape (Dinh et al. Eq. 7-8)."""
        x = y.index_select(1, self.back)
        x = (x - self.global_offset[:, None, None]) / self._gain()[:, None, None]
        first, second = x.chunk(2, dim=1)
        log_scale, shift = self._subnet(first)
        return torch.cat([first, (second - shift) * (-log_scale).exp()], dim=1)

    def _gain(self):
        return 0.1 * F.softplus(self.global_scale, beta=0.5)  # (C,)

    def _subnet(self, first):
        """(B, C/2, hf, wf) -> log_scale and shift, each (B, C/2, hf, wf)."""
        weight, bias = DAMPING * self.conv2.weight, DAMPING * self.conv2.bias
        outputs = F.conv2d(self.conv1(first).relu(), weight, bias, padding=self.conv2.padding)
        a, shift = outputs.chunk(2, dim=1)
        return CLAMP * a.tanh(), shift


def _conv(n_in, n_out, kernel, generator):
    """A size-preserving convolution, initialised as in torch: uniform in +-1/sqrt(fan-in)."""
    conv = torch.nn.utils.skip_init(torch.nn.Conv2d, n_in, n_out, kernel, padding=kernel // 2).to(
        memory_format=torch.channels_last
    )
    bound = 1 / math.sqrt(n_in * kernel * kernel)
    with torch.no_grad():
        for values in (conv.weight, conv.bias):
            drawn = torch.empty(values.shape).uniform_(-bound, bound, generator=generator)
            values.copy_(drawn)
    return conv
