"""The paper's numbers as shipped, and its slips found by its own numbers."""

import csv

import pytest

from tiled_ref.data import mvtec, visa
from tiled_ref.reporting import paper
from tiled_ref.reporting.results import ARCHS
from tiled_ref.setups import SETUPS


def test_every_table_is_complete():
    for dataset, names in (("mvtec", mvtec.CATEGORIES), ("visa", visa.CATEGORIES)):
        assert set(paper.categories(dataset)) == set(names)
        for arch in ARCHS:
            for setup in SETUPS:
                for metric in paper.PAPER_METRICS:
                    mean = paper.printed(dataset, arch, paper.AVERAGE, setup, metric)
                    assert mean.std > 0 and mean.table == paper.table_number(dataset, arch)
                    for name in names:
                        assert paper.printed(dataset, arch, name, setup, metric).std is None
    numbers = [paper.table_number(d, a) for d in ("mvtec", "visa") for a in ARCHS]
    assert numbers == [5, 6, 7, 8, 9, 10, 11, 12]
    assert paper.table_number("synthetic", "padim") is None and paper.categories("folder") == ()


def test_its_arithmetic_slips_are_these_two():
    """Table 8, SM512: 1302.7 / 15 = 86.85, printed 87.2. Table 12, ST4: 1067.6 / 12 = 88.97,
    printed 89.3. Every other average is that of its column up to rounding."""
    found = {
        (paper.printed(*key).table, *key[3:]): (100 * paper.printed(*key).value, mean)
        for key, mean in paper.arithmetic_slips().items()
    }
    assert found == {
        (8, "SM512", "pixel_aupro"): (pytest.approx(87.2), 86.85),
        (12, "ST4", "pixel_aupro"): (pytest.approx(89.3), 88.97),
    }


def test_the_impossible_value_is_that_of_table_7():
    (key,) = paper.impossible_values()
    assert key == ("mvtec", "fastflow", "leather", "SM256", "pixel_aupro")
    assert paper.printed(*key).value == 1.083


def test_tables_3_and_4():
    assert paper.paper_parameters("reverse_distillation", "ENS9") == 163.5
    assert paper.paper_training_seconds("padim", "ENS4") == 444.9
    assert paper.paper_parameters("padim", "SM1024") is None
    for arch in ARCHS:
        for setup in SETUPS:
            assert paper.paper_parameters(arch, setup) > 0
            assert paper.paper_training_seconds(arch, setup) > 0


@pytest.mark.real
def test_what_is_shipped_is_what_was_given(shared):
    def rows(path):
        with open(path, newline="") as file:
            return [{k: v.strip() for k, v in row.items()} for row in csv.DictReader(file)]

    folder = shared / "paper"
    assert rows(folder / "results_per_category.csv") == paper._rows("paper_results.csv")
    assert rows(folder / "table3_parameters_million.csv") == paper._rows("paper_parameters.csv")
    assert rows(folder / "table4_training_seconds.csv") == paper._rows(
        "paper_training_seconds.csv"
    )
