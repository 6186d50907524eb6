"""FORMAT.md, cases.txt and the two schemas describe the golden files and the reports on ports."""

import json
import re
import shutil
import subprocess

import numpy as np
import port_outputs
import pytest

from tiled_ref.data.images import decode_image
from tiled_ref.golden import npy, pictures
from tiled_ref.golden.__main__ import REFERENCE, main
from tiled_ref.golden.bundle import EDITION, Bundle
from tiled_ref.golden.compare import Compare, compare


@pytest.fixture(scope="module")
def manifest():
    return Bundle(REFERENCE).manifest


def test_format_describes_every_stage_input_and_output(manifest):
    text = (REFERENCE / "FORMAT.md").read_text("utf-8")
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


def test_format_says_what_each_edition_changed(manifest):
    text = (REFERENCE / "FORMAT.md").read_text("utf-8")
    assert text.startswith(f"# Golden files, format version 1, edition {EDITION}\n")
    assert re.findall(r"^Edition (\d+):$", text, re.M) == [str(n) for n in range(2, EDITION + 1)]
    assert manifest["edition"] == EDITION


def test_the_reader_in_format_md_reads_every_array(tmp_path):
    """The C code of FORMAT.md, compiled as it stands, prints what NumPy reads."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    reader = re.search(r"```c\n(.*?)```", (REFERENCE / "FORMAT.md").read_text("utf-8"), re.S)[1]
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
    files = sorted(REFERENCE.rglob("*.npy"))[::3]
    np.save(tmp_path / "scalar.npy", np.float64(0.1))
    files.append(tmp_path / "scalar.npy")
    done = subprocess.run([tmp_path / "reader", *files], check=True, capture_output=True, text=True)
    for line, file in zip(done.stdout.splitlines(), files, strict=True):
        array, total = np.load(file), 0
        for byte in array.tobytes():
            total = (total * 31 + byte) % 1000003
        assert line.split() == [str(v) for v in (array.dtype.str, array.ndim, *array.shape, total)]
    (tmp_path / "cut.npy").write_bytes((tmp_path / "scalar.npy").read_bytes()[:-1])
    assert subprocess.run([tmp_path / "reader", tmp_path / "cut.npy"]).returncode == 7


def test_format_says_what_every_orientation_means(tmp_path):
    """Its eight formulas, against the package's decoder."""
    text = " ".join((REFERENCE / "FORMAT.md").read_text("utf-8").split())
    part = text[text.index("EXIF orientation (tag") : text.index("3 and 6 occur")]
    formulas = re.findall(r"(\d) \(((?:h|y|x)[^)]*), ([^)]*)\)", part)
    assert [int(number) for number, *_ in formulas] == list(range(1, 9))
    stored = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    for number, row, column in formulas:
        file = tmp_path / f"{number}.png"
        file.write_bytes(pictures.png(stored, pictures.RGB, orientation=int(number)))
        image = decode_image(file)
        y, x = np.indices(image.shape[:2])
        names = {"y": y, "x": x, "h": 5, "w": 7}
        np.testing.assert_array_equal(image, stored[eval(row, names), eval(column, names)])


def test_float64_is_needed_where_format_says_so():
    """Right outputs of kind <f8 rounded to float32: many are no longer equal."""
    bundle, equal = Bundle(REFERENCE), []
    for entry in bundle.outputs().values():
        if entry["dtype"] == "<f8":
            array, rule = bundle.array(entry), Compare.from_json(entry["compare"])
            equal.append(compare(array.astype(np.float32), array, rule).ok)
    assert equal.count(False) > len(equal) / 3
    assert "`<f8` need float64" in (REFERENCE / "FORMAT.md").read_text("utf-8")


def test_cases_txt_repeats_the_inputs_of_the_manifest(manifest):
    lines = iter((REFERENCE / "cases.txt").read_text("utf-8").splitlines())
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
                    given = [float(w) for w in words[2 + rank :]]
                    np.testing.assert_array_equal(given, [float(v) for v in entry["values"]])
    assert next(lines, None) is None


# -------------------------------------------------------------------------------- schemas

TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}


def violations(value, schema, root, where="$"):
    """Yields a sentence for each violation, for the part of JSON Schema that the schemas use."""
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
    return json.loads((REFERENCE / f"{name}.schema.json").read_text("utf-8"))


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
    port = port_outputs.write(REFERENCE, tmp_path / "port")
    right = port_outputs.write(REFERENCE, tmp_path / "right")
    for name, data in (
        ("tile/overlap.out.tiles.npy", None),
        ("untile/overlap.out.map.npy", b"no array"),
        ("smoothing/overlap.out.maps.npy", npy.encode(np.full((1, 48, 48), np.nan, np.float32))),
        ("normalise/several.out.images.npy", npy.encode(np.zeros(3))),
    ):
        (port / name).unlink() if data is None else (port / name).write_bytes(data)
    for folder, status in ((right, 0), (port, 1)):
        file = tmp_path / "report.json"
        assert main(["check", str(folder), "--json", str(file)]) == status
        report = json.loads(file.read_text("utf-8"))
        assert list(violations(report, schema, schema)) == []
    kinds = {o["status"] for s in report["stages"] for o in s["outputs"]}
    assert kinds == {"ok", "missing", "unreadable", "differs", "shape"}
    capsys.readouterr()
