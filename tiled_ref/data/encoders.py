"""Encode arrays as image files in memory, and draw lines of text as arrays."""

import inspect
import io
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from ..support.errors import InputError

SAMPLE_FORMAT, FLOAT = 339, 3  # a tag of TIFF 6.0 and its value for IEEE floating point


def encode_png(array):
    """Encode a picture as the bytes of a PNG file, losslessly.

    Parameters: array uint8 (H, W) or (H, W, 3), or bool (H, W), which becomes 0 and 255.
    Returns bytes, which depend only on the array and the version of Pillow.
    Raises InputError for an invalid dtype or shape.
    """
    return _encode(_picture(array), "PNG", compress_level=4)


def encode_jpeg(array, quality=90):
    """Encode a picture as the bytes of a JPEG file: array as in `encode_png`; quality, 1 to 95."""
    return _encode(_picture(array), "JPEG", quality=quality, optimize=True)


def encode_tiff(array):
    """Encode a map, float32 or float16 (H, W), as the bytes of a TIFF file, losslessly; InputError
    for any other array."""
    array = np.asarray(array)
    if array.dtype not in (np.float32, np.float16) or array.ndim != 2 or not array.size:
        raise InputError(
            f"a TIFF map must be float32 or float16 (H, W), not {array.dtype} {array.shape}"
        )
    array = np.ascontiguousarray(array)
    if array.dtype == np.float16:  # Pillow writes integers; the tag declares them as floats
        return _encode(array.view(np.uint16), "TIFF", tiffinfo={SAMPLE_FORMAT: FLOAT})
    return _encode(array, "TIFF")


def decode_bytes(data):
    """Decode a picture from encode_png or encode_jpeg to uint8 (h, w, 3)."""
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def _picture(array):
    array = np.asarray(array)
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    grey, colour = array.ndim == 2, array.ndim == 3 and array.shape[2] == 3
    if array.dtype != np.uint8 or not (grey or colour) or not array.size:
        raise InputError(
            f"a picture must be uint8 (H, W) or (H, W, 3), not {array.dtype} {array.shape}"
        )
    return np.ascontiguousarray(array)


def _encode(array, file_format, **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, file_format, **options)
    return buffer.getvalue()


def text_coverage(text, height):
    """Draw a line of text in Pillow's default font, as the coverage of each pixel.

    Parameters: text, printable ASCII (other characters become "?"); height of the line in pixels,
    >= 8. Returns uint8 (height, w), 0 to 255.
    """
    text = "".join(c if " " <= c <= "~" else "?" for c in text)
    font = _font(height)
    width = max(1, math.ceil(font.getlength(text)))
    canvas = Image.new("L", (width, max(height, sum(_extent(font)))), 0)
    ImageDraw.Draw(canvas).text((0, 0), text, fill=255, font=font)
    if canvas.height != height:  # the bitmap font
        width = max(1, round(width * height / canvas.height))
        canvas = canvas.resize((width, height), Image.BILINEAR)
    return np.array(canvas)


def _font(height):
    """Pillow's default font in the largest size whose line fits into the height; its bitmap font
    before Pillow 10.1 or without FreeType."""
    sizes = "size" in inspect.signature(ImageFont.load_default).parameters
    if not (sizes and features.check("freetype2")):
        return ImageFont.load_default()
    size = height
    while size > 4 and sum(_extent(ImageFont.load_default(size))) > height:
        size -= 1
    return ImageFont.load_default(size)


def _extent(font):
    """(ascent, descent) of a line in pixels."""
    if hasattr(font, "getmetrics"):
        return font.getmetrics()
    return font.getbbox("Ag")[3], 0
