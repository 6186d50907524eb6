"""stdout and stderr that never stop a run: closed, full, a broken pipe, any encoding."""

import contextlib
import os
import sys

from .errors import one_line


class Guarded:
    """A text stream whose writes never fail.

    Characters that it cannot encode, and those that would move a terminal's cursor, are
    escaped; after a failed write all further output is dropped. Parameters: stream, a text file, or
    None, which Python sets for a closed descriptor.
    """

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def isatty(self):
        """Whether it is a terminal."""
        with contextlib.suppress(AttributeError, ValueError):  # None, or closed
            return self._stream.isatty()
        return False

    def write(self, text):
        """Write text; line feeds and tabs are not escaped."""
        self._put("\n".join("\t".join(map(one_line, s.split("\t"))) for s in text.split("\n")))
        return len(text)

    def erase(self, columns):
        """Blank the first columns of the terminal's line."""
        self._put("\r" + " " * columns + "\r")

    def flush(self):
        """Write buffered text."""
        self._put("", flush=True)

    def _put(self, text, flush=False):
        if self._stream is None:
            return
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        try:
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            if flush:
                self._stream.flush()
        except (OSError, ValueError):  # ValueError: it was closed
            with contextlib.suppress(OSError, ValueError):  # the interpreter flushes it once more
                with open(os.devnull, "w") as nowhere:
                    os.dup2(nowhere.fileno(), self._stream.fileno())
            self._stream = None


@contextlib.contextmanager
def guarded_streams():
    """A context in which sys.stdout and sys.stderr are Guarded.

    Closed descriptors are opened first, so that no file of a run gets their numbers and receives
    the output of libraries. Yields None.
    """
    before = sys.stdout, sys.stderr
    if None in (sys.stdin, *before):
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(descriptor)
    sys.stdout, sys.stderr = map(Guarded, before)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
