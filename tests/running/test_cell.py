"""A run from samples to metrics.json and results.csv."""

import csv
import json
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import ANY

import numpy as np
import pytest
from toys import toy_category

from tiled_ref import metrics
from tiled_ref.data import reading
from tiled_ref.data.samples import Evaluation
from tiled_ref.ensemble import TiledEnsemble
from tiled_ref.models.padim import Padim
from tiled_ref.running import cell, pieces
from tiled_ref.running.category_images import CategoryImages
from tiled_ref.running.cell import Options, run_cell
from tiled_ref.running.processes import Ranks
from tiled_ref.running.results import RESULT_COLUMNS
from tiled_ref.running.rows import Rows
from tiled_ref.setups import Recipe, Setup
from tiled_ref.support.errors import InputError
from tiled_ref.support.progress import Progress

ENS = Setup("ENS-96-48-24", "ENS", (96, 96), (48, 48), (24, 24))
SM = Setup("SM-48", "SM", (48, 48), (48, 48), (48, 48))
ST = Setup("ST-96-48-48", "ST", (96, 96), (48, 48), (48, 48))
QUIET = Progress(quiet=True)


def run(backbone, setup=ENS, category=None, seed=42, **options):
    method = {key: options.pop(key) for key in ("score", "batch_size", "precision") if key in options}
    options = Options(**options)
    images = CategoryImages(category or toy_category(), options, QUIET)
    return run_cell(Recipe(setup, seed=seed, **method), images, backbone, options, QUIET)


def timeless(result):
    return {k: v for k, v in result.items() if "seconds" not in k and "memory" not in k}


def test_metrics_are_those_of_merged_maps_and_mean_scores(tiny_backbone):
    """The whole run against the stages called one by one."""
    category = toy_category()
    result = run(tiny_backbone, category=category)
    train = reading.read_images(category.train, (96, 96))
    test = reading.read_images(category.test, (96, 96))
    maps, scores = TiledEnsemble(ENS, backbone=tiny_backbone).fit(train).predict(test)
    masks = reading.read_masks(category.test, (96, 96))
    labels = np.array([sample.label for sample in category.test])
    assert result["image_auroc"] == metrics.auroc(scores, labels)
    assert result["pixel_aupro"] == metrics.aupro(maps, masks)
    assert result["pixel_auroc"] == metrics.pixel_auroc(maps, masks)
    assert result["image_f1_max"] == metrics.image_f1_max(scores, labels)
    assert result["pixel_f1_max"] == metrics.pixel_f1_max(maps, masks)
    threshold = result["thresholds"]["pixel"]["threshold"]
    assert result["seg_f1"] == metrics.seg_f1(maps, masks, threshold)
    assert 0.5 < result["pixel_auroc"] <= 1  # a bright square is found, even by random weights
    assert (result["n_train"], result["n_test"], result["n_models"]) == (6, 8, 9)
    assert result["n_parameters"] == 9 * 2_782_784
    learnt = 9 * 12 * 12 * (100 + 5050)  # a mean and half an inverse covariance per position
    assert result["n_stored_parameters"] == 2_782_784 + learnt


@pytest.mark.parametrize("setup", [ENS, SM, ST], ids=lambda setup: setup.kind)
def test_the_same_seed_gives_the_same_metrics(tiny_backbone, setup, deterministic):
    first, second = (timeless(run(tiny_backbone, setup)) for _ in range(2))
    assert first == second
    assert timeless(run(tiny_backbone, setup, seed=43)) != first


@pytest.mark.parametrize("setup", [ENS, SM, ST], ids=lambda setup: setup.kind)
def test_kernels_and_specification_give_the_same_metrics(tiny_backbone, setup):
    compiled, plain = run(tiny_backbone, setup), run(tiny_backbone, setup, impl="numpy")
    assert (compiled.pop("impl"), plain.pop("impl")) == ("cython", "numpy")
    assert timeless(compiled) == timeless(plain)


def test_batch_size_changes_rounding_only(tiny_backbone):
    expected, got = run(tiny_backbone), run(tiny_backbone, batch_size=3)
    assert got["batch_size"] == 3
    for name in ("image_auroc", "pixel_auroc", "pixel_aupro"):
        assert abs(got[name] - expected[name]) <= 1e-4  # measured: 0


def test_the_order_of_test_images_does_not_matter(tiny_backbone):
    category = toy_category()
    turned = type(category)("toys", "toy", category.train, category.test[::-1], True)
    expected, got = run(tiny_backbone, category=category), run(tiny_backbone, category=turned)
    for name in ("image_auroc", "pixel_auroc", "pixel_aupro"):
        assert got[name] == pytest.approx(expected[name], abs=1e-12)


