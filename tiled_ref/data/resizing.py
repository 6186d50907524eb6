"""Resize images and masks."""

import math

import numpy as np

STRIP = 1 << 16  # values computed at a time, to stay in the cache


def resize_image(image, size, antialias=False):
    """Bilinear resize with half-pixel centres: OpenCV's INTER_LINEAR, bit for bit.

    From n to m pixels, output column (or row) x lies between input columns (rows) i and i + 1:

        f = float32((x + 0.5) s - 0.5), s = 1 / (m / n);  i = floor(f);  f = f - i

    For columns, but not for rows, f = 0 if i < 0 or i >= n - 1. Then i and i + 1 are clipped to
    0..n-1. The weights are integers, halves rounded to even; those of rows are called b0 and b1:

        a0 = rint(2048 (1 - f)), a1 = rint(2048 f)

    First along every row j, then down the columns (>> drops the low bits):

        R[j] = S[j, i] a0 + S[j, i + 1] a1
        out = ((b0 (R[j] >> 4) >> 16) + (b1 (R[j + 1] >> 4) >> 16) + 2) >> 2

    At half the size in both directions this equals (the sum of 2 x 2 pixels + 2) >> 2 and is
    computed this way.

    Parameters
    ----------
    image : uint8 (h, w, channels) or (h, w)
    size : (int, int)
        Height and width in pixels.
    antialias : bool
        When shrinking, widen the triangle filter from 1 to n / m pixels on either side, like
        Pillow and torch's antialias=True. Off in the paper's evaluation (deviation D4).

    Returns
    -------
    uint8 (H, W, channels) or (H, W), C-contiguous; unchanged values if the image already has that
    size.

    Order of arithmetic, antialias only: weights in float64, rounded once to float32; then, in
    float32, down the columns of every output row, top tap first, each product added to the sum;
    then along the rows of those sums, left tap first; rounding half to even.
    Source: Rolih et al. state only the sizes; INTER_LINEAR is in their released configuration. The
    rule matches opencv-python 4.10 and 5.0 and was found by comparison.
    """
    size, shape = tuple(size), image.shape
    if shape[:2] == size:
        return np.ascontiguousarray(image)
    pixels = image.reshape(*shape[:2], -1)  # (h, w, channels)
    if antialias:
        out = _antialiased(pixels, size)
    elif shape[:2] == (2 * size[0], 2 * size[1]):
        out = _halved(pixels)
    else:
        out = _bilinear(pixels, size)
    return out.reshape(*size, *shape[2:])


