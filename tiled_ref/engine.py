"""Where models and tiles are while an ensemble predicts: one location at a time, or all at once.

    low         one location on the device at a time: memory of one model on one tile, the
                promise of the paper (Sec. 3.2). On a GPU the next location's weights and tiles
                come over a second stream while the present one computes
    resident    all locations on the device: the tiles of an image are one batch of the
                backbone, and no model moves

Both give the same bits on a CPU. The backbone is the same in every model of an ensemble, so it
is on the device once; what moves is what a location learnt.
"""

import torch

from .data.images import normalize
from .data.inputs import as_images
from .ensemble import merge
from .errors import InputError


class Engine:
    """A trained ensemble, ready to predict images again and again: the latency path.

    Parameters
    ----------
    ensemble : TiledEnsemble
        Fitted or loaded.
    memory : {"low", "resident"}
    impl, threads
        See `merging.untile_average`.

    Raises
    ------
    InputError
        Nothing was fitted.
    """

    def __init__(self, ensemble, memory="low", *, impl="cython", threads=None):
        if len(ensemble.states) < ensemble.setup.n_models:
            raise InputError("the ensemble has not been trained; call fit before predict")
        self.ensemble = ensemble
        self.impl, self.threads = impl, threads
        self.locations = ensemble.grid.locations()
        self.residents = self.locations if memory == "resident" else []
        self.heads = [self._loaded(ensemble.make_model(), location) for location in self.residents]
        self.guest = None if self.residents else ensemble.make_model()

    def predict(self, images):
        """Merged, smoothed maps float32 (B, H, W) and scores float32 (B,), raw, on the host.

        Parameters: images uint8 (B, 3, H, W) in host memory, or whatever `data.inputs` reads.
        """
        ensemble = self.ensemble
        images = as_images(images, ensemble.setup.image_size, antialias=ensemble.antialias)
        maps, scores = ensemble.allocate(len(images))
        batch = torch.as_tensor(images).to(ensemble.device)
        if self.residents:
            self._predict_residents(batch, maps, scores)
        for location in self.locations[len(self.residents) :]:
            model = self._loaded(self.guest, location)
            keep(model.predict(self._tiles(batch, [location])), location, maps, scores)
        return merge(
            maps, scores, ensemble.grid,
            score=ensemble.score, width=ensemble.seam_width, sigma=ensemble.seam_sigma,
            impl=self.impl, threads=self.threads,
        )  # fmt: skip

    def _loaded(self, model, location):
        model.load_state(self.ensemble.states[location])
        return model

    def _predict_residents(self, batch, maps, scores):
        """Fill maps and scores of the resident locations: one backbone batch, then the heads."""
        features = self.heads[0].features(self._tiles(batch, self.residents))
        n = len(features[0]) // len(self.residents)
        for k, (head, location) in enumerate(zip(self.heads, self.residents)):
            own = [layer[k * n : (k + 1) * n] for layer in features]
            keep(head.head(own), location, maps, scores)

    def _tiles(self, batch, locations):
        """Tiles of a batch on the device, float32 (L * B, 3, h, w), location-major.

        batch uint8 (B, 3, H, W). For ST the tiles of the only model's image.
        """
        grid = self.ensemble.setup.input_grid
        if self.ensemble.setup.kind == "ST":
            locations = grid.locations()
        windows = [grid.window(*location) for location in locations]
        n_pixels = sum((r.stop - r.start) * (c.stop - c.start) for r, c in windows)
        if n_pixels > batch.shape[2] * batch.shape[3]:  # each pixel is normalised once
            batch = normalize(batch)
            parts = [batch[..., rows, cols] for rows, cols in windows]
        else:
            parts = [normalize(batch[..., rows, cols]) for rows, cols in windows]
        parts = [grid.pad_tile(part) for part in parts]
        return torch.cat(parts) if len(parts) > 1 else parts[0]


def keep(prediction, location, maps, scores):
    """Copy a location's prediction to the host: into maps[i, j] and scores[i, j]."""
    maps[location], scores[location] = (part.cpu().numpy() for part in prediction)


