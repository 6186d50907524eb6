"""Facts of TIFF headers that Pillow does not honour: by a writer of our own, and by tifffile."""

import itertools
import struct

import numpy as np
import pytest
from _data_files import touch
from PIL import Image

from tiled_ref.data.images import decode_image, decode_mask
from tiled_ref.support.errors import InputError

H, W = 7, 12
U, S, F = 1, 2, 3  # sample formats


def tiff(rows, order, tags, zero=None, tiles=False):
    """An uncompressed TIFF file of rows of bytes, in one strip, or one for each colour apart.

    Parameters: rows, a list of strips; order "<" or ">"; tags, number -> value or tuple; zero,
    the strip whose place is given as 0; tiles, whether the rows are tiles.
    """
    offsets, at = [], 8
    for strip in rows:
        offsets.append(at)
        at += len(strip)
    tags = {256: W, 257: H, 259: 1, 278: H} | tags
    if zero is not None:
        offsets[zero] = 0
    places, counts = (324, 325) if tiles else (273, 279)
    tags |= {places: tuple(offsets), counts: tuple(map(len, rows))}
    tags = {number: value for number, value in tags.items() if value is not None}
    entries, more = [], b""
    more_at = at + 2 + 12 * len(tags) + 4
    for number, value in sorted(tags.items()):
        values = value if isinstance(value, tuple) else (value,)
        kind, letter = (4, "I") if number in (273, 279, 324, 325) else (3, "H")
        packed = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(packed) > 4:
            packed, more = struct.pack(order + "I", more_at + len(more)), more + packed
        entries.append(struct.pack(order + "HHI", number, kind, len(values)) + packed.ljust(4, b"\0"))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", at)
    directory = struct.pack(order + "H", len(entries)) + b"".join(entries) + bytes(4)
    return head + b"".join(rows) + directory + more


def strip(samples, bits, kind, order):
    """Samples (H, n) of a number of bits, packed as TIFF stores them."""
    if bits >= 8 and bits != 12:
        letter = {U: "u", S: "i", F: "f"}[kind]
        return samples.astype(f"{order}{letter}{bits // 8}").tobytes()
    each = (samples[..., None] >> np.arange(bits - 1, -1, -1)) & 1  # (H, n, bits)
    return np.packbits(each.reshape(len(samples), -1).astype(np.uint8), axis=1).tobytes()


def reversed_bits(data):
    bits = np.unpackbits(np.frombuffer(data, np.uint8)[:, None], axis=1)
    return np.packbits(bits[:, ::-1], axis=1).tobytes()


def outcome(path, decode, expected):
    try:
        got = decode(path)
    except InputError as error:
        assert str(path) in str(error)
        return "refused"
    np.testing.assert_array_equal(got, expected)
    return "right"


