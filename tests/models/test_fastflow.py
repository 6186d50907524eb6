"""FastFlow against Yu et al. (arXiv:2111.07677) and Real NVP (Dinh et al., arXiv:1605.08803)."""

import math

import pytest
import torch
import torch.nn.functional as F
from toys import Images
from trained import GRID, draw_state, pictures

from tiled_ref.models import fastflow
from tiled_ref.models.fastflow import CouplingBlock, FastFlow, LayerFlow, likelihood_map, nll
from tiled_ref.support.errors import InputError
from tiled_ref.tiling import FeatureUntiler


def fitted(backbone, images, size=(64, 64), grid=None, **options):
    options = dict(seed=42, device="cpu", steps=3, batch_size=4) | options
    model = FastFlow(backbone, size, **options)
    model.fit(Images(images, grid))
    return model


@pytest.fixture(scope="module")
def model(tiny_backbone):
    """Trained on pictures(); for tests that change nothing."""
    return fitted(tiny_backbone, pictures())


def toy_block(channels=4, kernel=3, seed=5):
    """A coupling block in float64 with no special values; order and its inverse differ."""
    block = CouplingBlock(channels, kernel, torch.Generator().manual_seed(seed)).double()
    draw_state(block, scale=0.7)
    return block


def toy_flow(channels=4, size=(3, 2)):
    flow = LayerFlow(channels, size, (3, 1), torch.Generator().manual_seed(0)).double()
    draw_state(flow, scale=0.3)
    return flow


def noise(*shape, seed=3):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# --- parameters -----------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "expected"), [(256, 9_733_952), (512, 12_486_464)])
def test_parameters_are_those_of_table_3(tiny_backbone, side, expected):
    model = FastFlow(tiny_backbone, (side, side), seed=0, device="cpu")
    assert model.n_parameters == expected
    norms = sum(f.norm_weight.numel() + f.norm_bias.numel() for f in model.flows)
    assert norms == {256: 917_504, 512: 3_670_016}[side]
    assert model.n_parameters - norms - 2_782_784 == 6_033_664


def test_tiled_input_has_flows_of_the_tiles_size(tiny_backbone):
    model = FastFlow(tiny_backbone, (96, 96), seed=0, device="cpu", untile=FeatureUntiler(GRID))
    alone = FastFlow(tiny_backbone, (64, 64), seed=0, device="cpu")
    assert model.n_parameters == alone.n_parameters


def test_alternating_kernels_are_3_and_1_in_turn(tiny_backbone):
    def sides(kernels):
        model = FastFlow(tiny_backbone, (64, 64), seed=0, device="cpu", kernels=kernels)
        blocks = [block for flow in model.flows for block in flow.blocks]
        return [[conv.kernel_size for conv in (b.conv1, b.conv2)] for b in blocks]

    assert sides("3x3") == [[(3, 3)] * 2] * 24
    assert sides("alternating") == [[(3, 3)] * 2, [(1, 1)] * 2] * 12


def test_initial_values_are_seeded_and_use_no_global_generator(tiny_backbone):
    before = torch.get_rng_state()
    states = [FastFlow(tiny_backbone, (64, 64), seed=k, device="cpu").state() for k in (1, 1, 2)]
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    name = "0.blocks.0.conv1.weight"
    assert not torch.equal(states[0][name], states[2][name])
    bound = 1 / math.sqrt(32 * 9)
    assert 0.99 * bound < states[0][name].abs().max() <= bound
    assert not any(value.is_meta for value in states[0].values())


# --- the coupling ---------------------------------------------------------------------------


def test_coupling_is_real_nvp_eq_4_and_5_in_scalar_loops():
    """y_1:d = x_1:d; y_d+1:D = x_d+1:D * exp(s(x_1:d)) + t(x_1:d), then gain, offset, order."""
    block, x = toy_block(kernel=1).requires_grad_(False), noise(2, 4, 1, 3)
    y, log_det = block(x)
    weight1, weight2 = block.conv1.weight[:, :, 0, 0], block.conv2.weight[:, :, 0, 0]
    for b in range(2):
        expected_log_det = 0.0
        for position in range(3):
            point = [float(x[b, c, 0, position]) for c in range(4)]
            hidden = [
                max(
                    0.0,
                    sum(float(weight1[o, i]) * point[i] for i in range(2))
                    + float(block.conv1.bias[o]),
                )
                for o in range(2)
            ]
            answer = [
                0.1
                * (
                    sum(float(weight2[o, i]) * hidden[i] for i in range(2))
                    + float(block.conv2.bias[o])
                )
                for o in range(4)
            ]
            for c in (2, 3):
                s, t = 2 * math.tanh(answer[c - 2]), answer[c]
                point[c] = point[c] * math.exp(s) + t
                expected_log_det += s
            for c in range(4):
                # softplus of beta 1/2: 2 log(1 + exp(a / 2))
                a = float(block.global_scale[c])
                gain = 0.1 * 2 * math.log1p(math.exp(0.5 * a))
                point[c] = point[c] * gain + float(block.global_offset[c])
                expected_log_det += math.log(gain)
            for k, c in enumerate(block.order.tolist()):
                # Measured: 2e-16.
                assert math.isclose(float(y[b, k, 0, position]), point[c], abs_tol=1e-12)
        # Measured: 2e-16.
        assert math.isclose(float(log_det[b]), expected_log_det, abs_tol=1e-12)


