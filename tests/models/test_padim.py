"""PaDiM against Defard et al. (arXiv:2011.08785), equation by equation."""

import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toys import Images, ThreeLayers

from tiled_ref.models import padim
from tiled_ref.models.maps import convolved, gaussian_blur, upsample_bilinear
from tiled_ref.models.gaussians import unpack
from tiled_ref.models.padim import Padim, batched_mahalanobis, channel_choice
from tiled_ref.support.errors import InputError
from tiled_ref.support.gaussian import gaussian_taps, reflected
from tiled_ref.tiling import FeatureUntiler, TileGrid


@pytest.fixture
def pictures(rng):
    return torch.from_numpy(rng.standard_normal((12, 3, 64, 64)).astype(np.float32))


def fitted(backbone, pictures, **options):
    model = Padim(backbone, (64, 64), seed=42, device="cpu", **options)
    model.fit(Images(pictures))
    return model


def test_channels_are_distinct_seeded_and_shared_by_all_tile_models():
    """Sec. III-A: "we randomly select"; 100 of 448 for ResNet-18."""
    channels = channel_choice(42)
    assert len(set(channels)) == 100 and all(0 <= c < 448 for c in channels)
    assert channels == channel_choice(42) != channel_choice(5125)
    assert channels == random.Random(42).sample(range(448), 100)


