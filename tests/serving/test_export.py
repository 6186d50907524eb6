"""A whole ensemble as one program of torch: it predicts the same where this package is missing."""

import os
import resource
import subprocess
import sys
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from readme import block
from toys import toy_images

from tiled_ref import cli
from tiled_ref.data.encoders import encode_png
from tiled_ref.ensemble import TiledEnsemble
from tiled_ref.models import MODELS, fastflow
from tiled_ref.serving import export as exporting
from tiled_ref.serving.export import Program, export
from tiled_ref.setups import Setup
from tiled_ref.support.errors import InputError

SWITCHES = {"fastflow": {"steps": 1}, "reverse_distillation": {"steps": 1}}
GRIDS = {
    "SM": Setup("SM", "SM", (48, 32), (48, 32), (48, 32)),
    "ST": Setup("ST", "ST", (40, 32), (32, 32), (16, 16)),  # the second tile sticks out
    "ENS": Setup("ENS", "ENS", (40, 32), (32, 32), (16, 16)),
}
# Runs programs (odd arguments) on the images in a file (even arguments), writes FILE.npz.
ELSEWHERE = """
import sys
sys.modules["tiled_ref"] = None  # an import of it fails
import numpy as np, torch
for program, images in zip(sys.argv[1::2], sys.argv[2::2]):
    run, found = torch.export.load(program).module(), []
    for image in np.load(images):
        found.append([part.detach().numpy() for part in run(torch.tensor(image[None]))])
    np.savez(program + ".npz", *map(np.concatenate, zip(*found)))
"""


def trained(setup, arch, backbone, **options):
    """An ensemble whose threshold lies between the scores of the two images returned with it."""
    height, width = setup.image_size
    images = toy_images(6, side=max(height, width))[:, :, :height, :width].copy()
    ensemble = TiledEnsemble(
        setup, arch, backbone=backbone, weights="random",
        **{"switches": SWITCHES.get(arch)} | options,
    ).fit(images[:4])
    images[5, :, 8:24, 8:24] = 255
    ensemble.calibrate(images[4:])
    scores = ensemble.predict(images[4:])[1]
    ensemble.thresholds["image"]["threshold"] = float(scores.mean(dtype=np.float64))
    return ensemble, images[4:]


def run_elsewhere(programs, folder):
    """What programs, [(path, images uint8 (N, 3, H, W))], give in a process without tiled_ref: a
    list of [maps, scores, verdicts]."""
    words = []
    for path, images in programs:
        np.save(f"{path}.npy", images)
        words += [str(path), f"{path}.npy"]
    command = [sys.executable, "-c", ELSEWHERE, *words]
    child = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    return [[*np.load(f"{path}.npz").values()] for path, _ in programs]


def deviation(found, ensemble, images):
    """The largest difference of maps and scores, relative to the range of the maps; the verdicts
    are compared."""
    maps, scores = ensemble.predict(images)
    assert (found[0].shape, found[0].dtype) == (maps.shape, np.float32)
    assert (found[1].shape, found[1].dtype) == (scores.shape, np.float32)
    if ensemble.thresholds:
        assert found[2].dtype == bool and found[2].tolist() == ensemble.verdicts(scores).tolist()
        assert sorted(found[2]) == [False, True]
    return max(np.abs(found[0] - maps).max(), np.abs(found[1] - scores).max()) / np.ptp(maps)


@pytest.fixture(scope="module")
def cases(tiny_backbone, tmp_path_factory):
    """(arch, kind) -> the ensemble, two images and what its program gives elsewhere."""
    folder, made = tmp_path_factory.mktemp("programs"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fastflow, "N_BLOCKS", 2)
        for arch in MODELS:
            for kind, setup in GRIDS.items():
                ensemble, images = trained(setup, arch, tiny_backbone)
                export(ensemble, folder / f"{arch}_{kind}.pt2")
                made[arch, kind] = ensemble, images
        programs = [(folder / f"{a}_{k}.pt2", images) for (a, k), (_, images) in made.items()]
        found = run_elsewhere(programs, folder)
        yield {key: (*case, parts) for (key, case), parts in zip(made.items(), found)}


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("arch", sorted(MODELS))
def test_the_program_agrees_where_the_package_is_missing(cases, arch, kind):
    ensemble, images, found = cases[arch, kind]
    assert deviation(found, ensemble, images) < 1e-4  # measured: 7e-7


