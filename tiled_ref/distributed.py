"""Several processes on one run: torchrun starts them, they share the tile locations.

    torchrun --nproc-per-node 2 run.py --setup ENS9
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29400 run.py ...

Models of different locations have nothing to do with each other, so a location is the unit of
work and the folder of results is all that the processes exchange: each writes the pieces of
its locations there (store.CellStore) as a single process does. On several machines --out must
therefore lie on a file system that all of them see; that is checked at the start.

Who does what is decided by counters in the key-value store of torch.distributed that torchrun
sets up. All ranks walk through the cells (category, architecture, setup, seed) in the same
order. The first that comes to a cell opens it, then every rank takes one location after the
other until none is left and goes on to the next cell; who completes the last location of a
cell merges, scores and writes its results. So cells are shared as well, and nobody waits for a
slower one before the end. What is computed does not depend on who computes it: the metrics are
bit for bit those of one process with as many threads.

The process group (NCCL where each rank has a CUDA device of its own, else gloo) serves to
compare at the start what the ranks are about to run.

A cell that cannot be computed, because of a file or an option, is dropped by all ranks, told to
rank 0 and reported by it at the end; the other cells go on. A rank that fails otherwise says so
in the key-value store; a rank that dies is missed: by its process number on the same machine,
elsewhere by its heartbeat. One rank reports it, rank 0 if it can, and all stop. What is complete
stays, and --resume goes on with any number of processes.
"""

import contextlib
import hashlib
import json
import os
import signal
import socket
import sys
import threading
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from .errors import InputError

ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
JOIN_SECONDS = 600  # for all ranks to start
BEAT_SECONDS = 2  # between heartbeats
SILENCE_SECONDS = 60  # without a heartbeat a rank on another machine counts as dead
REPORT_SECONDS = 10  # rank 0 has to report an error of another rank, who then does it itself
FOLDER_SECONDS = 30  # for a file to appear on another machine
POLL_SECONDS = 0.05


class RankError(BaseException):
    """Another rank failed or died. The message is one sentence that says which and why.

    As KeyboardInterrupt it ends the run, and is no Exception that a single cell may raise.
    """


def find_ranks():
    """Ranks if torchrun (or alike) started several processes, else Alone."""
    if all(name in os.environ for name in ENVIRONMENT) and int(os.environ["WORLD_SIZE"]) > 1:
        return Ranks()
    return Alone()


class Alone:
    """A run in one process: does all the work and has nobody to ask."""

    rank, size = 0, 1
    is_main = True
    restarted = False

    @contextlib.contextmanager
    def main_speaks(self):
        """What is printed inside is printed by rank 0 alone, even if it exits."""
        yield

    def device(self, device):
        """The device of this process, from what --device says."""
        return device

    def main_first(self, function):
        """What function() returns; rank 0 calls it before the others do."""
        return function()

    def start(self, device, out, description, say):
        """Make sure that all ranks are there and about to do the same."""

    def cell(self, name, identity):
        """The share in a cell."""
        return WholeCell()

    def one_at_a_time(self, name):
        """A context in which no other rank is at the same time in the one of that name."""
        return contextlib.nullcontext()

    def tell(self, failure):
        """Let rank 0 know of a cell that failed."""

    def told(self):
        """What every rank told, in the order in which they did; asked after `finish`."""
        return []

    def fail(self, sentence, lead="tiled-ref: error: ", about_other=False):
        """Print why the run ends."""
        print(f"{lead}{sentence}", file=sys.stderr)

    def interrupted(self, sentence):
        """Print that the run was interrupted."""
        self.fail(sentence, "tiled-ref: ")

    def finish(self):
        """Wait for the others; everything has been computed when this returns in rank 0."""

    def close(self):
        """Leave."""


