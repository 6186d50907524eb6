"""Decoding images and masks: files of every kind, and those that are refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from _data_files import picture, touch, write_image, write_mask
from PIL import Image

from tiled_ref.data import images
from tiled_ref.data.disk import FileSample
from tiled_ref.support.errors import InputError

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


BAD = {  # name: (content, a part of the error)
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
