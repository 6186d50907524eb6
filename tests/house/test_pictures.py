"""The same parts, photographed and masked in many formats, give the same metrics by the command."""

import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from toys import toy_category

from tiled_ref import cli
from tiled_ref.data.images import decode_image


def png_16(samples):
    """A PNG file of uint16 (h, w, 3)."""

    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + (
        chunk(b"IEND", b"")
    )


def turned(pixels, path, **options):
    """Saved a quarter turn to the left, with the orientation that turns it back."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(pixels))).save(path, exif=exif, **options)


def as_palette(mask, path):
    image = Image.fromarray((~mask).astype(np.uint8))  # entry 0 is red, entry 1 black
    image = image.convert("P")
    image.putpalette([255, 0, 0, 0, 0, 0])
    image.save(path)


def in_alpha(mask, path):
    drawn = np.full((*mask.shape, 4), 255, np.uint8)
    drawn[..., 3] = mask * 255
    Image.fromarray(drawn).save(path, lossless=True, exact=True)


IMAGES = {  # ending: a writer of uint8 (h, w), grey
    "bmp": lambda grey, path: Image.fromarray(grey).save(path),
    "gif": lambda grey, path: Image.fromarray(grey).save(path),
    "webp": lambda grey, path: Image.fromarray(grey).convert("RGB").save(path, lossless=True),
    "ppm": lambda grey, path: Image.fromarray(grey).convert("RGB").save(path),
    "pgm": lambda grey, path: path.write_bytes(
        b"P5 %d %d 510\n" % grey.shape[::-1] + (grey.astype(np.uint16) * 2).astype(">u2").tobytes()
    ),
    "TIF": lambda grey, path: turned(grey, path),  # the first row of the cases
    "tiff": lambda grey, path: Image.fromarray((65535 - grey.astype(np.uint16) * 257)).save(
        path, tiffinfo={262: 0}
    ),
    "png": lambda grey, path: turned(np.dstack([grey] * 3), path),
}
MASKS = {  # ending: a writer of bool (h, w)
    "tif": lambda mask, path: Image.fromarray(np.where(mask, 0, 65535).astype(np.uint16)).save(
        path, tiffinfo={262: 0}
    ),
    "png": as_palette,
    "PNG": lambda mask, path: path.write_bytes(png_16(np.dstack([mask] * 3).astype(np.uint16))),
    "webp": in_alpha,
    "pbm": lambda mask, path: Image.fromarray(mask).save(path),
    "bmp": lambda mask, path: Image.fromarray(mask).save(path),
}


def metrics(category, tmp_path, images, masks):
    """The metrics of a run on the category's pictures, in files of these endings in turn."""
    root = tmp_path / images[0] / "parts"
    for split, samples in (("train", category.train), ("test", category.test)):
        for k, sample in enumerate(samples):
            kind = sample.defect if split == "test" else ""
            ending = images[k % len(images)]
            (root / split / kind).mkdir(parents=True, exist_ok=True)
            IMAGES[ending](sample.read_image()[..., 0], root / split / kind / f"{k:03}.{ending}")
            if sample.label:
                ending = masks[k % len(masks)]
                (root / "ground_truth" / kind).mkdir(parents=True, exist_ok=True)
                MASKS[ending](sample.read_mask(), root / f"ground_truth/{kind}/{k:03}.{ending}")
    out = root.parent / "out"
    assert cli.main([
        "--dataset", "folder", "--root", str(root), "--setup", "ENS4", "--image-size", "48",
        "--tile-size", "24", "--weights", "random", "--device", "cpu", "--out", str(out), "--quiet",
    ]) == 0  # fmt: skip
    (path,) = out.rglob("metrics.json")
    result = json.loads(path.read_text())
    return {key: result[key] for key in result if key.startswith(("image_a", "pixel_a", "n_"))}


def test_all_formats_give_the_metrics_of_one(tmp_path, capsys):
    category = toy_category(n_train=8, n_good=4, n_bad=12)
    plain = metrics(category, tmp_path, ["bmp"], ["bmp"])
    assert plain["n_defects"] >= 12 and 0 < plain["pixel_aupro"] < 1
    assert metrics(category, tmp_path, list(IMAGES)[1:], list(MASKS)) == plain
    capsys.readouterr()


@pytest.mark.parametrize("ending", IMAGES)
def test_each_writer_writes_the_same_picture(tmp_path, ending):
    grey = toy_category().test[0].read_image()[..., 0]
    IMAGES[ending](grey, tmp_path / f"a.{ending}")
    np.testing.assert_array_equal(decode_image(tmp_path / f"a.{ending}")[..., 0], grey)
