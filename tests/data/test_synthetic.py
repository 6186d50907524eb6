"""The built-in data set: always the same pictures, exact masks, and the tools that draw them."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tiled_ref.data import board, drawing, synthetic
from tiled_ref.support.errors import InputError

SCENES = synthetic.categories()
KINDS = [(name, kind) for name in SCENES for kind in synthetic._SCENES[name].DEFECTS]


# ------------------------------------------------------------------------------- the set


def test_three_categories_the_board_first():
    assert SCENES == ("board", "bolt", "weave")
    assert synthetic.DEFAULT_CATEGORY == "board"
    with pytest.raises(InputError, match="'bord'.*choose from: board, bolt, weave$"):
        synthetic.load(None, "bord")


@pytest.mark.parametrize("name", SCENES)
def test_what_a_category_holds(name):
    category = synthetic.load(None, name)
    assert (category.dataset, category.name, category.has_masks) == ("synthetic", name, True)
    assert len(category.train) == synthetic.N_TRAIN
    assert all(s.label == 0 and s.defect == "good" for s in category.train)
    labels = [s.label for s in category.test]
    assert labels == [0] * synthetic.N_GOOD + [1] * synthetic.N_DEFECTIVE
    kinds = {s.defect for s in category.test if s.label}
    assert kinds == set(synthetic._SCENES[name].DEFECTS) == set(synthetic._SCENES[name]._DRAW)
    samples = (*category.train, *category.test)
    assert len({s.name for s in samples}) == len({s.key for s in samples}) == len(samples)
    assert category.test[0].name == f"{name}/test/good/000.png"
    assert category.test[-1].name.startswith(f"{name}/test/{category.test[-1].defect}/")


def test_categories_share_no_picture():
    keys = [s.key for name in SCENES for s in synthetic.load(None, name).test]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("name", SCENES)
def test_a_picture_depends_on_its_key_alone(name):
    """Drawn twice, in another order, from threads, after other use of NumPy's global state."""
    category = synthetic.load(None, name, n_train=2, n_good=1, n_defective=1)
    samples = (*category.train, *category.test)
    first = [s.read_image() for s in samples]
    np.random.seed(5)
    state = np.random.get_state()[1].copy()
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(lambda s: s.read_image(), samples[::-1]))[::-1]
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    for one, two, sample in zip(first, again, samples):
        assert one.shape == (1024, 1024, 3) and one.dtype == np.uint8
        assert one.shape[:2] == sample.read_size()
        np.testing.assert_array_equal(one, two)
    assert len({image.tobytes() for image in first}) == len(first)
    assert samples[0].read_mask() is None and samples[2].read_mask() is None
    assert samples[3].read_mask().any()


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_a_mask_is_what_the_defect_changed(name, kind):
    """Outside of the mask not a bit differs from the picture without the defect."""
    key = (1, 2, 3)
    clean, none = synthetic.draw(name, None, key)
    flawed, mask = synthetic.draw(name, kind, key)
    assert none is None and mask.dtype == bool and mask.shape == (1024, 1024)
    changed = (clean != flawed).any(axis=2)
    assert not changed[~mask].any()
    # Measured: from 0.51 (a broken yarn, half of which ran below others) to 1.00.
    assert changed[mask].mean() > 0.4
    assert 20 <= mask.sum() <= 5 * 80 * 80


@pytest.mark.parametrize(("name", "kind"), [("board", "solder_ball"), ("weave", "hole")])
def test_a_mask_reaches_to_the_soft_edge_of_a_defect(name, kind):
    """Outside the mask a defect covers at most a tenth of a pixel: of 255 levels, 25."""
    key = (7, 8, 9)
    rngs = [np.random.default_rng([*key, stream]) for stream in (0, 3)]
    clean, flawed, cover = synthetic._SCENES[name].render(rngs[0], kind, rngs[1])
    _, mask = synthetic.draw(name, kind, key)
    assert np.abs(flawed - clean)[~mask].max() <= 25.5 < np.abs(flawed - clean)[mask].max()
    assert cover[mask].min() > 0.1 and (cover[mask] < 1).any()


