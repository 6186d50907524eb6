"""Runs the command line in several ranks, some of which are made to fail or to die.

    python tests/ranks_server.py FOLDER

The server does what torchrun does: it keeps the key-value store of the ranks, and when one of
them ends with a status that is not 0, or by a signal, it sends SIGTERM to the others. The ranks
are forked from it, so that a case costs the run alone. What happens is written to
FOLDER/report.json for tests/running/test_processes.py, which also starts this file as a worker of the
real torchrun, where rank 1 is killed at its second location:

    torchrun ... tests/ranks_server.py --kill MARKER ARGUMENTS OF THE COMMAND LINE
"""

import contextlib
import hashlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
import torch.distributed as dist
from crash_server import make_folder, outcome, states
from PIL import Image

from tiled_ref import cli
from tiled_ref.running import processes
from tiled_ref.running.pieces import Pieces
from tiled_ref.support.errors import InputError

OPTIONS = (
    "--setup", "ENS4", "ST4", "--seed", "1", "--image-size", "32", "--tile-size", "16",
    "--weights", "random", "--device", "cpu", "--batch-size", "2", "--save",
)  # fmt: skip
PATIENCE = 150  # seconds for a case, which takes one or two; then it counts as hanging


def environment(rank=0, size=2, **more):
    """torchrun's variables of a rank, as text."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "localhost",
             "MASTER_PORT": 1, **more}  # fmt: skip
    return {name: str(value) for name, value in names.items()}


def together(size=2):
    """Ranks of one process, whose store is in memory."""
    store, ranks = dist.HashStore(), []
    for rank in range(size):
        ranks.append(processes.Ranks(environment(rank, size)))
        ranks[-1].store = store
    return ranks


def launch(root, out, *extra, size=2, acts=None, of_rank=None, serves=True, event=None, restarts=0):
    """Run the command line in `size` ranks; a list of {status, signal, stdout, stderr}, by rank.

    Parameters: root, the images; out; extra arguments; acts, rank -> function that the rank
    calls first; of_rank, rank -> arguments of its own; serves, whether the server keeps the
    store and watches the ranks, which otherwise are on their own; event, (marker, function):
    what happens when a rank has made the marker, a function of the store and the pids;
    restarts, how often torchrun --max-restarts has started the ranks again.
    """
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    if serves:
        listening.listen(64)
    else:
        listening.close()
    ranks = {}
    for rank in range(size):
        texts = [out.parent / f"{name}{rank}" for name in ("stdout", "stderr")]
        argv = ["--dataset", "folder", "--root", str(root), "--out", str(out), *OPTIONS, *extra]
        argv += (of_rank or {}).get(rank, [])
        environment = {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": str(serves),
            "TORCHELASTIC_RESTART_COUNT": str(restarts),
        }  # fmt: skip
        pid = os.fork()
        if pid == 0:
            listening.close()
            _child(environment, argv, texts, (acts or {}).get(rank))
        ranks[pid] = texts
    store = []
    if serves:
        descriptor = listening.detach()
        store.append(dist.TCPStore(
            "127.0.0.1", port, is_master=True, wait_for_workers=False,
            master_listen_fd=descriptor,
        ))  # fmt: skip
    codes = _watch(list(ranks), serves, event, store)
    return [_answer(codes[pid], texts) for pid, texts in ranks.items()]


def _child(environment, argv, texts, act):
    """One rank; never returns."""
    status = 99
    with open(texts[0], "w") as stdout, open(texts[1], "w") as stderr:
        os.dup2(stderr.fileno(), 2)  # what libraries write to it
        try:
            os.environ.update(environment)
            if environment["WORLD_SIZE"] != "1":
                _end_twice()
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


def _end_twice():
    """torchrun's signals may also come when a rank is on its way out; it must not mind."""
    fail, main = processes.Ranks.fail, cli.main

    def disturb():
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)

    def disturbed_fail(ranks, text):
        disturb()
        fail(ranks, text)

    def disturbed_main(argv):
        status = main(argv)
        disturb()
        return status

    processes.Ranks.fail, cli.main = disturbed_fail, disturbed_main


def _watch(pids, serves, event, store):
    """Wait for all ranks as torchrun does; returns pid -> code, as of os.waitpid."""
    codes, until, ending = {}, time.monotonic() + PATIENCE, False
    while len(codes) < len(pids):
        left = [pid for pid in pids if pid not in codes]
        for pid in left:
            done, code = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = code
                if serves and code and not ending:
                    ending = True
                    _send(signal.SIGTERM, [other for other in pids if other not in codes])
        if event and event[0].exists():
            event[1](store, left)
            event = None
            ending = True  # torchrun, interrupted, only waits; one that has died does nothing
        if time.monotonic() > until:
            _send(signal.SIGKILL, [pid for pid in pids if pid not in codes])
        time.sleep(0.01)
    return codes


def _send(number, pids):
    for pid in pids:
        os.kill(pid, number)


def _answer(code, texts):
    stdout, stderr = (text.read_text() for text in texts)
    killed = os.WTERMSIG(code) if os.WIFSIGNALED(code) else None
    status = os.WEXITSTATUS(code) if killed is None else None
    return {"status": status, "signal": killed, "stdout": stdout, "stderr": stderr}


