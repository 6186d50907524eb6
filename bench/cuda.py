"""Measure everything about CUDA; call the command again until nothing is left.

    python bench/cuda.py                                     the built-in pictures
    python bench/cuda.py --root mvtec --category screw       a folder of images, as for run.py
    python bench/cuda.py --full                              1000 + 1000 latency passes

Parts, in this order; each row is one measurement and is saved to OUT/cuda.json when it is finished:

    checks    pytest -m cuda
    latency   of one image, from host memory to its map in host memory, and images per second
    memory    peaks and seconds of training, peaks of prediction; images of up to 4096 px
    quality   FastFlow and Reverse Distillation by run.py, six setups, three seeds

A call measures missing rows until --minutes are over; the same command continues. A failed row
holds its error, and the others go on; --retry measures it again. OUT/cuda.md has the tables,
OUT/errors.txt the stderr of failed processes.

Exit status: 0 everything is measured, 1 everything except failed rows and tests, 3 rows are left,
2 invalid options or no CUDA device.
"""

import argparse
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
# Without this folder, where torch would find this file instead of NVIDIA's package `cuda`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if Path(path).resolve() != ROOT / "bench")]

import torch  # noqa: E402

from bench.cuda_tables import PARTS, keys_of, report  # noqa: E402
from bench.pipeline import failure, setup_of, write_readme  # noqa: E402
from tiled_ref.data import folder  # noqa: E402
from tiled_ref.models import MODELS  # noqa: E402
from tiled_ref.models.weights import find_weights  # noqa: E402
from tiled_ref.support.errors import InputError  # noqa: E402
from tiled_ref.support.files import atomic_write  # noqa: E402

TITLE = "GPU: `python bench/cuda.py`"
CHECKS = [sys.executable, "-m", "pytest", "-m", "cuda", "-p", "no:cacheprovider",
          "tests/running/test_cuda.py"]  # fmt: skip
GRACE = 15  # seconds between SIGTERM and SIGKILL


def run(command, seconds, on_line=lambda line: None):
    """Run a command, for at most `seconds`; on_line gets each line that it prints.

    Returns (whether it was terminated, its returncode and stderr).
    """
    ended = threading.Event()

    def end(process, how):
        ended.set()
        with contextlib.suppress(ProcessLookupError):  # it has just exited
            os.killpg(process.pid, how)

    with tempfile.TemporaryFile("w+") as errors, subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, start_new_session=True,
        close_fds=False,  # it inherits the lock and keeps it as long as it runs, see `locked`
    ) as process:  # fmt: skip
        timers = [
            threading.Timer(max(0, seconds), end, (process, signal.SIGTERM)),
            threading.Timer(max(0, seconds) + GRACE, end, (process, signal.SIGKILL)),
        ]
        for timer in timers:
            timer.start()
        try:
            for line in process.stdout:
                on_line(line)
            process.wait()
        finally:
            for timer in timers:
                timer.cancel()
            if process.poll() is None:
                end(process, signal.SIGKILL)
        errors.seek(0)
        done = types.SimpleNamespace(returncode=process.returncode, stderr=errors.read())
    return ended.is_set(), done


@contextlib.contextmanager
def locked(folder):
    """A context for one call at a time. If a call is killed, its process measures on and the next
    call would measure beside it. Raises InputError."""
    with open(folder / ".lock", "w") as file:
        os.set_inheritable(file.fileno(), True)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{folder}: another call, or a process of one that was killed, is still measuring; "
                "wait for it or end it (pgrep -af 'cuda_jobs|run.py')"
            ) from error
        yield


def run_checks(args, keys, seconds, store):
    path = args.out / "checks.xml"
    path.unlink(missing_ok=True)
    ended, done = run([*CHECKS, f"--junitxml={path}"], seconds)
    if path.is_file() and not ended:
        cases = list(ElementTree.parse(path).iter("testcase"))
        kinds = [{part.tag for part in case} for case in cases]
        failed = [f"{case.get('classname')}::{case.get('name')}"
                  for case, kind in zip(cases, kinds) if kind & {"failure", "error"}]  # fmt: skip
        skipped = sum("skipped" in kind for kind in kinds)
        passed = len(cases) - len(failed) - skipped
        store("checks", {"passed": passed, "skipped": skipped, "failed": failed})
    return ended, done


