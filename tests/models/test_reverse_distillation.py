"""Reverse Distillation against Deng and Li (arXiv:2201.10703), equation by equation."""

import math

import pytest
import torch
import torch.nn.functional as F
from toys import Images
from trained import GRID, pictures

from tiled_ref.models.cached import CachedFeatures, batches
from tiled_ref.models.maps import gaussian_blur
from tiled_ref.models.reverse_distillation import (
    Block,
    Bottleneck,
    Decoder,
    ReverseDistillation,
    cosine_distance,
    distillation_loss,
    flattened_loss,
    initialize,
)
from tiled_ref.support.errors import InputError
from tiled_ref.tiling import FeatureUntiler, TileGrid


def fitted(backbone, images, size=(64, 64), grid=None, **options):
    options = dict(seed=42, device="cpu", steps=2, batch_size=4) | options
    model = ReverseDistillation(backbone, size, **options)
    model.fit(Images(images, grid))
    return model


@pytest.fixture(scope="module")
def model(tiny_backbone):
    """Trained on pictures(); for tests that change nothing."""
    return fitted(tiny_backbone, pictures())


def layers(b=2, seed=0):
    """Features of two layers, float64: (b, 3, 2, 2) and (b, 5, 1, 2)."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (b, 3, 2, 2), (b, 5, 1, 2)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def cosine(u, v):
    """Of two lists of numbers, in scalar loops."""
    dot = math.fsum(a * b for a, b in zip(u, v))
    return dot / math.sqrt(math.fsum(a * a for a in u)) / math.sqrt(math.fsum(b * b for b in v))


# --- the network ----------------------------------------------------------------------------


def test_parameters_are_those_of_table_3(tiny_backbone):
    model = ReverseDistillation(tiny_backbone, (256, 256), seed=0, device="cpu")
    count = {k: sum(p.numel() for p in v.parameters()) for k, v in model.student.named_children()}
    assert count == {"bottleneck": 11_680_000, "decoder": 3_703_168}
    assert model.n_parameters == 18_165_952


def test_decoder_answers_in_the_shapes_of_the_encoder(tiny_backbone):
    """Sec. 3.1: the student mirrors the teacher."""
    encoded = tiny_backbone(pictures(2))
    embedding = Bottleneck()(encoded)
    assert embedding.shape == (2, 512, 2, 2)
    assert [d.shape for d in Decoder()(embedding)] == [e.shape for e in encoded]


def test_any_side_works(tiny_backbone):
    """40 x 72 px: layer3 has 3 x 5 positions, the bottleneck 2 x 3, the decoder's layer3 4 x 6."""
    images = pictures(2, 72)[:, :, :40]
    model = fitted(tiny_backbone, images, (40, 72), steps=1)
    encoded = tiny_backbone(images)
    with torch.no_grad():
        large = model.student.decoder(model.student.bottleneck(encoded))
        decoded = model.student(encoded)[3:]
    assert [d.shape[2:] for d in large] == [(16, 24), (8, 12), (4, 6)]
    for e, d, whole in zip(encoded, decoded, large):
        rows, cols = e.shape[2:]
        assert d.shape == e.shape and torch.equal(d, whole[:, :, :rows, :cols])
    maps, _ = model.predict(images)
    assert maps.shape == (2, 40, 72) and maps.isfinite().all()


def test_tiles_of_an_odd_number_of_16_px_work(tiny_backbone):
    grid = TileGrid(96, 48, 48)
    images, untile = pictures(2, 96), FeatureUntiler(grid)
    model = fitted(tiny_backbone, images, (96, 96), grid, untile=untile, steps=1)
    maps, _ = model.predict(grid.tile(images).flatten(0, 2))
    assert maps.shape == (2, 96, 96) and maps.isfinite().all()


def test_a_batch_without_statistics_is_refused(tiny_backbone):
    """32 x 32 px have one position in the bottleneck: two images have a variance, one has not."""
    images = pictures(3, 32)
    fitted(tiny_backbone, images, (32, 32), batch_size=2, steps=1)
    for option in ({"batch_size": 2, "steps": 2}, {"batch_size": 1, "steps": 1}):
        with pytest.raises(InputError, match="one image of 32 x 32 px is too small"):
            fitted(tiny_backbone, images, (32, 32), **option)
    untile = FeatureUntiler(TileGrid(64, 32, 32))
    fitted(tiny_backbone, pictures(1), grid=untile.grid, untile=untile, steps=1)


