"""Detected images and localised defects per kind of defect, by hand and of a real cell."""

from types import SimpleNamespace

import numpy as np
import pytest
from made_up import made_up_cell, small

from tiled_ref.metrics import label_regions
from tiled_ref.reporting.collection import Collection
from tiled_ref.reporting.detection import count, detection
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
    pixels, marked = marked_pixels(maps, images, thresholds, options)
    parts = []
    for image_map, sample, n in zip(maps, category.test, pixels):
        found = marks(enlarge(image_map, (96, 96)), 0.55, 7, options.rules.roi) > 0
        assert n == found.sum() > 0
        if sample.label:
            regions = label_regions(sample.read_mask()[None])[0]
            parts += [found[regions == k].mean() for k in range(1, regions.max() + 1)]
    np.testing.assert_allclose(marked, parts, rtol=1e-6)
    assert marked_pixels(maps, images, {"pixel": None}, options) == (None, None)


def test_the_table_has_a_row_for_every_kind_and_a_column_for_every_setup(tmp_path):
    category = small(n_train=2, n_good=2, n_bad=3)
    for setup in ("SM256", "ENS4"):
        made_up_cell(tmp_path, category, setup=setup)
    table = detection(Collection(tmp_path), category.dataset, "padim")
    assert [row[0] for row in table.rows] == ["toy, good", "toy, square"]
    assert table.headers[3:] == ["SM256", "ENS4"] and table.rows[1][1:3] == ["3", "3"]
    quantities = [record["quantity"] for record in table.records]
    assert quantities.count("localised") == quantities.count("detected") == 4
    assert "need not have its defect localised" in table.notes[0]
