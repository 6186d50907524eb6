"""Decode an image file to its samples: one decoder for images and masks."""

import contextlib
import io
import logging
import os
import stat
import struct
import threading
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, ImageOps

from ..support.errors import InputError
from . import pnm, tiff

# The formats tried, whatever the file's name. Some other formats of Pillow run programs (EPS) or
# are containers of unbounded size. PBM, PGM and PPM are read by pnm.py.
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "TIFF", "WEBP", "GIF")
NAMES = "PNG, JPEG, BMP, TIFF, WEBP, GIF, PBM, PGM, PPM"
LARGEST_PIXEL = 8  # bytes in a file: four samples of 16 bits


@dataclass(frozen=True)
class Picture:
    """The samples of an image file, in upright orientation.

    samples : (h, w, C), grey (C = 1), RGB (3), CMYK (4), or palette indices (1)
    full : the largest possible sample value; None if the range is unknown (masks)
    palette : uint8 or uint16 (n, 3), red, green and blue of each entry; None without a palette
    alpha : (h, w); None without alpha
    """

    samples: np.ndarray
    full: int | None
    palette: np.ndarray | None = None
    alpha: np.ndarray | None = None


def read_picture(path, for_mask=False):
    """Returns the Picture in a file, reading its bytes once.

    The orientation given in EXIF, or in XMP as far as Pillow reads it, is
    applied. Only the first page or frame of a file is read.

    Parameters: path; for_mask, True if every bit counts: 16-bit colour then keeps its low bytes
    (otherwise full is 255), CMYK is not converted to RGB, samples can be signed, 32-bit or
    floating-point, and files with lossy compression or with channels of unknown meaning are
    refused.
    Raises InputError, naming the file, if it is missing, damaged, not an image in a supported
    format, or has more pixels than `pixel_limit` allows (checked before memory is allocated).
    """
    with _named_errors(path, "mask" if for_mask else "image"), _quiet:
        data = _bytes(path)
        if pnm.is_pnm(data):
            return Picture(*pnm.read(data, _check_pixels))
        return _decoded(data, for_mask)


