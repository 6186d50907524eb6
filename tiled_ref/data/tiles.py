"""Model inputs: tiles of images, cut, normalised and padded on demand."""

import itertools

import torch

from ..support.devices import to_device
from .images import normalize
from .reading import forget_pages


class LocationImages:
    """The input of a model: the tiles of one location, cut, normalised and padded on demand.

    Parameters
    ----------
    images : uint8 (N, 3, H, W), NumPy array, memory map or CPU tensor
        Resized images in host memory.
    grid : TileGrid
        The tile grid; a single tile for SM.
    locations : list of (int, int)
        The locations whose tiles form a batch: one for SM and ENS, all for ST.
    device : torch.device

    `len(self)` is N; `self[indices]`, for a list of ints or a slice, is float32
    (T * B, 3, h, w) on the device, tile-major, T the number of locations. Tiles that extend beyond
    the image are zero-padded after normalisation.
    """

    def __init__(self, images, grid, locations, device):
        grid.check_image(images)
        self.images = images
        self.grid = grid
        self.locations = locations
        self.device = device

    def __len__(self):
        return len(self.images)

    def __getitem__(self, indices):
        windows = [self.grid.window(*location) for location in self.locations]
        rows, cols = map(_cover, zip(*windows))  # uploaded, and normalised, once
        part = normalize(to_device(self.images[:, :, rows, cols][indices], self.device))
        forget_pages(self.images)
        tiles = [
            self.grid.pad_tile(part[:, :, _within(r, rows), _within(c, cols)]) for r, c in windows
        ]
        return torch.cat(tiles) if len(tiles) > 1 else tiles[0]  # (T * B, 3, h, w)


def _cover(spans):
    """The smallest slice that covers all given slices."""
    return slice(min(span.start for span in spans), max(span.stop for span in spans))


def _within(span, outer):
    return slice(span.start - outer.start, span.stop - outer.start)


class OneAfterTheOther:
    """The inputs of locations that share a model, concatenated as separate images: parts, a list of
    LocationImages, one after the other. Used like LocationImages."""

    def __init__(self, parts):
        self.parts = parts

    def __len__(self):
        return sum(map(len, self.parts))

    def __getitem__(self, indices):
        n = len(self.parts[0])
        if len(self.parts) == 1:
            return self.parts[0][indices]
        numbers = range(len(self))[indices] if isinstance(indices, slice) else indices
        runs = itertools.groupby(numbers, key=lambda number: number // n)
        return torch.cat([self.parts[part][[k % n for k in run]] for part, run in runs])
