"""Large images: merged in strips, read in slabs, kept in files; the bits are those of small ones."""

import gc
import os

import numpy as np
import pytest
from adversarial import same_bits
from toys import ToySample, toy_category

from tiled_ref import ensemble, metrics
from tiled_ref.data import reading
from tiled_ref.data.samples import NORMAL
from tiled_ref.ensemble import TiledEnsemble, merge
from tiled_ref.running import category_images, rows
from tiled_ref.running.category_images import CategoryImages
from tiled_ref.running.cell import Options, run_cell
from tiled_ref.running.engine import Engine
from tiled_ref.running.rows import merge_rows
from tiled_ref.setups import Recipe, Setup
from tiled_ref.support import pixel_ranking
from tiled_ref.support.progress import Progress

QUIET = Progress(quiet=True)
SETUPS = [  # image, tile, stride: overlap by half, by a third, none; tiles that stick out
    ((64, 40), (16, 16), (8, 8)), ((61, 37), (16, 12), (11, 5)), ((50, 70), (20, 30), (20, 30)),
    ((33, 33), (32, 32), (1, 16)), ((16, 90), (16, 30), (16, 10)), ((90, 16), (12, 16), (4, 16)),
]  # fmt: skip


@pytest.mark.parametrize("sizes", SETUPS)
def test_strips_have_the_bits_of_the_whole_image(sizes, monkeypatch):
    """For several widths and sigmas, both ways of merging, kernels and specification."""
    setup, rng = Setup("x", "ENS", *sizes), np.random.default_rng(1)
    grid = setup.input_grid
    maps = rng.standard_normal((grid.rows, grid.cols, 2, *grid.tile_size)).astype(np.float32)
    scores = rng.random((grid.rows, grid.cols, 2)).astype(np.float32)
    cases = [(0.1, 2.0, "mean", "mean"), (0.4, 0.6, "window", "max"), (0.0, 1.0, "mean", "top:2"),
             (1.0, 4.0, "window", "mean")]  # fmt: skip
    roi = np.zeros(sizes[0], bool)
    roi[: sizes[0][0] // 3] = True
    for budget in (1, 4 * maps[0].nbytes):
        monkeypatch.setattr(rows, "MERGE_BUDGET", budget)
        for width, sigma, way, score in cases:
            recipe = Recipe(setup, seam_width=width, seam_sigma=sigma, merge=way, score=score)
            for impl in ("cython", "numpy"):
                whole = merge(maps, scores, recipe, impl, roi=roi)
                out = np.empty((2, *sizes[0]), np.float32)
                listed = list(maps.reshape(-1, *maps.shape[2:]))
                found = merge_rows(listed, scores, recipe, out, impl=impl, roi=roi)
                assert same_bits(out, whole[0]) and same_bits(found, whole[1])


def small_budgets(monkeypatch):
    """Every budget so small that each of these images is a large one."""
    monkeypatch.setattr(rows, "MERGE_BUDGET", 1)
    monkeypatch.setattr(ensemble, "TILE_BUDGET", 1)
    monkeypatch.setattr(category_images, "IMAGE_BUDGET", 1)
    monkeypatch.setattr(category_images, "MASK_BUDGET", 1)
    monkeypatch.setattr(reading, "AT_ONCE", 1)
    monkeypatch.setattr(pixel_ranking, "SORTED_AT_ONCE", 1000)


def timeless(result):
    return {k: v for k, v in result.items() if "seconds" not in k and "memory" not in k}


def test_a_run_with_large_images_gives_the_same_numbers(tiny_backbone, monkeypatch, tmp_path):
    """And its temporary files have no names, so that nothing is left behind, however it ends."""

    def run():
        options = Options(metric_size="original")
        images = CategoryImages(toy_category(), options, QUIET)
        recipe = Recipe(Setup("ENS", "ENS", (80, 90), (48, 48), (24, 24)))
        return timeless(run_cell(recipe, images, tiny_backbone, options, QUIET))

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    expected = run()
    small_budgets(monkeypatch)
    assert run() == expected
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("memory", ["low", "resident"])
def test_a_prediction_of_large_images_has_the_same_bits(tiny_backbone, monkeypatch, memory):
    setup = Setup("ENS", "ENS", (80, 90), (48, 48), (24, 24))
    images = reading.read_images(toy_category().train, setup.image_size)
    engine = Engine(TiledEnsemble(setup, backbone=tiny_backbone).fit(images), memory)
    expected = engine.predict(images[:2])
    small_budgets(monkeypatch)
    found = engine.predict(images[:2])
    assert same_bits(found[0], expected[0]) and same_bits(found[1], expected[1])


def test_tile_maps_beyond_the_budget_are_in_a_file(monkeypatch):
    monkeypatch.setattr(ensemble, "TILE_BUDGET", 100)
    grid = Setup("ENS", "ENS", (8, 8), (4, 4), (4, 4)).input_grid
    given = [((i, j), slice(0, 2), np.full((2, 4, 4), i + 2 * j), [i, j]) for i, j in grid.locations()]
    maps, scores = ensemble.collect(given, grid, 2)
    assert isinstance(maps, np.memmap) and maps.dtype == np.float32
    assert (maps[1, 0] == 1).all() and (maps[1, 1] == 3).all() and scores[1, 0].tolist() == [1, 0]


def test_a_large_image_is_ranked_in_slabs(monkeypatch):
    rng = np.random.default_rng(3)
    maps = rng.standard_normal((2, 60, 70)).astype(np.float32)
    masks = rng.random(maps.shape) < 0.1
    expected = metrics.pixel_metrics(lambda: zip(maps, masks), threshold=1.0)
    monkeypatch.setattr(pixel_ranking, "SORTED_AT_ONCE", 999)
    for threads in (1, 3):
        found = metrics.pixel_metrics(lambda: zip(maps, masks), threads=threads, threshold=1.0)
        assert found == expected
    maps[1, 59, 3] = np.nan
    masks[1, 59, 3] = False
    with pytest.raises(metrics.UndefinedMetricError.__base__, match=r"index \(1, 59, 3\)"):
        metrics.pixel_metrics(lambda: zip(maps, masks))


def test_large_images_are_decoded_one_after_the_other(monkeypatch):
    """As many at once as AT_ONCE allows; here each has 3 * 96 * 96 bytes."""
    alive, most = [0], [0]

    class Sample(ToySample):
        def read_image(self):
            alive[0] += 1
            most[0] = max(most[0], alive[0])
            image = super().read_image()
            alive[0] -= 1
            return image

    samples = [Sample(f"{k}.png", NORMAL, "good", k, 96) for k in range(12)]
    monkeypatch.setattr(reading, "AT_ONCE", 3 * 96 * 96)
    reading.read_images(samples, (96, 96))
    assert most[0] == 1
    gc.collect()
