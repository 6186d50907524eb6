"""The constructor and prediction shared by all architectures; see the package's docstring."""

import torch

from ..support.errors import InputError


class Model:
    """A frozen backbone, the size of the anomaly map, and the settings of training.

    Parameters: backbone, a frozen ResNet18Features, shared by the models of an ensemble;
    output_size, height and width in pixels of the anomaly map; seed, of all random
    draws; device; untile, for tiled input, see tiled_ref.models; batch_size, images at a time in
    fit, BATCH_SIZE by default.
    """

    BATCH_SIZE = 32  # images, Rolih et al. Sec. 4.2

    def __init__(self, backbone, output_size, *, seed, device, untile=None, batch_size=None):
        self.backbone = backbone
        self.output_size = tuple(output_size)
        self.seed = seed
        self.device = torch.device(device)
        self.untile = untile
        self.batch_size = batch_size or self.BATCH_SIZE

    @property
    def n_parameters(self):
        """Parameters of the backbone up to layer3, all of Table 3 unless there is a network."""
        return sum(p.numel() for p in self.backbone.parameters())

    def features(self, images):
        """The part shared by all models of an ensemble, see embed: images (B, 3, h, w) float32."""
        return [self.embed(images)]

    def embeddings(self, images):
        """Yield the embeddings (B, D, hf, wf) of all images, a batch at a time."""
        for start in range(0, len(images), self.batch_size):
            rows = list(range(start, min(start + self.batch_size, len(images))))
            yield self.embed(images[rows])

    @torch.no_grad()
    def predict(self, images):
        """Anomaly maps and scores (Rolih et al. Eq. 4: A_ij, s_ij = M_ij(T_ij)).

        Parameters: images (B, 3, h, w) float32, normalised, on the device; (T * B, ...) for tiled
        input.
        Returns maps float32 (B, H, W) and scores float32 (B,), see `head`.
        """
        return self.head(self.features(images))


def expected(embeddings, n_images):
    """Yield embeddings, float32 (B, D, hf, wf). Raises InputError unless they are those of n_images
    and of one shape (D, hf, wf)."""
    n, shapes = 0, set()
    for embedding in embeddings:
        n += len(embedding)
        shapes.add(tuple(embedding.shape[1:]))
        if n > n_images or len(shapes) > 1:
            break
        yield embedding
    if n != n_images or len(shapes) > 1:
        raise InputError(f"n_images is {n_images}, but got {n} embeddings of shape {shapes}")
