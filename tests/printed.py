"""Did the main job print the numbers that the README shows?

    python tests/printed.py OUTPUT [WEIGHTS]

OUTPUT is a file with what the job printed. Names and counts must be equal, metrics within 0.1
(the last digit may round differently on another machine); seconds and memory are the machine's.
With random weights the numbers are others, and only names and counts are compared.
"""

import re
import sys
from pathlib import Path

from readme import readme

METRICS = slice(4, 7)  # image AUROC, pixel AUROC, AUPRO
NAMES = (0, 1, 2, 3, 7, 8)  # category, architecture, setup, seed, parameters and their unit


def row(text):
    """The words of the first row of the table in a text: the line below the dashes."""
    lines = [line.split() for line in text.splitlines()]
    below = [k for k, line in enumerate(lines) if line and set("".join(line)) == {"-"}]
    if not below:
        raise ValueError("there is no table")
    return lines[below[0] + 1]


def shown():
    """The row that the README shows for the main job."""
    return row(re.search(r"The main job ends with\n+```\n(.*?)```", readme(), re.DOTALL)[1])


def compare(ours, theirs, weights="imagenet"):
    """What differs between two rows, a list of sentences."""
    wrong = [f"{ours[k]} for {theirs[k]}" for k in NAMES if ours[k] != theirs[k]]
    if weights == "imagenet":
        pairs = zip(ours[METRICS], theirs[METRICS])
        wrong += [f"{a} for {b}" for a, b in pairs if abs(float(a) - float(b)) > 0.1001]
    return wrong


if __name__ == "__main__":
    output = Path(sys.argv[1]).read_text("utf-8")
    found = compare(row(output), shown(), *sys.argv[2:])
    print("\n".join(f"not as the README says: {f}" for f in found) or "as the README says")
    sys.exit(1 if found else 0)
