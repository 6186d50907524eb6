"""Prediction with a trained ensemble, in two memory modes.

    low         locations outer, images inner loop (`ensemble.each_location`): one location on the
                device at a time, the memory of one model on one tile (Sec. 3.2)
    resident    images outer, locations inner loop: all models are on the device, and the tiles of
                an image are one batch of the backbone
"""

import numpy as np
import torch

from ..data.tiles import LocationImages
from ..ensemble import collect, slices
from ..support.devices import full_precision, to_host
from .rows import merge_rows

MEMORY_MODES = ("low", "resident")


class Engine:
    """A trained ensemble, ready to predict images again and again.

    Parameters: ensemble, a TiledEnsemble, fitted or loaded; memory, one of MEMORY_MODES.
    Raises InputError if the ensemble is not trained.
    """

    def __init__(self, ensemble, memory="low", *, impl="cython", threads=None):
        ensemble.check_trained()
        self.ensemble, self.impl, self.threads = ensemble, impl, threads
        self.resident = self.model = None
        if memory == "resident":
            self.resident = Resident(ensemble, ensemble.states)
        else:
            self.model = ensemble.make_model()

    def predict(self, images):
        """Merged, smoothed maps float32 (B, H, W) and scores float32 (B,), raw, on the host.

        Parameters: images uint8 (B, 3, H, W) in host memory, or anything that `data.inputs` reads.
        """
        images = self.ensemble.as_images(images)
        if self.resident:
            found = self.resident.predict(images)
        else:
            found = self.ensemble.each_location(None, images, model=self.model)
        recipe = self.ensemble.recipe
        maps, scores = collect(found, recipe.grid, len(images))
        out = np.empty((len(images), *recipe.grid.image_size), np.float32)
        return out, merge_rows(
            [maps[location] for location in recipe.grid.locations()], scores, recipe, out,
            impl=self.impl, threads=self.threads, roi=self.ensemble.roi,
        )  # fmt: skip


class Resident:
    """The models of all locations, together on the device.

    Parameters: ensemble, a TiledEnsemble; states, location -> state, of all its locations; joint,
    whether to batch the heads where that is faster.
    """

    def __init__(self, ensemble, states, joint=True):
        self.recipe, self.device = ensemble.recipe, ensemble.device
        setup, self.locations = ensemble.setup, self.recipe.grid.locations()
        owners = {place: model for model in setup.models for place in setup.inputs(model)}
        self.joint, self.heads = None, [ensemble.make_model()]
        if joint and self.device.type == "cpu" and hasattr(self.heads[0], "joint_head"):
            known = {location: states[location] for location in setup.models}
            self.joint = self.heads[0].joint_head([known[owners[p]] for p in self.locations])
            return
        models = dict(zip(setup.models, [*self.heads, *(
            ensemble.make_model() for _ in range(setup.n_models - 1)
        )]))  # fmt: skip
        for location, model in models.items():
            model.load_state(states[location])
        self.heads = [models[owners[place]] for place in self.locations]

    def predict(self, images, progress=None):
        """Yield (location, rows, maps (b, h, w), scores (b,)), on the host, rows a slice.

        Parameters: images uint8 (B, 3, H, W), on the host; a batch has as many tiles as in low
        mode, but at least those of one image.
        """
        for rows in slices(len(images), max(1, self.recipe.batch_size // len(self.locations))):
            with full_precision():
                maps, scores = map(torch.stack, zip(*self.found(images[rows])))  # (L, B, h, w)
            for location, *found in zip(self.locations, *to_host(maps, scores)):
                yield location, rows, *found
            if progress:
                progress(rows.stop, len(images))

    def found(self, images):
        """Maps (B, h, w) and scores (B,) for each location, on the device.

        Parameters: images uint8 (B, 3, H, W).
        """
        grid = self.recipe.setup.input_grid
        tiles = LocationImages(images, grid, grid.locations(), self.device)[:]  # (T * B, 3, h, w)
        features = self.heads[0].features(tiles)
        n = len(features[0]) // len(self.locations)
        if self.joint:
            return zip(*(part.split(n) for part in self.joint(features)))
        parts = zip(*(layer.split(n) for layer in features))
        return (model.head(part) for model, part in zip(self.heads, parts))
