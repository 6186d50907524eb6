"""What a report needs of a cell: thresholds of an FPR, recall of each defect, small maps."""

from dataclasses import dataclass

import numpy as np
import pytest
from made_up import QUIET, made_up_cell
from toys import toy_category

from tiled_ref import metrics
from tiled_ref.data import Category, Sample
from tiled_ref.running import analysis, stored_images
from tiled_ref.running.category_images import CategoryImages
from tiled_ref.running.cell import Options
from tiled_ref.setups import SETUPS
from tiled_ref.support.errors import InputError

GIVEN = {"min_area": 1, "image": {"threshold": 0.5}, "pixel": {"threshold": 0.5}}


@dataclass(frozen=True)
class Drawn(Sample):
    """A sample whose mask is given as text, a row a line, "#" anomalous."""

    mask: str = ""

    def read_image(self):
        height, width = self.read_mask().shape
        return np.full((height, width, 3), 90, np.uint8)

    def read_mask(self):
        return np.array([[char == "#" for char in row] for row in self.mask.split()])


def drawn(*masks):
    test = tuple(Drawn(f"{k}.png", int("#" in m), "x", m) for k, m in enumerate(masks))
    return CategoryImages(Category("d", "c", test[:1], test, True), Options(), QUIET)


def test_threshold_of_an_fpr_by_hand():
    """100 normal pixels: 98 in bin 0, one each in 5 and 9. At most 1 of 100 above: bin 6."""
    counts = np.zeros(analysis.BINS, np.int64)
    counts[0], counts[5], counts[9] = 98, 1, 1
    edges = np.arange(analysis.BINS)
    assert [analysis.fpr_edge(counts, edges, f) for f in (0.0, 0.01, 0.02, 1.0)] == [10, 6, 1, 0]
    full = np.ones(analysis.BINS, np.int64)
    assert analysis.fpr_edge(full, edges, 0.0) == np.inf


def test_histograms_count_every_pixel_once_and_nothing_unknown(rng):
    maps = rng.random((3, 8, 8), np.float32)
    masks = rng.random((3, 8, 8)) < 0.3
    low, high = analysis.value_range(maps)
    normal, anomalous = analysis.histograms(zip(maps, masks, [1, 1, 1]), low, high)
    assert normal.sum() == (~masks).sum() and anomalous.sum() == masks.sum()
    assert normal[0] + anomalous[0] >= 1 and normal[-1] + anomalous[-1] >= 1  # both ends
    normal, anomalous = analysis.histograms(zip(maps, [None] * 3, [0, 1, 0]), low, high)
    assert normal.sum() == 2 * 64 and not anomalous.any()  # the defective one has no mask
    constant = np.zeros((1, 4, 4), np.float32)
    assert analysis.histograms([(constant[0], None, 0)], 0.0, 0.0)[0][0] == 16


def test_recall_of_each_defect_by_hand():
    """An image of 4 x 4 with two defects; a map of 2 x 2, whose pixels are 2 x 2 of it.

    The upper defect has 3 pixels, 2 of them in the upper left pixel of the map; the lower one
    1 pixel in the lower right.
    """
    images = drawn("##.. ....", "##.. #... .... ...#", "....")
    maps = np.array([[[0, 0], [0, 0]], [[5, 1], [2, 3]], [[9, 9], [9, 9]]], np.float32)
    recall = analysis.region_recall(maps[:2], images, [2.5, 4], Options())
    # the first image is 2 x 4: its defect of 2 pixels lies in the upper left pixel, worth 0
    assert recall.tolist() == [[0, 0], [1, 1], [1, 0]]
    images = drawn(".##. .... .... ....")
    recall = analysis.region_recall(maps[1:2], images, [2.5], Options())
    assert recall.tolist() == [[0.5]]  # one pixel under the 5, the other under the 1


def test_a_defect_that_the_setup_cannot_see_still_counts():
    """One pixel of 8 x 8, which resizing to 4 x 4 drops (it takes pixels 0, 2, 4, 6)."""
    mask = "........ " * 3 + "...#.... " + "........ " * 4
    images = drawn(mask.strip(), "........ " * 7 + "........")
    assert not images.masks((4, 4)).any()
    maps = np.zeros((2, 4, 4), np.float32)
    maps[0, 1, 1] = 1
    assert analysis.region_recall(maps, images, [0.5], Options()).tolist() == [[1.0]]


def only_window(images):
    (window,) = stored_images.zoom_windows(images, Options())
    return window