def in_process(ensemble, images):
    """What the program of an ensemble gives here: [maps, scores] and, with thresholds, verdicts."""
    image = torch.tensor(images[:1])
    with torch.no_grad():
        run = torch.export.export(Program(ensemble), (image,), strict=False).module()
    return [np.concatenate(parts) for parts in zip(*(run(x[None]) for x in torch.tensor(images)))]


@pytest.mark.parametrize(
    "options",
    [{"score": "max"}, {"score": "top:2"}, {"merge": "window"}, {"seam_width": 0.0},
     {"seam_width": 0.3, "seam_sigma": 9.0}],
)
def test_the_recipe_decides_score_and_smoothing(tiny_backbone, options):
    ensemble, images = trained(GRIDS["ENS"], "padim", tiny_backbone, **options)
    assert deviation(in_process(ensemble, images), ensemble, images) < 1e-4  # measured: 4e-7


def test_factors_in_float16_are_so_in_the_program(tiny_backbone, tmp_path):
    """It agrees with the prediction of the same ensemble and is smaller than in float32."""
    sizes = {}
    for store in ("float32", "float16"):
        switches = {"store": store}
        ensemble, images = trained(GRIDS["ENS"], "padim", tiny_backbone, switches=switches)
        assert deviation(in_process(ensemble, images), ensemble, images) < 1e-4  # measured: 6e-7
        export(ensemble, tmp_path / f"{store}.pt2")
        sizes[store] = (tmp_path / f"{store}.pt2").stat().st_size
    numbers = sum(state["factors"].numel() for state in ensemble.states.values())
    assert abs(sizes["float32"] - sizes["float16"] - 2 * numbers) < 0.02 * numbers


def test_what_lies_on_the_threshold_is_anomalous(tiny_backbone):
    """And not what lies below it by less than float32 tells apart."""
    ensemble, images = trained(GRIDS["SM"], "padim", tiny_backbone)
    score = float(in_process(ensemble, images[:1])[1][0])
    for threshold, anomalous in ((score, True), (score * (1 + 1e-12), False)):
        ensemble.thresholds["image"]["threshold"] = threshold
        assert in_process(ensemble, images[:1])[2].tolist() == [anomalous]


@pytest.mark.parametrize("arch", sorted(MODELS))
def test_networks_in_fewer_bits_without_thresholds(tiny_backbone, arch, monkeypatch):
    monkeypatch.setattr(fastflow, "N_BLOCKS", 2)
    ensemble, images = trained(GRIDS["ENS"], arch, tiny_backbone)
    recipe = replace(ensemble.recipe, precision="bfloat16")
    fewer = TiledEnsemble(recipe, backbone=tiny_backbone)
    fewer.states, ensemble.thresholds = ensemble.states, None
    found = in_process(fewer, images)
    assert len(found) == 2  # no verdicts
    assert deviation(found, fewer, images) < 1e-4  # measured: 9e-7
    assert deviation(found, ensemble, images) > 1e-3  # measured: 1.5e-3


@pytest.fixture(scope="module")
def saved(tiny_backbone, tmp_path_factory):
    """Folder of a small ensemble, two images, and the ensemble."""
    ensemble, images = trained(GRIDS["ENS"], "padim", tiny_backbone)
    folder = tmp_path_factory.mktemp("saved") / "ensemble"
    ensemble.save(folder)
    return folder, images, ensemble


def command(folder, *words):
    return cli.main(["--load", str(folder), "--device", "cpu", *map(str, words)])


def test_the_example_runs_without_the_package(saved, tmp_path, capfd):
    """From the command line to a verdict in a process that has torch and Pillow alone."""
    folder, images, ensemble = saved
    assert command(folder, "--export", tmp_path / "part.pt2") == 0
    out = capfd.readouterr().out
    size = (tmp_path / "part.pt2").stat().st_size
    assert f"{size:,} bytes" in out and "uint8 (1, 3, 40, 32) to map, score, verdict" in out
    _, scores = ensemble.predict(images)
    for image, score, anomalous in zip(images, scores, ensemble.verdicts(scores)):
        (tmp_path / "part.png").write_bytes(encode_png(image.transpose(1, 2, 0)))
        code = f'import sys; sys.modules["tiled_ref"] = None\n{block("test: exported").text}'
        child = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        verdict = "anomalous" if anomalous else "normal"
        assert child.stdout == f"{score:.4f} {verdict} (1, 40, 32)\n"


