"""FastFlow's LayerNorm and coupling blocks in plain calls, for the formulas of its stages."""

from functools import partial

import torch
import torch.nn.functional as F

from .residual import KERNEL_MISTAKES, misread
from .stage import Mistake


def of_block(own, part, b):
    """Return a tensor (...) of block b; own, a layer's tensors or arrays by name."""
    small = own.get(f"{part}_1x1")
    return own[part][b] if small is None else (own[part], small)[b % 2][b // 2]


def flowed(
    x, own, axes=(1, 2, 3), biased=True, eps=1e-5, clamp=2.0, damping=0.1, squash=torch.tanh,
    back=False, given=0, changed=1, parts=(0, 1), last_relu=False, global_part=True,
    permuted=True, kernels=None, crossed=False, relu=True, positions=True, of_global=True,
    of_coupling=True, affine=True, global_first=False, scaled=True, biases=True, planes=False,
    damped=(True, True), coupling="", gain_factor=0.1, sign=1, rise=partial(F.softplus, beta=0.5),
):  # fmt: skip
    """LayerNorm and eight blocks in plain calls, float64; see FORMAT.md. Switches are mistakes."""
    mean = x.mean(axes, keepdim=True)
    var = x.var(axes, unbiased=not biased, keepdim=True)
    x = (x - mean) / (var + eps).sqrt()
    weight, bias = own["norm_weight"], own["norm_bias"]
    if affine and planes:
        x = x * weight.reshape(x.shape[1:]) + bias.reshape(x.shape[1:])
    elif affine:
        x = x * weight.permute(2, 0, 1) + bias.permute(2, 0, 1)
    log_det = x.new_zeros(len(x))
    for b in range(len(own["order"])):
        halves = list(x.chunk(2, dim=1))
        y, second = halves[given], halves[changed]
        for conv in ("conv1", "conv2"):
            kernel = misread(of_block(own, f"{conv}_weight", b), kernels)
            bias = own[f"{conv}_bias"][b] if biases else None
            y = F.conv2d(y, kernel, bias, padding=kernel.shape[-1] // 2)
            if last_relu or (conv == "conv1" and relu):
                y = y.relu()
        a, shift = (damping * y if damp else y for y, damp in zip(y.chunk(2, dim=1), damped))
        a, shift = ((a, shift)[k] for k in parts)
        log_scale = clamp * squash(a)
        if coupling == "inverse":
            second = (second - shift) * (-log_scale).exp()
        elif coupling == "shift first":
            second = (second + shift) * log_scale.exp()
        else:
            second = second * (log_scale.exp() if scaled else 1 + log_scale) + shift
        halves[changed] = second
        x = torch.cat(halves[:: -1 if crossed else 1], dim=1)
        log_det = log_det + log_scale.sum((1, 2, 3)) * of_coupling
        if global_part:
            gain = gain_factor * rise(own["global_scale"][b])
            gains, offsets = gain[:, None, None], own["global_offset"][b][:, None, None]
            x = (x + offsets) * gains if global_first else x * gains + offsets
            n = x.shape[2] * x.shape[3] if positions else 1
            log_det = log_det + n * gain.log().sum() * of_global
        if permuted:
            x = x[:, own["order"][b].argsort() if back else own["order"][b]]
    return x, sign * log_det


FLOW_MISTAKES = (
    Mistake(
        "the permutation is applied backwards: channel k goes to order[k], not the reverse",
        back=True,
    ),
    Mistake("channels are not permuted", permuted=False),
    Mistake("LayerNorm over channels only instead of the whole map", axes=(1,)),
    Mistake("LayerNorm over positions only instead of the whole map", axes=(2, 3)),
    Mistake("LayerNorm with the unbiased variance (N - 1) instead of N", biased=False),
    Mistake("the epsilon of LayerNorm is missing", eps=0.0),
    Mistake("the epsilon of LayerNorm is 0.001 instead of 0.00001", eps=1e-3),
    Mistake("weight and bias of LayerNorm are left out", affine=False),
    Mistake("no ReLU between the subnet's convolutions", relu=False),
    Mistake("1 + log scale instead of its exponential", scaled=False),
    Mistake("the halves are exchanged when they are put together again", crossed=True),
    Mistake("the global offset is added before the scale, not after it", global_first=True),
    Mistake("LayerNorm's weight and bias are read as (C, h, w)", planes=True),
    Mistake("the biases of the convolutions are left out", biases=False),
    Mistake("the scale is not multiplied by 0.1 before tanh", damped=(False, True)),
    Mistake("the shift is not multiplied by 0.1", damped=(True, False)),
    Mistake("the coupling is the inverse one", coupling="inverse"),
    Mistake("the shift comes before the scale", coupling="shift first"),
    Mistake("the global scale is not multiplied by 0.1", gain_factor=1.0),
    Mistake("the sign of the determinant", sign=-1),
    Mistake("the global scale is missing in the determinant", of_global=False),
    Mistake("the coupling's scale is missing in the determinant", of_coupling=False),
    Mistake("the global scale counts once in the determinant, not everywhere", positions=False),
    *KERNEL_MISTAKES,
    Mistake("the scale's logarithm is not clamped by 2 tanh", squash=lambda a: a / 2),
    Mistake("tanh is missing in the scale's logarithm", squash=lambda a: a),
    Mistake("the clamp is 1 instead of 2", clamp=1.0),
    Mistake("the clamp is 1.9 instead of 2", clamp=1.9),
    Mistake(
        "the clamp is 2 * 0.636 atan instead of 2 tanh", squash=lambda a: 0.636 * torch.atan(a)
    ),
    Mistake("the subnet's output is not multiplied by 0.1", damping=1.0),
    Mistake("the halves are exchanged: the second scales the first", given=1, changed=0),
    Mistake("the halves are exchanged: the second scales itself", given=1),
    Mistake("the halves are exchanged: the first scales itself", changed=0),
    Mistake("scale and shift of the subnet's output are exchanged", parts=(1, 0)),
    Mistake("scale and shift are both the second half of the subnet's output", parts=(1, 1)),
    Mistake("scale and shift are both the first half of the subnet's output", parts=(0, 0)),
    Mistake("the global scale is an exponential instead of the softplus", rise=torch.exp),
    Mistake("the softplus of the global scale has beta 1 instead of 0.5", rise=F.softplus),
    Mistake("global scale and offset are left out", global_part=False),
    Mistake("a ReLU after the subnet's last convolution", last_relu=True),
)
