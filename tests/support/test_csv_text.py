"""Tables that a spreadsheet shows and does not compute."""

import csv

import pytest

from tiled_ref.support.tables import csv_text


@pytest.mark.parametrize("start", "=+-@\t\r\n＝＋－＠")
def test_text_that_begins_like_a_formula_gets_an_apostrophe(start):
    cell = f'{start}HYPERLINK("http://x","y")'
    text = csv_text(["name", "n"], [{"name": cell, "n": -1.5}])
    assert list(csv.reader(text.splitlines(True))) == [["name", "n"], [f"'{cell}", "-1.5"]]


def test_numbers_and_other_text_stay():
    cells = [-1.5, -3, None, "-1.5", "+2", "-inf", "nan", "", "a=b", "'x", "-1e-05", "ü", True]
    text = csv_text(["x"], [{"x": cell} for cell in cells], header=False)
    found = [row[0] if row else "" for row in csv.reader(text.splitlines())]
    assert found == ["" if cell is None else str(cell) for cell in cells]
