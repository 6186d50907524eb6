"""stdout and stderr that decide nothing: closed, full, a broken pipe, any encoding."""

import contextlib
import os
import sys

from .errors import one_line


class Guarded:
    """A text stream whose writes never fail.

    Characters that it cannot encode, and those that would move a terminal's cursor, become
    escapes; after a failed write everything else is dropped. Parameters: stream, a text file, or
    None as Python has it for a closed descriptor.
    """

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def isatty(self):
        """Whether it is a terminal."""
        with contextlib.suppress(AttributeError, ValueError):  # None, and a closed one
            return self._stream.isatty()
        return False

    def write(self, text):
        """Write text; a line feed and a tab stay what they are."""
        self._put("\n".join("\t".join(map(one_line, s.split("\t"))) for s in text.split("\n")))
        return len(text)

    def erase(self, columns):
        """Blank the start of a terminal's line."""
        self._put("\r" + " " * columns + "\r")

    def flush(self):
        """Write what is buffered."""
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

    Closed descriptors are opened first, so that no file of a run gets their numbers and with
    them what libraries print. Yields None.
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
