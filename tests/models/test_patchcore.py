"""PatchCore against Roth et al. (arXiv:2106.08265), equation by equation."""

import math

import numpy as np
import pytest
import torch
from toys import Images, ThreeLayers

from tiled_ref.models.maps import gaussian_blur
from tiled_ref.models.patchcore import PatchCore, local_mean, reweight
from tiled_ref.models.search.coreset import select_coreset
from tiled_ref.support.errors import InputError
from tiled_ref.tiling import FeatureUntiler, TileGrid


@pytest.fixture
def pictures(rng):
    return torch.from_numpy(rng.standard_normal((12, 3, 64, 64)).astype(np.float32))


def fitted(backbone, pictures, grid=None, size=(64, 64), **options):
    options = dict(seed=42, device="cpu") | options
    model = PatchCore(backbone, size, **options)
    model.fit(Images(pictures, grid))
    return model


def rows_of(embedding):
    """(B, C, hf, wf) -> NumPy (B, P, C)."""
    return embedding.permute(0, 2, 3, 1).flatten(1, 2).numpy()


def test_local_mean_is_eq_2():
    """Roth et al. Eq. 1-2, p = 3, f_agg the mean, in loops; zeros outside are counted."""
    features = torch.arange(20, dtype=torch.float32).reshape(1, 1, 4, 5) ** 2
    averaged = local_mean(features)
    for h in range(4):
        for w in range(5):
            total = 0.0
            for a in (h - 1, h, h + 1):
                for b in (w - 1, w, w + 1):
                    if 0 <= a < 4 and 0 <= b < 5:
                        total += float(features[0, 0, a, b])
            # Largest relative error measured: 6e-8.
            assert math.isclose(averaged[0, 0, h, w], total / 9, rel_tol=1e-6)


def test_embedding_is_layer2_and_layer3_on_the_grid_of_layer2(pictures):
    """Sec. 3.1: layer3 position (y, x) lies at 2y + 1/2 of layer2's grid, weights 1/4, 3/4."""
    backbone = ThreeLayers()
    model = PatchCore(backbone, (64, 64), seed=0, device="cpu")
    embedding = model.embed(pictures)
    assert embedding.shape == (12, 384, 8, 8) and embedding.dtype == torch.float32
    _, layer2, layer3 = backbone(pictures)
    assert torch.equal(embedding[:, :128], local_mean(layer2))
    deep = local_mean(layer3)
    # Position (3, 4) of layer2 lies between rows 1, 2 and columns 1, 2 of layer3.
    expected = 0.75 * (0.25 * deep[:, :, 1, 1] + 0.75 * deep[:, :, 1, 2])
    expected += 0.25 * (0.25 * deep[:, :, 2, 1] + 0.75 * deep[:, :, 2, 2])
    # Largest difference measured: 3e-8.
    assert torch.allclose(embedding[:, 128:, 3, 4], expected, rtol=0, atol=1e-6)
    assert torch.equal(embedding[:, 128:, 0, 0], deep[:, :, 0, 0])


def test_bank_is_eq_4_reduced_by_eq_5(tiny_backbone, pictures):
    """The bank holds rows of all patches, those that select_coreset names."""
    # The patches are those of Eq. 3, all positions of the feature map.
    calls = []
    model = PatchCore(tiny_backbone, (64, 64), seed=42, device="cpu", batch_size=5)
    model.fit(Images(pictures), progress=lambda *call: calls.append(call))
    assert calls[:3] == [(5, 12), (10, 12), (12, 12)]
    assert calls[3] == (0, 76, "coreset") and calls[-1] == (76, 76, "coreset")
    parts = [model.embed(pictures[k : k + 5]) for k in (0, 5, 10)]
    table = torch.from_numpy(rows_of(torch.cat(parts))).flatten(0, 1)
    assert model.grid == (8, 8)
    assert len(model.bank) == int(0.1 * 12 * 64) == 76
    assert torch.equal(model.chosen, select_coreset(table, 0.1, 42))
    assert torch.equal(model.bank, table[model.chosen])


