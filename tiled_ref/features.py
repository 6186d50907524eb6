"""Layers of the frozen backbone shared by the cells of a grid: computed once, then read.

The architectures, the setups with the same tiles and the seeds of a category all ask one
frozen network for the layers of the same images. A FeatureMemo keeps them by the content of
the image, so nobody has to know which cells have what in common: the tiles of ST9 are those
of ENS9, and four of them are those of ENS4.
"""

import hashlib
import shutil
import tempfile

import numpy as np
import torch

from .files import read_at, write_at

BUDGET = 16 << 30  # bytes of layers on the disk, see budget_within


def budget_within(n_bytes):
    """n_bytes, an int, but at most half of what is free in the temporary folder now; 0 where
    there is no folder that can be written to."""
    try:
        return min(n_bytes, shutil.disk_usage(tempfile.gettempdir()).free // 2)
    except OSError:
        return 0


class FeatureMemo:
    """Layers of images in a nameless temporary file, as a context manager that closes it.

    For a network on the CPU whose layers of an image do not depend on the others of its batch,
    such as backbone.ResNet18Features; a memo is for one network. The file (TMPDIR chooses the
    folder) is read and written, never mapped, so that it does not count as memory of the
    process. Where it is full or the disk fails, the layers are computed as without a memo.

    Parameters
    ----------
    budget : int
        Bytes on the disk; images that come when it is used up are not kept.
    say : callable
        say(text) tells the user, once, that not everything could be kept.

    Attributes
    ----------
    keeps : bool
        Whether new images are kept; False where nobody will ask again.
    """

    def __init__(self, budget, say):
        self.budget = budget
        self.keeps = True
        self._say = say
        self._file = None
        self._size = 0
        self._places = {}  # digest of an image -> where its layers start in the file
        self._shapes = {}  # (h, w) of images -> (hf, wf, C) of each layer

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._give_up()

    def wrap(self, network):
        """A SharedNetwork: the network, its layers by way of this memo."""
        return SharedNetwork(network, self)

    @torch.no_grad()
    def layers(self, network, images):
        """What network(images) is, and how many of the images were not computed for it.

        Parameters: network; images float32 (B, 3, h, w). Returns a list of (B, C, hf, wf),
        channels last in memory, and an int.
        """
        keys = [_digest(image) for image in images]
        known = [k for k, key in enumerate(keys) if key in self._places]
        new = [k for k, key in enumerate(keys) if key not in self._places]
        found = self._read(keys, known, images.shape[-2:]) if known else None
        if found is None:  # nothing is known, or the disk failed
            computed = network(images)
            self._keep(keys, computed, images.shape[-2:])
            return computed, 0
        if new:
            computed = network(images[new])
            self._keep([keys[k] for k in new], computed, images.shape[-2:])
            for layer, part in zip(found, computed):
                layer[new] = part
        return found, len(known)

    def _read(self, keys, known, size):
        """The layers of all keys, those that are known filled in; None where the disk fails."""
        shapes = self._shapes[tuple(size)]
        out = [np.empty((len(keys), *shape), np.float32) for shape in shapes]
        try:
            for k in known:
                start = self._places[keys[k]]
                for layer in out:
                    read_at(self._file, layer[k], start)
                    start += layer[k].nbytes
        except (OSError, EOFError) as error:
            self._say(f"the shared layers of the backbone cannot be read ({error}); computed again")
            self._give_up()
            return None
        return [torch.from_numpy(layer).permute(0, 3, 1, 2) for layer in out]

    def _keep(self, keys, layers, size):
        """Write the layers (B, C, hf, wf) of images with these keys, as far as there is room."""
        if not self.keeps:
            return
        rows = [layer.permute(0, 2, 3, 1).contiguous().numpy() for layer in layers]
        self._shapes[tuple(size)] = [layer.shape[1:] for layer in rows]
        needed = sum(layer[0].nbytes for layer in rows)
        for k, key in enumerate(keys):
            if key in self._places:  # twice in one batch
                continue
            if self._size + needed > self.budget:
                self._stop(f"their {self.budget / 2**30:.1f} GiB are used up")
                return
            try:
                if self._file is None:
                    self._file = tempfile.TemporaryFile(buffering=0)
                start = self._size
                for layer in rows:
                    write_at(self._file, layer[k], start)
                    start += layer[k].nbytes
            except OSError as error:
                self._stop(error.strerror or error)
                return
            self._places[key], self._size = self._size, start

    def _stop(self, reason):
        self.keeps = False
        self._say(
            f"not all layers of the backbone are shared ({reason}; they lie in "
            f"{tempfile.gettempdir()}, TMPDIR names another folder); the others are computed again"
        )

    def _give_up(self):
        self.keeps = False
        self._places.clear()
        if self._file is not None:
            self._file.close()
            self._file = None


class SharedNetwork(torch.nn.Module):
    """A network that asks a memo first.

    Parameters: network; memo, a FeatureMemo.

    Attributes
    ----------
    asked, reused : int
        Images whose layers were asked for, and those of them that were read.
    """

    def __init__(self, network, memo):
        super().__init__()
        self.network, self.memo = network, memo
        self.asked = self.reused = 0
        if hasattr(network, "channels"):
            self.channels = network.channels

    def forward(self, images):
        """images float32 (B, 3, h, w) -> layers as the network's, the same bits."""
        layers, reused = self.memo.layers(self.network, images)
        self.asked += len(images)
        self.reused += reused
        return layers


def _digest(image):
    """SHA-256 of an image (3, h, w), its shape and its bits."""
    array = image.contiguous().numpy()
    digest = hashlib.sha256(repr(array.shape).encode())
    digest.update(array)
    return digest.digest()
