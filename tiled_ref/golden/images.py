"""The stages before the backbone: decoding, resizing, normalising, tiling."""

import tempfile
from pathlib import Path

import numpy as np

from ..data import images, resizing
from . import formulas, pictures
from .compare import EXACT, close
from .inputs import GRIDS, grid_array, size_of, tensor, tile_grid
from .merging import PLACE_MISTAKES
from .numbers import Numbers
from .stage import Case, File, Mistake, Stage


def _jpeg_blocks(name):
    """Draw the blocks of a JPEG case, (rows, cols, components)."""
    blocks = 60 + Numbers(f"decode/{name}").integers(140, 2, 3, 1 if name == "jpeg_grey" else 3)
    if name == "jpeg":
        blocks[..., 1:] = 128 + (blocks[..., 1:] - 128) // 4
    return blocks


def _decode_cases():
    draw = Numbers("decode")
    colour = draw.integers(256, 7, 5, 4).astype(np.uint8)
    wide = draw.integers(65536, 4, 6, 3).astype(np.uint16)
    wide[0, :4, 0] = 0, 128, 65535, 65407
    palette = draw.integers(256, 6, 3).astype(np.uint8)
    numbers = draw.integers(6, 5, 6, 1).astype(np.uint8)
    rgb, png = colour[..., :3], pictures.png
    clear = png(numbers, pictures.PALETTE, palette, transparent=[0, 99, 255])
    for name, data, flags in (
        ("rgb", png(rgb, pictures.RGB), ("not_square",)),
        ("grey", png(colour[..., :1], pictures.GREY), ("grey", "not_square")),
        ("grey_alpha", png(colour[..., 2:], pictures.GREY_ALPHA), ("grey", "alpha")),
        ("alpha", png(colour, pictures.RGBA), ("alpha", "not_square")),
        ("palette", png(numbers, pictures.PALETTE, palette), ("palette",)),
        ("palette_alpha", clear, ("palette", "alpha")),
        ("grey_16", png(wide[..., :1], pictures.GREY), ("grey", "sixteen_bit")),
        ("rgb_16", png(wide, pictures.RGB), ("sixteen_bit",)),
        ("turned", png(rgb, pictures.RGB, orientation=6), ("rotated", "not_square")),
        ("upside_down", png(rgb, pictures.RGB, orientation=3), ("rotated",)),
        ("one_pixel", png(rgb[:1, :1], pictures.RGB), ("one_pixel",)),
    ):
        yield Case(name, {"image": File("image.png", data)}, flags)
    for name, flags in (("jpeg", ("lossy",)), ("jpeg_grey", ("lossy", "grey"))):
        image = File("image.jpg", pictures.jpeg(_jpeg_blocks(name)))
        yield Case(name, {"image": image}, flags, compare={"image": close(0, 2)})


def _decode(inputs):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / inputs["image"].name
        path.write_bytes(inputs["image"].data)
        return {"image": images.decode_image(path)}


def _decode_formula(inputs, ycc=True, **switches):
    file = inputs["image"]
    if file.name.endswith(".png"):
        return {"image": pictures.read_png(file.data, **switches)}
    bgr = switches.get("bgr", False)
    known = {pictures.jpeg(_jpeg_blocks(name)): name for name in ("jpeg", "jpeg_grey")}
    return {"image": pictures.jpeg_pixels(_jpeg_blocks(known[file.data]), bgr, ycc)}


DECODE = Stage(
    "decode",
    "an image file as 8-bit RGB",
    "tiled_ref.data.images.decode_image",
    "Rolih et al. Sec. 4.2; rules in FORMAT.md",
    {"image": EXACT},
    _decode_cases,
    _decode,
    _decode_formula,
    (
        Mistake("BGR instead of RGB", bgr=True),
        Mistake("alpha is blended over black instead of dropped", blend=0),
        Mistake("alpha is blended over white instead of dropped", blend=255),
        Mistake("palette indices are taken for grey values", colours=False),
        Mistake("EXIF orientation is ignored", orient=False),
        Mistake(
            "16-bit grey: the high byte is taken instead of (v + 128) / 257", sixteen_bit="high"
        ),
        Mistake("16 bits: the low byte is taken (byte order)", sixteen_bit="low"),
        Mistake("16-bit grey is clipped at 255 instead of scaled", sixteen_bit="clipped"),
        Mistake("Y, Cb, Cr of a JPEG file are taken for red, green, blue", ycc=False),
    ),
)