def test_windows_of_defects_by_hand(monkeypatch):
    """Areas 1, 1, 2, 4 in two parts: of each the upper one of its two. The first is the pixel
    (2, 5) of 20 x 10, and the window a square of twice its side, 2 = 10 // 5, with it in the
    middle as far as whole pixels go; the second has 2 x 2 pixels and so a square of 4."""
    monkeypatch.setattr(stored_images, "ZOOMS", 2)
    rows = [list("." * 10) for _ in range(20)]
    rows[2][5] = "#"
    other = [list("." * 10) for _ in range(20)]
    other[0][0] = other[9][0] = other[9][1] = "#"
    for a, b in ((17, 8), (17, 9), (18, 8), (18, 9)):
        other[a][b] = "#"
    text = [" ".join("".join(row) for row in mask) for mask in (other, rows)]
    images = drawn(text[0], text[1], " ".join(["." * 10] * 20))
    window, other = stored_images.zoom_windows(images, Options())
    assert window == stored_images.Window(3, 1, 1, 4, 3, 6, (20, 10))
    assert other == stored_images.Window(2, 0, 16, 6, 20, 10, (20, 10))
    # of a map of 10 x 10 that is half as high: row 0.5 to 1.5, whole pixels around it
    assert window.within((10, 10)) == (slice(0, 2), slice(4, 6))
    assert window.within((20, 10)) == (slice(1, 3), slice(4, 6))


@pytest.mark.parametrize(
    "place, corner", [((0, 0), (0, 0)), ((29, 39), (24, 34)), ((15, 20), (12, 17))]
)
def test_a_window_stays_in_the_image(place, corner):
    """30 x 40 with one pixel: a square of 6, moved into the image."""
    mask = np.zeros((30, 40), bool)
    mask[place] = True
    images = drawn(" ".join("".join(".#"[pixel] for pixel in row) for row in mask.astype(int)))
    window = only_window(images)
    assert (window.top, window.left) == corner
    assert (window.bottom, window.right) == (corner[0] + 6, corner[1] + 6)


def test_a_large_defect_fills_half_of_its_window_or_the_window_the_image():
    wide = drawn(" ".join(["." * 40] * 10 + [".####" + "." * 35] * 3 + ["." * 40] * 17))
    window = only_window(wide)
    assert (window.bottom - window.top, window.right - window.left) == (8, 8)
    window = only_window(drawn(" ".join(["#" * 12] * 10)))
    assert (window.top, window.left, window.bottom, window.right) == (0, 1, 10, 11)
    assert stored_images.zoom_windows(drawn("....", "...."), Options()) == []


