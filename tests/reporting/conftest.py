"""What tests of figures share."""

import pytest
from made_up import made_up_cell, small

from tiled_ref.reporting.collection import Collection
from tiled_ref.reporting.figures import all_figures


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """{name: Figure}, notes and Collection of two categories, two architectures, two setups and a
    second seed of one cell."""
    out = tmp_path_factory.mktemp("out")
    for name in ("one", "two"):
        category = small(name, n_good=3, n_bad=3)
        for arch in ("padim", "patchcore"):
            for setup in ("SM256", "SM512"):
                made_up_cell(out, category, arch, setup)
    made_up_cell(out, category, "padim", "SM256", seed=7)
    collection = Collection(out)
    figures, notes = all_figures(collection)
    return {figure.name: figure for figure in figures}, notes, collection
