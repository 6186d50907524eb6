"""Golden files: the committed bundle is what this machine computes, and FORMAT.md describes it.

The files in tiled_ref/golden/reference are written by hand, with
`python -m tiled_ref.golden export tiled_ref/golden/reference`; tests export to temporary
folders only.
"""

import dataclasses
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from sources import ROOT

from tiled_ref.data.images import decode_image
from tiled_ref.golden import backbone, images, metrics, npy, pictures, tiny
from tiled_ref.golden.__main__ import main
from tiled_ref.golden.bundle import Bundle
from tiled_ref.golden.compare import close
from tiled_ref.golden.export import DOCUMENTS, export
from tiled_ref.golden.numbers import Numbers
from tiled_ref.golden.stage import FLAGS, Case
from tiled_ref.models.padim import Padim
from tiled_ref.support.errors import InputError

GOLDEN = ROOT / "tiled_ref" / "golden" / "reference"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A bundle that this machine exports."""
    folder = tmp_path_factory.mktemp("golden") / "bundle"
    assert main(["export", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def manifest():
    return Bundle(GOLDEN).manifest


def test_exporting_again_stays_within_the_compare_classes(exported, tmp_path, capsys):
    file = tmp_path / "report.json"
    status = main(["check", str(exported), "--reference", str(GOLDEN), "--json", str(file)])
    found = json.loads(file.read_text("utf-8"))
    assert status == 0, found["first_failing_stage"]
    counts = found["counts"]
    assert counts["missing"] == 0 and found["extra_files"] == []
    assert counts["compared_numbers"] == Bundle(GOLDEN).manifest["counts"]["numbers"] > 150_000
    assert counts["vacuous"] < 10
    assert "OK: all 32 stages agree" in capsys.readouterr().out


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
    models = {k: v for k, v in tiny.models().items() if k == "fastflow"}
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
    inputs = images.TILE.cases()[0].inputs
    case = Case("none", {**inputs, "images": inputs["images"][:0]}, compare={"tiles": close(0, 1)})
    stage = dataclasses.replace(images.TILE, cases=lambda: [case])
    manifest = export(tmp_path, [stage], {}, "once")
    entry = manifest["stages"][0]["cases"][0]["outputs"]["tiles"]
    assert entry["compare"] == {"class": "close", "rtol": 0, "atol": 1, "measured": 0}
    assert entry["values"] == []
    assert Bundle(tmp_path).array(entry).shape == (2, 2, 0, 1, 8, 8)


# ------------------------------------------------------------------------- what it holds


def test_the_bundle_is_small_complete_and_counted(manifest):
    files = [p for p in GOLDEN.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 3_000_000
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
    assert several == ["fastflow.parameters", "reverse_distillation.parameters"]


def test_every_file_is_an_array_of_the_manifest(manifest):
    bundle = Bundle(GOLDEN)
    known = bundle.paths() | {"manifest.json", "cases.txt", *DOCUMENTS}
    assert {p.relative_to(GOLDEN).as_posix() for p in GOLDEN.rglob("*") if p.is_file()} == known
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
            npy.write(tmp_path / "a.npy", np.zeros(3, kind))
    assert not (tmp_path / "a.npy").exists()
    with open(tmp_path / "b.npy", "wb") as file:
        np.lib.format.write_array(file, np.zeros(3), version=(2, 0))
    with pytest.raises(InputError, match=r"b.npy is not .* \(version 2.0 instead of 1.0\)"):
        npy.read(tmp_path / "b.npy")


def test_the_small_backbone_halves_where_resnet18_does():
    net = backbone.backbone(backbone.drawn(backbone.SmallResNet(), "backbone"))
    shapes = [tuple(layer.shape) for layer in net(torch.zeros(2, 3, 45, 32))]
    assert shapes == [(2, 4, 12, 8), (2, 8, 6, 4), (2, 16, 3, 2)]
    padim = Padim(net, (45, 32), seed=0, device="cpu", n_channels=20)
    assert padim.embed(torch.zeros(1, 3, 45, 32)).shape == (1, 20, 12, 8)


# ------------------------------------------------------------------------------ FORMAT.md


def test_documents_travel_with_the_bundle(exported):
    for name in DOCUMENTS:
        assert (exported / name).read_bytes() == (GOLDEN / name).read_bytes()


def test_format_describes_every_stage_input_and_output(manifest):
    text = (GOLDEN / "FORMAT.md").read_text("utf-8")
    for stage in manifest["stages"]:
        part = re.search(
            rf"\n- \*\*{re.escape(stage['name'])}\*\*:(.*?)(?=\n- \*\*|\n\n)", text, re.S
        )
        assert part, stage["name"]
        if stage["name"].endswith((".parameters", ".score")):
            continue  # tensors of a model, the map of the stage before
        for case in stage["cases"]:
            for name in [*case["inputs"], *case["outputs"]]:
                start = name.rstrip("0123456789")
                known = rf"`{start}\d?`" if start != name else rf"`{name}`"
                assert re.search(known, part[1]) or name in ("grid", "weights"), (
                    stage["name"],
                    name,
                )


def test_the_reader_in_format_md_has_thirty_lines_and_reads_every_array(tmp_path):
    """The C code of FORMAT.md, compiled as it stands, prints what NumPy reads."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    reader = re.search(r"```c\n(.*?)```", (GOLDEN / "FORMAT.md").read_text("utf-8"), re.S)[1]
    function = reader[reader.index("static int npy_read") :].strip().splitlines()
    assert len(function) <= 30
    program = """
    int main(int argc, char **argv) {
        for (int k = 1; k < argc; k++) {
            Npy a;
            int status = npy_read(argv[k], &a);
            if (status) return status;
            unsigned long sum = 0;
            for (size_t b = 0; b < a.count * a.size; b++)
                sum = (sum * 31 + ((unsigned char *)a.data)[b]) % 1000003;
            printf("%s %d", a.descr, a.rank);
            for (int n = 0; n < a.rank; n++) printf(" %ld", a.shape[n]);
            printf(" %lu\\n", sum);
            free(a.data);
        }
        return 0;
    }
    """
    (tmp_path / "reader.c").write_text(reader + program)
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    subprocess.run(
        [compiler, *flags, "-o", str(tmp_path / "reader"), str(tmp_path / "reader.c")], check=True
    )
    files = sorted(GOLDEN.rglob("*.npy"))[::3]
    npy.write(tmp_path / "scalar.npy", np.float64(0.1))
    files.append(tmp_path / "scalar.npy")
    done = subprocess.run([tmp_path / "reader", *files], check=True, capture_output=True, text=True)
    for line, file in zip(done.stdout.splitlines(), files, strict=True):
        array, total = np.load(file), 0
        for byte in array.tobytes():
            total = (total * 31 + byte) % 1000003
        assert line.split() == [str(v) for v in (array.dtype.str, array.ndim, *array.shape, total)]
    (tmp_path / "cut.npy").write_bytes((tmp_path / "scalar.npy").read_bytes()[:-1])
    assert subprocess.run([tmp_path / "reader", tmp_path / "cut.npy"]).returncode == 7


