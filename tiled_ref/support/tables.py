"""Tables for spreadsheets."""

import csv
import io

FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")  # begins what a spreadsheet computes


def csv_text(columns, rows, header=True):
    """Rows as CSV.

    Parameters: columns, names; rows, dicts with these keys; header, begin with the names.
    Returns text. A cell that a spreadsheet would take for a formula gets an apostrophe in front,
    as OWASP's "CSV Injection" suggests; numbers stay.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows({key: _harmless(cell) for key, cell in row.items()} for row in rows)
    return text.getvalue()


def _harmless(cell):
    if not isinstance(cell, str) or not cell.startswith(FORMULA):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell
