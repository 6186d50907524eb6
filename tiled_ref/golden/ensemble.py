"""The last stage: an ensemble of models from resized images to scores.

Every other stage has its own input; here each stage feeds the next, which shows whether a
port whose stages all agree also combines them correctly.
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from ..ensemble import Forgotten, collect, each_location, merge
from ..setups import Recipe, Setup
from . import backbone, fastflow, formulas, images, padim, patchcore, reverse_distillation
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
    """Draw noise on a gradient, uint8 (n, 3, height, width)."""
    y, x = np.mgrid[:height, :width]
    return (2 * y + x + draw.integers(100, n, 3, height, width)).clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Prepared(Recipe):
    """A recipe with given model options and random draws."""

    options: dict = None  # model options
    channels: list = None  # PaDiM's channels, ints

    def model(self, network, device):
        """Create a new model."""
        model = super().model(network, device, **(self.options or {}))
        if self.channels:
            model.channels = self.channels
        return model


def _compute(inputs, **recipe):
    grid = tile_grid(inputs["grid"])
    setup = Setup("golden", "ENS", grid.image_size, grid.tile_size, grid.stride)
    if "channels" in inputs:
        channels = inputs["channels"].tolist()
        recipe |= {"channels": channels, "options": {"n_channels": len(channels)}}
    recipe = Prepared(
        setup, seam_width=float(inputs["width"]), seam_sigma=float(inputs["sigma"]), **recipe
    )
    network, device = backbone.network(inputs["weights"]), torch.device("cpu")
    train, test = inputs["train"], inputs["test"]
    found = each_location(recipe, network, device, train, test, Forgotten())
    maps, scores = collect(found, grid, len(test))
    merged, score = merge(maps, scores, recipe)
    return {"tile_maps": maps, "tile_scores": scores, "map": merged, "score": score}


def _formula(
    inputs, arch="padim", shared=False, early=False, of_map=False, where="inside", combine=np.mean,
    edge=None, **switches,
):  # fmt: skip
    """Chain the formulas of all stages. shared: one model for all locations, that of the first;
    early: tiles are padded before normalisation; of_map: the score is the largest value of the
    merged map; where: the smoothed area; combine: reduces the tiles' scores; edge: the padding
    mode; others: PaDiM's switches."""
    fit, predict = ARCHITECTURES[arch]
    if switches:
        fit = partial(fit, **switches)
        predict = partial(predict, first=switches.get("first", False))
    grid, size = inputs["grid"], inputs["grid"][2:4]
    tiles = {}
    for key in ("train", "test"):
        cut = partial(_cut, grid=grid, edge=edge)
        levels = cut(inputs[key]) if early else inputs[key]
        flat = images.NORMALISE.formula({"images": levels.reshape(-1, *levels.shape[-3:])})
        normal = flat["images"].reshape(levels.shape)
        tiles[key] = normal if early else cut(normal)  # (rows, cols, N, 3, h, w)
    rows, cols, n = tiles["test"].shape[:3]
    maps, scores, fitted = np.empty((rows, cols, n, *size)), np.empty((rows, cols, n)), None
    for i, j in np.ndindex(rows, cols):
        if fitted is None or not shared:
            fitted = fit(_layers(tiles["train"][i, j], inputs), inputs)
        test = {**inputs, **_layers(tiles["test"][i, j], inputs), **fitted, "size": size}
        maps[i, j], scores[i, j] = predict(test)
    merged = formulas.untile(maps, grid)
    width, sigma = float(inputs["width"]), float(inputs["sigma"])
    merged = formulas.smooth(merged, grid, width, sigma, where)
    score = merged.max((1, 2)) if of_map else combine(scores, axis=(0, 1))
    return {"tile_maps": maps, "tile_scores": scores, "map": merged, "score": score}


def _cut(pictures, grid, edge):
    return images.TILE.formula({"images": pictures, "grid": grid}, edge=edge)["tiles"]


def _layers(tiles, inputs):
    return backbone.BACKBONE.formula({"images": tiles, "weights": inputs["weights"]})


def _fit_padim(layers, inputs, less=1, first=False):
    given = {**layers, "channels": inputs["channels"]}
    return padim.PARAMETERS.formula(padim.EMBEDDING.formula(given, first=first), less=less)


def _predict_padim(test, first=False):
    maps = padim.MAP.formula({**test, **padim.EMBEDDING.formula(test, first=first)})["map"]
    return maps, maps.max((1, 2))


def _fit_patchcore(layers, inputs):
    embedding = patchcore.EMBEDDING.formula(layers)["embedding"].transpose(0, 2, 3, 1)
    patches = embedding.reshape(-1, embedding.shape[-1])
    return {"bank": patchcore.PARAMETERS.formula({**inputs, "patches": patches})["bank"]}


def _predict_patchcore(test):
    test = {**test, **patchcore.EMBEDDING.formula(test)}
    return patchcore.MAP.formula(test)["map"], patchcore.SCORE.formula(test)["score"]


def _fit_trained(stages, layers, inputs):
    trained = stages.PARAMETERS.formula({**layers, "weights": inputs["network"], "steps": 1})
    return {"network": {**inputs["network"], **trained}}


def _predict_trained(stages, test):
    layers = stages.EMBEDDING.formula({**test, "weights": test["network"]})
    maps = stages.MAP.formula({**test, **layers})["map"]
    return maps, maps.max((1, 2))


ARCHITECTURES = {  # fit(training layers, inputs) -> dict; predict(test inputs) -> (maps, scores)
    "padim": (_fit_padim, _predict_padim),
    "patchcore": (_fit_patchcore, _predict_patchcore),
    "fastflow": (partial(_fit_trained, fastflow), partial(_predict_trained, fastflow)),
    "reverse_distillation": (
        partial(_fit_trained, reverse_distillation),
        partial(_predict_trained, reverse_distillation),
    ),
}


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
        Mistake("the seams are not smoothed", where="nowhere"),
        Mistake("the whole map is blurred, not only the seams", where="everywhere"),
        Mistake("the image is mirrored (reflect) beyond its edge instead of zeros", edge="reflect"),
        Mistake("the edge is repeated beyond the image instead of zeros", edge="edge"),
        Mistake("biased covariance: divided by N instead of N - 1", less=0),
        Mistake("the first channels are taken instead of the chosen ones", first=True),
    ),
)


def ensemble_of(arch, inputs, **recipe):
    """Return the stage for another architecture, with one case; recipe, fields of Prepared."""
    return replace(
        ENSEMBLE,
        name=f"ensemble.{arch}",
        title=f"ENS9 with {arch}, from an image to its score",
        cases=lambda: [Case("board", inputs, ("genuine", "overlap", "reflect"))],
        compute=partial(_compute, arch=arch, **recipe),
        formula=partial(_formula, arch=arch),
    )


STAGES = (ENSEMBLE,)
