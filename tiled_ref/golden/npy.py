"""Arrays in .npy files: version 1.0, little-endian, C order, six dtypes."""

import hashlib
import io
import math
import os
from pathlib import Path

import numpy as np

from ..support.errors import InputError, shortened
from ..support.files import write_errors

DTYPES = ("|b1", "|u1", "<i4", "<i8", "<f4", "<f8")


def encode(array):
    """Encode an array (...) as .npy bytes. Raises TypeError for a dtype not in DTYPES."""
    array = np.asarray(array)
    array = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
    if array.dtype.str not in DTYPES:
        raise TypeError(f"golden files hold no {array.dtype}")
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def write_bytes(path, data):
    """Write data, bytes, to a file and create its folder. Raises InputError on failure.

    Not atomic: export removes the manifest first and writes it last, with the files' digests.
    """
    path = Path(path)
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def sha256(data):
    """SHA-256 of bytes in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def read_bytes(path, most=math.inf):
    """Read the bytes of a file. Raises InputError, naming the file, on failure and, before it
    takes memory, for more than `most` bytes."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise OSError(f"it has {size} bytes, and at most {most} are expected")
            return file.read(size)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def decode(data, path):
    """Returns the read-only array in data, the bytes of a .npy file of version 1.0.

    No memory beyond these bytes is allocated, and nothing is unpickled. Raises InputError,
    naming path, for anything but a complete array in C order of one of the DTYPES.
    """
    buffer = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(buffer)
        if version != (1, 0):
            raise ValueError(f"version {version[0]}.{version[1]} instead of 1.0")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(buffer)
    except Exception as error:  # NumPy raises ValueError, SyntaxError, TokenError and others
        raise InputError(
            f"{path} is not a .npy file of version 1.0 ({shortened(error)}); write it again"
        ) from error
    if dtype.str not in DTYPES:
        raise InputError(f"{path} has the dtype {dtype.str}; convert it to {' or '.join(DTYPES)}")
    if fortran and len(shape) > 1:
        raise InputError(f"{path} is in Fortran order; write it in C order, rows first")
    count = math.prod(shape)
    start = buffer.tell()
    if len(data) - start != count * dtype.itemsize:
        raise InputError(
            f"{path} has {len(data) - start} bytes of numbers, which does not match its header, "
            f"{dtype.str} of shape {shortened(shape)}; write it again"
        )
    try:
        array = np.frombuffer(data, dtype, count, start).reshape(shape)
    except (TypeError, ValueError, OverflowError) as error:  # (True,), 71 axes, 0 x 2^70
        raise InputError(f"{path} has invalid shape {shortened(shape)}; write it again") from error
    if dtype.kind == "b" and array.view(np.uint8).max(initial=0) > 1:
        raise InputError(f"{path} holds bytes other than 0 and 1 as booleans; write it again")
    return array


def read(path, most=math.inf):
    """Read the array in a .npy file. Raises InputError as read_bytes and decode do."""
    return decode(read_bytes(path, most), path)
