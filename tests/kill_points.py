"""Kills a run, a report or a prediction before every rename, removal and write, and goes on.

    python tests/kill_points.py FOLDER ARCH|sweep|report|predict|watch|fail

What differs from an undisturbed one is printed as JSON for tests/running/test_kill_points.py. See
crash_server.py, whose children these are. Their clock stands still, so that all files can be
compared byte for byte.
"""

import errno
import gc
import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from crash_server import Moments, forked, kill, make_folder

from tiled_ref import cli, ensemble
from tiled_ref.archive import ensembles, manifest
from tiled_ref.reporting import page
from tiled_ref.running import rows
from tiled_ref.serving import outputs, sources
from tiled_ref.support import files
from tiled_ref.support.memory import PeakMemory

ONE = ("--setup", "ENS4")  # two tile locations
TWO = ("--setup", "ENS4", "ST4", "--share-features", "off")
SMALL = (
    "--image-size", "32x64", "--tile-size", "32", "--stride", "32", "--weights", "random",
    "--device", "cpu", "--batch-size", "2", "--threads", "1", "--save", "--report",
)  # fmt: skip
LEFT = ("metrics.json", "analysis.npz", "ensemble/manifest.json")  # of a cell, by one run
OTHER = ("--seam-sigma", "3")
ERRORS = (errno.ENOSPC, errno.EACCES, errno.EXDEV)
# Beside the files of the program; the process of the number is running.
FOREIGN = (".notes.tmp", ".notes.7.tmp", "mine.txt", ".metrics.json.{}.tmp", ".ensemble.{}.old/",
           ".predictions.csv.{}.tmp", "my.json.1.new/", ".my.json.{}.new/")  # fmt: skip


class Points(Moments):
    """Every rename, removal and write."""

    stubs = {}  # of the module page: what need not be computed again

    def install(self):
        time.perf_counter = lambda: 0.0
        os.fsync = lambda descriptor: None  # no power is cut
        PeakMemory.read = lambda self: dict.fromkeys(("peak_memory_bytes", "peak_reserved_bytes"))
        for name, value in self.stubs.items():
            setattr(page, name, lambda *args, value=value: value)
        for name, kind in {"replace": "rename", "rename": "rename", "unlink": "remove",
                           "rmdir": "remove"}.items():  # fmt: skip
            self.watch(os, name, kind)
        write = files._NewFile.write

        def first_writes(file, data):  # later ones change a temporary file's length, no more
            file.writes = getattr(file, "writes", 0) + 1
            if file.writes <= 2:
                self("write")
            return write(file, data)

        files._NewFile.write = first_writes
        self.watch(rows, "write_at", "rows")
        self.watch(outputs, "csv_text", "row")  # before it is written at once


def tree(out):
    """{path below out: digest of the file, or None of a folder}, all but the lock."""
    return {
        str(path.relative_to(out)): None if path.is_dir() else
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*")) if path.name != ".lock"
    }  # fmt: skip


def differences(out, reference):
    """The paths that differ from those of a reference, see `tree`."""
    found = tree(out)
    return sorted(
        path for path in {*found, *reference}
        if found.get(path, "") != reference.get(path, "")
    )  # fmt: skip


def add_foreign(folders):
    """Put a user's files and folders, with names like the program's, into folders."""
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for name in FOREIGN:
            path = folder / name.format(os.getppid())
            path.mkdir() if name.endswith("/") else path.write_text("mine")


def identities(out):
    """The identity in each file that a cell has left so far."""
    found = {}
    for path in out.rglob("seed*"):
        for name in LEFT:
            if not (path / name).exists():
                continue
            if name.endswith(".npz"):
                with np.load(path / name) as data:
                    found[name] = data["identity"].tobytes().decode()
            else:
                found[name] = json.loads((path / name).read_text())["identity"]
    return found


class Runs:
    """A command line that is run in children.

    Parameters: out, its folder; argv; status, its exit status. Attribute: kinds, the moments of
    an undisturbed run.
    """

    def __init__(self, out, *argv, status=0):
        self.out, self.argv, self.status = out, tuple(map(str, argv)), status

    def __call__(self, *extra, moments=None):
        done = forked([*self.argv, *extra], moments or Points())
        if moments is None and done["status"] != self.status:
            sys.exit(f"{extra}: status {done['status']}, signal {done['signal']}: {done['text']}")
        return done

    def start(self, start):
        """Replace the folder by a copy of another."""
        shutil.rmtree(self.out, ignore_errors=True)
        shutil.copytree(start, self.out)

    def undisturbed(self, start, *extra):
        """Run once from a start, a folder; returns the moments and the tree."""
        self.start(start)
        return self(*extra)["moments"], tree(self.out)

    def killed(self, start, *again, look):
        """Kill the command at every moment in turn, from a start, and run it again, with more
        options. Returns [moment, what look() says in between, differences]."""
        kinds, reference = self.undisturbed(start)
        found = []
        for k, kind in enumerate(kinds):
            self.start(start)
            assert self(moments=Points(k, kill))["signal"] == 9, (k, kind)
            seen = look()
            self(*again)
            found.append([f"{k} {kind}", seen, differences(self.out, reference)])
        return found


def run_of(folder, *options):
    """Runs of a folder with a few images."""
    if not (folder / "parts").exists():
        make_folder(folder / "parts")
    argv = ("--dataset", "folder", "--root", folder / "parts", "--out", folder / "out")
    return Runs(folder / "out", *argv, *SMALL, *options)


