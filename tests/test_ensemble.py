"""One model per location (Eq. 3-4), one alive at a time, and the merging of its predictions."""

import gc
import weakref

import numpy as np
import pytest
import torch
from toys import toy_images

from tiled_ref import merging, smoothing
from tiled_ref.data.images import normalize
from tiled_ref.data.tiles import LocationImages
from tiled_ref.ensemble import Forgotten, TiledEnsemble, merge
from tiled_ref.models import padim
from tiled_ref.setups import Recipe, Setup
from tiled_ref.support.errors import InputError
from tiled_ref.support.progress import Progress
from tiled_ref.tiling import FeatureUntiler, TileGrid

SIZE, TILE, STRIDE = (96, 96), (48, 48), (24, 24)


def setup_of(kind):
    if kind == "SM":
        return Setup("SM", "SM", SIZE, SIZE, SIZE)
    return Setup(kind, kind, SIZE, TILE, STRIDE)


@pytest.fixture
def images():
    return toy_images(6)


def test_a_location_sees_its_pixels_normalised(images):
    grid = TileGrid(SIZE, TILE, STRIDE)
    source = LocationImages(images, grid, [(1, 2)], torch.device("cpu"))
    assert len(source) == 6
    expected = normalize(torch.from_numpy(images[[4, 1], :, 24:72, 48:96]))
    assert torch.equal(source[[4, 1]], expected)


def test_padding_is_zero_after_normalisation(images):
    """Zero padding (Sec. 3.1) of the network's input: a normalised 0, not a black pixel."""
    grid = TileGrid(SIZE, (64, 64), (64, 64))
    tile = LocationImages(images, grid, [(1, 1)], torch.device("cpu"))[[0]]
    assert (tile[:, :, 32:] == 0).all() and (tile[:, :, :, 32:] == 0).all()
    assert torch.equal(
        tile[0, :, :32, :32], normalize(torch.from_numpy(images[:1, :, 64:, 64:]))[0]
    )


def test_tiled_input_is_tile_major(images):
    grid = TileGrid(SIZE, TILE, TILE)
    batch = LocationImages(images, grid, grid.locations(), torch.device("cpu"))[[0, 3]]
    assert batch.shape == (8, 3, 48, 48)
    assert torch.equal(batch[2], normalize(torch.from_numpy(images[[0], :, :48, 48:]))[0])
    assert torch.equal(batch[3], normalize(torch.from_numpy(images[[3], :, :48, 48:]))[0])


def test_images_of_another_size_are_refused(images):
    with pytest.raises(InputError, match="for images of 48 x 48 px"):
        LocationImages(images, TileGrid(48, 48, 48), [(0, 0)], torch.device("cpu"))


def test_features_of_tiles_are_put_together(rng):
    grid = TileGrid(SIZE, TILE, STRIDE)
    features = torch.from_numpy(rng.standard_normal((2, 5, 24, 24)))  # of whole images
    tiles = grid.scaled(4).tile(features).flatten(0, 2)  # (9 * 2, 5, 12, 12)
    untile = FeatureUntiler(grid)
    assert untile.n_tiles == 9
    torch.testing.assert_close(untile(tiles, 4), features, rtol=1e-15, atol=0)


def test_each_location_has_the_model_that_its_tiles_alone_would_give(tiny_backbone, images):
    """Eq. 3: M_ij trained on T_ij, nothing else, with the same seed for all."""
    ensemble = TiledEnsemble(setup_of("ENS"), backbone=tiny_backbone).fit(images)
    assert sorted(ensemble.states) == [(i, j) for i in range(3) for j in range(3)]
    for i, j in ((0, 0), (1, 2)):
        alone = padim.Padim(tiny_backbone, TILE, seed=42, device="cpu")
        alone.fit(LocationImages(images, ensemble.grid, [(i, j)], torch.device("cpu")))
        for name, value in alone.state().items():
            assert torch.equal(ensemble.states[i, j][name], value), name


