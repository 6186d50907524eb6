"""Inputs shared by several stages: grids, labels, feature maps, and a backbone returning them."""

import numpy as np
import torch

from ..tiling import TileGrid

CHANNELS = {"layer1": 4, "layer2": 8, "layer3": 16}  # of the bundle's backbone


def grid_array(image, tile, stride):
    """Encode a grid as an input: int64 (H, W, h, w, s_h, s_w). A single number means a square."""
    pairs = [np.broadcast_to(side, 2) for side in (image, tile, stride)]
    return np.concatenate(pairs).astype(np.int64)


def tile_grid(array):
    """Return the TileGrid of a `grid_array`, int64 (6,)."""
    H, W, h, w, sh, sw = array.tolist()
    return TileGrid((H, W), (h, w), (sh, sw))


UNEVEN = ("non_divisible", "overlap", "not_square")
GRIDS = (  # name, grid, flags
    ("abutting", grid_array(16, 8, 8), ()),
    ("overlap", grid_array(24, 12, 6), ("overlap",)),
    ("non_divisible", grid_array((23, 31), (10, 12), (7, 5)), UNEVEN),
    ("single_tile", grid_array((9, 13), (9, 13), (9, 13)), ("single_tile", "not_square")),
    ("wide_padding", grid_array((20, 27), (9, 10), (7, 8)), UNEVEN),
    ("one_row", grid_array((8, 40), (8, 16), (8, 12)), ("overlap", "not_square")),
)


def size_of(inputs):
    """Return the input "size" as a tuple of ints."""
    return tuple(inputs["size"].tolist())


def labels_for(scores, draw):
    """Draw labels, uint8, that mostly agree with scores (...); both classes always occur."""
    labels = (scores + draw.bell(*scores.shape) / 2 > 0.6).astype(np.uint8)
    labels.flat[:2] = 0, 1
    return labels


def layers_of(draw, n, sides):
    """Draw feature maps of n images, {layer: (n, C, hf, wf)}; sides, of layer1's grid; the other
    grids are halved and rounded up, as stride-2 convolutions do."""
    result, (hf, wf) = {}, sides
    for name, channels in CHANNELS.items():
        result[name] = draw.uniform(n, channels, hf, wf)  # not negative, as after a ReLU
        hf, wf = -(-hf // 2), -(-wf // 2)
    return result


def given_layers(inputs):
    """Return the three layers of a case."""
    return [inputs[name] for name in CHANNELS]


def tensor(array):
    """Copy an array (...) of any dtype to a CPU tensor."""
    return torch.from_numpy(np.array(array))


class Given:
    """A backbone that returns fixed layers; it looks up images made by `places`.

    Parameters: layers, list of float32 (N, C, hf, wf) arrays.
    """

    def __init__(self, layers):
        self.layers = [tensor(layer) for layer in layers]
        self.channels = {f"layer{k}": len(x[0]) for k, x in enumerate(layers, start=1)}

    def __call__(self, images):
        """Return the layers of images, float32 (B, 1, 1, 1)."""
        places = images[:, 0, 0, 0].long()
        return [layer[places] for layer in self.layers]


def places(n):
    """Return images for Given: float32 (n, 1, 1, 1), the numbers 0 to n - 1."""
    return torch.arange(n, dtype=torch.float32)[:, None, None, None]
