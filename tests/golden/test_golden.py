"""Golden files: the committed bundle is what this machine computes.

`python -m tiled_ref.golden export tiled_ref/golden/reference` writes the committed files; tests
export to temporary folders only.
"""

import dataclasses
import json

import numpy as np
import port_outputs
import pytest
import torch

from tiled_ref.data.images import decode_image
from tiled_ref.golden import backbone, images, metrics, npy, pictures, tiny
from tiled_ref.golden.__main__ import REFERENCE, main
from tiled_ref.golden.bundle import DOCUMENTS, Bundle
from tiled_ref.golden.compare import close
from tiled_ref.golden.export import export
from tiled_ref.golden.numbers import Numbers
from tiled_ref.golden.stage import FLAGS, Case
from tiled_ref.models.padim import Padim
from tiled_ref.support.errors import InputError


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A bundle that this machine exports."""
    folder = tmp_path_factory.mktemp("golden") / "bundle"
    assert main(["export", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def manifest():
    return Bundle(REFERENCE).manifest


def test_exporting_again_stays_within_the_compare_classes(exported, tmp_path, capsys):
    file = tmp_path / "report.json"
    port = port_outputs.write(exported, tmp_path / "port")
    status = main(["check", str(port), "--json", str(file)])
    found = json.loads(file.read_text("utf-8"))
    assert status == 0, found["first_failing_stage"]
    counts = found["counts"]
    assert counts["missing"] == 0 and found["extra_files"] == []
    assert counts["compared_numbers"] == Bundle(REFERENCE).manifest["counts"]["numbers"] > 150_000
    assert counts["vacuous"] < 10
    assert "OK: all 38 stages agree" in capsys.readouterr().out


def test_inputs_and_weights_are_the_same_bits_on_every_machine(exported, manifest):
    def digests(manifest):
        entries = [
            (stage["name"], case["name"], name, entry.get("sha256", entry.get("model")))
            for stage in manifest["stages"]
            for case in stage["cases"]
            for name, entry in case["inputs"].items()
        ]
        models = manifest["models"].items()
        return entries + [(m, k, e["sha256"]) for m, t in models for k, e in t.items()]

    here = digests(Bundle(exported).manifest)
    assert here == digests(manifest) and len(here) > 400


def test_export_gives_the_same_bytes_twice_and_leaves_nothing_stale(tmp_path):
    rooms = ("decode", "tile", "padim.map", "fastflow.embedding", "aupro")
    stages = [stage for stage in tiny.stages() if stage.name in rooms]
    models = {k: v for k, v in tiny.models().items() if k.startswith("fastflow")}
    first, second = tmp_path / "first", tmp_path / "second"
    export(first, stages, models, "once")
    export(second, metrics.STAGES[-3:], {}, "something else before")
    export(second, stages, models, "once")

    def contents(folder):
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}

    assert contents(first) == contents(second)


def test_a_stage_that_fails_leaves_the_old_bundle_alone(tmp_path):
    class Broken(Exception):
        pass

    def fail():
        raise Broken

    export(tmp_path / "bundle", metrics.STAGES[-1:], {}, "once")
    before = (tmp_path / "bundle" / "manifest.json").read_bytes()
    stage = images.TILE
    broken = type(stage)(**{**stage.__dict__, "cases": fail})
    with pytest.raises(Broken):
        export(tmp_path / "bundle", [broken], {}, "again")
    assert (tmp_path / "bundle" / "manifest.json").read_bytes() == before
    Bundle(tmp_path / "bundle")


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda tiles: tiles + 1, "one of the two is wrong"),
        (
            lambda tiles: tiles[0],
            r"^tile/abutting/tiles: the formula gives shape \(2, 2, 1, 8, 8\), "
            r"not \(2, 2, 2, 1, 8, 8\)$",
        ),
    ],
)
def test_export_refuses_a_reference_that_its_formula_contradicts(tmp_path, change, sentence):
    stage = images.TILE
    wrong = dataclasses.replace(
        stage, formula=lambda x: {"tiles": change(stage.formula(x)["tiles"])}
    )
    with pytest.raises(RuntimeError, match=sentence):
        export(tmp_path / "bundle", [wrong], {}, "once")
    assert not (tmp_path / "bundle" / "manifest.json").exists()


def test_an_output_without_numbers_is_exported_and_read_back(tmp_path):
    """The tiles of no image: nothing differs, and the shape is all that there is to say."""
    inputs = next(images.TILE.cases()).inputs
    case = Case("none", {**inputs, "images": inputs["images"][:0]}, compare={"tiles": close(0, 1)})
    stage = dataclasses.replace(images.TILE, cases=lambda: [case])
    manifest = export(tmp_path, [stage], {}, "once")
    entry = manifest["stages"][0]["cases"][0]["outputs"]["tiles"]
    assert entry["compare"] == {"class": "close", "rtol": 0, "atol": 1, "measured": 0}
    assert entry["values"] == []
    assert Bundle(tmp_path).array(entry).shape == (2, 2, 0, 1, 8, 8)


# ------------------------------------------------------------------------- what it holds


def test_the_bundle_is_small_complete_and_counted(manifest):
    files = [p for p in REFERENCE.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 4_000_000
    assert [stage["name"] for stage in manifest["stages"]] == [s.name for s in tiny.stages()]
    cases = [case for stage in manifest["stages"] for case in stage["cases"]]
    outputs = [entry for case in cases for entry in case["outputs"].values()]
    numbers = sum(int(np.prod(entry["shape"])) for entry in outputs)
    assert manifest["counts"] == {
        "stages": len(manifest["stages"]),
        "cases": len(cases),
        "outputs": len(outputs),
        "numbers": numbers,
    }
    ids = [case["id"] for case in cases]
    assert len(set(ids)) == len(ids) and ids[0] == "decode/rgb"
    several = [stage["name"] for stage in manifest["stages"] if len(stage["cases"]) < 2]
    assert several == ["fastflow.loss", "fastflow.parameters", "reverse_distillation.parameters"]


def test_every_file_is_an_array_of_the_manifest(manifest):
    bundle = Bundle(REFERENCE)
    files = (p for p in REFERENCE.rglob("*") if p.is_file())
    assert {p.relative_to(REFERENCE).as_posix() for p in files} == bundle.paths()
    for stage in manifest["stages"]:
        for case in stage["cases"]:
            bundle.inputs(case)  # digest, kind and shape of each are checked
            for entry in case["outputs"].values():
                bundle.array(entry)


def test_edge_cases_are_flagged_and_flags_explained(manifest):
    used = {flag for s in manifest["stages"] for case in s["cases"] for flag in case["flags"]}
    assert manifest["flags"] == {flag: FLAGS[flag] for flag in sorted(used)}
    assert set(FLAGS) - used == {"genuine"}
    wanted = {"non_divisible", "single_tile", "ties", "empty_mask", "touching_regions", "reflect",
              "grey", "palette", "alpha", "padding"}  # fmt: skip
    assert wanted <= used


def test_tolerances_stand_beside_their_measured_maximum(manifest):
    kinds = set()
    for stage in manifest["stages"]:
        for case in stage["cases"]:
            for name, entry in case["outputs"].items():
                rule = entry["compare"]
                kinds.add(rule["class"])
                where = f"{stage['name']}/{case['name']}/{name}"
                if rule["class"] == "exact":
                    assert rule["measured"] == 0, where
                elif rule["class"] == "ulp":
                    assert rule["measured"] <= rule["ulps"], where
                elif rule["class"] == "boundary":
                    assert rule["measured"] <= rule["limit"], where
                    assert rule["measured_share"] <= rule["cap"], where
    assert kinds == {"exact", "ulp", "close", "boundary"}


def test_the_smallest_generator_by_hand():
    """SplitMix64 from the state 0: the first outputs that its authors' code prints."""
    draw = Numbers("any")
    draw.state = 0
    assert [hex(v) for v in draw.bits(3).tolist()] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]
    assert draw.bits(1)[0] == 0xF88BB8A8724C81EC  # a stream goes on where it stopped
    values = Numbers("uniform").uniform(10_000)
    assert 0 <= values.min() and values.max() < 1 and abs(values.mean() - 0.5) < 0.01
    assert (values * 2**24 % 1 == 0).all()
    assert set(Numbers("integers").integers(3, 100).tolist()) == {0, 1, 2}


