"""Residual blocks in plain calls, for the formulas of the backbone and Reverse Distillation."""

import torch
import torch.nn.functional as F

from .stage import Mistake


class Residual:
    """Convolutions, batch normalisations and residual blocks on a bundle's tensors, float64.

    Parameters: weights, tensors by the bundle's names; training, normalise by the batch
    statistics and store them in `seen`, (2, C) by name. The others are mistakes:
    eps of the batch normalisation; rooted, eps is added to the root; rows, the order in
    which its four rows are read; unbiased, the variance in `seen`; shortcut False; late, the ReLU
    before the sum; stride_first False, the stride in the second convolution; turned, kernels
    of transposed convolutions by 180 degrees; kernels, see `misread`; same, SAME padding at stride
    2 everywhere (True) or in "convolutions"; inner, the ReLU in a block; norms, names in a block;
    padding, of the 7 x 7 kernel; held, the batch statistics, or only the "variance", have no
    gradient; way_normed False, no batch normalisation in the shortcut.
    """

    def __init__(
        self, weights, training=False, eps=1e-5, unbiased=True, shortcut=True, late=False,
        stride_first=True, turned=False, kernels=None, rows=(0, 1, 2, 3), rooted=False, same=False,
        inner=True, norms=("bn1", "bn2"), padding=3, held=False, way_normed=True,
    ):  # fmt: skip
        self.weights, self.seen = weights, {}
        self.training, self.eps, self.unbiased = training, eps, unbiased
        self.shortcut, self.late = shortcut, late
        self.stride_first, self.turned = stride_first, turned
        self.kernels, self.rows, self.rooted, self.same = kernels, rows, rooted, same
        self.inner, self.norms, self.padding, self.held = inner, norms, padding, held
        self.way_normed = way_normed

    def convolved(self, x, name, stride=1):
        """Convolve x (N, C, h, w) float64; stride 0.5 is a transposed convolution of stride 2."""
        kernel = self.weights[name]
        if stride == 0.5:
            kernel = kernel.flip(2, 3) if self.turned else kernel
            return F.conv_transpose2d(x, misread(kernel, self.kernels), None, 2)
        padding, side = kernel.shape[-1] // 2, kernel.shape[-1]
        padding = self.padding if side == 7 else padding
        if self.same and stride == 2:
            x, padding = padded_same(x, side), 0
        return F.conv2d(x, misread(kernel, self.kernels), None, stride, padding)

    def normalised(self, x, name):
        """Apply batch normalisation to x (N, C, h, w) float64."""
        weight, bias, mean, var = self.weights[name][list(self.rows)]
        mean, var = mean.detach(), var.detach()
        if self.training:
            now = x.detach()
            var_now = now.var((0, 2, 3), unbiased=self.unbiased)
            self.seen[name] = torch.stack([now.mean((0, 2, 3)), var_now])
            if not self.held:
                return F.batch_norm(x, mean.clone(), var.clone(), weight, bias, True, 0.1, self.eps)
            mean = (x if self.held == "variance" else now).mean((0, 2, 3))
            var = now.var((0, 2, 3), unbiased=False)
        root = var.sqrt() + self.eps if self.rooted is True else (var + self.eps).sqrt()
        root = var + self.eps if self.rooted == "never" else root
        weight, bias, mean, root = (v[:, None, None] for v in (weight, bias, mean, root))
        return (x - mean) / root * weight + bias

    def block(self, x, name, stride=1):
        """Apply a block of two convolutions to x (N, C, h, w) float64."""
        first, second = (stride, 1) if self.stride_first else (1, stride)
        one, two = self.norms
        y = self.normalised(self.convolved(x, f"{name}.conv1", first), f"{name}.{one}")
        y = y.relu() if self.inner else y
        y = self.normalised(self.convolved(y, f"{name}.conv2", second), f"{name}.{two}")
        for way in ("downsample", "shortcut"):
            if f"{name}.{way}.0" in self.weights:
                x = self.convolved(x, f"{name}.{way}.0", stride)
                x = self.normalised(x, f"{name}.{way}.1") if self.way_normed else x
        if not self.shortcut:
            return y.relu()
        return y.relu() + x if self.late else (y + x).relu()


def padded_same(x, side):
    """SAME padding of x (N, C, h, w), float64, for stride 2: odd pixels at the bottom and right."""
    (top, below), (left, right) = (_same(n, side) for n in x.shape[-2:])
    return F.pad(x, (left, right, top, below))


def _same(n, side):
    total = max(0, ((n + 1) // 2 - 1) * 2 + side - n)
    return total // 2, total - total // 2


def misread(kernel, how=None):
    """Misread a kernel (O, I, h, w) as a port could: "turned" by 180 degrees, "transposed" (rows
    and columns exchanged), or its memory read in another axis order, such as "HWIO"."""
    o, i, h, w = kernel.shape
    views = {
        None: lambda: kernel,
        "turned": lambda: kernel.flip(2, 3),
        "transposed": lambda: kernel.transpose(2, 3),
        "IOHW": lambda: kernel.reshape(i, o, h, w).transpose(0, 1),
        "OHWI": lambda: kernel.reshape(o, h, w, i).permute(0, 3, 1, 2),
        "HWIO": lambda: kernel.reshape(h, w, i, o).permute(3, 2, 0, 1),
    }
    return views[how]()


KERNEL_MISTAKES = (
    Mistake("the kernels are flipped: a true convolution, not a correlation", kernels="turned"),
    Mistake("rows and columns of the kernels are exchanged", kernels="transposed"),
    Mistake("kernels (O, I, h, w) are read as (I, O, h, w)", kernels="IOHW"),
    Mistake("kernels (O, I, h, w) are read as (O, h, w, I)", kernels="OHWI"),
    Mistake("kernels (O, I, h, w) are read as (h, w, I, O)", kernels="HWIO"),
)

NORM_MISTAKES = (  # in batch normalisation
    Mistake("the epsilon of the batch normalisation is 0.001 instead of 0.00001", eps=1e-3),
    Mistake("the epsilon of the batch normalisation is missing", eps=0.0),
    Mistake("the epsilon is added to the root of the variance, not to the variance", rooted=True),
    Mistake("divided by the variance, not by its root", rooted="never"),
    *(
        Mistake(
            f"rows of the batch normalisation are exchanged: read as {words}",
            rows=rows,
        )
        for rows, words in (
            ((1, 0, 2, 3), "bias, weight, mean, variance"),
            ((0, 1, 3, 2), "weight, bias, variance, mean"),
            ((2, 3, 0, 1), "mean, variance, weight, bias"),
            ((0, 2, 1, 3), "weight, mean, bias, variance"),
            ((3, 1, 2, 0), "variance, bias, mean, weight"),
            ((2, 1, 0, 3), "mean, bias, weight, variance"),
            ((0, 3, 2, 1), "weight, variance, mean, bias"),
        )
    ),
)

BLOCK_MISTAKES = (
    Mistake("no ReLU between the convolutions of a block", inner=False),
    Mistake("the first batch normalisation of a block is used twice", norms=("bn1", "bn1")),
    Mistake("the batch normalisations of a block are exchanged", norms=("bn2", "bn1")),
    Mistake("no batch normalisation in the shortcuts", way_normed=False),
    Mistake("the shortcuts are not added", shortcut=False),
    Mistake("the ReLU comes before the sum with the shortcut instead of after", late=True),
)

SAME = tuple(
    Mistake("SAME padding at stride 2: even sides are padded at the bottom and right", same=how)
    for how in (True, "convolutions")
)
