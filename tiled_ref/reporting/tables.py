"""Tables in the form of the paper's 1 to 12, as Markdown and CSV, beside its numbers.

    Tables 1, 2     a data set: setups x architectures, mean over its categories
    Table 3         parameters, millions
    Table 4         training time, seconds
    Tables 5-12     a data set and architecture: categories x setups
    defect size     a data set and architecture: size of the defect x setups (not in the paper)

A data set that the paper does not have gets tables of the same form without a number.
Standard deviations are over seeds, with n - 1, as the paper's are over its three runs.
"""

import csv
import io
import math
import zlib
from dataclasses import dataclass, field

import numpy as np

from ..running.analysis import FPRS, REPORT_FPR
from ..setups import SETUPS
from ..support.files import atomic_write
from . import paper
from .summary import LEFT_OUT, timed

METRICS = {"image_auroc": "AUROC", "pixel_aupro": "AUPRO"}
ARCHS = {  # in the order of the paper's columns
    "patchcore": "PatchCore",
    "padim": "PaDiM",
    "fastflow": "FastFlow",
    "reverse_distillation": "Reverse Distillation",
}
DATASETS = {"mvtec": "MVTec AD", "visa": "VisA", "synthetic": "the built-in data set"}
MEANS = {"mvtec": 1, "visa": 2}  # data set -> number of its table of means
COLUMNS = (
    "table", "dataset", "architecture", "category", "setup", "quantity", "unit", "value", "std",
    "seeds", "categories", "rank", "paper", "paper_std", "difference", "difference_in_paper_stds",
)  # fmt: skip
AREA_STEP = 4  # size classes of defects: twice the side, four times the area


