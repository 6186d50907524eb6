"""Image files written byte by byte, identical on every machine, and simple readers for them:
uncompressed PNG, and JPEG with blocks of a single colour.

Source: PNG specification (third edition), Sec. 5 and 11; ITU-T T.81 (JPEG), Annexes B and F.
"""

import struct
import zlib

import numpy as np

PNG = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6  # colour types
SAMPLES = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}


def png(pixels, colour, palette=None, transparent=None, orientation=None):
    """Encode a PNG file.

    Parameters: pixels uint8 or uint16 (h, w, samples); colour, a colour type; palette uint8
    (n, 3); transparent, alpha of the palette's first colours; orientation, an EXIF number.
    Returns bytes.
    """
    h, w, _ = pixels.shape
    depth = 8 * pixels.itemsize
    rows = pixels.astype(pixels.dtype.newbyteorder(">")).reshape(h, -1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)  # filter 0
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, 0))]
    if palette is not None:
        chunks.append((b"PLTE", palette.tobytes()))
    if transparent is not None:
        chunks.append((b"tRNS", bytes(transparent)))
    if orientation is not None:
        entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
        chunks.append((b"eXIf", b"MM\0*\0\0\0\x08\0\x01" + entry + b"\0\0\0\0"))
    chunks += [(b"IDAT", _stored(data)), (b"IEND", b"")]
    return PNG + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def _stored(data):
    """Encode a zlib stream of one uncompressed block, at most 65535 bytes."""
    size = struct.pack("<HH", len(data), len(data) ^ 0xFFFF)
    return b"\x78\x01\x01" + size + data + struct.pack(">I", zlib.adler32(data))


def read_png(data, blend=None, colours=True, orient=True, sixteen_bit="scaled", bgr=False):
    """Decode a file written by `png`, uint8 (h, w, 3). Switches: blend, the grey background
    for alpha; colours False reads palette indices as grey; orient False ignores EXIF;
    sixteen_bit "low" or "high" takes one byte of 16 bits, "clipped" leaves grey unscaled."""
    chunks, at = {}, len(PNG)
    while at < len(data):
        (size,) = struct.unpack_from(">I", data, at)
        chunks[data[at + 4 : at + 8]] = data[at + 8 : at + 8 + size]
        at += 12 + size
    w, h, depth, colour = struct.unpack_from(">IIBB", chunks[b"IHDR"])
    kind = np.dtype(">u2" if depth == 16 else np.uint8)
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(h, -1)[:, 1:]
    pixels = np.ascontiguousarray(rows).view(kind).reshape(h, w, SAMPLES[colour]).astype(np.int64)
    if depth == 16:
        pixels = _eight_bits(pixels, colour, sixteen_bit)
    alpha = pixels[..., -1:] if colour in (GREY_ALPHA, RGBA) else np.full((h, w, 1), 255)
    pixels = pixels[..., : 3 if colour in (RGB, RGBA) else 1]
    if colour == PALETTE and colours:
        table = np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(-1, 3)
        if b"tRNS" in chunks:
            clear = np.full(len(table), 255)
            clear[: len(chunks[b"tRNS"])] = list(chunks[b"tRNS"])
            alpha = clear[pixels]
        pixels = table[pixels[..., 0]].astype(np.int64)
    if blend is not None:
        pixels = (pixels * alpha + blend * (255 - alpha) + 127) // 255
    if orient and b"eXIf" in chunks:
        orientation = struct.unpack_from(">H", chunks[b"eXIf"], 18)[0]
        # 1, 3, 6 and 8: unchanged, by 180 degrees, by 90 clockwise, by 90 anticlockwise.
        pixels = np.rot90(pixels, {1: 0, 3: 2, 6: -1, 8: 1}[orientation])
    pixels = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    return (pixels[..., ::-1] if bgr else pixels).astype(np.uint8)


def _eight_bits(pixels, colour, how):
    if how == "low":
        return pixels & 255
    if how == "high" or colour == RGB:
        return pixels >> 8
    return np.minimum(pixels, 255) if how == "clipped" else (pixels + 128) // 257


# With all quantisation steps 8, a block's only coefficient is its mean minus 128.
_DC = tuple(range(12))  # categories, with 4-bit codes: code k is category k


def jpeg(blocks):
    """Encode a baseline JPEG file of 8 x 8 px blocks, each of a single colour.

    Parameters: blocks int (rows, cols, components), values 0 to 255; 1 component is grey, 3 are
    Y, Cb and Cr. Returns bytes.
    """
    rows, cols, n = blocks.shape
    parts = [
        (0xE0, b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0"),
        (0xDB, b"\0" + b"\x08" * 64),
        (
            0xC0,
            struct.pack(">BHHB", 8, 8 * rows, 8 * cols, n)
            + b"".join(bytes([k + 1, 0x11, 0]) for k in range(n)),
        ),
        (0xC4, b"\0" + bytes([0, 0, 0, len(_DC)] + 12 * [0]) + bytes(_DC)),
        (0xC4, b"\x10" + bytes([1] + 15 * [0]) + b"\0"),  # the code 0 ends a block
        (0xDA, bytes([n]) + b"".join(bytes([k + 1, 0]) for k in range(n)) + b"\0\x3f\0"),
    ]
    bits, before = [], [0] * n
    for block in blocks.reshape(-1, n).tolist():
        for k, value in enumerate(block):
            change = value - 128 - before[k]
            before[k] = value - 128
            size = abs(change).bit_length()
            bits.append(f"{size:04b}")
            if size:
                bits.append(f"{change if change > 0 else change + (1 << size) - 1:0{size}b}")
            bits.append("0")
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    scan = bytes(int(text[k : k + 8], 2) for k in range(0, len(text), 8)).replace(
        b"\xff", b"\xff\0"
    )
    head = b"".join(
        b"\xff" + bytes([mark]) + struct.pack(">H", len(body) + 2) + body for mark, body in parts
    )
    return b"\xff\xd8" + head + scan + b"\xff\xd9"


def jpeg_pixels(blocks, bgr=False, ycc=True):
    """Return the pixels, uint8 (h, w, 3), of the file `jpeg` writes for blocks, int (rows, cols,
    components); ycc False reads Y, Cb, Cr as RGB."""
    values = blocks.repeat(8, 0).repeat(8, 1).astype(np.float64)
    if values.shape[2] == 3 and ycc:
        y, cb, cr = values[..., 0], values[..., 1] - 128, values[..., 2] - 128
        values = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], 2)
    values = np.broadcast_to(np.rint(values).clip(0, 255), (*values.shape[:2], 3))
    return (values[..., ::-1] if bgr else values).astype(np.uint8)
