"""Measurements for tiled_ref/reporting/walk/LESSON.md, with the package's own functions.

    python bench/lesson.py picture [--image NAME] [--out bench/lesson.jpg]
    python bench/lesson.py seams
    python bench/lesson.py scores [--dataset mvtec --root DIR --category screw] [--setup NAME] [--arch NAME]

picture draws a defect at 512 and at 256 px with the maps of ENS9 and SM256, and prints the largest
value on the defect and outside the window drawn. seams prints the effect of tile borders on
features and maps; scores prints the tile scores, and how well their mean and maximum separate
defective images from normal ones, as Markdown tables.
"""

import argparse
import functools
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Without this folder, whose cuda.py would hide NVIDIA's package `cuda` from torch.
sys.path[:] = [str(ROOT), *(path for path in sys.path if Path(path).resolve() != ROOT / "bench")]

import numpy as np  # noqa: E402

from tiled_ref import merging, metrics, smoothing  # noqa: E402
from tiled_ref.data import mvtec, synthetic  # noqa: E402
from tiled_ref.data.encoders import encode_jpeg  # noqa: E402
from tiled_ref.data.reading import read_images, read_masks  # noqa: E402
from tiled_ref.data.tiles import LocationImages  # noqa: E402
from tiled_ref.ensemble import Forgotten, TiledEnsemble, collect  # noqa: E402
from tiled_ref.reporting.drawing import render  # noqa: E402

DATASETS = {"synthetic": synthetic, "mvtec": mvtec}
IMAGE = "board/test/fibre/011.png"  # of the picture
CROP = 64  # px of the image of 512 px that the picture shows
OFFSETS = (-32, -16, -8, -4, -2, -1, 0, 1, 2, 4, 8, 16, 32)  # px from the seam
FROM_BORDER = (0, 1, 2, 4, 8, 16, 24)  # positions from the border of a tile


read = functools.lru_cache(maxsize=3)(read_images)  # samples as a tuple, (H, W) -> uint8 (N, 3, H, W)


def predictions(setup, category, samples, arch="padim", **options):
    """Train an ensemble on the category and predict the tiles of samples: grid, maps (rows, cols,
    M, h, w), scores (rows, cols, M)."""
    ensemble = TiledEnsemble(setup, arch, **options)
    size = ensemble.setup.image_size
    train, test = read(tuple(category.train), size), read(tuple(samples), size)
    found = ensemble.each_location(train, test, Forgotten())
    return ensemble.grid, *collect(found, ensemble.grid, len(test))


def labels_of(samples):
    return np.array([sample.label for sample in samples])


