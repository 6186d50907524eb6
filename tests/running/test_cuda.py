"""A GPU against the CPU: the same maps, scores, files and programs within the bounds stated here.

    python -m pytest -m cuda tests/running/test_cuda.py

Weights and images are made here. What is promised of a GPU in full precision is asked of
TiledEnsemble and the command line as they are: no test sets their precision, except around a part
of a model or an exported program that it calls itself. `close` measures differences of maps and
scores in ranges of the maps.
"""

import csv
import functools
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from crash_server import make_folder
from sources import ROOT
from toys import toy_images

from tiled_ref.data.images import normalize
from tiled_ref.ensemble import TiledEnsemble
from tiled_ref.models import MODELS
from tiled_ref.models.backbone import ResNet18Features
from tiled_ref.models.search.coreset import (
    k_centre_greedy,
    k_centre_greedy_device,
    select_coreset,
)
from tiled_ref.models.weights import find_weights
from tiled_ref.running.engine import MEMORY_MODES, Engine
from tiled_ref.running.results import METRICS
from tiled_ref.serving.export import export
from tiled_ref.setups import SETUPS
from tiled_ref.support.devices import full_precision
from tiled_ref.support.memory import PeakMemory

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICE, FIRST = "cuda", "cuda:0"
ARCHS = sorted(MODELS)
TRAINED = ["fastflow", "reverse_distillation"]
# A quarter of the paper's sizes: images of 64 or 128 px, tiles of 64 px.
SMALL = {
    name: setup.with_sizes(
        tuple(side // 4 for side in setup.image_size),
        None if setup.kind == "SM" else tuple(side // 4 for side in setup.tile_size),
    )
    for name, setup in SETUPS.items()
}
RUN = ("--setup", "ENS4", "--image-size", "64", "--tile-size", "32", "--weights", "random")


@functools.cache
def backbone_on(device):
    """One for each device: `Module.to` moves a backbone."""
    return ResNet18Features(find_weights("random", seed=0).state_dict).to(device)


def images_of(setup, n=6):
    """uint8 (n, 3, H, W); a bright square is in the last one."""
    images = toy_images(n, side=max(setup.image_size))
    images[-1, :, 20:34, 30:44] = 255
    return images


def new(setup, arch, device, steps=2, **options):
    if arch in TRAINED:
        options["switches"] = {"steps": steps}
    own = backbone_on(torch.device(device).type)
    return TiledEnsemble(SMALL[setup], arch, backbone=own, device=device, **options)


@functools.cache
def fitted(setup, arch, device):
    ensemble = new(setup, arch, device, weights="random")
    return ensemble.fit(images_of(ensemble.setup)[:4])


def elsewhere(ensemble, device, **changes):
    """The same states on another device, or with another recipe."""
    own = backbone_on(torch.device(device).type)
    other = TiledEnsemble(replace(ensemble.recipe, **changes), backbone=own, device=device)
    other.states = ensemble.states
    return other


def off(found, expected):
    """The largest difference of maps, and of scores, in ranges of the maps."""
    assert all(np.isfinite(part).all() for part in found)
    unit = np.ptp(expected[0])
    return [float(np.abs(a - b).max() / unit) for a, b in zip(found, expected)]


def close(found, expected, bound):
    assert max(off(found, expected)) <= bound, off(found, expected)


# ------------------------------------------------------------------------------- the same numbers


@pytest.mark.parametrize("setup", SMALL)
@pytest.mark.parametrize("arch", ARCHS)
def test_states_of_a_gpu_predict_on_the_cpu_what_they_do_there(arch, setup):
    ensemble = fitted(setup, arch, DEVICE)
    assert all(x.device.type == "cpu" for own in ensemble.states.values() for x in own.values())
    images = images_of(ensemble.setup)[3:]
    close(ensemble.predict(images), elsewhere(ensemble, "cpu").predict(images), 1e-4)


@pytest.mark.parametrize("setup", ["SM256", "ST9", "ENS4"])
def test_padim_fits_the_gaussians_of_the_cpu(setup):
    """The whole result: a difference in a factor counts by what it does to a distance."""
    ensembles = [fitted(setup, "padim", device) for device in (DEVICE, "cpu")]
    for location, own in ensembles[1].states.items():
        mean = ensembles[0].states[location]["mean"]
        np.testing.assert_allclose(mean, own["mean"], rtol=0, atol=1e-5 * own["mean"].abs().max())
    images = images_of(ensembles[0].setup)[3:]
    close(*(elsewhere(ensemble, "cpu").predict(images) for ensemble in ensembles), 1e-4)


@pytest.mark.parametrize("setup", ["SM256", "ST9", "ENS4"])
def test_patchcore_keeps_the_patches_of_the_cpu(setup):
    """Of the same patches; those of the two devices differ by rounding, which may turn a choice."""
    patches = []
    for device in (DEVICE, "cpu"):
        ensemble = new(setup, "patchcore", device)
        model, images = ensemble.make_model(), images_of(ensemble.setup)[:4]
        with full_precision():
            (embedding,) = model.features(tiles_of(ensemble.setup, images).to(device))
        patches.append(embedding.permute(0, 2, 3, 1).flatten(0, 2))
    with full_precision():
        chosen = [select_coreset(x, 0.1, 42).tolist() for x in (patches[0], patches[0].cpu())]
    assert chosen[0] == chosen[1]
    bound = 1e-5 * patches[1].abs().max()
    np.testing.assert_allclose(patches[0].cpu(), patches[1], rtol=0, atol=bound)


def test_the_coreset_of_given_points_is_that_of_the_cpu(rng):
    points = rng.standard_normal((3000, 100)).astype(np.float32)
    found = k_centre_greedy_device(torch.from_numpy(points).to(DEVICE), 500, 7)
    assert found.device.type == DEVICE
    assert found.tolist() == k_centre_greedy(points, 500, 7).tolist()


@pytest.mark.parametrize("setup", ["SM256", "ST9"])
@pytest.mark.parametrize("arch", TRAINED)
def test_the_loss_after_a_step_is_that_of_the_cpu(arch, setup):
    """Each step moves every weight by about the learning rate, whatever its gradient's size, so
    that longer trainings part."""
    losses = []
    for device in (DEVICE, "cpu"):
        ensemble = new(setup, arch, device, steps=1)
        images = images_of(ensemble.setup)[:4]
        (state,) = ensemble.fit(images).states.values()
        model = elsewhere(ensemble, "cpu").make_model()
        untrained = model.loss_value(layers := model.features(tiles_of(ensemble.setup, images)))
        model.load_state(state)
        losses.append(float(model.loss_value(layers)))
        assert abs(losses[-1] / float(untrained) - 1) > 1e-3
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def tiles_of(setup, images):
    """Normalised tiles, tile-major, float32 (T * N, 3, h, w)."""
    return setup.input_grid.tile(normalize(torch.from_numpy(images))).flatten(0, 2)


@pytest.mark.parametrize("setup", ["SM256", "ST9", "ENS9"])
@pytest.mark.parametrize("arch", ARCHS)
def test_low_and_resident_agree(arch, setup):
    """Not in equal bits: a batch of another size may get another algorithm of cuDNN or cuBLAS, which
    adds the same products in another order."""
    ensemble = fitted(setup, arch, DEVICE)
    images = images_of(ensemble.setup)[3:]
    low, resident = (Engine(ensemble, memory).predict(images) for memory in MEMORY_MODES)
    close(resident, low, 1e-4)


@pytest.mark.parametrize("arch", ARCHS)
def test_float16_deviates_little(arch):
    """But by more than float32 does from itself. On a CPU, whose autocast takes float16 too, the
    largest differences were 3e-4 to 1e-3."""
    ensemble = fitted("ENS9", arch, DEVICE)
    images = images_of(ensemble.setup)[3:]
    half = elsewhere(ensemble, DEVICE, precision="float16").predict(images)
    found = off(half, ensemble.predict(images))
    assert 2e-5 < found[0] and max(found) <= 1e-2, found


# ----------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("arch", ["padim", *TRAINED])
def test_low_mode_holds_one_model_and_one_tile(arch):
    """Training and prediction, as torch's allocator counts: the libraries' workspaces too, which
    the first run makes. PatchCore's banks of these images are small beside them."""
    peaks = []
    for setup in ("SM256", "SM256", "ENS9"):
        ensemble = new(setup, arch, DEVICE)
        images, peak = images_of(ensemble.setup), PeakMemory(FIRST)
        ensemble.fit(images[:4]).predict(images)
        peaks.append(peak.read()["peak_memory_bytes"])
        Engine(ensemble, "resident").predict(images)
        peaks.append(peak.read()["peak_memory_bytes"])
    assert peaks[4] <= 1.10 * peaks[2] and peaks[5] > 1.10 * peaks[2], peaks


# ------------------------------------------------------------------------------- files and programs


def test_an_ensemble_of_a_gpu_is_loaded_and_exported_on_a_cpu(tmp_path):
    ensemble = fitted("ENS4", "padim", DEVICE)
    images = images_of(ensemble.setup)[3:]
    ensemble.calibrate(images)
    ensemble.save(tmp_path / "ensemble")
    for device in ("cpu", DEVICE):
        kind = torch.device(device).type
        again = TiledEnsemble.load(
            tmp_path / "ensemble", backbone=backbone_on(kind), device=device
        )
        close(again.predict(images), ensemble.predict(images), 1e-4)
        export(again, tmp_path / f"{kind}.pt2")
        program = torch.export.load(tmp_path / f"{kind}.pt2").module()
        with full_precision():  # a program computes as its caller asks torch to
            found = [program(torch.from_numpy(image[None]).to(device)) for image in images]
        maps, scores = (torch.cat(part).detach() for part in list(zip(*found))[:2])
        assert maps.device.type == scores.device.type == kind
        close([maps.cpu().numpy(), scores.cpu().numpy()], ensemble.predict(images), 1e-4)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Where run.py has trained on the CPU, on the GPU, and with two processes on one GPU."""
    folder = tmp_path_factory.mktemp("cuda")
    make_folder(folder / "parts")
    for name, device, start in (
        ("cpu", "cpu", []),
        ("one", DEVICE, []),
        ("two", FIRST, ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]),
    ):
        fixed = ["--dataset", "folder", "--root", folder / "parts", "--out", folder / name]
        run(*fixed, *RUN, "--save", "--device", device, start=start)
    return folder


def run(*argv, start=()):
    words = [sys.executable, *start, ROOT / "run.py", *argv]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def result(folder):
    (path,) = folder.rglob("metrics.json")
    return json.loads(path.read_text())


@pytest.mark.parametrize("name, processes", [("one", 1), ("two", 2)])
def test_the_command_line_measures_what_it_does_on_the_cpu(runs, name, processes):
    """Two processes share the locations by torch's key-value store alone, without NCCL."""
    found, expected = result(runs / name), result(runs / "cpu")
    assert found["device"].startswith(DEVICE) and found["n_processes"] == processes
    assert found["memory_kind"] == "device, allocated by torch"
    assert found["peak_reserved_bytes"] >= found["peak_memory_bytes"] > 0
    for metric in METRICS:
        assert found[metric] == pytest.approx(expected[metric], abs=1e-3), metric


def scores_of(runs, name, out, *options):
    """Raw scores of the test images by the ensemble that a run has saved."""
    (manifest,) = (runs / name).rglob("manifest.json")
    run("--load", manifest.parent, "--predict", runs / "parts" / "test", "--out", out, *options)
    with open(out / "predictions.csv", newline="") as file:
        return [float(row["score"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def expected(runs):
    """Scores of what was trained, loaded and asked on the CPU."""
    return scores_of(runs, "cpu", runs / "expected", "--device", "cpu")


@pytest.mark.parametrize("device, memory", [(DEVICE, "low"), (DEVICE, "resident"), ("cpu", "low")])
def test_a_saved_ensemble_scores_new_images_anywhere(runs, expected, tmp_path, device, memory):
    found = scores_of(runs, "one", tmp_path / "out", "--device", device, "--memory", memory)
    assert len(found) == 4
    np.testing.assert_allclose(found, expected, rtol=1e-4)
