"""Choose the images that decide the thresholds of a category.

The paper's validation set is its test set, so its thresholds have seen the images they are used on.
`same-as-test` does the same; `split` is unbiased, at the cost of half the test set; `none` and
`folder` use no defective image: held-out training images, or the data set's validation images.
"""

from dataclasses import dataclass, replace

import numpy as np

from ..data.samples import Category
from ..support.errors import InputError

MODES = ("same-as-test", "split", "none", "folder")
HELD_OUT = 0.1  # fraction of the training images for "none", at least one image
SEED = 0  # for the choice of images; the same for all seeds of a run


@dataclass(frozen=True)
class Plan:
    """The role of each image of a category: training, test, thresholds.

    Parameters
    ----------
    mode : str, one of MODES
    category : data.Category
        The training images, and the images to predict: the test images, followed by held-out
        training images or validation images.
    deciding, reported : int64 (n,)
        Ascending indices into category.test: the images that decide the thresholds, and those
        that the metrics are computed on.
    """

    mode: str
    category: Category
    deciding: np.ndarray
    reported: np.ndarray


def plan(category, mode=None):
    """Choose the images that decide the thresholds.

    Parameters: category, a data.Category; mode, "same-as-test", all test images, as in the paper,
    which the metrics use too; "split", half of the test images, drawn from every kind of defect,
    with metrics on the other half; "none", a tenth of the training images, which are excluded
    from training, and no defective image; "folder", category.validation; None,
    "folder" if the category has such images, else "same-as-test".
    Returns Plan.
    Raises InputError for an unknown mode, or too few images for it.
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
        order = {0: [], 1: []}  # by label; dealt alternately, so halves differ by at most one
        for (label, _), members in sorted(kinds.items()):
            order[label] += rng.permutation(members).tolist()
        deciding = np.array(sorted(order[0][::2] + order[1][::2]), np.int64)
        reported = np.setdiff1d(everything, deciding)
        if not reported.size:
            raise InputError(
                f"--validation split needs at least two test images, but {category.name} has {n}; "
                "use --validation same-as-test or none"
            )
        return Plan(mode, category, deciding, reported)
    kept, extra = category.train, category.validation
    if mode == "folder":
        if not extra:
            raise InputError(
                "--validation folder uses the images in validation/good, but "
                f"{category.name} has none; add normal images there or choose another --validation"
            )
    elif mode != "none":
        raise InputError(f"validation must be one of {', '.join(MODES)}, not {mode!r}")
    else:
        if len(kept) < 2:
            raise InputError(
                "--validation none holds out a tenth of the training images, but "
                f"{category.name} has only {len(kept)}; add images or choose another --validation"
            )
        order = rng.permutation(len(kept))
        n_extra = max(1, round(HELD_OUT * len(kept)))
        extra, kept = (
            tuple(category.train[k] for k in sorted(part)) for part in np.split(order, [n_extra])
        )
    wider = replace(category, train=kept, test=category.test + extra)
    return Plan(mode, wider, np.arange(n, n + len(extra)), everything)