def test_every_parameter_of_bottleneck_and_decoder_is_used(tiny_backbone):
    """No convolution is left over, unlike in the released code."""
    # Sec. 3.2, Fig. 4: fusion and embedding, nothing idle.
    model = ReverseDistillation(tiny_backbone, (64, 64), seed=0, device="cpu")
    encoded = tiny_backbone(pictures(2))
    distillation_loss(encoded, model.student(encoded)[3:]).backward()
    for name, parameter in model.student.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_a_block_without_resizing_is_torchvisions():
    """He et al. Fig. 5, left: the basic residual block."""
    from torchvision.models.resnet import BasicBlock

    block, oracle = Block(8, 8), BasicBlock(8, 8)
    initialize(block, torch.Generator().manual_seed(0))
    oracle.load_state_dict(block.state_dict())
    x = torch.randn(2, 8, 5, 6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(block(x), oracle(x))


def test_initial_values_are_seeded_and_use_no_global_generator(tiny_backbone):
    before = torch.get_rng_state()

    def state(seed):
        return ReverseDistillation(tiny_backbone, (64, 64), seed=seed, device="cpu").state()

    first, again, other = state(1), state(1), state(2)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(value.is_meta for value in first.values())
    weights = [name for name, value in first.items() if value.ndim == 4]
    assert len(weights) == 8 + 15
    assert not any(torch.equal(first[name], other[name]) for name in weights)
    kernel = first["bottleneck.embed.1.conv2.weight"]  # (512, 512, 3, 3)
    # Measured: 2e-4 relative.
    assert math.isclose(kernel.std(), math.sqrt(2 / (512 * 9)), rel_tol=0.01)
    bound = 1 / math.sqrt(256 * 4)
    transposed = first["decoder.to_layer3.0.conv1.weight"]  # (512, 256, 2, 2)
    assert 0.99 * bound < transposed.abs().max() <= bound


# --- loss -----------------------------------------------------------------------------------


def test_distance_by_hand():
    """Equal directions 0, orthogonal ones 1, opposite ones 2; (3, 4) and (4, 3): 1 - 24/25."""
    e = torch.tensor([[1.0, 1.0, 1.0, 3.0], [0.0, 0.0, 0.0, 4.0]]).reshape(1, 2, 2, 2)
    d = torch.tensor([[5.0, 0.0, -2.0, 4.0], [0.0, 7.0, 0.0, 3.0]]).reshape(1, 2, 2, 2)
    expected = torch.tensor([[[0.0, 1.0], [2.0, 0.04]]])
    torch.testing.assert_close(cosine_distance(e, d), expected)


def test_loss_is_eq_2_in_scalar_loops():
    """Eq. 1-2: sum_k 1/(H_k W_k) sum_h sum_w (1 - cos), mean over the images of the batch."""
    encoded, decoded = layers(seed=1), layers(seed=2)
    expected = 0.0
    for e, d in zip(encoded, decoded):
        n, _, height, width = e.shape
        for b in range(n):
            for h in range(height):
                for w in range(width):
                    m = 1 - cosine(e[b, :, h, w].tolist(), d[b, :, h, w].tolist())
                    expected += m / (height * width) / n
    # Measured: 2e-16.
    assert math.isclose(distillation_loss(encoded, decoded), expected, rel_tol=1e-12)


def test_flattened_loss_is_one_cosine_per_image_and_layer():
    encoded, decoded = layers(seed=1), layers(seed=2)
    expected = sum(
        (1 - cosine(e[b].flatten().tolist(), d[b].flatten().tolist())) / len(e)
        for e, d in zip(encoded, decoded)
        for b in range(len(e))
    )
    # Measured: 2e-16.
    assert math.isclose(flattened_loss(encoded, decoded), expected, rel_tol=1e-12)
    assert not math.isclose(distillation_loss(encoded, decoded), expected, rel_tol=1e-3)


def test_gradients_reach_bottleneck_and_decoder_only(tiny_backbone):
    before = {name: value.clone() for name, value in tiny_backbone.state_dict().items()}
    model = ReverseDistillation(
        tiny_backbone, (64, 64), seed=42, device="cpu", steps=1, batch_size=4
    )
    start = model.state()
    model.fit(Images(pictures(4)))
    after = model.state()
    assert all(not torch.equal(start[name], after[name]) for name in start)
    for name, value in tiny_backbone.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.grad is None for p in tiny_backbone.parameters())


# --- map ------------------------------------------------------------------------------------


def enlarged(small, size):
    """(hf, wf) lists -> size, bilinear with aligned corners, in scalar loops."""
    rows, cols = len(small), len(small[0])
    result = []
    for i in range(size[0]):
        y = i * (rows - 1) / (size[0] - 1)
        a, fy = min(int(y), rows - 2), y - min(int(y), rows - 2)
        line = []
        for j in range(size[1]):
            x = j * (cols - 1) / (size[1] - 1)
            b, fx = min(int(x), cols - 2), x - min(int(x), cols - 2)
            top = (1 - fx) * small[a][b] + fx * small[a][b + 1]
            bottom = (1 - fx) * small[a + 1][b] + fx * small[a + 1][b + 1]
            line.append((1 - fy) * top + fy * bottom)
        result.append(line)
    return result


