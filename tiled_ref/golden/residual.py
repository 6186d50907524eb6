"""Residual blocks in plain calls, for the formulas of the backbone and Reverse Distillation."""

import torch
import torch.nn.functional as F


class Residual:
    """Convolutions, batch normalisations and residual blocks on a bundle's tensors, float64.

    Parameters: weights, tensors by the bundle's names; training, normalise by the
    statistics of the batch and keep them in `seen`, (2, C) by name. The others are mistakes:
    eps of the batch normalisation; unbiased, the variance in `seen`; shortcut False; late, the
    ReLU before the sum; stride_first False, the stride in the second convolution; turned, the
    kernels of transposed convolutions by 180 degrees.
    """

    def __init__(
        self, weights, training=False, eps=1e-5, unbiased=True, shortcut=True, late=False,
        stride_first=True, turned=False,
    ):  # fmt: skip
        self.weights, self.seen = weights, {}
        self.training, self.eps, self.unbiased = training, eps, unbiased
        self.shortcut, self.late = shortcut, late
        self.stride_first, self.turned = stride_first, turned

    def convolved(self, x, name, stride=1):
        """x (N, C, h, w) float64 through a convolution; stride 0.5 is a transposed one's 2."""
        kernel = self.weights[name]
        if stride == 0.5:
            return F.conv_transpose2d(x, kernel.flip(2, 3) if self.turned else kernel, None, 2)
        return F.conv2d(x, kernel, None, stride, kernel.shape[-1] // 2)

    def normalised(self, x, name):
        """x (N, C, h, w) float64 through a batch normalisation."""
        weight, bias, mean, var = self.weights[name]
        if self.training:
            now = x.detach()
            var_now = now.var((0, 2, 3), unbiased=self.unbiased)
            self.seen[name] = torch.stack([now.mean((0, 2, 3)), var_now])
        mean, var = mean.detach().clone(), var.detach().clone()
        return F.batch_norm(x, mean, var, weight, bias, self.training, 0.1, self.eps)

    def block(self, x, name, stride=1):
        """x (N, C, h, w) float64 through a block of two convolutions."""
        first, second = (stride, 1) if self.stride_first else (1, stride)
        y = self.normalised(self.convolved(x, f"{name}.conv1", first), f"{name}.bn1").relu()
        y = self.normalised(self.convolved(y, f"{name}.conv2", second), f"{name}.bn2")
        for way in ("downsample", "shortcut"):
            if f"{name}.{way}.0" in self.weights:
                x = self.normalised(self.convolved(x, f"{name}.{way}.0", stride), f"{name}.{way}.1")
        if not self.shortcut:
            return y.relu()
        return y.relu() + x if self.late else (y + x).relu()
