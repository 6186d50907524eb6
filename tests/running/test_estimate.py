"""The plan of a run, before its first image: bytes exact, the disk large enough, sizes agreed."""

import io
import itertools
import json
import math
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made_up import small
from toys import toy_category, toy_images, write_category

from tiled_ref import cli
from tiled_ref.archive import tensors
from tiled_ref.data import disk
from tiled_ref.ensemble import TiledEnsemble
from tiled_ref.models import MODELS
from tiled_ref.running import estimate, sweep
from tiled_ref.running.cell import Options
from tiled_ref.running.estimate import category_estimate, disk_needs, plan_rows
from tiled_ref.setups import SETUPS, Recipe
from tiled_ref.support.errors import InputError
from tiled_ref.support.progress import Progress

SIZES = {"SM256": ((72, 56),), "ST9": ((72, 64), (32, 32)), "ENS4": ((70, 56), (40, 32))}
STEPS = {arch: {"steps": 1} for arch in ("fastflow", "reverse_distillation")}
SMALL = ["--image-size", "64", "--tile-size", "32", "--weights", "random", "--device", "cpu"]


def recipe_of(arch, name, **switches):
    setup = SETUPS[name].with_sizes(*SIZES[name])
    return Recipe(setup, arch, switches=STEPS.get(arch, {}) | switches)


def of_files(folder):
    """Bytes of the states in the folder of an ensemble."""
    return sum(path.stat().st_size for path in Path(folder).glob("location_*.npz"))


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("arch, switches", [
    *((arch, {}) for arch in MODELS), ("padim", {"n_channels": 7}),
    ("padim", {"store": "float16"}), ("padim", {"n_channels": 7, "store": "float16"}),
    ("patchcore", {"ratio": 0.3}),
    ("fastflow", {"kernels": "alternating"}),
])  # fmt: skip
def test_bytes_are_those_on_the_disk(tiny_backbone, tmp_path, arch, switches, name):
    recipe = recipe_of(arch, name, **switches)
    (cell,) = category_estimate(
        toy_category(n_train=5), [recipe], tiny_backbone, Options(), False
    ).cells
    images = toy_images(5, side=72)[..., : recipe.setup.image_size[0], : recipe.setup.image_size[1]]
    TiledEnsemble(recipe, backbone=tiny_backbone).fit(images).save(tmp_path / "e")
    assert cell.saved == of_files(tmp_path / "e") > 0


