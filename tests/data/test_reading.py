"""Reading whole sets of images and masks: once each, in order, beyond memory in a file."""

import gc
from dataclasses import dataclass

import numpy as np
import pytest
from _data_files import picture, touch, write_image

from tiled_ref.data import Sample, reading, resizing
from tiled_ref.data.disk import FileSample
from tiled_ref.support.errors import InputError


@dataclass(frozen=True)
class ArraySample(Sample):
    """A sample that counts how often it is read."""

    seed: int
    reads: list

    def read_image(self):
        self.reads.append(self.seed)
        return picture(40 + self.seed, 30, self.seed)

    def read_mask(self):
        mask = np.zeros((40 + self.seed, 30), bool)
        mask[10:20, 5:25] = True
        return mask if self.label and self.seed != 99 else None


def samples(n, reads=None):
    reads = [] if reads is None else reads
    return [ArraySample(f"{k}.png", k % 2, "good", k, reads) for k in range(n)]

@pytest.mark.parametrize("cores", [1, 5])
def test_images_are_read_once_in_order_whatever_the_threads(cores, monkeypatch):
    monkeypatch.setattr(reading.os, "sched_getaffinity", lambda _: range(cores), raising=False)
    reads, seen = [], []
    got = reading.read_images(samples(7, reads), (16, 24), progress=lambda *p: seen.append(p))
    assert got.shape == (7, 3, 16, 24) and got.dtype == np.uint8 and got.flags.c_contiguous
    assert sorted(reads) == list(range(7))
    assert seen == [(k, 7) for k in range(1, 8)]
    for k in range(7):
        expected = resizing.resize_image(picture(40 + k, 30, k), (16, 24))
        np.testing.assert_array_equal(got[k], expected.transpose(2, 0, 1))


def test_antialias_reaches_the_resize():
    plain, smooth = (reading.read_images(samples(1), (8, 8), antialias=a) for a in (False, True))
    assert not np.array_equal(plain, smooth)
    np.testing.assert_array_equal(
        smooth[0].transpose(1, 2, 0), resizing.resize_image(picture(40, 30, 0), (8, 8), True)
    )


def test_beyond_the_budget_images_lie_in_a_file_that_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(reading.tempfile, "tempdir", str(tmp_path))
    n_bytes = 5 * 3 * 16 * 16
    inside = reading.read_images(samples(5), (16, 16), budget=n_bytes)
    beyond = reading.read_images(samples(5), (16, 16), budget=n_bytes - 1)
    assert not isinstance(inside, np.memmap) and isinstance(beyond, np.memmap)
    assert beyond.flags.c_contiguous
    np.testing.assert_array_equal(inside, beyond)
    del beyond
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_folder_that_cannot_be_used_is_an_error(tmp_path, monkeypatch):
    touch(tmp_path / "file")
    monkeypatch.setattr(reading.tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(InputError, match="file cannot hold the images, 768 bytes"):
        reading.read_images(samples(1), (16, 16), budget=0)


def test_a_cache_that_the_disk_cannot_hold_is_an_error_before_anything_is_decoded(
    tmp_path, monkeypatch
):
    """The space is reserved, and all of it: a full disk is noticed now and not in mid-run."""
    asked, reads = [], []

    def full(descriptor, start, n_bytes):
        asked.append((start, n_bytes))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reading.os, "posix_fallocate", full, raising=False)
    monkeypatch.setattr(reading.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(InputError, match="1,536 bytes .No space left.*; set TMPDIR"):
        reading.read_images(samples(2, reads), (16, 16), budget=0)
    assert asked == [(0, 1536)] and reads == []
    assert list(tmp_path.iterdir()) == []


def test_the_first_bad_file_in_order_is_reported(tmp_path):
    files = []
    for k in range(8):
        path = tmp_path / f"{k}.png"
        touch(path) if k in (3, 6) else write_image(path)
        files.append(FileSample(path.name, 0, "good", path))
    for _ in range(3):
        with pytest.raises(InputError, match="3.png is not an image"):
            reading.read_images(files, (8, 8))


def test_masks_are_resized_and_false_for_normal_images():
    masks = reading.read_masks(samples(4), (20, 15))
    assert masks.shape == (4, 20, 15) and masks.dtype == bool
    assert not masks[0].any() and not masks[2].any()
    for k in (1, 3):
        np.testing.assert_array_equal(
            masks[k], resizing.resize_mask(samples(4)[k].read_mask(), (20, 15))
        )


def test_a_missing_mask_is_an_error():
    sample = ArraySample("bent.png", 1, "bent", 99, [])
    with pytest.raises(InputError, match="bent.png has no mask"):
        reading.read_masks([sample], (4, 4))
    with pytest.raises(InputError, match="bent.png has no mask"):
        reading.read_mask_original(sample)


def test_original_masks_have_the_image_s_size(tmp_path):
    assert not reading.read_mask_original(samples(3)[2]).any()
    assert reading.read_mask_original(samples(3)[2]).shape == (42, 30)
    np.testing.assert_array_equal(
        reading.read_mask_original(samples(2)[1]), samples(2)[1].read_mask()
    )
    write_image(tmp_path / "a.png", 6, 8)
    assert reading.read_mask_original(FileSample("a", 0, "good", tmp_path / "a.png")).shape == (6, 8)
