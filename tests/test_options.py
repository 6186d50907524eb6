"""Every option of --help-all, each on its own, on a small folder of images."""

import time
from argparse import SUPPRESS, ArgumentTypeError
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from toys import only_mvtec2, toy_category, write_category, write_mvtec2

from tiled_ref import cli
from tiled_ref.data.disk import nfc
from tiled_ref.data.encoders import encode_png
from tiled_ref.serving import sources
from tiled_ref.support import option_types

SMALL = ["--image-size", "48", "--setup", "SM256", "--weights", "random", "--device", "cpu"]
TILES = ["--image-size", "48", "--tile-size", "24", "--setup", "ENS9"]
LOAD = ["--load", "SAVED", "--predict", "parts/test/square"]
# Option -> the arguments that use it, beside those of BASE.
USED = {
    "--setup": ["--setup", "SM512"],
    "--arch": ["--arch", "patchcore"],
    "--seed": ["--seed", "0", "1"],
    "--list": ["--list"],
    "--explain": ["--explain", "test/square/2.png"],
    "--dataset": [],  # every command here names them
    "--root": [],
    "--category": ["--category", "parts"],
    "--max-pixels": ["--max-pixels", "2304"],  # 48 x 48, as they are
    "--masks": ["--masks", "ground_truth"],
    "--weights": ["--weights", "random"],
    "--device": ["--device", "cpu"],
    "--batch-size": ["--batch-size", "2"],
    "--image-size": ["--image-size", "40x48"],
    "--tile-size": [*TILES, "--tile-size", "32x24"],
    "--stride": [*TILES, "--stride", "24"],
    "--groups": [*TILES, "--groups", "2x1"],
    "--score": [*TILES, "--score", "top:3"],
    "--merge": [*TILES, "--merge", "window"],
    "--seam-width": [*TILES, "--seam-width", "0.2"],
    "--seam-sigma": [*TILES, "--seam-sigma", "1.5"],
    "--antialias": ["--antialias"],
    "--metric-size": ["--metric-size", "original"],
    "--fpr-limit": ["--fpr-limit", "0.05"],
    "--validation": ["--validation", "split"],
    "--percentile": ["--validation", "none", "--percentile", "95"],
    "--false-alarms": ["--false-alarms", "0.5"],
    "--min-area": ["--min-area", "4"],
    "--roi": ["--roi", "white.png"],
    "--padim-channels": ["--padim-channels", "7"],
    "--store": ["--store", "float16"],
    "--steps": ["--arch", "fastflow", "--steps", "1"],
    "--patchcore-start": ["--arch", "patchcore", "--patchcore-start", "included"],
    "--fastflow-kernels": [
        "--arch", "fastflow", "--steps", "1", "--fastflow-kernels", "alternating",
    ],
    "--rd-loss": ["--arch", "reverse_distillation", "--steps", "1", "--rd-loss", "flattened"],
    "--rd-map": ["--arch", "reverse_distillation", "--steps", "1", "--rd-map", "sum"],
    "--load": LOAD,
    "--predict": LOAD,
    "--watch": [*LOAD[:2], "--watch", "parts/test/square"],
    "--threshold": [*LOAD, "--threshold", "2.5"],
    "--pixel-threshold": [*LOAD, "--pixel-threshold", "1e1"],
    "--calibrate": [*LOAD[:2], "--calibrate", "parts"],
    "--export": [*LOAD[:2], "--export", "parts.pt2"],
    "--pictures": [*LOAD, "--pictures", "all"],
    "--save-maps": [*LOAD, "--save-maps", "npy"],
    "--submission": ["--submission", "SUBMISSION", "--dataset", "mvtec2", "--root", "mvtec2"],
    "--allow-version-change": [*LOAD, "--allow-version-change"],
    "--out": ["--out", "elsewhere"],
    "--impl": ["--impl", "numpy"],
    "--memory": [*TILES, "--memory", "resident"],
    "--share-features": ["--seed", "0", "1", "--share-features", "1MiB"],
    "--precision": ["--precision", "bfloat16"],
    "--threads": ["--threads", "1"],
    "--resume": ["--resume"],
    "--save": ["--save"],
    "--estimate": ["--estimate"],
    "--report": ["--report"],
    "--title": ["--report", "--title", "part 7, line 3"],
    "--quiet": ["--quiet"],
    "--debug": ["--debug"],
}  # fmt: skip
SLOW = {"--list"}  # 24 ensembles in full size, see test_cli.py


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder `parts` of pictures of 48 px with masks, and an ensemble trained on it."""
    base = tmp_path_factory.mktemp("options")
    category = toy_category(n_train=3, n_good=2, n_bad=2, side=48)
    write_category(base / "parts", category, "{}", "train")
    argv = ["--dataset", "folder", "--root", str(base / "parts"), *SMALL, "--save", "--quiet"]
    assert cli.main([*argv, "--out", str(base / "kept")]) == 0
    write_mvtec2(base / "mvtec2", "can", 1, (48, 48))
    (base / "white.png").write_bytes(encode_png(np.ones((48, 48), bool)))
    return base


def test_the_list_has_every_option():
    actions = cli.build_parser()._option_string_actions.items()
    options = {o for o, action in actions if o.startswith("--") and action.help != SUPPRESS}
    assert set(USED) == options - {"--help", "--help-all", "--version"}


@pytest.mark.parametrize(
    "option", [pytest.param(o, marks=pytest.mark.slow if o in SLOW else ()) for o in USED]
)
def test_every_option_runs(option, workplace, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    saved = str(workplace / "kept/folder/parts/padim/SM-48/seed42/ensemble")
    places = {"SAVED": saved, "SUBMISSION": str(tmp_path / "maps/submission")}
    used = [places.get(word, word) for word in USED[option]]
    only_mvtec2(monkeypatch, {"can": 1})
    argv = ["--weights", "random", "--device", "cpu"]
    argv += [] if "--export" in used else ["--out", str(tmp_path)]
    if "--load" not in used and "--list" not in used:
        argv += ["--dataset", "folder", *SMALL, *([] if "--root" in used else ["--root", "parts"])]
    monkeypatch.setattr(sources, "time", Mock(sleep=Mock(side_effect=KeyboardInterrupt)))
    assert cli.main([*argv, *used]) == (130 if "--watch" in used else 0)
    out, err = capsys.readouterr()
    assert out.strip() or "--load" in used
    assert "Traceback" not in err


@pytest.mark.parametrize("option", ["--help", "--help-all", "--version"])
def test_options_that_only_print(option, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([option])
    assert stop.value.code == 0 and capsys.readouterr().out.startswith(("usage", "tiled-ref"))


def test_a_whole_number_has_both_its_bounds():
    parse = option_types.whole(range(2, 6))
    assert [parse(str(n)) for n in (2, 5)] == [2, 5]
    for text in "1", "6", "2.5", "", "x" * 10_000:
        with pytest.raises(ArgumentTypeError, match="is not a whole number of at least 2 and at m"):
            parse(text)


WRONG = (
    "0", "-1", "1e30", str(10**30), "nan", "inf", "-inf", "1e6", "", " ", "9" * 5000, "1e400",
    "1e-400", "0x10", "1_0", "1 0", "1,5", "\u00bd", "\x1b[2J\n",
)  # fmt: skip
NUMERIC = [  # all options that take a value, but for names and paths
    action.option_strings[-1] for action in cli.build_parser()._actions
    if action.nargs != 0 and (action.choices or action.type not in (None, Path, nfc))
]  # fmt: skip


def test_every_number_of_the_command_line_is_among_them():
    assert {"--seed", "--image-size", "--seam-sigma", "--share-features", "--steps"} < set(NUMERIC)
    assert len(NUMERIC) == 37


@pytest.mark.parametrize("option", NUMERIC)
def test_a_number_beyond_reason_is_one_sentence_or_a_run_that_ends(
    option, workplace, tmp_path, capsys
):
    """Of numbers that are allowed somewhere, such as 0 for a seed, one run each."""
    argv = ["--dataset", "folder", "--root", str(workplace / "parts"), *SMALL, "--quiet"]
    argv += ["--validation", "none", "--out", str(tmp_path)]
    if option in ("--pictures", "--save-maps", "--threshold", "--pixel-threshold"):
        argv = LOAD[:1] + [str(workplace / "kept"), "--predict", "nothing"]
    started, ends = time.monotonic(), []
    for text in WRONG:
        status = cli.main([*argv, f"{option}={text}"])
        said = capsys.readouterr().err
        ends.append(status)
        if status == 0:
            continue
        assert status == 2 and said.startswith("tiled-ref: error: "), (text, said)
        assert said.count("\n") == 1 and len(said) < 400 and "\x1b" not in said, (text, said)
    assert ends.count(2) >= len(WRONG) - 3 and time.monotonic() - started < 120
