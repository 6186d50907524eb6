"""Every promise of equal bits, each once.

A promise rests on an order of arithmetic that is written here (the kernels and their twins), or
on products of torch whose shapes and threads do not change. What would rest on a library that
may choose its algorithm by the batch or the processor is promised within a tolerance, elsewhere.

CI runs this module a second time with other instructions; all of

    MKL_CBWR=COMPATIBLE    ATEN_CPU_CAPABILITY=avx2    ATEN_CPU_CAPABILITY=default
    ONEDNN_MAX_CPU_ISA=SSE41

have to leave it green.
"""

import copy

import numpy as np
import pytest
import torch
from adversarial import FLOATS, grid, layouts, same_bits, values
from toys import Images, toy_category, toy_images
from trained import pictures, recomputed

from tiled_ref.data.tiles import LocationImages
from tiled_ref.ensemble import TiledEnsemble, collect, merge
from tiled_ref.merging import untile_average, untile_window
from tiled_ref.metrics import aupro, label_regions, pixel_auroc
from tiled_ref.models import MODELS
from tiled_ref.models.cached import CachedFeatures
from tiled_ref.models.gaussians import distances, pack
from tiled_ref.models.maps import gaussian_blur, upsample_bilinear
from tiled_ref.models.search.coreset import select_coreset
from tiled_ref.models.search.neighbours import NearestIndex, search_each
from tiled_ref.running.category_images import CategoryImages
from tiled_ref.running.cell import Options, run_cell
from tiled_ref.running.engine import Engine
from tiled_ref.running.pieces import Pieces
from tiled_ref.running.shared_layers import SharedLayers
from tiled_ref.setups import Recipe, Setup
from tiled_ref.smoothing import smooth_seams
from tiled_ref.support.gaussian import blur_rows_and_columns
from tiled_ref.support.progress import Progress
from tiled_ref.tiling import FeatureUntiler, TileGrid

ARCHS = sorted(MODELS)
SWITCHES = {"fastflow": {"steps": 1}, "reverse_distillation": {"steps": 1}}
ENS = Setup("ENS", "ENS", (56, 48), (32, 32), (24, 24))  # 2 x 2 tiles that stick out
ENS9 = Setup("ENS", "ENS", (64, 64), (32, 32), (16, 16))
ST = Setup("ST", "ST", (64, 64), (32, 32), (32, 32))
THREADS = (1, 2, 3, 16)
QUIET = Progress(quiet=True)


def equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


# --- kernels, their twins, any number of threads, any layout of memory ------------------------


def of_distances(rng, dtype):
    """Arguments of mahalanobis."""
    x, mean = rng.standard_normal((3, 20, 9)), rng.standard_normal((20, 9))
    factor = rng.standard_normal((20, 9, 9))
    matrices = torch.from_numpy(factor @ factor.swapaxes(1, 2))
    return x.astype(dtype), mean.astype(dtype), pack(matrices).numpy().astype(dtype)


@pytest.mark.parametrize("dtype", FLOATS)
def test_kernels_are_their_twins_with_any_number_of_threads(dtype):
    for seed in range(60):
        rng = np.random.default_rng((seed, 7))
        tiles = grid(seed)
        size = tiles.image_size
        kinds = values(rng, (3, *size), dtype)
        maps = kinds[list(kinds)[seed % len(kinds)]]
        some = rng.random(size[0]) < 0.4, rng.random(size[1]) < 0.4
        tile_maps = rng.standard_normal((tiles.rows, tiles.cols, 3, *tiles.tile_size)).astype(dtype)
        kernels = [
            lambda **how: untile_average(tile_maps, tiles, **how),
            lambda **how: untile_window(tile_maps, tiles, **how),
            lambda **how: smooth_seams(maps, tiles, 0.3, 1.5, **how),
            lambda **how: blur_rows_and_columns(maps, 2.0, *some, **{"threads": 1, **how}),
            lambda **how: label_regions(maps > 0, **how),
        ]
        if dtype == np.float32:
            arrays = of_distances(rng, dtype)
            kernels.append(lambda **how: distances(*arrays, **how))
        masks = rng.random(maps.shape) < 0.3
        if masks.any() and not masks.all() and not np.isnan(maps).any():
            kernels.append(lambda **how: np.float64(aupro(maps, masks, **how)))
            kernels.append(lambda **how: np.float64(pixel_auroc(maps, masks, **how)))
        for k, kernel in enumerate(kernels):
            expected = kernel(impl="numpy")
            for threads in THREADS:
                assert same_bits(kernel(threads=threads), expected), (seed, k, threads)


def test_layouts_in_memory_and_torch_change_nothing():
    tiles = TileGrid((21, 18), (8, 6), (4, 3))
    maps = np.random.default_rng(5).standard_normal((7, 21, 18)).astype(np.float32)
    expected = smooth_seams(maps, tiles, 0.3, impl="numpy")
    for name, array in layouts(maps):
        assert same_bits(smooth_seams(array, tiles, 0.3), expected), name
    assert same_bits(smooth_seams(torch.from_numpy(maps), tiles, 0.3).numpy(), expected)