def test_metrics_at_the_original_size(tiny_backbone):
    """At the images' own size the switch changes nothing; at another it enlarges the maps."""
    at_setup = run(tiny_backbone, ENS)
    assert timeless(run(tiny_backbone, ENS, metric_size="original")) == {
        **timeless(at_setup), "metric_size": "original", "identity": ANY,
    }  # fmt: skip
    small, original = run(tiny_backbone, SM), run(tiny_backbone, SM, metric_size="original")
    assert small["pixel_aupro"] != original["pixel_aupro"]
    assert small["image_auroc"] == original["image_auroc"]


def test_a_data_set_says_how_it_is_scored_and_options_replace_that(tiny_backbone):
    """Small maps of a large image, so that both the size and the limit show."""
    category = replace(toy_category(), evaluation=Evaluation(0.05, "original"))
    own, usual = run(tiny_backbone, SM, category), run(tiny_backbone, SM)
    asked = run(tiny_backbone, SM, category, metric_size="setup", fpr_limit=0.3)
    facts = [(r["fpr_limit"], r["metric_size"]) for r in (own, usual, asked)]
    assert facts == [(0.05, "original"), (0.3, "setup"), (0.3, "setup")]
    numbers = [[r[name] for name in cell.METRICS] for r in (own, usual, asked)]
    assert numbers[2] == numbers[1] and numbers[0][2] != numbers[1][2]
    assert own["pixel_aupro"] == run(
        tiny_backbone, SM, metric_size="original", fpr_limit=0.05
    )["pixel_aupro"]  # fmt: skip


def test_the_largest_score_is_a_switch(tiny_backbone):
    assert run(tiny_backbone, score="max")["score"] == "max"


def test_what_is_undefined_is_none(tiny_backbone):
    no_masks = run(tiny_backbone, category=toy_category(has_masks=False))
    assert no_masks["image_auroc"] is not None
    assert no_masks["pixel_auroc"] is None and no_masks["pixel_aupro"] is None
    normal_only = run(tiny_backbone, category=toy_category(n_bad=0))
    assert normal_only["image_auroc"] is None and normal_only["pixel_aupro"] is None


def test_every_image_is_decoded_once_per_size(tiny_backbone, monkeypatch):
    """Not once per tile model, setup or seed."""
    reads = []
    original = reading.read_images_at

    def read_images_at(samples, sizes, **kwargs):
        reads.append((len(samples), *sizes))
        return original(samples, sizes, **kwargs)

    monkeypatch.setattr(reading, "read_images_at", read_images_at)
    images = CategoryImages(toy_category(), Options(), QUIET)
    for setup in (ENS, ST):
        for seed in (42, 33):
            run_cell(Recipe(setup, seed=seed), images, tiny_backbone, Options(), QUIET)
    assert reads == [(6, (96, 96)), (8, (96, 96))]
    reads.clear()
    images = CategoryImages(toy_category(), Options(), QUIET, sizes=[(96, 96), (64, 64)])
    small = images.images("test", (64, 64))
    assert images.images("test", (96, 96)).shape[2:] == (96, 96)
    assert reads == [(8, (64, 64), (96, 96))]
    assert (small == reading.read_images(images.category.test, (64, 64))).all()


def test_results_are_written_with_full_precision(tiny_backbone, tmp_path):
    first = run(tiny_backbone, ENS, out=tmp_path)
    second = run(tiny_backbone, SM, seed=7, out=tmp_path)
    path = tmp_path / "toys" / "toy" / "padim" / "ENS-96-48-24" / "seed42" / "metrics.json"
    assert json.loads(path.read_text()) == first | {"digest": ANY}
    with open(tmp_path / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["setup"] for row in rows] == ["ENS-96-48-24", "SM-48"]
    assert tuple(rows[0]) == RESULT_COLUMNS
    assert float(rows[1]["pixel_aupro"]) == second["pixel_aupro"]
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("limit, trained_again", [(0.0, 0), (1e9, 1)])
def test_a_model_that_took_long_is_not_trained_again(
    tiny_backbone, tmp_path, monkeypatch, limit, trained_again
):
    """A crash between training and prediction; what is cheap is not written."""
    monkeypatch.setattr(pieces, "WRITE_SECONDS", limit)
    whole = run(tiny_backbone, SM)
    fit, fits = Padim.fit, []

    def counted(self, *args, **kwargs):
        fits.append(1)
        return fit(self, *args, **kwargs)

    def crash(*args, **kwargs):
        raise RuntimeError

    with monkeypatch.context() as patched:
        patched.setattr(Padim, "predict", crash)
        with pytest.raises(RuntimeError):
            run(tiny_backbone, SM, out=tmp_path)
    monkeypatch.setattr(Padim, "fit", counted)
    resumed = run(tiny_backbone, SM, out=tmp_path, resume=True)
    assert len(fits) == trained_again
    assert resumed["pixel_aupro"] == whole["pixel_aupro"]


