"""Tables for spreadsheets."""

import csv
from types import SimpleNamespace

FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")  # begins what a spreadsheet computes


def csv_text(columns, rows, header=True):
    """Rows as CSV.

    Parameters: columns, names; rows, dicts with these keys; header, begin with the names.
    Returns text. A cell that a spreadsheet would take for a formula gets an apostrophe in front,
    as OWASP's "CSV Injection" suggests; numbers stay. A cell with an end of a line is quoted.
    """
    lines = []
    writer = csv.DictWriter(SimpleNamespace(write=lines.append), columns, lineterminator="\r\n")
    if header:
        writer.writeheader()
    writer.writerows({key: _harmless(cell) for key, cell in row.items()} for row in rows)
    return "".join(line.removesuffix("\r\n") + "\n" for line in lines)  # either end was quoted


def _harmless(cell):
    if not isinstance(cell, str) or not cell.startswith(FORMULA):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell
