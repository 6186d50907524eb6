"""The one exception that a user is meant to see."""


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
    text = str(text).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(value, longest=120):
    """Text of a value or an exception: one line of at most so many characters."""
    text = " ".join(str(value).split()) or type(value).__name__
    return text if len(text) <= longest else text[: longest - 3] + "..."
