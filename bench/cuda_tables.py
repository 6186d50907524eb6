"""The names of all measurements of bench/cuda.py, and its Markdown tables."""

import statistics

from bench.pipeline import MIB, TITLES, TRAINED, markdown, milliseconds
from tiled_ref.models import MODELS
from tiled_ref.reporting import paper
from tiled_ref.setups import SETUPS

PARTS = ("checks", "latency", "memory", "quality")
TIMED = ("SM256", "ST9", "ENS9")
SIDES = ("256", "512", "1024", "2048", "4096")  # px, of tile = stride = 256; the first is SM256
SEEDS = ("42", "5125", "33")
MODES = ("float32/low", "float32/resident", "float16/low", "float16/resident")
RUNS = [*(f"{setup}/{mode}" for setup in TIMED for mode in MODES), "ENS9/float32/graph"]
NOT_YET = "not measured"


def keys_of(parts, archs):
    """The names of all measurements, in order."""
    keys = {part: [] for part in PARTS} | {"checks": ["checks"]}
    for arch in archs:
        keys["memory"] += [f"memory/{arch}/{what}" for what in (*SETUPS, *SIDES)]
        graph = arch == "padim"
        keys["latency"] += [f"latency/{arch}/{run}" for run in RUNS[: None if graph else -1]]
        if arch in TRAINED:
            keys["quality"] += [f"quality/{arch}/{seed}/{s}" for seed in SEEDS for s in SETUPS]
    return [key for part in PARTS if part in parts for key in keys[part]]


def cell(row, text):
    """text(row), or the reason why it is missing."""
    if row is None:
        return NOT_YET
    return "failed" if "error" in row else row.get("left_out") or text(row)


def quotient(rows, above, below, names):
    """The ratio of two rows, "/"-separated if there are several names."""
    pairs = [(rows.get(above, {}).get(name), rows.get(below, {}).get(name)) for name in names]
    return " / ".join(f"{a / b:.2f}" for a, b in pairs if a and b) or NOT_YET


def by_arch(head, rows, key, names, text, ratios=(), archs=MODELS):
    """A line per name, then a line per ratio; a column per architecture.

    key: a format of (arch, name) that finds the row; text(row, arch, name), the cell.
    ratios: (title, name above, name below, names of numbers in a row) each.
    """
    known = set(keys_of(PARTS, MODELS)) | set(rows)

    def line(name):
        keys = [key.format(arch, name) for arch in archs]
        return [
            cell(rows.get(k), lambda row, arch=arch: text(row, arch, name)) if k in known else "-"
            for k, arch in zip(keys, archs)
        ]

    lines = [(name.replace("/", ", "), *line(name)) for name in names]
    if all(word in (NOT_YET, "-") for cells in lines for word in cells[1:]):
        lines = []  # a sentence instead
    for title, above, below, numbers in ratios:
        pairs = [(key.format(arch, above), key.format(arch, below)) for arch in archs]
        lines.append((title, *(quotient(rows, *pair, numbers) for pair in pairs)))
    if not lines:
        return f"{head[0].upper() + head[1:]}: {NOT_YET}."
    return markdown([head, *(TITLES.get(arch, arch) for arch in archs)], lines)


def checks(rows):
    counts = "{passed} passed, {skipped} skipped, {failed} failed"
    names = rows.get("checks", {}).get("failed", [])
    text = cell(rows.get("checks"), lambda r: counts.format(**r | {"failed": len(names)}))
    return ["`python -m pytest -m cuda`: " + text + ".", *(f"- {name}" for name in names)]


def memory(rows):
    def peaks(name):
        return lambda row, *_: " / ".join(
            f"{row[n] / MIB:,.0f}" for n in (name, f"{name}_reserved") if row[n] is not None
        )

    both = "low", "low_reserved"
    ratios = [("ENS9 / SM256 (goal: at most 1.10)", "ENS9", "SM256", both),
              (f"{SIDES[-1]} px / {SIDES[1]} px (goal: 1)", SIDES[-1], SIDES[1], both)]  # fmt: skip
    key, names = "memory/{}/{}", (*SETUPS, *SIDES)
    return [
        "Peak of torch's allocator, allocated / reserved, in MiB; of training, then of a batch of "
        "16 images (8 for PatchCore) in `low`. Numbers are sides in px of an ensemble with tile = "
        "stride = 256 px, at 256 px SM256; 16 images train two of its locations, whose states "
        "predict all.",
        by_arch("training", rows, key, names, peaks("training")),
        by_arch("prediction", rows, key, names, peaks("low"), ratios),
    ]


