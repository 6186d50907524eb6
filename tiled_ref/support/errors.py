"""The exceptions that a user is meant to see, and the sentence where memory runs out."""

import contextlib
import errno
import re

# Words of torch, oneDNN, CUDA, the loader of libraries and the system, mostly in RuntimeErrors.
NO_MEMORY = re.compile(
    "can't allocate memory|not enough memory|out of memory|Cannot allocate memory|std::bad_alloc|"
    "ALLOC_FAILED|could not (create|execute) a (primitive|memory)|can't start new thread|"
    "failed to map segment from shared object$"
)


class InputError(ValueError):
    """A file, a folder, an option or an array that the user gave is wrong.

    The message is one sentence that names it and the remedy. The command line prints it after
    `tiled-ref: error: ` and exits with status 2; the traceback needs --debug.
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
    r"""The text, or an exception's, without what would break a line or a terminal.

    Characters that are not printable and bytes that are no UTF-8 become escapes.

    >>> one_line("a\nb")
    'a\\nb'
    """
    text = str(text)
    with contextlib.suppress(UnicodeEncodeError):  # a surrogate that stands for no byte
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def out_of_memory(error, smaller="--batch-size, --tile-size or --image-size"):
    """Whether an exception says that memory ran out, on the host or on the device.

    Parameters: error; smaller, the options that help. Returns the sentence for the user, "" for
    any other exception. An InputError is meant only where it was raised from an error of torch or
    of the system, which a damaged file or a full disk raises too; others name their file.
    """
    if isinstance(error, InputError):
        error = error.__cause__ if isinstance(error.__cause__, (RuntimeError, OSError)) else None
    full = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    if isinstance(error, (RuntimeError, ImportError)):  # CUDA's OutOfMemoryError is the former
        full = NO_MEMORY.search(str(error))
    if not full:
        return ""
    parts = re.split(r"\n|\. |: you tried", str(error))
    reason = one_line(next(filter(NO_MEMORY.search, parts), parts[0]))
    if "start new thread" in reason:
        return (
            f"the system starts no more threads ({reason}); choose a smaller --threads, set "
            "OMP_NUM_THREADS=1, or raise the limits (ulimit -u, ulimit -v)"
        )
    if isinstance(error, ImportError):
        return f"out of memory while the libraries load ({reason}); raise the limit (ulimit -v)"
    return f"out of memory{f' ({reason})' if reason else ''}; choose a smaller {smaller}"


def shortened(value, longest=120):
    """Text of a value or an exception: one line of at most so many characters."""
    text = " ".join(str(value).split()) or type(value).__name__
    return text if len(text) <= longest else text[: longest - 3] + "..."
