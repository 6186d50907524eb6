"""The walk's stages of one position: they are what the model of the best tile computes there."""

import re

import numpy as np
import pytest
import torch
from toys import toy_category, toy_images

from tiled_ref.data.tiles import LocationImages
from tiled_ref.ensemble import TiledEnsemble
from tiled_ref.models import MODELS
from tiled_ref.models.maps import gaussian_blur, upsample_bilinear
from tiled_ref.models.padim import EPSILON
from tiled_ref.reporting.walk import page as pages
from tiled_ref.reporting.walk import position
from tiled_ref.reporting.walk.stages import walk
from tiled_ref.running.cell import Options
from tiled_ref.setups import Recipe, Setup

SETUP = Setup("toy", "ENS", (96, 96), (64, 64), (32, 32))
TRAIN = toy_images()


@pytest.fixture(scope="module", params=MODELS)
def walked(request, tiny_backbone):
    """(architecture, stages by name, the tile with the highest score, its model, its tiles)"""
    arch = request.param
    switches = {} if arch in ("padim", "patchcore") else {"steps": 2}
    recipe = Recipe(SETUP, arch, batch_size=4, switches=switches)
    bad = next(s for s in toy_category().test if s.label)
    image, truth = bad.read_image().transpose(2, 0, 1), bad.read_mask()
    none = np.zeros((1, 96, 96), bool)
    ensemble = TiledEnsemble(recipe, backbone=tiny_backbone)
    stages = walk(image, TRAIN, ensemble, Options(), TRAIN[:1], none, none.any((1, 2)), truth)
    by_name = {stage.name: stage for stage in stages}
    trained = TiledEnsemble(recipe, backbone=tiny_backbone).fit(TRAIN)
    model, tiles, scores = trained.make_model(), {}, {}
    for place, state in trained.states.items():
        model.load_state(state)
        tiles[place] = LocationImages(image[None], SETUP.input_grid, [place], model.device)[[0]]
        scores[place] = float(model.predict(tiles[place])[1])
    best = max(scores, key=scores.get)
    model.load_state(trained.states[best])
    return arch, by_name, best, model, tiles[best], scores[best]


def test_the_stages_of_one_position_end_in_the_map_of_the_best_tile(walked):
    """Defard et al. Eq. 2, Roth et al. Eq. 6, Yu et al. Sec. 3.3, Deng and Li Eq. 1 and 3."""
    arch, by_name, best, model, tile, _ = walked
    expected = by_name["tile-maps"].array[best][0]
    stage = next(
        s for name, s in by_name.items() if name in ("distances", "likelihoods", "cosines")
    )
    assert f"the highest-scoring tile {best}" in stage.text
    maps = torch.from_numpy(stage.array)
    if arch == "padim":
        maps = gaussian_blur(upsample_bilinear(maps[None], (64, 64)))[0]
    elif arch == "patchcore":
        maps = gaussian_blur(maps.repeat_interleave(8, 0).repeat_interleave(8, 1)[None])[0]
    elif arch == "fastflow":
        maps = maps.mean(0)
    else:
        maps = gaussian_blur(maps.prod(0)[None])[0]
    np.testing.assert_allclose(maps.numpy(), expected, rtol=2e-5, atol=1e-7)


def spot_of(picture):
    """The (row, column) of the middle of the white frame, in px of the picture."""
    rows, cols = np.nonzero((picture[:512, :512] == 255).all(2))
    return (rows.min() + rows.max()) / 2, (cols.min() + cols.max()) / 2


def test_the_frame_is_around_the_largest_value(walked):
    arch, by_name, *_ = walked
    if arch in ("padim", "patchcore"):
        values, picture = by_name["distances"].array, by_name["distances"].picture
        at = np.unravel_index(values.argmax(), values.shape)
        side = 512 / values.shape[0]
        assert spot_of(picture) == pytest.approx((np.array(at) + 0.5) * side, abs=side)
    else:
        text = by_name["likelihoods" if arch == "fastflow" else "cosines"].text
        at = [int(k) for k in re.search(r"pixel \((\d+), (\d+)\)", text).groups()]
        maps = by_name["likelihoods" if arch == "fastflow" else "cosines"].array
        combined = maps.mean(0) if arch == "fastflow" else maps.prod(0)
        assert combined[tuple(at)] == combined.max()


def test_the_numbers_of_the_position(walked):
    arch, by_name, best, model, tile, score = walked
    globals()[f"check_{arch}"](by_name, best, model, tile, score)