def training(rows):
    def seconds(row, arch, setup):
        printed = paper.paper_training_seconds(arch, setup)
        return f"{row['seconds']:.1f} ({row['n_train']}; {printed:,.0f})"

    head = "seconds (images; Table 4, s)"
    return [by_arch(head, rows, "memory/{}/{}", SETUPS, seconds)]


def latency(rows, about):
    def times(row, *_):
        names = "latency_ms", "latency_ms_median", "latency_ms_min"
        return " / ".join(milliseconds(row[name]) for name in names)

    def rate(row, *_):
        return "-" if row["images_per_second"] is None else f"{row['images_per_second']:,.1f}"

    def made(row, *_):
        return f"{row['warmup']} + {row['passes']}; {row['deviation']:.0e}"

    warmup, measured = about.get("passes", (100, 300))
    capped = "" if about.get("row_seconds", 0) >= 1e9 else ", fewer where a row would take too long"
    key, median = "latency/{}/{}", ["latency_ms_median"]
    ratios = [
        ("ENS9 / ST9, resident (goal: at most 1.15)", "ENS9/float32/resident",
         "ST9/float32/resident", median),
        ("ENS9, low / resident", "ENS9/float32/low", "ENS9/float32/resident", median),
    ]  # fmt: skip
    return [
        f"One image in host memory, {warmup} warm-up and {measured} measured passes{capped}: mean "
        "/ median / min. Ratios are of medians. Deviations are from float32 in `low`, relative to "
        "the largest value; float32 is timed up to 1e-4. Graph: resident, all between "
        "upload and download as one CUDA graph.",
        by_arch("latency, ms", rows, key, RUNS, times, ratios),
        by_arch("images/s, batch of 16, PatchCore 8", rows, key, RUNS, rate),
        by_arch("passes made; deviation", rows, key, RUNS, made),
    ]


def quality(rows, about):
    category, means = about.get("category"), {}
    dataset = next((name for name in ("mvtec", "visa") if category in paper.categories(name)), None)
    for arch in TRAINED:
        for setup in SETUPS:
            found = [rows.get(f"quality/{arch}/{seed}/{setup}") for seed in SEEDS]
            good = [row for row in found if row and "error" not in row]
            rest = next((row for row in found if row), None)
            means[f"quality/{arch}/{setup}"] = {
                name: [row[name] for row in good if row[name] is not None]
                for name in paper.PAPER_METRICS
            } if good else rest  # fmt: skip

    def text(row, arch, setup):
        parts = []
        for name, title in paper.PAPER_METRICS.items():
            printed = paper.printed(dataset, arch, category, setup, name)
            beside = f", paper {100 * printed.value:.1f}" if printed else ""
            mean = f"{100 * statistics.mean(row[name]):.1f}" if row[name] else "no masks"
            parts.append(f"{title} {mean} ({len(row[name])} seeds{beside})")
        return "; ".join(parts)

    return [by_arch("means over the seeds", means, "quality/{}/{}", SETUPS, text, archs=TRAINED)]


def report(kept):
    """The tables of the rows in cuda.json."""
    rows, about = kept["measured"], kept["about"]
    blocks = []
    if rows:
        data = about["category"] or "the built-in category board"
        blocks = [
            f"{about['date']}, {about['card']}, torch {about['torch']}; {data}, memory and latency "
            f"with {about['n_train']} training images; {about['kind']} weights; {about['steps']} "
            "training steps; no TF32."
        ]
    blocks += ["### Tests", *checks(rows), "### Memory", *memory(rows),
               "### Latency and throughput", *latency(rows, about),
               "### Training", *training(rows),
               "### FastFlow and Reverse Distillation", *quality(rows, about)]  # fmt: skip
    errors = [f"- {key}: {row['error']}" for key, row in rows.items() if "error" in row]
    return "\n\n".join(blocks + (["Failed:\n\n" + "\n".join(errors)] if errors else []))
