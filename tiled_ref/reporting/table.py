"""The format of a table: Markdown cells for people, a record per number for programs."""

import math
from dataclasses import dataclass, field

from ..support.tables import csv_text

COLUMNS = (
    "table", "dataset", "architecture", "category", "setup", "quantity", "unit", "value", "std",
    "seeds", "categories", "rank", "paper", "paper_std", "difference", "difference_in_paper_stds",
)  # fmt: skip
SPREAD_SEEDS = 3  # fewer seeds have no spread


@dataclass
class Table:
    """A table and its footnotes."""

    name: str  # stem of its files
    title: str  # plain text
    headers: list  # one per column
    rows: list  # lists of Markdown cells, the first of which names the row
    records: list  # dicts of COLUMNS in full precision, None where there is no number
    notes: list = field(default_factory=list)  # footnotes

    def markdown(self):
        """Return the table with title and footnotes as Markdown."""
        dashes = ["---"] + ["--:"] * (len(self.headers) - 1)
        lines = [f"### {self.title}", ""]
        lines += [f"| {' | '.join(cells)} |" for cells in (self.headers, dashes, *self.rows)]
        lines += [""] + [f"{note}\n" for note in self.notes]
        return "\n".join(lines)

    def csv(self):
        """Return the records as CSV, one line per number."""
        return csv_text(COLUMNS, self.records)


@dataclass
class Number:
    """One number of a table in the table's unit, and the paper's; None where missing."""

    value: float = None  # a mean
    std: float = None  # over seeds
    seeds: int = 0  # in the mean
    categories: int = 0  # in the mean
    complete: bool = True  # over all categories of its table
    rank: int = None  # 1 for the best of its group
    paper: float = None  # the paper's value
    paper_std: float = None  # the paper's standard deviation

    @property
    def difference(self):
        """Ours minus the paper's; None if either is missing."""
        return None if None in (self.value, self.paper) else self.value - self.paper

    @property
    def in_stds(self):
        """The difference in standard deviations of the paper; None without them."""
        return self.difference / self.paper_std if self.paper_std and self.difference else None

    def record(self, *place):
        """Return a dict of COLUMNS; place, the values of the first seven."""
        values = (
            *place, self.value, self.std, self.seeds, self.categories, self.rank, self.paper,
            self.paper_std, self.difference, self.in_stds,
        )  # fmt: skip
        return dict(zip(COLUMNS, values))


def pair_cell(numbers):
    """Format a cell's numbers as Markdown, with the paper's and the differences below.

    >>> pair_cell([Number(98, 0.5, rank=1, paper=97, paper_std=2), Number()])
    '**98.0** ± 0.5 / -<br><sub>paper 97.0 / -</sub><br><sub>+1.0 (+0.5 σ) / -</sub>'
    """
    ours = " / ".join(map(value_cell, numbers))
    if all(number.paper is None for number in numbers):
        return ours
    theirs = " / ".join("-" if n.paper is None else f"{n.paper:.1f}" for n in numbers)
    gaps = " / ".join(map(_gap, numbers))
    return f"{ours}<br><sub>paper {theirs}</sub><br><sub>{gaps}</sub>"


def value_cell(number):
    """Format our value and its spread as Markdown, bold if best, italic if second best."""
    if number.value is None:
        return "-"
    mark = {1: "**", 2: "*"}.get(number.rank, "")
    text = f"{mark}{number.value:.1f}{mark}"
    if number.std is not None:
        text += f" ± {number.std:.1f}"
    return text + ("" if number.complete else " †")


def _gap(number):
    if number.difference is None:
        return "-"
    gap = round(number.difference, 1)
    text = f"{gap:+.1f}" if gap else "0.0"
    if number.paper_std:
        text += f" ({number.difference / number.paper_std:+.1f} σ)"
    return text


def mean(numbers):
    """Return the mean of floats."""
    return math.fsum(numbers) / len(numbers)


def mean_std(numbers):
    """Return mean and standard deviation (n - 1) of numbers, one per seed; the mean of no numbers
    is None, and so is the deviation of fewer than SPREAD_SEEDS.

    >>> mean_std([1.0, 2.0, 3.0]), mean_std([1.0, 2.0]), mean_std([])
    ((2.0, 1.0), (1.5, None), (None, None))
    """
    middle, std = mean(numbers) if numbers else None, None
    if len(numbers) >= SPREAD_SEEDS:
        std = math.sqrt(math.fsum((n - middle) ** 2 for n in numbers) / (len(numbers) - 1))
    return middle, std


def seeds_note(results):
    """Return a sentence on the seeds of results and the meaning of ±."""
    seeds = sorted({r["seed"] for r in results})
    names = ", ".join(map(str, seeds))
    if len(seeds) < SPREAD_SEEDS:
        return f"{'One seed' if len(seeds) == 1 else 'Two seeds'}, {names}: no spread is given."
    return (
        f"Mean ± standard deviation (n - 1) over the seeds {names}; "
        "numbers over fewer than three seeds have no spread."
    )


def rank(numbers):
    """Give the best value, as printed, rank 1 and the second best rank 2; ties share a rank."""
    values = sorted({round(number.value, 1) for number in numbers}, reverse=True)
    for number in numbers:
        if round(number.value, 1) in values[:2]:
            number.rank = values.index(round(number.value, 1)) + 1


def escape(text):
    """Escape text for a Markdown cell, so nothing in it is markup."""
    entities = {char: f"&#{ord(char)};" for char in "<>&|"}
    escaped = {char: "\\" + char for char in "\\`*_{}[]#"}
    text = "".join(entities.get(char) or escaped.get(char, char) for char in text)
    return text.replace("\n", " ")
