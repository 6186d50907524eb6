"""Replacing an ensemble: a whole one, old or new, is there whatever fails and whenever it ends."""

import contextlib
import errno
import itertools
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from toys import toy_images

from tiled_ref.archive.thresholds import write_thresholds
from tiled_ref.ensemble import TiledEnsemble
from tiled_ref.setups import SETUPS
from tiled_ref.support import files
from tiled_ref.support.errors import InputError

CALLS = ("replace", "rename", "fsync", "mkdir", "unlink", "rmdir")
OURS = "mine.png", ".notes.tmp", ".parts.backup", ".parts.old", ".parts.12.tmp.bak", ".other.9.new"


@pytest.fixture(scope="module")
def ensembles(tiny_backbone):
    """Two fitted ensembles, told apart by their recipes."""
    setup = SETUPS["SM256"].with_sizes((16, 16))
    old = TiledEnsemble(setup, backbone=tiny_backbone, weights="random", seam_sigma=1.5)
    old.fit(toy_images(4, side=16)).calibrate(toy_images(6, side=16)[4:])
    new = TiledEnsemble(replace(old.recipe, seam_sigma=2.5), backbone=tiny_backbone)
    new.states, new.thresholds = old.states, old.thresholds
    return old, new


@pytest.fixture
def place(tmp_path, ensembles):
    """A folder with an ensemble, parts, and files and folders of the user and of others."""
    ensembles[0].save(tmp_path / "parts")
    for name in OURS:
        (tmp_path / name).write_text("mine")
    (tmp_path / f".parts.{os.getppid()}.new").mkdir()  # of a process that is running
    return tmp_path


def watch(monkeypatch, act):
    """Call act(n) before the n-th call, from 0 on, that changes something on the disk."""
    count = itertools.count()

    def watched(function):
        def call(*args, **options):
            act(next(count))
            return function(*args, **options)

        return call

    for name in CALLS:
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    monkeypatch.setattr(files._NewFile, "write", watched(files._NewFile.write))


def check(place, ensembles, backbone):
    """A whole ensemble is there; the next save leaves nothing but itself and what is not ours."""
    found = TiledEnsemble.load(place / "parts", backbone=backbone)
    assert found.recipe in [ensemble.recipe for ensemble in ensembles]
    assert torch.equal(found.states[0, 0]["mean"], ensembles[0].states[0, 0]["mean"])
    ensembles[0].save(place / "parts")
    names = {*OURS, "parts", f".parts.{os.getppid()}.new"}
    assert {path.name for path in place.iterdir()} == names
    assert sorted(os.listdir(place / "parts")) == [
        "location_0_0.npz", "manifest.json", "thresholds.json"
    ]  # fmt: skip
    return found


def test_a_process_that_is_killed_at_any_call_leaves_a_whole_ensemble(
    place, ensembles, tiny_backbone, monkeypatch
):
    seen = set()
    for last in itertools.count():
        if not (child := os.fork()):
            try:
                watch(monkeypatch, lambda n: os._exit(9) if n == last else None)
                ensembles[1].save(place / "parts")
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        seen.add((place / "parts").exists())
        check(place, ensembles, tiny_backbone)
        if not status:
            break
    assert last > 30 and seen == {True, False}  # also between the two renames


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_a_call_that_fails_leaves_a_whole_ensemble(
    place, ensembles, tiny_backbone, monkeypatch, error
):
    def fail(n):
        if n == last:
            failed.append(n)
            raise error

    failed = []
    for last in itertools.count():
        with monkeypatch.context() as patch, contextlib.suppress(InputError, KeyboardInterrupt):
            watch(patch, fail)
            ensembles[1].save(place / "parts")
        assert (place / "parts").exists()
        check(place, ensembles, tiny_backbone)
        if last not in failed:
            break
    assert last > 30


def test_the_earlier_ensemble_has_its_name_again_where_the_second_rename_fails(
    place, ensembles, tiny_backbone, monkeypatch
):
    def fails(source, target, replace=os.replace):
        if target == place / "parts":
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(InputError, match="cannot write .*parts: Input/output error"):
        ensembles[1].save(place / "parts")
    monkeypatch.undo()
    assert check(place, ensembles, tiny_backbone).recipe == ensembles[0].recipe


