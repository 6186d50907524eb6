"""Data sets that `folder` reads through links: the code of data/README.md on copies of their layouts."""

import json

import numpy as np
import pytest
from _data_files import write_image, write_mask
from readme import block

from tiled_ref.data import folder
from tiled_ref.data.encoders import encode_png
from tiled_ref.data.images import decode_mask

BLOCK = block("test: layouts")


@pytest.fixture
def make():
    names = {}
    exec(compile(BLOCK.text, BLOCK.where, "exec"), names)
    return names


def mask_of(*pixels):
    mask = np.zeros((8, 8), bool)
    for pixel in pixels:
        mask[pixel] = True
    return mask


def write(path, mask):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(mask))


def found(root, **options):
    """{kind of defect: number of images} of the one category, its training images, the sizes of
    its defects."""
    (name,) = folder.categories(root)
    category = folder.load(root, name, **options)
    kinds = {}
    for sample in category.test:
        kinds[sample.defect] = kinds.get(sample.defect, 0) + 1
    defects = [int(sample.read_mask().sum()) for sample in category.test if sample.label]
    return kinds, len(category.train), defects, len(category.validation)


def test_btad(make, tmp_path):
    source = tmp_path / "BTech_Dataset_transformed" / "01"
    for k in range(3):
        write_image(source / "train" / "ok" / f"{k:04d}.bmp", seed=k)
    write_image(source / "test" / "ok" / "0000.bmp")
    write_image(source / "test" / "ko" / "0001.bmp")
    write_mask(source / "ground_truth" / "ko" / "0001.png")
    make["btad"](source, tmp_path / "parts" / "01")
    kinds, n_train, defects, _ = found(tmp_path / "parts")
    assert (kinds, n_train) == ({"good": 1, "ko": 1}, 3) and defects[0] > 0


def test_kolektor_sdd2(make, tmp_path):
    """A defective training image is left out; a black mask says that an image is normal."""
    source, bad = tmp_path / "KolektorSDD2", {("train", 1), ("test", 0), ("test", 2)}
    for split in "train", "test":
        for k in range(3):
            write_image(source / split / f"{10000 + k}.png", seed=k, height=8)
            mask = mask_of((1, 1), (2, k)) if (split, k) in bad else mask_of()
            write(source / split / f"{10000 + k}_GT.png", mask)
    make["kolektor_sdd2"](source, tmp_path / "parts" / "ksdd2")
    assert found(tmp_path / "parts", mask_folder="gt") == ({"defect": 2, "good": 1}, 2, [2, 2], 0)


def test_mvtec_loco(make, tmp_path):
    """The masks of an image, with any grey values, are one."""
    source = tmp_path / "mvtec_loco" / "juice_bottle"
    for split in "train/good", "validation/good", "test/good":
        write_image(source / split / "000.png", height=8)
    for kind in "logical_anomalies", "structural_anomalies":
        write_image(source / "test" / kind / "000.png", height=8)
        write(source / "ground_truth" / kind / "000" / "000.png", mask_of((0, 0)))
    grey = mask_of((3, 3), (3, 4)).astype(np.uint8) * 37
    write(source / "ground_truth" / "logical_anomalies" / "000" / "001.png", grey)
    make["mvtec_loco"](source, tmp_path / "parts" / "juice_bottle")
    kinds, n_train, defects, n_validation = found(tmp_path / "parts")
    assert kinds == {"good": 1, "logical_anomalies": 1, "structural_anomalies": 1}
    assert (n_train, defects, n_validation) == (1, [3, 1], 1)
    joined = tmp_path / "parts/juice_bottle/ground_truth/logical_anomalies/000.png"
    assert (decode_mask(joined) == mask_of((0, 0), (3, 3), (3, 4))).all()


def test_real_iad(make, tmp_path):
    base, name = tmp_path / "realiad_1024" / "audiojack", "audiojack_{:04d}_{}_C1_20230101.{}"
    entries = {"train": [], "test": []}
    for k, (split, kind) in enumerate([("train", "OK"), ("train", "OK"), ("test", "OK"), ("test", "QS")]):
        folder_ = "OK" if kind == "OK" else f"NG/{kind}"
        image = f"{folder_}/S{k:04d}/{name.format(k, kind, 'jpg')}"
        write_image(base / image, seed=k, height=8)
        mask = None
        if kind != "OK":
            mask = image.replace(".jpg", ".png")
            write(base / mask, mask_of((5, 5)))
        entries[split].append({"category": "audiojack", "anomaly_class": kind,
                               "image_path": image, "mask_path": mask})  # fmt: skip
    table = tmp_path / "audiojack.json"
    meta = {"normal_class": "OK", "prefix": "audiojack/"}
    table.write_text(json.dumps({"meta": meta, **entries}))
    make["real_iad"](tmp_path / "realiad_1024", table, tmp_path / "parts" / "audiojack")
    assert found(tmp_path / "parts") == ({"QS": 1, "good": 1}, 2, [1], 0)
