"""The bytes of tensors, counted."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TensorMeter(TorchDispatchMode):
    """A context that counts the bytes, alive and peak, of the tensors made inside it.

    Each storage counts once, on whatever device; scratch memory that an operation frees before
    it returns is not seen.
    """

    def __init__(self):
        super().__init__()
        self.alive = self.peak = 0
        self._known = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        before = {_storage(x) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and _storage(tensor) not in before:
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage):
        key, n_bytes = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.alive += n_bytes
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._forget, key, n_bytes)

    def _forget(self, key, n_bytes):
        self._known.discard(key)
        self.alive -= n_bytes


def _storage(tensor):
    return tensor.untyped_storage()._cdata
