"""Cuts the READMEs into what can be run: fenced blocks with their language and mark."""

import re
import shlex
from dataclasses import dataclass

from sources import ROOT

FENCE = re.compile(
    r"(?:^<!-- (?P<mark>[\w: ]+) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
# The page in front, one in each room, and the results. The commands of bench/README.md take hours;
# test_bench.py, test_pipeline.py and test_cuda_bench.py run what they run on small data.
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "tiled_ref").rglob("README.md")),
    ROOT / "kernels" / "README.md",
    ROOT / "tests" / "README.md",
    ROOT / "bench" / "RESULTS.md",
]
BENCH = ROOT / "bench" / "README.md"


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the comment `<!-- mark -->` above it, its text, and where it
    stands, "PAGE:LINE"."""

    language: str
    mark: str
    text: str
    where: str


def name_of(page):
    """A page's path from the root of the repository."""
    return page.relative_to(ROOT).as_posix()


def readme(page=ROOT / "README.md"):
    return page.read_text("utf-8")


def blocks(language=None, pages=PAGES):
    """The blocks of all pages in their order, of one language or all."""
    found = []
    for page in pages:
        text = readme(page)
        for m in FENCE.finditer(text):
            line = text[: m.start()].count("\n") + 1
            where = f"{name_of(page)}:{line}"
            found.append(Block(m["language"], m["mark"] or "", m["text"], where))
    return [block for block in found if language in (None, block.language)]


def block(mark):
    """The one block with this mark."""
    (found,) = [b for b in blocks() if b.mark == mark]
    return found


def commands(pages=PAGES):
    """Every command of the shell blocks as (words, environment, where its block stands)."""
    for shell in blocks("sh", pages):
        text = shell.text.replace("\\\n", " ")
        for line in text.splitlines():
            for part in line.split("&&"):
                words = shlex.split(part, comments=True)
                environment = {}
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0], re.DOTALL):
                    name, _, value = words.pop(0).partition("=")
                    environment[name] = value
                if words:
                    yield words, environment, shell.where
