"""Maps on disk, access to some of their rows, and merging of maps larger than memory."""

import os
from pathlib import Path

import numpy as np

from ..ensemble import UNTILE, merge, slices
from ..merging import image_scores
from ..smoothing import bands
from ..support import arrays
from ..support.errors import InputError
from ..support.files import beside, read_at, sync_folder, write_at
from ..support.gaussian import blur_rows_and_columns, radius_of
from ..tiling import TileGrid
from ..verdicts.marks import locations_seen

MERGE_BUDGET = 128 << 20  # bytes of tile maps in memory while they are merged
OUT_REMEDY = "choose another --out or make room, and continue with --resume"


class RowFile:
    """Maps on disk, float32 (N, H, W) in a .npy file, written and read by rows.

    Behaves like an array: `rows[a:b] = maps` writes, `rows[a:b]` and `rows[n]` read a copy. The
    file is never mapped, so it does not count as memory of the process.
    Parameters: path, its name after `commit`; shape, (N, H, W) of a new file, None opens one.
    Raises InputError if the disk has no space for the whole file, or the file is damaged.
    """

    def __init__(self, path, shape=None):
        self.path = Path(path)
        self.complete = shape is None
        self._file, self._name = None, self.path
        if not self.complete:
            self._name = beside(self.path, "tmp")
        try:
            self._file = open(self._name, "rb" if self.complete else "w+b", buffering=0)
            if self.complete:
                np.lib.format.read_magic(self._file)
                self.shape, fortran, dtype = np.lib.format.read_array_header_1_0(self._file)
                if fortran or dtype != np.float32:
                    raise ValueError(f"it holds {dtype}, not C-ordered float32")
            else:
                self.shape = tuple(int(side) for side in shape)
                header = {"descr": "<f4", "fortran_order": False, "shape": self.shape}
                np.lib.format.write_array_header_1_0(self._file, header)
            self._start = self._file.tell()
            self._row_bytes = 4 * int(np.prod(self.shape[1:]))
            size = self._start + self.shape[0] * self._row_bytes
            if self.complete:
                if os.fstat(self._file.fileno()).st_size != size:
                    raise ValueError("it is truncated")
            elif hasattr(os, "posix_fallocate"):  # a full disk fails now, not halfway
                os.posix_fallocate(self._file.fileno(), 0, size)
            else:
                self._file.truncate(size)
        except Exception as error:  # NumPy raises many types for a damaged header
            self.close()
            verb = "read" if self.complete else "write"
            raise InputError(
                f"cannot {verb} {self.path}: {getattr(error, 'strerror', None) or error}; "
                + ("start over without --resume" if self.complete else OUT_REMEDY)
            ) from error

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, key):
        start, stop, single = self._range(key)
        rows = np.empty((stop - start, *self.shape[1:]), np.float32)
        try:
            read_at(self._file, rows, self._start + start * self._row_bytes)
        except EOFError as error:
            raise InputError(f"{self.path} is truncated; start over without --resume") from error
        return rows[0] if single else rows

    def __setitem__(self, key, rows):
        start, stop, _ = self._range(key)
        rows = np.ascontiguousarray(rows, np.float32).reshape(stop - start, *self.shape[1:])
        try:
            write_at(self._file, rows, self._start + start * self._row_bytes)
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror}; {OUT_REMEDY}") from error

    def _range(self, key):
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step != 1:
                raise IndexError("rows are read and written in steps of 1")
            return start, max(start, stop), False
        row = int(key)
        if not 0 <= row < len(self):  # also ends a loop over the rows
            raise IndexError(f"row {row} of {len(self)}")
        return row, row + 1, True

    def commit(self):
        """Sync the file and give it its name."""
        try:
            os.fsync(self._file.fileno())
            os.replace(self._name, self.path)
            sync_folder(self.path.parent)
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror}; {OUT_REMEDY}") from error
        self.complete = True

    def close(self):
        """Close the file; remove it unless it is complete."""
        if self._file is not None:
            self._file.close()
            if not self.complete:
                self._name.unlink(missing_ok=True)


