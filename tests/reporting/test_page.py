"""report.html: what stands in it, and how it behaves in a real browser."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from browser import Browser, find_browser
from made_up import made_up_cell, made_up_result, small

from tiled_ref.reporting import page as report_page
from tiled_ref.reporting.collection import Collection
from tiled_ref.reporting.results import lost
from tiled_ref.reporting.table import escape
from tiled_ref.reporting.tables import all_tables

EVIL = "<img src=x onerror=alert(1)>\"'&</script><script>alert(2)</script>"


def renamed(category, prefix):
    """The category with a prefix before every test image's name and defect's."""
    test = tuple(
        replace(s, name=f"{prefix}{s.name}", defect=f"{prefix}{s.defect}" if s.label else s.defect)
        for s in category.test
    )
    return replace(category, test=test)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Two categories, one of evil names; two architectures, two setups."""
    out = tmp_path_factory.mktemp("out")
    for arch in ("padim", "patchcore"):
        for setup, auroc in (("SM256", 0.7), ("SM512", 0.9)):
            made_up_cell(out, small("plain"), arch, setup, image_auroc=auroc)
    evil = renamed(small("evil <b>&\"'", n_good=2, n_bad=3), EVIL)
    made_up_cell(out, evil, "padim", "SM256", image_auroc=None, pixel_aupro=None)
    return out


@pytest.fixture(scope="module")
def page(out):
    path, _ = report_page.write_report(out)
    return path


