"""Image files to arrays and back: decode, resize, normalise, encode. The only file with PIL.

Every image is decoded and resized once per run, into one uint8 array (N, 3, H, W) from
which all tiles are cut.
"""

import errno
import inspect
import io
import math
import mmap
import os
import shutil
import stat
import tempfile
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps, features

from ..support.errors import InputError
from .samples import NORMAL

# Mean and standard deviation of the red, green and blue channel of ImageNet on a scale of
# 0 to 1, with which torchvision's ResNet-18 was trained (torchvision.models,
# ResNet18_Weights.IMAGENET1K_V1.transforms()).
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

BUDGET = 2 * 2**30  # bytes of images held in memory; beyond it they go to a file
MAX_THREADS = 8  # decoding; each thread holds one image at its original size
STRIP = 1 << 19  # values of the input that are resized at a time: they stay in the cache

# What a file is taken for, whatever its name; others of Pillow's many kinds run programs (EPS),
# or are containers without a bound.
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM")

_OPEN_LOCK = threading.Lock()
_ORIENTATION = 0x0112  # EXIF tag
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257  # TIFF tags
_TURNED = (5, 6, 7, 8)  # orientations that exchange height and width


# ------------------------------------------------------------------------------- decoding


def decode_image(path):
    """An image file as 8-bit RGB.

    Grey images become three equal channels; palette images the colours of their palette;
    CMYK and YCbCr are converted to RGB. Alpha is dropped, not blended. EXIF orientation is
    applied; colour profiles are ignored. 16-bit grey becomes floor((v + 128) / 257), which
    is v / 257 to the nearest and takes 65535 to 255 (so data of 10 or 12 bits must be
    stretched to 16 bits beforehand); 16-bit colour keeps the high byte of each channel.
    Of a file with several pages the first is read.

    Parameters: path, str or path-like.
    Returns uint8 (h, w, 3), C-contiguous and writable.
    Raises InputError, naming the file, where there is none, where it is empty, truncated,
    corrupt or no image, has 32-bit pixels, or declares more pixels than the limit (which is
    checked before memory is allocated).
    """
    return _decode(path, _rgb)


def decode_mask(path):
    """A ground-truth file as a mask: every pixel > 0 is anomalous.

    0/255 masks and masks of class ids are treated alike. A palette image counts by palette
    index, not colour; a colour image is anomalous where any channel is > 0; alpha is
    ignored; any bit depth. EXIF orientation is applied, as to images. JPEG is refused: its
    compression leaves values slightly above 0 around every region.

    Parameters: path, str or path-like.
    Returns bool (h, w), C-contiguous.
    Raises InputError as decode_image does, and for a JPEG file.
    """
    return _decode(path, _positive)


def image_size(path):
    """(height, width) in pixels of the array that decode_image returns, from the header.

    Raises InputError as decode_image does, as far as the header tells.
    """
    with _reading(path) as image:
        # getexif of a PNG file would decode all of it to look behind the pixels.
        exif = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
        width, height = image.size
        if image.format == "TIFF":  # where Pillow may have turned the size already
            width, height = image.tag_v2[_TIFF_WIDTH], image.tag_v2[_TIFF_HEIGHT]
        return (width, height) if exif.get(_ORIENTATION) in _TURNED else (height, width)


def check_mask_size(mask, mask_path, size, image_path):
    """Raise InputError unless the mask has its image's size.

    A mask of another size is refused, not resized: which of its pixels belongs to which
    pixel of the image would be a guess, and the usual cause is a mix-up of files.

    Parameters: mask bool (h, w), size (h, w) of the image, mask_path and image_path.
    """
    if mask.shape != tuple(size):
        raise InputError(
            f"the mask {mask_path} is {_text(mask.shape)} px but its image {image_path} is "
            f"{_text(size)} px (height x width); save the mask at the image's size"
        )