def run_job(args, keys, seconds, store):
    def on_line(line):
        if line.startswith('{"key"'):
            found = json.loads(line)
            store(found["key"], found["row"])

    job = json.dumps(job_of(args) | {"keys": keys})
    return run([sys.executable, "-m", "bench.cuda_jobs", job], seconds, on_line)


def run_quality(args, keys, seconds, store):
    """Run all setups of an architecture and seed with one run.py, which keeps finished ones."""
    _, arch, seed, _ = keys[0].split("/")
    job = job_of(args)
    names = {setup_of(job, key.split("/")[-1]).name: key for key in keys}
    command = [
        sys.executable, str(ROOT / "run.py"), "--resume", "--quiet", "--device", args.device,
        "--weights", args.weights, "--arch", arch, "--seed", seed, "--steps", str(args.steps),
        "--out", str(args.out / "runs"), "--setup", *(key.split("/")[-1] for key in keys),
    ]  # fmt: skip
    if args.root:
        command += ["--dataset", "folder", "--root", args.root, "--category", args.category]
    if args.shrink > 1:
        setup = setup_of(job, keys[0].split("/")[-1])
        command += ["--image-size", str(setup.image_size[0])]
        if setup.kind != "SM":
            command += ["--tile-size", str(setup.tile_size[0]), "--stride", str(setup.stride[0])]
    ended, done = run(command, seconds)
    for path in (args.out / "runs").glob("*/*/*/*/seed*/metrics.json"):
        result = json.loads(path.read_text("utf-8"))
        key = names.get(result["setup"])
        if key and (result["arch"], str(result["seed"])) == (arch, seed):
            wanted = "image_auroc", "pixel_aupro", "seconds_train", "n_train"
            store(key, {name: result[name] for name in wanted})
    return ended, done


RUNS = {"checks": run_checks, "memory": run_job, "latency": run_job, "quality": run_quality}


def fill(args, kept, started):
    """Measure missing rows, one process after another, until --minutes are over."""
    rows, since = kept["measured"], [started]
    budget = 60 * args.minutes * 0.92  # the rest is for terminating the last process

    def store(key, row):
        rows[key], since[0] = row, time.monotonic()
        with atomic_write(args.out / "cuda.json") as file:
            json.dump(kept | {"rows": figure_rows(rows, args.device)}, file, indent=1)
        print(f"{key}: {row.get('error', 'measured')}", file=sys.stderr, flush=True)

    while missing := [key for key in args.keys if key not in rows]:
        left = started + budget - time.monotonic()
        if left <= 0:
            return
        part, *names = missing[0].split("/")
        group = [part, *names[: 2 if part == "quality" else 1]]
        keys = [key for key in missing if key.split("/")[: len(group)] == group]
        if part == "quality" and args.shrink > 1:
            keys = keys[:1]  # a run.py takes the sizes of one setup
        ended, done = RUNS[part](args, keys, left, store)
        rest = [key for key in keys if key not in rows]
        if ended:  # a row that had nearly the whole call would be terminated again
            if rest and part != "quality" and time.monotonic() - since[0] > 0.9 * budget:
                store(rest[0], {"error": f"took more than --minutes {args.minutes:g}"})
        elif rest:
            with open(args.out / "errors.txt", "a", encoding="utf-8") as file:
                file.write(f"{rest[0]}\n{done.stderr}\n")
            store(rest[0], {"error": failure(done)})


def failed(row):
    """Whether a row holds an error, or of the tests one that failed or none that ran."""
    return "error" in row or bool(row.get("failed")) or row.get("passed") == 0


def job_of(args):
    """The parameters that all measurements share."""
    names = "device", "weights", "root", "category", "n_train", "steps", "shrink"
    passes = [1000, 1000] if args.full else [100, 300]
    limit = 1e9 if args.full else args.row_seconds
    return {name: getattr(args, name) for name in names} | {
        "passes": passes, "row_seconds": limit, "out": str(args.out),
    }  # fmt: skip


