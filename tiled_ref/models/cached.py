"""Features of the frozen encoder for training: computed once, or again in every step.

The encoder is frozen and in evaluation mode, so the features of an image never change. Both
classes compute them image by image (with its tiles), so that they do not depend on which
images share a batch, and training on either gives the same bits.
"""

import os
import random
import tempfile

import numpy as np
import torch

from ..support.errors import InputError
from .backbone import chunks

BUDGET = 2 * 2**30  # bytes of host memory for the features of one model's training images


def encoder_features(backbone, images, budget=BUDGET):
    """CachedFeatures within `budget` bytes, or RecomputedFeatures where budget is None.

    Parameters: backbone and images as for RecomputedFeatures. Returns one or the other.
    """
    if budget is None:
        return RecomputedFeatures(backbone, images)
    return CachedFeatures(backbone, images, budget)


def layers_in_chunks(backbone, images):
    """The backbone's layers of a batch, computed a few images at a time.

    Parameters: backbone; images float32 (B, 3, h, w).
    Returns a list with (B, C, hf, wf) per layer.
    """
    parts = [backbone(part) for part in chunks(images)]
    return [torch.cat(layer) for layer in zip(*parts)]


class RecomputedFeatures:
    """Features computed anew whenever they are asked for: no memory, much time.

    Parameters
    ----------
    backbone : callable
        (T, 3, h, w) -> list of (T, C, hf, wf), see tiled_ref.models.
    images : sequence of images
        As `fit` gets them; images[[k]] is (T, 3, h, w), T = 1 without tiled input.

    `len(self)` is N; `self[indices]`, for a list of ints, is a list with (T * B, C, hf, wf)
    per layer, tile-major, channels last in memory.

    Raises
    ------
    InputError
        Without images.
    """

    def __init__(self, backbone, images):
        if len(images) == 0:
            raise InputError(
                "training needs at least one normal image; add images to the training folder"
            )
        self.backbone = backbone
        self.images = images

    def __len__(self):
        return len(self.images)

    @torch.no_grad()
    def compute(self, index):
        """Features of one image, a list of (T, hf, wf, C)."""
        layers = layers_in_chunks(self.backbone, self.images[[index]])
        return [layer.permute(0, 2, 3, 1) for layer in layers]

    def __getitem__(self, indices):
        layers = zip(*(self.compute(index) for index in indices))
        return [_batch(torch.stack(layer)) for layer in layers]


class CachedFeatures:
    """Features computed once and kept, in host memory or, beyond a budget, in a file.

    The file is a nameless temporary one (TMPDIR chooses the folder), mapped into memory
    only while a batch is copied, so that it does not count as memory of the process.

    Parameters: backbone, images, as for RecomputedFeatures; budget, bytes of host memory: all
    features are kept there if they fit, else none is.
    Attributes: n_bytes, of all features; spilled, whether they are in the file. `len(self)` and
    `self[indices]` as for RecomputedFeatures, the same bits.
    Raises InputError without images, or where the temporary folder has no room.
    """

    def __init__(self, backbone, images, budget=BUDGET):
        source = RecomputedFeatures(backbone, images)
        first = source.compute(0)
        self.device = first[0].device
        self.shapes = [(len(images), *layer.shape) for layer in first]  # (N, T, hf, wf, C)
        sizes = [4 * int(np.prod(shape)) for shape in self.shapes]
        self.starts = [sum(sizes[:k]) for k in range(len(sizes))]  # bytes into the file
        self.n_bytes = sum(sizes)
        self.spilled = self.n_bytes > budget
        if self.spilled:
            self.file = _temporary_file(self.n_bytes)
        else:
            self.tables = [np.empty(shape, np.float32) for shape in self.shapes]
        for index in range(len(images)):
            layers = source.compute(index) if index else first
            for k, layer in enumerate(layers):
                self._table(k)[index] = layer.cpu().numpy()

    def __len__(self):
        return self.shapes[0][0]

    def __getitem__(self, indices):
        layers = (torch.from_numpy(self._table(k)[indices]) for k in range(len(self.shapes)))
        return [_batch(layer.to(self.device)) for layer in layers]

    def _table(self, k):
        """float32 (N, T, hf, wf, C) of layer k; the file is mapped as long as it is held."""
        if not self.spilled:
            return self.tables[k]
        return np.memmap(self.file, np.float32, "r+", self.starts[k], self.shapes[k])


def _batch(layer):
    """(B, T, hf, wf, C) -> (T * B, C, hf, wf), tile-major, channels last in memory."""
    return layer.transpose(0, 1).flatten(0, 1).permute(0, 3, 1, 2)


def _temporary_file(n_bytes):
    """An open temporary file of n_bytes whose room is reserved."""
    file = tempfile.TemporaryFile()
    try:
        if hasattr(os, "posix_fallocate"):  # a full disk is an error here, not a crash later
            os.posix_fallocate(file.fileno(), 0, n_bytes)
        else:
            file.truncate(n_bytes)
    except OSError as error:
        file.close()
        raise InputError(
            f"the features of the training images need {n_bytes / 2**30:.1f} GiB in the "
            f"temporary folder {tempfile.gettempdir()} ({error.strerror}); name another by "
            "TMPDIR, or use fewer or smaller images"
        ) from error
    return file


def batches(n, batch_size, steps, seed):
    """Which images each optimiser step sees.

    Epochs of a shuffled order, drawn by random.Random(seed).shuffle, cut into batches; an
    epoch's last batch is kept although it may be smaller. As many epochs as it takes.

    Parameters: n >= 1 images; batch_size and steps >= 1; seed int.
    Yields `steps` lists of distinct ints in [0, n).
    """
    shuffle = random.Random(seed).shuffle
    step = 0
    while True:
        order = list(range(n))
        shuffle(order)
        for start in range(0, n, batch_size):
            if step == steps:
                return
            step += 1
            yield order[start : start + batch_size]
