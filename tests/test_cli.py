"""The command line: the job, the table, the error sentences, the exit status."""

import datetime
import json
import re
import subprocess
import sys
import traceback
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from toys import toy_category, write_category

from tiled_ref import cli
from tiled_ref.models import MODELS
from tiled_ref.models.padim import Padim
from tiled_ref.reporting.results import LEFT_OUT
from tiled_ref.support.option_types import Removed

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--image-size", "96", "--tile-size", "48", "--weights", "random", "--device", "cpu"]


@pytest.fixture
def folder(tmp_path):
    """A user's folder: train/, test/good, test/square, ground_truth/square."""
    root = tmp_path / "parts"
    write_category(root, toy_category(), "{}", "train")
    return root


def run(*argv):
    return cli.main([str(part) for part in argv])


def own(folder, *argv):
    out = folder.parent / "out"
    return run("--dataset", "folder", "--root", folder, "--out", out, *SMALL, *argv)


def test_a_users_folder_end_to_end(folder, capsys):
    assert own(folder, "--setup", "ENS9") == 0
    out, err = capsys.readouterr()
    assert "ENS-96-48-24" in out and "image AUROC" in out
    assert "fit tile 9/9" in err and "random" in err
    path = folder.parent / "out/folder/parts/padim/ENS-96-48-24/seed42/metrics.json"
    result = json.loads(path.read_text())
    assert result["weights"] == "random" and result["pixel_aupro"] > 0


def test_the_limit_on_pixels_is_an_option(folder, capsys):
    from PIL import Image

    before = Image.MAX_IMAGE_PIXELS
    assert own(folder, "--setup", "ENS4", "--max-pixels", 4000) == 2
    err = capsys.readouterr().err
    assert "is too large" in err and "raise --max-pixels" in err
    assert own(folder, "--setup", "ENS4", "--max-pixels", 10000) == 0
    assert Image.MAX_IMAGE_PIXELS == before


def test_several_setups_and_seeds_make_a_row_each(folder, capsys):
    assert own(folder, "--setup", "ST4", "ENS4", "--seed", 1, 2, "--quiet") == 0
    out, err = capsys.readouterr()
    table, note = out.split("\n\n")
    assert len(table.splitlines()) == 2 + 2 * 3  # headers, two seeds and a mean for each setup
    assert note.startswith(LEFT_OUT) and "--share-features off" in note
    assert [line for line in err.splitlines() if "random" not in line.lower()] == []


def test_notes_on_a_folder_are_said_once(folder, capsys):
    (folder / "ground_truth").rename(folder / "gt")
    (folder / "train/notes.txt").touch()
    passed = "skipped 1 file (hidden, not an image, or in the wrong place), such as "
    masks = "no masks are read, because there is no folder ground_truth; the folder gt looks like "
    passed, masks = f"parts: {passed}train/notes.txt", f"parts: {masks}masks: --masks gt uses it"
    for argv, notes in (
        (["--seed", 1, 2], [masks, passed]),
        (["--seed", 1, 2, "--masks", "gt"], [passed]),
        (["--explain", "--masks", "gt"], [passed]),
    ):
        assert own(folder, "--setup", "ENS4", *argv) == 0
        err = capsys.readouterr().err.splitlines()
        assert [line for line in err if line in (masks, passed)] == notes
        for path in (folder.parent / "out").rglob("metrics.json"):
            assert (json.loads(path.read_text())["pixel_aupro"] is None) == ("gt" not in argv)