def check_padim(by_name, best, model, tile, score):
    """The covariance is that of the training images (Defard et al. Eq. 1), the distance Eq. 2."""
    distances = by_name["distances"].array
    p = int(distances.argmax())
    train = LocationImages(TRAIN, SETUP.input_grid, [best], model.device)
    x, test = (model.embed(images).flatten(2)[:, :, p].double().numpy()
               for images in (train[list(range(len(TRAIN)))], tile))  # fmt: skip
    sigma = np.cov(x.T) + 0.01 * np.eye(x.shape[1])
    np.testing.assert_allclose(by_name["covariance"].array, sigma, rtol=1e-3, atol=1e-4)
    delta = test[0] - x.mean(0)
    assert distances.max() == pytest.approx(
        (delta @ np.linalg.solve(sigma, delta)) ** 0.5, rel=1e-3
    )
    a, b, near = position.widest_pair(delta, sigma, 2 * EPSILON)
    np.testing.assert_allclose(
        by_name["gaussian"].array, np.vstack([x, test])[:, [a, b]], rtol=1e-5
    )
    assert f"the image lies {near:.3g} standard" in by_name["gaussian"].text


def check_patchcore(by_name, best, model, tile, score):
    """Roth et al. Eq. 6 and 7: the patch, m* and its neighbours give the tile's score."""
    patch, star, *_ = vectors = by_name["neighbourhood"].array.astype(float)
    bank = model.bank.numpy().astype(float)
    assert len(vectors) == 1 + min(9, len(bank))
    distances = np.linalg.norm(bank - patch, axis=1)
    assert np.array_equal(bank[distances.argmin()], star)
    assert distances.min() == pytest.approx(by_name["distances"].array.max())
    around = np.linalg.norm(vectors[1:] - patch, axis=1)
    weight = 1 - np.exp(around[0]) / np.exp(around).sum()
    assert weight * around[0] == pytest.approx(score, rel=1e-5)
    assert f"to the tile's score {score:.4g}." in by_name["neighbourhood"].text
    ranked = np.sort(np.linalg.norm(bank - star, axis=1))[: len(vectors) - 1]
    np.testing.assert_allclose(np.linalg.norm(vectors[1:] - star, axis=1), ranked, atol=1e-6)


def check_fastflow(by_name, best, model, tile, score):
    """z of the position and its likelihood (Yu et al. Sec. 3.3)."""
    z = model.outputs(model.features(tile))
    maps = by_name["likelihoods"].array.mean(0)
    at = np.array(np.unravel_index(maps.argmax(), maps.shape))
    hidden = np.split(by_name["hidden"].array, np.cumsum([64, 128]))
    for stride, layer, part in zip((4, 8, 16), z, hidden):
        row, col = at // stride
        np.testing.assert_allclose(part, layer[0, :, row, col].detach().numpy(), rtol=1e-5)
        assert f"{np.square(part).mean():.3g}" in by_name["hidden"].text


def check_reverse_distillation(by_name, best, model, tile, score):
    """Deng and Li Eq. 1 from the two vectors, in each layer."""
    maps = by_name["cosines"].array
    outputs = model.outputs(model.features(tile))
    at = np.array(np.unravel_index(maps.prod(0).argmax(), maps.shape[1:]))
    share = at / (np.array(maps.shape[1:]) - 1)  # the corners of maps and layers are the same
    pairs = np.split(by_name["vectors"].array, np.cumsum([64, 128]), axis=1)
    for e, d, (encoded, decoded) in zip(outputs[:3], outputs[3:], pairs):
        row, col = np.rint(share * (np.array(e.shape[-2:]) - 1)).astype(int)
        np.testing.assert_allclose(encoded, e[0, :, row, col].detach().numpy(), rtol=1e-5)
        np.testing.assert_allclose(
            decoded, d[0, :, row, col].detach().numpy(), rtol=1e-4, atol=1e-6
        )
        cosine = encoded @ decoded / np.linalg.norm(encoded) / np.linalg.norm(decoded)
        assert f"{1 - cosine:.3g}" in by_name["vectors"].text


def test_the_bank_is_drawn_at_its_distances_from_m_and_patch(rng, monkeypatch):
    drawn = []
    monkeypatch.setattr(position.svg.Chart, "points", lambda self, x, y, *_: drawn.append((x, y)))
    vectors = rng.normal(size=(12, 7))
    position._bank_chart(vectors, 4, 1.0)
    flat = np.hstack([np.stack(part) for part in drawn[::-1]]).T  # patch, m*, neighbours, others
    for k in (0, 1):
        expected = np.linalg.norm(vectors - vectors[k], axis=1)
        np.testing.assert_allclose(np.linalg.norm(flat - flat[k], axis=1), expected)


