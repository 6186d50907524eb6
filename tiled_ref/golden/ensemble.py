"""The last stage: an ensemble of PaDiM models from resized images to scores.

Every other stage has its own input; here the stages follow one another, which shows whether a
port that agrees with each of them has put them together as the method does.
"""

from dataclasses import dataclass

import numpy as np
import torch

from ..ensemble import Forgotten, collect, each_location, merge
from ..setups import Recipe, Setup
from . import backbone, formulas, images, padim
from .compare import close
from .inputs import grid_array, tile_grid
from .numbers import Numbers
from .stage import Case, Mistake, Stage, Weights

CHANNELS = (14, 2, 9, 25, 0, 6)  # of 28, some of every layer


def _cases():
    for name, image, tile, stride, flags in (
        ("four_tiles", (44, 52), 32, (20, 24), ("non_divisible", "overlap", "not_square")),
        ("single_tile", 32, 32, 32, ("single_tile",)),
    ):
        draw, grid = Numbers(f"ensemble/{name}"), grid_array(image, tile, stride)
        inputs = {
            "train": _images(draw, 5, *grid[:2]),
            "test": _images(draw, 2, *grid[:2]),
            "grid": grid,
            "channels": np.array(CHANNELS, np.int64),
            "width": np.float64(0.1),
            "sigma": np.float64(2.0),
            "weights": Weights("backbone"),
        }
        yield Case(name, inputs, (*flags, "several", "reflect"))


def _images(draw, n, height, width):
    """Noise on a slope, uint8 (n, 3, height, width)."""
    y, x = np.mgrid[:height, :width]
    return (2 * y + x + draw.integers(100, n, 3, height, width)).clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class GivenChannels(Recipe):
    """A recipe of PaDiM that does not draw its channels."""

    channels: list = None  # D ints

    def model(self, network, device):
        """A fresh model with these channels."""
        model = super().model(network, device, n_channels=len(self.channels))
        model.channels = self.channels
        return model


def _compute(inputs):
    grid = tile_grid(inputs["grid"])
    setup = Setup("golden", "ENS", grid.image_size, grid.tile_size, grid.stride)
    recipe = GivenChannels(
        setup, seam_width=float(inputs["width"]), seam_sigma=float(inputs["sigma"]),
        channels=inputs["channels"].tolist(),
    )  # fmt: skip
    network, device = backbone.network(inputs["weights"]), torch.device("cpu")
    train, test = inputs["train"], inputs["test"]
    found = each_location(recipe, network, device, train, test, Forgotten())
    maps, scores = collect(found, grid, len(test))
    merged, score = merge(maps, scores, recipe)
    return {"tile_maps": maps, "tile_scores": scores, "map": merged, "score": score}


def _formula(inputs, shared=False, early=False, of_map=False, smoothed=True, combine=np.mean):
    """The formulas of the stages one after the other. shared: one model for all locations, that
    of the first; early: tiles are padded before normalisation; of_map: the score is the largest
    value of the merged map; smoothed False: seams stay; combine: the tiles' scores."""
    grid, size = inputs["grid"], inputs["grid"][2:4]
    tiles = {}
    for key in ("train", "test"):
        levels = formulas.cut(inputs[key], grid) if early else inputs[key]
        flat = images.NORMALISE.formula({"images": levels.reshape(-1, *levels.shape[-3:])})
        normal = flat["images"].reshape(levels.shape)
        tiles[key] = normal if early else formulas.cut(normal, grid)  # (rows, cols, N, 3, h, w)
    rows, cols, n = tiles["test"].shape[:3]
    maps, fitted = np.empty((rows, cols, n, *size)), None
    for i, j in np.ndindex(rows, cols):
        if fitted is None or not shared:
            train = _embedding(tiles["train"][i, j], inputs)
            fitted = padim.PARAMETERS.formula({"embedding": train})
        test = {"embedding": _embedding(tiles["test"][i, j], inputs), "size": size, **fitted}
        maps[i, j] = padim.MAP.formula(test)["map"]
    scores = maps.max((3, 4))
    merged = formulas.untile(maps, grid)
    if smoothed:
        merged = formulas.smooth(merged, grid, float(inputs["width"]), float(inputs["sigma"]))
    score = merged.max((1, 2)) if of_map else combine(scores, axis=(0, 1))
    return {"tile_maps": maps, "tile_scores": scores, "map": merged, "score": score}


def _embedding(tiles, inputs):
    layers = backbone.BACKBONE.formula({"images": tiles, "weights": inputs["weights"]})
    return padim.EMBEDDING.formula({**layers, "channels": inputs["channels"]})["embedding"]


ENSEMBLE = Stage(
    "ensemble",
    "all stages of an ensemble of PaDiM models one after the other",
    "tiled_ref.ensemble.TiledEnsemble",
    "Rolih et al. Eq. 1-5 and Sec. 3.3",
    {name: close(1e-3, 1e-3) for name in ("tile_maps", "tile_scores", "map", "score")},
    _cases,
    _compute,
    _formula,
    (
        Mistake("one model for all tile locations instead of one each", shared=True),
        Mistake("tiles are padded before the normalisation instead of after", early=True),
        Mistake("the score is taken from the merged map, not from the tiles", of_map=True),
        Mistake("the largest of the tiles' scores instead of their mean", combine=np.max),
        Mistake("the seams are not smoothed", smoothed=False),
    ),
)

STAGES = (ENSEMBLE,)
