"""The base of FastFlow and Reverse Distillation: a network trained on a frozen encoder's layers."""

import torch

from ..support.errors import InputError
from ..support.option_types import STEPS, words
from .backbone import FEATURE_STRIDE, chunks
from .base import Model
from .cached import CachedFeatures, batches, layers_in_chunks
from .precision import autocast_of

LAYERS = ("layer1", "layer2", "layer3")


class TrainedModel(Model):
    """A model that trains a network with Adam on the layers of the encoder.

    A subclass creates `network`, a torch.nn.Module on the device, whose forward takes the list of
    three layers (B, C, hf, wf) and returns a list of tensors (B, ...), and adds `optimizer`,
    `loss_value`, `add_gradient` and `anomaly_map`.

    Parameters: backbone, output_size and the options of `Model`; seed draws the initial weights and
    the order of the images, batch_size counts images per optimiser step. steps, optimiser steps.
    Raises InputError for steps outside STEPS.
    """

    def __init__(self, backbone, output_size, *, steps=200, **options):
        if type(steps) is not int or steps not in STEPS:
            raise InputError(f"the number of steps must be {words(STEPS)}, not {steps!r}")
        super().__init__(backbone, output_size, **options)
        self.steps, self.network = steps, None

    @property
    def input_size(self):
        """Height and width in pixels of the encoder's input: of a tile, or of the image."""
        return self.output_size if self.untile is None else self.untile.tile_size

    @property
    def n_parameters(self):
        """Parameters as Table 3 counts them: encoder and network."""
        return super().n_parameters + sum(p.numel() for p in self.network.parameters())

    def n_learnt(self, n_images):
        """Numbers kept after training: all tensors of the network."""
        return sum(value.numel() for value in self.network.state_dict().values())

    def fit(self, images, progress=None):
        """Train the network in `steps` steps of Adam on the batches of cached.batches.

        Parameters: images and progress, see tiled_ref.models; progress counts images, as the
        part "features", then steps.
        Raises InputError without images, or if a batch is too small for the network.
        """
        self.fit_features(CachedFeatures(self.backbone, images, progress=progress), progress)

    def fit_features(self, features, progress=None):
        """`fit` from the layers of all images: len(features) is their number, features[indices], a
        list of ints, a list of float32 (B, C, hf, wf), see cached.CachedFeatures."""
        todo = list(batches(len(features), self.batch_size, self.steps, self.seed))
        self.check_batch(min(map(len, todo)))
        self.network.train()
        optimizer = self.optimizer()
        for step, indices in enumerate(todo, start=1):
            optimizer.zero_grad(set_to_none=True)
            self.add_gradient(features[indices])
            optimizer.step()
            if progress:
                progress(step, self.steps)
        self.network.eval()

    def check_batch(self, n_images):
        """Raise InputError if a batch of n_images is too small to train on; by default none is."""

    @torch.no_grad()
    def predict(self, images):
        """See Model: images (B, 3, h, w) float32, chunk by chunk through encoder and network."""
        return self.maps(self.outputs(self.backbone(part)) for part in chunks(images))

    def features(self, images):
        """The layers of the encoder: images (B, 3, h, w) float32 -> list of (B, C, hf, wf)."""
        return layers_in_chunks(self.backbone, images)

    @torch.no_grad()
    def head(self, features):
        """Maps (B, H, W) and scores (B,), see `maps`, of features(images)."""
        parts = zip(*(chunks(layer) for layer in features))
        return self.maps(self.outputs(list(part)) for part in parts)

    def maps(self, parts):
        """Maps float32 (B, H, W), see `anomaly_map`, and scores float32 (B,), their maxima, from
        an iterable of `outputs`, each for some of the images or tiles."""
        outputs = self.whole([torch.cat(part) for part in zip(*parts)])
        images = zip(*(chunks(output, len(output)) for output in outputs))
        maps = torch.cat([self.anomaly_map(list(image)) for image in images])
        return maps, maps.amax((1, 2))

    def outputs(self, layers):
        """The network's outputs in float32: lists of (B, C, hf, wf) -> of (B, ...)."""
        with autocast_of(self.backbone, self.device):
            return [x.float() for x in self.network(layers)]

    def whole(self, layers):
        """Feature maps (T * B, C, hf, wf) of tiles -> of images; the same list without tiles.

        layers, tensors of layers 1 to 3, once or twice."""
        if self.untile is None:
            return layers
        names = LAYERS * (len(layers) // len(LAYERS))
        whole = [self.untile(x, FEATURE_STRIDE[name]) for name, x in zip(names, layers)]
        # The layout of input without tiles, so that a single tile gives the same bits.
        return [x.contiguous(memory_format=torch.channels_last) for x in whole]

    def state(self):
        """The result of fit on the CPU: the tensors of the network."""
        items = self.network.state_dict().items()
        return {name: value.detach().cpu().clone() for name, value in items}

    def load_state(self, state):
        """The inverse of state()."""
        self.network.load_state_dict(state)
        self.network.eval()
