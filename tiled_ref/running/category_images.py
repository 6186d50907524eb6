"""The images and masks of one category, decoded once for all of its cells."""

import hashlib
import json
from dataclasses import replace

import numpy as np

from .. import thresholds
from ..data import images as image_data
from ..support.errors import InputError

IMAGE_BUDGET = 4 << 30  # bytes of decoded images kept in memory, beyond that in a file
MASK_BUDGET = 1 << 30  # bytes of resized masks kept in memory, beyond that read again and again


class CategoryImages:
    """The images and masks of one category, decoded once and kept at every size asked for.

    Parameters: category, a data.Category; options; progress, a Progress; antialias, as of
    setups.Recipe.

    Attributes
    ----------
    plan : thresholds.Plan
        Which images decide the thresholds; options.validation chooses.
    category : data.Category
        What is trained on and predicted: that of the plan.
    """

    def __init__(self, category, options, progress, antialias=False):
        self.plan = thresholds.plan(category, options.validation)
        self.category = self.plan.category
        self._options, self._antialias = options, antialias
        self._progress = progress
        self._expected = ()
        self._images = {}
        self._masks = {}
        self._packed = {}  # number of a test image -> bits and shape of its mask

    def check(self, recipe):
        """Raise InputError unless a recipe wants images that are resized as these are."""
        if recipe.antialias != self._antialias:
            raise InputError("all cells of a category need the same antialias")

    def expect(self, sizes):
        """The sizes (H, W) that will be asked for: what is decoded is resized to all of them."""
        self._expected = tuple(sizes)

    def images(self, split, size):
        """uint8 (N, 3, H, W) of split "train" or "test"; a memory map beyond IMAGE_BUDGET."""
        if (split, size) not in self._images:
            sizes = [size, *(s for s in self._expected if (split, s) not in self._images)]
            sizes = list(dict.fromkeys(sizes))
            text = " and ".join(map(_text, sizes))
            arrays = image_data.read_images_at(
                getattr(self.category, split),
                sizes,
                antialias=self._antialias,
                budget=IMAGE_BUDGET,
                progress=self._progress.stage(f"decode {split} at {text}"),
            )
            self._images |= {(split, s): images for s, images in zip(sizes, arrays)}
        return self._images[split, size]

    def masks(self, size):
        """The masks bool (H, W) of the test images in their order, to be looped over.

        An array (N, H, W) within MASK_BUDGET; beyond it every loop reads them anew.
        """
        test = self.category.test
        if len(test) * size[0] * size[1] > MASK_BUDGET:
            return (image_data.read_masks([sample], size)[0] for sample in test)
        if size not in self._masks:
            self._masks[size] = image_data.read_masks(test, size)
        return self._masks[size]

    def original_mask(self, k):
        """bool (h, w), the mask of test image k at its own size; read once, kept as bits."""
        if k not in self._packed:
            mask = image_data.read_mask_original(self.category.test[k])
            self._packed[k] = np.packbits(mask), mask.shape
        bits, shape = self._packed[k]
        return np.unpackbits(bits, count=shape[0] * shape[1]).reshape(shape).view(bool)

    @property
    def digest(self):
        """Hex digest of all samples: changes where an image is added, removed or changed."""
        samples = [sample.version for sample in (*self.category.train, *self.category.test)]
        return hashlib.sha256(json.dumps(samples).encode()).hexdigest()

    @property
    def reported(self):
        """These images with only those test images that the metrics are of."""
        if len(self.plan.reported) == len(self.category.test):
            return self
        return _Reported(self)


class _Reported(CategoryImages):
    """A part of the test images of other CategoryImages, which keep what was decoded."""

    def __init__(self, whole):
        chosen = whole.plan.reported
        test = tuple(whole.category.test[k] for k in chosen)
        part = replace(whole.category, test=test)
        options = replace(whole._options, validation="same-as-test")
        super().__init__(part, options, whole._progress, whole._antialias)
        self._whole, self._chosen = whole, chosen

    def images(self, split, size):
        images = self._whole.images(split, size)
        return images[self._chosen] if split == "test" else images


def _text(size):
    return f"{size[0]}x{size[1]}"
