"""Progress on stderr with the time left: a live line on a terminal, else one line per stage.

The time left is for the whole run if its work is known. Work is counted by kind, such as training
PaDiM, in seconds on a reference machine; the actual speed of each kind is measured on the way:

    left = sum over kinds of todo * (seconds + prior * speed) / (done + prior)

with todo and done in reference seconds, seconds measured, prior = PRIOR * (todo + done), a tenth of
that for decoding, whose images are not known in advance, and speed the same quotient of all kinds
together. So a kind that has not begun is estimated from the others, one that has begun from its
own measurements, and all of them initially from the speed of this machine.
"""

import sys
import time

from .errors import one_line
from .streams import Guarded


class Progress:
    """The progress of a run.

    Parameters: quiet, show nothing; stream, a text file, sys.stderr by default.

    Attributes
    ----------
    title : str
        Prefix of every stage name.
    todo : dict
        Kind of work -> its reference seconds still to do in the run. If empty, the time left is
        that of the stage alone.
    seen : dict
        Kind of work -> (seconds, reference seconds) done.
    costs : dict
        Kind of stage -> {part of it: (kind of work, reference seconds)}, for the next stages.
    speed : float
        Estimated seconds per reference second on this machine, before anything is measured.
    """

    REDRAW_SECONDS = 0.1
    PRIOR = 0.1
    APART = "decode"  # its speed does not predict that of other kinds

    def __init__(self, quiet=False, stream=None):
        self.quiet = quiet
        self.stream = Guarded(sys.stderr if stream is None else stream)
        self.live = not quiet and self.stream.isatty()
        self.title = ""
        self.todo, self.seen, self.costs, self.speed = {}, {}, {}, 1.0
        self._drawn = ""

    def note(self, text):
        """Print a separate line, such as the source of the weights."""
        if not self.quiet:
            self._clear()
            print(one_line(text), file=self.stream, flush=True)

    def stage(self, name, kind=None):
        """A new Stage with this name; kind, a key of costs, None for a stage of negligible time."""
        costs = self.costs.get(kind, {})
        return Stage(self, f"{self.title}: {name}" if self.title else name, costs)

    def draw(self, text):
        """Replace the live line."""
        self._clear()
        self._drawn = one_line(text)
        print(self._drawn, end="", file=self.stream, flush=True)

    def count(self, key, seconds, work):
        """Add work done of one kind: seconds measured and work in reference seconds."""
        before = self.seen.get(key, (0.0, 0.0))
        self.seen[key] = before[0] + seconds, before[1] + work
        self.todo[key] = max(0.0, self.todo.get(key, 0.0) - work)

    def left(self):
        """Estimated seconds left in the run; None if its work is unknown or none is done."""
        if not self.todo or not self.seen:
            return None
        kinds = {key: (todo, *self.seen.get(key, (0.0, 0.0))) for key, todo in self.todo.items()}
        others = [kind for key, kind in kinds.items() if key != self.APART]
        speed = self._rate(*map(sum, zip((0.0, 0.0, 0.0), *others)), self.speed, self.PRIOR)
        return sum(
            kind[0] * self._rate(*kind, speed, self.PRIOR * (0.1 if key == self.APART else 1.0))
            for key, kind in kinds.items()
        )

    @staticmethod
    def _rate(todo, seconds, done, speed, prior):
        """Seconds per reference second of a kind; `speed` is the estimate before it begins."""
        prior *= todo + done
        return (seconds + prior * speed) / (done + prior) if done + prior else speed

    def _clear(self):
        if self._drawn:
            self.stream.erase(len(self._drawn))
            self._drawn = ""


class Stage:
    """A part of a run. Parameters: progress and name as of Progress.stage; costs, {part: (kind of
    work, reference seconds)}. Call it as stage(done, total), or as stage(done, total, part) from a
    part with its own count; total is None while unknown. The final line is printed when all parts
    are done."""

    def __init__(self, progress, name, costs):
        self.progress, self.name, self.costs = progress, name, costs
        self.started = self.last = time.monotonic()
        self.redrawn, self.total, self.done = 0.0, None, {}
        self.key = costs.get(None, (None,))[0]

    def __call__(self, done, total, part=None):
        progress, now = self.progress, time.monotonic()
        ended = total is not None and done >= total
        share = done / total if total else float(ended)
        key, work = self.costs.get(part, (None, 0.0))
        self.key = key if done else self.key  # time before a part starts is the previous part's
        if self.key is not None:
            progress.count(self.key, now - self.last, work * (share - self.done.get(part, 0.0)))
        self.last, self.done[part] = now, share
        if progress.quiet:
            return
        self.total = total if part is None or self.total is None else self.total
        name, left = f"{self.name}, {part}" if part else self.name, progress.left()
        if left is None and 0 < share < 1:
            left = (now - self.started) / done * (total - done)
        eta = f", {duration(left)} left" if left and left >= 0.05 else ""
        if ended and all(self.done.get(other, 0.0) >= 1 for other in self.costs):
            if self.costs:
                name, total = self.name, self.total
            progress.note(f"{name}: {total}/{total} in {duration(now - self.started)}{eta}")
        elif progress.live and now - self.redrawn >= progress.REDRAW_SECONDS:
            self.redrawn = now
            progress.draw(f"{name}: {done}{'' if total is None else f'/{total}'}{eta}")


def bytes_text(count):
    """Bytes as GiB or MiB, "-" for None."""
    if count is None:
        return "-"
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def duration(seconds):
    """Format seconds, a number >= 0.

    >>> duration(4.26), duration(75), duration(3700)
    ('4.3 s', '1 min 15 s', '1 h 01 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
