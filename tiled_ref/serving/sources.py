"""Sources of images to predict, as groups of paths, each yielded as soon as it arrives.

    listed    a file, or a folder with its subfolders: one group
    piped     the paths on standard input, as they arrive
    Watch     the files of a folder, as they appear

All three skip the output files of earlier predictions.
"""

import codecs
import contextlib
import os
import re
import sys
import time
from pathlib import Path

from ..data.disk import IMAGE_ENDINGS, passed_over, printable
from ..support.errors import InputError
from .outputs import is_output

BLOCK = 1 << 16  # bytes of a list read at once, also the maximum length of a path
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)  # or UTF-32
PAUSE = 1.0  # seconds between two scans of a watched folder


def arriving(source, progress=None, out=None):
    """Yield the image files that --predict names, except outputs (see `is_output`).

    Parameters: source, str or path: a file; a folder, see `image_files`; or "-", for the paths on
    standard input; progress, a Progress, logs how many files and folders of a folder are skipped;
    out, a folder to skip.
    Yields lists of Path, at least one path in total; only reading them shows whether they are
    images.
    Raises InputError if there are none, and as `listed` and `piped` do.
    """
    found = False
    for paths in piped() if os.fspath(source) == "-" else [listed(source, progress, out)]:
        paths = [path for path in paths if not is_output(path)]
        if paths:
            found = True
            yield paths
    if not found:
        raise InputError(
            f"--predict {printable(source)} has only outputs of an earlier prediction; name images"
        )


def listed(source, progress=None, out=None):
    """List the path of a file, or the image paths of a folder; see `arriving`.

    Raises InputError for a missing file or folder, and a folder without images.
    """
    source, passed = Path(source), []
    if not source.is_dir():
        if not os.path.lexists(source):
            raise InputError(f"--predict {printable(source)}: no such file or folder")
        return [source]
    paths = list(image_files(source, out, passed))
    if not paths:
        raise InputError(
            f"the folder {printable(source)} holds no images ({', '.join(IMAGE_ENDINGS)})"
        )
    for note in passed_over(passed, source) if progress else ():
        progress.note(note)
    return paths


def image_files(source, out=None, passed=None):
    """Yield the paths of the image files in a folder and its subfolders, sorted by name.

    Parameters: source; out, a folder to skip; passed, a list to which all skipped files and
    folders are appended: hidden ones, other suffixes, links to folders, which are not followed.
    Raises InputError for an unreadable folder; a subfolder that has just disappeared is no error.
    """

    def unreadable(error):
        gone = isinstance(error, (FileNotFoundError, NotADirectoryError))
        if not gone or error.filename == os.fspath(source):
            raise InputError(
                f"the folder {printable(error.filename)} cannot be read: {error.strerror}"
            ) from error

    passed = [] if passed is None else passed
    for folder, folders, names in os.walk(source, onerror=unreadable):
        below = [Path(folder, name) for name in folders]
        left = [p for p in below if p.name.startswith(".") or os.path.realpath(p) == out]
        passed += [path for path in below if path in left or path.is_symlink()]
        folders[:] = sorted(path.name for path in below if path not in left)
        for name in sorted(names):
            if name.lower().endswith(IMAGE_ENDINGS) and not name.startswith("."):
                yield Path(folder, name)
            else:
                passed.append(Path(folder, name))


def piped():
    """Yield the paths on standard input as lists of Path, each with those that have just arrived.

    The input is UTF-8, with or without a byte order mark. Paths are separated by NUL if the first
    block with a separator contains a NUL, else by line ends.
    Raises InputError if there are no paths, for UTF-16, a NUL in a list of lines, a path of more
    than BLOCK bytes, and if standard input cannot be read.
    """
    rest, separator, found, ended = b"", None, False, sys.stdin is None
    while not ended:
        try:
            block = sys.stdin.buffer.read1(BLOCK)  # waits only for the first byte
        except OSError as error:
            raise InputError(f"--predict -: standard input cannot be read: {error}") from error
        rest, ended = rest + block, not block
        if separator is None and (ended or re.search(rb"[\0\r\n]", rest)):
            rest = rest.removeprefix(codecs.BOM_UTF8)
            if rest.startswith(UTF_16) and b"\0" in rest:
                raise InputError(
                    "--predict -: the list is UTF-16 or UTF-32; convert it to UTF-8"
                )
            separator = rb"\0" if b"\0" in rest else rb"[\r\n]"
        if separator == rb"[\r\n]" and b"\0" in rest:
            raise InputError(
                "--predict -: a list of lines holds a NUL; separate all by NUL or all by lines"
            )
        *names, rest = re.split(separator, rest) if separator else [rest]
        if len(rest) > BLOCK:
            raise InputError(
                f"--predict -: a path has more than {BLOCK:,} bytes; write one path per line"
            )
        names += [rest] * ended
        paths = [Path(os.fsdecode(name)) for name in names if name.strip()]
        if paths:
            found = True
            yield paths
    if not found:
        raise InputError("--predict -: no paths on standard input")


class Watch:
    """Watches a folder and its subfolders for new image files, see `image_files`.

    A file is complete once two scans, PAUSE apart, find the same size and modification time. It
    is reported again when either changes, and forgotten when it disappears.
    Parameters: folder. Attribute: interrupt, the KeyboardInterrupt that ended it, or None.
    Raises InputError if there is no such folder.
    """

    def __init__(self, folder):
        self.folder, self.interrupt = Path(folder), None
        self._seen = {}  # path -> (its state, whether the last two scans agree on it)
        if not self.folder.is_dir():
            raise InputError(f"--watch {printable(folder)}: no such folder")

    def arriving(self, out=None):
        """Yield, endlessly, the files completed since the last scan, lists of Path.

        Parameters: out, a folder to skip. Raises InputError as `image_files` does.
        """
        while True:
            before, self._seen, complete = self._seen, {}, []
            for path in image_files(self.folder, out):
                state, (known, was_complete) = _state(path), before.get(path, (None, False))
                if state is None or is_output(path):
                    continue
                self._seen[path] = state, state == known
                if state == known and not was_complete:
                    complete.append(path)
            yield complete
            time.sleep(PAUSE)

    def has_changed(self, path):
        """Return whether a file has changed or disappeared since it was found complete."""
        return _state(path) != self._seen[path][0]


def _state(path):
    """Return (size, modification time) of a file, or of a dangling link; None if it is missing."""
    for stat in os.stat, os.lstat:
        with contextlib.suppress(OSError):
            found = stat(path)
            return found.st_size, found.st_mtime_ns
    return None
