"""Devices: the names that --device takes, the device that this process gets, and the ways there
and back."""

import argparse
import re

import torch

from .errors import InputError


def device_name(text):
    """The text, if it names a device. Raises ArgumentTypeError."""
    if re.fullmatch("auto|cpu|cuda(:[0-9]{1,2})?", text):
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is none of auto, cpu, cuda, cuda:0, cuda:1, ...")


def resolve_device(name, ranks=None):
    """The torch.device of a name; each of several processes on a machine has its own GPU.

    Parameters: name, see `device_name`; ranks, a processes.Ranks, None for a single process.
    Returns torch.device. Raises InputError for a CUDA device that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no CUDA device here; use --device cpu")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if device.index is not None and device.index >= count:
            raise InputError(f"--device {name}: there are {count} CUDA devices, numbered from 0")
        if device.index is None and ranks is not None and ranks.size > 1:
            device = torch.device("cuda", ranks.local_rank % count)
    return device


def on_cpu(device):
    """Whether a torch.device is a CPU, where kernels and NumPy work and an image's bits depend on
    nothing else. While torch.export traces, a CPU is like any other device: torch alone works."""
    return device.type == "cpu" and not torch.compiler.is_compiling()


def to_device(array, device):
    """An array (...) or CPU tensor, any dtype, on a device; an array, which may be read-only, is
    copied."""
    return (array if isinstance(array, torch.Tensor) else torch.tensor(array)).to(device)


def to_host(*tensors):
    """Tensors (...), any dtype, of any device as NumPy arrays."""
    return [tensor.cpu().numpy() for tensor in tensors]
