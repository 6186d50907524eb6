"""images.npz of a category: small copies of its test images, and some defects in detail."""

import contextlib
import json
import math
from dataclasses import asdict, dataclass

import numpy as np

from .. import metrics
from ..data import encoders, resizing
from ..support.errors import InputError, shortened
from ..support.files import atomic_write, remove_leftovers
from ..support.schema import damaged, each, parse_json, text, whole

REMEDY = "remove it and run --report again"
SCHEMA = 2  # of images.npz and analysis.npz
MAP_SIDE = 128  # longest side of a stored heat map and mask, pixels
THUMBNAIL_SIDE = 320  # longest side of a stored image, pixels
ZOOMS = 8  # defects of a category that are stored in detail
ZOOM_SIDE = 256  # longest side of a stored detail, pixels
JPEG_QUALITY = 82
RATIO_SIZE = (512, 512)  # Rolih et al., Fig. 9: ratios of masks of 512 x 512
IMAGES = "images.npz"
ARRAYS = {  # of images.npz: dtype and shape, letters as in StoredImages
    "labels": ("uint8", "N"), "sizes": ("int64", "N", 2), "masks": ("bool", "N", "h", "w"),
    "ratios": ("float64", "N"), "region_image": ("int64", "R"), "region_area": ("int64", "R"),
    "jpegs_shapes": ("int64", "N", 1), "jpegs": ("uint8", "bytes"), "zooms": ("uint8", "more"),
    "zoom_masks": ("bool", "pixels"), "zooms_shapes": ("int64", "Z", 1),
    "zoom_masks_shapes": ("int64", "Z", 2), "text": ("uint8", "json"),
}  # fmt: skip
WINDOW = dict.fromkeys(("region", "image", "top", "left", "bottom", "right"), whole())
TEXT = {
    "names": each(text(1 << 16)), "defects": each(text(1 << 16)), "digest": text(),
    "thumbnail_size": (whole(1), whole(1)),
    "windows": each(WINDOW | {"size": (whole(1), whole(1))}),
}  # fmt: skip