def test_another_size_is_refused_by_the_program(cases, tmp_path):
    ensemble, _, _ = cases["padim", "SM"]
    export(ensemble, tmp_path / "part.pt2")
    run = torch.export.load(tmp_path / "part.pt2").module()
    with pytest.raises(Exception, match="size"):
        run(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_a_file_is_replaced_only_when_the_new_one_is_complete(saved, tmp_path, capsys):
    path, folder = tmp_path / "part.pt2", saved[0]
    path.write_bytes(b"an earlier one")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        assert command(folder, "--export", path) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"cannot write {path}: File too large" in capsys.readouterr().err
    assert path.read_bytes() == b"an earlier one" and os.listdir(tmp_path) == ["part.pt2"]
    assert command(folder, "--export", path) == 0
    assert path.stat().st_size > 1e6 and os.listdir(tmp_path) == ["part.pt2"]


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--export", "{}/none/part.pt2"], "no such folder"),
        (["--export", "{}"], "loads only .pt2 files"),
        (["--export", "{}/folder.pt2"], "is a folder; name a file"),
        (["--export", "{}/part.onnx"], "loads only .pt2 files"),
        (["--export", "{}/part.pt2", "--predict", "x.png"], "give --load DIR and exactly one of --predict"),
        (["--export", "{}/part.pt2", "--memory", "low"], "--memory cannot be combined with --export"),
        (["--export", "{}/part.pt2", "--batch-size", "4"], "--batch-size cannot be combined with --export"),
        (["--export", "{}/part.pt2", "--setup", "ENS4"], "--setup does not apply"),
    ],
)
def test_what_cannot_be_written_is_one_sentence(saved, tmp_path, capsys, words, sentence):
    (tmp_path / "folder.pt2").mkdir()
    assert command(saved[0], *(word.format(tmp_path) for word in words)) == 2
    err = capsys.readouterr().err
    assert sentence in err and err.count("\n") == 1
    assert os.listdir(tmp_path) == ["folder.pt2"]


def test_without_an_ensemble_there_is_nothing_to_export(tmp_path, capsys):
    assert cli.main(["--export", str(tmp_path / "part.pt2")]) == 2
    assert "give --load DIR and exactly one of" in capsys.readouterr().err


def test_models_that_do_not_fit_into_memory_are_refused(saved, tmp_path, monkeypatch):
    ensemble = saved[2]
    n_bytes = 2 * sum(tensor.nbytes for tensor in ensemble.states[0, 0].values())
    monkeypatch.setattr(exporting, "available_memory", lambda: n_bytes - 1)
    with pytest.raises(InputError, match="needs the models of all tile locations in memory, 0.0"):
        export(ensemble, tmp_path / "part.pt2")
    assert not os.listdir(tmp_path)
    monkeypatch.setattr(exporting, "available_memory", lambda: n_bytes)
    monkeypatch.setattr(exporting, "atomic_write", Mock(side_effect=InputError("written")))
    with pytest.raises(InputError, match="written"):
        export(ensemble, tmp_path / "part.pt2")


@pytest.mark.optional
@pytest.mark.parametrize("arch", sorted(MODELS))
def test_the_program_becomes_onnx(cases, arch, tmp_path):
    """By torch.onnx from the file that was written, run by onnxruntime."""
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name)
    onnxruntime = pytest.importorskip("onnxruntime")
    ensemble, images, _ = cases[arch, "ENS"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fastflow, "N_BLOCKS", 2)
        export(ensemble, tmp_path / "part.pt2")
    program = torch.export.load(tmp_path / "part.pt2")
    torch.onnx.export(program, f=str(tmp_path / "part.onnx"), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "part.onnx")
    (name,) = (given.name for given in session.get_inputs())
    found = [session.run(None, {name: image[None]}) for image in images]
    found = [np.concatenate(parts) for parts in zip(*found)]
    assert deviation(found, ensemble, images) < 1e-4  # measured: 6e-7
