"""A saved ensemble on new images: the table, the maps, the pictures, and what goes wrong."""

import csv
import io
import json
import os
import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image
from toys import toy_category, write_category

from tiled_ref import cli
from tiled_ref.data.encoders import encode_png
from tiled_ref.data.images import decode_image
from tiled_ref.data.inputs import as_samples
from tiled_ref.ensemble import TiledEnsemble
from tiled_ref.running.lock import OutputLock
from tiled_ref.serving import predict
from tiled_ref.serving.outputs import PredictOptions, enlarge, output_name
from tiled_ref.serving.predict import Predictor, predictions, run_predict
from tiled_ref.serving.sources import listed
from tiled_ref.setups import SETUPS
from tiled_ref.support.errors import InputError
from tiled_ref.verdicts.thresholds import normalize

CATEGORY = toy_category(n_train=6, n_good=4, n_bad=3)


@pytest.fixture(scope="module")
def ensemble(tiny_backbone):
    """Fitted on images of 96 px at 64 px, with thresholds."""
    made = TiledEnsemble(
        SETUPS["ENS4"].with_sizes((64, 64), (32, 32)), backbone=tiny_backbone, weights="random"
    )
    made.fit(CATEGORY.train)
    test = CATEGORY.test
    masks = np.stack([s.read_mask() if s.label else np.zeros((96, 96), bool) for s in test])
    rows = np.arange(64) * 96 // 64
    return made.calibrate(test, [s.label for s in test], masks=masks[:, rows[:, None], rows[None]])


@pytest.fixture
def folder(tmp_path):
    """Test images as files: a good one, and two squares in a folder below."""
    for name, k in (("a.png", 0), ("b/x.png", -1), ("b/y.png", -2)):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(CATEGORY.test[k].read_image()))
    return tmp_path / "in"


def rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_per_image_with_score_and_verdict(ensemble, folder, tmp_path):
    count = run_predict(ensemble, folder, tmp_path / "out", PredictOptions())
    table = rows(tmp_path / "out/predictions.csv")
    assert [row["path"] for row in table] == [
        str(folder / name) for name in ("a.png", "b/x.png", "b/y.png")
    ]
    _, scores = ensemble.predict([folder / "a.png", folder / "b/x.png", folder / "b/y.png"])
    limits = ensemble.thresholds["image"]
    for row, score in zip(table, scores):
        assert float(row["score"]) == pytest.approx(score, rel=1e-5)  # batches differ: 2e-7
        scaled = normalize(
            np.float64(row["score"]), limits["threshold"], limits["minimum"], limits["maximum"]
        )
        assert float(row["normalised_score"]) == scaled
        assert row["verdict"] == ("anomalous" if scaled >= 0.5 else "normal")
        assert row["error"] == ""
    assert count["normal"] + count["anomalous"] == 3 and count["errors"] == 0
    assert not (tmp_path / "out/predictions.partial.csv").exists()


def test_pictures_have_the_size_of_the_image_and_say_what_the_map_says(ensemble, folder, tmp_path):
    options = PredictOptions(maps="npy", pictures="all")
    run_predict(ensemble, folder, tmp_path / "out", options)
    limits = ensemble.thresholds["pixel"]
    regions = rows(tmp_path / "out/regions.csv")
    seen = 0
    for row in rows(tmp_path / "out/predictions.csv"):
        stem = tmp_path / "out/pictures" / row["name"]
        raw = np.load(tmp_path / "out/maps" / f"{row['name']}.npy", allow_pickle=False)
        assert raw.dtype == np.float32 and raw.shape == (64, 64)
        mask = np.array(Image.open(f"{stem}_mask.png"))
        assert set(np.unique(mask)) <= {0, 255} and mask.shape == (96, 96)
        np.testing.assert_array_equal(mask > 0, enlarge(raw, (96, 96)) >= limits["threshold"])
        assert int(row["anomalous_px"]) == (mask > 0).sum()
        mine = [region for region in regions if region["name"] == row["name"]]
        assert len(mine) == int(row["regions"])
        assert sum(int(region["area_px"]) for region in mine) == int(row["anomalous_px"])
        seen += len(mine)
        for region in mine:
            part = float(region["area_px"]) / 96**2
            assert float(region["area_map_px"]) == pytest.approx(part * 64**2, abs=0.06)
            assert float(region["normalised_maximum"]) >= 0.5
        shapes = json.loads((tmp_path / f"out/pictures/{row['name']}_regions.json").read_text())
        assert [shape["area_px"] for shape in shapes["regions"]] == [
            int(region["area_px"]) for region in mine
        ]
        heat = np.array(Image.open(f"{stem}_overlay.png"))
        contours = np.array(Image.open(f"{stem}_contours.png"))
        image, caption = decode_image(row["path"]), len(contours) - 96
        assert contours.shape == (96 + caption, 96, 3) and caption > 0
        assert heat.shape[0] > 96 and heat.shape[1] > 96
        if not mine:
            np.testing.assert_array_equal(contours[caption:], image)
    assert seen  # the squares were found


