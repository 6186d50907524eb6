"""MVTec AD: the layout of the archive, and the error for any other."""

import shutil

import numpy as np
import pytest
from _data_files import touch, write_image, write_mask
from toys import toy_category, write_category

from tiled_ref.data import DATASETS, mvtec
from tiled_ref.support.errors import InputError
from tiled_ref.verdicts.deciding import plan


@pytest.fixture
def root(tmp_path):
    """Two categories; screw has two kinds of defects, and files that are no images."""
    for category in ("screw", "bottle"):
        base = tmp_path / category
        for k in (2, 0, 10):
            write_image(base / "train" / "good" / f"{k:03d}.png", seed=k)
        write_image(base / "test" / "good" / "000.png")
        for defect in ("thread_top", "bent"):
            for k in (1, 0):
                write_image(base / "test" / defect / f"{k:03d}.png")
                write_mask(base / "ground_truth" / defect / f"{k:03d}_mask.png")
        touch(base / "license.txt")
        touch(base / "train" / "good" / "Thumbs.db")
        touch(base / "train" / "good" / ".000.png")
        touch(base / "test" / ".DS_Store")
    (tmp_path / "notes").mkdir()
    return tmp_path


def test_it_is_one_of_the_data_sets():
    assert list(DATASETS) == ["synthetic", "mvtec", "mvtec2", "visa", "folder"]
    assert DATASETS["mvtec"] is mvtec
    assert len(mvtec.CATEGORIES) == 15


def test_the_categories_present_in_the_data_set_s_order(root):
    assert mvtec.categories(root) == ("bottle", "screw")


def test_a_category_is_sorted_by_defect_then_name(root):
    category = mvtec.load(root, "screw")
    assert (category.dataset, category.name, category.has_masks) == ("mvtec", "screw", True)
    assert [s.name for s in category.train] == [
        "screw/train/good/000.png", "screw/train/good/002.png", "screw/train/good/010.png",
    ]  # fmt: skip
    assert [(s.name, s.label, s.defect) for s in category.test] == [
        ("screw/test/bent/000.png", 1, "bent"),
        ("screw/test/bent/001.png", 1, "bent"),
        ("screw/test/good/000.png", 0, "good"),
        ("screw/test/thread_top/000.png", 1, "thread_top"),
        ("screw/test/thread_top/001.png", 1, "thread_top"),
    ]
    assert all(s.label == 0 and s.defect == "good" for s in category.train)
    assert category.validation == () and category.notes == (
        "skipped 3 files (hidden, not an image, or in the wrong place), such as "
        "test/.DS_Store",
    )


def test_samples_read_their_own_files(root):
    expected = write_image(root / "screw" / "train" / "good" / "002.png", seed=77)
    mask = write_mask(root / "screw" / "ground_truth" / "bent" / "001_mask.png", value=3)
    category = mvtec.load(root, "screw")
    np.testing.assert_array_equal(category.train[1].read_image(), expected)
    np.testing.assert_array_equal(category.test[1].read_mask(), mask)
    assert category.train[1].read_mask() is None and category.train[1].read_size() == (6, 8)


def without(path):
    """A step that removes a file or folder."""

    def step(root):
        target = root / path
        for file in sorted(target.rglob("*"), reverse=True) if target.is_dir() else ():
            file.unlink() if file.is_file() else file.rmdir()
        target.rmdir() if target.is_dir() else target.unlink()

    return step


def emptied(path):
    def step(root):
        without(path)(root)
        (root / path).mkdir()

    return step


def renamed(path, name):
    """A step that renames a file or folder; a name with "/" is one below the root."""

    def step(root):
        target = root / name if "/" in name else (root / path).with_name(name)
        (root / path).rename(target)

    return step


def copied(path, name):
    return lambda root: (root / path).with_name(name).write_bytes((root / path).read_bytes())


