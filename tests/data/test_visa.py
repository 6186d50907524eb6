"""VisA: its table of images, the real one and damaged ones."""

import csv
from collections import Counter

import numpy as np
import pytest
from _data_files import picture, touch, write_image, write_mask

from tiled_ref.data import visa
from tiled_ref.support.errors import InputError

HEADER = "object,split,label,image,mask"
ROWS = [
    "candle,train,normal,candle/Data/Images/Normal/0002.JPG,",
    "candle,train,normal,candle/Data/Images/Normal/0000.JPG,",
    "candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png",
    "candle,test,normal,candle/Data/Images/Normal/0001.JPG,",
    "pcb1,train,normal,pcb1/Data/Images/Normal/0000.JPG,",
    "pcb1,test,normal,pcb1/Data/Images/Normal/0001.JPG,",
]


def write_table(root, rows, header=HEADER):
    text = "\n".join([header, *rows]) + "\n"
    touch(root / "split_csv" / "1cls.csv", text.encode())


@pytest.fixture
def root(tmp_path):
    for row in ROWS:
        _, _, label, image, mask = row.split(",")
        write_image(tmp_path / image)
        if mask:
            write_mask(tmp_path / mask, value=2)
    write_table(tmp_path, ROWS)
    return tmp_path


def test_a_category_is_sorted_normal_images_first(root):
    assert visa.categories(root) == ("candle", "pcb1")
    category = visa.load(root, "candle")
    assert (category.dataset, category.name, category.has_masks) == ("visa", "candle", True)
    assert [s.name for s in category.train] == [
        "candle/Data/Images/Normal/0000.JPG", "candle/Data/Images/Normal/0002.JPG",
    ]  # fmt: skip
    assert [(s.name, s.label, s.defect) for s in category.test] == [
        ("candle/Data/Images/Normal/0001.JPG", 0, "good"),
        ("candle/Data/Images/Anomaly/000.JPG", 1, "anomaly"),
    ]
    assert category.test[1].read_mask().sum() == 6
    assert category.test[0].read_mask() is None


def test_jpeg_images_are_read(root):
    got = visa.load(root, "pcb1").train[0].read_image()
    assert got.shape == picture().shape


@pytest.mark.real
def test_every_category_of_the_real_table_has_its_counts(shared, tmp_path):
    """The real table, with one tiny image linked under every name that it lists."""
    table = shared / "data" / "visa" / "split_csv" / "1cls.csv"
    image = tmp_path / "image.jpg"
    write_image(image)
    mask = tmp_path / "mask.png"
    expected_mask = write_mask(mask, value=1)
    counts = Counter()
    root = tmp_path / "visa"
    (root / "split_csv").mkdir(parents=True)
    (root / "split_csv" / "1cls.csv").write_bytes(table.read_bytes())
    made = set()
    with open(table, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            counts[row["object"], row["split"], row["label"]] += 1
            for name, source in ((row["image"], image), (row["mask"], mask)):
                if name:
                    path = root / name
                    if path.parent not in made:
                        path.parent.mkdir(parents=True)
                        made.add(path.parent)
                    path.symlink_to(source)
    assert visa.categories(root) == visa.CATEGORIES
    assert len(visa.CATEGORIES) == 12 and sum(counts.values()) == 10_821
    for name in visa.CATEGORIES:
        category = visa.load(root, name)
        test = Counter(sample.label for sample in category.test)
        assert len(category.train) == counts[name, "train", "normal"]
        assert test[0] == counts[name, "test", "normal"]
        assert test[1] == counts[name, "test", "anomaly"] == 100
        names = [sample.name for sample in (*category.train, *category.test)]
        assert len(set(names)) == len(names)
        bad = [sample for sample in category.test if sample.label]
        np.testing.assert_array_equal(bad[0].read_mask(), expected_mask)
        np.testing.assert_array_equal(bad[-1].read_image().shape, (6, 8, 3))
    # Zou et al., Table 1, for three of them: the table above is what the paper describes.
    assert len(visa.load(root, "candle").train) == 900
    assert len(visa.load(root, "pcb3").train) == 905
    assert len(visa.load(root, "capsules").train) == 542


TABLES = [  # rows and header of the table, and a part of the error
    (ROWS[:0], HEADER, "lists no train images of candle"),
    (ROWS[:2], HEADER, "lists no test images of candle"),
    (ROWS, "object,split,label,image", "the first line of"),
    (["candle,train,normal"], HEADER, "1cls.csv does not have 5 columns"),
    (["candle,train,normal,a,b,c"], HEADER, "does not have 5 columns"),
    (["candle,train,good,a.JPG,"], HEADER, "the label 'good'"),
    (["candle,val,normal,a.JPG,"], HEADER, "the split 'val'"),
    (["candle,test,normal,,"], HEADER, "the image ''"),
    (["candle,train,anomaly,a.JPG,a.png"], HEADER, "a.JPG on line 2 of"),
    (["candle,test,anomaly,a.JPG,"], HEADER, "has no mask"),
    (["candle,train,normal,candle/gone.JPG,"], HEADER, "gone.JPG, listed on line 2 of"),
]


@pytest.mark.parametrize(("rows", "header", "says"), TABLES, ids=[t[2] for t in TABLES])
def test_a_table_that_does_not_fit_is_refused(root, rows, header, says):
    write_table(root, rows, header)
    with pytest.raises(InputError) as caught:
        visa.load(root, "candle")
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (ROWS[0], "'candle/Data/Images/Normal/0002.JPG' on line 8 of "),
        (ROWS[3].replace("Normal/", "Normal/./"), "'candle/Data/Images/Normal/./0001.JPG' on line 8"),
        (ROWS[0].replace("train", "test"), "is also on line 2"),
        (ROWS[2].replace("Images/Anomaly/000", "Images/Normal/0009"),
         "'candle/Data/Masks/Anomaly/000.png' on line 8 of "),
        ("candle,test,anomaly,candle/x.png,candle/x.png", "'candle/x.png' on line 8 of "),
    ],
)  # fmt: skip
def test_what_is_listed_twice_is_refused_with_both_lines(root, row, says):
    write_image(root / row.split(",")[3])
    write_table(root, [*ROWS, row])
    with pytest.raises(InputError) as caught:
        visa.load(root, "candle")
    assert says in str(caught.value) and "is also on line" in str(caught.value)


def test_a_missing_mask_file_is_named(root):
    (root / "candle/Data/Masks/Anomaly/000.png").unlink()
    with pytest.raises(InputError, match="Masks/Anomaly/000.png, listed on line 4 of.*missing"):
        visa.load(root, "candle")


def test_a_missing_or_unreadable_table(root):
    touch(root / "split_csv" / "1cls.csv", b"object\xff\xfe,split\n")
    with pytest.raises(InputError, match="1cls.csv cannot be read as a table"):
        visa.load(root, "candle")
    (root / "split_csv" / "1cls.csv").unlink()
    with pytest.raises(InputError, match="1cls.csv is missing"):
        visa.load(root, "candle")


def test_unknown_categories_and_roots(root):
    with pytest.raises(InputError, match="choose from: candle, pcb1$"):
        visa.load(root, "pcb2")
    with pytest.raises(InputError, match="no category of VisA"):
        visa.categories(root / "candle")
    with pytest.raises(InputError, match="does not exist"):
        visa.categories(root / "nowhere")
    with pytest.raises(InputError, match="name its folder with --root"):
        visa.load(None, "candle")
