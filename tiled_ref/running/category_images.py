"""The images and masks of one category, decoded once for all of its cells."""

import copy
import hashlib
import json
from dataclasses import replace

import numpy as np

from .. import thresholds
from ..data import reading

IMAGE_BUDGET = 4 << 30  # bytes of decoded images kept in memory, more than that in a file
MASK_BUDGET = 1 << 30  # bytes of resized masks kept in memory, more than that read every time


class CategoryImages:
    """The images and masks of one category, decoded once and kept at every requested size.

    Parameters: category, a data.Category; antialias, as of setups.Recipe; sizes (H, W) that will
    be requested, so that an image is decoded once for all of them.
    Attributes: plan, a thresholds.Plan chosen by options.validation; category, the plan's: the
    images to train on and to predict; antialias.
    """

    def __init__(self, category, options, progress, antialias=False, sizes=()):
        self.plan = thresholds.plan(category, options.validation)
        self.category, self.antialias = self.plan.category, antialias
        self._progress, self._expected = progress, tuple(sizes)
        self._images = {}  # (split, size) -> images of plan.category
        self._masks = {}
        self._packed = {}  # number of a test image -> bits and shape of its mask

    def images(self, split, size):
        """uint8 (N, 3, H, W) of split "train" or "test"; a memory map beyond IMAGE_BUDGET."""
        if (split, size) not in self._images:
            more = (s for s in self._expected if (split, s) not in self._images)
            sizes = list(dict.fromkeys([size, *more]))
            text = " and ".join(f"{height}x{width}" for height, width in sizes)
            arrays = reading.read_images_at(
                getattr(self.plan.category, split),
                sizes,
                antialias=self.antialias,
                budget=IMAGE_BUDGET,
                progress=self._progress.stage(f"decode {split} at {text}"),
            )
            self._images |= {(split, s): images for s, images in zip(sizes, arrays)}
        images = self._images[split, size]
        narrowed = split == "test" and self.category is not self.plan.category
        return images[self.plan.reported] if narrowed else images

    def masks(self, size):
        """The masks of the test images at a size (H, W), in order: an array bool (N, H, W) within
        MASK_BUDGET, beyond it an iterator that reads them."""
        test = self.category.test
        if len(test) * size[0] * size[1] > MASK_BUDGET:
            return (reading.read_masks([sample], size)[0] for sample in test)
        if size not in self._masks:
            self._masks[size] = reading.read_masks(test, size)
        return self._masks[size]

    def original_mask(self, k):
        """bool (h, w), the mask of test image k at its own size; read once, kept as bits."""
        if k not in self._packed:
            mask = reading.read_mask_original(self.category.test[k])
            self._packed[k] = np.packbits(mask), mask.shape
        bits, shape = self._packed[k]
        return np.unpackbits(bits, count=shape[0] * shape[1]).reshape(shape).view(bool)

    @property
    def digest(self):
        """Hex digest of all samples: differs when an image is added, removed or changed."""
        samples = [sample.version for sample in (*self.category.train, *self.category.test)]
        return hashlib.sha256(json.dumps(samples).encode()).hexdigest()

    @property
    def reported(self):
        """The same with only those test images that the metrics are of."""
        test = self.category.test
        if len(self.plan.reported) == len(test):
            return self
        part = copy.copy(self)  # it shares the decoded images
        part.category = replace(self.category, test=tuple(test[k] for k in self.plan.reported))
        part._masks, part._packed = {}, {}
        return part