def figure_rows(rows, device):
    """Rows for Fig. 8, as in bench/pipeline.py: float32, low mode."""
    return [
        {"arch": key.split("/")[1], "setup": key.split("/")[2], "device": device, **row}
        for key, row in rows.items() if key.endswith("/float32/low") and "latency_ms" in row
    ]  # fmt: skip


# ------------------------------------------------------------------------------------- the command


def build_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--root", metavar="FOLDER", help="images laid out as for run.py --dataset folder; "
        "default: the built-in category board")
    add("--category", help="a folder in --root; default: the first")
    add("--weights", default="imagenet", metavar="imagenet|random|FILE", help="as of run.py; "
        "default imagenet: the official weights, which a machine without network needs as a FILE")
    add("--minutes", type=float, default=8, help="of this call, at most; default 8")
    add("--full", action="store_true", help="1000 + 1000 passes of the latency, however long")
    add("--row-seconds", type=float, default=15, help="of a row of the latency, about; default 15")
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    add("--archs", nargs="+", choices=MODELS, default=list(MODELS), help="default: all")
    add("--retry", action="store_true", help="measure again what failed")
    add("--n-train", type=int, default=200, help="training images, at most; default 200")
    add("--steps", type=int, default=200, help="of FastFlow and Reverse Distillation; default 200")
    add("--shrink", type=int, default=1, help="divide the sizes of the setups, for a quick look")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: for a test of this script")
    add("--out", type=Path, default=Path("results/cuda"), help="default results/cuda")
    add("--readme", type=Path, metavar="FILE", help="a page that gets the tables too")
    return parser


def prepare(args):
    """Decide what to measure; returns the rows of earlier calls. Raises InputError."""
    if args.root:
        args.root = str(Path(args.root).resolve())
        args.category = args.category or folder.categories(args.root)[0]
        args.n_train = min(args.n_train, len(folder.load(args.root, args.category).train))
    elif args.category:
        raise InputError("--category needs --root, the folder that has it")
    weights = find_weights(args.weights)
    if args.weights not in ("imagenet", "random"):
        args.weights = str(Path(args.weights).resolve())
    card = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    about = job_of(args) | {"card": card, "torch": torch.__version__, "kind": weights.kind}
    del about["out"]  # which may be moved
    args.keys = keys_of(args.parts, args.archs)
    path = args.out / "cuda.json"
    kept = json.loads(path.read_text("utf-8")) if path.is_file() else {"measured": {}}
    before = kept.get("about", about | {"date": time.strftime("%Y-%m-%d")})
    if changed := [name for name in about if about[name] != before.get(name)]:
        changed = ", ".join(changed)
        raise InputError(f"{path} was measured with another {changed}; choose another --out")
    if args.retry:
        again = {k for k, row in kept["measured"].items() if failed(row)} & set(args.keys)
        kept["measured"] = {k: row for k, row in kept["measured"].items() if k not in again}
    return kept | {"about": before}


def main(argv=None):
    started = time.monotonic()
    args = build_parser().parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("torch sees no CUDA device here, so nothing was measured", file=sys.stderr)
        return 2
    try:
        args.out = args.out.resolve()
        args.out.mkdir(parents=True, exist_ok=True)
        with locked(args.out):
            kept = prepare(args)
            return measure(args, kept, started)
    except (InputError, OSError, json.JSONDecodeError) as error:
        print(f"bench/cuda.py: {error}", file=sys.stderr)
        return 2


def measure(args, kept, started):
    """Measure rows and write the tables; returns the exit status."""
    fill(args, kept, started)
    text = report(kept)
    with atomic_write(args.out / "cuda.md") as file:
        file.write(f"## {TITLE}\n\n{text}\n")
    if args.readme:
        write_readme(args.readme, "cuda", TITLE, text)
    left = [key for key in args.keys if key not in kept["measured"]]
    if left:
        print(f"left: {len(left)} of {len(args.keys)} measurements, {left[0]} is next; the same "
              "command continues", file=sys.stderr)  # fmt: skip
        return 3
    return 1 if any(failed(kept["measured"][key]) for key in args.keys) else 0


if __name__ == "__main__":
    for name in signal.SIGTERM, signal.SIGHUP:  # as an interrupt: `run` ends its process
        signal.signal(name, lambda number, frame: sys.exit(128 + number))
    sys.exit(main())
