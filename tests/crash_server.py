"""Runs the command line again and again in children that die at chosen moments.

    python tests/crash_server.py FOLDER

A child is forked from a process that has imported everything and has one thread, so that a
case costs the run alone. What happens is printed as JSON for tests/running/test_crash.py.

A moment is a call that matters for what is on the disk: the writing of rows of maps, syncing,
renaming, removing, and every report of progress. The child dies at the k-th.
"""

import contextlib
import errno
import io
import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from toys import toy_category, write_category

from tiled_ref import cli
from tiled_ref.running import rows
from tiled_ref.support import progress

OPTIONS = (
    "--setup", "ENS4", "--seed", "1", "2", "--image-size", "32", "--tile-size", "16",
    "--weights", "random", "--device", "cpu", "--batch-size", "2", "--save",
)  # fmt: skip
KILLS = 22  # moments spread over the whole run
INTERRUPTS = 4
FULL_DISKS = (0, 4_000, 100_000)  # bytes: the longest file a child may write
FAILING_CALLS = 6  # moments at which the system says that the disk is full


class Moments:
    """Counts moments in this process; at number `fatal` it calls `act`."""

    def __init__(self, fatal=None, act=None, kinds=None):
        self.seen, self.fatal, self.act, self.kinds = [], fatal, act, kinds

    def __call__(self, kind):
        if self.kinds is None or kind in self.kinds:
            self.seen.append(kind)
            if len(self.seen) - 1 == self.fatal:
                self.act()

    def watch(self, owner, name, kind):
        original = getattr(owner, name)

        def watched(*args, **kwargs):
            self(kind)
            return original(*args, **kwargs)

        setattr(owner, name, watched)

    def install(self):
        self.watch(os, "replace", "rename")
        self.watch(os, "fsync", "sync")
        self.watch(os, "unlink", "remove")
        self.watch(shutil, "rmtree", "remove")
        self.watch(rows, "write_at", "maps")
        self.watch(progress.Stage, "__call__", "progress")


def make_folder(root):
    """A user's folder with a few small images."""
    write_category(root, toy_category(n_train=3, n_good=2, n_bad=2, side=64), train="train")


def child(root, out, *extra, **how):
    """Run OPTIONS and more on a folder in a fork, see `forked`."""
    argv = ["--dataset", "folder", "--root", str(root), "--out", str(out)]
    return forked([*argv, *OPTIONS, *extra], **how)


def forked(argv, moments=None, limit=None):
    """Run the command line in a fork: (status, killed by, stdout and stderr, moments)."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        text = io.StringIO()
        status = 99
        moments = moments or Moments()
        try:
            if limit is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            moments.install()
            with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
                status = cli.main(argv)
        except BaseException as error:  # a traceback is what the user must never see
            text.write(f"TRACEBACK {error!r}")
        finally:
            with os.fdopen(write, "w") as pipe:
                json.dump([text.getvalue(), moments.seen], pipe)
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    _, code = os.waitpid(pid, 0)
    text, seen = json.loads(answer) if answer else ("", [])
    killed = os.WTERMSIG(code) if os.WIFSIGNALED(code) else None
    status = os.WEXITSTATUS(code) if killed is None else None
    return {"status": status, "signal": killed, "text": text, "moments": seen}


def outcome(out):
    """What is on the disk: metrics (without times and what they depend on), names of files."""
    results = {}
    for path in sorted(out.rglob("metrics.json")):
        result = json.loads(path.read_text())
        results[str(path.relative_to(out))] = {
            key: value
            for key, value in result.items()
            if key != "digest"
            and not any(word in key for word in ("seconds", "memory", "reserved", "reused"))
        }
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    return {"results": results, "files": files}


def states(out):
    """The bytes of the saved models."""
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("location_*.npz"))}


def disturbed(root, out, reference, **how):
    """A run that is disturbed, and what --resume makes of it."""
    shutil.rmtree(out, ignore_errors=True)
    first = child(root, out, **how)
    half = [p.name for p in out.rglob("*") if p.name.endswith(".tmp")] if out.exists() else []
    second = child(root, out, "--resume")
    return {
        "first": first,
        "temporary": half,
        "second": {k: second[k] for k in ("status", "signal", "text")},
        "after": outcome(out),
        "same_models": states(out) == reference,
    }


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt():
    raise KeyboardInterrupt  # what Python makes of SIGINT


def no_space():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def spread(n, count):
    return sorted({round(k * (n - 1) / (count - 1)) for k in range(count)})


def main(folder):
    torch.set_num_threads(1)
    root, out = folder / "parts", folder / "out"
    make_folder(root)
    whole = child(root, out)
    report = {"whole": whole, "reference": outcome(out), "cases": []}
    reference = states(out)
    if whole["status"] != 0:
        sys.exit(whole["text"])
    moments = whole["moments"]

    def case(kind, at, **how):
        result = disturbed(root, out, reference, **how)
        report["cases"].append({"kind": kind, "at": at, **result})

    first = {moments.index(kind) for kind in set(moments)}  # every kind of moment is met
    for k in sorted(first.union(spread(len(moments), KILLS))):
        case("kill", [k, moments[k]], moments=Moments(k, kill))
    for k in spread(len(moments), INTERRUPTS):
        case("interrupt", [k, moments[k]], moments=Moments(k, interrupt))
    for limit in FULL_DISKS:
        case("limit", limit, limit=limit)
    kinds = ("rename", "sync", "maps")
    writes = [kind for kind in moments if kind in kinds]
    for k in spread(len(writes), FAILING_CALLS):
        case("no space", [k, writes[k]], moments=Moments(k, no_space, kinds))

    shutil.rmtree(out)  # killed twice, then resumed
    middle = len(moments) // 3
    child(root, out, moments=Moments(middle, kill))
    child(root, out, "--resume", moments=Moments(middle, kill))
    twice = child(root, out, "--resume")
    report["twice"] = {"status": twice["status"], "after": outcome(out)}
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
