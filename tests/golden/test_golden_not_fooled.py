"""The checker is not to be fooled, runs with NumPy alone, and its reference is one archive."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import port_outputs
import pytest
from sources import ROOT

from tiled_ref.golden import npy
from tiled_ref.golden.__main__ import REFERENCE, main
from tiled_ref.golden.bundle import Bundle, pack
from tiled_ref.support.errors import InputError

OUTPUT = "untile/overlap.out.map.npy"


@pytest.fixture
def port(tmp_path):
    """The outputs of a port that is right."""
    return port_outputs.write(REFERENCE, tmp_path / "port")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The reference as one file."""
    file = tmp_path_factory.mktemp("archive") / "golden.zip"
    assert main(["archive", str(file)]) == 0
    return file


def refused(capsys, *arguments):
    """The one line printed where a command line is refused, with exit status 2."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    out, error = capsys.readouterr()
    assert error.count("\n") == 1 and not out
    return error


# ----------------------------------------------------------------- what is no port's output


def link(folder, path):
    (folder / path).unlink(missing_ok=True)
    (folder / path).symlink_to(REFERENCE / path)


def hard_link(folder, path):
    """Of a copy of the reference beside the port, on the same disk."""
    copy = shutil.copytree(REFERENCE, folder.parent / "copy")
    (folder / path).unlink()
    os.link(copy / path, folder / path)


def copied(folder, path):
    shutil.copy(REFERENCE / path, folder / path)


def deeper(folder, path):
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(REFERENCE / (folder / path).name, folder / path)


@pytest.mark.parametrize(
    "spoil, path",
    [
        (copied, "manifest.json"),
        (copied, "cases.txt"),
        (copied, "untile/overlap.in.maps.npy"),
        (link, "untile/overlap.in.maps.npy"),
        (link, OUTPUT),
        (hard_link, OUTPUT),
        (lambda folder, path: shutil.copytree(REFERENCE / path, folder / path), "models"),
        (deeper, "deep/down/manifest.json"),
        (deeper, "tile/FORMAT.md"),
    ],
)
def test_files_of_the_reference_are_no_port(port, capsys, spoil, path):
    spoil(port, path)
    reference = port.parent / "copy" if spoil is hard_link else REFERENCE
    error = refused(capsys, "check", port, "--reference", reference, "--stage", "tile")
    assert f"{port / path}" in error and "belongs to the reference" in error


def test_an_output_that_links_to_another_file_of_the_reference_is_refused(port, archive, capsys):
    (port / OUTPUT).unlink()
    (port / OUTPUT).symlink_to(REFERENCE / "untile/abutting.out.map.npy")
    assert OUTPUT in refused(capsys, "check", port)
    assert OUTPUT in refused(capsys, "check", port, "--reference", archive)


def test_the_reference_and_links_to_it_or_to_its_folders_are_no_port(tmp_path, capsys):
    (tmp_path / "link").symlink_to(REFERENCE)
    (tmp_path / "port").mkdir()
    (tmp_path / "port" / "untile").symlink_to(REFERENCE / "untile")
    for folder in (REFERENCE, tmp_path / "link", tmp_path / "port"):
        assert "belongs to the reference" in refused(capsys, "check", folder)


def test_links_among_a_ports_own_files_are_its_own_affair(port, tmp_path, capsys):
    os.replace(port / "untile", tmp_path / "elsewhere")
    (port / "untile").symlink_to(tmp_path / "elsewhere")
    assert main(["check", str(port), "--stage", "untile"]) == 0
    np.save(tmp_path / "elsewhere" / "more.npy", np.zeros(3))  # seen behind the link too
    assert main(["check", str(port), "--stage", "untile"]) == 1
    assert "1 files are not outputs of the bundle: untile/more.npy\n" in capsys.readouterr().out
    for folder in (tmp_path / "far", port / "a"):
        folder.mkdir()
    (tmp_path / "elsewhere" / "more.npy").rename(tmp_path / "far" / "more.npy")
    (tmp_path / "far" / "loop").symlink_to(port)  # at any depth, and round in a circle
    (port / "a" / "b").symlink_to(tmp_path / "far")
    assert main(["check", str(port), "--stage", "untile"]) == 1
    assert "1 files are not outputs of the bundle: a/b/more.npy\n" in capsys.readouterr().out


def test_an_extra_output_fails(port, capsys):
    np.save(port / "tile" / "overlap.out.more.npy", np.zeros(3))
    assert main(["check", str(port), "--stage", "padim", "--json", "-"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["extra_files"] == ["tile/overlap.out.more.npy"]
    assert found["exit_status"] == 1 and found["first_failing_stage"] is None
    assert len(found["stages_not_checked"]) == 34 and "padim.map" not in found["stages_not_checked"]
    assert main(["check", str(port), "--stage", "tile"]) == 1
    text = capsys.readouterr().out
    assert "FAIL, 1 files are not outputs of the bundle: tile/overlap.out.more.npy" in text
    assert "not checked: decode, resize, " in text and "OK: all" not in text
    np.save(port / "tile\nOK: all 38 stages agree.npy", np.zeros(3))  # nor by the name of a file
    assert main(["check", str(port), "--stage", "tile"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "2 files" in lines[-1] and not any(line.startswith("OK: ") for line in lines)


def test_a_stage_that_is_claimed_fails_before_one_that_is_left_out(port, capsys):
    """What is missing counts; the first failing stage is one that the port has, if there is one."""
    shutil.rmtree(port / "decode")
    assert main(["check", str(port), "--stage", "decode", "untile"]) == 1
    assert "FIRST FAILING STAGE: decode" in capsys.readouterr().out
    (port / OUTPUT).unlink()
    assert main(["check", str(port), "--stage", "decode", "untile"]) == 1
    text = capsys.readouterr().out
    assert "FIRST FAILING STAGE: untile" in text and "  missing: overlap/map\n" in text
    assert re.search(r"  missing: \S+/image(, \S+/image)+\n  FAIL", text)


# --------------------------------------------------------------------------- broken arrays


def header(shape, descr="<f4"):
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text


MALFORMED = {  # shape in the header: numbers that follow
    "(-1,)": 1,
    "(-2, -2)": 4,
    "(-1, 0)": 0,
    str((1,) * 71): 1,
    f"(0, {2**70})": 0,
    f"(0, {2**40}, {2**40})": 0,
    f"({2**62}, 4)": 1,
    f"({'9' * 4000}, {'9' * 4000})": 1,
    "(" * 300: 1,
    "(2.0,)": 2,
    "(True, True)": 1,
    "(2, 'x')": 2,
}


def test_a_malformed_shape_is_a_finding(port, capsys):
    """One for every output of three stages, in turn."""
    shapes = itertools.cycle(MALFORMED.items())
    files = [p for name in ("tile", "untile", "aupro") for p in sorted((port / name).iterdir())]
    assert len(files) > len(MALFORMED)
    for file, (shape, numbers) in zip(files, shapes, strict=False):
        file.write_bytes(header(shape) + bytes(4 * numbers))
        with pytest.raises(InputError, match=re.escape(str(file))):
            npy.read(file)
    options = ["--stage", "tile", "untile", "aupro", "--json", "-"]
    assert main(["check", str(port), *options]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["counts"]["unreadable"] == len(files) == found["counts"]["outputs"]


def test_an_output_too_large_or_of_no_booleans_is_a_finding(port, capsys):
    os.truncate(port / OUTPUT, 1 << 42)  # sparse, more than any memory
    mask = port / "seam_mask" / "overlap.out.mask.npy"
    mask.write_bytes(mask.read_bytes()[:-1] + b"\2")
    options = ["--stage", "untile", "seam_mask", "--json", "-"]
    assert main(["check", str(port), *options]) == 1
    found = json.loads(capsys.readouterr().out)
    bad = [o["message"] for s in found["stages"] for o in s["outputs"] if o["status"] != "ok"]
    assert len(bad) == found["counts"]["unreadable"] == 2
    assert f"{1 << 42} bytes" in bad[0] and "other than 0 and 1" in bad[1]


def test_the_smallest_arrays_are_read():
    for shape in ((), (0,), (0, 3), (1,) * 8):
        array = np.ones(shape, np.float32)
        assert header(str(shape)) + array.tobytes() == npy.encode(array)
        assert npy.decode(npy.encode(array), "x").shape == shape


# ------------------------------------------------------------------------ where a report goes


def test_a_report_goes_to_a_regular_file_or_standard_output_only(port, tmp_path, capsys):
    (tmp_path / "target").write_text("before")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    for path in ("", *(tmp_path / n for n in ("link", "dangling", "pipe", "port"))):
        assert "regular file" in refused(capsys, "check", port, "--json", path)
        assert "regular file" in refused(capsys, "archive", path)
    assert "regular file" in refused(capsys, "check", port, "--json", f"{tmp_path / 'link'}/")
    assert (tmp_path / "target").read_text() == "before" and not (tmp_path / "nothing").exists()
    assert "cannot write" in refused(capsys, "check", port, "--json", tmp_path / "target" / "new")
    for _ in range(2):  # a new file, and one that is replaced
        assert main(["check", str(port), "--stage", "tile", "--json", str(tmp_path / "new")]) == 0
    file = (tmp_path / "new").read_text("utf-8")
    capsys.readouterr()
    assert main(["check", str(port), "--stage", "tile", "--json", "-"]) == 0
    assert capsys.readouterr().out == file and json.loads(file)["exit_status"] == 0


def test_a_report_and_an_archive_never_replace_what_was_read(
    port, archive, tmp_path, capsys, monkeypatch
):
    packaged = tmp_path / "packaged"
    monkeypatch.setattr("tiled_ref.golden.__main__.REFERENCE", packaged)
    (tmp_path / "linked").symlink_to(port / "tile")
    copy = shutil.copytree(REFERENCE, tmp_path / "copy")
    for path in (port / OUTPUT, tmp_path / "linked" / "new.json", packaged / "new", copy / "new"):
        options = ["--reference", copy, "--json", path]
        assert "only read" in refused(capsys, "check", port, *options)
    for reference in (copy, archive):
        path = reference if reference is archive else copy / "manifest.json"
        assert "only read" in refused(capsys, "archive", path, "--reference", reference)
    assert Bundle(copy).digest == Bundle(archive).digest and not packaged.exists()


# -------------------------------------------------------------------------------- the archive


def test_the_archives_digest_stands_in_the_readme(archive, port, capsys):
    digest = npy.sha256(archive.read_bytes())
    page = (REFERENCE.parent / "README.md").read_text("utf-8")
    assert re.findall(r"\b[0-9a-f]{64}\b", page)[0] == digest  # the other one is the second's
    assert archive.stat().st_size < 4_000_000
    with zipfile.ZipFile(archive) as opened:
        assert opened.testzip() is None
        opened.extractall(port.parent / "unpacked")
    names = {p.relative_to(REFERENCE).as_posix() for p in REFERENCE.rglob("*") if p.is_file()}
    for path in names:
        assert (port.parent / "unpacked" / path).read_bytes() == (REFERENCE / path).read_bytes()
    for reference in (archive, port.parent / "unpacked", REFERENCE):
        command = ["check", str(port), "--reference", str(reference), "--stage", "tile"]
        assert main([*command, "--expect-sha256", digest.upper()]) == 0
        assert f"SHA-256 {digest})" in capsys.readouterr().out
        assert main([*command, "--json", "-"]) == 0
        assert json.loads(capsys.readouterr().out)["reference_sha256"] == digest
    error = refused(capsys, "check", port, "--expect-sha256", "0" * 64)
    assert digest in error and "--expect-sha256; get the" in error


@pytest.mark.parametrize("what", ["tolerance", "input", "weights", "output", "FORMAT.md"])
def test_the_digest_covers_tolerances_and_inputs(tmp_path, what):
    """Each is changed as someone would who corrects the SHA-256 in the manifest too."""
    folder = shutil.copytree(REFERENCE, tmp_path / "copy")
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    case = next(s for s in manifest["stages"] if s["name"] == "untile")["cases"][0]
    before = Bundle(folder).digest
    assert before == Bundle(REFERENCE).digest
    if what == "tolerance":
        case["outputs"]["map"]["compare"]["ulps"] += 1
    elif what == "FORMAT.md":
        (folder / what).write_text("shorter", "utf-8")
    else:
        entries = {"input": case["inputs"]["maps"], "output": case["outputs"]["map"]}
        entry = entries.get(what, manifest["models"]["backbone"]["conv1"])
        data = npy.encode(npy.read(folder / entry["path"]) + 1)
        (folder / entry["path"]).write_bytes(data)
        with pytest.raises(InputError, match="SHA-256"):
            Bundle(folder).archive
        entry["sha256"] = npy.sha256(data)
    if what != "FORMAT.md":
        (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    assert Bundle(folder).digest != before


def test_another_archive_is_refused(archive, tmp_path, capsys, monkeypatch):
    with zipfile.ZipFile(archive) as opened:
        files = {name: opened.read(name) for name in opened.namelist()}
    file = tmp_path / "other.zip"

    def said(data, *options):
        file.write_bytes(data)
        return refused(capsys, "check", tmp_path, "--reference", file, *options)

    data = archive.read_bytes()
    assert "is not a ZIP file" in said(data[:-30])
    assert "is not a ZIP file" in said(b"text")
    assert "differs from what" in said(b"more" + data)
    place = data.index(files["cases.txt"]) + 1
    assert "is not a ZIP file" in said(data[:place] + b"#" + data[place + 1 :])  # its CRC-32
    assert "has no manifest.json" in said(pack({"FORMAT.md": b""}))
    assert "does not hold exactly the files" in said(pack(files | {"more.npy": b""}))
    assert "does not hold exactly" in said(pack({k: v for k, v in files.items() if k != OUTPUT}))
    assert "does not have the SHA-256" in said(pack(files | {OUTPUT: files[OUTPUT][:-1] + b"#"}))
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("manifest.json", bytes(10**7))
    monkeypatch.setattr(zipfile.ZipFile, "read", None)  # it is not even unpacked
    assert "differs from what" in said(bomb.read_bytes())


# -------------------------------------------------------------------------------- NumPy alone

ALONE = """
import sys
for name in ("torch", "torchvision", "PIL"):
    sys.modules[name] = None  # as where it is not installed
