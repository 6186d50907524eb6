"""The walk of one image: its arrays are those of a run, its pictures are made of them."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from browser import Browser, find_browser
from PIL import Image
from toys import ToySample, toy_category, toy_images

from tiled_ref import cli
from tiled_ref.data import synthetic
from tiled_ref.data.encoders import encode_png
from tiled_ref.data.resizing import resize_image
from tiled_ref.ensemble import TiledEnsemble
from tiled_ref.models import MODELS
from tiled_ref.reporting.drawing import render
from tiled_ref.reporting.walk import comparison, seams
from tiled_ref.reporting.walk import page as pages
from tiled_ref.reporting.walk import stages as walk
from tiled_ref.reporting.walk.setups_figure import SQUARE, setups_stage
from tiled_ref.reporting.walk.stage import DEFECT, Stage, apart, in_a_row
from tiled_ref.running.cell import Options
from tiled_ref.setups import SETUPS, Recipe, Setup
from tiled_ref.support.devices import _float32, full_precision
from tiled_ref.support.errors import InputError
from tiled_ref.support.progress import Progress
from tiled_ref.verdicts.thresholds import f1_threshold

SETUP = Setup("toy", "ENS", (96, 96), (48, 48), (24, 24))
POSITION = {  # architecture: the stages of one position
    "padim": ["distances", "covariance", "gaussian"], "patchcore": ["distances", "neighbourhood"],
    "fastflow": ["likelihoods", "hidden"], "reverse_distillation": ["cosines", "vectors"],
}  # fmt: skip
SINGLE = ["single-image", "single-map", "single-mask"]
CHARTS = {
    "setups",
    "gaussian",
    "neighbourhood",
    "hidden",
    "vectors",
    "image-scores",
    "seam-profile",
}


def stage_names(arch="padim", seams=True):
    """The names of the stages up to the mask."""
    return [
        "setups", "image", "tiles", "features-layer1", "features-layer2", "features-layer3",
        *POSITION[arch], "tile-maps", "image-scores", "merged-map", "seam-band", "smoothed-map",
        *["seam-profile"] * seams, "mask",
    ]  # fmt: skip


def file_names(names):
    return [
        f"{k:02d}-{name}.{'svg' if name in CHARTS else 'png'}" for k, name in enumerate(names, 1)
    ]


STAGES = [*stage_names(), "truth"]


def pictures(samples):
    return np.stack([s.read_image().transpose(2, 0, 1) for s in samples])


@pytest.fixture(scope="module")
def category():
    return toy_category()


@pytest.fixture(scope="module")
def walked(tiny_backbone, category):
    """The stages of one walk, and what a trained ensemble says of the same images."""
    bad = [s for s in category.test if s.label]
    images, masks = pictures(bad), np.stack([s.read_mask() for s in bad])
    train = toy_images()
    ensemble = TiledEnsemble(SETUP, backbone=tiny_backbone)
    stages = walk.walk(images[0], train, ensemble, Options(), images[1:], masks[1:],
                       masks[1:].any((1, 2)), masks[0])  # fmt: skip
    trained = TiledEnsemble(SETUP, backbone=tiny_backbone).fit(train)
    return {s.name: s for s in stages}, stages, trained.predict(images), masks


def test_stages_come_in_the_order_of_the_walk(walked):
    assert [stage.name for stage in walked[1]] == STAGES


def test_arrays_are_those_of_a_run(walked):
    by_name, _, (maps, _), _ = walked
    assert np.array_equal(by_name["smoothed-map"].array, maps[0])
    outside = ~by_name["seam-band"].array
    assert np.array_equal(by_name["merged-map"].array[outside], maps[0][outside])
    assert not np.array_equal(by_name["merged-map"].array, maps[0])


def test_a_walk_computes_in_full_precision(tiny_backbone):
    """All of it: features and distances are drawn beside the maps and scores of the ensemble."""
    images, seen, before = toy_images(), [], _float32()
    hook = tiny_backbone.register_forward_pre_hook(lambda *args: seen.append(_float32()))
    ensemble = TiledEnsemble(Setup("SM", "SM", (96, 96), (96, 96), (96, 96)), backbone=tiny_backbone)
    none = np.zeros((1, 96, 96), bool)
    walk.walk(images[0], images[1:], ensemble, Options(), images[1:2], none, none.any((1, 2)))
    hook.remove()
    with full_precision():
        assert len(seen) >= 3 and all(found == _float32() != before for found in seen)


def test_the_image_score_in_the_text_is_eq_5(walked):
    by_name, _, (_, scores), _ = walked
    assert np.array_equal(by_name["image-scores"].array, scores)
    assert f"image score {scores[0]:.4g} is the mean" in by_name["image-scores"].text
    tiles = re.search(r"the scores ([\d., ]+), row", by_name["tile-maps"].text)[1].split(", ")
    assert len(tiles) == 9
    assert np.mean([float(t) for t in tiles]) == pytest.approx(scores[0], rel=1e-3)


def test_tiles_and_features_have_the_shapes_of_eq_1(walked, category):
    by_name = walked[0]
    image = by_name["image"].array
    assert np.array_equal(by_name["tiles"].array[1, 2, 0], image[:, 24:72, 48:96])
    shapes = [by_name[f"features-layer{k}"].shape for k in (1, 2, 3)]
    assert shapes == [
        "(3, 3, 64, 12, 12) float32", "(3, 3, 128, 6, 6) float32", "(3, 3, 256, 3, 3) float32"
    ]  # fmt: skip


def test_the_mask_is_what_reaches_the_best_f1_on_the_other_images(walked):
    by_name, _, (maps, _), masks = walked
    mask = by_name["mask"].array
    threshold = float(re.search(r"threshold ([\d.e+-]+),", by_name["mask"].text)[1])
    assert mask.sum() == pytest.approx((maps[0] >= threshold).sum(), abs=3)  # 4 digits of it

    def f1(value):
        called, true = maps[1:] >= value, masks[1:]
        return 2 * (called & true).sum() / (called.sum() + true.sum())

    assert f1(threshold) >= max(f1(v) for v in np.quantile(maps[1:], np.linspace(0, 1, 60))) - 1e-3


def test_the_mask_holds_the_threshold_itself(tiny_backbone):
    """One normal image is walked and chooses the threshold: its largest value alone is in."""
    train = toy_images()
    ensemble = TiledEnsemble(SETUP, backbone=tiny_backbone)
    none = np.zeros((1, 96, 96), bool)
    stages = walk.walk(train[0], train, ensemble, Options(), train[:1], none, none.any((1, 2)))
    smooth = next(stage.array for stage in stages if stage.name == "smoothed-map")
    assert np.array_equal(stages[-1].array, smooth == smooth.max())


def test_the_defect_is_outlined_in_every_picture_at_its_place(walked):
    """In the image and the maps around the truth itself, in tiles and features around its parts."""
    by_name = walked[0]
    image, truth = by_name["image"].array.transpose(1, 2, 0), by_name["truth"].array

    def lines(picture):
        return (picture == DEFECT).all(-1)

    line = lines(render.draw_contours(image, truth, DEFECT))
    assert line.any() and not (line & truth).any()
    assert np.array_equal(by_name["truth"].picture[truth], image[truth])
    for name in ("image", "truth", "merged-map", "smoothed-map", "seam-band"):
        assert np.array_equal(lines(by_name[name].picture)[:96, :96], line), name
    hidden = lines(by_name["mask"].picture) & ~line
    assert not hidden.any()  # the mask's own line may cover it
    for name in ("tiles", "features-layer1", "features-layer2", "features-layer3", "tile-maps"):
        found = lines(by_name[name].picture)
        for i, j in SETUP.input_grid.locations():
            part = found[i * 56 : i * 56 + 48, j * 56 : j * 56 + 48]
            inside = truth[24 * i : 24 * i + 48, 24 * j : 24 * j + 48]
            expected = lines(render.draw_contours(np.zeros((48, 48, 3), np.uint8), inside, DEFECT))
            assert np.array_equal(part, expected), (name, i, j)


@pytest.mark.parametrize("name", ["distances", "features-layer1", "tile-maps", "merged-map"])
def test_a_heat_map_has_its_scale(walked, name):
    """To the right of the map, from the highest colour at the top to the lowest."""
    picture = walked[0][name].picture
    columns = [picture[:, k] for k in range(picture.shape[1] * 3 // 4, picture.shape[1])]
    ends = render.COLORS[[-1, 0]]
    assert any(all((column == end).all(1).any() for end in ends) for column in columns)


def test_apart_by_hand():
    tiles = np.arange(4, dtype=np.uint8).reshape(2, 2, 1, 1, 1).repeat(3, axis=4)
    assert apart(tiles, gap=1)[:, :, 0].tolist() == [
        [0, 255, 1], [255, 255, 255], [2, 255, 3]
    ]  # fmt: skip


def test_a_file_a_name_or_the_first_defective_image(category, tmp_path):
    name, image, sample = walk.choose_image(walk.BUILT_IN, category, (96, 96))
    assert sample is next(s for s in category.test if s.label) and name == sample.name
    assert np.array_equal(image, sample.read_image().transpose(2, 0, 1))
    last = category.test[-1]
    assert walk.choose_image(last.name, category, (96, 96))[2] is last
    path = tmp_path / "mine.png"
    path.write_bytes(encode_png(last.read_image()))
    name, image, sample = walk.choose_image(str(path), category, (48, 32))
    assert (name, image.shape, sample) == ("mine.png", (3, 48, 32), None)
    normal = toy_category(n_bad=0)
    assert walk.choose_image(walk.BUILT_IN, normal, (96, 96))[2] is normal.test[0]
    with pytest.raises(InputError, match="no such file, and no test image of the category toy"):
        walk.choose_image("nowhere.png", category, (96, 96))


def test_the_walked_image_does_not_choose_its_own_threshold(category):
    walked = next(s for s in category.test if s.label)
    chosen = walk.threshold_samples(category, walked, n=3)
    assert walked not in chosen and [s.label for s in chosen] == [0, 0, 0, 1, 1, 1]
    assert [s.label for s in walk.threshold_samples(toy_category(has_masks=False), n=3)] == [
        0,
        0,
        0,
    ]
    only_bad = toy_category(n_good=0)
    assert walk.threshold_samples(only_bad, n=2)[:2] == list(only_bad.train[:2])


def test_without_defective_images_the_threshold_is_the_largest_normal_value(tiny_backbone):
    train = toy_images()
    ensemble = TiledEnsemble(SETUP, backbone=tiny_backbone)
    none = np.zeros((2, 96, 96), bool)
    stages = walk.walk(train[0], train, ensemble, Options(), train[:2], none, none.any((1, 2)))
    assert [s.name for s in stages] == STAGES[:-1]
    assert "the largest value on 2 other images" in stages[-1].text
    assert stages[-1].array.sum() <= 1  # the image is one of the two


def test_write_walk_makes_a_page_with_every_stage(walked, tmp_path):
    stages = walked[1]
    names = pages.write_walk(stages, tmp_path / "new", "a <title>")
    page = (tmp_path / "new" / "index.html").read_text("utf-8")
    assert names == file_names(STAGES)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == sorted(
        [*names, "index.html", "overview.jpg"]
    )
    assert 'id="playground"' in page and "@" not in re.sub('@media|base64,[^"]*', "", page)
    assert all(address[:5] in ("data:", "") for address in re.findall(r'src="([^"]*)"', page))
    assert page.count("<img ") == sum(s.suffix == "png" for s in stages)
    assert page.count("<svg ") == sum(s.suffix == "svg" for s in stages)
    assert "a &lt;title&gt;" in page and "<title>a <" not in page
    for name, stage in zip(names, stages):
        assert stage.shape in page and stage.code in page
        if stage.suffix == "svg":
            assert (tmp_path / "new" / name).read_text("utf-8") == stage.picture
        else:
            assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / name)), stage.picture)


@pytest.mark.optional
@pytest.mark.parametrize("size, dark", [((1280, 900), True), ((390, 844), False)])
def test_the_page_in_a_browser(walked, tmp_path, size, dark):
    """One file, no message, no sideways scrolling on a phone, and dark where the reader is."""
    if find_browser() is None:
        pytest.skip("needs Chromium")
    pages.write_walk(walked[1], tmp_path / "walk", "a walk")
    with Browser(tmp_path / "profile", size, dark) as b:
        b.resize(*size, mobile=size[0] < 700)
        b.open(tmp_path / "walk" / "index.html")
        assert b.run("document.documentElement.scrollWidth") <= size[0]
        assert b.run("[...document.images].every(image => image.naturalWidth > 0)")
        ground = b.run("getComputedStyle(document.body).backgroundColor")
        paper = b.run("getComputedStyle(document.querySelector('svg.chart .paper')).fill")
        assert ground == paper == ("rgb(20, 24, 29)" if dark else "rgb(255, 255, 255)")
        sizes = b.run("""[...document.querySelectorAll('svg.chart text[font-size]')].map(text =>
          [Number(text.getAttribute('font-size')), parseFloat(getComputedStyle(text).fontSize)])""")
        assert sizes and all(drawn == size for size, drawn in sizes)  # so that no text is cut off
        assert len(b.requests) == 1 and b.messages == []


@pytest.mark.optional
def test_a_tall_picture_fits_the_window_undistorted(tmp_path):
    if find_browser() is None:
        pytest.skip("needs Chromium")
    tall = np.zeros((900, 64, 3), np.uint8)
    pages.write_walk([Stage("image", "", tall, "", "", "", tall)], tmp_path / "walk", "")
    with Browser(tmp_path / "profile", (1280, 900)) as b:
        b.resize(1280, 900)
        b.open(tmp_path / "walk" / "index.html")
        assert b.run("document.images[0].clientHeight") <= 0.9 * 900
        assert b.run("getComputedStyle(document.images[0]).objectFit") == "contain"


def test_large_pictures_are_reduced(tmp_path):
    wide = np.zeros((100, 3000, 3), np.uint8)
    stage = Stage("image", "", wide, "", "", "", wide)
    (name,) = pages.write_walk([stage], tmp_path, "")
    assert Image.open(tmp_path / name).size == (1024, 34)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A user's folder: normal training images, one good and one defective test image."""
    root = tmp_path_factory.mktemp("data") / "parts"
    category = toy_category(n_train=4, n_good=1, n_bad=1, side=64)
    places = [(s, "train") for s in category.train]
    places += [(s, f"test/{s.defect}") for s in category.test]
    for k, (sample, folder) in enumerate(places):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / f"{k}.png").write_bytes(encode_png(sample.read_image()))
    return root


