"""Atomic writes: files and folders appear complete or not at all; arrays inside files.

Unfinished files are named .NAME.PID.tmp, unfinished folders .NAME.PID.new or .NAME.PID.old. PID is
the process ID, which identifies the leftovers of a process that died.
"""

import contextlib
import io
import os
import re
import shutil
import stat
from pathlib import Path

from .errors import InputError


@contextlib.contextmanager
def atomic_write(path, mode="w"):
    """A context that writes a new file and renames it to path once it is complete and on disk.

    Parameters: path, missing parent folders are created; mode "w" (UTF-8 text, newlines unchanged)
    or "wb". Yields the open file; the body should only write to it.
    Raises InputError naming the path if this file cannot be written; any other exception of the
    body passes unchanged. Either way an existing file at path is kept.
    """
    path = Path(path)
    temporary = beside(path, "tmp")
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
                raw.close()  # first, so that nothing flushes the buffers later
        with contextlib.suppress(OSError):  # it may not exist
            temporary.unlink()
        raise


@contextlib.contextmanager
def write_errors(path):
    """A context that turns an OSError into an InputError that names the path."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; choose another place or make room"
        ) from error


class _NewFile(io.FileIO):
    """A file opened for writing; a failed write raises an error that names its final `path`."""

    def __init__(self, name, path):
        super().__init__(name, "w")
        self._path = path

    def write(self, data):
        with write_errors(self._path):
            return super().write(data)


def sync_folder(path):
    """Flush a folder's entries to disk, where the system supports it."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_files(folder, files):
    """Write files, {name: str or bytes}, into a folder, and remove what dead processes left of
    them. Raises InputError as `atomic_write`."""
    remove_leftovers(folder, files)
    for name, content in files.items():
        with atomic_write(Path(folder, name), "w" if isinstance(content, str) else "wb") as file:
            file.write(content)


def make_folder(path):
    """Create a folder and its parents. Raises InputError if it cannot be created or written to."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot create the folder {path}: {error.strerror or error}; choose another --out"
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to the folder {path}; choose another --out")


def open_regular(path, follow=True):
    """Open a regular file for reading bytes; follow=False also refuses a symbolic link.

    Raises OSError for anything else: a pipe or device may be endless, a link may lead anywhere.
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


# ------------------------------------------------------------ replacing files and folders

LEFTOVER = re.compile(r"\.(.+)\.([1-9]\d{0,9})\.(tmp|new|old)", re.DOTALL)


class Names:
    """All names that match a pattern, for `remove_leftovers`. Parameters: pattern, a regex."""

    def __init__(self, pattern):
        self._pattern = re.compile(pattern)

    def __contains__(self, name):
        return self._pattern.fullmatch(name) is not None


def beside(path, ending):
    """The temporary path of this process for a path; ending, "tmp", "new" or "old"."""
    return path.with_name(f".{path.name}.{os.getpid()}.{ending}")


def replace_folder(new, final):
    """Rename a complete folder to its final name; a complete copy exists on disk at any time.

    Parameters: new, the folder; final, its path on the same disk. An existing folder at `final` is
    removed at the end; if the process dies before that, `recover_folder` restores it.
    Raises OSError after restoring the existing folder.
    """
    old = beside(final, "old")
    try:
        if final.exists():
            os.replace(final, old)
        os.replace(new, final)
    except BaseException:
        recover_folder(final)
        raise
    sync_folder(final.parent)
    _discard(old)


def recover_folder(final):
    """Restore a folder's name if a process died inside `replace_folder`."""
    olds = [path for path, _, end in _leftovers(final.parent, {final.name}) if end == "old"]
    if olds and not os.path.lexists(final):
        with contextlib.suppress(OSError):  # the caller reports a missing folder
            os.rename(max(olds, key=lambda path: path.stat().st_ctime_ns), final)


def remove_leftovers(folder, names):
    """Remove temporary files and folders that dead processes left in a folder.

    Parameters: folder; names, the final names of files and folders that the program writes directly
    in it. Nothing else is touched. A folder renamed away by `replace_folder` is restored.
    """
    for path, final, ending in _leftovers(folder, names):
        if ending == "old":
            recover_folder(final)
        if ending == "tmp":
            with contextlib.suppress(OSError):
                path.unlink()
        elif ending == "new" or os.path.lexists(final):
            _discard(path)


def _leftovers(folder, names):
    """[(path, final path, ending)] of leftovers of dead processes for these names."""
    found = []
    with contextlib.suppress(OSError, ValueError):  # the folder may not exist
        for entry in sorted(os.listdir(folder)):
            match = LEFTOVER.fullmatch(entry)
            if match and match[1] in names and not _is_running(int(match[2])):
                path = Path(folder, entry)
                is_folder = path.is_dir() and not path.is_symlink()
                if is_folder == (match[3] != "tmp"):
                    found.append((path, Path(folder, match[1]), match[3]))
    return found


def _is_running(pid):
    """Whether another process with this ID is running; True where the system is not POSIX. A
    leftover with the ID of this process is from an earlier one."""
    if pid == os.getpid() or os.name != "posix":
        return pid != os.getpid()
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # a process of another user; not a valid ID
        pass
    return True


def _discard(folder):
    """Remove a temporary folder; first rename .old to .new, so that no partial copy is restored."""
    new = folder.with_suffix(".new")
    with contextlib.suppress(OSError):
        os.replace(folder, new)
    shutil.rmtree(new, ignore_errors=True)


def read_at(file, array, offset):
    """Fill an array (...), C-contiguous, of any dtype, from an unbuffered binary file.

    Parameters: file; array; offset, bytes, its start in the file.
    Raises EOFError if the file is too short, and OSError.
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