def table(head, rows):
    """Rows of strings as a Markdown table."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def picture(category, name, crop=CROP, setups=("ENS9", "SM256"), **options):
    """Draw an image's defect: above, its pixels at 512 and at 256 px; below, the maps of ENS9 and
    SM256, each scaled to its range in the image; uint8 (h, w, 3). Prints values."""
    (sample,) = [sample for sample in category.test if sample.name == name]
    panels = []
    for setup in setups:
        grid, maps, _ = predictions(setup, category, [sample], **options)
        side = grid.image_size[0]
        whole = smoothing.smooth_seams(merging.untile_average(maps, grid), grid)[0]
        heat = render.colormap((whole - whole.min()) / np.ptp(whole))
        photo = read_images([sample], grid.image_size)[0].transpose(1, 2, 0)
        own = read_masks([sample], grid.image_size)[0]
        if not panels:
            large, mask = side, own
            middle = [int(places.mean()) for places in np.nonzero(mask)]
            top, left = (min(max(0, m - crop // 2), side - crop) // 2 * 2 for m in middle)
        scale = large // side
        window = np.s_[top // scale : (top + crop) // scale, left // scale : (left + crop) // scale]
        outside = whole.copy()
        outside[window] = 0
        print(f"{setup}: {whole[own].max():.1f} on the defect, {outside.max():.1f} elsewhere")
        pair = [a[window].repeat(4 * scale, 0).repeat(4 * scale, 1) for a in (photo, heat)]
        outline = mask[top : top + crop, left : left + crop].repeat(4, 0).repeat(4, 1)
        panels.append([pair[0], render.draw_contours(np.ascontiguousarray(pair[1]), outline)])
    gap = np.full((4 * crop, 8, 3), 255, np.uint8)
    rows = [np.hstack([left, gap, right]) for left, right in zip(*panels)]
    return np.vstack([rows[0], np.full((8, rows[0].shape[1], 3), 255, np.uint8), rows[1]])


def seams(category, n_images=16, setups=("SM512", "ST4", "ENS4", "ENS9"), **options):
    """Two tables: how far the features of a tile are from those of the whole image, by the distance
    from the tile's border, and the step from a column of the map to the next beside a seam."""
    normal = [sample for sample in category.test if not sample.label][:n_images]
    whole, tiled = (TiledEnsemble(name, **options) for name in ("SM512", "ENS4"))
    images, features = read(tuple(normal), whole.setup.image_size), []
    for ensemble in (whole, tiled):
        cut = LocationImages(images, ensemble.grid, [(0, 0)], ensemble.device)
        model = ensemble.make_model()
        features.append(np.concatenate([model.embed(cut[[k]]).numpy() for k in range(len(images))]))
    side = features[1].shape[-1]  # positions of a tile
    reference, tile = features[0][..., : side // 2, :side], features[1][..., : side // 2, :]
    change = np.linalg.norm(tile - reference, axis=1) / np.linalg.norm(reference, axis=1)
    change = 100 * change.mean((0, 1))[::-1]  # (side,), from the border inwards
    near = [k for k in FROM_BORDER if k < side]
    first = table(
        ["positions from the border", *near], [["%", *(f"{change[k]:.1f}" for k in near)]]
    )
    rows = []
    for setup in setups:
        grid, maps, _ = predictions(setup, category, normal, **options)
        merged = merging.untile_average(maps, grid)
        tiles = TiledEnsemble(setup, **options).setup.input_grid
        for kind, found in ("", merged), (", smoothed", smoothing.smooth_seams(merged, tiles)):
            steps = np.abs(np.diff(found, axis=2)).mean((0, 1))  # (W - 1,)
            middle = tiles.image_size[1] // 2 - 1  # the step across the seam
            if kind == "" or setup.startswith("ENS"):
                rows.append([setup + kind, *(f"{steps[middle + k]:.3f}" for k in OFFSETS)])
    return first + "\n\n" + table(["px from the seam", *OFFSETS], rows)


def scores(category, setup="ENS9", arch="padim", **options):
    """Three tables: the scores of normal images by tile location, the tiles with and without a
    defect, and the image scores by mean and maximum."""
    samples, labels = category.test, labels_of(category.test)
    grid, _, found = predictions(setup, category, samples, arch, **options)
    masks = read_masks(samples, grid.image_size)
    with_defect = grid.tile(masks[:, None]).any((3, 4, 5))  # (rows, cols, M)
    normal = found[:, :, labels == 0]
    mean, spread = normal.mean(2), normal.std(2, ddof=1)
    first = table(
        ["normal images", *(f"{i}, {j}" for i, j in grid.locations())],
        [["mean score", *(f"{v:.2f}" for v in mean.flat)], ["std", *(f"{v:.2f}" for v in spread.flat)]],
    )
    rows = []
    for title, chosen in ("with a defect", with_defect), ("without, same images", ~with_defect):
        areas, shift = [], []
        for i, j in grid.locations():
            bad = found[i, j][chosen[i, j] & (labels == 1)]
            if len(bad):
                both = np.concatenate([normal[i, j], bad])
                areas.append(metrics.auroc(both, np.repeat([0, 1], [len(normal[i, j]), len(bad)])))
                shift.append((bad.mean() - mean[i, j]) / spread[i, j])
        count = (chosen & (labels == 1)).sum((0, 1))[labels == 1].mean()
        rows.append([title, f"{count:.1f}", f"{np.mean(shift):.2f}", f"{100 * np.mean(areas):.1f}"])
    second = table(["tiles", "per defective image", "shift in std", "AUROC of a tile's score"], rows)
    scaled = (found - mean[..., None]) / spread[..., None]
    rows = []
    for title, values in (
        ("mean", merging.mean_scores(found)), ("maximum", merging.max_scores(found)),
        ("the 2 highest", merging.top_scores(found, 2)),
        ("mean, scaled by location", merging.mean_scores(scaled)),
        ("maximum, scaled by location", merging.max_scores(scaled)),
    ):  # fmt: skip
        good, bad = values[labels == 0], values[labels == 1]
        shift = bad.mean() - good.mean()
        rows.append([
            title, f"{good.mean():.2f}", f"{good.std(ddof=1):.2f}", f"{shift:.2f}",
            f"{shift / good.std(ddof=1):.2f}", f"{100 * metrics.auroc(values, labels):.1f}",
        ])  # fmt: skip
    head = ["image score", "mean, normal", "std, normal", "shift", "shift in std", "AUROC"]
    together = np.corrcoef(normal.reshape(-1, normal.shape[2]))
    between = together[np.triu_indices(len(together), 1)].mean()
    return "\n\n".join(
        [first, second, table(head, rows), f"Mean correlation of two locations: {between:.2f}"]
    )


def build_parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("picture", "seams", "scores"))
    parser.add_argument("--dataset", choices=tuple(DATASETS), default="synthetic")
    parser.add_argument("--root")
    parser.add_argument("--category", default="board")
    parser.add_argument("--setup", default="ENS9")
    parser.add_argument("--arch", default="padim")
    parser.add_argument("--image", default=IMAGE)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "lesson.jpg")
    return parser


def main(argv=None):
    args = build_parser().parse_args(argv)
    category = DATASETS[args.dataset].load(args.root, args.category)
    if args.part == "picture":
        args.out.write_bytes(encode_jpeg(picture(category, args.image), 80))
    else:
        print(seams(category) if args.part == "seams" else scores(category, args.setup, args.arch))


if __name__ == "__main__":
    main()