@pytest.mark.parametrize("combine", ["product", "sum"])
def test_map_is_eq_3_or_the_product_in_scalar_loops(tiny_backbone, combine):
    # Sec. 3.3, and its product instead of the sum (D11).
    images = pictures(2)
    model = fitted(tiny_backbone, images, combine=combine)
    maps, scores = model.predict(images[:1])
    with torch.no_grad():
        encoded = tiny_backbone(images[:1])
        decoded = model.student(encoded)[3:]
    combined = [[1.0 if combine == "product" else 0.0] * 64 for _ in range(64)]
    for e, d in zip(encoded, decoded):
        _, _, height, width = e.shape
        small = [
            [1 - cosine(e[0, :, h, w].tolist(), d[0, :, h, w].tolist()) for w in range(width)]
            for h in range(height)
        ]
        large = enlarged(small, (64, 64))
        for i in range(64):
            for j in range(64):
                if combine == "product":
                    combined[i][j] *= large[i][j]
                else:
                    combined[i][j] += large[i][j]
    expected = gaussian_blur(torch.tensor([combined], dtype=torch.float64))
    # Measured: 4e-7.
    torch.testing.assert_close(maps.double(), expected, rtol=0, atol=5e-6)
    assert maps.dtype == scores.dtype == torch.float32
    assert torch.equal(scores, maps.flatten(1).max(1).values)


def test_prediction_does_not_depend_on_the_batch(model):
    images = pictures(5)
    whole, _ = model.predict(images)
    for k in range(5):
        # Measured: 1e-7.
        torch.testing.assert_close(
            model.predict(images[k : k + 1])[0][0], whole[k], rtol=0, atol=2e-6
        )


# --- training -------------------------------------------------------------------------------


def test_a_step_is_adam_with_the_papers_settings(tiny_backbone):
    images = pictures(4)
    model = fitted(tiny_backbone, images, steps=2)
    plain = ReverseDistillation(tiny_backbone, (64, 64), seed=42, device="cpu")
    adam = torch.optim.Adam(plain.student.parameters(), lr=0.005, betas=(0.5, 0.999))
    features = CachedFeatures(tiny_backbone, Images(images))
    for batch in batches(4, 4, 2, seed=42):
        encoded = features[batch]
        decoded = plain.student.decoder(plain.student.bottleneck(encoded))
        pairs = zip(encoded, decoded)
        loss = sum((1 - F.cosine_similarity(e, d, dim=1)).mean((1, 2)).mean() for e, d in pairs)
        adam.zero_grad()
        loss.backward()
        adam.step()
    for a, b in zip(model.student.parameters(), plain.student.parameters()):
        # A step moves by 0.005 whatever the gradient's size, so where it is zero but for rounding
        # a weight may go either way. Measured: all below.
        assert ((a - b).abs() > 1e-4).double().mean() < 1e-3


def test_training_lowers_the_loss(tiny_backbone):
    images = pictures(5)

    def loss(steps, kind):
        model = fitted(tiny_backbone, images, steps=steps, loss=kind)
        model.student.train()
        encoded = tiny_backbone(images)
        with torch.no_grad():
            return float(distillation_loss(encoded, model.student(encoded)[3:]))

    for kind in ("positions", "flattened"):  # Measured: 1.47 to 0.60 and 1.50 to 0.69.
        assert loss(6, kind) < 0.8 * loss(1, kind)


def test_tiled_input_untiles_encoder_and_decoder_before_loss_and_map(tiny_backbone):
    images, untile = pictures(2, 96), FeatureUntiler(GRID)
    model = fitted(tiny_backbone, images, (96, 96), GRID, untile=untile, steps=1)
    tiles = GRID.tile(images).flatten(0, 2)  # (T * B, 3, 64, 64)

    def whole(features):
        return [
            GRID.scaled(s).untile(x.reshape(2, 2, 2, *x.shape[1:]))
            for s, x in zip((4, 8, 16), features)
        ]

    plain = ReverseDistillation(tiny_backbone, (96, 96), seed=42, device="cpu", untile=untile)
    adam = torch.optim.Adam(plain.student.parameters(), lr=0.005, betas=(0.5, 0.999))
    encoded = tiny_backbone(tiles)
    distillation_loss(whole(encoded), whole(plain.student(encoded)[3:])).backward()
    adam.step()
    for a, b in zip(model.student.parameters(), plain.student.parameters()):
        assert (a - b).abs().mean() < 1e-4  # Measured: 5e-7, the images are in another order.

    maps, scores = model.predict(tiles)
    assert maps.shape == (2, 96, 96) and scores.shape == (2,)
    expected = torch.ones(2, 1, 96, 96)
    with torch.no_grad():
        decoded = model.student(encoded)[3:]
        for e, d in zip(whole(encoded), whole(decoded)):
            m = 1 - F.cosine_similarity(e, d)[:, None]
            expected *= F.interpolate(m, (96, 96), mode="bilinear", align_corners=True)
    torch.testing.assert_close(
        maps, gaussian_blur(expected[:, 0]), rtol=0, atol=1e-5
    )  # Measured: 0.


@pytest.mark.parametrize("option", [{"loss": "mse"}, {"combine": "max"}])
def test_unknown_options_are_refused(tiny_backbone, option):
    with pytest.raises(InputError, match=next(iter(option))):
        ReverseDistillation(tiny_backbone, (64, 64), seed=0, device="cpu", **option)