def _picture(draw, h, w):
    """Draw a wave with noise, uint8 (h, w, 3)."""
    y, x = np.mgrid[:h, :w]
    wave = 3 * np.abs((3 * x[..., None] + 2 * y[..., None] + 20 * np.arange(3)) % 120 - 60)
    return (20 + wave + draw.integers(50, h, w, 3)).astype(np.uint8)


def _resize_cases():
    for name, h, w, size, flags in (
        ("half", 24, 32, (12, 16), ("downscale", "ties")),
        ("third", 33, 21, (11, 7), ("downscale", "not_square")),
        ("odd", 29, 37, (17, 13), ("downscale", "not_square")),
        ("larger", 9, 7, (20, 24), ("upscale", "not_square")),
        ("mixed", 9, 40, (20, 16), ("upscale", "downscale", "not_square")),
        ("same", 10, 12, (10, 12), ("same_size",)),
        ("one_pixel", 1, 1, (3, 4), ("one_pixel", "upscale")),
        ("long", 2, 1501, (3, 997), ("upscale", "downscale", "not_square")),
    ):
        image = _picture(Numbers(f"resize/{name}"), h, w)
        yield Case(name, {"image": image, "size": np.array(size, np.int64)}, flags)


def _resize_formula(inputs, mode="integers", rounding=np.rint, channels=None, **switches):
    image, size = inputs["image"].transpose(2, 0, 1), size_of(inputs)
    if mode == "integers":
        result = _integers(image, size, **switches)
    else:
        if mode == "areas":
            rows, cols = (_area_matrix(a, b) for a, b in zip(image.shape[1:], size))
            result = rows @ image.astype(np.float64) @ cols.T
        else:
            result = formulas.enlarge(image, size, mode, **switches)
        result = rounding(np.round(result, 6)).clip(0, 255)
    return {"image": result.astype(np.uint8)[slice(None, None, channels)].transpose(1, 2, 0)}


def _integers(image, size, turned=False, drop=True, last=2, stay=True, **switches):
    """OpenCV's rule, (3, h, w) -> int64 (3, H, W). drop: the low bits between the passes; last:
    added before the last shift; stay: keep f outside the first and last row."""
    if turned:
        return _integers(image.swapaxes(1, 2), size[::-1], **switches).swapaxes(1, 2)
    left, right = _integer_weights(image.shape[2], size[1], **switches)
    upper, lower = _integer_weights(image.shape[1], size[0], stay, **switches)
    sums = image.astype(np.int64) @ (left + right).T  # (3, h, W)
    if not drop:
        return ((upper + lower) @ sums + (1 << 21)) >> 22
    sums >>= 4
    return ((upper @ sums >> 16) + (lower @ sums >> 16) + last) >> 2


def _integer_weights(
    n_in, n_out, stay=False, single=True, whole=np.rint, half=0.5, less=0.5, turn=False
):
    """Return the weights of pixels i and i + 1 as two matrices, int64 (n_out, n_in)."""
    places = (np.arange(n_out) + half) * n_in / n_out - less
    places = places.astype(np.float32 if single else np.float64)
    low = np.floor(places)
    f = np.where((low >= 0) & (low < n_in - 1) | stay, places - low, 0)
    one_hot = [np.arange(n_in) == np.clip(low + k, 0, n_in - 1)[:, None] for k in (0, 1)]
    weights = (f, 1 - f) if turn else (1 - f, f)
    rules = whole if isinstance(whole, tuple) else (whole, whole)
    numbers = [rule(2048 * w).astype(int)[:, None] for rule, w in zip(rules, weights)]
    return [place * number for place, number in zip(one_hot, numbers)]


def _area_matrix(n_in, n_out):
    """Averaging over each output pixel's area as a matrix (n_out, n_in)."""
    edges = np.arange(n_out + 1) * n_in / n_out
    low, high = edges[:-1, None], edges[1:, None]
    share = np.minimum(high, np.arange(n_in) + 1) - np.maximum(low, np.arange(n_in))
    return np.maximum(share, 0) / (n_in / n_out)


