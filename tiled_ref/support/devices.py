"""Devices: the names accepted by --device, the device of this process, transfers to and from it,
and full float32 precision."""

import argparse
import contextlib
import re

import numpy as np
import torch

from .errors import InputError


def device_name(text):
    """Return the text if it names a device. Raises ArgumentTypeError."""
    if re.fullmatch("auto|cpu|cuda(:[0-9]{1,2})?", text):
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is not one of auto, cpu, cuda, cuda:0, cuda:1, ...")


def resolve_device(name, ranks=None):
    """The torch.device for a name. "cuda" gives each of several processes on a machine its own
    GPU; where there are fewer, process k gets GPU k modulo their number.

    Parameters: name, see `device_name`; ranks, a processes.Ranks, None for a single process.
    Returns torch.device. Raises InputError for a CUDA device that does not exist.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no CUDA device; use --device cpu")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if device.index is not None and device.index >= count:
            raise InputError(f"--device {name}: there are {count} CUDA devices, numbered from 0")
        if device.index is None and ranks is not None and ranks.size > 1:
            device = torch.device("cuda", ranks.local_rank % count)
    return device


def on_cpu(device):
    """Whether a torch.device is a CPU, where kernels and NumPy run and the result of an image is
    independent of its batch. False while torch.export traces, because only torch can be traced."""
    return device.type == "cpu" and not torch.compiler.is_compiling()


def to_device(array, device):
    """Move an array (...) or CPU tensor, any dtype, to a device; an array is copied, so it may be
    read-only."""
    return (array if isinstance(array, torch.Tensor) else torch.tensor(array)).to(device)


def to_host(*tensors):
    """Tensors (...) of the same dtype and device as NumPy arrays, moved in a single transfer."""
    if tensors[0].device.type == "cpu":
        return [tensor.numpy() for tensor in tensors]
    together = torch.cat([tensor.flatten() for tensor in tensors]).cpu().numpy()
    parts = np.split(together, np.cumsum([tensor.numel() for tensor in tensors[:-1]]))
    return [part.reshape(tensor.shape) for part, tensor in zip(parts, tensors)]


@contextlib.contextmanager
def full_precision():
    """A context in which torch computes float32 matrix products and convolutions without TF32 or
    bfloat16, whatever its settings. They are restored on exit; inside, torch from 2.9 on may refuse
    to read its older names (`allow_tf32`)."""
    before = _float32()
    try:
        _set_float32(["ieee"] * 4 if len(before) == 4 else [False, "highest"])
        yield
    finally:
        _set_float32(before)


def _float32():
    """Torch's settings for float32 matrix products and convolutions: four since torch 2.9."""
    backends = torch.backends
    if not hasattr(backends.cudnn, "conv"):
        return [backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()]
    return [part.fp32_precision for part in _parts()]


def _set_float32(settings):
    if len(settings) == 2:
        torch.backends.cudnn.allow_tf32 = settings[0]
        torch.set_float32_matmul_precision(settings[1])
        return
    for part, setting in zip(_parts(), settings):
        part.fp32_precision = setting


def _parts():
    cuda, cudnn, cpu = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    return cuda.matmul, cudnn.conv, cpu.matmul, cpu.conv
