"""Kills a run before every rename and every write in turn, and resumes it.

    python tests/kill_points.py FOLDER [ARCH]

One cell with two tile locations. What happens is printed as JSON for
tests/running/test_kill_points.py. See crash_server.py, whose children these are.
"""

import json
import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import crash_server
import numpy as np
import torch
from crash_server import Moments, kill, make_folder, outcome

from tiled_ref import cli
from tiled_ref.running import rows

crash_server.OPTIONS = (
    "--setup", "ENS4", "--image-size", "32x64", "--tile-size", "32", "--stride", "32",
    "--weights", "random", "--device", "cpu", "--batch-size", "2", "--threads", "1",
)  # fmt: skip
LEFT = ("metrics.json", "analysis.npz", "ensemble/manifest.json")  # of a cell, by one run
OTHER = ("--seam-sigma", "3")


class Points(Moments):
    """Renames (a file is written under another name before), rows of maps."""

    def install(self):
        cli.write_report = lambda out: (out / "report", [])  # what it reads is what matters here
        self.watch(os, "replace", "rename")
        self.watch(rows.RowFile, "commit", "maps")
        self.watch(rows, "write_at", "rows")


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


def main(folder, arch):
    torch.set_num_threads(1)
    root, out, kept = folder / "parts", folder / "out", folder / "kept"
    make_folder(root)
    steps = () if arch == "padim" else ("--steps", "1") if arch != "patchcore" else ()
    options = ("--arch", arch, *steps, "--save", "--report")

    def run(*extra, moments=None):
        return crash_server.child(root, out, *options, *extra, moments=moments or Points())

    first = run()
    if first["status"] != 0:
        sys.exit(first["text"])
    reference = outcome(out)
    report = {"reference": reference, "moments": first["moments"], "fresh": [], "mixed": []}
    shutil.copytree(out, kept)
    for k in range(len(first["moments"])):
        shutil.rmtree(out)
        killed = run(moments=Points(k, kill))
        left = identities(out)
        again = run("--resume")
        report["fresh"].append([k, killed["signal"], left, again["status"], again["text"],
                                outcome(out)])  # fmt: skip
    if arch == "padim":  # a run of other options is killed, and the first is resumed
        kinds = run(*OTHER)["moments"]
        for k in [k for k, kind in enumerate(kinds) if kind == "rename"]:
            shutil.rmtree(out)
            shutil.copytree(kept, out)
            run(*OTHER, moments=Points(k, kill))
            left = identities(out)
            again = run("--resume")
            shutil.rmtree(next(out.rglob("seed*")) / "partial", ignore_errors=True)
            report["mixed"].append([k, left, again["status"], again["text"], outcome(out),
                                    identities(out)])  # fmt: skip
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), (sys.argv[2:] or ["padim"])[0])
