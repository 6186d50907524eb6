"""MVTec AD 2: the layout of the archive, and the error for any other."""

import shutil

import numpy as np
import pytest

from tiled_ref.data import DATASETS, drawn_mvtec2, mvtec2
from tiled_ref.support.errors import InputError


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Two small objects, one with as many private images as the data set has."""
    root = tmp_path_factory.mktemp("mvtec2")
    assert drawn_mvtec2.main([str(root), "--objects", "can", "--size", "32"]) == 0
    words = ["--objects", "sheet_metal", "--size", "32", "--counts"]
    assert drawn_mvtec2.main([str(root), *words]) == 0
    return root


@pytest.fixture
def root(drawn, tmp_path):
    """A copy of the small object, and the other one, to damage."""
    return shutil.copytree(drawn, tmp_path / "root")


def test_it_is_one_of_the_data_sets(drawn):
    assert DATASETS["mvtec2"] is mvtec2 and sum(mvtec2.PRIVATE.values()) == 2045
    assert mvtec2.categories(drawn) == ("can", "sheet_metal")


def test_an_object_has_training_validation_and_public_test_images(drawn):
    can = mvtec2.load(drawn, "can")
    assert (can.dataset, can.name, can.has_masks, can.notes) == ("mvtec2", "can", True, ())
    assert [s.name for s in can.train] == [f"can/train/good/{k:03d}_regular.png" for k in range(8)]
    assert [s.name for s in can.validation] == [
        f"can/validation/good/{k:03d}_regular.png" for k in range(3)
    ]
    assert [(s.name, s.label, s.defect) for s in can.test] == [
        *((f"can/test_public/bad/{k:03d}_regular.png", 1, "bad") for k in range(4)),
        *((f"can/test_public/good/{k:03d}_regular.png", 0, "good") for k in range(3)),
    ]
    for sample in can.test:
        assert sample.read_image().shape == (32, 32, 3)
        if sample.label:
            assert sample.read_mask().any() and sample.mask_path.name == (
                sample.path.stem + "_mask.png"
            )
    pictures = [s.read_image() for s in (*can.train, *can.validation, *can.test)]
    assert len(np.unique(np.stack(pictures), axis=0)) == 18


def test_private_images_are_those_that_the_server_asks_for(drawn):
    splits = mvtec2.private(drawn, "sheet_metal")
    assert {split: len(samples) for split, samples in splits.items()} == {
        "test_private": 142, "test_private_mixed": 142,
    }  # fmt: skip
    assert splits["test_private"][141].name == "sheet_metal/test_private/141_regular.png"
    assert splits["test_private_mixed"][0].name == "sheet_metal/test_private_mixed/000_mixed.png"


def remove(path):
    return lambda root: shutil.rmtree(root / path) if (root / path).is_dir() else (
        (root / path).unlink()
    )


def move(path, target):
    return lambda root: (root / path).rename(root / target)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (remove("can/train"), "can/train does not exist"),
        (remove("can/train/good"), "can/train/good does not exist"),
        (remove("can/validation"), "can/validation does not exist"),
        (remove("can/validation/good"), "can/validation/good does not exist"),
        (remove("can/test_public"), "can/test_public does not exist"),
        (remove("can/test_public/good"), "can/test_public/good does not exist"),
        (remove("can/test_public/bad"), "can/test_public/bad does not exist"),
        (remove("can/test_public/ground_truth"), "can/test_public/ground_truth does not exist"),
        (remove("can/test_public/ground_truth/bad"), "bad/000_regular_mask.png of the image"),
        (remove("can/test_public/ground_truth/bad/002_regular_mask.png"), "bad/002_regular.png is"),
        (remove("can/test_public/bad/002_regular.png"), "belongs to no image"),
        (move("can/test_public/bad", "can/test_public/Bad"), "test_public/bad does not exist"),
    ],
)
def test_each_part_of_the_layout_has_its_error(root, spoil, words):
    spoil(root)
    with pytest.raises(InputError) as caught:
        mvtec2.load(root, "can")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (remove("sheet_metal/test_private_mixed"), "sheet_metal/test_private_mixed does not exist"),
        (remove("sheet_metal/test_private/007_regular.png"), "007_regular.png is missing (1 such"),
        (move("sheet_metal/test_private/007_regular.png",
              "sheet_metal/test_private_mixed/007_regular.png"), "test_private/007_regular.png is"),
        (move("can/test_private/000_regular.png", "sheet_metal/test_private/142_regular.png"),
         "142_regular.png is not one of the 142 images 000_regular.png to 141_regular.png"),
    ],
)  # fmt: skip
def test_private_images_that_are_not_the_data_sets_are_named(root, spoil, words):
    spoil(root)
    with pytest.raises(InputError) as caught:
        mvtec2.private(root, "sheet_metal")
    assert words in str(caught.value)


def test_a_small_one_has_too_few_private_images(drawn):
    with pytest.raises(InputError, match=r"004_regular.png is missing \(317 such images of 321\)"):
        mvtec2.private(drawn, "can")


def test_another_root_is_one_sentence(drawn, tmp_path):
    for root, words in (
        (None, "the data set mvtec2 is read from disk"),
        (tmp_path / "no", "does not exist"),
        (tmp_path, "no object of MVTec AD 2 is in"),
        (drawn / "can", f"try --root {drawn}"),
    ):
        with pytest.raises(InputError, match=words):
            mvtec2.categories(root)
    with pytest.raises(InputError, match="no category 'bottle' .* choose from: can, sheet_metal"):
        mvtec2.load(drawn, "bottle")


def test_what_is_passed_over_is_counted(root):
    for path in ("can/readme.txt", "can/train/bad.png", "can/test_public/extra/1.png"):
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_bytes(b"")
    (note,) = mvtec2.load(root, "can").notes
    assert note.startswith("skipped 2 files and 1 folder")