def test_prediction_is_eq_4_then_untiling_smoothing_and_eq_5(tiny_backbone, images):
    ensemble = TiledEnsemble(setup_of("ENS"), backbone=tiny_backbone).fit(images)
    maps, scores = ensemble.predict(images[:3])
    tile_maps = np.empty((3, 3, 3, 48, 48), np.float32)
    tile_scores = np.empty((3, 3, 3), np.float32)
    for i, j in ensemble.grid.locations():
        model = ensemble.make_model()
        model.load_state(ensemble.states[i, j])
        tile = normalize(torch.from_numpy(images[:3])[..., 24 * i :, 24 * j :][..., :48, :48])
        tile_maps[i, j], tile_scores[i, j] = (part.numpy() for part in model.predict(tile))
    expected = smoothing.smooth_seams(
        merging.untile_average(tile_maps, ensemble.grid), ensemble.grid
    )
    np.testing.assert_array_equal(maps, expected)
    np.testing.assert_array_equal(scores, merging.mean_scores(tile_scores))


def test_score_is_the_mean_of_tile_scores_not_of_the_merged_map():
    """Eq. 5 by hand: (1 + 2 + 3 + 6) / 4 = 3; the switch takes 6."""
    setup = Setup("four", "ENS", (4, 4), (2, 2), (2, 2))
    maps = np.zeros((2, 2, 1, 2, 2), np.float32)
    scores = np.array([[[1], [2]], [[3], [6]]], np.float32)
    assert merge(maps, scores, Recipe(setup))[1] == 3
    assert merge(maps, scores, Recipe(setup, score="max"))[1] == 6
    assert merge(maps, scores, Recipe(setup, score="top:2"))[1] == 4.5


def test_the_recipe_chooses_how_maps_are_merged(tiny_backbone, images):
    """Before the smoothing; here without any."""
    recipe = Recipe(setup_of("ENS"), seam_width=0.0, merge="window")
    maps = np.random.default_rng(0).random((3, 3, 2, 48, 48)).astype(np.float32)
    found, _ = merge(maps, maps[..., 0, 0], recipe)
    assert (found == merging.untile_window(maps, recipe.grid)).all()
    assert (found != merging.untile_average(maps, recipe.grid)).any()


@pytest.mark.parametrize("rule", ["top:0", "top:", "top:x", "top:-1", "top:1.5", "median", "top:٣"])
def test_a_rule_of_scores_that_is_none_is_refused(rule):
    with pytest.raises(InputError, match="score must be mean, max or top:K, such as top:3, not"):
        Recipe("ENS9", score=rule)


@pytest.mark.parametrize("kind", ["SM", "ST", "ENS"])
def test_every_kind_gives_a_map_of_the_image(tiny_backbone, images, kind):
    ensemble = TiledEnsemble(setup_of(kind), backbone=tiny_backbone).fit(images)
    maps, scores = ensemble.predict(images[:2])
    assert maps.shape == (2, 96, 96) and scores.shape == (2,)
    assert maps.dtype == scores.dtype == np.float32
    assert np.isfinite(maps).all() and (maps >= 0).all()


def test_sizes_that_do_not_divide_the_image(tiny_backbone):
    images = toy_images(4, side=100)
    setup = Setup("X", "ENS", (100, 100), (48, 48), (40, 40))
    maps, _ = TiledEnsemble(setup, backbone=tiny_backbone).fit(images).predict(images[:1])
    assert maps.shape == (1, 100, 100)


def test_one_model_is_alive_at_a_time(tiny_backbone, images, monkeypatch):
    """The promise of Sec. 3.2: memory of one model on one tile."""
    alive, most = weakref.WeakSet(), []
    original = padim.Padim.fit

    def fit(self, *args, **kwargs):
        gc.collect()
        alive.add(self)
        most.append(len(alive))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(padim.Padim, "fit", fit)
    TiledEnsemble(setup_of("ENS"), backbone=tiny_backbone).fit(images)
    assert most == [1] * 9


def test_progress_counts_every_image_of_every_location(tiny_backbone, images):
    seen = []

    class Recorded(Progress):
        def stage(self, name, kind=None):
            return lambda *call: seen.append((name, *call))

    ensemble = TiledEnsemble(setup_of("ENS"), backbone=tiny_backbone, batch_size=4)
    ensemble.fit(images, progress=Recorded())
    ensemble.predict(images[:5], progress=Recorded())
    for k in range(1, 10):
        fit = [c[1:] for c in seen if c[0] == f"fit tile {k}/9"]
        assert fit[:2] == [(4, 6), (6, 6)] and fit[-1] == (144, 144, "factors")
        assert [c[1:] for c in seen if c[0] == f"predict tile {k}/9"] == [(4, 5), (5, 5)]


