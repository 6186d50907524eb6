"""Moving the operating point of a trained ensemble, and what predictions make of it."""

import csv
import json
import re

import numpy as np
import pytest
from PIL import Image
from toys import toy_category, write_category

from tiled_ref import cli
from tiled_ref.data.encoders import encode_png
from tiled_ref.data.images import decode_mask
from tiled_ref.ensemble import TiledEnsemble
from tiled_ref.metrics import label_regions
from tiled_ref.setups import SETUPS
from tiled_ref.verdicts.marks import enlarge, locations_seen, marks

CATEGORY = toy_category(n_train=6, n_good=12, n_bad=5)


def run(*argv):
    return cli.main([str(word) for word in (*argv, "--device", "cpu", "--quiet")])


def rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def trained(tiny_backbone):
    ensemble = TiledEnsemble(
        SETUPS["ENS4"].with_sizes((64, 64), (32, 32)), backbone=tiny_backbone, weights="random"
    )
    return ensemble.fit(CATEGORY.train)


@pytest.fixture
def saved(trained, tmp_path):
    trained.save(tmp_path / "ensemble")
    return tmp_path / "ensemble"


@pytest.fixture
def parts(tmp_path):
    """test/good, test/square, ground_truth/square."""
    write_category(tmp_path / "parts", CATEGORY)
    return tmp_path / "parts"


def thresholds_in(saved):
    return json.loads((saved / "thresholds.json").read_text())["thresholds"]


def test_the_table_counts_false_alarms_and_misses(trained, saved, parts, tmp_path, capsys):
    """Every row by counting: scores at the image threshold, marks at the pixel threshold."""
    before = {p.name: p.read_bytes() for p in saved.iterdir() if p.name != "thresholds.json"}
    argv = ["--load", saved, "--calibrate", parts, "--out", tmp_path / "out"]
    assert run(*argv, "--false-alarms", 0.25, "--min-area", 9) == 0
    table = rows(tmp_path / "out/calibration.csv")
    assert [int(row["false_alarms"]) for row in table] == [0, 1, 2, 3, 5, 10]
    maps, scores = trained.predict(CATEGORY.test)
    good = np.array([sample.label == 0 for sample in CATEGORY.test])
    masks = [sample.read_mask() for sample in CATEGORY.test if sample.label]
    for row in table:
        limit, pixel = np.float32(row["image_threshold"]), float(row["pixel_threshold"])
        found = [marks(enlarge(image_map, (96, 96)), pixel, 9) for image_map in maps]
        n = int(row["false_alarms"])
        assert (scores[good] >= limit).sum() == n
        assert sum(found[k].any() for k in np.flatnonzero(good)) <= n
        assert int(row["missed_images"]) == (scores[~good] < limit).sum()
        missed = 0
        for k, mask in zip(np.flatnonzero(~good), masks):
            defects = label_regions(mask[None])[0]
            touched = set(np.unique(defects[found[k] > 0])) - {0}
            missed += int(defects.max()) - len(touched)
        assert (int(row["missed_defects"]), int(row["defects"])) == (missed, 5)
        assert (int(row["normal_images"]), int(row["defective_images"])) == (12, 5)
    assert (tmp_path / "out/calibration.svg").read_text().startswith("<svg")
    out = capsys.readouterr().out
    assert re.search(r"^\* +3/12 ", out, re.MULTILINE)

    stored, chosen = thresholds_in(saved), table[3]
    assert stored["image"]["threshold"] == float(chosen["image_threshold"])
    assert stored["pixel"]["threshold"] == float(chosen["pixel_threshold"])
    assert stored["min_area"] == 9 and stored["image"]["false_alarms"] == 0.25
    after = {p.name: p.read_bytes() for p in saved.iterdir() if p.name != "thresholds.json"}
    assert after == before


def test_folders_of_every_layout_are_calibrated_on(saved, parts, tmp_path):
    for folder, defects in ((parts, 5), (parts / "test", 5), (parts / "test/good", 0)):
        out = tmp_path / "out"
        assert run("--load", saved, "--calibrate", folder, "--out", out) == 0
        (row, *_) = rows(out / "calibration.csv")
        assert (int(row["normal_images"]), int(row["defects"])) == (12, defects)
    (parts / "ground_truth").rename(parts / "elsewhere")  # images count instead of defects
    assert run("--load", saved, "--calibrate", parts / "test", "--out", tmp_path / "out") == 0
    assert rows(tmp_path / "out/calibration.csv")[0]["defects"] == "5"


def test_the_promised_rate_holds_on_the_images_that_decided(saved, parts, tmp_path):
    for rate, allowed in ((0, 0), (0.2, 2)):
        argv = ["--load", saved, "--calibrate", parts / "test/good", "--false-alarms", rate]
        assert run(*argv, "--out", tmp_path / "c") == 0
        assert run("--load", saved, "--predict", parts / "test/good", "--out", tmp_path / "p") == 0
        table = rows(tmp_path / "p/predictions.csv")
        assert sum(row["verdict"] == "anomalous" for row in table) == allowed
        assert sum(int(row["regions"]) > 0 for row in table) <= allowed


