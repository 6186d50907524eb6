"""PBM, PGM and PPM files, plain and raw, with any maximum value (Pillow assumes a maximum of 65535
for every 16-bit PGM, and reads the others sample by sample)."""

import re

import numpy as np

from ..support.errors import InputError

_SPACE = rb"(?:\s|#[^\r\n]*[\r\n])"
_HEADER = re.compile(rb"P([1-6])" + 2 * (_SPACE + rb"+(\d{1,9})"))
_MAXIMUM = re.compile(_SPACE + rb"+(\d{1,9})")


def is_pnm(data):
    """Whether bytes begin like PBM, PGM or PPM: P1 to P6 and white space."""
    return re.match(rb"P[1-6][\s#]", data[:3]) is not None


def read(data, check_pixels):
    """Decode the first image in a file.

    Parameters: data, bytes; check_pixels(n) raises an error for too many pixels.
    Returns samples (h, w, C), uint8 or uint16, and their maximum.
    A set bit in PBM is black: sample 0, with a maximum of 1.
    Raises InputError, without the file's name, for data that violates the format.
    Source: the manual pages pbm(5), pgm(5) and ppm(5) of Netpbm.
    """
    header = _HEADER.match(data)
    if not header:
        raise InputError("is damaged: its header has no width and height; replace or remove it")
    kind, width, height = map(int, header.groups())
    at, full = header.end(), 1
    if kind not in (1, 4):
        maximum = _MAXIMUM.match(data, at)
        full, at = (int(maximum[1]), maximum.end()) if maximum else (0, at)
    if not (width and height and 0 < full < 65536 and data[at : at + 1].isspace()):
        raise InputError("is damaged: its header is invalid for PBM, PGM or PPM; replace it")
    check_pixels(width * height)
    shape = height, width, 3 if kind in (3, 6) else 1
    n = width * height * shape[2]
    if kind == 4:
        n = height * -(-width // 8)
    dtype = np.dtype(np.uint8 if full < 256 else ">u2")
    if kind < 4:
        samples = _plain(data[at:], bits=kind == 1)[:n]
    else:
        samples = np.frombuffer(data, dtype, min(n, (len(data) - at - 1) // dtype.itemsize), at + 1)
        more = len(data) - at - 1 - samples.nbytes
        if len(samples) == n and more and not is_pnm(data[-more:]):
            raise InputError("has more bytes than its pixels need; save it as PNG")
    if len(samples) < n:
        raise InputError(f"is truncated: it has {len(samples):,} of {n:,} numbers; replace it")
    if kind == 4:
        rows = np.unpackbits(samples.reshape(height, -1), axis=1, count=width)
        return 1 - rows[:, :, None], 1
    if samples.max() > full:
        raise InputError(f"contains {samples.max()}, above its maximum of {full}; replace it")
    samples = samples.astype(dtype.newbyteorder("=")).reshape(shape)
    return (1 - samples if kind == 1 else samples), full


def _plain(text, bits):
    """Parse the decimal numbers in text; bits: its single digits, with or without spaces."""
    text = re.sub(rb"#[^\r\n]*", b" ", text)
    if not re.fullmatch(rb"[\d\s]*", text):
        raise InputError("contains something other than numbers; replace it")
    if bits:
        return np.frombuffer(text.translate(None, b" \t\n\v\f\r"), np.uint8) - 48
    return np.fromstring(text, np.int64, sep=" ") if text.strip() else np.empty(0, np.int64)
