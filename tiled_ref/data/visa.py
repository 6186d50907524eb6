"""VisA, read through its table of images.

Zou, Jeong, Pemula, Zhang, Dabeer, "SPot-the-Difference Self-Supervised Pre-training for
Anomaly Detection and Segmentation", ECCV 2022. `<root>/split_csv/1cls.csv` lists every
image, with paths relative to the root:

    object,split,label,image,mask
    candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png
"""

import csv
from pathlib import Path

from ..support.errors import InputError
from .disk import FileSample, check_category, check_root, folders, nfc
from .samples import ANOMALOUS, GOOD, NORMAL, Category

CATEGORIES = (
    "candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2",
    "pcb1", "pcb2", "pcb3", "pcb4", "pipe_fryum",
)  # fmt: skip
COLUMNS = ("object", "split", "label", "image", "mask")
LABELS = {"normal": NORMAL, "anomaly": ANOMALOUS}
DEFECT = "anomaly"  # the table does not distinguish kinds of defects


def categories(root):
    """The categories of VisA with a folder in root, in the data set's order.

    Raises InputError if the root does not exist or contains no category.
    """
    root = check_root(root, "visa")
    present = folders(root)
    found = tuple(name for name in CATEGORIES if name in present)
    if not found:
        raise InputError(
            f"no category of VisA is in --root {root}; name the folder that contains them and "
            "split_csv"
        )
    return found


def load(root, name):
    """Load one category, sorted by path, normal test images first.

    Parameters: root, path of the data set; name, one of categories(root).
    Returns Category.
    Raises InputError for an unknown category (lists the known ones), a missing or malformed
    table, and a listed file that is missing or listed twice.
    """
    root = check_root(root, "visa")
    check_category(name, categories(root), root)
    table = root / "split_csv" / "1cls.csv"
    splits, lines = {"train": [], "test": []}, {}
    for line, row in _rows(table):
        if row["object"] != name:
            continue
        where = f"line {line} of {table}"
        label = LABELS.get(row["label"])
        if label is None or row["split"] not in splits or not row["image"]:
            raise InputError(
                f"{where} has the split {row['split']!r}, the label {row['label']!r} and the "
                f"image {row['image']!r}; expected train or test, normal or anomaly, and a path"
            )
        if label == ANOMALOUS and (row["split"] == "train" or not row["mask"]):
            problem = "has no mask" if not row["mask"] else "is a training image"
            raise InputError(f"the anomalous image {row['image']} on {where} {problem}")
        for text in (row["image"], row["mask"]):
            if Path(text).is_absolute() or ".." in Path(text).parts:
                raise InputError(
                    f"{text!r} on {where} points outside --root {root}; correct the line"
                )
            key = nfc(Path(text).as_posix())
            if text and key in lines:
                raise InputError(
                    f"{text!r} on {where} is also on line {lines[key]}; correct one, because every "
                    "image and mask belongs on a single line"
                )
            lines[key] = line
        path = root / row["image"]
        mask = root / row["mask"] if label == ANOMALOUS else None
        for file in (path, mask):
            if file is not None and not file.is_file():
                raise InputError(f"{file}, listed on {where}, is missing; unpack VisA again")
        defect = DEFECT if label == ANOMALOUS else GOOD
        splits[row["split"]].append(FileSample(row["image"], label, defect, path, mask))
    for split, samples in splits.items():
        if not samples:
            raise InputError(f"{table} lists no {split} images of {name}; unpack VisA again")
        samples.sort(key=lambda sample: (sample.label, sample.name))
    train, test = map(tuple, (splits["train"], splits["test"]))
    return Category("visa", name, train, test, True, folder=str((root / name).resolve()))


def _rows(table):
    """Yields (line number, dict) of the table; InputError if it is missing or malformed."""
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise InputError(f"the first line of {table} is not {','.join(COLUMNS)}")
            for row in reader:
                if None in row or None in row.values():
                    raise InputError(
                        f"line {reader.line_num} of {table} does not have {len(COLUMNS)} columns"
                    )
                yield reader.line_num, row
    except FileNotFoundError as error:
        raise InputError(f"{table} is missing; unpack VisA again") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table} cannot be read as a table: {error}") from error
