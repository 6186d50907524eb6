"""--groups: neighbouring tile locations that share one model."""

import numpy as np
import pytest
import torch
from toys import toy_category

from tiled_ref.data.images import normalize
from tiled_ref.data.reading import read_images
from tiled_ref.ensemble import TiledEnsemble
from tiled_ref.models import MODELS
from tiled_ref.models.padim import Padim
from tiled_ref.running.category_images import CategoryImages
from tiled_ref.running.cell import Options, run_cell
from tiled_ref.running.engine import Engine
from tiled_ref.running.estimate import cell_estimate
from tiled_ref.serving.export import Program
from tiled_ref.setups import SETUPS, Recipe, Setup
from tiled_ref.support.errors import InputError
from tiled_ref.support.progress import Progress

SIZES = (96, 96), (48, 48), (24, 24)  # 3 x 3 tiles
ENS = Setup("ENS", "ENS", *SIZES)
PAIRS = ENS.with_sizes(groups=(2, 2))  # 4 models, of 4, 2, 2 and 1 locations
ALL = ENS.with_sizes(groups=(3, 3))
QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def images():
    return read_images(toy_category().train, (96, 96))


def test_blocks_by_hand():
    """Two rows and three columns of four by five; what is left over is smaller."""
    setup = Setup("x", "ENS", (40, 50), (10, 10), (10, 10)).with_sizes(groups=(2, 3))
    models = setup.models
    assert list(models) == [(0, 0), (0, 3), (2, 0), (2, 3)]
    assert models[0, 0] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert models[2, 3] == [(2, 3), (2, 4), (3, 3), (3, 4)]
    assert setup.inputs((2, 3)) == {tile: [tile] for tile in models[2, 3]}
    assert (setup.n_models, setup.group_size, setup.n_tiles) == (4, 6, 20)
    assert setup.name == "x-groups-2x3" and setup.with_sizes(groups=(1, 1)).name == "x"
    larger = setup.with_sizes(image_size=(80, 80))
    assert larger.groups == (2, 3) and larger.name == "ENS-80-10-10-groups-2x3"
    assert ALL.n_models == 1 and ENS.with_sizes(groups=(9, 9)).models == ALL.models


def test_one_by_one_is_the_papers_ensemble():
    assert SETUPS["ENS9"].with_sizes(groups=(1, 1)) is SETUPS["ENS9"]
    assert SETUPS["ENS9"].group_size == SETUPS["ST9"].group_size == 1


@pytest.mark.parametrize("name", ["SM256", "ST9"])
def test_a_setup_of_one_model_has_no_groups(name):
    with pytest.raises(InputError, match="setup with one model has none; use an ENS setup"):
        SETUPS[name].with_sizes(groups=(2, 2))
    with pytest.raises(InputError, match="at least 1x1"):
        SETUPS["ENS9"].with_sizes(groups=(0, 2))


@pytest.mark.parametrize("arch", sorted(MODELS))
def test_a_group_is_one_model_of_the_tiles_as_separate_images(tiny_backbone, images, arch):
    """Against a model that is given the tiles, cut and normalised here."""
    switches = {"steps": 2} if arch in ("fastflow", "reverse_distillation") else {}
    ensemble = TiledEnsemble(PAIRS, arch, backbone=tiny_backbone, switches=switches).fit(images)
    assert sorted(ensemble.states) == [(0, 0), (0, 2), (2, 0), (2, 2)]

    def tiles(place, chosen):
        i, j = place
        part = torch.from_numpy(chosen)[..., 24 * i : 24 * i + 48, 24 * j : 24 * j + 48]
        return normalize(part)

    for location, group in PAIRS.models.items():
        seen = torch.cat([tiles(place, images) for place in group])
        model = ensemble.make_model()
        model.fit(seen)
        found = {(*place, rows.start): (maps, scores) for place, rows, maps, scores in
                 ensemble.each_location(None, images[:2], locations=[location])}  # fmt: skip
        assert [key[:2] for key in found] == group
        for place in group:
            maps, scores = model.predict(tiles(place, images[:2]))
            np.testing.assert_array_equal(found[(*place, 0)][0], maps)
            np.testing.assert_array_equal(found[(*place, 0)][1], scores)


