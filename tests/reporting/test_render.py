"""Colours, overlays, colour bars and outlines."""

import io

import numpy as np
import pytest
from PIL import Image

from tiled_ref.data.encoders import encode_jpeg, encode_png, encode_tiff, text_coverage
from tiled_ref.reporting.drawing.render import (
    COLORS,
    HALO,
    LINE,
    colormap,
    contours,
    draw_contours,
    label_regions,
    number,
    overlay,
    with_color_bar,
)  # fmt: skip
from tiled_ref.support.errors import InputError


def enclosed(polygon):
    """Shoelace, scalar: positive clockwise with rows down."""
    total = 0
    for (r0, c0), (r1, c1) in zip(polygon, [*polygon[1:], polygon[0]]):
        total += int(c0) * int(r1) - int(c1) * int(r0)
    return total / 2


def test_colours_at_the_nodes_and_beyond():
    values = np.array([[0.0, 1.0, -3.0, 7.0, np.nan, 5 / 9]])
    expected = [COLORS[0], COLORS[-1], COLORS[0], COLORS[-1], COLORS[0]]
    out = colormap(values)
    np.testing.assert_array_equal(out[0, :5], expected)
    assert np.abs(out[0, 5].astype(int) - COLORS[5]).max() <= 2  # 255 steps do not hit 5/9


def test_overlay_by_hand():
    """A fifth of grey 0.299 * 200 + 0.587 * 100 + 0.114 * 0 = 118.5, the rest dark red (128, 8, 20);
    where the map is 0, grey alone."""
    image = np.array([[[200, 100, 0]] * 2], np.uint8)
    out = overlay(image, np.array([[1.0, 0.0]]))
    np.testing.assert_array_equal(out[0], [[126, 30, 40], [118, 118, 118]])


def test_overlay_is_the_same_in_strips(rng, monkeypatch):
    image = rng.integers(0, 256, (37, 11, 3)).astype(np.uint8)
    values = rng.random((37, 11))
    whole = overlay(image, values)
    monkeypatch.setattr("tiled_ref.reporting.drawing.render.ROWS_AT_ONCE", 5)
    np.testing.assert_array_equal(overlay(image, values), whole)


def test_outlines_by_hand():
    """A ring joined at a corner to a pixel, and a pixel by itself."""
    mask = np.array(
        [
            [0, 0, 0, 0, 0, 0],
            [0, 1, 1, 1, 0, 0],
            [0, 1, 0, 1, 0, 0],
            [0, 1, 1, 1, 0, 0],
            [0, 0, 0, 0, 1, 0],
            [1, 0, 0, 0, 0, 0],
        ],
        bool,
    )
    first, second = contours(mask)
    assert (first.area, first.box) == (9, (1, 1, 5, 5))
    outer, hole = (polygon.tolist() for polygon in first.outline)
    assert outer == [[1, 1], [1, 4], [4, 4], [4, 5], [5, 5], [5, 4], [4, 4], [4, 1]]
    assert hole == [[2, 2], [3, 2], [3, 3], [2, 3]]
    assert (second.area, second.box) == (1, (5, 0, 6, 1))
    assert second.outline[0].tolist() == [[5, 0], [5, 1], [6, 1], [6, 0]]


def test_outlines_enclose_the_area_of_each_region(rng):
    for _ in range(60):
        mask = rng.random(rng.integers(1, 12, 2)) < rng.random()
        regions = contours(mask)
        assert sum(region.area for region in regions) == mask.sum()
        for region in regions:
            assert sum(map(enclosed, region.outline)) == region.area
            assert enclosed(region.outline[0]) > 0
            assert all(enclosed(hole) < 0 for hole in region.outline[1:])
            corners = np.concatenate(region.outline)
            assert (*corners.min(0), *corners.max(0)) == region.box


def test_no_regions_and_one_that_fills_the_image():
    assert contours(np.zeros((4, 5), bool)) == []
    (region,) = contours(np.full((4, 5), 7, np.uint8))
    assert region.outline[0].tolist() == [[0, 0], [0, 5], [4, 5], [4, 0]]


@pytest.mark.parametrize("shade", [0, 128, 255])
def test_contours_are_seen_on_any_image_and_leave_the_region_alone(shade):
    picture = np.full((40, 50, 3), shade, np.uint8)
    mask = np.zeros((40, 50), bool)
    mask[10:20, 10:30] = True
    out = draw_contours(picture, mask)
    np.testing.assert_array_equal(out[mask], picture[mask])
    np.testing.assert_array_equal(out[9, 15], LINE)
    np.testing.assert_array_equal(out[8, 15], HALO)
    np.testing.assert_array_equal(out[7, 15], [shade] * 3)
    np.testing.assert_array_equal(draw_contours(picture, ~mask & mask), picture)


