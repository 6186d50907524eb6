"""Time and peak memory per megapixel, for images of 512 to 8192 px and tiles of 512 px.

    python bench/large.py [--sides 512 1024 2048 4096 8192] [--out bench_large]

Every size is a run of run.py in a process of its own: PaDiM, one model per tile location, on two
training images and two test images of the built-in board, enlarged. Memory is the process's peak,
times are from its metrics.json. Prints a Markdown table.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Without this folder, whose cuda.py would hide NVIDIA's package `cuda` from torch.
sys.path[:] = [str(ROOT), *(path for path in sys.path if Path(path).resolve() != ROOT / "bench")]

from tiled_ref.data import synthetic  # noqa: E402
from tiled_ref.data.encoders import encode_png  # noqa: E402
from tiled_ref.data.resizing import resize_image, resize_mask  # noqa: E402

SIDES = (512, 1024, 2048, 4096, 8192)
OPTIONS = ["--dataset", "folder", "--setup", "ENS4", "--tile-size", "512", "--padim-channels", "20",
           "--weights", "random", "--share-features", "off", "--quiet"]  # fmt: skip


def draw(root, side):
    """Draw two training images, and a normal and a defective test image with its mask."""
    board = synthetic.load(None, "board", n_train=2, n_good=1, n_defective=1)
    places = ["train/0.png", "train/1.png", "test/good/0.png", "test/bad/0.png"]
    for sample, place in zip((*board.train, *board.test), places):
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(resize_image(sample.read_image(), (side, side))))
    mask = root / "ground_truth" / "bad" / "0.png"
    mask.parent.mkdir(parents=True, exist_ok=True)
    mask.write_bytes(encode_png(resize_mask(board.test[1].read_mask(), (side, side))))


def row(out, side):
    """The row of a size in the table."""
    root = out / f"images_{side}"
    draw(root, side)
    command = [sys.executable, ROOT / "run.py", *OPTIONS, "--image-size", str(side)]
    command += ["--root", root, "--out", out / str(side)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=dict(os.environ))
    (path,) = (out / str(side)).rglob("metrics.json")
    result, size = json.loads(path.read_text()), side * side / 1e6
    peak = result["peak_memory_bytes"] / 2**20
    cells = [
        side, f"{size:.1f}", result["n_models"], f"{result['seconds_train'] / 2 / size:.2f}",
        f"{result['seconds_test'] / 2 / size:.2f}", f"{result['seconds_score'] / 2 / size:.2f}",
        f"{peak:,.0f}", f"{peak / size:,.0f}",
    ]  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES, metavar="PX")
    parser.add_argument("--out", type=Path, default=Path("bench_large"), metavar="DIR")
    args = parser.parse_args()
    print("| px | megapixels | models | train s/MP | predict s/MP | score s/MP | peak MiB | MiB/MP |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for side in args.sides:
        print(row(args.out, side), flush=True)


if __name__ == "__main__":
    main()
