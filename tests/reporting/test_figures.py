"""Figures of a made-up OUT: which there are, under which names, what is left out and said."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
from made_up import made_up_cell, small

from tiled_ref.reporting import figures
from tiled_ref.reporting.collection import Collection
from tiled_ref.running import analysis, stored_images

NAME = "{http://www.w3.org/2000/svg}"


def test_every_figure_is_there(made):
    found, notes, _ = made
    cells = [f"toys_{c}_{a}" for c in ("one", "two") for a in ("patchcore", "padim")]
    want = {"figure_05_memory", "figure_07_defect_size", "figure_09_ratios"}
    for cell in cells:
        want |= {f"{k}_{cell}" for k in ("figure_04_zoom", "figure_06_resolution", "curves",
                                          "scores", "recall_by_size")}  # fmt: skip
    for arch in ("patchcore", "padim"):
        want |= {f"recall_by_size_toys_{arch}", f"pictures_toys_{arch}"}
    assert set(found) == want
    assert notes == ["Figure 8 needs pipeline.json in --out, as bench/pipeline.py writes it."]
    for figure in found.values():
        if isinstance(figure.data, str):
            root = ElementTree.fromstring(figure.data)
            assert "nan" not in figure.data and root.find(f"{NAME}title").text


def test_they_are_written_under_their_names_always_the_same(made):
    found, _, collection = made
    assert [Path(name).stem for name in figures.figure_files(found.values())] == list(found)
    again, _ = figures.all_figures(Collection(collection.out))
    assert [(f.name, f.data) for f in again] == [(f.name, f.data) for f in found.values()]


def test_without_a_finished_cell_there_is_no_figure(tmp_path):
    assert figures.all_figures(Collection(tmp_path)) == ([], [])


@pytest.mark.parametrize("kind", [{"has_masks": False}, {"n_bad": 0}, {"n_good": 0}])
def test_what_is_missing_is_left_out_without_a_failure(tmp_path, kind):
    undefined = {"image_auroc": None, "pixel_aupro": None, "pixel_auroc": None}
    made_up_cell(tmp_path, small("one", **kind), **undefined)
    found, notes = figures.all_figures(Collection(tmp_path))
    names = {figure.name.partition("_toys")[0] for figure in found}
    assert "figure_05_memory" in names and "scores" in names
    assert ("pictures" in names) == ("n_bad" not in kind)
    assert ("recall_by_size" in names) == ("n_good" in kind)
    assert any("Figure 7" in note for note in notes)


def test_cells_without_analysis_are_listed(tmp_path):
    made_up_cell(tmp_path, small("one"))
    folder = made_up_cell(tmp_path, small("two"))
    (folder / analysis.ANALYSIS).unlink()
    collection = Collection(tmp_path)
    assert collection.without == [folder] and len(collection.results) == 2
    assert collection.groups() == [("toys", "one", "padim")]


def test_defects_of_changed_images_are_not_mixed_with_older_cells(tmp_path):
    folder = made_up_cell(tmp_path, small("one"))
    images = folder.parents[2] / stored_images.IMAGES
    kept = images.read_bytes()
    made_up_cell(tmp_path, small("one", n_bad=2), setup="SM512")
    collection = Collection(tmp_path)
    assert [r["setup"] for r, _ in collection.defects()] == ["SM512"]
    assert kept != images.read_bytes()
    assert collection.without == [folder]
    assert any(f.name.startswith("scores") for f in figures.all_figures(collection)[0])
