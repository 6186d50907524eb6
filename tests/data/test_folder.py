"""The user's own folders: every accepted layout, and the errors for the others."""

import os

import numpy as np
import pytest
from _data_files import touch, write_image, write_mask

from tiled_ref.data import folder
from tiled_ref.support.errors import InputError


def full(base):
    """Training images in train/good, one kind of defect with masks."""
    for k in range(3):
        write_image(base / "train" / "good" / f"{k}.png", seed=k)
    write_image(base / "test" / "good" / "0.png")
    for k in range(2):
        write_image(base / "test" / "dent" / f"{k}.png")
        write_mask(base / "ground_truth" / "dent" / f"{k}_mask.png")
    return base


def names(samples):
    return [sample.name for sample in samples]


def test_the_root_is_the_only_category_when_it_holds_train(tmp_path):
    root = full(tmp_path / "brackets")
    assert folder.categories(root) == ("brackets",)
    category = folder.load(root, "brackets")
    assert (category.dataset, category.name, category.has_masks) == ("folder", "brackets", True)
    assert names(category.train) == ["train/good/0.png", "train/good/1.png", "train/good/2.png"]
    assert [(s.name, s.label, s.defect) for s in category.test] == [
        ("test/dent/0.png", 1, "dent"),
        ("test/dent/1.png", 1, "dent"),
        ("test/good/0.png", 0, "good"),
    ]
    assert category.test[0].read_mask().any() and category.test[2].read_mask() is None


def test_a_relative_root_has_a_name_too(tmp_path, monkeypatch):
    monkeypatch.chdir(full(tmp_path / "brackets"))
    assert folder.categories(folder.Path(".")) == ("brackets",)


def test_every_folder_with_train_is_a_category(tmp_path):
    for name in ("nuts", "Bolts", "axles"):
        full(tmp_path / name)
    (tmp_path / "papers").mkdir()
    assert folder.categories(tmp_path) == ("Bolts", "axles", "nuts")
    assert len(folder.load(tmp_path, "nuts").train) == 3


def test_training_images_may_lie_in_train_itself(tmp_path):
    root = full(tmp_path / "a")
    for path in sorted((root / "train" / "good").iterdir()):
        path.rename(root / "train" / path.name)
    (root / "train" / "good").rmdir()
    assert names(folder.load(root, "a").train) == ["train/0.png", "train/1.png", "train/2.png"]


def test_without_masks_or_without_defects(tmp_path):
    root = full(tmp_path / "a")
    for path in sorted((root / "ground_truth").rglob("*.png")):
        path.unlink()
    (root / "ground_truth" / "dent").rmdir()
    (root / "ground_truth").rmdir()
    category = folder.load(root, "a")
    assert not category.has_masks and category.test[0].read_mask() is None
    for path in sorted((root / "test" / "dent").iterdir()):
        path.unlink()
    (root / "test" / "dent").rmdir()
    category = folder.load(root, "a")
    assert category.has_masks and [s.label for s in category.test] == [0]


def test_all_endings_in_either_case_are_sorted_and_the_rest_is_passed_over(tmp_path):
    root = full(tmp_path / "a")
    train = root / "train" / "good"
    wanted = ["A.PNG", "b.jpg", "c.JPEG", "d.bmp", "e.tif", "f.TIFF", "g.webp"]
    for name in wanted:
        write_image(train / name)
    for name in ("notes.txt", ".hidden.png", "Thumbs.db", "png", "h.gif"):
        touch(train / name)
    (train / "folder.png").mkdir()
    got = [os.path.basename(name) for name in names(folder.load(root, "a").train)]
    assert got == ["0.png", "1.png", "2.png", *wanted]


@pytest.mark.parametrize("name", ["0_mask.png", "0_mask.BMP", "0.png", "0.tif"])
def test_names_that_a_mask_may_have(tmp_path, name):
    root = full(tmp_path / "a")
    (root / "ground_truth" / "dent" / "0_mask.png").unlink()
    expected = write_mask(root / "ground_truth" / "dent" / name)
    sample = folder.load(root, "a").test[0]
    assert sample.mask_path.name == name
    np.testing.assert_array_equal(sample.read_mask(), expected)


