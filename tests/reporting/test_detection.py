"""Detected images and localised defects per kind of defect, by hand and of a real cell."""

import statistics
from types import SimpleNamespace

import numpy as np
import pytest
from made_up import made_up_cell, made_up_maps, small

from tiled_ref.metrics import label_regions
from tiled_ref.reporting.collection import Collection
from tiled_ref.reporting.detection import count, detection, verdicts
from tiled_ref.running.analysis import marked_pixels
from tiled_ref.running.category_images import CategoryImages
from tiled_ref.running.cell import Options
from tiled_ref.support.progress import Progress
from tiled_ref.verdicts.marks import enlarge, marks
from tiled_ref.verdicts.thresholds import Rules

# Five images: two good, two scratched (three defects), one dented (one defect).
IMAGES = SimpleNamespace(
    defects=["good", "good", "scratch", "scratch", "dent"], sizes=np.full((5, 2), 10),
    region_image=np.array([2, 2, 3, 4]), region_area=np.array([10, 30, 5, 8]),
)  # fmt: skip
CELL = SimpleNamespace(
    scores=np.array([1.0, 3.0, 3.0, 0.5, 2.0]), threshold=2.0,
    mark_pixels=np.array([0, 50, 9, 9, 0]), marked=np.array([0.5, 0.1, 0.0, 0.0]),
)  # fmt: skip


def test_kinds_are_counted_by_hand():
    good = count(IMAGES, CELL, "good")
    assert good["of"] == (2, 2) and good["found"] == (1, 1)
    assert (good["detected"], good["localised"], good["marked"]) == (50, 50, 25)
    scratch = count(IMAGES, CELL, "scratch")
    assert scratch["of"] == (2, 3) and scratch["found"] == (1, 2)
    assert scratch["detected"] == 50 and scratch["localised"] == pytest.approx(200 / 3)
    assert scratch["marked"] == pytest.approx(100 * (0.5 * 10 + 0.1 * 30) / 45)
    dent = count(IMAGES, CELL, "dent")  # detected, not localised
    assert dent["found"] == (1, 0) and dent["localised"] == dent["marked"] == 0


def test_marks_of_a_cell_are_counted_at_the_images_sizes(rng):
    category = small(n_train=2, n_good=2, n_bad=3)
    options = Options(rules=Rules(min_area=7, roi=rng.random((96, 96)) < 0.9))
    images = CategoryImages(category, options, Progress(quiet=True))
    maps = rng.random((5, 48, 48)).astype(np.float32)
    thresholds = {"pixel": {"threshold": 0.55}, "min_area": 7}
    pixels, marked, masks = marked_pixels(maps, images, thresholds, options)
    parts, kept = [], iter(masks)
    for image_map, sample, n in zip(maps, category.test, pixels):
        found = marks(enlarge(image_map, (96, 96)), 0.55, 7, options.rules.roi) > 0
        assert n == found.sum() > 0
        smaller = found.reshape(48, 2, 48, 2).any((1, 3))  # a map has a side of 48 px
        np.testing.assert_array_equal(next(kept), smaller)
        if sample.label:
            regions = label_regions(sample.read_mask()[None])[0]
            parts += [found[regions == k].mean() for k in range(1, regions.max() + 1)]
    np.testing.assert_allclose(marked, parts, rtol=1e-6)
    nothing = marked_pixels(maps, images, {"pixel": None}, options)
    assert nothing[:2] == (None, None) and not nothing[2].any()


