"""Finds what the code and the tests cite: (author, kind, number) with the place it stands.

    "Defard et al. Eq. 1"        -> ("Defard", "Eq.", "1")
    "Rolih et al., Tables 5-12"  -> ("Rolih", "Table", "5"), ..., ("Rolih", "Table", "12")

A citation without an author belongs to the author named before it on the same line, else to
the paper that the file is about.

    PYTHONPATH=. python tests/citations.py    lists every citation, its files and its tests
"""

import ast
import re

from sources import ROOT, SOURCES

AUTHORS = "Rolih|Defard|Roth|Yu|Dinh|Deng|He|Bergmann|Higham|Zou|Steele"
TOKEN = re.compile(
    rf"\b(?P<author>{AUTHORS})(?:\b(?: et al|,| and [A-Z]))"
    r"|\b(?P<kind>Eq\.|Sec\.|Tables?|Fig\.)\s+"
    r"(?P<first>[IVX]+-[A-Z]|\d+(?:\.\d+)*)(?:-(?P<last>\d+))?(?:(?:, | and | or )(?P<more>\d+)\b)?"
)
NUMERALS = re.compile(r"eq_(\d+)(?:_(?:and_)?(\d+))?")
# Whose equations and sections a file means where it names nobody.
DEFAULTS = {
    "padim": ("Defard", "Defard"),
    "patchcore": ("Roth", "Roth"),
    "coreset": ("Roth", "Roth"),
    "fastflow": ("Dinh", "Yu"),
    "reverse_distillation": ("Deng", "Deng"),
    "areas": ("Bergmann", "Bergmann"),
    "numbers": ("Steele", "Steele"),
    "filter": ("Higham", "Higham"),
    "neighbours": ("Higham", "Higham"),
}


def defaults(path):
    """(author of equations, author of sections and figures) of a file; tables are Rolih's."""
    return DEFAULTS.get(path.stem.removeprefix("test_"), ("Rolih", "Rolih"))


def cited(text, path):
    """The citations in a text, a set of (author, kind, number)."""
    found = set()
    for line in text.splitlines():
        found |= _cited_in_line(line, path)
    return found


def _cited_in_line(line, path):
    found, author = set(), None
    for token in TOKEN.finditer(line):
        if token["author"]:
            author = token["author"]
            continue
        kind = "Table" if token["kind"].startswith("Table") else token["kind"]
        equation, section = defaults(path)
        owner = author or {"Eq.": equation, "Table": "Rolih"}.get(kind, section)
        numbers = [token["first"]]
        if token["last"] and token["first"].isdigit():
            numbers = [str(n) for n in range(int(token["first"]), int(token["last"]) + 1)]
        if token["more"] and token["kind"] != "Sec.":
            numbers.append(token["more"])
        found |= {(owner, kind, number) for number in numbers}
    return found


def places(text, path, label):
    """citation -> {label}."""
    return {citation: {label} for citation in cited(text, path)}


def merge(many):
    """Dictionaries of sets, put together."""
    whole = {}
    for one in many:
        for key, values in one.items():
            whole.setdefault(key, set()).update(values)
    return whole


def in_code():
    """Citations of the package: citation -> files."""
    return merge(
        places(path.read_text("utf-8"), path, path.relative_to(ROOT).as_posix()) for path in SOURCES
    )


def in_tests():
    """Citations of the tests: citation -> "tests/test_x.py::test_y", by name or text."""
    found = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        source = path.read_text("utf-8")
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                label = f"{path.relative_to(ROOT).as_posix()}::{node.name}"
                start = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
                text = "\n".join(source.splitlines()[start : node.end_lineno])
                found.append(places(text, path, label))
                numbers = [n for pair in NUMERALS.findall(node.name) for n in pair if n]
                found.append({(defaults(path)[0], "Eq.", n): {label} for n in numbers})
    return merge(found)


if __name__ == "__main__":
    tests = in_tests()
    for citation, files in sorted(in_code().items()):
        names = sorted(tests.get(citation, ["-"]))
        print(*citation, "|", ", ".join(sorted(files)), "|", ", ".join(names))