def run(root, *argv):
    fixed = ["--dataset", "folder", "--root", root, "--weights", "random", "--image-size", 64]
    return cli.main([str(part) for part in [*fixed, "--device", "cpu", "--quiet", *argv]])


# The training of the others in more setups is the business of test_cli.py.
WALKS = [("padim", setup) for setup in SETUPS]
WALKS += [(arch, setup) for arch in MODELS if arch != "padim" for setup in ("SM256", "ST4")]


@pytest.mark.parametrize("arch, setup", WALKS)
def test_every_architecture_and_every_setup_walks(parts, tmp_path, capsys, arch, setup):
    sizes = [] if setup.startswith("SM") else ["--tile-size", 32]
    argv = ["--arch", arch, "--setup", setup, "--steps", 1, "--batch-size", 4, "--out", tmp_path]
    assert run(parts, "--explain", parts / "test" / "square" / "5.png", *sizes, *argv) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    names = stage_names(arch, setup.startswith("ENS")) + ([] if setup[:2] == "SM" else SINGLE)
    assert [row.split()[0] for row in rows] == file_names(names)
    assert all((tmp_path / "explain" / row.split()[0]).is_file() for row in rows)


def test_options_that_do_not_apply_are_refused(parts, tmp_path, capsys):
    assert run(parts, "--explain", "--save", "--out", tmp_path) == 2
    assert "--save does not apply to --explain" in capsys.readouterr().err