@dataclass
class Table:
    """A table: its cells for people, and a record per number for programs.

    Parameters
    ----------
    name : str
        Stem of its files.
    title : str
    headers : list of str
    rows : list of list of str
        Markdown, the first cell names the row.
    records : list of dict
        Keys COLUMNS, numbers in full precision, None where there is none.
    notes : list of str
        Footnotes.
    """

    name: str
    title: str
    headers: list
    rows: list
    records: list
    notes: list = field(default_factory=list)

    def markdown(self):
        """The table with its title and footnotes."""
        lines = [f"### {self.title}", "", _line(self.headers)]
        lines.append(_line(["---"] + ["--:"] * (len(self.headers) - 1)))
        lines += [_line(row) for row in self.rows]
        lines += [""] + [f"{note}\n" for note in self.notes]
        return "\n".join(lines)

    def csv(self):
        """A line per number."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.records)
        return text.getvalue()


@dataclass
class Number:
    """One number of a table and its comparison.

    Parameters: value and std, in the unit of the table, None where there are none; seeds and
    categories, how many it is the mean of; complete, see below; rank, 1 for the best of its
    group; paper and paper_std, the paper's number in the same unit.
    """

    value: float = None
    std: float = None
    seeds: int = 0
    categories: int = 0
    complete: bool = True  # over all categories of its table
    rank: int = None
    paper: float = None
    paper_std: float = None

    @property
    def difference(self):
        """Ours minus the paper's, in the table's unit; None where one is missing."""
        if self.value is None or self.paper is None:
            return None
        return self.value - self.paper

    @property
    def in_stds(self):
        """The difference in standard deviations of the paper; None without them."""
        return self.difference / self.paper_std if self.paper_std and self.difference else None


def all_tables(results, analyses=()):
    """Every table that the results allow.

    Parameters: results, dicts as metrics.json holds them, each cell and seed once; analyses,
    pairs (result, defects), defects a dict of area and recall arrays, see `defect_sizes`.
    Returns a list of Table.
    """
    tables = []
    for dataset in ordered(results, "dataset", DATASETS):
        mine = [result for result in results if result["dataset"] == dataset]
        tables.append(means(dataset, mine))
        for arch in ordered(mine, "arch", ARCHS):
            chosen = [result for result in mine if result["arch"] == arch]
            tables.append(by_category(dataset, arch, chosen))
    tables += [parameters(results), training_time(results)]
    tables.sort(key=lambda table: (table.name.startswith("defect"), _order(table.name)))
    keys = dict.fromkeys((r["dataset"], r["arch"]) for r, _ in analyses)
    for dataset, arch in keys:
        chosen = [
            (r, defects) for r, defects in analyses if (r["dataset"], r["arch"]) == (dataset, arch)
        ]
        table = defect_sizes(dataset, arch, chosen)
        if table is not None:
            tables.append(table)
    return tables


def write_tables(tables, folder):
    """Write NAME.md and NAME.csv of each table, and all of them as tables.md and tables.csv."""
    pages, parts = [table.markdown() for table in tables], [table.csv() for table in tables]
    texts = {f"{table.name}.md": text for table, text in zip(tables, pages)}
    texts |= {f"{table.name}.csv": text for table, text in zip(tables, parts)}
    texts["tables.md"] = "\n".join(pages)
    texts["tables.csv"] = parts[0] + "".join(text.partition("\n")[2] for text in parts[1:])
    for name, text in texts.items():
        with atomic_write(folder / name) as file:
            file.write(text)


# ----------------------------------------------------------------------- Tables 1, 2, 5-12


def means(dataset, results):
    """Setups x architectures, mean over the categories (Tables 1 and 2)."""
    names = category_names(dataset, results)
    archs = ordered(results, "arch", ARCHS)
    setups = setup_names(results)
    columns = {}
    for arch in archs:
        column = {
            setup: {
                metric: mean_number(dataset, arch, setup, metric, names, results)
                for metric in METRICS
            }
            for setup in setups
        }
        _rank(column.values())
        columns[arch] = column
    number = MEANS.get(dataset)
    title = f"AUROC / AUPRO on {DATASETS.get(dataset, dataset)}, mean over {_count(names)}"
    rows, records = [], []
    for setup in setups:
        rows.append([setup] + [_pair(columns[arch][setup]) for arch in archs])
        for arch in archs:
            records += _records(number, dataset, arch, paper.AVERAGE, setup, columns[arch][setup])
    headers = ["setup"] + [ARCHS.get(arch, arch) for arch in archs]
    table = Table(_name(number, f"mean_{dataset}"), _titled(number, title), headers, rows, records)
    numbers = [pair for column in columns.values() for pair in column.values()]
    table.notes = _notes(dataset, results, numbers, names, archs)
    return table


def by_category(dataset, arch, results):
    """Categories x setups of one architecture (Tables 5 to 12)."""
    names = category_names(dataset, results)
    setups = setup_names(results)
    number = paper.table_number(dataset, arch)
    rows, records, numbers = [], [], []
    for category in [*names, paper.AVERAGE]:
        if category == paper.AVERAGE:
            row = {
                setup: {m: mean_number(dataset, arch, setup, m, names, results) for m in METRICS}
                for setup in setups
            }
        else:
            row = {
                setup: {m: cell_number(dataset, arch, category, setup, m, results) for m in METRICS}
                for setup in setups
            }
        _rank(row.values())
        numbers += row.values()
        text = category if category != paper.AVERAGE else "*average*"
        rows.append([_escape(text) if category != paper.AVERAGE else text])
        rows[-1] += [_pair(row[setup]) for setup in setups]
        for setup in setups:
            records += _records(number, dataset, arch, category, setup, row[setup])
    title = f"AUROC / AUPRO of {ARCHS.get(arch, arch)} on {DATASETS.get(dataset, dataset)}"
    table = Table(
        _name(number, f"categories_{dataset}_{arch}"), _titled(number, title),
        ["category", *setups], rows, records,
    )  # fmt: skip
    table.notes = _notes(dataset, results, numbers, names, [arch])
    return table


def cell_number(dataset, arch, category, setup, metric, results):
    """Number of one cell over its seeds, in percent."""
    values = [
        100 * r[metric]
        for r in results
        if (r["arch"], r["category"], r["setup"]) == (arch, category, setup)
        and r[metric] is not None
    ]
    number = Number(*_mean_std(values), seeds=len(values), categories=1 if values else 0)
    if _comparable(results):
        _beside(number, paper.printed(dataset, arch, category, setup, metric))
    return number


def mean_number(dataset, arch, setup, metric, names, results):
    """Number of a setup over the categories `names`, in percent.

    Parameters: names, categories; results, dicts as of cell.run_cell.
    Returns a Number: the mean of the categories' means over their seeds. The standard deviation
    is that of the seeds' means over the categories, of those seeds that have every category.
    Beside it stands the paper's average where `names` are all of the paper's categories, else
    the mean of its numbers for these, for which it gives no spread.
    """
    table = {}
    for r in results:
        if (r["arch"], r["setup"]) == (arch, setup) and r[metric] is not None:
            table.setdefault(r["category"], {})[r["seed"]] = 100 * r[metric]
    if not table:
        return Number(complete=False)
    value = _mean([_mean(list(seeds.values())) for seeds in table.values()])
    shared = set.intersection(*(set(seeds) for seeds in table.values()))
    by_seed = [_mean([seeds[seed] for seeds in table.values()]) for seed in sorted(shared)]
    number = Number(
        value, _mean_std(by_seed)[1], seeds=len({s for seeds in table.values() for s in seeds}),
        categories=len(table), complete=len(table) == len(names),
    )  # fmt: skip
    if not _comparable(results):
        return number
    if set(table) == set(paper.categories(dataset)):
        _beside(number, paper.printed(dataset, arch, paper.AVERAGE, setup, metric))
        return number
    cells = [paper.printed(dataset, arch, name, setup, metric) for name in table]
    if None not in cells:
        number.paper = 100 * _mean([cell.value for cell in cells])
    return number


def _notes(dataset, results, pairs, names, archs):
    """What the reader has to know about a table of AUROC / AUPRO."""
    numbers = [number for pair in pairs for number in pair.values()]
    seeds = sorted({r["seed"] for r in results})
    notes = [
        "In percent. **Best** and *second best* of a comparison, as printed with one decimal. "
        + (
            f"± is the standard deviation (n - 1) over the seeds {', '.join(map(str, seeds))}."
            if len(seeds) > 1
            else f"One seed, {seeds[0]}, so there is no spread over seeds."
        )
    ]
    if any(number.paper is not None for number in numbers):
        text = "Below each pair: the paper's numbers, and ours minus the paper's in points"
        if any(number.paper_std for number in numbers):
            text += "; in brackets the difference in units of the paper's standard deviation"
        notes.append(text + ".")
    elif paper.categories(dataset) and not _comparable(results):
        notes.append(
            "The backbone had random weights, so nothing is compared with the paper's numbers."
        )
    missing = set(paper.categories(dataset)) - set(names)
    if missing and paper.categories(dataset):
        notes.append(
            f"{len(names)} of the paper's {len(paper.categories(dataset))} categories; beside "
            "each mean stands the mean of the paper's numbers for the same categories, for which "
            "it gives no spread."
        )
    if any(not number.complete and number.value is not None for number in numbers):
        notes.append(
            f"† over fewer than the {len(names)} categories, so it is not ranked: some cells "
            "are missing or have no such metric."
        )
    return notes + slip_notes(dataset, archs)


def slip_notes(dataset, archs):
    """Footnotes on the paper's own slips that concern a table."""
    notes = []
    for slip in paper.arithmetic_slips():
        if slip.dataset == dataset and slip.arch in archs:
            notes.append(
                f"The paper prints an average {METRICS[slip.metric]} of {slip.printed:.1f} for "
                f"{ARCHS[slip.arch]} {slip.setup} (Table {slip.table}); the mean of the "
                f"categories that it prints is {slip.recomputed:.1f}."
            )
    for data, arch, category, setup, metric in paper.impossible_values():
        if data == dataset and arch in archs:
            cell = paper.printed(data, arch, category, setup, metric)
            average = paper.printed(data, arch, paper.AVERAGE, setup, metric)
            others = len(paper.categories(dataset))
            most = average.value - (cell.value - 1) / others
            notes.append(
                f"The paper prints an AUPRO of {100 * cell.value:.1f} for {ARCHS[arch]} {setup} on "
                f"{category} (Table {cell.table}). AUPRO cannot exceed 100: the routine behind it "
                "ranks clamped scores, and where many equal scores straddle the FPR of 0.3 it "
                "counts area beyond it. With 100 in its place the "
                f"printed average of {100 * average.value:.1f} would be {100 * most:.1f} at most. "
                "The AUPRO here is exact: a tie is one point of the curve, and the curve is cut "
                "at 0.3."
            )
    return notes


