"""Which images decide the thresholds, and what they decide.

The paper's validation set is its test set, so that its thresholds have seen what they are used
on. `same-as-test` does the same; `split` is honest, at the price of half of the test set; and
`none` does without any defective image.
"""

from dataclasses import dataclass, replace

import numpy as np

from .data.samples import NORMAL, Category
from .normalization import f1_threshold, percentile_threshold, pixel_statistics
from .support.errors import InputError

MODES = ("same-as-test", "split", "none")
HELD_OUT = 0.1  # of the training images for "none", one at least
SEED = 0  # of the choice of images; the same for all seeds of a run


@dataclass(frozen=True)
class Plan:
    """What becomes of the images of a category.

    Parameters
    ----------
    mode : str, one of MODES
    category : data.Category
        What is trained on, and what is predicted: test images, held-out training images after
        them.
    deciding, reported : int64 (n,)
        Ascending indices into category.test: the images that decide the thresholds, and those
        that the metrics are of.
    """

    mode: str
    category: Category
    deciding: np.ndarray
    reported: np.ndarray


def plan(category, mode="same-as-test"):
    """Choose the images that decide the thresholds.

    Parameters: category, a data.Category; mode, "same-as-test", all test images, which the metrics
    are of as well (the paper); "split", a half of the test images, drawn from every kind of defect,
    and the metrics are of the other half; or "none", a tenth of the training images, which the
    models are then not trained on, and no defective image.
    Returns Plan.
    Raises InputError for an unknown mode, or fewer images than it needs.
    """
    n = len(category.test)
    everything = np.arange(n)
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
    if mode != "none":
        raise InputError(f"validation must be one of {', '.join(MODES)}, not {mode!r}")
    n_train = len(category.train)
    if n_train < 2:
        raise InputError(
            "--validation none holds out a tenth of the training images, but "
            f"{category.name} has only {n_train}; add images, or use another --validation"
        )
    held_out = set(rng.permutation(n_train)[: max(1, round(HELD_OUT * n_train))].tolist())
    kept = tuple(sample for k, sample in enumerate(category.train) if k not in held_out)
    extra = tuple(category.train[k] for k in sorted(held_out))
    wider = replace(category, train=kept, test=category.test + extra)
    return Plan(mode, wider, np.arange(n, n + len(extra)), everything)


def find_thresholds(plan, maps, scores, masks=None, percentile=100.0):
    """Thresholds and ranges of image scores and pixels, from the images that decide.

    With defective images among them, the threshold has the best F1. Without, it is a percentile
    of the normal ones. So it is for pixels where the defective images have no masks.

    Parameters: plan, a Plan; maps (N, H, W) float32, array or store.RowFile, merged and smoothed,
    of plan.category.test; scores (N,) float32; masks() returns a fresh iterable over all masks,
    bool (H, W), in order; None where defective images have none; percentile, 0 < percentile <= 100,
    100 is the largest score of a normal image.
    Returns a dict of JSON values: mode, n_normal, n_anomalous, and under "image" and "pixel" rule
    ("f1" or "percentile"), percentile, f1 (of the deciding images), threshold, minimum, maximum.
    "pixel" is None where there is neither a mask nor a normal image.
    Raises InputError for a map or score that is not finite, and a percentile out of range.
    """
    labels = np.array([sample.label for sample in plan.category.test])
    return thresholds_of(
        plan.mode, maps, scores, labels, plan.deciding, masks=masks, percentile=percentile
    )


def thresholds_of(mode, maps, scores, labels, deciding, masks=None, percentile=100.0):
    """`find_thresholds` for arrays: labels int (N,), deciding int (n,) ascending.

    Parameters: mode, percentile, Returns and Raises: see `find_thresholds` (InputError where a
    score is not finite); maps (N, H, W) and scores (N,) float; masks bool (N, H, W) or None.
    """
    mine = scores[deciding]
    if not np.isfinite(mine).all():
        raise InputError("an image score is not finite, so there is no threshold")
    anomalous = labels[deciding] != NORMAL
    image = {"rule": "f1", "percentile": None}
    if anomalous.any():
        image["threshold"], image["f1"] = f1_threshold(mine, anomalous)
    else:
        image = {"rule": "percentile", "percentile": percentile, "f1": None}
        image["threshold"] = percentile_threshold(mine, percentile)
    image |= {"minimum": float(mine.min()), "maximum": float(mine.max())}

    pixel = {"rule": "f1", "percentile": None}
    if anomalous.any() and masks is not None:
        chosen = set(deciding.tolist())
        pairs = ((maps[k], mask) for k, mask in enumerate(masks()) if k in chosen)
        pixel |= pixel_statistics(pairs)
    elif not anomalous.all():
        pixel = {"rule": "percentile", "percentile": percentile}
        pairs = ((maps[k], None) for k in deciding if labels[k] == NORMAL)
        pixel |= pixel_statistics(pairs, percentile)
    else:
        pixel = None
    return {
        "mode": mode,
        "n_normal": int((~anomalous).sum()),
        "n_anomalous": int(anomalous.sum()),
        "image": image,
        "pixel": pixel,
    }


def describe(thresholds):
    """What was decided and on which images, as one line for people."""
    source = {
        "same-as-test": "the test images themselves, so the verdicts on them are flattered",
        "split": "one half of the test images; the metrics are of the other half",
        "none": "training images held out, no defective image",
        "given": "images given for it",
    }[thresholds["mode"]]
    images = f"{thresholds['n_normal']} normal, {thresholds['n_anomalous']} defective"
    parts = [f"{kind} {_rule(thresholds[kind])}" for kind in ("image", "pixel")]
    return f"thresholds from {source} ({images}): {', '.join(parts)}"


def _rule(part):
    if part is None:
        return "none, because there is neither a mask nor a normal image"
    if part["rule"] == "f1":
        how = "the best F1" + ("" if part["f1"] is None else f", {part['f1']:.3f}")
    else:
        how = f"only normal images: percentile {part['percentile']:g}"
        how += ", their maximum" if part["percentile"] == 100 else ""
    return f"{part['threshold']:.5g} ({how})"
