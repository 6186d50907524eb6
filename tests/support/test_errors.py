"""Running out of memory in any way is one sentence with a remedy that fits."""

import errno
import sys

import numpy as np
import pytest
import torch

from tiled_ref.support.errors import InputError, one_line, out_of_memory

TORCH = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 9437184 bytes. Error code 12 (Cannot allocate memory)"
)
FULL = [  # (exception, in its sentence)
    (MemoryError(), "out of memory; choose a smaller --batch-size"),
    (MemoryError("std::bad_alloc"), "out of memory (std::bad_alloc); choose a smaller"),
    (np.core.multiarray._ArrayMemoryError((9,), np.dtype("u1"))
     if not hasattr(np, "_core") else np._core._exceptions._ArrayMemoryError((9,), np.dtype("u1")),
     "out of memory (Unable to allocate"),
    (RuntimeError(TORCH), "out of memory (DefaultCPUAllocator: can't allocate memory); choose"),
    (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
     "out of memory (DefaultCPUAllocator: not enough memory); choose"),
    (RuntimeError("unable to mmap 9 bytes from file <x>: Cannot allocate memory (12)"), "mmap 9"),
    (RuntimeError("could not create a primitive"), "(could not create a primitive); choose"),
    (RuntimeError("std::bad_alloc"), "out of memory (std::bad_alloc)"),
    (RuntimeError("can't start new thread"), "choose a smaller --threads, set OMP_NUM_THREADS=1"),
    (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might"), "(CUDA error: out of"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling x"), "ALLOC_FAILED"),
    (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "(CUDA out of"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "(Errno 12] Cannot".replace("(", "([")),
    (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "loading libraries"),
    (ImportError("x.so: cannot map: Cannot allocate memory"), "raise the limit (ulimit -v)"),
    (ImportError("\n\nPLEASE READ\n\nOriginal error: x.so: failed to map segment from shared object"),
     "loading libraries (Original error: x.so: failed to map segment"),  # as NumPy says it
]  # fmt: skip
OTHER = [
    RuntimeError("shapes do not match"), OSError(errno.ENOSPC, "No space"), KeyError("memory"),
    ImportError("x.so: cannot allocate memory in static TLS block"), InputError("out of memory"),
    ImportError("x.so: failed to map segment from shared object: Operation not permitted"),
    ValueError("can't allocate memory"),
]  # fmt: skip


@pytest.mark.parametrize("error, words", FULL, ids=lambda value: one_line(repr(value))[:40])
def test_every_kind_is_recognised_and_has_its_sentence(error, words):
    sentence = out_of_memory(error)
    assert words in sentence and "\n" not in sentence
    assert sentence.count("; ") == 1 and "you tried" not in sentence
    if "choose a smaller -" in sentence and "threads" not in sentence:
        assert out_of_memory(error, "--batch-size").endswith("; choose a smaller --batch-size")


@pytest.mark.parametrize("error", OTHER, ids=repr)
def test_nothing_else_is(error):
    assert not out_of_memory(error)


def test_every_code_point_is_one_harmless_line():
    """Alone and beside a byte that is no UTF-8, which os.fsdecode makes a surrogate too."""
    for start in range(0, sys.maxunicode + 1, 32):
        for text in (all32 := "".join(map(chr, range(start, start + 32)))), all32 + "\udcff":
            shown = one_line(text)
            assert shown.isprintable() and shown.encode("utf-8")
            assert all(c in shown for c in text if c.isprintable())
    assert one_line("\udcc3\udcbc \udcff") == r"ü \xff"  # of a name that was read as ASCII
    assert one_line("\ud800\udcff") == r"\ud800\udcff" and one_line("\udfff") == r"\udfff"


def test_a_file_is_not_called_damaged_where_torch_ran_out_of_memory():
    found = InputError("the file x is damaged")
    for cause, full in (
        (RuntimeError(TORCH), True), (RuntimeError("bad magic"), False),
        (OSError(errno.ENOMEM, "mmap"), True), (OSError(errno.ENOSPC, "No space"), False),
    ):  # fmt: skip
        found.__cause__ = cause
        assert bool(out_of_memory(found)) == full
    found.__cause__ = RuntimeError(TORCH)
    assert out_of_memory(found).startswith("out of memory (DefaultCPUAllocator: can't")
    named = InputError("there is not enough memory to decode the image x")
    named.__cause__ = MemoryError()
    assert not out_of_memory(named)
