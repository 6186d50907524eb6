"""The program `python run.py`, `tiled-ref`: signals and streams first, then the slow imports.

A signal ends it with one line and exit status 128 plus its number: immediately during the
imports, later as a KeyboardInterrupt so that the command line cleans up; a second one immediately.
"""

import contextlib
import functools
import os
import signal
import sys

from .support.errors import out_of_memory
from .support.streams import guarded_streams

CHILD_SECONDS = 60  # of processor time, many times what the imports take
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


def main(argv=None):
    """Run the command line; returns the exit status. Parameters: argv, list of str."""
    numbers = [n for n in WORDS if signal.getsignal(n) is not signal.SIG_IGN]  # nohup ignores one
    if "RANK" in os.environ:  # torchrun ends its processes with SIGTERM, see running.processes
        numbers.remove(signal.SIGTERM)

    def handle(handler):
        for number in numbers:
            signal.signal(number, handler)

    def raise_first(number, frame):
        handle(_leave)
        raise KeyboardInterrupt(number, functools.partial(handle, signal.SIG_IGN))

    with guarded_streams():
        handle(_leave)
        sys.unraisablehook = _unraisable
        try:
            _check_imports()
            from . import cli

            handle(raise_first)
            return cli.main(argv)
        except KeyboardInterrupt as error:  # before or after what cli.main catches
            _leave(*error.args)
        except Exception as error:
            if not (sentence := out_of_memory(error)):
                raise
            print(f"tiled-ref: error: {sentence}", file=sys.stderr)
            return 2
        finally:
            handle(signal.SIG_IGN)  # everything is done


def _leave(number=signal.SIGINT, frame=None):
    """End the process at once."""
    with contextlib.suppress(OSError):
        if os.environ.get("RANK", "0") == "0":
            os.write(2, f"tiled-ref: {WORDS[number]}\n".encode())
    os._exit(128 + number)


def _unraisable(found):
    """End the process on an interrupt in a destructor, where Python ignores exceptions."""
    if isinstance(found.exc_value, KeyboardInterrupt):
        _leave(*found.exc_value.args)
    sys.__unraisablehook__(found)


def _check_imports():
    """Raise ImportError if a child process cannot import the libraries within the memory limit.

    Out of memory, they abort, or raise any exception, even a SystemError of the interpreter, or
    never return: with no byte left, Python 3.11 unwinds an exception forever.
    """
    if os.name != "posix":
        return
    import resource

    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        return
    if (child := os.fork()) == 0:
        signal.setitimer(signal.ITIMER_PROF, CHILD_SECONDS)  # ends the process
        with open(os.devnull, "w") as nowhere, contextlib.suppress(BaseException):
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
            with contextlib.suppress(ModuleNotFoundError):  # the parent raises it
                from . import cli  # noqa: F401
            os._exit(0)
        os._exit(1)
    if os.waitpid(child, 0)[1]:
        raise ImportError("Cannot allocate memory")


if __name__ == "__main__":
    sys.exit(main())
