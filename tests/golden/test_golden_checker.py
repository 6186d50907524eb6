"""The checker: every known mistake is named, and bad input is one sentence."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from sources import ROOT

from tiled_ref.golden import formulas, npy, tiny, training
from tiled_ref.golden.__main__ import main
from tiled_ref.golden.bundle import Bundle
from tiled_ref.golden.causes import likely_causes
from tiled_ref.golden.checker import Result, StageResult
from tiled_ref.golden.compare import EXACT, Compare, boundary, close, compare, ulp, ulps_apart
from tiled_ref.golden.report import count

GOLDEN = ROOT / "tiled_ref" / "golden" / "reference"
STAGES = {stage.name: stage for stage in tiny.stages()}


@pytest.fixture(scope="module")
def bundle():
    return Bundle(GOLDEN)


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
def test_every_known_mistake_of_a_stage_shows_and_is_named_first(bundle, name):
    """A port made by the formula with the mistake: some case sees it, and the checker says it."""
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
        (lambda a: a + 7, "the reference plus 7"),
        (lambda a: np.zeros_like(a), "nothing was written"),
        (lambda a: np.full_like(a, np.nan), "NaN"),
        (lambda a: np.flip(a, 1), "axis 1 runs the other way"),
        (lambda a: np.ascontiguousarray(a.swapaxes(1, 2)), "rows and columns are exchanged"),
        (lambda a: a.swapaxes(1, 2).reshape(a.shape), "rows and columns are exchanged"),
        (lambda a: a.astype(np.float16).astype(a.dtype), "rounding, half precision"),
        (lambda a: a**2, "a square root is missing"),
        (lambda a: np.sqrt(np.abs(a)), "a square root too many"),
        (lambda a: np.moveaxis(a, 0, -1), "the axes are in another order"),
        (lambda a: a[..., 1:], "the array has another shape"),
    ],
)
def test_without_a_known_mistake_the_numbers_themselves_are_described(bundle, change, words):
    assert words in one_stage(bundle, "smoothing", change)[-1]


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
    denied = likely_causes(stage, results, bundle, cases)
    assert not any(cause == mistake.sentence for cause in denied)
    assert any(cause.startswith(f"{mistake.sentence} (explains") for cause in denied)


def test_two_forms_of_a_mistake_that_explain_as_much_are_one_sentence(bundle):
    """Ties in either order: of two wrong outputs one is that of the first, one of the last."""
    entry = next(s for s in bundle.stages if s["name"] == "aupro")
    stage, forms = STAGES["aupro"], {"ties": "first", "two_values": "last"}
    form_of = {id(bundle.inputs(c)): forms.get(c["name"]) for c in entry["cases"]}

    def numbers(inputs):
        form = form_of[id(inputs)]
        return stage.formula(inputs, ties=form) if form else {}

    results = results_of(bundle, entry, numbers)
    assert [r.case for r in results if not r.ok] == list(forms)
    causes = likely_causes(stage, results, bundle, {c["name"]: c for c in entry["cases"]})
    assert [c.partition(" (")[2] for c in causes if c.startswith("ties are not merged")] == [
        "explains 1 of 2 differing outputs)"
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


# ------------------------------------------------------------------------- command line


@pytest.fixture
def port(tmp_path):
    """A copy of the bundle that stands for a port's outputs."""
    folder = tmp_path / "port"
    shutil.copytree(GOLDEN, folder)
    return folder


def checked(folder, *options):
    """Exit status and report."""
    file = folder.parent / "report.json"
    status = main(["check", str(folder), "--json", str(file), *options])
    return status, json.loads(file.read_text("utf-8"))


def refused(capsys, *arguments):
    """The sentence with which a command line is refused, exit status 2."""
    assert main([str(a) for a in arguments]) == 2
    out, error = capsys.readouterr()
    lines = error.splitlines()
    assert len(lines) == 1 and lines[0].startswith("tiled_ref.golden: error: ") and not out
    return lines[0]


