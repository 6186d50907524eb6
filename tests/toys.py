"""A small data set made of arrays, what models are fitted on, and a backbone made by hand."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from tiled_ref.archive.thresholds import write_thresholds
from tiled_ref.data import Category, Sample
from tiled_ref.data.mvtec2 import PRIVATE
from tiled_ref.support.progress import Progress


@dataclass(frozen=True)
class ToySample(Sample):
    """A smooth seeded picture; an anomalous one has a bright square at a seeded place."""

    seed: int = 0
    side: int = 96

    def _picture(self):
        rng = np.random.default_rng(self.seed)
        y, x = np.mgrid[: self.side, : self.side] / self.side
        picture = 110 + 50 * np.sin(6 * x + 3 * y)[..., None] + rng.normal(0, 6, (*x.shape, 3))
        mask = np.zeros(x.shape, bool)
        if self.label:
            a, b = rng.integers(4, self.side - 20, 2)
            mask[a : a + 14, b : b + 14] = True
            picture[mask] += 70
        return picture.clip(0, 255).astype(np.uint8), mask

    def read_image(self):
        return self._picture()[0]

    def read_mask(self):
        return self._picture()[1] if self.label else None


def toy_category(n_train=6, n_good=4, n_bad=4, side=96, has_masks=True):
    def samples(split, label, first, n):
        kind = "square" if label else "good"
        return tuple(
            ToySample(f"toy/{split}/{kind}/{k:03d}.png", label, kind, first + k, side)
            for k in range(n)
        )

    test = samples("test", 0, 100, n_good) + samples("test", 1, 200, n_bad)
    return Category("toys", "toy", samples("train", 0, 0, n_train), test, has_masks)


def write_category(root, category, name="{:03d}", train="train/good"):
    """Write the images and masks of a category as PNG files in the layout of MVTec AD.

    Parameters: root; category; name, of a file by its number; train, folder of the training
    images.
    """
    for split in ("train", "test"):
        for k, sample in enumerate(getattr(category, split)):
            place = train if split == "train" else f"test/{sample.defect}"
            files = {f"{place}/{name.format(k)}.png": sample.read_image()}
            if sample.label:
                mask = sample.read_mask().astype(np.uint8) * 255
                files[f"ground_truth/{sample.defect}/{name.format(k)}_mask.png"] = mask
            for file, pixels in files.items():
                path = Path(root, file)
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)


def write_mvtec2(root, name, n_private, size):
    """Write an object of noise in the layout of MVTec AD 2: 4 normal images, 2 of every other
    labelled kind, n_private of either private split, of size (h, w)."""
    rng = np.random.default_rng(len(name))
    parts = {"train/good": 4, "validation/good": 2, "test_public/good": 2, "test_public/bad": 2}
    files = [f"{part}/{k:03d}_regular.png" for part, n in parts.items() for k in range(n)]
    for split, word in (("test_private", "regular"), ("test_private_mixed", "mixed")):
        files += [f"{split}/{k:03d}_{word}.png" for k in range(n_private)]
    pictures = {file: rng.integers(0, 255, (*size, 3), dtype=np.uint8) for file in files}
    for k in range(2):
        mask = 255 * np.eye(*size, dtype=np.uint8)
        pictures[f"test_public/ground_truth/bad/{k:03d}_regular_mask.png"] = mask
    for file, pixels in pictures.items():
        path = Path(root, name, file)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def only_mvtec2(monkeypatch, counts):
    """As if MVTec AD 2 had these objects alone, with so many images in either private split."""
    for name in {*PRIVATE} - {*counts}:
        monkeypatch.delitem(PRIVATE, name)
    for name, n in counts.items():
        monkeypatch.setitem(PRIVATE, name, n)


def toy_images(n=6, side=96):
    """uint8 (n, 3, side, side)."""
    category = toy_category(n_train=n, side=side)
    return np.stack([s.read_image().transpose(2, 0, 1) for s in category.train])


class Notes(Progress):
    """Keeps the notes of a run."""

    def __init__(self):
        super().__init__(quiet=True)
        self.notes = []

    def note(self, text):
        self.notes.append(text)


class Images:
    """What a model is fitted on: a tensor (N, 3, H, W), or with a grid the tiles of it."""

    def __init__(self, images, grid=None):
        self.images, self.grid = images, grid
        self.asked = []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, indices):
        self.asked.append(list(indices))
        batch = self.images[indices]
        return batch if self.grid is None else self.grid.tile(batch).flatten(0, 2)


class ThreeLayers(torch.nn.Module):
    """A backbone whose features can be worked out by hand: block means of the image."""

    def forward(self, images):
        layers = []
        for channels, stride in ((64, 4), (128, 8), (256, 16)):
            mean = F.avg_pool2d(images, stride)  # (B, 3, h/s, w/s)
            scale = torch.arange(1, channels + 1) / channels
            layers.append(mean.mean(1, keepdim=True) * scale[:, None, None])
        return layers


def rebind(ensemble):
    """Make the thresholds in the folder of an ensemble belong to its manifest.json as edited."""
    content = json.loads((ensemble / "thresholds.json").read_text())
    write_thresholds(ensemble, content["thresholds"])