def test_a_picture_is_exposed_like_a_photograph():
    """Neither black nor white over large parts, and with noise."""
    for name in SCENES:
        image = synthetic.load(None, name).train[0].read_image()
        assert 60 < image.mean() < 210
        assert (image == 0).mean() < 0.02 and (image == 255).mean() < 0.02
        assert np.abs(np.diff(image.astype(int), axis=0)).mean() > 2


def test_the_board_is_drawn_once_and_never_written_to():
    before = board._board().picture.copy()
    for kind in ("missing_part", "scratch"):
        synthetic.draw("board", kind, (4, 5))
    assert board._board() is board._board()
    np.testing.assert_array_equal(board._board().picture, before)


def test_a_place_at_the_border_of_the_board_or_beyond_it_is_not_free():
    """50 px stay empty all around, and a box of 9 px to each side has to fit."""
    free, inner = board._board()._free, board.SIZE - 59
    for x, y in ((60, 700), (700, 60), (inner - 1, 400), (400, inner - 1)):
        assert free(x, y, 9, 9), (x, y)
    for x, y in ((59, 700), (700, 59), (inner, 400), (400, inner), (-500, 400), (400, 5000)):
        assert not free(x, y, 9, 9), (x, y)


def test_diameters_are_8_to_80_and_mostly_small():
    rng = np.random.default_rng(0)
    sizes = np.array([drawing.diameter(rng) for _ in range(4000)])
    assert sizes.min() >= 8 and sizes.max() <= 80
    # u = 1/2: 8 * 10^(0.5^2.2) = 13.2
    assert np.median(sizes) == pytest.approx(13.2, abs=0.5)
    assert 0.02 < (sizes > 60).mean() < 0.1  # u > (lg 7.5)^(1/2.2) = 0.944


def test_one_to_five_spots_half_of_the_time_one():
    rng = np.random.default_rng(0)
    counts = np.bincount([drawing.how_many(rng) for _ in range(4000)]) / 4000
    np.testing.assert_allclose(counts, [0, 0.5, 0.25, 0.125, 0.0625, 0.0625], atol=0.03)


# ----------------------------------------------------------------------------- the tools


def test_coverage_by_hand():
    """With softness 2: on the edge a half, one px inside all, one px outside nothing."""
    np.testing.assert_array_equal(
        drawing.coverage(np.array([-3, -1, -0.5, 0, 0.5, 1, 3]), 2.0), [1, 1, 0.75, 0.5, 0.25, 0, 0]
    )


def test_distances_by_hand():
    x, y = np.array([0.0, 7, 7, 0]), np.array([0.0, 0, 7, 7])
    np.testing.assert_allclose(drawing.box(x, y, 3, 4), [-3, 4, 5, 3])  # 3-4-5 at the corner
    np.testing.assert_allclose(drawing.disc(x, y, 7), [-7, 0, np.sqrt(98) - 7, 0])
    np.testing.assert_allclose(drawing.segment(x, y, 3, 0, 3, 4), [3, 4, 5, np.sqrt(18)])
    corner = [(0, 0), (7, 0), (7, 7)]
    np.testing.assert_allclose(drawing.path(x, y, corner), [0, 0, 0, 7])


@pytest.mark.parametrize("reach", [4, (4, 9)])
def test_windows_are_cut_at_the_border(reach):
    picture = np.zeros((30, 40, 3), np.float32)
    for x, y in ((20, 15), (1, 29), (-3, 2), (60, 60), (39.5, -20)):
        window = drawing.Window(picture.shape, x, y, reach)
        part = picture[window.index]
        assert part.shape[:2] == (window.y.shape[0], window.x.shape[1])
        if part.size:
            rows, cols = window.index
            assert window.x[0, 0] == cols.start - np.float32(x)
            assert window.y[-1, 0] == rows.stop - 1 - np.float32(y)