def test_a_new_block_scales_by_one():
    block = CouplingBlock(6, 3, torch.Generator().manual_seed(0))
    # Measured: 0.
    torch.testing.assert_close(block._gain(), torch.ones(6), rtol=0, atol=1e-6)
    assert sorted(block.order.tolist()) == list(range(6))
    assert block.order[block.back].tolist() == list(range(6))


@pytest.mark.parametrize("make", [toy_block, toy_flow])
def test_log_determinant_is_that_of_the_jacobian(make):
    """log|det dz/dx| by torch.autograd, Real NVP Eq. 6; for a whole flow as for one block."""
    module, x = make(), noise(1, 4, 3, 2)
    if isinstance(module, LayerFlow):
        x = module.normalize(x).detach()
        module.normalize = lambda x: x  # the likelihood is that of the normalised features
    jacobian = torch.autograd.functional.jacobian(lambda x: module(x)[0], x).reshape(24, 24)
    _, expected = torch.linalg.slogdet(jacobian)
    _, log_det = module(x)
    # Measured: 9e-16 and 1.8e-15.
    torch.testing.assert_close(log_det[0], expected, rtol=0, atol=1e-10)


def test_inverse_undoes_a_flow_of_real_size(tiny_backbone):
    """Dinh et al. Eq. 7-8."""
    model = FastFlow(tiny_backbone, (64, 64), seed=0, device="cpu")
    for flow, layer in zip(model.flows, tiny_backbone(pictures(2))):
        draw_state(flow, scale=0.02)
        with torch.no_grad():
            z, _ = flow(layer)
            back, expected = flow.inverse(z), flow.normalize(layer)
        assert (z - expected).abs().max() > 0.1
        # Measured: 1.9e-6, values up to 7.
        torch.testing.assert_close(back, expected, rtol=0, atol=1e-5)


def test_layer_norm_is_over_channels_and_positions():
    flow, x = toy_flow(), noise(2, 4, 3, 2)
    centred = x - x.mean((1, 2, 3), keepdim=True)
    expected = centred / (centred.square().mean((1, 2, 3), keepdim=True) + 1e-5).sqrt()
    weight, bias = (p.permute(2, 0, 1) for p in (flow.norm_weight, flow.norm_bias))
    torch.testing.assert_close(flow.normalize(x), expected * weight + bias)


def test_gradients_are_those_of_finite_differences():
    block, x = toy_block(), noise(1, 4, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: nll(*block(x)), x)


def test_any_side_works(tiny_backbone):
    """The encoder rounds up: 40 x 72 px have 10 x 18, 5 x 9 and 3 x 5 positions."""
    images = pictures(2, 72)[:, :, :40]
    model = fitted(tiny_backbone, images, (40, 72), steps=1)
    assert [f.norm_weight.shape[:2] for f in model.flows] == [(10, 18), (5, 9), (3, 5)]
    maps, _ = model.predict(images)
    assert maps.shape == (2, 40, 72) and maps.isfinite().all()


# --- loss and map ---------------------------------------------------------------------------


def test_loss_by_hand():
    """z = (1, 2, 2) and log|det| = 0.5: (1 + 4 + 4) / 2 - 0.5 = 4; z = 0, log|det| = -1: 1."""
    # Dinh et al. Eq. 2-3, p_Z standard normal: 1/2 sum z^2 - log|det|, no constant.
    z = torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0]]).reshape(2, 3, 1, 1)
    assert nll(z, torch.tensor([0.5, -1.0])).tolist() == [4.0, 1.0]


def test_map_by_hand():
    """Channels (1, 1) and (0, 2): -exp(-1/2) and -exp(-1); zeros are the most likely, -1."""
    # Yu et al. Sec. 3.3: the likelihood of every position.
    z = torch.tensor([[1.0, 0.0, 0.0], [1.0, 2.0, 0.0]]).reshape(1, 2, 1, 3)
    expected = torch.tensor([[[-math.exp(-0.5), -math.exp(-1.0), -1.0]]])
    torch.testing.assert_close(likelihood_map(z), expected)


