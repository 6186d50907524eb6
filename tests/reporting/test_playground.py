"""The interactive section of the walk's page: its data, and the browser against the NumPy twins."""

import base64
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from browser import Browser, find_browser
from test_walk import SETUP
from toys import toy_images

from tiled_ref import merging, smoothing
from tiled_ref.data import encoders
from tiled_ref.ensemble import TiledEnsemble
from tiled_ref.reporting.walk import page as pages
from tiled_ref.reporting.walk import playground
from tiled_ref.reporting.walk import stages as walk
from tiled_ref.running.cell import Options
from tiled_ref.setups import SETUPS, Recipe, Setup
from tiled_ref.tiling import TileGrid

SHAPES = [
    ((64, 64), (32, 32), (16, 16)), ((50, 70), (32, 24), (8, 12)), ((64, 48), (32, 24), (32, 24)),
]  # fmt: skip
START = {"step": 1, "rule": "mean", "width": 0.1, "sigma": 2.0, "threshold": 5.0}
CHANGES = [
    {}, {"width": 0.0}, {"width": 0.5, "sigma": 8.0}, {"width": 0.29, "sigma": 0.5}, {"sigma": 3.7},
    {"rule": "max"}, {"rule": "top:2"}, {"threshold": 4.0}, {"threshold": 1e9},
    {"step": 2}, {"step": 2, "rule": "max", "width": 0.25, "sigma": 1.1, "threshold": 6.0},
]  # fmt: skip
CONTROLS = {  # control -> what a reader does with it, and what must then differ
    "stride": ("value = '2'", "change", {"merged", "smooth", "mask", "score", "numbers", "map"}),
    "overlap": ("checked = false", "change", {"merged", "smooth", "mask", "score", "numbers"}),
    "rule": ("value = 'max'", "change", {"score", "numbers"}),
    "width": ("value = 0.4", "input", {"smooth", "mask", "numbers", "profile", "map", "width-text"}),
    "sigma": ("value = 7", "input", {"smooth", "mask", "numbers", "profile", "map", "sigma-text"}),
    "threshold": ("value = 6.5", "input", {"mask", "numbers", "threshold-text", "mark"}),
    "seam": ("value = 'row 16'", "change", {"profile", "map"}),
    "place": ("value = 60", "input", {"profile", "map", "place-text"}),
}


def toy(sizes):
    """Arguments of `section`: smooth maps with a defect, each tile a little different."""
    rng = np.random.default_rng(3)
    grid = TileGrid(*sizes)
    y, x = np.mgrid[: grid.padded_size[0], : grid.padded_size[1]]
    scene = 3 + np.sin(x / 9) + np.cos(y / 7) + 4 * np.exp(-((x - 30) ** 2 + (y - 25) ** 2) / 60)
    maps = grid.tile(scene[None, : sizes[0][0], : sizes[0][1]])[:, :, 0]
    maps = maps + rng.normal(0, 0.4, (grid.rows, grid.cols, 1, 1))
    maps = (maps + rng.normal(0, 0.1, maps.shape)).astype(np.float32)
    scores = maps.max((2, 3))
    image = rng.integers(0, 255, (*sizes[0], 3), dtype=np.uint8)
    truth = scene[: sizes[0][0], : sizes[0][1]] > 5  # some, for every size
    return image, maps, scores, 5.0, Recipe(Setup("toy", "ENS", *sizes), score="top:2"), truth


def data_of(text):
    (found,) = re.findall(r'id="play-data">(.*?)</script>', text, re.S)
    return json.loads(found)


def decoded(data):
    """The tile maps (rows, cols, h, w) that the page holds."""
    rows, cols = data["grids"][0]["rows"], data["cols"]
    levels = np.frombuffer(base64.b64decode(data["maps"]), "<u2").astype(np.float64)
    return (data["low"] + data["level"] * levels).astype(np.float32).reshape(rows, cols, *data["tile"])


def twin(data, state):
    """What the program's NumPy twins make of the maps in the page."""
    chosen = next(g for g in data["grids"] if g["step"] == state["step"])
    grid = TileGrid(tuple(data["image"]), tuple(data["tile"]), tuple(chosen["stride"]))
    part = np.s_[:: state["step"], :: state["step"]]
    tiles = decoded(data)[part][: grid.rows, : grid.cols, None]
    merged = merging.untile_average(tiles, grid, impl="numpy")
    smooth = smoothing.smooth_seams(merged, grid, state["width"], state["sigma"], impl="numpy")[0]
    scores = np.float32(data["scores"]).reshape(-1, data["cols"], 1)[part][: grid.rows, : grid.cols]
    return {"merged": merged[0], "smooth": smooth, "mask": smooth >= state["threshold"],
            "score": merging.image_scores(scores, state["rule"])[0]}  # fmt: skip


