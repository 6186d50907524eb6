"""Writing files and folders that appear complete or not at all, and arrays inside of files.

What is not complete has the name .NAME.PID.tmp (a file), .NAME.PID.new or .NAME.PID.old (folders),
PID the number of the process: what a process has left that died is known by it.
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
    """A new file that takes its name only when it is complete and on the disk.

    Parameters: path, its folders are made; mode "w" (UTF-8 text, newlines as written) or "wb".
    Yields the open file; the body should do no more than write to it.
    Raises InputError naming the path if this file cannot be written; any other exception of the
    body passes unchanged. Either way an earlier file of this name stays.
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


def write_files(folder, files):
    """Write files, {name: str or bytes}, into a folder, and remove what dead processes have left of
    them. Raises InputError as `atomic_write`."""
    remove_leftovers(folder, files)
    for name, content in files.items():
        with atomic_write(Path(folder, name), "w" if isinstance(content, str) else "wb") as file:
            file.write(content)


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


# --------------------------------------------------- what takes the place of something else

LEFTOVER = re.compile(r"\.(.+)\.([1-9]\d{0,9})\.(tmp|new|old)", re.DOTALL)


class Names:
    """The names that match a pattern, for `remove_leftovers`. Parameters: pattern, a regex."""

    def __init__(self, pattern):
        self._pattern = re.compile(pattern)

    def __contains__(self, name):
        return self._pattern.fullmatch(name) is not None


def beside(path, ending):
    """The temporary name of a path in this process; ending, "tmp", "new" or "old"."""
    return path.with_name(f".{path.name}.{os.getpid()}.{ending}")


def replace_folder(new, final):
    """Give a complete folder its name; one whole copy is there at every instant.

    Parameters: new, the folder; final, its path on the same disk. An earlier folder of that name
    is removed at the end; where the process dies before, `recover_folder` gives it back.
    Raises OSError; an earlier folder has its name again then.
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
    """Give a folder its name back where a process ended inside of `replace_folder`."""
    olds = [path for path, _, end in _leftovers(final.parent, {final.name}) if end == "old"]
    if olds and not os.path.lexists(final):
        with contextlib.suppress(OSError):  # who misses the folder says so
            os.rename(max(olds, key=lambda path: path.stat().st_ctime_ns), final)


def remove_leftovers(folder, names):
    """Remove what dead processes have left of the files and folders of some names in a folder.

    Parameters: folder; names, of what the program writes directly in it. Nothing else is touched,
    and a folder that lost its name in `replace_folder` is given it back.
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
    """[(path, final path, ending)] of what dead processes have left of these names."""
    found = []
    with contextlib.suppress(OSError, ValueError):  # there may be no such folder
        for entry in sorted(os.listdir(folder)):
            match = LEFTOVER.fullmatch(entry)
            if match and match[1] in names and not _is_running(int(match[2])):
                path = Path(folder, entry)
                is_folder = path.is_dir() and not path.is_symlink()
                if is_folder == (match[3] != "tmp"):
                    found.append((path, Path(folder, match[1]), match[3]))
    return found


def _is_running(pid):
    """Whether another process has this number; only POSIX tells. This one's number on a leftover
    was an earlier process's."""
    if pid == os.getpid() or os.name != "posix":
        return pid != os.getpid()
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's; no number of a process
        pass
    return True


def _discard(folder):
    """Remove a temporary folder; first .old becomes .new, for half of it must not be given back."""
    new = folder.with_suffix(".new")
    with contextlib.suppress(OSError):
        os.replace(folder, new)
    shutil.rmtree(new, ignore_errors=True)


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
