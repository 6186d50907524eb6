"""Runs the command line in several ranks, some of which are made to fail or to die.

    python tests/ranks_server.py FOLDER

The ranks are forked from a process that has imported everything and has one thread, with the
environment that torchrun would give them, so that a case costs the run alone. What happens is
printed as JSON for tests/test_distributed.py.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from crash_server import make_folder, outcome, states
from tiled_ref import cli, experiment
from tiled_ref.errors import InputError

OPTIONS = (
    "--setup", "ENS4", "ST4", "--seed", "1", "--image-size", "32", "--tile-size", "16",
    "--weights", "random", "--device", "cpu", "--batch-size", "2", "--save",
)  # fmt: skip
PATIENCE = 150  # seconds for a case, which takes one or two; then it counts as hanging


def launch(root, out, *extra, size=2, acts=None, of_rank=None):
    """Run the command line in `size` ranks; a list of {status, signal, stdout, stderr}, by rank.

    Parameters: root, the images; out; extra arguments; acts, rank -> function that the rank
    calls first; of_rank, rank -> arguments of its own.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(size):
        texts = [os.path.join(out.parent, f"{name}{rank}") for name in ("stdout", "stderr")]
        argv = ["--dataset", "folder", "--root", str(root), "--out", str(out), *OPTIONS, *extra]
        argv += (of_rank or {}).get(rank, [])
        pid = os.fork()
        if pid == 0:
            _child(rank, size, port, argv, texts, (acts or {}).get(rank))
        ranks.append([pid, texts])
    return [_answer(pid, texts) for pid, texts in ranks]


def _child(rank, size, port, argv, texts, act):
    status = 99
    with open(texts[0], "w") as stdout, open(texts[1], "w") as stderr:
        os.dup2(stderr.fileno(), 2)  # what libraries write to it
        try:
            os.environ.update(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size),
                MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
            )  # fmt: skip
            with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
                if act:
                    act()
                status = cli.main(argv)
        except SystemExit as error:
            status = error.code
        except BaseException as error:
            stderr.write(f"TRACEBACK {error!r}\n")
        finally:
            stdout.flush(), stderr.flush()
            os._exit(status)


def _answer(pid, texts):
    until = time.monotonic() + PATIENCE
    while True:
        done, code = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    stdout, stderr = (Path(text).read_text() for text in texts)
    killed = os.WTERMSIG(code) if os.WIFSIGNALED(code) else None
    status = os.WEXITSTATUS(code) if killed is None else None
    return {"status": status, "signal": killed, "stdout": stdout, "stderr": stderr}


def at_location(number, act, marker=None):
    """A function that makes this process call `act` when it starts with its number-th locations.

    A marker, a Path, is made before that: `act` of another rank may wait for it, see `once`.
    """

    def install():
        original, count = experiment.run_locations, [0]

        def run_locations(*args, **kwargs):
            count[0] += 1
            if count[0] == number:
                if marker:
                    marker.touch()
                act()
            return original(*args, **kwargs)

        experiment.run_locations = run_locations

    return install


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def no_memory():
    raise MemoryError("Unable to allocate 9 GiB. And more")


def mistake():
    raise KeyError("mistake")


def bad_input():
    raise InputError("the image x is damaged")


def terminate():  # what torchrun does when the user interrupts it
    os.kill(os.getpid(), signal.SIGTERM)


def once(marker):
    """An act: wait until another rank has made the marker, so that it gets its locations."""

    def wait():
        until = time.monotonic() + PATIENCE
        while not marker.exists() and time.monotonic() < until:
            time.sleep(0.02)

    return wait


def main(folder):
    torch.set_num_threads(1)
    root, out = folder / "parts", folder / "out"
    make_folder(root)
    report, marker = {}, folder / "marker"

    def run(name, *extra, root=root, **how):
        started = time.monotonic()
        ranks = launch(root, out, *extra, **how)
        report[name] = {
            "ranks": ranks,
            "seconds": time.monotonic() - started,
            "partial": sorted(str(p.relative_to(out)) for p in out.rglob("scores_*.npz")),
            "outcome": outcome(out),
            "states": {name: data.hex() for name, data in states(out).items()},
        }

    def clean():
        for path in sorted(out.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        marker.unlink(missing_ok=True)

    run("one", size=1)
    clean()
    run("two")
    run("two again", "--resume")
    for name, act in (("killed", kill), ("no memory", no_memory), ("mistake", mistake)):
        clean()
        run(name, acts={1: at_location(2, act, marker), 0: at_location(2, once(marker))})
    run("resumed by three", "--resume", size=3)
    clean()
    run("bad input", acts={1: at_location(2, bad_input, marker), 0: at_location(2, once(marker))})
    run("bad input resumed", "--resume")
    clean()
    broken = folder / "broken" / "parts"
    make_folder(broken)
    image = next((broken / "test" / "good").glob("*.png"))
    image.write_bytes(image.read_bytes()[:60])
    run("bad image", root=broken)
    clean()
    run(
        "main killed",
        acts={0: at_location(2, kill, marker), 1: at_location(2, once(marker))},
    )
    run("resumed by one", "--resume", size=1)
    clean()
    run("terminated", acts={k: at_location(2, terminate) for k in range(2)})
    clean()
    run("no folder", root=folder / "nowhere")
    run("bad option", "--setup", "ENS5")
    run("other options", of_rank={1: ["--score", "max"]})
    run("other folder", of_rank={1: ["--out", str(folder / "elsewhere")]})
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    from tiled_ref import distributed

    distributed.FOLDER_SECONDS = 0.5
    main(Path(sys.argv[1]))
