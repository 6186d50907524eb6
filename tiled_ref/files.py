"""Writing files so that nobody ever sees half of one."""

import contextlib
import os
from pathlib import Path

from .errors import InputError


@contextlib.contextmanager
def atomic_write(path, mode="w"):
    """A file to write to that takes its name only when it is complete and on the disk.

    Parameters: path; mode "w" (UTF-8 text, newlines as written) or "wb".
    Yields the open file.
    Raises InputError naming the path where it cannot be written; what was there before stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    text = {"encoding": "utf-8", "newline": ""} if mode == "w" else {}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):  # there may be nothing to remove
            temporary.unlink()
        if isinstance(error, OSError):
            raise InputError(
                f"cannot write {path}: {error.strerror or error}; choose another --out or make room"
            ) from error
        raise


def sync_folder(path):
    """Bring the names in a folder to the disk, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path):
    """Create a folder and those above it, unless it is there.

    Raises InputError where that cannot be done or nothing can be written to it.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the folder {path}: {error.strerror or error}; choose another --out"
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to the folder {path}; choose another --out")


def read_at(file, array, offset):
    """Fill an array from a file.

    Parameters: file, binary and without buffer; array (...), C-contiguous, of any dtype, is filled;
    offset, where it starts in the file, bytes.
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
    """Write an array to a file, its bytes alone.

    Parameters: file, binary and without buffer; array (...), C-contiguous, of any dtype; offset,
    where it starts in the file, bytes.
    Raises OSError.
    """
    view = memoryview(array).cast("B") if array.size else memoryview(b"")
    file.seek(offset)
    while len(view):
        view = view[file.write(view) :]
