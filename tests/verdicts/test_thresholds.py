"""Which images decide the thresholds, and what they decide."""

from dataclasses import replace

import numpy as np
import pytest
from toys import toy_category

from tiled_ref.archive.thresholds import check_thresholds
from tiled_ref.data import mvtec2
from tiled_ref.data.samples import Evaluation
from tiled_ref.reporting.page import THRESHOLDS
from tiled_ref.support.errors import InputError
from tiled_ref.verdicts.deciding import MODES, plan
from tiled_ref.verdicts.marks import enlarge, marks
from tiled_ref.verdicts.thresholds import (
    Rules,
    allowed_alarms,
    describe,
    deviation_threshold,
    doubts,
    f1_threshold,
    false_alarm_threshold,
    find_thresholds,
    normalize,
    percentile_threshold,
    pixel_statistics,
    thresholds_of,
)


def test_same_as_test_is_the_papers_choice():
    made = plan(toy_category())
    assert made.deciding.tolist() == made.reported.tolist() == list(range(8))


def test_split_gives_each_half_a_half_of_every_kind():
    category = toy_category(n_good=7, n_bad=5)
    made = plan(category, "split")
    assert sorted([*made.deciding, *made.reported]) == list(range(12))
    labels = np.array([sample.label for sample in category.test])
    assert (labels[made.deciding] == 0).sum() == 4 and (labels[made.reported] == 0).sum() == 3
    assert (labels[made.deciding] == 1).sum() == 3 and (labels[made.reported] == 1).sum() == 2
    assert plan(category, "split").deciding.tolist() == made.deciding.tolist()


def test_none_takes_its_images_from_the_training_set():
    category = toy_category(n_train=21)
    made = plan(category, "none")
    assert len(made.category.train) == 19 and len(made.category.test) == 8 + 2
    assert made.reported.tolist() == list(range(8)) and made.deciding.tolist() == [8, 9]
    names = {sample.name for sample in made.category.train}
    held_out = [made.category.test[k].name for k in made.deciding]
    assert not names & set(held_out)
    assert names | set(held_out) == {sample.name for sample in category.train}


def test_validation_images_decide_where_there_are_any():
    """They are predicted after the test images; training images stay all."""
    extra = toy_category(n_train=3).train
    category = replace(toy_category(n_train=21), validation=extra)
    for mode in (None, "folder"):
        made = plan(category, mode)
        assert made.mode == "folder" and made.category.train == category.train
        assert made.category.test == category.test + extra
        assert made.deciding.tolist() == [8, 9, 10] and made.reported.tolist() == list(range(8))
    assert plan(category, "same-as-test").category is category
    assert plan(category, "none").deciding.size == 2
    assert plan(toy_category()).mode == "same-as-test"


def test_every_mode_is_described(rng):
    maps, scores, _ = predictions(rng)
    texts = {
        describe(thresholds_of(mode, maps, scores, np.zeros(6), np.arange(6))).partition(":")[0]
        for mode in (*MODES, "given")
    }
    assert len(texts) == len(MODES) + 1
    assert set(THRESHOLDS) == set(MODES)  # in the report


@pytest.mark.parametrize(
    "category, mode, sentence",
    [
        (toy_category(n_good=1, n_bad=0), "split", "at least two test images, but toy has 1"),
        (toy_category(n_train=1), "none", "toy has only 1"),
        (toy_category(), "half", "must be one of same-as-test, split, none, folder,"),
        (toy_category(), "folder", "in validation/good, but toy has none; add normal images there"),
    ],
)
def test_too_few_images_and_unknown_modes_are_refused(category, mode, sentence):
    with pytest.raises(InputError, match=sentence):
        plan(category, mode)


def predictions(rng, n=6):
    maps = rng.standard_normal((n, 5, 4)).astype(np.float32)
    masks = rng.random((n, 5, 4)) < 0.3
    return maps, maps.max((1, 2)), masks


