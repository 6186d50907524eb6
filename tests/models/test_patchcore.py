"""PatchCore against Roth et al. (arXiv:2106.08265), equation by equation."""

import math

import numpy as np
import pytest
import torch
from toys import Images, ThreeLayers

from tiled_ref.models.maps import gaussian_blur
from tiled_ref.models.patchcore import PatchCore, local_mean, reweight
from tiled_ref.models.search import neighbours
from tiled_ref.models.search.coreset import select_coreset
from tiled_ref.models.search.neighbours import NearestIndex, nearest, search_each
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


# Nearest neighbours


def brute_force(queries, bank, k):
    """float64, all pairs, ties to the lowest index."""
    delta = queries[:, None].astype(np.float64) - bank[None].astype(np.float64)
    squares = (delta**2).sum(2)
    order = np.argsort(squares, axis=1, kind="stable")[:, :k]
    return np.sqrt(np.take_along_axis(squares, order, 1)), order


@pytest.mark.parametrize("k", [1, 2, 9])
@pytest.mark.parametrize("budget", [1, 50_000, 2**28])
def test_nearest_is_brute_force(k, budget, rng):
    """Far from the origin, where |q|^2 + |b|^2 - 2 q.b alone has no digit left."""
    bank = (1000 + 0.01 * rng.standard_normal((150, 40))).astype(np.float32)
    queries = (1000 + 0.01 * rng.standard_normal((70, 40))).astype(np.float32)
    queries[::7] = bank[:10]
    expected_distances, expected = brute_force(queries, bank, k)
    distances, indices = nearest(torch.from_numpy(queries), torch.from_numpy(bank), k, budget)
    assert distances.dtype == torch.float64 and indices.dtype == torch.int64
    assert np.array_equal(indices.numpy(), expected)
    # Largest relative difference measured: 2e-16, another order of the sum.
    np.testing.assert_allclose(distances.numpy(), expected_distances, rtol=1e-13)


def test_nearest_breaks_ties_by_the_lowest_index(rng):
    """More copies than candidates are measured, and lattice points at equal distances."""
    bank = rng.integers(0, 2, (200, 3)).astype(np.float32)
    queries = rng.integers(0, 3, (50, 3)).astype(np.float32) / 2
    for k in (1, 5, 200):
        expected_distances, expected = brute_force(queries, bank, k)
        distances, indices = nearest(torch.from_numpy(queries), torch.from_numpy(bank), k)
        assert np.array_equal(indices.numpy(), expected)
        # Largest relative difference measured: 2e-16, torch's root of 1/2.
        np.testing.assert_allclose(distances.numpy(), expected_distances, rtol=1e-13)


def test_nearest_finds_what_the_product_cannot_tell(rng, monkeypatch):
    """Clusters so narrow beside their distance that every product inside one is rounding."""
    centres = 1000 * rng.standard_normal((4, 1, 30))
    bank = (centres + 1e-3 * rng.standard_normal((4, 60, 30))).reshape(240, 30).astype(np.float32)
    queries = bank[::3] + np.float32(1e-3)
    searched = []
    search_one = neighbours._search_one
    monkeypatch.setattr(
        neighbours, "_search_one", lambda *a: searched.append(1) or search_one(*a)
    )
    distances, indices = nearest(torch.from_numpy(queries), torch.from_numpy(bank), 2)
    assert np.array_equal(indices.numpy(), brute_force(queries, bank, 2)[1])
    assert searched


def test_nearest_does_not_trust_a_product_of_lower_precision(rng):
    bank = rng.standard_normal((300, 64)).astype(np.float32)
    queries = rng.standard_normal((40, 64)).astype(np.float32)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        _, indices = nearest(torch.from_numpy(queries), torch.from_numpy(bank), 3)
    finally:
        torch.set_float32_matmul_precision(before)
    assert np.array_equal(indices.numpy(), brute_force(queries, bank, 3)[1])


def hard_banks():
    """(bank, queries): prefixes stored or not, ties, copies, distances lost in rounding."""
    rng = np.random.default_rng(11)
    decay = 0.9 ** np.arange(96)
    spread = rng.standard_normal((700, 96)) * decay
    far = 1000 * rng.standard_normal((4, 1, 96)) + 1e-3 * rng.standard_normal((4, 60, 96))
    ties = rng.integers(0, 2, (500, 3)).astype(float)
    return {
        "stored": (spread, rng.standard_normal((130, 96)) * decay * 3),
        "computed": (spread / decay, rng.standard_normal((130, 96))),
        "bank itself": (spread, spread),
        "far clusters": (far.reshape(240, 96), far.reshape(240, 96)[::3] + 1e-3),
        "ties": (ties, rng.integers(0, 3, (90, 3)) / 2),
        "copies": (np.repeat(spread[:50], 6, axis=0), spread[:60]),
        "one vector": (spread[:1], spread[:20]),
        "zeros": (np.zeros((40, 20)), rng.standard_normal((9, 20))),
        "queries far away": (spread, 1e6 * rng.standard_normal((30, 96))),
    }


@pytest.mark.parametrize("name", list(hard_banks()))
@pytest.mark.parametrize("threads", [1, 3])
def test_index_finds_what_brute_force_finds(name, threads, monkeypatch):
    """Products are off by at most the bound of Higham, Eq. 3.5."""
    monkeypatch.setattr(neighbours, "ROWS", 16)
    monkeypatch.setattr(neighbours, "BLOCK", 100)
    bank, queries = (a.astype(np.float32) for a in hard_banks()[name])
    copies = bank.copy(), queries.copy()
    monkeypatch.setenv("TILED_REF_THREADS", str(threads))
    index = NearestIndex(torch.from_numpy(bank))
    assert index.filter.stored is None or name not in ("computed", "ties", "one vector")
    distances, places = (a[0] for a in search_each([index], torch.from_numpy(queries)[None]))
    expected_distances, expected = brute_force(queries, bank, 1)
    plain_distances, plain = nearest(torch.from_numpy(queries), torch.from_numpy(bank))
    assert np.array_equal(places.numpy(), expected[:, 0])
    assert torch.equal(places, plain[:, 0])
    # Largest relative difference measured: 4e-16, the order of the float64 sum.
    np.testing.assert_allclose(distances.numpy(), expected_distances[:, 0], rtol=1e-13)
    np.testing.assert_allclose(distances.numpy(), plain_distances[:, 0].numpy(), rtol=1e-13)
    assert np.array_equal(bank, copies[0]) and np.array_equal(queries, copies[1])


def test_index_refuses_features_that_are_not_finite(rng):
    index = NearestIndex(torch.from_numpy(rng.standard_normal((9, 4)).astype(np.float32)))
    with pytest.raises(InputError, match="NaN"):
        search_each([index], torch.full((1, 2, 4), math.nan))


def test_kernel_and_plain_algorithms_give_the_same_maps(tiny_backbone, pictures):
    cython = fitted(tiny_backbone, pictures)
    plain = fitted(tiny_backbone, pictures, impl="numpy")
    assert torch.equal(cython.bank, plain.bank)
    for a, b in zip(cython.predict(pictures[:3] * 2), plain.predict(pictures[:3] * 2)):
        # Largest relative difference measured: 1.2e-7, one rounding to float32.
        assert torch.allclose(a, b, rtol=1e-6, atol=0)


def test_nearest_refuses_impossible_arguments():
    bank = torch.zeros(3, 4)
    for queries, k in ((torch.zeros(2, 5), 1), (torch.zeros(2, 4), 0), (torch.zeros(2, 4), 4)):
        with pytest.raises(InputError):
            nearest(queries, bank, k)