def test_the_page_holds_the_maps_in_whole_levels():
    arguments = toy(SHAPES[0])
    data = data_of(playground.section(*arguments))
    low, high = arguments[1].min(), arguments[1].max()
    assert np.abs(decoded(data) - arguments[1]).max() <= 0.51 * (high - low) / 65535
    assert (decoded(data).min(), decoded(data).max()) == (low, pytest.approx(high, rel=1e-6))
    truth = np.unpackbits(np.frombuffer(base64.b64decode(data["truth"]), np.uint8))
    assert np.array_equal(truth[: 64 * 64].reshape(64, 64), arguments[-1])
    assert data["scores"] == arguments[2].ravel().tolist()
    photo = encoders.decode_bytes(base64.b64decode(data["photo"].partition(",")[2]))
    assert photo.shape == (64, 64, 3)
    flat = np.full((1, 2, 3), 7.0, np.float32)
    assert playground.quantised(flat)[0].max() == 0 and playground.quantised(flat)[1] == 7.0


def test_strides_are_those_whose_tiles_are_all_there():
    def strides(*sizes):
        return [g["stride"] for g in playground.coarser_grids(TileGrid(*sizes))]

    assert strides(64, 32, 16) == [(16, 16), (32, 32)]
    assert strides(64, 32, 32) == [(32, 32)]
    assert strides(80, 32, 8) == [(8, 8), (16, 16), (24, 24)]  # 32 px: its last tile starts at 64
    assert strides((64, 32), (32, 16), (16, 8)) == [(16, 8), (32, 16)]
    for image in ((80, 64), (64, 80)):  # 24 px fit one side only, 32 px the other
        assert strides(image, 32, 8) == [(8, 8), (16, 16)]


def test_one_location_or_too_many_bytes_is_one_sentence(monkeypatch):
    image, maps, _, *rest = arguments = toy(SHAPES[0])
    alone = playground.section(image, maps[:1, :1], maps[:1, :1].max((2, 3)), *rest)
    most = playground.MOST_BYTES
    monkeypatch.setattr(playground, "MOST_BYTES", 20_000)
    large = playground.section(*toy(SHAPES[0]))
    weighted = playground.section(*arguments[:4], replace(arguments[4], merge="window"), None)
    assert "one map of the whole image" in alone and "take 0.0 MB, more than" in large
    assert "leave out --merge window" in weighted
    paper = max(setup.tile_pixels for setup in SETUPS.values()) * 2 * 4 / 3  # of base64
    assert paper <= most
    for text in (alone, large, weighted):
        assert text.count("<p>") == 1 and not re.search("<(script|form|canvas)", text)


def test_the_walk_hands_over_its_own_arrays(tiny_backbone, tmp_path):
    train = toy_images()
    none = np.zeros((1, 96, 96), bool)
    stages = walk.walk(train[0], train, TiledEnsemble(SETUP, backbone=tiny_backbone), Options(),
                       train[:1], none, none.any((1, 2)))  # fmt: skip
    by_name = {stage.name: stage for stage in stages}
    pages.write_walk(stages, tmp_path, "")
    data = data_of((tmp_path / "index.html").read_text("utf-8"))
    maps = by_name["tile-maps"].array[:, :, 0]
    assert np.abs(decoded(data) - maps).max() <= np.ptp(maps) / 65535
    made = twin(data, data["start"])
    assert np.abs(made["smooth"] - by_name["smoothed-map"].array).max() <= np.ptp(maps) / 65535
    assert made["score"] == by_name["image-scores"].array[0]
    assert data["start"]["threshold"] == by_name["smoothed-map"].array.max()  # of the same image
    assert data["truth"] is None


def written(arguments, path):
    """A page with the playground alone."""
    text = pages._page([walk.Stage("image", "", arguments[0], "", "", "", arguments[0],
                                   playground.section(*arguments))], "toy")  # fmt: skip
    path.write_text(text, "utf-8")
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """One start for all tests, for it takes seconds."""
    if find_browser() is None:
        pytest.skip("no Chromium")
    with Browser(tmp_path_factory.mktemp("profile")) as b:
        yield b


def opened(browser, arguments, path):
    browser.requests.clear()
    browser.resize(1280, 900)
    browser.open(written(arguments, path))
    browser.wait("window.playground && playground.ready")
    return data_of(path.read_text("utf-8"))


