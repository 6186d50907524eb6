"""Shared layers of the backbone: the same bits, each image once, and no harm when it fails."""

import errno
import os

import pytest
import torch
from trained import pictures

from tiled_ref.running import shared_layers
from tiled_ref.running.shared_layers import SharedLayers, budget_within

# 32 x 32 px: (64 * 8 * 8 + 128 * 4 * 4 + 256 * 2 * 2) * 4 bytes = 28,672 an image.
IMAGE_BYTES = 28_672


@pytest.fixture
def said():
    return []


@pytest.fixture
def shared(tiny_backbone, said):
    with SharedLayers(tiny_backbone, 1 << 30, said.append) as shared:
        yield shared


@pytest.fixture
def seen(tiny_backbone, monkeypatch):
    """How many images the backbone computed, call by call."""
    counts, forward = [], tiny_backbone.forward
    monkeypatch.setattr(
        tiny_backbone, "forward", lambda images: counts.append(len(images)) or forward(images)
    )
    return counts


def alone(network, images):
    """Layers of each image by itself."""
    return [torch.cat(layer) for layer in zip(*(network(image) for image in images.split(1)))]


def same(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert torch.equal(a, b) and a.dtype == b.dtype
        assert a.is_contiguous(memory_format=torch.channels_last)


def test_an_image_is_computed_once_wherever_it_comes_again(tiny_backbone, shared, seen):
    images = pictures(4, 32)
    shared(images[:2])
    shared(images[1:3])  # one is known, one is new
    shared(images[:3])
    shared(torch.cat([images[3:], images[3:]]))  # new, and twice in one batch
    shared(images[3:])
    assert seen == [1, 1, 1, 1]
    assert (shared.asked, shared.reused) == (10, 6)
    assert shared._size == 4 * IMAGE_BYTES


def test_layers_have_the_bits_that_the_backbone_gives_an_image_alone(tiny_backbone, shared):
    generator = torch.Generator().manual_seed(3)
    pools = [pictures(7, side, seed=side) for side in (16, 32, 50, 64)]
    for _ in range(60):
        pool = pools[int(torch.randint(4, (1,), generator=generator))]
        batch = int(torch.randint(1, 9, (1,), generator=generator))
        images = pool[torch.randint(7, (batch,), generator=generator)]
        same(shared(images), alone(tiny_backbone, images))
    assert 0 < shared.reused < shared.asked


def test_equal_bytes_of_another_shape_are_another_image(tiny_backbone, shared):
    images = torch.arange(3 * 16 * 32, dtype=torch.float32).reshape(1, 3, 16, 32) / 500
    for shape in ((1, 3, 16, 32), (1, 3, 32, 16)):
        same(shared(images.reshape(shape)), tiny_backbone(images.reshape(shape)))
    assert shared.reused == 0


def test_one_bit_makes_another_image(tiny_backbone, shared):
    images = pictures(1, 32)
    shared(images)
    changed = images.clone()
    changed[0, 2, 31, 31] = torch.nextafter(changed[0, 2, 31, 31], torch.tensor(99.0))
    same(shared(changed), tiny_backbone(changed))
    assert shared.reused == 0


def test_images_and_what_was_kept_cannot_be_harmed(tiny_backbone, shared):
    images = pictures(3, 32).contiguous(memory_format=torch.channels_last)
    before, expected = images.clone(), alone(tiny_backbone, images)
    for _ in range(3):
        layers = shared(images)
        same(layers, expected)
        for layer in layers:
            layer.zero_()
    assert torch.equal(images, before)


def test_what_does_not_fit_in_the_budget_is_computed_and_said_once(tiny_backbone, seen, said):
    images = pictures(3, 32)
    expected = alone(tiny_backbone, images)
    seen.clear()
    with SharedLayers(tiny_backbone, 2 * IMAGE_BYTES, said.append) as shared:
        for _ in range(3):
            same(shared(images), expected)
    assert seen == [1] * 5
    assert len(said) == 1 and "used up" in said[0] and "TMPDIR" in said[0]


def test_what_has_stopped_stays_so(tiny_backbone, said):
    """A sweep asks to keep again, cell after cell; it is said once and not tried again."""
    with SharedLayers(tiny_backbone, IMAGE_BYTES, said.append) as shared:
        for image in pictures(4, 32).split(1):
            shared.keeps = True
            shared(image)
    assert len(said) == 1


def test_an_image_that_fills_the_budget_exactly_is_kept(tiny_backbone, said):
    with SharedLayers(tiny_backbone, IMAGE_BYTES, said.append) as shared:
        shared(pictures(1, 32))
        assert shared._size == IMAGE_BYTES and not said


def test_what_keeps_nothing_new_still_answers(tiny_backbone, shared, seen):
    images = pictures(3, 32)
    shared(images[:1])
    shared.keeps = False
    shared(images)
    shared(images)
    assert seen == [1] * 5


def test_a_full_disk_is_no_failure(tiny_backbone, seen, said, monkeypatch):
    images, written = pictures(3, 32), []
    expected = alone(tiny_backbone, images)
    seen.clear()

    def full(file, array, offset):
        written.append(offset)
        if len(written) > 4:  # in the middle of the second image
            raise OSError(errno.ENOSPC, "No space left on device")
        write_at(file, array, offset)

    write_at = shared_layers.write_at
    monkeypatch.setattr(shared_layers, "write_at", full)
    with SharedLayers(tiny_backbone, 1 << 30, said.append) as shared:
        for _ in range(3):
            same(shared(images), expected)
    assert seen == [1] * 7 and len(said) == 1 and "No space left on device" in said[0]


def test_a_disk_that_cannot_be_read_is_no_failure(tiny_backbone, seen, said, monkeypatch):
    images = pictures(2, 32)
    expected = alone(tiny_backbone, images)
    seen.clear()

    def broken(file, array, offset):
        raise OSError(errno.EIO, "Input/output error")

    with SharedLayers(tiny_backbone, 1 << 30, said.append) as shared:
        same(shared(images), expected)
        monkeypatch.setattr(shared_layers, "read_at", broken)
        for _ in range(2):
            same(shared(images), expected)
        assert shared.reused == 0
    assert seen == [1] * 6 and len(said) == 1 and "Input/output error" in said[0]


def test_a_temporary_folder_that_is_not_there_is_no_failure(tiny_backbone, said, monkeypatch):
    monkeypatch.setattr(shared_layers.tempfile, "tempdir", "/no/such/folder")
    with SharedLayers(tiny_backbone, 1 << 30, said.append) as shared:
        same(shared(pictures(2, 32)), alone(tiny_backbone, pictures(2, 32)))
    assert len(said) == 1 and "/no/such/folder" in said[0]


@pytest.mark.skipif(os.name == "nt", reason="an open file has a name there")
def test_the_file_has_no_name_and_ends_with_it(tiny_backbone, said, tmp_path, monkeypatch):
    monkeypatch.setattr(shared_layers.tempfile, "tempdir", str(tmp_path))
    with SharedLayers(tiny_backbone, 1 << 30, said.append) as shared:
        shared(pictures(2, 32))
        file = shared._file
        assert os.fstat(file.fileno()).st_size == 2 * IMAGE_BYTES
        assert not os.listdir(tmp_path)
    assert file.closed


def test_half_of_the_free_space_is_the_most(monkeypatch):
    monkeypatch.setattr(
        shared_layers.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1001})
    )
    assert budget_within(500) == 500 and budget_within(501) == 500 and budget_within(0) == 0


def test_it_looks_like_the_network(tiny_backbone, shared):
    count = sum(p.numel() for p in shared.parameters())
    assert count == sum(p.numel() for p in tiny_backbone.parameters()) == 2_782_784
    assert list(shared.state_dict()) == list(tiny_backbone.state_dict())
    assert not hasattr(shared, "channels")
    tiny_backbone.channels = {"layer1": 64, "layer2": 128, "layer3": 256}
    try:
        assert SharedLayers(tiny_backbone, 1, print).channels == tiny_backbone.channels
    finally:
        del tiny_backbone.channels