@pytest.mark.parametrize("setup", ["SM256", "ST4", "ENS4"])
@pytest.mark.parametrize("arch", MODELS)
def test_every_architecture_runs_in_every_kind_of_setup(folder, arch, setup, capsys):
    sizes = ["--image-size", "64"] + ([] if setup == "SM256" else ["--tile-size", "32"])
    out = folder.parent / "out"
    argv = ["--dataset", "folder", "--root", folder, "--out", out, "--weights", "random"]
    argv += ["--setup", setup, "--arch", arch, "--steps", 2, "--batch-size", 4, "--quiet", *sizes]
    assert run(*argv) == 0
    (path,) = out.rglob("metrics.json")
    result = json.loads(path.read_text())
    trained = ("fastflow", "reverse_distillation")
    assert result["arch"] == arch and 0 < result["pixel_aupro"] <= 1
    assert result["switches"].get("steps") == (2 if arch in trained else None)


def test_a_table_is_all_that_quiet_prints(folder, capsys, official_weights):
    assert own(folder, "--quiet", "--weights", official_weights) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.startswith("category")


def printed_table(text):
    """Name of a row -> name of a column -> number."""
    header, _, *rows = (line.split() for line in text.strip().splitlines())
    return {
        row[0]: {name: int(cell.replace(",", "")) for name, cell in zip(header[1:], row[1:])}
        for row in rows
    }


def test_list_prints_table_3(capsys):
    """Table 3, in millions: PatchCore, PaDiM, FastFlow, Reverse Distillation."""
    assert run("--list") == 0
    counted, _, kept = map(printed_table, capsys.readouterr().out.split("\n\n"))
    archs = ["patchcore", "padim", "fastflow", "reverse_distillation"]
    exact = {name: [row[arch] for arch in archs] for name, row in counted.items()}
    assert {name: [round(n / 1e6, 1) for n in counts] for name, counts in exact.items()} == {
        "SM256": [2.8, 2.8, 9.7, 18.2],
        "SM512": [2.8, 2.8, 12.5, 18.2],
        "ST4": [2.8, 2.8, 9.7, 18.2],
        "ST9": [2.8, 2.8, 9.7, 18.2],
        "ENS4": [11.1, 11.1, 38.9, 72.7],
        "ENS9": [25.0, 25.0, 87.6, 163.5],
    }
    assert exact["SM256"] == [2_782_784, 2_782_784, 9_733_952, 18_165_952]
    assert exact["SM512"][2] == 12_486_464
    gaussians, bank = 64 * 64 * (100 + 5050), int(0.1 * 200 * 32 * 32) * 384
    for name, n_models in (("SM256", 1), ("ENS4", 4), ("ENS9", 9)):  # the backbone once
        assert kept[name]["padim"] == 2_782_784 + n_models * gaussians
        assert kept[name]["patchcore"] == 2_782_784 + n_models * bank
    one = kept["SM256"]["reverse_distillation"] - 2_782_784
    assert one > 18_165_952 - 2_782_784  # weights, and the statistics of the normalisation
    assert kept["ENS9"]["reverse_distillation"] == 2_782_784 + 9 * one


def printed_help(flag, columns, capsys, monkeypatch):
    """(text, names of all options in it) of --help or --help-all in a terminal."""
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit) as stop:
        run(flag)
    text = capsys.readouterr().out
    assert stop.value.code == 0 and max(map(len, text.splitlines())) <= 100
    return text, set(re.findall(r"(?<![\w-])--[a-z-]+", text))


@pytest.mark.parametrize("columns", ["80", "300"])
def test_help_names_ten_options_and_how_to_see_all(columns, capsys, monkeypatch):
    text, named = printed_help("--help", columns, capsys, monkeypatch)
    assert named == cli.COMMON | {"--help-all"} and len(cli.COMMON) == 10
    assert set(re.findall(r"^  (--[a-z-]+)", text, re.MULTILINE)) == cli.COMMON
    assert text.count("--help-all") == 1 and text.count("\n  tiled-ref --") == 3