RESIZE = Stage(
    "resize",
    "bilinear resize without antialias",
    "tiled_ref.data.resizing.resize_image",
    "Rolih et al. Sec. 4.2; the rule of OpenCV's INTER_LINEAR for 8 bits",
    {"image": EXACT},
    _resize_cases,
    lambda inputs: {"image": resizing.resize_image(inputs["image"], size_of(inputs))},
    _resize_formula,
    (
        Mistake("antialias: the filter is widened when shrinking", mode="bilinear", antialias=True),
        Mistake(
            "align_corners: the corners of both grids are matched",
            mode="bilinear",
            align_corners=True,
        ),
        Mistake("nearest neighbour instead of bilinear", mode="nearest"),
        Mistake("nearest neighbour (centres) instead of bilinear", mode="nearest_centre"),
        Mistake("the mean over areas instead of bilinear", mode="areas"),
        Mistake(
            "bilinear in floating point, rounded half to even (torch, anomalib; right in edition "
            "1 of these files) instead of OpenCV's integers",
            mode="bilinear",
        ),
        Mistake(
            "bilinear in floating point, rounded half up, instead of OpenCV's integers",
            mode="bilinear",
            rounding=lambda v: np.floor(v + 0.5),
        ),
        Mistake("values are truncated instead of rounded", mode="bilinear", rounding=np.floor),
        Mistake("f is a float64 instead of a float32", single=False),
        Mistake("weights are truncated instead of rounded to integers", whole=np.floor),
        Mistake("the second weight is truncated instead of rounded", whole=(np.rint, np.floor)),
        Mistake("one shift by 22 at the end instead of 4, 16 and 2", drop=False),
        Mistake("2 is not added before the last shift", last=0),
        Mistake("down the columns first, then along the rows", turned=True),
        Mistake("f is 0 beyond the first and last row too", stay=False),
        Mistake(
            "positions are those of the corners of pixels, not of their centres", half=0.0, less=0.0
        ),
        Mistake("the half pixel is not subtracted again", less=0.0),
        Mistake("the two weights are exchanged", turn=True),
        Mistake("positions of corners, in floating point", mode="bilinear", half=0.0),
        Mistake("BGR instead of RGB", channels=-1),
    ),
)


def _resize_mask_cases():
    for name, shape, size, flags in (
        ("smaller", (20, 33), (8, 12), ("downscale", "not_square")),
        ("larger", (7, 5), (16, 18), ("upscale", "not_square")),
        ("same", (6, 9), (6, 9), ("same_size",)),
        ("empty", (12, 12), (5, 5), ("empty_mask", "downscale")),
    ):
        mask = Numbers(f"resize_mask/{name}").uniform(*shape) > (1 if name == "empty" else 0.7)
        yield Case(name, {"mask": mask, "size": np.array(size, np.int64)}, flags)


def _resize_mask_formula(inputs, mode="nearest", level=0.5):
    return {"mask": formulas.enlarge(inputs["mask"], size_of(inputs), mode) > level}


RESIZE_MASK = Stage(
    "resize_mask",
    "nearest-neighbour resize of a mask",
    "tiled_ref.data.resizing.resize_mask",
    "floor(i n_in / n_out)",
    {"mask": EXACT},
    _resize_mask_cases,
    lambda inputs: {"mask": resizing.resize_mask(inputs["mask"], size_of(inputs))},
    _resize_mask_formula,
    (
        Mistake(
            "floor((i + 0.5) n_in / n_out) instead of floor(i n_in / n_out)", mode="nearest_centre"
        ),
        Mistake("the position is rounded instead of truncated", mode="nearest_rounded"),
        Mistake("the position is rounded up instead of down", mode="nearest_up"),
        Mistake("nearest with align_corners", mode="nearest_corners"),
        Mistake("the mask is cropped instead of resized", mode="cropped"),
        Mistake("bilinear, truncated to integers", mode="bilinear", level=1 - 1e-9),
        Mistake("bilinear, thresholded above 0", mode="bilinear", level=1e-9),
        Mistake("bilinear, thresholded above a half", mode="bilinear"),
    ),
)


def _normalise_cases():
    every = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(3, 1)
    colours = Numbers("normalise").integers(256, 2, 3, 5, 7).astype(np.uint8)
    yield Case("every_level", {"images": every})
    yield Case("several", {"images": colours}, ("several", "not_square"))


def _normalise_formula(
    inputs, scale=255.0, mean=images.MEAN, std=images.STD, order=1, power=1, planes=True
):
    x = inputs["images"].astype(np.float64)[:, ::order] / scale
    mean, std = (np.broadcast_to(np.float64(v), 3).reshape(-1, 1, 1) for v in (mean, std))
    std = std**power
    if not planes:
        mean, std = (np.resize(v, x.size).reshape(x.shape) for v in (mean, std))
    return {"images": (x - mean) / std}


