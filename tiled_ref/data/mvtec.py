"""MVTec AD, as unpacked from its archive.

Bergmann, Batzner, Fauser, Sattlegger, Steger, "The MVTec Anomaly Detection Dataset", IJCV
2021. Layout:

    <root>/<category>/train/good/000.png
                      test/good/000.png
                      test/<defect>/000.png
                      ground_truth/<defect>/000_mask.png
"""

from ..support.errors import InputError
from .disk import FileSample, check_category, check_root, folders, printable, some_images
from .samples import ANOMALOUS, GOOD, NORMAL, Category

CATEGORIES = (
    "bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut",
    "pill", "screw", "tile", "toothbrush", "transistor", "wood", "zipper",
)  # fmt: skip


def categories(root):
    """The categories of MVTec AD whose folder is under root, in the data set's order.

    Raises InputError if the root does not exist or holds none.
    """
    root = check_root(root, "mvtec")
    present = folders(root)
    found = tuple(name for name in CATEGORIES if name in present)
    if not found:
        hint = "name the folder that holds the categories"
        if "train" in present:
            hint = f"it looks like one category itself, so try --root {root.parent}"
        raise InputError(f"no category of MVTec AD is in --root {root}; {hint}")
    return found


def load(root, name):
    """One category, sorted by kind of defect, then file name.

    Parameters: root, path of the data set; name, one of categories(root).
    Returns Category.
    Raises InputError for an unknown category (lists the known ones), a missing or empty
    folder, a missing mask.
    """
    root = check_root(root, "mvtec")
    check_category(name, categories(root), root)
    base = root / name
    remedy = "unpack the archive of MVTec AD again"
    train = tuple(
        FileSample(printable(path, root), NORMAL, GOOD, path)
        for path in some_images(base / "train" / GOOD, remedy)
    )
    test = []
    for defect in folders(base / "test"):
        for path in some_images(base / "test" / defect, remedy):
            label, mask = NORMAL, None
            if defect != GOOD:
                label, mask = ANOMALOUS, base / "ground_truth" / defect / f"{path.stem}_mask.png"
                if not mask.is_file():
                    raise InputError(f"the mask {mask} of the image {path} is missing; {remedy}")
            text = printable(path, root)
            test.append(FileSample(text, label, printable(defect), path, mask))
    if not test:
        raise InputError(f"the folder {base / 'test'} holds no folders of images; {remedy}")
    return Category("mvtec", name, train, tuple(test), has_masks=True)