def cells(folder, arch):
    """A run of one cell or of a sweep; with PaDiM, one over an earlier result as well."""
    steps = () if arch in ("padim", "sweep") else ("--steps", "1") if arch != "patchcore" else ()
    run = run_of(folder, *(TWO if arch == "sweep" else (*ONE, "--arch", arch, *steps)))
    cli.write_report = lambda out, *texts: (out / "report", [])  # see `report`
    run()
    places = [path for path in run.out.rglob("*") if path.is_dir() and path.name != "ensemble"]
    places += [path / "partial" for path in run.out.rglob("seed*")]
    empty, kept = folder / "empty", folder / "kept"
    add_foreign(empty / path.relative_to(run.out) for path in (run.out, *places))
    report = {"fresh": run.killed(empty, "--resume", look=lambda: identities(run.out))}
    if arch == "padim":
        shutil.copytree(run.out, kept)
        report["mixed"] = mixed(run, kept)
    return report


def mixed(run, kept):
    """A run of other options is killed, the first is resumed, and then the other one."""
    _, mine = run.undisturbed(kept, "--resume")
    kinds, other = run.undisturbed(kept, *OTHER)
    found = []
    for k in (k for k, kind in enumerate(kinds) if kind == "rename"):
        run.start(kept)
        run(*OTHER, moments=Points(k, kill))
        left = identities(run.out)
        run("--resume")
        resumed = identities(run.out)
        differ = [path for path in differences(run.out, mine) if "/partial" not in path]
        run(*OTHER, "--resume")
        found.append([f"{k} {kinds[k]}", left, resumed, differ + differences(run.out, other)])
    return found


def fail(folder, _):
    """Every rename of a run over an earlier result fails in turn, for one of three reasons; then
    the run is resumed."""
    run, start, found = run_of(folder, *ONE), folder / "kept", []
    cli.write_report = lambda out, *texts: (out / "report", [])
    run()
    shutil.copytree(run.out, start)
    kinds, reference = run.undisturbed(start, *OTHER)
    for k in range(kinds.count("rename")):
        error = OSError(ERRORS[k % 3], os.strerror(ERRORS[k % 3]), "a file")

        def act(error=error):
            raise error

        run.start(start)
        done = run(*OTHER, moments=Points(k, act, ["rename"]))
        left = identities(run.out)
        run(*OTHER, "--resume")
        differ = differences(run.out, reference)
        found.append([f"{k} {error}", done["status"], done["text"], left, differ])
    return {"failed": found}


def report(folder, _):
    """The report of two cells, over one of the first."""
    run = run_of(folder, *TWO)
    run("--setup", "ENS4")
    shutil.copytree(run.out / "report", folder / "older")
    run()
    shutil.rmtree(run.out / "report")
    shutil.copytree(folder / "older", run.out / "report")
    add_foreign([run.out, run.out / "report"])
    shutil.copytree(run.out, folder / "kept")
    collection = page.Collection(run.out)
    Points.stubs["all_figures"] = page.all_figures(collection)
    before = tree(run.out)
    after = run.undisturbed(folder / "kept")[1]

    def torn():
        """Files under their names that are neither whole old nor whole new ones."""
        return [
            name for name, digest in tree(run.out).items()
            if name not in {**before, **after} and not name.endswith(".tmp")
            or name in {**before, **after} and digest not in (before.get(name), after.get(name))
        ]  # fmt: skip

    return {"fresh": run.killed(folder / "kept", "--resume", look=torn)}


def predict(folder, kind):
    """A prediction, or a watch that two looks and an interrupt end, over one of other images."""
    left = iter([False])

    def sleep(seconds):
        if next(left, True):
            raise KeyboardInterrupt

    sources.time = SimpleNamespace(sleep=sleep)
    run = run_of(folder, *ONE)
    cli.write_report = lambda out, *texts: (out / "report", [])
    run()
    new, out, kept = folder / "new", folder / "predictions", folder / "kept"
    new.mkdir()
    for k, path in enumerate(sorted((folder / "parts/test").rglob("*.png"))):
        shutil.copy(path, new / f"{k}.png")
    (new / "broken.png").write_text("")
    argv = ("--load", next(run.out.rglob("ensemble")), f"--{kind}", new, "--out", out,
            "--pictures", "all", "--save-maps")  # fmt: skip
    forked([*map(str, argv), "tiff"])
    (new / "0.png").unlink()
    predict = Runs(out, *argv, "npy", status=130 if kind == "watch" else 2)
    add_foreign([out, out / "maps", out / "pictures"])
    shutil.copytree(out, kept)
    before, after = tree(out), predict.undisturbed(kept)[1]

    def state():
        found = tree(out)
        if "predictions.csv" in found:
            return "whole" if found in (before, after) else "torn"
        ours = [n for n in found if n not in before and n not in after]
        return "partial" if "predictions.partial.csv" in found else f"no table, {ours}"

    return {"fresh": predict.killed(kept, look=state)}


def prepare():
    """Compute once, before any fork, what every child needs alike."""
    torch.set_num_threads(1)
    weights = cli.find_weights("random")
    backbone = cli.ResNet18Features(weights.state_dict)
    digest = manifest.tensors_digest(backbone.state_dict())
    cli.find_weights = ensemble.find_weights = lambda *args, **options: weights
    cli.ResNet18Features = ensemble.ResNet18Features = lambda *args, **options: backbone
    manifest.tensors_digest = ensembles.tensors_digest = lambda state: digest
    gc.collect()
    gc.freeze()  # a collection in a child would copy all pages


def main(folder, kind):
    prepare()
    kinds = {"report": report, "predict": predict, "watch": predict, "fail": fail}
    json.dump(kinds.get(kind, cells)(folder, kind), sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), (sys.argv[2:] or ["padim"])[0])
