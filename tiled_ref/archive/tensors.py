"""Files of named tensors: uncompressed .npz of plain numbers; reading one never executes code."""

import contextlib
import hashlib
import io
import math
import os
import zipfile

import numpy as np
import torch

from ..data.disk import printable
from ..support.errors import InputError, shortened
from ..support.files import atomic_write, open_regular

# The dtypes that a tensor file can hold; each is written little-endian.
DTYPES = tuple(
    np.dtype(name) for name in ("bool", "uint8", "int32", "int64", "float16", "float32", "float64")
)
HEADER_BYTES = 1 << 14  # maximum length of a tensor's header
READ_AT_ONCE = 1 << 20  # bytes
REMEDY = "restore it from a copy, or train again"  # for an invalid file of an ensemble


def write_tensors(path, tensors):
    """Write named tensors to one file, atomically.

    Parameters: path; tensors, dict of str to torch.Tensor (or NumPy array) of a dtype in
    DTYPES. Equal tensors always give equal bytes.
    Raises InputError if the file cannot be written, TypeError for another dtype.
    """
    with (
        atomic_write(path, "wb") as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
    ):
        for name, tensor in tensors.items():
            if isinstance(tensor, torch.Tensor):
                tensor = tensor.detach().cpu().numpy()
            array = np.ascontiguousarray(tensor).reshape(np.shape(tensor))
            if array.dtype not in DTYPES:
                raise TypeError(f"cannot write {name}: a tensor of type {array.dtype}")
            array = array.astype(array.dtype.newbyteorder("<"), copy=False)
            info = zipfile.ZipInfo(f"{name}.npy")  # always dated 1980
            with archive.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, (1, 0), allow_pickle=False)


def file_bytes(tensors):
    """Size in bytes of the file write_tensors writes for a layout, name -> (dtype, shape)."""
    limit, size, directory = zipfile.ZIP64_LIMIT, 0, 0
    for name, (dtype, shape) in tensors.items():
        header, dtype = io.BytesIO(), np.dtype(dtype).newbyteorder("<")
        facts = {"descr": dtype.str, "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(header, facts)
        member, name = header.tell() + dtype.itemsize * math.prod(shape), len(f"{name}.npy")
        fields = 2 * (member > limit) + (size > limit)  # of 8 bytes, where 4 bytes overflow
        directory += 46 + name + (4 + 8 * fields if fields else 0)
        size += 30 + name + 20 + member
    is_large = size > limit or directory > limit or len(tensors) > zipfile.ZIP_FILECOUNT_LIMIT
    return size + directory + (76 if is_large else 0) + 22


def read_tensors(path, expected=None, sha256=None):
    """Read a file written by `write_tensors`; it is opened once, and links are not followed.

    Sizes are checked before anything is allocated: the members are not compressed, so
    together they cannot be larger than the file.

    Parameters: path; expected, name -> (dtype, shape) of exactly the tensors that the file
    must hold, or None; sha256 of the file, or None.
    Returns a dict of str to torch.Tensor, in file order.
    Raises InputError, a ValueError, for a file that is missing, truncated, damaged or compressed,
    has another digest, unexpected tensors, or anything but plain numbers.
    """
    with _opened(path, sha256) as (archive, members):
        if expected is not None and set(members) != set(expected):
            raise ValueError("its tensors are not the expected ones")
        return {
            key: _read_member(archive, key, info, expected and expected[key])
            for key, info in members.items()
        }


def layout(path):
    """Return name -> (dtype, shape) of the tensors in a file, reading only their headers.

    Raises InputError as read_tensors does.
    """
    found = {}
    with _opened(path) as (archive, members):
        for key, info in members.items():
            with archive.open(info) as member:
                dtype, shape = _read_header(member, key, info)
            found[key] = dtype.name, shape
    return found


@contextlib.contextmanager
def _opened(path, sha256=None):
    """Yield (archive, members) of a file; any error in the block becomes an InputError."""
    name = printable(path)
    try:
        with open_regular(path, follow=False) as file:
            if sha256 is not None and digest_of(file) != sha256:
                raise ValueError("its SHA-256 differs from the manifest's")
            with zipfile.ZipFile(file) as archive:
                yield archive, _members(archive, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise InputError(f"the file {name} cannot be read: {error.strerror or error}") from error
    except MemoryError as error:
        raise InputError(f"there is not enough memory to read the file {name}") from error
    except Exception as error:  # zipfile and NumPy raise many types for a damaged file
        raise InputError(
            f"the file {name} is damaged or was not written by this program "
            f"({shortened(error)}); {REMEDY}"
        ) from error


def file_digest(path):
    """SHA-256 of a file, hex. Raises OSError."""
    with open_regular(path) as file:
        return digest_of(file)


def digest_of(file):
    """SHA-256 of an open binary file, hex. Raises OSError."""
    digest = hashlib.sha256()
    while piece := file.read(READ_AT_ONCE):
        digest.update(piece)
    return digest.hexdigest()


def _members(archive, n_bytes):
    """Return tensor name -> ZipInfo; ValueError unless all are uncompressed and fit the file."""
    members = {}
    for info in archive.infolist():
        key, dot, ending = info.filename.rpartition(".")
        if ending != "npy" or not dot or key in members:
            raise ValueError(f"its member {info.filename!r} is not a tensor")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise ValueError(f"its member {info.filename!r} is compressed")
        members[key] = info
    if sum(info.file_size for info in members.values()) > n_bytes:
        raise ValueError("its members are larger than the file")
    return members


def _read_header(member, key, info):
    """Return a tensor's dtype and shape; ValueError unless they are valid and fit the member."""
    if np.lib.format.read_magic(member) != (1, 0):
        raise ValueError(f"{key} has another .npy format version")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(
        member, max_header_size=HEADER_BYTES
    )
    if dtype not in DTYPES or fortran:
        raise ValueError(f"{key} is not a plain tensor but {dtype}")
    if any(side < 0 for side in shape):
        raise ValueError(f"{key} has the shape {shape}")
    n_bytes = dtype.itemsize * math.prod(shape)
    if member.tell() + n_bytes != info.file_size:
        raise ValueError(f"{key} declares {n_bytes:,} bytes but holds a different number")
    return dtype, shape


def _read_member(archive, key, info, expected):
    with archive.open(info) as member:
        dtype, shape = _read_header(member, key, info)
        if expected is not None and (dtype.name, shape) != (expected[0], tuple(expected[1])):
            raise ValueError(
                f"{key} is {dtype.name} {shape}, expected {expected[0]} {tuple(expected[1])}"
            )
        n_bytes = info.file_size - member.tell()
        data = bytearray(n_bytes)
        view, done = memoryview(data), 0
        while done < n_bytes:
            count = member.readinto(view[done : done + READ_AT_ONCE])
            if not count:
                raise ValueError(f"{key} ends too early")
            done += count
        if member.read(1):
            raise ValueError(f"{key} is longer than declared")
    array = np.frombuffer(data, dtype).reshape(shape)
    if dtype == bool and (array.view(np.uint8) > 1).any():
        raise ValueError(f"{key} is boolean but holds values other than 0 and 1")
    return torch.from_numpy(array.astype(dtype.newbyteorder("="), copy=False))