def test_the_truth_of_a_sample_is_shown_where_it_is_known(parts, tmp_path, capsys):
    """A normal sample's is known to be empty; the data set here has no masks for the other."""
    sizes = ["--tile-size", 32, "--out", tmp_path]
    assert run(parts, "--explain", "test/good/4.png", *sizes) == 0
    assert "17-truth.png" in capsys.readouterr().out
    page = (tmp_path / "explain" / "index.html").read_text("utf-8")
    assert "0 px are defective" in page
    assert run(parts, "--explain", "test/square/5.png", *sizes) == 0
    assert "truth" not in capsys.readouterr().out


def test_one_image_walks_through_one_setup(parts, tmp_path, capsys):
    assert run(parts, "--explain", "--setup", "ENS4", "ENS9", "--tile-size", 32,
               "--out", tmp_path) == 2  # fmt: skip
    assert "give one --setup, not 2" in capsys.readouterr().err
    assert not (tmp_path / "explain").exists()


def test_tiles_that_stick_out_are_filled_with_zeros(tiny_backbone):
    setup = Setup("odd", "ENS", (80, 72), (48, 48), (24, 24))  # 48..96 of 80 rows
    train = np.ascontiguousarray(toy_images()[:, :, :80, :72])
    none = np.zeros((1, 80, 72), bool)
    ensemble = TiledEnsemble(setup, backbone=tiny_backbone)
    walked = walk.walk(train[0], train, ensemble, Options(), train[:1], none, none.any((1, 2)))
    by_name = {stage.name: stage for stage in walked}
    tiles = by_name["tiles"].array
    assert tiles.shape == (3, 2, 1, 3, 48, 48)
    assert not tiles[2, :, :, :, 32:].any() and tiles[2, :, :, :, :32].any()
    assert by_name["mask"].array.shape == (80, 72)


