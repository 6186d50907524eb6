"""Cost of the whole pipeline on a CPU: latency, throughput, memory, training time.

    python bench/pipeline.py                                   all parts, all architectures
    python bench/pipeline.py --parts latency memory --archs padim --setups SM256 ST9 ENS9
    python bench/pipeline.py --parts peer --peer-python VENV/bin/python

Parts: latency and memory (Figs. 5, 8), training (Table 4), resolution (Fig. 6), images and
tiles (how the cost grows), peer (anomalib's tiled ensemble beside run.py, end to end). GPUs are
measured by bench/cuda.py.

Protocol of the latency: one image in memory; timed are tiling, all models, untiling and
smoothing. Throughput: batches of 16 (8 for PatchCore). Both modes of the engine are first compared
with TiledEnsemble.predict, bit for bit; the setups of an architecture then take turns, so that a
busy moment hits all of them. Every measurement of memory, the peak resident set, has a process of
its own.

Results are kept in OUT/pipeline.json, part by part: a part that is measured again replaces the
old one, the others stay. The tables in bench/README.md are written from that file.
"""

import argparse
import contextlib
import datetime
import functools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Without this folder, whose cuda.py would hide NVIDIA's package `cuda` from torch.
sys.path[:] = [str(ROOT), *(path for path in sys.path if Path(path).resolve() != ROOT / "bench")]

import numpy as np  # noqa: E402
import torch  # noqa: E402

from tiled_ref.data import encoders, reading, synthetic  # noqa: E402
from tiled_ref.ensemble import Forgotten, TiledEnsemble  # noqa: E402
from tiled_ref.models import MODELS  # noqa: E402
from tiled_ref.reporting.results import ARCHS as TITLES  # noqa: E402
from tiled_ref.running.engine import Engine  # noqa: E402
from tiled_ref.setups import SETUPS  # noqa: E402
from tiled_ref.support.arrays import thread_count  # noqa: E402
from tiled_ref.support.errors import InputError  # noqa: E402
from tiled_ref.support.files import atomic_write  # noqa: E402
from tiled_ref.support.memory import PeakMemory  # noqa: E402

THROUGHPUT_BATCH = {"patchcore": 8}  # 16 for the others
TRAINED = ("fastflow", "reverse_distillation")  # --steps applies to them
MIB = 1 << 20
TITLE = "Pipeline on a CPU: `python bench/pipeline.py`"


# ------------------------------------------------------------------- what a process measures