GREY = [(1, U), (2, U), (4, U), (8, U), (8, S), (12, U), (16, U), (16, S), (32, U), (32, S), (32, F)]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("fill", [1, 2])
@pytest.mark.parametrize(("bits", "kind"), GREY)
def test_grey_of_every_kind_is_right_or_refused(tmp_path, order, white_is_zero, fill, bits, kind):
    full = (1 << bits) - 1
    y, x = np.mgrid[:H, :W]
    shown = (full * (y * W + x)) // (H * W - 1) if bits < 32 else y * W + x
    shown = shown >> (kind == S)  # within the positive half
    shown[shown < shown.max() // 2] = 0
    stored = full - shown if white_is_zero and kind == U else shown
    data = strip(stored, bits, kind, order)
    data = reversed_bits(data) if fill == 2 else data
    tags = {258: bits, 262: 0 if white_is_zero else 1, 266: fill, 277: 1, 339: kind}
    path = touch(tmp_path / "a.tif", tiff([data], order, tags))
    rgb = np.repeat(np.floor(shown * 255 / full + 0.5)[..., None], 3, axis=2)
    image = outcome(path, decode_image, rgb)
    mask = outcome(path, decode_mask, shown > 0)
    plain = kind == U and fill == 1 and (order == "<" or not white_is_zero)
    if plain and (bits in (1, 2, 4, 8, 16) or (bits == 12 and order == "<" and not white_is_zero)):
        assert (image, mask) == ("right", "right")
    if kind != U or bits == 32:
        assert image == "refused"
        if fill == 1 and order == "<" and not white_is_zero:
            assert mask == "right"


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("fill", [1, 2])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", ["RGB", "RGBA", "CMYK", "LA"])
def test_colours_of_every_kind_are_right_or_refused(tmp_path, order, apart, fill, bits, channels):
    rng = np.random.default_rng(0)
    samples = rng.integers(0, 1 << bits, (H, W, len(channels)))
    full = (1 << bits) - 1
    if channels[-1] == "A":
        samples[..., -1] = full
    samples[:3] = [0, 0, 0, full] if channels == "CMYK" else [0] * (len(channels) - 1) + samples[
        0, 0, -1:
    ].tolist() if channels[-1] == "A" else 0
    parts = [samples[..., c] for c in range(len(channels))] if apart else [samples.reshape(H, -1)]
    rows = [strip(part, bits, U, order) for part in parts]
    rows = [reversed_bits(row) for row in rows] if fill == 2 else rows
    tags = {
        258: (bits,) * len(channels), 262: {"C": 5, "R": 2, "L": 1}[channels[0]], 266: fill,
        277: len(channels), 284: 2 if apart else 1,
    }  # fmt: skip
    if channels[-1] == "A":
        tags[338] = 2
    path = touch(tmp_path / "a.tif", tiff(rows, order, tags))
    high = (samples >> (bits - 8)).astype(float)
    rgb = high[..., :3] if channels[0] == "R" else np.repeat(high[..., :1], 3, axis=2)
    marked = (samples[..., : 3 if channels[0] == "R" else 1] > 0).any(axis=2)
    if channels == "CMYK":
        rgb = np.rint((255 - high[..., :3]) * (255 - high[..., 3:]) / 255)
        marked = ~((samples[..., 3] == full) | (samples[..., :3] == full).all(axis=2))
    image, mask = outcome(path, decode_image, rgb), outcome(path, decode_mask, marked)
    if fill == 1 and (not apart or bits == 8) and channels != "LA" or (channels, bits, fill, apart) == (
        "LA", 8, 1, False,
    ):  # fmt: skip
        assert (image, mask) == ("right", "right")


@pytest.mark.parametrize(
    ("tags", "says"),
    [({262: None}, "does not say whether 0 is black or white"),
     ({262: 8, 258: (8, 8, 8), 277: 3}, "does not store grey values, RGB, CMYK or a palette"),
     ({262: 5, 258: (8,) * 4, 277: 4, 332: 2}, "has inks other than CMYK"),
     ({262: 6, 258: (8, 8, 8), 277: 3}, "stores YCbCr without compression"),
     ({254: 1}, "begins with a thumbnail"), ({255: 2}, "begins with a thumbnail"),
     ({258: (8, 8), 277: 2, 338: 5}, "TIFF file that is damaged, or whose samples or compression"),
     ({339: 4}, "TIFF file that is damaged, or whose samples or compression"),
     ({259: 34887}, "TIFF file that is damaged, or whose samples or compression")],
)  # fmt: skip
def test_a_header_that_would_be_read_wrongly_is_refused(tmp_path, tags, says):
    known = {258: 8, 262: 1, 277: 1} | tags
    known = {number: value for number, value in known.items() if value is not None}
    path = touch(tmp_path / "a.tif", tiff([bytes(H * W * known[277])], "<", known))
    for decode in (decode_image, decode_mask):
        with pytest.raises(InputError, match=f"a.tif .*{says}.*; save it "):
            decode(path)


@pytest.mark.parametrize("lost", [None, 0, 1, 2])
@pytest.mark.parametrize("kind", ["strips", "tiles", "planes"])
def test_a_part_that_is_left_out_is_refused(tmp_path, kind, lost):
    """Pillow takes it for black, or for the beginning of the file where its place is 0."""
    shown = np.arange(1, H * W + 1).reshape(H, W)
    tags = {258: 8, 262: 1, 277: 1, 278: 3}
    parts, expected = [shown[:3], shown[3:6], shown[6:]], np.repeat(shown[..., None], 3, axis=2)
    if kind == "tiles":
        shown = np.pad(shown, [(0, 16 - H), (0, 48 - W)])
        parts = [shown[:, x : x + 16] for x in (0, 16, 32)]
        tags = tags | {256: 48, 257: 16, 278: None, 322: 16, 323: 16}
        expected = np.repeat(shown[..., None], 3, axis=2)
    elif kind == "planes":
        parts = [shown, shown + 1, shown + 2]
        tags = tags | {258: (8, 8, 8), 262: 2, 277: 3, 278: H, 284: 2}
        expected = np.dstack(parts)
    parts = [strip(part, 8, U, "<") for part in parts]
    for gone in (False, True):  # from the list, or with the place 0
        kept = [part for k, part in enumerate(parts) if gone or k != lost]
        data = tiff(kept, "<", tags, zero=lost if gone else None, tiles=kind == "tiles")
        path = touch(tmp_path / "a.tif", data)
        if lost is None:
            np.testing.assert_array_equal(decode_image(path), expected)
            continue
        for decode in (decode_image, decode_mask):
            with pytest.raises(InputError, match="a.tif has too few or too many strips"):
                decode(path)


@pytest.mark.parametrize("extra", [0, 1])
def test_a_mask_with_a_channel_of_unknown_meaning_is_refused(tmp_path, extra):
    tags = {258: (8,) * 4, 262: 2, 277: 4, 338: extra}
    path = touch(tmp_path / "a.tif", tiff([bytes(H * W * 4)], "<", tags))
    assert decode_image(path).shape == (H, W, 3)
    with pytest.raises(InputError, match="a.tif has a channel other than colour and plain alpha"):
        decode_mask(path)


@pytest.mark.parametrize("scale", [257, 1])
def test_palettes_of_16_and_of_8_bits(tmp_path, scale):
    """TIFF wants colours of 16 bits; some programs write 8, which Pillow takes for black."""
    colours = np.zeros((3, 256), np.int64)
    colours[:, 1:4] = [[200, 3, 7], [100, 1, 90], [0, 5, 255]]
    numbers = np.arange(H * W).reshape(H, W) % 4
    tags = {258: 8, 262: 3, 277: 1, 320: tuple((colours * scale).ravel().tolist())}
    path = touch(tmp_path / "a.tif", tiff([strip(numbers, 8, U, "<")], "<", tags))
    np.testing.assert_array_equal(decode_image(path), colours.T[numbers])
    np.testing.assert_array_equal(decode_mask(path), numbers > 0)


def test_a_dim_colour_of_a_16_bit_palette_is_not_black(tmp_path):
    colours = np.zeros((3, 256), np.int64)
    colours[1, 5], colours[:, 9] = 3, 65535
    numbers = np.zeros((H, W), np.int64)
    numbers[2, 3:5] = 5, 9
    tags = {258: 8, 262: 3, 277: 1, 320: tuple(colours.ravel().tolist())}
    path = touch(tmp_path / "a.tif", tiff([strip(numbers, 8, U, "<")], "<", tags))
    np.testing.assert_array_equal(decode_mask(path), numbers > 0)


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_a_signed_mask_is_refused_where_it_is_negative(tmp_path, bits):
    """Signed samples of 8 bits look unsigned to Pillow, unsigned ones of 32 bits signed."""
    for value, kind in ((1, 2), (-1, 2), ((1 << bits) - 1, 1)):
        samples = np.zeros((H, W), np.int64)
        samples[3, 4] = value
        tags = {258: bits, 262: 1, 277: 1, 339: kind}
        path = touch(tmp_path / "a.tif", tiff([strip(samples, bits, kind, "<")], "<", tags))
        if value == -1:
            with pytest.raises(InputError, match="a.tif contains values below 0 or NaN"):
                decode_mask(path)
        else:
            np.testing.assert_array_equal(decode_mask(path), samples != 0)


# -------------------------------------------------------------------------- outside oracles


@pytest.mark.optional
def test_files_of_tifffile_are_right_or_refused(tmp_path):
    """What another program writes, in every compression that it has."""
    tifffile = pytest.importorskip("tifffile")
    rng, path, counts = np.random.default_rng(0), tmp_path / "a.tif", {"right": 0, "refused": 0}
    for dtype, order, packed, white, tile in itertools.product(
        ("u1", "u2", "u4", "i1", "i2", "i4", "f4"), "<>", (None, "lzw", "deflate", "packbits"),
        (False, True), (None, (16, 16)),
    ):  # fmt: skip
        shown = rng.integers(0, 100, (35, 50))
        shown = np.where(shown < 80, 0, shown * (rng.integers(1, 600) if dtype[1] != "1" else 1))
        full = {"u1": 255, "u2": 65535}.get(dtype)
        stored = (full - shown if white and full else shown).astype(dtype)
        kind = "miniswhite" if white else "minisblack"
        try:
            tifffile.imwrite(
                path, stored, byteorder=order, compression=packed, photometric=kind, tile=tile
            )
        except (ImportError, KeyError, ValueError):  # without the package imagecodecs
            continue
        rgb = None
        if full:
            rgb = np.repeat(np.floor(shown * 255 / full + 0.5)[..., None], 3, axis=2)
        counts[outcome(path, decode_image, rgb)] += 1
        if not white or full:
            counts[outcome(path, decode_mask, shown > 0)] += 1
    assert counts["right"] > 50 and counts["refused"] > 50


@pytest.mark.optional
def test_files_of_pillow_mean_the_same_to_tifffile_and_opencv(tmp_path):
    """What the other tests take for granted: their files hold the pixels that they say."""
    tifffile, cv2 = pytest.importorskip("tifffile"), pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    for shape, dtype in (((20, 30), np.uint8), ((20, 30, 3), np.uint8), ((20, 30), np.uint16)):
        array = rng.integers(0, 65536, shape).astype(dtype)
        for name, options in (
            ("a.tif", {}), ("b.tif", {"compression": "tiff_lzw"}), ("c.png", {}),
        ):  # fmt: skip
            path = tmp_path / name
            Image.fromarray(array).save(path, **options)
            if name.endswith("tif"):
                np.testing.assert_array_equal(tifffile.imread(path), array)
            seen = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(seen[..., ::-1] if array.ndim == 3 else seen, array)
            if dtype == np.uint8:
                colour = cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1]
                np.testing.assert_array_equal(decode_image(path), colour)
