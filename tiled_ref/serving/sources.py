"""Where the images of a prediction come from, as groups of paths, each as soon as it is there.

    listed    a file, or a folder with all below it: one group
    piped     the paths on standard input, as they arrive
    Watch     the files of a folder, as they appear

What an earlier prediction wrote is left out of all three.
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

BLOCK = 1 << 16  # bytes of a list that are read at once, and the most that a path may have
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)  # or UTF-32
PAUSE = 1.0  # seconds between two looks at a watched folder


def arriving(source, progress=None, out=None):
    """The image files that --predict names, without those that `is_output` names.

    Parameters: source, str or path: a file; a folder, see `image_files`; or "-", for the paths on
    standard input; progress, a Progress, notes how many files and folders of a folder are passed
    over; out, a folder that is left out.
    Yields lists of Path, at least one path in all; whether they are images is found when they are
    read.
    Raises InputError where there is none, and as `listed` and `piped` do.
    """
    found = False
    for paths in piped() if os.fspath(source) == "-" else [listed(source, progress, out)]:
        paths = [path for path in paths if not is_output(path)]
        if paths:
            found = True
            yield paths
    if not found:
        raise InputError(
            f"--predict {printable(source)} names pictures of an earlier prediction; name images"
        )


def listed(source, progress=None, out=None):
    """The path of a file, or those of the images of a folder, a list; see `arriving`.

    Raises InputError for a file or folder that is not there, and a folder without images.
    """
    source, passed = Path(source), []
    if not source.is_dir():
        if not os.path.lexists(source):
            raise InputError(f"--predict {printable(source)}: there is no such file or folder")
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
    """Yield the paths of the image files in a folder and in all folders below it, by name.

    Parameters: source; out, a folder that is left out; passed, a list that the other files and
    folders join: hidden ones, other endings, links to folders, which are not followed.
    Raises InputError for a folder that cannot be read; one below that has just gone is no error.
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
    """Yield the paths on standard input, lists of Path, each with all that have just arrived.

    The list is UTF-8, with or without a byte order mark. NUL separates the paths if the first block
    with a separator has one, else the ends of lines do.
    Raises InputError without any path, for UTF-16, a NUL in a list of lines, a path of more than
    BLOCK bytes, and where standard input cannot be read.
    """
    rest, separator, found, ended = b"", None, False, sys.stdin is None
    while not ended:
        try:
            block = sys.stdin.buffer.read1(BLOCK)  # waits for the first byte alone
        except OSError as error:
            raise InputError(f"--predict -: standard input cannot be read: {error}") from error
        rest, ended = rest + block, not block
        if separator is None and (ended or re.search(rb"[\0\r\n]", rest)):
            rest = rest.removeprefix(codecs.BOM_UTF8)
            if rest.startswith(UTF_16) and b"\0" in rest:
                raise InputError(
                    "--predict -: the list is not UTF-8 but UTF-16 or UTF-32; convert it"
                )
            separator = rb"\0" if b"\0" in rest else rb"[\r\n]"
        if separator == rb"[\r\n]" and b"\0" in rest:
            raise InputError(
                "--predict -: a list of lines holds a NUL; separate all by NUL or all by lines"
            )
        *names, rest = re.split(separator, rest) if separator else [rest]
        if len(rest) > BLOCK:
            raise InputError(
                f"--predict -: a path has more than {BLOCK:,} bytes; write one path a line"
            )
        names += [rest] * ended
        paths = [Path(os.fsdecode(name)) for name in names if name.strip()]
        if paths:
            found = True
            yield paths
    if not found:
        raise InputError("--predict -: there are no paths on standard input")


class Watch:
    """The image files of a folder and of all below it, see `image_files`, as they appear.

    A file is complete once two looks, PAUSE apart, find the same size and time of modification. It
    is found again when one of them changes, and forgotten when it is gone.
    Parameters: folder. Attribute: interrupt, the KeyboardInterrupt that ended it, or None.
    Raises InputError where there is no such folder.
    """

    def __init__(self, folder):
        self.folder, self.interrupt = Path(folder), None
        self._seen = {}  # path: its state, and whether two looks have found it
        if not self.folder.is_dir():
            raise InputError(f"--watch {printable(folder)}: there is no such folder")

    def arriving(self, out=None):
        """Yield the files that are complete since the last look, lists of Path, without end.

        Parameters: out, a folder that is left out. Raises InputError as `image_files` does.
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
        """Whether a file has changed since it was found complete, or is gone."""
        return _state(path) != self._seen[path][0]


def _state(path):
    """(size, time of modification) of a file, or of a link that leads nowhere; None without any."""
    for stat in os.stat, os.lstat:
        with contextlib.suppress(OSError):
            found = stat(path)
            return found.st_size, found.st_mtime_ns
    return None
