"""Features of the frozen encoder for training, computed once.

The encoder is frozen and in evaluation mode, so the features of an image never change. They are
computed image by image (with its tiles) and therefore do not depend on the rest of a batch.
"""

import os
import random
import tempfile

import numpy as np
import torch

from ..support.devices import to_host
from ..support.errors import InputError
from .backbone import chunks

BUDGET = 2 * 2**30  # bytes of host memory for the features of one model's training images


def layers_in_chunks(backbone, images):
    """The backbone's layers of images (B, 3, h, w) float32, a few at a time: list of
    (B, C, hf, wf)."""
    parts = [backbone(part) for part in chunks(images)]
    return [torch.cat(layer) for layer in zip(*parts)]


class CachedFeatures:
    """The encoder's layers of all images, in host memory or, above a budget, in a file.

    The file is an unnamed temporary one (TMPDIR chooses the folder), mapped into memory only while
    a batch is copied, so that it does not count as memory of the process.

    Parameters: backbone, (T, 3, h, w) -> list of (T, C, hf, wf); images, as passed to `fit`:
    images[[k]] is (T, 3, h, w), T = 1 without tiled input; budget, bytes of host memory: all
    features are kept there if they fit, else none; progress(done, N, "features"), if given.
    Attributes: n_bytes, of all features; spilled, whether they are in the file. `len(self)` is N;
    `self[indices]`, for a list of ints, is a list with (T * B, C, hf, wf) per layer, tile-major,
    channels last in memory.
    Raises InputError without images, or if the temporary folder has too little space.
    """

    @torch.no_grad()
    def __init__(self, backbone, images, budget=BUDGET, progress=None):
        if len(images) == 0:
            raise InputError(
                "training needs at least one normal image; add images to the training folder"
            )
        for index in range(len(images)):
            layers = layers_in_chunks(backbone, images[[index]])
            self.device = layers[0].device
            layers = to_host(*(layer.permute(0, 2, 3, 1) for layer in layers))  # (T, hf, wf, C)
            if index == 0:
                self._reserve([(len(images), *layer.shape) for layer in layers], budget)
            for k, layer in enumerate(layers):
                self._table(k)[index] = layer
            if progress:
                progress(index + 1, len(images), "features")

    def _reserve(self, shapes, budget):
        """Reserve space for layers of these shapes, (N, T, hf, wf, C)."""
        self.shapes = shapes
        sizes = [4 * int(np.prod(shape)) for shape in shapes]
        self.starts = [sum(sizes[:k]) for k in range(len(sizes))]  # bytes into the file
        self.n_bytes = sum(sizes)
        self.spilled = self.n_bytes > budget
        if self.spilled:
            self.file = _temporary_file(self.n_bytes)
        else:
            self.tables = [np.empty(shape, np.float32) for shape in shapes]

    def __len__(self):
        return self.shapes[0][0]

    def __getitem__(self, indices):
        layers = (torch.from_numpy(self._table(k)[indices]) for k in range(len(self.shapes)))
        return [_batch(layer.to(self.device)) for layer in layers]

    def _table(self, k):
        """float32 (N, T, hf, wf, C) of layer k; the file is mapped while the array is held."""
        if not self.spilled:
            return self.tables[k]
        return np.memmap(self.file, np.float32, "r+", self.starts[k], self.shapes[k])


def _batch(layer):
    """(B, T, hf, wf, C) -> (T * B, C, hf, wf), tile-major, channels last in memory."""
    return layer.transpose(0, 1).flatten(0, 1).permute(0, 3, 1, 2)


def _temporary_file(n_bytes):
    """An open temporary file of n_bytes whose space is reserved."""
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
            f"temporary folder {tempfile.gettempdir()} ({error.strerror}); choose another "
            "with TMPDIR, or use fewer or smaller images"
        ) from error
    return file


def batches(n, batch_size, steps, seed):
    """The images of each optimiser step.

    Epochs of a shuffled order, drawn by random.Random(seed).shuffle, cut into batches; the last
    of an epoch can be smaller. As many epochs as the steps need.

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
