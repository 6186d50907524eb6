"""Exceptions with messages for the user, and the message for running out of memory."""

import contextlib
import errno
import re

# Messages of torch, oneDNN, CUDA, the library loader and the system, mostly in RuntimeErrors.
NO_MEMORY = re.compile(
    "can't allocate memory|not enough memory|out of memory|Cannot allocate memory|std::bad_alloc|"
    "ALLOC_FAILED|could not (create|execute) a (primitive|memory)|can't start new thread|"
    "failed to map segment from shared object$"
)


class InputError(ValueError):
    """A file, folder, option or array from the user is invalid.

    The message is one sentence that names it and the remedy. The command line prints it after
    `tiled-ref: error: ` and exits with status 2; --debug adds the traceback.
    """


class KernelNotBuiltError(ImportError):
    """A compiled kernel is missing: module, its name inside tiled_ref, such as "_untile"."""

    BUILD_COMMAND = "python setup.py build_ext --inplace"

    def __init__(self, module):
        super().__init__(
            f"the compiled kernel tiled_ref.{module} is missing; build it with "
            f"`{self.BUILD_COMMAND}` (or `pip install -e .`), or choose impl='numpy'"
        )


def one_line(text):
    r"""A text, or that of an exception, on one line that is safe to print on a terminal.

    Unprintable characters and bytes that are not UTF-8 are escaped.

    >>> one_line("a\nb")
    'a\\nb'
    """
    text = str(text)
    with contextlib.suppress(UnicodeEncodeError):  # a surrogate that does not encode a byte
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def out_of_memory(error, smaller="--batch-size, --tile-size or --image-size"):
    """The sentence for the user if an exception means out of memory, on the host or on the device.

    Parameters: error; smaller, options that reduce memory. Returns "" for any other exception. For
    an InputError its cause is examined, if that is an error of torch or of the system: the code
    that reported a damaged file or a full disk may have run out of memory instead.
    """
    if isinstance(error, InputError):
        error = error.__cause__ if isinstance(error.__cause__, (RuntimeError, OSError)) else None
    full = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    if isinstance(error, (RuntimeError, ImportError)):  # CUDA's OutOfMemoryError is a RuntimeError
        full = NO_MEMORY.search(str(error))
    if not full:
        return ""
    parts = re.split(r"\n|\. |: you tried", str(error))
    reason = one_line(next(filter(NO_MEMORY.search, parts), parts[0]))
    if "start new thread" in reason:
        return (
            f"the system cannot start more threads ({reason}); choose a smaller --threads, set "
            "OMP_NUM_THREADS=1, or raise the limits (ulimit -u, ulimit -v)"
        )
    if isinstance(error, ImportError):
        return f"out of memory while loading libraries ({reason}); raise the limit (ulimit -v)"
    return f"out of memory{f' ({reason})' if reason else ''}; choose a smaller {smaller}"


def shortened(value, longest=120):
    """Text of a value or an exception: one line of at most `longest` characters."""
    text = " ".join(str(value).split()) or type(value).__name__
    return text if len(text) <= longest else text[: longest - 3] + "..."