def test_a_mask_named_mask_wins_over_one_of_the_same_name(tmp_path):
    root = full(tmp_path / "a")
    write_mask(root / "ground_truth" / "dent" / "0.png")
    assert folder.load(root, "a").test[0].mask_path.name == "0_mask.png"


MISTAKES = {  # name: (a change of a good folder, parts of the error)
    "some masks missing": (
        lambda root: (root / "ground_truth/dent/1_mask.png").unlink(),
        ["ground_truth/dent/1_mask.png", "test/dent/1.png", "is missing"],
    ),
    "no masks of one kind": (
        lambda root: write_image(root / "test/scratch/7.png"),
        ["ground_truth/scratch/7_mask.png", "is missing"],
    ),
    "two masks": (
        lambda root: write_mask(root / "ground_truth/dent/0_mask.bmp"),
        ["0_mask.bmp and ", "0_mask.png are both masks of"],
    ),
    "no test": (
        lambda root: (root / "test").rename(root / "tests"),
        ["a/test does not exist", folder.LAYOUT],
    ),
    "images directly in test": (
        lambda root: write_image(root / "test/5.png"),
        ["a/test holds images outside of good/ and <defect>/", folder.LAYOUT],
    ),
    "an empty kind of defect": (
        lambda root: (root / "test/scratch").mkdir(),
        ["test/scratch holds no images", folder.LAYOUT],
    ),
    "images in train and train/good": (
        lambda root: write_image(root / "train/5.png"),
        ["a/train and ", "a/train/good both hold images"],
    ),
    "no training images": (
        lambda root: [path.unlink() for path in sorted((root / "train/good").iterdir())],
        ["a/train/good holds no images", folder.LAYOUT],
    ),
    "no good": (
        lambda root: (root / "train/good").rename(root / "train/ok"),
        ["a/train holds no images and no folder good", folder.LAYOUT],
    ),
    "a dead link": (
        lambda root: (root / "train/good/x.png").symlink_to(root / "gone.png"),
        ["the link ", "train/good/x.png leads nowhere"],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_layout_that_does_not_fit_is_refused_and_explained(tmp_path, name):
    mistake, says = MISTAKES[name]
    root = full(tmp_path / "a")
    mistake(root)
    with pytest.raises(InputError) as caught:
        folder.load(root, "a")
    for part in says:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_test_folder_is_refused(tmp_path):
    write_image(tmp_path / "train" / "0.png")
    (tmp_path / "test").mkdir()
    with pytest.raises(InputError, match="test holds no images to test; expected are"):
        folder.load(tmp_path, tmp_path.name)


def test_roots_that_hold_nothing(tmp_path):
    with pytest.raises(InputError, match="nor a folder in it holds a folder train; expected are"):
        folder.categories(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        folder.categories(tmp_path / "nowhere")
    with pytest.raises(InputError, match="name its folder with --root"):
        folder.categories(None)


def test_an_unknown_category_lists_the_known_ones(tmp_path):
    for name in ("nuts", "bolts"):
        full(tmp_path / name)
    with pytest.raises(InputError, match="no category 'axles'.*known are: bolts, nuts$"):
        folder.load(tmp_path, "axles")


def test_links_in_circles_end(tmp_path):
    """A folder linked into itself is a folder without images, a link to itself no image."""
    root = full(tmp_path / "a")
    (root / "train" / "good" / "again").symlink_to(root / "train")
    assert len(folder.load(root, "a").train) == 3
    (root / "test" / "loop").symlink_to(root / "test")
    with pytest.raises(InputError, match="test/loop holds no images"):
        folder.load(root, "a")
    (root / "test" / "loop").unlink()
    (root / "train" / "good" / "self.png").symlink_to("self.png")
    with pytest.raises(InputError, match="self.png leads nowhere"):
        folder.load(root, "a")


def test_a_name_that_is_no_utf8_is_read_and_can_be_written_down(tmp_path):
    root = full(tmp_path / "a")
    odd = os.path.join(os.fsencode(root / "train" / "good"), b"caf\xe9.png")
    try:
        os.rename(root / "train" / "good" / "2.png", odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    sample = folder.load(root, "a").train[2]
    assert sample.name == "train/good/caf\\xe9.png"
    sample.name.encode("utf-8")
    assert sample.read_image().shape == (6, 8, 3)