def test_thresholds_come_from_the_deciding_images_alone(rng):
    maps, scores, masks = predictions(rng)
    labels, deciding = np.array([0, 1, 0, 1, 0, 1]), np.array([1, 2, 5])
    found = thresholds_of("split", maps, scores, labels, deciding, masks=lambda: masks)
    threshold, f1 = f1_threshold(scores[deciding], labels[deciding])
    assert (found["image"]["threshold"], found["image"]["f1"]) == (threshold, f1)
    assert found["image"]["minimum"] == scores[deciding].min()
    threshold, f1 = f1_threshold(maps[deciding].ravel(), masks[deciding].ravel())
    assert (found["pixel"]["threshold"], found["pixel"]["f1"]) == (threshold, f1)
    assert found["pixel"]["maximum"] == maps[deciding].max()
    assert (found["n_normal"], found["n_anomalous"]) == (1, 2)
    maps[[0, 3, 4]] = np.nan
    scores[[0, 3, 4]] = np.nan
    assert thresholds_of("split", maps, scores, labels, deciding, masks=lambda: masks) == found


def test_only_normal_images_give_a_percentile_and_say_so(rng):
    maps, scores, _ = predictions(rng)
    labels, deciding = np.zeros(6), np.arange(6)
    found = thresholds_of("none", maps, scores, labels, deciding, rules=Rules(75))
    assert found["image"]["threshold"] == np.sort(scores)[4] == percentile_threshold(scores, 75)
    assert found["pixel"]["threshold"] == np.nextafter(maps.max(), np.float32(np.inf))
    assert found["image"]["f1"] is None and found["image"]["rule"] == "percentile"
    assert "only normal images: percentile 75" in describe(found)
    found = thresholds_of("none", maps, scores, labels, deciding)
    assert found["image"]["threshold"] == scores.max() and "their maximum" in describe(found)


def test_without_masks_the_pixels_of_normal_images_decide(rng):
    maps, scores, _ = predictions(rng)
    labels = np.array([0, 1, 0, 1, 1, 1])
    found = thresholds_of("same-as-test", maps, scores, labels, np.arange(6))
    assert found["image"]["rule"] == "f1" and found["pixel"]["rule"] == "false_alarms"
    assert found["pixel"]["threshold"] == np.nextafter(maps[[0, 2]].max(), np.float32(np.inf))
    found = thresholds_of("same-as-test", maps, scores, labels, np.array([1, 3]))
    assert found["pixel"] is None and "neither a mask nor a normal image" in describe(found)


def test_a_score_that_is_not_finite_is_refused(rng):
    maps, scores, _ = predictions(rng)
    made = plan(toy_category(n_good=6, n_bad=0))
    assert find_thresholds(made, maps, scores)["n_normal"] == 6
    with pytest.raises(InputError, match="not finite"):
        find_thresholds(made, maps, np.where(scores == scores.max(), np.nan, scores))
    maps[3, 0, 0] = np.inf
    with pytest.raises(InputError, match="not finite"):
        find_thresholds(made, maps, scores)


# ------------------------------------------------------------------- the pixels' statistics


def streams(rng):
    """Maps and masks of every sort: ties, tiny and huge values, zeros of both signs."""
    for kind in range(24):
        n = int(rng.integers(1, 4))
        if kind % 3 == 0:
            maps = rng.standard_normal((n, 6, 7))
        elif kind % 3 == 1:
            maps = rng.integers(-2, 3, (n, 6, 7)) * 0.5
        else:
            maps = rng.choice([-0.0, 0.0, 1e-42, -1e-42, 3e38, -3e38, 1.0], (n, 6, 7))
        masks = rng.random((n, 6, 7)) < rng.choice([0, 0.1, 0.5, 1])
        maps = maps.astype(np.float32)
        yield maps + (np.float32(1.5) * masks if kind % 2 else np.float32(0)), masks


def test_pixel_threshold_is_the_best_f1_of_all_pixels_at_once(rng):
    for maps, masks in streams(rng):
        found = pixel_statistics(lambda: zip(maps, masks))
        assert (found["threshold"], found["f1"]) == f1_threshold(maps.ravel(), masks.ravel())
        assert (found["minimum"], found["maximum"]) == (maps.min(), maps.max())


