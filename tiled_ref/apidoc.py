"""The API reference: one static HTML page made of the docstrings.

    python -m tiled_ref.apidoc OUT.html

Sources are read, not imported, so that the page needs neither torch nor compiled kernels.
Public are the names without a leading underscore, and what the module defines itself.
"""

import argparse
import ast
import html
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from . import __version__
from .errors import InputError
from .files import atomic_write

# The order in which a newcomer reads; other modules follow by name.
READING = (
    "tiled_ref", "setups", "tiling", "backbone", "models", "models.padim", "models.patchcore",
    "models.fastflow", "models.reverse_distillation", "ensemble", "merging", "smoothing",
    "metrics", "normalization", "experiment", "explain", "data", "data.samples", "data.images",
)  # fmt: skip
STYLE = """
body { font: 16px/1.5 sans-serif; margin: 0 auto; max-width: 1000px; padding: 1em }
pre { background: #f6f6f6; padding: .7em 1em; overflow-x: auto; font-size: 14px; line-height: 1.4 }
nav { columns: 3 } nav a { display: block } h2 { border-top: 1px solid #ccc; padding-top: .6em }
h3, h4 { font-family: monospace; font-size: 15px; margin: 1.4em 0 .3em }
h4 { margin-left: 2em } .method pre { margin-left: 2em }
@media (prefers-color-scheme: dark) {
  body { background: #181818; color: #ddd } pre { background: #242424 } a { color: #8bf } }
"""


@dataclass(frozen=True)
class Entry:
    """A public name of a module.

    Parameters
    ----------
    name : str
        With its class, such as "TileGrid.tile".
    signature : str
        The name as it is called, such as "tile(self, images)"; the value of a constant.
    doc : str
        Its docstring; the comment beside a constant.
    kind : {"class", "method", "function", "constant"}
    """

    name: str
    signature: str
    doc: str
    kind: str


def main(argv=None):
    """Write the page; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tiled_ref.apidoc", description=__doc__.splitlines()[0]
    )
    parser.add_argument("out", type=Path, metavar="OUT.html", help="file to write")
    args = parser.parse_args(argv)
    try:
        with atomic_write(args.out) as file:
            file.write(page())
    except InputError as error:
        print(f"tiled-ref: error: {error}", file=sys.stderr)
        return 2
    return 0


def modules(folder=None):
    """The modules of the package in reading order, as (name, path).

    Parameters: folder of the sources, the package's own by default.
    Returns a list; names are relative to the package, such as "models.padim".
    """
    folder = Path(folder or Path(__file__).parent)
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1] or (folder.name,)
        if not any(part.startswith("_") for part in parts):
            found[".".join(parts)] = path
    first = [name for name in READING if name in found]
    return [(name, found[name]) for name in [*first, *sorted(set(found) - set(first))]]


def entries(source):
    """What a module says of itself.

    Parameters: source, text of a module.
    Returns its docstring and the list of Entry in the order of the source.
    """
    tree, lines = ast.parse(source), source.splitlines()
    found = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            found.append(_entry(node, "function"))
        elif isinstance(node, ast.ClassDef):
            found.append(_entry(node, "class"))
            for part in node.body:
                if isinstance(part, ast.FunctionDef) and "setter" not in _decorators(part):
                    found.append(_entry(part, "method", f"{node.name}."))
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            value = ast.get_source_segment(source, node)
            comment = lines[node.end_lineno - 1].partition("  # ")[2]
            comment = "" if comment.startswith(("fmt", "noqa")) else comment
            found.append(Entry(node.targets[0].id, value, comment, "constant"))
    public = [e for e in found if not any(part.startswith("_") for part in e.name.split("."))]
    return ast.get_docstring(tree) or "", public


def _decorators(node):
    return {ast.unparse(d).rpartition(".")[2] for d in node.decorator_list}


def _entry(node, kind, owner=""):
    if kind == "class":
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        signature = f"class {node.name}({bases})" if bases else f"class {node.name}"
        start = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        if start:
            signature += f"\n    {node.name}({_arguments(start[0].args)})"
    elif {"property", "cached_property"} & _decorators(node):
        signature = node.name
    else:
        signature = f"{node.name}({_arguments(node.args)})"
    return Entry(owner + node.name, signature, ast.get_docstring(node) or "", kind)


def _arguments(args):
    text = ast.unparse(args)
    return re.sub(r"^(self|cls)(, |$)", "", text)


def page(folder=None):
    """The whole reference as HTML text.

    Parameters: folder of the sources, the package's own by default.
    """
    read = [(name, *entries(path.read_text("utf-8"))) for name, path in modules(folder)]
    anchors = {name: name for name, _, _ in read}
    for name, _, found in read:
        for entry in found:
            anchors.setdefault(entry.name, f"{name}.{entry.name}")
            anchors.setdefault(f"{name}.{entry.name}", f"{name}.{entry.name}")
    parts = [
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n',
        f"<title>tiled_ref {__version__}</title>\n<style>{STYLE}</style>\n",
        f"<h1>tiled_ref {__version__}</h1>\n<nav>\n",
        *(f'<a href="#{name}">{name}</a>\n' for name, _, _ in read),
        "</nav>\n",
    ]
    for name, doc, found in read:
        parts.append(f'<h2 id="{name}">{name}</h2>\n{_text(doc, anchors)}')
        for entry in found:
            level = "h4" if entry.kind == "method" else "h3"
            signature = html.escape(entry.signature).replace("\n", "<br>")
            text = _text(entry.doc, anchors) if entry.doc else ""
            parts.append(
                f'<div class="{entry.kind}"><{level} id="{name}.{entry.name}">{signature}'
                f"</{level}>\n{text}</div>\n"
            )
    return "".join(parts) + "</html>\n"


def _text(doc, anchors):
    """A docstring as it stands; `names` in backticks are links where they are known."""

    def link(match):
        anchor = anchors.get(match[1])
        return f'<a href="#{anchor}">{match[1]}</a>' if anchor else match[0]

    return f"<pre>{re.sub(r'`([A-Za-z_.]+)`', link, html.escape(doc))}</pre>\n"


if __name__ == "__main__":
    sys.exit(main())
