"""An image file to an array: decode, normalise."""

import os
import stat
import threading
import warnings

import numpy as np
import torch
from PIL import Image, ImageOps

from ..support.errors import InputError

# Mean and standard deviation of ImageNet's red, green and blue channels on a scale of 0 to 1,
# with which torchvision's ResNet-18 was trained (ResNet18_Weights.IMAGENET1K_V1.transforms()).
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# The formats tried, whatever the file's name. Others that Pillow knows run programs (EPS) or
# are containers of unbounded size.
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM")

_OPEN_LOCK = threading.Lock()
_ORIENTATION = 0x0112  # EXIF tag
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257  # TIFF tags
_TURNED = (5, 6, 7, 8)  # orientations that exchange height and width


def decode_image(path):
    """An image file as 8-bit RGB.

    Grey images become three equal channels; palette images take the colours of their palette;
    CMYK and YCbCr are converted to RGB. Alpha is dropped, not blended. EXIF orientation is
    applied; colour profiles are ignored. 16-bit grey becomes floor((v + 128) / 257), which is
    v / 257 to the nearest (so stretch data of 10 or 12 bits to 16 bits first); 16-bit colour
    keeps the high byte of each channel. Only the first page of a file is read.

    Returns uint8 (h, w, 3), C-contiguous and writable.
    Raises InputError, naming the file, if it is missing, empty, truncated, corrupt or not an
    image, has 32-bit pixels, or declares more pixels than the limit (checked before memory is
    allocated).
    """
    return _decode(path, _rgb)


def decode_mask(path):
    """A ground-truth file as a mask: every pixel > 0 is anomalous, whatever the bit depth.

    A palette image counts by palette index, not colour; a colour image is anomalous where any
    channel is > 0; alpha is ignored. EXIF orientation is applied, as to images. JPEG is refused:
    its compression leaves values slightly above 0 around every region.

    Returns bool (h, w), C-contiguous.
    Raises InputError as decode_image does, and for a JPEG file.
    """
    return _decode(path, _positive)


def image_size(path):
    """(height, width) in pixels of the array that decode_image returns, from the header alone."""
    with _reading(path) as image:
        # getexif of a PNG file would decode all of it to look behind the pixels.
        exif = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
        width, height = image.size
        if image.format == "TIFF":  # where Pillow may have turned the size already
            width, height = image.tag_v2[_TIFF_WIDTH], image.tag_v2[_TIFF_HEIGHT]
        return (width, height) if exif.get(_ORIENTATION) in _TURNED else (height, width)


def _decode(path, convert):
    with _reading(path) as image:
        image.load()
        # Only now, because a PNG file may carry its EXIF behind the pixels.
        upright = ImageOps.exif_transpose(image)
        return np.ascontiguousarray(convert(upright, image.format, path))


class _reading:
    """Opens an image file; any exception inside becomes an InputError that names the file."""

    def __init__(self, path):
        self.path, self.image = path, None

    def __enter__(self):
        try:
            if not stat.S_ISREG(os.stat(self.path).st_mode) and not os.path.isdir(self.path):
                # A pipe or a device might never end.
                raise InputError(f"{os.fspath(self.path)} is no regular file, so no image")
            # Pillow warns of images above half its limit, which is a normal size here. Warning
            # filters are global to the process, hence the lock; only the header is read.
            with _OPEN_LOCK, warnings.catch_warnings():
                warnings.simplefilter("ignore")
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
        """An InputError for any of the many exceptions that Pillow raises."""
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


def normalize(batch):
    """8-bit images as the backbone takes them.

    Parameters: batch uint8 (B, 3, h, w) torch, any device.
    Returns float32 (B, 3, h, w) on the same device: (x / 255 - MEAN) / STD per channel, in
    float32 in the written order.
    """
    mean = torch.tensor(MEAN, device=batch.device)[:, None, None]
    std = torch.tensor(STD, device=batch.device)[:, None, None]
    return batch.to(torch.float32).div_(255).sub_(mean).div_(std)
