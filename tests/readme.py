"""Cuts the README into what can be run: fenced blocks with their language and mark."""

import re
import shlex
from dataclasses import dataclass

from sources import ROOT

FENCE = re.compile(
    r"(?:^<!-- (?P<mark>[\w: ]+) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the comment `<!-- mark -->` above it, its text, its line."""

    language: str
    mark: str
    text: str
    line: int


def readme():
    return (ROOT / "README.md").read_text("utf-8")


def blocks(language=None):
    """The blocks of README.md in their order, of one language or all."""
    text = readme()
    found = [
        Block(m["language"], m["mark"] or "", m["text"], text[: m.start()].count("\n") + 1)
        for m in FENCE.finditer(text)
    ]
    return [block for block in found if language in (None, block.language)]


def block(mark):
    """The one block with this mark."""
    (found,) = [b for b in blocks() if b.mark == mark]
    return found


def commands():
    """Every command of the shell blocks as (words, environment, line of its block)."""
    for shell in blocks("sh"):
        text = shell.text.replace("\\\n", " ")
        for line in text.splitlines():
            for part in line.split("&&"):
                words = shlex.split(part, comments=True)
                environment = {}
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    name, _, value = words.pop(0).partition("=")
                    environment[name] = value
                if words:
                    yield words, environment, shell.line
