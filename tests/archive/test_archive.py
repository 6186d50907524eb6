"""Saved ensembles: what was written comes back, and anything else is refused in one sentence."""

import json
import os
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from toys import rebind, toy_images

from tiled_ref.archive import ensembles, tensors, thresholds
from tiled_ref.archive.manifest import read_manifest
from tiled_ref.archive.tensors import file_digest, layout, read_tensors, write_tensors
from tiled_ref.archive.thresholds import write_thresholds
from tiled_ref.ensemble import TiledEnsemble
from tiled_ref.models import MODELS
from tiled_ref.models.gaussians import pack, unpack
from tiled_ref.models.padim import Padim
from tiled_ref.running.engine import Engine
from tiled_ref.setups import SETUPS
from tiled_ref.support.errors import InputError

SMALL = {"ENS4": ((64, 64), (32, 32)), "ST4": ((64, 64), (32, 32)), "SM256": ((64, 64),)}


@pytest.fixture(scope="module")
def fitted(tiny_backbone):
    """(setup name, arch) -> fitted ensemble, each made once."""
    made = {}

    def fit(name="ENS4", arch="padim"):
        if (name, arch) not in made:
            steps = {"steps": 1} if arch in ("fastflow", "reverse_distillation") else {}
            ensemble = TiledEnsemble(
                SETUPS[name].with_sizes(*SMALL[name]), arch, backbone=tiny_backbone,
                weights="random", switches=steps, score="max", seam_sigma=1.5,
            )  # fmt: skip
            made[name, arch] = ensemble.fit(toy_images(4, side=64))
        return made[name, arch]

    return fit


@pytest.fixture
def folder(fitted, tmp_path):
    """A saved ensemble with thresholds."""
    ensemble = fitted()
    ensemble.calibrate(toy_images(8, side=64)[4:])
    ensemble.save(tmp_path / "parts")
    return tmp_path / "parts"


def load(folder, tiny_backbone, **options):
    return TiledEnsemble.load(folder, backbone=tiny_backbone, **options)


@pytest.mark.parametrize(
    "name, arch",
    [("ENS4", "padim"), ("ENS4", "patchcore"), ("SM256", "fastflow"),
     ("SM256", "reverse_distillation"), ("ST4", "patchcore")],
)  # fmt: skip
def test_a_loaded_ensemble_predicts_the_same_bits(fitted, tmp_path, tiny_backbone, name, arch):
    ensemble = fitted(name, arch)
    ensemble.save(tmp_path / "e")
    again = load(tmp_path / "e", tiny_backbone)
    images = toy_images(7, side=64)[4:]
    for first, second in zip(ensemble.predict(images), again.predict(images)):
        np.testing.assert_array_equal(first, second)
    assert (again.recipe, again.weights) == (ensemble.recipe, ensemble.weights)


