"""Every public name says what it takes, what it gives and what it raises; examples are run."""

import ast
import doctest
import importlib
import re

import pytest
from sources import MODULES, ROOT, SOURCES, module_of

# Parameters that are arrays or tensors wherever they occur: their shape must be stated.
ARRAYS = {
    "maps", "scores", "masks", "mask", "tiles", "images", "image", "batch", "labels", "features",
    "embedding", "picture", "array", "values", "patches", "distances", "z", "log_det",
    "encoded", "decoded", "x", "y",
}  # fmt: skip
SIDE = r"\w{1,12}'?(?: ?[*+/-] ?\w+)*(?: \([^()]*\) / \d)?"  # such as N, hf, T * B, D (D + 1) / 2
# Such as (N, H, W), (n,), (..., 3); not (i, j), nor a citation in brackets.
SHAPE = rf"\((?!i, j\))(?:(?:\.\.\.|{SIDE}), ?)+(?:{SIDE})?\)|\(\.\.\.\)|any shape"
DTYPE = r"float|uint8|int64|bool|dtype|integer|ints?\b|complex|str\b|callable|list|sequence"
ELSEWHERE = r"\b(?:see|as in|as for|as)\b [`\w]|CategoryImages"  # the docstring sends the reader on
RESULT = r"Returns|Yields?\b|->|>>>"
DELEGATES = r"(?:Parameters\b[^.:]*:|the others) (?:see|as in) `"  # all parameters at once


class Name:
    """A public function, method, property or class, as its source says."""

    def __init__(self, path, node, owner=None):
        self.path, self.node, self.owner = path, node, owner
        self.doc = ast.get_docstring(node) or ""
        parts = [module_of(path), owner.name if owner else None, node.name]
        self.text = ".".join(part for part in parts if part)

    @property
    def lines(self):
        return self.path.read_text("utf-8").splitlines()

    @property
    def parameters(self):
        arguments = self.node.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        return [a.arg for a in every if a.arg not in ("self", "cls") and a.arg[0] != "_"]

    @property
    def decorators(self):
        return {ast.unparse(d).rpartition(".")[2] for d in self.node.decorator_list}

    def own(self, kind):
        """Nodes of a kind in the body, those of functions inside it left out."""
        todo = list(self.node.body)
        while todo:
            node = todo.pop()
            if isinstance(node, kind):
                yield node
            if isinstance(node, ast.Try) and kind is ast.Raise:  # may be caught right here
                todo.extend([*node.handlers, *node.orelse, *node.finalbody])
            elif not isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Lambda)):
                todo.extend(ast.iter_child_nodes(node))


def public_names():
    """(functions and methods, classes) of the package."""
    functions, classes = [], []
    for path in SOURCES:
        if path.stem.startswith("_") and path.stem != "__init__":
            continue
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                functions.append(Name(path, node))
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                classes.append(Name(path, node))
                functions.extend(
                    Name(path, part, node)
                    for part in node.body
                    if isinstance(part, ast.FunctionDef) and not part.name.startswith("_")
                )
    return functions, classes


FUNCTIONS, CLASSES = public_names()


def inherited(name):
    """Whether a method without a docstring takes that of a base class of the package."""
    bases = {base.id for base in name.owner.bases if isinstance(base, ast.Name)}
    return any(
        other.node.name == name.node.name and other.doc
        for other in FUNCTIONS
        if other.owner is not None and other.owner.name in bases
    )


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_give_what_they_say(name):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_every_module_has_a_docstring(path):
    tree = ast.parse(path.read_text("utf-8"))
    assert ast.get_docstring(tree)


def test_every_public_name_has_a_docstring():
    lacking = [n.text for n in CLASSES if not n.doc]
    lacking += [n.text for n in FUNCTIONS if not n.doc and not (n.owner and inherited(n))]
    assert lacking == []


def documented(names):
    """Those with a docstring of their own that is about calling them; method.py is a page to be
    read aloud, with its shapes at the ends of lines."""
    called = [n for n in names if n.doc and not {"property", "cached_property"} & n.decorators]
    return [n for n in called if n.path.name != "method.py"]


# The legend of the package explains these once for all, in lines "name, name : what it is".
LEGEND = ast.get_docstring(ast.parse((ROOT / "tiled_ref" / "__init__.py").read_text("utf-8")))
GLOSSARY = {
    word
    for words in re.findall(r"^    ([\w, ]+) : ", LEGEND, re.MULTILINE)
    for word in words.split(", ")
}


def named(parameter, text):
    """Whether a docstring or the legend names a parameter."""
    return parameter in GLOSSARY or re.search(rf"\b{parameter}\b", text)


def context(name):
    """A function's docstring and, for a method, its class's."""
    return name.doc + "\n" + ((ast.get_docstring(name.owner) or "") if name.owner else "")


def test_every_parameter_is_named_in_the_docstring():
    """A docstring of up to three lines belongs to something trivial, whose names speak for
    themselves; a longer one has every parameter. A class has those of its constructor."""
    lacking = []
    for name in documented(FUNCTIONS):
        if len(name.doc.splitlines()) > 3 and not re.search(DELEGATES, name.doc):
            lacking += [f"{name.text}: {p}" for p in name.parameters if not named(p, context(name))]
    for name in CLASSES:
        for part in name.node.body:
            wanted = []
            if isinstance(part, ast.FunctionDef) and part.name == "__init__":
                wanted = Name(name.path, part, name.node).parameters
            if isinstance(part, ast.AnnAssign) and "dataclass" in str(name.decorators):
                line = name.lines[part.end_lineno - 1]
                wanted = [] if "  # " in line else [part.target.id]  # a comment beside it
            lacking += [f"{name.text}: {p}" for p in wanted if not named(p, name.doc)]
    assert lacking == []


def test_arrays_have_shape_and_dtype():
    """Beside the parameter, or where the docstring sends the reader; the dtype may be the
    class's or the module's."""
    lacking = []
    for name in documented(FUNCTIONS):
        module = ast.get_docstring(ast.parse(name.path.read_text("utf-8")))
        for p in () if re.search(DELEGATES, name.doc) else set(name.parameters) & ARRAYS:
            after = [m[1] for m in re.finditer(rf"\b{p}\b(?=(.{{0,300}}))", context(name), re.DOTALL)]
            first_line = name.doc.splitlines()[0]
            if not any(re.search(f"{SHAPE}|{ELSEWHERE}", text) for text in [*after, first_line]):
                lacking.append(f"{name.text}: shape of {p}")
            if not re.search(f"{DTYPE}|{ELSEWHERE}", context(name) + module):
                lacking.append(f"{name.text}: dtype of {p}")
    assert sorted(lacking) == []


def test_what_is_returned_is_said():
    """Where a value is returned the docstring says which; one line is enough if it is all."""
    lacking = []
    for name in documented(FUNCTIONS):
        gives = any(node.value is not None for node in name.own(ast.Return))
        gives |= any(name.own((ast.Yield, ast.YieldFrom)))
        if gives and len(name.doc.splitlines()) > 3 and not re.search(RESULT, name.doc):
            lacking.append(name.text)
    assert lacking == []


def test_what_is_raised_is_said():
    lacking = []
    for name in FUNCTIONS:
        for node in name.own(ast.Raise):
            call = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            kind = ast.unparse(call).rpartition(".")[2] if call is not None else ""
            if (
                kind
                and kind[0].isupper()
                and kind not in context(name)
                and kind != "NotImplementedError"
            ):
                lacking.append(f"{name.text}: {kind}")
    assert lacking == []