def test_maps_as_tiff_hold_the_same_numbers(ensemble, folder, tmp_path):
    for kind in ("npy", "tiff"):
        options = PredictOptions(maps=kind, pictures="none")
        run_predict(ensemble, folder / "a.png", tmp_path / kind, options)
        assert not (tmp_path / kind / "pictures").exists()
    raw = np.load(tmp_path / "npy/maps/000001_a.npy")
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "tiff/maps/000001_a.tiff")), raw)


def test_only_anomalous_images_are_drawn_unless_asked(ensemble, folder, tmp_path):
    run_predict(ensemble, folder, tmp_path / "out", PredictOptions())
    drawn = {name[:6] for name in os.listdir(tmp_path / "out/pictures")}
    table = rows(tmp_path / "out/predictions.csv")
    assert drawn == {row["name"][:6] for row in table if row["verdict"] == "anomalous"}
    assert 0 < len(drawn) < 3


def test_a_bad_image_costs_its_own_row(ensemble, folder, tmp_path, capsys):
    (folder / "b/bad.png").write_bytes(b"not an image")
    (folder / "b/link.png").symlink_to("link.png")
    os.mkfifo(folder / "b/pipe.png")
    count = run_predict(ensemble, folder, tmp_path / "out", PredictOptions())
    table = rows(tmp_path / "out/predictions.csv")
    assert [row["verdict"] for row in table].count("error") == count["errors"] == 3
    assert [os.path.basename(row["path"]) for row in table] == [
        "a.png", "bad.png", "link.png", "pipe.png", "x.png", "y.png"
    ]  # fmt: skip
    assert "not an image" in table[1]["error"] and table[1]["score"] == ""
    assert "symbolic links" in table[2]["error"] and "special file" in table[3]["error"]
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 3 and all(line.startswith("tiled-ref: error: ") for line in err)


def test_memory_does_not_grow_with_the_number_of_images(ensemble, folder, monkeypatch):
    predictor = Predictor(ensemble)
    grid = ensemble.grid
    per_image = 3 * 64 * 64 + 4 * 4 * 32 * 32 + 3 * 4 * 64 * 64
    monkeypatch.setattr(predict, "BATCH_BUDGET", 3 * per_image + 1)
    assert predictor.batch == 3 and grid.rows * grid.cols == 4
    monkeypatch.setattr(predict, "BATCH_BUDGET", 1)
    assert predictor.batch == 1
    sizes, call = [], Predictor.predict
    monkeypatch.setattr(
        Predictor, "predict", lambda self, images: sizes.append(len(images)) or call(self, images)
    )
    monkeypatch.setattr(predict, "BATCH_BUDGET", 2 * per_image)
    samples = as_samples([folder / "a.png", folder / "b/x.png"] * 4 + [folder / "a.png"])
    found = list(predictions(ensemble, samples))
    assert sizes == [2, 2, 2, 2, 1]
    whole, scores = ensemble.predict(samples)
    for (_, image_map, score), wanted, wanted_score in zip(found, whole, scores):
        # largest difference between batches of 2 and of 9: 2e-6
        np.testing.assert_allclose(image_map, wanted, rtol=1e-5)
        assert score == pytest.approx(wanted_score, rel=1e-5)


def test_models_beyond_the_budget_give_the_same(ensemble, folder, monkeypatch):
    images = np.stack([CATEGORY.test[k].read_image()[:64, :64].transpose(2, 0, 1) for k in (0, 5)])
    first = Predictor(ensemble)
    monkeypatch.setattr(predict, "RESIDENT_BUDGET", 0)
    second = Predictor(ensemble)
    assert first.resident and not second.resident
    for _ in range(2):
        for a, b in zip(first.predict(images), second.predict(images)):
            np.testing.assert_array_equal(a, b)
    assert len(first.resident.locations) == 4