def test_embedding_repeats_deeper_layers_onto_the_grid_of_layer1(pictures):
    """Sec. III-A: position (i, j) holds layer1[i, j], layer2[i//2, j//2], layer3[i//4, j//4]."""
    backbone = ThreeLayers()
    model = Padim(backbone, (64, 64), seed=7, device="cpu")
    embedding = model.embed(pictures)
    assert embedding.shape == (12, 100, 16, 16)
    layers = backbone(pictures)
    for d, channel in enumerate(channel_choice(7)):
        for layer, first, times in zip(layers, (0, 64, 192), (1, 2, 4)):
            if first <= channel < first + layer.shape[1]:
                for i, j in ((0, 0), (3, 5), (15, 14)):
                    expected = layer[:, channel - first, i // times, j // times]
                    assert torch.equal(embedding[:, d, i, j], expected)


def test_a_layer_without_a_chosen_channel_is_passed_over(pictures):
    model = Padim(ThreeLayers(), (64, 64), seed=1, device="cpu", n_channels=2)
    model.channels = [300, 3]  # none of layer2
    layer1, _, layer3 = ThreeLayers()(pictures)
    embedding = model.embed(pictures)
    assert torch.equal(embedding[:, 1], layer1[:, 3])
    assert torch.equal(embedding[:, 0, 5, 9], layer3[:, 300 - 192, 1, 2])


@pytest.mark.parametrize("n", [0, -1, 449])
def test_a_number_of_channels_that_the_backbone_does_not_have_is_refused(n):
    with pytest.raises(InputError, match=f"n_channels must be between 1 and 448, not {n}"):
        Padim(ThreeLayers(), (64, 64), seed=1, device="cpu", n_channels=n)


@pytest.mark.parametrize("store", padim.STORES)
@pytest.mark.parametrize("n", [1, 3, 448])
def test_any_number_of_channels_is_trained_as_seeded(pictures, n, store):
    model = fitted(ThreeLayers(), pictures, n_channels=n, store=store)
    assert model.channels == channel_choice(42, n)
    assert model.state()["factors"].dtype == padim.STORES[store]
    assert model.factors.shape == (256, n * (n + 1) // 2)
    assert model.n_learnt(12) == 256 * (n + n * (n + 1) // 2)
    maps, _ = model.predict(pictures)
    other = Padim(
        ThreeLayers(), (64, 64), seed=42, device="cpu", n_channels=n, store=store, impl="numpy"
    )
    other.load_state(model.state())
    assert torch.equal(other.predict(pictures)[0], maps) and maps.max() > 0


def test_covariance_is_eq_1(pictures, monkeypatch):
    """Eq. 1: Sigma = 1/(N-1) sum (x - mu)(x - mu)^T + eps I, scalar loops in float64."""
    monkeypatch.setattr(padim, "D", 3)
    model = Padim(ThreeLayers(), (64, 64), seed=1, device="cpu", batch_size=5)
    model.channels = [0, 100, 300]
    model.fit(Images(pictures))
    x = model.embed(pictures).double().numpy()  # (N, 3, 16, 16)
    n, d = x.shape[:2]
    for position, (i, j) in ((0, (0, 0)), (16 * 3 + 5, (3, 5))):
        points = [[float(x[k, c, i, j]) for c in range(d)] for k in range(n)]
        mu = [math.fsum(p[c] for p in points) / n for c in range(d)]
        sigma = [
            [
                math.fsum((p[a] - mu[a]) * (p[b] - mu[b]) for p in points) / (n - 1)
                + (0.01 if a == b else 0.0)
                for b in range(d)
            ]
            for a in range(d)
        ]
        # Measured: 3e-8 for the mean, 1e-6 for Sigma times its inverse.
        np.testing.assert_allclose(model.mean[position], mu, atol=1e-6)
        factor = unpack(model.factors[[position]].double())[0].numpy()
        product = np.array(sigma) @ factor @ factor.T
        np.testing.assert_allclose(product, np.eye(d), atol=2e-5)


def test_distance_is_eq_2():
    """Eq. 2: M = sqrt((x - mu)^T Sigma^-1 (x - mu)), scalar loops on three points."""
    x = torch.tensor([[[1.0, 2.0], [0.0, 0.0], [3.0, -1.0]]])  # one position, three images
    mu = torch.tensor([[0.5, -1.0]])
    factor = torch.tensor([[[2.0, 0.5], [0.0, 1.0]]])
    inverse = factor @ factor.mT
    expected = []
    for image in range(3):
        delta = [float(x[0, image, c] - mu[0, c]) for c in range(2)]
        square = sum(
            delta[a] * float(inverse[0, a, b]) * delta[b] for a in range(2) for b in range(2)
        )
        expected.append(math.sqrt(square))
    np.testing.assert_allclose(batched_mahalanobis(x, mu, factor)[0], expected, rtol=1e-6)


def test_distance_by_hand():
    """U = diag(1, 2), x - mu = (3, 2): sqrt(9 + 16) = 5."""
    x = torch.tensor([[[3.0, 2.0]]])
    factor = torch.diag(torch.tensor([1.0, 2.0]))[None]
    assert batched_mahalanobis(x, torch.zeros(1, 2), factor) == 5


def test_blur_equals_a_scalar_loop_with_a_mirrored_border(rng):
    maps = torch.from_numpy(rng.standard_normal((1, 5, 40)).astype(np.float32))
    taps, radius = gaussian_taps(4.0), 16
    rows, cols = reflected(5, radius), reflected(40, radius)
    for a, b in ((0, 0), (2, 20), (4, 39)):
        total = math.fsum(
            taps[abs(di - radius)]
            * taps[abs(dj - radius)]
            * float(maps[0, rows[a + di], cols[b + dj]])
            for di in range(33)
            for dj in range(33)
        )
        # Measured: 6e-8.
        assert abs(float(gaussian_blur(maps)[0, a, b]) - total) < 1e-6


SIZES = [(1, 1), (1, 9), (3, 3), (64, 64), (65, 127), (200, 17), (256, 130)]


@pytest.mark.parametrize("size", SIZES)
def test_blur_is_a_convolution(rng, size):
    """Every pixel as by a convolution with the 33 x 33 taps."""
    maps = torch.from_numpy(rng.random((5, *size)).astype(np.float32))
    blurred = gaussian_blur(maps)
    half = torch.from_numpy(gaussian_taps(4.0))
    taps = torch.cat([half.flip(0)[:-1], half])
    rows, cols = (reflected(n, 16) for n in size)
    padded = maps.double()[:, rows][:, :, cols]
    expected = F.conv2d(padded[:, None], torch.outer(taps, taps)[None, None])[:, 0]
    # Measured: 5e-7 relative.
    torch.testing.assert_close(blurred.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", SIZES)
def test_blur_of_other_devices_is_that_of_the_cpu(rng, size):
    """torch's convolutions, which a GPU runs, on the CPU's tensors."""
    maps = torch.from_numpy(rng.random((3, *size)).astype(np.float32))
    # Measured: 6e-7 relative.
    torch.testing.assert_close(convolved(maps, 4.0), gaussian_blur(maps), rtol=1e-5, atol=0)


@pytest.mark.optional
def test_blur_equals_scipy(rng):
    ndimage = pytest.importorskip("scipy.ndimage")
    maps = rng.standard_normal((2, 70, 50))
    expected = ndimage.gaussian_filter(maps, 4.0, axes=(1, 2), mode="mirror")
    # Measured: 2e-16.
    np.testing.assert_allclose(gaussian_blur(torch.from_numpy(maps)), expected, atol=1e-14)


def test_map_is_upsampled_with_half_pixel_centres():
    """1 and 3 at two positions, eight pixels: flat to the first centre, then linear."""
    row = upsample_bilinear(torch.tensor([[[1.0, 3.0]]]), (1, 8))[0, 0].tolist()
    assert row == [1.0, 1.0, 1.25, 1.75, 2.25, 2.75, 3.0, 3.0]


def test_prediction_is_blurred_distance_and_its_maximum(tiny_backbone, pictures):
    """Sec. III-C: the map of distances; the image's score is its maximum."""
    model = fitted(tiny_backbone, pictures)
    maps, scores = model.predict(pictures[:3])
    assert maps.shape == (3, 64, 64) and maps.dtype == torch.float32
    assert torch.equal(scores, maps.flatten(1).max(1).values)
    x = padim.by_position(model.embed(pictures[:3]), torch.float64)
    factors = unpack(model.factors.double())
    distance = batched_mahalanobis(x, model.mean.double(), factors).T.reshape(3, 16, 16)
    enlarged = F.interpolate(distance[:, None], (64, 64), mode="bilinear")[:, 0]
    # Measured: 1.2e-5 relative, 4e-5 absolute; x^T A x of twelve images cancels.
    torch.testing.assert_close(maps.double(), gaussian_blur(enlarged, 4.0), rtol=1e-4, atol=0)


def test_float16_halves_the_factors_and_changes_little(tiny_backbone, pictures):
    exact, fewer = (fitted(tiny_backbone, pictures, store=store) for store in padim.STORES)
    assert torch.equal(fewer.factors, exact.factors.half())
    assert 2 * fewer.state()["factors"].nbytes == exact.state()["factors"].nbytes
    # Measured: 2e-4 relative.
    torch.testing.assert_close(
        fewer.predict(pictures)[0], exact.predict(pictures)[0], rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("store", padim.STORES)
def test_images_that_are_all_alike_have_the_largest_factors(pictures, store):
    """Sigma = eps I, so U = I / sqrt(eps): no entry of any is beyond 10, and float16 holds it."""
    model = fitted(ThreeLayers(), pictures[:1].expand(4, -1, -1, -1), store=store, n_channels=3)
    expected = torch.tensor([10.0, 0, 0, 10, 0, 10]).expand(256, 6)
    torch.testing.assert_close(model.factors.float(), expected, rtol=1e-6, atol=0)
    maps, _ = model.predict(pictures[:3])
    assert (maps[0] == 0).all() and (maps[1:] > 0).all()


def test_features_whose_factors_float16_cannot_keep_are_refused(pictures):
    class Louder(ThreeLayers):
        def __call__(self, images):
            return [layer * 1e6 for layer in super().__call__(images)]

    with pytest.raises(InputError, match="float16 cannot hold PaDiM's factors; use --store float3"):
        fitted(Louder(), pictures, store="float16")
    maps, _ = fitted(Louder(), pictures).predict(pictures)
    assert maps.isfinite().all() and maps.max() > 0


def test_another_store_is_refused():
    with pytest.raises(InputError, match="store must be one of float32, float16, not 'int8'"):
        Padim(ThreeLayers(), (64, 64), seed=1, device="cpu", store="int8")


def test_what_is_unusual_scores_higher(tiny_backbone, pictures):
    model = fitted(tiny_backbone, pictures)
    changed = pictures[:4].clone()
    changed[:, :, 20:30, 20:30] += 6
    maps, scores = model.predict(changed)
    assert (scores > model.predict(pictures[:4])[1]).all()
    assert (maps[:, 16:34, 16:34].amax((1, 2)) == scores).all()


@pytest.mark.parametrize("batch_size", [1, 5, 7, 12])
def test_batch_size_changes_rounding_only(tiny_backbone, pictures, batch_size):
    expected = fitted(tiny_backbone, pictures).predict(pictures)[0]
    got = fitted(tiny_backbone, pictures, batch_size=batch_size).predict(pictures)[0]
    # Measured: 2e-6 relative.
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=0)


def test_order_of_training_images_changes_rounding_only(tiny_backbone, pictures):
    expected = fitted(tiny_backbone, pictures).predict(pictures)[0]
    got = fitted(tiny_backbone, pictures.flip(0)).predict(pictures)[0]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=0)


def test_the_same_seed_gives_the_same_bits(tiny_backbone, pictures, deterministic):
    first, second = (fitted(tiny_backbone, pictures).predict(pictures) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_another_seed_gives_another_model(tiny_backbone, pictures):
    other = Padim(tiny_backbone, (64, 64), seed=43, device="cpu")
    other.fit(Images(pictures))
    assert not torch.equal(
        other.predict(pictures)[0], fitted(tiny_backbone, pictures).predict(pictures)[0]
    )


def test_state_carries_everything(tiny_backbone, pictures):
    model = fitted(tiny_backbone, pictures)
    other = Padim(tiny_backbone, (64, 64), seed=1, device="cpu")
    other.load_state(model.state())
    assert torch.equal(other.predict(pictures)[0], model.predict(pictures)[0])


def test_tiled_input_with_one_tile_is_a_single_model(tiny_backbone, pictures):
    untile = FeatureUntiler(TileGrid(64, 64, 64))
    tiled = fitted(tiny_backbone, pictures, untile=untile)
    assert torch.equal(
        tiled.predict(pictures)[0], fitted(tiny_backbone, pictures).predict(pictures)[0]
    )


def test_tiled_input_untiles_the_embedding_and_keeps_one_head(tiny_backbone, pictures):
    """ST: backbone per tile, overlaps averaged in feature space, positions of the image."""
    grid = TileGrid(64, 32, 16)
    model = Padim(tiny_backbone, (64, 64), seed=42, device="cpu", untile=FeatureUntiler(grid))
    images = Images(pictures, grid)
    model.fit(images)
    assert model.mean.shape == (16 * 16, 100)
    batch = images[[0, 1]]  # (18, 3, 32, 32)
    embedding = model.embed(batch)
    single = Padim(tiny_backbone, (32, 32), seed=42, device="cpu")
    cut = grid.tile(pictures[:2])
    tiles = [single.embed(cut[i, j]) for i, j in grid.locations()]
    # Position (4, 4) of 16 x 16 lies in tiles 00, 01, 10, 11, at (4 - 4 i, 4 - 4 j) of each.
    covering = [(0, 4, 4), (1, 4, 0), (3, 0, 4), (4, 0, 0)]
    mean = sum(tiles[t][:, :, a, b] for t, a, b in covering) / 4
    torch.testing.assert_close(embedding[:, :, 4, 4], mean, rtol=1e-6, atol=1e-7)
    assert model.predict(batch)[0].shape == (2, 64, 64)


def test_parameters_are_those_of_the_backbone(tiny_backbone):
    assert Padim(tiny_backbone, (64, 64), seed=0, device="cpu").n_parameters == 2_782_784


@pytest.mark.parametrize("n", [0, -1, 449, 10**30, "x", None])
def test_no_more_channels_than_there_are(tiny_backbone, n):
    with pytest.raises(InputError, match="n_channels must be between 1 and 448, not "):
        Padim(tiny_backbone, (64, 64), seed=0, device="cpu", n_channels=n)


def test_fit_takes_embeddings_as_well(tiny_backbone, pictures):
    model, other = (Padim(tiny_backbone, (64, 64), seed=1, device="cpu") for _ in range(2))
    model.fit(Images(pictures))
    embedding = other.embed(pictures)
    other.fit_embeddings([embedding[:5], embedding[5:]], len(pictures))
    torch.testing.assert_close(other.mean, model.mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(other.factors, model.factors, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="at least two normal"):
        other.fit_embeddings([embedding[:1]], 1)
    for parts, n in ([embedding[:1]], 5), ([embedding[:5]], 3), ([], 2):
        with pytest.raises(InputError, match=f"n_images is {n}, but got"):
            other.fit_embeddings(parts, n)


def test_one_image_has_no_covariance(tiny_backbone, pictures):
    with pytest.raises(InputError, match="at least two normal training images.*got 1"):
        fitted(tiny_backbone, pictures[:1])
