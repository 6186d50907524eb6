"""Paths as they arrive on standard input, and files as they appear in a folder."""

import codecs
import contextlib
import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from readme import block
from sources import ROOT
from toys import Notes, toy_category

from tiled_ref import cli
from tiled_ref.data.disk import FileSample
from tiled_ref.data.encoders import encode_png
from tiled_ref.ensemble import TiledEnsemble
from tiled_ref.serving import sources
from tiled_ref.serving.outputs import ImageWriter, PredictOptions
from tiled_ref.serving.predict import Predictor, run_predict
from tiled_ref.serving.sources import Watch, arriving, image_files, listed, piped
from tiled_ref.setups import SETUPS
from tiled_ref.support.errors import InputError

CATEGORY = toy_category(n_train=6, n_good=4, n_bad=3)
PNG = [encode_png(sample.read_image()) for sample in CATEGORY.test]
PATIENCE = 300  # seconds until a test gives up; it goes on as soon as it can


@pytest.fixture(scope="module")
def ensemble(tiny_backbone):
    made = TiledEnsemble(
        SETUPS["ENS4"].with_sizes((64, 64), (32, 32)), backbone=tiny_backbone, weights="random"
    )
    return made.fit(CATEGORY.train).calibrate(CATEGORY.test, [s.label for s in CATEGORY.test])


@pytest.fixture
def folder(tmp_path):
    """Two images, one of them in a folder below."""
    (tmp_path / "in/b").mkdir(parents=True)
    (tmp_path / "in/a.png").write_bytes(PNG[0])
    (tmp_path / "in/b/x.png").write_bytes(PNG[-1])
    return tmp_path / "in"


def rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------- a folder, and a list of paths


def test_a_folder_is_walked_in_order_without_hidden_files_and_linked_folders(folder):
    (folder / "b/y.png").write_text("")
    (folder / ".hidden.png").write_text("")
    (folder / "notes.txt").write_text("")
    (folder / "b/loop").symlink_to(folder, target_is_directory=True)
    (folder / "Z.JPG").write_text("")
    (folder / "b/.git/x").mkdir(parents=True)
    (folder / "b/.git/c.png").write_text("")
    (folder / "c.GIF").write_text("")
    said = []
    found = listed(folder, Mock(note=said.append))
    names = [str(path.relative_to(folder)) for path in found]
    assert names == ["Z.JPG", "a.png", "c.GIF", "b/x.png", "b/y.png"]
    assert said == [
        "skipped 2 files and 2 folders (hidden, not an image, or in the wrong place), such "
        "as .hidden.png"
    ]
    listed(folder / "a.png", Mock(note=said.append))
    shutil.rmtree(folder / "b")
    (folder / "notes.txt").unlink()
    listed(folder, Mock(note=said.append))
    assert len(said) == 2 and said[1].startswith("skipped 1 file (hidden")


def blocks(monkeypatch, *data):
    """Standard input that gives these blocks, one at a time, and then its end."""
    read = Mock(side_effect=[*data, b""])
    monkeypatch.setattr("sys.stdin", Mock(buffer=Mock(read1=read)))
    return read


def paths(monkeypatch, *data):
    blocks(monkeypatch, *data)
    return [os.fsencode(path) for group in arriving("-") for path in group]


def test_paths_on_standard_input_end_with_lines_or_nul(monkeypatch):
    for data, wanted in (
        (b"a.png\nb c.png\r\n\n", [b"a.png", b"b c.png"]),
        (b"a\nb.png\0c.png\0", [b"a\nb.png", b"c.png"]),
        (b"\xff\xfe.png", [b"\xff\xfe.png"]),
        ("\ufeffü.png\r\nb.png\r\n".encode(), ["ü.png".encode(), b"b.png"]),
        ("\ufeffa\0b\0".encode(), [b"a", b"b"]),
        ("\ufeffa".encode(), [b"a"]),
        (b"\n  \na.png\n\t\r\n", [b"a.png"]),
        (b"\xff\xfea.png\n", [b"\xff\xfea.png"]),  # a name
        (b"a.png\r\nb.png", [b"a.png", b"b.png"]),
    ):
        assert paths(monkeypatch, data) == wanted
        cuts = [[data[:k], data[k:]] for k in range(1, len(data))]  # wherever a block ends
        cuts.append([data[k : k + 1] for k in range(len(data))])
        for parts in cuts if data.find(b"\n") >= data.find(b"\0") else ():
            assert paths(monkeypatch, *parts) == wanted, parts
    for data in b"", b"\n\n", b" \r\n", b"\0\0", codecs.BOM_UTF8:
        with pytest.raises(InputError, match="no paths on standard input"):
            paths(monkeypatch, data)
    for code in "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be":
        with pytest.raises(InputError, match="the list is UTF-16 or UTF-32; convert it to"):
            paths(monkeypatch, "\ufeffü.png\nb.png".encode(code))
    with open(os.devnull, "wb") as unreadable:
        monkeypatch.setattr("sys.stdin", Mock(buffer=unreadable))
        with pytest.raises(InputError, match="standard input cannot be read: "):
            list(arriving("-"))
    monkeypatch.setattr("sys.stdin", None)  # closed
    with pytest.raises(InputError, match="no paths on standard input"):
        list(arriving("-"))


