"""The built-in data set: pictures drawn with NumPy, so that everything runs without a download.

Three categories of 1024 x 1024 px: an aligned object, a rotated and shifted object, and a
texture. As in VisA, most defects are small: 10 to 95 px long, about half below 24. A defective
picture has one to five spots of one kind of defect.
Every picture is a pure function of the data set's seed and the picture's index in the data set.
"""

import zlib
from dataclasses import dataclass

import numpy as np

from . import board, bolt, weave
from .disk import check_category
from .drawing import field, strips
from .samples import ANOMALOUS, GOOD, NORMAL, Category, Sample

SEED = 2024  # of the data set; not selected for its results
N_TRAIN, N_GOOD, N_DEFECTIVE = 48, 16, 32  # pictures per category
LIGHT = 0.03  # standard deviation of the light across a picture, relative to 1
EXPOSURE, BALANCE = 0.02, 0.006  # standard deviations of the overall and the per-channel gain
NOISE = np.float32(3)  # standard deviation of the sensor noise, grey levels

_SCENES = {"board": board, "bolt": bolt, "weave": weave}
DEFAULT_CATEGORY = "board"
_STREAMS = {("train", NORMAL): 0, ("test", NORMAL): 1, ("test", ANOMALOUS): 2}


@dataclass(frozen=True)
class SyntheticSample(Sample):
    """A picture that is drawn when it is read, identically every time.

    Parameters: name, label, defect as in Sample; scene, name of the category; key, integers that
    seed its generators: the data set's seed, the category, the split, the picture's number.
    """

    scene: str
    key: tuple

    def read_image(self):
        return self._draw()[0]

    def read_size(self):
        return board.SIZE, board.SIZE

    def read_mask(self):
        return self._draw()[1]

    def _draw(self):
        return draw(self.scene, self.defect if self.label else None, self.key)


def categories(root=None):
    """("board", "bolt", "weave"), whatever the root."""
    return tuple(_SCENES)


def load(root, name, *, n_train=N_TRAIN, n_good=N_GOOD, n_defective=N_DEFECTIVE):
    """Load one category.

    Parameters: root, ignored; name, one of categories(); n_train, n_good,
    n_defective, numbers of pictures. The kinds of defects alternate.
    Returns Category. Raises InputError for an unknown category (lists the known ones).
    """
    check_category(name, categories(), None)
    kinds = _SCENES[name].DEFECTS

    def sample(k, split, defect):
        label = NORMAL if defect == GOOD else ANOMALOUS
        key = SEED, zlib.crc32(name.encode()), _STREAMS[split, label], k
        path = f"{name}/{split}/{defect}/{k:03d}.png"
        return SyntheticSample(path, label, defect, name, key)

    train = tuple(sample(k, "train", GOOD) for k in range(n_train))
    good = tuple(sample(k, "test", GOOD) for k in range(n_good))
    bad = tuple(sample(k, "test", kinds[k % len(kinds)]) for k in range(n_defective))
    return Category("synthetic", name, train, good + bad, has_masks=True)


def draw(scene, defect, key):
    """Draw a picture and its mask.

    Parameters: scene, name of a category; defect, one of its kinds or None; key, integers that
    seed the generators.
    Returns uint8 (1024, 1024, 3) and bool (1024, 1024), None without a defect. The mask is the area
    that the defect covers. Every pixel outside has the same value as without the defect, because
    light and noise are the same.
    """
    scene_rng, light_rng, noise_rng, defect_rng = (
        np.random.default_rng([*key, stream]) for stream in range(4)
    )
    clean, flawed, cover = _SCENES[scene].render(scene_rng, defect, defect_rng)
    mask = None
    if defect is not None:
        mask = cover > 0.1
        clean[mask] = flawed[mask]
    return _photograph(clean, light_rng, noise_rng), mask


def _photograph(picture, light_rng, noise_rng):
    """Apply uneven light, exposure, white balance and sensor noise; uint8 (H, W, 3)."""
    light = 1 + np.float32(LIGHT) * field(light_rng, picture.shape[:2], 400)  # (H, W)
    gain = light_rng.normal(1, EXPOSURE) * light_rng.normal(1, BALANCE, 3)
    gain = gain.astype(np.float32)
    pixels = np.empty(picture.shape, np.uint8)
    for rows in strips(picture.shape[0]):
        part = picture[rows] * (light[rows][..., None] * gain)
        part += NOISE * noise_rng.standard_normal((*part.shape[:2], 1), np.float32)
        part += noise_rng.integers(-3, 4, part.shape, np.int8)
        pixels[rows] = np.clip(np.rint(part, out=part), 0, 255, out=part)
    return pixels