NORMALISE = Stage(
    "normalise",
    "8-bit images as the backbone wants them",
    "tiled_ref.data.images.normalize",
    "(x / 255 - mean) / std, torchvision's ResNet18_Weights.IMAGENET1K_V1",
    # Three roundings of numbers up to 1, divided by 0.224; also as one product and one sum.
    {"images": close(1e-6, 2e-6)},
    _normalise_cases,
    lambda inputs: {"images": images.normalize(tensor(inputs["images"])).numpy()},
    _normalise_formula,
    (
        Mistake("BGR instead of RGB", order=-1),
        Mistake(
            "mean and standard deviation of red and blue are exchanged (BGR)",
            mean=images.MEAN[::-1],
            std=images.STD[::-1],
        ),
        Mistake("the means of red and blue are exchanged (BGR)", mean=images.MEAN[::-1]),
        Mistake("the standard deviations of red and blue are exchanged", std=images.STD[::-1]),
        Mistake("divided by the variance, not by the standard deviation", power=2),
        Mistake("multiplied by the standard deviation, not divided", power=-1),
        Mistake("means of 0.5 instead of ImageNet's", mean=0.5),
        Mistake("standard deviations of 0.5 instead of ImageNet's", std=0.5),
        Mistake("channels are taken for the last axis in memory", planes=False),
        Mistake("not divided by 255", scale=1.0),
        Mistake("divided by 256 instead of 255", scale=256.0),
        Mistake("the mean is not subtracted", mean=0),
        Mistake("not divided by the standard deviation", std=1),
        Mistake("neither mean nor standard deviation are used", mean=0, std=1),
        Mistake("a mean and standard deviation of 0.5 instead of ImageNet's", mean=0.5, std=0.5),
    ),
)


def _tile_cases():
    for name, grid, flags in GRIDS:
        picture = Numbers(f"tile/{name}").uniform(2, 1, *grid[:2])
        yield Case(name, {"images": picture, "grid": grid}, (*flags, "several"))
    picture = Numbers("tile/three_channels").uniform(1, 3, 10, 9)
    inputs = {"images": picture, "grid": grid_array((10, 9), 4, 3)}
    yield Case("three_channels", inputs, ("non_divisible", "overlap", "not_square"))


def _tile(inputs):
    return {"tiles": np.ascontiguousarray(tile_grid(inputs["grid"]).tile(inputs["images"]))}


def _tile_formula(inputs, edge=None, both_sides=(), **switches):
    whole, grid = inputs["images"], inputs["grid"]
    if edge or both_sides:
        rows, cols = formulas.grid_counts(grid)
        H, W, h, w, sh, sw = grid.tolist()
        below, right = (rows - 1) * sh + h - H, (cols - 1) * sw + w - W
        top = below // 2 if "rows" in both_sides else 0
        left = right // 2 if "cols" in both_sides else 0
        sides = (0, 0), (0, 0), (top, below - top), (left, right - left)
        whole = np.pad(whole, sides, edge or "constant")
    return {"tiles": formulas.cut(whole, grid, **switches)}


TILE = Stage(
    "tile",
    "tiles in row-major order, zeros beyond the image",
    "tiled_ref.tiling.TileGrid.tile",
    "Rolih et al. Eq. 1-2; padding is applied after normalisation",
    {"tiles": EXACT},
    _tile_cases,
    _tile,
    _tile_formula,
    (
        *PLACE_MISTAKES,
        Mistake("the padding is divided between both sides", both_sides=("rows", "cols")),
        Mistake("the padded rows are divided between both sides", both_sides=("rows",)),
        Mistake("the padded columns are divided between both sides", both_sides=("cols",)),
        Mistake("incomplete last rows and columns of tiles are left out", dropped=(1, 1)),
        Mistake("an incomplete last row of tiles is left out", dropped=(1, 0)),
        Mistake("an incomplete last column of tiles is left out", dropped=(0, 1)),
        Mistake("the edge is repeated beyond the image instead of zeros", edge="edge"),
        Mistake("the image is mirrored (reflect) beyond its edge instead of zeros", edge="reflect"),
        Mistake("the image is mirrored (symmetric) beyond its edge, not zeros", edge="symmetric"),
        Mistake("the image starts again beyond its edge (wrap) instead of zeros", edge="wrap"),
        Mistake("ones beyond the image instead of zeros", fill=1),
    ),
)

STAGES = (DECODE, RESIZE, RESIZE_MASK, NORMALISE, TILE)
