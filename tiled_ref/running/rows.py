"""Maps on the disk, and the names that files have until they are complete."""

import os
from pathlib import Path

import numpy as np

from ..support.errors import InputError
from ..support.files import read_at, sync_folder, write_at

OUT_REMEDY = "choose another --out or make room, and go on with --resume"


class RowFile:
    """Maps on the disk, float32 (N, H, W) in a .npy file, written and read by rows.

    Behaves like an array: `rows[a:b] = maps` writes, `rows[a:b]` and `rows[n]` read a copy. The
    file is never mapped, so that it does not count as memory of the process however large it is.

    Parameters: path of the file, which has this name when it is complete, see `commit`; shape,
    (N, H, W) of a new file, None opens a complete one.
    Raises InputError where the disk has no room (found out at once, not when half is written),
    or the file is not what it should be.
    """

    def __init__(self, path, shape=None):
        self.path = Path(path)
        self.complete = shape is None
        self._name = self.path if self.complete else temporary_name(self.path)
        try:
            self._file = open(self._name, "rb" if self.complete else "w+b", buffering=0)
            if self.complete:
                np.lib.format.read_magic(self._file)
                header = np.lib.format.read_array_header_1_0(self._file)
                self.shape, fortran, dtype = header
                if fortran or dtype != np.float32:
                    raise ValueError(f"it holds {dtype}, not C-ordered float32")
            else:
                self.shape = tuple(int(side) for side in shape)
                header = {"descr": "<f4", "fortran_order": False, "shape": self.shape}
                np.lib.format.write_array_header_1_0(self._file, header)
            self._start = self._file.tell()
            self._row_bytes = 4 * int(np.prod(self.shape[1:]))
            size = self._start + self.shape[0] * self._row_bytes
            if self.complete:
                if os.fstat(self._file.fileno()).st_size != size:
                    raise ValueError("it is truncated")
            else:
                reserve(self._file, size)
        except (OSError, ValueError) as error:
            self.discard()
            verb = "read" if self.complete else "write"
            raise InputError(
                f"cannot {verb} {self.path}: {getattr(error, 'strerror', None) or error}; "
                + ("start over without --resume" if self.complete else OUT_REMEDY)
            ) from error

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, key):
        start, stop, single = self._range(key)
        rows = np.empty((stop - start, *self.shape[1:]), np.float32)
        try:
            read_at(self._file, rows, self._start + start * self._row_bytes)
        except EOFError as error:
            raise InputError(f"{self.path} is truncated; start over without --resume") from error
        return rows[0] if single else rows

    def __setitem__(self, key, rows):
        start, stop, single = self._range(key)
        rows = np.ascontiguousarray(rows, np.float32).reshape(stop - start, *self.shape[1:])
        try:
            write_at(self._file, rows, self._start + start * self._row_bytes)
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror}; {OUT_REMEDY}") from error

    def _range(self, key):
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step != 1:
                raise IndexError("rows are read and written in steps of 1")
            return start, max(start, stop), False
        row = int(key)
        if not 0 <= row < len(self):  # ends a loop over the rows as well
            raise IndexError(f"row {row} of {len(self)}")
        return row, row + 1, True

    def commit(self):
        """Sync the file and give it its name."""
        try:
            os.fsync(self._file.fileno())
            os.replace(self._name, self.path)
            sync_folder(self.path.parent)
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror}; {OUT_REMEDY}") from error
        self._name, self.complete = self.path, True

    def close(self):
        """Close the file, whatever has been written to it."""
        self._file.close()

    def discard(self):
        """Close, and remove what was not committed."""
        if hasattr(self, "_file"):
            self._file.close()
            if not self.complete:
                Path(self._name).unlink(missing_ok=True)


def temporary_name(path):
    """The name that a file has until it is complete."""
    path = Path(path)
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def remove_temporary(folder):
    """Remove what a killed process left half-written directly in a folder."""
    for path in Path(folder).glob(".*.tmp"):
        path.unlink()


def reserve(file, size):
    """Make room for size bytes now; raises OSError on a full disk."""
    if hasattr(os, "posix_fallocate"):
        if size:
            os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)