@pytest.mark.parametrize("limit, count", [(zipfile.ZIP64_LIMIT, 65535), (500, 65535), (10**9, 1)])
def test_bytes_of_a_file_are_exact_beyond_the_limits_of_zip_as_well(
    tmp_path, monkeypatch, limit, count
):
    """The limits stand for 2 GiB of one tensor, of all, and 65,535 of them."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", count)
    state = {
        "small": np.zeros(3, np.float32), "scalar": torch.tensor(5), "large": np.ones((30, 10)),
        "a.longer.name": np.zeros((2, 0, 3), bool), "last": np.zeros((1, 3), np.uint8),
    }  # fmt: skip
    tensors.write_tensors(tmp_path / "x.npz", state)
    wanted = {k: (str(np.asarray(v).dtype), np.shape(v)) for k, v in state.items()}
    assert tensors.file_bytes(wanted) == (tmp_path / "x.npz").stat().st_size


def test_an_architecture_that_is_not_known_counts_its_numbers(tiny_backbone, monkeypatch):
    class Other(MODELS["padim"]):
        pass

    monkeypatch.setitem(MODELS, "other", Other)
    monkeypatch.setattr("tiled_ref.archive.ensembles.MODELS", MODELS)
    recipe = recipe_of("other", "ENS4")
    (cell,) = category_estimate(small("a"), [recipe], tiny_backbone, Options(), False).cells
    assert cell.saved == 4 * 4 * recipe.model(tiny_backbone, "cpu").n_learnt(5)
    assert sum(cell.work.values()) > 0


def test_the_plan_is_a_dozen_lines_however_many_cells_there_are(tiny_backbone):
    many = [Recipe(SETUPS[name], arch, seed, switches=STEPS.get(arch))
            for arch in ("padim", "patchcore") for name in SETUPS for seed in (1, 2)]  # fmt: skip
    parts = [category_estimate(small(c), many, None, Options(), False) for c in "ab"]
    heading, *rows = plan_rows(parts)
    assert [row[:3] for row in rows] == [[a, "6 setups", "68"] for a in ("padim", "patchcore")]
    one = [recipe for recipe in many if recipe.setup.name == "ENS9"][:2]
    heading, *rows = plan_rows([category_estimate(small("a"), one, None, Options(), False)])
    state = 4096 * (100 + 5050) * 4  # a location's numbers
    assert heading[2:] == ["models", "memory", "bytes with --save"]
    assert len(rows) == 1 and rows[0][:3] == ["padim", "ENS9", "18"]
    assert 0 < int(rows[0][4].replace(",", "")) - 18 * state < 18 * 4096


def watched(monkeypatch, out):
    """[the most bytes that were ever below OUT], looked at whenever something is counted."""
    most, count = [0], Progress.count

    def counted(self, *parts):
        paths = [path for path in Path(out).rglob("*") if path.is_file()]
        most[0] = max(most[0], sum(path.stat().st_size for path in paths))
        count(self, *parts)

    monkeypatch.setattr(Progress, "count", counted)
    return most


@pytest.mark.parametrize("flags, slow", [  # slow, seconds from which on a state is written
    ((), 0.0), (("--save",), 5.0), (("--save", "--memory", "resident"), 0.0),
])  # fmt: skip
def test_a_run_never_writes_more_than_its_plan_says(tmp_path, monkeypatch, flags, slow):
    monkeypatch.setattr("tiled_ref.running.pieces.WRITE_SECONDS", slow)
    monkeypatch.setattr(estimate, "SMALL", 4096)
    write_category(tmp_path / "parts", toy_category(side=64), "{}", "train")
    most, needs = watched(monkeypatch, tmp_path / "out"), []
    found = cli.check_disk
    monkeypatch.setattr(cli, "check_disk", lambda given: needs.extend(given) or found(given))
    argv = ["--dataset", "folder", "--root", tmp_path / "parts", "--out", tmp_path / "out",
            "--setup", "ENS4", "ENS9", *SMALL, *flags]  # fmt: skip
    assert cli.main(list(map(str, argv))) == 0
    assert most[0] <= needs[0][1]
    if flags:  # without, a state goes before anybody looks
        assert 0.6 * needs[0][1] < most[0]


@pytest.fixture
def parts(tmp_path):
    write_category(tmp_path / "parts", toy_category(n_train=3, side=64), "{}", "train")
    return ["--dataset", "folder", "--root", str(tmp_path / "parts"), "--out",
            str(tmp_path / "out"), "--setup", "ENS4", *SMALL]  # fmt: skip


def full(monkeypatch, free):
    usage = SimpleNamespace(total=10**12, used=0, free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


def test_too_little_disk_is_refused_before_the_first_image(parts, monkeypatch, capsys):
    read = []
    monkeypatch.setattr(disk, "decode_image", lambda path: read.append(path))
    full(monkeypatch, 200_000)
    for more in [], ["--save"], ["--estimate"]:
        estimating = "--estimate" in more
        if estimating:
            monkeypatch.undo()
            full(monkeypatch, 200_000)
        assert cli.main([*parts, *more]) == 2
        out, err = capsys.readouterr()
        said = err.strip().splitlines()[-1]
        assert said.startswith("tiled-ref: error: the run writes up to ") and not read
        assert "of which 200,000 are free" in said and "make room" in said
        assert "padim" in (out if estimating else err)
    full(monkeypatch, 1 << 40)
    assert cli.main(parts) == 0


def test_what_is_on_the_disk_already_is_not_needed_again(parts, monkeypatch, capsys, tmp_path):
    """A finished cell of a resumed run, and the pieces of an unfinished one."""
    assert cli.main([*parts, "--save"]) == 0
    full(monkeypatch, 100_000)
    assert cli.main([*parts, "--save", "--resume"]) == 0
    ensemble = next(Path(tmp_path, "out").glob("*/*/*/*/seed*/ensemble"))
    ensemble.rename(tmp_path / "aside")
    assert cli.main([*parts, "--save", "--resume"]) == 2  # it would be computed again
    (tmp_path / "aside").rename(ensemble)
    assert cli.main([*parts, "--save"]) == 2
    (cell,) = Path(tmp_path, "out").glob("*/*/*/*/seed*")
    (cell / "partial").mkdir()
    (cell / "partial" / "maps_0_0.npy").write_bytes(bytes(2_000_000))
    capsys.readouterr()
    category = toy_category(n_train=3, side=64)
    recipe = Recipe(SETUPS["ENS4"].with_sizes((64, 64), (32, 32)))
    options = Options(out=Path(tmp_path, "out"))
    part = category_estimate(category, [recipe], None, options, False)
    folder = estimate.cell_folder(options.out, category, recipe)
    before = disk_needs([part], options)[0][1]
    (folder / "partial").mkdir(parents=True)
    (folder / "partial" / "x").write_bytes(bytes(1000))
    assert before - disk_needs([part], options)[0][1] == 1000


@pytest.mark.parametrize("disks", [*itertools.product((1, 2, 3), repeat=3)])
def test_the_last_disk_is_that_of_the_temporary_folder(tmp_path, monkeypatch, disks):
    """Whatever lies on one disk: what else is written, OUT and TMPDIR."""
    places = dict(zip(("more", str(tmp_path), estimate.tempfile.gettempdir()), disks))
    part = SimpleNamespace(cells=[], temporary=4)
    fake = SimpleNamespace(stat=lambda path: SimpleNamespace(st_dev=places[str(path)]))
    monkeypatch.setattr(estimate, "os", fake)
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    needs = disk_needs([part], Options(out=tmp_path), [("more", 10)])
    assert [places[str(folder)] for folder, *_ in needs][-1] == disks[2]
    more, _, temporary = disks
    assert {places[str(folder)]: n for folder, n, _ in needs} == {
        disk: 10 * (disk == more) + 4 * (disk == temporary) for disk in {*disks}
    }
    assert estimate.check_disk(needs) == 96 - 10 * (more == temporary)


def test_what_does_not_fit_into_memory_needs_the_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(estimate, "IMAGE_BUDGET", 3 * 64 * 64 * 5)
    monkeypatch.setattr(estimate, "FEATURE_BUDGET", 28 * 64 * 64 * 5)
    category, options = toy_category(n_train=6, n_good=1, n_bad=1), Options(out=tmp_path)
    setup = SETUPS["SM256"].with_sizes((64, 64))
    for arch, features in (("padim", 0), ("fastflow", 28 * 64 * 64 * 6)):
        recipe = Recipe(setup, arch, switches=STEPS.get(arch))
        part = category_estimate(category, [recipe], None, options, False)
        assert part.temporary == 3 * 64 * 64 * 6  # the training images alone
        assert part.cells[0].temporary == features
        (_, need, _), *other = disk_needs([part], options)
        temporary = other[0][1] if other else need - part.cells[0].pieces
        assert temporary == part.temporary + features


def test_shared_layers_leave_what_the_run_needs(parts, monkeypatch, capsys):
    """TMPDIR on the disk of OUT: half of the free space would be too much."""
    kept = []
    init = sweep.SharedLayers.__init__
    monkeypatch.setattr(
        sweep.SharedLayers, "__init__",
        lambda self, network, budget, note: kept.append(budget) or init(self, network, budget, note)
    )  # fmt: skip
    needs = []
    found = cli.check_disk
    monkeypatch.setattr(cli, "check_disk", lambda given: needs.extend(given) or found(given))
    full(monkeypatch, 2_400_000)
    assert cli.main([*parts, "--seed", "1", "2"]) == 0
    assert 1_200_000 < needs[0][1] < 2_400_000 and kept == [2_400_000 - needs[0][1]]


def test_the_time_is_that_of_one_location_times_all(tiny_backbone, monkeypatch):
    """A clock that only training and prediction move: 7 s to fit, 2 s for the prediction of 5
    images, so four locations of 5 images, and 8 test images, take 4 * (7 + 2 * 8 / 5) seconds."""
    now = [0.0]
    clock = SimpleNamespace(perf_counter=lambda: now[0], monotonic=lambda: now[0])
    monkeypatch.setattr(estimate, "time", clock)
    monkeypatch.setattr("tiled_ref.support.progress.time", clock)
    kind = MODELS["patchcore"]
    fit, predict = kind.fit, kind.predict

    def fitted(self, images, progress):
        fit(self, images)
        now[0] += 5.0
        progress(5, 5)
        now[0] += 2.0
        progress(9, 9, "coreset")

    def predicted(self, images):
        now[0] += 2.0 * len(images) / 5
        return predict(self, images)

    monkeypatch.setattr(kind, "fit", fitted)
    monkeypatch.setattr(kind, "predict", predicted)
    recipe = recipe_of("patchcore", "ENS4")
    part = category_estimate(toy_category(5, 4, 4), [recipe], tiny_backbone, Options(), False)
    times = estimate.measured([part], tiny_backbone, Options())
    work = part.cells[0].work
    times.todo = {key: value for key, value in work.items() if key[2] in ("fit", "predict")}
    assert times.left() == pytest.approx(4 * (7 + 2 * 8 / 5))
    assert 40.8 <= float(plan_rows([part], times)[1][-1].removesuffix(" s")) < 42  # and merging


def test_estimate_prints_the_plan_and_runs_nothing(parts, capsys, tmp_path):
    assert cli.main([*parts, "--estimate", "--arch", "padim", "patchcore", "--quiet"]) == 0
    out, _ = capsys.readouterr()
    heading, _, padim, patchcore, last = out.splitlines()
    assert heading.split()[-1] == "time" and padim.split()[:3] == ["padim", "ENS-64-32-32", "4"]
    assert patchcore.split()[0] == "patchcore" and last.startswith("the run takes about ")
    assert not list(Path(tmp_path, "out").rglob("*.*"))
    assert cli.main([*parts, "--arch", "padim"]) == 0
    err = capsys.readouterr().err.splitlines()
    assert err.index(next(line for line in err if line.startswith("padim  ENS-64"))) < err.index(
        next(line for line in err if "decode train" in line)
    )
    assert "time" not in next(line for line in err if line.startswith("arch"))


# ----------------------------------------------------------------------- --image-size native


def written(root, **sides):
    """Categories of pictures of these sides."""
    for name, side in sides.items():
        write_category(root / name, toy_category(3, 2, 2, side=side), "{}", "train")
    return ["--dataset", "folder", "--root", str(root), "--out", str(root.parent / "out"),
            *SMALL[2:4], *SMALL[4:], "--image-size", "native"]  # fmt: skip


def test_every_category_has_the_size_of_its_images(tmp_path, capsys):
    argv = written(tmp_path / "parts", large=56, small=48)
    assert cli.main([*argv, "--setup", "ENS4", "--stride", "20", "--quiet"]) == 0
    found = {}
    for path in (tmp_path / "out").rglob("metrics.json"):
        result = json.loads(path.read_text())
        found[result["category"]] = result["image_size"], result["tile_size"], result["stride"]
    assert found == {
        "large": ([56, 56], [32, 32], [20, 20]), "small": ([48, 48], [32, 32], [20, 20]),
    }  # fmt: skip


def test_single_models_are_one_at_the_images_size(tmp_path, capsys):
    argv = [word for word in written(tmp_path / "parts", a=48) if word not in ("--tile-size", "32")]
    assert cli.main([*argv, "--setup", "SM256", "SM512", "--quiet"]) == 0
    assert [p.parts[-3] for p in (tmp_path / "out").rglob("metrics.json")] == ["SM-48"]
    assert cli.main([*argv, "--setup", "ENS4", "--tile-size", "64"]) == 2
    assert "larger than the image's 48 px" in capsys.readouterr().err
    assert cli.main([*argv, "--setup", "SM256", "--explain", "--quiet"]) == 0


@pytest.mark.parametrize("split", ["train", "test/good", "test/square"])
def test_sizes_that_differ_are_listed(tmp_path, capsys, split):
    from PIL import Image

    argv = written(tmp_path / "parts", a=48, b=48)
    name = sorted((tmp_path / "parts" / "b" / split).iterdir())[-1]
    Image.new("RGB", (56, 40)).save(name)
    if split == "test/square":
        mask = tmp_path / "parts/b/ground_truth/square" / f"{name.stem}_mask.png"
        Image.new("L", (56, 40), 255).save(mask)
    assert cli.main([*argv, "--setup", "ENS4"]) == 2
    err = capsys.readouterr().err
    assert (
        "--image-size native needs images of one size, and those of b have 2: 48x48 (6 images, "
        f"such as test/good/0.png), 40x56 (1 image, such as {split}/{name.name}); crop or" in err
    )
    assert (tmp_path / "out/folder/a").exists() and not list((tmp_path / "out").rglob("b/*/*/*/m*"))


def test_a_category_whose_first_image_is_damaged_is_told_and_the_others_go_on(tmp_path, capsys):
    argv = written(tmp_path / "parts", a=48, b=48)
    first = sorted((tmp_path / "parts/a/train").iterdir())[0]
    first.write_bytes(first.read_bytes()[:60])
    assert cli.main([*argv, "--setup", "ENS4"]) == 2
    err = capsys.readouterr().err
    assert "tiled-ref: error: folder a: the image" in err and "cells: 2/2 done" in err
    assert len(list((tmp_path / "out").rglob("metrics.json"))) == 1


def test_the_estimate_of_what_cannot_be_run_is_its_error(tmp_path, capsys):
    argv = written(tmp_path / "parts", a=48)
    assert cli.main([*argv, "--setup", "ENS4", "--tile-size", "64", "--estimate"]) == 2
    assert "larger than the image's 48 px" in capsys.readouterr().err


def test_a_plan_of_images_at_their_size_reads_one_of_each_category(tmp_path, monkeypatch):
    written(tmp_path / "parts", a=48)
    read, decode = [], disk.decode_image
    monkeypatch.setattr(disk, "decode_image", lambda path: read.append(path) or decode(path))
    from tiled_ref.data import folder

    category = folder.load(tmp_path / "parts", "a")
    plan = [sweep.Planned("folder", "a", lambda: category)]
    options = Options(native=True, out=tmp_path)
    recipes = [Recipe(SETUPS["SM256"])]
    whole = sweep.Sweep(plan, recipes, None, options, Progress(stream=io.StringIO()))
    assert whole.estimates[0].cells[0].recipe.setup.image_size == (48, 48)
    assert len(read) == 1 and math.prod(whole.estimates[0].cells[0].recipe.grid.tile_size) == 2304
    with pytest.raises(InputError):
        sweep.Sweep(
            [sweep.Planned("folder", "z", lambda: folder.load(tmp_path / "parts", "z"))],
            recipes, None, options, Progress(stream=io.StringIO()),
        ).estimate(sweep.Planned("folder", "z", lambda: folder.load(tmp_path / "parts", "z")))
