"""A submission to the server of MVTec AD 2: its files, what is refused before, stops and scales."""

import functools
import hashlib
import itertools
import json
import os
import shutil
import struct
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from toys import Notes, only_mvtec2, write_mvtec2

from tiled_ref import cli
from tiled_ref.data import drawn_mvtec2
from tiled_ref.data.encoders import encode_png
from tiled_ref.ensemble import TiledEnsemble
from tiled_ref.serving import predict, submission
from tiled_ref.serving.outputs import PredictOptions
from tiled_ref.serving.submission import Submission
from tiled_ref.support.errors import InputError
from tiled_ref.verdicts.marks import enlarge

OFFICIAL = {
    "can": 321, "fabric": 314, "fruit_jelly": 255, "rice": 277, "sheet_metal": 142, "vial": 276,
    "wallplugs": 232, "walnuts": 228,
}  # fmt: skip
SMALL = {"can": 5, "rice": 3}
SIZES = {"can": (32, 32), "rice": (40, 56)}  # the latter larger than the setup, and not square
HOW = PredictOptions(threads=1)


def arguments(root, out, folder, *more):
    words = ["--dataset", "mvtec2", "--root", root, "--out", out, "--submission", folder, *more]
    words += ["--setup", "SM256", "--image-size", 32, "--padim-channels", 4, "--threads", 1]
    return [str(word) for word in (*words, "--weights", "random", "--device", "cpu", "--quiet")]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Two small objects, of which the data set then consists, and their submission."""
    base = tmp_path_factory.mktemp("submission")
    with pytest.MonkeyPatch.context() as patch:
        only_mvtec2(patch, SMALL)
        for name, n in SMALL.items():
            write_mvtec2(base / "root", name, n, SIZES[name])
        assert cli.main(arguments(base / "root", base / "out", base / "sub")) == 0
        yield base


@pytest.fixture(scope="module")
def load(tiny_backbone):
    """TiledEnsemble.load with the backbone that --weights random made."""
    return functools.partial(TiledEnsemble.load, backbone=tiny_backbone)


@pytest.fixture
def copy(done, tmp_path):
    """A copy of it all to spoil."""
    return shutil.copytree(done, tmp_path / "copy")


def read_map(path):
    """An uncompressed TIFF of one floating-point channel of 16 bits, by the tags of TIFF 6.0."""
    data, tags = path.read_bytes(), {}
    assert data[:4] == b"II*\0"
    (start,) = struct.unpack_from("<I", data, 4)
    for at in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", data, start)[0], 12):
        tag, kind, count = struct.unpack_from("<HHI", data, at)
        if kind in (3, 4):
            layout = f"<{count}{'HI'[kind - 3]}"
            far = struct.calcsize(layout) > 4
            at = struct.unpack_from("<I", data, at + 8)[0] if far else at + 8
            tags[tag] = struct.unpack_from(layout, data, at)
    assert [tags[tag] for tag in (258, 259, 339)] == [(16,), (1,), (3,)]
    assert tags.get(277, (1,)) == (1,)
    strips = b"".join(data[at : at + n] for at, n in zip(tags[273], tags[279]))
    return np.frombuffer(strips, "<f2").reshape(tags[257][0], tags[256][0])


def check_submission(folder, root, counts):
    """The rules of SPEC.md, section 11."""
    expected = {}
    for name, n in counts.items():
        for split, word in (("test_private", "regular"), ("test_private_mixed", "mixed")):
            for k in range(n):
                key = f"{name}/{split}/{k:03d}_{word}"
                expected[f"anomaly_images/{key}.tiff"] = root / f"{key}.png"
                expected[f"anomaly_images_thresholded/{key}.png"] = root / f"{key}.png"
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}
    assert files == expected.keys()
    for file, source in expected.items():
        width, height = Image.open(source).size
        if file.endswith(".tiff"):
            found = read_map(folder / file)
            assert found.dtype == np.float16 and np.isfinite(found).all()
        else:
            found = np.array(Image.open(folder / file))
            assert found.dtype == np.uint8 and {*np.unique(found).tolist()} <= {0, 255}
        assert found.shape == (height, width), file
    with tarfile.open(f"{folder}.tar.gz", "r:gz") as tar:
        names = [member.name for member in tar if member.isfile()]
        assert len(names) == len(tar.getmembers()) == len({*names})
        assert {*names} == {f"{folder.name}/{file}" for file in files} and names == sorted(names)
        for name in names[:: max(1, len(names) // 50)]:
            assert tar.extractfile(name).read() == (folder.parent / name).read_bytes()


def digests(base):
    """Path -> SHA-256 of all files of a submission, its archive and its record."""
    return {
        path.relative_to(base).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (*(base / "sub").rglob("*.*"), *base.glob("*sub.*"))
    }


def test_it_satisfies_the_rules_of_the_server(done):
    check_submission(done / "sub", done / "root", SMALL)


@pytest.mark.optional
def test_tifffile_reads_the_same_bits(done):
    """The reader of the server's checker."""
    tifffile = pytest.importorskip("tifffile")
    for path in (done / "sub").rglob("*.tiff"):
        found = tifffile.imread(path)
        assert found.dtype == np.float16 and found.ndim == 2
        assert (found.view(np.uint16) == read_map(path).view(np.uint16)).all()