from tiled_ref.golden.__main__ import main
status = main(sys.argv[1:])
others = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
known = {"numpy", "tiled_ref", "torch", "torchvision", "PIL"}
strangers = {n for n in others - known if not n.startswith("_") and "site-packages" in
             str(getattr(sys.modules[n], "__file__", ""))}
print(sorted(strangers))
sys.exit(status)
"""


def test_the_checker_runs_with_numpy_alone(port, archive, tmp_path):
    def alone(*arguments):
        command = [sys.executable, "-c", ALONE, *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        run = {"capture_output": True, "text": True, "cwd": tmp_path, "env": environment}
        return subprocess.run(command, **run)

    done = alone("check", port)
    assert done.returncode == 0 and not done.stderr, done.stderr
    *_, verdict, strangers = done.stdout.splitlines()
    assert verdict.startswith("OK: all 38 stages agree") and strangers == "[]"
    np.save(port / OUTPUT, 3 * npy.read(port / OUTPUT))
    done = alone("check", port, "--reference", archive, "--stage", "untile")
    assert done.returncode == 1
    assert "likely cause: every number is 3 times the reference" in done.stdout
    assert done.stderr.startswith("tiled_ref.golden: known mistakes were not searched: ")
    assert "torch" in done.stderr and done.stderr.count("\n") == 1
    done = alone("export", tmp_path / "exported")
    assert done.returncode == 2
    assert re.fullmatch("tiled_ref.golden: error: .*torch.*\n", done.stderr)
    assert alone("archive", tmp_path / "again.zip").returncode == 0
    assert (tmp_path / "again.zip").read_bytes() == archive.read_bytes()
