"""The user's own images, in folders laid out as `LAYOUT` says; anything else is refused with it.

A category is a folder that holds train/; the root is one itself or holds several.
"""

from pathlib import Path

from ..support.errors import InputError
from .disk import FileSample, check_category, check_root, folders, images, printable, some_images
from .samples import ANOMALOUS, GOOD, NORMAL, Category

LAYOUT = (
    "expected are <root>/train/ or <root>/train/good/ with normal images, <root>/test/good/ "
    "and <root>/test/<defect>/ with images to test, and, for pixel metrics, "
    "<root>/ground_truth/<defect>/<image's name>_mask.png (or the image's name alone)"
)


def categories(root):
    """The root's own name if it holds train/; else its folders that do, sorted.

    Raises InputError where there are none.
    """
    return tuple(_bases(check_root(root, "folder")))


def load(root, name):
    """One category, sorted by kind of defect, then file name.

    Without a folder ground_truth there are no masks; with it every defective image needs one.

    Parameters: root, path; name, one of categories(root).
    Returns Category.
    Raises InputError for an unknown category (lists the known ones), a layout that does not
    fit (explains it), an empty folder, a missing or ambiguous mask.
    """
    root = check_root(root, "folder")
    bases = _bases(root)
    check_category(name, tuple(bases), root)
    base = bases[name]
    train = tuple(
        FileSample(printable(path, base), NORMAL, GOOD, path) for path in _train(base / "train")
    )
    test_dir, truth_dir = base / "test", base / "ground_truth"
    if not test_dir.is_dir():
        raise InputError(f"the folder {test_dir} does not exist; {LAYOUT}")
    if images(test_dir):
        raise InputError(
            f"the folder {test_dir} holds images outside of good/ and <defect>/, so it is not "
            f"known which are normal; {LAYOUT}"
        )
    has_truth = truth_dir.is_dir()
    test = []
    for defect in folders(test_dir):
        masks = _masks(truth_dir / defect) if has_truth and defect != GOOD else None
        label = NORMAL if defect == GOOD else ANOMALOUS
        for path in some_images(test_dir / defect, f"fill or remove it; {LAYOUT}"):
            mask = None if masks is None else _mask(masks, truth_dir / defect, path)
            text = printable(path, base)
            test.append(FileSample(text, label, printable(defect), path, mask))
    if not test:
        raise InputError(f"the folder {test_dir} holds no images to test; {LAYOUT}")
    has_masks = has_truth or not any(sample.label for sample in test)
    return Category("folder", name, train, tuple(test), has_masks)


def _bases(root):
    """Category name -> its folder."""
    if (root / "train").is_dir():
        return {printable(root.resolve().name) or "root": root}
    found = {printable(name): root / name for name in folders(root)}
    found = {name: base for name, base in found.items() if (base / "train").is_dir()}
    if not found:
        raise InputError(f"neither --root {root} nor a folder in it holds a folder train; {LAYOUT}")
    return found


def _train(folder):
    """Paths of the training images, in folder/good or in folder itself."""
    good = folder / GOOD
    direct = images(folder)
    if not good.is_dir():
        if direct:
            return direct
        raise InputError(f"the folder {folder} holds no images and no folder good; {LAYOUT}")
    nested = some_images(good, f"put the normal training images there; {LAYOUT}")
    if direct:
        raise InputError(f"{folder} and {good} both hold images; keep the training images in one")
    return nested


def _masks(folder):
    """Image files of a mask folder by stem; none if the folder is missing."""
    masks = {}
    for path in images(folder) if folder.is_dir() else ():
        masks.setdefault(path.stem, []).append(path)
    return masks


def _mask(masks, folder, image):
    """The path of an image's mask: <stem>_mask if there is one, else <stem>."""
    for stem in (f"{image.stem}_mask", image.stem):
        if len(masks.get(stem, ())) > 1:
            first, second = masks[stem][:2]
            raise InputError(f"{first} and {second} are both masks of {image}; remove one")
        if stem in masks:
            return masks[stem][0]
    wanted = Path(folder, f"{image.stem}_mask.png")
    raise InputError(
        f"the mask {wanted} of the image {image} is missing; add it, or remove the folder "
        "ground_truth to do without pixel metrics"
    )