MISTAKES = [  # a change of the root, and parts of the error
    (without("screw/ground_truth/bent/001_mask.png"), ["bent/001_mask.png", "bent/001.png", "missing"]),
    (without("screw/ground_truth"), ["bent/000_mask.png", "is missing"]),
    (without("screw/train"), ["screw/train does not exist"]),
    (without("screw/train/good"), ["screw/train/good does not exist"]),
    (renamed("screw/train/good", "Normal"), ["screw/train/Normal hold normal images? If so, rename it"]),
    (renamed("screw/test/good", "OK"), ["screw/test/OK hold normal images? If so, rename it to good"]),
    (renamed("screw/ground_truth", "screw/test/masks"), ["screw/test/masks looks like masks"]),
    (renamed("screw/ground_truth/bent", "bend"), ["ground_truth/bend holds masks of no"]),
    (renamed("screw/ground_truth/bent/001_mask.png", "001.png"), ["001_mask.png of the image"]),
    (renamed("screw/ground_truth/bent/001_mask.png", "001_mask.bmp"), ["001_mask.png of the image"]),
    (renamed("screw/test/bent/001.png", "0.png"), ["0_mask.png of the image", "is missing"]),
    (without("screw/test/bent/001.png"), ["bent/001_mask.png belongs to no image", "test/bent"]),
    (copied("screw/test/bent/001.png", "001.jpg"), ["001.jpg and ", "001.png differ only in their"]),
    (copied("screw/ground_truth/bent/001_mask.png", "1.png"), ["bent/1.png belongs to no image"]),
    (emptied("screw/train/good"), ["screw/train/good holds no images"]),
    (without("screw/test"), ["screw/test does not exist"]),
    (emptied("screw/test"), ["screw/test holds no folders"]),
    (emptied("screw/test/bent"), ["screw/test/bent holds no images"]),
]  # fmt: skip


@pytest.mark.parametrize(("mistake", "says"), MISTAKES, ids=[says[0] for _, says in MISTAKES])
def test_a_layout_that_does_not_fit_is_refused(root, mistake, says):
    mistake(root)
    with pytest.raises(InputError) as caught:
        mvtec.load(root, "screw")
    for part in says:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_none_of_the_fifteen_is_a_category_with_a_note(root):
    """By its name where some of the fifteen are there, else by itself; misspelt ones are listed."""
    known = mvtec.categories(root)
    write_category(root / "bracket", toy_category())
    assert mvtec.categories(root) == known
    category = mvtec.load(root, "bracket")
    assert (len(category.train), len(category.test), category.has_masks) == (6, 8, True)
    note = "bracket is not one of MVTec AD's 15 categories but is read like them"
    assert category.notes[0] == note and not category.validation
    assert note not in mvtec.load(root, known[0]).notes
    with pytest.raises(InputError, match=f"no category 'brackets' .*{known[0]}.*bracket"):
        mvtec.load(root, "brackets")
    for name in known:
        shutil.rmtree(root / name)
    write_category(root / "anvil", toy_category())
    assert mvtec.categories(root) == ("anvil", "bracket")


def test_validation_images_decide_the_thresholds(root):
    """MVTec LOCO has them; elsewhere than in good they are asked about."""
    name = mvtec.categories(root)[0]
    good = root / name / "validation" / "good"
    shutil.copytree(root / name / "train" / "good", good)
    category = mvtec.load(root, name)
    assert len(category.validation) == len(category.train)
    assert plan(category).mode == "folder"
    next(good.iterdir()).rename(good.parent / "a.png")
    with pytest.raises(InputError, match="outside of good/"):
        mvtec.load(root, name)


def test_an_unknown_category_lists_the_known_ones(root):
    for name in ("scrw", "tile", "../screw", ""):
        with pytest.raises(InputError, match="choose from: bottle, screw$"):
            mvtec.load(root, name)


def test_roots_that_are_none(root):
    with pytest.raises(InputError, match="--root .*nowhere does not exist"):
        mvtec.categories(root / "nowhere")
    with pytest.raises(InputError, match="license.txt is a file"):
        mvtec.categories(root / "screw" / "license.txt")
    with pytest.raises(InputError, match="name its folder with --root"):
        mvtec.categories(None)
    with pytest.raises(InputError, match="no category of MVTec AD is in --root"):
        mvtec.categories(root / "notes")


def test_a_category_given_as_root_is_told_where_to_point(root):
    with pytest.raises(InputError) as caught:
        mvtec.categories(root / "screw")
    assert f"try --root {root}" in str(caught.value)


@pytest.mark.real
def test_the_real_screw(screw):
    category = mvtec.load(screw, "screw")
    assert len(category.train) == 320
    assert sum(s.label == 0 for s in category.test) == 41
    assert sum(s.label == 1 for s in category.test) == 119
    assert category.train[0].read_image().shape == (512, 512, 3)
    masks = [s.read_mask() for s in category.test if s.label]
    assert all(mask.shape == (512, 512) and mask.any() for mask in masks)
