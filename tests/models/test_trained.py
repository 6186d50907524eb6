"""What FastFlow and Reverse Distillation have in common: training, batches, tiles, files."""

import functools

import pytest
import torch
from toys import Images
from trained import GRID, pictures, same_predictions

from tiled_ref.models import FastFlow, ReverseDistillation
from tiled_ref.models.cached import CachedFeatures, batches
from tiled_ref.support.errors import InputError
from tiled_ref.tiling import FeatureUntiler, TileGrid


@pytest.fixture(scope="module", params=[FastFlow, ReverseDistillation])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def fitted(kind, tiny_backbone):
    def fitted(images, size=(64, 64), grid=None, **options):
        options = dict(seed=42, device="cpu", steps=2, batch_size=4) | options
        model = kind(tiny_backbone, size, **options)
        model.fit(Images(images, grid))
        return model

    return fitted


@pytest.fixture(scope="module")
def model(fitted):
    """Trained on pictures(); for tests that change nothing."""
    return fitted(pictures())


def test_fit_takes_features_as_well(kind, tiny_backbone, model):
    other = kind(tiny_backbone, (64, 64), seed=42, device="cpu", steps=2, batch_size=4)
    other.fit_features(CachedFeatures(tiny_backbone, Images(pictures())))
    assert same_predictions(model, other, pictures())


def test_a_loss_is_a_number_without_gradient(kind, tiny_backbone):
    """That whose gradient training takes, of one batch and of its only chunk."""
    model = kind(tiny_backbone, (64, 64), seed=42, device="cpu")
    layers, before = tiny_backbone(pictures(4)), model.state()
    assert model.loss_value(layers).shape == ()  # untrained, with the statistics of the batch
    assert all(torch.equal(value, before[name]) for name, value in model.state().items())
    model.network.eval()
    loss = model.loss_value(layers)
    assert loss.shape == () and not loss.requires_grad
    losses, backward = [], torch.Tensor.backward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", lambda self: losses.append(self) or backward(self))
        model.add_gradient(layers)
    # Largest relative difference measured: 0.
    torch.testing.assert_close(sum(losses).detach(), loss, rtol=1e-6, atol=0)
    assert all(value.requires_grad for value in losses)


def test_features_on_the_disk_train_the_same_bits(fitted, model, monkeypatch):
    on_disk = functools.partial(CachedFeatures, budget=0)
    monkeypatch.setattr("tiled_ref.models.trained.CachedFeatures", on_disk)
    assert same_predictions(model, fitted(pictures()), pictures())


def test_the_same_seed_gives_the_same_bits_and_another_does_not(fitted, deterministic):
    images = pictures(5)
    first, again = fitted(images), fitted(images)
    assert same_predictions(first, again, images)
    assert not same_predictions(first, fitted(images, seed=1), images)


def test_state_goes_to_a_file_and_back(kind, tiny_backbone, model, tmp_path):
    torch.save(model.state(), tmp_path / "state.pt")
    other = kind(tiny_backbone, (64, 64), seed=7, device="cpu")
    assert not same_predictions(model, other, pictures())
    other.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert same_predictions(model, other, pictures())


def test_a_state_is_a_copy(fitted):
    model = fitted(pictures(2), steps=1)
    kept = model.state()
    before = {name: value.clone() for name, value in kept.items()}
    model.fit(Images(pictures(2)))
    assert all(torch.equal(kept[name], before[name]) for name in before)
    assert any(not torch.equal(value, before[name]) for name, value in model.state().items())


def test_the_numbers_kept_are_counted(model):
    assert model.n_learnt(5) == sum(value.numel() for value in model.state().values())


def test_progress_counts_features_then_steps(kind, tiny_backbone):
    calls = []
    model = kind(tiny_backbone, (64, 64), seed=0, device="cpu", steps=2, batch_size=2)
    model.fit(Images(pictures(2)), progress=lambda *call: calls.append(call))
    features = [(1, 2, "features"), (2, 2, "features")]
    assert calls == [*features, (1, 2), (2, 2)]


def test_a_trained_model_is_left_in_evaluation_mode(model):
    assert not any(module.training for module in model.network.modules())


def test_every_step_starts_without_the_gradient_of_the_last(fitted, monkeypatch):
    """Two steps on the same batch: the second gradient is not the sum of both."""
    seen = []
    step = torch.optim.Adam.step

    def watched(self):
        parameters = [p for group in self.param_groups for p in group["params"]]
        seen.append(torch.cat([p.grad.flatten() for p in parameters]))
        for group in self.param_groups:
            group["lr"] = 0.0
        step(self)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    fitted(pictures(2), steps=2, batch_size=2)
    first, second = seen
    assert first.abs().max() > 0  # The batch's images may come in the other order.
    torch.testing.assert_close(second, first, rtol=1e-3, atol=1e-4 * float(first.abs().max()))


def test_tiled_input_with_one_tile_is_a_single_model(fitted, model):
    untile = FeatureUntiler(TileGrid(64, 64, 64))
    assert same_predictions(model, fitted(pictures(), untile=untile), pictures())


def test_tiled_input_gives_the_same_bits_again(fitted, deterministic):
    images, untile = pictures(2, 96), FeatureUntiler(GRID)
    first, again = (fitted(images, (96, 96), GRID, untile=untile, steps=1) for _ in range(2))
    assert same_predictions(first, again, GRID.tile(images).flatten(0, 2))


def test_the_batch_is_32_images_unless_said_otherwise(kind, tiny_backbone):
    """Rolih et al. Sec. 4.2; 33 images are a batch of 32 and one of a single image."""
    for option, sizes in ({}, [32, 1, 32]), ({"batch_size": 20}, [20, 13, 20]):
        model = kind(tiny_backbone, (64, 64), seed=0, device="cpu", **option)
        assert [len(b) for b in batches(33, model.batch_size, 3, seed=0)] == sizes


def test_no_step_and_no_image_are_refused(kind, tiny_backbone):
    for steps in 0, -1, 100_001, 10**30, 1.0, float("nan"), True, "1":
        with pytest.raises(InputError, match="steps must be a whole number of at least 1 and at"):
            kind(tiny_backbone, (64, 64), seed=0, device="cpu", steps=steps)
    with pytest.raises(InputError, match="at least one normal image"):
        kind(tiny_backbone, (64, 64), seed=0, device="cpu").fit(Images(pictures(2)[:0]))