def test_map_and_score_are_eq_6_and_7_in_scalar_loops(tiny_backbone, pictures):
    """Largest relative errors measured: map 2e-7, score 6e-8."""
    # Sec. 3.3.
    model = fitted(tiny_backbone, pictures)
    batch = pictures[:3] + 0.3 * pictures[3:6]
    maps, scores = model.predict(batch)
    assert maps.shape == (3, 64, 64) and maps.dtype == scores.dtype == torch.float32
    assert scores.shape == (3,)
    bank = model.bank.double().numpy()

    def distance(a, b):
        return math.sqrt(float(((a - b) ** 2).sum()))

    for image, patches in enumerate(rows_of(model.embed(batch)).astype(np.float64)):
        patch_map, star, m_test, m_star = [], -1.0, None, None
        for patch in patches:
            distances = [distance(patch, m) for m in bank]
            patch_map.append(min(distances))
            if min(distances) > star:
                star, m_test, m_star = min(distances), patch, bank[np.argmin(distances)]
        neighbourhood = sorted(bank, key=lambda m: distance(m_star, m))[:9]
        total = sum(math.exp(distance(m_test, m)) for m in neighbourhood)
        expected = (1 - math.exp(distance(m_test, m_star)) / total) * star
        assert math.isclose(scores[image], expected, rel_tol=1e-6)
        enlarged = np.kron(np.reshape(patch_map, (8, 8)), np.ones((8, 8)))
        expected = gaussian_blur(torch.from_numpy(enlarged)[None])[0]
        assert torch.allclose(maps[image].double(), expected, rtol=1e-6, atol=0)


def test_map_is_enlarged_by_nearest_neighbour_before_the_blur(monkeypatch, pictures):
    monkeypatch.setattr("tiled_ref.models.patchcore.gaussian_blur", lambda maps, *_: maps)
    model = fitted(ThreeLayers(), pictures)
    maps, _ = model.predict(pictures[:2] * 2)
    blocks = maps.reshape(2, 8, 8, 8, 8)
    assert torch.equal(blocks, blocks[:, :, :1, :, :1].expand_as(blocks))
    assert len(maps[0].unique()) > 20


def test_reweighting_is_eq_7_in_float64():
    """By loops over three images and four neighbours; largest relative error 2e-16."""
    rng = np.random.default_rng(5)
    distances = rng.random((3, 4)) * 8
    result = reweight(torch.from_numpy(distances))
    for row, value in zip(distances, result):
        weight = 1 - math.exp(row[0]) / sum(math.exp(d) for d in row)
        assert math.isclose(value, weight * row[0], rel_tol=1e-14)


