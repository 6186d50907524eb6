"""Several processes on one run: torchrun starts them, they share the tile locations.

    torchrun --nproc-per-node 2 run.py --setup ENS9

A location is the unit of work, and the folder of results is all that the processes exchange.
All ranks walk through the same cells in the same order; torch.distributed's key-value store
hands out numbers. The first rank that comes to a cell opens it, every rank takes one location
after the other until none is left, and the rank that completes the last one merges, scores and
writes the result, which is a single process's with as many torch threads. A cell with a wrong
file or option is dropped by all ranks. torchrun watches the processes: when one dies it ends
the others, one of which says so; --resume goes on with any number of processes.
"""

import contextlib
import hashlib
import json
import os
import signal
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from .errors import InputError

JOIN = timedelta(seconds=600)  # for all ranks to start
FOLDER_SECONDS = 30  # for a file to appear on another machine
POLL_SECONDS = 0.05
ENDED = (
    "the run was ended, by torchrun or because another of its processes has died; what was "
    "complete is kept, and the same command with --resume goes on, with any number of processes"
)


class Ended(BaseException):
    """torchrun ends this process; no single cell is to blame."""


def _end(signal_number, frame):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Ended(ENDED)


class Ranks:
    """This process among those of a run, or alone. Attributes: rank, size, is_main, restarted."""

    def __init__(self):
        self.rank = int(os.environ.get("RANK", 0))
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        self.is_main = self.rank == 0
        restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self.restarted = restarts != "0"
        if self.size > 1:
            signal.signal(signal.SIGTERM, _end)
            store, _, _ = next(dist.rendezvous("env://", timeout=JOIN))
            self.store = dist.PrefixStore(f"tiled-ref/{restarts}", store)

    def device(self, device):
        """cuda:LOCAL_RANK if --device says cuda without a number; else as it says."""
        if self.size == 1 or device.type != "cuda" or device.index is not None:
            return device
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())

    def wait(self, *keys):
        """Wait until all keys have a value; a signal interrupts it."""
        while not self.store.check(list(keys)):
            time.sleep(POLL_SECONDS)

    def gather(self, name, text):
        """The texts that all ranks give under a name, in order of the ranks."""
        self.store.set(f"{name}/{self.rank}", text)
        keys = [f"{name}/{k}" for k in range(self.size)]
        self.wait(*keys)
        return [self.store.get(key).decode() for key in keys]

    def main_first(self, function):
        """What function() returns; the other ranks call it when rank 0 is through."""
        if self.size > 1 and not self.is_main:
            self.wait("first")
        value = function()
        if self.size > 1 and self.is_main:
            self.store.set("first", "")
        return value

    def start(self, out, description):
        """Raise InputError unless all ranks have the same description and see the folder out."""
        if self.size == 1:
            return
        digests = self.gather("run", hashlib.sha256(description.encode()).hexdigest())
        other = next((k for k, digest in enumerate(digests) if digest != digests[0]), None)
        if other is not None:
            raise InputError(
                f"rank {other} runs other options, weights or versions than rank 0; start all "
                "with the same command and the same installation"
            )
        marker = out / f".ranks.{digests[0][:16]}"
        if self.is_main:
            marker.touch()
        self.gather("marked", "")
        until = time.monotonic() + FOLDER_SECONDS
        while not marker.exists() and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
        sees = self.gather("sees", str(marker.exists()))
        if self.is_main:
            marker.unlink()
        if "False" in sees:
            raise InputError(
                f"rank {sees.index('False')} does not see the folder {out} that rank 0 writes to; "
                "choose an --out on a file system that all machines share"
            )

    @contextlib.contextmanager
    def one_at_a_time(self, name):
        """A context in which no other rank is at the same time in the one of that name."""
        if self.size == 1:
            yield
            return
        ticket = self.store.add(f"turn/{name}", 1)
        if ticket > 1:
            self.wait(f"turn/{name}/{ticket - 1}")
        try:
            yield
        finally:
            self.store.set(f"turn/{name}/{ticket}", "")

    def tell(self, failure):
        """Let rank 0 know of a cell that failed. Parameters: failure, a list of JSON values."""
        if self.size > 1:
            self.store.set(f"failure/{self.store.add('failures', 1)}", json.dumps(failure))

    def finish(self):
        """Wait in rank 0 for the others; returns what all of them told."""
        if self.size == 1:
            return []
        if not self.is_main:
            self.store.set(f"finished/{self.rank}", "")
            return []
        self.wait(*(f"finished/{k}" for k in range(1, self.size)))
        count = self.store.add("failures", 0)
        return [json.loads(self.store.get(f"failure/{k}")) for k in range(1, count + 1)]

    def fail(self, text):
        """Print why the run ends, on stderr; of several ranks only the first does."""
        with contextlib.suppress(RuntimeError):  # the store has gone: who is left prints
            if self.size > 1 and self.store.add("reporters", 1) > 1:
                return
        print(text, file=sys.stderr, flush=True)


class Share:
    """A rank's share in the cell of a name: opens, whether this rank came first and prepares the
    folder; finishes, whether it completed the last location, so that it merges and scores."""

    def __init__(self, ranks, name):
        self.ranks, self.name = ranks, f"cell/{name}"
        self.alone = ranks.size == 1
        self.opens = self.alone or ranks.store.add(f"{self.name}/came", 1) == 1
        self.finishes = self.alone

    def opened(self, state):
        """Said by the rank that opens: "ready", "finished" (before), or "failed" (InputError)."""
        if not self.alone:
            self.ranks.store.set(f"{self.name}/open", state)

    def is_over(self):
        """Whether there is nothing left to compute; waits until the cell is open."""
        self.ranks.wait(f"{self.name}/open")
        return self.ranks.store.get(f"{self.name}/open") != b"ready"

    def take(self, locations):
        """Yield those of the cell's locations that are done here, each before the next."""
        if self.alone:
            yield from locations
            return
        store = self.ranks.store
        while (k := store.add(f"{self.name}/next", 1) - 1) < len(locations) and not self.is_over():
            yield locations[k]
            self.finishes = store.add(f"{self.name}/done", 1) == len(locations)