@pytest.mark.exhaustive
def test_it_satisfies_the_rules_with_the_official_counts(done, tmp_path, monkeypatch):
    only_mvtec2(monkeypatch, OFFICIAL)
    drawn_mvtec2.write_objects(tmp_path / "root", side=32, counts=True)
    for path in sorted((tmp_path / "root/vial").rglob("*.png")):
        image = Image.open(path)
        image.resize((48, 20)).save(path)
    assert cli.main(arguments(tmp_path / "root", tmp_path / "out", tmp_path / "mine")) == 0
    check_submission(tmp_path / "mine", tmp_path / "root", OFFICIAL)


def ensembles(base):
    return {
        name: (base / "out/mvtec2" / name / "padim/SM-32/seed42/ensemble") for name in SMALL
    }


def test_the_files_are_the_maps_and_what_reaches_the_threshold(done, load):
    marked = 0
    for name, folder in ensembles(done).items():
        ensemble = load(folder)
        stored = json.loads((folder / "thresholds.json").read_text())["thresholds"]
        assert stored["mode"] == "folder" and stored["pixel"]["rule"] == "deviations"
        paths = sorted((done / "root" / name).glob("test_private*/*.png"))
        assert len(paths) == 2 * SMALL[name]
        maps, _ = ensemble.predict(paths)
        for path, image_map in zip(paths, maps):
            large = enlarge(image_map, SIZES[name])
            key = path.relative_to(done / "root").with_suffix("")
            kept = read_map(done / f"sub/anomaly_images/{key}.tiff")
            assert (kept.view(np.uint16) == large.astype(np.float16).view(np.uint16)).all()
            mask = np.array(Image.open(done / f"sub/anomaly_images_thresholded/{key}.png"))
            assert ((mask == 255) == (large >= np.float32(stored["pixel"]["threshold"]))).all()
            marked += (mask == 255).sum()
    assert marked


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--category", "can"], "all 2 objects, rice is missing; give --category all"),
        (["--setup", "SM256", "SM512"], "takes one ensemble per object, not 2; give one"),
        (["--seed", "1", "2"], "not 2; give one --setup, one --arch and one --seed"),
        (["--dataset", "synthetic"], "--submission is only for MVTec AD 2"),
        (["--validation", "same-as-test"], "whose thresholds come from validation/good"),
        (["--min-area", "3"], "--min-area cannot be combined with --submission"),
        (["--out", "SUB"], "--submission and --out name the same folder"),
        (["--submission", "/"], "give --submission a folder with a name"),
        (["--explain"], "--submission does not apply to --explain"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_the_training(
    done, tmp_path, capsys, more, words
):
    argv = arguments(done / "root", tmp_path / "out", tmp_path / "sub")
    argv += [str(tmp_path / "sub") if word == "SUB" else word for word in more]
    if more[0] == "--setup":
        del argv[argv.index("--setup") : argv.index("--setup") + 4]
    assert cli.main(argv) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert not list(tmp_path.glob("out/mvtec2")) and not list(tmp_path.glob("sub/*"))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("root/rice", "all 2 objects, rice is missing"),
        ("root/rice/test_private_mixed", "rice/test_private_mixed does not exist"),
        ("root/rice/test_private/002_regular.png", "002_regular.png is missing (1 such image of 3"),
        ("root/can/validation/good", "can/validation/good does not exist"),
    ],
)
def test_what_is_missing_is_named_before_the_training(copy, capsys, path, words):
    target = copy / path
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    before = digests(copy)
    assert cli.main(arguments(copy / "root", copy / "new", copy / "sub", "--resume")) == 2
    assert words in capsys.readouterr().err
    assert digests(copy) == before and not (copy / "new/mvtec2").exists()


def test_an_image_or_a_threshold_that_goes_later_is_named_before_anything_is_packed(
    copy, load
):
    made = Submission(copy / "sub", copy / "root", SMALL)
    cells = {name: (folder, "0" * 64) for name, folder in ensembles(copy).items()}
    before = digests(copy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(submission, "read_manifest", lambda _: SimpleNamespace(thresholds=None))
        with pytest.raises(InputError, match="can/.*has no pixel threshold; set one with"):
            made.write(cells, load, HOW, Notes())
    assert digests(copy) == before
    gone = copy / "sub/anomaly_images/can/test_private/003_regular.tiff"
    gone.unlink()
    with pytest.raises(InputError, match="003_regular.tiff is missing; rewrite it with --resume"):
        made._pack()
    shutil.copy(gone.with_name("002_regular.tiff"), gone)
    with pytest.raises(InputError, match="003_regular.tiff was changed; rewrite it with --resume"):
        made._pack()
    (copy / "sub/notes.txt").write_text("mine")
    with pytest.raises(InputError, match="sub/notes.txt does not belong to a submission"):
        made._pack()
    assert digests(copy)["sub.tar.gz"] == before["sub.tar.gz"]


@pytest.mark.parametrize(
    "path",
    ["notes.txt", "anomaly_images/can/test_private/005_regular.tiff", "anomaly_images/.hidden",
     "anomaly_images/can/test_private/000_regular.tif", "anomaly_images/extra/", "results/",
     "anomaly_images/can/test_private/000_regular.png"],
)  # fmt: skip
def test_files_that_do_not_belong_there_are_named_and_stay(copy, capsys, path):
    extra = copy / "sub" / path
    extra.mkdir() if path.endswith("/") else extra.write_text("mine")
    before = digests(copy)
    assert cli.main(arguments(copy / "root", copy / "new", copy / "sub", "--resume")) == 2
    assert f"{extra} does not belong to a submission" in capsys.readouterr().err
    assert digests(copy) == before and extra.exists()


def test_a_link_in_the_place_of_a_file_is_refused(copy):
    path = copy / "sub/anomaly_images/can/test_private/000_regular.tiff"
    path.rename(copy / "elsewhere.tiff")
    path.symlink_to(copy / "elsewhere.tiff")
    with pytest.raises(InputError, match="000_regular.tiff does not belong to a submission"):
        Submission(copy / "sub", copy / "root", SMALL)


def test_a_submission_of_nobody_is_refused(copy):
    record = copy / "sub.json"
    record.rename(copy / "kept")
    for kept in ("sub.tar.gz", "sub"):  # the files alone, then the archive alone
        (copy / kept).rename(copy / "aside")
        with pytest.raises(InputError, match="sub lacks its sub.json; move it away"):
            Submission(copy / "sub", copy / "root", SMALL)
        if kept == "sub":  # an empty one was made
            (copy / "sub").rmdir()
        (copy / "aside").rename(copy / kept)
    for text in ("{}", "[", '{"format": "mine", "objects": {}}'):
        record.write_text(text)
        with pytest.raises(InputError, match="sub.json is damaged or was not written by this"):
            Submission(copy / "sub", copy / "root", SMALL)


# -------------------------------------------------------------------------- stops and --resume


def test_a_finished_one_is_packed_again_without_a_prediction(copy, monkeypatch):
    before = digests(copy)
    monkeypatch.setattr(submission, "rows_of", None)
    assert cli.main(arguments(copy / "root", copy / "out", copy / "sub", "--resume")) == 0
    assert digests(copy) == before


def test_stopped_at_any_write_and_resumed_it_has_the_bits_of_one_without_a_stop(
    copy, load, monkeypatch
):
    """Whatever was there before: nothing, or files of another ensemble."""
    cells = {
        name: (folder, json.loads((folder.parent / "metrics.json").read_text())["identity"])
        for name, folder in ensembles(copy).items()
    }
    loaded = {folder: load(folder) for folder, _ in cells.values()}
    monkeypatch.setattr(predict.Predictor, "batch", 4)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    write, expected, n_stops = submission.atomic_write, digests(copy), 0
    for stop in itertools.count(1, 5):
        if stop % 2:
            for path in (copy / "sub.json", copy / "sub.tar.gz"):
                path.unlink(missing_ok=True)
            shutil.rmtree(copy / "sub")
        else:
            record = json.loads((copy / "sub.json").read_text())
            record["objects"]["can"]["identity"] = "0" * 64
            (copy / "sub.json").write_text(json.dumps(record))
        count = itertools.count(1)

        def stopping(*words, count=count, stop=stop):
            if next(count) == stop:
                raise KeyboardInterrupt
            return write(*words)

        monkeypatch.setattr(submission, "atomic_write", stopping)
        try:
            made = Submission(copy / "sub", copy / "root", SMALL)
            made.write(cells, loaded.get, HOW, Notes(), resume=stop % 2 == 0)
        except KeyboardInterrupt:
            n_stops += 1
        else:
            break
        monkeypatch.setattr(submission, "atomic_write", write)
        (copy / "sub/anomaly_images/can/test_private").mkdir(parents=True, exist_ok=True)
        for path in ("sub/anomaly_images/can/test_private/.000_regular.tiff.{}.tmp",
                     ".sub.tar.gz.{}.tmp"):  # fmt: skip
            (copy / path.format(os.getpid())).write_text("half")
        made = Submission(copy / "sub", copy / "root", SMALL)
        made.write(cells, loaded.get, HOW, Notes(), resume=True)
        assert digests(copy) == expected, stop
    assert n_stops >= 5


def test_files_of_another_ensemble_or_threshold_and_changed_ones_are_made_anew(copy, load):
    """Each alone: the identity, the threshold, a file's content, an image."""
    expected, record = digests(copy), json.loads((copy / "sub.json").read_text())
    loads = []

    def loading(folder):
        loads.append(folder.parts[-5])
        return load(folder)

    def resumed(resume=True):
        cells = {
            name: (folder, record["objects"][name]["identity"])
            for name, folder in ensembles(copy).items()
        }
        made = Submission(copy / "sub", copy / "root", SMALL)
        loads.clear()
        made.write(cells, loading, HOW, Notes(), resume)
        return list(loads)

    assert resumed() == []
    assert resumed(False) == ["can", "rice"] and digests(copy) == expected  # without --resume

    made = Submission(copy / "sub", copy / "root", SMALL)
    with pytest.raises(ZeroDivisionError):  # before the first image
        made.write({"can": (ensembles(copy)["can"], "0" * 64)}, lambda _: 1 / 0, HOW, Notes(), True)
    left = {path.parts[-3] for path in (copy / "sub").rglob("*.*")}
    assert left == {"rice"} and resumed() == ["can"] and digests(copy) == expected
    for key, value in (("identity", "0" * 64), ("threshold", 1.0)):
        other = json.loads(json.dumps(record))
        other["objects"]["rice"][key] = value
        (copy / "sub.json").write_text(json.dumps(other))
        assert resumed() == ["rice"] and digests(copy) == expected
    path = copy / "sub/anomaly_images_thresholded/can/test_private/001_regular.png"
    path.write_bytes(bytes(path.stat().st_size))
    assert resumed() == ["can"] and digests(copy) == expected
    image = copy / "root/can/test_private/001_regular.png"
    image.write_bytes(encode_png(np.zeros((32, 32, 3), np.uint8)))
    assert resumed() == ["can"] and digests(copy) != expected


# ------------------------------------------------------------------------------------- scales


def scaled_run(copy, load, monkeypatch, factors):
    """Notes of a submission whose k-th map of rice is multiplied by 2^factors[k], and its maps."""
    folder = ensembles(copy)["rice"]
    stored = json.loads((folder / "thresholds.json").read_text())["thresholds"]
    for key in ("threshold", "minimum", "maximum"):
        stored["pixel"][key] *= 2.0 ** factors[0]
    monkeypatch.setattr(submission, "read_manifest", lambda _: SimpleNamespace(thresholds=stored))
    genuine = predict.rows_of

    def rows_of(predictor, groups):
        for k, (sample, image_map, *more) in enumerate(genuine(predictor, groups)):
            yield sample, np.ldexp(image_map, factors[k]).astype(np.float32), *more

    monkeypatch.setattr(submission, "rows_of", rows_of)
    made, notes = Submission(copy / "sub", copy / "root", SMALL), Notes()
    made.record = {}
    monkeypatch.setattr(made, "_pack", lambda: None)
    made.write({"rice": (folder, "0" * 64)}, load, HOW, notes)
    files = sorted((copy / "sub/anomaly_images/rice").rglob("*.tiff"))
    masks = sorted((copy / "sub/anomaly_images_thresholded/rice").rglob("*.png"))
    return (
        [note for note in notes.notes if "scaled by 2^" in note],
        np.stack([read_map(path) for path in files]).astype(np.float64),
        np.stack([np.array(Image.open(path)) for path in masks]),
    )


@pytest.mark.parametrize("factors", [(20,) * 6, (-30,) * 6, (0, 0, 0, 0, 18, 0)])
def test_maps_beyond_float16_are_rescaled_by_one_power_of_two_and_it_is_said(
    copy, load, monkeypatch, factors
):
    """Too large, too small, and one that does not fit after four that did."""
    _, plain, masks = scaled_run(copy, load, monkeypatch, (0,) * 6)
    notes, maps, found = scaled_run(copy, load, monkeypatch, factors)
    exponent = int(notes[-1].partition("2^")[2].partition(" ")[0])
    assert len(notes) == 1 and notes[0].startswith("rice: maps are scaled by 2^")
    assert maps.max() < 65504 and maps.max() > 2**6
    for k, factor in enumerate(factors):
        assert np.allclose(maps[k], plain[k] * 2.0 ** (factor + exponent), rtol=1e-3, atol=0)
        if factor == factors[0]:
            assert (found[k] == masks[k]).all()  # of maps that were not rescaled


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_map_that_is_not_finite_names_its_image(copy, load, monkeypatch, value):
    genuine = predict.rows_of

    def rows_of(predictor, groups):
        for k, (sample, image_map, *more) in enumerate(genuine(predictor, groups)):
            yield sample, image_map + np.float32(value * (k == 2)), *more

    monkeypatch.setattr(submission, "rows_of", rows_of)
    made = Submission(copy / "sub", copy / "root", SMALL)
    cells = {name: (folder, "0" * 64) for name, folder in ensembles(copy).items()}
    with pytest.raises(InputError, match="map of .*can/test_private/.*regular.png is not finite"):
        made.write(cells, load, HOW, Notes())


# --------------------------------------------------------------------------------- the estimate


def test_the_estimate_counts_the_private_images(done, tmp_path, capsys):
    argv = [word for word in arguments(done / "root", tmp_path, tmp_path / "sub")
            if word != "--quiet"]  # fmt: skip
    assert cli.main([*argv, "--estimate"]) == 0
    assert "writes at most" in capsys.readouterr().out
    made = Submission(tmp_path / "sub", done / "root", SMALL)
    ((folder, n_bytes),) = made.needs()
    written = sum(p.stat().st_size for p in (done / "sub").rglob("*.*"))
    assert folder == tmp_path and written <= n_bytes <= 2 * 16 * (2.1 * 40 * 56 + 2000)
    category = SimpleNamespace(name="can", test=(0,) * 4)
    cell = SimpleNamespace(costs={"predict all": {None: ("key", 8.0)}}, work={"key": 1.0})
    part = SimpleNamespace(category=category, cells=[cell], work={"decode": 0.0})
    made.add_work([part])
    assert cell.work == {"key": 1.0 + 8.0 * 10 / 4} and part.work["decode"] > 0
