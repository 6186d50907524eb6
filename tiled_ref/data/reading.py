"""Read the images and masks of many samples into one array, each of them once."""

import errno
import math
import mmap
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ..support.errors import InputError
from .resizing import resize_image, resize_mask
from .samples import NORMAL

BUDGET = 256 << 20  # bytes of images kept in memory; a larger array is a temporary file
MAX_THREADS = 8  # for decoding; each thread holds one image at its original size
AT_ONCE = 256 << 20  # bytes of images decoded simultaneously, but at least one image


def read_images(samples, size, **options):
    """Decode every image once and resize it: uint8 (N, 3, H, W).

    Parameters: samples and options as in `read_images_at`; size (H, W) in pixels.
    """
    return read_images_at(samples, [size], **options)[0]


def read_images_at(
    samples, sizes, *, antialias=False, budget=BUDGET, progress=None, seen=None, failed=None
):
    """Decode every image once and resize it to each of several sizes.

    Parameters: samples, a sequence of N Sample; sizes, (H, W) in pixels each; antialias, see
    resize_image; budget, bytes per array; a larger one is an unnamed, memory-mapped temporary
    file; progress(done, total), called after every image in this thread; called from any thread:
    seen(sample, image) with every image at its original size, uint8 (h, w, 3), and failed(k, error)
    if sample k cannot be read, which then becomes black; without it the error is raised.
    Returns a list of uint8 (N, 3, H, W), C-contiguous: numpy.ndarray, or numpy.memmap above the
    budget.
    Raises InputError from reading a sample (the first in order, if several fail), and if the
    temporary folder has too little space.
    """
    samples = list(samples)
    arrays = [allocate((len(samples), 3, *size), budget) for size in sizes]

    def read(k):
        try:
            image = samples[k].read_image()
            if seen is not None:
                seen(samples[k], image)
            resized = [resize_image(image, size, antialias) for size in sizes]  # (H, W, 3)
        except InputError as error:
            if failed is None:
                raise
            failed(k, error)
            for images in arrays:
                images[k] = 0
            return
        for images, pixels in zip(arrays, resized):
            images[k] = pixels.transpose(2, 0, 1)
            forget_pages(images)

    _in_threads(read, len(samples), 3 * max(map(math.prod, sizes)), progress)
    return arrays


def read_masks(samples, size, seen=None):
    """Read and resize the masks of all samples.

    Parameters: samples, sequence of N Sample; size (H, W) in pixels; seen(sample, mask), called
    from any thread with every anomalous sample's mask at its original size, bool (h, w).
    Returns bool (N, H, W); all False for a normal image.
    Raises InputError for an anomalous sample without a mask, and from reading a mask.
    """
    samples = list(samples)
    masks = np.zeros((len(samples), *size), bool)
    anomalous = [k for k, sample in enumerate(samples) if sample.label != NORMAL]

    def read(n):
        sample = samples[anomalous[n]]
        mask = _mask_of(sample)
        if seen is not None:
            seen(sample, mask)
        masks[anomalous[n]] = resize_mask(mask, size)

    _in_threads(read, len(anomalous), 8 * math.prod(size))  # 8 bytes per pixel, for region labels
    return masks


def read_mask_original(sample):
    """The mask of one sample at the image's original size, bool (h, w); errors as `read_masks`."""
    if sample.label == NORMAL:
        return np.zeros(sample.read_size(), bool)
    return _mask_of(sample)


def _mask_of(sample):
    mask = sample.read_mask()
    if mask is None:
        raise InputError(
            f"the anomalous image {sample.name} has no mask, so pixel metrics are undefined"
        )
    return mask


def forget_pages(images):
    """Let the system reclaim the memory of a mapped array (...); the data stays in its file.

    Otherwise a mapped array counts as memory of the process once it has been read.
    """
    if isinstance(images, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
        images._mmap.madvise(mmap.MADV_DONTNEED)


def allocate(shape, budget, dtype=np.uint8):
    """Returns an uninitialised array of a shape and dtype, in memory, or above budget, bytes, in an
    unnamed file (where the system supports it) that is deleted with its last reference.

    Raises InputError if the temporary folder has too little space.
    """
    n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    if n_bytes <= budget:
        return np.empty(shape, dtype)
    folder = tempfile.gettempdir()
    try:
        free = shutil.disk_usage(folder).free
        if n_bytes > free:  # the attempt would fill the disk before it fails
            raise OSError(errno.ENOSPC, f"{free:,} bytes are free")
        with tempfile.TemporaryFile(dir=folder, prefix="tiled-ref-") as file:
            # Reserve the space now: a disk that fills up later would kill the process.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, n_bytes)
            return np.memmap(file, dtype, "w+", shape=shape)
    except OSError as error:
        raise InputError(
            f"the temporary folder {folder} cannot hold the images, {n_bytes:,} bytes "
            f"({error.strerror}); set TMPDIR to a folder with more space, or choose a smaller "
            "image size"
        ) from error


def _in_threads(function, n, n_bytes, progress=None):
    """Call function(k) for k in range(n) in threads, each of which holds n_bytes; the error of the
    smallest k is raised."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    most = min(MAX_THREADS, len(cores) or os.cpu_count() or 1, max(1, AT_ONCE // n_bytes))
    with ThreadPoolExecutor(most) as pool:
        futures = [pool.submit(function, k) for k in range(n)]
        try:
            for done, future in enumerate(futures, start=1):
                future.result()
                if progress is not None:
                    progress(done, n)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