@pytest.mark.parametrize(
    "normal, anomalous, threshold, f1",
    [
        # Zeros of both signs are one score: calling them calls both, F1 = 2 / (2 + 1).
        ([-0.0], [0.0], 0.0, 2 / 3),
        # From 3.0001 up: 2 * 1 / (2 + 2); from 1 up: 2 * 2 / (6 + 2). The smaller one wins.
        ([3.0002, 2, 2, 2], [3.0001, 1], 1.0, 0.5),
        # From 3.0002 up: 2 * 1 / (1 + 3); from 1 up: 2 * 3 / (12 + 3).
        ([3.0001] * 5 + [2] * 4, [3.0002, 1, 1], float(np.float32(3.0002)), 0.5),
    ],
)
def test_pixel_threshold_by_hand(normal, anomalous, threshold, f1):
    image_map = np.array([[*normal, *anomalous]], np.float32)
    mask = np.array([[0] * len(normal) + [1] * len(anomalous)], np.uint8)
    found = pixel_statistics(lambda: [(image_map, mask)])
    assert (found["threshold"], found["f1"]) == (threshold, f1)
    assert not any(np.signbit([found[key] for key in ("threshold", "minimum") if not found[key]]))


@pytest.mark.parametrize(
    "maps, sentence",
    [
        (np.zeros((0, 2, 2), np.float32), "at least one image"),
        (np.full((1, 2, 2), np.nan, np.float32), "not finite"),
    ],
)
def test_no_statistics_of_what_is_no_map(maps, sentence):
    with pytest.raises(InputError, match=sentence):
        pixel_statistics(lambda: ((image_map, None) for image_map in maps))


def test_precision_and_recall_are_those_of_the_threshold(rng):
    maps, _, masks = predictions(rng)
    found = pixel_statistics(lambda: zip(maps, masks))
    called = maps >= np.float32(found["threshold"])
    assert found["precision"] == (called & masks).sum() / called.sum()
    assert found["recall"] == (called & masks).sum() / masks.sum()
    harmonic = 2 / (1 / found["precision"] + 1 / found["recall"])
    assert found["f1"] == pytest.approx(harmonic, rel=1e-12)
    assert "precision" in describe(thresholds_of(
        "split", maps, maps.max((1, 2)), np.ones(6), np.arange(6), lambda: masks
    ))  # fmt: skip


def test_a_percentile_is_one_of_the_scores(rng):
    """NumPy's inverted_cdf."""
    for n in (1, 2, 7, 100):
        scores = rng.integers(0, 30, n) / 8
        for percentile in (0.01, 1 / 3, 50, 99.9, 100):
            expected = np.percentile(scores, percentile, method="inverted_cdf")
            assert percentile_threshold(scores, percentile) == expected


@pytest.mark.parametrize("scores, percentile, sentence", [
    (np.array([]), 100, "needs at least one image"),
    (np.zeros(3), 0, "above 0 and at most 100, not 0"),
    (np.zeros(3), 100.5, "not 100.5"),
])  # fmt: skip
def test_a_percentile_of_nothing_or_out_of_range_is_refused(scores, percentile, sentence):
    with pytest.raises(InputError, match=sentence):
        percentile_threshold(scores, percentile)


# ------------------------------------------------------------------ false alarms and marks


@pytest.mark.parametrize("size", [(5, 4), (9, 11)])
@pytest.mark.parametrize("min_area", [1, 3])
@pytest.mark.parametrize("rate", [0, 0.1, 0.29, 0.5, 0.99])
def test_the_pixel_threshold_is_the_smallest_at_which_few_enough_normal_images_are_marked(
    rng, rate, min_area, size
):
    """By counting marks at the threshold and at the next float32 below it."""
    maps, scores, _ = predictions(rng, 17)
    maps[3:6] = np.round(maps[3:6])  # ties
    roi = rng.random(size) < 0.8
    found = thresholds_of(
        "none", maps, scores, np.zeros(17), np.arange(17),
        rules=Rules(false_alarms=rate, min_area=min_area, roi=roi), size_of=lambda k: size,
    )["pixel"]  # fmt: skip

    def alarms(threshold):
        return sum(
            marks(enlarge(image_map, size), threshold, min_area, roi).any() for image_map in maps
        )

    assert found["rule"] == "false_alarms" and found["false_alarms"] == rate
    below = np.nextafter(np.float32(found["threshold"]), np.float32(-np.inf))
    assert alarms(found["threshold"]) <= rate * 17 < alarms(below)