def _decode(path, convert):
    with _reading(path) as image:
        image.load()
        # Only now, because a PNG file may carry its EXIF behind the pixels.
        upright = ImageOps.exif_transpose(image)
        return np.ascontiguousarray(convert(upright, image.format, path))


class _reading:
    """Opens an image file; whatever goes wrong inside becomes an InputError naming it."""

    def __init__(self, path):
        self.path, self.image = path, None

    def __enter__(self):
        try:
            if not stat.S_ISREG(os.stat(self.path).st_mode) and not os.path.isdir(self.path):
                # A pipe or a device might never end.
                raise InputError(f"{os.fspath(self.path)} is no regular file, so no image")
            # PIL warns of images above half its limit, which is a normal size here. Warning
            # filters are global to the process, hence the lock; only the header is read.
            with _OPEN_LOCK, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what matters is an exception
                self.image = Image.open(self.path, formats=FORMATS)
        except InputError:
            raise
        except Exception as error:
            raise self._explained(error) from error
        return self.image

    def __exit__(self, kind, error, traceback):
        self.image.close()
        if isinstance(error, Exception) and not isinstance(error, InputError):
            raise self._explained(error) from error

    def _explained(self, error):
        """Pillow's plugins raise exceptions of many types over a damaged file."""
        name = os.fspath(self.path)
        if isinstance(error, FileNotFoundError):
            return InputError(f"the image {name} does not exist")
        if isinstance(error, IsADirectoryError):
            return InputError(f"{name} is a folder, not an image")
        if isinstance(error, Image.DecompressionBombError):
            return InputError(f"the image {name} is too large; scale it down or cut it up: {error}")
        if isinstance(error, MemoryError):
            return InputError(f"there is not enough memory to decode the image {name}")
        if isinstance(error, OSError) and error.errno is not None:
            return InputError(f"the image {name} cannot be read: {error.strerror}")
        if "\0" in name:
            return InputError(f"the image name {name!r} holds a null character")
        if os.path.getsize(name) == 0:
            return InputError(f"the image {name} is empty (0 bytes); replace or remove it")
        if self.image is None:
            return InputError(
                f"the file {name} is not an image, or not of a kind that is read "
                f"({', '.join(FORMATS)}); replace or remove it"
            )
        return InputError(
            f"the image {name} is damaged ({str(error) or type(error).__name__}); "
            "replace or remove it"
        )


def _rgb(image, file_format, path):
    """A loaded PIL image -> uint8 (h, w, 3); see decode_image."""
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format == "PNG"):
        # Pillow reads 16-bit grey PNG as "I;16", older versions as "I".
        grey = np.asarray(image).astype(np.uint32)  # (h, w)
        grey = ((grey + 128) // 257).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise InputError(
            f"the image {os.fspath(path)} has 32-bit pixels, whose range is not known; "
            "save it with 8 or 16 bits per channel"
        )
    if image.mode == "RGBa" or (image.mode in ("P", "PA") and "transparency" in image.info):
        image = image.convert("RGBA")  # keeps the colours of what is transparent
    if image.mode not in ("RGB", "RGBA", "RGBX"):
        image = image.convert("RGB")
    return np.array(image)[:, :, :3]


def _positive(image, file_format, path):
    """A loaded PIL image -> bool (h, w); see decode_mask."""
    if file_format in ("JPEG", "MPO"):
        raise InputError(
            f"the mask {os.fspath(path)} is a JPEG file, whose compression blurs the edges of "
            "its regions; save it as PNG"
        )
    if image.mode in ("LA", "La", "PA"):
        return np.asarray(image)[:, :, 0] > 0
    if image.mode in ("RGB", "RGBA", "RGBa", "RGBX"):
        return (np.asarray(image)[:, :, :3] > 0).any(axis=2)
    if image.mode in ("1", "L", "P", "I", "F") or image.mode.startswith("I;16"):
        return np.asarray(image) > 0
    return (np.asarray(image.convert("RGB")) > 0).any(axis=2)