@pytest.mark.parametrize("columns", ["80", "300"])
def test_help_all_names_every_option_by_room(columns, capsys, monkeypatch):
    text, named = printed_help("--help-all", columns, capsys, monkeypatch)
    actions = cli.build_parser()._actions
    known = {a.option_strings[-1] for a in actions if not isinstance(a, Removed)}
    assert named == known | {"--nproc-per-node"}
    listed = re.findall(r"^  (?:-h, )?(--[a-z-]+)", text, re.MULTILINE)
    assert sorted(listed) == sorted(known)
    assert re.findall(r"^([a-z ]+):$", text, re.MULTILINE) == [
        "options", "the method", "data", "models", "running", "serving a trained ensemble",
        "reporting", "examples",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "argv, sentence",
    [
        (["--setup", "ENS16"], "invalid choice: 'ENS16'"),
        (["--arch", "resnet"], "invalid choice: 'resnet'"),
        (["--dataset", "coco"], "invalid choice: 'coco'"),
        (["--seed", "-1"], "'-1' is not a whole number of at least 0"),
        (["--seed", "x"], "'x' is not a whole number"),
        (["--batch-size", "0"], "'0' is not a whole number of at least 1"),
        (["--image-size", "big"], "'big' is not a whole number of at least 1"),
        (["--image-size", "1x2x3"], "'1x2x3' is not a size such as 512 or 3040x4190"),
        (["--device", "tpu"], "'tpu' is not one of auto, cpu, cuda"),
        (["--device", "cuda:x"], "'cuda:x' is not one of auto, cpu, cuda"),
        (["--device", "cuda:"], "'cuda:' is not one of auto, cpu, cuda"),
        (["--share-features", "low"], "'low' is neither off nor a number of bytes"),
        (["--seam-width", "1.5"], "'1.5' is not a number from 0 to 1"),
        (["--seam-sigma", "nan"], "'nan' is not a positive number"),
        (["--unknown"], "unrecognized arguments: --unknown"),
    ],
)
def test_a_wrong_option_is_one_sentence_and_status_2(argv, sentence, capsys):
    assert run(*argv) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.startswith("tiled-ref: error: ") and said.count("\n") == 1
    assert said.endswith("; see --help-all\n")  # --help does not show most of them


@pytest.mark.parametrize(
    "argv, use",
    [
        (["--compile"], "--compile was removed: leave it out"),
        (["--memory", "2GiB"], "a cap in bytes (2GiB) was removed; use low"),
    ],
)
def test_a_removed_option_says_what_to_use(argv, use, capsys):
    assert run(*argv) == 2
    assert use in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv, sentence",
    [
        (["--tile-size", "128"], "tile's height of 128 px is larger than the image's 96 px"),
        (["--stride", "64"], "stride of 64 px is larger than the tile's height of 48 px"),
        (["--setup", "SM256"], "SM256 has no tiles, so --tile-size and --stride do not apply"),
        (["--root", "no/such/folder"], "no/such/folder"),
        (["--category", "screw"], "screw"),
        (["--weights", "no/such/file.pth"], "no/such/file.pth"),
        (["--title", "line 3"], "--title is the title of a report; give --report too"),
    ],
)
def test_wrong_input_is_one_sentence_and_status_2(folder, argv, sentence, capsys):
    assert own(folder, *argv) == 2
    err = capsys.readouterr().err
    last = err.strip().splitlines()[-1]
    assert last.startswith("tiled-ref: error: ") and sentence in last
    assert "Traceback" not in err


def test_the_report_gets_its_title_and_the_day(folder, monkeypatch, capsys):
    written = Mock(return_value=(folder, []))
    monkeypatch.setattr(cli, "write_report", written)
    monkeypatch.setattr(cli, "date", Mock(today=lambda: datetime.date(2026, 2, 3)))
    assert own(folder, "--setup", "ENS4", "--report", "--title", "a\n<b>\udcff") == 0
    written.assert_called_once_with(folder.parent / "out", r"a\n<b>\xff", "2026-02-03")


def test_an_output_folder_that_is_a_file_is_refused_before_any_work(folder, capsys):
    (folder.parent / "taken").write_text("")
    assert own(folder, "--out", folder.parent / "taken") == 2
    err = capsys.readouterr().err
    assert "cannot create the folder" in err and "decode" not in err