def test_thresholds_area_and_roi_of_a_prediction(trained, saved, parts, tmp_path):
    maps, scores = trained.predict(CATEGORY.test[-5:])
    limit, pixel = float(np.median(scores)), float(np.quantile(maps, 0.98))
    roi = np.zeros((96, 96), bool)
    roi[:40, :70] = True
    (tmp_path / "roi.png").write_bytes(encode_png(roi))
    argv = ["--load", saved, "--predict", parts / "test/square", "--out", tmp_path / "out"]
    argv += ["--threshold", repr(limit), "--pixel-threshold", repr(pixel), "--pictures", "all"]
    for area, given in ((1, False), (30, False), (1, True), (30, True)):
        more = ["--roi", tmp_path / "roi.png"] if given else []
        assert run(*argv, "--min-area", area, *more) == 0
        trained.roi = roi if given else None
        expected = trained.predict(CATEGORY.test[-5:])[1]
        trained.roi = None
        for k, row in enumerate(rows(tmp_path / "out/predictions.csv")):
            assert float(row["score"]) == pytest.approx(expected[k], rel=1e-5)
            found = marks(enlarge(maps[k], (96, 96)), pixel, area, roi if given else None)
            assert int(row["anomalous_px"]) == pytest.approx((found > 0).sum(), abs=2)
            assert int(row["regions"]) == found.max()
            mask = decode_mask(tmp_path / f"out/pictures/{row['name']}_mask.png")
            assert mask.sum() == int(row["anomalous_px"])
            assert not given or not mask[~roi].any()
    assert thresholds_in(saved) is None  # nothing is stored


def test_a_location_outside_of_the_roi_does_not_count(trained, saved, parts, tmp_path):
    """The score with the roi is the mean over the locations that see it."""
    roi = np.zeros((96, 96), bool)
    roi[50:90, 2:8] = True  # in the lower left tile alone
    (tmp_path / "roi.png").write_bytes(encode_png(roi))
    assert locations_seen(trained.grid, roi).tolist() == [[False, False], [True, False]]
    images = trained.as_images(CATEGORY.test[:3])
    expected = np.empty(3)
    for location, part, _, scores in trained.each_location(None, images):
        if location == (1, 0):
            expected[part] = scores
    argv = ["--load", saved, "--calibrate", parts / "test/good", "--roi", tmp_path / "roi.png"]
    assert run(*argv, "--out", tmp_path / "c") == 0
    loaded = TiledEnsemble.load(saved, backbone=trained.backbone)
    np.testing.assert_array_equal(loaded.roi, roi)  # stored with the thresholds
    assert run("--load", saved, "--predict", parts / "test/good", "--out", tmp_path / "p") == 0
    found = [float(row["score"]) for row in rows(tmp_path / "p/predictions.csv")[:3]]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_verdict_and_marks_that_disagree_are_drawn_and_said(saved, parts, tmp_path):
    """A normal verdict with marks is drawn like an anomalous one."""
    argv = ["--load", saved, "--predict", parts / "test/square", "--out", tmp_path / "out"]
    assert run(*argv, "--threshold", 1e9, "--pixel-threshold", 0) == 0
    for row in rows(tmp_path / "out/predictions.csv"):
        assert row["verdict"] == "normal" and int(row["regions"]) == 1
        picture = Image.open(tmp_path / f"out/pictures/{row['name']}_contours.png")
        assert picture.width == 96 and picture.height > 96  # the caption
        shapes = json.loads((tmp_path / f"out/pictures/{row['name']}_regions.json").read_text())
        assert shapes["verdict"] == "normal" and len(shapes["regions"]) == 1


@pytest.mark.parametrize("argv, sentence", [
    (["--calibrate", "parts/none"], "does not exist; give a folder of normal images"),
    (["--calibrate", "parts/test/square", "--threshold", "1"], "--threshold cannot be combined with --cal"),
    (["--predict", "parts", "--calibrate", "parts"], "give --load DIR and exactly one of --pred"),
    (["--predict", "parts", "--false-alarms", "0.1"], "--false-alarms cannot be combined with --predict"),
    (["--calibrate", "parts/test/good", "--min-area", "9217"], "a mark of 9217 pixels does not fit"),
    (["--calibrate", "parts/test/good", "--roi", "roi.png"], "the region of interest is 5 x 5 px"),
    (["--calibrate", "parts/test/good", "--roi", "black.png"], "is all black"),
    (["--calibrate", "parts/test/good", "--false-alarms", "1"], "not a share of at least 0"),
])  # fmt: skip
def test_what_does_not_fit_is_one_sentence(saved, parts, tmp_path, capsys, monkeypatch, argv,
                                           sentence):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name, value in (("roi.png", True), ("black.png", False)):
        (tmp_path / name).write_bytes(encode_png(np.full((5, 5), value)))
    before = (saved / "thresholds.json").read_bytes()
    assert run("--load", saved, *argv) == 2
    err = capsys.readouterr().err
    assert sentence in err and err.count("\n") == 1
    assert (saved / "thresholds.json").read_bytes() == before
