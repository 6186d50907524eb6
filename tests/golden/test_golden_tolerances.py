"""Every legitimate order of sums stays within its tolerance, in float32 and float64."""

import numpy as np
import pytest

from tiled_ref.golden import formulas
from tiled_ref.golden.__main__ import REFERENCE
from tiled_ref.golden.bundle import Bundle
from tiled_ref.golden.compare import Compare, compare, ulps_apart


def left_to_right(parts):
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def pairwise(parts):
    while len(parts) > 1:
        pairs = [a + b for a, b in zip(parts[::2], parts[1::2])]
        parts = pairs + parts[len(parts) // 2 * 2 :]
    return parts[0]


def from_the_centre(parts):
    places = sorted(range(len(parts)), key=lambda k: abs(k - len(parts) // 2))
    return left_to_right([parts[k] for k in places])


ORDERS = {
    "left to right": left_to_right,
    "right to left": lambda parts: left_to_right(parts[::-1]),
    "pairwise": pairwise,
    "from the centre": from_the_centre,
    "smallest first": lambda parts: left_to_right(sorted(parts, key=np.sum)),
}


def blurred(maps, sigma, add, dtype, rows_first):
    """A blur of (N, H, W) in a dtype, two passes, in an order of sums."""
    weights = formulas.taps(sigma).astype(dtype)
    maps = maps.astype(dtype)
    for axis in (2, 1) if rows_first else (1, 2):
        n, radius = maps.shape[axis], len(weights) // 2
        places = np.arange(-radius, n + radius) % max(1, 2 * n - 2)
        padded = maps.take(np.minimum(places, np.maximum(0, 2 * n - 2 - places)), axis)
        views = [padded.take(np.arange(k, k + n), axis) for k in range(len(weights))]
        maps = add([weight * view for weight, view in zip(weights, views)])
    return maps


def cases_of(name):
    return next(stage for stage in Bundle(REFERENCE).stages if stage["name"] == name)["cases"]


def within(bundle, case, output, found):
    """Assert that an answer agrees; returns its distance from the reference in ulps."""
    entry = case["outputs"][output]
    reference = bundle.array(entry)
    verdict = compare(found, reference, Compare.from_json(entry["compare"]))
    assert verdict.ok, (case["name"], verdict)
    return ulps_apart(found.astype(reference.dtype), reference).max()


@pytest.mark.parametrize("rows_first", [False, True])
@pytest.mark.parametrize("kind", ["own", "float64"])
@pytest.mark.parametrize("order", ORDERS)
def test_smoothing_in_every_order(order, kind, rows_first, record_property):
    bundle, worst = Bundle(REFERENCE), 0
    for case in cases_of("smoothing"):
        x = bundle.inputs(case)
        dtype = x["maps"].dtype if kind == "own" else np.float64
        soft = blurred(x["maps"], float(x["sigma"]), ORDERS[order], dtype, rows_first)
        inside = formulas.seam_mask(x["grid"], float(x["width"]))
        worst = max(worst, within(bundle, case, "maps", np.where(inside, soft, x["maps"])))
    record_property("ulps", int(worst))  # pytest --junitxml shows it


@pytest.mark.parametrize("order", ORDERS)
def test_means_in_every_order(order, record_property):
    bundle, add = Bundle(REFERENCE), ORDERS[order]
    for case in cases_of("mean_score"):
        scores = bundle.inputs(case)["scores"]
        parts = [scores[place] for place in np.ndindex(scores.shape[:2])]
        one = add(parts) * (np.ones((), scores.dtype) / len(parts))  # as a product
        within(bundle, case, "score", one)
    for case in cases_of("untile"):
        x = bundle.inputs(case)
        H, W, h, w, sh, sw = x["grid"].tolist()
        rows, cols, n = x["maps"].shape[:3]
        covered = {}
        for i, j in np.ndindex(rows, cols):
            for a, b in np.ndindex(min(h, H - i * sh), min(w, W - j * sw)):
                place = i * sh + a, j * sw + b
                covered.setdefault(place, []).append(x["maps"][i, j, :, a, b])
        found = np.empty((n, H, W), x["maps"].dtype)
        for (y, z), parts in covered.items():
            found[:, y, z] = add(parts) * (np.ones((), found.dtype) / len(parts))
        within(bundle, case, "map", found)


@pytest.mark.parametrize("arithmetic", ["float32", "tf32", "bfloat16"])
def test_zeros_and_doubled_values_fail_for_every_output(arithmetic):
    bundle = Bundle(REFERENCE)
    for names, entry in bundle.outputs().items():
        reference, rule = bundle.array(entry), Compare.from_json(entry["compare"])
        wrong = [np.zeros_like(reference)]
        if reference.dtype.kind == "f":
            wrong += [2 * reference, -reference]
        for port in wrong:
            if not np.array_equal(port, reference, equal_nan=reference.dtype.kind == "f"):
                assert not compare(port, reference, rule.in_arithmetic(arithmetic)).ok, names


def test_a_chosen_patch_has_no_room_for_short_arithmetic():
    for case in cases_of("patchcore.parameters"):
        assert "reduced" not in case["outputs"]["bank"]["compare"]


def test_capped_classes_by_hand():
    wide = Compare("close", rtol=0.5, atol=8)
    assert wide.capped(np.array([-3.14159, 1])) == Compare("close", rtol=0.5, atol=0.031)
    assert wide.capped(np.array([5e3])) == wide == wide.capped(np.zeros(3))
    assert wide.capped(np.array([3])) == wide


@pytest.mark.parametrize("order", ORDERS)
def test_the_models_blur_in_every_order(order):
    """On the distances of the reference, enlarged, in float32."""
    bundle = Bundle(REFERENCE)
    for name, mode in (("padim.map", "bilinear"), ("patchcore.map", "nearest")):
        for case in cases_of(name):
            size = bundle.inputs(case)["size"].tolist()
            maps = formulas.enlarge(bundle.array(case["outputs"]["distances"]), size, mode)
            within(bundle, case, "map", blurred(maps, 4.0, ORDERS[order], np.float32, False))
