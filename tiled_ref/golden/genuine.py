"""The second bundle: one generated image at realistic sizes, with genuine weights.

A defective image of the built-in data set is resized to 256 px, normalised, cut into tiles
and passed through ResNet-18; PaDiM and PatchCore are fitted on six of its 64 px windows and
predict a seventh. Then ENS9 of all four architectures, 256 px in 3 x 3 tiles of 128 px, is trained
on two normal images and predicts the same image. The bundle has over a hundred megabytes, so it is
not in the repository.
"""

from dataclasses import replace

import numpy as np
import torch

from ..data import synthetic
from ..data.images import normalize
from ..data.resizing import resize_image
from ..models.backbone import ResNet18Features
from ..models.padim import channel_choice
from ..models.fastflow import FastFlow
from ..models.patchcore import N_FEATURES, N_NEIGHBOURS, RATIO
from ..models.reverse_distillation import ReverseDistillation
from ..models.search.coreset import projected_dimensions, sparse_projection
from ..models.weights import find_weights
from ..support.errors import InputError
from . import backbone, fastflow, images, padim, patchcore
from .ensemble import ensemble_of
from .inputs import grid_array, tensor
from .stage import Case, Weights

SIDE, TILE, WINDOW = 256, 128, 64  # px, sides of the resized image, its tiles and its windows
SEED = 42  # for channels and projection
TRAIN = tuple((y, x) for y in (0, 96, 192) for x in (16, 176))  # top left pixels of the windows
TEST = (112, 96)


class Genuine:
    """The stages and models of the second bundle.

    Parameters: weights, "imagenet" or a file, see tiled_ref.models.weights.
    Raises InputError if the weights are not found.
    """

    def __init__(self, weights):
        if weights in ("auto", "random"):
            raise InputError(
                f"--weights {weights} may not be genuine; give imagenet or a weights file"
            )
        state = find_weights(weights).state_dict
        kept = {k: v for k, v in state.items() if k.startswith(("conv1", "bn1", "layer"))}
        kept = {k: v for k, v in kept.items() if not k.startswith("layer4")}
        self.tensors = backbone.packed(kept)
        self.backbone = ResNet18Features(backbone.unpacked(self.tensors))
        board = synthetic.load(None, "board")
        self.picture = next(s for s in board.test if s.label).read_image()
        self.levels = _levels([self.picture])  # (1, 3, 256, 256)
        self.train = _levels([sample.read_image() for sample in board.train[:2]])
        self.normalised = normalize(tensor(self.levels)).numpy()
        options = {"seed": SEED, "device": "cpu"}
        flow = FastFlow(self.backbone, (TILE, TILE), **options)
        student = ReverseDistillation(self.backbone, (TILE, TILE), **options)
        self.networks = {
            "fastflow": fastflow.packed_with_orders(flow.state()),
            "reverse_distillation": backbone.packed(student.state()),
        }

    def models(self):
        """Return {model: {tensor: array}}."""
        return {"backbone": self.tensors, **self.networks}

    def stages(self):
        """Return the stages up to PaDiM's and PatchCore's scores, and ENS9 of all, a case each."""
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
            *self._ensembles(),
        ]

    def _ensembles(self):
        common = {
            "train": self.train,
            "test": self.levels,
            "grid": grid_array(SIDE, TILE, TILE // 2),
            "width": np.float64(0.1),
            "sigma": np.float64(2.0),
            "weights": Weights("backbone"),
        }
        channels = {"channels": np.array(channel_choice(SEED), np.int64)}
        n_patches = len(self.train) * (TILE // 8) ** 2
        draws = {**_draws(n_patches), "n_neighbours": np.int64(N_NEIGHBOURS)}
        network = {arch: {"network": Weights(arch)} for arch in self.networks}
        trained = {"seed": SEED, "options": {"steps": 1, "batch_size": len(self.train)}}
        return [
            ensemble_of("padim", common | channels),
            ensemble_of("patchcore", common | draws, seed=SEED),
            *(ensemble_of(arch, common | own, **trained) for arch, own in network.items()),
        ]

    def _windows(self, corners):
        """Compute the features of windows, {layer: (n, C, hf, wf)}."""
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
        fit = {"patches": patches, **_draws(len(patches))}
        given = patchcore.EMBEDDING.compute(test)
        bank = {"bank": patchcore.PARAMETERS.compute(fit)["bank"]}
        size = {"size": np.array([WINDOW, WINDOW], np.int64)}
        return [
            _only(patchcore.EMBEDDING, test, ("genuine",)),
            _only(patchcore.PARAMETERS, fit, ("genuine",)),
            _only(patchcore.MAP, {**given, **bank, **size}, ("genuine", "reflect")),
            _only(patchcore.SCORE, {**given, **bank, "n_neighbours": np.int64(9)}, ("genuine",)),
        ]


def _levels(pictures):
    """Resize images (h, w, 3) to uint8 (N, 3, 256, 256)."""
    resized = np.stack([resize_image(picture, (SIDE, SIDE)) for picture in pictures])
    return np.ascontiguousarray(resized.transpose(0, 3, 1, 2))


def _draws(n_patches):
    """Return PatchCore's random draws for n_patches, and the number of patches it keeps."""
    rng = np.random.default_rng(SEED)
    return {
        "projection": sparse_projection(N_FEATURES, projected_dimensions(n_patches), rng),
        "first": np.int64(rng.integers(n_patches)),
        "count": np.int64(RATIO * n_patches),
        "include_first": np.bool_(False),
    }


def _only(stage, inputs, flags=()):
    """Return the stage with a single given case."""
    return replace(stage, cases=lambda: [Case("board", inputs, flags)])
