"""CSV tables that are safe to open in a spreadsheet."""

import csv
from types import SimpleNamespace

FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")  # first characters of formulas


def csv_text(columns, rows, header=True):
    """Format rows as CSV.

    Parameters: columns, names; rows, dicts with these keys; header, begin with the names.
    Returns text. A cell that a spreadsheet would evaluate as a formula is prefixed with an
    apostrophe, as in OWASP's "CSV Injection"; numbers are not. A cell with a line break is quoted.
    """
    lines = []
    writer = csv.DictWriter(SimpleNamespace(write=lines.append), columns, lineterminator="\r\n")
    if header:
        writer.writeheader()
    writer.writerows({key: _escaped(cell) for key, cell in row.items()} for row in rows)
    return "".join(line.removesuffix("\r\n") + "\n" for line in lines)  # breaks in cells are quoted


def _escaped(cell):
    if not isinstance(cell, str) or not cell.startswith(FORMULA):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell
