"""The paper's Tables 1 to 12 for our results, beside the paper's numbers, as Markdown and CSV.

    Tables 1, 2     a data set: setups x architectures, mean over its categories
    Table 3         parameters, millions
    Table 4         training time, seconds
    Tables 5-12     a data set and architecture: categories x setups

and the tables of `defect_sizes`. A data set that is not in the paper gets the same tables without
a table number. Standard deviations are over seeds, with n - 1, like the paper's over its three
runs.
"""

from . import paper
from .defect_sizes import defect_sizes
from .paper import PAPER_METRICS
from .results import (
    archs_of,
    categories_of,
    comparable,
    datasets_of,
    file_name,
    grouped,
    left_out,
    lost,
    select,
    setups_of,
    table_metrics,
    timed,
    title_of,
)  # fmt: skip
from .table import Number, Table, escape, mean, mean_std, pair_cell, rank, seeds_note

MEANS = {"mvtec": 1, "visa": 2}  # data set -> number of its table of means


def all_tables(results, defects=()):
    """Return every Table that the results allow; each cell and seed occurs once.

    Parameters: results; defects, pairs as `defect_sizes` takes them.
    """
    tables = [parameters(results), training_time(results)]
    for dataset in datasets_of(results):
        mine = select(results, dataset=dataset)
        tables.append(means(dataset, mine))
        for arch in archs_of(mine):
            tables.append(by_category(dataset, arch, select(mine, arch=arch)))
    tables.sort(key=lambda table: (table.name.startswith("table_categories"), table.name))
    for dataset, arch in grouped([r for r, _ in defects], "dataset", "arch"):
        tables.append(defect_sizes(dataset, arch, defects))
    return [table for table in tables if table is not None]


def table_files(tables):
    """Return {file name: text}: NAME.md and NAME.csv per table, tables.md and tables.csv of all."""
    pages, parts = [table.markdown() for table in tables], [table.csv() for table in tables]
    texts = {f"{table.name}.md": text for table, text in zip(tables, pages)}
    texts |= {f"{table.name}.csv": text for table, text in zip(tables, parts)}
    texts["tables.md"] = "\n".join(pages)
    texts["tables.csv"] = parts[0] + "".join(text.partition("\n")[2] for text in parts[1:])
    return texts


def _table(number, name, title, *parts):
    """Make a Table named by its number in the paper, or by name alone if number is None."""
    if number is None:
        return Table(file_name(f"table_{name}"), title, *parts)
    name = f"table_{number:02d}" + (file_name(f"_{name}") if name else "")
    return Table(name, f"Table {number}. {title}", *parts)


def means(dataset, results):
    """Setups x architectures, mean over the categories (Tables 1 and 2)."""
    names, archs = categories_of(dataset, results), archs_of(results)
    columns = {arch: _ranked(dataset, arch, paper.AVERAGE, names, results) for arch in archs}
    number = MEANS.get(dataset)
    rows, records = [], []
    for setup in setups_of(results):
        rows.append([setup] + [pair_cell(columns[arch][setup].values()) for arch in archs])
        for arch in archs:
            cells = columns[arch][setup]
            records += _records(number, dataset, arch, paper.AVERAGE, setup, cells, results)
    count = f"{len(names)} categor{'y' if len(names) == 1 else 'ies'}"
    return _table(
        number, f"mean_{dataset}", f"{_metrics(results)} on {title_of(dataset)}, mean over {count}",
        ["setup", *map(title_of, archs)], rows, records,
        _notes(dataset, results, columns.values(), names, archs),
    )  # fmt: skip


def by_category(dataset, arch, results):
    """Categories x setups of one architecture (Tables 5 to 12)."""
    names, setups = categories_of(dataset, results), setups_of(results)
    number = paper.table_number(dataset, arch)
    by_name = [
        (category, _ranked(dataset, arch, category, names, results))
        for category in [*names, paper.AVERAGE]
    ]
    rows, records = [], []
    for category, row in by_name:
        text = "*average*" if category == paper.AVERAGE else escape(category)
        rows.append([text] + [pair_cell(row[setup].values()) for setup in setups])
        for setup in setups:
            records += _records(number, dataset, arch, category, setup, row[setup], results)
    return _table(
        number, f"categories_{dataset}_{arch}",
        f"{_metrics(results)} of {title_of(arch)} on {title_of(dataset)}", ["category", *setups],
        rows, records, _notes(dataset, results, [row for _, row in by_name], names, [arch]),
    )  # fmt: skip


