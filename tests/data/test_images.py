"""Decoding images and masks: files of every kind, and those that are refused."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from _data_files import picture, touch, write_image, write_mask
from PIL import Image, PngImagePlugin

from tiled_ref.data import decoding, images
from tiled_ref.data.disk import FileSample
from tiled_ref.support.errors import InputError

ROOT = Path(__file__).resolve().parents[2]

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
    np.testing.assert_array_equal(images.decode_mask(path), upright.any(axis=2))


# ------------------------------------------------------------------------ decoding: masks


@pytest.mark.parametrize("values", [[0, 255], [0, 1], [0, 3, 12]])
def test_whatever_is_above_0_is_anomalous(tmp_path, values):
    ids = np.random.default_rng(2).choice(values, (6, 8)).astype(np.uint8)
    Image.fromarray(ids).save(tmp_path / "a.png")
    mask = images.decode_mask(tmp_path / "a.png")
    assert mask.dtype == bool and mask.flags.c_contiguous
    np.testing.assert_array_equal(mask, ids > 0)


PALETTES = {  # colours of the entries 0, 1 and 2, and whether each is anomalous; None: refused
    "black first": ([(0, 0, 0), (255, 255, 255), (0, 0, 1)], [False, True, True]),
    "white first": ([(255, 255, 255), (0, 0, 0), (255, 0, 0)], [True, False, True]),
    "black last": ([(1, 0, 0), (0, 1, 0), (0, 0, 0)], [True, True, False]),
    "no black": ([(255, 255, 255), (1, 0, 0), (255, 0, 0)], None),
    "two are black": ([(0, 0, 0), (0, 0, 0), (255, 0, 0)], None),
    "all are black": ([(0, 0, 0), (0, 0, 0), (0, 0, 0)], None),
}


@pytest.mark.parametrize("ending", [".png", ".tif", ".bmp", ".gif"])
@pytest.mark.parametrize("name", PALETTES)
def test_in_a_palette_mask_the_colours_decide(tmp_path, name, ending):
    colours, anomalous = PALETTES[name]
    index = np.array([[0, 1, 2, 0], [2, 0, 1, 1]], np.uint8)
    image = Image.fromarray(index, "P")
    image.putpalette(sum(map(list, colours), []))
    image.save(tmp_path / f"a{ending}", **({"optimize": False} if ending == ".gif" else {}))
    if anomalous is None:
        with pytest.raises(InputError, match="of its palette, .* black; save it as black and"):
            images.decode_mask(tmp_path / f"a{ending}")
        return
    expected = np.array(anomalous)[index]
    np.testing.assert_array_equal(images.decode_mask(tmp_path / f"a{ending}"), expected)


def test_a_number_beyond_the_palette_is_refused(tmp_path):
    """PNG may list fewer colours than its pixels number; Pillow takes the others for black."""
    data = png(3, 1, 8, 3, bytes([0, 0, 1, 5]))
    palette = chunk(b"PLTE", bytes([0, 0, 0, 255, 255, 255]))
    touch(tmp_path / "a.png", data[:33] + palette + data[33:])
    for decode in (images.decode_image, images.decode_mask):
        with pytest.raises(InputError, match="a.png is damaged.*colour 5 of a palette of 2"):
            decode(tmp_path / "a.png")


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
@pytest.mark.parametrize(
    ("colour", "alpha", "expected"),
    [("spot", "opaque", "spot"), ("white", "spot", "spot"), ("black", "spot", "spot"),
     ("spot", "spot", "spot"), ("spot", "clear", "spot"), ("spot", "other", None),
     ("spot", "faint", None), ("black", "opaque", "nothing")],
)  # fmt: skip
def test_a_mask_drawn_in_its_alpha_is_understood_or_refused(tmp_path, mode, colour, alpha, expected):
    spot, other = np.zeros((2, 6, 8), bool)
    spot[1:3, 2:5] = other[4:, 6:] = True
    dark, says = np.uint8(1), "has transparency that differs"
    drawn = {
        "spot": spot * dark, "white": np.full((6, 8), 255, np.uint8),
        "black": np.zeros((6, 8), np.uint8),
    }[colour]  # fmt: skip
    opacity = {
        "opaque": np.full((6, 8), 255), "clear": np.zeros((6, 8)), "spot": spot * 255,
        "other": other * 7, "faint": 255 - other * 200,
    }[alpha].astype(np.uint8)  # fmt: skip
    if mode == "P":  # one entry for each pair of colour and alpha
        pairs, index = np.unique(
            np.stack([drawn, opacity], 2).reshape(-1, 2), axis=0, return_inverse=True
        )
        if len(pairs) > 1 and (pairs[:, 0] == 0).sum() != 1:
            expected, says = None, "uses"  # refused by its colours already
        image = Image.fromarray(index.reshape(6, 8).astype(np.uint8), "P")
        image.putpalette(np.repeat(pairs[:, 0], 3).tobytes())
        image.save(tmp_path / "a.png", transparency=pairs[:, 1].tobytes())
    else:
        channels = [drawn] * (len(mode) - 1) + [opacity]
        Image.fromarray(np.dstack(channels), mode).save(tmp_path / "a.png")
    if expected is None:
        with pytest.raises(InputError, match=f"the mask .*a.png {says}"):
            images.decode_mask(tmp_path / "a.png")
        return
    wanted = spot if expected == "spot" else np.zeros_like(spot)
    np.testing.assert_array_equal(images.decode_mask(tmp_path / "a.png"), wanted)


@pytest.mark.parametrize("colour", [0, 2, 4, 6])  # of PNG: grey, RGB, with alpha
@pytest.mark.parametrize("value", [1, 255, 256, 65535])
def test_no_bit_of_a_16_bit_mask_is_lost(tmp_path, colour, value):
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    for channel in range(channels - (colour > 2)):
        samples = np.zeros((6, 8, channels), ">u2")
        samples[..., -1] = 65535 if colour > 2 else 0
        samples[2, 3, channel] = value
        rows = b"".join(b"\0" + row.tobytes() for row in samples)
        touch(tmp_path / "a.png", png(8, 6, 16, colour, rows))
        mask = images.decode_mask(tmp_path / "a.png")
        assert mask.sum() == 1 and mask[2, 3]


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize("colour", [0, 2, 4, 6])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_png_whose_pixels_end_early_is_refused(tmp_path, bits, colour, interlaced):
    """At the end of a row, in a stream that ends as it should: Pillow takes the rest for black."""
    channels, h, w = {0: 1, 2: 3, 4: 2, 6: 4}[colour], 9, 13
    steps = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
             (0, 1, 1, 2)) if interlaced else ((0, 0, 1, 1),)  # fmt: skip
    shapes = [(-(-(h - y) // dy), -(-(w - x) // dx)) for x, y, dx, dy in steps]
    for value in (0, 200):
        row = [b"\0" + bytes([value]) * (n * channels * bits // 8) for m, n in shapes for _ in range(m)]
        for kept in (len(row), len(row) - 1, len(row) // 2):
            data = bytearray(png(w, h, bits, colour, b"".join(row[:kept])))
            data[28] = interlaced
            data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
            path = touch(tmp_path / "a.png", bytes(data))
            if kept == len(row):
                assert (images.decode_image(path) == value).all()
                continue
            for decode in (images.decode_image, images.decode_mask):
                with pytest.raises(InputError, match="a.png is (truncated: .* bytes of pixels are missing|damaged)"):
                    decode(path)


def test_a_transparent_colour_of_a_mask_is_refused(tmp_path):
    Image.fromarray(np.eye(4, dtype=np.uint8)).save(tmp_path / "a.png", transparency=1)
    with pytest.raises(InputError, match="a.png has a transparent colour; save it without"):
        images.decode_mask(tmp_path / "a.png")


@pytest.mark.parametrize("value", [-1, np.nan, -np.inf])
def test_a_mask_of_values_below_0_or_nan_is_refused(tmp_path, value):
    dtype = np.int32 if value == -1 else np.float32
    Image.fromarray(np.array([[0, 1, value]], dtype)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match="a.tif contains values below 0 or NaN"):
        images.decode_mask(tmp_path / "a.tif")


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
        "grey with alpha": np.stack([expected, expected >= 0], axis=2).astype(np.uint8),
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


def chunk(kind, data):
    """A chunk of a PNG file."""
    check = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + check


def png(width, height, depth=8, colour=2, rows=b""):
    """A PNG file with this header, whatever the pixels are."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + (
        chunk(b"IEND", b"")
    )


