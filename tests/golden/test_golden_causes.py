"""The checker: every known mistake is named, compare classes and formulas are right by hand."""

import dataclasses
import re
import warnings

import numpy as np
import pytest
import torch

from tiled_ref.golden import formulas, tiny, training
from tiled_ref.golden.__main__ import REFERENCE
from tiled_ref.golden.bundle import Bundle
from tiled_ref.golden.causes import likely_causes
from tiled_ref.golden.check import Result, StageResult
from tiled_ref.golden.compare import EXACT, Compare, boundary, close, compare, ulp, ulps_apart
from tiled_ref.golden.report import count

STAGES = {stage.name: stage for stage in tiny.stages()}


@pytest.fixture(scope="module")
def bundle():
    return Bundle(REFERENCE)


# ------------------------------------------------------------------------ likely causes


def results_of(bundle, entry, numbers):
    """Results of a port that computes numbers(case) where the stage's outputs are known."""
    results = []
    for case in entry["cases"]:
        wrong = numbers(bundle.inputs(case))
        for name, output in case["outputs"].items():
            reference = bundle.array(output)
            result = Result(case["name"], name, Compare.from_json(output["compare"]), reference)
            value = wrong.get(name)
            result.port = reference if value is None else np.asarray(value).astype(reference.dtype)
            if result.port.shape != reference.shape:
                result.status = "shape"
            else:
                result.verdict = compare(result.port, reference, result.rule)
                result.status = "ok" if result.verdict.ok else "differs"
            results.append(result)
    return results


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
@pytest.mark.parametrize("name", STAGES)
def test_every_known_mistake_shows_and_is_named_first(bundle, name):
    """A port made by the formula with the mistake: some case shows it, and the checker names it."""
    done = {}

    def remembered(inputs, **switches):
        key = repr(switches), *(id(value) for value in inputs.values())
        if key not in done:
            done[key] = STAGES[name].formula(inputs, **switches), inputs
        return done[key][0]

    stage = dataclasses.replace(STAGES[name], formula=remembered)
    entry = next(s for s in bundle.stages if s["name"] == name)
    cases = {case["name"]: case for case in entry["cases"]}
    assert stage.mistakes
    with np.errstate(all="ignore"):
        for mistake in stage.mistakes:
            results = results_of(bundle, entry, lambda x: remembered(x, **mistake.switches))
            assert any(not r.ok for r in results), f"no case sees: {mistake.sentence}"
            causes = likely_causes(stage, results, bundle, cases)
            assert causes and causes[0] == mistake.sentence


def one_stage(bundle, name, change):
    """Likely causes where a port gives change(reference) for every output of a stage."""
    entry = next(s for s in bundle.stages if s["name"] == name)
    results = []
    for case in entry["cases"]:
        for key, output in case["outputs"].items():
            reference = bundle.array(output)
            rule = Compare.from_json(output["compare"])
            result = Result(case["name"], key, rule, reference, change(reference))
            if result.port.shape == reference.shape:
                result.verdict = compare(result.port, reference, rule)
                result.status = "ok" if result.verdict.ok else "differs"
            else:
                result.status = "shape"
            results.append(result)
    cases = {case["name"]: case for case in entry["cases"]}
    return likely_causes(STAGES[name], results, bundle, cases)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda a: a * 3, "3 times the reference"),
        (lambda a: a * np.float32(1.0003), "1.0003 times the reference"),
        (lambda a: a + 7, "the reference plus 7"),
        (lambda a: np.zeros_like(a), "was never filled"),
        (lambda a: np.full_like(a, np.nan), "NaN"),
        (lambda a: np.flip(a, 1), "axis 1 is reversed"),
        (lambda a: np.ascontiguousarray(a.swapaxes(1, 2)), "rows and columns are exchanged"),
        (lambda a: a.swapaxes(1, 2).reshape(a.shape), "rows and columns are exchanged"),
        (lambda a: a.astype(np.float16).astype(a.dtype), "rounding to 10 bits, as TF32"),
        (lambda a: a**2, "a square root is missing"),
        (lambda a: np.sqrt(np.abs(a)), "one square root too many"),
        (lambda a: np.moveaxis(a, 0, -1), "the axes are in another order"),
        (lambda a: a[..., 1:], "the array has another shape"),
    ],
)
def test_without_a_known_mistake_the_numbers_themselves_are_described(bundle, change, words):
    causes = one_stage(bundle, "smoothing", change)
    assert words in next(cause for cause in causes if not cause.startswith("partly like"))