# ------------------------------------------------------------------------------- resizing


def resize_image(image, size, antialias=False):
    """Bilinear resize with half-pixel centres.

    The rule of OpenCV's INTER_LINEAR and torch's align_corners=False: output pixel i lies
    at x = (i + 0.5) n_in / n_out - 0.5 of the input, and takes from the two pixels beside x
    with weights 1 - frac(x) and frac(x); beyond the border the border pixel counts. (OpenCV
    rounds the weights to 11 bits, so a pixel may differ by 1.) With `antialias`, shrinking
    widens the triangle of weights from 1 to n_in / n_out pixels on either side, as Pillow
    and torch's antialias=True do.

    Parameters
    ----------
    image : uint8 (h, w, 3)
    size : (int, int)
        Height and width in pixels.
    antialias : bool
        Off in the paper's evaluation, which resized with OpenCV's INTER_LINEAR (deviation D4).

    Returns
    -------
    uint8 (H, W, 3), C-contiguous; the image's own values where it has the size already.

    Order of arithmetic: weights in float64, rounded once to float32; then, in float32, the
    columns of every output row, top tap first, each product added to the sum; then the rows
    of those sums, left tap first; rounding half to even. No result depends on threads.
    Source: Rolih et al. state only the sizes; bilinear without antialias is their released
    configuration.
    """
    size = tuple(size)
    if image.shape[:2] == size:
        return np.ascontiguousarray(image)
    height, width, channels = image.shape
    lines = image.reshape(height, -1)  # (h, w * 3)
    index, weight = _taps(height, size[0], antialias)
    across = _taps(width, size[1], antialias)
    out = np.empty((*size, channels), np.uint8)
    n_rows = max(16, STRIP // (width * channels))
    for first in range(0, size[0], n_rows):
        strip = slice(first, min(first + n_rows, size[0]))
        rows = _weighted_sum(lines, (index[:, strip], weight[:, strip]))
        rows = rows.reshape(-1, width, channels)
        columns = np.ascontiguousarray(rows.transpose(1, 0, 2)).reshape(width, -1)  # (w, n * 3)
        columns = _weighted_sum(columns, across)  # (W, n * 3) float32
        pixels = np.rint(columns, out=columns).astype(np.uint8)
        out[strip] = pixels.reshape(size[1], -1, channels).transpose(1, 0, 2)
    return out


def resize_mask(mask, size):
    """Nearest-neighbour resize: output pixel i takes input pixel floor(i n_in / n_out).

    The rule of torch's mode="nearest" and OpenCV's INTER_NEAREST, in whole numbers and so
    without their rounding of the ratio.

    Parameters: mask bool (h, w); size (H, W) in pixels.
    Returns bool (H, W), C-contiguous.
    """
    rows, cols = (np.arange(n) * m // n for n, m in zip(size, mask.shape))
    return mask[rows[:, None], cols]


def _taps(n_in, n_out, antialias):
    """Which input pixels make an output pixel: index int64 and weight float32 (K, n_out).

    The weights of an output pixel sum to 1. K is 2 without antialias.
    """
    scale = n_in / n_out
    x = (np.arange(n_out) + 0.5) * scale - 0.5  # centre of the output pixel, input px
    if not antialias or scale <= 1:
        x = np.maximum(x, 0)
        low = np.floor(x).astype(np.int64)
        index = np.stack([low, np.minimum(low + 1, n_in - 1)])
        weight = np.stack([1 - (x - low), x - low])
        return index, weight.astype(np.float32)
    first = np.ceil(x - scale).astype(np.int64)
    index = first + np.arange(2 * math.ceil(scale) + 1)[:, None]  # (K, n_out)
    weight = np.maximum(0, 1 - np.abs(index - x) / scale)
    weight[(index < 0) | (index >= n_in)] = 0  # outside: the rest is rescaled
    weight /= weight.sum(0)
    return np.clip(index, 0, n_in - 1), weight.astype(np.float32)


def _weighted_sum(lines, taps):
    """sum over k of weight[k, i] * lines[index[k, i]]: (n_in, m) -> float32 (n_out, m)."""
    total = None
    for index, weight in zip(*taps):
        term = lines[index].astype(np.float32, copy=False)
        term *= weight[:, None]
        total = term if total is None else np.add(total, term, out=total)
    return total


# ------------------------------------------------------------------------------- encoding


def encode_png(array):
    """A picture as the bytes of a PNG file, without loss.

    Parameters: array uint8 (H, W) or (H, W, 3), or bool (H, W), which becomes 0 and 255.
    Returns bytes; the same for the same array and version of Pillow.
    Raises InputError for another type or shape.
    """
    return _encode(_picture(array), "PNG", compress_level=4)


def encode_jpeg(array, quality=90):
    """A picture as the bytes of a JPEG file, for pages that must stay small.

    Parameters: array as in encode_png; quality, 1 to 95.
    Returns bytes. Raises InputError for another type or shape.
    """
    return _encode(_picture(array), "JPEG", quality=quality, optimize=True)


def encode_tiff(array):
    """A map as the bytes of a TIFF file of 32-bit floating-point grey, without loss.

    Parameters: array float32 (H, W). Returns bytes. Raises InputError for another type or
    shape.
    """
    array = np.asarray(array)
    if array.dtype != np.float32 or array.ndim != 2 or not array.size:
        raise InputError(f"a TIFF map must be float32 (H, W), not {array.dtype} {array.shape}")
    return _encode(np.ascontiguousarray(array), "TIFF")


def decode_bytes(data):
    """A picture that encode_png or encode_jpeg made, as uint8 (h, w, 3)."""
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGB"))


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
    """A line of text as how much of each pixel its letters cover, for pictures.

    Parameters: text, printable ASCII (others become "?"); height of the line in pixels, at
    least 8.
    Returns uint8 (height, w), 0 to 255, in the typeface that comes with Pillow.
    """
    text = "".join(c if " " <= c <= "~" else "?" for c in text)
    font = _font(height)
    width = max(1, math.ceil(font.getlength(text)))
    canvas = Image.new("L", (width, max(height, sum(_extent(font)))), 0)
    ImageDraw.Draw(canvas).text((0, 0), text, fill=255, font=font)
    if canvas.height != height:  # the bitmap typeface
        width = max(1, round(width * height / canvas.height))
        canvas = canvas.resize((width, height), Image.BILINEAR)
    return np.array(canvas)


def _font(height):
    """Pillow's own typeface, the largest size whose line fits into the height; its bitmap one
    before Pillow 10.1 and without FreeType."""
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


# ------------------------------------------------------------------------- whole data sets


def read_images(samples, size, **options):
    """Decode and resize every image once, to one size.

    Parameters: samples and options as in read_images_at; size (H, W) in pixels.
    Returns uint8 (N, 3, H, W). Raises InputError as read_images_at does.
    """
    return read_images_at(samples, [size], **options)[0]


def read_images_at(
    samples, sizes, *, antialias=False, budget=BUDGET, progress=None, failed=None
):
    """Decode every image once and resize it to each of several sizes.

    Parameters: samples, a sequence of N Sample; sizes, (H, W) in pixels each; antialias, see
    resize_image; budget, bytes of one array, of which a larger one is a file in the system's folder
    for temporary files, mapped into memory, whose space is free again when the array is no longer
    in use; progress(done, total) after every image, in this thread; failed(k, error) is told of
    sample k that cannot be read, from any thread, and its image is black; without it the error is
    raised.
    Returns a list of uint8 (N, 3, H, W), C-contiguous: numpy.ndarray, or numpy.memmap beyond the
    budget.
    Raises InputError from reading a sample (of several, the first in order), and for a temporary
    folder without enough space.
    """
    samples = list(samples)
    arrays = [_allocate((len(samples), 3, *size), budget) for size in sizes]

    def read(k):
        try:
            image = samples[k].read_image()
            resized = [resize_image(image, size, antialias) for size in sizes]  # (H, W, 3)
        except InputError as error:
            if failed is None:
                raise
            failed(k, error)
            for images in arrays:
                images[k] = 0
            return
        for images, pixels in zip(arrays, resized):
            images[k] = pixels.transpose(2, 0, 1)
            forget_pages(images)

    _each(read, len(samples), progress)
    return arrays


def read_masks(samples, size):
    """The masks of all samples, resized.

    Parameters: samples, sequence of N Sample; size (H, W) in pixels.
    Returns bool (N, H, W); False everywhere for a normal image.
    Raises InputError for an anomalous sample without a mask, and from reading a mask.
    """
    samples = list(samples)
    masks = np.zeros((len(samples), *size), bool)
    anomalous = [k for k, sample in enumerate(samples) if sample.label != NORMAL]

    def read(n):
        masks[anomalous[n]] = resize_mask(_mask_of(samples[anomalous[n]]), size)

    _each(read, len(anomalous))
    return masks


def read_mask_original(sample):
    """The mask of one sample at the image's original size, bool (h, w).

    False everywhere for a normal image. Raises InputError as read_masks does.
    """
    if sample.label == NORMAL:
        return np.zeros(sample.read_size(), bool)
    return _mask_of(sample)


def normalize(batch):
    """8-bit images as the backbone wants them.

    Parameters: batch uint8 (B, 3, h, w) torch, any device.
    Returns float32 (B, 3, h, w) on the same device: (x / 255 - MEAN) / STD per channel.
    Order of arithmetic: as written, in float32.
    """
    mean = torch.tensor(MEAN, device=batch.device)[:, None, None]
    std = torch.tensor(STD, device=batch.device)[:, None, None]
    return batch.to(torch.float32).div_(255).sub_(mean).div_(std)


def forget_pages(images):
    """Let the system take back the memory of a mapped file; what it holds stays.

    Nothing happens for an array in memory. Without this, a file of images that has been read
    once counts as memory of the process for good.
    """
    if isinstance(images, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
        images._mmap.madvise(mmap.MADV_DONTNEED)


def _mask_of(sample):
    mask = sample.read_mask()
    if mask is None:
        raise InputError(
            f"the anomalous image {sample.name} has no mask, so there are no pixel metrics"
        )
    return mask


def _allocate(shape, budget):
    """An uninitialised uint8 array of this shape: in memory, or beyond the budget in a file
    that has no name any more (where the system allows) and vanishes with its last user."""
    n_bytes = math.prod(shape)
    if n_bytes <= budget:
        return np.empty(shape, np.uint8)
    folder = tempfile.gettempdir()
    try:
        free = shutil.disk_usage(folder).free
        if n_bytes > free:  # the attempt would fill the disk before it fails
            raise OSError(errno.ENOSPC, f"{free:,} bytes are free")
        with tempfile.TemporaryFile(dir=folder, prefix="tiled-ref-") as file:
            # Reserve the space now: a full disk would kill the process in mid-run.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, n_bytes)
            return np.memmap(file, np.uint8, "w+", shape=shape)
    except OSError as error:
        raise InputError(
            f"the temporary folder {folder} cannot hold the images, {n_bytes:,} bytes "
            f"({error.strerror}); set TMPDIR to a folder with more space, or choose a smaller "
            "image size"
        ) from error


def _each(function, n, progress=None):
    """function(k) for k in range(n), in threads; the first failure in order is raised."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    with ThreadPoolExecutor(min(MAX_THREADS, len(cores) or os.cpu_count() or 1)) as pool:
        futures = [pool.submit(function, k) for k in range(n)]
        try:
            for done, future in enumerate(futures, start=1):
                future.result()
                if progress is not None:
                    progress(done, n)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _text(size):
    return f"{size[0]} x {size[1]}"
