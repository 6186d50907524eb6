"""MVTec AD, as unpacked from its archive.

Bergmann, Batzner, Fauser, Sattlegger, Steger, "The MVTec Anomaly Detection Dataset", IJCV
2021. Layout:

    <root>/<category>/train/good/000.png
                      test/good/000.png
                      test/<defect>/000.png
                      ground_truth/<defect>/000_mask.png

Other folders in the root with this layout, such as your own part, are categories too.
"""

from ..support.errors import InputError
from .disk import (
    Layout,
    check_category,
    check_root,
    defect_samples,
    folders,
    images,
    kinds,
    normal_samples,
    passed_over,
    some_images,
    validation_samples,
)
from .samples import GOOD, Category

CATEGORIES = (
    "bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut",
    "pill", "screw", "tile", "toothbrush", "transistor", "wood", "zipper",
)  # fmt: skip
REMEDY = "unpack the archive of MVTec AD again"
EXPECTED = "expected: <root>/<category>/train/good and <root>/<category>/test/<defect>"
LAYOUT = Layout(remedy=REMEDY, missing=REMEDY, suffixes=("_mask",), endings=(".png",))


def categories(root):
    """Returns the categories of MVTec AD with a folder in root, in the data set's order; if there
    are none, the others, sorted.

    Raises InputError if the root does not exist or contains no category.
    """
    root = check_root(root, "mvtec")
    present = folders(root)
    found = tuple(name for name in CATEGORIES if name in present) or _others(present)
    if not found:
        hint = "name the folder that contains the categories"
        if "train" in present:
            hint = f"it looks like one category itself, so try --root {root.parent}"
        raise InputError(f"no category of MVTec AD is in --root {root}; {hint}")
    return found


def _others(present):
    """Names of the other folders, of a dict name -> path, that contain train/good, a tuple."""
    return tuple(
        name for name, path in present.items()
        if name not in CATEGORIES and (path / "train" / GOOD).is_dir()
    )  # fmt: skip


def load(root, name):
    """Load one category, sorted by kind of defect, then file name.

    Parameters: root, path of the data set; name, one of categories(root) or another folder with
    the same layout.
    Returns Category; validation/good, if added to MVTec AD's folders, decides the thresholds.
    Raises InputError for an unknown category (lists the known ones), a missing or empty
    folder, a name that looks like good, and images and masks that do not match one to one.
    """
    root = check_root(root, "mvtec")
    others = _others(folders(root))
    check_category(name, tuple(dict.fromkeys((*categories(root), *others))), root)
    base, passed = root / name, []
    good = kinds(base / "train").get(GOOD, base / "train" / GOOD)
    passed += images(base / "train", passed, [good])
    train = normal_samples(some_images(good, REMEDY, passed), root)
    test = defect_samples(base / "test", base / "ground_truth", root, passed, LAYOUT)
    validation = validation_samples(base / "validation", root, passed, EXPECTED)
    notes, place = passed_over(passed, base), str(base.resolve())
    if name in others:
        n = len(CATEGORIES)
        notes = (f"{name} is not one of MVTec AD's {n} categories but is read like them", *notes)
    return Category("mvtec", name, train, test, True, validation, notes, place)
