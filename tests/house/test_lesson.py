"""LESSON.md: what it quotes is in method.py, its exercises give the numbers that it prints."""

import re
from dataclasses import replace

import numpy as np
import pytest
from sources import ROOT
from test_bench import load
from toys import toy_category

from tiled_ref import cli, metrics
from tiled_ref.data import synthetic
from tiled_ref.data.encoders import decode_bytes
from tiled_ref.ensemble import TiledEnsemble
from tiled_ref.models.weights import find_weights
from tiled_ref.setups import SETUPS

PAGE = ROOT / "tiled_ref" / "reporting" / "walk" / "LESSON.md"
LESSON = PAGE.read_text("utf-8")
METHOD = (ROOT / "tiled_ref" / "method.py").read_text("utf-8")
# (title, lines to take out and lines to put in) of the five exercises
EXERCISES = [
    (title, [(line[:1], line[1:]) for line in diff.splitlines()])
    for title, diff in re.findall(r"### (\d\. .+?)\n.*?```diff\n(.*?)```", LESSON, re.DOTALL)
]
TITLES = [title for title, _ in EXERCISES]
# title -> (AUROC, AUPRO, what moves) of the table of answers, "as it is" for no change
ANSWERS = {
    title: (float(auroc), float(aupro), moves)
    for title, auroc, aupro, moves in re.findall(
        r"^\| (.+?) \| (0\.\d{6}) \| (0\.\d{6}) \| ([a-z ]*)\|", LESSON, re.MULTILINE
    )
}


def changed(lines, smaller=1):
    """method.py with an exercise's lines, its sizes divided."""
    old, new = (
        "".join(f"{text}\n" for sign, text in lines if sign == kind) for kind in "-+"
    )
    assert old.count("\n") and METHOD.count(old) == 1, old
    return scaled(METHOD.replace(old, new), smaller)