def test_picture_files_are_what_pillow_reads(tmp_path):
    """The PNG and JPEG files of the bundle, made byte by byte, against the decoder."""
    for case in images.DECODE.cases():
        file = case.inputs["image"]
        (tmp_path / file.name).write_bytes(file.data)
        own = images.DECODE.formula(case.inputs)["image"]
        read = decode_image(tmp_path / file.name)
        limit = 2 if "lossy" in case.flags else 0
        assert np.abs(read.astype(int) - own).max() <= limit, case.name


def test_a_jpeg_block_like_the_one_before_costs_no_bits_of_difference(tmp_path):
    """128 is where a file starts from, so the differences are 0, 0, 72, 0 and -72."""
    blocks = np.array([[128, 128, 200, 200, 128]])[..., None]
    (tmp_path / "a.jpg").write_bytes(pictures.jpeg(blocks))
    np.testing.assert_array_equal(decode_image(tmp_path / "a.jpg"), pictures.jpeg_pixels(blocks))
    assert pictures.jpeg_pixels(blocks)[3, ::8, 1].tolist() == [128, 128, 200, 200, 128]


def test_arrays_of_other_kinds_and_versions_are_refused(tmp_path):
    for kind in (np.float16, np.complex64, np.uint16):
        with pytest.raises(TypeError, match=f"^golden files hold no {np.dtype(kind)}$"):
            npy.encode(np.zeros(3, kind))
    with open(tmp_path / "b.npy", "wb") as file:
        np.lib.format.write_array(file, np.zeros(3), version=(2, 0))
    with pytest.raises(InputError, match=r"b.npy is not .* \(version 2.0 instead of 1.0\)"):
        npy.read(tmp_path / "b.npy")


def test_the_small_backbone_halves_where_resnet18_does():
    net = backbone.network(backbone.drawn(backbone.SmallResNet(), "backbone"))
    shapes = [tuple(layer.shape) for layer in net(torch.zeros(2, 3, 45, 32))]
    assert shapes == [(2, 4, 12, 8), (2, 8, 6, 4), (2, 16, 3, 2)]
    padim = Padim(net, (45, 32), seed=0, device="cpu", n_channels=20)
    assert padim.embed(torch.zeros(1, 3, 45, 32)).shape == (1, 20, 12, 8)


def test_documents_travel_with_the_bundle(exported):
    for name in DOCUMENTS:
        assert (exported / name).read_bytes() == (REFERENCE / name).read_bytes()
