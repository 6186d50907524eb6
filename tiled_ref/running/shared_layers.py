"""Layers of the frozen backbone shared by the cells of a sweep: computed once, then read.

SharedLayers replaces the network and stores the layers by the content of the image, so no cell
needs to know what it shares with another: ST9 and ENS9 have the same tiles, and four of them are
those of ENS4.
"""

import hashlib
import shutil
import tempfile

import numpy as np
import torch

from ..support.files import read_at, write_at

BUDGET = 16 << 30  # bytes of layers on disk, see budget_within


def budget_within(n_bytes):
    """At most n_bytes and half of the free space in the temporary folder; 0 without a
    writable folder."""
    try:
        return min(n_bytes, shutil.disk_usage(tempfile.gettempdir()).free // 2)
    except OSError:
        return 0


class SharedLayers(torch.nn.Module):
    """A frozen network on the CPU that reads the layers of an image it has seen before.

    The layers are in an unnamed temporary file (TMPDIR chooses the folder), which is never
    mapped, so it does not count as memory of the process. If the file is full or the disk
    fails, the layers are computed. A context manager that closes the file.

    Parameters: network, a backbone.ResNet18Features; budget, bytes on disk, above which
    images are not stored; note(text) reports this once.
    Attributes: keeps, whether new images are stored, False if no later cell needs them; asked
    and reused, images whose layers were requested, and those of them that were read.
    """

    def __init__(self, network, budget, note):
        super().__init__()
        self.network, self.budget, self._note = network, budget, note
        if hasattr(network, "channels"):
            self.channels = network.channels
        self.keeps, self._stopped = True, False
        self.asked = self.reused = 0
        self._file, self._size = None, 0
        self._places = {}  # digest of an image -> where its layers start in the file
        self._shapes = {}  # (h, w) of images -> (hf, wf, C) of each layer

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._give_up()

    def state_dict(self, *args, **kwargs):
        """The network's state dict."""
        return self.network.state_dict(*args, **kwargs)

    @torch.no_grad()
    def forward(self, images):
        """images float32 (B, 3, h, w) -> list of (B, C, hf, wf), computed for each
        image alone, so that no bit depends on which cell came first."""
        parts = []
        for image in images.split(1):
            key, size = _digest(image), tuple(image.shape[-2:])
            layers = self._read(key, size)
            self.asked += 1
            self.reused += layers is not None
            if layers is None:
                layers = self.network(image)
                self._keep(key, layers, size)
            parts.append(layers)
        return [torch.cat(layer) for layer in zip(*parts)]

    def _read(self, key, size):
        """The layers of a known image; None for any other, or if the disk fails."""
        if key not in self._places:
            return None
        start, layers = self._places[key], []
        try:
            for shape in self._shapes[size]:
                layers.append(np.empty((1, *shape), np.float32))
                read_at(self._file, layers[-1], start)
                start += layers[-1].nbytes
        except (OSError, EOFError) as error:
            text = f"the shared layers of the backbone cannot be read ({error}); computed again"
            self._note(text)
            self._give_up()
            return None
        return [torch.from_numpy(layer).permute(0, 3, 1, 2) for layer in layers]

    def _keep(self, key, layers, size):
        """Write the layers (1, C, hf, wf) of an image with this key, if there is room."""
        if not self.keeps or self._stopped:
            return
        arrays = [layer.permute(0, 2, 3, 1).contiguous().numpy() for layer in layers]
        self._shapes[size] = [array.shape[1:] for array in arrays]
        start = self._size
        if start + sum(array.nbytes for array in arrays) > self.budget:
            self._stop(f"their {self.budget / 2**30:.1f} GiB are used up")
            return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0)
            for array in arrays:
                write_at(self._file, array, start)
                start += array.nbytes
        except OSError as error:
            self._stop(error.strerror or error)
            return
        self._places[key], self._size = self._size, start

    def _stop(self, reason):
        self._stopped = True
        self._note(
            f"not all layers of the backbone are shared ({reason}; they are in "
            f"{tempfile.gettempdir()}, TMPDIR names another folder); the others are computed again"
        )

    def _give_up(self):
        self._stopped = True
        self._places.clear()
        if self._file is not None:
            self._file.close()
            self._file = None


def _digest(image):
    """SHA-256 of an image (3, h, w), its shape and its bits."""
    array = image.contiguous().numpy()
    digest = hashlib.sha256(repr(array.shape).encode())
    digest.update(array)
    return digest.digest()
