"""What FastFlow and Reverse Distillation share: a network trained on a frozen encoder's layers."""

import torch

from ..backbone import in_company
from ..errors import InputError
from ..precision import autocast_of
from .cached import BUDGET, batches, encoder_features, layers_in_chunks


class TrainedModel:
    """A model whose own part is a network, trained by Adam on the layers of the encoder.

    A subclass makes `network`, a torch.nn.Module on the device, whose forward takes the list of
    three layers (B, C, hf, wf) and returns the list of tensors (B, ...) that `maps` takes, and
    adds `optimizer`, `add_gradient` and `maps`.

    Parameters
    ----------
    backbone : ResNet18Features
        Frozen; shared between the models of an ensemble.
    output_size : (int, int)
        Height and width in pixels of the anomaly map.
    seed : int
        Draws initial weights and the order of the images.
    device : torch.device or str
    untile : callable, optional
        For tiled input, see tiled_ref.models; with the attribute `tile_size`.
    batch_size : int, optional
        Images per optimiser step, BATCH_SIZE by default.
    steps : int >= 1
        Optimiser steps.
    cache_bytes : int or None
        Host memory for the training images' features, see cached.encoder_features.

    Raises
    ------
    InputError
        For steps below 1.
    """

    BATCH_SIZE = 32  # images, Rolih et al. Sec. 4.2
    CHUNK = 8  # images or tiles per pass: memory does not grow with the batch
    JOINT = ("cuda",)  # devices on which joint_head is faster than one head after another

    def __init__(
        self,
        backbone,
        output_size,
        *,
        seed,
        device,
        untile=None,
        batch_size=None,
        steps=200,
        cache_bytes=BUDGET,
    ):
        if steps < 1:
            raise InputError(f"the number of steps must be at least 1, not {steps!r}")
        self.backbone = backbone
        self.output_size = tuple(output_size)
        self.seed, self.steps, self.cache_bytes = seed, steps, cache_bytes
        self.untile = untile
        self.device = torch.device(device)
        self.batch_size = batch_size or self.BATCH_SIZE
        self.network = None

    @property
    def input_size(self):
        """Height and width in pixels of what the encoder sees: of a tile, or of the image."""
        return self.output_size if self.untile is None else self.untile.tile_size

    @property
    def n_parameters(self):
        """Parameters as Table 3 counts them: encoder and network."""
        parameters = [*self.backbone.parameters(), *self.network.parameters()]
        return sum(p.numel() for p in parameters)

    def n_learnt(self, n_images):
        """Numbers kept after training: all tensors of the network."""
        return sum(value.numel() for value in self.network.state_dict().values())

    def fit(self, images, progress=None):
        """Train the network, `steps` times Adam. Batches: see cached.batches.

        Parameters: images and progress, see tiled_ref.models; progress counts steps.
        Raises InputError without images, or where a batch is too small for the network.
        """
        features = encoder_features(self.backbone, images, self.cache_bytes)
        todo = list(batches(len(images), self.batch_size, self.steps, self.seed))
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
        """Raise InputError where a batch of n_images is too small to train on; none is here."""

    @torch.no_grad()
    def predict(self, images):
        """Anomaly maps and scores (Rolih et al. Eq. 4: A_ij, s_ij = M_ij(T_ij)).

        Parameters: images (B, 3, h, w) float32, normalised; (T * B, ...) for tiled input.
        Returns maps float32 (B, H, W), see `maps`, and scores float32 (B,), the maximum of each.
        """
        return self.maps(self.answers(self.backbone(chunk)) for chunk in images.split(self.CHUNK))

    def features(self, images):
        """What is the same in every model of an ensemble: the layers of the encoder."""
        return layers_in_chunks(self.backbone, images, self.CHUNK)

    @torch.no_grad()
    def head(self, features):
        """Maps and scores, see predict, of features(images)."""
        chunks = zip(*(layer.split(self.CHUNK) for layer in features))
        return self.maps(self.answers(list(chunk)) for chunk in chunks)

    def answers(self, layers):
        """The network's answers in float32: lists of (B, C, hf, wf) -> of (B, ...)."""

        def answer(layers):
            with autocast_of(self.backbone, self.device):
                return [x.float() for x in self.network(layers)]

        return in_company(answer, layers, layers[-1][0].numel() // 2)

    def joint_head(self, states):
        """The head of several models at once, their networks batched by torch.func.vmap.

        Parameters: states, a list of L states, which end up on the device together.
        Returns a function of features, each (L * B, C, hf, wf), location-major, that gives maps
        (L * B, H, W) and scores (L * B,).
        """
        stacked = {
            name: torch.stack([state[name].to(self.device) for state in states])  # (L, ...)
            for name in states[0]
        }
        self.network.eval()

        def answers(tensors, layers):
            with autocast_of(self.backbone, self.device):
                answer = torch.func.functional_call(self.network, tensors, (layers,))
                return [x.float() for x in answer]

        batched = torch.func.vmap(answers)

        @torch.no_grad()
        def head(features):
            layers = [layer.unflatten(0, (len(states), -1)) for layer in features]  # (L, B, ...)
            return self.maps([[layer.flatten(0, 1) for layer in batched(stacked, layers)]])

        return head

    def state(self):
        """What fit found, on the CPU: the tensors of the network."""
        items = self.network.state_dict().items()
        return {name: value.detach().cpu().clone() for name, value in items}

    def load_state(self, state):
        """The inverse of state()."""
        self.network.load_state_dict(state)
        self.network.eval()