def _strips(n_rows, n_values, times=1):
    """Slices of n_rows output rows with n_values values each, times * STRIP values per slice."""
    step = max(16, times * STRIP // n_values)
    return [slice(first, min(first + step, n_rows)) for first in range(0, n_rows, step)]


def _halved(image):
    """The mean of 2 x 2 pixels, 0.5 rounded up: uint8 (2 H, 2 W, C) -> (H, W, C)."""
    height, width, channels = image.shape
    out = np.empty((height // 2, width // 2, channels), np.uint8)
    for strip in _strips(len(out), 2 * width * channels):
        rows = image[2 * strip.start : 2 * strip.stop]
        sums = np.add(rows[::2], rows[1::2], dtype=np.uint16)  # (n, 2 W, C)
        out[strip] = (sums[:, ::2] + sums[:, 1::2] + np.uint16(2)) >> 2
    return out


def _bilinear(image, size):
    """The integer rule of resize_image: uint8 (h, w, C) -> (H, W, C)."""
    height, width, channels = image.shape
    index, (b0, b1) = _integer_taps(height, size[0])  # (2, H)
    columns, weights = _integer_taps(width, size[1], columns=True)  # (2, W)
    left, right = (columns[:, :, None] * channels + np.arange(channels)).reshape(2, -1)
    a0, a1 = weights.repeat(channels, axis=1)  # (W * C,)
    out = np.empty((size[0], size[1] * channels), np.uint8)
    for strip in _strips(*out.shape):
        needed, place = np.unique(index[:, strip], return_inverse=True)  # each row once
        lines = image[needed].reshape(len(needed), -1)  # (n, w * C) uint8
        rows = np.take(lines, left, axis=1) * a0  # (n, W * C) int32, below 2^19
        rows += np.take(lines, right, axis=1) * a1
        rows >>= 4
        upper, lower = place.reshape(2, -1)
        total = _product(rows[upper], b0[strip])
        total += _product(rows[lower], b1[strip])
        total += 2
        total >>= 2
        out[strip] = total
    return out.reshape(*size, channels)


def _product(rows, weight):
    """weight * rows >> 16 in place, one weight per row: int32 (n, W * C), below 2^27."""
    rows *= weight[:, None]
    rows >>= 16
    return rows


def _integer_taps(n_in, n_out, columns=False):
    """The pixels i, i + 1 and their weights of resize_image: int64 and int32 (2, n_out)."""
    scale = 1 / (n_out / n_in)  # not n_in / n_out: the last bit matters above 50,000 px
    f = ((np.arange(n_out) + 0.5) * scale - 0.5).astype(np.float32)
    i = np.floor(f)
    f -= i
    if columns:
        f[(i < 0) | (i >= n_in - 1)] = 0
    index = np.array([i, i + 1]).clip(0, n_in - 1).astype(np.int64)
    return index, np.rint(np.array([1 - f, f]) * 2048).astype(np.int32)


def resize_mask(mask, size):
    """Nearest-neighbour resize: output pixel i is input pixel floor(i n_in / n_out).

    The rule of torch's mode="nearest" and OpenCV's INTER_NEAREST, in integers and therefore
    without rounding the ratio.

    Parameters: mask bool (h, w); size (H, W) in pixels. Returns bool (H, W), C-contiguous.
    """
    rows, cols = (np.arange(n) * m // n for n, m in zip(size, mask.shape))
    return mask[rows[:, None], cols]


def _antialiased(image, size):
    """Resize with a triangle filter, see resize_image: uint8 (h, w, C) -> (H, W, C)."""
    height, width, channels = image.shape
    lines = image.reshape(height, -1)  # (h, w * C)
    index, weight = _taps(height, size[0])
    across = _taps(width, size[1])
    out = np.empty((*size, channels), np.uint8)
    for strip in _strips(size[0], width * channels, times=8):
        rows = _weighted_sum(lines, (index[:, strip], weight[:, strip]))
        rows = rows.reshape(-1, width, channels)
        columns = np.ascontiguousarray(rows.transpose(1, 0, 2)).reshape(width, -1)  # (w, n * C)
        columns = _weighted_sum(columns, across)  # (W, n * C) float32
        pixels = np.rint(columns, out=columns).astype(np.uint8)
        out[strip] = pixels.reshape(size[1], -1, channels).transpose(1, 0, 2)
    return out


def _taps(n_in, n_out):
    """Input pixels of each output pixel and their weights: int64 and float32 (K, n_out).

    The weights of an output pixel sum to 1; K is 2 unless the image shrinks.
    """
    scale = n_in / n_out
    x = (np.arange(n_out) + 0.5) * scale - 0.5  # centre of the output pixel in input px
    if scale <= 1:
        x = np.maximum(x, 0)
        low = np.floor(x).astype(np.int64)
        index = np.stack([low, np.minimum(low + 1, n_in - 1)])
        weight = np.stack([1 - (x - low), x - low])
        return index, weight.astype(np.float32)
    first = np.ceil(x - scale).astype(np.int64)
    index = first + np.arange(2 * math.ceil(scale) + 1)[:, None]  # (K, n_out)
    weight = np.maximum(0, 1 - np.abs(index - x) / scale)
    weight[(index < 0) | (index >= n_in)] = 0  # outside; the others are rescaled
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