def squares(shape, *corners, side=4):
    """A mask with squares at these corners, and its regions."""
    mask = np.zeros(shape, bool)
    for row, col in corners:
        mask[row : row + side, col : col + side] = True
    return contours(mask), mask


def test_a_label_lies_above_its_region_and_below_where_another_one_is_there():
    """11 rows of text and 4 around it, 4 from the region: rows 81 to 95, and 108 to 122."""
    white = np.full((200, 200, 3), 255, np.uint8)
    regions, mask = squares((200, 200), (100, 98), (100, 106))
    first, both = label_regions(white, regions[:1], mask), label_regions(white, regions, mask)
    assert np.flatnonzero((first != white).any(axis=(1, 2))).tolist() == [*range(81, 96)]
    assert np.flatnonzero((both != first).any(axis=(1, 2))).tolist() == [*range(108, 123)]
    np.testing.assert_array_equal(both[[81, 108], [100, 108]], 255 // 4)
    assert (white == 255).all()


def test_a_label_that_finds_no_place_is_left_out(rng):
    """Where the picture has room for one only, the larger region's; and for none, none."""
    picture = rng.integers(0, 256, (17, 96, 3)).astype(np.uint8)
    (small,), tiny = squares((17, 96), (0, 0), side=2)
    (large,), mask = squares((17, 96), (8, 20))
    out = label_regions(picture, [large, small], mask | tiny)
    np.testing.assert_array_equal(out, label_regions(picture, [large], mask))
    assert (out != picture).any() and (out == picture)[mask | tiny].all()
    nothing = np.zeros_like(mask)
    np.testing.assert_array_equal(label_regions(picture[:14], [small], nothing), picture[:14])
    narrow = label_regions(picture[:, :20], [small], nothing)
    np.testing.assert_array_equal(narrow, picture[:, :20])


def test_the_picture_beside_the_colour_bar_keeps_its_pixels(rng):
    picture = rng.integers(0, 256, (120, 90, 3)).astype(np.uint8)
    out = with_color_bar(picture, 0.0, 2.0, [(1.0, "middle")], "score")
    np.testing.assert_array_equal(out[:120, :90], picture)
    assert out.shape[0] == 120 and out.shape[1] > 90
    beside = out[:, 90:].reshape(-1, 3)
    for colour in (COLORS[0], COLORS[-1]):
        assert (beside == colour).all(1).any()


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 700, 3), (700, 3, 3)])
def test_a_colour_bar_fits_beside_any_picture(shape):
    out = with_color_bar(np.zeros(shape, np.uint8), 1.0, 1.0, [(1.0, "x"), (9.0, "off")], "score")
    assert out.shape[0] >= shape[0] and out.shape[1] > shape[1]


def test_numbers_are_short():
    assert [number(x) for x in (0, 0.5, 12.3456, 1e9)] == ["0", "0.5", "12.3", "1e+09"]


def test_pictures_and_maps_survive_their_files(rng):
    colour = rng.integers(0, 256, (5, 7, 3)).astype(np.uint8)
    for array in (colour, colour[:, :, 0], colour[:, :, 0] > 100):
        back = np.array(Image.open(io.BytesIO(encode_png(array))))
        np.testing.assert_array_equal(back, array * np.uint8(255) if array.dtype == bool else array)
    values = rng.standard_normal((5, 7)).astype(np.float32)
    back = Image.open(io.BytesIO(encode_tiff(values)))
    assert back.mode == "F"
    np.testing.assert_array_equal(np.array(back), values)
    smooth = np.full((16, 16, 3), (10, 100, 200), np.uint8)
    back = np.array(Image.open(io.BytesIO(encode_jpeg(smooth))))
    assert np.abs(back.astype(int) - smooth).max() <= 3


@pytest.mark.parametrize("height", [8, 16, 40])
def test_text_has_its_height_and_ink(height):
    coverage = text_coverage("0.5 ü", height)
    assert coverage.shape[0] == height and coverage.max() > 128
    wide = text_coverage("0.5 0.5 0.5", height)
    assert wide.shape[1] > coverage.shape[1]


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: encode_png(np.zeros((2, 2), np.float32)), "a picture must be uint8"),
        (lambda: encode_png(np.zeros((0, 2), np.uint8)), "a picture must be uint8"),
        (lambda: encode_tiff(np.zeros((2, 2))), "a TIFF map must be float32"),
        (lambda: overlay(np.zeros((2, 2, 3), np.uint8), np.zeros((3, 3))), "enlarge the map"),
        (lambda: overlay(np.zeros((2, 2)), np.zeros((2, 2))), "a picture must be uint8"),
        (lambda: contours(np.zeros((1, 2, 2), bool)), r"a mask must be \(H, W\)"),
        (lambda: draw_contours(np.zeros((2, 2, 3), np.uint8), np.zeros((3, 3))), "the mask is"),
    ],
)
def test_wrong_arrays_are_refused(call, sentence):
    with pytest.raises(InputError, match=sentence):
        call()
