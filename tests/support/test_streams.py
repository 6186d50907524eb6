"""Streams that decide nothing, and text that moves no cursor."""

import errno
import io
import os
import sys

import pytest

from tiled_ref.support.progress import Progress
from tiled_ref.support.streams import Guarded, guarded_streams


class Broken(io.StringIO):
    """A stream that fails from its second write or its first flush on; counts the calls."""

    def __init__(self, error, at):
        super().__init__()
        self.error, self.at, self.calls = error, at, 0

    def write(self, text):
        self.calls += 1
        if self.at == "write" and self.calls > 1:
            raise self.error
        return super().write(text)

    def flush(self):
        self.calls += 1
        if self.at == "flush":
            raise self.error


@pytest.mark.parametrize("at", ["write", "flush"])
@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF, None])
def test_a_stream_that_fails_is_dropped(number, at):
    error = ValueError("I/O operation on closed file") if number is None else OSError(number, "x")
    broken = Broken(error, at)
    stream = Guarded(broken)
    for _ in range(5):
        print("a line", file=stream, flush=True)
    assert broken.calls == (2 if at == "write" else 4) and not stream.isatty()
    closed = io.StringIO()
    closed.close()
    for stream in Guarded(None), Guarded(closed):
        print("nothing", file=stream, flush=True)
        assert not stream.isatty()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "utf-16", "cp037", "shift-jis"])
def test_every_text_is_written_in_every_encoding(encoding):
    raw = io.BytesIO()
    stream = Guarded(io.TextIOWrapper(raw, encoding=encoding, errors="strict", newline=""))
    stream.write("\x1b[2J\rü → 部\udcff\u202e\t\n")
    stream.flush()
    text = raw.getvalue().decode(encoding)
    assert text.startswith(r"\x1b[2J\r") and text.endswith("\\xff\\u202e\t\n")
    assert all(c.isprintable() or c in "\t\n" for c in text)
    assert ("ü" in text) == (encoding not in ("ascii", "shift-jis"))
    assert ("部" in text) == (encoding in ("utf-8", "utf-16", "shift-jis"))


def test_progress_shows_names_as_one_harmless_line():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    progress = Progress(stream=terminal)
    stage = progress.stage("a\n\x1b[2Jb")
    stage.redrawn = -1
    stage(1, 4)
    progress.note("c\nd")
    text = terminal.getvalue()
    assert text.startswith(r"a\n\x1b[2Jb: 1/4") and text.endswith("\rc\\nd\n")
    blank = text.split("\r")[1]
    assert set(blank) == {" "} and len(blank) == len(text.split("\r")[0])


def test_the_streams_of_python_come_back(monkeypatch):
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with pytest.raises(KeyError), guarded_streams():
        print("\x1b")
        print("\x1b", file=sys.stderr)
        raise KeyError
    assert (sys.stdout, sys.stderr) == (out, err)
    assert out.getvalue() == err.getvalue() == "\\x1b\n"


@pytest.mark.skipif(os.name != "posix", reason="needs descriptors as POSIX has them")
def test_a_pipe_that_is_closed_fails_nothing_at_exit():
    """The interpreter flushes the stream again, into nothing."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:  # closing it raises where something is left
        guarded = Guarded(stream)
        print("a line", file=guarded)
        guarded.flush()
        stream.write("more")
        stream.flush()