def scaled(source, by):
    def fewer(match):
        return match[1] + ", ".join(str(int(side) // by) for side in match[2].split(", "))

    return re.sub(r"(IMAGE, TILE, STRIDE = )(\d+, \d+, \d+)", fewer, source)


def run(source, weights, category, capsys):
    """What main() of the source prints, and the scores and maps that it computes it from."""
    method = {"__name__": "tiled_ref.lesson", "__package__": "tiled_ref"}
    exec(compile(source, "method.py", "exec"), method)
    seen = {}

    def noted(name):
        measure = method[name]
        return lambda values, *rest: measure(seen.setdefault(name, values), *rest)

    method |= {name: noted(name) for name in ("auroc", "aupro")}
    method["find_weights"] = lambda text: find_weights(weights)
    method["synthetic"] = type("Drawn", (), {"load": staticmethod(lambda root, name: category)})
    method["main"]()
    printed = re.fullmatch(r"AUROC (.+)\nAUPRO (.+)\n", capsys.readouterr().out).groups()
    return tuple(map(float, printed)), seen


def test_there_are_five_exercises_with_answers():
    assert [title[:2] for title in TITLES] == ["1.", "2.", "3.", "4.", "5."]
    assert list(ANSWERS) == ["as it is", *TITLES]


def test_the_quoted_lines_are_those_of_the_page_and_every_equation_has_one():
    quotes = re.findall(r"\*\*Eq\. (\d)\*\*.*?\n```python\n(.*?)```", LESSON, re.DOTALL)
    assert [number for number, _ in quotes] == ["1", "2", "3", "4", "5"]
    for text in re.findall(r"```python\n(.*?)```", LESSON, re.DOTALL):
        for line in text.splitlines():
            assert line in map(str.strip, METHOD.splitlines()), line


TOYS = toy_category(5, 3, 3, side=128)


@pytest.mark.parametrize("title, lines", EXERCISES, ids=TITLES)
def test_a_change_moves_what_the_answer_says_it_moves(title, lines, capsys):
    """At a quarter of the size. What does not move leaves its metric as it is, at full size too."""
    _, before = run(scaled(METHOD, 4), "random", TOYS, capsys)
    _, after = run(changed(lines, 4), "random", TOYS, capsys)
    said = ANSWERS[title][2]
    for k, (name, what) in enumerate((("auroc", "scores"), ("aupro", "maps"))):
        assert np.array_equal(before[name], after[name]) == (what not in said)
        assert what in said or ANSWERS[title][k] == ANSWERS["as it is"][k]


@pytest.mark.real
@pytest.mark.exhaustive
@pytest.mark.parametrize("title, lines", [("as it is", None), *EXERCISES], ids=["as it is", *TITLES])
def test_the_answers_are_those_of_the_whole_data_set(title, lines, official_weights, capsys):
    """All digits on the lesson's machine; others round features differently: one pair of images
    is 0.002 of AUROC."""
    category, source = synthetic.load(None, "board"), METHOD if lines is None else changed(lines)
    printed, _ = run(source, str(official_weights), category, capsys)
    assert printed[0] == pytest.approx(ANSWERS[title][0], abs=2e-3)
    assert printed[1] == pytest.approx(ANSWERS[title][1], abs=2e-4)


def test_the_seven_questions_lead_to_paragraphs():
    questions = LESSON.partition("## Questions")[2].partition("\n## ")[0]
    anchors = re.findall(r"^\d\. .+?\]\(#([\w-]+)\)", questions, re.MULTILINE | re.DOTALL)
    assert len(anchors) == len(set(anchors)) == 7
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", LESSON, re.MULTILINE | re.DOTALL))
    texts = {title.lower().replace(" ", "-"): text for title, text in sections.items()}
    assert all(len(texts[anchor].split()) > 80 for anchor in anchors)


def test_its_files_and_commands_exist():
    assert len(LESSON.splitlines()) <= 250 and max(map(len, LESSON.splitlines())) <= 120
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", LESSON) if "://" not in link]
    assert links and all((PAGE.parent / link).is_file() for link in links)
    for name in re.findall(r"`((?:tests|bench|tiled_ref)/[\w/.]+\.\w+)[`:]", LESSON):
        assert (ROOT / name).is_file(), name
    picture = ROOT / "bench" / "lesson.jpg"
    assert picture.stat().st_size < 60_000 and decode_bytes(picture.read_bytes()).shape == (520, 520, 3)
    for text in re.findall(r"`(python [^`]+)`", LESSON):
        words = text.split()
        if words[1] == "run.py":
            cli.build_parser().parse_args(words[2:])
        elif words[1].startswith("bench/"):
            load(words[1][6:-3]).build_parser().parse_args(words[2:])
        else:
            assert words[1:3] in (["-m", "tiled_ref.method"], ["-m", "pytest"]), text


# --------------------------------------------------------------- what it says and is true of any data


@pytest.fixture
def quarter(monkeypatch):
    """The six setups at a quarter of their sizes."""
    for name, setup in SETUPS.items():
        sizes = {k: tuple(side // 4 for side in getattr(setup, k)) for k in ("image_size", "tile_size", "stride")}
        monkeypatch.setitem(SETUPS, name, replace(setup, **sizes))


def test_an_untiled_padim_has_the_gaussians_of_the_ensemble(quarter, tiny_backbone):
    """ST4 and ENS4: the same features at the same positions, so the same means and factors."""
    pictures = [sample.read_image() for sample in TOYS.train]
    one, four = (TiledEnsemble(n, backbone=tiny_backbone).fit(pictures) for n in ("ST4", "ENS4"))
    for name in ("mean", "factors"):
        whole = one.states[0, 0][name].numpy().reshape(2, 16, 2, 16, -1)  # rows and columns of tiles
        for i, j in four.states:
            tile = four.states[i, j][name].numpy().reshape(16, 16, -1)
            np.testing.assert_allclose(whole[i, :, j], tile, rtol=1e-4, atol=1e-4)


def test_the_bytes_are_those_printed():
    rows = re.findall(r"^\| (\w+) \| \d+ x [\d,x ]+ \| ([\d,]+) \|", LESSON, re.MULTILINE)
    channels, location = (
        re.search(rf"^\| {title} \| (.+) \|$", LESSON, re.MULTILINE)[1].split(" | ")
        for title in ("D", "bytes of a location")
    )
    rows += [("SM256", number, int(d)) for d, number in zip(channels, location)]
    assert len(rows) == 7
    for name, printed, *d in rows:
        ensemble = TiledEnsemble(name, weights="random", switches={"n_channels": d[0]} if d else {})
        assert printed == f"{4 * ensemble.make_model().n_learnt(48) * ensemble.setup.n_models:,}", name


def test_the_script_measures_what_it_names(quarter, tiny_backbone):
    lesson = load("lesson")
    text = lesson.scores(TOYS, backbone=tiny_backbone)
    trained = TiledEnsemble("ENS9", backbone=tiny_backbone)
    trained.fit([sample.read_image() for sample in TOYS.train])
    scores, labels = trained.predict([s.read_image() for s in TOYS.test])[1], lesson.labels_of(TOYS.test)
    row = re.search(r"^\| mean \| (\S+) .* (\S+) \|$", text, re.MULTILINE).groups()
    assert row == (f"{scores[labels == 0].mean():.2f}", f"{100 * metrics.auroc(scores, labels):.1f}")
    text = lesson.seams(TOYS, backbone=tiny_backbone)
    rows = {cells[0]: list(map(float, cells[1:])) for cells in
            (line.strip("| ").split(" | ") for line in text.splitlines())
            if cells[0].startswith(("SM", "ENS"))}  # fmt: skip
    seam = lesson.OFFSETS.index(0)
    assert rows["ENS4"][seam] > 2 * rows["SM512"][seam]
    assert rows["ENS4, smoothed"][seam] < rows["ENS4"][seam]
    picture = lesson.picture(TOYS, TOYS.test[-1].name, crop=32, backbone=tiny_backbone)
    assert picture.shape == (2 * 128 + 8, 2 * 128 + 8, 3)