def test_a_kernel_that_is_not_built_is_an_error_with_the_command(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tiled_ref._aupro", None)
    assert own(folder) == 2
    assert "python setup.py build_ext --inplace" in capsys.readouterr().err
    assert own(folder, "--impl", "numpy", "--setup", "ENS4") == 0


def test_debug_shows_the_traceback(folder, capsys):
    assert own(folder, "--tile-size", "128", "--debug") == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and err.strip().splitlines()[-1].startswith("tiled-ref: error: ")


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_an_interrupt_is_one_line_and_status_130(folder, capsys, monkeypatch, debug):
    monkeypatch.setattr(cli, "run_cell", Mock(side_effect=KeyboardInterrupt))
    assert own(folder, *debug) == 130
    err = capsys.readouterr().err
    assert err.strip().splitlines()[-1] == (
        "tiled-ref: interrupted; the same command with --resume continues"
    )
    assert ("Traceback" in err) == bool(debug)


@pytest.mark.parametrize("number, how", [(2, "interrupted"), (15, "terminated")])
def test_a_signal_is_told_by_its_number_and_no_other_disturbs(
    folder, capsys, monkeypatch, number, how
):
    ignore = Mock()
    monkeypatch.setattr(cli, "run_cell", Mock(side_effect=KeyboardInterrupt(number, ignore)))
    assert own(folder) == 128 + number
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == f"tiled-ref: {how}; the same command with --resume continues"
    ignore.assert_called_once_with()


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_running_out_of_memory_is_one_sentence(folder, capsys, monkeypatch, debug):
    error = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0")
    monkeypatch.setattr(cli, "run_cell", Mock(side_effect=error))
    assert own(folder, *debug) == 2
    err = capsys.readouterr().err
    last = err.strip().splitlines()[-1]
    assert last.startswith("tiled-ref: error: out of memory (CUDA out of memory); choose a smaller")
    assert ("Traceback" in err) == bool(debug)


def test_a_mistake_of_the_program_is_raised_as_it_is(folder, monkeypatch):
    monkeypatch.setattr(cli, "run_cell", Mock(side_effect=ZeroDivisionError("a mistake")))
    with pytest.raises(ZeroDivisionError, match="a mistake"):
        own(folder)


def test_a_cuda_device_that_is_not_there_is_named(folder, capsys, monkeypatch):
    if not torch.cuda.is_available():
        assert own(folder, "--device", "cuda:0") == 2
        assert "torch finds no CUDA device" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert own(folder, "--device", "cuda:2") == 2
    assert "--device cuda:2: there are 2 CUDA devices, numbered from 0" in capsys.readouterr().err


def test_run_py_is_the_same_program(folder):
    command = [sys.executable, "run.py", "--dataset", "folder", "--root", str(folder)]
    command += ["--out", str(folder.parent / "out"), "--setup", "ENS4", "--quiet", *SMALL]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ENS-96-48-48" in done.stdout
    broken = subprocess.run(
        [*command, "--root", "nowhere"], cwd=ROOT, capture_output=True, text=True
    )
    assert broken.returncode == 2 and "Traceback" not in broken.stderr


def test_the_way_from_the_command_to_a_models_training_is_short(folder, monkeypatch):
    """At most five frames in three files, cli.main and the caller of Model.fit both counted."""
    seen, fit = [], Padim.fit

    def watched(*args, **kwargs):
        seen.append(traceback.extract_stack()[:-1])
        return fit(*args, **kwargs)

    monkeypatch.setattr(Padim, "fit", watched)
    assert own(folder, "--quiet") == 0
    package = str(Path(cli.__file__).parent)
    frames = [frame for frame in seen[0] if frame.filename.startswith(package)]
    assert (frames[0].name, frames[-1].name) == ("main", "each_location")
    assert len(frames) <= 5 and len({frame.filename for frame in frames}) <= 3
