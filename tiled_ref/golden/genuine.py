"""The second bundle: one generated image through the real sizes with genuine weights.

An image of the built-in data set, with a defect, is resized to 256 px, normalised, cut into tiles
and sent through ResNet-18; PaDiM and PatchCore are fitted on six of its windows of 64 px and
predict a seventh. At tens of megabytes, the bundle is not in the repository.
"""

from dataclasses import replace

import numpy as np
import torch

from ..data import synthetic
from ..data.images import normalize
from ..data.resizing import resize_image
from ..models.backbone import ResNet18Features
from ..models.padim import channel_choice
from ..models.patchcore import N_FEATURES, RATIO
from ..models.search.coreset import projected_dimensions, sparse_projection
from ..models.weights import find_weights
from ..support.errors import InputError
from . import backbone, images, padim, patchcore
from .inputs import grid_array, tensor
from .stage import Case, Weights

SIDE, WINDOW = 256, 64  # px, of the resized image and of its windows
SEED = 42  # of channels and projection
TRAIN = tuple((y, x) for y in (0, 96, 192) for x in (16, 176))  # windows, top left pixels
TEST = (112, 96)


class Genuine:
    """The stages and models of the second bundle.

    Parameters: weights, "imagenet" or a file, see tiled_ref.models.weights.
    Raises InputError where there are none.
    """

    def __init__(self, weights):
        if weights in ("auto", "random"):
            raise InputError(
                f"--weights {weights} may not be genuine; say imagenet or name a file of weights"
            )
        state = find_weights(weights).state_dict
        kept = {k: v for k, v in state.items() if k.startswith(("conv1", "bn1", "layer"))}
        kept = {k: v for k, v in kept.items() if not k.startswith("layer4")}
        self.tensors = backbone.packed(kept)
        self.backbone = ResNet18Features(backbone.unpacked(self.tensors))
        sample = next(s for s in synthetic.load(None, "board").test if s.label)
        self.picture = sample.read_image()
        resized = resize_image(self.picture, (SIDE, SIDE))
        self.levels = np.ascontiguousarray(resized.transpose(2, 0, 1)[None])  # (1, 3, 256, 256)
        self.normalised = normalize(tensor(self.levels)).numpy()

    def models(self):
        """{model: {tensor: array}}."""
        return {"backbone": self.tensors}

    def stages(self):
        """The stages up to the scores of PaDiM and PatchCore, a case each."""
        picture = {"image": self.picture, "size": np.array([SIDE, SIDE], np.int64)}
        tiles = {"images": self.normalised, "grid": grid_array(SIDE, 128, 64)}
        features = {"images": self.normalised, "weights": Weights("backbone")}
        train, test = self._windows(TRAIN), self._windows([TEST])
        return [
            _only(images.RESIZE, picture, ("downscale",)),
            _only(images.NORMALISE, {"images": self.levels}),
            _only(images.TILE, tiles, ("overlap",)),
            _only(backbone.BACKBONE, features, ("genuine",)),
            *self._padim(train, test),
            *self._patchcore(train, test),
        ]

    def _windows(self, corners):
        """Features of windows, {layer: (n, C, hf, wf)}."""
        parts = [self.normalised[0, :, y : y + WINDOW, x : x + WINDOW] for y, x in corners]
        layers = self.backbone(torch.from_numpy(np.stack(parts)))
        return {f"layer{k}": v.contiguous().numpy() for k, v in enumerate(layers, start=1)}

    def _padim(self, train, test):
        channels = {"channels": np.array(channel_choice(SEED), np.int64)}
        learnt = padim.EMBEDDING.compute({**train, **channels})
        given = padim.EMBEDDING.compute({**test, **channels})
        fitted = padim.PARAMETERS.compute(learnt)
        window = {"size": np.array([WINDOW, WINDOW], np.int64)}
        mapped = {**given, **fitted, **window}
        return [
            _only(padim.EMBEDDING, {**test, **channels}, ("genuine",)),
            _only(padim.PARAMETERS, learnt, ("genuine",)),
            _only(padim.MAP, mapped, ("genuine", "reflect")),
            _only(padim.SCORE, {"map": padim.MAP.compute(mapped)["map"]}, ("genuine",)),
        ]

    def _patchcore(self, train, test):
        train, test = ({k: v for k, v in x.items() if k != "layer1"} for x in (train, test))
        learnt = patchcore.EMBEDDING.compute(train)["embedding"]
        patches = np.ascontiguousarray(learnt.transpose(0, 2, 3, 1)).reshape(-1, N_FEATURES)
        rng = np.random.default_rng(SEED)
        dimensions = projected_dimensions(len(patches))
        fit = {
            "patches": patches,
            "projection": sparse_projection(N_FEATURES, dimensions, rng),
            "first": np.int64(rng.integers(len(patches))),
            "count": np.int64(RATIO * len(patches)),
            "include_first": np.bool_(False),
        }
        given = patchcore.EMBEDDING.compute(test)
        bank = {"bank": patchcore.PARAMETERS.compute(fit)["bank"]}
        size = {"size": np.array([WINDOW, WINDOW], np.int64)}
        return [
            _only(patchcore.EMBEDDING, test, ("genuine",)),
            _only(patchcore.PARAMETERS, fit, ("genuine",)),
            _only(patchcore.MAP, {**given, **bank, **size}, ("genuine", "reflect")),
            _only(patchcore.SCORE, {**given, **bank, "n_neighbours": np.int64(9)}, ("genuine",)),
        ]


def _only(stage, inputs, flags=()):
    """The stage with one case instead of its own."""
    return replace(stage, cases=lambda: [Case("board", inputs, flags)])
