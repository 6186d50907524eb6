"""Command-line parsing: a parser that reports errors in one sentence, and the option types."""

import argparse
import functools
import re
import shutil

from .errors import InputError, shortened

SEEDS, BATCHES, SIDES = range(1 << 63), range(1, (1 << 16) + 1), range(1, (1 << 20) + 1)
STEPS = range(1, 100_001)
MOST_TILES = 1 << 16  # per image
BYTES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
BYTES |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


class Parser(argparse.ArgumentParser):
    """ArgumentParser that raises InputError, so that only one of several processes prints it."""

    def error(self, message):
        """Raise InputError."""
        raise InputError(f"{shortened(message, 300)}; see --help-all")


class Removed(argparse.Action):
    """A removed option of an earlier version; const says what to use instead."""

    def __call__(self, parser, namespace, values, option_string=None):
        parser.error(f"{option_string} was removed: {self.const}")


class ShortHelp(argparse.Action):
    """Print the help of selected options; const is (their flags, the text below them)."""

    def __call__(self, parser, namespace, values, option_string=None):
        flags, parser.epilog = self.const
        for action in parser._actions:
            if flags.isdisjoint(action.option_strings):
                action.help = argparse.SUPPRESS
        parser.print_help()
        parser.exit()


def help_formatter(prog):
    """argparse's help formatter, at most 100 columns wide."""
    columns = min(100, shutil.get_terminal_size().columns)
    return argparse.RawDescriptionHelpFormatter(prog, width=columns - 2)


def parse(text, kind, wanted, fits):
    """Return kind(text) if fits accepts it. Raises ArgumentTypeError, "... is not <wanted>"."""
    try:
        found = kind(text)
    except ValueError:
        found = None
    if found is None or not fits(found):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not {wanted}")
    return found


def whole(allowed):
    """The option type of whole numbers in a range."""
    return functools.partial(parse, kind=int, wanted=words(allowed), fits=allowed.__contains__)


def words(allowed):
    """Describe a range of whole numbers in words."""
    return f"a whole number of at least {allowed[0]} and at most {allowed[-1]:,}"


seed, batch, side = map(whole, (SEEDS, BATCHES, SIDES))
pixels = whole(range(1, 1 << 40))
percentile = functools.partial(
    parse, kind=float, wanted="a number above 0 and at most 100", fits=lambda p: 0 < p <= 100
)

share = functools.partial(
    parse, kind=float, wanted="a share of at least 0 and below 1", fits=lambda r: 0 <= r < 1
)
limit = functools.partial(
    parse, kind=float, wanted="a rate of at least 1e-9 and at most 1", fits=lambda r: 1e-9 <= r <= 1
)
threshold = functools.partial(
    parse, kind=float, wanted="a finite number", fits=lambda x: abs(x) <= 3e38  # of float32
)


def size(text):
    """(height, width) from text such as "512" or "3040x4190". Raises ArgumentTypeError."""
    sides = text.lower().split("x")
    if len(sides) > 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 512 or 3040x4190")
    return side(sides[0]), side(sides[-1])


def size_or_native(text):
    """(height, width), or "native". Raises ArgumentTypeError."""
    return text if text == "native" else size(text)


def number_of_bytes(text):
    """A number of bytes such as 8GiB or 500MB as an int; None for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in BYTES:
        return None
    return int(min(float(match[1]), 2**60) * BYTES[match[2].upper()])  # capped at 1 EiB


def bytes_or_off(text):
    """A number of bytes, 0 for "off". Raises ArgumentTypeError."""
    n_bytes = 0 if text == "off" else number_of_bytes(text)
    if n_bytes is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither off nor a number of bytes such as 8GiB"
        )
    return n_bytes


def memory_mode(text, modes):
    """Return the text if it is one of the modes. Raises ArgumentTypeError."""
    if text in modes:
        return text
    if number_of_bytes(text) is not None:
        raise argparse.ArgumentTypeError(
            f"a cap in bytes ({text}) was removed; use low, the memory of one model on one tile"
        )
    raise argparse.ArgumentTypeError(f"{text!r} is neither {' nor '.join(modes)}")
