"""Progress on stderr: a live line with counts and an ETA on a terminal, else a line a stage."""

import sys
import time


class Progress:
    """Shows how far each stage of a run has come.

    Parameters
    ----------
    quiet : bool
        Show nothing at all.
    stream : text file, optional
        sys.stderr by default. Live updates if it is a terminal; one plain line when a stage
        ends otherwise, so that a log stays readable.
    """

    REDRAW_SECONDS = 0.1

    def __init__(self, quiet=False, stream=None):
        self.quiet = quiet
        self.stream = sys.stderr if stream is None else stream
        self.live = not quiet and self.stream.isatty()
        self._drawn = ""

    def note(self, text):
        """A line of its own: a fact the user should know, such as where weights came from."""
        if not self.quiet:
            self._clear()
            print(text, file=self.stream, flush=True)

    def stage(self, name):
        """A callable (done, total) to be called as the stage named so goes on."""
        return _Stage(self, name)

    def draw(self, text):
        """Replace the live line."""
        self._clear()
        self.stream.write(text)
        self.stream.flush()
        self._drawn = text

    def _clear(self):
        if self._drawn:
            self.stream.write("\r" + " " * len(self._drawn) + "\r")
            self._drawn = ""


class _Stage:
    def __init__(self, progress, name):
        self.progress = progress
        self.name = name
        self.started = time.monotonic()
        self.redrawn = 0.0

    def __call__(self, done, total):
        progress = self.progress
        if progress.quiet:
            return
        now = time.monotonic()
        seconds = now - self.started
        if done >= total:
            progress.note(f"{self.name}: {total}/{total} in {duration(seconds)}")
        elif progress.live and now - self.redrawn >= progress.REDRAW_SECONDS:
            self.redrawn = now
            eta = f", {duration(seconds / done * (total - done))} left" if done else ""
            progress.draw(f"{self.name}: {done}/{total}{eta}")


def duration(seconds):
    """Text for seconds, a number >= 0, as a person reads them.

    >>> duration(4.26), duration(75), duration(3700)
    ('4.3 s', '1 min 15 s', '1 h 01 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
