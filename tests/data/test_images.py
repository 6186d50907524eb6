"""Decoding, resizing and collecting images: files of every kind, by hand and against torch."""

import gc
import io
import math
import struct
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from _data_files import picture, touch, write_image, write_mask
from PIL import Image, ImageFont, _util

from tiled_ref.data import Sample, images
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


# ----------------------------------------------------------------------- decoding: images


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif", ".webp"])
def test_a_lossless_colour_image_keeps_its_pixels(tmp_path, ending):
    pixels = picture()
    lossless = {"lossless": True} if ending == ".webp" else {}
    Image.fromarray(pixels).save(tmp_path / f"a{ending}", **lossless)
    decoded = images.decode_image(tmp_path / f"a{ending}")
    assert decoded.dtype == np.uint8 and decoded.flags.c_contiguous and decoded.flags.writeable
    np.testing.assert_array_equal(decoded, pixels)


def test_a_jpeg_image_is_close_to_what_was_saved(tmp_path):
    y, x = np.mgrid[:32, :48]
    pixels = np.stack([4 * x, 5 * y, 2 * (x + y)], axis=2).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.JPG", quality=95, subsampling=0)
    decoded = images.decode_image(tmp_path / "a.JPG")
    assert np.abs(decoded.astype(int) - pixels).max() <= 8  # measured: 4


def test_grey_becomes_three_equal_channels(tmp_path):
    grey = picture()[..., 0]
    Image.fromarray(grey).save(tmp_path / "a.png")
    np.testing.assert_array_equal(
        images.decode_image(tmp_path / "a.png"), np.stack([grey] * 3, axis=2)
    )


def test_black_and_white_becomes_0_and_255(tmp_path):
    bits = picture()[..., 0] > 127
    Image.fromarray(bits).save(tmp_path / "a.png")
    np.testing.assert_array_equal(images.decode_image(tmp_path / "a.png")[..., 1], bits * 255)


@pytest.mark.parametrize("alpha", [0, 7, 255])
def test_alpha_is_dropped_not_blended(tmp_path, alpha):
    pixels = np.concatenate([picture(), np.full((6, 8, 1), alpha, np.uint8)], axis=2)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels[..., 2:], "LA").save(tmp_path / "b.png")
    np.testing.assert_array_equal(images.decode_image(tmp_path / "a.png"), pixels[..., :3])
    np.testing.assert_array_equal(
        images.decode_image(tmp_path / "b.png"), np.repeat(pixels[..., 2:3], 3, axis=2)
    )


