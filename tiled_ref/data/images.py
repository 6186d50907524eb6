"""Prepare images and masks from files for the method: decode, resize, normalise."""

import functools
import os

import numpy as np
import torch

from ..support.errors import InputError
from .decoding import read_picture
from .resizing import resize_image, resize_mask  # noqa: F401  importable from here as well

EDITION = 2  # incremented when decoded or resized pixels change; 1 resized in floating point

# Mean and standard deviation of ImageNet's red, green and blue channels on a scale of 0 to 1,
# with which torchvision's ResNet-18 was trained (ResNet18_Weights.IMAGENET1K_V1.transforms()).
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def decode_image(path):
    """Decode an image file to 8-bit RGB.

    Grey images become three equal channels; palette images get the colours of their palette;
    CMYK and YCbCr are converted to RGB. Alpha is dropped, not blended. The orientation stored in
    the file is applied; colour profiles are ignored. Grey values v of more than 8 bits become
    255 v / maximum, rounded to nearest, with the maximum from the file (PGM, PPM) or its bit
    depth (so rescale 10- or 12-bit data in 16-bit files first); 16-bit colour keeps the high
    byte of each channel. Only the first page of a file is read.

    Returns uint8 (h, w, 3), C-contiguous and writable.
    Raises InputError as `decoding.read_picture` does, and for signed, 32-bit and floating-point
    samples, whose range is unknown.
    """
    picture = read_picture(path)
    samples, full = picture.samples, picture.full
    if picture.palette is not None:
        colours = picture.palette if picture.palette.dtype == np.uint8 else picture.palette >> 8
        return colours.astype(np.uint8)[samples[..., 0]]
    if full != 255:
        scale = (np.arange(full + 1) * 510 + full) // (2 * full)
        samples = scale.astype(np.uint8)[samples.astype(np.uint16, copy=False)]
    if samples.shape[2] == 1:
        samples = np.repeat(samples, 3, axis=2)
    return np.require(samples[..., :3], np.uint8, ["C", "W"])


def decode_mask(path):
    """Decode a ground-truth file to a mask: every pixel that is not black is anomalous.

    Any bit of any channel counts, at any depth. In a palette the colours count, not their
    indices. The mask can be drawn in the alpha channel instead, on a uniform colour; if alpha and
    colour both vary, they must agree. The orientation stored in the file is applied, as for
    images.

    Returns bool (h, w), C-contiguous.
    Raises InputError as `decoding.read_picture` does, and if it is ambiguous which pixels
    are anomalous: lossy compression (JPEG and others, which leave values slightly above 0 around
    every region), values below 0 or NaN, a palette with no or several blacks, alpha and colour
    that differ.
    """
    picture = read_picture(path, for_mask=True)
    try:
        return _by_alpha(_by_colour(picture), picture.alpha)
    except InputError as error:
        name = os.fsdecode(path)
        raise InputError(f"the mask {name} {error}; save it as black and white") from error


def _by_colour(picture):
    """True for each pixel that is not black, bool (h, w)."""
    samples = picture.samples
    if picture.palette is not None:
        used = np.unique(samples)
        bright = (picture.palette != 0).any(axis=1)
        black = int((~bright[used]).sum())
        if len(used) > 1 and black != 1:
            raise InputError(f"uses {len(used)} colours of its palette, {black or 'none'} of which "
                             f"{'is' if black < 2 else 'are'} black")  # fmt: skip
        return bright[samples[..., 0]]
    if samples.dtype.kind != "u" and samples.dtype != bool and not (samples >= 0).all():
        raise InputError("contains values below 0 or NaN")
    if samples.shape[2] == 4:  # CMYK: black from its own ink, or from the other three
        ink = samples == picture.full
        return ~(ink[..., 3] | ink[..., :3].all(axis=2))
    return functools.reduce(np.logical_or, (samples != 0).transpose(2, 0, 1))


def _by_alpha(colour, alpha):
    """The mask from colour, bool (h, w), or from alpha (h, w), whichever it is drawn in."""
    if alpha is None or alpha.min() == alpha.max():
        return colour
    opaque = alpha != 0
    if opaque.all() or not (colour.all() or not colour.any() or (colour == opaque).all()):
        raise InputError("has transparency that differs from its colours")
    return opaque


def normalize(batch):
    """Normalise 8-bit images for the backbone.

    Parameters: batch uint8 (B, 3, h, w) torch, any device.
    Returns float32 (B, 3, h, w) on the same device: (x / 255 - MEAN) / STD per channel, computed
    in float32 in this order.
    """
    pixels = batch.to(torch.float32).div_(255)
    for channel, mean, std in zip(pixels.unbind(1), MEAN, STD):
        channel.sub_(mean).div_(std)
    return pixels
