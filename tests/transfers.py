"""What crosses between host and device, counted; with fake tensors no device is needed."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Transfers(TorchDispatchMode):
    """A context that lists the tensors that operations inside it move between CPU and GPU.

    Attributes: uploads and downloads, the dtypes of those moved by a copy; hidden, the names of
    operations that take tensors of both sides, as an index on the CPU of a tensor on the GPU, and
    therefore move one by themselves. A single number (0 dimensions) may stand beside tensors of a
    GPU: it is an argument of the kernel.
    """

    def __init__(self):
        super().__init__()
        self.uploads, self.downloads, self.hidden = [], [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        name = function.overloadpacket.__name__
        if name == "_to_copy":
            self._moved(given[0], result)
        elif name in ("copy_", "copy"):
            self._moved(given[1], given[0])
        elif len({x.device.type for x in given if x.ndim}) > 1:
            self.hidden.append(name)
        return result

    def _moved(self, source, target):
        if source.device.type != target.device.type:
            kept = self.downloads if target.device.type == "cpu" else self.uploads
            kept.append(target.dtype)