@pytest.mark.parametrize("transparency", [None, 1, bytes([0, 128, 255])])
def test_a_palette_image_has_the_colours_of_its_palette(tmp_path, transparency, recwarn):
    palette = [[10, 20, 30], [200, 100, 0], [1, 2, 3]]
    index = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    image = Image.fromarray(index, "P")
    image.putpalette(sum(palette, []))
    more = {} if transparency is None else {"transparency": transparency}
    image.save(tmp_path / "a.png", **more)
    np.testing.assert_array_equal(
        images.decode_image(tmp_path / "a.png"), np.array(palette, np.uint8)[index]
    )
    assert not list(recwarn)  # Pillow warns of some conversions that drop transparency


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_16_bit_grey_is_divided_by_257_to_the_nearest(tmp_path, ending):
    values = np.array([[0, 128, 129, 256, 257], [385, 386, 32896, 65406, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a{ending}")
    decoded = images.decode_image(tmp_path / f"a{ending}")
    np.testing.assert_array_equal(decoded[..., 0], [[0, 0, 1, 1, 1], [1, 2, 128, 254, 255]])
    np.testing.assert_array_equal(decoded[..., 0], decoded[..., 2])


def test_16_bit_colour_keeps_the_high_bytes(tmp_path):
    values = np.random.default_rng(1).integers(0, 65536, (3, 4, 3))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    touch(tmp_path / "a.png", png(4, 3, 16, 2, rows))
    np.testing.assert_array_equal(images.decode_image(tmp_path / "a.png"), values >> 8)


def test_cmyk_is_converted(tmp_path):
    Image.new("CMYK", (4, 3), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(
        images.decode_image(tmp_path / "a.tif"), np.broadcast_to([255, 0, 0], (3, 4, 3))
    )


@pytest.mark.parametrize("ending", [".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_images_and_masks(tmp_path, ending, orientation):
    """The eight cases by hand: what the camera stored, and what the eye should see."""
    stored = picture(4, 6)
    stored[0, 0] = 0
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: stored[::-1].transpose(1, 0, 2),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: stored[:, ::-1].transpose(1, 0, 2),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a{ending}"
    lossless = {"lossless": True} if ending == ".webp" else {}
    Image.fromarray(stored).save(path, exif=exif, **lossless)
    np.testing.assert_array_equal(images.decode_image(path), upright)
    assert images.image_size(path) == upright.shape[:2]
    np.testing.assert_array_equal(images.decode_mask(path), upright.any(axis=2))


# ------------------------------------------------------------------------ decoding: masks


@pytest.mark.parametrize("values", [[0, 255], [0, 1], [0, 3, 12]])
def test_whatever_is_above_0_is_anomalous(tmp_path, values):
    ids = np.random.default_rng(2).choice(values, (6, 8)).astype(np.uint8)
    Image.fromarray(ids).save(tmp_path / "a.png")
    mask = images.decode_mask(tmp_path / "a.png")
    assert mask.dtype == bool and mask.flags.c_contiguous
    np.testing.assert_array_equal(mask, ids > 0)


def test_a_palette_mask_counts_by_index(tmp_path):
    """Index 0 is white here and index 1 black: the colours would say the opposite."""
    index = np.array([[0, 1], [2, 0]], np.uint8)
    image = Image.fromarray(index, "P")
    image.putpalette([255, 255, 255, 0, 0, 0, 255, 0, 0])
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(images.decode_mask(tmp_path / "a.png"), index > 0)


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_a_colour_mask_is_anomalous_where_any_channel_is(tmp_path, channel):
    pixels = np.zeros((6, 8, 4), np.uint8)
    pixels[..., 3] = 255
    pixels[2, 3, channel] = 1
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    Image.fromarray(pixels[..., :3].copy()).save(tmp_path / "plain.png")
    for name in ("alpha.png", "plain.png"):
        mask = images.decode_mask(tmp_path / name)
        assert mask.sum() == 1 and mask[2, 3]


@pytest.mark.parametrize("kind", ["one bit", "16 bit", "32 bit", "grey with alpha"])
def test_masks_of_other_depths(tmp_path, kind):
    expected = np.zeros((6, 8), bool)
    expected[1, 2] = expected[5, 7] = True
    pixels = {
        "one bit": expected,
        "16 bit": expected.astype(np.uint16),
        "32 bit": expected.astype(np.int32),
        "grey with alpha": np.stack([expected, ~expected], axis=2).astype(np.uint8),
    }[kind]
    name = "a.tif" if kind == "32 bit" else "a.png"
    Image.fromarray(pixels).save(tmp_path / name)
    np.testing.assert_array_equal(images.decode_mask(tmp_path / name), expected)


def test_a_mask_of_other_colours_is_anomalous_where_it_is_not_black(tmp_path):
    """CMYK: no ink is white; black by its own ink, or by the three others."""
    inks = np.zeros((2, 3, 4), np.uint8)
    inks[0, 0, 3] = 255
    inks[1, 2, :3] = 255
    inks[0, 1, 0] = 255  # cyan
    Image.fromarray(inks, "CMYK").save(tmp_path / "a.tif")
    np.testing.assert_array_equal(
        images.decode_mask(tmp_path / "a.tif"), [[False, True, True], [True, True, False]]
    )


def test_a_mask_of_another_size_is_refused_naming_both_files(tmp_path):
    write_image(tmp_path / "a.png", 6, 8)
    write_mask(tmp_path / "a_mask.png", 8, 6)
    sample = FileSample("a", 1, "bent", tmp_path / "a.png", tmp_path / "a_mask.png")
    with pytest.raises(InputError) as caught:
        sample.read_mask()
    for part in ("a.png", "a_mask.png", "8 x 6", "6 x 8"):
        assert part in str(caught.value)


# ----------------------------------------------------------------------- decoding: refusals


def png(width, height, depth=8, colour=2, rows=b""):
    """A PNG file with this header, whatever the pixels are."""

    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + (
        chunk(b"IEND", b"")
    )


def encoded(kind, **options):
    file = io.BytesIO()
    Image.fromarray(picture(64, 64)).save(file, kind, **options)
    return file.getvalue()


BAD = {  # name: (content, what the sentence must say)
    "empty.png": (b"", "is empty (0 bytes)"),
    "text.png": (b"these are words, not pixels", "is not an image"),
    "head.png": (b"\x89PNG\r\n\x1a\n", "is not an image"),
    "cut.png": (encoded("PNG")[:5000], "is damaged"),
    "cut.jpg": (encoded("JPEG")[:2000], "is damaged"),
    "cut.tif": (encoded("TIFF")[:2000], "is damaged"),
    "cut.bmp": (encoded("BMP")[:2000], "is damaged"),
    "cut.webp": (encoded("WEBP")[:600], "is"),
    "missing_pixels.png": (png(64, 64), "is damaged"),
    "flipped.png": (encoded("PNG")[:300] + bytes(400) + encoded("PNG")[700:], "is damaged"),
    "bomb.png": (png(50_000, 50_000), "2500000000 pixels"),
}


@pytest.mark.parametrize("decode", [images.decode_image, images.decode_mask])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_with_one_sentence_that_names_it(tmp_path, name, decode):
    content, says = BAD[name]
    path = touch(tmp_path / name, content)
    with pytest.raises(InputError) as caught:
        decode(path)
    assert str(path) in str(caught.value) and says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        images.decode_image(tmp_path / "a.png")
    with pytest.raises(InputError, match="is a folder"):
        images.decode_image(tmp_path)


def test_an_image_that_memory_cannot_hold_is_an_error_that_names_it(tmp_path):
    write_image(tmp_path / "a.png")
    with pytest.raises(InputError, match="^there is not enough memory to decode .*a.png$"):
        with images._reading(tmp_path / "a.png") as image:
            image.load()
            raise MemoryError


def test_a_bomb_is_refused_before_memory_is_allocated(tmp_path):
    """The header of 7.5 GB of pixels; decoding them would need as much memory."""
    tracemalloc = pytest.importorskip("tracemalloc")
    path = touch(tmp_path / "bomb.png", png(50_000, 50_000))
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            images.decode_image(path)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_a_large_image_below_the_limit_passes_without_a_warning(tmp_path, recwarn):
    Image.new("1", (10_000, 9_000)).save(tmp_path / "large.png")
    assert images.image_size(tmp_path / "large.png") == (9_000, 10_000)
    assert not list(recwarn)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bit_images_are_refused(tmp_path, dtype):
    Image.fromarray(np.ones((4, 5), dtype)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match="a.tif has 32-bit pixels"):
        images.decode_image(tmp_path / "a.tif")


def test_a_jpeg_mask_is_refused(tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="a.jpg is a JPEG file.*save it as PNG"):
        images.decode_mask(tmp_path / "a.jpg")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # odd entries of damaged TIFF files
def test_random_damage_never_escapes_as_another_exception(tmp_path, rng):
    """Bytes of real files are overwritten: the result is pixels or an InputError."""
    refused = 0
    for kind in ("PNG", "JPEG", "TIFF", "BMP", "WEBP"):
        whole = encoded(kind)
        for _ in range(40):
            content = bytearray(whole)
            for position in rng.integers(0, min(len(content), 400), 3):
                content[position] = rng.integers(256)
            path = touch(tmp_path / "a", bytes(content))
            try:
                assert images.decode_image(path).shape[2] == 3
            except InputError as error:
                refused += 1
                assert str(path) in str(error)
    assert refused > 50


# ------------------------------------------------------------------------------- resizing


def resized_by_loops(image, size):
    """Bilinear resize from its definition, scalar float64."""
    height, width, channels = image.shape
    out = np.empty((*size, channels))
    for i in range(size[0]):
        for j in range(size[1]):
            y = min(max((i + 0.5) * height / size[0] - 0.5, 0), height - 1)
            x = min(max((j + 0.5) * width / size[1] - 0.5, 0), width - 1)
            top, left = int(y), int(x)
            below, right = min(top + 1, height - 1), min(left + 1, width - 1)
            for c in range(channels):
                a, b = float(image[top, left, c]), float(image[top, right, c])
                one = a * (1 - (x - left)) + b * (x - left)
                a, b = float(image[below, left, c]), float(image[below, right, c])
                two = a * (1 - (x - left)) + b * (x - left)
                out[i, j, c] = one * (1 - (y - top)) + two * (y - top)
    return out


def test_halving_averages_four_pixels_and_rounds_half_to_even():
    """(0 + 1 + 2 + 3) / 4 = 1.5 -> 2; (0 + 2 + 4 + 4) / 4 = 2.5 -> 2; 255 stays 255."""
    one = np.array([[0, 1, 0, 2, 255, 255], [2, 3, 4, 4, 255, 255]], np.uint8)
    image = np.repeat(one[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(images.resize_image(image, (1, 3))[0, :, 0], [2, 2, 255])


@pytest.mark.parametrize("size", [(3, 4), (5, 5), (11, 2), (1, 1), (6, 9)])
def test_resize_is_the_definition(size):
    image = picture(6, 7)
    expected = resized_by_loops(image, size)
    got = images.resize_image(image, size)
    assert got.dtype == np.uint8 and got.flags.c_contiguous
    assert np.abs(got - expected).max() <= 0.5 + 1e-4  # measured: 0.5 and 6e-6


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(
    ("shape", "size"),
    [((64, 64), (32, 32)), ((70, 70), (51, 51)), ((37, 53), (64, 20)), ((5, 1), (9, 7)),
     ((128, 96), (9, 13)), ((16, 16), (64, 64))],
)  # fmt: skip
def test_resize_agrees_with_torch(shape, size, antialias):
    image = picture(*shape)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    expected = torch.nn.functional.interpolate(
        tensor, size=size, mode="bilinear", align_corners=False, antialias=antialias
    )
    expected = expected[0].permute(1, 2, 0).numpy()
    # Measured: 0.5 + 9e-6, the rounding to 8 bits and that of the weights to float32.
    assert np.abs(images.resize_image(image, size, antialias) - expected).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("shape", "size"), [((90, 70), (45, 31)), ((37, 53), (64, 20))])
def test_strips_of_a_large_image_are_the_whole(monkeypatch, shape, size, antialias):
    """Sixteen rows at a time, the last strip shorter: the bits of all rows at once."""
    image = picture(*shape)
    whole = images.resize_image(image, size, antialias)
    monkeypatch.setattr(images, "STRIP", 0)
    np.testing.assert_array_equal(images.resize_image(image, size, antialias), whole)


@pytest.mark.parametrize("antialias", [False, True])
def test_the_same_size_and_constant_images_are_unchanged(antialias):
    image = picture(9, 7)
    np.testing.assert_array_equal(images.resize_image(image, (9, 7), antialias), image)
    for value in (0, 1, 127, 254, 255):
        constant = np.full((9, 7, 3), value, np.uint8)
        for size in ((4, 5), (30, 3)):
            assert (images.resize_image(constant, size, antialias) == value).all()


def test_resize_leaves_its_input_alone_and_accepts_read_only_views():
    image = picture(12, 12)
    before = image.copy()
    image.flags.writeable = False
    view = image[::-1, ::-1]
    np.testing.assert_array_equal(
        images.resize_image(view, (5, 5)), images.resize_image(view.copy(), (5, 5))
    )
    np.testing.assert_array_equal(image, before)


def test_nearest_masks_by_hand():
    """From 6 to 3 rows: 0, 2, 4; from 5 to 3 columns: floor(0, 1.67, 3.33) = 0, 1, 3."""
    mask = np.zeros((6, 5), bool)
    mask[2, 1] = mask[4, 3] = mask[1, 1] = mask[4, 4] = True
    np.testing.assert_array_equal(
        images.resize_mask(mask, (3, 3)),
        np.array([[0, 0, 0], [0, 1, 0], [0, 0, 1]], bool),
    )


@pytest.mark.parametrize("size", [(256, 256), (7, 30), (1, 1), (300, 200)])
def test_nearest_masks_agree_with_torch(size):
    mask = picture(128, 100)[..., 0] > 127
    tensor = torch.from_numpy(mask)[None, None].to(torch.uint8)
    expected = torch.nn.functional.interpolate(tensor, size=size, mode="nearest")[0, 0]
    got = images.resize_mask(mask, size)
    assert got.flags.c_contiguous and got.dtype == bool
    np.testing.assert_array_equal(got, expected.numpy() > 0)


# ------------------------------------------------------------------------ whole data sets


@pytest.mark.parametrize("cores", [1, 5])
def test_images_are_read_once_in_order_whatever_the_threads(cores, monkeypatch):
    monkeypatch.setattr(images.os, "sched_getaffinity", lambda _: range(cores), raising=False)
    reads, seen = [], []
    got = images.read_images(samples(7, reads), (16, 24), progress=lambda *p: seen.append(p))
    assert got.shape == (7, 3, 16, 24) and got.dtype == np.uint8 and got.flags.c_contiguous
    assert sorted(reads) == list(range(7))
    assert seen == [(k, 7) for k in range(1, 8)]
    for k in range(7):
        expected = images.resize_image(picture(40 + k, 30, k), (16, 24))
        np.testing.assert_array_equal(got[k], expected.transpose(2, 0, 1))


def test_antialias_reaches_the_resize():
    plain, smooth = (images.read_images(samples(1), (8, 8), antialias=a) for a in (False, True))
    assert not np.array_equal(plain, smooth)
    np.testing.assert_array_equal(
        smooth[0].transpose(1, 2, 0), images.resize_image(picture(40, 30, 0), (8, 8), True)
    )


def test_beyond_the_budget_images_lie_in_a_file_that_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(images.tempfile, "tempdir", str(tmp_path))
    n_bytes = 5 * 3 * 16 * 16
    inside = images.read_images(samples(5), (16, 16), budget=n_bytes)
    beyond = images.read_images(samples(5), (16, 16), budget=n_bytes - 1)
    assert not isinstance(inside, np.memmap) and isinstance(beyond, np.memmap)
    assert beyond.flags.c_contiguous
    np.testing.assert_array_equal(inside, beyond)
    del beyond
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_folder_that_cannot_be_used_is_an_error(tmp_path, monkeypatch):
    touch(tmp_path / "file")
    monkeypatch.setattr(images.tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(InputError, match="file cannot hold the images, 768 bytes"):
        images.read_images(samples(1), (16, 16), budget=0)


def test_a_cache_that_the_disk_cannot_hold_is_an_error_before_anything_is_decoded(
    tmp_path, monkeypatch
):
    """The space is reserved, and all of it: a full disk is noticed now and not in mid-run."""
    asked, reads = [], []

    def full(descriptor, start, n_bytes):
        asked.append((start, n_bytes))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(images.os, "posix_fallocate", full, raising=False)
    monkeypatch.setattr(images.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(InputError, match="1,536 bytes .No space left.*; set TMPDIR"):
        images.read_images(samples(2, reads), (16, 16), budget=0)
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
            images.read_images(files, (8, 8))


def test_masks_are_resized_and_false_for_normal_images():
    masks = images.read_masks(samples(4), (20, 15))
    assert masks.shape == (4, 20, 15) and masks.dtype == bool
    assert not masks[0].any() and not masks[2].any()
    for k in (1, 3):
        np.testing.assert_array_equal(
            masks[k], images.resize_mask(samples(4)[k].read_mask(), (20, 15))
        )


def test_a_missing_mask_is_an_error():
    sample = ArraySample("bent.png", 1, "bent", 99, [])
    with pytest.raises(InputError, match="bent.png has no mask"):
        images.read_masks([sample], (4, 4))
    with pytest.raises(InputError, match="bent.png has no mask"):
        images.read_mask_original(sample)


def test_original_masks_have_the_image_s_size(tmp_path):
    assert not images.read_mask_original(samples(3)[2]).any()
    assert images.read_mask_original(samples(3)[2]).shape == (42, 30)
    np.testing.assert_array_equal(
        images.read_mask_original(samples(2)[1]), samples(2)[1].read_mask()
    )
    write_image(tmp_path / "a.png", 6, 8)
    assert images.read_mask_original(FileSample("a", 0, "good", tmp_path / "a.png")).shape == (6, 8)


def test_normalize_by_hand_and_against_torchvision():
    transforms = pytest.importorskip("torchvision.transforms.functional")
    batch = torch.zeros(2, 3, 2, 2, dtype=torch.uint8)
    batch[1] = 255
    before = batch.clone()
    got = images.normalize(batch)
    assert got.dtype == torch.float32 and torch.equal(batch, before)
    # (0 - 0.485) / 0.229 and (1 - 0.406) / 0.225
    assert got[0, 0, 0, 0].item() == pytest.approx(-2.117904, abs=1e-6)
    assert got[1, 2, 1, 1].item() == pytest.approx(2.64, abs=1e-6)
    pixels = torch.from_numpy(picture(16, 16)).permute(2, 0, 1)
    expected = transforms.normalize(pixels / 255, images.MEAN, images.STD)
    assert torch.equal(images.normalize(pixels[None])[0], expected)


@pytest.mark.parametrize("why", ["old", "no FreeType"])
@pytest.mark.parametrize("height", [8, 11, 20])
def test_text_in_the_bitmap_typeface_has_its_height(monkeypatch, height, why):
    """Lines of 11 px: made smaller where they do not fit, the width with them; never larger."""
    bitmap = getattr(ImageFont, "load_default_imagefont", ImageFont.load_default)()
    wide = math.ceil(bitmap.getlength("1.5 g"))
    if why == "old":
        monkeypatch.setattr(images.ImageFont, "load_default", lambda: bitmap)
    else:  # what Pillow itself finds where its module for FreeType was not built
        monkeypatch.setitem(sys.modules, "PIL._imagingft", None)
        missing = ImportError("no FreeType")
        monkeypatch.setattr(ImageFont, "core", _util.DeferredError(missing))
    font = images._font(height)
    assert type(font) is type(bitmap) and images._extent(font) == (11, 0)
    coverage = images.text_coverage("1.5 g", height)
    assert coverage.shape == (height, wide if height >= 11 else round(wide * height / 11))
    assert coverage.dtype == np.uint8 and coverage.max() > 100 and not coverage[11:].any()


def test_only_one_file_imports_pil():
    package = Path(images.__file__).parent.parent
    files = sorted(package.rglob("*.py"))
    found = [path.name for path in files if "from PIL" in path.read_text("utf-8")]
    assert found == ["images.py"]
