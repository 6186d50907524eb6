"""The command line of the checker: what it prints, and that bad input is one sentence."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import port_outputs
import pytest
from sources import ROOT

from tiled_ref.golden import formulas, images, npy
from tiled_ref.golden.__main__ import REFERENCE, main
from tiled_ref.golden.bundle import EDITION, Bundle, output_path


@pytest.fixture
def port(tmp_path):
    """The outputs of a port that is right."""
    return port_outputs.write(REFERENCE, tmp_path / "port")


def checked(folder, *options):
    """Exit status and report."""
    file = folder.parent / "report.json"
    status = main(["check", str(folder), "--json", str(file), *options])
    return status, json.loads(file.read_text("utf-8"))


def refused(capsys, *arguments):
    """The one line printed where a command line is refused, with exit status 2."""
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
    np.save(file, maps)
    assert main(["check", str(port)]) == 1
    text = capsys.readouterr().out
    part = text[text.index("smoothing: ") :]
    assert re.search(rf"first values  reference +{first:.8g} ", part)
    assert re.search(rf"first values  port +{first:.8g} ", part)
    assert re.search(r"largest difference 2 at \(0, 5, 7\): reference \S+, port \S+", part)
    assert "1 of 2304 beyond" in part and "FAIL, 1 of 10 outputs" in part
    assert "FIRST FAILING STAGE: smoothing" in text and "OK, 6 outputs" in text


def test_missing_outputs_fail_and_are_listed(port, capsys):
    (port / "decode" / "one_pixel.out.image.npy").unlink()
    (port / "tile" / "overlap.out.tiles.npy").unlink()
    status, found = checked(port, "--stage", "tile", "decode")
    assert status == 1 and found["counts"]["missing"] == 2
    bad = [o for s in found["stages"] for o in s["outputs"] if o["status"] == "missing"]
    assert [(o["case"], o["output"]) for o in bad] == [("one_pixel", "image"), ("overlap", "tiles")]
    assert "compared" not in bad[0] and found["first_failing_stage"] == "decode"
    text = capsys.readouterr().out
    assert "  missing: one_pixel/image\n" in text and "  missing: overlap/tiles\n" in text


def test_an_empty_folder_is_all_missing_not_all_equal(tmp_path):
    (tmp_path / "port").mkdir()
    status, found = checked(tmp_path / "port")
    counts = found["counts"]
    assert status == 1 and counts["missing"] == counts["outputs"] > 200
    assert counts["compared_numbers"] == counts["non_vacuous"] == counts["stages_ok"] == 0


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
    assert "no such folder" in refused(capsys, "check", nowhere)
    assert "no such folder" in refused(capsys, "check", REFERENCE, "--reference", nowhere)
    assert "no manifest.json" in refused(capsys, "check", REFERENCE, "--reference", tmp_path)
    assert "choose from" in refused(capsys, "check", tmp_path, "--stage", "blurring")
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
    shutil.copytree(REFERENCE, folder, dirs_exist_ok=True)
    manifest = json.loads((REFERENCE / "manifest.json").read_text("utf-8"))
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return folder


def test_a_bundle_of_the_first_edition_does_not_state_it_and_is_read(tmp_path, capsys):
    folder = edited(tmp_path, lambda manifest: manifest.pop("edition"))
    assert Bundle(folder).edition == 1 and Bundle(REFERENCE).edition == EDITION == 5
    port = port_outputs.write(folder, tmp_path / "port")
    assert main(["check", str(port), "--reference", str(folder), "--stage", "tile"]) == 0
    assert "(edition 1, " in capsys.readouterr().out


def test_a_port_of_the_first_edition_is_told_what_has_changed(tmp_path, capsys):
    """Its rule for resizing, written out: bilinear in floating point, halves to even."""
    for case in images.RESIZE.cases():
        picture, size = case.inputs["image"].transpose(2, 0, 1), case.inputs["size"].tolist()
        image = np.rint(np.round(formulas.enlarge(picture, size), 6)).astype(np.uint8)
        file = tmp_path / output_path("resize", case.name, "image")
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(npy.encode(np.ascontiguousarray(image.transpose(1, 2, 0))))
    assert main(["check", str(tmp_path), "--stage", "resize"]) == 1
    cause = capsys.readouterr().out.splitlines()[-1]
    assert cause.startswith("LIKELY CAUSE: ") and "right in edition 1 of these files" in cause


def first_output(manifest, stage):
    entry = next(s for s in manifest["stages"] if s["name"] == stage)
    return next(iter(entry["cases"][0]["outputs"].values()))


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda m: m.update(version=99), "newer"),
        (lambda m: m.update(version="1"), "damaged"),
        (lambda m: m.update(edition=0), "damaged"),
        (lambda m: m.update(edition=True), "damaged"),
        (lambda m: m.update(format="other"), "damaged"),
        (lambda m: m.pop("stages"), "'stages' is missing"),
        (lambda m: m.update(stages=[]), "it has no stages"),
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
        (lambda m: first_output(m, "aupro").update(values="0.5"), "values are not a list"),
        (lambda m: first_output(m, "aupro").update(values=["NaN"], dtype="<i8"), "are not <i8"),
        (lambda m: first_output(m, "untile").update(bytes=3), "the kind of output untile/abutting"),
        (
            lambda m: first_output(m, "seam_mask").update(compare={"class": "ulp", "ulps": 1}),
            "the kind of output seam_mask/",
        ),
        (lambda m: first_output(m, "untile").update(sha256=7), "a sha256 is not a string"),
        (lambda m: first_output(m, "untile")["compare"].update({"class": "near"}), "near"),
        (lambda m: first_output(m, "untile")["compare"].update(ulps=-1), "damaged"),
    ],
)
def test_a_damaged_reference_is_refused_in_one_sentence(tmp_path, capsys, change, words):
    folder = edited(tmp_path, change)
    (tmp_path / "port").mkdir()
    assert words in refused(
        capsys, "check", tmp_path / "port", "--reference", folder, "--stage", "untile", "aupro"
    )


def rename_an_input(manifest):
    case = next(s for s in manifest["stages"] if s["name"] == "untile")["cases"][0]
    case["inputs"]["gird"] = case["inputs"].pop("grid")


def test_inputs_that_a_known_stage_cannot_take_are_refused(port, tmp_path, capsys):
    """Those of another edition are another matter: nothing is known of its mistakes."""
    file = port / "untile" / "abutting.out.map.npy"
    np.save(file, 3 * npy.read(file))
    arguments = ["check", port, "--stage", "untile", "--reference"]
    folder = edited(tmp_path, rename_an_input)
    assert "damaged (mistakes of untile: KeyError('grid'))" in refused(capsys, *arguments, folder)
    folder = edited(tmp_path, lambda m: (rename_an_input(m), m.update(edition=EDITION - 1)))
    assert main([str(a) for a in (*arguments, folder)]) == 1
    out, error = capsys.readouterr()
    assert "every number is 3 times" in out and f"those of edition {EDITION}" in error


def test_the_report_says_which_arithmetic_was_allowed(port, capsys):
    for name in ("float32", "bfloat16"):
        status, found = checked(port, "--stage", "tile", "--arithmetic", name)
        assert status == 0 and found["arithmetic"] == name
        assert capsys.readouterr().out.endswith(f"), in {name}\n")


def test_a_changed_or_truncated_reference_is_refused(tmp_path, capsys):
    folder = edited(tmp_path, lambda manifest: None)
    file = folder / "untile" / "overlap.out.map.npy"
    data = file.read_bytes()
    arguments = ["check", tmp_path, "--reference", folder, "--stage", "untile"]
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "SHA-256" in refused(capsys, *arguments)
    file.unlink()
    assert "cannot read" in refused(capsys, *arguments)
    file.symlink_to(REFERENCE / "untile" / "overlap.out.map.npy")
    assert "outside" in refused(capsys, *arguments)
    manifest = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(manifest[: len(manifest) // 2])
    assert "damaged" in refused(capsys, *arguments)
    assert "cannot be read" in refused(capsys, "export", folder)
    (folder / "manifest.json").write_text("[" * 100_000)
    assert "damaged" in refused(capsys, *arguments)


def test_the_module_runs_as_a_command_and_its_exit_status_tells(port):
    run = {"capture_output": True, "text": True, "cwd": ROOT}
    for words in (["tiled_ref.golden", "check"], ["tiled_ref.golden.check"]):
        command = [sys.executable, "-m", *words, str(port), "--stage", "tile"]
        done = subprocess.run(command, **run)
        assert done.returncode == 0 and "OK: all 1 stages agree" in done.stdout and not done.stderr