class Parser(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.addresses = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [v for k, v in attributes if k in ("src", "href", "srcset", "action")]


def data_of(page):
    text = page.read_text("utf-8")
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(found)


def test_the_page_is_one_file_that_asks_for_nothing(page):
    parser = Parser()
    parser.feed(page.read_text("utf-8"))
    assert all(address.startswith(("#", "data:")) for address in parser.addresses)
    assert parser.tags.count("script") == 2  # the data and the program
    assert "http-equiv" in page.read_text("utf-8") and "default-src 'none'" in page.read_text()


def test_file_names_are_text(page):
    text = page.read_text("utf-8")
    assert "<img src=x" not in text and "<b>&\"'" not in text and "alert(2)</script>" not in text
    data = data_of(page)
    evil = next(c for c in data["categories"] if c["title"].startswith("evil"))
    assert all(image["name"].startswith(EVIL) for image in evil["images"])


def test_losses_are_said_and_names_stay_text():
    """One sentence for each kind, one entry for each category and size, whatever the seeds."""
    lose = {"n_defects": 9, "n_defects_vanished": 2, "n_test_all": 8, "n_without_verdict": 4}
    results = [
        made_up_result(category=category, setup=setup, seed=seed, **lose)
        for category in ("a*b*", "<i>")
        for setup in ("SM256", "ENS9", "ST9")
        for seed in (1, 2)
    ]
    vanished, without = lost([made_up_result(), *results])
    sizes = ("256x256", "512x512")
    places = [f"2 of 9 ({name} at {size})" for name in ("a*b*", "<i>") for size in sizes]
    assert vanished.startswith("Defects that") and vanished.endswith(f": {', '.join(places)}.")
    assert without.endswith(": 4 of 8 (a*b*), 4 of 8 (<i>).")
    pages = [report_page.table_html(table) for table in all_tables(results)]
    said = [html for html in pages if "Defects that vanish" in html]
    assert said and all("2 of 9 (a&#42;b&#42; at" in html and "<i> at" not in html for html in said)
    assert lost([made_up_result(**dict.fromkeys(lose, 0))]) == []
    assert lost([made_up_result(**dict.fromkeys(lose))]) == lost([made_up_result()]) == []


def test_json_cannot_end_its_element():
    text = report_page.script_json({"a": "</script><!--&", "b": "\u2028"})
    assert "<" not in text and ">" not in text and "&" not in text
    assert json.loads(text) == {"a": "</script><!--&", "b": "\u2028"}


def test_cells_of_tables_become_html_and_nothing_else_does():
    html = report_page.cell_html
    assert html("**9.0** ± 1<br><sub>paper *8* & 7</sub>") == (
        "<b>9.0</b> ± 1<br><sub>paper <i>8</i> &amp; 7</sub>"
    )
    assert html(escape("<i>*x*</i>&<br>|")) == (
        "&#60;i&#62;&#42;x&#42;&#60;/i&#62;&#38;&#60;br&#62;&#124;"
    )
    assert html("<i>") == "&lt;i&gt;"


def test_worst_errors_come_first_by_hand():
    """Scores 0 to 10, threshold 5: a defect scored 1 is wrong by 0.4, a normal image scored 6 by
    0.1, and a defect scored 5 is right by nothing."""

    class Cell:
        def __init__(self, *scores):
            self.scores, self.threshold = np.array(scores, float), 5.0

    cells = {"padim": {"SM256": Cell(1, 6, 5, 0, 10)}}
    labels = np.array([1, 0, 1, 0, 1])
    assert report_page.severity(labels, cells) == pytest.approx([0.4, 0.1, 0, -0.5, -0.5])
    cells["padim"]["SM512"] = Cell(10, 0, 2, 10, 10)  # span 10: the worst of both counts
    assert report_page.severity(labels, cells) == pytest.approx([0.4, 0.1, 0.3, 0.5, -0.5])


def test_summary_holds_a_row_a_cell_with_numbers_to_sort_by():
    results = [
        made_up_result(image_auroc=a, seed=k, category=c)
        for c, a, k in (("screw", 0.7, 1), ("screw", 0.8, 2), ("tile", None, 1))
    ]
    summary = report_page.summary(results)
    column = summary["headers"].index("image AUROC")
    assert [row[column][0] for row in summary["rows"]] == ["75.0 ± 7.1", "-"]
    assert summary["rows"][0][column][1] == pytest.approx(75)
    assert summary["rows"][1][column][1] is None
    assert "paper AUROC" in summary["headers"]
    shared = made_up_result(seed=9, features_reused=1.0, seconds_train=1.0)
    other = made_up_result(seed=9, category="wood", features_reused=1.0)
    more = report_page.summary([*results, shared, other])
    column = summary["headers"].index("training")
    assert [row[column][0] for row in more["rows"]] == ["10.0 s", "10.0 s", "-"]
    synthetic = report_page.summary([made_up_result("synthetic", "board")])
    assert "paper AUROC" not in synthetic["headers"]
    assert len(synthetic["rows"][0]) == len(synthetic["headers"]) == len(synthetic["text"])


def test_pictures_beyond_the_budget_are_left_out_best_first(out, monkeypatch):
    collection = Collection(out)
    whole = report_page.gallery(collection, {})
    assert [one["omitted"] for one in whole] == [0, 0]
    monkeypatch.setattr(report_page, "GALLERY_BYTES", 30_000)
    half = report_page.gallery(collection, {})
    for one, small_one in zip(whole, half):
        kept = [image["name"] for image in small_one["images"]]
        assert small_one["omitted"] == len(one["images"]) - len(kept) > 0
        for setups in small_one["cells"].values():
            for cell in setups.values():
                assert len(cell["scores"]) == len(cell["maps"]) == len(kept)


def test_the_report_is_always_the_same(page, out):
    before = page.read_bytes()
    report_page.write_report(out)
    assert page.read_bytes() == before


def test_differing_options_are_noted():
    results = [made_up_result(antialias=False), made_up_result(antialias=True, seed=1)]
    assert "The cells differ in antialias: False, True." in report_page.differing_options(results)
    results = [made_up_result(), made_up_result(pixel_edition=2)]
    (note,) = report_page.differing_options(results)
    assert note == "The cells differ in pixel_edition: 2, older."
    results = [made_up_result(switches={"steps": k}) for k in (1, 2)]
    (note,) = report_page.differing_options(results)
    assert "PaDiM differ in batch size or switches" in note


# ------------------------------------------------------------------------------ a browser


@pytest.fixture
def browser(page, tmp_path):
    if find_browser() is None:
        pytest.skip("no Chromium")
    with Browser(tmp_path / "profile") as browser:
        browser.open(page)
        browser.wait("document.documentElement.dataset.ready === 'yes'")
        yield browser


SHOWN = "[...document.querySelectorAll('#gallery .card')]"


def texts(browser, selector):
    return browser.run(f"[...document.querySelectorAll({selector!r})].map(e => e.textContent)")


def column(browser, k):
    return texts(browser, f"#results tbody td:nth-child({k})")


@pytest.mark.optional
def test_in_a_browser(browser, page):
    """One start of the browser, for it takes seconds: load, sort, filter, step, fade, theme."""
    b = browser
    titles = texts(b, "#category option")
    plain = titles.index("plain (toys)")
    choose = "(e => {{ e.value = '{}'; e.onchange(); }})(document.getElementById('{}'))"
    b.run(choose.format(plain, "category"))
    b.run(choose.format("padim", "arch"))
    # sorting: numbers as numbers, undefined last, the other way round on the second press
    heads = texts(b, "#results th")
    at = heads.index("image AUROC") + 1
    press = f"document.querySelectorAll('#results th button')[{at - 1}].click()"
    b.run(press)
    assert column(b, at) == ["90.0", "90.0", "70.0", "70.0", "-"]
    assert b.run(f"document.querySelectorAll('#results th')[{at - 1}].ariaSort") == "descending"
    b.run(press)
    assert column(b, at) == ["70.0", "70.0", "90.0", "90.0", "-"]
    # the gallery: all images, worst first
    assert b.run(f"{SHOWN}.length") == 8
    wrong = b.run(f"{SHOWN}.map(c => c.wrong)")
    assert wrong == sorted(wrong, reverse=True)
    # filters agree with the verdicts
    verdicts = texts(b, "#gallery .verdict")
    for key, word in (("n", "false negative"), ("p", "false positive")):
        b.press(key)
        assert texts(b, "#gallery .verdict") == [word] * verdicts.count(word)
    b.press("e")
    b.run(choose.format("square", "defect"))
    assert b.run(f"{SHOWN}.length") == 4
    b.run(choose.format("", "defect"))
    # stepping through setups, with the keyboard and around the end
    pressed = "document.querySelector('#setups [aria-pressed=true]').textContent"
    assert b.run(pressed) == "SM256"
    for key, name in (("]", "SM512"), ("]", "SM256"), ("[", "SM512")):
        b.press(key)
        assert b.run(pressed) == name
    # fading
    for key, heat, mask in (("1", 0, 0), ("2", 1, 0), ("3", 0, 1)):
        b.press(key)
        style = "getComputedStyle(document.documentElement).getPropertyValue"
        assert b.run(f"[{style}('--heat'), {style}('--mask')].map(Number)") == [heat, mask]
    # pictures are drawn when they come into view: heat maps in colours, masks black and white
    b.run("document.getElementById('gallery').scrollIntoView()")
    b.wait("document.querySelector('.card .mask').width > 0")
    pixels = """(c => [...new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)])
        (document.querySelector('.card .mask'))"""
    assert set(b.run(pixels)) <= {0, 255}
    assert b.run("document.querySelector('.card img').naturalWidth") > 0
    # a picture opens large, steps and closes
    b.run(f"{SHOWN}[0].click()")
    first = b.run("document.getElementById('detail-name').textContent")
    b.press("ArrowRight")
    second = b.run("document.getElementById('detail-name').textContent")
    b.press("ArrowLeft")
    assert b.run("document.getElementById('detail-name').textContent") == first != second
    b.press("ArrowDown")
    assert b.run(pressed) == "SM256"
    assert b.run("document.getElementById('detail-name').textContent") == first
    assert b.run("document.querySelectorAll('#strip button').length") == 2
    b.run("document.getElementById('close').click()")
    assert b.run("document.getElementById('detail').open") is False
    # another architecture and category: their curves, and names that are only text
    assert "plain" in b.run("document.querySelector('#charts svg title').textContent")
    b.run(choose.format(1 - plain, "category"))
    names = texts(b, "#gallery .caption span:last-child")
    assert len(names) == 5 and all(name.startswith(EVIL) for name in names)
    assert b.run("document.querySelectorAll('#gallery b, #gallery script').length") == 0
    assert b.run("document.querySelectorAll('#charts svg').length") >= 2
    # light and dark
    before = b.run("document.documentElement.dataset.theme")
    b.press("t")
    assert b.run("document.documentElement.dataset.theme") != before
    # on a phone nothing but tables and charts scrolls sideways
    b.resize(360, 740, 2, True)
    assert b.run("document.documentElement.scrollWidth") <= 360
    assert b.messages == [] and b.requests == [page.resolve().as_uri()]


@pytest.mark.optional
def test_five_hundred_pictures_without_stutter(page, tmp_path):
    """Of 500 cards only those near the view hold pixels, and a step to another setup redraws
    those alone. Counted, not timed."""
    if find_browser() is None:
        pytest.skip("no Chromium")
    data = data_of(page)
    one = next(c for c in data["categories"] if c["title"].startswith("plain"))
    one["images"] = [image | {"name": f"{k}.png"} for k in range(63) for image in one["images"]]
    for setups in one["cells"].values():
        for cell in setups.values():
            cell["scores"], cell["maps"] = cell["scores"] * 63, cell["maps"] * 63
    data["categories"] = [one]
    text = page.read_text("utf-8")
    start = text.index('id="data">') + len('id="data">')
    stop = text.index("</script>", start)
    large = tmp_path / "large.html"
    large.write_text(text[:start] + report_page.script_json(data) + text[stop:], "utf-8")
    with Browser(tmp_path / "profile") as b:
        b.open(large)
        b.wait("document.documentElement.dataset.ready === 'yes'")
        assert b.run(f"{SHOWN}.length") == 504
        drawn = "[...document.querySelectorAll('.card .stage')].filter(s => s.map).length"
        for where in (0, 250, 503):
            b.run(f"{SHOWN}[{where}].scrollIntoView()")
            b.wait(f"{SHOWN}[{where}].seen === true && {SHOWN}[{where}].box.map !== null")
            b.run("new Promise(done => setTimeout(done, 300))")
            assert 0 < b.run(drawn) < 80
        assert b.messages == []


@pytest.mark.optional
def test_metrics_alone_make_a_report_that_says_what_is_missing(tmp_path):
    folder = made_up_cell(tmp_path, small("one"))
    (folder / "analysis.npz").unlink()
    path, notes = report_page.write_report(tmp_path)
    assert any("nothing for pictures" in note for note in notes)
    assert data_of(path)["categories"] == [] and len(data_of(path)["summary"]["rows"]) == 1
    assert (tmp_path / "report" / "table_03.md").is_file()
    if find_browser() is None:
        pytest.skip("no Chromium")
    with Browser(tmp_path / "profile") as b:
        b.open(path)
        b.wait("document.documentElement.dataset.ready === 'yes'")
        assert "No cell has pictures" in b.run("document.getElementById('count').textContent")
        for key in "[]123npeto":
            b.press(key)
        assert b.messages == []