def test_a_nul_among_lines_and_a_path_without_end_are_refused(monkeypatch):
    blocks(monkeypatch, b"a.png\nb.png\n", b"c.png\nd\0e")
    found = piped()
    assert next(found) == [Path("a.png"), Path("b.png")]
    with pytest.raises(InputError, match="a list of lines holds a NUL; separate all by NUL or"):
        next(found)
    assert paths(monkeypatch, b"a\0", b"b\nc\0") == [b"a", b"b\nc"]
    longest = b"n" * sources.BLOCK
    assert paths(monkeypatch, longest, b"\na") == [longest, b"a"]
    for first in [], [b"a.png\n"]:
        with pytest.raises(InputError, match="a path has more than 65,536 bytes"):
            paths(monkeypatch, *first, longest, b"n", b"n")


def test_all_that_has_arrived_is_one_group_and_no_path_waits_for_the_next(monkeypatch):
    read = blocks(monkeypatch, b"a\nb\nc", b"\n", b"d", b"e\n\nf\ng\n", b"h")
    found = piped()
    for n_read, wanted in ((1, ["a", "b"]), (2, ["c"]), (4, ["de", "f", "g"]), (6, ["h"])):
        assert (next(found), read.call_count) == ([Path(name) for name in wanted], n_read)
    assert list(found) == []


def test_a_row_is_there_before_the_next_path_is_written(ensemble, folder, tmp_path, monkeypatch):
    """And what has arrived is cut into batches."""
    read, write = os.pipe()
    table, seen, sizes, call = tmp_path / "out/predictions.partial.csv", [], [], Predictor.predict
    monkeypatch.setattr(
        Predictor, "predict", lambda self, images: sizes.append(len(images)) or call(self, images)
    )
    monkeypatch.setattr(Predictor, "batch", 2)

    def writer():
        with open(write, "wb", buffering=0) as file:
            for k in range(3):
                file.write(os.fsencode(folder / "a.png") + b"\n")
                until = time.monotonic() + PATIENCE
                while not (table.exists() and len(rows(table)) > k) and time.monotonic() < until:
                    time.sleep(0.01)
                seen.append(len(rows(table)))
            file.write((os.fsencode(folder / "b/x.png") + b"\n") * 5)

    thread = threading.Thread(target=writer)
    thread.start()
    with open(read) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        count = run_predict(ensemble, "-", tmp_path / "out", PredictOptions(pictures="none"))
    thread.join()
    assert seen == [1, 2, 3] and sizes == [1, 1, 1, 2, 2, 1]
    assert sum(count.values()) == len(rows(tmp_path / "out/predictions.csv")) == 8


def test_a_list_of_nothing_leaves_an_earlier_prediction(ensemble, folder, tmp_path, monkeypatch):
    run_predict(ensemble, folder, tmp_path / "out", PredictOptions(pictures="all"))
    picture = next((tmp_path / "out/pictures").glob("*_mask.png"))
    for data, sentence in ((b"\n", "no paths"), (os.fsencode(picture), "outputs of an earlier")):
        blocks(monkeypatch, data)
        with pytest.raises(InputError, match=sentence):
            run_predict(ensemble, "-", tmp_path / "out", PredictOptions())
        assert picture.exists() and len(rows(tmp_path / "out/predictions.csv")) == 2


