"""Every mode of pixels in every format, orientation and use: right or refused, never else."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from tiled_ref.data.images import decode_image, decode_mask
from tiled_ref.support.errors import InputError

H, W = 24, 40
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I;16", "I;16B", "I", "F")
TIFF = {
    f"TIFF {compression} {strips}": (
        "TIFF",
        {"compression": compression, "strip_size": size}
        | ({"quality": 100} if compression == "jpeg" else {}),
    )
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    for strips, size in (("one strip", 1 << 16), ("many strips", 200))
}
FORMATS = {
    "PNG": ("PNG", {}), **TIFF, "JPEG": ("JPEG", {"quality": 100, "subsampling": 0}),
    "WebP": ("WEBP", {"lossless": True, "exact": True}), "BMP": ("BMP", {}), "PPM": ("PPM", {}),
    "GIF": ("GIF", {}),
}  # fmt: skip
TURNS = {  # orientation: from the pixels that are stored to those that are seen
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}
PALETTE = np.array([[0, 0, 0], [250, 7, 7], [1, 0, 0], [9, 200, 9], [30, 30, 255]], np.uint8)
LOSSY = {name for name in FORMATS if "jpeg" in name.lower()}
CARRIED = {  # the modes that a format stores as they are
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WebP": ("L", "LA", "P", "PA", "RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "PPM": ("1", "L", "RGB", "RGBA", "I;16", "I", "F"),
    "GIF": ("1", "L", "P"),
} | {name: ("L", "RGB", "CMYK") if name in LOSSY else MODES for name in TIFF}


def stored(mode, use):
    """Samples of a mode, (H, W) or (H, W, C): a smooth picture, or a few dim spots on black."""
    y, x = np.mgrid[:H, :W]
    rng = np.random.default_rng(MODES.index(mode))
    slope = np.stack([5 * y + 3 * x, 240 - 5 * x, 6 * y + 2 * x, 3 * x + y], axis=2)
    spots = np.zeros((H, W, 4), np.int64)
    spots[2:5, 30:36, 0] = 1
    spots[15:17, 3:9, 1] = 2
    spots[20, 20, 2] = 255
    grey = (slope[..., 0] if use == "image" else spots.max(axis=2)).astype(np.uint8)
    if mode == "1":
        return grey > (127 if use == "image" else 0)
    if mode == "L":
        return grey
    if mode in ("P", "PA"):
        numbers = grey % 5 if use == "image" else np.minimum(grey, 4)
        alpha = rng.integers(0, 256, (H, W)) if use == "image" else np.full((H, W), 255)
        return numbers if mode == "P" else np.dstack([numbers, alpha]).astype(np.uint8)
    if mode in ("I;16", "I;16B"):
        wide = 250 * slope[..., 0] + 3 if use == "image" else spots.max(axis=2)
        return wide.astype(np.uint16)
    if mode in ("I", "F"):
        values = slope[..., 0] if use == "image" else spots.max(axis=2)
        return values.astype(np.int32) if mode == "I" else values.astype(np.float32) / 7
    if mode == "CMYK":
        inks = slope if use == "image" else np.where(spots.max(axis=2, keepdims=True), 0, [0, 0, 0, 255])
        return inks.astype(np.uint8)
    colours = (slope if use == "image" else spots).astype(np.uint8)
    alpha = np.full((H, W), 255) if use == "mask" else rng.integers(0, 256, (H, W))
    if mode == "LA":
        return np.dstack([grey, alpha]).astype(np.uint8)
    return colours[..., :3] if mode == "RGB" else np.dstack([colours[..., :3], alpha]).astype(np.uint8)


def written(mode, array, file_format, options, orientation):
    """The bytes of a file; None where the format has no orientation."""
    if mode == "PA":
        image = Image.fromarray(array, "LA").convert("PA")
        image.putpalette(PALETTE.tobytes())
        image.im.putband(Image.fromarray(array[..., 0].copy()).im, 0)
    elif mode == "I;16B":
        image = Image.frombytes("I;16B", (W, H), array.astype(">u2").tobytes())
    else:
        image = Image.fromarray(array, {"LA": "LA", "CMYK": "CMYK", "P": "P"}.get(mode))
        if mode == "P":
            image.putpalette(PALETTE.tobytes())
    if orientation > 1:
        if file_format not in ("PNG", "TIFF", "JPEG", "WEBP"):
            return None
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = options | {"exif": exif}
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def seen(mode, array):
    """The RGB picture of samples, uint8 (H, W, 3), from the definition of each mode; None where
    there is none."""
    if mode in ("I", "F"):
        return None
    if mode == "1":
        return np.repeat(array[..., None] * np.uint8(255), 3, axis=2)
    if mode in ("I;16", "I;16B"):
        array = np.rint(array / 257).astype(np.uint8)
    if mode in ("P", "PA"):
        return PALETTE[array if mode == "P" else array[..., 0]]
    if mode == "CMYK":
        c = array.astype(float)
        return np.rint((255 - c[..., :3]) * (255 - c[..., 3:]) / 255).astype(np.uint8)
    if array.ndim == 2 or mode == "LA":
        return np.repeat(array.reshape(H, W, -1)[..., :1], 3, axis=2)
    return array[..., :3]


def marked(mode, array):
    if mode in ("P", "PA"):
        return (array if mode == "P" else array[..., 0]) > 0
    if mode == "CMYK":
        return array[..., 3] < 255
    if mode in ("LA", "RGBA"):
        array = array[..., :-1]
    return array.reshape(H, W, -1).any(axis=2)


def combinations(name, mode):
    """(orientation, use, array, bytes) of all files of a mode in a format."""
    file_format, options = FORMATS[name]
    for use, orientation in itertools.product(("image", "mask"), TURNS):
        array = stored(mode, use)
        data = written(mode, array, file_format, options, orientation)
        if data is not None:
            yield orientation, use, array, data


def outcome(name, mode, orientation, use, array, path):
    """"right" or "refused"; an AssertionError for anything else."""
    decode = decode_image if use == "image" else decode_mask
    mode = "I;16" if (name, mode) == ("PPM", "I") else mode  # so Pillow writes it
    try:
        got = decode(path)
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return "refused"
    expected = TURNS[orientation]((seen if use == "image" else marked)(mode, array))
    assert got.flags.c_contiguous and got.shape == expected.shape
    if name in LOSSY:
        assert np.abs(got.astype(int) - expected).max() <= 12  # measured: 9
    else:
        np.testing.assert_array_equal(got, expected)
    return "right"


def may_be_refused(name, mode, use):
    """Floats and 32 bits have no range as images; masks are refused in lossy formats; PPM has
    no floats (Pillow writes PFM)."""
    if use == "image":
        return mode in ("I", "F") and (name, mode) != ("PPM", "I")
    return name in LOSSY or (name, mode) == ("PPM", "F")


@pytest.mark.parametrize(
    ("name", "mode"), [(name, mode) for name in FORMATS for mode in CARRIED[name]]
)
def test_every_kind_of_file_is_right_or_refused(tmp_path, name, mode, recwarn):
    for orientation, use, array, data in combinations(name, mode):
        path = tmp_path / f"{use}{orientation}"
        path.write_bytes(data)
        found = outcome(name, mode, orientation, use, array, path)
        assert found == "right" or may_be_refused(name, mode, use), (orientation, use)
    assert not list(recwarn)


@pytest.mark.optional
@pytest.mark.parametrize("name", FORMATS)
def test_opencv_sees_the_same_pixels(tmp_path, name):
    """Exactly, but for 16 bits and CMYK (which it rounds in another way) and the colours of
    RGBA in TIFF (which it multiplies by alpha)."""
    cv2, compared = pytest.importorskip("cv2"), 0
    for mode in CARRIED[name]:
        if (name, mode) == ("PPM", "F") or (name in TIFF and mode in ("I", "F", "RGBA")):
            continue
        for orientation, use, _, data in combinations(name, mode):
            path = tmp_path / f"{use}{orientation}"
            path.write_bytes(data)
            theirs = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
            ours = decode_image(path)
            assert ours.shape == theirs.shape
            tolerance = 2 if mode in ("I", "I;16", "I;16B", "CMYK") else 0
            assert np.abs(ours.astype(int) - theirs).max() <= tolerance, (mode, use, orientation)
            compared += 1
    assert compared