def test_parameters_count_the_backbone_once_per_model(tiny_backbone):
    assert TiledEnsemble(setup_of("ENS"), backbone=tiny_backbone).n_parameters == 9 * 2_782_784


def test_memory_maps_and_read_only_arrays_are_welcome_and_stay_unchanged(
    tiny_backbone, images, tmp_path
):
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    setup = setup_of("ENS")
    got = TiledEnsemble(setup, backbone=tiny_backbone).fit(mapped).predict(mapped)
    expected = TiledEnsemble(setup, backbone=tiny_backbone).fit(images).predict(images)
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(images, toy_images(6))


def test_misuse_is_answered_with_a_sentence(tiny_backbone, images):
    with pytest.raises(InputError, match="not been trained"):
        TiledEnsemble(setup_of("ENS"), backbone=tiny_backbone).predict(images)
    with pytest.raises(InputError, match="unknown architecture 'x'; the known ones are"):
        TiledEnsemble(setup_of("ENS"), "x", backbone=tiny_backbone)


def test_states_may_be_kept_given_or_forgotten(tiny_backbone, images):
    """One loop: what the mapping does with a state decides what is trained, not what comes out."""
    ensemble = TiledEnsemble(setup_of("ENS"), backbone=tiny_backbone)
    train, test = images[:4], images[4:]

    def run(states, locations=None):
        found = ensemble.each_location(train, test, states, locations=locations)
        return {(place, rows.start): (maps, scores) for place, rows, maps, scores in found}

    kept = {}
    expected = run(kept)
    assert sorted(kept) == sorted(ensemble.setup.models) and len(expected) == 9
    half = {place: kept[place] for place in list(kept)[:4]}  # what an interrupted run has left
    order = [(2, 1), (0, 0)]
    for found in (run(Forgotten()), run(half), run(kept, reversed(list(kept))), run({}, order)):
        for key, parts in found.items():
            for a, b in zip(parts, expected[key]):
                np.testing.assert_array_equal(a, b)
    assert len(Forgotten()) == 0 and (0, 0) not in Forgotten() and len(half) == 9


def test_a_recipe_is_checked_field_by_field():
    setup = setup_of("ENS")
    for name, value, sentence in (
        ("score", "median", "score must be mean, max or top:K, such as top:3, not 'median'"),
        ("seam_width", 1.5, "seam_width must be a number from 0 to 1, not 1.5"),
        ("seam_width", float("nan"), "seam_width must be a number"),
        ("seam_sigma", 0, "seam_sigma must be a positive number, at most the image's larger side"),
        ("seam_sigma", True, "seam_sigma must be a positive number"),
        ("seam_sigma", max(setup.image_size) + 1, "at most the image's larger side, not"),
        ("seam_sigma", max(setup.image_size) + 0.5, "at most the image's larger side, not"),
        ("antialias", 1, "antialias must be bool, not 1"),
        ("precision", "int8", "precision must be one of float32"),
        ("seed", "x", "seed must be a whole number of at least 0 and at most 9,2"),
        ("batch_size", -4, "batch_size must be a whole number of at least 1 and at most 65,536"),
        ("batch_size", 2.5, "batch_size must be a whole number of at least 1"),
    ):
        with pytest.raises(InputError, match=sentence):
            Recipe(setup, **{name: value})
    with pytest.raises(InputError, match="unknown setup 'ENS5'"):
        Recipe("ENS5")
    assert Recipe(setup, seam_width=np.float64(0.2)).seam_width == 0.2
    assert Recipe("ENS9").setup.n_models == 9 and Recipe("ENS9", "patchcore").batch_size == 8


def test_a_recipe_may_be_changed_by_the_ensemble(tiny_backbone):
    recipe = Recipe(setup_of("ENS"), "patchcore", seed=1)
    assert TiledEnsemble(recipe, backbone=tiny_backbone).recipe == recipe
    other = TiledEnsemble(recipe, "padim", backbone=tiny_backbone, seed=3).recipe
    assert (other.arch, other.seed, other.setup) == ("padim", 3, recipe.setup)


def test_the_models_of_a_setup_and_the_tiles_they_see():
    assert setup_of("SM").models == {(0, 0): [(0, 0)]}
    tiles = setup_of("ST").input_grid.locations()
    assert setup_of("ST").models == {(0, 0): tiles} and len(tiles) == 9
    assert setup_of("ENS").models == {tile: [tile] for tile in tiles}