@pytest.mark.parametrize("label, called, pixels, parts, said", [
    (0, False, 0, [], ("ok", "normal")),
    (0, False, 1234, [], ("ok", "normal, but 1,234 px marked")),
    (0, True, 0, [], ("fp", "anomalous: false alarm, but no mark")),
    (0, True, 7, [], ("fp", "anomalous: false alarm, 7 px marked")),
    (1, True, 9, [0.5, 0, 1], ("ok", "anomalous, 2 of 3 defects localised")),
    (1, True, 9, [0.0], ("nl", "anomalous: detected, not localised")),  # marked elsewhere
    (1, True, 0, [0.0, 0], ("nl", "anomalous: detected, not localised")),
    (1, False, 9, [0.2], ("fn", "normal: missed, but 1 of 1 defect localised")),
    (1, False, 0, [0.0, 0], ("fn", "normal: missed, 0 of 2 defects localised")),
    (1, True, 0, [], ("ok", "anomalous, but no mark")),  # without a mask
    (1, False, 5, [], ("fn", "normal: missed, but 5 px marked")),
    (1, True, None, [], ("ok", "anomalous")),  # without a pixel threshold
    (0, True, None, [], ("fp", "anomalous: false alarm")),
])  # fmt: skip
def test_the_verdict_of_an_image_says_whether_its_defects_are_localised(
    label, called, pixels, parts, said
):
    """The image is the second of two; the first has two defects that are not its own."""
    of_image = np.array([0, 0] + [1] * len(parts))
    images = SimpleNamespace(labels=np.array([1, label]), region_image=of_image)
    known = pixels is not None
    cell = SimpleNamespace(
        scores=np.array([9.0, 2.0 if called else 1.5]), threshold=2.0,
        mark_pixels=np.array([4, pixels]) if known else None,
        marked=np.array([1.0, 0.0, *parts]) if known else None,
    )  # fmt: skip
    assert verdicts(images, cell)[1] == said


def flood(mask):
    """The regions of a mask as lists of (row, column), by walking to all eight neighbours."""
    left, found = {tuple(p) for p in np.argwhere(mask).tolist()}, []
    while left:
        region, edge = [], [left.pop()]
        while edge:
            row, col = edge.pop()
            region.append((row, col))
            near = {(row + a, col + b) for a in (-1, 0, 1) for b in (-1, 0, 1)} & left
            left -= near
            edge += near
        found.append(region)
    return found


def test_the_table_by_brute_force(tmp_path):
    """Two setups and three seeds of one of them, counted pixel by pixel from maps and masks."""
    category = small(n_train=2, n_good=3, n_bad=4)
    for setup, seed in (("SM256", 42), ("ENS4", 1), ("ENS4", 2), ("ENS4", 3)):
        made_up_cell(tmp_path, category, setup=setup, seed=seed)
    collection = Collection(tmp_path)
    table = detection(collection, category.dataset, "padim")
    counted = {}
    for result, cell in collection.cells():
        maps, scores = made_up_maps(category, result["setup"], result["seed"])
        limits = result["thresholds"]
        for sample, image_map, score in zip(category.test, maps, scores):
            large = enlarge(image_map, sample.read_size())
            reached = flood(large >= np.float32(limits["pixel"]["threshold"]))
            marks_of = {p for r in reached if len(r) >= limits["min_area"] for p in r}
            defects = flood(sample.read_mask()) if sample.label else []
            one = counted.setdefault((result["setup"], sample.defect, result["seed"]), np.zeros(6))
            one += [
                1, score >= limits["image"]["threshold"], len(defects) or not sample.label,
                sum(bool(marks_of & set(d)) for d in defects) if defects else bool(marks_of),
                len(marks_of) if not defects else sum(len(marks_of & set(d)) for d in defects),
                large.size if not defects else sum(map(len, defects)),
            ]  # fmt: skip
    rows = {(row[1], row[0].split(", ")[1].split()[0]): row[2:] for row in table.rows}
    assert list(rows) == [(s, k) for k in ("good", "square") for s in ("SM256", "ENS4")]
    for (setup, kind), (images, detected, defects, localised, pixels) in rows.items():
        seeds = [one for key, one in counted.items() if key[:2] == (setup, kind)]
        n, _, m, *_ = seeds[0]

        def text(values, form, end):
            numbers = [statistics.mean(values)]
            numbers += [statistics.stdev(values)] if len(values) > 2 else []
            shown = [round(v, 1) if form == "g" else v for v in numbers]
            return " ± ".join(f"{v:{form}}" for v in shown) + end

        assert images == str(int(n)) and defects == ("-" if kind == "good" else str(int(m)))
        assert detected == text([one[1] for one in seeds], "g", f" of {n:g}")
        assert localised == text([one[3] for one in seeds], "g", f" of {m:g}")
        assert pixels == text([100 * one[4] / one[5] for one in seeds], ".3g", " %")
    assert "can be detected without its defect" in table.notes[0]
    assert len(table.records) == 4 * 3 and "over the seeds 1, 2, 3, 42" in table.notes[1]
