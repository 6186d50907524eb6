"""Helpers for calling kernels: argument checks, threads, the compiled modules.

Python validates, Cython computes. Inputs are never changed and may be read-only.
"""

import importlib
import operator
import os
import re
import threading

import numpy as np
import torch

from .errors import InputError, KernelNotBuiltError
from .option_types import words

IMPLS = ("cython", "numpy")
KERNELS = ("_untile", "_seam_blur", "_aupro", "_kcenter", "_mahalanobis")
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
MASKS = (np.dtype(np.bool_), np.dtype(np.uint8))

THREADS_VARIABLE = "TILED_REF_THREADS"
DEFAULT_THREADS = 2
THREADS = range(1, 1 + max(16, 4 * (os.cpu_count() or 1)))


def check_impl(impl):
    """Raise InputError unless impl is "cython" or "numpy"."""
    if impl not in IMPLS:
        raise InputError(f"impl must be 'cython' or 'numpy', not {impl!r}")


def kernel(name):
    """The compiled module tiled_ref.<name>; KernelNotBuiltError if it is missing."""
    full = f"tiled_ref.{name}"
    try:
        return importlib.import_module(full)
    except ModuleNotFoundError as error:
        if error.name != full:
            raise
        raise KernelNotBuiltError(name) from error


def thread_count(threads=None):
    """Number of threads for a kernel, an int >= 1. It never changes a result.

    Parameters: threads, int in THREADS; None takes the environment variable TILED_REF_THREADS, else
    two (one on a single-core machine): these kernels are limited by memory bandwidth, so a second
    thread nearly halves the time and a third gains little.
    Returns int. Raises InputError for anything else.
    """
    if threads is None:
        text = os.environ.get(THREADS_VARIABLE, "").strip()
        if not text:
            return min(DEFAULT_THREADS, os.cpu_count() or 1)
        name, threads = f"the environment variable {THREADS_VARIABLE}", text
        count = int(text) if re.fullmatch("[0-9]{1,9}", text) else 0
    else:
        name = "threads"
        try:
            count = 0 if isinstance(threads, (bool, np.bool_)) else operator.index(threads)
        except TypeError:
            count = 0
    if count not in THREADS:
        raise InputError(f"{name} must be {words(THREADS)}, not {threads!r}")
    return count


def run_threads(function, items, threads):
    """Returns [function(item) for item in items], computed by `threads` threads.

    At most `threads` items are in memory at once, so items can be a long stream. If several items
    fail, the exception of the first one is raised.
    """
    if threads == 1:
        return [function(item) for item in items]
    items, lock = iter(items), threading.Lock()
    results, errors, end = [], [], object()

    def work():
        number = -1
        try:
            while True:
                with lock:
                    number = len(results)
                    item = end if errors else next(items, end)
                    if item is end:
                        return
                    results.append(None)
                results[number] = function(item)
        except BaseException as error:  # raised again below
            errors.append((number, error))

    helpers = [threading.Thread(target=work) for _ in range(threads - 1)]
    for helper in helpers:
        helper.start()
    work()
    for helper in helpers:
        helper.join()
    if errors:
        raise min(errors, key=lambda pair: pair[0])[1]
    return results


def spans(n, parts):
    """Split range(n) into at most `parts` spans (start, stop) of nearly equal length."""
    parts = max(1, min(n, parts))
    edges = [n * k // parts for k in range(parts + 1)]
    return list(zip(edges[:-1], edges[1:]))


def host_array(name, value, dtypes, cuda_hint="move it to the host with .cpu()"):
    """Returns a NumPy view of value, a NumPy array or CPU tensor of one of `dtypes`, any strides.

    Raises InputError for anything else. The message contains `name` and, for a tensor on another
    device, cuda_hint.
    """
    if isinstance(value, torch.Tensor):
        if value.device.type != "cpu":
            raise InputError(f"{name} is on the device {value.device}; {cuda_hint}")
        if value.layout != torch.strided:
            raise InputError(f"{name} must be a dense tensor, not {value.layout}")
        allowed = [getattr(torch, dtype.name) for dtype in dtypes]
        if value.dtype not in allowed:
            raise InputError(f"{name} must be {_names(dtypes)}, not {value.dtype}")
        value = value.detach().resolve_neg().numpy()
    elif not isinstance(value, np.ndarray):
        raise InputError(
            f"{name} must be a NumPy array or a CPU tensor, not {type(value).__name__}"
        )
    # A kernel would misread a byte-swapped array.
    if value.dtype not in dtypes or not value.dtype.isnative:
        raise InputError(f"{name} must be {_names(dtypes)}, not {value.dtype}")
    return np.asarray(value)


def for_kernel(array):
    """An array (...), any dtype, made C-contiguous and aligned; copied only if necessary."""
    return np.require(array, requirements=("C_CONTIGUOUS", "ALIGNED"))


def like(result, value):
    """The NumPy array `result` as the type of `value`: a NumPy array or a CPU tensor."""
    return torch.from_numpy(result) if isinstance(value, torch.Tensor) else result


def refuse_nan(name, array, *lead):
    """Raise InputError if an array, float of any shape, has a NaN; the message gives the index of
    the first, preceded by the indices `lead`."""
    if np.isnan(np.min(array, initial=np.inf)):
        index = *lead, *np.unravel_index(np.argmax(np.isnan(array)), array.shape)
        raise InputError(
            f"{name} holds a NaN at index ({', '.join(map(str, index))}), which cannot be ranked; "
            "repair the model or the file it came from"
        )


def _names(dtypes):
    return " or ".join(dtype.name for dtype in dtypes)
