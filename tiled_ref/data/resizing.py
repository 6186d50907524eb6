"""An image or a mask to another size."""

import math

import numpy as np

STRIP = 1 << 19  # input values resized at a time, so that they stay in the cache


def resize_image(image, size, antialias=False):
    """Bilinear resize with half-pixel centres.

    The rule of OpenCV's INTER_LINEAR and torch's align_corners=False: output pixel i lies
    at x = (i + 0.5) n_in / n_out - 0.5 of the input and weights the two pixels beside x by
    1 - frac(x) and frac(x); the border is repeated. (OpenCV rounds the weights to 11 bits, so a
    pixel may differ by 1.) With `antialias`, shrinking widens the triangle of weights from 1 to
    n_in / n_out pixels on either side, as in Pillow and with torch's antialias=True.

    Parameters
    ----------
    image : uint8 (h, w, 3)
    size : (int, int)
        Height and width in pixels.
    antialias : bool
        Off in the paper's evaluation, which resized with OpenCV's INTER_LINEAR (deviation D4).

    Returns
    -------
    uint8 (H, W, 3), C-contiguous; the image's own values if it has that size already.

    Order of arithmetic: weights in float64, rounded once to float32; then, in float32, the
    columns of every output row, top tap first, each product added to the sum; then the rows
    of those sums, left tap first; rounding half to even. No result depends on threads.
    Source: Rolih et al. state only the sizes; bilinear without antialias is their released
    configuration.
    """
    size = tuple(size)
    if image.shape[:2] == size:
        return np.ascontiguousarray(image)
    height, width, channels = image.shape
    lines = image.reshape(height, -1)  # (h, w * 3)
    index, weight = _taps(height, size[0], antialias)
    across = _taps(width, size[1], antialias)
    out = np.empty((*size, channels), np.uint8)
    n_rows = max(16, STRIP // (width * channels))
    for first in range(0, size[0], n_rows):
        strip = slice(first, min(first + n_rows, size[0]))
        rows = _weighted_sum(lines, (index[:, strip], weight[:, strip]))
        rows = rows.reshape(-1, width, channels)
        columns = np.ascontiguousarray(rows.transpose(1, 0, 2)).reshape(width, -1)  # (w, n * 3)
        columns = _weighted_sum(columns, across)  # (W, n * 3) float32
        pixels = np.rint(columns, out=columns).astype(np.uint8)
        out[strip] = pixels.reshape(size[1], -1, channels).transpose(1, 0, 2)
    return out


def resize_mask(mask, size):
    """Nearest-neighbour resize: output pixel i takes input pixel floor(i n_in / n_out).

    The rule of torch's mode="nearest" and OpenCV's INTER_NEAREST, in integers and therefore
    without their rounding of the ratio.

    Parameters: mask bool (h, w); size (H, W) in pixels. Returns bool (H, W), C-contiguous.
    """
    rows, cols = (np.arange(n) * m // n for n, m in zip(size, mask.shape))
    return mask[rows[:, None], cols]


def _taps(n_in, n_out, antialias):
    """Which input pixels make an output pixel: index int64 and weight float32 (K, n_out).

    The weights of an output pixel sum to 1; K is 2 without antialias.
    """
    scale = n_in / n_out
    x = (np.arange(n_out) + 0.5) * scale - 0.5  # centre of the output pixel, input px
    if not antialias or scale <= 1:
        x = np.maximum(x, 0)
        low = np.floor(x).astype(np.int64)
        index = np.stack([low, np.minimum(low + 1, n_in - 1)])
        weight = np.stack([1 - (x - low), x - low])
        return index, weight.astype(np.float32)
    first = np.ceil(x - scale).astype(np.int64)
    index = first + np.arange(2 * math.ceil(scale) + 1)[:, None]  # (K, n_out)
    weight = np.maximum(0, 1 - np.abs(index - x) / scale)
    weight[(index < 0) | (index >= n_in)] = 0  # outside: the rest is rescaled
    weight /= weight.sum(0)
    return np.clip(index, 0, n_in - 1), weight.astype(np.float32)


def _weighted_sum(lines, taps):
    """sum over k of weight[k, i] * lines[index[k, i]]: (n_in, m) -> float32 (n_out, m)."""
    total = None
    for index, weight in zip(*taps):
        term = lines[index].astype(np.float32, copy=False)
        term *= weight[:, None]
        total = term if total is None else np.add(total, term, out=total)
    return total