def test_an_output_that_a_mistake_says_nothing_about_does_not_speak_against_it(bundle):
    """The squared distance, and a map that is right: the mistake would have changed the map,
    unless the formula leaves it out."""
    entry = next(s for s in bundle.stages if s["name"] == "padim.map")
    cases = {case["name"]: case for case in entry["cases"]}
    stage = STAGES["padim.map"]
    (mistake,) = [c for c in stage.mistakes if c.switches == {"root": False}]

    def distances(inputs, **switches):
        return {"distances": stage.formula(inputs, **switches)["distances"]}

    results = results_of(bundle, entry, lambda x: distances(x, **mistake.switches))
    assert {r.output for r in results if not r.ok} == {"distances"}
    silent = dataclasses.replace(stage, formula=distances)
    assert likely_causes(silent, results, bundle, cases)[0] == mistake.sentence
    assert likely_causes(stage, results, bundle, cases)[0] == mistake.sentence  # made there alone
    one = next(r for r in results if not r.ok)
    one.port, one.status = one.reference, "ok"  # where the mistake would have shown
    denied = likely_causes(stage, results, bundle, cases)
    assert not any(cause == mistake.sentence for cause in denied)
    assert any(cause.startswith(f"partly like: {mistake.sentence} (explains") for cause in denied)


def test_a_mask_without_a_true_value_gives_no_warning(bundle):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert one_stage(bundle, "seam_mask", np.logical_not) == []


def test_in_the_only_case_equal_outputs_of_any_name_contradict_a_mistake(bundle):
    """Weights as of a reversed second moment, beside second moments that are right."""
    entry = next(s for s in bundle.stages if s["name"] == "fastflow.parameters")
    mistake = next(m for m in training.ADAM_MISTAKES if m.switches == {"reverse": "v"})
    stage = dataclasses.replace(STAGES["fastflow.parameters"], mistakes=(mistake,))

    def numbers(inputs):
        wrong = stage.formula(inputs, **mistake.switches)
        return {name: value for name, value in wrong.items() if not name.startswith("second")}

    results = results_of(bundle, entry, numbers)
    causes = likely_causes(stage, results, bundle, {c["name"]: c for c in entry["cases"]})
    assert re.fullmatch(
        rf"partly like: {re.escape(mistake.sentence)} "
        r"\(explains (\d+) of \1 differing outputs, but would change \d+ of \d+ equal ones\)",
        causes[-1],
    )


@pytest.mark.parametrize("n, partly", [(3, True), (4, False)])
def test_a_mistake_that_explains_half_is_only_partly_like_the_port(bundle, n, partly):
    """In n of six wrong maps sigma is halved, the others are too large."""
    entry = next(s for s in bundle.stages if s["name"] == "smoothing")
    entry = {**entry, "cases": [c for c in entry["cases"] if c["name"] != "single_tile"][:6]}
    halved = [id(bundle.inputs(case)) for case in entry["cases"][:n]]
    stage = STAGES["smoothing"]

    def numbers(inputs):
        right = stage.formula(inputs)
        wrong = {"maps": right["maps"] + 7}
        return stage.formula(inputs, of=0.5) if id(inputs) in halved else wrong

    results = results_of(bundle, entry, numbers)
    causes = likely_causes(stage, results, bundle, {c["name"]: c for c in entry["cases"]})
    start = "partly like: " if partly else ""
    assert causes[0] == f"{start}sigma is halved (explains {n} of 6 differing outputs)"


def test_two_forms_of_a_mistake_that_explain_as_much_are_one_sentence(bundle):
    """Ties in either order: one wrong output has the first order, the other the last."""
    entry = next(s for s in bundle.stages if s["name"] == "aupro")
    stage, forms = STAGES["aupro"], {"ties": "first", "two_values": "last"}
    form_of = {id(bundle.inputs(c)): forms.get(c["name"]) for c in entry["cases"]}

    def numbers(inputs):
        form = form_of[id(inputs)]
        return stage.formula(inputs, ties=form) if form else {}

    results = results_of(bundle, entry, numbers)
    assert [r.case for r in results if not r.ok] == list(forms)
    causes = likely_causes(stage, results, bundle, {c["name"]: c for c in entry["cases"]})
    forms = [cause for cause in causes if cause.startswith("partly like: ties are not merged")]
    assert [cause.partition(" (")[2] for cause in forms] == [
        "explains 1 of 2 differing outputs, but would change 1 of 11 equal ones)"
    ]


# ---------------------------------------------------------------------- compare classes