@pytest.mark.optional
def test_the_browser_computes_what_the_numpy_twins_do(browser, tmp_path):
    """Within 1e-6 of the maps' range; masks equal but where a value is that near the threshold."""
    for k, sizes in enumerate(SHAPES):
        data = opened(browser, toy(sizes), tmp_path / f"{k}.html")
        steps = {grid["step"] for grid in data["grids"]}
        near = 1e-6 * data["level"] * playground.LEVELS
        for change in CHANGES:
            state = START | change
            if state["step"] not in steps:
                continue
            found = browser.run(
                f"(r => [[...r.merged], [...r.smooth], [...r.mask], r.score])"
                f"(playground.compute({json.dumps(state)}))"
            )
            made = twin(data, state)
            for name, values in zip(("merged", "smooth"), found):
                assert np.abs(made[name].ravel() - values).max() <= near, (sizes, state, name)
            differ = made["mask"].ravel() != np.array(found[2], bool)
            assert not differ[np.abs(made["smooth"].ravel() - state["threshold"]) > near].any()
            assert found[3] == pytest.approx(float(made["score"]), abs=near)
    assert browser.messages == []


SEEN = """(() => {
  const r = playground.compute(playground.state), hash = (a) => a.reduce((s, v, k) => s + v * (k % 97 + 1), 0);
  const seen = {merged: hash(r.merged), smooth: hash(r.smooth), mask: hash(r.mask), score: r.score};
  for (const id of ['numbers', 'width-text', 'sigma-text', 'threshold-text', 'place-text'])
    seen[id] = document.getElementById('play-' + id).textContent;
  for (const id of ['map', 'mask'])
    seen['canvas ' + id] = document.getElementById('play-' + id).toDataURL();
  seen.map = seen['canvas map'];
  seen.profile = document.getElementById('play-profile').innerHTML;
  seen.mark = document.getElementById('play-mark').style.left;
  return seen;
})()"""


@pytest.mark.optional
def test_every_control_changes_what_it_should(browser, tmp_path):
    """Starting from the setup's values each time; what a control has no part in stays."""
    path = tmp_path / "page.html"
    data = opened(browser, toy(SHAPES[0]), path)
    assert browser.run("playground.state.rule") == "top:2"
    browser.run("playground.set({seam: 'column 16', place: 24})")
    start = dict(browser.run("playground.state"))
    first = browser.run(SEEN)
    for control, (action, event, expected) in CONTROLS.items():
        node = f"document.getElementById('play-{control}')"
        assert browser.run(f"{node}.labels.length") == 1, control
        browser.run(f"{node}.{action}; {node}.dispatchEvent(new Event('{event}'))")
        now = browser.run(SEEN)
        changed = {key for key in now if now[key] != first[key]}
        assert expected <= changed, (control, expected - changed)
        if control in ("rule", "seam", "place", "threshold"):
            assert not changed & {"merged", "smooth"}, control
        state = dict(browser.run("playground.state"))
        made = twin(data, state)
        assert f"Image score {float(made['score']):.4g}," in now["numbers"]
        assert f"({made['mask'].sum():,}) reach the threshold" in now["numbers"]
        both = (made["mask"] & toy(SHAPES[0])[-1]).sum()
        assert f"{both:,} of them in the mask" in now["numbers"]
        browser.run(f"playground.set({json.dumps(start)})")
        assert browser.run(SEEN) == first, control
    browser.run("document.getElementById('play-overlap').click()")
    assert browser.run("document.getElementById('play-stride').value") == "2"
    assert browser.run("[...document.querySelectorAll('#play-seam option')].map(o => o.value)") == [
        "column 32", "row 32",
    ]  # fmt: skip
    browser.run("document.getElementById('play-reset').click()")
    state = browser.run("playground.state")
    assert {key: state[key] for key in data["start"]} == data["start"]
    assert browser.messages == [] and browser.requests == [path.resolve().as_uri()]


