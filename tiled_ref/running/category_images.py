"""The images and masks of one category, decoded once for all of its cells."""

import copy
import hashlib
import json
from dataclasses import replace

import numpy as np

from ..data import reading
from ..data.disk import counted
from ..data.images import resize_mask
from ..support.errors import InputError
from ..verdicts import deciding
from .stored_images import regions_of

IMAGE_BUDGET = reading.BUDGET  # bytes of decoded images kept in memory, larger ones in a file
MASK_BUDGET = 128 << 20  # bytes of resized masks kept in memory, larger ones read every time
NAMED, SIZES = 3, 8  # most images named in a warning, most sizes in an error
LOST = {  # counts of metrics.json that cause a warning: their total, and the reason
    "n_defects_vanished": (
        "n_defects",
        "defects that vanish when the masks are resized, so pixel AUROC and AUPRO do not see them "
        "(--metric-size original or a larger --image-size keeps them)",
    ),
    "n_masks_empty": (
        "n_masks", "defective images with an empty mask, so all of their pixels count as normal"
    ),
    "n_test_in_train": (
        "n_test", "test images that are also training images, so the metrics are inflated"
    ),
    "n_without_verdict": (
        "n_test_all", "test images without a verdict or metric, because they decide the thresholds"
    ),
}  # fmt: skip


