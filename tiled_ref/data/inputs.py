"""Convert arrays, tensors or paths from a caller to samples or to one array of images."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..support.errors import InputError
from .disk import FileSample, printable, some_images
from .reading import read_images
from .samples import NORMAL, Sample

WANTED = (
    "uint8 (N, 3, H, W) or (N, H, W, 3), a list of such images or of paths, or the path of an "
    "image or of a folder"
)


@dataclass(frozen=True)
class ArraySample(Sample):
    """An image that is already in memory: array, uint8 (h, w, 3)."""

    array: np.ndarray = None

    def read_image(self):
        return self.array


def as_samples(images):
    """Samples from any supported source of images.

    Parameters
    ----------
    images : array, tensor, path or sequence
        uint8 (N, 3, H, W) or (N, H, W, 3), NumPy or torch (if both fit, the former is
        used); a path of an image file, or of a folder, whose image files are sorted by name;
        or a sequence of paths and arrays (3, h, w), (h, w, 3) or (h, w), whose sizes can
        differ.

    Returns
    -------
    list of Sample, not empty, all labelled normal

    Raises
    ------
    InputError
        Anything else: floats (even 0 to 1, as the scale would be a guess), other integers, no
        images, an image without pixels, a path that does not exist.
    """
    if isinstance(images, (str, bytes, os.PathLike)):
        path = Path(os.fsdecode(images))
        paths = some_images(path, "choose another folder") if path.is_dir() else [path]
        return [_sample(path, k) for k, path in enumerate(paths)]
    if isinstance(images, (np.ndarray, torch.Tensor)):
        array = _bytes("images", images)
        if array.ndim != 4 or 3 not in (array.shape[1], array.shape[3]):
            raise InputError(f"images of shape {array.shape} are not supported; give {WANTED}")
        items = list(array if array.shape[1] == 3 else array.transpose(0, 3, 1, 2))
    else:
        try:
            items = list(images)
        except TypeError as error:
            raise InputError(
                f"images of type {type(images).__name__} are not supported; give {WANTED}"
            ) from error
    if not items:
        raise InputError(f"there are no images; give at least one, {WANTED}")
    return [_sample(item, k) for k, item in enumerate(items)]


def as_images(images, size, *, antialias=False):
    """Resize images of any size into one array, uint8 (N, 3, H, W).

    Parameters: images as in as_samples; size (H, W) in pixels; antialias, see
    resizing.resize_image.
    Returns the given array if it already has this shape, else a new one.
    Raises InputError as as_samples does, and for a file that is not an image.
    """
    shape = tuple(getattr(images, "shape", ()))
    if shape[1:] == (3, *size) and shape[0]:
        return _bytes("images", images)
    return read_images(as_samples(images), size, antialias=antialias)


def _sample(item, k):
    if isinstance(item, Sample):
        return item
    if isinstance(item, (str, bytes, os.PathLike)):
        path = Path(os.fsdecode(item))
        return FileSample(printable(path), NORMAL, "", path)
    if not isinstance(item, (np.ndarray, torch.Tensor)):
        raise InputError(
            f"image {k} is a {type(item).__name__}, which is not supported; give {WANTED}"
        )
    array = _bytes(f"image {k}", item)
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    elif array.ndim == 3 and array.shape[0] == 3:
        array = array.transpose(1, 2, 0)
    elif array.ndim != 3 or array.shape[2] != 3:
        raise InputError(
            f"image {k} has the shape {array.shape}; give (3, h, w), (h, w, 3) or grey (h, w)"
        )
    return ArraySample(f"image_{k:06d}", NORMAL, "", array)


def _bytes(name, value):
    """A non-empty uint8 array or tensor as an array; InputError for anything else."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()
    if value.dtype != np.uint8:
        nan = value.dtype.kind == "f" and bool(np.isnan(value).any())
        raise InputError(
            f"{name} must be uint8, 0 to 255, not {value.dtype}{' with NaNs' if nan else ''}"
            "; scale and round it first, such as (255 * x).round() for values of 0 to 1"
        )
    if not value.size:
        raise InputError(f"{name} of shape {value.shape} has no pixels; give at least one")
    return value
