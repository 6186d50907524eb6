"""A small synthetic data set in the layout of MVTec AD 2, for trying it without the download.

    python -m tiled_ref.data.drawn_mvtec2 FOLDER [--objects can rice] [--size 256] [--counts]

Each object is one of the scenes of the built-in data set, scaled down.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from ..support.errors import InputError, one_line
from ..support.files import atomic_write, make_folder
from . import synthetic
from .encoders import encode_png
from .mvtec2 import CATEGORIES, LIGHTING, PRIVATE
from .resizing import resize_image

IMAGES = {"train/good": 8, "validation/good": 3, "test_public/good": 3, "test_public/bad": 4}
DRAWN = 4  # images drawn for the private splits, every other one with a defect


def write_objects(root, objects=CATEGORIES, side=256, counts=False):
    """Draw objects into root/<object>, overwriting existing files.

    Parameters: root, path; objects, of mvtec2.CATEGORIES; side, height and width of the images in
    pixels; counts, True to give the private splits as many images as in the data set, by
    repeating the drawn ones.
    Raises InputError if a file cannot be written.
    """
    for name in objects:
        scene = synthetic.categories()[CATEGORIES.index(name) % 3]
        drawn = synthetic.load(
            None, scene, n_train=sum(IMAGES.values()), n_good=DRAWN, n_defective=2 * DRAWN
        )
        normal, good = iter(drawn.train), drawn.test[:DRAWN]
        bad = iter(drawn.test[DRAWN:])
        for part, n in IMAGES.items():
            for k in range(n):
                sample = next(bad if part.endswith("bad") else normal)
                _write_sample(Path(root, name, part, f"{k:03d}_regular.png"), sample, side)
        private = [_encoded(sample, side) for sample in (*good[::2], *bad)]
        for split, lighting in LIGHTING.items():
            for k in range(PRIVATE[name] if counts else DRAWN):
                file = Path(root, name, split, f"{k:03d}_{lighting}.png")
                _write({file: private[k % len(private)]})


def _encoded(sample, side):
    return encode_png(resize_image(sample.read_image(), (side, side), antialias=True))


def _write_sample(path, sample, side):
    files = {path: _encoded(sample, side)}
    if sample.label:
        mask = sample.read_mask()
        small = np.zeros((side, side), bool)  # keeps even the smallest defect
        small[tuple(i * side // n for i, n in zip(mask.nonzero(), mask.shape))] = True
        files[path.parent.parent / "ground_truth" / "bad" / f"{path.stem}_mask.png"] = (
            encode_png(small)
        )
    _write(files)


def _write(files):
    for file, data in files.items():
        make_folder(file.parent)
        with atomic_write(file, "wb") as target:
            target.write(data)


def main(argv=None):
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tiled_ref.data.drawn_mvtec2", description=(
        "Draw a small data set in the layout of MVTec AD 2."))  # fmt: skip
    parser.add_argument("folder", type=Path, help="output folder for the objects")
    parser.add_argument("--objects", nargs="+", choices=CATEGORIES, default=CATEGORIES,
                        metavar="NAME", help=f"any of {', '.join(CATEGORIES)} (default all)")
    parser.add_argument("--size", type=int, choices=range(32, 1025), default=256, metavar="N",
                        help="height and width of the images, 32 to 1024 px (default 256)")
    parser.add_argument("--counts", action="store_true",
                        help="draw as many private images as in the data set, for a submission")
    args = parser.parse_args(argv)
    try:
        write_objects(args.folder, args.objects, args.size, args.counts)
    except InputError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