@pytest.mark.parametrize("impl", ["cython", "numpy"])
def test_a_coreset_does_not_depend_on_the_threads(monkeypatch, impl):
    table = torch.from_numpy(np.random.default_rng(1).standard_normal((400, 24)).astype(np.float32))
    chosen = []
    for threads in THREADS:
        monkeypatch.setenv("TILED_REF_THREADS", str(threads))
        chosen.append(select_coreset(table, 0.2, 42, "excluded", impl))
    assert all(torch.equal(one, chosen[0]) for one in chosen)


def test_a_search_does_not_depend_on_threads_or_company(rng, monkeypatch):
    bank = torch.from_numpy(rng.standard_normal((300, 24)).astype(np.float32))
    queries = torch.from_numpy(rng.standard_normal((1100, 24)).astype(np.float32))
    expected = search_each([NearestIndex(bank)], queries[None])
    for threads in THREADS:
        monkeypatch.setenv("TILED_REF_THREADS", str(threads))
        indexes = [NearestIndex(bank)]
        equal(search_each(indexes, queries[None]), expected)
        some = search_each(indexes, queries[None, 600:607])
        equal(some, [part[:, 600:607] for part in expected])


# --- an image alone and in a batch --------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "size", [(1, 1), (1, 9), (9, 1), (3, 3), (5, 40), (64, 64), (65, 127), (200, 17), (256, 130)]
)
def test_blur_and_enlargement_of_a_map_do_not_depend_on_its_company(rng, size, dtype):
    maps = torch.from_numpy(rng.random((7, *size)).astype(dtype))
    larger = tuple(4 * side - 1 for side in size)
    for transform in (
        gaussian_blur,
        lambda maps: upsample_bilinear(maps, larger),
        lambda maps: upsample_bilinear(maps, larger, align_corners=True),
    ):
        whole = transform(maps)
        for k in range(7):
            assert torch.equal(transform(maps[k : k + 1]), whole[k : k + 1])
        assert torch.equal(transform(maps[2:5]), whole[2:5])
        assert torch.equal(transform(maps.mT.contiguous().mT), whole)
    assert torch.equal(gaussian_blur(maps, 4.0, "numpy"), gaussian_blur(maps))


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("side, stride", [(32, None), (64, 32), (48, 16), (160, None)])
def test_an_image_alone_has_the_bits_that_it_has_in_a_batch(tiny_backbone, arch, side, stride):
    """Single input and tiled input; sides below and above that from which oneDNN convolves."""
    images, tiles, untile = pictures(5, side), None, None
    if stride:
        tiles = TileGrid(side, 32, stride)
        untile = FeatureUntiler(tiles)
    model = MODELS[arch](
        tiny_backbone, (side, side), seed=42, device="cpu", untile=untile, **SWITCHES.get(arch, {})
    )
    source = Images(images, tiles)
    model.fit(source)
    whole = model.predict(source[list(range(5))])
    for part in ([0], [4], [1, 2], [3, 2, 1]):
        equal(model.predict(source[part]), [x[part] for x in whole])


def separate_models(setup, arch, backbone, train, test):
    """Each location with a full model of its own, backbone included: maps and scores, merged."""
    tiles, parts = setup.ensemble_grid, []
    for location in tiles.locations():
        model = MODELS[arch](
            copy.deepcopy(backbone), tiles.tile_size, seed=42, device="cpu",
            **SWITCHES.get(arch, {}),
        )  # fmt: skip
        seen = [
            LocationImages(images, tiles, [location], torch.device("cpu"))
            for images in (train, test)
        ]
        model.fit(seen[0])
        found = [part.numpy() for part in model.predict(seen[1][list(range(len(test)))])]
        parts.append((location, slice(0, len(test)), *found))
    return merge(*collect(parts, tiles, len(test)), Recipe(setup))


def parts_of(setup, n=6):
    """uint8 (n, 3, H, W) in two halves."""
    height, width = setup.image_size
    images = toy_images(n, side=max(height, width))[:, :, :height, :width].copy()
    return images[: n // 2], images[n // 2 :]


def ensemble_of(setup, arch, backbone):
    return TiledEnsemble(setup, arch, backbone=backbone, switches=SWITCHES.get(arch))


@pytest.mark.parametrize(
    "arch, setup",
    [("padim", ENS9), ("patchcore", ENS9), ("fastflow", ENS), ("reverse_distillation", ENS)],
)
def test_one_shared_backbone_and_any_arrangement_give_the_bits_of_separate_models(
    tiny_backbone, arch, setup
):
    """Nine full models one after the other; one backbone; all at once; image by image."""
    train, test = parts_of(setup)
    expected = separate_models(setup, arch, tiny_backbone, train, test)
    ensemble = ensemble_of(setup, arch, tiny_backbone).fit(train)
    assert len({id(ensemble.make_model().backbone) for _ in range(2)}) == 1
    equal(ensemble.predict(test), expected)
    before = test.copy()
    for memory in ("low", "resident"):
        arranged = Engine(ensemble, memory)
        equal(arranged.predict(test), expected)
        for k in range(len(test)):
            equal(arranged.predict(test[k : k + 1]), [part[k : k + 1] for part in expected])
    np.testing.assert_array_equal(test, before)


@pytest.mark.parametrize("arch", ["padim", "fastflow"])
def test_tiled_input_is_one_location(tiny_backbone, arch):
    train, test = parts_of(ST)
    ensemble = ensemble_of(ST, arch, tiny_backbone).fit(train)
    for memory in ("low", "resident"):
        equal(Engine(ensemble, memory).predict(test), ensemble.predict(test))


# --- a run that was interrupted, layers that another cell computed, locations shared out --------


class Interrupted(Exception):
    """In the place of a power cut."""


def run(recipe, backbone, out, **options):
    options = Options(out=out, save=True, **options)
    images = CategoryImages(toy_category(n_train=3, n_good=2, n_bad=2, side=64), options, QUIET)
    return run_cell(recipe, images, backbone, options)


def left(result, out):
    """Metrics, thresholds, and the bytes of every model of a run."""
    found = {key: result[key] for key in ("image_auroc", "pixel_auroc", "pixel_aupro", "thresholds")}
    return found | {path.name: path.read_bytes() for path in sorted(out.rglob("location_*.npz"))}


@pytest.mark.parametrize("memory", ["low", "resident"])
@pytest.mark.parametrize("arch", ARCHS)
def test_a_resumed_run_leaves_what_an_undisturbed_one_leaves(
    tiny_backbone, tmp_path, monkeypatch, arch, memory
):
    """Interrupted before its third location is complete, and both ways of memory alike."""
    recipe = Recipe(ENS9, arch, switches=SWITCHES.get(arch))
    expected = left(run(recipe, tiny_backbone, tmp_path / "whole"), tmp_path / "whole")
    assert len(expected) == 4 + 9
    add, calls = Pieces.add, []

    def cut(self, *args):
        calls.append(args)
        if len(calls) == 3:
            raise Interrupted
        add(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(Pieces, "add", cut)
        with pytest.raises(Interrupted):
            run(recipe, tiny_backbone, tmp_path / "cut", memory=memory)
    again = run(recipe, tiny_backbone, tmp_path / "cut", memory=memory, resume=True)
    assert left(again, tmp_path / "cut") == expected


@pytest.mark.parametrize("arch", ARCHS)
def test_layers_read_again_and_locations_shared_out_change_nothing(tiny_backbone, arch):
    """The layers of every tile come from a file; each half of the locations is another process's,
    in another order."""
    train, test = parts_of(ENS)
    expected = ensemble_of(ENS, arch, tiny_backbone).fit(train).predict(test)
    with SharedLayers(tiny_backbone, 1 << 30, print) as shared:
        for _ in range(2):
            equal(ensemble_of(ENS, arch, shared).fit(train).predict(test), expected)
        assert shared.reused == shared.asked // 2 > 0
    found = []
    for half in ([(1, 1), (0, 0)], [(0, 1), (1, 0)]):
        mine = ensemble_of(ENS, arch, copy.deepcopy(tiny_backbone))
        found += mine.each_location(train, test, {}, locations=half)
    recipe = ensemble_of(ENS, arch, tiny_backbone).recipe
    equal(merge(*collect(found, recipe.grid, len(test)), recipe), expected)


# --- the same seed, a file in between, features kept or computed again --------------------------


@pytest.mark.parametrize("arch", ARCHS)
def test_the_same_seed_gives_the_same_bits_also_from_files(tiny_backbone, arch, tmp_path):
    train, test = parts_of(ENS)
    ensembles = [ensemble_of(ENS, arch, tiny_backbone).fit(train) for _ in range(2)]
    expected = ensembles[0].predict(test)
    equal(ensembles[1].predict(test), expected)
    ensembles[0].save(tmp_path / "parts")
    loaded = TiledEnsemble.load(tmp_path / "parts", backbone=tiny_backbone)
    equal(loaded.predict(test), expected)
    equal(Engine(loaded, "resident").predict(test), expected)


@pytest.mark.parametrize("tiles", [None, TileGrid(64, 32, 16)])
def test_features_kept_in_memory_or_on_the_disk_are_those_computed_again(tiny_backbone, tiles):
    source = Images(pictures(5), tiles)
    for kept in (CachedFeatures(tiny_backbone, source), CachedFeatures(tiny_backbone, source, 0)):
        for indices in ([0], [4, 1], [2, 0, 3, 1]):
            equal(kept[indices], recomputed(tiny_backbone, source, indices))
