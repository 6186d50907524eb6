"""What a report needs of a cell, small: analysis.npz, and images.npz of a category.

Maps at full size are too large to keep for every cell, so what pictures and curves need of
them is worked out while they are there: heat maps of MAP_SIDE pixels, thinned curves,
thresholds, and the part of every defect that was found. Reports are made of these two files
and metrics.json alone, without images or models.
"""

import io
import json
import math
import zipfile
from dataclasses import asdict, dataclass

import numpy as np

from .. import metrics
from ..data import encoders
from ..data import images as image_data
from ..support.errors import InputError
from ..support.files import atomic_write

SCHEMA = 2
MAP_SIDE = 128  # longest side of a kept heat map and mask, pixels
THUMBNAIL_SIDE = 320  # longest side of a kept image, pixels
ZOOMS = 8  # defects of a category that are kept in detail
ZOOM_SIDE = 256  # longest side of the kept detail of an image, pixels
JPEG_QUALITY = 82
CURVE_POINTS = 240
FPRS = (0.001, 0.01, 0.05)  # of pixels, at which the recall of defects is told
REPORT_FPR = 0.01  # the one that tables and figures show
BINS = 1 << 16  # of the score histogram behind pixel thresholds: 1/65536 of the range apart
RATIO_SIZE = (512, 512)  # Rolih et al., Fig. 9: ratios are those of masks of 512 x 512
ANALYSIS, IMAGES = "analysis.npz", "images.npz"


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
class CellAnalysis:
    """What analysis.npz holds of one cell; N test images, R defects (regions of masks).

    Parameters: scores float64 (N,), raw; threshold of image scores (`thresholds.find_thresholds`);
    pixel_threshold, low and high of raw maps: the threshold (the largest value where there is
    none), the least and the largest value; maps uint8 (N, h, w), block means shaded for people
    (`shade`), 128 and above at or above the threshold; image_roc, pixel_roc and pro, metrics.Curve
    or None where undefined; recall float32 (R, len(FPRS)), the part of each defect above the
    threshold of each FPR, and fpr_thresholds float64 (len(FPRS),); zooms, a list of uint8 (a, b),
    the pixels of a map that each Window of the category touches, at the setup's own resolution;
    map_size (height, width) of a map in pixels; digest, cell.CategoryImages.digest of the
    images.
    """

    scores: np.ndarray
    threshold: float
    pixel_threshold: float
    low: float
    high: float
    maps: np.ndarray
    image_roc: metrics.Curve
    pixel_roc: metrics.Curve
    pro: metrics.Curve
    recall: np.ndarray
    fpr_thresholds: np.ndarray
    zooms: list
    map_size: tuple
    digest: str


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


# ------------------------------------------------------------------------------- one cell


def save_analysis(folder, maps, scores, images, setup, options, thresholds):
    """Write analysis.npz of a cell.

    Parameters: folder of the cell; maps float32 (N, H, W) and scores float32 (N,), raw; images
    as in cell.run_cell, setup; options, a cell.Options; thresholds, as
    thresholds.find_thresholds returns them.
    Raises InputError where the file cannot be written.
    """
    analysis = analyse(maps, scores, images, setup, options, thresholds)
    arrays = {
        "schema": np.int64(SCHEMA),
        "scores": analysis.scores,
        "thresholds": np.array([
            analysis.threshold, analysis.pixel_threshold, analysis.low, analysis.high
        ]),
        "maps": analysis.maps,
        "recall": analysis.recall,
        "fpr_thresholds": analysis.fpr_thresholds,
        **_packed("zooms", analysis.zooms, np.uint8),
        "map_size": np.array(analysis.map_size),
        "digest": np.frombuffer(analysis.digest.encode(), np.uint8),
    }  # fmt: skip
    for name in ("image_roc", "pixel_roc", "pro"):
        curve = getattr(analysis, name)
        if curve is not None:
            arrays[name] = np.stack([curve.fpr, curve.height])
    _write(folder / ANALYSIS, arrays)


def is_complete(folder, digest):
    """Whether what a report needs of the cell in this folder is there, of these test images."""
    try:
        return load_analysis(folder).digest == load_images(folder.parents[2]).digest == digest
    except InputError:
        return False