@pytest.mark.parametrize("side", [48, 64, 256, 512])
def test_three_maps_in_a_row_are_drawn_as_they_are_shown(side):
    """The page reduces wider pictures, and lines of one pixel with them."""
    grid = Setup("one", "SM", *[(side, side)] * 3).input_grid
    truth = np.zeros((side, side), bool)
    truth[side // 2 : side * 3 // 4, side // 2 : side * 3 // 4] = True
    view = position.View(grid, (0, 0), truth)
    picture = view.layers(np.random.default_rng(1).random((3, side, side)), [(0, 0)] * 3)
    assert 600 <= picture.shape[1] <= pages.MAX_SIDE
    assert (picture == (255, 92, 225)).all(2).sum() > 3 * 4 * 55  # all sides of three squares


def test_the_widest_pair_is_found_among_all(rng):
    a = rng.normal(size=(12, 5))
    sigma, delta = a.T @ a, rng.normal(size=5)
    found = {
        (i, j): float(delta[[i, j]] @ np.linalg.solve(sigma[np.ix_([i, j], [i, j])], delta[[i, j]]))
        for i in range(5) for j in range(i)
    }  # fmt: skip
    i, j, distance = position.widest_pair(delta, sigma)
    assert distance**2 == pytest.approx(max(found.values()))
    assert found[max(i, j), min(i, j)] == max(found.values())
    flat = np.diag([0.01, 4.0, 9.0])  # far out in the first, whose variance is epsilon
    assert position.widest_pair(np.array([5.0, 2, 3]), flat, 0.02) == (1, 2, 2**0.5)
    assert position.widest_pair(np.array([5.0, 2, 3]), flat, 5.0)[:2] == (0, 1)  # else all count


def test_a_pixel_has_the_position_that_its_map_was_enlarged_from():
    """As torch enlarges: a layer of 4 x 4 positions, 4 px each, with one set."""
    for aligned in False, True:
        for row in range(4):
            layer = torch.zeros(1, 4, 4)
            layer[0, row, 2] = 1
            map_ = upsample_bilinear(layer, (16, 16), aligned)[0].numpy()
            at = tuple(map(int, np.unravel_index(map_.argmax(), map_.shape)))
            assert position._spots(at, [layer], aligned=aligned)[0] == (row, 2)


@pytest.mark.parametrize("arch, options", [
    ("padim", {"n_channels": 1}), ("padim", {"n_channels": 2}), ("patchcore", {"n_neighbours": 1}),
    ("patchcore", {"ratio": 1e-9}),
])  # fmt: skip
def test_the_smallest_models_walk(tiny_backbone, arch, options):
    """One channel, one neighbour, a bank of one vector; a model that two tiles share."""
    setup = Setup("two", "ENS", (48, 96), (48, 48), (48, 48), (1, 2))
    train = np.ascontiguousarray(TRAIN[:, :, :48])
    ensemble = TiledEnsemble(Recipe(setup, arch, switches=options), backbone=tiny_backbone)
    none = np.zeros((1, 48, 96), bool)
    stages = walk(train[0] // 2, train, ensemble, Options(), train[:1], none, none.any((1, 2)))
    by_name = {stage.name: stage for stage in stages}
    if arch == "padim":
        n = options["n_channels"]
        assert ("gaussian" in by_name, "covariance" in by_name) == (n > 1, n > 1)
        if n > 1:
            chart, sigma, n = by_name["gaussian"], by_name["covariance"], 2 * len(train)
            assert chart.array.shape == (n + 1, 2) and "nan" not in chart.picture
            assert f"estimated from {n} tiles;" in sigma.text
            assert f"The {n} training tiles at" in chart.text
            vary = np.diag(sigma.array).min() > 2 * EPSILON
            assert vary == ("any two whose variance is not mostly epsilon" in chart.text)
    else:
        assert by_name["neighbourhood"].array.shape == (2, 384)
        score = by_name["distances"].array.max()
        assert f"the tile's score {score:.4g}" in by_name["neighbourhood"].text
        assert "nan" not in by_name["neighbourhood"].picture


def test_the_defect_is_drawn_in_the_tile_of_the_position(tiny_backbone):
    grid = Setup("odd", "ENS", (80, 80), (48, 48), (24, 24)).input_grid
    truth = np.zeros((80, 80), bool)
    truth[60:66, 70:76] = True
    view = position.View(grid, (2, 2), truth)
    assert view.truth.shape == (48, 48)
    assert np.argwhere(view.truth).min(0).tolist() == [12, 22]
    picture = view.heat(np.zeros((12, 12)), 0, 0, 4, "")
    rows, cols = np.nonzero((picture == (255, 92, 225)).all(2))
    factor = 512 // 48
    assert (rows.min(), cols.max()) == (12 * factor - 1, 28 * factor)
