"""Which images decide the thresholds of a category.

The paper's validation set is its test set, so its thresholds have seen the images they are used on.
`same-as-test` does the same; `split` is honest, at the price of half of the test set; `none`
does without any defective image, and so does `folder`, with images that the data set has for it.
"""

from dataclasses import dataclass, replace

import numpy as np

from ..data.samples import Category
from ..support.errors import InputError

MODES = ("same-as-test", "split", "none", "folder")
HELD_OUT = 0.1  # of the training images for "none", one at least
SEED = 0  # of the choice of images; the same for all seeds of a run


@dataclass(frozen=True)
class Plan:
    """The use of a category's images: training, test, thresholds.

    Parameters
    ----------
    mode : str, one of MODES
    category : data.Category
        What is trained on, and what is predicted: test images, after them held-out training
        images or validation images.
    deciding, reported : int64 (n,)
        Ascending indices into category.test: the images that decide the thresholds, and those
        that the metrics are of.
    """

    mode: str
    category: Category
    deciding: np.ndarray
    reported: np.ndarray


def plan(category, mode=None):
    """Choose the images that decide the thresholds.

    Parameters: category, a data.Category; mode, "same-as-test", all test images, which the metrics
    are of as well (the paper); "split", a half of the test images, drawn from every kind of defect,
    and the metrics are of the other half; "none", a tenth of the training images, which the
    models are then not trained on, and no defective image; "folder", category.validation; None,
    "folder" where the category has such images, else "same-as-test".
    Returns Plan.
    Raises InputError for an unknown mode, or fewer images than it needs.
    """
    n = len(category.test)
    everything = np.arange(n)
    mode = mode or ("folder" if category.validation else "same-as-test")
    rng = np.random.default_rng(SEED)
    if mode == "same-as-test":
        return Plan(mode, category, everything, everything)
    if mode == "split":
        kinds = {}
        for k, sample in enumerate(category.test):
            kinds.setdefault((sample.label, sample.defect), []).append(k)
        order = {0: [], 1: []}  # by label; dealt out in turn, so that halves differ by one
        for (label, _), members in sorted(kinds.items()):
            order[label] += rng.permutation(members).tolist()
        deciding = np.array(sorted(order[0][::2] + order[1][::2]), np.int64)
        reported = np.setdiff1d(everything, deciding)
        if not reported.size:
            raise InputError(
                f"--validation split needs at least two test images, {category.name} has {n}; "
                "use --validation same-as-test or none"
            )
        return Plan(mode, category, deciding, reported)
    kept, extra = category.train, category.validation
    if mode == "folder":
        if not extra:
            raise InputError(
                "--validation folder uses the images in validation/good, but "
                f"{category.name} has none; add normal images there, or use another --validation"
            )
    elif mode != "none":
        raise InputError(f"validation must be one of {', '.join(MODES)}, not {mode!r}")
    else:
        if len(kept) < 2:
            raise InputError(
                "--validation none holds out a tenth of the training images, but "
                f"{category.name} has only {len(kept)}; add images, or use another --validation"
            )
        order = rng.permutation(len(kept))
        n_extra = max(1, round(HELD_OUT * len(kept)))
        extra, kept = (
            tuple(category.train[k] for k in sorted(part)) for part in np.split(order, [n_extra])
        )
    wider = replace(category, train=kept, test=category.test + extra)
    return Plan(mode, wider, np.arange(n, n + len(extra)), everything)
