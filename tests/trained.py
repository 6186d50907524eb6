"""What the tests of the trained models share."""

import torch

from tiled_ref.models.cached import layers_in_chunks
from tiled_ref.tiling import TileGrid

GRID = TileGrid((96, 96), (64, 64), (32, 32))  # four overlapping tiles


def pictures(n=5, side=64, seed=0):
    """float32 (n, 3, side, side): smooth and noisy, each another one."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    wave = torch.sin(x / 7 + y / 11)
    return wave + 0.3 * torch.randn(n, 3, side, side, generator=generator)


def recomputed(backbone, images, indices):
    """The layers of some images, each image computed alone: list of (T * B, C, hf, wf)."""
    each = [layers_in_chunks(backbone, images[[k]]) for k in indices]
    return [torch.stack(layer, dim=1).flatten(0, 1) for layer in zip(*each)]


def same_predictions(first, second, batch):
    """Whether two models give the same bits."""
    return all(torch.equal(a, b) for a, b in zip(first.predict(batch), second.predict(batch)))


def draw_state(module, seed=5, scale=0.1):
    """Move every parameter by seeded noise, so that none keeps a special initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter += scale * noise.to(parameter)
