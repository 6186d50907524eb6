"""Shared by the callers of kernels: checks of arguments, threads, the compiled modules.

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
    """The compiled module tiled_ref.<name>; KernelNotBuiltError where it is missing."""
    full = f"tiled_ref.{name}"
    try:
        return importlib.import_module(full)
    except ModuleNotFoundError as error:
        if error.name != full:
            raise
        raise KernelNotBuiltError(name) from error


def thread_count(threads=None):
    """How many threads a kernel may use, an int >= 1. No result depends on it.

    Parameters: threads, int in THREADS; None takes the environment variable TILED_REF_THREADS, else
    two (one on a machine with one core): these kernels stream through memory, so that a second
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
    """Returns [function(item) for item in items], at most `threads` items at a time.

    No more than `threads` items are taken at once, so that a stream is not held in memory. Of
    several exceptions that of the first item is raised.
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
    """range(n) cut into at most `parts` runs (start, stop) of nearly equal length."""
    parts = max(1, min(n, parts))
    edges = [n * k // parts for k in range(parts + 1)]
    return list(zip(edges[:-1], edges[1:]))


def host_array(name, value, dtypes, cuda_hint="move it to the host with .cpu()"):
    """Returns a value, NumPy array or CPU tensor of one of `dtypes`, as a NumPy view, any strides.

    Raises InputError for anything else, with the argument's name, and with cuda_hint for a tensor
    on another device.
    """
    if isinstance(value, torch.Tensor):
        if value.device.type != "cpu":
            raise InputError(f"{name} lies on the device {value.device}; {cuda_hint}")
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
    # A byte-swapped array has the same values but not the bits a kernel could read.
    if value.dtype not in dtypes or not value.dtype.isnative:
        raise InputError(f"{name} must be {_names(dtypes)}, not {value.dtype}")
    return np.asarray(value)


def for_kernel(array):
    """An array (...) as kernels take it: C-contiguous and aligned, itself or a copy."""
    return np.require(array, requirements=("C_CONTIGUOUS", "ALIGNED"))


def like(result, value):
    """The NumPy array `result` as what `value` is: a NumPy array or a CPU tensor."""
    return torch.from_numpy(result) if isinstance(value, torch.Tensor) else result


def refuse_nan(name, array, *lead):
    """Raise InputError with the index of the first NaN of an array, float of any shape, after
    the indices `lead`."""
    if np.isnan(np.min(array, initial=np.inf)):
        index = *lead, *np.unravel_index(np.argmax(np.isnan(array)), array.shape)
        raise InputError(
            f"{name} holds a NaN at index ({', '.join(map(str, index))}); a score that is not a "
            "number has no rank, so repair the model or the file it came from"
        )


def _names(dtypes):
    return " or ".join(dtype.name for dtype in dtypes)