@pytest.mark.parametrize("arch", ["padim", "patchcore"])
def test_saved_resident_and_exported_groups_predict_alike(tiny_backbone, images, tmp_path, arch):
    ensemble = TiledEnsemble(PAIRS, arch, backbone=tiny_backbone).fit(images)
    maps, scores = ensemble.predict(images[:3])
    ensemble.save(tmp_path / "parts")
    again = TiledEnsemble.load(tmp_path / "parts", backbone=tiny_backbone)
    assert again.setup == PAIRS and len(list((tmp_path / "parts").glob("location_*"))) == 4
    for engine in Engine(again), Engine(again, "resident"):
        found = engine.predict(images[:3])
        np.testing.assert_allclose(found[0], maps, rtol=1e-4, atol=1e-5)  # measured: 3e-6
        np.testing.assert_allclose(found[1], scores, rtol=1e-5)
    with torch.no_grad():
        program = Program(again)(torch.from_numpy(images[:1]))
    np.testing.assert_allclose(program[0].numpy(), maps[:1], rtol=1e-4, atol=1e-5)


def test_models_of_a_group_are_in_memory_once(tiny_backbone, images):
    """Of a resident ensemble: PaDiM's factors, PatchCore's bank and what searches it."""
    ensemble = TiledEnsemble(PAIRS, "patchcore", backbone=tiny_backbone).fit(images)
    banks = ensemble.make_model()._banks(
        [ensemble.states[m]["bank"] for m in PAIRS.models for _ in PAIRS.inputs(m)]
    )
    for parts in (banks.banks, banks.moments, banks.indexes):
        assert (len(parts), len({id(part) for part in parts})) == (9, 4)


def timeless(result):
    return {k: v for k, v in result.items() if "seconds" not in k and "memory" not in k}


@pytest.mark.parametrize("save", [True, False])
@pytest.mark.parametrize("after", [2, 5])
def test_a_run_that_stops_within_a_group_goes_on(
    tiny_backbone, tmp_path, monkeypatch, save, after
):
    """After so many predictions of 9 locations; the results are those of an undisturbed run."""

    def run(out, **options):
        options = Options(out=tmp_path / out, save=save, **options)
        category = CategoryImages(toy_category(), options, QUIET)
        return timeless(run_cell(Recipe(PAIRS), category, tiny_backbone, options, QUIET))

    expected, left = run("undisturbed"), [after]
    original = Padim.predict

    def predict(self, batch):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return original(self, batch)

    monkeypatch.setattr(Padim, "predict", predict)
    with pytest.raises(KeyboardInterrupt):
        run("stopped")
    fits, fit = [], Padim.fit
    monkeypatch.setattr(Padim, "predict", original)
    monkeypatch.setattr(Padim, "fit", lambda self, *args: fits.append(1) or fit(self, *args))
    assert run("stopped", resume=True) == expected
    assert len(fits) == {2: 4, 5: 3}[after] - save
    assert (expected["n_models"], expected["groups"]) == (4, [2, 2])
    files = [{path.name for path in (tmp_path / out).rglob("*")} for out in ("undisturbed", "stopped")]
    assert files[0] == files[1] and ("location_0_2.npz" in files[0]) is save


def test_estimates_count_models_and_what_they_see(tiny_backbone):
    """A group of nine learns nine times as much in one model; a bank is as large in all."""
    costs = {}
    for arch in "padim", "patchcore":
        for setup in ENS, ALL:
            recipe = Recipe(setup, arch)
            model = recipe.model(tiny_backbone, torch.device("cpu"))
            costs[arch, setup.n_models] = cell_estimate(recipe, model, 40, 10, Options())
    ratio = costs["padim", 9].saved / costs["padim", 1].saved
    assert 8.9 < ratio <= 9
    ratio = costs["patchcore", 9].saved / costs["patchcore", 1].saved
    assert 0.9 < ratio < 1.1
    assert costs["padim", 9].pieces >= costs["padim", 1].pieces