def test_blend_paints_by_opacity():
    picture = np.full((4, 4, 3), 100, np.float32)
    window = drawing.Window(picture.shape, 1, 1, 0)
    drawing.blend(picture, window, np.full(picture[window.index].shape[:2], 0.25), (200, 0, 100))
    np.testing.assert_array_equal(picture[1, 1], [125, 75, 100])
    np.testing.assert_array_equal(picture[3, 3], [100, 100, 100])


def test_the_four_weights_of_a_field_sum_to_one():
    first, weights = drawing._spline(100, 7.3)
    np.testing.assert_allclose(weights.sum(0), 1, atol=1e-6)  # measured: 1.2e-7
    np.testing.assert_allclose(weights[:, 0], [1 / 6, 4 / 6, 1 / 6, 0], atol=1e-7)
    assert first[0] == 0 and first[-1] == 13  # 99 / 7.3 = 13.6


def test_a_field_is_smooth_noise_of_unit_deviation():
    field = drawing.field(np.random.default_rng(1), (600, 500), (5, 4))
    assert field.shape == (600, 500) and field.dtype == np.float32
    assert abs(field.mean()) < 0.06 and field.std() == pytest.approx(1, abs=0.05)
    assert np.abs(np.diff(field, axis=0)).mean() < 0.35  # white noise: 1.13


def test_a_field_is_its_definition():
    """The sum over 4 x 4 knots, scalar float64."""
    shape, cell = (9, 11), (2.5, 4)
    got = drawing.field(np.random.default_rng(3), shape, cell)
    rows, cols = (drawing._spline(n, c) for n, c in zip(shape, cell))
    knots = np.random.default_rng(3).standard_normal((rows[0][-1] + 4, cols[0][-1] + 4), np.float32)
    for y in range(shape[0]):
        for x in range(shape[1]):
            total = 0.0
            for a in range(4):
                for b in range(4):
                    knot = float(knots[rows[0][y] + a, cols[0][x] + b])
                    total += float(rows[1][a, y]) * float(cols[1][b, x]) * knot
            assert got[y, x] == pytest.approx(total / 0.479, abs=1e-5)  # measured: 5e-7


def test_a_shift_by_whole_and_half_pixels():
    picture = np.random.default_rng(2).uniform(0, 255, (90, 80, 3)).astype(np.float32)
    np.testing.assert_array_equal(drawing.shifted(picture, 3, 5, 70), picture[5:75, 3:73])
    half = drawing.shifted(picture, 3.5, 5, 70)
    np.testing.assert_allclose(half, (picture[5:75, 3:73] + picture[5:75, 4:74]) / 2, atol=1e-4)
    quarter = drawing.shifted(picture, 3, 5.25, 70)
    np.testing.assert_allclose(
        quarter, 0.75 * picture[5:75, 3:73] + 0.25 * picture[6:76, 3:73], atol=1e-4
    )


def test_soften_keeps_constants_and_spreads_a_point():
    assert (drawing.soften(np.full((5, 5, 3), 7, np.float32)) == 7).all()
    point = np.zeros((5, 5, 1), np.float32)
    point[2, 2] = 16
    np.testing.assert_array_equal(
        drawing.soften(point)[1:4, 1:4, 0], [[1, 2, 1], [2, 4, 2], [1, 2, 1]]
    )


def test_widened_is_the_largest_neighbour():
    alpha = np.random.default_rng(4).uniform(0, 1, (9, 8)).astype(np.float32)
    got = drawing.widened(alpha)
    for y in range(9):
        for x in range(8):
            assert got[y, x] == alpha[max(0, y - 3) : y + 4, max(0, x - 3) : x + 4].max()


def test_letters_are_made_of_their_dots():
    """ "1" is 8 dots: 010 110 010 010 111."""
    picture = np.zeros((40, 40, 3), np.float32)
    drawing.letters(picture, "1", 20, 20, 4, (1, 1, 1))
    assert picture[..., 0].sum() == pytest.approx(8 * 16, rel=0.03)
    assert picture[12, 20, 0] == 1 and picture[12, 16, 0] == 0 and picture[28, 24, 0] == 1