def test_the_kept_defects_are_spread_over_all_sizes():
    """20 defects of 1 to 20 pixels, eight parts of 2.5: the defects of 2, 4, 7, 9, 12, ... of
    the list that starts with 0."""
    images = drawn(*("#" * n + "." * (40 - n) for n in range(20, 0, -1)))
    windows = stored_images.zoom_windows(images, Options())
    places = [(2 * j + 1) * 20 // 16 for j in range(8)]
    assert places == [1, 3, 6, 8, 11, 13, 16, 18]
    assert [20 - window.region for window in windows] == [place + 1 for place in places]
    assert [window.image for window in windows] == [window.region for window in windows]


def test_details_are_kept_at_the_resolution_of_map_and_file(tmp_path):
    folder = made_up_cell(tmp_path, toy_category(side=700), setup="SM512")
    cell, images = analysis.load_analysis(folder), stored_images.load_images(folder.parents[2])
    assert len(images.windows) == len(images.zooms) == len(images.zoom_masks) == 4
    assert len(cell.zooms) == 4 and cell.map_size == (512, 512)
    for k, window in enumerate(images.windows):
        assert window.size == (700, 700) and window.bottom - window.top == 140
        rows, cols = window.within((512, 512))
        assert cell.zooms[k].shape == (rows.stop - rows.start, cols.stop - cols.start)
        assert cell.zooms[k].max()
        sample = toy_category(side=700).test[window.image]
        part = sample.read_mask()[window.top : window.bottom, window.left : window.right]
        assert (images.zoom_masks[k] == part).all() and part.sum() == 14 * 14
        picture = stored_images.encoders.decode_bytes(images.zooms[k]).astype(int)
        file = sample.read_image()[window.top : window.bottom, window.left : window.right]
        assert picture.shape == file.shape and abs(picture - file).mean() < 8  # a JPEG


def test_image_roc_is_that_of_the_exact_auroc(rng):
    scores = rng.integers(0, 6, 40).astype(float)  # many ties
    labels = rng.integers(0, 2, 40)
    curve = analysis.image_roc(scores, labels)
    area = np.trapezoid(curve.height, curve.fpr)
    assert area == pytest.approx(metrics.auroc(scores, labels), abs=1e-12)
    assert (curve.fpr[0], curve.height[0], curve.fpr[-1], curve.height[-1]) == (0, 0, 1, 1)
    assert analysis.image_roc(scores, np.ones(40, int)) is None


def test_block_means_keep_the_mean_and_small_maps_their_values(rng):
    values = rng.random((512, 384))
    small = stored_images.reduce_mean(values)
    assert small.shape == (128, 96)
    assert small[3, 5] == pytest.approx(values[12:16, 20:24].mean())
    odd = rng.random((300, 131))
    assert stored_images.reduce_mean(odd).shape == (128, 56)
    assert (stored_images.reduce_mean(values[:9, :7]) == values[:9, :7]).all()
    assert stored_images.reduce_mean(np.full((301, 257), 0.25)) == pytest.approx(0.25)


def test_a_small_mask_keeps_every_defect():
    mask = np.zeros((512, 512), bool)
    mask[301, 77] = True
    small = stored_images.reduce_any(mask, (128, 128))
    assert np.argwhere(small).tolist() == [[75, 19]]
    assert stored_images.reduce_any(mask[300:302, 76:78], (4, 4)).sum() == 4  # enlarged: nearest


def test_maps_are_normalised_so_that_128_is_the_threshold():
    images = CategoryImages(toy_category(), Options(), QUIET)
    maps = np.zeros((8, 256, 256), np.float32)
    maps[:, :128] = 0.5
    maps[:, :, 200:] = 1.0
    got = analysis.analyse(maps, maps.max((1, 2)), images, SETUPS["SM256"], Options(), GIVEN)
    assert got.maps.shape == (8, 128, 128)
    assert np.unique(got.maps).tolist() == [0, 128, 255]
    almost = np.nextafter(0.5, 0)
    shades = analysis.shade(np.array([[almost, 0.5]]), 0.0, 0.5, 1.0)
    assert shades.tolist() == [[127, 128]]
    assert analysis.shade(np.array([[1.0, 2.0, 3.0]]), 2.0, 2.0, 2.0).tolist() == [[0, 128, 255]]
    assert (got.maps[0, :64, :100] == 128).all()
    none = GIVEN | {"pixel": None}
    got = analysis.analyse(maps, maps.max((1, 2)), images, SETUPS["SM256"], Options(), none)
    assert got.pixel_threshold == 1.0  # no threshold: nothing is above the largest value


def test_what_is_written_is_read(tmp_path):
    category = toy_category()
    folder = made_up_cell(tmp_path, category)
    cell, images = analysis.load_analysis(folder), stored_images.load_images(folder.parents[2])
    assert images.names == [sample.name for sample in category.test]
    assert images.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert images.region_area.tolist() == [14 * 14] * 4 and len(cell.recall) == 4
    assert images.region_image.tolist() == [4, 5, 6, 7]
    assert images.ratios[4] == pytest.approx(14**2 / 96**2, rel=0.05) and images.ratios[0] == 0
    assert all(data[:2] == b"\xff\xd8" for data in images.jpegs)
    assert images.sizes.tolist() == [[96, 96]] * 8
    assert 0 < np.interp(0.3, cell.pro.fpr, cell.pro.height) <= 1 and cell.image_roc.fpr[-1] == 1
    digest = images.digest
    assert cell.identity == "" and analysis.is_complete(folder, digest, "")
    assert not analysis.is_complete(folder, "other", "")
    assert not analysis.is_complete(folder, digest, "other")


def test_files_do_not_depend_on_when_they_are_written(tmp_path):
    one, other = (made_up_cell(tmp_path / name, toy_category()) for name in "ab")
    for name in (analysis.ANALYSIS, "metrics.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    images = [folder.parents[2] / stored_images.IMAGES for folder in (one, other)]
    assert images[0].read_bytes() == images[1].read_bytes()


def test_thumbnails_are_those_of_the_finest_setup(tmp_path):
    for setup in ("SM256", "SM512", "SM256"):
        folder = made_up_cell(tmp_path, toy_category(), setup=setup)
    assert stored_images.load_images(folder.parents[2]).thumbnail_size == (320, 320)


def test_a_damaged_file_is_named(tmp_path):
    folder = made_up_cell(tmp_path, toy_category())
    path = folder / analysis.ANALYSIS
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="analysis.npz is damaged"):
        analysis.load_analysis(folder)
    np.savez(path, schema=np.int64(99))
    with pytest.raises(InputError, match="another version"):
        analysis.load_analysis(folder)
    np.savez(path, schema=np.int64(stored_images.SCHEMA))
    with pytest.raises(InputError, match="damaged"):
        analysis.load_analysis(folder)
    path.unlink()
    with pytest.raises(InputError, match="missing"):
        analysis.load_analysis(folder)


@pytest.mark.parametrize("kind", [{"has_masks": False}, {"n_bad": 0}, {"n_good": 0}])
def test_what_is_undefined_is_left_out(tmp_path, kind):
    folder = made_up_cell(tmp_path, toy_category(**kind))
    cell = analysis.load_analysis(folder)
    if "n_good" in kind:
        assert cell.image_roc is None and cell.pro is not None and len(cell.recall) == 4
    else:
        assert cell.pro is None and cell.pixel_roc is None and len(cell.recall) == 0
        assert (cell.image_roc is None) == ("n_bad" in kind)