# ------------------------------------------------------------------------------ Tables 3, 4


def parameters(results):
    """Parameters in millions (Table 3)."""
    return _setup_table(
        3, "Parameters in millions", results, lambda r: r["n_parameters"] / 1e6,
        paper.paper_parameters, "million",
        ["Below each number: the paper's. Switches of an architecture change its parameters."],
    )  # fmt: skip


def training_time(results):
    """Training time in seconds (Table 4), of the cells that computed everything themselves."""
    everything, results = results, timed(results)
    devices = sorted({str(r["device"]) for r in results})
    return _setup_table(
        4, "Training time in seconds, mean over data sets, categories and seeds", results,
        lambda r: r["seconds_train"], paper.paper_training_seconds, "s",
        [
            f"Measured on: {', '.join(devices)}. Below each number: the paper's, over all "
            "categories of MVTec AD and VisA on its GPU; the two are of different machines and "
            "numbers of images, compare the rows of a column with one another.",
            *([LEFT_OUT] if len(results) < len(everything) else []),
        ],
        everything,
    )  # fmt: skip


def _setup_table(number, title, results, value, theirs, unit, notes, everything=None):
    """A row a setup, a column an architecture; everything, results that name them all."""
    everything = everything or results
    archs, setups = ordered(everything, "arch", ARCHS), setup_names(everything)
    rows, records = [], []
    for setup in setups:
        row = [setup]
        for arch in archs:
            chosen = [r for r in results if (r["arch"], r["setup"]) == (arch, setup)]
            values = [value(r) for r in chosen]
            cell = Number(_mean(values) if values else None)
            cell.seeds = len({r["seed"] for r in chosen})
            cell.categories = len({(r["dataset"], r["category"]) for r in chosen})
            cell.paper = theirs(arch, setup)
            text = "-" if cell.value is None else f"{cell.value:,.1f}"
            row.append(text + (f"<br><sub>paper {cell.paper:,.1f}</sub>" if cell.paper else ""))
            quantity = title.split(" in ")[0].lower()
            records.append(_record(number, "", arch, "", setup, quantity, unit, cell))
        rows.append(row)
    headers = ["setup"] + [ARCHS.get(arch, arch) for arch in archs]
    return Table(_name(number, ""), _titled(number, title), headers, rows, records, notes)