def test_an_unreadable_image_is_raised_or_left_out(ensemble, folder):
    samples = as_samples([folder / "a.png", folder / "none.png"])
    with pytest.raises(InputError, match="none.png does not exist"):
        list(predictions(ensemble, samples))
    failed = []
    found = list(predictions(ensemble, samples, failed=lambda *pair: failed.append(pair)))
    assert len(found) == 1 and "does not exist" in str(failed[0][1])


def test_without_thresholds_there_are_scores_alone(ensemble, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(ensemble, "thresholds", None)
    count = run_predict(ensemble, folder, tmp_path / "out", PredictOptions(maps="npy"))
    assert count == {"normal": 0, "anomalous": 0, "unknown": 3, "errors": 0}
    row = rows(tmp_path / "out/predictions.csv")[0]
    assert row["score"] and row["verdict"] == row["normalised_score"] == ""
    with pytest.raises(InputError, match="no pixel threshold, so masks cannot be drawn"):
        run_predict(ensemble, folder, tmp_path / "out", PredictOptions(pictures="all"))


def test_a_new_prediction_replaces_the_earlier_and_nothing_else(ensemble, folder, tmp_path):
    out = tmp_path / "out"
    run_predict(ensemble, folder, out, PredictOptions("npy", "all"))
    (out / "pictures/mine.png").write_text("")
    (out / "notes.txt").write_text("")
    run_predict(ensemble, folder / "a.png", out, PredictOptions(pictures="none"))
    left = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    assert left == ["notes.txt", "pictures/mine.png", "predictions.csv", "regions.csv"]
    other = tmp_path / "other"
    (other / "maps").mkdir(parents=True)
    (other / "maps/000001_a.npy").write_text("")  # no prediction lies there
    run_predict(ensemble, folder / "b/x.png", other, PredictOptions(pictures="none"))
    assert (other / "maps/000001_a.npy").exists()


def test_rows_survive_an_interruption(ensemble, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "BATCH_BUDGET", 1)
    one = np.zeros((1, 64, 64), np.float32), np.zeros(1, np.float32)
    monkeypatch.setattr(Predictor, "predict", Mock(side_effect=[one, KeyboardInterrupt]))
    with pytest.raises(KeyboardInterrupt):
        run_predict(ensemble, folder, tmp_path / "out", PredictOptions())
    assert not (tmp_path / "out/predictions.csv").exists()
    assert len(rows(tmp_path / "out/predictions.partial.csv")) == 1


def test_a_prediction_that_is_not_finite_is_an_error_of_its_image(
    ensemble, folder, tmp_path, monkeypatch, capsys
):
    maps = np.zeros((3, 64, 64), np.float32)
    maps[1, 3, 4] = np.nan
    broken = Mock(return_value=(maps, np.zeros(3, np.float32)))
    monkeypatch.setattr(Predictor, "predict", broken)
    run_predict(ensemble, folder, tmp_path / "out", PredictOptions("npy"))
    assert [row["verdict"] for row in rows(tmp_path / "out/predictions.csv")] == [
        "normal", "error", "normal"
    ]  # fmt: skip
    assert "is not finite" in capsys.readouterr().err


# ------------------------------------------------------------------------------ the inputs


def test_names_are_unique_and_safe():
    names = [
        "a.png", "b/a.png", "ü ñ.png", "x\ny.png", "../../etc.png", "con.png", "a" * 300 + ".png",
        os.fsdecode(b"\xff\xfe.png"), ".png", "=1+1.png",
    ]  # fmt: skip
    made = [output_name(k, name) for k, name in enumerate(names)]
    assert len({name.lower() for name in made}) == len(names)
    for name in made:
        assert name.isascii() and "/" not in name and len(name) <= 71
        assert all(c.isalnum() or c in "-_" for c in name)
    long = [output_name(1, "a" * n + end) for n in (64, 65, 250) for end in ("b.png", "c.png")]
    assert len(set(long)) == 6 and set(map(len, long)) == {71}  # what is cut off is in a digest


def test_outputs_are_never_inputs(saved, folder, tmp_path, capsys):
    """Below the images, a link to there, the folder of the images itself, lists, one picture."""

    def predict(source, out, *argv):
        fixed = ["--load", saved, "--pictures", "all", "--save-maps", "tiff", "--quiet"]
        status = run(*fixed, "--predict", source, "--out", out, "--device", "cpu", *argv)
        assert status == 0, capsys.readouterr().err
        return [row["path"].rpartition("/in/")[2] for row in rows(Path(out, "predictions.csv"))]

    wanted = ["a.png", "b/x.png", "b/y.png"]
    (tmp_path / "link").symlink_to(folder / "b/inspected")
    for out in folder / "inspected", folder / "b/inspected", tmp_path / "link", folder:
        for _ in range(2):
            assert predict(folder, out) == wanted, out
    shutil.copy(folder / "a.png", folder / "pictures/mine.png")
    assert predict(folder, folder) == [*wanted, "pictures/mine.png"]
    said = []
    found = listed(folder, Mock(note=said.append), str(folder / "b"))
    assert not any("b" in path.parts for path in found)
    assert "1 folder" in said[0]  # also what is there of the user
    picture = next((folder / "pictures").glob("*_mask.png"))
    assert run("--load", saved, "--predict", picture, "--out", folder) == 2
    assert "has only outputs of an earlier prediction" in capsys.readouterr().err
    assert picture.exists()


def test_an_image_of_a_long_name_has_its_pictures_and_its_map(ensemble, folder, tmp_path):
    names = ["n" * 250 + f"{k}.png" for k in range(2)]
    for name in names:
        shutil.copy(folder / "a.png", folder / name)
    options = PredictOptions(maps="npy", pictures="all")
    run_predict(ensemble, folder, tmp_path / "out", options)
    made = [row["name"] for row in rows(tmp_path / "out/predictions.csv")]
    assert len(made) == len(set(made)) == 5
    for name in made:
        assert (tmp_path / f"out/maps/{name}.npy").exists()
        assert len(list((tmp_path / "out/pictures").glob(f"{name}_*"))) == 4


def test_cells_are_no_formulas(ensemble, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    for name in ("=1+1.png", "@x.png", "-2.png"):
        shutil.copy("a.png", name)
    run_predict(ensemble, ".", tmp_path / "out", PredictOptions(pictures="all"))
    table = rows(tmp_path / "out/predictions.csv")
    regions = rows(tmp_path / "out/regions.csv")
    assert [row["path"] for row in table[:3]] == ["'-2.png", "'=1+1.png", "'@x.png"]
    assert {row["path"] for row in regions} <= {row["path"] for row in table} and regions
    assert all(float(row["score"]) > 0 for row in table)


def test_odd_file_names_end_to_end(ensemble, folder, tmp_path, monkeypatch):
    names = [b"new\nline.png", b"\xff\xfe.png", "ü.png".encode(), b"a.png"]
    for name in names[:3]:
        shutil.copyfile(folder / "a.png", os.fsencode(folder) + b"/" + name)
    data = b"\0".join(os.fsencode(folder) + b"/" + name for name in names)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    count = run_predict(ensemble, "-", tmp_path / "out", PredictOptions())
    assert count["errors"] == 0
    table = rows(tmp_path / "out/predictions.csv")
    assert [row["path"].rpartition("/")[2] for row in table] == [
        "new\nline.png", "\\xff\\xfe.png", "ü.png", "a.png"
    ]  # fmt: skip
    assert len({row["name"] for row in table}) == 4
    assert len({row["score"] for row in table}) == 1


# -------------------------------------------------------------------------- the command line


def run(*argv):
    return cli.main([str(part) for part in argv])


@pytest.fixture
def saved(ensemble, tmp_path):
    ensemble.save(tmp_path / "ensemble")
    return tmp_path / "ensemble"


def test_load_and_predict(saved, folder, tmp_path, capsys):
    argv = ["--load", saved, "--predict", folder, "--out", tmp_path / "out", "--device", "cpu"]
    assert run(*argv) == 0
    out, err = capsys.readouterr()
    assert out.startswith("3 images: ") and "predictions.csv" in out
    assert "thresholds from images given" in err and "3/3" in err
    (folder / "bad.png").write_bytes(b"")
    assert run(*argv, "--quiet") == 2
    out, err = capsys.readouterr()
    assert "1 could not be scored" in out and err.count("\n") == 1 and "bad.png is empty" in err
    assert len(rows(tmp_path / "out/predictions.csv")) == 4
    one = sorted(p for p in folder.iterdir() if p.name != "bad.png")[0]
    assert run("--load", saved, "--predict", one, *argv[4:], "--quiet") == 0
    assert capsys.readouterr().out.startswith("1 image: 1 ")


def test_an_ensemble_without_thresholds_says_so(ensemble, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ensemble, "thresholds", None)
    ensemble.save(tmp_path / "ensemble")
    argv = ["--load", tmp_path / "ensemble", "--predict", folder, "--out", tmp_path / "out"]
    assert run(*argv) == 0
    assert "has no thresholds: scores only, no verdicts and no pictures" in capsys.readouterr().err
    assert {row["verdict"] for row in rows(tmp_path / "out/predictions.csv")} == {""}
    assert run(*argv, "--pixel-threshold", 1) == 2
    assert "--pixel-threshold needs --threshold; give both" in capsys.readouterr().err
    assert run(*argv, "--pixel-threshold", 1, "--threshold", 1) == 0
    assert {row["verdict"] for row in rows(tmp_path / "out/predictions.csv")} != {""}


def test_two_predictions_into_one_folder_are_refused(saved, folder, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    with OutputLock(tmp_path / "out"):
        assert run("--load", saved, "--predict", folder, "--out", tmp_path / "out") == 2
    assert "another run is writing" in capsys.readouterr().err


def test_a_run_with_save_can_be_loaded_and_finds_what_it_was_tested_on(tmp_path, capsys):
    parts = tmp_path / "parts"
    write_category(parts, CATEGORY, "{}", "train")
    argv = ["--dataset", "folder", "--root", parts, "--setup", "ENS4", "--image-size", 32]
    argv += ["--tile-size", 16, "--weights", "random", "--device", "cpu", "--quiet", "--save"]
    for mode in ("same-as-test", "split", "none", "folder"):
        out = tmp_path / mode
        if mode == "folder":  # the default where there are such images
            shutil.copytree(parts / "test/good", parts / "validation/good")
        more = [] if mode == "folder" else ["--validation", mode]
        assert run(*argv, "--out", out, *more, "--percentile", 90) == 0
        (path,) = out.rglob("metrics.json")
        result = json.loads(path.read_text())
        found = result["thresholds"]
        assert result["validation"] == found["mode"] == mode
        assert found["n_normal"] + found["n_anomalous"] == {
            "same-as-test": 7, "split": 4, "none": 1, "folder": 4
        }[mode]  # fmt: skip
        assert result["n_test"] == (3 if mode == "split" else 7)
        assert result["n_train"] == (5 if mode == "none" else 6)
        assert found["image"]["rule"] == (
            "percentile" if mode in ("none", "folder") else "f1"
        )
        ensemble = path.parent / "ensemble"
        manifest = json.loads((ensemble / "manifest.json").read_text())
        thresholds = json.loads((ensemble / "thresholds.json").read_text())["thresholds"]
        assert thresholds == found and manifest["category"] == "parts"
    images = parts / "test/square"
    assert run("--load", ensemble, "--predict", images, "--out", tmp_path / "p", "--quiet") == 0
    scores = [float(row["score"]) for row in rows(tmp_path / "p/predictions.csv")]
    _, wanted = TiledEnsemble.load(ensemble).predict(sorted(images.iterdir()))
    np.testing.assert_allclose(scores, wanted, rtol=1e-5)


def test_an_interrupt_says_where_the_rows_are(saved, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Predictor, "predict", Mock(side_effect=KeyboardInterrupt))
    assert run("--load", saved, "--predict", folder, "--out", tmp_path / "out") == 130
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == "tiled-ref: interrupted; the rows so far are in predictions.partial.csv"
    assert (tmp_path / "out/predictions.partial.csv").is_file()


def test_what_lies_on_the_threshold_is_anomalous(ensemble, tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(encode_png(CATEGORY.test[0].read_image()[:64, :64]))
    options = PredictOptions("npy", "all")
    run_predict(ensemble, tmp_path / "a.png", tmp_path / "out", options)
    (row,) = rows(tmp_path / "out/predictions.csv")
    raw = np.load(tmp_path / "out/maps/000001_a.npy")
    limits = {kind: dict(ensemble.thresholds[kind]) for kind in ("image", "pixel")}
    limits["image"]["threshold"] = float(row["score"])
    limits["pixel"]["threshold"] = float(raw.max())
    monkeypatch.setattr(ensemble, "thresholds", ensemble.thresholds | limits)
    run_predict(ensemble, tmp_path / "a.png", tmp_path / "out", options)
    (row,) = rows(tmp_path / "out/predictions.csv")
    assert (row["verdict"], row["normalised_score"]) == ("anomalous", "0.5")
    assert int(row["anomalous_px"]) == (raw == raw.max()).sum() > 0
