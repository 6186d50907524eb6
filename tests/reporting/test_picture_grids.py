"""Picture grids of a made-up OUT: the panels, the details, what lies over what."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tiled_ref.data.resizing import resize_mask
from tiled_ref.reporting import picture_grids as grids
from tiled_ref.reporting.drawing import render
from tiled_ref.running import analysis, stored_images


def test_picture_grid_holds_image_truth_heat_map_and_mask_side_by_side(made):
    found, _, collection = made
    picture = np.asarray(Image.open(io.BytesIO(found["pictures_toys_padim"].data)))
    step = grids.PANEL + grids.GAP
    columns = 2 + 2 * 2
    assert picture.shape[0] == grids.HEADER + 2 * step
    bar = render.with_color_bar(np.full((grids.PANEL, 0, 3), 255, np.uint8))
    beside = picture[grids.HEADER : grids.HEADER + grids.PANEL, -bar.shape[1] :]
    np.testing.assert_array_equal(beside, bar)
    left = picture.shape[1] - bar.shape[1] - columns * step
    row = picture[grids.HEADER : grids.HEADER + grids.PANEL, left:]
    panels = [row[:, k * step : k * step + grids.PANEL] for k in range(columns)]
    assert (np.unique(panels[3].reshape(-1, 3)).tolist()) in ([0, 255], [0], [255])  # a mask
    images = collection.images("toys", "one")
    heat, mask = panels[2], panels[3][:, :, 0] == 255
    cell = collection.first_seeds(dataset="toys", category="one", arch="padim")[0][1]
    values = [grids.resized_map(shades, heat.shape[:2]) for shades in cell.maps]
    shown = [n for n, v in enumerate(values) if (heat == render.overlay(panels[0], v)).all()]
    assert len(shown) == 1 and images.labels[shown[0]]
    np.testing.assert_array_equal(mask, resize_mask(cell.masks[shown[0]], mask.shape))
    # ground truth is the image with an outline: equal far from the defect
    same = (panels[0] == panels[1]).all(2)
    assert 0.6 < same.mean() < 1
    assert images.labels.sum() == 3


def test_details_by_hand():
    """An image of 8 x 8, the window its rows 2 and 3 and columns 4 to 7; of a map of 4 x 4 one
    row and two columns. Half of the panel's width shows the one column, half the other."""
    window = stored_images.Window(0, 0, 2, 4, 4, 8, (8, 8))
    whole = np.arange(16, dtype=np.uint8).reshape(4, 4)
    seen = grids._seen(whole[window.within((4, 4))], window, (4, 4))
    half = grids.ZOOM_PANEL // 2
    assert seen.shape == (grids.ZOOM_PANEL, grids.ZOOM_PANEL)
    assert np.unique(seen[:, :half]) == [6] and np.unique(seen[:, half:]) == [7]
    window = stored_images.Window(0, 0, 3, 5, 5, 7, (8, 8))  # across the map's pixels
    seen = grids._seen(whole[window.within((4, 4))], window, (4, 4))
    assert seen[0, 0] == 6 and seen[-1, 0] == 10 and seen[0, -1] == 7 and seen[-1, -1] == 11


def test_zoom_grid_shows_the_same_defect_at_every_resolution(made):
    """Made-up maps show the masks: in the zoomed masks of both setups lies the true defect."""
    found, _, collection = made
    picture = np.asarray(Image.open(io.BytesIO(found["figure_04_zoom_toys_one_padim"].data)))
    images = collection.images("toys", "one")
    cells = collection.first_seeds(dataset="toys", category="one", arch="padim")
    number = grids._worth_showing(cells, images)
    window, size = images.windows[number], grids.ZOOM_PANEL
    assert picture.shape[0] == 2 * grids.HEADER + 3 * (size + grids.GAP)
    bar = render.with_color_bar(np.full((grids.PANEL, 0, 3), 255, np.uint8))
    left = picture.shape[1] - bar.shape[1] - (size + grids.GAP)
    tops = [grids.HEADER * (1 + (k > 0)) + k * (size + grids.GAP) for k in range(3)]
    truth, *masks = (picture[top : top + size, left : left + size, 0] == 255 for top in tops)
    assert (truth == grids._seen(images.zoom_masks[number], window, window.size)).all()
    assert truth.any()
    for mask, (_, cell) in zip(masks, cells):
        marks = cell.masks[window.image]
        marks = grids._seen(marks[window.within(marks.shape)], window, marks.shape)
        above = grids._seen(cell.zooms[number], window, cell.map_size) >= 128
        assert (mask == (above & marks)).all() and mask.sum() > above.sum() / 2
        assert 0 < mask.mean() < 1
        assert mask[truth].mean() > mask[~truth].mean()
    assert grids.zoom_grid(cells[:1], images, "toys", "one", "padim") == []


def test_the_detail_shown_is_the_smallest_that_a_setup_finds_half_of():
    def cell(*recalls):
        return {}, SimpleNamespace(recall=np.array([[0, r, 1] for r in recalls]))

    windows = [stored_images.Window(region, 0, 0, 0, 1, 1, (9, 9)) for region in (2, 0, 1)]
    images = SimpleNamespace(windows=windows)
    assert analysis.FPRS[1] == analysis.REPORT_FPR
    assert grids._worth_showing([cell(1, 1, 0.49), cell(0, 0, 0.5)], images) == 0
    assert grids._worth_showing([cell(0.5, 1, 0.49), cell(0, 1, 0)], images) == 1
    assert grids._worth_showing([cell(0.4, 0.4, 0.4)], images) == 2


@pytest.mark.parametrize("side, rings", [(24, [0, 255, 0, 90]), (4, [0, 255])])
def test_the_frame_lies_in_the_picture(side, rings):
    panel = np.full((side, side, 3), 90, np.uint8)
    window = stored_images.Window(0, 0, 0, 0, side, side, (side, side))
    out = grids._framed(panel, window)
    assert [out[k, side // 2, 0] for k in range(len(rings))] == rings
    assert [out[-1 - k, side // 2, 0] for k in range(len(rings))] == rings and (panel == 90).all()


def test_the_picture_shown_does_not_depend_on_the_architecture(made):
    found, _, _ = made
    one, other = (
        np.asarray(Image.open(io.BytesIO(found[f"pictures_toys_{arch}"].data)))
        for arch in ("padim", "patchcore")
    )
    bar = render.with_color_bar(np.full((grids.PANEL, 0, 3), 255, np.uint8))
    left = one.shape[1] - bar.shape[1] - 6 * (grids.PANEL + grids.GAP)
    assert (one[:, left : left + grids.PANEL] == other[:, left : left + grids.PANEL]).all()
