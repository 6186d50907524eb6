"""Several processes, started by torchrun, share the tile locations of a run.

    torchrun --nproc-per-node 2 run.py --setup ENS9

All ranks go through the same cells in the same order; torch.distributed's key-value store hands
out numbers. The first rank at a cell opens it, every rank takes one location after the other, and
the one that completes the last merges, scores and writes. All drop a cell with an invalid file or
option. When one process dies torchrun ends the others; one of them prints ENDED.
"""

import contextlib
import json
import signal
import sys
import time
from pathlib import Path

import torch.distributed as dist

from ..support.errors import InputError
from ..support.files import beside

ENVIRONMENT = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}  # of torchrun
FOLDER_SECONDS = 30  # for a file to appear on another machine
POLL_SECONDS = 0.05
ENDED = (
    "the run was stopped, by torchrun or because another of its processes died; finished work is "
    "kept, and the same command with --resume continues, with any number of processes"
)


class Ended(BaseException):
    """This process must end, for a reason that concerns the whole run."""


class Ranks:
    """This process as one of the `size` of a run; alone without torchrun's environment."""

    def __init__(self, environment=None):
        env = environment if environment and ENVIRONMENT <= environment.keys() else {}
        self.rank, self.size = int(env.get("RANK", 0)), int(env.get("WORLD_SIZE", 1))
        self.is_main, self.local_rank = self.rank == 0, int(env.get("LOCAL_RANK", 0))
        self.store, self.restarts = None, int(env.get("TORCHELASTIC_RESTART_COUNT", 0))
        self.ended = None  # or the exception that a signal raised

    def _end(self, number, frame):
        self.ended = Ended(ENDED) if number == signal.SIGTERM else KeyboardInterrupt()
        raise self.ended  # kept: Python drops it if the signal arrives in a destructor

    @contextlib.contextmanager
    def connected(self):
        """A context in which the ranks share a store; its loss, or SIGTERM, raises Ended."""
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._end)
            store, _, _ = next(dist.rendezvous("env://"))
            self.store = dist.PrefixStore(f"tiled-ref/{self.restarts}", store)
            yield
        except dist.DistError as error:
            raise Ended(ENDED) from error
        finally:  # already ending, so ignore further signals
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def read(self, key):
        """Wait until a rank sets a key and return its text; raises a signal's exception again."""
        while self.ended is None:
            if self.store.check([key]):
                return self.store.get(key).decode()
            time.sleep(POLL_SECONDS)
        raise self.ended

    def gather(self, name, text):
        """Exchange one text per rank under a name; returns all, in order of the ranks."""
        self.store.set(f"{name}/{self.rank}", text)
        return [self.read(f"{name}/{rank}") for rank in range(self.size)]

    def start(self, out, description):
        """Raise InputError unless all ranks have the same description and the same folder out."""
        texts = self.gather("run", description)
        if other := [k for k in range(self.size) if texts[k] != texts[0]]:
            raise InputError(f"rank {other[0]} needs the options, weights and versions of rank 0")
        mark = beside(Path(out, "rank"), "tmp")
        with contextlib.ExitStack() as stack:
            if self.is_main:
                mark.touch()
                stack.callback(mark.unlink, missing_ok=True)
            of_main = Path(out, self.gather("marks", mark.name)[0])
            until = time.monotonic() + FOLDER_SECONDS
            while not of_main.exists() and time.monotonic() < until:
                time.sleep(POLL_SECONDS)
            sees = self.gather("sees", str(of_main.exists()))
        if "False" in sees:
            raise InputError(
                f"the --out of rank {sees.index('False')} is not the folder that rank 0 writes to; "
                "choose one on a file system that all machines share"
            )

    @contextlib.contextmanager
    def one_at_a_time(self, name):
        """A context that only one rank at a time can enter; each name has its own queue."""
        turn = self.store.add(f"turn/{name}", 1) if self.size > 1 else 0
        if turn > 1:
            self.read(f"turn/{name}/{turn - 1}")
        try:
            yield
        finally:
            if turn:
                self.store.set(f"turn/{name}/{turn}", "")

    def finish(self, failures):
        """Wait for all ranks; returns their failures, JSON values, in order of the ranks."""
        found = self.gather("failures", json.dumps(failures))
        if self.is_main:  # it continues alone, can fail, and can host the store
            for rank in range(1, self.size):
                self.read(f"left/{rank}")
        else:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            self.store.set(f"left/{self.rank}", "")
        return [failure for text in found for failure in json.loads(text)]

    def fail(self, text):
        """Print on stderr why the run ends; of ranks that share a store, only the first prints."""
        with contextlib.suppress(RuntimeError):  # the store is gone
            if self.store and self.store.add("reporters", 1) > 1:
                return
        print(text, file=sys.stderr, flush=True)


class Share:
    """A rank's share of the cell with a name, as a context manager. Parameters: ranks, name.
    Attributes: opens, this rank arrived first and prepares the folder; finishes, it completed
    the last location, so it merges and scores."""

    def __init__(self, ranks, name):
        self.ranks, self.name, self._held = ranks, f"cell/{name}", []
        self.opens = ranks.size == 1 or ranks.store.add(f"{self.name}/arrivals", 1) == 1
        self.finishes = ranks.size == 1

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, InputError):  # the other ranks drop the cell too
            self.opened("failed")

    def opened(self, state):
        """Publish "ready", "finished" (by an earlier run) or "failed" (InputError)."""
        if self.ranks.size > 1:
            self.ranks.store.set(f"{self.name}/open", state)

    def is_over(self):
        """Whether there is nothing left to compute; waits until the cell is open."""
        return self.ranks.read(f"{self.name}/open") != "ready"

    def joins(self, count):
        """Whether one of count locations is left for this rank, which did not open the cell.
        It is reserved for `take`, so the cell cannot be finished and removed before."""
        self._held = [self._next()]
        return self._held[0] < count

    def take(self, locations):
        """Yield the cell's locations for this rank; each is done before the next is taken."""
        if self.ranks.size == 1:
            yield from locations
            return
        while (k := self._next()) < len(locations) and not self.is_over():
            yield locations[k]
            done = self.ranks.store.add(f"{self.name}/done", 1)
            self.finishes = done == len(locations)

    def _next(self):
        """The index of the next location, which no other rank gets."""
        return self._held.pop() if self._held else self.ranks.store.add(f"{self.name}/next", 1) - 1
