"""images.npz of a category: the small copies of its test images that a report needs."""

import io
import json
import math
import zipfile
from dataclasses import asdict, dataclass

import numpy as np

from .. import metrics
from ..data import images as image_data
from ..support.errors import InputError
from ..support.files import atomic_write

SCHEMA = 2
MAP_SIDE = 128  # longest side of a kept heat map and mask, pixels
THUMBNAIL_SIDE = 320  # longest side of a kept image, pixels
ZOOMS = 8  # defects of a category that are kept in detail
ZOOM_SIDE = 256  # longest side of the kept detail of an image, pixels
JPEG_QUALITY = 82
RATIO_SIZE = (512, 512)  # Rolih et al., Fig. 9: ratios are those of masks of 512 x 512
IMAGES = "images.npz"


@dataclass(frozen=True)
class Window:
    """A defect and what is around it, the same for all cells of a category: see `zoom_windows`.

    Parameters: region, number of the defect; image, number of the test image; top, left,
    bottom, right, in pixels of the image file, the last two exclusive; size, (h, w) of the file.
    """

    region: int
    image: int
    top: int
    left: int
    bottom: int
    right: int
    size: tuple

    def within(self, shape):
        """Slices of the pixels of an array (H, W) over the whole image that the window touches.

        Parameters: shape (H, W).
        """
        ends = zip((self.top, self.left), (self.bottom, self.right), shape, self.size)
        return tuple(slice(a * n // m, -(-b * n // m)) for a, b, n, m in ends)


@dataclass(frozen=True)
class StoredImages:
    """What images.npz holds of the test images of one category.

    Parameters: names, defects, lists of str (N); labels uint8 (N,); sizes int64 (N, 2), height and
    width of the files in pixels; jpegs, N images of THUMBNAIL_SIDE as bytes, stretched to the
    setup's shape, of thumbnail_size (height, width); masks bool (N, h, w) of the size of the maps,
    True where any of the mask's pixels in it is; ratios float64 (N,), the anomalous part of each
    mask at RATIO_SIZE, NaN without a mask; region_image and region_area int64 (R,), in which image
    a defect lies and its pixels there, in the order of `metrics.label_regions`; windows, what can
    be shown in detail (`zoom_windows`), with zooms, JPEG bytes of at most ZOOM_SIDE, and
    zoom_masks, bool (h, w), every pixel of the file; digest, cell.CategoryImages.digest of
    the images.
    """

    names: list
    defects: list
    labels: np.ndarray
    sizes: np.ndarray
    jpegs: list
    masks: np.ndarray
    ratios: np.ndarray
    region_image: np.ndarray
    region_area: np.ndarray
    windows: list
    zooms: list
    zoom_masks: list
    digest: str
    thumbnail_size: tuple


def save_images(folder, images, setup, options):
    """Write images.npz of a category, unless one of the same test images is there, and as fine.

    Parameters: folder of the category; images, a cell.CategoryImages; setup, whose
    size the thumbnails are made of; options.
    """
    path = folder / IMAGES
    category = images.category
    size = reduced_size(setup.image_size, THUMBNAIL_SIDE)
    small = reduced_size(setup.image_size, MAP_SIDE)
    if path.is_file():
        try:
            old = load_images(folder)
        except InputError:
            old = None  # damaged: written anew
        if old and old.digest == images.digest and max(old.thumbnail_size) >= max(size):
            return
    test = images.images("test", setup.image_size)  # (N, 3, H, W)
    jpegs, masks, ratios, region_image, region_area = [], [], [], [], []
    for k, (image, sample) in enumerate(zip(test, category.test)):
        picture = np.ascontiguousarray(np.asarray(image).transpose(1, 2, 0))
        picture = image_data.resize_image(picture, size, antialias=True)
        jpegs.append(image_data.encode_jpeg(picture, JPEG_QUALITY))
        mask = np.zeros(small, bool)
        ratio = 0.0
        if sample.label and category.has_masks:
            full = images.original_mask(k)
            mask = reduce_any(full, small)
            ratio = float(image_data.resize_mask(full, RATIO_SIZE).mean())
            areas = np.bincount(regions_of(full, options).ravel())[1:]
            region_image += [k] * len(areas)
            region_area += areas.tolist()
        masks.append(mask)
        ratios.append(ratio if not sample.label or category.has_masks else np.nan)
    windows = zoom_windows(images, options) if category.has_masks else []
    zooms, zoom_masks = [], []
    for window in windows:
        picture, mask = _detail(images, window)
        zooms.append(picture)
        zoom_masks.append(mask)
    text = {
        "names": [sample.name for sample in category.test],
        "defects": [sample.defect for sample in category.test],
        "digest": images.digest,
        "thumbnail_size": size,
        "windows": [asdict(window) for window in windows],
    }
    arrays = {
        "schema": np.int64(SCHEMA),
        "text": np.frombuffer(json.dumps(text).encode(), np.uint8),
        "labels": np.array([sample.label for sample in category.test], np.uint8),
        "sizes": np.array([sample.read_size() for sample in category.test], np.int64),
        **packed("jpegs", [np.frombuffer(data, np.uint8) for data in jpegs], np.uint8),
        "masks": np.stack(masks),
        "ratios": np.array(ratios),
        "region_image": np.array(region_image, np.int64),
        "region_area": np.array(region_area, np.int64),
        **packed("zooms", [np.frombuffer(data, np.uint8) for data in zooms], np.uint8),
        **packed("zoom_masks", zoom_masks, bool),
    }
    write_arrays(path, arrays)


def _detail(images, window):
    """What lies in a Window: the image as the bytes of a JPEG, the mask bool (h, w)."""
    rows, cols = window.within(window.size)
    part = np.ascontiguousarray(images.category.test[window.image].read_image()[rows, cols])
    small = reduced_size(part.shape[:2], ZOOM_SIDE)
    picture = image_data.resize_image(part, small, antialias=True)
    mask = images.original_mask(window.image)[rows, cols]
    return image_data.encode_jpeg(picture, JPEG_QUALITY), mask


def load_images(folder):
    """StoredImages of a category's folder; InputError where missing or damaged."""
    path = folder / IMAGES
    data = read_arrays(path)
    try:
        text = json.loads(data["text"].tobytes())
        jpegs, zooms = (
            [part.tobytes() for part in unpacked(name, data)] for name in ("jpegs", "zooms")
        )
        windows = [Window(**w | {"size": tuple(w["size"])}) for w in text["windows"]]
        keys = ("labels", "sizes", "masks", "ratios", "region_image", "region_area")
        return StoredImages(
            text["names"], text["defects"], jpegs=jpegs, digest=text["digest"],
            thumbnail_size=tuple(text["thumbnail_size"]), windows=windows,
            zooms=zooms, zoom_masks=unpacked("zoom_masks", data),
            **{key: data[key] for key in keys},
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, error) from error


def zoom_windows(images, options):
    """What is kept in detail: ZOOMS defects, small and large, and what is around them.

    The ground truth alone decides, so it is the same for every setup: all defects in the order
    of their area are cut into ZOOMS equal parts, and the middle one of each is taken.

    Parameters: images as in cell.run_cell, with masks; options. Returns a list of Window
    by area, as many as there are defects if those are fewer.
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
    """The Window of a defect, the number-th of image k: the defect in the middle of a square of
    a fifth of the image's smaller side, or of twice the defect's longest, moved into the image."""
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


def reduce_any(mask, size):
    """A mask at another size; a pixel is True where any pixel in it is, so no defect is lost.

    Parameters: mask bool (h, w); size (H, W). Returns bool (H, W). Enlarging takes the nearest
    pixel.
    """
    if mask.shape[0] < size[0] or mask.shape[1] < size[1]:
        return image_data.resize_mask(mask, size)
    rows, cols = (cuts(n, m) for n, m in zip(mask.shape, size))
    return np.logical_or.reduceat(np.logical_or.reduceat(mask, rows, 0), cols, 1)


def cuts(n, m):
    """Where m blocks of n >= m pixels start, as equal as whole pixels allow."""
    return np.arange(m) * n // m


def regions_of(mask, options):
    return metrics.label_regions(mask[None], impl=options.impl, threads=options.threads)[0]


def packed(name, parts, dtype):
    """Arrays of different shapes (...) as two: all their values, and their shapes."""
    shapes = np.array([part.shape for part in parts], np.int64)
    values = [np.zeros(0, dtype), *(part.ravel() for part in parts)]
    return {name: np.concatenate(values), f"{name}_shapes": shapes}


def unpacked(name, data):
    """The list of arrays that _packed has made two of."""
    shapes = data[f"{name}_shapes"].tolist()
    ends = np.cumsum([math.prod(shape) for shape in shapes], dtype=np.int64)
    return [part.reshape(shape) for part, shape in zip(np.split(data[name], ends), shapes)]


def write_arrays(path, arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    with atomic_write(path, "wb") as file:
        file.write(buffer.getbuffer())


def read_arrays(path):
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; run the same command again with --report") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise damaged(path, error) from error
    if arrays.get("schema") != SCHEMA:
        raise InputError(f"{path} is of another version; remove it and run --report again")
    return arrays


def damaged(path, error):
    return InputError(f"{path} is damaged ({error}); remove it and run --report again")
