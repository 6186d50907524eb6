"""The frozen backbone: torchvision's own activations, nothing to train, nothing random."""

import pytest
import torch
import torchvision
from torchvision.models.feature_extraction import create_feature_extractor

from tiled_ref.models.backbone import CHANNELS, FEATURE_STRIDE, ResNet18Features
from tiled_ref.models.weights import find_weights

LAYERS = ["layer1", "layer2", "layer3"]


@pytest.fixture(scope="module")
def state():
    return find_weights("random", seed=4).state_dict


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def torchvisions(state):
    """The outside oracle: torchvision's ResNet-18 with taps at the three layers."""
    net = torchvision.models.resnet18(weights=None)
    net.load_state_dict(state)
    return create_feature_extractor(net.eval(), LAYERS)


def compare(state, images):
    with torch.no_grad():
        expected = torchvisions(state)(images)
    found = ResNet18Features(state)(images)
    for name, layer in zip(LAYERS, found):
        b, _, h, w = images.shape
        stride = FEATURE_STRIDE[name]
        assert layer.shape == (b, CHANNELS[name], h // stride, w // stride)
        # Measured: 1.1e-6 of the largest value; another memory layout, another order of sums.
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(layer, expected[name], rtol=0, atol=2e-5 * scale)


def test_parameters_are_those_table_3_counts(tiny_backbone):
    assert sum(p.numel() for p in tiny_backbone.parameters()) == 2_782_784


def test_features_are_torchvisions_activations(state, images):
    compare(state, images)


@pytest.mark.real
def test_features_are_torchvisions_activations_with_the_official_weights(official_weights, images):
    compare(find_weights(official_weights).state_dict, images)


def test_statistics_of_batch_normalisation_never_move(state, images):
    net = ResNet18Features(state)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    first = net(images)
    assert net.train() is net and not any(module.training for module in net.modules())
    for again, layer in zip(net(images), first):
        assert torch.equal(again, layer)
    # A batch of one sees what it sees in a batch of two. Measured: 1.2e-5, values up to 30.
    for alone, layer in zip(net(images[:1]), first):
        torch.testing.assert_close(alone, layer[:1], rtol=1e-5, atol=1e-4)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


def test_nothing_is_trained(state, images):
    net = ResNet18Features(state)
    assert not any(p.requires_grad for p in net.parameters())
    layers = net(images.requires_grad_())
    assert not any(layer.requires_grad for layer in layers)


def test_nothing_is_left_without_storage(state):
    net = ResNet18Features(state)
    tensors = [*net.parameters(), *net.buffers()]
    assert len(tensors) > 60 and not any(t.is_meta for t in tensors)


def test_making_it_draws_no_random_number_and_changes_no_weights(state):
    before, kept = torch.get_rng_state(), {k: v.clone() for k, v in state.items()}
    ResNet18Features(state)
    assert torch.equal(before, torch.get_rng_state())
    for name, value in state.items():
        assert torch.equal(value, kept[name]) and not value.requires_grad


def test_layer4_and_the_classifier_may_be_missing_but_nothing_else(state):
    own = {k: v for k, v in state.items() if not k.startswith(("layer4", "fc"))}
    ResNet18Features(own)
    with pytest.raises(RuntimeError, match="layer3.1.conv2.weight"):
        ResNet18Features({k: v for k, v in own.items() if k != "layer3.1.conv2.weight"})
    with pytest.raises(RuntimeError, match="size mismatch"):
        ResNet18Features(own | {"conv1.weight": torch.zeros(64, 1, 7, 7)})


def test_images_are_left_alone(state, images):
    before = images.clone()
    ResNet18Features(state)(images)
    assert torch.equal(images, before) and images.is_contiguous()


def test_sides_that_are_no_multiple_of_16_are_rounded_up(state):
    shapes = [tuple(f.shape[-2:]) for f in ResNet18Features(state)(torch.zeros(1, 3, 33, 50))]
    assert shapes == [(9, 13), (5, 7), (3, 4)]
