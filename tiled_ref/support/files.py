"""Writing files that appear complete or not at all, and arrays inside of files."""

import contextlib
import io
import os
import stat
from pathlib import Path

from .errors import InputError


@contextlib.contextmanager
def atomic_write(path, mode="w"):
    """A new file that takes its name only when it is complete and on the disk.

    Parameters: path, its folders are made; mode "w" (UTF-8 text, newlines as written) or "wb".
    Yields the open file; the body should do no more than write to it.
    Raises InputError naming the path if this file cannot be written; any other exception of the
    body passes unchanged. Either way an earlier file of this name stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    raw = None
    try:
        with write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            raw = _NewFile(temporary, path)
        file = io.BufferedWriter(raw)
        if mode == "w":
            file = io.TextIOWrapper(file, encoding="utf-8", newline="")
        yield file
        file.flush()
        with write_errors(path):
            os.fsync(raw.fileno())
            raw.close()
            os.replace(temporary, path)
            sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            if raw is not None:
                raw.close()  # first, so that nothing flushes the buffers any more
        with contextlib.suppress(OSError):  # there may be nothing to remove
            temporary.unlink()
        raise


@contextlib.contextmanager
def write_errors(path):
    """A context that turns an OSError into an InputError that names the path."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; choose another --out or make room"
        ) from error


class _NewFile(io.FileIO):
    """A file opened for writing; the error of a failed write names `path`, its final name."""

    def __init__(self, name, path):
        super().__init__(name, "w")
        self._path = path

    def write(self, data):
        with write_errors(self._path):
            return super().write(data)


def sync_folder(path):
    """Write the names in a folder to the disk, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path):
    """Create a folder and those above it. Raises InputError unless it can be written to."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the folder {path}: {error.strerror or error}; choose another --out"
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to the folder {path}; choose another --out")


def open_regular(path, follow=True):
    """Open a regular file for reading bytes; with follow=False, no link either.

    Raises OSError for anything else: a pipe or a device has no end, and a link may lead anywhere.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)
    if not follow:
        flags |= getattr(os, "O_NOFOLLOW", 0)
        if os.path.islink(path):  # for the message, and for systems without the flag
            raise OSError("it is a link")
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("it is not a regular file")
    return open(descriptor, "rb")


def read_at(file, array, offset):
    """Fill an array (...), C-contiguous, of any dtype, from a binary file without buffer.

    Parameters: file; array; offset, bytes, where it starts in the file.
    Raises EOFError where the file is too short, and OSError.
    """
    view = memoryview(array).cast("B") if array.size else memoryview(b"")
    file.seek(offset)
    while len(view):
        count = file.readinto(view)
        if not count:
            raise EOFError("it is truncated")
        view = view[count:]


def write_at(file, array, offset):
    """Write the bytes of an array (...) to a file; see `read_at`. Raises OSError."""
    view = memoryview(array).cast("B") if array.size else memoryview(b"")
    file.seek(offset)
    while len(view):
        view = view[file.write(view) :]