def encoded(kind, **options):
    file = io.BytesIO()
    Image.fromarray(picture(64, 64)).save(file, kind, **options)
    return file.getvalue()


def bmp_of_16_bits(values):
    """A BMP file of 5, 6 and 5 bits for red, green and blue, from uint16 (H, W), W even."""
    height, width = values.shape
    masks = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    header = struct.pack("<IiiHHIIiiII", 40, width, -height, 1, 16, 3, 2 * values.size, 0, 0, 0, 0)
    start = struct.pack("<2sIHHI", b"BM", 66 + 2 * values.size, 0, 0, 66)
    return start + header + masks + values.astype("<u2").tobytes()


def test_a_bmp_of_16_bits_a_pixel(tmp_path):
    values = np.array([[0, 1, 0xFFFF, 0], [0x0800, 0, 0, 0x0020]], np.uint16)
    path = touch(tmp_path / "a.bmp", bmp_of_16_bits(values))
    np.testing.assert_array_equal(images.decode_mask(path), values > 0)
    np.testing.assert_array_equal(images.decode_image(path)[0, :3], [[0] * 3, [0, 0, 8], [255] * 3])


def test_a_gif_whose_first_frame_is_smaller_is_refused(tmp_path):
    """What lies beside the frame has no colour that programs agree on."""
    file = io.BytesIO()
    Image.fromarray(np.eye(6, 8, dtype=np.uint8)).save(file, "GIF")
    content = file.getvalue()
    path = touch(tmp_path / "a.gif", content)
    np.testing.assert_array_equal(images.decode_mask(path), np.eye(6, 8) > 0)
    touch(path, content[:6] + struct.pack("<HH", 9, 6) + content[10:])
    for decode in (images.decode_image, images.decode_mask):
        with pytest.raises(InputError, match="a.gif begins with a frame that does not cover"):
            decode(path)


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
    lossy = decode is images.decode_mask and name == "cut.jpg"
    assert str(path) in str(caught.value)
    assert ("uses lossy compression" if lossy else says) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        images.decode_image(tmp_path / "a.png")
    with pytest.raises(InputError, match="is a folder"):
        images.decode_image(tmp_path)


