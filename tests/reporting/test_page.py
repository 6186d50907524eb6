"""report.html: what stands in it, and how it behaves in a real browser."""

import base64
import html
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from browser import Browser, find_browser
from made_up import made_up_cell, made_up_result, small

from tiled_ref.data import encoders
from tiled_ref.reporting import page as report_page
from tiled_ref.reporting.collection import Collection
from tiled_ref.reporting.drawing import render
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
    said = [text for text in pages if "Defects that vanish" in text]
    assert said and all("2 of 9 (a&#42;b&#42; at" in text and "<i> at" not in text for text in said)
    assert lost([made_up_result(**dict.fromkeys(lose, 0))]) == []
    assert lost([made_up_result(**dict.fromkeys(lose))]) == lost([made_up_result()]) == []


def test_json_cannot_end_its_element():
    text = report_page.script_json({"a": "</script><!--&", "b": "\u2028"})
    assert "<" not in text and ">" not in text and "&" not in text
    assert json.loads(text) == {"a": "</script><!--&", "b": "\u2028"}


def test_cells_of_tables_become_html_and_nothing_else_does():
    cell = report_page.cell_html
    assert cell("**9.0** ± 1<br><sub>paper *8* & 7</sub>") == (
        "<b>9.0</b> ± 1<br><sub>paper <i>8</i> &amp; 7</sub>"
    )
    assert cell(escape("<i>*x*</i>&<br>|")) == (
        "&#60;i&#62;&#42;x&#42;&#60;/i&#62;&#38;&#60;br&#62;&#124;"
    )
    assert cell("<i>") == "&lt;i&gt;"


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
        for c, a, k in (("screw", 0.7, 1), ("screw", 0.8, 2), ("screw", 0.9, 3),
                        ("tile", None, 1), ("wood", 0.5, 1), ("wood", 0.6, 2))
    ]  # fmt: skip
    summary = report_page.summary(results)
    column = summary["headers"].index("image AUROC")
    assert [row[column][0] for row in summary["rows"]] == ["80.0 ± 10.0", "-", "55.0"]
    assert summary["rows"][0][column][1] == pytest.approx(80)
    assert summary["rows"][1][column][1] is None
    beside = summary["headers"].index("paper AUROC (difference)")
    assert summary["rows"][0][beside] == ["69.4 (+10.6)", pytest.approx(10.6)]
    shared = made_up_result(seed=9, features_reused=1.0, seconds_train=1.0)
    other = made_up_result(seed=9, category="wood", features_reused=1.0)
    more = report_page.summary([*results, shared, other])
    column = summary["headers"].index("training")
    assert [row[column][0] for row in more["rows"]] == ["10.0 ± 0.0 s", "10.0 s", "10.0 s"]
    slow = [made_up_result(seed=k, seconds_train=1000 + 200 * k) for k in (0, 1, 2)]
    assert report_page.summary(slow)["rows"][0][column] == ["1,200 ± 200 s", 1200]
    synthetic = report_page.summary([made_up_result("synthetic", "board")])
    assert not any("paper" in header for header in synthetic["headers"])
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
    assert "The results differ in antialias: False, True." in report_page.differing_options(results)
    results = [made_up_result(), made_up_result(pixel_edition=2)]
    (note,) = report_page.differing_options(results)
    assert note == "The results differ in pixel edition: 2, older."
    results = [made_up_result(switches={"steps": k}) for k in (1, 2)]
    (note,) = report_page.differing_options(results)
    assert "PaDiM differ in batch size or settings" in note


def shown(page):
    """The words of a page, without those of its program and style, and those in its data."""
    text = page.read_text("utf-8")
    words = re.sub(r"<(script|style)\b.*?</\1>|<[^>]*>", " ", text, flags=re.S)
    return html.unescape(words), json.dumps(data_of(page))


def test_title_and_date_stand_on_the_page_and_change_nothing_else(page, out):
    plain = page.read_text("utf-8")
    path, _ = report_page.write_report(out, EVIL, "2026-02-03")
    text = path.read_text("utf-8")
    escaped = html.escape(EVIL)
    assert text.count(escaped) == 2 and EVIL not in text and text.count("2026-02-03") == 1
    back = text.replace(escaped, "Tiled ensemble: results").replace("2026-02-03", "")
    report_page.write_report(out)
    assert back == plain == page.read_text("utf-8")


