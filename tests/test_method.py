"""method.py: one page, and the numbers of a run."""

import ast
import re

import pytest
from sources import ROOT

from tiled_ref import method
from tiled_ref.data import synthetic
from tiled_ref.models.weights import find_weights
from tiled_ref.running.category_images import CategoryImages
from tiled_ref.running.cell import Options, run_cell
from tiled_ref.setups import Recipe, Setup
from tiled_ref.support.progress import Progress

PAGE = (ROOT / "tiled_ref" / "method.py").read_text("utf-8")


@pytest.mark.parametrize("stride", [32, 64])
def test_its_numbers_are_those_of_a_run(tiny_backbone, monkeypatch, capsys, stride):
    """The same method written out, on smaller sizes: AUROC and AUPRO within 1e-6."""
    category = synthetic.load(None, "board", n_train=8, n_good=4, n_defective=6)
    for name, value in (
        ("IMAGE", 128), ("TILE", 64), ("STRIDE", stride), ("STARTS", range(0, 65, stride)),
    ):  # fmt: skip
        monkeypatch.setattr(method, name, value)
    monkeypatch.setattr(method, "find_weights", lambda text: find_weights("random", seed=0))
    monkeypatch.setattr(method.synthetic, "load", lambda root, name: category)
    method.main()
    printed = re.fullmatch(r"AUROC (.+)\nAUPRO (.+)\n", capsys.readouterr().out).groups()
    quiet, options = Progress(quiet=True), Options()
    recipe = Recipe(Setup("small", "ENS", (128, 128), (64, 64), (stride, stride)))
    result = run_cell(recipe, CategoryImages(category, options, quiet), tiny_backbone, options)
    expected = result["image_auroc"], result["pixel_aupro"]
    assert list(map(float, printed)) == pytest.approx(expected, abs=1e-6)  # measured: 5e-7, the digits printed


def test_it_is_a_page_without_classes_that_imports_little():
    assert len(PAGE.splitlines()) <= 140
    tree = ast.parse(PAGE)
    assert not any(isinstance(node, ast.ClassDef) for node in ast.walk(tree))
    own = {node.module: [a.name for a in node.names] for node in ast.walk(tree)
           if isinstance(node, ast.ImportFrom) and node.level}  # fmt: skip
    assert own == {
        "data": ["synthetic"], "data.reading": ["read_images", "read_masks"],
        "metrics": ["label_regions"], "models.weights": ["find_weights"],
    }  # fmt: skip