def test_an_image_that_memory_cannot_hold_is_an_error_that_names_it(tmp_path):
    write_image(tmp_path / "a.png")
    with pytest.raises(InputError, match="^there is not enough memory to decode .*a.png$"):
        with decoding._named_errors(tmp_path / "a.png", "image"):
            raise MemoryError


def test_a_long_reason_is_cut(tmp_path):
    """Pillow quotes what it does not understand, up to a whole palette."""
    with pytest.raises(InputError, match="a.png is damaged or in an unsupported format") as caught:
        with decoding._named_errors(tmp_path / "a.png", "image"):
            raise ValueError("x" * 5000)
    assert len(str(caught.value)) < 500


def test_the_limit_on_pixels_can_be_moved(tmp_path):
    Image.new("L", (30, 20)).save(tmp_path / "a.png")
    touch(tmp_path / "a.pgm", b"P5 30 20 255\n" + bytes(600))
    for name in ("a.png", "a.pgm"):
        with decoding.pixel_limit(600):
            assert images.decode_image(tmp_path / name).shape == (20, 30, 3)
        with decoding.pixel_limit(598), pytest.raises(InputError, match="too large .600|600 pix"):
            images.decode_image(tmp_path / name)
        assert images.decode_image(tmp_path / name).shape == (20, 30, 3)


