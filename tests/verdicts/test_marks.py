"""Marks: regions of pixels at or above a threshold, at the size of the image."""

import numpy as np
import pytest

from tiled_ref.setups import Recipe
from tiled_ref.support.errors import InputError
from tiled_ref.verdicts.marks import check_marks, locations_seen, mark_value, marks, read_roi


def by_hand(values, threshold, min_area, roi):
    """Flood fill, one pixel after the other."""
    reached = (values >= threshold) & (True if roi is None else roi)
    labels, n = np.zeros(values.shape, np.int32), 0
    for start in zip(*np.nonzero(reached)):
        if labels[start] or not reached[start]:
            continue
        region, stack = {start}, [start]
        while stack:
            y, x = stack.pop()
            for place in ((y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
                inside = all(0 <= k < side for k, side in zip(place, values.shape))
                if inside and reached[place] and place not in region:
                    region.add(place)
                    stack.append(place)
        n += len(region) >= min_area
        for place in region:
            labels[place] = n if len(region) >= min_area else 0
            reached[place] = False
    return labels


@pytest.mark.parametrize("impl", ["cython", "numpy"])
@pytest.mark.parametrize("min_area", [1, 2, 5])
def test_marks_equal_a_flood_fill(rng, impl, min_area):
    for k in range(20):
        values = rng.integers(0, 5, (7, 9)).astype(np.float32)
        roi = None if k % 2 else rng.random((7, 9)) < 0.7
        for threshold in (1, 2, 4, 9):
            np.testing.assert_array_equal(
                marks(values, threshold, min_area, roi, impl),
                by_hand(values, threshold, min_area, roi),
            )


@pytest.mark.parametrize("min_area", [1, 2, 5, 63, 64])
def test_mark_value_is_the_largest_threshold_with_a_mark(rng, min_area):
    for k in range(12):
        values = rng.integers(-3, 4, (7, 9)).astype(np.float32) / 2
        roi = None if k % 2 else rng.random((7, 9)) < 0.7
        levels = [v for v in np.unique(values) if by_hand(values, v, min_area, roi).any()]
        assert mark_value(values, min_area, roi) == max(levels, default=-np.inf)


def test_a_mark_that_does_not_fit_and_a_roi_of_another_size_are_refused():
    check_marks((4, 5), 20, np.ones((4, 5), bool))
    with pytest.raises(InputError, match="a mark of 21 pixels does not fit into part.png"):
        check_marks((4, 5), 21, None, "part.png")
    with pytest.raises(InputError, match="4 x 4 px but part.png is 4 x 5 px .* draw it at the size"):
        check_marks((4, 5), 1, np.ones((4, 4), bool), "part.png")


@pytest.mark.parametrize("size", [(512, 512), (100, 333), (1024, 1024), (3, 3)])
def test_a_location_is_seen_where_a_pixel_of_it_is_white(rng, size):
    """Against the roi enlarged to where every tile edge is a whole pixel."""
    grid = Recipe("ENS9").grid
    assert locations_seen(grid, None).all()
    for _ in range(10):
        roi = np.zeros(size, bool)
        y, x = (int(rng.integers(side)) for side in size)
        roi[y, x] = True
        seen = locations_seen(grid, roi)
        for location in grid.locations():
            # the pixel covers [y, y + 1) of size[0]; the window [start, stop) of the image's side
            touches = [
                k * side < w.stop * n and (k + 1) * side > w.start * n
                for k, n, side, w in zip((y, x), size, grid.image_size, grid.window(*location))
            ]
            assert seen[location] == all(touches)


def test_a_roi_is_read_from_its_white_pixels(tmp_path):
    from tiled_ref.data.encoders import encode_png

    roi = np.zeros((6, 8), np.uint8)
    roi[2:4, 3:] = 255
    (tmp_path / "roi.png").write_bytes(encode_png(roi))
    np.testing.assert_array_equal(read_roi(tmp_path / "roi.png"), roi > 0)
    (tmp_path / "black.png").write_bytes(encode_png(roi * 0))
    with pytest.raises(InputError, match="black.png is all black; paint the area"):
        read_roi(tmp_path / "black.png")