def test_a_single_models_size_is_a_tiles():
    """SM256 beside the paper's setups (Sec. 4.2), nothing beside SM256 itself."""
    singles = {name: comparison.single_setup(setup) for name, setup in SETUPS.items()}
    assert singles.pop("SM256") is None
    assert set(singles.values()) == {SETUPS["SM256"]}
    assert comparison.single_setup(SETUPS["ENS9"].with_sizes((96, 96), (48, 48))).image_size == (
        48,
        48,
    )
    assert comparison.single_setup(SETUPS["SM512"].with_sizes((64, 64))) is None


def test_overlap_by_hand():
    mask, truth = np.zeros((2, 3, 4), bool)
    mask[0, :3] = truth[0, 1:] = True  # two of four in both
    text = "marks 3 px, 2 of the 3 defective ones (intersection over union 0.50)"
    assert comparison.overlap(mask, truth) == text
    assert comparison.overlap(mask, None) == "marks 3 px"
    assert comparison.overlap(mask, truth & False) == "marks 3 px, none is defective"


class Vanished(ToySample):
    """A defective image whose small defect is lost from the resized mask."""

    def read_mask(self):
        return np.zeros((self.side, self.side), bool)


def test_the_single_model_is_a_run_of_its_own(tiny_backbone, category, monkeypatch):
    """Its map, enlarged, its scores and its mask are those of an ensemble of smaller images."""
    *others, last = category.test
    category = replace(category, test=(*others, Vanished(**vars(last))))
    drawn, points = [], walk.svg.Chart.points
    monkeypatch.setattr(walk.svg.Chart, "points", lambda self, x, y, *args, **options: (
        drawn.append((self.title, len(y))), points(self, x, y, *args, **options)))  # fmt: skip
    title, stages = walk.explain(
        walk.BUILT_IN, category, Recipe(SETUP), tiny_backbone, Options(), Progress(quiet=True)
    )
    by_name = {stage.name: stage for stage in stages}
    assert [stage.name for stage in stages] == [*STAGES, *SINGLE] and title.endswith("padim, toy")
    walked = next(s for s in category.test if s.label)
    others = walk.threshold_samples(category, walked)
    small = [resize_image(s.read_image(), (48, 48)) for s in (*category.train, walked, *others)]
    small, n = np.stack(small), len(category.train)
    single = TiledEnsemble(comparison.single_setup(SETUP), backbone=tiny_backbone).fit(small[:n])
    maps, scores = single.predict(small[n:])
    maps = F.interpolate(torch.from_numpy(maps)[:, None], size=(96, 96), mode="bilinear")[
        :, 0
    ].numpy()
    assert np.array_equal(by_name["single-image"].array, small[n].transpose(2, 0, 1))
    assert np.array_equal(by_name["single-map"].array, maps[0])
    masks = np.stack([s.read_mask() if s.label else np.zeros((96, 96), bool) for s in others])
    mask = maps[0] >= f1_threshold(maps[1:].ravel(), masks.ravel())[0]
    assert np.array_equal(by_name["single-mask"].array, mask)
    text, truth = by_name["single-map"].text, walked.read_mask()
    normal = scores[1:][[s.label == 0 for s in others]]
    assert f"SM-48 {scores[0]:.4g}, the highest of 4 normal images {normal.max():.4g}." in text
    assert f"toy {by_name['image-scores'].array[0]:.4g}, the highest of 4" in text
    assert [n for title, n in drawn if title == "Image scores"] == [4, 3, 1]
    assert by_name["single-image"].text.endswith("Both: at the largest defect.")
    both, either = (mask & truth).sum(), (mask | truth).sum()
    assert f"SM-48 marks {mask.sum()} px, {both} of the {truth.sum()} defective ones" in (
        by_name["single-mask"].text
    )
    assert f"union {both / either:.2f})" in by_name["single-mask"].text.split("SM-48")[1]