@pytest.mark.optional
def test_the_profile_is_the_map_across_the_seam(browser, tmp_path):
    data = opened(browser, toy(SHAPES[0]), tmp_path / "page.html")
    for seam, place, part in (("column 32", 5, np.s_[5, 24:40]), ("row 16", 60, np.s_[8:24, 60])):
        browser.run(f"playground.set({{seam: '{seam}', place: {place}}})")
        found, made = browser.run("playground.profile()"), twin(data, data["start"])
        assert found["before"] == pytest.approx(made["merged"][part].tolist(), abs=1e-6)
        assert found["after"] == pytest.approx(made["smooth"][part].tolist(), abs=1e-6)
    # inside the band of a crossing seam all of the profile is smoothed, and shaded
    shaded = "[...document.querySelectorAll('#play-profile rect')].map(r => Number(r.getAttribute('width')))"
    for place, part in ((5, 6 / 16), (17, 1)):  # 3 px each side of column 32, of 16 shown
        browser.run(f"playground.set({{seam: 'column 32', place: {place}}})")
        assert browser.run(shaded) == [pytest.approx(part * (400 - 8 - 78))]
    # the first one is the largest jump of the merged map outside such bands
    browser.run("document.getElementById('play-reset').click()")
    merged, state = twin(data, data["start"])["merged"], browser.run("playground.state")
    axis, at = state["seam"].split()
    jumps = {"row": np.abs(np.diff(merged, axis=0)), "column": np.abs(np.diff(merged, axis=1)).T}
    alone = ~smoothing.bands(TileGrid(*SHAPES[0]), data["start"]["width"])[0]  # of both axes
    borders = [jumps[name][[15, 31, 47]][:, alone].max() for name in jumps]
    assert jumps[axis][int(at) - 1, state["place"]] == pytest.approx(max(borders), rel=1e-5)


@pytest.mark.optional
def test_sliders_hold_the_setups_own_values(browser, tmp_path):
    image, maps, scores, threshold, recipe, truth = toy(SHAPES[0])
    recipe = replace(recipe, seam_width=0.8, seam_sigma=0.3)
    opened(browser, (image, maps, scores, threshold, recipe, truth), tmp_path / "page.html")
    for name, value in (("width", 0.8), ("sigma", 0.3)):
        assert float(browser.run(f"document.getElementById('play-{name}').value")) == value


@pytest.mark.optional
def test_keys_move_the_controls_and_nothing_scrolls_sideways_on_a_phone(browser, tmp_path):
    opened(browser, toy(SHAPES[0]), tmp_path / "page.html")
    browser.run("document.getElementById('play-sigma').focus()")
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight", code="ArrowRight",
                 windowsVirtualKeyCode=39)  # fmt: skip
    assert browser.run("playground.state.sigma") == pytest.approx(2.1)
    browser.resize(360, 740, 2, True)
    assert browser.run("document.documentElement.scrollWidth") <= 360
    assert browser.messages == []


@pytest.mark.optional
@pytest.mark.parametrize("image", [(400, 48), (48, 400), (64, 64)])
def test_every_control_can_be_reached_on_a_phone(browser, tmp_path, image):
    """The pictures stay at the top of the window, and leave room for each control below them."""
    opened(browser, toy((image, (48, 48), (32, 32))), tmp_path / "page.html")
    browser.resize(390, 844, 2, True)
    hidden = browser.run("""[...document.querySelectorAll('#play-controls :is(select, input, button)')]
      .filter(node => {
        node.scrollIntoView();
        const {left, top, width, height} = node.getBoundingClientRect();
        return document.elementFromPoint(left + width / 2, top + height / 2) !== node;
      }).map(node => node.id)""")
    assert hidden == []
    browser.resize(1280, 900)
    assert browser.run("document.getElementById('play-map').clientHeight") <= 450


@pytest.mark.optional
def test_the_numbers_of_the_profile_are_not_cut_off(browser, tmp_path):
    image, maps, *rest = toy(SHAPES[0])
    opened(browser, (image, -maps / 300, *rest), tmp_path / "page.html")  # such as -0.01234
    left = browser.run("[...document.querySelectorAll('#play-profile text')].map(t => t.getBBox().x)")
    assert min(left) >= 0


@pytest.mark.optional
def test_a_normal_image_and_the_rules_in_words(browser, tmp_path):
    *arguments, recipe, truth = toy(SHAPES[0])
    for score, words in (("top:1", "the highest of 9"), ("top:99", "the mean of the 9 highest of 9")):
        recipe = replace(recipe, score=score)
        opened(browser, (*arguments, recipe, truth & False), tmp_path / "page.html")
        text = browser.run("document.getElementById('play-numbers').textContent")
        assert f", {words} tile scores." in text and text.endswith("No pixel is defective.")


@pytest.mark.optional
def test_without_overlap_or_truth_their_controls_and_words_are_off(browser, tmp_path):
    *arguments, _ = toy(SHAPES[2])
    opened(browser, [*arguments, None], tmp_path / "page.html")
    disabled = "['stride', 'overlap'].map(id => document.getElementById('play-' + id).disabled)"
    assert browser.run(disabled) == [True, True]
    assert browser.run("document.getElementById('play-overlap').checked") is False
    assert browser.run("document.getElementById('play-truth').hidden") is True
    assert "defective" not in browser.run("document.getElementById('play-numbers').textContent")
    assert browser.messages == []