@contextlib.contextmanager
def pixel_limit(n):
    """A context that allows images of up to n pixels, in all threads."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, -(-n // 2)
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _check_pixels(n):
    most = 2 * (Image.MAX_IMAGE_PIXELS or n)
    if n > most:
        raise Image.DecompressionBombError(f"{n} pixels, more than {most}")


def _bytes(path):
    """The content of a regular file that is no larger than the largest allowed image."""
    if not stat.S_ISREG(mode := os.stat(path).st_mode):  # a pipe or device might never end
        raise InputError(f"is a {'folder' if stat.S_ISDIR(mode) else 'special file'}, not an image")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            raise InputError("is empty (0 bytes); replace or remove it")
        most = 2 * LARGEST_PIXEL * (Image.MAX_IMAGE_PIXELS or size) + (1 << 20)
        if size > most:
            raise InputError(f"has {size:,} bytes, more than {most:,}; raise --max-pixels")
        return file.read(size)


def _decoded(data, for_mask):
    image = _opened(data)
    kind, tags = image.format, getattr(image, "tag_v2", None)  # tags: TIFF only
    if for_mask and (kind in ("JPEG", "MPO") or _is_lossy_webp(data)):
        raise InputError(f"{tiff.LOSSY}; save it as PNG")
    if tags is not None:
        tiff.check(tags, for_mask, big_endian=data[:2] == b"MM")
    if kind == "GIF" and image.tile[0][1] != (0, 0, *image.size):
        raise InputError("begins with a frame that does not cover the image; save it as PNG")
    # 16 bits per sample, of which Pillow keeps 8; "BGR;16" is 16 bits per pixel.
    deep = image.mode[0] != "I" and any(_raw_mode(tile)[-4:-1] == ";16" for tile in image.tile)
    if any(_raw_mode(tile) == "LA;16B" for tile in image.tile):
        return _grey_alpha_16(image, data)
    image = _upright(image, data, to_rgb=not for_mask)
    samples, full, alpha = np.asarray(image), 255, None
    if deep and for_mask:
        again = _opened(data)  # for the low bytes
        again.tile = [_with_raw_mode(tile, _other_byte(_raw_mode(tile))) for tile in again.tile]
        low = np.asarray(_upright(again, data, to_rgb=False))
        samples, full = samples.astype(np.uint16) << 8 | low, 65535
    if samples.ndim == 2:
        samples = samples[:, :, None]
    if image.mode in ("LA", "PA", "RGBA"):
        samples, alpha = samples[..., :-1], samples[..., -1]
    if tags is not None:
        samples, full = tiff.corrected(tags, samples, full)
    elif image.mode == "1":
        full = 1
    elif image.mode[0] == "I":  # 16-bit grey PNG; mode "I" in older versions of Pillow
        samples, full = samples.astype(np.uint16), 65535
    palette = None
    if image.mode in ("P", "PA"):
        palette = np.frombuffer(bytes(image.palette.palette), np.uint8).reshape(-1, 3)
        palette = palette if tags is None else tiff.palette(tags)
        if samples.max() >= len(palette):
            raise ValueError(f"colour {samples.max()} of a palette of {len(palette)}")
    if for_mask and "transparency" in image.info:
        if image.mode != "P":
            raise InputError("has a transparent colour; save it without transparency")
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
    return Picture(samples, full, palette, alpha)


def _opened(data):
    """Open a PIL image, reading only its header."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError as error:
        if data[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            raise
        raise InputError(
            "is a TIFF file that is damaged, or whose samples or compression are not supported; "
            "save it as PNG"
        ) from error
    _check_pixels(image.width * image.height)
    return image


def _upright(image, data, to_rgb):
    """Apply the image's orientation and undo premultiplied alpha; to_rgb: convert CMYK to RGB."""
    image.load()
    if image.format == "PNG":
        # Even if the file is interlaced, one of the last two rows is stored last.
        end = np.asarray(image.crop((0, max(0, image.height - 2), image.width, image.height)))
        if not end.reshape(len(end), -1).any(axis=1).all():
            _check_rows(data)
    # Only now, because the EXIF data of a PNG file can follow the pixels.
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBa", "La"):
        return image.convert(image.mode.upper())
    return image.convert("RGB") if image.mode == "CMYK" and to_rgb else image


def _check_rows(data):
    """Raise InputError unless a PNG file has all its rows: Pillow fills missing rows with black."""
    width, height, bits, colour, *_, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    bits *= {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    # Start and step of each pass: x, y, dx, dy.
    steps = "0088 4088 0448 2044 0224 1022 0112" if interlaced else "0011"
    steps = [map(int, step) for step in steps.split()]
    sizes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in steps]
    missing = sum(h * (1 + -(-w * bits // 8)) for w, h in sizes if w > 0 and h > 0)
    stream, at = zlib.decompressobj(), 8
    while at + 8 <= len(data) and missing > 0:
        size = int.from_bytes(data[at : at + 4], "big")
        left = data[at + 8 : at + 8 + size] if data[at + 4 : at + 8] == b"IDAT" else b""
        while left and missing > 0:
            missing -= len(stream.decompress(left, 1 << 20))
            left = stream.unconsumed_tail
        at += 12 + size
    if missing > 0:
        raise InputError(f"is truncated: {missing:,} bytes of pixels are missing; replace it")


def _grey_alpha_16(image, data):
    """A 16-bit LA PNG, decoded as four bytes per pixel because Pillow would drop two of them."""
    image._mode = "RGBA"
    image.tile = [_with_raw_mode(tile, "RGBA") for tile in image.tile]
    pairs = np.asarray(_upright(image, data, False), np.uint16)  # (h, w, 4): high, low, high, low
    samples = pairs[..., ::2] << 8 | pairs[..., 1::2]
    return Picture(samples[..., :1], 65535, alpha=samples[..., 1])


def _raw_mode(tile):
    args = tile[3]
    return str(args[0] if isinstance(args, tuple) else args)


def _with_raw_mode(tile, raw_mode):
    args = (raw_mode, *tile[3][1:]) if isinstance(tile[3], tuple) else raw_mode
    return tile._replace(args=args) if hasattr(tile, "_replace") else (*tile[:3], args)


def _other_byte(raw_mode):
    """The raw mode with the byte order swapped, so that Pillow keeps the low byte of 16 bits."""
    little = raw_mode[-1] == "L" or (raw_mode[-1] == "N" and np.little_endian)
    return raw_mode[:-1] + ("B" if little else "L")


def _is_lossy_webp(data):
    """Whether a WebP file has a lossy chunk, on its own or inside a frame."""
    at = 12
    while data[:4] == b"RIFF" and data[8:12] == b"WEBP" and at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if name == b"VP8 ":
            return True
        at += 8 + (16 if name == b"ANMF" else size + size % 2)
    return False


class _Quiet:
    """A context that suppresses Pillow's warnings and log messages, in any number of threads.

    Warning filters are global to the process: the first thread to enter sets one, the last one to
    leave restores them.
    """

    def __init__(self):
        self.lock, self.inside, self.filters = threading.Lock(), 0, None
        self.silent = logging.NullHandler()

    def __enter__(self):
        with self.lock:
            if not self.inside:
                logging.getLogger("PIL").addHandler(self.silent)
                self.filters = warnings.catch_warnings()
                self.filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\b")
            self.inside += 1

    def __exit__(self, *_):
        with self.lock:
            self.inside -= 1
            if not self.inside:
                self.filters.__exit__(None, None, None)


_quiet = _Quiet()


@contextlib.contextmanager
def _named_errors(path, kind):
    """A context that turns any exception into an InputError that names the file."""
    try:
        yield
    except Exception as error:
        raise InputError(_message(error, os.fsdecode(path), kind)) from error


def _message(error, name, kind):
    """The message for any of the many exceptions that Pillow raises."""
    if isinstance(error, InputError):
        return f"the {kind} {name} {error}"
    if isinstance(error, FileNotFoundError):
        return f"the {kind} {name} does not exist"
    if isinstance(error, Image.DecompressionBombError):
        return f"the {kind} {name} is too large ({error}); scale it down or raise --max-pixels"
    if isinstance(error, MemoryError):
        return f"there is not enough memory to decode the {kind} {name}"
    if isinstance(error, OSError) and error.errno is not None:
        return f"the {kind} {name} cannot be read: {error.strerror}"
    if "\0" in name:
        return f"the {kind} name {name!r} contains a null character"
    if isinstance(error, Image.UnidentifiedImageError):
        return (
            f"the file {name} is not an image in a supported format ({NAMES}); replace "
            "or remove it"
        )
    return (
        f"the {kind} {name} is damaged or in an unsupported format "
        f"({str(error)[:200] or type(error).__name__}); save it again or remove it"
    )