def test_without_truth_the_close_up_is_at_the_maximum_of_the_walked_map(tiny_backbone):
    stages = walk.explain(walk.BUILT_IN, toy_category(has_masks=False), Recipe(SETUP),
                          tiny_backbone, Options(), Progress(quiet=True))[1]  # fmt: skip
    by_name = {stage.name: stage for stage in stages}
    pair = [by_name[name].array.transpose(1, 2, 0) for name in ("image", "single-image")]
    maps = [by_name[name].array for name in ("smoothed-map", "single-map")]
    here, there = (in_a_row(comparison._close_ups(*pair, None, map_)) for map_ in maps)
    assert np.array_equal(by_name["single-image"].picture, here) and not np.array_equal(here, there)
    assert by_name["single-image"].text.endswith("Both: at the maximum of the map of toy.")


def test_the_profile_crosses_the_strongest_seam(walked):
    by_name = walked[0]
    merged, smooth = by_name["merged-map"].array, by_name["smoothed-map"].array
    axis, border, line = seams.strongest_seam(merged, SETUP.input_grid, 0.1)
    values, after = (merged.T, smooth.T) if axis == 0 else (merged, smooth)
    assert np.array_equal(by_name["seam-profile"].array, [values[line], after[line]])
    jumps = np.abs(np.diff(values[line]))
    assert border in (24, 48, 72) and jumps[border - 1] == max(jumps[[23, 47, 71]])
    text = by_name["seam-profile"].text
    assert f"jumps by {jumps[border - 1]:.3g} from" in text
    assert f"the smoothed one by {abs(np.diff(after[line])[border - 1]):.3g};" in text