def test_the_text_shows_first_values_the_largest_difference_and_its_place(port, capsys):
    file = port / "smoothing" / "overlap.out.maps.npy"
    maps = np.array(npy.read(file))
    first = maps.reshape(-1)[0]
    maps[0, 5, 7] += 2
    npy.write(file, maps)
    assert main(["check", str(port)]) == 1
    text = capsys.readouterr().out
    part = text[text.index("smoothing: ") :]
    assert re.search(rf"first values  reference +{first:.8g} ", part)
    assert re.search(rf"first values  port +{first:.8g} ", part)
    assert re.search(r"largest difference 2 at \(0, 5, 7\): reference \S+, port \S+", part)
    assert "1 of 2304 beyond" in part and "FAIL, 1 of 6 outputs" in part
    assert "FIRST FAILING STAGE: smoothing" in text and "OK, 6 outputs" in text


def test_missing_outputs_fail_and_extra_ones_are_said(port, capsys):
    (port / "manifest.json").unlink()  # it holds small outputs
    (port / "tile" / "overlap.out.tiles.npy").unlink()
    npy.write(port / "tile" / "overlap.out.more.npy", np.zeros(3))
    status, found = checked(port, "--stage", "tile", "decode")
    assert status == 1
    assert found["counts"]["missing"] == 2  # a decoded picture of one pixel is small
    assert found["extra_files"] == ["tile/overlap.out.more.npy"]
    bad = [o for s in found["stages"] for o in s["outputs"] if o["status"] == "missing"]
    assert [(o["case"], o["output"]) for o in bad] == [("one_pixel", "image"), ("overlap", "tiles")]
    assert "compared" not in bad[0] and found["first_failing_stage"] == "decode"
    text = capsys.readouterr().out
    assert "overlap/tiles: missing: there is no file" in text
    assert "1 files are not part of the bundle" in text


def test_an_empty_folder_is_all_missing_not_all_equal(tmp_path):
    (tmp_path / "port").mkdir()
    status, found = checked(tmp_path / "port")
    counts = found["counts"]
    assert status == 1 and counts["missing"] == counts["outputs"] > 200
    assert counts["compared_numbers"] == counts["non_vacuous"] == counts["stages_ok"] == 0


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


def test_stages_are_chosen_by_name_or_by_what_stands_before_the_dot(port):
    assert [s["name"] for s in checked(port, "--stage", "padim", "auroc")[1]["stages"]] == [
        "padim.embedding", "padim.parameters", "padim.map", "padim.score", "auroc",
    ]  # fmt: skip
    status, found = checked(port, "--stage", "padim.map", "--stage", "tile")
    assert status == 0 and [s["name"] for s in found["stages"]] == ["tile", "padim.map"]


def test_other_shapes_kinds_and_damaged_files_of_a_port_fail_at_their_stage(port):
    file = port / "untile" / "overlap.out.map.npy"
    maps = npy.read(file)
    for data, status in (
        (npy.encode(maps[:, :5]), "shape"),
        (npy.encode(maps.astype(np.int32)), "shape"),
        (npy.encode(maps)[:-3], "unreadable"),
        (b"", "unreadable"),
        (npy.encode(np.asfortranarray(maps)), "ok"),  # is written in C order
        (npy.encode(maps.astype(np.float64)), "ok"),
    ):
        file.write_bytes(data)
        code, found = checked(port, "--stage", "untile")
        (one,) = [o for o in found["stages"][0]["outputs"] if o["case"] == "overlap"]
        assert one["status"] == status and code == (status != "ok")
    np.save(file, np.asfortranarray(maps))
    assert checked(port, "--stage", "untile")[0] == 1
    np.save(file, np.array([{}], object), allow_pickle=True)
    assert checked(port, "--stage", "untile")[0] == 1


def test_bad_command_lines_are_one_sentence(tmp_path, capsys):
    nowhere = tmp_path / "nowhere"
    assert "there is no folder" in refused(capsys, "check", nowhere)
    assert "there is no folder" in refused(capsys, "check", GOLDEN, "--reference", nowhere)
    assert "no manifest.json" in refused(capsys, "check", GOLDEN, "--reference", tmp_path)
    assert "choose from" in refused(capsys, "check", GOLDEN, "--stage", "blurring")
    (tmp_path / "file").write_text("x")
    assert "not empty" in refused(capsys, "export", tmp_path)
    assert "genuine" in refused(capsys, "export", nowhere, "--weights", "random")
    assert "missing.pth" in refused(
        capsys, "export", nowhere, "--weights", tmp_path / "missing.pth"
    )
    assert not nowhere.exists()


