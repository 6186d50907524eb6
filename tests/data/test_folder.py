"""The user's own folders: every accepted layout, and the errors for the others."""

import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from _data_files import touch, write_image, write_mask

from tiled_ref.data import disk, folder
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
    assert folder.categories(Path(".")) == ("brackets",)


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
    wanted = [
        "A.PNG", "b.jpg", "c.JPEG", "d.bmp", "e.tif", "f.TIFF", "g.webp", "h.gif", "i.PPM",
        "j.pgm", "k.pbm", "l.pnm", "m.jfif", "n.jpe", "o.dib",
    ]  # fmt: skip
    assert {Path(name).suffix.lower() for name in wanted} == set(disk.IMAGE_ENDINGS)
    for name in wanted:
        touch(train / name)
    for name in ("notes.txt", ".hidden.png", "Thumbs.db", "png", "p.svg"):
        touch(train / name)
    (train / "folder.png").mkdir()
    got = [os.path.basename(name) for name in names(folder.load(root, "a").train)]
    assert got == ["0.png", "1.png", "2.png", *wanted]


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (["train/good/.a.png"], "1 file | such as train/good/.a.png"),
        (["train/good/x/9.png", "train/bad/9.png"], "2 folders | such as train/bad"),
        (["train/a.txt", "test/readme", "test/dent/b.xml", "test/.DS_Store"],
         "4 files | such as test/.DS_Store"),
        (["ground_truth/dent/0.json", "ground_truth/dent/old/0.png", "ground_truth/.x/y"],
         "1 file and 2 folders | such as ground_truth/.x"),
        (["validation/good/0.png", "validation/good/a.txt", "validation/.b"],
         "2 files | such as validation/.b"),
        (["license.txt", "validation/good/0.png", "ground_truth/scratch/notes.txt"],
         "2 files | such as ground_truth/scratch/notes.txt"),
        (["0.png", ".DS_Store", "val/good/0.png", "gt/dent/0.png"], "2 files and 2 folders | "
         "such as .DS_Store"),
        (["validation/bad/0.png"], "1 folder | such as validation/bad"),
    ],
)  # fmt: skip
def test_what_is_passed_over_is_counted_in_one_note(tmp_path, made, says):
    root = full(tmp_path / "a")
    assert folder.load(root, "a").notes == ()
    for path in made:
        touch(root / path)
    counts, _, example = says.partition(" | ")
    why = "(hidden, not an image, or in the wrong place)"
    assert folder.load(root, "a").notes == (f"skipped {counts} {why}, {example}",)


@pytest.mark.parametrize("name", ["0_mask.png", "0_mask.BMP", "0.png", "0.tif"])
def test_names_that_a_mask_may_have(tmp_path, name):
    root = full(tmp_path / "a")
    (root / "ground_truth" / "dent" / "0_mask.png").unlink()
    expected = write_mask(root / "ground_truth" / "dent" / name)
    sample = folder.load(root, "a").test[0]
    assert sample.mask_path.name == name
    np.testing.assert_array_equal(sample.read_mask(), expected)


def pairs(base, images, masks):
    """Load a category of these images and masks of one kind of defect; {image: mask}."""
    write_image(base / "train/0.png")
    for name in images:
        write_image(base / "test/dent" / name)
    for name in masks:
        write_mask(base / "ground_truth/dent" / name)
    test = folder.load(base, base.name).test
    return {sample.path.name: sample.mask_path.name for sample in test}


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (["000.png", "000_mask.png"], ["000.png", "000_mask.png"]),
        (["000.png", "000_mask.png"], ["000_mask.png", "000_mask_mask.png"]),
        (["a.png", "a_mask.jpg", "a_mask_mask.bmp"], ["a.tif", "a_mask.png", "a_mask_mask.png"]),
        (["0.png", "1.png"], ["0.png", "1_mask.png"]),
        (["a.b.png", "a.png"], ["a.b_mask.png", "a_mask.png"]),
        (["u\u0308.png", "v.png"], ["\u00fc_mask.png", "v_mask.png"]),
        (["\u00fc.png"], ["u\u0308.png"]),
    ],
)
def test_every_image_has_its_own_mask(tmp_path, images, masks):
    """Also where an image is named like another one's mask, in either Unicode form."""
    assert pairs(tmp_path / "a", images, masks) == dict(zip(images, masks))