class WholeCell:
    """The cell of a run in one process: all of its locations."""

    opens = finishes = True
    is_finished = False

    def opened(self, finished=False):
        """The cell's folder is ready, or there is nothing left to compute."""

    @contextlib.contextmanager
    def shared_fate(self):
        """A context whose InputError lets the other ranks drop the cell as well."""
        yield

    def take(self, groups, peak):
        """Yield the groups of locations to be done here, each done when the next is asked for."""
        yield from groups

    def watch(self, show):
        """A progress callback that also notices what happens to the others."""
        return show

    def peak(self, peak):
        """PeakMemory.read of the process that needed most."""
        return peak.read()


class Ranks:
    """This process among those of a run. Attributes: rank, size, is_main, restarted."""

    def __init__(self):
        self.rank = int(os.environ["RANK"])
        self.size = int(os.environ["WORLD_SIZE"])
        self.is_main = self.rank == 0
        restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self.restarted = restarts != "0"
        self._local_rank = int(os.environ["LOCAL_RANK"])
        self._local_size = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        self._own_device = False
        self._checked = time.monotonic()
        self._beats = {}  # rank -> (last heartbeat, when it came)
        signal.signal(signal.SIGTERM, _terminate)
        timeout = timedelta(seconds=JOIN_SECONDS)
        store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
        store = dist.PrefixStore(f"tiled-ref/{restarts}", store)
        store.set_timeout(timeout)
        self._store = _Store(store)
        place = [_machine(), os.getpid(), socket.gethostname()]
        self._store.set(f"place/{self.rank}", json.dumps(place))
        self._store.wait(*(f"place/{k}" for k in range(self.size)))
        self._places = [json.loads(self._store.get(f"place/{k}")) for k in range(self.size)]
        self._left = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()

    # ------------------------------------------------------------------ the start of a run

    @contextlib.contextmanager
    def main_speaks(self):
        """What is printed inside is printed by rank 0 alone, even if it exits."""
        with contextlib.ExitStack() as stack:
            if not self.is_main:
                nowhere = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(contextlib.redirect_stdout(nowhere))
                stack.enter_context(contextlib.redirect_stderr(nowhere))
            try:
                yield
            except SystemExit:
                if self.is_main:
                    self._store.set("reported", "")
                else:
                    self._wait(lambda: self._store.has("reported"), False, REPORT_SECONDS)
                self._leave(REPORT_SECONDS)
                raise

    def device(self, device):
        """cuda:LOCAL_RANK if --device says cuda without a number; else as it says."""
        if device.type != "cuda" or device.index is not None:
            return device
        count = torch.cuda.device_count()
        self._own_device = self._local_size <= count
        return torch.device("cuda", self._local_rank % count)

    def main_first(self, function):
        """What function() returns; the other ranks call it when rank 0 is through."""
        if not self.is_main:
            self._wait(lambda: self._store.has("first"))
        value = function()
        if self.is_main:
            self._store.set("first", "")
        return value

    def start(self, device, out, description, say):
        """Make sure that all ranks are there, see the same folder and run the same.

        Parameters: device; out, Path of the results, locked by rank 0; description, a text
        that is equal in all ranks that compute the same; say(text) tells the user.
        Raises InputError where a rank differs or does not see out.
        """
        nccl = self._own_device and dist.is_nccl_available()
        wanted = self._gather("ready", "nccl" if nccl else "gloo")
        backend = "gloo" if "gloo" in wanted else "nccl"
        if len({machine for machine, _, _ in self._places}) == 1 and sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # host names need not resolve
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("group", self._store.store),
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=SILENCE_SECONDS),
        )
        self._compare(description, device if backend == "nccl" else torch.device("cpu"))
        self._check_folder(out)
        say(
            f"{self.size} processes ({backend}) share the tile locations, with "
            f"{torch.get_num_threads()} torch threads each; only the progress of rank 0 is shown"
        )

    def _compare(self, description, device):
        digest = hashlib.sha256(description.encode()).digest()
        mine = torch.frombuffer(bytearray(digest), dtype=torch.int64).to(device)
        all_of_them = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(all_of_them, mine)
        for k, other in enumerate(all_of_them):
            if not torch.equal(other, all_of_them[0]):
                raise InputError(
                    f"{self._name(k)} runs other options, weights or versions than rank 0; "
                    "start all with the same command and the same installation"
                )

    def _check_folder(self, out):
        """Every rank looks for a file that rank 0 made in the folder of results."""
        marker = out / ".ranks.tmp"  # a killed run's is removed with other temporary files
        try:
            if self.is_main:
                marker.write_text(self._token(), "utf-8")
            self._gather("marked", "")
            sees = self.is_main
            until = time.monotonic() + FOLDER_SECONDS
            while not sees and time.monotonic() < until:
                with contextlib.suppress(OSError):
                    sees = marker.read_text("utf-8") == self._token()
                if not sees:
                    time.sleep(POLL_SECONDS)
            answers = self._gather("sees", "yes" if sees else "no")
        finally:
            if self.is_main:
                marker.unlink(missing_ok=True)
        for k, answer in enumerate(answers):
            if answer == "no":
                raise InputError(
                    f"{self._name(k)} does not see the folder {out} that rank 0 writes to; "
                    "choose an --out on a file system that all machines share"
                )

    def _token(self):
        return json.dumps(self._places)

    # ------------------------------------------------------------------- the work of a run

    def cell(self, name, identity):
        """This rank's share in the cell of that name; identity, JSON values that decide results.

        Raises InputError where the ranks' identities differ, on `is_finished`.
        """
        return SharedCell(self, name, identity)

    @contextlib.contextmanager
    def one_at_a_time(self, name):
        """A context in which no other rank is at the same time in the one of that name.

        Ranks are served in the order in which they come; raises RankError if one fails meanwhile.
        """
        ticket = self._store.add(f"turn/{name}/tickets", 1) - 1
        before = f"turn/{name}/done/{ticket - 1}"
        self._wait(lambda: ticket == 0 or self._store.has(before))
        try:
            yield
        finally:
            self._store.set(f"turn/{name}/done/{ticket}", "")

    def tell(self, failure):
        """Let rank 0 know of a cell that failed. Parameters: failure, a list of JSON values."""
        number = self._store.add("failures", 1)
        self._store.set(f"failure/{number}", json.dumps(failure))

    def told(self):
        """What every rank told, in the order in which they did; asked after `finish`."""
        count = self._store.add("failures", 0)
        return [json.loads(self._store.get(f"failure/{k}")) for k in range(1, count + 1)]

    def check(self):
        """Raise RankError if another rank has failed or died; looks once a second."""
        if time.monotonic() - self._checked >= 1:
            self._checked = time.monotonic()
            trouble = self._trouble()
            if trouble:
                raise RankError(trouble)

    def finish(self):
        """Wait until every rank has done its share; raises RankError if one does not."""
        self._gather("finished", "")

    def close(self):
        """Leave; rank 0 last, because the key-value store may be its own."""
        if dist.is_initialized():
            dist.destroy_process_group()
        self._leave(SILENCE_SECONDS)

    def _leave(self, seconds):
        """Say good-bye; rank 0 waits so long for the others, unless torchrun keeps the store."""
        self._left.set()
        self._heart.join()
        self._store.set(f"left/{self.rank}", "")
        if self.is_main and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            others = range(1, self.size)
            self._wait(
                lambda: all(self._store.has(f"left/{k}") or self._is_dead(k) for k in others),
                check=False, seconds=seconds,
            )  # fmt: skip

    # -------------------------------------------------------------------- when things go wrong

    def fail(self, sentence, lead="tiled-ref: error: ", about_other=False):
        """Say why the run ends: one rank prints one sentence, rank 0 if it can.

        The others return when that has happened, and not before, because torchrun ends all
        processes when the first one ends.

        Parameters: sentence; lead, what is printed before it; about_other, whether another
        rank's failure is the reason.
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            if not about_other:
                self._store.set(f"error/{self.rank}", sentence)
            if not self.is_main and not self._is_dead(0):
                self._wait(lambda: self._store.has("reported"), False, REPORT_SECONDS)
            if self._store.add("reporters", 1) == 1:
                if not self.is_main and not about_other:
                    sentence = f"{self._name(self.rank)}: {sentence}"
                print(f"{lead}{sentence}", file=sys.stderr, flush=True)
                self._store.set("reported", "")
            self._leave(REPORT_SECONDS)
        except RankError:  # the key-value store has gone with the process that served it
            before = self._places[: self.rank]
            if not any(m == _machine() and _is_running(process) for m, process, _ in before):
                print(f"{lead}{self._name(self.rank)}: {sentence}", file=sys.stderr, flush=True)

    def interrupted(self, sentence):
        """As fail, when a signal ends the run: because of another rank's end, or a user's wish."""
        trouble = self._trouble()
        if trouble:
            self.fail(trouble, about_other=True)
        else:
            self.fail(sentence, "tiled-ref: ", about_other=not self.is_main)

    def _trouble(self):
        """A sentence about another rank that failed or died; "" if none did."""
        for k in range(self.size):
            if k != self.rank and self._store.has(f"error/{k}"):
                return f"{self._name(k)}: {self._store.get(f'error/{k}')}"
        for k in range(self.size):
            if k != self.rank and self._is_dead(k):
                return (
                    f"{self._name(k)} has died without a word (process {self._places[k][1]}; "
                    "killed, or out of memory?); what was complete is kept, and the same command "
                    "with --resume goes on, with any number of processes"
                )
        return ""

    def _is_dead(self, rank):
        machine, process, _ = self._places[rank]
        if machine == _machine():
            return not _is_running(process) and not self._store.has(f"left/{rank}")
        now = time.monotonic()
        beat = self._store.get(f"beat/{rank}") if self._store.has(f"beat/{rank}") else ""
        last, when = self._beats.get(rank, (None, now))
        if beat != last:
            self._beats[rank] = beat, now
            return False
        return now - when > SILENCE_SECONDS and not self._store.has(f"left/{rank}")

    def _beat(self):
        """Tell the ranks on other machines, again and again, that this one is alive."""
        count = 0
        while not self._left.wait(BEAT_SECONDS):
            count += 1
            try:
                self._store.set(f"beat/{self.rank}", str(count))
            except RankError:  # the main thread meets the same and reports it
                return

    # ------------------------------------------------------------------------------ helpers

    def _name(self, rank):
        hosts = {host for _, _, host in self._places}
        return f"rank {rank}" + (f" on {self._places[rank][2]}" if len(hosts) > 1 else "")

    def _gather(self, name, value):
        """Give a value under this name and wait for the others'; a list in order of the ranks."""
        self._store.set(f"{name}/{self.rank}", value)
        keys = [f"{name}/{k}" for k in range(self.size)]
        self._wait(lambda: self._store.has(*keys))
        return [self._store.get(key) for key in keys]

    def _wait(self, condition, check=True, seconds=float("inf")):
        """Wait until condition() is true, at most for some seconds; returns whether it is.

        With check, RankError is raised if another rank fails meanwhile.
        """
        until = time.monotonic() + seconds
        while not condition():
            if check:
                self.check()
            if time.monotonic() > until:
                return False
            time.sleep(POLL_SECONDS)
        return True