# ------------------------------------------------------------------------------ defect size


def defect_sizes(dataset, arch, analyses):
    """Recall of defects by their size.

    Returns a Table, size classes x setups; None without defects.
    Parameters: analyses, pairs (result, defects), defects a dict with "area" int (R,) in
    pixels of the image file and "recall" float (R, len(FPRS)), one pair per category, setup
    and seed.
    Recall of a defect is the part of its pixels above the threshold at which REPORT_FPR of all
    normal pixels of the test set are above it; the table shows the mean over the defects of a
    class and over seeds.
    """
    whole, analyses = analyses, shared_categories(analyses)
    setups = setup_names([result for result, _ in analyses])
    areas = [defects["area"] for _, defects in analyses if len(defects["area"])]
    if not areas:
        return None
    edges = area_edges(np.concatenate(areas))
    rows, records = [], []
    curves = {setup: recall_by_area(setup, analyses, edges) for setup in setups}
    for k, (low, high) in enumerate(zip(edges[:-1], edges[1:])):
        count = max(curves[setup][1][k] for setup in setups)
        row = [f"{low:,} to {high - 1:,} px² ({_side(low)} to {_side(high)} px)", str(count)]
        for setup in setups:
            value = curves[setup][0][k]
            row.append("-" if value is None else f"{100 * value:.1f}")
            number = Number(None if value is None else 100 * value)
            records.append(
                _record(
                    "defect size", dataset, arch, f"area {low} to {high - 1}", setup,
                    f"recall at FPR {REPORT_FPR}", "%", number,
                )  # fmt: skip
            )
        _mark_best(row, 2)
        rows.append(row)
    last = ["half of a defect is found from", ""]
    for setup in setups:
        last.append(_found_from(edges, curves[setup][0]))
    rows.append(last)
    notes = [
        f"Mean recall of defects in percent: the part of a defect's pixels above the threshold "
        f"at which {100 * REPORT_FPR:g} % of all normal pixels are. Areas are those of the image "
        "files; the side is that of a square of the area. Last row: the class from which on the "
        "mean recall stays at 50 % or more.",
    ]
    if len(analyses) < len(whole):
        names = sorted({result["category"] for result, _ in analyses})
        notes.append(f"Of the categories that every setup has: {', '.join(map(_escape, names))}.")
    if len({frozenset(r["category"] for r, _ in analyses if r["setup"] == s) for s in setups}) > 1:
        notes.append(
            "No category was run in every setup, so their columns are of different defects; their "
            "number is that of the setup with most."
        )
    title = (
        f"Recall of defects by size, {ARCHS.get(arch, arch)} on {DATASETS.get(dataset, dataset)}"
    )
    headers = ["area", "defects", *setups]
    return Table(f"defect_size_{dataset}_{arch}", title, headers, rows, records, notes)


