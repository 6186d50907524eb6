"""MVTec AD 2, as unpacked from its archive.

Heckler-Kram, Neudeck, Scheler, Koenig, Steger, "The MVTec AD 2 Dataset: Advanced Scenarios for
Unsupervised Anomaly Detection", arXiv:2503.21622, 2025. Layout:

    <root>/<object>/train/good/000_regular.png
                    validation/good/000_regular.png
                    test_public/good/000_regular.png
                    test_public/bad/000_regular.png
                    test_public/ground_truth/bad/000_regular_mask.png
                    test_private/000_regular.png
                    test_private_mixed/000_mixed.png

The two private splits have no labels; a server computes their metrics from a submission.
"""

from ..support.errors import InputError
from .disk import (
    FileSample,
    Layout,
    check_category,
    check_root,
    counted,
    folders,
    images,
    match_masks,
    normal_samples,
    passed_over,
    printable,
    some_images,
)
from .samples import ANOMALOUS, NORMAL, Category, Evaluation

PRIVATE = {  # number of images per object in each of the two private splits
    "can": 321, "fabric": 314, "fruit_jelly": 255, "rice": 277, "sheet_metal": 142, "vial": 276,
    "wallplugs": 232, "walnuts": 228,
}  # fmt: skip
CATEGORIES = tuple(PRIVATE)
LIGHTING = {"test_private": "regular", "test_private_mixed": "mixed"}  # last word of a file name
REMEDY = "unpack the archive of MVTec AD 2 again"
EVALUATION = Evaluation(fpr_limit=0.05, metric_size="original", deviations=3.0)
LAYOUT = Layout(remedy=REMEDY, missing=REMEDY, suffixes=("_mask",), endings=(".png",))


def categories(root):
    """The objects of MVTec AD 2 with a folder in root, in the data set's order.

    Raises InputError if the root does not exist or contains no object.
    """
    root = check_root(root, "mvtec2")
    present = folders(root)
    found = tuple(name for name in CATEGORIES if name in present)
    if not found:
        hint = "name the folder that contains the objects"
        if "test_public" in present:
            hint = f"it looks like one object itself, so try --root {root.parent}"
        raise InputError(f"no object of MVTec AD 2 is in --root {root}; {hint}")
    return found


def load(root, name):
    """Load one object: train/good, validation/good, and test_public with its masks.

    Parameters: root, path of the data set; name, one of categories(root).
    Returns Category.
    Raises InputError for an unknown object (lists the known ones), a missing or empty folder, and
    images and masks that do not match one to one.
    """
    root = check_root(root, "mvtec2")
    check_category(name, categories(root), root)
    base, passed = root / name, []
    train, validation, public = (base / part for part in ("train", "validation", "test_public"))
    truth = public / "ground_truth"
    for folder, parts in {
        base: (train, validation, public, *(base / split for split in LIGHTING)),
        train: [train / "good"],
        validation: [validation / "good"],
        public: (public / "good", public / "bad", truth),
        truth: [truth / "bad"],
    }.items():
        passed += images(folder, passed, parts)
    train, validation, good = (
        normal_samples(some_images(folder / "good", REMEDY, passed), root)
        for folder in (train, validation, public)
    )
    masks = match_masks(some_images(public / "bad", REMEDY, passed), truth / "bad", passed, LAYOUT)
    bad = tuple(FileSample(printable(path, root), ANOMALOUS, "bad", path, mask)
                for path, mask in sorted(masks.items()))  # fmt: skip
    notes, place = passed_over(passed, base), str(base.resolve())
    return Category(
        "mvtec2", name, train, bad + good, True, validation, notes, place, EVALUATION
    )


def private(root, name):
    """All unlabelled images of an object that the evaluation server requires.

    Parameters: see `load`.
    Returns {"test_private": samples, "test_private_mixed": samples}, ordered by image number.
    Raises InputError for a missing split, a missing image and an extra image.
    """
    base, found = check_root(root, "mvtec2") / name, {}
    for split, lighting in LIGHTING.items():
        wanted = [f"{k:03d}_{lighting}.png" for k in range(PRIVATE[name])]
        paths = {path.name: path for path in some_images(base / split, REMEDY)}
        missing = [base / split / file for file in wanted if file not in paths]
        extra = sorted(paths.keys() - set(wanted))
        if missing:
            raise InputError(
                f"the image {missing[0]} is missing ({counted(len(missing), 'such image')} of "
                f"{len(wanted)}); {REMEDY}"
            )
        if extra:
            raise InputError(
                f"{paths[extra[0]]} is not one of the {len(wanted)} images {wanted[0]} to "
                f"{wanted[-1]} of this split; remove it"
            )
        found[split] = tuple(
            FileSample(printable(paths[file], root), NORMAL, "", paths[file]) for file in wanted
        )
    return found
