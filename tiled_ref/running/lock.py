"""Lock on a results folder: one process at a time."""

import os
from pathlib import Path

from ..support.errors import InputError
from ..support.files import remove_leftovers

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    fcntl = None

WRITTEN = {"results.csv", "rank"}  # directly in the folder, apart from a report and predictions


class OutputLock:
    """A context that only one process at a time can enter for a folder; InputError for a second.

    The operating system holds the lock and releases it with the process, however that ends.
    """

    def __init__(self, folder):
        self.path = Path(folder) / ".lock"

    def __enter__(self):
        while True:
            try:
                self._file = open(self.path, "a+b")
            except OSError as error:
                raise InputError(
                    f"cannot write to the folder {self.path.parent}: {error.strerror}; choose "
                    "another --out"
                ) from error
            if not _lock(self._file):
                self._file.close()
                raise InputError(
                    f"another run is writing to {self.path.parent}; wait for it or choose "
                    "another --out"
                )
            try:  # another run may have removed the file between open and lock
                if os.path.samestat(os.stat(self.path), os.fstat(self._file.fileno())):
                    remove_leftovers(self.path.parent, WRITTEN)  # of a killed run
                    return self
            except FileNotFoundError:
                pass
            self._file.close()

    def __exit__(self, *exception):
        # Windows cannot remove an open file, and a file with content is a user's.
        if fcntl is not None and not os.fstat(self._file.fileno()).st_size:
            self.path.unlink(missing_ok=True)
        self._file.close()


def _lock(file):
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError):  # the second is msvcrt's
        return False
    return True