def load_analysis(folder):
    """CellAnalysis of a cell's folder; InputError where the file is missing or damaged."""
    path = folder / ANALYSIS
    data = _read(path)
    try:
        curves = {
            name: metrics.Curve(*data[name]) if name in data else None
            for name in ("image_roc", "pixel_roc", "pro")
        }
        return CellAnalysis(
            data["scores"], *map(float, data["thresholds"]), data["maps"],
            **curves, recall=data["recall"], fpr_thresholds=data["fpr_thresholds"],
            zooms=_unpacked("zooms", data), map_size=tuple(map(int, data["map_size"])),
            digest=data["digest"].tobytes().decode(),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def analyse(maps, scores, images, setup, options, thresholds):
    """CellAnalysis of raw maps (N, H, W) and scores (N,); other parameters as save_analysis."""
    category = images.category
    scores = np.asarray(scores, np.float64)
    labels = np.array([sample.label for sample in category.test], np.uint8)
    low, high = value_range(maps)

    def masks():
        return images.masks(setup.image_size) if category.has_masks else [None] * len(labels)

    normal, anomalous = histograms(zip(maps, masks(), labels), low, high)
    edges = bin_edges(low, high)
    pixel = thresholds["pixel"]
    pixel_threshold = high if pixel is None else pixel["threshold"]
    fpr_thresholds = np.array([fpr_edge(normal, edges, fpr) for fpr in FPRS])
    dark = float(edges[np.searchsorted(normal.cumsum(), normal.sum() / 2)])
    pixel_roc = pro = None
    recall = np.zeros((0, len(FPRS)), np.float32)
    zooms = []
    if normal.any() and anomalous.any():
        pro, pixel_roc = metrics.pixel_curves(
            lambda: zip(maps, masks()), CURVE_POINTS, impl=options.impl, threads=options.threads
        )
    if category.has_masks and labels.any():
        recall = region_recall(maps, images, fpr_thresholds, options)
        for window in zoom_windows(images, options):
            detail = maps[window.image][window.within(setup.image_size)]
            zooms.append(shade(detail.astype(np.float64), dark, pixel_threshold, high))
    return CellAnalysis(
        scores=scores,
        threshold=thresholds["image"]["threshold"],
        pixel_threshold=pixel_threshold,
        low=low,
        high=high,
        maps=np.stack([shade(reduce_mean(m), dark, pixel_threshold, high) for m in maps]),
        image_roc=image_roc(scores, labels),
        pixel_roc=pixel_roc,
        pro=pro,
        recall=recall,
        fpr_thresholds=fpr_thresholds,
        zooms=zooms,
        map_size=tuple(setup.image_size),
        digest=images.digest,
    )  # fmt: skip


def value_range(maps):
    """Least and largest value of all maps, as floats."""
    low, high = np.inf, -np.inf
    for image_map in maps:
        low, high = min(low, float(image_map.min())), max(high, float(image_map.max()))
    return low, high


def bin_edges(low, high):
    """The lower edges of BINS equal bins from low to high, float64 (BINS,)."""
    return low + (high - low) * (np.arange(BINS) / BINS)


def histograms(triples, low, high):
    """How many normal and how many anomalous pixels lie in each bin of map values.

    Returns two int64 (BINS,).
    Parameters: triples (map (H, W), mask bool (H, W) or None, label) of each image; low and
    high as of value_range. Without a mask the pixels of a normal image are normal, and those
    of an anomalous one unknown and not counted.
    """
    normal, anomalous = np.zeros((2, BINS), np.int64)
    scale = BINS / (high - low) if high > low else 0.0
    for image_map, mask, label in triples:
        if mask is None and label:
            continue
        bins = ((np.asarray(image_map, np.float64) - low) * scale).astype(np.int64)
        bins = np.minimum(bins, BINS - 1)
        if mask is None:
            mask = np.zeros(bins.shape, bool)
        normal += np.bincount(bins[~mask], minlength=BINS)
        anomalous += np.bincount(bins[mask], minlength=BINS)
    return normal, anomalous


def fpr_edge(normal, edges, fpr):
    """The smallest bin edge at or above which at most the part `fpr` of normal pixels lies.

    Parameters: normal, counts int64 (BINS,); edges, lower ends of the bins, float (BINS,).
    Returns a float, infinity where even the highest bin holds more.

    >>> counts = np.zeros(BINS, np.int64); counts[0] = 98; counts[5] = counts[9] = 1
    >>> fpr_edge(counts, np.arange(BINS), 0.01), fpr_edge(counts, np.arange(BINS), 0.5)
    (6.0, 1.0)
    """
    above = normal[::-1].cumsum()[::-1]
    fits = np.flatnonzero(above <= fpr * normal.sum())
    return float(edges[fits[0]]) if fits.size else float("inf")


def shade(values, dark, threshold, bright):
    """Raw values as 8-bit shades for pictures: 0 up to `dark`, 127.5 at the threshold, 255 from
    `bright`, linear in between and rounded up.

    `thresholds.normalize` has the threshold in the middle as well, but one extreme pixel
    makes its pictures flat. Here `dark` is the median of the normal pixels, so that what is
    normal stays dark, and `bright` the largest value of all.

    Parameters: values (h, w), any float; dark <= threshold <= bright, else the part between
    them is empty.
    Returns uint8 (h, w).

    >>> shade(np.array([[0.0, 1.0, 1.5, 2.0, 6.0, 9.0]]), 1.0, 2.0, 10.0)
    array([[  0,   0,  64, 128, 192, 240]], dtype=uint8)
    """
    below = np.clip((values - dark) / max(threshold - dark, 1e-300), 0, 1)
    above = np.clip((values - threshold) / max(bright - threshold, 1e-300), 0, 1)
    # Just below the threshold stays just below 128.
    shades = np.where(values < threshold, np.minimum(127.5 * below, 127), 127.5 + 127.5 * above)
    return np.ceil(shades).astype(np.uint8)


def region_recall(maps, images, thresholds, options):
    """The part of each defect that is found at each threshold.

    Parameters: maps float32 (N, H, W); images as in cell.run_cell; thresholds, floats.
    Returns float32 (R, len(thresholds)). Defects are the regions of the masks at the images'
    own sizes, so that they are the same for every setup, also where shrinking to the setup's
    size made one vanish. A pixel of the image file takes the value of the map's pixel that it
    lies in.
    """
    parts = [np.zeros((0, len(thresholds)), np.float32)]
    for k, (image_map, sample) in enumerate(zip(maps, images.category.test)):
        if not sample.label:
            continue
        regions = _regions(images.original_mask(k), options)
        found = np.stack([image_map >= threshold for threshold in thresholds], -1)  # (H, W, T)
        rows, cols = np.nonzero(regions)
        numbers = regions[rows, cols] - 1
        at = found[
            rows * image_map.shape[0] // regions.shape[0],
            cols * image_map.shape[1] // regions.shape[1],
        ]
        areas = np.bincount(numbers)
        hits = [np.bincount(numbers, at[:, t], len(areas)) for t in range(len(thresholds))]
        parts.append((np.stack(hits, -1) / areas[:, None]).astype(np.float32))
    return np.concatenate(parts)


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
            areas = np.bincount(_regions(images.original_mask(k), options).ravel())[1:].tolist()
            first = len(found)
            found += [(area, first + r, k, r + 1) for r, area in enumerate(areas)]
    count = min(ZOOMS, len(found))
    chosen = [sorted(found)[(2 * j + 1) * len(found) // (2 * count)] for j in range(count)]
    return [_around(images, options, *place) for _, *place in chosen]


def _around(images, options, region, k, number):
    """The Window of a defect, the number-th of image k: the defect in the middle of a square of
    a fifth of the image's smaller side, or of twice the defect's longest, moved into the image."""
    regions = _regions(images.original_mask(k), options)
    lines = [np.flatnonzero((regions == number).any(axis)) for axis in (1, 0)]  # rows, columns
    size = regions.shape
    side = max(2 * max(line[-1] - line[0] + 1 for line in lines), min(size) // 5)
    side = int(min(side, *size))
    top, left = (
        int(np.clip((line[0] + line[-1] + 1 - side) // 2, 0, n - side))
        for line, n in zip(lines, size)
    )
    return Window(region, k, top, left, top + side, left + side, size)


def image_roc(scores, labels):
    """The ROC curve of image scores, every distinct score a point; None where undefined.

    Parameters: scores (N,) float; labels (N,) int, 0 normal.

    >>> image_roc(np.array([1.0, 2.0, 3.0]), np.array([0, 1, 1]))
    Curve(fpr=array([0., 0., 0., 1.]), height=array([0. , 0.5, 1. , 1. ]))
    """
    if not 0 < labels.sum() < len(labels):
        return None
    order = np.argsort(-scores, kind="stable")
    ranked, positive = scores[order], labels[order].astype(bool)
    last = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True])  # of each distinct score
    height = np.r_[0, np.cumsum(positive)[last] / positive.sum()]
    fpr = np.r_[0, np.cumsum(~positive)[last] / (~positive).sum()]
    return metrics.Curve(fpr, height)


# --------------------------------------------------------------------------- one category


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
        jpegs.append(encoders.encode_jpeg(picture, JPEG_QUALITY))
        mask = np.zeros(small, bool)
        ratio = 0.0
        if sample.label and category.has_masks:
            full = images.original_mask(k)
            mask = reduce_any(full, small)
            ratio = float(image_data.resize_mask(full, RATIO_SIZE).mean())
            areas = np.bincount(_regions(full, options).ravel())[1:]
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
        **_packed("jpegs", [np.frombuffer(data, np.uint8) for data in jpegs], np.uint8),
        "masks": np.stack(masks),
        "ratios": np.array(ratios),
        "region_image": np.array(region_image, np.int64),
        "region_area": np.array(region_area, np.int64),
        **_packed("zooms", [np.frombuffer(data, np.uint8) for data in zooms], np.uint8),
        **_packed("zoom_masks", zoom_masks, bool),
    }
    _write(path, arrays)


def _detail(images, window):
    """What lies in a Window: the image as the bytes of a JPEG, the mask bool (h, w)."""
    rows, cols = window.within(window.size)
    part = np.ascontiguousarray(images.category.test[window.image].read_image()[rows, cols])
    small = reduced_size(part.shape[:2], ZOOM_SIDE)
    picture = image_data.resize_image(part, small, antialias=True)
    mask = images.original_mask(window.image)[rows, cols]
    return encoders.encode_jpeg(picture, JPEG_QUALITY), mask


def load_images(folder):
    """StoredImages of a category's folder; InputError where missing or damaged."""
    path = folder / IMAGES
    data = _read(path)
    try:
        text = json.loads(data["text"].tobytes())
        jpegs, zooms = (
            [part.tobytes() for part in _unpacked(name, data)] for name in ("jpegs", "zooms")
        )
        windows = [Window(**w | {"size": tuple(w["size"])}) for w in text["windows"]]
        keys = ("labels", "sizes", "masks", "ratios", "region_image", "region_area")
        return StoredImages(
            text["names"], text["defects"], jpegs=jpegs, digest=text["digest"],
            thumbnail_size=tuple(text["thumbnail_size"]), windows=windows,
            zooms=zooms, zoom_masks=_unpacked("zoom_masks", data),
            **{key: data[key] for key in keys},
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def reduced_size(size, side):
    """(h, w) with the shape of size and the longest side at most `side`.

    >>> reduced_size((512, 1024), 128), reduced_size((96, 96), 128)
    ((64, 128), (96, 96))
    """
    scale = min(1.0, side / max(size))
    return tuple(max(1, round(n * scale)) for n in size)


def reduce_mean(values):
    """A map as block means with the longest side at most MAP_SIDE, float64 (h, w)."""
    values = np.asarray(values, np.float64)
    rows, cols = (_cuts(n, m) for n, m in zip(values.shape, reduced_size(values.shape, MAP_SIDE)))
    sums = np.add.reduceat(np.add.reduceat(values, rows, 0), cols, 1)
    return sums / np.outer(np.diff(np.r_[rows, values.shape[0]]),
                           np.diff(np.r_[cols, values.shape[1]]))  # fmt: skip


def reduce_any(mask, size):
    """A mask at another size; a pixel is True where any pixel in it is, so no defect is lost.

    Parameters: mask bool (h, w); size (H, W). Returns bool (H, W). Enlarging takes the nearest
    pixel.
    """
    if mask.shape[0] < size[0] or mask.shape[1] < size[1]:
        return image_data.resize_mask(mask, size)
    rows, cols = (_cuts(n, m) for n, m in zip(mask.shape, size))
    return np.logical_or.reduceat(np.logical_or.reduceat(mask, rows, 0), cols, 1)


def _cuts(n, m):
    """Where m blocks of n >= m pixels start, as equal as whole pixels allow."""
    return np.arange(m) * n // m


def _regions(mask, options):
    return metrics.label_regions(mask[None], impl=options.impl, threads=options.threads)[0]


# ---------------------------------------------------------------------------------- files


def _packed(name, parts, dtype):
    """Arrays of different shapes (...) as two: all their values, and their shapes."""
    shapes = np.array([part.shape for part in parts], np.int64)
    values = [np.zeros(0, dtype), *(part.ravel() for part in parts)]
    return {name: np.concatenate(values), f"{name}_shapes": shapes}


def _unpacked(name, data):
    """The list of arrays that _packed has made two of."""
    shapes = data[f"{name}_shapes"].tolist()
    ends = np.cumsum([math.prod(shape) for shape in shapes], dtype=np.int64)
    return [part.reshape(shape) for part, shape in zip(np.split(data[name], ends), shapes)]


def _write(path, arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    with atomic_write(path, "wb") as file:
        file.write(buffer.getbuffer())


def _read(path):
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; run the same command again with --report") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from error
    if arrays.get("schema") != SCHEMA:
        raise InputError(f"{path} is of another version; remove it and run --report again")
    return arrays


def _damaged(path, error):
    return InputError(f"{path} is damaged ({error}); remove it and run --report again")
