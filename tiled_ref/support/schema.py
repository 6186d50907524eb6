"""JSON files that are read back: every entry has a type, a range and a length.

A schema is written like the value that it describes: a dict has at least these keys ("key?" may be
missing), a tuple is a list of just so many values; anything else is one of the rules below.

>>> check({"seconds": 2.5}, {"seconds": number(0), "text?": text()}, "fit.json", "train again")
{'seconds': 2.5}
"""

import json
import re

from .errors import InputError, one_line, shortened
from .files import open_regular

LARGEST = 1e300  # of a number; neither infinity nor NaN is below it
FILE_BYTES = 64 << 20  # longest file that is read


def check(value, schema, path, remedy):
    """Check the value of a JSON file.

    Parameters: value; schema; path of its file, and what to do, for the message.
    Returns the value.
    Raises InputError, one sentence that names the file, the entry and the remedy.
    """
    try:
        _visit(value, schema, "")
    except _WrongEntry as error:
        raise damaged(path, error, remedy) from error
    return value


def read_json(path, schema, remedy, follow=True):
    """The value of a JSON file, checked; follow=False refuses a link.

    Raises InputError as `check` and `read_bytes`, and for what is no JSON.
    """
    return parse_json(read_bytes(path, remedy, follow), schema, path, remedy)


def read_bytes(path, remedy, follow=True):
    """The bytes of a file, at most FILE_BYTES. Raises InputError where it cannot be read."""
    try:
        with open_regular(path, follow) as file:
            data = file.read(FILE_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"{one_line(path)} cannot be read: {error.strerror or error}; {remedy}"
        ) from error
    if len(data) > FILE_BYTES:
        raise damaged(path, f"it has more than {FILE_BYTES:,} bytes", remedy)
    return data


def parse_json(data, schema, path, remedy):
    """`read_json` of bytes that have been read."""
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise damaged(path, error, remedy) from error
    return check(value, schema, path, remedy)


def damaged(path, what, remedy):
    """InputError: the file is not as this program wrote it; what, text or error, says why."""
    return InputError(
        f"{one_line(path)} is damaged or was not written by this program "
        f"({shortened(what, 400)}); {remedy}"
    )


# ------------------------------------------------------------------------------------ rules


def rule(wanted, fits, inner=None):
    """A rule: fits(value) decides; wanted is the same in words; inner, what the values inside of
    a list or a table follow."""

    def visit(value, name):
        if not fits(value):
            subject = f"its entry {name}" if name else "it"
            raise _WrongEntry(f"{subject} is {shortened(repr(value), 60)}, not {wanted}")
        if inner is not None:
            for key, entry in value.items() if type(value) is dict else enumerate(value):
                _visit(entry, inner, _place(name, key))

    return visit


def whole(low=0, high=2**63 - 1):
    """Whole numbers from low to high; true is none."""
    wanted = f"a whole number from {low} to {high}"
    return rule(wanted, lambda value: type(value) is int and low <= value <= high)


def number(low=-LARGEST, high=LARGEST):
    """Finite numbers from low to high, whole or not."""
    wanted = f"a number from {low:g} to {high:g}"
    return rule(wanted, lambda value: type(value) in (int, float) and low <= value <= high)


def text(longest=255, pattern=".*", wanted="text"):
    """Text of at most so many characters, all of it matching a regular expression."""
    form = re.compile(pattern, re.DOTALL)
    return rule(
        f"{wanted} of at most {longest} characters",
        lambda value: type(value) is str and len(value) <= longest and form.fullmatch(value),
    )


def one_of(*values):
    """One of these values, of its very type: 1 is neither 1.0 nor true."""
    return rule(
        f"one of {', '.join(map(json.dumps, values))}",
        lambda value: any(type(value) is type(known) and value == known for known in values),
    )


def maybe(schema):
    """null, or what follows the schema."""
    return lambda value, name: None if value is None else _visit(value, schema, name)


def each(schema, least=0, most=1 << 20):
    """A list of least to most values that follow the schema."""
    many = f"{least} to {most}" if least < most else f"{least}"
    return rule(
        f"a list of {many} values",
        lambda value: type(value) is list and least <= len(value) <= most,
        schema,
    )


def named(schema, most=1000):
    """A table of at most so many entries with names of their own, of at most 255 characters."""
    return rule(
        f"a table of at most {most} names",
        lambda x: type(x) is dict and len(x) <= most and all(len(key) <= 255 for key in x),
        schema,
    )


flag = one_of(True, False)
digest = text(64, "[0-9a-f]{64}", "the SHA-256")
scalar = rule(
    "null, true, false, a number or a short text",
    lambda value: value is None or type(value) is bool
    or (type(value) is str and len(value) <= 255)
    or (type(value) in (int, float) and abs(value) <= LARGEST),
)  # fmt: skip


class _WrongEntry(ValueError):
    """An entry does not follow its schema; the message says which and how."""


def _visit(value, schema, name):
    """Raise _WrongEntry unless a value follows a schema; name, of the entry."""
    if isinstance(schema, dict):
        rule("an object", lambda value: type(value) is dict)(value, name)
        for key, inner in schema.items():
            key, optional, _ = key.partition("?")
            if key in value:
                _visit(value[key], inner, _place(name, key))
            elif not optional:
                raise _WrongEntry(f"it has no entry {_place(name, key)}")
    elif isinstance(schema, tuple):
        each(lambda *entry: None, len(schema), len(schema))(value, name)
        for k, (entry, inner) in enumerate(zip(value, schema)):
            _visit(entry, inner, _place(name, k))
    else:
        schema(value, name)


def _place(name, key):
    """The name of an entry: parts[1].y"""
    if isinstance(key, int):
        return f"{name}[{key}]"
    key = shortened(key if key.isprintable() else ascii(key), 60)
    return f"{name}.{key}" if name else key


def _no_constant(text):
    raise ValueError(f"it holds {text}")
