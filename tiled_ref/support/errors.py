"""The one exception that a user is meant to see."""


class InputError(ValueError):
    """Something is wrong with what the user gave: a file, a folder, an option, an array.

    The message is one sentence that names the file or option and the remedy. The command
    line prints it after `tiled-ref: error: ` and exits with status 2, without a traceback
    (`--debug` shows it). Raise it from the original exception where there is one.
    """


class KernelNotBuiltError(ImportError):
    """A compiled kernel was asked for and is not there. There is no silent fallback.

    Parameters: module, its name inside tiled_ref, such as "_untile".
    """

    BUILD_COMMAND = "python setup.py build_ext --inplace"

    def __init__(self, module):
        super().__init__(
            f"the compiled kernel tiled_ref.{module} is missing; build it with "
            f"`{self.BUILD_COMMAND}` (or `pip install -e .`), or choose impl='numpy'"
        )


def one_line(text):
    r"""Text without the characters that would break a line or a terminal.

    Parameters: text, anything with a str, such as an exception that names a file.
    Returns str, what is not printable, and bytes of a file name that are no UTF-8, written as
    an escape.

    >>> one_line("a\nb")
    'a\\nb'
    """
    text = str(text).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
