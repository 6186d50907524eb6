"""Inputs that several stages share: grids, feature maps, and a backbone that returns them."""

import numpy as np
import torch

from ..tiling import TileGrid


def grid_array(image, tile, stride):
    """A grid as an input of a case: int64 (H, W, h, w, s_h, s_w)."""
    pairs = [side if isinstance(side, tuple) else (side, side) for side in (image, tile, stride)]
    return np.array([*pairs[0], *pairs[1], *pairs[2]], np.int64)


def tile_grid(array):
    """The TileGrid of such an array, int64 (6,): H, W, h, w, s_h, s_w."""
    H, W, h, w, sh, sw = (int(v) for v in array)
    return TileGrid((H, W), (h, w), (sh, sw))


# name, image, tile, stride, flags
GRIDS = (
    ("abutting", 16, 8, 8, ()),
    ("overlap", 24, 12, 6, ("overlap",)),
    ("non_divisible", (23, 31), (10, 12), (7, 5), ("non_divisible", "overlap", "not_square")),
    ("single_tile", (9, 13), (9, 13), (9, 13), ("single_tile", "not_square")),
    ("one_row", (8, 40), (8, 16), (8, 12), ("overlap", "not_square")),
)


def labels_for(scores, draw):
    """Labels that mostly agree with the scores, never of one kind only."""
    labels = (scores + draw.bell(*scores.shape) / 2 > 0.6).astype(np.uint8)
    labels.flat[:2] = 0, 1
    return labels


CHANNELS = {"layer1": 4, "layer2": 8, "layer3": 16}  # of the bundle's backbone


class Given:
    """A backbone that answers with the given layers, or with the given images of them.

    Parameters: layers, list of float32 (B, C, hf, wf) arrays.
    """

    def __init__(self, layers):
        self.layers = [torch.from_numpy(np.array(layer)) for layer in layers]
        self.channels = {f"layer{k}": len(x[0]) for k, x in enumerate(layers, start=1)}

    def __call__(self, images):
        """All layers; images is a tensor whose first numbers are the images' places."""
        places = images[:, 0, 0, 0].long()
        return [layer[places] for layer in self.layers]


def places(n):
    """Images for Given: float32 (n, 1, 1, 1), the numbers 0 to n - 1."""
    return torch.arange(n, dtype=torch.float32)[:, None, None, None]


def layers_of(draw, n, sides, channels=CHANNELS):
    """Feature maps of n images, {layer: (n, C, hf, wf)}; sides of layer1's grid, the others'
    are halved and rounded up, as convolutions of stride 2 do."""
    result, (hf, wf) = {}, sides
    for name, count in channels.items():
        result[name] = draw.uniform(n, count, hf, wf)  # like a ReLU: not negative
        hf, wf = -(-hf // 2), -(-wf // 2)
    return result


def given_layers(inputs):
    """The three layers of a case."""
    return [inputs[name] for name in CHANNELS]


def tensor(array):
    """A copy as a CPU tensor."""
    return torch.from_numpy(np.array(array))


def size_of(inputs):
    return tuple(int(v) for v in inputs["size"])