def _ranked(dataset, arch, category, names, results):
    """Return {setup: {metric: Number}} of a category, or of the average over `names`."""

    def number(setup, metric):
        if category == paper.AVERAGE:
            return mean_number(dataset, arch, setup, metric, names, results)
        return cell_number(dataset, arch, category, setup, metric, results)

    cells = {
        setup: {metric: number(setup, metric) for metric in table_metrics(results)}
        for setup in setups_of(results)
    }  # fmt: skip
    for metric in table_metrics(results):
        numbers = [cell[metric] for cell in cells.values()]
        numbers = [n for n in numbers if n.value is not None and n.complete]
        if len(numbers) > 1:
            rank(numbers)
    return cells


def cell_number(dataset, arch, category, setup, metric, results):
    """Return the Number of one cell over its seeds, in percent."""
    cells = select(results, arch=arch, category=category, setup=setup)
    values = [100 * r[metric] for r in cells if r[metric] is not None]
    number = Number(*mean_std(values), seeds=len(values), categories=1 if values else 0)
    if comparable(results, metric):
        _beside(number, paper.printed(dataset, arch, category, setup, metric))
    return number


def mean_number(dataset, arch, setup, metric, names, results):
    """Average a setup over the categories `names`, in percent.

    Parameters: names, categories; results, dicts as of cell.run_cell.
    Returns a Number: the mean of the categories' means over their seeds. Its standard deviation is
    that of the seeds' means over the categories, for seeds that have every category. The paper's
    value is its average if the results have all of its categories, else the mean of its numbers
    for the same categories, for which it gives no spread.
    """
    table = {}
    for r in select(results, arch=arch, setup=setup):
        if r[metric] is not None:
            table.setdefault(r["category"], {})[r["seed"]] = 100 * r[metric]
    if not table:
        return Number(complete=False)
    shared = set.intersection(*(set(seeds) for seeds in table.values()))
    by_seed = [mean([seeds[seed] for seeds in table.values()]) for seed in sorted(shared)]
    number = Number(
        mean([mean(seeds.values()) for seeds in table.values()]), mean_std(by_seed)[1],
        seeds=len({s for seeds in table.values() for s in seeds}),
        categories=len(table), complete=len(table) == len(names),
    )  # fmt: skip
    if not comparable(results, metric):
        return number
    if set(table) == set(paper.categories(dataset)):
        _beside(number, paper.printed(dataset, arch, paper.AVERAGE, setup, metric))
        return number
    cells = [paper.printed(dataset, arch, name, setup, metric) for name in table]
    if None not in cells:
        number.paper = 100 * mean([cell.value for cell in cells])
    return number


def _beside(number, cell):
    if cell is not None:
        number.paper = 100 * cell.value
        number.paper_std = None if cell.std is None else 100 * cell.std


def _metrics(results):
    return " / ".join(table_metrics(results).values())


def _records(table, dataset, arch, category, setup, numbers, results):
    names = table_metrics(results)
    return [
        number.record(table or "", dataset, arch, category, setup, names[metric], "%")
        for metric, number in numbers.items()
    ]


def _notes(dataset, results, groups, names, archs):
    """Return footnotes of a table of metrics; groups, dicts as _ranked returns them."""
    numbers = [n for group in groups for pair in group.values() for n in pair.values()]
    notes = [
        "In percent. **Best** and *second best* of a comparison, as printed with one decimal. "
        + seeds_note(results)
    ]
    theirs = paper.categories(dataset)
    if any(number.paper is not None for number in numbers):
        text = "Below each pair: the paper's numbers, and ours minus the paper's in points"
        if any(number.paper_std for number in numbers):
            text += "; in brackets the difference in units of the paper's standard deviation"
        notes.append(text + ".")
    elif theirs and not comparable(results):
        notes.append(
            "The backbone had random weights, so the numbers are not compared with the paper's."
        )
    if set(theirs) - set(names):
        notes.append(
            f"{len(names)} of the paper's {len(theirs)} categories; beside each mean is the "
            "mean of the paper's numbers for the same categories, for which it gives no spread."
        )
    if any(not number.complete and number.value is not None for number in numbers):
        notes.append(
            f"† mean over fewer than {len(names)} categories, so not ranked: some results are "
            "missing or lack this metric."
        )
    return notes + lost(results, escape) + _slip_notes(dataset, archs)


