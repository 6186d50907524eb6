"""Validation of JSON files that are read back: the type, range and length of every entry.

A schema has the structure of the value it describes. A dict requires these keys ("key?" is
optional) and allows others; a tuple is a list of this length; the leaves are the rules below.

>>> check({"seconds": 2.5}, {"seconds": number(0), "text?": text()}, "fit.json", "train again")
{'seconds': 2.5}
"""

import json
import re

from .errors import InputError, one_line, shortened
from .files import open_regular

LARGEST = 1e300  # largest number; excludes infinity and NaN
FILE_BYTES = 64 << 20  # largest file that is read


def check(value, schema, path, remedy):
    """Check the value of a JSON file.

    Parameters: value; schema; path of its file and remedy, for the message.
    Returns the value.
    Raises InputError, one sentence that names the file, the entry and the remedy.
    """
    try:
        _visit(value, schema, "")
    except _WrongEntry as error:
        raise damaged(path, error, remedy) from error
    return value


def read_json(path, schema, remedy, follow=True):
    """Read and check the value of a JSON file; follow=False refuses a symbolic link.

    Raises InputError as `check` and `read_bytes`, and for invalid JSON.
    """
    return parse_json(read_bytes(path, remedy, follow), schema, path, remedy)


def read_bytes(path, remedy, follow=True):
    """Read a file of at most FILE_BYTES. Raises InputError if it is larger or cannot be read."""
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
    """`read_json` for the bytes of a file."""
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise damaged(path, error, remedy) from error
    return check(value, schema, path, remedy)


def damaged(path, what, remedy):
    """An InputError for a damaged or foreign file; what, text or an exception, is the reason."""
    return InputError(
        f"{one_line(path)} is damaged or was not written by this program "
        f"({shortened(what, 400)}); {remedy}"
    )


# ------------------------------------------------------------------------------------ rules


def rule(wanted, fits, inner=None):
    """A rule that accepts values with fits(value); wanted describes them; inner, a schema for the
    values inside a list or table."""

    def visit(value, name):
        if not fits(value):
            subject = f"its entry {name}" if name else "it"
            raise _WrongEntry(f"{subject} is {shortened(repr(value), 60)}, not {wanted}")
        if inner is not None:
            for key, entry in value.items() if type(value) is dict else enumerate(value):
                _visit(entry, inner, _place(name, key))

    return visit


def whole(low=0, high=2**63 - 1):
    """Whole numbers from low to high; true is not a number."""
    wanted = f"a whole number from {low} to {high}"
    return rule(wanted, lambda value: type(value) is int and low <= value <= high)


def number(low=-LARGEST, high=LARGEST):
    """Finite numbers from low to high, whole or not."""
    wanted = f"a number from {low:g} to {high:g}"
    return rule(wanted, lambda value: type(value) in (int, float) and low <= value <= high)


def text(longest=255, pattern=".*", wanted="text"):
    """Text of at most `longest` characters that matches a regular expression as a whole."""
    form = re.compile(pattern, re.DOTALL)
    return rule(
        f"{wanted} of at most {longest} characters",
        lambda value: type(value) is str and len(value) <= longest and form.fullmatch(value),
    )


def one_of(*values):
    """One of these values with the same type: 1 is neither 1.0 nor true."""
    return rule(
        f"one of {', '.join(map(json.dumps, values))}",
        lambda value: any(type(value) is type(known) and value == known for known in values),
    )


def maybe(schema):
    """null, or a value that matches the schema."""
    return lambda value, name: None if value is None else _visit(value, schema, name)


def each(schema, least=0, most=1 << 20):
    """A list of `least` to `most` values that match the schema."""
    many = f"{least} to {most}" if least < most else f"{least}"
    return rule(
        f"a list of {many} values",
        lambda value: type(value) is list and least <= len(value) <= most,
        schema,
    )


def named(schema, most=1000):
    """A table of at most `most` entries with arbitrary names of at most 255 characters."""
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
    """An entry does not match its schema; the message gives the entry and the reason."""


def _visit(value, schema, name):
    """Raise _WrongEntry unless a value matches a schema; name, that of the entry."""
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
    """The full name of an entry, such as parts[1].y"""
    if isinstance(key, int):
        return f"{name}[{key}]"
    key = shortened(key if key.isprintable() else ascii(key), 60)
    return f"{name}.{key}" if name else key


def _no_constant(text):
    raise ValueError(f"it holds {text}")