def test_a_file_larger_than_any_image_is_refused_unread(tmp_path):
    """A file of a terabyte, nothing of which is stored."""
    path = touch(tmp_path / "a.png", png(4, 4))
    with open(path, "r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError, match="a.png has 1,099,511,627,776 bytes, more than"):
        images.decode_image(path)


def test_decoding_libraries_warn_and_log_nothing(tmp_path):
    """In eight threads at once, in a process where nothing else handles warnings and logs; the
    filters are as before when all are done."""
    data = encoded("TIFF")
    at = data.index(struct.pack("<HH", 277, 3))  # samples per pixel: more than there may be
    odd = data[: at + 8] + struct.pack("<I", 60_000) + data[at + 12 :]
    for k in range(20):
        touch(tmp_path / f"{k}.tif", odd)
        Image.new("1", (10_000, 9_000)).save(tmp_path / f"{k}.png")
    script = """
import pathlib, sys, warnings
from concurrent.futures import ThreadPoolExecutor
from tiled_ref.data.images import decode_mask
from tiled_ref.support.errors import InputError
def count(path):
    try: return decode_mask(path).size
    except InputError: return 0
before = list(warnings.filters)
with ThreadPoolExecutor(8) as pool:
    print(sum(pool.map(count, sorted(pathlib.Path(sys.argv[1]).iterdir()))), before == warnings.filters)
"""
    ran = subprocess.run(
        [sys.executable, "-W", "always", "-c", script, tmp_path], cwd=ROOT, capture_output=True
    )
    assert ran.stdout.split() == [b"1800000000", b"True"] and ran.stderr == b""


@pytest.mark.parametrize("orientation", [1, 6, 8, 9])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("form", [b'="%d"', b">%d</tiff:Orientation>"])
def test_an_orientation_in_xmp_is_applied_once(tmp_path, kind, form, orientation):
    """Beside EXIF that says the same, and alone; masks alike."""
    stored = np.zeros((10, 20, 3), np.uint8)
    stored[:4, :6] = 255
    expected = {6: np.rot90(stored, -1), 8: np.rot90(stored)}.get(orientation, stored)
    xmp = b"<x:xmpmeta><tiff:Orientation" + form % orientation + b"</x:xmpmeta>"
    exif = Image.Exif()
    exif[0x0112] = orientation
    for more in ({}, {"exif": exif}):
        options = {"xmp": xmp} | more | ({"lossless": True} if kind == "WEBP" else {})
        if kind == "PNG":
            info = PngImagePlugin.PngInfo()
            info.add_itxt("XML:com.adobe.xmp", xmp.decode())
            options = {"pnginfo": info} | more
        elif kind == "TIFF":
            options = {"tiffinfo": {700: xmp, 274: orientation} if more else {700: xmp}}
        path = tmp_path / "a"
        Image.fromarray(stored).save(path, kind, **options)
        got = images.decode_image(path)
        assert got.shape == expected.shape and np.abs(got.astype(int) - expected).max() < 60
        if kind != "JPEG":
            np.testing.assert_array_equal(images.decode_mask(path), expected.any(axis=2))


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
    assert images.decode_mask(tmp_path / "large.png").shape == (9_000, 10_000)
    assert not list(recwarn)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bit_images_are_refused(tmp_path, dtype):
    Image.fromarray(np.ones((4, 5), dtype)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match="a.tif has (signed|floating-point) 32-bit samples"):
        images.decode_image(tmp_path / "a.tif")


def test_a_jpeg_mask_is_refused(tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="a.jpg uses lossy compression.*save it as PNG"):
        images.decode_mask(tmp_path / "a.jpg")


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("alpha", [False, True])
def test_a_webp_mask_is_refused_where_it_is_lossy(tmp_path, alpha, frames):
    grey = np.zeros((16, 16), np.uint8)
    grey[4:9, 5:8] = 255
    layers = [grey] * 3 + [np.full_like(grey, 255)] * alpha
    image = Image.fromarray(np.dstack(layers))
    more = {"save_all": True, "append_images": [image.rotate(90)]} if frames > 1 else {}
    image.save(tmp_path / "exact.webp", lossless=True, exact=True, **more)
    image.save(tmp_path / "lossy.webp", quality=90, **more)
    np.testing.assert_array_equal(images.decode_mask(tmp_path / "exact.webp"), grey > 0)
    with pytest.raises(InputError, match="lossy.webp uses lossy compression"):
        images.decode_mask(tmp_path / "lossy.webp")


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
