"""The user's own images in the folder layout `LAYOUT`; errors about any other layout quote it.

A category is a folder that contains train/; the root is a category or contains several.
"""

import os
import shlex
from pathlib import Path

from ..support.errors import InputError
from .disk import (
    Layout,
    check_category,
    check_root,
    defect_samples,
    folders,
    images,
    kinds,
    looks_like_masks,
    nfc,
    normal_samples,
    passed_over,
    printable,
    some_images,
    validation_samples,
)
from .samples import GOOD, Category

LAYOUT = (
    "expected: <root>/train/ or <root>/train/good/ with normal images, <root>/test/good/ "
    "and <root>/test/<defect>/ with test images, for pixel metrics "
    "<root>/ground_truth/<defect>/<image's name>_mask.png (or just the image's name), and, "
    "optionally, <root>/validation/good/ with normal images that decide the thresholds"
)
WITH_GOOD = (
    "give a folder of normal images, or one that holds good/ with normal images and, to measure "
    "misses, <defect>/ with defective images"
)
TEST = Layout(LAYOUT, "add it, or move all masks away to do without pixel metrics")


def categories(root):
    """The root's own name if it contains train/; else its subfolders that do, sorted.

    Raises InputError if there are none.
    """
    return tuple(_bases(check_root(root, "folder")))


def load(root, name, mask_folder=None):
    """Load one category, sorted by kind of defect, then file name.

    If there is a folder of masks, every defective image needs a mask.

    Parameters: root, path; name, one of categories(root); mask_folder, the name of the folder of
    masks next to train and test, by default ground_truth if it exists.
    Returns Category; its notes report skipped files, and folders that may contain masks.
    Raises InputError for an unknown category (lists the known ones), an invalid layout
    (explains it), an empty folder, a name that looks like good or masks, a missing mask_folder,
    and images and masks that do not match one to one.
    """
    root = check_root(root, "folder")
    bases = _bases(root)
    name = nfc(name)
    check_category(name, tuple(bases), root)
    base, passed = bases[name], []
    train = normal_samples(_train(base / "train", passed), base)
    truth, notes = _truth(base, mask_folder, passed)
    test = defect_samples(base / "test", truth, base, passed, TEST)
    validation = validation_samples(base / "validation", base, passed, LAYOUT)
    has_masks = truth is not None or not any(sample.label for sample in test)
    notes = (*notes, *passed_over(passed, base))
    place = str(bases[name].resolve())
    return Category("folder", name, train, test, has_masks, validation, notes, place)


def load_calibration(folder):
    """Load images that decide the thresholds.

    Parameters: folder: normal images directly in it; or good/ and any number of <defect>/ in it or
    in its subfolder test/; masks, if any, in ground_truth/<defect>/ next to test/.
    Returns (samples, has_masks, notes): a tuple of FileSample, at least one of them normal; whether
    the defective ones have masks; sentences, such as the number of skipped files.
    Raises InputError for an invalid layout, and as `load` does.
    """
    folder, passed = Path(folder), []
    if not folder.is_dir():
        raise InputError(f"the folder --calibrate {folder} does not exist; {WITH_GOOD}")
    test = folder / "test" if (folder / "test").is_dir() else folder
    if test is folder and GOOD not in folders(folder):
        samples, truth = normal_samples(some_images(folder, WITH_GOOD, passed), folder), None
    else:
        base = test.parent
        truth = base / "ground_truth" if test.name == "test" else folder / "ground_truth"
        truth = truth if truth.is_dir() else None
        samples = defect_samples(test, truth, base, passed, Layout(WITH_GOOD, "add it"))
        if not any(sample.defect == GOOD for sample in samples):
            raise InputError(f"the folder {test} has no subfolder good; {WITH_GOOD}")
    return samples, truth is not None, passed_over(passed, folder)


def _bases(root):
    """The folder of each category, by name."""
    if (root / "train").is_dir():
        return {nfc(printable(root.resolve().name)) or "root": root}
    found = {printable(n): base for n, base in folders(root).items() if (base / "train").is_dir()}
    if not found:
        raise InputError(f"neither --root {root} nor a folder in it holds a folder train; {LAYOUT}")
    return found


def _train(folder, passed):
    """Paths of the training images, in folder/good or in folder itself."""
    good = kinds(folder).get(GOOD)
    direct = images(folder, passed, [good])
    if good is None:
        if direct:
            return direct
        raise InputError(f"the folder {folder} holds no images and no subfolder good; {LAYOUT}")
    nested = some_images(good, f"put the normal training images there; {LAYOUT}", passed)
    if direct:
        raise InputError(f"{folder} and {good} both hold images; keep the training images in one")
    return nested


def _truth(base, name, passed):
    """The folder of the masks, or None, and a list of notes. Anything in base other than train,
    test, validation and masks is added to `passed`."""
    known = [base / used for used in ("train", "test", "validation")]
    beside = {key: path for key, path in folders(base).items() if path not in known}
    truth, alike = base / "ground_truth", []
    if name is not None:
        if nfc(name) not in beside:
            raise InputError(
                f"--masks {name} is not a folder next to train and test in {base}; choose "
                f"from: {', '.join(beside) or 'none'}"
            )
        truth = beside[nfc(name)]
    elif not os.path.lexists(truth):
        truth, alike = None, [key for key in beside if looks_like_masks(key)]
    passed += images(base, passed, [*known, truth, *map(beside.get, alike)])
    return truth, [
        f"no masks are read, because there is no folder ground_truth; the folder {key} looks like "
        f"masks: --masks {shlex.quote(key)} uses it"
        for key in alike
    ]
