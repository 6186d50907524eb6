"""Real images (MVTec AD screw) and the official weights, beside the paper's numbers."""

import pytest
import torch

from tiled_ref.data import mvtec
from tiled_ref.models.backbone import ResNet18Features
from tiled_ref.reporting.paper import paper_result
from tiled_ref.running.category_images import CategoryImages
from tiled_ref.running.cell import Options, run_cell
from tiled_ref.setups import Recipe
from tiled_ref.support.progress import Progress

pytestmark = [pytest.mark.real, pytest.mark.slow]


def test_padim_on_screw_is_where_the_paper_is(screw, official_weights):
    """Table 6, Screw, SM256: 74.2/91.7. One seed moves by about 3 points of AUROC and 1 of
    AUPRO, so the bounds are wide; the README has the mean of three seeds in all six setups."""
    backbone = ResNet18Features(torch.load(official_weights, weights_only=True))
    quiet, options = Progress(quiet=True), Options()
    images = CategoryImages(mvtec.load(screw, "screw"), options, quiet)
    result = run_cell(Recipe("SM256"), images, backbone, options, quiet)
    assert (result["n_train"], result["n_test"]) == (320, 160)
    auroc, aupro = paper_result("mvtec", "padim", "screw", "SM256")
    assert abs(result["image_auroc"] - auroc) < 0.10
    assert abs(result["pixel_aupro"] - aupro) < 0.03
