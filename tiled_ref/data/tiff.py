"""TIFF header properties that Pillow ignores: applied here, or refused.

`tags` maps tag numbers to values, like Pillow's tag_v2. Sources: TIFF 6.0 (Adobe, 1992);
Pillow's behaviour for each combination was found by decoding files of every kind.
"""

import numpy as np

from ..support.errors import InputError

SUBFILE, OLD_SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = (
    254, 255, 256, 257, 258, 259, 262, 266
)  # fmt: skip
CHANNELS, STRIP_HEIGHT, PLANAR, TILE_WIDTH, TILE_HEIGHT = 277, 278, 284, 322, 323
STRIPS, TILES = 273, 324  # their offsets in the file
COLOURS, INK_SET, EXTRA_SAMPLES, SAMPLE_FORMAT = 320, 332, 338, 339
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
UNSIGNED, SIGNED, FLOATING = 1, 2, 3
RAW = 1  # compression
WITH_LOSS = (6, 7, 34712, 34892, 50001)  # JPEG (old and new), JPEG 2000, lossy DNG, WebP
LOSSY = "uses lossy compression, which blurs the edges of its regions"


def check(tags, for_mask, big_endian=False):
    """Raise InputError, without the file's name, for a header that Pillow would misread.

    for_mask: refuse headers that leave anomalous pixels ambiguous, instead of unknown ranges.
    """
    bits, kind = _samples(tags)
    photometric = tags.get(PHOTOMETRIC)
    raw = tags.get(COMPRESSION, RAW) == RAW
    apart = tags.get(PLANAR, 1) == 2 and tags.get(CHANNELS, 1) > 1
    extra = tags.get(EXTRA_SAMPLES, ())
    problems = (
        (tags.get(SUBFILE, 0) & 5 or tags.get(OLD_SUBFILE) == 2,
         "begins with a thumbnail or a transparency mask"),
        (photometric is None, "does not say whether 0 is black or white"),
        (photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR),
         "does not store grey values, RGB, CMYK or a palette"),
        (photometric == WHITE_IS_ZERO and (bits > 16 or kind != UNSIGNED or extra),
         f"stores white as 0 in {words(bits, kind)}"),
        (photometric == YCBCR and raw, "stores YCbCr without compression"),
        (photometric == CMYK and tags.get(INK_SET, 1) != 1, "has inks other than CMYK"),
        (raw and _has_gaps(tags, apart), "has too few or too many strips or tiles"),
        (apart and bits > 8, "stores planar colours with more than 8 bits"),
        (apart and raw and photometric == BLACK_IS_ZERO, "stores planar grey and alpha"),
        (apart and tags.get(FILL_ORDER, 1) == 2, "stores planar colours with reversed bits"),
        (big_endian and not raw and (bits > 16 or (bits > 8 and kind != UNSIGNED)),
         f"compresses {words(bits, kind)} in big-endian order"),
    )  # fmt: skip
    ambiguous = (
        (tags.get(COMPRESSION) in WITH_LOSS, LOSSY),
        (photometric == YCBCR, "stores colours as YCbCr, which rounds them"),
        (any(meaning != 2 for meaning in extra), "has a channel other than colour and plain alpha"),
    )
    for found, sentence in problems + (ambiguous if for_mask else ()):
        if found:
            raise InputError(f"{sentence}; save it as PNG")
    if not for_mask and (bits > 16 or kind != UNSIGNED):
        raise InputError(
            f"has {words(bits, kind)}, whose range is unknown; save it with 8 or 16 unsigned "
            "bits per channel"
        )


def corrected(tags, samples, full):
    """Correct the samples decoded by Pillow, and `Picture.full`, according to the header.

    Parameters: tags; samples (h, w, C); full, their largest value if Pillow keeps their scale.
    Returns corrected samples and full.
    """
    bits, kind = _samples(tags)
    if samples.dtype == bool:
        return samples, 1
    if bits == 8 and kind == SIGNED:
        samples = samples.view(np.int8)
    elif bits == 32 and kind == UNSIGNED:
        samples = samples.view(np.uint32)
    if bits > 16 or kind != UNSIGNED:
        return samples, None
    if samples.dtype.itemsize == 2 and full == 255:  # grey
        full = 2**bits - 1
        samples = samples.astype(np.uint16)
        if tags[PHOTOMETRIC] == WHITE_IS_ZERO:
            samples = full - samples
    return samples, full


def palette(tags):
    """The colours of a palette, uint16 (n, 3), or uint8 if all values fit, as some programs write
    them."""
    colours = np.array(tags[COLOURS], np.uint16).reshape(3, -1).T
    return colours.astype(np.uint8) if colours.max() < 256 else colours


def words(bits, kind):
    """Describe samples by their number of bits and kind, for messages."""
    return f"{ {SIGNED: 'signed ', FLOATING: 'floating-point '}.get(kind, '') }{bits}-bit samples"


def _has_gaps(tags, apart):
    """Whether the number of strips or tiles does not match the image size, or one is omitted (such
    as an all-zero one). Pillow does not notice this unless they are compressed."""
    width, height = tags[WIDTH], tags[HEIGHT]
    across, down, begin = width, tags.get(STRIP_HEIGHT) or height, tags.get(STRIPS)
    if begin is None:
        across, down, begin = tags[TILE_WIDTH], tags[TILE_HEIGHT], tags[TILES]
    n = -(-width // across) * -(-height // down) * (tags[CHANNELS] if apart else 1)
    return 0 in begin or len(begin) != n


def _samples(tags):
    """(bits, kind) of the first channel's samples; Pillow requires the same for all channels."""
    return tags.get(BITS, (1,))[0], tags.get(SAMPLE_FORMAT, (UNSIGNED,))[0]