def test_where_no_rename_works_any_more_the_next_load_finds_the_earlier_ensemble(
    place, ensembles, tiny_backbone, monkeypatch
):
    renames = []

    def fails(source, target, replace=os.replace):
        if source == place / "parts" or renames:
            renames.append(target)
        if len(renames) > 1:
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails)
    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(InputError, match="cannot write"):
        ensembles[1].save(place / "parts")
    assert not (place / "parts").exists() and len(renames) > 2
    monkeypatch.undo()
    assert check(place, ensembles, tiny_backbone).recipe == ensembles[0].recipe


def dead():
    """The number of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_the_last_of_several_earlier_ensembles_is_given_back(place, ensembles, tiny_backbone):
    shutil.copytree(place / "parts", place / f".parts.{dead()}.old")
    ensembles[1].save(place / "other")
    os.rename(place / "other", place / f".parts.{dead()}.old")
    shutil.rmtree(place / "parts")
    assert check(place, ensembles, tiny_backbone).recipe == ensembles[1].recipe


def test_an_earlier_ensemble_that_cannot_be_given_back_is_kept(
    place, ensembles, tiny_backbone, monkeypatch
):
    os.rename(place / "parts", place / f".parts.{dead()}.old")
    monkeypatch.setattr(os, "rename", Mock(side_effect=PermissionError()))
    files.remove_leftovers(place, {"parts"})
    monkeypatch.undo()
    assert check(place, ensembles, tiny_backbone).recipe == ensembles[0].recipe


def test_what_is_running_keeps_its_files_and_links_are_not_followed(tmp_path):
    numbers = {"running": os.getppid(), "dead": dead(), "this": os.getpid(), "none": 2**31 + 7}
    for number in numbers.values():
        (tmp_path / f".x.{number}.tmp").write_text("")
        (tmp_path / f".x.{number}.new").mkdir()
        (tmp_path / f".y.{number}.tmp").write_text("")
    (tmp_path / "mine").mkdir()
    (tmp_path / f".x.{dead()}.old").symlink_to(tmp_path / "mine")
    (tmp_path / f".x.0{dead()}.tmp").write_text("")
    before = set(os.listdir(tmp_path))
    files.remove_leftovers(tmp_path, {"x"})
    gone = {f".x.{numbers[who]}.{end}" for who in ("dead", "this") for end in ("tmp", "new")}
    assert before - set(os.listdir(tmp_path)) == gone
    files.remove_leftovers(tmp_path / "none", {"x"})


def test_a_folder_with_a_file_of_the_users_is_not_replaced(place, ensembles):
    for name in ("notes.txt", "location_0_0.npz.bak", ".hidden", "sub"):
        (place / "parts" / name).mkdir()
        with pytest.raises(InputError, match=f"something other than an ensemble .{name}."):
            ensembles[1].save(place / "parts")
        (place / "parts" / name).rmdir()
    (place / "parts" / f".thresholds.json.{dead()}.tmp").write_text("")
    ensembles[1].save(place / "parts")


def test_an_ensemble_is_saved_to_the_folder_in_which_one_is(
    tmp_path, ensembles, monkeypatch, tiny_backbone
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    ensembles[0].save(".")
    assert TiledEnsemble.load(tmp_path / "here", backbone=tiny_backbone).recipe.seam_sigma == 1.5


def test_thresholds_are_moved_as_a_whole(place, ensembles, tiny_backbone, monkeypatch):
    old = ensembles[0].thresholds
    new = old | {"image": old["image"] | {"threshold": old["image"]["maximum"]}}
    others = {p.name: p.read_bytes() for p in (place / "parts").iterdir() if p.suffix == ".npz"}
    for last in itertools.count():
        if not (child := os.fork()):
            try:
                watch(monkeypatch, lambda n: os._exit(9) if n == last else None)
                write_thresholds(place / "parts", new)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        found = TiledEnsemble.load(place / "parts", backbone=tiny_backbone).thresholds
        assert found in ([new] if not status else [old, new])
        write_thresholds(place / "parts", old)
        names = ["location_0_0.npz", "manifest.json", "thresholds.json"]
        assert sorted(os.listdir(place / "parts")) == names
        if not status:
            break
    assert last > 2
    assert all((place / "parts" / name).read_bytes() == data for name, data in others.items())
