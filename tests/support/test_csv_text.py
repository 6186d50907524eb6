"""Tables that a spreadsheet shows and does not compute."""

import csv

import pytest

from tiled_ref.support.tables import csv_text


@pytest.mark.parametrize("start", "=+-@\t\r\n＝＋－＠")
def test_text_that_begins_like_a_formula_gets_an_apostrophe(start):
    cell = f'{start}HYPERLINK("http://x","y")'
    text = csv_text(["name", "n"], [{"name": cell, "n": -1.5}])
    assert list(csv.reader(text.splitlines(True))) == [["name", "n"], [f"'{cell}", "-1.5"]]


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\n\r"])
def test_no_cell_begins_a_row(end):
    """Behind an end of a line that is not quoted, a formula would begin a row of its own."""
    cells = {"a": f"x{end}=1+1", "b": f"{end}", "c": f"=1{end}"}
    text = csv_text(list(cells), [cells, cells])
    quoted = ["x{}=1+1", "'{}", "'=1{}"]
    row = ",".join(f'"{cell.format(end)}"' for cell in quoted)
    assert text == f"a,b,c\n{row}\n{row}\n"


def test_numbers_and_other_text_stay():
    cells = [-1.5, -3, None, "-1.5", "+2", "-inf", "nan", "", "a=b", "'x", "-1e-05", "ü", True]
    text = csv_text(["x"], [{"x": cell} for cell in cells], header=False)
    found = [row[0] if row else "" for row in csv.reader(text.splitlines())]
    assert found == ["" if cell is None else str(cell) for cell in cells]