def test_a_cell_run_again_replaces_its_row(tiny_backbone, tmp_path):
    for _ in range(2):
        run(tiny_backbone, SM, out=tmp_path)
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 2


def test_metrics_json_holds_what_a_reader_needs(tiny_backbone):
    result = run(tiny_backbone)
    for key in (
        "image_auroc", "pixel_auroc", "pixel_aupro", "n_parameters", "seconds_train",
        "seconds_test", "peak_memory_bytes", "weights", "impl", "seed", "device", "versions",
    ):  # fmt: skip
        assert result[key] is not None, key
    assert result["peak_memory_bytes"] > 50 << 20 and result["seconds_train"] > 0
    assert {"torch", "numpy", "python", "tiled_ref"} <= set(result["versions"])


def test_a_foreign_metrics_json_is_named(tiny_backbone, tmp_path):
    foreign = tmp_path / "a" / "b" / "c" / "d" / "seed1" / "metrics.json"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("{}")
    with pytest.raises(InputError, match="seed1/metrics.json is damaged or was not written by"):
        run(tiny_backbone, SM, out=tmp_path)
    assert (tmp_path / "toys/toy/padim/SM-48/seed42/metrics.json").exists()  # nothing is lost


def test_options_say_what_the_paper_does_by_default():
    recipe = Recipe("ENS9")
    assert (recipe.score, recipe.seam_width, recipe.seam_sigma) == ("mean", 0.1, 2.0)
    assert (Options().metric_size, Options().fpr_limit, recipe.antialias) == (None, None, False)
    assert toy_category().evaluation == Evaluation(0.3, "setup", None)


def test_all_locations_at_once_give_the_same_metrics_and_files(tiny_backbone, tmp_path):
    low = run(tiny_backbone, out=tmp_path / "low", save=True)
    together = run(tiny_backbone, out=tmp_path / "resident", save=True, memory="resident")
    assert (low.pop("memory"), together.pop("memory")) == ("low", "resident")
    assert timeless(low) == timeless(together)
    files = [sorted((tmp_path / name).rglob("location_*.npz")) for name in ("low", "resident")]
    assert len(files[0]) == 9
    assert [p.read_bytes() for p in files[0]] == [p.read_bytes() for p in files[1]]


def test_save_asked_for_later_trains_again(tiny_backbone, tmp_path):
    first = run(tiny_backbone, SM, out=tmp_path)
    again = run(tiny_backbone, SM, out=tmp_path, resume=True, save=True)
    assert timeless(first) == timeless(again)
    (manifest,) = tmp_path.rglob("ensemble/manifest.json")
    seconds = run(tiny_backbone, SM, out=tmp_path, resume=True, save=True)["seconds_train"]
    assert seconds == again["seconds_train"] and manifest.is_file()  # taken, not computed again


def test_rows_that_were_chosen_are_read_in_their_order():
    rows = Rows(np.arange(12).reshape(4, 3), np.array([2, 0, 3]))
    assert len(rows) == 3 and rows[1].tolist() == [0, 1, 2]
    assert rows[0:2].tolist() == [[6, 7, 8], [0, 1, 2]] and rows[1:].tolist()[-1] == [9, 10, 11]


def test_precision_is_part_of_a_cell_and_changes_little(tiny_backbone, tmp_path):
    exact = run(tiny_backbone, SM, out=tmp_path)
    mixed = run(tiny_backbone, SM, out=tmp_path, precision="bfloat16", resume=True)
    assert (exact["precision"], mixed["precision"]) == ("float32", "bfloat16")
    assert mixed["pixel_auroc"] != exact["pixel_auroc"]  # computed, not taken from the first
    assert abs(mixed["pixel_auroc"] - exact["pixel_auroc"]) < 0.01
    with pytest.raises(InputError, match="float16 needs a CUDA device"):
        run(tiny_backbone, SM, precision="float16")


def test_the_images_of_a_category_are_written_by_one_rank_at_a_time(
    tiny_backbone, tmp_path, monkeypatch
):
    class Turns(Ranks):
        inside = None

        @contextmanager
        def one_at_a_time(self, name):
            self.inside = name
            yield
            self.inside = None

    ranks, seen, save = Turns(), [], cell.stored_images.save_images
    monkeypatch.setattr(
        cell.stored_images, "save_images",
        lambda *args: seen.append(ranks.inside) or save(*args),
    )  # fmt: skip
    run(tiny_backbone, SM, out=tmp_path, report=True, ranks=ranks)
    assert seen == ["images toys toy"] and ranks.inside is None
    assert (tmp_path / "toys/toy/images.npz").is_file()
