"""The sources as text: short functions, nothing unused, nothing written twice, one style of names."""

import ast
import re
from collections import Counter, defaultdict

import pytest
from mutants_table import MUTANTS
from sources import ROOT, SOURCES, module_of

SCREEN = 50  # lines of a function's body, its docstring left out
FILE = 400  # lines; a longer one says why at its head, in a sentence that begins "One file because"
LONGER = 5  # such files
HOUSE = 26_291  # lines of Python in tiled_ref
TREES = {path: ast.parse(path.read_text("utf-8")) for path in SOURCES}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def functions():
    """(qualified name, node, path) of every function and method of the package."""
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            for part in ast.iter_child_nodes(node):
                if isinstance(part, FUNCTIONS):
                    owner = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
                    yield f"{module_of(path)}.{owner}{part.name}", part, path


def body(node):
    """Statements of a function without its docstring."""
    return node.body[1:] if ast.get_docstring(node) else node.body


def test_no_function_is_longer_than_a_screen():
    lengths = {name: part.end_lineno - body(part)[0].lineno + 1
               for name, part, _ in functions() if body(part)}  # fmt: skip
    assert {name: n for name, n in lengths.items() if n > SCREEN} == {}


def test_no_file_is_long_without_a_reason():
    long = [path for path in SOURCES if len(path.read_text("utf-8").splitlines()) > FILE]
    silent = [path for path in long if "One file because" not in ast.get_docstring(TREES[path])]
    assert silent == [] and len(long) <= LONGER


def test_the_house_stays_small():
    assert sum(len(path.read_text("utf-8").splitlines()) for path in SOURCES) <= HOUSE
    entries = {path.relative_to(ROOT / "tiled_ref").parts[0] for path in SOURCES} | {"README.md"}
    assert len(entries) <= 20


def test_no_logic_is_written_twice():
    """Two functions with the same body, whatever they are called."""
    bodies = defaultdict(list)
    for name, node, _ in functions():
        statements = body(node)
        text = "\n".join(ast.unparse(s) for s in statements)
        if len(text) > 150:  # a line or two is no logic
            bodies[ast.unparse(node.args), text].append(name)
    assert [names for names in bodies.values() if len(names) > 1] == []


EVERYTHING = sorted(
    path
    for folder in ("tiled_ref", "tests", "bench", ".")
    for path in (ROOT / folder).glob("*.py" if folder == "." else "**/*.py")
)


@pytest.mark.parametrize("path", EVERYTHING, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_import_is_used(path):
    text = path.read_text("utf-8")
    if path.name == "__init__.py":  # gathers names for others
        return
    tree = ast.parse(text)
    imported = {
        (alias.asname or alias.name).partition(".")[0]: text.splitlines()[node.lineno - 1]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    unused = [n for n, line in imported.items() if n not in used and "# noqa: F401" not in line]
    assert unused == []


def words_of(text):
    return re.findall(r"\w+", text)


def test_nothing_is_dead():
    """A private name is used in its module, a public one there, elsewhere or by a test."""
    everywhere = Counter()
    for folder in ("tiled_ref", "tests", "bench", "kernels"):
        for path in (ROOT / folder).rglob("*.py*"):
            if path.suffix in (".py", ".pyx"):
                everywhere.update(words_of(path.read_text("utf-8")))
    dead = []
    for path, tree in TREES.items():
        own = Counter(words_of(path.read_text("utf-8")))
        for node in tree.body:
            names = []
            if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
                names = [node.name]
            elif isinstance(node, ast.Assign):
                names = [t.id for t in node.targets if isinstance(t, ast.Name)]
            for name in names:
                where = own if name.startswith("_") else everywhere
                if where[name] < 2 and not name.startswith("__"):
                    dead.append(f"{module_of(path)}.{name}")
    assert dead == []


def test_names_have_one_style():
    """Functions and variables in snake_case, classes in CamelCase, constants in capitals; a
    dimension of the legend may be a capital letter."""
    odd = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, FUNCTIONS) and not re.fullmatch(r"_*[a-z0-9_]+", node.name):
                if not node.name.startswith(("visit_", "generic_")):
                    odd.append(f"{module_of(path)}.{node.name}")
            if isinstance(node, ast.ClassDef) and not re.fullmatch(
                r"_?[A-Z][A-Za-z0-9]*|_[a-z]+", node.name
            ):
                odd.append(f"{module_of(path)}.{node.name}")
    assert odd == []


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_no_line_is_left_for_later(path):
    text = path.read_text("utf-8")
    assert not re.findall(r"\b(?:TODO|FIXME|XXX|HACK)\b", text)


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_nothing_is_swallowed_and_no_global_generator_is_used(path):
    """No bare except, no `except Exception: pass`, no np.random.seed and the like."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None
            silent = all(isinstance(s, ast.Pass) for s in node.body)
            assert not (silent and ast.unparse(node.type) in ("Exception", "BaseException"))
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert not re.fullmatch(
                r"np\.random\.(?!default_rng|Generator)\w+|torch\.(manual_seed|rand\w*)"
                r"|random\.(?!Random)\w+|\w+\.cuda", called
            ) or "generator=" in ast.unparse(node), called  # fmt: skip


def test_lines_have_at_most_100_columns():
    long = [
        f"{path.relative_to(ROOT)}:{k}"
        for path in [*SOURCES, *sorted((ROOT / "kernels").glob("*.pyx"))]
        for k, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if len(line) > 100
    ]
    assert long == []


def test_every_mutant_has_its_one_place_and_its_test():
    """So that `tests/mutants.py` changes what the sources say today."""
    text = {name: (ROOT / name).read_text("utf-8") for file, _, _, test in MUTANTS
            for name in (file, test.partition("::")[0])}  # fmt: skip
    dead = [(file, old) for file, old, _, _ in MUTANTS if text[file].count(old) != 1]
    assert dead == []
    tests = [test.partition("::")[::2] for *_, test in MUTANTS]
    assert [test for test in tests if f"def {test[1]}(" not in text[test[0]]] == []
    assert len(set(MUTANTS)) == len(MUTANTS) > 200