class Rows:
    """Some rows of an array or RowFile (N, ...), read on demand: chosen, int (n,)."""

    def __init__(self, rows, chosen):
        self.rows, self.chosen = rows, chosen

    def __len__(self):
        return len(self.chosen)

    def __getitem__(self, key):
        if isinstance(key, slice):
            return np.stack([self.rows[int(k)] for k in self.chosen[key]])
        return self.rows[int(self.chosen[key])]


def merge_rows(
    maps, scores, recipe, out, *, impl="cython", threads=None, roi=None, progress=None
):
    """`merge` for maps that need not fit in memory: a few images at a time, within MERGE_BUDGET;
    a larger image one strip at a time, with the same bits.

    Parameters
    ----------
    maps : list of arrays or RowFile, (N, h, w)
        Per location in row-major order.
    scores : (rows, cols, N)
    recipe, impl, threads, roi
        As for `merge`.
    out : array or RowFile, (N, H, W)
        Receives the merged, smoothed maps.
    progress : callable, optional, progress(done, total)

    Returns scores (N,).
    """
    grid, n = recipe.grid, scores.shape[2]
    per_image = grid.rows * grid.cols * 4 * grid.tile_size[0] * grid.tile_size[1]
    merged_scores = []
    if per_image > MERGE_BUDGET:
        for k in range(n):
            out[k : k + 1] = merge_strips(maps, k, recipe, impl, threads)[None]
            if progress:
                progress(k + 1, n)
        seen = ... if roi is None else locations_seen(grid, roi)
        return image_scores(scores[seen].reshape(1, -1, n), recipe.score)
    for rows in slices(n, max(1, MERGE_BUDGET // per_image)):
        tiles = np.stack([location[rows] for location in maps])  # (rows * cols, B, h, w)
        tiles = tiles.reshape(grid.rows, grid.cols, *tiles.shape[1:])
        out[rows], part = merge(tiles, scores[:, :, rows], recipe, impl, threads, roi)
        merged_scores.append(part)
        if progress:
            progress(rows.stop, n)
    return np.concatenate(merged_scores)


def merge_strips(maps, k, recipe, impl="cython", threads=None):
    """Returns the merged, smoothed map of image k, float32 (H, W); few tile maps are in memory.

    Parameters: maps, recipe, impl, threads as for `merge_rows`; k. The rows of a strip are merged
    from all tiles that cover them and the nearby rows that the Gaussian reads, so their bits
    equal those of the whole image.
    """
    grid, out = recipe.grid, np.empty(recipe.grid.image_size, np.float32)
    (height, width), (h, w), down = grid.image_size, grid.tile_size, grid.stride[0]
    band_rows, band_cols = bands(grid, recipe.seam_width)
    near, sigma = radius_of(recipe.seam_sigma), recipe.seam_sigma
    threads = arrays.thread_count(threads)
    step = max(h, MERGE_BUDGET // (4 * grid.cols * h * w) * down)
    for start in range(0, height, step):
        stop = min(height, start + step)
        top, bottom = max(0, start - near), min(height, stop + near)  # with the nearby rows
        first, last = max(0, -(-(top - h + 1) // down)), min(grid.rows - 1, (bottom - 1) // down)
        tiles = np.stack([maps[i * grid.cols + j][k] for i in range(first, last + 1)
                          for j in range(grid.cols)])  # fmt: skip
        part = TileGrid((min(last * down + h, height) - first * down, width), (h, w), grid.stride)
        merged = UNTILE[recipe.merge](
            tiles.reshape(part.rows, part.cols, 1, h, w), part, impl=impl, threads=threads
        )[:, top - first * down : bottom - first * down]
        smooth = blur_rows_and_columns(
            merged, sigma, band_rows[top:bottom], band_cols, impl, threads, max(grid.image_size)
        )
        out[start:stop] = smooth[0, start - top : stop - top]
    return out
