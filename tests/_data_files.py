"""Writes small images and masks for the tests of the data sets."""

import numpy as np
from PIL import Image


def picture(height=6, width=8, seed=0):
    """uint8 (height, width, 3), seeded."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_image(path, height=6, width=8, seed=0):
    """An RGB image file at path, folders included; returns its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = picture(height, width, seed)
    Image.fromarray(pixels).save(path)
    return pixels


def write_mask(path, height=6, width=8, value=255):
    """A mask file with a rectangle of `value`; returns it as bool."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((height, width), np.uint8)
    mask[1:3, 2:5] = value
    Image.fromarray(mask).save(path)
    return mask > 0


def touch(path, content=b"not an image"):
    """A file of these bytes, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