def test_the_strongest_seam_by_hand():
    grid = Setup("four", "ENS", (40, 60), (20, 30), (20, 30)).input_grid  # seams at 20 and 30
    step = np.zeros((40, 60))
    step[:, 33:] = 9  # a larger jump where no seam is
    step[20:, 7] = 2
    assert seams.strongest_seam(step, grid) == (0, 20, 7)
    step[5, 30:33] = 3
    assert seams.strongest_seam(step, grid) == (1, 30, 5)
    step[20, 30:33] = 5  # stronger, but in the band of the other seam
    assert seams.strongest_seam(step, grid, 0.1) == (1, 30, 5)
    assert seams.strongest_seam(step, Setup("one", "SM", *[(40, 60)] * 3).input_grid) is None


def test_the_close_up_shows_the_same_place_in_both_images():
    full = np.zeros((80, 80, 3), np.uint8)
    full[20:30, 60:70] = 200
    truth = (full > 0).all(2)
    left, right = comparison._close_ups(full, full[::2, ::2], truth, truth)
    assert np.array_equal(left, right)  # even edges: both cut at the same places
    assert 0.08 < (left == 200).all(2).mean() < 0.12  # a ninth, less the line


def test_the_words_are_those_of_the_setup(tiny_backbone):
    """Models that locations share, one map of ST, the mean of the highest scores."""
    train, none = toy_images(), np.zeros((1, 96, 96), bool)
    for setup, models, merged, rule, title in (
        (replace(SETUP, groups=(1, 2)), "6 models, with the scores", "Averaged where tiles overlap",
         "the mean of the 2 highest of the 9 tile scores", "Anomaly maps of the tiles"),
        (Setup("ST", "ST", (96, 96), (48, 48), (48, 48)), "one model, with the score ", "As it is",
         "that of the one map", "The anomaly map"),
    ):  # fmt: skip
        ensemble = TiledEnsemble(setup, backbone=tiny_backbone, score="top:2")
        stages = walk.walk(train[0], train, ensemble, Options(), train[:1], none, none.any((1, 2)))
        by_name = {stage.name: stage.text for stage in stages}
        assert f"Predicted by {models}" in by_name["tile-maps"]
        assert title in [stage.title for stage in stages]
        assert f"is {rule}; the others" in by_name["image-scores"]
        assert by_name["merged-map"].startswith(merged)
        assert ("ENS: one model per tile, in toy per" in by_name["setups"]) == (setup.kind == "ENS")