class CategoryImages:
    """The images and masks of one category, decoded once and kept at every requested size.

    Parameters: category, a data.Category; antialias, as in setups.Recipe; sizes (H, W) that will
    be requested, so that an image is decoded once for all of them.
    Attributes: plan, a deciding.Plan chosen by options.validation; category, the plan's: the
    images to train on and to predict; antialias; metric_size and fpr_limit, from the options
    or else the data set.
    """

    def __init__(self, category, options, progress, antialias=False, sizes=()):
        self.plan = deciding.plan(category, options.validation)
        self.category, self.antialias = self.plan.category, antialias
        self._given, self._options = category, options
        self.metric_size = options.metric_size or category.evaluation.metric_size
        self.fpr_limit = options.fpr_limit or category.evaluation.fpr_limit
        self._progress, self._expected = progress, tuple(sizes)
        self._images = {}  # (split, size) -> images of plan.category
        self._masks = {}
        self._versions = {}  # name of an image -> Sample.stamp and Sample.version
        self._pixels = {}  # name of an image -> digest of its pixels
        self._same = {}  # name of a test image -> name of the identical training image
        self._sizes = {}  # (h, w) -> names of the images of that size
        self._defects = {}  # size -> {name of a defective image: (defects, vanished ones)}
        self._packed = {}  # number of a test image -> bits and shape of its mask

    def images(self, split, size):
        """uint8 (N, 3, H, W) of split "train" or "test"; a memory map above IMAGE_BUDGET."""
        if (split, size) not in self._images:
            more = (s for s in self._expected if (split, s) not in self._images)
            sizes = list(dict.fromkeys([size, *more]))
            text = " and ".join(f"{height}x{width}" for height, width in sizes)
            arrays = reading.read_images_at(
                getattr(self.plan.category, split),
                sizes,
                antialias=self.antialias,
                budget=IMAGE_BUDGET,
                progress=self._progress.stage(f"decode {split} at {text}", f"decode {split}"),
                seen=self._keep_digest,
            )
            self._images |= {(split, s): images for s, images in zip(sizes, arrays)}
            self._compare_splits()
        if self._options.native and len({split for split, _ in self._images}) == 2:
            self._check_sizes()
        images = self._images[split, size]
        narrowed = split == "test" and self.category is not self.plan.category
        return images[self.plan.reported] if narrowed else images

    def _keep_digest(self, sample, image):
        digest = hashlib.sha256(repr(image.shape).encode())
        digest.update(np.ascontiguousarray(image))
        self._pixels[sample.name] = digest.digest()
        self._sizes.setdefault(image.shape[:2], set()).add(sample.name)

    def _check_sizes(self):
        """Raise InputError unless all images have the same size."""
        if len(self._sizes) > 1:
            found = sorted(self._sizes.items(), key=lambda size: (-len(size[1]), size))
            texts = [
                f"{h}x{w} ({counted(len(names), 'image')}, such as {min(names)})"
                for (h, w), names in found
            ]
            more = [f"{len(texts) - SIZES} more"] if len(texts) > SIZES else []
            raise InputError(
                f"--image-size native needs images of one size, and those of {self.category.name} "
                f"have {len(texts)}: {', '.join([*texts[:SIZES], *more])}; crop or resize them, or "
                "give --image-size HEIGHTxWIDTH"
            )

    def _compare_splits(self):
        """Once both splits are read, report test images that are also training images."""
        if self._same or len({split for split, _ in self._images}) < 2:
            return
        train = {self._pixels[s.name]: s.name for s in reversed(self._given.train)}
        test = {s.name: self._pixels[s.name] for s in self.reported.category.test}
        self._same = {name: train[pixels] for name, pixels in test.items() if pixels in train}
        pairs = [f"{name} is {trained}" for name, trained in self._same.items()]
        self._warn("n_test_in_train", len(pairs), len(test), pairs)

    def _warn(self, field, count, total, places):
        """Report a nonzero count of LOST, its total, and the first of the places."""
        if count:
            more = ["..."] if len(places) > NAMED else []
            text = f"{LOST[field][1]}: {count} of {total} ({', '.join([*places[:NAMED], *more])})"
            self._progress.note(f"{self.category.name}: {text}")

    def masks(self, size, seen=None):
        """The masks of the test images at a size (H, W), in order: an array bool (N, H, W) within
        MASK_BUDGET, above it an iterator that reads them; seen as for reading.read_masks."""
        test = self.category.test
        if len(test) * size[0] * size[1] > MASK_BUDGET:
            return (reading.read_masks([sample], size, seen)[0] for sample in test)
        if seen or size not in self._masks:
            self._masks[size] = reading.read_masks(test, size, seen)
        return self._masks[size]

    def defects(self, size):
        """Read all masks for metrics at a size (H, W); report empty masks and vanished defects.

        Returns {name of a defective test image: (number of its defects, of vanished ones)}. A
        defect is an 8-connected region of the mask at its own size; it vanishes if the resized mask
        has none of its pixels. Raises InputError for a mask that is missing or cannot be read.
        """
        if size not in self._defects:
            found, resizes = {}, self.metric_size == "setup"

            def seen(sample, mask):
                regions = regions_of(mask, self._options)
                n = int(regions.max())
                resized = resize_mask(regions, size) if resizes else regions
                left = np.zeros(n + 1, bool)  # whether each has a pixel left
                for row in resized:  # indexing all pixels at once would take 8 bytes each
                    left[row] = True
                found[sample.name] = n, n - int(left[1:].sum())

            stage = self._progress.stage("read masks at {}x{}".format(*size), "masks")
            for _ in self.masks(size, seen):
                pass  # one after the other if they do not fit into memory
            if found:
                stage(len(found), len(found))
            self._defects[size] = found
            counts = self.counts(size)
            vanished, place = counts["n_defects_vanished"], "at {}x{}".format(*size)
            self._warn("n_defects_vanished", vanished, counts["n_defects"], [place])
            empty = [s.name for s in self.reported.category.test if found.get(s.name) == (0, 0)]
            self._warn("n_masks_empty", len(empty), counts["n_masks"], empty)
        return self._defects[size]

    def counts(self, size):
        """Counts of what the metrics at a size (H, W) miss, entries of metrics.json: a dict that
        running/README.md explains. Requires that both splits have been read."""
        test = self.reported.category.test
        counts = dict.fromkeys(("n_masks", "n_masks_empty", "n_defects", "n_defects_vanished"))
        if self.category.has_masks:
            found = [self.defects(size)[sample.name] for sample in test if sample.label]
            empty = sum(n == 0 for n, _ in found)
            defects, vanished = (sum(column) for column in zip((0, 0), *found))
            counts = dict(zip(counts, (len(found), empty, defects, vanished)))
        return counts | {
            "n_test_in_train": len(self._same),
            "n_test_all": len(self._given.test),
            "n_without_verdict": len(self._given.test) - len(test),
        }

    def original_mask(self, k):
        """bool (h, w), the mask of test image k at its own size; read once, kept as packed bits."""
        if k not in self._packed:
            mask = reading.read_mask_original(self.category.test[k])
            self._packed[k] = np.packbits(mask), mask.shape
        bits, shape = self._packed[k]
        return np.unpackbits(bits, count=shape[0] * shape[1]).reshape(shape).view(bool)

    @property
    def digest(self):
        """Hex digest of the images to train on and to predict, see `data_digest`."""
        return self._digest(*self.category.train, *self.category.test)

    @property
    def data_digest(self):
        """Hex digest of all images: changes if one is added or removed or its file changes. Reads
        the content of every file, once per run."""
        given = self._given
        return self._digest(*given.train, *given.test, *given.validation)

    def _digest(self, *samples):
        for sample in samples:
            if sample.name not in self._versions:
                self._versions[sample.name] = sample.stamp, sample.version
        versions = [self._versions[sample.name][1] for sample in samples]
        return hashlib.sha256(json.dumps(versions).encode()).hexdigest()

    def check_unchanged(self):
        """Raise InputError if a file no longer matches its digest."""
        for sample in (*self._given.train, *self._given.test, *self._given.validation):
            stamp, version = self._versions[sample.name]
            if sample.stamp != stamp and sample.version != version:
                raise InputError(
                    f"the image {sample.name} or its mask was changed during the run; undo that "
                    "and use --resume, or start over without it"
                )

    @property
    def reported(self):
        """The same with only the test images that the metrics use."""
        test = self.category.test
        if len(self.plan.reported) == len(test):
            return self
        part = copy.copy(self)  # shares the decoded images
        part.category = replace(self.category, test=tuple(test[k] for k in self.plan.reported))
        part._masks, part._packed = {}, {}
        return part