def shared_categories(analyses):
    """Those pairs whose category every setup has, so that setups are compared on equal defects.

    Parameters: analyses, pairs (result, defects). Returns a list of them; all where no category
    is shared.
    """
    names = {}
    for result, _ in analyses:
        names.setdefault(result["setup"], set()).add(result["category"])
    shared = set.intersection(*names.values()) if names else set()
    return [pair for pair in analyses if pair[0]["category"] in shared] or list(analyses)


def area_edges(areas):
    """Powers of AREA_STEP that enclose all areas, ascending ints.

    >>> area_edges(np.array([5, 100]))
    [4, 16, 64, 256]
    """
    low, high = int(areas.min()), int(areas.max())
    edges = [1]
    while edges[-1] <= high:
        edges.append(edges[-1] * AREA_STEP)
    while len(edges) > 2 and edges[1] <= low:
        edges.pop(0)
    return edges


def recall_by_area(setup, analyses, edges):
    """(mean recall per class or None where it has no defects, defects per class) of a setup."""
    at = FPRS.index(REPORT_FPR)
    area, recall, seen = [], [], []
    for result, defects in analyses:
        if result["setup"] == setup and len(defects["area"]):
            area.append(defects["area"])
            recall.append(defects["recall"][:, at])
            seen.append(np.full(len(defects["area"]), result["seed"]))
    if not area:
        return [None] * (len(edges) - 1), [0] * (len(edges) - 1)
    area, recall, seen = map(np.concatenate, (area, recall, seen))
    which = np.searchsorted(edges, area, "right") - 1
    values, counts = [], []
    for k in range(len(edges) - 1):
        chosen = which == k
        values.append(float(recall[chosen].mean(dtype=np.float64)) if chosen.any() else None)
        counts.append(int(max((chosen & (seen == s)).sum() for s in np.unique(seen))))
    return values, counts


def _found_from(edges, values):
    """The lower edge of the smallest class from which on recall is at least a half."""
    first = None
    for low, value in zip(edges, values):
        if value is None:
            continue
        if value < 0.5:
            first = None
        elif first is None:
            first = low
    return "-" if first is None else f"{first:,} px²"


# ------------------------------------------------------------------------- what they share


def ordered(results, key, known):
    """The values of a key that occur, the known ones first and in their order."""
    values = dict.fromkeys(str(r[key]) for r in results)
    return [v for v in known if v in values] + sorted(v for v in values if v not in known)


def setup_names(results):
    """The setups that occur: the paper's in its order, then others by image size and name."""
    sizes = {r["setup"]: (tuple(r["image_size"]), r["setup"]) for r in results}
    others = sorted((name for name in sizes if name not in SETUPS), key=sizes.get)
    return [name for name in SETUPS if name in sizes] + others