@pytest.mark.parametrize("score, rule, source", [
    ("mean", "the mean of the 9 tile scores", "Rolih et al. Eq. 5"),
    ("max", "the max of the 9 tile scores", "deviation D5"),
    ("top:1", "the highest of the 9 tile scores", "deviation D16"),
    ("top:99", "the mean of the 9 highest of the 9 tile scores", "deviation D16"),
])  # fmt: skip
def test_the_rule_of_the_score_has_its_words_and_its_source(score, rule, source):
    stage = walk._score_stage(np.ones(2), np.array([False]), Recipe(SETUP, score=score))
    assert (stage.source, f"is {rule}; the others" in stage.text) == (source, True)


def test_the_merge_has_its_source_and_an_empty_band_its_words():
    maps, photo = np.zeros((3, 3, 48, 48)), np.zeros((96, 96, 3), np.uint8)
    for merge, source in (("mean", "Rolih et al. Sec. 3.3"), ("window", "deviation D17")):
        recipe = Recipe(SETUP, merge=merge, seam_width=0.0)
        stage, band, *_ = walk._merged_stages(photo, *np.zeros((2, 96, 96)), recipe, maps, None)
        assert (stage.source, band.text) == (source, "Empty: no pixel is smoothed.")


def test_how_a_map_became_a_score():
    """Roth et al. Eq. 7 weights the largest distance, all others take the maximum of the map;
    FastFlow alone does not blur."""
    for arch in MODELS:
        recipe = Recipe(SETUP, arch)
        text = walk._map_stage(np.zeros((3, 3, 48, 48)), np.ones((3, 3)), recipe, None).text
        assert ("its map's maximum." in text) == (arch != "patchcore")
        assert ("Enlarged and blurred" in text) == (arch != "fastflow")


def test_the_truth_in_thousands():
    every = np.ones((40, 40), bool)
    text = walk._truth_stage(np.zeros((40, 40, 3), np.uint8), every, every).text
    assert text == "1,600 px are defective, 1,600 px are in the mask, 1,600 px in both."


def test_the_built_in_walk_takes_the_picture_that_a_single_model_misses():
    board = synthetic.load(None, "board")
    sample = walk.choose_image(walk.BUILT_IN, board, (32, 32))[2]
    assert sample.name == walk.SHOWN and sample.label


def test_the_figure_of_the_setups_is_to_scale():
    stage = setups_stage(SETUPS["ENS9"])
    assert stage.array[-1].tolist() == [512, 512, 256, 256, 128, 128, 9, 9]
    panel = stage.picture.split(">ENS9, walked here<")[1]
    assert panel.count('width="100" height="100"') == 9  # 256 px at 200 px for 512
    assert panel.count(f'width="{SQUARE}"') == 9  # models
    assert 'x="50" y="100" width="100"' in panel and 'x="100" y="100" width="100"' in panel
    ragged = setups_stage(Setup("ragged", "ENS", (96, 72), (48, 48), (48, 48))).picture
    scale = 200 / 512
    assert f'width="{24 * scale:g}" height="{48 * scale:g}"' in ragged  # up to the image's edge
    own = setups_stage(Setup("mine", "ENS", (96, 48), (48, 48), (24, 48)))
    assert (
        own.array[-1].tolist() == [96, 48, 48, 48, 24, 48, 3, 3] and "mine, walked" in own.picture
    )