def test_prediction_is_the_mean_of_the_layers_maps_and_its_maximum(tiny_backbone, model):
    images = pictures(5)
    maps, scores = model.predict(images)
    expected = torch.zeros(5, 64, 64)
    with torch.no_grad():
        for flow, layer in zip(model.flows, tiny_backbone(images)):
            z, _ = flow(layer)
            small = -torch.exp(-0.5 * (z * z).mean(1, keepdim=True))
            expected += (
                F.interpolate(small, (64, 64), mode="bilinear", align_corners=False)[:, 0] / 3
            )
    # Measured: 1.2e-7.
    torch.testing.assert_close(maps, expected, rtol=0, atol=2e-6)
    assert maps.shape == (5, 64, 64) and maps.dtype == scores.dtype == torch.float32
    assert torch.equal(scores, maps.flatten(1).max(1).values)
    assert -1 <= maps.min() and maps.max() <= 0


# --- training -------------------------------------------------------------------------------


def test_a_step_is_adam_on_the_batch_mean_of_the_sum_over_layers(tiny_backbone):
    """One optimiser step on three images, against the loss written down in one piece."""
    images = pictures(3)
    model = fitted(tiny_backbone, images, steps=1)
    plain = FastFlow(tiny_backbone, (64, 64), seed=42, device="cpu")
    adam = torch.optim.Adam(plain.flows.parameters(), lr=1e-3, weight_decay=1e-5)
    loss = 0
    for flow, layer in zip(plain.flows, tiny_backbone(images)):
        z, log_det = flow(layer)
        loss = loss + torch.mean(0.5 * torch.sum(z**2, dim=(1, 2, 3)) - log_det)
    loss.backward()
    adam.step()
    start = FastFlow(tiny_backbone, (64, 64), seed=42, device="cpu").flows.parameters()
    for a, b, c in zip(model.flows.parameters(), plain.flows.parameters(), start):
        moved = (b - c).abs().mean()
        # Adam's first step is +-lr wherever the gradient is not tiny, so that signs decide.
        # Measured: 2e-5 of the mean movement.
        assert (a - b).abs().mean() <= 1e-3 * moved and moved > 0


def test_chunks_do_not_change_the_result(tiny_backbone, model, monkeypatch):
    images = pictures(5)
    monkeypatch.setattr(fastflow, "CHUNK", 2)
    parts = fitted(tiny_backbone, images)
    # Measured: 1.2e-7.
    torch.testing.assert_close(
        model.predict(images)[0], parts.predict(images)[0], rtol=0, atol=1e-5
    )


def test_training_makes_normal_images_likelier(tiny_backbone):
    images = pictures(5)

    def loss(model):
        with torch.no_grad():
            pairs = zip(model.flows, tiny_backbone(images))
            return float(sum(nll(*flow(layer)).mean() for flow, layer in pairs))

    losses = [loss(fitted(tiny_backbone, images, steps=n)) for n in (1, 6)]
    assert losses[1] < losses[0]


def test_tiled_input_trains_on_tiles_and_untiles_the_hidden_variables(tiny_backbone):
    images = pictures(3, 96)
    model = fitted(tiny_backbone, images, (96, 96), GRID, untile=FeatureUntiler(GRID))
    tiles = GRID.tile(images).flatten(0, 2)  # (T * B, 3, 64, 64)
    maps, scores = model.predict(tiles)
    assert maps.shape == (3, 96, 96) and scores.shape == (3,)
    expected = torch.zeros(3, 96, 96)
    with torch.no_grad():
        for stride, flow, layer in zip((4, 8, 16), model.flows, tiny_backbone(tiles)):
            z = flow(layer)[0]
            grid = GRID.scaled(stride)
            z = grid.untile(z.reshape(2, 2, 3, *z.shape[1:]))
            small = -torch.exp(-0.5 * (z * z).mean(1, keepdim=True))
            expected += F.interpolate(small, (96, 96), mode="bilinear")[:, 0] / 3
    # Measured: 1.2e-7.
    torch.testing.assert_close(maps, expected, rtol=0, atol=2e-6)
    # Training saw the tiles as a batch of single images.
    alone = FastFlow(tiny_backbone, (64, 64), seed=42, device="cpu", steps=1, batch_size=12)
    alone.fit(Images(tiles))
    first = fitted(tiny_backbone, images, (96, 96), GRID, untile=FeatureUntiler(GRID), steps=1)
    for a, b in zip(alone.flows.parameters(), first.flows.parameters()):
        assert (a - b).abs().mean() < 1e-5  # Measured: 4e-8, a step moves by 1e-3


@pytest.mark.parametrize("option", [{"kernels": "5x5"}, {"kernels": 3}])
def test_unknown_options_are_refused(tiny_backbone, option):
    with pytest.raises(InputError, match=next(iter(option))):
        FastFlow(tiny_backbone, (64, 64), seed=0, device="cpu", **option)


def test_learning_rate_and_decay_are_the_papers():
    assert (fastflow.LEARNING_RATE, fastflow.WEIGHT_DECAY, fastflow.N_BLOCKS) == (1e-3, 1e-5, 8)