def at_location(number, act, marker=None):
    """A function that makes this process call `act` when it starts with its number-th location.

    A marker, a Path, is made before that: `act` of another rank may wait for it, see `once`.
    """

    def install():
        original, count = Pieces.missing, [0]

        def missing(pieces, locations):
            for location in original(pieces, locations):
                count[0] += 1
                if count[0] == number:
                    if marker:
                        marker.touch()
                    act()
                yield location

        Pieces.missing = missing

    return install


def once(marker):
    """An act: wait until another rank, or the server, has made the marker."""

    def wait():
        until = time.monotonic() + PATIENCE
        while not marker.exists() and time.monotonic() < until:
            time.sleep(0.01)

    return wait


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def no_memory():
    raise MemoryError("Unable to allocate 9 GiB. And more")


def mistake():
    raise KeyError("mistake")


def bad_input():
    raise InputError("the image x is damaged")


def last_to_leave(marker, act):
    """A function that makes this process wait for the marker at its end, and then call `act`."""

    def install():
        original = processes.Ranks.finish

        def finish(ranks, failures):
            once(marker)()
            act()
            return original(ranks, failures)

        processes.Ranks.finish = finish

    return install


def marks_its_end(marker):
    """A function that makes this process make the marker when it has nothing left to do."""

    def install():
        original = processes.Ranks.finish

        def finish(ranks, failures):
            marker.touch()
            return original(ranks, failures)

        processes.Ranks.finish = finish

    return install


def main(folder):
    torch.set_num_threads(1)
    root, out = folder / "parts", folder / "out"
    make_folder(root)
    mask = root / "ground_truth/square/002_mask.png"
    pixels = np.array(Image.open(mask))
    pixels[1, 1] = 255  # at 32 px every other pixel is sampled
    Image.fromarray(pixels).save(mask)
    report, marker, second = {}, folder / "marker", folder / "second"

    def run(name, *extra, root=root, **how):
        started = time.monotonic()
        ranks = launch(root, out, *extra, **how)
        report[name] = {
            "ranks": ranks,
            "seconds": time.monotonic() - started,
            "partial": sorted(str(p.relative_to(out)) for p in out.rglob("scores_*.npz")),
            "outcome": outcome(out),
            "states": {k: hashlib.sha256(v).hexdigest() for k, v in states(out).items()},
        }

    def clean():
        for path in sorted(out.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        marker.unlink(missing_ok=True), second.unlink(missing_ok=True)

    def in_rank_1(act):
        """Rank 1 acts at its second location; rank 0 leaves it one."""
        return {1: at_location(2, act, marker), 0: at_location(2, once(marker))}

    both = {0: at_location(1, once(second), marker), 1: at_location(1, once(marker), second)}
    run("one", size=1)
    clean()
    run("two", acts=both)
    run("two again", "--resume")
    clean()
    run("two on their own", serves=False)
    for name, act in (("killed", kill), ("no memory", no_memory), ("mistake", mistake)):
        clean()
        run(name, acts=in_rank_1(act))
    run("resumed by three", "--resume", size=3)
    clean()
    run("bad input", acts=in_rank_1(bad_input))
    run("bad input resumed", "--resume")
    clean()
    run("bad input of the only cell", "--setup", "ENS4", acts=in_rank_1(bad_input))
    clean()
    broken = folder / "broken" / "parts"
    make_folder(broken)
    image = next((broken / "test" / "good").glob("*.png"))
    image.write_bytes(image.read_bytes()[:60])
    run("bad image", root=broken)
    clean()
    main_dies = {0: at_location(2, kill, marker), 1: at_location(2, once(marker))}
    run("main killed", acts=main_dies)
    run("resumed by one", "--resume", size=1)
    clean()
    run("killed at the end", acts={1: last_to_leave(marker, kill), 0: marks_its_end(marker)})
    run("restarted by torchrun", restarts=1)
    clean()
    pause = once(folder / "never")
    interrupt = (marker, lambda store, pids: _send(signal.SIGINT, pids))
    pauses = {0: at_location(2, pause, marker), 1: at_location(2, once(marker))}
    run("interrupted", acts=pauses, event=interrupt)
    clean()
    lose = (marker, lambda store, pids: (store.clear(), second.touch()))
    lost = {0: at_location(2, once(second), marker), 1: at_location(1, once(second))}
    run("lost store", acts=lost, event=lose)
    clean()
    run("lost host", acts=main_dies, serves=False)
    clean()
    run("no folder", root=folder / "nowhere")
    run("bad option", "--setup", "ENS5")
    run("resident", "--memory", "resident")
    run("other options", of_rank={1: ["--score", "max"]})
    run("other folder", of_rank={1: ["--out", str(folder / "elsewhere")]})
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    if sys.argv[1] == "--kill":
        mark, rank = Path(sys.argv[2]), os.environ["RANK"]
        at_location(2, kill if rank == "1" else once(mark), mark if rank == "1" else None)()
        sys.exit(cli.main(sys.argv[3:]))
    processes.FOLDER_SECONDS = 0.5
    main(Path(sys.argv[1]))