def category_names(dataset, results):
    """The categories that occur, the paper's in its order, then others by name."""
    return ordered(results, "category", paper.categories(dataset))


def _comparable(results):
    return all(r["weights"] == "imagenet" for r in results)


def _beside(number, cell):
    if cell is not None:
        number.paper = 100 * cell.value
        number.paper_std = None if cell.std is None else 100 * cell.std


def _rank(pairs):
    """Give the best value of each metric rank 1 and the second best rank 2, ties alike."""
    for metric in METRICS:
        numbers = [p[metric] for p in pairs if p[metric].value is not None and p[metric].complete]
        values = sorted({round(number.value, 1) for number in numbers}, reverse=True)
        for number in numbers:
            place = values.index(round(number.value, 1)) + 1
            if len(numbers) > 1 and place <= 2:
                number.rank = place


def _mark_best(row, start):
    """Mark the best and the second best of the plain numbers in a row."""
    values = sorted({float(text) for text in row[start:] if text != "-"}, reverse=True)
    for k in range(start, len(row)):
        if row[k] != "-" and len(row) - start > 1:
            row[k] = _marked(row[k], {v: n + 1 for n, v in enumerate(values)}[float(row[k])])


def _marked(text, rank):
    return {1: f"**{text}**", 2: f"*{text}*"}.get(rank, text)


def _pair(numbers):
    """Both metrics of a cell as Markdown."""
    ours = " / ".join(_value(number) for number in numbers.values())
    if all(number.paper is None for number in numbers.values()):
        return ours
    theirs = " / ".join(
        "-" if number.paper is None else f"{number.paper:.1f}" for number in numbers.values()
    )
    gaps = " / ".join(_gap(number) for number in numbers.values())
    return f"{ours}<br><sub>paper {theirs}</sub><br><sub>{gaps}</sub>"


def _value(number):
    if number.value is None:
        return "-"
    text = _marked(f"{number.value:.1f}", number.rank)
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


def _records(table, dataset, arch, category, setup, numbers):
    return [
        _record(table or "", dataset, arch, category, setup, METRICS[metric], "%", number)
        for metric, number in numbers.items()
    ]


def _record(table, dataset, arch, category, setup, quantity, unit, number):
    values = (
        table, dataset, arch, category, setup, quantity, unit, number.value, number.std,
        number.seeds, number.categories, number.rank, number.paper, number.paper_std,
        number.difference, number.in_stds,
    )  # fmt: skip
    return dict(zip(COLUMNS, values))


def _mean(values):
    return math.fsum(values) / len(values)


def _mean_std(values):
    """(mean, standard deviation with n - 1), None where there are too few values."""
    if not values:
        return None, None
    mean = _mean(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


def _side(area):
    return f"{math.sqrt(area):g}"


def _count(names):
    return f"{len(names)} categor{'y' if len(names) == 1 else 'ies'}"


def _name(number, name):
    if number is None:
        return file_name(f"table_{name}")
    return f"table_{number:02d}" + (file_name(f"_{name}") if name else "")


def file_name(text):
    """A text as part of a file name.

    Other than ASCII letters, digits, "-" and "_" become "_", and then a checksum is put
    behind, so that different texts stay different.

    >>> file_name("mvtec_screw"), file_name("a b"), file_name("a/b")
    ('mvtec_screw', 'a_b-806c5cd3', 'a_b-07f4401c')
    """
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in text)
    return plain if plain == text else f"{plain}-{zlib.crc32(text.encode()):08x}"


def _titled(number, title):
    return title if number is None else f"Table {number}. {title}"


def _order(name):
    parts = name.split("_")
    if parts[1].isdigit():
        return int(parts[1]), ""
    return (13 if parts[1] == "mean" else 14), name


def _escape(text):
    """Text for a Markdown cell: nothing in it is markup."""
    entities = {char: f"&#{ord(char)};" for char in "<>&|"}
    escaped = {char: "\\" + char for char in "\\`*_{}[]#"}
    text = "".join(entities.get(char) or escaped.get(char, char) for char in text)
    return text.replace("\n", " ")


def _line(cells):
    return "| " + " | ".join(cells) + " |"