def setup_of(job, name):
    """The Setup of that name, in the sizes of the job."""
    sizes = [job.get(key) for key in ("image_size", "tile_size", "stride")]
    setup = SETUPS[name]
    if job["shrink"] > 1:
        sizes = [tuple(side // job["shrink"] for side in getattr(setup, key))
                 for key in ("image_size", "tile_size", "stride")]  # fmt: skip
        sizes[1:] = [None, None] if setup.kind == "SM" else sizes[1:]
    return setup.with_sizes(*sizes)


def made_ensemble(job, name, precision="float32"):
    """An untrained TiledEnsemble of the job, in the setup of that name."""
    switches = {"steps": job["steps"]} if job["arch"] in TRAINED else {}
    return TiledEnsemble(
        setup_of(job, name), job["arch"],
        weights=job["weights"], device=job["device"], switches=switches, precision=precision,
    )  # fmt: skip


@functools.cache
def pictures(size, n_train, n_test):
    """uint8 (n_train, 3, H, W) and (n_test, 3, H, W) of the built-in category board."""
    category = synthetic.load(None, "board", n_train=n_train, n_good=0, n_defective=n_test)
    return [reading.read_images(part, size) for part in (category.train, category.test)]


def check_equal(engines, ensemble, images):
    """Exit before timing unless all engines give the bits of TiledEnsemble.predict."""
    maps, scores = ensemble.predict(images)
    for name, engine in engines.items():
        got, got_scores = engine.predict(images)
        deviation = max(abs(got - maps).max(), abs(got_scores - scores).max())
        if deviation > 0:
            raise SystemExit(f"{ensemble.setup.name}, {name}: off by {deviation}; nothing is timed")


def timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def job_latency(job):
    """Time all setups of one architecture in both modes, alternating: a row each."""
    contenders = {}
    batch = THROUGHPUT_BATCH.get(job["arch"], 16)
    for name in job["setups"]:
        ensemble = made_ensemble(job, name)
        train, test = pictures(ensemble.setup.image_size, job["n_train"], 2)
        ensemble.fit(train)
        engines = {mode: Engine(ensemble, mode) for mode in job["modes"]}
        check_equal(engines, ensemble, test)
        for mode, engine in engines.items():
            contenders[name, mode] = engine, test
    seconds = {key: [] for key in contenders}
    for k in range(job["warmup"] + job["runs"]):
        for key, (engine, test) in contenders.items():
            elapsed = timed(lambda: engine.predict(test[:1]))
            if k >= job["warmup"]:
                seconds[key].append(elapsed)
    rates = {key: [] for key in contenders}
    for _ in range(job["batches"]):
        for key, (engine, test) in contenders.items():
            images = np.resize(test, (batch, *test.shape[1:]))  # the same images every time
            rates[key].append(batch / timed(lambda: engine.predict(images)))
    return [
        {
            "arch": job["arch"],
            "setup": setup,
            "memory": mode,
            "device": "cpu",
            "latency_ms": 1e3 * statistics.mean(times),
            "latency_ms_min": 1e3 * min(times),
            "latency_ms_median": 1e3 * statistics.median(times),
            "images_per_second": statistics.median(rates[setup, mode]) if job["batches"] else None,
            "batch": batch,
        }
        for (setup, mode), times in seconds.items()
    ]


def job_train(job):
    """Measure training of one setup, time and memory; saves the ensemble for job_predict."""
    ensemble = made_ensemble(job, job["setup"])
    ensemble.make_model()
    train, _ = pictures(ensemble.setup.image_size, job["n_train"], 1)
    peak = PeakMemory(ensemble.device)
    before = peak.read()["peak_memory_bytes"]
    seconds = timed(lambda: fit_to(ensemble, train, job["folder"]))
    return [{
        "arch": job["arch"], "setup": job["setup"], "phase": "training",
        "seconds": seconds, "n_train": job["n_train"], "before_bytes": before, **peak.read(),
    }]  # fmt: skip


def fit_to(ensemble, train, folder):
    """Train location by location as a run does: one model in memory, the others on disk."""
    states = ensemble.states if folder else Forgotten()
    for _ in ensemble.each_location(train, train[:0], states):
        pass  # no image to predict
    if folder:
        ensemble.save(folder)


def job_predict(job):
    """Measure prediction with a saved ensemble, time and memory."""
    ensemble = TiledEnsemble.load(job["folder"], weights=job["weights"], device=job["device"])
    size = ensemble.setup.image_size
    _, test = pictures(size, 1, min(job["n_test"], 4))
    test = np.resize(test, (job["n_test"], *test.shape[1:]))
    engine = Engine(ensemble, job["memory"])
    peak = PeakMemory(ensemble.device)
    before = peak.read()["peak_memory_bytes"]
    batch = job["batch"]
    starts = range(0, len(test), batch)
    seconds = timed(lambda: [engine.predict(test[start : start + batch]) for start in starts])
    return [{
        "arch": job["arch"], "setup": job["setup"], "phase": "inference",
        "memory": job["memory"], "sides": list(size), "n_tiles": ensemble.setup.n_tiles,
        "seconds": seconds, "n_test": len(test), "batch": batch, "before_bytes": before,
        **peak.read(),
    }]  # fmt: skip


JOBS = {
    "latency": job_latency,
    "train": job_train,
    "predict": job_predict,
}


def in_own_process(kind, job, limit=None):
    """Measure a job in a separate process and return its rows; one with "error" if it fails.

    limit: bytes of address space, so that a job that needs too much fails, not the machine.
    """
    command = [sys.executable, str(Path(__file__).resolve()), "--job", kind, json.dumps(job)]
    done = subprocess.run(
        command, capture_output=True, text=True, preexec_fn=lambda: limit_memory(limit)
    )
    if done.returncode != 0:
        return [{**job, "error": failure(done)}]
    return json.loads(done.stdout.splitlines()[-1])


def limit_memory(limit):
    if limit:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def failure(done):
    """The last line on stderr of a failed process."""
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return lines[-1][:200]


# ------------------------------------------------------------------------------- the parts


def part_latency(args):
    rows = []
    for arch in args.archs:
        rows += in_own_process("latency", {
            **job_of(args, arch), "setups": args.setups, "modes": args.modes,
            "warmup": args.warmup, "runs": args.runs, "batches": args.batches,
        })  # fmt: skip
        tell(rows)
    return rows


def part_memory(args):
    """Training and inference of every setup; the training's seconds are Table 4."""
    rows = []
    for arch in args.archs:
        for setup in args.setups:
            with tempfile.TemporaryDirectory() as folder:
                job = {**job_of(args, arch), "setup": setup, "folder": f"{folder}/ensemble"}
                rows += in_own_process("train", job)
                if "error" not in rows[-1]:
                    for mode in args.modes:
                        batch = THROUGHPUT_BATCH.get(arch, 16)
                        more = {"memory": mode, "n_test": batch, "batch": batch}
                        rows += in_own_process("predict", job | more)
            tell(rows)
    return rows


def part_resolution(args):
    """Fig. 6: run.py on one category at several resolutions, single model and ensemble."""
    rows = []
    for side in args.resolutions:
        tile = min(args.tile, side)
        contenders = {"single": ["SM256"]}
        if side > tile:
            contenders["ensemble"] = ["ENS4", "--tile-size", str(tile), "--stride", str(tile)]
        for name, setup in contenders.items():
            argv = ["--setup", *setup, "--image-size", str(side), *args.data]
            row = {"resolution": side, "kind": name, "arch": "padim"}
            rows.append(row | run_py(args, argv))
            tell(rows)
    return rows


def run_py(args, argv):
    """The metrics of a run of run.py; {"error"} if it failed."""
    with tempfile.TemporaryDirectory() as out:
        command = [
            sys.executable, str(ROOT / "run.py"), *argv, "--device", "cpu",
            "--weights", args.weights, "--quiet", "--out", out,
        ]  # fmt: skip
        started = time.perf_counter()
        done = subprocess.run(
            command, capture_output=True, text=True,
            preexec_fn=lambda: limit_memory(int(args.memory_limit * 2**30)),
        )  # fmt: skip
        seconds = time.perf_counter() - started
        if done.returncode != 0:
            return {"error": failure(done)}
        (path,) = Path(out).rglob("metrics.json")
        result = json.loads(path.read_text("utf-8"))
    keys = (
        "dataset", "category", "setup", "image_auroc", "pixel_aupro", "n_models", "n_train",
        "n_test", "seconds_train", "seconds_test", "peak_memory_bytes",
    )  # fmt: skip
    return {key: result[key] for key in keys} | {"seconds": seconds}


def part_images(args):
    """ENS9 against the number of images in host memory, in batches."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        job = {**job_of(args, "padim"), "setup": "ENS9", "folder": f"{folder}/ensemble"}
        trained = in_own_process("train", job)
        if "error" in trained[0]:
            return trained
        for n in args.counts:
            for mode in args.modes:
                more = {"memory": mode, "n_test": n, "batch": min(n, 16)}
                rows += in_own_process("predict", job | more)
            tell(rows)
    return rows


def part_tiles(args):
    """An ensemble at tile = stride against the number of tiles, one image at a time."""
    rows = []
    for k in range(1, args.max_tiles + 1):
        tile = [args.tile, args.tile]
        sizes = {"image_size": [k * args.tile] * 2, "tile_size": tile, "stride": tile}
        with tempfile.TemporaryDirectory() as folder:
            job = {**job_of(args, "padim"), "setup": "ENS4", "folder": f"{folder}/ensemble"}
            job |= sizes | {"shrink": 1}
            rows += in_own_process("train", job)
            if "error" not in rows[-1]:
                for mode in args.modes:
                    more = {"memory": mode, "n_test": args.runs, "batch": 1}
                    rows += in_own_process("predict", job | more)
        tell(rows)
    return rows


def part_peer(args):
    """run.py and anomalib's tiled ensemble on one folder of images, end to end."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_folder(folder / "parts", *args.peer_images)
        ours = [
            sys.executable, str(ROOT / "run.py"), "--dataset", "folder", "--root",
            str(folder / "parts"), "--setup", "ENS9", "--device", "cpu",
            "--weights", args.weights, "--quiet", "--out", str(folder / "out"),
        ]  # fmt: skip
        image, tile, stride = (side // args.shrink for side in (512, 256, 128))
        if args.shrink > 1:
            ours += ["--image-size", f"{image}", "--tile-size", f"{tile}", "--stride", f"{stride}"]
        contenders = {"run.py": ours}
        if args.peer_python:
            contenders["anomalib"] = [
                args.peer_python, str(ROOT / "bench" / "peer_anomalib.py"), str(folder / "parts"),
                "--image", f"{image}", "--tile", f"{tile}", "--stride", f"{stride}",
            ]  # fmt: skip
        for name, command in contenders.items():
            rows.append({"program": name, "images": args.peer_images, **whole(command, folder)})
            tell(rows)
        if not args.peer_python:
            rows.append({"program": "anomalib", "error": "not measured: no --peer-python"})
    return rows


def whole(command, folder):
    """Seconds and peak resident bytes of a command, and its last line."""
    started = time.perf_counter()
    with open(folder / "log", "w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        log.seek(0)
        lines = log.read().strip().splitlines() or [""]
    if status != 0:
        return {"error": lines[-1][:200]}
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_memory_bytes": usage.ru_maxrss * unit, "said": lines[-1][:200],
    }  # fmt: skip


def write_folder(folder, n_train, n_test, side):
    """Pictures of the category board as .png files, half of the test images defective."""
    category = synthetic.load(
        None, "board", n_train=n_train, n_good=n_test - n_test // 2, n_defective=n_test // 2
    )
    for split in ("train", "test"):
        samples = getattr(category, split)
        images = reading.read_images(samples, (side, side), antialias=True)
        masks = reading.read_masks(samples, (side, side))
        for k, (sample, image, mask) in enumerate(zip(samples, images, masks)):
            kind = "defect" if sample.label else "good"
            paths = {folder / split / kind / f"{k:03d}.png": image.transpose(1, 2, 0)}
            if sample.label:
                paths[folder / "ground_truth" / kind / f"{k:03d}_mask.png"] = mask * np.uint8(255)
            for path, array in paths.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encoders.encode_png(np.ascontiguousarray(array)))


PARTS = {
    "latency": part_latency,
    "memory": part_memory,
    "resolution": part_resolution,
    "images": part_images,
    "tiles": part_tiles,
    "peer": part_peer,
}


def job_of(args, arch):
    """The parameters that all jobs of an architecture share."""
    return {
        "arch": arch, "device": "cpu", "weights": args.weights, "steps": args.steps,
        "n_train": args.n_train, "shrink": args.shrink,
    }  # fmt: skip


def tell(rows):
    """Print the row just measured on stderr, in one line."""
    row = rows[-1]
    keys = ("arch", "setup", "kind", "resolution", "program", "memory", "latency_ms_min", "seconds")
    parts = [f"{key} {row[key]}" for key in keys if row.get(key) is not None]
    print(f"{', '.join(parts)}{': ' + row['error'] if 'error' in row else ''}",
          file=sys.stderr, flush=True)  # fmt: skip


# ------------------------------------------------------------------------------- the tables


def mib(row, key="peak_memory_bytes"):
    value = row.get(key)
    return "" if value is None else f"{value / MIB:,.0f}"


def milliseconds(value):
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def markdown(headers, rows):
    lines = ["| " + " | ".join(headers) + " |", "|" + "---|" + "--:|" * (len(headers) - 1)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def good(rows):
    return [row for row in rows if "error" not in row]


def failures(rows):
    keys = ("arch", "setup", "resolution", "kind", "program")
    lines = [
        f"- {', '.join(str(row[k]) for k in keys if row.get(k))}: {row['error']}"
        for row in rows if "error" in row
    ]  # fmt: skip
    return ["Failed or left out:\n\n" + "\n".join(lines)] if lines else []


def latency_tables(rows):
    """The tables for one image and for batches, then the ratios that have a target."""
    table = [
        (f"{TITLES.get(r['arch'], r['arch'])} {r['setup']}", r["memory"],
         milliseconds(r["latency_ms"]), milliseconds(r["latency_ms_min"]),
         milliseconds(r["latency_ms_median"]),
         "" if r["images_per_second"] is None else f"{r['images_per_second']:.2f}")
        for r in good(rows)
    ]  # fmt: skip
    heads = ["", "memory", "mean, ms", "min, ms", "median, ms", "images/s"]
    return [markdown(heads, table), ratio_table(good(rows)), *failures(rows)]


def ratio_table(rows):
    """ENS9 / ST9 (resident) and low / resident, of the minima and of the medians."""
    at = {(r["arch"], r["setup"], r["memory"]): r for r in rows}
    table = []
    for arch in dict.fromkeys(r["arch"] for r in rows):
        limit = 1.3 if arch in TRAINED else 1.15
        pairs = [("ENS9 / ST9, resident", ("ENS9", "resident"), ("ST9", "resident"), f"<= {limit}")]
        pairs += [
            (f"{s}: low / resident", (s, "low"), (s, "resident"), "")
            for s in ("ENS4", "ENS9")
        ]
        for title, above, below, target in pairs:
            a, b = at.get((arch, *above)), at.get((arch, *below))
            if a and b:
                ratios = [f"{a[k] / b[k]:.2f}" for k in ("latency_ms_min", "latency_ms_median")]
                table.append((f"{TITLES.get(arch, arch)}: {title}", *ratios, target))
    return markdown(["ratio of latencies", "minima", "medians", "target"], table) if table else ""


def memory_tables(rows):
    rows_ok = good(rows)
    table = []
    for r in rows_ok:
        table.append((
            f"{TITLES.get(r['arch'], r['arch'])} {r['setup']}",
            r["phase"] + (f", {r['memory']}" if "memory" in r else ""),
            mib(r), mib(r, "before_bytes"),
            f"{r['seconds']:.1f}" if r["phase"] == "training" else "",
        ))  # fmt: skip
    heads = ["", "phase", "peak, MiB", "before it, MiB", "training, s"]
    at = {(r["arch"], r["setup"], r.get("memory", "training")): r for r in rows_ok}
    ratios = []
    for arch in dict.fromkeys(r["arch"] for r in rows_ok):
        for phase in ("training", "low", "resident"):
            a, b = at.get((arch, "ENS9", phase)), at.get((arch, "SM256", phase))
            if a and b:
                value = a["peak_memory_bytes"] / b["peak_memory_bytes"]
                ratios.append((f"{TITLES.get(arch, arch)}: ENS9 / SM256, {phase}", f"{value:.2f}"))
    blocks = [markdown(heads, table)]
    if ratios:
        blocks.append(markdown(["ratio of peaks", ""], ratios))
    return blocks + failures(rows)


def resolution_tables(rows):
    percent = lambda value: "" if value is None else f"{100 * value:.1f}"  # noqa: E731
    table = [
        (f"{r['resolution']}", f"{r['kind']} ({r['n_models']})", percent(r["pixel_aupro"]),
         percent(r["image_auroc"]), mib(r),
         f"{r['seconds_train']:.1f}", f"{r['seconds_test']:.1f}")
        for r in good(rows)
    ]  # fmt: skip
    heads = ["resolution", "kind (models)", "AUPRO", "image AUROC", "peak, MiB",
             "training, s", "test, s"]  # fmt: skip
    return [markdown(heads, table), *failures(rows)]


def images_tables(rows):
    table = [
        (r["n_test"], r["memory"], f"{r['seconds']:.2f}",
         milliseconds(1e3 * r["seconds"] / r["n_test"]), mib(r), mib(r, "before_bytes"))
        for r in good(rows)
    ]  # fmt: skip
    heads = ["images", "memory", "seconds", "ms an image", "peak, MiB", "before it, MiB"]
    return [markdown(heads, table), *failures(rows)]


def tiles_tables(rows):
    table = [
        (r["n_tiles"], r["sides"][0], r["memory"], milliseconds(1e3 * r["seconds"] / r["n_test"]),
         milliseconds(1e3 * r["seconds"] / r["n_test"] / r["n_tiles"]), mib(r))
        for r in good(rows) if r["phase"] == "inference"
    ]  # fmt: skip
    heads = ["tiles", "image, px", "memory", "ms an image", "ms a tile", "peak, MiB"]
    return [markdown(heads, table), *failures(rows)]


def peer_tables(rows):
    measured = {r["program"]: r for r in good(rows)}
    table = [
        (name, f"{r['seconds']:.1f}", f"{r['cpu_seconds']:.1f}", mib(r))
        for name, r in measured.items()
    ]
    blocks = [markdown(["", "seconds", "CPU seconds", "peak resident, MiB"], table)]
    if len(measured) == 2:
        ours, peer = measured["run.py"], measured["anomalib"]
        faster = peer["seconds"] / ours["seconds"]
        smaller = ours["peak_memory_bytes"] / peer["peak_memory_bytes"]
        blocks.append(
            f"{faster:.1f} times faster (target: 4), {smaller:.2f} of the memory (target: 0.33)."
        )
    return blocks + failures(rows)


TABLES = {
    "latency": ("Latency and throughput (Fig. 8)", latency_tables),
    "memory": ("Memory and training time (Fig. 5, Table 4)", memory_tables),
    "resolution": ("Resolution (Fig. 6): PaDiM, single model and ensemble", resolution_tables),
    "images": ("Number of images: PaDiM, ENS9", images_tables),
    "tiles": ("Number of tiles: PaDiM, tile = stride, one image at a time", tiles_tables),
    "peer": ("End to end beside anomalib's tiled ensemble: PaDiM, ENS9", peer_tables),
}


def render(parts):
    """Markdown of all measured parts."""
    blocks = []
    for name, (title, tables) in TABLES.items():
        if name in parts:
            part = parts[name]
            blocks += [f"### {title}", part["header"], *filter(None, tables(part["rows"]))]
    return "\n\n".join(blocks)


def header(args, part):
    """Date, machine, versions and number of runs of a part."""
    counts = {
        "latency": f"{args.warmup} warm-up and {args.runs} measured runs of one image, "
        f"{args.batches} batches; trained on {args.n_train} images",
        "memory": f"trained on {args.n_train} images, then one batch of 16 (8 for PatchCore)",
        "resolution": f"{' '.join(args.data) or 'the built-in category board (1024 px)'}; at most "
        f"{args.memory_limit:g} GiB of address space; tile = stride = {args.tile}",
        "images": f"trained on {args.n_train} images, batches of at most 16",
        "tiles": f"tiles of {args.tile} px, trained on {args.n_train} images, {args.runs} images",
        "peer": "{} training and {} test images of {} x {} px, wall clock of the whole command"
        .format(*args.peer_images, args.peer_images[-1]),
    }[part]  # fmt: skip
    steps = ""
    if part in ("latency", "memory") and set(args.archs) & set(TRAINED):
        steps = (
            f"; FastFlow and Reverse Distillation with {args.steps} training steps, on which "
            "latency and memory do not depend"
        )
    load = f"; load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{datetime.date.today()}, {cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch "
        f"and {thread_count(None)} kernel threads{load} at the end; Python "
        f"{platform.python_version()}, torch {torch.__version__}, NumPy {np.__version__}; "
        f"{args.weights} weights; {counts}{steps}."
    )


def cpu_name():
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def read_kept(path):
    """The results of earlier calls, from pipeline.json."""
    if not path.is_file():
        return {"rows": [], "parts": {}}
    kept = json.loads(path.read_text("utf-8"))
    if not isinstance(kept, dict) or "parts" not in kept:
        raise InputError(f"{path} was not written by bench/pipeline.py; choose another --out")
    return kept


def figure_rows(parts):
    """Rows for Fig. 8, one per architecture and setup: low mode."""
    rows = good(parts.get("latency", {"rows": []})["rows"])
    return [row for row in rows if row["memory"] == "low"]


def write_readme(path, name, title, text):
    """Replace the text between the markers of that name, or append it with markers."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    page = path.read_text("utf-8") if path.is_file() else "# What is measured\n"
    block = f"{begin}\n## {title}\n\n{text}\n{end}"
    if begin in page:
        head, _, rest = page.partition(begin)
        page = head + block + rest.partition(end)[2]
    else:
        page = page.rstrip("\n") + f"\n\n{block}\n"
    with atomic_write(path) as file:
        file.write(page)


def build_parser():
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART",
        help=", ".join(PARTS))
    add("--archs", nargs="+", choices=MODELS, default=list(MODELS), metavar="ARCH")
    add("--setups", nargs="+", choices=SETUPS, default=list(SETUPS), metavar="SETUP")
    add("--shrink", type=int, default=1, help="divide the sizes of the setups, for a quick look")
    add("--modes", nargs="+", choices=["low", "resident"], default=["low", "resident"])
    add("--weights", default="auto", help="as of run.py; the cost does not depend on them")
    add("--warmup", type=int, default=1, help="runs before the measured ones")
    add("--runs", type=int, default=5, help="measured runs")
    add("--batches", type=int, default=1, help="batches for the throughput")
    add("--n-train", type=int, default=16, help="training images")
    add("--steps", type=int, default=1, help="of FastFlow and Reverse Distillation")
    add("--resolutions", nargs="+", type=int, default=[256, 512, 1024, 2048], metavar="PX")
    add("--tile", type=int, default=256, help="tile = stride of resolution and tiles, in pixels")
    add("--data", nargs=argparse.REMAINDER, default=[],
        help="last: options of run.py that choose the images of part resolution")
    add("--memory-limit", type=float, default=12, metavar="GIB",
        help="address space of each run of part resolution")
    add("--counts", nargs="+", type=int, default=[1, 4, 16, 64], help="images of part images")
    add("--max-tiles", type=int, default=4, help="tiles along a side in part tiles")
    add("--peer-images", nargs=3, type=int, default=[40, 30, 700], metavar=("TRAIN", "TEST", "PX"))
    add("--peer-python", metavar="FILE", help="Python of an environment with anomalib")
    add("--out", type=Path, default=Path("results"), help="folder of pipeline.json")
    add("--readme", type=Path, default=ROOT / "bench" / "README.md", help="page of the tables")
    add("--job", nargs=2, help=argparse.SUPPRESS)
    return parser


def main(argv=None):
    args = build_parser().parse_args(argv)
    if args.job:
        kind, text = args.job
        job = json.loads(text)
        print(json.dumps(JOBS[kind](job)))
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "pipeline.json"
    kept = read_kept(path)
    for part in args.parts:
        rows = PARTS[part](args)
        kept["parts"][part] = {"header": header(args, part), "rows": rows}
        kept["rows"] = figure_rows(kept["parts"])
        with atomic_write(path) as file:
            json.dump(kept, file, indent=1)
        write_readme(args.readme, "pipeline cpu", TITLE, render(kept["parts"]))
    print(render({part: kept["parts"][part] for part in args.parts}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