@pytest.mark.parametrize(
    ("images", "masks", "says"),
    [
        (["0.png"], ["0.png", "0_mask.png"], ["0_mask.png and ", "0.png are both masks of"]),
        (["0.png"], ["0_mask.png", "0_mask.bmp"], ["0_mask.bmp and ", "0_mask.png are both masks"]),
        (["0.png"], ["0.png", "0.bmp"], ["0.bmp and ", "0.png are both masks of"]),
        (["0.png", "0_mask.png", "1.png"], ["0.png", "0_mask.png", "1_mask.png"],
         ["0_mask.png and ", "0.png are both masks of"]),
        (["0.png", "0_mask.png"], ["0_mask.png"],
         ["0_mask.png belongs to ", "dent/0.png and to ", "dent/0_mask.png; give every image"]),
        (["0.png"], ["0.png", "7.png", "8.png"],
         ["dent/7.png belongs to no image in ", "test/dent; add", "(2 such masks)"]),
        (["0.png"], ["0_mask.png", "0_mask_mask.png"], ["0_mask_mask.png belongs to no image"]),
        (["0.png", "0.jpg"], ["0.png"], ["0.jpg and ", "0.png differ only in their extension"]),
        (["u\u0308.png", "\u00fc.jpg"], ["\u00fc.png"], [".jpg and ", "differ only in their"]),
        (["0.png", "1.png"], ["0.png"], ["1_mask.png of the image", "1.png is missing; add"]),
        (["0.png", "1.png"], ["0_gt.png", "1_gt.png"],
         ["dent/0_mask.png of the image", "0.png is missing (is it 0_gt.png? Rename it); add"]),
    ],
)  # fmt: skip
def test_images_and_masks_that_do_not_match_are_both_named(tmp_path, images, masks, says):
    with pytest.raises(InputError) as caught:
        pairs(tmp_path / "a", images, masks)
    for part in says:
        assert part in str(caught.value)


def test_another_mask_is_another_version_of_the_sample(tmp_path):
    """Finished results are not reused after --masks, be the files of one size and time."""
    root = full(tmp_path / "a")
    (root / "gt/dent").mkdir(parents=True)
    for path in (root / "ground_truth/dent").iterdir():
        (root / "gt/dent" / path.name).hardlink_to(path)
    versions = [folder.load(root, "a", masks).test[0].version for masks in ("ground_truth", "gt")]
    assert versions[0] != versions[1]


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_names_are_compared_in_one_unicode_form(tmp_path, forms):
    first, second = (unicodedata.normalize(form, "Ger\u00e4t") for form in forms)
    base = full(tmp_path / first)
    (base / "test/dent").rename(base / "test" / first)
    (base / "ground_truth").rename(base / first)
    (base / first / "dent").rename(base / first / second)
    assert folder.categories(tmp_path) == ("Ger\u00e4t",)
    category = folder.load(tmp_path, second, second)
    assert (category.name, category.test[0].defect) == ("Ger\u00e4t", "Ger\u00e4t")
    assert category.test[0].read_mask().any()


def test_two_folders_of_one_name_in_two_unicode_forms_are_refused(tmp_path):
    root = full(tmp_path / "a")
    for name in ("\u00fc", "u\u0308"):
        write_image(root / "test" / name / "0.png")
    with pytest.raises(InputError, match="have the same name in two Unicode forms; rename one"):
        folder.load(root, "a")


@pytest.mark.parametrize("name", ["gt", "Masks", "etiquetas", "ground truth", "Ground_Truth"])
def test_the_folder_of_the_masks_can_be_named(tmp_path, name):
    root = full(tmp_path / "a")
    (root / "ground_truth").rename(root / name)
    category = folder.load(root, "a", name)
    assert category.has_masks and category.notes == ()
    assert category.test[0].mask_path == root / name / "dent" / "0_mask.png"
    category = folder.load(root, "a")
    assert not category.has_masks and category.test[0].read_mask() is None
    (note,) = category.notes
    likely = f"the folder {name} looks like masks: --masks "
    assert (likely if name != "etiquetas" else "such as etiquetas") in note


@pytest.mark.parametrize("name", ["gt", "validation", "test", "", ".", "..", "../a/ground_truth"])
def test_a_folder_of_masks_that_is_none_is_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"--masks .* is not a folder next to .*: ground_truth$"):
        touch(full(tmp_path / "a") / "validation/good/0.png")
        folder.load(tmp_path / "a", "a", name)


def test_validation_images_are_normal_and_stand_apart(tmp_path):
    root = full(tmp_path / "a")
    assert folder.load(root, "a").validation == ()
    write_image(root / "validation/bad/0.png")
    category = folder.load(root, "a")
    assert category.validation == () and "such as validation/bad" in category.notes[0]
    for k in (1, 0):
        write_image(root / "validation/good" / f"{k}.png")
    category = folder.load(root, "a")
    assert names(category.validation) == ["validation/good/0.png", "validation/good/1.png"]
    assert {(s.label, s.defect) for s in category.validation} == {(0, "good")}
    assert (len(category.train), len(category.test)) == (3, 3)


MISTAKES = {  # name: (a change of a good folder, parts of the error)
    "masks among the images": (
        lambda root: (
            shutil.rmtree(root / "ground_truth"), write_mask(root / "test/dent/0_mask.png")
        ),
        ["test/dent/0_mask.png the mask of ", "test/dent/0.png? If so, move masks to "],
    ),
    "masks of another name among the images": (
        lambda root: (
            shutil.rmtree(root / "ground_truth"), write_mask(root / "test/dent/0_GT.png")
        ),
        ["test/dent/0_GT.png the mask of ", "test/dent/0.png? If so, move masks to "],
    ),
    "a broken link to masks": (
        lambda root: (
            shutil.rmtree(root / "ground_truth"), (root / "ground_truth").symlink_to("nowhere")
        ),
        ["a/ground_truth does not exist"],
    ),
    "a file for masks": (
        lambda root: (shutil.rmtree(root / "ground_truth"), touch(root / "ground_truth")),
        ["a/ground_truth cannot be read"],
    ),
    "some masks missing": (
        lambda root: (root / "ground_truth/dent/1_mask.png").unlink(),
        ["ground_truth/dent/1_mask.png", "test/dent/1.png", "is missing"],
    ),
    "no masks of one kind": (
        lambda root: write_image(root / "test/scratch/7.png"),
        ["ground_truth/scratch/7_mask.png", "is missing"],
    ),
    "masks of a kind that is not tested": (
        lambda root: [write_mask(root / f"ground_truth/dents/{k}.png") for k in (1, 0)],
        ["ground_truth/dents holds masks of no ", "test, such as 0.png (2 such masks); move or"],
    ),
    "masks of normal images": (
        lambda root: write_mask(root / "ground_truth/good/0_mask.png"),
        ["ground_truth/good holds masks of no defective image", "0_mask.png (1 such mask); move"],
    ),
    "masks outside of a kind": (
        lambda root: write_mask(root / "ground_truth/0.png"),
        ["a/ground_truth holds masks", "the masks of test/<defect> belong in ground_truth/<defect>"],
    ),
    "masks without defects": (
        lambda root: [path.unlink() for path in (root / "test/dent").iterdir()]
        and (root / "test/dent").rmdir(),
        ["ground_truth/dent holds masks"],
    ),
    "masks beside images": (
        lambda root: write_mask(root / "test/Ground Truth/0.png"),
        ["test/Ground Truth looks like masks, not like images", "move it next to test"],
    ),
    "masks beside training images": (
        lambda root: write_mask(root / "train/masks/0.png"),
        ["train/masks looks like masks"],
    ),
    "validation images of no kind": (
        lambda root: write_image(root / "validation/0.png"),
        ["a/validation holds images outside of good/", folder.LAYOUT],
    ),
    "no validation images": (
        lambda root: (root / "validation/good").mkdir(parents=True),
        ["validation/good holds no images; fill or remove it"],
    ),
    "validation images that may be normal": (
        lambda root: write_image(root / "validation/ok/0.png"),
        ["does the folder ", "validation/ok hold normal images? If so, rename it to good"],
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
        ["does the folder ", "train/ok hold normal images? If so, rename it to good"],
    ),
    "another name for good": (
        lambda root: (root / "train/good").rename(root / "train/parts"),
        ["a/train holds no images and no subfolder good", folder.LAYOUT],
    ),
    "a dead link": (
        lambda root: (root / "train/good/x.png").symlink_to(root / "gone.png"),
        ["the link ", "train/good/x.png is broken"],
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


@pytest.mark.parametrize(
    "name",
    ["Good", "GOOD", "ok", "OK", "normal", "defect-free", "No_Defect", "non defective", "good_2",
     "OK 1", "i.O."],
)  # fmt: skip
@pytest.mark.parametrize("place", ["test", "train"])
def test_a_name_that_means_good_is_asked_about(tmp_path, name, place):
    root = full(tmp_path / "a")
    write_image(root / place / name / "0.png")
    with pytest.raises(InputError) as caught:
        folder.load(root, "a")
    assert f"{place}/{name} hold normal images? If so, rename it to good" in str(caught.value)


@pytest.mark.parametrize("name", ["n.i.O.", "not ok", "NOK", "defects.ok", "ok_bent", "0"])
def test_another_name_is_a_defect(tmp_path, name):
    root = full(tmp_path / "a")
    shutil.rmtree(root / "ground_truth")
    write_image(root / "test" / name / "0.png")
    assert (1, name) in {(s.label, s.defect) for s in folder.load(root, "a").test}


def test_an_empty_test_folder_is_refused(tmp_path):
    write_image(tmp_path / "train" / "0.png")
    (tmp_path / "test").mkdir()
    with pytest.raises(InputError, match="test holds no folders of images; expected: "):
        folder.load(tmp_path, tmp_path.name)


def test_roots_that_hold_nothing(tmp_path):
    with pytest.raises(InputError, match="nor a folder in it holds a folder train; expected: "):
        folder.categories(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        folder.categories(tmp_path / "nowhere")
    with pytest.raises(InputError, match="name its folder with --root"):
        folder.categories(None)


def test_an_unknown_category_lists_the_known_ones(tmp_path):
    for name in ("nuts", "bolts"):
        full(tmp_path / name)
    with pytest.raises(InputError, match="no category 'axles'.*choose from: bolts, nuts$"):
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
    with pytest.raises(InputError, match="self.png is broken"):
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