def test_reweighting_by_hand():
    """Equal distances share the softmax: 1 - 1/4; one neighbour: s* itself; no overflow."""
    assert reweight(torch.full((1, 4), 2.0)).tolist() == [1.5]
    assert reweight(torch.tensor([[3.0]])).tolist() == [3.0]
    assert reweight(torch.zeros(2, 9)).tolist() == [0.0, 0.0]
    huge = reweight(torch.tensor([[4000.0, 4001.0]], dtype=torch.float64))
    assert math.isclose(huge, 4000 * (1 - 1 / (1 + math.e)), rel_tol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_bank_smaller_than_the_neighbourhood(tiny_backbone, pictures, size):
    model = fitted(tiny_backbone, pictures[:1], ratio=size / 64)
    assert len(model.bank) == size
    maps, scores = model.predict(pictures[:4])
    assert torch.isfinite(maps).all() and torch.isfinite(scores).all()
    if size == 1:  # s* instead of (1 - 1) s*
        patches = torch.from_numpy(rows_of(model.embed(pictures[:4])))
        star = (patches - model.bank[0]).double().square().sum(2).sqrt().amax(1)
        assert torch.allclose(scores.double(), star, rtol=1e-6)


def test_neighbourhood_of_one_returns_the_largest_distance(tiny_backbone, pictures):
    model = fitted(tiny_backbone, pictures, n_neighbours=1)
    patches = torch.from_numpy(rows_of(model.embed(pictures[:2] * 1.5)))
    star = torch.cdist(patches.double(), model.bank.double()).amin(2).amax(1)
    # Largest relative difference measured: 4e-8.
    assert torch.allclose(model.predict(pictures[:2] * 1.5)[1].double(), star, rtol=1e-6)


def test_equal_patches_give_a_finite_zero(tiny_backbone):
    """Images of one value: duplicates in the bank, distances of zero."""

    class Constant(torch.nn.Module):
        def forward(self, images):
            return [images.new_zeros(len(images), c, 64 // s, 64 // s) for c, s in SHAPES]

    SHAPES = ((64, 4), (128, 8), (256, 16))
    model = fitted(Constant(), torch.zeros(4, 3, 64, 64))
    assert len(set(model.chosen.tolist())) == 25
    maps, scores = model.predict(torch.zeros(2, 3, 64, 64))
    assert not maps.any() and not scores.any()


def test_fit_takes_embeddings_as_well(tiny_backbone, pictures):
    model, seen = fitted(tiny_backbone, pictures), []
    other = PatchCore(tiny_backbone, (64, 64), seed=42, device="cpu")
    embedding = other.embed(pictures)
    steps = lambda done, total, part="features": seen.append((done, total, part))  # noqa: E731
    other.fit_embeddings([embedding[:5], embedding[5:]], len(pictures), steps)
    assert (other.bank == model.bank).all() and (other.chosen == model.chosen).all()
    assert seen[:2] == [(5, 12, "features"), (12, 12, "features")]
    other_grid = [embedding[:6], embedding[6:, :, 1:]]
    for parts, n in ([embedding], 13), ([embedding], 11), ([], 12), (other_grid, 12):
        with pytest.raises(InputError, match=f"n_images is {n}, but got"):
            other.fit_embeddings(parts, n)


def test_few_patches_keep_at_least_one(tiny_backbone):
    """int(0.1 * 4) would leave the bank empty."""
    pictures = torch.zeros(1, 3, 16, 16)
    model = fitted(tiny_backbone, pictures, size=(16, 16))
    assert model.grid == (2, 2) and len(model.bank) == 1
    assert model.predict(pictures)[0].shape == (1, 16, 16)


def test_sides_that_are_no_multiple_of_the_stride(tiny_backbone, rng):
    pictures = torch.from_numpy(rng.standard_normal((2, 3, 41, 76)).astype(np.float32))
    model = fitted(tiny_backbone, pictures, size=(41, 76))
    assert model.grid == (6, 10)
    assert model.predict(pictures)[0].shape == (2, 41, 76)


def test_start_is_a_switch(tiny_backbone, pictures):
    excluded = fitted(tiny_backbone, pictures)
    included = fitted(tiny_backbone, pictures, start="included")
    assert torch.equal(included.chosen[1:], excluded.chosen[:-1])
    assert included.chosen[0] not in excluded.chosen


def test_fit_and_predict_are_deterministic(tiny_backbone, pictures, deterministic):
    first, second = (fitted(tiny_backbone, pictures) for _ in range(2))
    other = fitted(tiny_backbone, pictures, seed=33)
    assert torch.equal(first.bank, second.bank)
    assert not torch.equal(first.bank, other.bank)
    for a, b in zip(first.predict(pictures[:3]), second.predict(pictures[:3])):
        assert torch.equal(a, b)


def test_no_global_generator_is_used(tiny_backbone, pictures):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    fitted(tiny_backbone, pictures[:3]).predict(pictures[:1])
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


def test_state_is_a_round_trip(tiny_backbone, pictures, tmp_path):
    model = fitted(tiny_backbone, pictures)
    torch.save(model.state(), tmp_path / "state.pt")
    again = fitted(tiny_backbone, pictures[:2] + 1, seed=1)
    again.predict(pictures[:1])  # with the bank that is replaced now
    again.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.grid == (8, 8) and torch.equal(again.chosen, model.chosen)
    for a, b in zip(model.predict(pictures[:3]), again.predict(pictures[:3])):
        assert torch.equal(a, b)


def test_batches_and_chunks_do_not_change_the_maps(tiny_backbone, pictures, monkeypatch):
    """Largest relative difference measured: 2e-6."""
    model = fitted(tiny_backbone, pictures)
    maps, scores = model.predict(pictures)
    one_by_one = [model.predict(pictures[k : k + 1]) for k in range(12)]
    assert torch.allclose(torch.cat([m for m, _ in one_by_one]), maps, rtol=1e-4)
    assert torch.allclose(torch.cat([s for _, s in one_by_one]), scores, rtol=1e-4)


def test_tiled_input_with_one_tile_is_the_single_model(tiny_backbone, pictures):
    grid = TileGrid(64, 64, 64)
    single = fitted(tiny_backbone, pictures)
    tiled = fitted(tiny_backbone, pictures, grid, untile=FeatureUntiler(grid))
    assert torch.equal(single.bank, tiled.bank)
    for a, b in zip(single.predict(pictures[:2]), tiled.predict(pictures[:2])):
        assert torch.equal(a, b)


def test_tiled_input_untiles_the_embeddings(tiny_backbone, pictures):
    """SPEC of ST: backbone, mean and enlarging per tile; one bank over the whole image."""
    grid = TileGrid(64, 32, 16)
    model = fitted(tiny_backbone, pictures, grid, untile=FeatureUntiler(grid))
    assert model.grid == (8, 8) and len(model.bank) == 76
    tiles = Images(pictures, grid)[[0, 1]]
    embedding = model.embed(tiles)
    assert embedding.shape == (2, 384, 8, 8)
    plain = PatchCore(tiny_backbone, (32, 32), seed=42, device="cpu")
    corner = plain.embed(pictures[:2, :, :32, :32])
    # The top left 2 x 2 positions are seen by the first tile alone.
    assert torch.allclose(embedding[:, :, :2, :2], corner[:, :, :2, :2], rtol=1e-5, atol=1e-5)
    maps, scores = model.predict(tiles)
    assert maps.shape == (2, 64, 64) and scores.shape == (2,)


def test_parameters_are_those_of_the_backbone(tiny_backbone):
    """Table 3: 2.78 million for PatchCore."""
    assert PatchCore(tiny_backbone, (64, 64), seed=1, device="cpu").n_parameters == 2_782_784


@pytest.mark.parametrize(
    "options", [dict(start="random"), dict(ratio=0), dict(ratio=1.5), dict(n_neighbours=0)]
)
def test_impossible_switches_are_refused(tiny_backbone, options):
    with pytest.raises(InputError):
        PatchCore(tiny_backbone, (64, 64), seed=1, device="cpu", **options)


def test_no_images_are_refused(tiny_backbone, pictures):
    with pytest.raises(InputError, match="training"):
        fitted(tiny_backbone, pictures[:0])


def test_kernel_and_plain_algorithms_give_the_same_maps(tiny_backbone, pictures):
    cython = fitted(tiny_backbone, pictures)
    plain = fitted(tiny_backbone, pictures, impl="numpy")
    assert torch.equal(cython.bank, plain.bank)
    for a, b in zip(cython.predict(pictures[:3] * 2), plain.predict(pictures[:3] * 2)):
        # Largest relative difference measured: 1.2e-7, one rounding to float32.
        assert torch.allclose(a, b, rtol=1e-6, atol=0)