@dataclass(frozen=True)
class Window:
    """A defect and its surroundings, the same for all cells of a category: see `zoom_windows`.

    Parameters: region, number of the defect; image, number of the test image; top, left, bottom,
    right, in pixels of the image file, the last two exclusive; size, (h, w) of the file.
    """

    region: int
    image: int
    top: int
    left: int
    bottom: int
    right: int
    size: tuple

    def within(self, shape):
        """The window's slices, rounded outwards, of an array of this shape (H, W) of the image."""
        ends = zip((self.top, self.left), (self.bottom, self.right), shape, self.size)
        return tuple(slice(a * n // m, -(-b * n // m)) for a, b, n, m in ends)


@dataclass(frozen=True)
class StoredImages:
    """The contents of images.npz: N test images with R defects (regions of masks)."""

    names: list  # N str
    defects: list  # N str
    labels: np.ndarray  # uint8 (N,)
    sizes: np.ndarray  # int64 (N, 2), height and width of the files in pixels
    jpegs: list  # N thumbnails as bytes, stretched to the setup's shape
    masks: np.ndarray  # bool (N, h, w), size of the maps, True where any pixel of the mask is
    ratios: np.ndarray  # float64 (N,), anomalous fraction of a mask at RATIO_SIZE, NaN without one
    region_image: np.ndarray  # int64 (R,), number of the image that a defect lies in
    region_area: np.ndarray  # int64 (R,), its pixels there, in the order of label_regions
    windows: list  # of Window: the defects stored in detail
    zooms: list  # a JPEG of at most ZOOM_SIDE for each window, as bytes
    zoom_masks: list  # bool (h, w) for each window, every pixel of the file
    digest: str  # CategoryImages.digest
    thumbnail_size: tuple  # (height, width)


def save_images(folder, images, setup, options):
    """Write images.npz of a category, unless one of the same images, at least as large, exists.
    Parameters: folder of the category; images, a CategoryImages; setup, for the thumbnails' size.
    """
    category = images.category
    remove_leftovers(folder, {IMAGES})
    size = reduced_size(setup.image_size, THUMBNAIL_SIDE)
    small = reduced_size(setup.image_size, MAP_SIDE)
    with contextlib.suppress(InputError):  # missing, or damaged and rewritten
        old = load_images(folder)
        if old.digest == images.digest and max(old.thumbnail_size) >= max(size):
            return
    jpegs, masks, ratios, areas = [], [], [], []
    test = images.images("test", setup.image_size)  # (N, 3, H, W)
    for k, (image, sample) in enumerate(zip(test, category.test)):
        jpegs.append(_jpeg(np.asarray(image).transpose(1, 2, 0), size))
        has_mask = sample.label and category.has_masks
        mask = images.original_mask(k) if has_mask else np.zeros(small, bool)
        masks.append(reduce_any(mask, small))
        known = has_mask or not sample.label
        ratios.append(resizing.resize_mask(mask, RATIO_SIZE).mean() if known else np.nan)
        areas.append(np.bincount(regions_of(mask, options).ravel())[1:])
    windows = zoom_windows(images, options) if category.has_masks else []
    zooms, zoom_masks = [], []
    for window in windows:
        rows, cols = window.within(window.size)
        part = category.test[window.image].read_image()[rows, cols]
        zooms.append(_jpeg(part, reduced_size(part.shape[:2], ZOOM_SIDE)))
        zoom_masks.append(images.original_mask(window.image)[rows, cols])
    text = {
        "names": [sample.name for sample in category.test],
        "defects": [sample.defect for sample in category.test],
        "digest": images.digest,
        "thumbnail_size": size,
        "windows": [asdict(window) for window in windows],
    }
    arrays = {
        "text": np.frombuffer(json.dumps(text).encode(), np.uint8),
        "labels": np.array([sample.label for sample in category.test], np.uint8),
        "sizes": np.array([sample.read_size() for sample in category.test], np.int64),
        **packed("jpegs", jpegs, np.uint8),
        "masks": np.stack(masks),
        "ratios": np.array(ratios),
        "region_image": np.repeat(np.arange(len(areas)), [len(part) for part in areas]),
        "region_area": np.concatenate(areas),
        **packed("zooms", zooms, np.uint8),
        **packed("zoom_masks", zoom_masks, bool),
    }
    write_arrays(folder / IMAGES, arrays)


def _jpeg(picture, size):
    """An image uint8 (h, w, 3) resized to a JPEG, as uint8 (n,)."""
    picture = resizing.resize_image(np.ascontiguousarray(picture), size, antialias=True)
    return np.frombuffer(encoders.encode_jpeg(picture, JPEG_QUALITY), np.uint8)


def load_images(folder):
    """StoredImages of a category's folder; InputError if the file is missing or damaged."""
    keys = ("labels", "sizes", "masks", "ratios", "region_image", "region_area")
    with reading(folder / IMAGES, ARRAYS) as data:
        text = parse_json(data["text"].tobytes(), TEXT, folder / IMAGES, REMEDY)
        lengths = {len(text["names"]), len(text["defects"]), len(data["labels"])}
        if len(lengths) > 1 or len(text["windows"]) != len(data["zooms_shapes"]):
            raise damaged(folder / IMAGES, "its lists have different lengths", REMEDY)
        text["thumbnail_size"] = tuple(text["thumbnail_size"])
        text["windows"] = [Window(**w | {"size": tuple(w["size"])}) for w in text["windows"]]
        return StoredImages(
            **text,
            jpegs=[part.tobytes() for part in unpacked("jpegs", data)],
            zooms=[part.tobytes() for part in unpacked("zooms", data)],
            zoom_masks=unpacked("zoom_masks", data),
            **{key: data[key] for key in keys},
        )


def regions_of(mask, options):
    """Number the defects of a mask, bool (H, W): int (H, W), from 1, 0 elsewhere."""
    return metrics.label_regions(mask[None], impl=options.impl, threads=options.threads)[0]


def zoom_windows(images, options):
    """At most ZOOMS defects, small and large, of images, a CategoryImages with masks.

    Only the ground truth decides, so they are the same for every setup: all defects, sorted by
    area, are split into ZOOMS equal parts, and the middle one of each is taken.
    Returns a list of Window.
    """
    found = []
    for k, sample in enumerate(images.category.test):
        if sample.label:
            areas = np.bincount(regions_of(images.original_mask(k), options).ravel())[1:].tolist()
            first = len(found)
            found += [(area, first + r, k, r + 1) for r, area in enumerate(areas)]
    count = min(ZOOMS, len(found))
    chosen = [sorted(found)[(2 * j + 1) * len(found) // (2 * count)] for j in range(count)]
    return [_around(images, options, *place) for _, *place in chosen]


def _around(images, options, region, k, number):
    """The Window of a defect, the number-th of image k: a square around the defect, with a side
    of a fifth of the image's smaller side or twice the defect's longest, moved into the image."""
    regions = regions_of(images.original_mask(k), options)
    lines = [np.flatnonzero((regions == number).any(axis)) for axis in (1, 0)]  # rows, columns
    size = regions.shape
    side = max(2 * max(line[-1] - line[0] + 1 for line in lines), min(size) // 5)
    side = int(min(side, *size))
    top, left = (
        int(np.clip((line[0] + line[-1] + 1 - side) // 2, 0, n - side))
        for line, n in zip(lines, size)
    )
    return Window(region, k, top, left, top + side, left + side, size)


def reduced_size(size, side):
    """(h, w) with the shape of size and the longest side at most `side`.

    >>> reduced_size((512, 1024), 128), reduced_size((96, 96), 128)
    ((64, 128), (96, 96))
    """
    scale = min(1.0, side / max(size))
    return tuple(max(1, round(n * scale)) for n in size)


def reduce_mean(values):
    """A map (H, W) as block means with the longest side at most MAP_SIDE, float64 (h, w)."""
    values = np.asarray(values, np.float64)
    rows, cols = (_cuts(n, m) for n, m in zip(values.shape, reduced_size(values.shape, MAP_SIDE)))
    sums = np.add.reduceat(np.add.reduceat(values, rows, 0), cols, 1)
    return sums / np.outer(np.diff(np.r_[rows, values.shape[0]]),
                           np.diff(np.r_[cols, values.shape[1]]))  # fmt: skip


def reduce_any(mask, size):
    """A mask bool (h, w) at another size (H, W): a pixel is True if any pixel in it is, so no
    defect is lost. Enlarging takes the nearest pixel."""
    if mask.shape[0] < size[0] or mask.shape[1] < size[1]:
        return resizing.resize_mask(mask, size)
    rows, cols = (_cuts(n, m) for n, m in zip(mask.shape, size))
    return np.logical_or.reduceat(np.logical_or.reduceat(mask, rows, 0), cols, 1)


def _cuts(n, m):
    """The starts of m blocks of n >= m pixels, as equal as whole pixels allow."""
    return np.arange(m) * n // m


def packed(name, parts, dtype):
    """Pack arrays of different shapes (...) into two: all their values, and their shapes."""
    shapes = np.array([part.shape for part in parts], np.int64)
    values = [np.zeros(0, dtype), *(part.ravel() for part in parts)]
    return {name: np.concatenate(values), f"{name}_shapes": shapes}


def unpacked(name, data):
    """The inverse of `packed`: the list of arrays."""
    shapes = data[f"{name}_shapes"].tolist()
    ends = np.cumsum([math.prod(shape) for shape in shapes], dtype=np.int64)
    return [part.reshape(shape) for part, shape in zip(np.split(data[name], ends), shapes)]


def write_arrays(path, arrays):
    """Write named arrays and SCHEMA as a compressed .npz."""
    with atomic_write(path, "wb") as file:
        np.savez_compressed(file, schema=np.int64(SCHEMA), **arrays)


@contextlib.contextmanager
def reading(path, layout):
    """A context with the arrays of a file, by name. InputError if it is missing, of another
    SCHEMA, or damaged, also if the body finds that, or lacks an array of the layout, name ->
    (dtype, *shape): equal letters are equal sides, "name?" is optional."""
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
        if arrays.get("schema") != SCHEMA:
            raise InputError(f"{path} is from another version; {REMEDY}")
        sides = {}
        for name, (dtype, *shape) in layout.items():
            name, optional, _ = name.partition("?")
            if optional and name not in arrays:
                continue
            array = arrays[name]
            known = [side if isinstance(side, int) else sides.get(side) for side in shape]
            fits = not array.size or array.ndim == len(shape) and all(
                n in (None, m) for n, m in zip(known, array.shape)
            )
            if array.dtype != dtype or not fits:
                raise ValueError(f"{name} is {array.dtype} {array.shape}")
            sides |= zip(shape, array.shape)
        yield arrays
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; run the same command again with --report") from error
    except Exception as error:  # zipfile and NumPy raise many types for a damaged file
        raise InputError(f"{path} is damaged ({shortened(error)}); {REMEDY}") from error