@pytest.mark.parametrize("sizes", [[(5, 4)] * 6, [(9, 11), (3, 2), (5, 4)] * 2])
def test_mean_and_deviation_are_those_of_all_pixels_of_the_normal_images(rng, sizes):
    """NumPy's on the concatenation of the maps, each at its image's own size."""
    maps, scores, _ = predictions(rng)
    maps += 1000 * np.arange(6, dtype=np.float32)[:, None, None]
    chosen = np.array([1, 2, 5])
    found = thresholds_of(
        "folder", maps, scores, np.zeros(6), chosen, size_of=sizes.__getitem__, deviations=3.0
    )
    pixels = np.concatenate([enlarge(maps[k], sizes[k]).ravel() for k in chosen]).astype(float)
    part = found["pixel"]
    expected = pixels.mean() + 3 * pixels.std()
    assert 0 <= part["threshold"] - expected <= np.spacing(np.float32(expected))
    assert (part["rule"], part["deviations"], part["f1"]) == ("deviations", 3.0, None)
    assert (part["minimum"], part["maximum"]) == (maps[chosen].min(), maps[chosen].max())
    said = f"{part['threshold']:.5g} (mean of all pixels of 3 normal images plus 3 standard dev"
    assert said in describe(found)
    check_thresholds(found, "thresholds.json")


def test_deviations_by_hand():
    """Of 1 3 5 7 the mean is 4 and the variance (9 + 1 + 1 + 9) / 4 = 5; of one value, 0."""
    arrays = [np.array([[1.0]], np.float32), np.array([3.0, 5.0, 7.0])]
    assert deviation_threshold(arrays, 2) == pytest.approx(4 + 2 * 5**0.5, rel=1e-15)
    assert deviation_threshold([np.array([2.5])], 3) == 2.5


def test_deviations_are_of_the_region_of_interest_and_give_way_to_false_alarms_and_masks(rng):
    maps, scores, masks = predictions(rng)
    normal, roi = np.zeros(6), rng.random((5, 4)) < 0.5

    def part(labels, **rules):
        return thresholds_of(
            "folder", maps, scores, labels, np.arange(6), lambda: masks, Rules(**rules),
            deviations=2.0,
        )["pixel"]  # fmt: skip

    inside = maps[:, roi].astype(float)
    assert part(normal, roi=roi)["threshold"] == pytest.approx(inside.mean() + 2 * inside.std())
    assert part(normal, false_alarms=0.0)["rule"] == "false_alarms"
    assert part(np.arange(6) % 2)["rule"] == "f1"  # --validation same-as-test
    maps[0, 0, 0] = np.nan
    with pytest.raises(InputError, match="not finite"):
        part(normal)


def test_a_category_says_how_many_deviations(rng):
    """So does MVTec AD 2, and no other data set."""
    maps, scores, _ = predictions(rng)
    category = replace(toy_category(6, 3, 0, side=5), validation=toy_category(3, side=5).train)
    for evaluation, rule in ((mvtec2.EVALUATION, "deviations"), (Evaluation(), "false_alarms")):
        made = plan(replace(category, evaluation=evaluation))
        found = find_thresholds(made, maps, scores)
        assert found["pixel"]["rule"] == rule and found["n_normal"] == 3


def test_a_given_rate_decides_before_masks_do(rng):
    maps, scores, masks = predictions(rng)
    labels = np.array([0, 1, 0, 1, 0, 1])
    found = thresholds_of(
        "split", maps, scores, labels, np.arange(6), lambda: masks, Rules(false_alarms=0.4)
    )
    second = np.sort(maps[[0, 2, 4]].max((1, 2)))[-2]
    assert found["pixel"]["threshold"] == np.nextafter(second, np.float32(np.inf))
    assert found["image"]["rule"] == "f1"
    assert "at most 40.00% of 3 normal images" in describe(found)
    assert "no rate below 33.33% can be guaranteed" in describe(found)


def test_a_rate_is_the_share_that_its_digits_say():
    assert [allowed_alarms(rate, 100) for rate in (0, 0.29, 0.57, 0.999)] == [0, 29, 57, 99]
    assert allowed_alarms(0.1, 30) == 3 and allowed_alarms(0.0999, 30) == 2
    assert false_alarm_threshold([1.0, 3.0, 2.0], 0) == np.nextafter(np.float32(3), np.float32(4))


def test_doubtful_thresholds_are_said_to_be_so(rng):
    maps, scores, masks = predictions(rng, 40)
    labels = np.arange(40) < 2
    few = thresholds_of("split", maps, scores, labels, np.arange(6), lambda: masks)
    assert any("only 6 images decided the thresholds; 20 or more" in text for text in doubts(few))
    masks[2:] = False
    masks[:2] = maps[:2] == maps[:2].min((1, 2), keepdims=True)
    low = thresholds_of("split", maps, -scores, labels, np.arange(40), lambda: masks)
    assert low["pixel"]["f1"] < 0.3
    (text,) = [text for text in doubts(low) if "pixel" in text]
    assert f"F1 of only {low['pixel']['f1']:.2f}" in text
    sure = thresholds_of("none", maps, scores, np.zeros(40), np.arange(40))
    assert doubts(sure) == []