def test_memory_does_not_grow_with_the_number_of_paths(monkeypatch):
    """Of a list without end, a block is read and kept at a time."""
    block = b"n" * 99 + b"\n"
    endless = Mock(read1=lambda n: block * (n // len(block)) + block[: n % len(block)])
    monkeypatch.setattr("sys.stdin", Mock(buffer=endless))
    found = piped()
    assert all(len(next(found)) < 700 for _ in range(100))
    assert len(found.gi_frame.f_locals["rest"]) < 2 * sources.BLOCK


# ---------------------------------------------------------------------------- a watched folder


def steps(monkeypatch, *actions):
    """What happens between two looks at a folder; then an interrupt."""
    left = iter(actions)

    def sleep(seconds):
        assert seconds == sources.PAUSE
        for action in left:
            action()
            return
        raise KeyboardInterrupt

    monkeypatch.setattr(sources, "time", Mock(sleep=sleep))


def nothing():
    pass


def found_by(watch, out=None):
    """The names that a Watch finds, a list a look."""
    looks = []
    with pytest.raises(KeyboardInterrupt):
        for group in watch.arriving(out):
            looks.append([path.relative_to(watch.folder).as_posix() for path in group])
    return looks


def write(path, data, age=0):
    """Write a file whose time of change is some seconds ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (10**9 - age, 10**9 - age))


def test_a_file_is_found_once_it_has_stopped_changing(folder, monkeypatch):
    steps(
        monkeypatch,
        lambda: write(folder / "new.png", b"1"),
        lambda: write(folder / "new.png", b"12"),
        lambda: write(folder / "new.png", b"34", age=5),
        nothing,
        nothing,
        lambda: write(folder / "new.png", b"56", age=7),  # as long as before
        lambda: write(folder / "c/d/e.png", b"1"),
        nothing,
    )
    assert found_by(Watch(folder)) == [
        [], ["a.png", "b/x.png"], [], [], ["new.png"], [], [], ["new.png"], ["c/d/e.png"],
    ]  # fmt: skip


def test_what_has_gone_is_forgotten_and_found_again(folder, monkeypatch):
    watch = Watch(folder)
    steps(
        monkeypatch,
        nothing,
        lambda: shutil.rmtree(folder / "b"),
        lambda: write(folder / "b/x.png", PNG[-1]),
        nothing,
        (folder / "a.png").unlink,
    )
    assert found_by(watch) == [[], ["a.png", "b/x.png"], [], [], ["b/x.png"], []]
    assert list(watch._seen) == [folder / "b/x.png"]


def test_only_images_under_their_final_names_are_found(folder, monkeypatch):
    """Not hidden, of another ending, behind a linked folder, below --out or of a prediction."""
    out = folder / "inspected"
    write(out / "predictions.csv", b"")
    write(out / "mine.png", b"")
    for name in (
        ".a.png.7.tmp", "b/.y.png", "b/y.png.part", "notes.txt", ".git/z.png",
        "other/predictions.csv", "other/pictures/000001_a_mask.png", "other/maps/000001_a.tiff",
    ):  # fmt: skip
        write(folder / name, b"")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "nowhere.png").symlink_to("late.jpg.part")
    steps(
        monkeypatch,
        nothing,
        lambda: os.rename(folder / "b/y.png.part", folder / "b/y.png"),
        lambda: write(folder / "late.jpg.part", b""),  # the link leads there now
        nothing,
    )
    assert found_by(Watch(folder), os.path.realpath(out)) == [
        [], ["a.png", "nowhere.png", "b/x.png"], [], ["b/y.png"], ["nowhere.png"],
    ]  # fmt: skip


def test_a_folder_below_may_vanish_and_the_watched_one_may_not(folder, monkeypatch):
    walk = image_files(folder)
    assert next(walk) == folder / "a.png"
    shutil.rmtree(folder / "b")  # listed before
    assert list(walk) == []
    found = Watch(folder).arriving()
    steps(monkeypatch, lambda: shutil.rmtree(folder))
    assert next(found) == []
    with pytest.raises(InputError, match="in cannot be read: No such file or directory"):
        next(found)
    for path in folder, Path(__file__):
        with pytest.raises(InputError, match="--watch .*: no such folder"):
            Watch(path)


def watched(ensemble, folder, out, **options):
    """(rows, notes) of a watch that an interrupt ends."""
    notes, watch = Notes(), Watch(folder)
    count = run_predict(ensemble, watch, out, PredictOptions(**options), notes)
    assert isinstance(watch.interrupt, KeyboardInterrupt)
    assert sum(count.values()) == len(rows(out / "predictions.csv"))
    assert not (out / "predictions.partial.csv").exists()
    return rows(out / "predictions.csv"), notes.notes


def test_an_interrupt_completes_the_tables_of_a_watch(ensemble, folder, tmp_path, monkeypatch):
    out = folder / "out"
    new = folder / "new.png"
    steps(
        monkeypatch,
        nothing,
        lambda: new.write_bytes(PNG[1]),
        nothing,
        lambda: write(new, b"broken"),
        nothing,
        lambda: write(new, PNG[-1]),
        nothing,
        nothing,
    )
    table, notes = watched(ensemble, folder, out, pictures="all", maps="npy")
    names = [row["path"].rpartition("/in/")[2] for row in table]
    assert names == ["a.png", "b/x.png", "new.png", "new.png", "new.png"]
    assert [row["verdict"] == "error" for row in table] == [False, False, False, True, False]
    assert [row["name"][:6] for row in table if row["name"]] == [
        "000001", "000002", "000003", "000005"
    ]  # fmt: skip
    assert table[1]["score"] == table[4]["score"]
    assert len(list((out / "pictures").iterdir())) == 16
    regions = sum(int(row["regions"] or 0) for row in table)
    assert regions == len(rows(out / "regions.csv")) > 0
    assert notes[0] == f"watch {folder} until interrupted, for example by Ctrl-C"
    assert len(notes) == 5 and notes[1].startswith(f"{folder}/a.png: normal, ")
    again, _ = watched(ensemble, folder, out)  # nothing more happens: no look finds a file twice
    assert again == []


def test_a_watch_of_an_empty_folder_leaves_empty_tables(ensemble, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    steps(monkeypatch, nothing)
    assert watched(ensemble, tmp_path / "empty", tmp_path / "out")[0] == []


@pytest.mark.parametrize("late", ["rewritten", "gone", "half"])
def test_a_file_that_changes_while_it_is_scored_has_no_row(
    ensemble, folder, tmp_path, monkeypatch, late, capsys
):
    """And is scored when it has stopped; also one that could not be decoded before."""
    path, read, done = folder / "a.png", FileSample.read_image, []
    if late == "half":
        path.write_bytes(PNG[0][:300])

    def slowly(sample):
        try:
            return read(sample)
        finally:
            if sample.path == path and not done:
                done.append(path.unlink() if late == "gone" else write(path, PNG[1]))

    monkeypatch.setattr(FileSample, "read_image", slowly)
    steps(monkeypatch, nothing, nothing, nothing, nothing)
    table, notes = watched(ensemble, folder, tmp_path / "out", pictures="all")
    names = ["b/x.png"] if late == "gone" else ["b/x.png", "a.png"]
    assert [row["path"].rpartition("/in/")[2] for row in table] == names
    assert {row["error"] for row in table} == {""} and capsys.readouterr().err == ""
    assert notes[1] == f"{path} changed or vanished before it was scored"
    assert len(list((tmp_path / "out/pictures").iterdir())) == 4 * len(table)


@pytest.mark.parametrize("watch", [False, True])
def test_an_interrupt_waits_for_the_image_that_is_written(
    ensemble, folder, tmp_path, monkeypatch, watch
):
    call = ImageWriter.write

    def interrupted(self, image):
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.05)  # for the main thread to see it
        return call(self, image)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(ImageWriter, "write", interrupted)
    monkeypatch.setattr(sources, "PAUSE", 0)
    try:
        source = Watch(folder) if watch else folder
        with contextlib.nullcontext() if watch else pytest.raises(KeyboardInterrupt):
            run_predict(ensemble, source, tmp_path / "out", PredictOptions(pictures="all"))
    finally:
        signal.signal(signal.SIGINT, before)
    name = "" if watch else ".partial"
    table = rows(tmp_path / f"out/predictions{name}.csv")
    assert [row["name"] for row in table] == ["000001_a"]
    assert len(rows(tmp_path / f"out/regions{name}.csv")) == int(table[0]["regions"])
    assert len(list((tmp_path / "out/pictures").iterdir())) == 4


# -------------------------------------------------------------------------- the command line


@pytest.fixture
def saved(ensemble, tmp_path):
    ensemble.save(tmp_path / "ensemble")
    return tmp_path / "ensemble"


def run(*argv):
    return cli.main([str(part) for part in (*argv, "--device", "cpu")])


def test_a_log_has_a_line_a_stage(saved, folder, tmp_path, capsys, monkeypatch):
    """Standard error is no terminal here. A watch is a service: a line an image as well."""
    names = (os.fsencode(path) + b"\n" for path in (folder / "a.png", folder / "b/x.png"))
    blocks(monkeypatch, *names)
    steps(monkeypatch, nothing)
    one = r"E/in/[ab/x]*.png: (normal|anomalous), .*mark.*, score .*, threshold .*"
    for words, status, wanted in (
        (["--predict", folder], 0, ["predict with padim ENS-64-32-32: 2/2 in .*"]),
        (["--predict", "-"], 0, ["predict with padim ENS-64-32-32: 2/2 in .*"]),
        (["--calibrate", folder / "b"], 0, ["calibrate: 1/1 in .*"]),
        (["--watch", folder], 130, [
            "watch E/in until interrupted, for example by Ctrl-C", one, one,
            "watch E/in with padim ENS-64-32-32: 2/2 in .*",
            "tiled-ref: interrupted",
        ]),
    ):  # fmt: skip
        assert run("--load", saved, *words, "--out", tmp_path / "out") == status
        err = capsys.readouterr().err.replace(str(tmp_path), "E")
        lines = [line for line in err.splitlines() if "decided" not in line and "from" not in line]
        assert len(lines) == len(wanted) + 1, err
        for line, pattern in zip(lines, [r"check the ensemble E/ensemble: 4/4 in .* s", *wanted]):
            assert re.fullmatch(pattern, line), line


@pytest.mark.parametrize("number, how", [(2, "interrupted"), (15, "terminated")])
def test_a_watch_ends_by_a_signal(saved, folder, tmp_path, capsys, monkeypatch, number, how):
    steps(monkeypatch)
    stop = Mock(side_effect=KeyboardInterrupt(number, Mock()))
    monkeypatch.setattr(sources, "time", Mock(sleep=stop))
    argv = ["--load", saved, "--watch", folder, "--out", tmp_path / "out", "--quiet"]
    assert run(*argv) == 128 + number
    out, err = capsys.readouterr()
    assert out == f"0 images; see {tmp_path / 'out/predictions.csv'}\n"
    assert err == f"tiled-ref: {how}\n"
    assert rows(tmp_path / "out/predictions.csv") == []
    assert run(*argv[:3], tmp_path / "none", *argv[4:]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert run(*argv, "--predict", folder) == 2
    assert "give --load DIR and exactly one of --predict, --watch" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_watch_as_a_process(saved, folder, tmp_path, number):
    """Its log says when it is ready and has scored an image, so nothing waits for a clock."""
    out = tmp_path / "out"
    command = [sys.executable, str(ROOT / "run.py"), "--load", str(saved), "--watch", str(folder)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TILED_REF_THREADS": "1"}
    command += ["--out", str(out), "--device", "cpu"]
    process = subprocess.Popen(command, stderr=-1, env=env)

    def wait_for(text):
        while text not in (line := process.stderr.readline()):
            assert line, text

    wait_for(b"watch ")
    wait_for(b"x.png: ")
    (folder / "late.png").write_bytes(PNG[1])
    wait_for(b"late.png: ")
    process.send_signal(number)
    process.stderr.read()
    killed = number == signal.SIGKILL
    assert process.wait(PATIENCE) == (-number if killed else 128 + number)
    name = "predictions.partial.csv" if killed else "predictions.csv"
    assert len(rows(out / name)) == 3
    assert sorted(out.glob("*.csv")) == [out / name, out / name.replace("predict", "reg")]


def test_a_camera_is_a_loop_around_a_predictor(saved, tmp_path, monkeypatch, capsys):
    """The example of the README, with frames of several sizes."""
    text = block("test: camera").text
    assert text.count("\n") <= 15
    monkeypatch.chdir(tmp_path)
    frames = [sample.read_image()[: 96 - k, : 96 - 9 * k] for k, sample in enumerate(CATEGORY.test)]
    exec(compile(text, "README.md", "exec"), {"camera": lambda: frames})
    ensemble = TiledEnsemble.load(saved)
    maps, scores = ensemble.predict(frames)
    words = ["anomalous" if verdict else "normal" for verdict in ensemble.verdicts(scores)]
    assert capsys.readouterr().out.splitlines() == [
        f"{score:.4f} {word} (64, 64) {np.float32(image_map.max()):.4f}"
        for score, word, image_map in zip(scores, words, maps)
    ]
    assert {"normal", "anomalous"} == {*words}
