"""What the metrics do not see: vanished defects, empty masks, images of two uses."""

import csv
import json
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
from PIL import Image
from toys import Notes, ToySample, toy_category

from tiled_ref import cli
from tiled_ref.data import Category, reading
from tiled_ref.data.disk import FileSample
from tiled_ref.reporting.page import write_report
from tiled_ref.running import category_images
from tiled_ref.running.category_images import LOST, CategoryImages
from tiled_ref.running.cell import Options, run_cell
from tiled_ref.running.results import write_results_csv
from tiled_ref.setups import Recipe, Setup
from tiled_ref.support.errors import InputError
from tiled_ref.support.progress import Progress

SIZE = (8, 8)  # the masks below have 16 x 16 px, so pixels of odd rows or columns vanish
SETUP = Setup("SM-48", "SM", (48, 48), (48, 48), (48, 48))
COUNTS = (
    "n_masks", "n_masks_empty", "n_defects", "n_defects_vanished", "n_test_in_train", "n_test_all",
    "n_without_verdict",
)  # fmt: skip
SAID = {field: kind for field, (_, kind) in LOST.items()}
KEPT, GONE, EMPTY = [(4, 6)], [(5, 7)], []  # pixels of masks


def noise(seed, shape=(12, 16, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@dataclass(frozen=True)
class MaskSample(ToySample):
    """A toy of 16 x 16 px whose mask has these pixels."""

    pixels: tuple = ()

    def read_image(self):
        return noise(self.seed, (16, 16, 3))

    def read_mask(self):
        mask = np.zeros((16, 16), bool)
        for pixel in self.pixels:
            mask[pixel] = True
        return mask if self.label else None


def of_masks(*masks, n_good=2):
    """A Category with a defective test image for each list of pixels."""
    toys = toy_category(n_train=4, n_good=n_good, n_bad=0, side=16)
    bad = [
        MaskSample(f"test/bent/{k}.png", 1, "bent", 300 + k, 16, tuple(pixels))
        for k, pixels in enumerate(masks)
    ]
    return replace(toys, test=(*toys.test, *bad))


def counted(category, size=SIZE, **options):
    """(the values of COUNTS, notes) of a category whose images have been read."""
    progress = Notes()
    images = CategoryImages(category, Options(**options), progress)
    for split in ("test", "train"):
        images.images(split, size)
    counts = images.counts(size)
    assert tuple(counts) == COUNTS and images.counts(size) == counts
    assert json.loads(json.dumps(counts)) == counts
    return tuple(counts.values()), progress.notes


# -------------------------------------------------------------------------- defects, masks


@pytest.mark.parametrize("budget", [1 << 30, 0], ids=["in memory", "one by one"])
@pytest.mark.parametrize("impl", ["cython", "numpy"])
def test_defects_without_a_pixel_in_the_resized_mask_are_counted(monkeypatch, budget, impl):
    """By hand. Diagonal neighbours are one defect, which one sampled pixel keeps."""
    monkeypatch.setattr(category_images, "MASK_BUDGET", budget)
    one_kept = [(2, 2), (3, 3), (3, 8), (3, 9)]  # one defect with a sampled pixel, one without
    category = of_masks(KEPT, GONE, one_kept, KEPT + GONE)
    assert counted(category, impl=impl)[0] == (4, 0, 5, 2, 0, 6, 0)
    category = of_masks(KEPT, GONE + [(9, 9)], KEPT + [(0, 15)])
    got, notes = counted(category, impl=impl)
    assert got == (3, 0, 5, 3, 0, 5, 0)
    assert notes == [f"toy: {SAID['n_defects_vanished']}: 3 of 5 (at 8x8)"]


def test_masks_read_before_are_counted_too():
    images = CategoryImages(of_masks(KEPT, GONE), Options(), Progress(quiet=True))
    assert images.masks(SIZE).sum() == 1
    assert sorted(images.defects(SIZE).values()) == [(1, 0), (1, 1)]
    assert images.masks(SIZE).sum() == 1


def test_every_pixel_of_a_mask_may_be_a_defect():
    everything = [(row, col) for row in range(16) for col in range(16)]
    assert counted(of_masks(everything))[0] == (1, 0, 1, 0, 0, 3, 0)


def test_at_the_original_size_and_at_a_larger_one_nothing_vanishes():
    masks = KEPT, GONE, GONE
    assert counted(of_masks(*masks))[0][2:4] == (3, 2)
    assert counted(of_masks(*masks), metric_size="original") == ((3, 0, 3, 0, 0, 5, 0), [])
    assert counted(of_masks(*masks), size=(16, 24)) == ((3, 0, 3, 0, 0, 5, 0), [])


@pytest.mark.parametrize("n", [1, 3, 5])
def test_empty_masks_are_named(n):
    got, (note,) = counted(of_masks(KEPT, *[EMPTY] * n))
    assert got == (1 + n, n, 1, 0, 0, 3 + n, 0)
    names = [f"test/bent/{k}.png" for k in range(1, 1 + n)]
    named = ", ".join(names[:3] + ["..."] * (n > 3))
    assert note == f"toy: {SAID['n_masks_empty']}: {n} of {1 + n} ({named})"


def test_without_masks_nothing_is_known_of_defects():
    got, notes = counted(replace(of_masks(KEPT, EMPTY), has_masks=False))
    assert got == (None, None, None, None, 0, 4, 0) and notes == []
    assert counted(of_masks())[0] == (0, 0, 0, 0, 0, 2, 0)  # no defective image


def test_counts_are_of_the_images_that_the_metrics_are_of():
    """A half of the test images decides the thresholds. The notes say the same counts."""
    category = of_masks(GONE, GONE, GONE, GONE, EMPTY, EMPTY, n_good=4)
    whole, _ = counted(category)
    half, notes = counted(category, validation="split")
    plan = CategoryImages(category, Options(validation="split"), Progress(quiet=True)).plan
    mine = [category.test[k] for k in plan.reported if category.test[k].label]
    lost = sum(sample.pixels != () for sample in mine)
    assert whole == (6, 2, 4, 4, 0, 10, 0) and half == (3, 3 - lost, lost, lost, 0, 10, 5)
    assert f": {lost} of {lost} (at 8x8)" in notes[0]
    assert f": {3 - lost} of 3 (test/bent/" in notes[1]


@pytest.mark.parametrize("budget", [1 << 30, 0], ids=["in memory", "one by one"])
def test_masks_are_checked_before_the_training_and_counted_once_per_size(monkeypatch, budget):
    monkeypatch.setattr(category_images, "MASK_BUDGET", budget)
    bad = replace(of_masks(KEPT).test[-1], label=1)
    reads = []
    monkeypatch.setattr(
        MaskSample, "read_mask",
        lambda self, read=MaskSample.read_mask: reads.append(self.name) or read(self),
    )  # fmt: skip
    progress = Notes()
    images = CategoryImages(of_masks(KEPT, GONE), Options(), progress)
    for _ in range(2):
        images.defects(SIZE)
        images.defects((4, 4))
    assert sorted(reads) == 2 * ["test/bent/0.png"] + 2 * ["test/bent/1.png"]
    assert [note.rpartition("(at ")[2] for note in progress.notes] == ["8x8)", "4x4)"]
    monkeypatch.setattr(MaskSample, "read_mask", lambda self: None)
    images = CategoryImages(Category("toys", "toy", (bad,), (bad,), True), Options(), progress)
    with pytest.raises(InputError, match="has no mask"):
        images.defects(SIZE)


# --------------------------------------------------------------------- training and test


def files(folder, **splits):
    """A Category of files; splits, lists of (name, image)."""
    samples = {}
    for split, images in splits.items():
        samples[split] = []
        for name, pixels in images:
            path = folder / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
            samples[split].append(FileSample(f"{split}/{name}", 0, "good", path))
    return Category("toys", "toy", tuple(samples["train"]), tuple(samples["test"]), True)


def test_an_image_in_train_and_test_is_named_whatever_its_format(tmp_path):
    grey, colour = noise(0, (12, 16)), noise(1)
    category = files(
        tmp_path,
        train=[("0.png", grey), ("1.bmp", colour), ("2.png", noise(2)), ("3.tif", colour)],
        test=[("0.png", colour), ("1.png", np.repeat(grey[:, :, None], 3, 2)), ("2.png", noise(3))],
    )
    got, (note,) = counted(category)
    assert got[4] == 2
    assert note == (
        f"toy: {SAID['n_test_in_train']}: 2 of 3 (test/0.png is train/1.bmp, "
        "test/1.png is train/0.png)"
    )


@pytest.mark.parametrize("validation", ["same-as-test", "split", "none"])
def test_other_pixels_another_shape_or_one_split_twice_are_no_such_image(tmp_path, validation):
    """Training images held out for the thresholds are not images of the test set."""
    image, near = noise(0), noise(0)
    near[-1, -1, -1] ^= 1
    train = [("0.png", image), *((f"{k}.png", noise(9)) for k in range(1, 12))]
    test = [("0.png", near), ("1.png", image.reshape(16, 12, 3)), ("2.png", near), ("3.png", near)]
    got, notes = counted(files(tmp_path, train=train, test=test), validation=validation)
    assert got[4] == 0 and notes == []


@pytest.mark.parametrize("validation, number", [("same-as-test", 12), ("split", 6), ("none", 12)])
def test_every_training_image_is_compared_whatever_decides_the_thresholds(
    tmp_path, validation, number
):
    images = [(f"{k:02d}.png", noise(k)) for k in range(12)]
    got, (note,) = counted(files(tmp_path, train=images, test=images), validation=validation)
    assert got[4] == number
    assert f": {number} of {number} (test/0" in note and note.endswith(", ...)")


def test_images_are_compared_once_and_read_once(monkeypatch):
    reads = []
    monkeypatch.setattr(
        ToySample, "read_image",
        lambda self, read=ToySample.read_image: reads.append(self.name) or read(self),
    )  # fmt: skip
    category, progress = of_masks(), Notes()
    category = replace(category, train=(*category.train, category.test[0]))
    images = CategoryImages(category, Options(), progress, sizes=[SIZE, (4, 4)])
    for _ in range(2):
        for size in (SIZE, (4, 4)):
            for split in ("train", "test"):
                images.images(split, size)
    assert len(reads) == 5 + 2 and len(progress.notes) == 1
    images.images("test", (2, 2))  # unexpected, so it is read again
    assert len(progress.notes) == 1


# ------------------------------------------------------------------------- the whole run


@pytest.fixture
def parts(tmp_path):
    """Images of 512 px, three of them defective, whose defects have 2 x 2 px: at 128 px every
    fourth pixel is sampled, so those at (202, 302) and (6, 401) vanish."""
    root = tmp_path / "parts"
    for seed, split, n in ((0, "train/good", 4), (10, "test/good", 3), (20, "test/spot", 3)):
        (root / split).mkdir(parents=True)
        for k in range(n):
            image = noise(seed + k, (512, 512)) // 8 + 100
            if split == "test/spot":
                mask = np.zeros((512, 512), np.uint8)
                row, col = [(100, 100), (202, 302), (6, 401)][k]
                mask[row : row + 2, col : col + 2] = 255
                image[mask > 0] = 255
                (root / "ground_truth/spot").mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(root / f"ground_truth/spot/{k}.png")
            Image.fromarray(image).save(root / split / f"{k}.png")
    return root


def run(root, out, capsys, *extra):
    """(metrics.json, its path, stdout, stderr) of a run of the command line."""
    status = cli.main([
        "--dataset", "folder", "--root", str(root), "--setup", "SM256", "--image-size", "128",
        "--weights", "random", "--out", str(out), *extra,
    ])  # fmt: skip
    assert status == 0
    (path,) = out.rglob("metrics.json")
    return json.loads(path.read_text()), path, *capsys.readouterr()


def test_vanished_defects_are_said_and_counted_from_the_command_line(parts, tmp_path, capsys):
    """The AUPRO is that of the defect that is left."""
    result, path, said, notes = run(parts, tmp_path / "out", capsys, "--seed", "1", "--report")
    assert [result[name] for name in COUNTS] == [3, 0, 3, 2, 0, 6, 0]
    line = "2 of 3 (at 128x128)"
    assert notes.count(line) == 1
    assert said.count("2 of 3 (parts at 128x128)") == 1
    assert notes.index(line) < notes.index(": fit:")  # before the training
    page = (tmp_path / "out/report/report.html").read_text()
    assert "2 of 3 (parts at 128x128)" in page.split("<details>")[0]
    assert "2 of 3 (parts at 128x128)" in (tmp_path / "out/report/tables.md").read_text()
    for k in (1, 2):  # an empty mask has the same pixels
        name = parts / f"ground_truth/spot/{k}.png"
        Image.fromarray(np.zeros((512, 512), np.uint8)).save(name)
    emptied, _, said, notes = run(parts, tmp_path / "emptied", capsys, "--seed", "1")
    assert emptied["pixel_aupro"] == result["pixel_aupro"] > 0
    assert [emptied[name] for name in COUNTS] == [3, 2, 1, 0, 0, 6, 0]
    assert ": 2 of 3 (test/spot/1.png, test/spot/2.png)" in notes and "2 of 3 (parts)." in said
    run_again = run(parts, tmp_path / "emptied", capsys, "--seed", "1", "--resume", "--quiet")
    assert run_again[2].count("2 of 3 (parts).") == 1 and run_again[3] == ""


def test_a_run_without_losses_says_nothing(tiny_backbone, tmp_path):
    progress = Notes()
    options = Options(out=tmp_path, report=True)
    images = CategoryImages(toy_category(), options, progress)
    result = run_cell(Recipe(SETUP), images, tiny_backbone, options, progress)
    assert [result[name] for name in COUNTS] == [4, 0, 4, 0, 0, 8, 0]
    write_report(tmp_path)
    for text in (*progress.notes, *texts(tmp_path)):
        assert not any(kind[1:] in text for kind in SAID.values())


def texts(out):
    return [path.read_text() for path in (out / "report").rglob("*.*") if path.suffix != ".png"]


def test_an_older_result_without_the_counts_is_still_read(tiny_backbone, tmp_path):
    """Tabulated and reported; what it does not count is not said."""
    category = toy_category()
    category = replace(category, train=(*category.train, category.test[0]))
    options = Options(out=tmp_path, report=True, resume=True, validation="split")
    quiet = Progress(quiet=True)

    def once():
        images = CategoryImages(category, options, quiet)
        return run_cell(Recipe(SETUP), images, tiny_backbone, options, quiet)

    result = once()
    assert result["n_without_verdict"] == 4
    (path,) = tmp_path.rglob("metrics.json")
    write_report(tmp_path)
    assert any("thresholds: 4 of 8 (toy)" in text for text in texts(tmp_path))
    lacking = (*COUNTS, "identity", "digest")
    old = {key: value for key, value in result.items() if key not in lacking}
    path.write_text(json.dumps(old))
    write_results_csv(tmp_path)
    with open(tmp_path / "results.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 1
    write_report(tmp_path)
    assert not any("thresholds: 4 of 8 (toy)" in text for text in texts(tmp_path))
    assert re.search("SM-48", "".join(texts(tmp_path)))


def test_hooks_see_what_is_read_at_its_own_size():
    images, masks = {}, {}
    category = of_masks(KEPT, GONE)
    reading.read_images(category.test, SIZE, seen=lambda s, image: images.update({s.name: image}))
    reading.read_masks(category.test, SIZE, seen=lambda s, mask: masks.update({s.name: mask}))
    assert list(masks) and sorted(images) == sorted(s.name for s in category.test)
    for sample in category.test:
        np.testing.assert_array_equal(images[sample.name], sample.read_image())
        if sample.label:
            np.testing.assert_array_equal(masks.pop(sample.name), sample.read_mask())
    assert not masks