class _Store:
    """The key-value store of torch.distributed, with text for values and RankError for errors.

    Parameters: store, a torch.distributed.Store.
    """

    def __init__(self, store):
        self.store = store

    def has(self, *keys):
        """Whether all keys have a value."""
        return self._try(self.store.check, list(keys))

    def get(self, key):
        """The value of a key, which has one."""
        return self._try(self.store.get, key).decode()

    def set(self, key, value):
        """Give a key its value."""
        self._try(self.store.set, key, value)

    def add(self, key, number):
        """Add to the number of a key, 0 at first, in one step; returns the sum."""
        return self._try(self.store.add, key, number)

    def wait(self, *keys):
        """Wait until all keys have a value, as long as the store's timeout allows."""
        self._try(self.store.wait, list(keys))

    @staticmethod
    def _try(function, *args):
        try:
            return function(*args)
        except RuntimeError as error:
            raise RankError(
                "lost the connection to the other processes, because the one that kept it has "
                f"ended (torchrun, or rank 0): {str(error).splitlines()[0]}; what was complete is "
                "kept, and the same command with --resume goes on, with any number of processes"
            ) from error


class SharedCell:
    """One rank's share in a cell, see the module. As WholeCell.

    Parameters: ranks, the processes; name of the cell, the same in all; identity, what it
    computes, a dict that must be the same in all.
    Raises InputError from is_finished where the identities differ.
    Attributes: opens, whether this rank came first and prepares the folder; finishes, whether
    it completed the last location, so that it merges and scores.
    """

    def __init__(self, ranks, name, identity):
        self._ranks = ranks
        self._identity = json.loads(json.dumps(identity))
        self._store = _Store(dist.PrefixStore(f"cell/{name}", ranks._store.store))
        self.opens = self._store.add("came", 1) == 1
        self.finishes = False

    def opened(self, finished=False):
        """The cell's folder is ready, or there is nothing left to compute."""
        if self.opens:
            self._store.set("open", json.dumps([finished, self._identity]))

    @contextlib.contextmanager
    def shared_fate(self):
        """A context whose InputError lets the other ranks drop the cell as well."""
        try:
            yield
        except InputError:
            self._store.set("failed", "")
            raise

    @property
    def is_finished(self):
        """Whether there is nothing left to compute; waits for the rank that opens the cell."""
        self._ranks._wait(lambda: self._store.has("open") or self._store.has("failed"))
        if self._store.has("failed"):
            return True
        finished, theirs = json.loads(self._store.get("open"))
        differ = [key for key, value in self._identity.items() if theirs.get(key) != value]
        if differ:
            raise InputError(
                f"this process would compute something else than the others ({', '.join(differ)} "
                "differ); start all with the same images, weights and options"
            )
        return finished

    def take(self, groups, peak):
        """Yield the groups of locations to be done here, each done when the next is asked for.

        Parameters: groups, lists of locations, those of the rank that opened the cell count,
        divided further if they were too few for all ranks to have one; peak, the PeakMemory of
        this process.
        """
        if self.opens:
            self._store.set("groups", json.dumps(_divided(groups, self._ranks.size)))
        self._ranks._wait(lambda: self._store.has("groups") or self._store.has("failed"))
        groups = [] if self._store.has("failed") else json.loads(self._store.get("groups"))
        while (k := self._store.add("next", 1) - 1) < len(groups):
            if self._store.has("failed"):
                return
            yield [tuple(location) for location in groups[k]]
            self._store.set(f"peak/{self._ranks.rank}", json.dumps(peak.read()))
            self.finishes = self._store.add("done", 1) == len(groups)

    def watch(self, show):
        """A progress callback that also notices what happens to the others."""

        def watched(*args):
            self._ranks.check()
            show(*args)

        return watched

    def peak(self, peak):
        """PeakMemory.read of the process that needed most."""
        keys = [f"peak/{k}" for k in range(self._ranks.size)]
        others = [json.loads(self._store.get(key)) for key in keys if self._store.has(key)]
        return max([peak.read(), *others], key=lambda read: read["peak_memory_bytes"])


def _divided(groups, size):
    """The same locations in the same order, no group larger than a fair share of `size` ranks."""
    groups = [list(group) for group in groups]
    share = max(1, -(-sum(map(len, groups)) // size))
    return [group[k : k + share] for group in groups for k in range(0, len(group), share)]


def _terminate(signal_number, frame):
    """torchrun ends a process, because another has ended or because the user wants it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _machine():
    """What processes have in common that can see one another."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return socket.gethostname()


def _is_running(process):
    """Whether a process of this machine lives; where that cannot be asked, True."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:  # no /proc, or gone this moment
        return True