def edited(tmp_path, change):
    """A bundle whose manifest is changed by change(manifest)."""
    folder = tmp_path / "edited"
    shutil.copytree(GOLDEN, folder, dirs_exist_ok=True)
    manifest = json.loads((GOLDEN / "manifest.json").read_text("utf-8"))
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return folder


def first_output(manifest, stage):
    entry = next(s for s in manifest["stages"] if s["name"] == stage)
    return next(iter(entry["cases"][0]["outputs"].values()))


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda m: m.update(version=99), "newer"),
        (lambda m: m.update(version="1"), "damaged"),
        (lambda m: m.update(format="other"), "damaged"),
        (lambda m: m.pop("stages"), "'stages' is missing"),
        (lambda m: m["stages"][0].pop("cases"), "'cases' is missing"),
        (lambda m: m["stages"].append(m["stages"][0]), "damaged"),
        (lambda m: first_output(m, "untile").update(path="../../etc/passwd"), "outside"),
        (lambda m: first_output(m, "untile").update(path="/etc/passwd"), "outside"),
        (lambda m: first_output(m, "untile").update(path="tile/overlap.out.tiles.npy"), "path"),
        (lambda m: first_output(m, "untile").update(shape=[2, 16, 15]), "states"),
        (lambda m: first_output(m, "untile").update(dtype="<f8"), "states"),
        (lambda m: first_output(m, "untile").update(dtype="O"), "damaged"),
        (lambda m: first_output(m, "untile").update(shape=[-1]), "damaged"),
        (lambda m: first_output(m, "untile").update(sha256="0" * 64), "SHA-256"),
        (lambda m: first_output(m, "aupro").update(values=[0.5]), "SHA-256"),
        (lambda m: first_output(m, "aupro").update(values=["x"]), "damaged"),
        (lambda m: first_output(m, "aupro").update(values="0.5"), "values are no list"),
        (lambda m: first_output(m, "untile").update(sha256=7), "a sha256 is no text"),
        (lambda m: first_output(m, "untile")["compare"].update({"class": "near"}), "near"),
        (lambda m: first_output(m, "untile")["compare"].update(ulps=-1), "damaged"),
    ],
)
def test_a_damaged_reference_is_refused_in_one_sentence(tmp_path, capsys, change, words):
    folder = edited(tmp_path, change)
    assert words in refused(
        capsys, "check", GOLDEN, "--reference", folder, "--stage", "untile", "aupro"
    )


def test_a_changed_or_truncated_reference_is_refused(tmp_path, capsys):
    folder = edited(tmp_path, lambda manifest: None)
    file = folder / "untile" / "overlap.out.map.npy"
    data = file.read_bytes()
    arguments = ["check", GOLDEN, "--reference", folder, "--stage", "untile"]
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "SHA-256" in refused(capsys, *arguments)
    file.unlink()
    assert "cannot read" in refused(capsys, *arguments)
    file.symlink_to(GOLDEN / "untile" / "overlap.out.map.npy")
    assert "outside" in refused(capsys, *arguments)
    manifest = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(manifest[: len(manifest) // 2])
    assert "damaged" in refused(capsys, *arguments)
    assert "cannot be read" in refused(capsys, "export", folder)
    (folder / "manifest.json").write_text("[" * 100_000)
    assert "damaged" in refused(capsys, *arguments)


def test_the_module_runs_as_a_command_and_its_exit_status_tells():
    command = [sys.executable, "-m", "tiled_ref.golden", "check"]
    run = {"capture_output": True, "text": True, "cwd": ROOT}
    done = subprocess.run([*command, str(GOLDEN), "--stage", "tile"], **run)
    assert done.returncode == 0 and "OK: all 1 stages agree" in done.stdout and not done.stderr
