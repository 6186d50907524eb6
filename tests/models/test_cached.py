"""Features computed once are the features computed again, wherever they are kept."""

import errno
import os

import pytest
import torch
from toys import Images
from trained import GRID, pictures, recomputed

from tiled_ref.models import cached
from tiled_ref.models.cached import CachedFeatures, batches
from tiled_ref.support.errors import InputError

INDICES = [3, 0, 4]


@pytest.mark.parametrize("grid", [None, GRID])
@pytest.mark.parametrize("budget", [2**40, 0])
def test_cached_features_are_the_recomputed_ones(tiny_backbone, grid, budget):
    images = Images(pictures(5, 96 if grid else 64), grid)
    kept = CachedFeatures(tiny_backbone, images, budget)
    assert kept.spilled == (budget == 0) and len(kept) == 5
    for _ in range(2):
        for a, b in zip(kept[INDICES], recomputed(tiny_backbone, images, INDICES), strict=True):
            assert torch.equal(a, b) and a.shape == b.shape
            assert a.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("grid", [None, GRID])
def test_features_are_the_backbones_in_tile_major_order(tiny_backbone, grid):
    images = Images(pictures(5, 96 if grid else 64), grid)
    for a, b in zip(CachedFeatures(tiny_backbone, images)[INDICES], tiny_backbone(images[INDICES])):
        # Measured: 8e-6, values up to 13; the backbone rounds otherwise in another batch.
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_every_image_passes_the_encoder_once(tiny_backbone):
    images = Images(pictures(5))
    kept = CachedFeatures(tiny_backbone, images)
    for indices in ([0, 1, 2], [4, 3], [0]):
        kept[indices]
    assert images.asked == [[0], [1], [2], [3], [4]]


def test_the_budget_is_exact_and_counts_all_layers(tiny_backbone):
    """64 x 64 px: (64 * 16 * 16 + 128 * 8 * 8 + 256 * 4 * 4) * 4 bytes = 114,688 an image."""
    images = Images(pictures(2))
    assert CachedFeatures(tiny_backbone, images).n_bytes == 2 * 114_688
    assert not CachedFeatures(tiny_backbone, images, 2 * 114_688).spilled
    assert CachedFeatures(tiny_backbone, images, 2 * 114_688 - 1).spilled


def test_a_batch_can_be_changed_without_harm(tiny_backbone):
    for budget in (2**40, 0):
        kept = CachedFeatures(tiny_backbone, Images(pictures(2)), budget)
        before = kept[[0, 1]][0].clone()
        kept[[0, 1]][0].zero_()
        assert torch.equal(kept[[0, 1]][0], before)


def test_the_spill_file_has_no_name_that_could_be_left_behind(tiny_backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(cached.tempfile, "tempdir", str(tmp_path))
    kept = CachedFeatures(tiny_backbone, Images(pictures(2)), 0)
    size = os.fstat(kept.file.fileno()).st_size
    assert size == kept.n_bytes
    if os.name != "nt":
        assert not os.listdir(tmp_path)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="room cannot be reserved here")
def test_a_full_disk_is_one_sentence(tiny_backbone, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cached.os, "posix_fallocate", full)
    with pytest.raises(InputError, match="No space left on device.*TMPDIR"):
        CachedFeatures(tiny_backbone, Images(pictures(2)), 0)


def test_no_images_is_an_error(tiny_backbone):
    with pytest.raises(InputError, match="at least one normal image"):
        CachedFeatures(tiny_backbone, Images(pictures(0)))


def test_batches_are_shuffled_epochs_whose_last_batch_may_be_smaller():
    found = list(batches(7, 3, 7, seed=1))
    assert [len(b) for b in found] == [3, 3, 1, 3, 3, 1, 3]
    first, second = ([k for batch in found[a : a + 3] for k in batch] for a in (0, 3))
    assert sorted(first) == sorted(second) == list(range(7))
    assert first != second and first != list(range(7))
    assert found == list(batches(7, 3, 7, seed=1)) != list(batches(7, 3, 7, seed=2))
    assert [len(b) for b in batches(6, 3, 3, seed=0)] == [3, 3, 3]  # no empty batch
    assert [len(b) for b in batches(2, 32, 2, seed=0)] == [2, 2]
