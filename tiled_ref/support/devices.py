"""Devices: the names that --device takes, and the device that this process gets."""

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