def test_compare_classes_by_hand():
    one = np.float32(1)
    reference = np.array([1.0, 2.0, 0.0, np.inf, np.nan], np.float32)
    next_up = np.nextafter(reference, np.float32(np.inf), dtype=np.float32)
    assert compare(reference, reference, EXACT).ok
    assert compare(np.array([1.0, 2, -0.0, np.inf, np.nan], np.float32), reference, EXACT).ok
    assert not compare(next_up[:1], reference[:1], EXACT).ok
    assert compare(next_up, reference, ulp(1)).ok and not compare(next_up, reference, ulp(0)).ok
    assert not compare(-reference[3:4], reference[3:4], close(1, 1)).ok  # infinities differ
    assert not compare(np.array([np.nan]), np.array([1.0]), close(9, 9)).ok
    assert compare(np.array([1.1]), np.array([1.0]), close(0, 0.11)).ok
    assert compare(np.array([110.0]), np.array([100.0]), close(0.1, 0)).ok
    assert not compare(np.array([100.0]), np.array([110.0 + 2]), close(0.1, 0)).ok
    few = np.zeros(100)
    few[:5] = 1
    rule = boundary(0, 0, 0.05, 1)
    assert compare(few, np.zeros(100), rule).ok
    few[5] = 1
    assert not compare(few, np.zeros(100), rule).ok  # too many
    few[1:] = 0
    few[0] = 2
    assert not compare(few, np.zeros(100), rule).ok  # too far
    verdict = compare(few, np.zeros(100), rule)
    assert verdict.worst == (0,) and verdict.difference == 2 and verdict.n_beyond == 1
    assert ulps_apart(np.array([-one * 2**-149]), np.array([one * 2**-149])) == 2
    assert compare(np.zeros((0, 3)), np.zeros((0, 3)), EXACT).n == 0


# ---------------------------------------------------------------------------- formulas


def test_formulas_by_hand():
    """The checker's own arithmetic, on numbers that a reader can work out."""
    assert formulas.linear_matrix(2, 4).tolist() == [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    assert formulas.linear_matrix(2, 3, align_corners=True).tolist() == [[1, 0], [0.5, 0.5], [0, 1]]
    assert formulas.nearest_matrix(3, 2).argmax(1).tolist() == [0, 1]
    matrix = formulas.blur_matrix(3, np.array([1, 2, 4, 8, 16]))
    # Places -2 .. 4 hold 2 1 0 1 2 1 0 with the mirror: row 0 gathers 1, 2, 4, 8, 16 from there.
    assert matrix[0].tolist() == [4, 2 + 8, 1 + 16]
    assert formulas.label(np.array([[[1, 0], [0, 1]]])).tolist() == [[[1, 0], [0, 1]]]
    assert formulas.label(np.array([[[1, 0], [0, 1]]]), connectivity=4).max() == 2
    assert formulas.auroc([0.1, 0.4, 0.4, 0.8], [0, 0, 1, 1]) == 0.875
    assert formulas.aupro([[[0.1, 0.4, 0.8]]], [[[0, 0, 1]]], 0.5) == 1
    for masks in (np.zeros((1, 2, 2)), np.ones((1, 2, 2))):  # no region, no normal pixel
        assert np.isnan(formulas.aupro(np.eye(2)[None], masks, 0.3))


def test_adam_of_the_formulas_is_that_of_torch():
    """Four steps. Largest difference measured: 2e-16."""
    draw = torch.Generator().manual_seed(4)
    value, *gradients = torch.randn(5, 6, dtype=torch.float64, generator=draw)
    parameter = torch.nn.Parameter(value.clone())
    options = {"lr": 0.1, "betas": (0.8, 0.9), "weight_decay": 0.3}
    torchs = torch.optim.Adam([parameter], **options)
    moments = torch.zeros(2, 6, dtype=torch.float64)
    for step, gradient in enumerate(gradients, start=1):
        parameter.grad = gradient
        torchs.step()
        moments, value = training.adam(value, gradient, moments, step, 0.1, (0.8, 0.9), 0.3)
        np.testing.assert_allclose(value, parameter.detach(), rtol=0, atol=1e-14)


def test_a_stage_that_compares_nothing_does_not_count_as_equal():
    nothing = Result("case", "map", EXACT, np.zeros((0, 4)), np.zeros((0, 4)))
    nothing.verdict = compare(nothing.port, nothing.reference, EXACT)
    number = Result("case", "score", EXACT, np.zeros(1), np.zeros(1))
    number.verdict = compare(number.port, number.reference, EXACT)
    constant = Result("case", "mask", EXACT, np.ones(5), np.ones(5))
    constant.verdict = compare(constant.port, constant.reference, EXACT)
    assert nothing.ok and not StageResult("stage", "", [nothing]).ok
    assert not StageResult("stage", "").ok and StageResult("stage", "", [nothing, number]).ok
    counts = count([StageResult("stage", "", [nothing, number, constant])])
    assert (counts["non_vacuous"], counts["vacuous"], counts["compared_numbers"]) == (1, 2, 6)
