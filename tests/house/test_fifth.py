"""The worked example of a fifth architecture, taken from models/README.md and run as it stands."""

import json

import numpy as np
import pytest
import torch
from readme import block
from toys import Images, ThreeLayers, toy_category, toy_images

from tiled_ref import cli
from tiled_ref.data.encoders import encode_png
from tiled_ref.ensemble import TiledEnsemble
from tiled_ref.models import MODELS
from tiled_ref.setups import SETUPS, Setup
from tiled_ref.support.errors import InputError

EXAMPLE = block("test: fifth")


@pytest.fixture
def model_class(monkeypatch):
    """The class of the example, registered as long as the test runs."""
    monkeypatch.setattr("tiled_ref.models.MODELS", MODELS)
    names = {}
    exec(compile(EXAMPLE.text, EXAMPLE.where, "exec"), names)
    yield names["MeanDistance"]
    del MODELS["mean_distance"]


def test_the_example_is_short():
    assert len(EXAMPLE.text.splitlines()) <= 60


@pytest.fixture
def parts(tmp_path):
    """A user's folder with pictures of 64 px."""
    category = toy_category(n_train=6, n_good=3, n_bad=3, side=64)
    places = [(s, "train") for s in category.train]
    places += [(s, f"test/{s.defect}") for s in category.test]
    for k, (sample, folder) in enumerate(places):
        for base, array in ((folder, sample.read_image()), ("ground_truth/square", None)):
            name = f"{k}.png"
            if array is None:
                if not sample.label:
                    continue
                array, name = sample.read_mask().astype(np.uint8) * 255, f"{k}_mask.png"
            path = tmp_path / "parts" / base / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(array))
    return tmp_path / "parts"


def test_it_runs_in_all_six_setups_from_the_command_line(model_class, parts, capsys):
    out = parts.parent / "out"
    for setup in SETUPS:
        argv = ["--arch", "mean_distance", "--setup", setup, "--dataset", "folder"]
        argv += ["--root", str(parts), "--out", str(out), "--weights", "random", "--quiet"]
        argv += ["--image-size", "64", *([] if setup[:2] == "SM" else ["--tile-size", "32"])]
        assert cli.main([*argv, "--device", "cpu"]) == 0
    results = [json.loads(path.read_text()) for path in sorted(out.rglob("metrics.json"))]
    # SM256 and SM512 are one setup at 64 px.
    assert sorted(r["n_models"] for r in results) == [1, 1, 1, 4, 9]
    assert all(r["arch"] == "mean_distance" and r["pixel_aupro"] > 0 for r in results)
    assert capsys.readouterr().out.count("mean_distance") == 6


def test_distance_by_hand(model_class):
    """Grey levels 1 and 3 have mean 2; layer2's 128 channels are k/128 of the level, so 5 lies
    3 sqrt(sum (k/128)^2) from it, everywhere."""
    model = model_class(ThreeLayers(), (32, 32), seed=0, device="cpu")
    level = torch.tensor([1.0, 3.0])[:, None, None, None].expand(2, 3, 32, 32)
    model.fit(Images(level))
    maps, scores = model.predict(torch.full((1, 3, 32, 32), 5.0))
    expected = 3 * (sum((k / 128) ** 2 for k in range(1, 129))) ** 0.5
    assert maps.shape == (1, 32, 32)
    assert maps.numpy() == pytest.approx(expected, rel=1e-5)  # measured: 2e-7
    assert scores.item() == pytest.approx(expected, rel=1e-5)


def test_it_finds_the_square_and_its_state_is_all_it_needs(model_class, tiny_backbone):
    setup = Setup("toy", "ENS", (96, 96), (48, 48), (24, 24))
    category = toy_category()
    bad = [s for s in category.test if s.label]
    images = np.stack([s.read_image().transpose(2, 0, 1) for s in bad])
    ensemble = TiledEnsemble(setup, "mean_distance", backbone=tiny_backbone).fit(toy_images())
    maps, _ = ensemble.predict(images)
    inside = [m[s.read_mask()].mean() for m, s in zip(maps, bad)]
    outside = [m[~s.read_mask()].mean() for m, s in zip(maps, bad)]
    assert all(a > 1.2 * b for a, b in zip(inside, outside)), (inside, outside)


def test_no_images_are_refused(model_class, tiny_backbone):
    model = model_class(tiny_backbone, (32, 32), seed=0, device="cpu")
    with pytest.raises(InputError, match="needs a normal training image"):
        model.fit(Images(torch.zeros(0, 3, 32, 32)))