def test_a_reader_of_the_page_sees_no_notes_for_who_runs_it(tmp_path):
    """Nothing of options, files and missing figures, with every note that there is."""
    made_up_cell(tmp_path, small("one"), features_reused=0.5, peak_memory_bytes=None)
    made_up_cell(tmp_path, small("one"), setup="ENS4", antialias=True, weights="random")
    mode = {"image": None, "pixel": None}
    for k, name in enumerate(report_page.THRESHOLDS):
        folder = tmp_path / "mvtec" / "screw" / "padim" / "SM256" / f"seed{k}"
        folder.mkdir(parents=True)
        result = made_up_result("mvtec", "screw", setup="SM256", seed=k,
                                thresholds={"mode": name} | mode, pixel_edition=k)  # fmt: skip
        (folder / "metrics.json").write_text(json.dumps(result))
    path, notes = report_page.write_report(tmp_path)
    assert sum("run it again with --report" in note for note in notes) == 4
    assert sum(re.match(r"Figure \d needs", note) is not None for note in notes) >= 2
    tables = "".join(file.read_text("utf-8") for file in path.parent.glob("*.md"))
    text, data = shown(path)
    for words in (text, data, tables, page_program()):
        for hint in (r"--[a-z]", r"\bneeds\b", r"\.json", r"\.npz", r"\.py\b", r"\bOUT\b"):
            assert not re.search(hint, words), (hint, re.findall(f".*{hint}.*", words))
    assert not re.search(r"\bcells?\b", text + tables + page_program())


def page_program():
    """The texts in the page's program, but selectors and names of styles."""
    program = report_page._asset("report.js")
    return " ".join(re.findall(r'"[A-Z][^"\n]* [^"\n]*"', program))


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
    for key, word in (("n", "missed"), ("p", "false alarm")):
        b.press(key)
        assert texts(b, "#gallery .verdict") == [said for said in verdicts if word in said]
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
    for key, heat, mask in (("1", 0, 0), ("2", 1, 0), ("3", 1, 1)):
        b.press(key)
        style = "getComputedStyle(document.documentElement).getPropertyValue"
        assert b.run(f"[{style}('--heat'), {style}('--mask')].map(Number)") == [heat, mask]
    for part in ("photo", "heat"):
        assert b.run(f"[...document.querySelectorAll('.{part}')].every(i => i.naturalWidth > 0)")
    # verdict, localisation, score and threshold stand under each picture
    captions = texts(b, "#gallery .caption")
    assert all(re.search(r"^(anomalous|normal).*score [-\d.e+]+, threshold [-\d.e+]+", c)
               for c in captions)  # fmt: skip
    assert any(re.search(r"\d of \d defects? localised|detected, not localised", c)
               for c in captions)  # fmt: skip
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


def with_data(page, path, data):
    """A copy of a page with other data."""
    text = page.read_text("utf-8")
    start = text.index('id="data">') + len('id="data">')
    stop = text.index("</script>", start)
    path.write_text(text[:start] + report_page.script_json(data) + text[stop:], "utf-8")
    return path


@pytest.mark.optional
def test_five_hundred_pictures_are_laid_out_only_near_the_view(page, tmp_path):
    """Of 500 cards only those near the view have a layout of their content, wherever it is."""
    if find_browser() is None:
        pytest.skip("no Chromium")
    data = data_of(page)
    one = next(c for c in data["categories"] if c["title"].startswith("plain"))
    one["images"] = [image | {"name": f"{k}.png"} for k in range(63) for image in one["images"]]
    for setups in one["cells"].values():
        for cell in setups.values():
            for key in ("scores", "wrong", "verdicts", "maps", "marks"):
                cell[key] = cell[key] * 63
    data["categories"] = [one]
    large = with_data(page, tmp_path / "large.html", data)
    with Browser(tmp_path / "profile") as b:
        b.open(large)
        b.wait("document.documentElement.dataset.ready === 'yes'")
        assert b.run(f"{SHOWN}.length") == 504
        seen = "c => c.firstChild.checkVisibility({contentVisibilityAuto: true})"
        drawn = f"{SHOWN}.filter({seen})"
        for where in (0, 250, 503):
            b.run(f"void {SHOWN}[{where}].scrollIntoView()")
            b.run("new Promise(done => setTimeout(done, 300))")
            assert b.run(f"{drawn}.includes({SHOWN}[{where}])")
            assert 0 < b.run(f"{drawn}.length") < 80
        assert b.messages == []


