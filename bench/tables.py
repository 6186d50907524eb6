"""Write the tables of bench/README.md from the results of `python -m pytest bench`.

    python -m pytest bench --benchmark-json bench.json
    python bench/tables.py bench.json

One table for each group of benchmarks, in the order in which they ran. The last column is the
shortest time divided by that of the first row. Text outside the markers is kept.
"""

import argparse
import json
import sys
from pathlib import Path

BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"


def milliseconds(seconds):
    """Three significant digits, or the whole number if it has more."""
    value = 1e3 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def groups(report):
    """{title: its benchmarks, the one by which the others are divided first}"""
    found = {}
    for bench in report["benchmarks"]:
        found.setdefault(bench["group"], []).append(bench)
    return {
        title: sorted(rows, key=lambda row: not row["extra_info"]["first"])
        for title, rows in found.items()
    }


def table(title, rows):
    lines = [
        f"#### {title}", "", "| | min, ms | median, ms | rounds | of the first row |",
        "|---|--:|--:|--:|--:|",
    ]  # fmt: skip
    least = rows[0]["stats"]["min"]
    for row in rows:
        stats = row["stats"]
        times = milliseconds(stats["min"]), milliseconds(stats["median"])
        cells = (row["extra_info"]["contender"], *times, stats["rounds"])
        ratio = f"{stats['min'] / least:.2f}" if rows[0]["extra_info"]["first"] else ""
        lines.append(f"| {' | '.join(map(str, cells))} | {ratio} |")
    return "\n".join(lines)


def header(report):
    """Machine, date, versions, threads and command."""
    machine = report["machine_info"]
    cpu = machine["cpu"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    threads = ", ".join(f"{name} {number}" for name, number in machine["threads"].items())
    return (
        f"{cpu.get('brand_raw', machine['machine'])}, {cpu['count']} cores, "
        f"{report['datetime'][:10]}; Python {machine['python']}, {versions}.\n"
        f"Threads where a row names none: {threads}.\n\n"
        f"```sh\n{machine['command']}\npython bench/tables.py bench.json\n```"
    )


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path, help="JSON of pytest-benchmark")
    parser.add_argument("--readme", type=Path, default=Path(__file__).with_name("README.md"),
                        help="page whose part between the markers is replaced")  # fmt: skip
    args = parser.parse_args(argv)
    report = json.loads(args.file.read_text("utf-8"))
    head, begin, rest = args.readme.read_text("utf-8").partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        sys.exit(f"{args.readme} lacks the markers {BEGIN} and {END}")
    parts = [header(report), *(table(title, rows) for title, rows in groups(report).items())]
    text = "\n\n".join(parts)
    args.readme.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}", "utf-8")


if __name__ == "__main__":
    main()