# ------------------------------------------------------------------------- normalisation


def f1_by_counting(scores, labels, threshold):
    called = [s >= threshold for s in scores]
    hits = sum(c and a for c, a in zip(called, labels))
    return 2 * hits / (sum(called) + sum(labels))


def test_by_hand():
    """Scores 1 2 3 4, anomalous 2 and 4: calling 2, 3, 4 gives F1 = 2*2 / (3 + 2) = 0.8."""
    assert f1_threshold(np.array([1.0, 2, 3, 4]), np.array([0, 1, 0, 1])) == (2.0, 0.8)


def test_equal_scores_are_one_threshold():
    """2 2 with one anomalous: both are called, F1 = 2 / (2 + 1)."""
    threshold, f1 = f1_threshold(np.array([1.0, 2, 2]), np.array([0, 0, 1]))
    assert threshold == 2.0 and f1 == 2 / 3


def test_no_other_threshold_is_better_and_the_smallest_of_the_best_is_taken(rng):
    for _ in range(50):
        scores = rng.integers(0, 6, 12).astype(np.float32)
        labels = rng.integers(0, 2, 12)
        labels[0] = 1
        threshold, f1 = f1_threshold(scores, labels)
        candidates = {float(s): f1_by_counting(scores, labels, s) for s in scores}
        best = max(candidates.values())
        assert f1 == best
        assert threshold == min(s for s, value in candidates.items() if value == best)


def test_without_anomalies_the_threshold_is_the_largest_score():
    assert f1_threshold(np.array([1.0, 5, 2]), np.zeros(3)) == (5.0, None)


@pytest.mark.parametrize(
    "scores, labels, sentence",
    [
        ([], [], "at least one score"),
        ([1.0, 2.0], [1], "a label"),
        ([[1.0, 2.0]], [[0, 1]], "at least one score"),
        ([1.0, np.nan], [0, 1], "scores holds a NaN at index \\(1\\)"),
        ([1.0, 2.0], [1, np.nan], "labels holds a NaN at index \\(1\\)"),
    ],
)
def test_no_threshold_without_scores_or_of_nan(scores, labels, sentence):
    with pytest.raises(InputError, match=sentence):
        f1_threshold(scores, labels)


def test_thresholds_take_arrays_and_lists(rng):
    """Masks as one array, labels and deciding images as lists: what callables and arrays give."""
    maps, masks = rng.random((4, 5, 6)), rng.random((4, 5, 6)) > 0.8
    scores, labels, deciding = maps.max((1, 2)), np.array([0, 1, 1, 0]), np.arange(4)
    found = thresholds_of("given", maps, scores, labels, deciding, lambda: iter(masks))
    assert found["pixel"]["f1"] is not None
    assert found == thresholds_of("given", maps, scores, labels, deciding, masks)
    lists = scores.tolist(), labels.tolist(), deciding.tolist()
    assert found == thresholds_of("given", maps, *lists, masks)
    for threshold in (percentile_threshold, false_alarm_threshold):
        assert threshold(scores, 1) == threshold(scores.tolist(), 1)


def test_the_threshold_becomes_one_half(rng):
    values = rng.standard_normal(20)
    threshold, low, high = float(np.median(values)), values.min(), values.max()
    scaled = normalize(values, threshold, low, high)
    np.testing.assert_array_equal(scaled >= 0.5, values >= threshold)
    assert normalize(np.array([threshold]), threshold, low, high) == 0.5
    assert scaled.min() >= 0 and scaled.max() <= 1


def test_values_far_out_are_clamped():
    np.testing.assert_array_equal(normalize(np.array([-9.0, 9.0]), 0.5, 0.0, 1.0), [0, 1])


def test_a_range_of_zero_says_below_at_or_above():
    np.testing.assert_array_equal(normalize(np.array([1.0, 2, 3]), 2.0, 2.0, 2.0), [0, 0.5, 1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_kept(dtype):
    assert normalize(np.zeros(2, dtype), 0.0, 0.0, 1.0).dtype == dtype