def _slip_notes(dataset, archs):
    """Return footnotes on the paper's own slips in a table."""
    notes = []
    for (data, arch, category, setup, metric), true_mean in paper.arithmetic_slips().items():
        if data == dataset and arch in archs:
            cell = paper.printed(data, arch, category, setup, metric)
            notes.append(
                f"The paper prints an average {PAPER_METRICS[metric]} of {100 * cell.value:.1f} "
                f"for {title_of(arch)} {setup} (Table {cell.table}); the mean of its printed "
                f"categories is {true_mean:.1f}."
            )
    for data, arch, category, setup, metric in paper.impossible_values():
        if data == dataset and arch in archs:
            cell = paper.printed(data, arch, category, setup, metric)
            average = paper.printed(data, arch, paper.AVERAGE, setup, metric)
            most = average.value - (cell.value - 1) / len(paper.categories(dataset))
            notes.append(
                f"The paper prints an AUPRO of {100 * cell.value:.1f} for {title_of(arch)} "
                f"{setup} on {category} (Table {cell.table}). AUPRO cannot exceed 100: the "
                "routine behind it ranks clamped scores, and where many equal scores straddle "
                "the FPR of 0.3 it counts area above it. With 100 instead, the printed "
                f"average of {100 * average.value:.1f} would be at most {100 * most:.1f}. The "
                "AUPRO here is exact: a tie is one point of the curve, and the curve is cut at "
                "0.3."
            )
    return notes


def parameters(results):
    """Parameters in millions (Table 3)."""
    return _setup_table(
        3, "Parameters in millions", results, results, lambda r: r["n_parameters"] / 1e6,
        paper.paper_parameters, "million",
        ["Below each number: the paper's. Variants of an architecture differ in parameters."],
    )  # fmt: skip


def training_time(results):
    """Training time in seconds (Table 4), of cells that reused no backbone layers."""
    alone = timed(results)
    devices = sorted({str(r["device"]) for r in alone})
    return _setup_table(
        4, "Training time in seconds, mean over data sets, categories and seeds", results, alone,
        lambda r: r["seconds_train"], paper.paper_training_seconds, "s",
        [
            f"Measured on: {', '.join(devices)}. Below each number: the paper's, over all "
            "categories of MVTec AD and VisA on its GPU. Machines and numbers of images differ, so "
            "compare rows within a column.",
            seeds_note(alone or results),
            *left_out(results),
        ],
    )  # fmt: skip


def _setup_table(number, title, results, measured, value, theirs, unit, notes):
    """Make a table of setups x architectures; measured, the results that have a value."""
    archs = archs_of(results)
    rows, records = [], []
    for setup in setups_of(results):
        row = [setup]
        for arch in archs:
            chosen = select(measured, arch=arch, setup=setup)
            runs = [[value(r) for r in rs] for rs in grouped(chosen, "seed").values()]
            whole = [mean(run) for run in runs if len(run) == max(map(len, runs))]
            cell = Number(
                mean([value(r) for r in chosen]) if chosen else None, mean_std(whole)[1],
                seeds=len(runs), paper=theirs(arch, setup),
                categories=len(grouped(chosen, "dataset", "category")),
            )  # fmt: skip
            text = "-" if cell.value is None else f"{cell.value:,.1f}"
            text += f" ± {cell.std:,.1f}" if cell.std else ""
            row.append(text + (f"<br><sub>paper {cell.paper:,.1f}</sub>" if cell.paper else ""))
            quantity = title.split(" in ")[0].lower()
            records.append(cell.record(number, "", arch, "", setup, quantity, unit))
        rows.append(row)
    return _table(number, "", title, ["setup", *map(title_of, archs)], rows, records, notes)