def test_cases_txt_repeats_the_inputs_of_the_manifest(manifest):
    lines = iter((GOLDEN / "cases.txt").read_text("utf-8").splitlines())
    for stage in manifest["stages"]:
        for case in stage["cases"]:
            assert next(lines) == f"case {stage['name']} {case['name']} {len(case['inputs'])}"
            for name, entry in case["inputs"].items():
                first, *words = next(lines).split()
                assert first == name
                if "path" in entry:
                    assert words == [entry["path"]]
                elif "model" in entry:
                    assert words == [f"models/{entry['model']}"]
                else:
                    rank = len(entry["shape"])
                    assert words[:2] == [entry["dtype"], str(rank)]
                    assert [int(w) for w in words[2 : 2 + rank]] == entry["shape"]
                    assert [float(w) for w in words[2 + rank :]] == [
                        float(v) for v in entry["values"]
                    ]
    assert next(lines, None) is None


# -------------------------------------------------------------------------------- schemas

TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}


def violations(value, schema, root, where="$"):
    """What of JSON Schema the two schemas use; yields sentences."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        if all(list(violations(value, one, root, where)) for one in schema["anyOf"]):
            yield f"{where} is none of the alternatives"
        return
    kinds = schema.get("type", [])
    if kinds and not any(is_of_type(value, kind) for kind in np.atleast_1d(kinds)):
        yield f"{where} is no {kinds}"
        return
    if "const" in schema and value != schema["const"] or value not in schema.get("enum", [value]):
        yield f"{where} is {value!r}"
    if isinstance(value, str):
        if not re.search(schema.get("pattern", ""), value) or len(value) < schema.get(
            "minLength", 0
        ):
            yield f"{where} is {value!r}"
    if is_of_type(value, "number"):
        if not schema.get("minimum", value) <= value <= schema.get("maximum", value):
            yield f"{where} is {value!r}"
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            yield f"{where} is too short"
        for k, item in enumerate(value):
            yield from violations(item, schema.get("items", {}), root, f"{where}[{k}]")
    if isinstance(value, dict):
        known = schema.get("properties", {})
        yield from (
            f"{where} lacks {key}" for key in schema.get("required", []) if key not in value
        )
        for key, item in value.items():
            other = schema.get("additionalProperties", {})
            if key not in known and other is False:
                yield f"{where} has {key}"
            else:
                yield from violations(item, known.get(key, other or {}), root, f"{where}.{key}")


def is_of_type(value, kind):
    if kind in ("integer", "number"):
        allowed = int if kind == "integer" else (int, float)
        return isinstance(value, allowed) and not isinstance(value, bool)
    return isinstance(value, TYPES[kind])


def schema_of(name):
    return json.loads((GOLDEN / f"{name}.schema.json").read_text("utf-8"))


def test_the_manifest_is_what_its_schema_says(manifest):
    schema = schema_of("manifest")
    assert list(violations(manifest, schema, schema)) == []
    for change in (
        lambda m: m.pop("seed"),
        lambda m: m.update(more=1),
        lambda m: m["stages"][0]["cases"][0].update(flags="grey"),
        lambda m: m["models"]["backbone"]["conv1"].update(path="../conv1.npy"),
        lambda m: m["counts"].update(cases=0),
    ):
        wrong = json.loads(json.dumps(manifest))
        change(wrong)
        assert list(violations(wrong, schema, schema))


def test_reports_are_what_their_schema_says(tmp_path, capsys):
    schema = schema_of("report")
    port = tmp_path / "port"
    shutil.copytree(GOLDEN, port)
    for name, data in (
        ("tile/overlap.out.tiles.npy", None),
        ("untile/overlap.out.map.npy", b"no array"),
        ("smoothing/overlap.out.maps.npy", npy.encode(np.full((1, 48, 48), np.nan, np.float32))),
        ("normalise/several.out.images.npy", npy.encode(np.zeros(3))),
    ):
        (port / name).unlink() if data is None else (port / name).write_bytes(data)
    for folder, status in ((GOLDEN, 0), (port, 1)):
        file = tmp_path / "report.json"
        assert main(["check", str(folder), "--json", str(file)]) == status
        report = json.loads(file.read_text("utf-8"))
        assert list(violations(report, schema, schema)) == []
    kinds = {o["status"] for s in report["stages"] for o in s["outputs"]}
    assert kinds == {"ok", "missing", "unreadable", "differs", "shape"}
    capsys.readouterr()
