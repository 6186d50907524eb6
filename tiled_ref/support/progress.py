"""Progress on stderr: on a terminal a live line with the time left, else a line a stage."""

import sys
import time

from .errors import one_line
from .streams import Guarded


class Progress:
    """Shows how far a run has come.

    Parameters: quiet, show nothing; stream, a text file, sys.stderr by default.

    Attributes
    ----------
    title : str
        Stands before the name of every stage.
    work, done : float
        The work of the whole run and what is done of it, in any unit: the time left is
        elapsed / done * (work - done). Without work it is that of the stage alone.
    """

    REDRAW_SECONDS = 0.1

    def __init__(self, quiet=False, stream=None):
        self.quiet = quiet
        self.stream = Guarded(sys.stderr if stream is None else stream)
        self.live = not quiet and self.stream.isatty()
        self.title = ""
        self.work = self.done = 0.0
        self.began = time.monotonic()
        self._drawn = ""

    def note(self, text):
        """Print a line of its own, such as where weights came from."""
        if not self.quiet:
            self._clear()
            print(one_line(text), file=self.stream, flush=True)

    def stage(self, name, work=0.0):
        """A Stage of this name, which is so much of the run's work."""
        return Stage(self, f"{self.title}: {name}" if self.title else name, work)

    def draw(self, text):
        """Replace the live line."""
        self._clear()
        self._drawn = one_line(text)
        print(self._drawn, end="", file=self.stream, flush=True)

    def left(self):
        """Seconds that the run will still take; None where nothing is done yet."""
        elapsed = time.monotonic() - self.began
        return elapsed / self.done * max(0.0, self.work - self.done) if self.done else None

    def _clear(self):
        if self._drawn:
            self.stream.erase(len(self._drawn))
            self._drawn = ""


class Stage:
    """A part of a run. Parameters: progress, name and work as of Progress.stage. It is called as
    stage(done, total), by a part that counts something else as stage(done, total, part)."""

    def __init__(self, progress, name, work):
        self.progress, self.name, self.work = progress, name, work
        self.started = time.monotonic()
        self.redrawn = 0.0
        self.before = progress.done

    def __call__(self, done, total, part=None):
        progress = self.progress
        name = f"{self.name}, {part}" if part else self.name
        if part is None and total:
            progress.done = self.before + self.work * done / total
        if progress.quiet:
            return
        now = time.monotonic()
        if done >= total:
            progress.note(f"{name}: {total}/{total} in {duration(now - self.started)}")
        elif progress.live and now - self.redrawn >= progress.REDRAW_SECONDS:
            self.redrawn = now
            left = progress.left()
            if not progress.work and done:
                left = (now - self.started) / done * (total - done)
            eta = f", {duration(left)} left" if left is not None else ""
            progress.draw(f"{name}: {done}/{total}{eta}")


def bytes_text(count):
    """Bytes as GiB or MiB, "-" for None."""
    if count is None:
        return "-"
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def duration(seconds):
    """Text for seconds, a number >= 0.

    >>> duration(4.26), duration(75), duration(3700)
    ('4.3 s', '1 min 15 s', '1 h 01 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
