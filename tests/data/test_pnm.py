"""PBM, PGM and PPM, plain and raw: by hand, with every maximum, and what is refused."""

import numpy as np
import pytest
from _data_files import touch

from tiled_ref.data.images import decode_image, decode_mask
from tiled_ref.support.errors import InputError


def grey(path):
    image = decode_image(path)
    np.testing.assert_array_equal(image[..., 0], image[..., 2])
    return image[..., 0].tolist()


BY_HAND = {  # content: the grey values
    b"P1 3 2\n0 1 0\n1 1 0\n": [[255, 0, 255], [0, 0, 255]],
    b"P1\n# of bits\n3 2 010110": [[255, 0, 255], [0, 0, 255]],
    b"P4 3 2\n\x40\xc0": [[255, 0, 255], [0, 0, 255]],
    b"P2 2 1 100\n0 100": [[0, 255]],
    b"P2 2 2 255 # maximum\n1 2 # row\n3\n4 5 6": [[1, 2], [3, 4]],
    b"P5 2 1 255\n\x00\x07": [[0, 7]],
    b"P5 2 1 15\n\x0f\x01": [[255, 17]],
    b"P5\n# made\r\n2 1\n4095\n\x0f\xff\x00\x08": [[255, 0]],
    b"P5 2 1 65535\n\xff\xff\x01\x01": [[255, 1]],
    b"P5 1 1 1\n\x01P5 1 1 1\n\x00": [[255]],
}


@pytest.mark.parametrize("content", BY_HAND)
def test_grey_by_hand(tmp_path, content):
    assert grey(touch(tmp_path / "a", content)) == BY_HAND[content]


@pytest.mark.parametrize("full", [1, 2, 100, 254, 255, 256, 1023, 4095, 65534, 65535])
@pytest.mark.parametrize("magic", ["P2", "P3", "P5", "P6"])
def test_every_maximum_is_scaled_to_255_and_no_bit_of_a_mask_is_lost(tmp_path, magic, full):
    values = np.linspace(0, full, 60).astype(int)
    values[:3] = 0, 1, full
    if magic in ("P2", "P3"):
        body = b" ".join(b"%d" % v for v in values)
    else:
        body = values.astype(np.uint8 if full < 256 else ">u2").tobytes()
    shape = (6, 10, 1) if magic in ("P2", "P5") else (4, 5, 3)
    head = f"{magic}\n{shape[1]} {shape[0]}\n{full}\n".encode()
    path = touch(tmp_path / "a.ppm", head + body)
    expected = np.floor(values.reshape(shape) * 255 / full + 0.5)
    np.testing.assert_array_equal(decode_image(path), np.broadcast_to(expected, (*shape[:2], 3)))
    np.testing.assert_array_equal(decode_mask(path), values.reshape(shape).any(axis=2))


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"P5 2 1 4095\n\x10\x00\x00\x00", "contains 4096, above its maximum of 4095"),
     (b"P2 2 1 9\n1 10", "contains 10, above its maximum of 9"),
     (b"P5 3 2 255\n\1\2\3", "is truncated: it has 3 of 6 numbers"),
     (b"P6 1 1 65535\n\1\2\3\4\5", "is truncated: it has 2 of 3 numbers"),
     (b"P4 9 2\n\1\2\3", "is truncated: it has 3 of 4 numbers"),
     (b"P2 2 1 255\n1", "is truncated: it has 1 of 2 numbers"),
     (b"P2 2 1 255\n1 -1", "contains something other than numbers"),
     (b"P2 2 1 255\n1 1.5", "contains something other than numbers"),
     (b"P2 2 1 255\n1 " + b"9" * 5000, "contains .*, above its maximum of 255"),
     (b"P2 2 1 255\n1 +2", "contains something other than numbers"),
     (b"P2 2 1 255\n \n", "is truncated: it has 0 of 2 numbers"),
     (b"P1 2 1\n02", "contains 2, above its maximum of 1"),
     (b"P5\r\n2 1\r\n255\r\n\1\2", "has more bytes than its pixels"),
     (b"P5 2 1 255 # grey\n\1\2", "has more bytes than its pixels"),
     (b"P6 1 1 65535\n" + bytes(7), "has more bytes than its pixels"),
     (b"P5 0 1 255\n\1", "header"), (b"P5 1 1 0\n\1", "header"), (b"P5 1 1 65536\n\1\1", "header"),
     (b"P5 1 x 255\n\1", "header"), (b"P5 1 1 255", "header"), (b"P5 1 1", "header"),
     (b"P5 " + b"9" * 400 + b" 1 255\n\1", "header"), (b"P7\nWIDTH 1", "is not an image"),
     (b"P5 99999 99999 255\n\1", "too large .9999800001 pixels")],
)  # fmt: skip
def test_what_the_format_does_not_allow_is_refused(tmp_path, content, says):
    path = touch(tmp_path / "a.pgm", content)
    for decode in (decode_image, decode_mask):
        with pytest.raises(InputError, match=f"a.pgm .*{says}"):
            decode(path)
