"""Files that appear complete or not at all, and whose fault it is where they do not."""

import contextlib
import csv
import errno
import json
import os
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from made_up import made_up_cell, small
from sources import ROOT

from tiled_ref.archive.tensors import write_tensors
from tiled_ref.reporting import page
from tiled_ref.reporting.walk.page import write_walk
from tiled_ref.reporting.walk.stage import Stage
from tiled_ref.support import files
from tiled_ref.support.errors import InputError

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="needs a system with /dev/full")


@pytest.fixture
def old(tmp_path):
    """A file that a failed write must leave as it is, alone in its folder."""
    path = tmp_path / "deep" / "x.txt"
    with files.atomic_write(path) as file:
        file.write("old")
        assert not path.exists()
    return path


def check_unchanged(path):
    assert path.read_text() == "old" and os.listdir(path.parent) == ["x.txt"]


def fill_the_disk(path):
    """The temporary file of the next write to path leads to a device without any room."""
    path.with_name(f".{path.name}.{os.getpid()}.tmp").symlink_to(FULL)


@pytest.mark.parametrize("mode, text", [("w", "a\nä\r\n"), ("wb", b"a\n\0")])
def test_contents_are_written_as_they_are(old, mode, text):
    with files.atomic_write(old, mode) as file:
        file.write(text)
    assert old.read_bytes() == (text.encode() if mode == "w" else text)
    assert file.closed and os.listdir(old.parent) == ["x.txt"]


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "other.css"),
        OSError(errno.EIO, "Input/output error"),
        InputError("other.png is damaged"),
        RuntimeError("a mistake"),
        KeyboardInterrupt(),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("mode, text", [("w", "new"), ("wb", b"new")])
@pytest.mark.parametrize("full", [False, pytest.param(True, marks=needs_full)])
def test_another_error_of_the_body_passes_unchanged(old, error, mode, text, full):
    """Also on a full disk, if nothing has tried to write to it yet."""
    if full:
        fill_the_disk(old)
    with pytest.raises(type(error)) as raised:
        with files.atomic_write(old, mode) as file:
            file.write(text)
            raise error
    assert raised.value is error and error.__cause__ is None and file.closed
    check_unchanged(old)


def write_rows(path):
    with files.atomic_write(path) as file:
        csv.writer(file).writerows([["a", "b"]] * 10_000)


def write_json(path):
    with files.atomic_write(path) as file:
        json.dump({"a": 1}, file)


def write_bytes(path):
    with files.atomic_write(path, "wb") as file:
        file.write(bytes(1 << 20))


def write_archive(path):
    write_tensors(path, {"a": np.zeros(1 << 18), "b": np.ones(2)})


@needs_full
@pytest.mark.parametrize("write", [write_rows, write_json, write_bytes, write_archive])
def test_a_full_disk_is_named_however_the_file_is_written(old, write):
    fill_the_disk(old)
    with pytest.raises(InputError, match="cannot write .*deep/x.txt: No space left.*make room"):
        write(old)
    check_unchanged(old)


@pytest.mark.parametrize("owner, name", [(os, "fsync"), (os, "replace"), (files._NewFile, "close")])
def test_a_failing_call_to_the_system_is_named(old, monkeypatch, owner, name):
    fails = Mock(side_effect=OSError(errno.EIO, "Input/output error"))
    with pytest.raises(InputError, match="cannot write .*deep/x.txt: Input/output error") as raised:
        with files.atomic_write(old) as file:
            file.write("new")
            monkeypatch.setattr(owner, name, fails)
    assert raised.value.__cause__.errno == errno.EIO
    check_unchanged(old)


def test_a_place_that_cannot_be_written_is_named(old):
    with pytest.raises(InputError, match="cannot write .*x.txt/y: .*choose another place"):
        with files.atomic_write(old / "y"):
            pass
    with pytest.raises(InputError, match="cannot write .*deep: .*choose another place"):
        with files.atomic_write(old.parent):
            pass
    with pytest.raises(InputError, match="cannot create the folder .*x.txt"):
        files.make_folder(old)
    check_unchanged(old)


def test_a_link_that_comes_too_late_is_not_followed(old, monkeypatch):
    """Between the look at the name and the opening, somebody puts a link there."""
    link = old.with_name("link")
    link.symlink_to(old)
    with files.open_regular(link) as file:
        assert file.read() == b"old"
    monkeypatch.setattr(os.path, "islink", lambda path: False)
    with pytest.raises(OSError):
        files.open_regular(link, follow=False)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Two cells with everything that a report shows of them."""
    out = tmp_path_factory.mktemp("out")
    for setup in ("SM256", "SM512"):
        made_up_cell(out, small("plain"), setup=setup)
    return out


def write_one_stage(folder):
    picture = np.zeros((100, 3000, 3), np.uint8)
    write_walk([Stage("image", "", picture, "", "", "", picture)], folder, "walk")


@pytest.mark.parametrize("write, least", [(page.write_report, 8), (write_one_stage, 3)])
def test_pages_are_built_before_their_file_is_opened(out, monkeypatch, write, least):
    """No function of the package runs while a file is open, so none can leave half of one."""
    called, opened = set(), []

    def watch(frame, event, _):
        path = Path(frame.f_code.co_filename)
        own = path.is_relative_to(ROOT / "tiled_ref") and path.name != "files.py"
        if own and event == "call":
            called.add(f"{path.name}: {frame.f_code.co_name}")

    @contextlib.contextmanager
    def watched(path, mode="w", write=files.atomic_write):
        with write(path, mode) as file:
            opened.append(path.name)
            sys.setprofile(watch)
            try:
                yield file
            finally:
                sys.setprofile(None)

    monkeypatch.setattr(files, "atomic_write", watched)
    write(out)
    assert len(opened) >= least and called == set()


def test_a_missing_asset_is_named_and_nothing_of_the_report_is_written(tmp_path, monkeypatch):
    made_up_cell(tmp_path, small("plain"))
    asset = page._asset
    monkeypatch.setattr(page, "_asset", lambda name: asset(f"no_{name}"))
    with pytest.raises(FileNotFoundError, match="no_report.css"):
        page.write_report(tmp_path)
    assert not (tmp_path / "report").exists()
