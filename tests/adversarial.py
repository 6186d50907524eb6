"""The one generator of arrays that break careless code.

`values` gives arrays with values of every awkward kind, `masks` ground truth of every awkward
shape, `layouts` one array in every kind of memory; `maps_and_masks(seed)` is a random small
set for ranking and `grid(seed)` a random tile grid. All are functions of their seed alone.
"""

import numpy as np

from tiled_ref.tiling import TileGrid

FLOATS = (np.float32, np.float64)


def values(rng, shape, dtype):
    """{name: array} of one shape: no NaN."""
    info = np.finfo(dtype)
    normal = rng.standard_normal(shape)
    made = {
        "normal": normal,
        "positive": np.exp(3 * normal),
        "ties": np.round(2 * normal) / 2,
        "two values": (normal > 0) * 1.0,
        "constant": np.full(shape, 0.7),
        "zeros of both signs": np.where(normal > 0, 0.0, -0.0),
        "denormals": normal * float(info.smallest_subnormal) * 8,
        "huge": normal * (float(info.max) / 64),
        "infinities": np.where(np.abs(normal) > 1, np.copysign(np.inf, normal), normal),
        "neighbours of one": 1 + float(info.eps) * np.round(3 * normal),
        "zero, then far away": np.where(normal > 1, 1e-30 * normal, np.where(normal > 0, 0.0, 7.0)),
    }
    with np.errstate(over="ignore", under="ignore"):
        return {name: array.astype(dtype) for name, array in made.items()}


def layouts(array):
    """(name, array) with equal values: contiguous, read-only, strided, reversed, transposed,
    misaligned (of more than one byte)."""
    yield "contiguous", array.copy()
    read_only = array.copy()
    read_only.flags.writeable = False
    yield "read-only", read_only
    wide = np.repeat(array, 2, axis=-1)
    yield "every second", wide[..., ::2]
    yield "reversed", np.ascontiguousarray(array[..., ::-1])[..., ::-1]
    order = tuple(reversed(range(array.ndim)))
    place = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype)
    place[:] = array.ravel()
    yield "misaligned", place.reshape(array.shape)
    yield "transposed", np.ascontiguousarray(array.transpose(order)).transpose(order)


def masks(rng, shape):
    """{name: bool array} (N, H, W): sparse, dense, full rows, checkerboard, rings, corners."""
    n, height, width = shape
    y, x = np.indices((height, width))
    made = {
        "sparse": rng.random(shape) < 0.03,
        "half": rng.random(shape) < 0.5,
        "dense": rng.random(shape) < 0.9,
        "checkerboard": np.broadcast_to((x + y) % 2 == 0, shape).copy(),
        "columns": np.broadcast_to(x % 2 == 0, shape).copy(),
        "isolated": np.broadcast_to((x % 2 == 0) & (y % 2 == 0), shape).copy(),
        "rings": np.broadcast_to(np.maximum(abs(x - width // 2), abs(y - height // 2)) % 2 == 0,
                                 shape).copy(),
        "border": np.broadcast_to(
            (x == 0) | (y == 0) | (x == width - 1) | (y == height - 1), shape
        ).copy(),
        "blob": np.broadcast_to((x > width // 3) & (y < height // 2), shape).copy(),
        "comb": np.broadcast_to((x % 2 == 0) | (y == height - 1), shape).copy(),
        "one image": np.zeros(shape, bool),
    }
    made["one image"][rng.integers(n)] = rng.random((height, width)) < 0.4
    return made


def maps_and_masks(seed):
    """A random set: maps (N, H, W) and masks, each of some kind above; small."""
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 4)), int(rng.integers(1, 17)), int(rng.integers(1, 41)))
    kinds = values(rng, shape, FLOATS[seed % 2])
    ground = masks(rng, shape)
    return kinds[pick(rng, kinds)], ground[pick(rng, ground)]


def grid(seed):
    """A random TileGrid: any size, stride and overlap, at most 400 tiles."""
    rng = np.random.default_rng(seed)
    while True:
        H, W = (int(k) for k in rng.integers(1, 41, 2))
        h, w = int(rng.integers(1, H + 1)), int(rng.integers(1, W + 1))
        stride = int(rng.integers(1, h + 1)), int(rng.integers(1, w + 1))
        if rng.random() < 0.5:  # the usual overlaps
            stride = max(1, h // 2), max(1, w // int(rng.integers(1, 4)))
        made = TileGrid((H, W), (h, w), stride)
        if made.rows * made.cols <= 400:
            return made


def pick(rng, table):
    """One of the keys of a dict."""
    return list(table)[rng.integers(len(table))]


def same_bits(a, b):
    """Equal shape, dtype and bits; NaN equals NaN whatever its payload."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype.kind != "f":
        return np.array_equal(a, b)
    nan = np.isnan(a)
    whole = f"u{a.itemsize}"
    return np.array_equal(nan, np.isnan(b)) and np.array_equal(
        np.ascontiguousarray(a).view(whole)[~nan], np.ascontiguousarray(b).view(whole)[~nan]
    )