def test_the_manifest_says_what_is_in_the_files(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["format_version"] == 5 and manifest["setup"]["kind"] == "ENS"
    assert manifest["versions"]["torch"] == torch.__version__
    assert [entry["location"] for entry in manifest["files"]] == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert manifest["files"][0]["tensors"]["factors"] == ["float32", [64, 5050]]
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["location_0_0.npz", "location_0_1.npz", "location_1_0.npz",
                     "location_1_1.npz", "manifest.json", "thresholds.json"]  # fmt: skip


def test_thresholds_are_kept(folder, fitted, tiny_backbone):
    again = load(folder, tiny_backbone)
    assert again.thresholds == fitted().thresholds
    assert again.verdicts(np.array([-1e9, 1e9])).tolist() == [False, True]


def test_an_ensemble_without_a_threshold_for_pixels_is_loaded(folder, fitted, tiny_backbone):
    write_thresholds(folder, fitted().thresholds | {"pixel": None})
    again = load(folder, tiny_backbone)
    assert again.thresholds["pixel"] is None
    assert again.verdicts(np.array([-1e9, 1e9])).tolist() == [False, True]


def test_weights_are_found_again(folder):
    """The tests' backbone is random with seed 0, which is what `random` means."""
    assert TiledEnsemble.load(folder).weights == "random"


def test_saving_again_replaces_the_ensemble_as_a_whole(folder, fitted, tiny_backbone):
    (folder / "location_7_7.npz").write_text("of a larger grid")
    fitted().save(folder)
    assert not (folder / "location_7_7.npz").exists()
    load(folder, tiny_backbone)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_folder_with_other_things_is_not_touched(fitted, tmp_path):
    (tmp_path / "photo.png").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    other = {"": "holds something other", "photo.png": "is not a folder", "link": "is not a folder"}
    for name, sentence in other.items():
        with pytest.raises(InputError, match=sentence):
            fitted().save(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "photo.png"]


def test_a_failed_save_leaves_the_earlier_ensemble(folder, fitted, tiny_backbone, monkeypatch):
    refuse = Mock(side_effect=InputError("cannot write"))
    monkeypatch.setattr(ensembles, "write_manifest", refuse)
    with pytest.raises(InputError, match="cannot write"):
        fitted().save(folder)
    monkeypatch.undo()
    load(folder, tiny_backbone)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_an_ensemble_that_was_not_trained_is_not_saved(tiny_backbone, tmp_path):
    ensemble = TiledEnsemble("ENS4", backbone=tiny_backbone)
    for action in (lambda: ensemble.save(tmp_path / "x"), lambda: ensemble.predict(["x.png"])):
        with pytest.raises(InputError, match="has not been trained"):
            action()
    with pytest.raises(InputError, match="no thresholds yet"):
        ensemble.verdicts([1.0])


def test_models_beyond_the_budget_are_read_each_time(folder, tiny_backbone, monkeypatch):
    again = load(folder, tiny_backbone)
    maps, _ = again.predict(toy_images(2, side=64))
    size = os.path.getsize(folder / "location_0_0.npz")
    read = Mock(side_effect=read_tensors)
    monkeypatch.setattr(ensembles, "read_tensors", read)
    manifest = read_manifest(folder)
    again.states = ensembles.load_states(manifest, again.make_model(), budget=2 * size)
    for _ in range(2):
        np.testing.assert_array_equal(again.predict(toy_images(2, side=64))[0], maps)
    assert read.call_count == 4 + 2 * 2  # two stay in memory, two are read again each time


# ----------------------------------------------------------------- what is not an ensemble


def edited(folder, *keys, value=None, drop=False):
    """Change one entry of the manifest."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    if drop:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    path.write_text(json.dumps(content))
    rebind(folder)


MANIFESTS = [
    (("format",), "else", "entry format is 'else', not one of \"tiled-ref ensemble\""),
    (("format_version",), 6, "a newer version of tiled-ref .format 6, .* 2 to 5.; update"),
    (("format_version",), 1, "an older version of tiled-ref .format 1, .* 2 to 5.; train it"),
    (("format_version",), 0, "format_version is 0"),
    (("format_version",), 10**4000, "its entry format_version is 1000"),
    (("format_version",), -(10**4000), "its entry format_version is -1000"),
    (("format_version",), "1", "entry format_version is '1'"),
    (("format_version",), True, "entry format_version is True"),
    (("arch",), "resnet", "entry arch is 'resnet'"),
    (("setup",), [], r"entry setup is \[\]"),
    (("setup", "kind"), "XX", "entry setup.kind is 'XX', not one of \"SM\""),
    (("setup", "kind"), "9" * 5000, "its entry setup.kind is '999"),
    (("setup", "name"), "9" * 5000, "its entry setup.name is '999"),
    (("setup", "image_size"), [64], r"entry setup.image_size is \[64\], not a list of 2 values"),
    (("setup", "image_size"), [10**7, 64], r"entry setup.image_size\[0\] is 10000000, not"),
    (("setup", "tile_size"), [128, 128], "its setup is invalid: the tile's height of 128 px"),
    (("setup", "stride"), [1, 1], "lists 4 files, the setup has 1089 models"),
    (("setup", "stride"), [0, 1], r"entry setup.stride\[0\] is 0"),
    (("setup",), {"name": "x", "kind": "SM", "image_size": [1 << 15] * 2,
                  "tile_size": [1 << 15] * 2, "stride": [1 << 15] * 2}, "too many pixels"),
    (("setup",), {"name": "x", "kind": "ST", "image_size": [512, 512], "tile_size": [1, 1],
                  "stride": [1, 1]}, "invalid: these sizes cut"),
    (("seed",), -1, "entry seed is -1"),
    (("seed",), 1.5, "entry seed is 1.5"),
    (("batch_size",), 0, "entry batch_size is 0"),
    (("score",), "median", "entry score is 'median'"),
    (("batch_size",), 1 << 17, "entry batch_size is 131072"),
    (("seam_sigma",), 0, "entry seam_sigma is 0"),
    (("seam_sigma",), 65, "entry seam_sigma is 65, not a number from 0 to 64"),
    (("seam_width",), 10**400, "entry seam_width"),
    (("antialias",), 1, "entry antialias is 1"),
    (("switches",), {"steps": [1]}, r"entry switches.steps is \[1\]"),
    (("switches",), {"n_channels": 1 << 17}, "entry switches.n_channels is 131072"),
    (("switches",), {"n_channels": 449}, "invalid: n_channels must be between 1 and 448"),
    (("switches",), {"steps": 1 << 25}, "entry switches.steps is 33554432"),
    (("switches",), {"store": "int8"}, "invalid: store must be one of float32, float16"),
    (("switches",), {"store": "float16"}, "declares factors at location .0, 0. as float32"),
    (("switches",), {"colour": "red"}, "manifest is invalid"),
    (("switches",), {"colour": "r" * 256}, "entry switches.colour is 'rrr"),
    (("weights",), 7, "entry weights is 7"),
    (("weights",), "other.pth", "entry weights is 'other.pth'"),
    (("backbone_digest",), "xyz", "entry backbone_digest"),
    (("backbone_digest",), "0" * 64, "trained with other backbone weights"),
    (("versions", "torch"), "1.0.0", "with torch 1.0.0 and this is torch .*--allow-version"),
    (("versions", "torch"), "x", "entry versions.torch is 'x', not a version"),
    (("versions", "torch"), "9" * 5000 + ".1", "its entry versions.torch is '999"),
    (("files",), [], r"entry files is \[\], not a list of 1 to"),
    (("files", 1, "location"), [0, 0], r"lists \[0, 0\] instead of \(0, 1\)"),
    (("files", 0, "location"), ["..", "../x"], r"entry files\[0\].location\[0\] is '..'"),
    (("files", 2, "sha256"), "0" * 64, "location_1_0.npz is damaged .*SHA-256"),
    (("files", 2, "sha256"), 5, r"entry files\[2\].sha256 is 5"),
    (("files", 3, "bytes"), 10**4000, r"entry files\[3\].bytes is 1000"),
    (("files", 3, "bytes"), 10, r"the 10 bytes of location \(1, 1\) do not fit its tensors"),
    (("files", 0, "tensors"), {}, "the .* bytes of location .* do not fit its tensors"),
    (("files", 0, "tensors", "x"), ["float32", [1]], "has a tensor x"),
    (("files", 0, "tensors", "mean"), ["float32", [64, 10**11]], "do not fit its tensors"),
    (("files", 0, "tensors", "mean"), ["object", [1]], r"tensors.mean\[0\] is 'object'"),
    (("files", 0, "tensors", "mean"), ["float64", [64, 100]], "do not fit its tensors"),
]


@pytest.mark.parametrize("keys, value, sentence", MANIFESTS, ids=lambda x: str(x)[:40])
def test_a_tampered_manifest_is_one_sentence(folder, tiny_backbone, keys, value, sentence):
    edited(folder, *keys, value=value)
    with pytest.raises(InputError, match=sentence) as caught:
        load(folder, tiny_backbone)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("key", ["arch", "files", "setup", "versions", "score"])
def test_a_missing_entry_is_named(folder, tiny_backbone, key):
    edited(folder, key, drop=True)
    with pytest.raises(InputError, match=f"it has no entry {key}"):
        load(folder, tiny_backbone)


@pytest.mark.parametrize(
    "data, sentence",
    [(data, "is damaged or was not written") for data in (b"", b"{", b"\xff", b"[" * 10**5, b"9" * 5000)]
    + [(data, "not an object") for data in (b"null", b"[1, 2]")]
    + [(b'{"format": NaN}', "it holds NaN")],
)
def test_a_manifest_that_is_no_json_object(folder, tiny_backbone, data, sentence):
    (folder / "manifest.json").write_bytes(data)
    with pytest.raises(InputError, match=sentence):
        load(folder, tiny_backbone)


def test_a_manifest_without_end_is_not_read_to_it(folder, tiny_backbone, monkeypatch):
    monkeypatch.setattr("tiled_ref.support.schema.FILE_BYTES", 100)
    with pytest.raises(InputError, match="more than 100 bytes"):
        load(folder, tiny_backbone)


def test_another_version_of_torch_can_be_accepted(folder, tiny_backbone):
    edited(folder, "versions", "torch", value="1.0.0")
    load(folder, tiny_backbone, allow_version_change=True)
    major, minor = torch.__version__.split(".")[:2]
    edited(folder, "versions", "torch", value=f"{major}.{minor}.99+other")
    load(folder, tiny_backbone)  # a patch release computes the same


def test_files_that_are_missing_truncated_tampered_or_foreign(folder, tiny_backbone):
    path = folder / "location_0_1.npz"
    whole = path.read_bytes()
    for data, sentence in (
        (None, "location_0_1.npz of tile location .0, 1. cannot be read: No such"),
        (whole[:-1], "has .* bytes, not"),
        (whole[:-100] + b"x" + whole[-99:], "is damaged .*SHA-256"),
        (whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:], "is damaged .*SHA-256"),
        ((folder / "location_0_0.npz").read_bytes(), "is damaged .*SHA-256"),
    ):
        path.unlink(missing_ok=True)
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(InputError, match=sentence):
            load(folder, tiny_backbone)


def test_what_is_no_folder_of_an_ensemble(tmp_path, tiny_backbone):
    for path, sentence in (
        (tmp_path / "none", "does not exist"), (tmp_path, "holds no manifest.json")
    ):  # fmt: skip
        with pytest.raises(InputError, match=sentence):
            load(path, tiny_backbone)


def rewritten(folder, change):
    """Change the tensors of a location, and the manifest so that it agrees."""
    path = folder / "location_0_0.npz"
    tensors = read_tensors(path)
    change(tensors)
    write_tensors(path, tensors)
    edited(folder, "files", 0, "sha256", value=file_digest(path))
    edited(folder, "files", 0, "bytes", value=path.stat().st_size)
    listed = {key: [dtype, list(shape)] for key, (dtype, shape) in layout(path).items()}
    edited(folder, "files", 0, "tensors", value=listed)


@pytest.mark.parametrize(
    "name, value, sentence",
    [
        ("mean", float("nan"), "not finite in mean"),
        ("factors", float("inf"), "not finite in factors"),
        ("channels", 448, "channels that the backbone does not have"),
        ("channels", -1, "channels that the backbone does not have"),
        ("grid", 9, "a grid of another size than 8 x 8"),
    ],
)
def test_values_that_no_training_leaves_are_refused(folder, tiny_backbone, name, value, sentence):
    rewritten(folder, lambda tensors: tensors[name].view(-1)[:1].fill_(value))
    with pytest.raises(InputError, match=sentence):
        load(folder, tiny_backbone).predict(toy_images(1, side=64))


def test_a_permutation_that_is_none_is_refused(fitted, tmp_path, tiny_backbone):
    fitted("SM256", "fastflow").save(tmp_path / "e")
    name = next(k for k in read_tensors(tmp_path / "e/location_0_0.npz") if k.endswith("order"))
    rewritten(tmp_path / "e", lambda tensors: tensors[name][:1].fill_(10**6))
    with pytest.raises(InputError, match="an invalid permutation in"):
        load(tmp_path / "e", tiny_backbone).predict(toy_images(1, side=64))


def test_an_empty_memory_bank_is_refused(fitted, tmp_path, tiny_backbone):
    def empty(tensors):
        tensors["bank"], tensors["chosen"] = tensors["bank"][:0], tensors["chosen"][:0]

    fitted("SM256", "patchcore").save(tmp_path / "e")
    rewritten(tmp_path / "e", empty)
    with pytest.raises(InputError, match="holds an empty memory bank"):
        load(tmp_path / "e", tiny_backbone).predict(toy_images(1, side=64))


def test_an_architecture_of_ones_own_is_saved_and_loaded(tmp_path, tiny_backbone, monkeypatch):
    """Its layout is not known, and its state before the fit need not exist."""

    class Own(Padim):
        def state(self):
            return {"mu": self.mean.cpu(), **super().state()}

    monkeypatch.setitem(MODELS, "own", Own)
    ensemble = TiledEnsemble(
        SETUPS["SM256"].with_sizes((32, 32)), "own", backbone=tiny_backbone
    ).fit(toy_images(3, side=32))
    ensemble.save(tmp_path / "own")
    again = load(tmp_path / "own", tiny_backbone)
    images = toy_images(1, side=32)
    np.testing.assert_array_equal(again.predict(images)[0], ensemble.predict(images)[0])
    with pytest.raises(InputError, match="a custom backbone; pass it as backbone="):
        TiledEnsemble.load(tmp_path / "own")


# ----------------------------------------------------------------------- thresholds.json


def thresholds_with(folder, *keys, value):
    """Change an entry of thresholds.json, and its digests so that they agree."""
    path = folder / "thresholds.json"
    content = json.loads(path.read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    if keys[0] == "thresholds":
        content["thresholds_sha256"] = thresholds._digest(content["thresholds"])
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "keys, value, sentence",
    [
        (("format",), "else", "its entry format is 'else'"),
        (("format_version",), 2, "its entry format_version is 2, not one of 1"),
        (("manifest_sha256",), "0" * 64, "it belongs to another manifest.json"),
        (("thresholds_sha256",), "0" * 64, "its thresholds have another SHA-256"),
        (("thresholds",), [], r"its entry thresholds is \[\], not an object"),
        (("thresholds", "image"), None, "its entry thresholds.image is None"),
        (("thresholds", "image", "threshold"), None, "thresholds.image.threshold is None"),
        (("thresholds", "image", "threshold"), True, "thresholds.image.threshold is True"),
        (("thresholds", "image", "minimum"), 1e300, "its image minimum is above the maximum"),
        (("thresholds", "image", "percentile"), None, "its image threshold has no percentile"),
        (("thresholds", "pixel", "maximum"), 10**400, "thresholds.pixel.maximum is 1000"),
        (("thresholds", "pixel", "rule"), "guess", "thresholds.pixel.rule is 'guess'"),
        (("thresholds", "mode"), "guess", "thresholds.mode is 'guess'"),
        (("thresholds", "n_normal"), 1.5, "thresholds.n_normal is 1.5"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_tampered_thresholds_are_one_sentence(folder, tiny_backbone, keys, value, sentence):
    thresholds_with(folder, *keys, value=value)
    with pytest.raises(InputError, match=f"thresholds.json is damaged .*{sentence}") as caught:
        load(folder, tiny_backbone)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_thresholds_that_are_missing_or_of_another_ensemble_are_one_sentence(
    folder, fitted, tiny_backbone
):
    other = fitted("SM256", "patchcore")
    other.save(folder.with_name("other"))
    own = (folder / "thresholds.json").read_bytes()
    (folder / "thresholds.json").write_bytes(
        (folder.with_name("other") / "thresholds.json").read_bytes()
    )
    with pytest.raises(InputError, match="thresholds.json .*belongs to another manifest.json"):
        load(folder, tiny_backbone)
    (folder / "thresholds.json").unlink()
    with pytest.raises(InputError, match="thresholds.json cannot be read: No such file"):
        load(folder, tiny_backbone)
    (folder / "thresholds.json").write_bytes(own)
    assert load(folder, tiny_backbone).thresholds
    assert load(folder.with_name("other"), tiny_backbone).thresholds is None


def test_moved_thresholds_leave_everything_else(folder, fitted, tiny_backbone):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    moved = fitted().thresholds | {"image": fitted().thresholds["image"] | {"threshold": -1e9}}
    write_thresholds(folder, moved)
    again = load(folder, tiny_backbone)
    assert again.thresholds == moved and again.verdicts(np.array([0.0])).tolist() == [True]
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {name for name in after if after[name] != before[name]} == {"thresholds.json"}
    with pytest.raises(InputError, match="image.threshold is nan, not a number"):
        write_thresholds(folder, moved | {"image": moved["image"] | {"threshold": float("nan")}})
    with pytest.raises(InputError, match="manifest.json cannot be read: No such file"):
        write_thresholds(folder.parent, moved)


def test_an_ensemble_of_format_2_is_read(folder, fitted, tiny_backbone):
    """As it was written before: the thresholds stand in the manifest."""
    content = json.loads((folder / "manifest.json").read_text())
    found = json.loads((folder / "thresholds.json").read_text())["thresholds"]
    entries = list(content.items())
    at = list(content).index("versions")
    content = dict([*entries[:at], ("thresholds", found), *entries[at:]]) | {"format_version": 2}
    (folder / "thresholds.json").unlink()
    (folder / "manifest.json").write_text(json.dumps(content, indent=2))
    again = load(folder, tiny_backbone)
    assert again.thresholds == fitted().thresholds
    np.testing.assert_array_equal(
        again.predict(toy_images(2, side=64))[0], fitted().predict(toy_images(2, side=64))[0]
    )
    content["thresholds"] = found | {"image": found["image"] | {"rule": "guess"}}
    (folder / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="manifest.json is damaged .*image.rule is 'guess'"):
        load(folder, tiny_backbone)
    write_thresholds(folder, found | {"pixel": None})  # moved: they stand beside it now
    assert load(folder, tiny_backbone).thresholds["pixel"] is None


def as_in_format_3(folder, change=lambda inverses: inverses):
    """PaDiM's inverse covariances in the place of their factors, as they were kept before."""
    for k, path in enumerate(sorted(folder.glob("location_*.npz"))):
        state = read_tensors(path)
        upper = unpack(state.pop("factors").double())
        state["packed"] = change(pack(upper @ upper.mT)).float()
        state = {name: state[name] for name in ("mean", "packed", "channels", "grid")}
        write_tensors(path, state)
        edited(folder, "files", k, "sha256", value=file_digest(path))
        edited(folder, "files", k, "bytes", value=path.stat().st_size)
        listed = {key: [dtype, list(shape)] for key, (dtype, shape) in layout(path).items()}
        edited(folder, "files", k, "tensors", value=listed)
    edited(folder, "format_version", value=3)


def test_an_ensemble_with_inverse_covariances_is_read(folder, fitted, tiny_backbone, tmp_path):
    """Of format 3; saved again it is one of today."""
    as_in_format_3(folder)
    again = load(folder, tiny_backbone)
    maps, scores = fitted().predict(toy_images(2, side=64))
    for ensemble in (again, load_resaved(again, tmp_path / "again", tiny_backbone)):
        found = ensemble.predict(toy_images(2, side=64))
        np.testing.assert_allclose(found[0], maps, rtol=1e-4)  # measured: 5e-6
        np.testing.assert_allclose(found[1], scores, rtol=1e-4)
        assert ensemble.thresholds == fitted().thresholds
    manifest = json.loads((tmp_path / "again" / "manifest.json").read_text())
    assert manifest["files"][0]["tensors"]["factors"] == ["float32", [64, 5050]]


def load_resaved(ensemble, folder, tiny_backbone):
    ensemble.save(folder)
    return load(folder, tiny_backbone)


@pytest.mark.parametrize("change, sentence", [
    (lambda inverses: -inverses, "holds invalid inverse covariances in packed"),
    (lambda inverses: inverses * float("nan"), "not finite in packed"),
    (lambda inverses: inverses[:, 1:], "declares packed at location .0, 0. as float32 .64, 5049."),
])  # fmt: skip
def test_what_are_no_inverse_covariances_is_refused(folder, tiny_backbone, change, sentence):
    as_in_format_3(folder, change)
    with pytest.raises(InputError, match=sentence):
        load(folder, tiny_backbone)


@pytest.mark.parametrize("memory", ["low", "resident"])
def test_factors_in_float16_are_so_on_the_disk_and_in_memory(tiny_backbone, tmp_path, memory):
    images = toy_images(7, side=64)
    made = [
        TiledEnsemble(SETUPS["ENS4"].with_sizes(*SMALL["ENS4"]), backbone=tiny_backbone,
                      switches={"store": store}).fit(images[:4])
        for store in ("float32", "float16")
    ]  # fmt: skip
    for ensemble in made:
        ensemble.save(tmp_path / ensemble.recipe.switches["store"])
    again = [load(tmp_path / store, tiny_backbone) for store in ("float32", "float16")]
    sizes = [again[k].states[0, 0]["factors"].nbytes for k in (0, 1)]
    assert sizes[0] == 2 * sizes[1] == 4 * 64 * 5050
    sizes = [(tmp_path / s / "location_0_0.npz").stat().st_size for s in ("float32", "float16")]
    assert sizes[0] - sizes[1] == 2 * 64 * 5050
    maps = [Engine(ensemble, memory).predict(images[4:])[0] for ensemble in (*again, *made)]
    np.testing.assert_array_equal(maps[1], maps[3])
    np.testing.assert_allclose(maps[1], maps[0], rtol=2e-3)  # measured: 3e-4
    assert (maps[1] != maps[0]).any() and (maps[1] >= 0).all()


# ------------------------------------------------------------- what is opened, and how often


@pytest.mark.parametrize("name", ["manifest.json", "thresholds.json", "location_1_1.npz"])
def test_links_pipes_and_folders_are_not_read(folder, tiny_backbone, name):
    path, outside = folder / name, folder.parent / name
    path.rename(outside)
    for make, sentence in (
        (lambda: path.symlink_to(outside), "it is a link"),
        (lambda: os.mkfifo(path), "it is not a regular file"),
        (path.mkdir, "it is not a regular file"),
    ):
        make()
        with pytest.raises(InputError, match=f"{name}.* cannot be read: {sentence}"):
            load(folder, tiny_backbone)
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    outside.rename(path)
    load(folder, tiny_backbone)


def test_what_is_read_again_is_compared_again(folder, tiny_backbone):
    again = load(folder, tiny_backbone)
    again.states = ensembles.load_states(read_manifest(folder), again.make_model(), budget=0)
    state = read_tensors(folder / "location_0_1.npz")
    state["mean"] += 1
    write_tensors(folder / "location_0_1.npz", state)
    with pytest.raises(InputError, match="location_0_1.npz is damaged .*SHA-256"):
        again.predict(toy_images(1, side=64))


def test_a_state_is_hashed_and_read_from_one_opening(folder, tiny_backbone, monkeypatch):
    opened = []

    def counting(path, follow=True, really=tensors.open_regular):
        opened.append((path.name, follow))
        return really(path, follow)

    monkeypatch.setattr(tensors, "open_regular", counting)
    load(folder, tiny_backbone)
    assert opened == [(f"location_{i}_{j}.npz", False) for i in (0, 1) for j in (0, 1)]


@pytest.mark.parametrize(
    "shape, sentence", [([64, 10**6], "does not fit padim"), ([10**9, 100], "does not fit padim")]
)
def test_sizes_are_compared_with_the_architecture_before_anything_is_hashed(
    folder, tiny_backbone, monkeypatch, shape, sentence
):
    size = os.path.getsize(folder / "location_0_0.npz") + 4 * (shape[0] * shape[1] - 6400)
    os.truncate(folder / "location_0_0.npz", size)
    edited(folder, "files", 0, "tensors", "mean", value=["float32", shape])
    edited(folder, "files", 0, "bytes", value=size)
    monkeypatch.setattr(tensors, "digest_of", Mock(side_effect=AssertionError("hashed")))
    with pytest.raises(InputError, match=sentence):
        load(folder, tiny_backbone)


def test_a_memory_bank_has_a_bound_and_one_length(fitted, tmp_path, tiny_backbone, monkeypatch):
    fitted("SM256", "patchcore").save(tmp_path / "e")
    load(tmp_path / "e", tiny_backbone)
    monkeypatch.setattr(ensembles, "LARGEST_BANK", 1)
    with pytest.raises(InputError, match="does not fit patchcore"):
        load(tmp_path / "e", tiny_backbone)
    monkeypatch.undo()
    rewritten(tmp_path / "e", lambda state: state.update(chosen=state["chosen"][:-1]))
    with pytest.raises(InputError, match="does not fit patchcore"):
        load(tmp_path / "e", tiny_backbone)


def test_a_model_that_its_files_cannot_fill_is_not_made(
    fitted, tmp_path, tiny_backbone, monkeypatch
):
    fitted("SM256", "fastflow").save(tmp_path / "e")
    side = [8192, 8192]
    setup = {"name": "x", "kind": "SM", "image_size": side, "tile_size": side, "stride": side}
    edited(tmp_path / "e", "setup", value=setup)
    monkeypatch.setattr(TiledEnsemble, "make_model", Mock(side_effect=AssertionError("made")))
    with pytest.raises(InputError, match="bytes of location .* do not fit its tensors"):
        load(tmp_path / "e", tiny_backbone)