def screenshot(browser, **box):
    """A part of the window, uint8 (height, width, 3)."""
    clip = box | {"scale": 1}
    data = browser.call("Page.captureScreenshot", clip=clip)["data"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


@pytest.mark.optional
def test_the_browser_shows_the_overlay_of_the_pictures(page, tmp_path):
    """A map from 0 to 255 over a colourful image: on the screen stands `render.overlay` of both;
    measured: at most 3 levels apart, and the image alone equal."""
    if find_browser() is None:
        pytest.skip("no Chromium")
    side, ramp = 256, np.linspace(0, 255, 256)
    image = np.full((256, 256, 3), 90.0)
    image[:, :, 0], image[:, :, 2] = ramp[:, None], ramp[::-1]
    picture = encoders.encode_jpeg(image.astype(np.uint8), 100)
    heat = encoders.encode_jpeg(np.tile(ramp, (256, 1)).astype(np.uint8), 100)
    data = data_of(page)
    one = data["categories"][0]
    arch, setups = next(iter(one["cells"].items()))
    photo = {"jpeg": report_page._base64(picture), "w": side, "h": side}
    one["images"] = [one["images"][0] | photo]
    for cell in setups.values():
        cell["maps"] = [report_page._base64(heat)]
        for key in ("scores", "wrong", "verdicts", "marks"):
            cell[key] = cell[key][:1]
    data["categories"], data["archs"] = [one], {arch: arch}
    with Browser(tmp_path / "profile") as b:
        b.open(with_data(page, tmp_path / "one.html", data))
        b.wait("document.documentElement.dataset.ready === 'yes'")
        style = f"position:fixed;inset:0;width:{side}px;height:{side}px;z-index:9"
        one_stage = "Object.assign(document.querySelector('.card .stage'), {style: '%s'})" % style
        b.run(f"document.body.append({one_stage})")
        b.press("o")  # without outlines
        seen = {}
        for key in "123":
            b.press(key)
            b.run("new Promise(done => setTimeout(done, 400))")
            seen[key] = screenshot(b, x=0, y=0, width=side, height=side).astype(int)
    shown, values = encoders.decode_bytes(picture), encoders.decode_bytes(heat)[:, :, 0] / 255
    assert np.abs(seen["1"] - shown).max() <= 3
    assert np.abs(seen["2"] - render.overlay(shown, values)).max() <= 4
    assert set(np.unique(seen["3"])) <= {0, 255}


@pytest.mark.optional
def test_on_paper_are_all_pictures_charts_and_tables_in_light_colours(page, tmp_path):
    if find_browser() is None:
        pytest.skip("no Chromium")
    data = data_of(page)
    cells = [cell for one in data["categories"] for setups in one["cells"].values()
             for cell in setups.values()]  # fmt: skip
    sheets = sum(len(one["images"]) * len(one["cells"]) for one in data["categories"])
    stages = sheets + sum(len(cell["maps"]) for cell in cells)
    with Browser(tmp_path / "profile", dark=True) as b:
        b.open(page)
        b.wait("document.documentElement.dataset.ready === 'yes'")
        dark = b.run("getComputedStyle(document.body).backgroundColor")
        opened = "document.querySelectorAll('details[open]').length"
        before = b.run(opened)
        b.press("3")  # on paper is the heat map, whatever the screen shows
        b.press("o")
        b.call("Emulation.setEmulatedMedia", media="print",
               features=[{"name": "prefers-color-scheme", "value": "dark"}])  # fmt: skip
        b.resize(1047, 700)  # an A4 page on its side, less 10 mm all around
        b.run("dispatchEvent(new Event('beforeprint'))")
        assert b.run("document.querySelectorAll('details:not([open])').length") == 0
        assert b.run("document.querySelectorAll('#print .sheet').length") == sheets
        assert b.run("document.querySelectorAll('#print .stage').length") == stages
        seen = "e => e.checkVisibility() && e.getBoundingClientRect().width > 50"
        for part in ("#print .stage", "#print .figure svg", "#overview svg", "#tables table",
                     "#detection table"):  # fmt: skip
            found = f"[...document.querySelectorAll('{part}')]"
            assert b.run(f"{found}.length > 0 && {found}.every({seen})"), part
        images = "[...document.querySelectorAll('#print img')]"
        assert b.run(f"{images}.every(i => i.complete && i.naturalWidth > 0)")
        assert b.run("document.querySelectorAll('#print .scale').length") == len(
            [arch for one in data["categories"] for arch in one["cells"]]
        )
        style = "(e, p) => getComputedStyle(document.querySelector(e))[p]"
        assert b.run(f"({style})('#print .heat', 'opacity')") == "1"
        assert b.run(f"({style})('#print .mask', 'opacity')") == "0"
        assert b.run(f"({style})('#print .line', 'display')") == "inline"
        for part in ("#print .sheet", "#print .figure", "tr"):
            assert b.run(f"({style})('{part}', 'breakInside')") == "avoid"
        assert dark == "rgb(20, 24, 29)"
        assert b.run(f"({style})('body', 'backgroundColor')") == "rgb(255, 255, 255)"
        assert b.run(f"({style})('#print svg text', 'fill')") == "rgb(28, 33, 40)"
        assert b.run("document.documentElement.scrollWidth") <= 1047  # nothing is cut off
        hidden = "[...document.querySelectorAll('#gallery, .bar')]"
        assert b.run(f"{hidden}.some(e => e.checkVisibility())") is False
        b.run("dispatchEvent(new Event('afterprint'))")
        assert b.run("document.querySelectorAll('#print .sheet').length") == 0
        assert b.run(opened) == before
        paper = base64.b64decode(b.call("Page.printToPDF")["data"])
        assert paper.count(b"/Subtype /Image") >= stages
        assert b.messages == []


@pytest.mark.optional
def test_the_summary_fits_a_window_and_the_page_a_phone(tmp_path):
    """All columns, long names, spreads: no box of 1280 px scrolls, on 390 px only the table's."""
    if find_browser() is None:
        pytest.skip("no Chromium")
    for arch in ("padim", "reverse_distillation"):
        for seed in (42, 5125, 33):
            for category in ("toothbrush", "transistor"):
                folder = tmp_path / "mvtec" / category / arch / "ENS9" / f"seed{seed}"
                folder.mkdir(parents=True)
                result = made_up_result(
                    "mvtec", category, arch, seed=seed, image_auroc=0.5 + seed / 1e5,
                    pixel_auroc=0.5 + seed / 1e5, pixel_aupro=0.5 + seed / 1e5,
                    seconds_train=1000 + seed, seconds_test=200 + seed,
                )  # fmt: skip
                (folder / "metrics.json").write_text(json.dumps(result))
    path, _ = report_page.write_report(tmp_path, "A title of some length " * 3, "2026-11-28")
    with Browser(tmp_path / "profile") as b:
        b.open(path)
        b.wait("document.documentElement.dataset.ready === 'yes'")
        assert len(texts(b, "#results th")) == 14
        wide = "(e => [e.scrollWidth, e.clientWidth])(document.querySelector('{}'))"
        for box in ("html", "#summary .scroll"):
            inside, width = b.run(wide.format(box))
            assert inside <= width, box
        b.resize(390, 844, 2, True)
        assert b.run("document.documentElement.scrollWidth") <= 390
        inside, width = b.run(wide.format("#summary .scroll"))
        assert inside > width


@pytest.mark.optional
def test_metrics_alone_make_a_report_that_says_what_is_missing(tmp_path):
    folder = made_up_cell(tmp_path, small("one"))
    (folder / "analysis.npz").unlink()
    path, notes = report_page.write_report(tmp_path)
    assert any("no picture data" in note for note in notes)
    assert data_of(path)["categories"] == [] and len(data_of(path)["summary"]["rows"]) == 1
    assert (tmp_path / "report" / "table_03.md").is_file()
    if find_browser() is None:
        pytest.skip("no Chromium")
    with Browser(tmp_path / "profile") as b:
        b.open(path)
        b.wait("document.documentElement.dataset.ready === 'yes'")
        assert "There are no pictures" in b.run("document.getElementById('count').textContent")
        for key in "[]123npeto":
            b.press(key)
        assert b.messages == []
