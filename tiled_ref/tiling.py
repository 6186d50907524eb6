"""Cutting images into tiles and merging the tiles again (Sec. 3.1, Eq. 1-2).

Pure index arithmetic: every function here works on NumPy arrays and on torch tensors on
any device, because it only slices, adds and divides.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from .support.errors import InputError
from .support.option_types import MOST_TILES, SIDES


@dataclass(frozen=True)
class TileGrid:
    """Where the tiles of an image lie.

    Eq. 1-2 (Rolih et al. 2024, Sec. 3.1):
        T = {T_ij | i in [0 .. floor((h - h^t)/s_h)], j in [0 .. floor((w - w^t)/s_w)]}
        T_ij = {(a, b) | a in [s_h i, s_h i + h^t), b in [s_w j, s_w j + w^t)}
    with h, w = image_size, h^t, w^t = tile_size, s_h, s_w = stride.

    Deviation D1: if the stride does not fit the image, the paper pads with zeros, so
    the floor of Eq. 1 becomes a ceiling, rows = ceil((H - h)/s_h) + 1. The padding lies at
    the bottom and right only, and untiling drops it.

    Parameters
    ----------
    image_size, tile_size, stride : (int, int) or int
        Height and width in pixels; an int stands for both.

    Raises
    ------
    InputError
        Non-positive sizes, a tile larger than the image, a stride larger than the tile
        (it would leave pixels that no tile covers), more than MOST_TILES tiles.

    Examples
    --------
    The example of the paper: nine tiles, T_00 and T_01 share columns 128..255. Then a
    stride that does not fit the height: four tiles of 40 px, 25 px apart, need 3 * 25 + 40.

    >>> grid = TileGrid(512, 256, 128)
    >>> grid.rows, grid.cols
    (3, 3)
    >>> grid.origins[:3]
    ((0, 0), (0, 128), (0, 256))
    >>> TileGrid((100, 70), (40, 30), (25, 20)).padded_size
    (115, 70)
    """

    image_size: tuple
    tile_size: tuple
    stride: tuple

    def __post_init__(self):
        for field in ("image_size", "tile_size", "stride"):
            object.__setattr__(self, field, _pair(field, getattr(self, field)))
        for axis, image, tile, stride in zip(
            ("height", "width"), self.image_size, self.tile_size, self.stride
        ):
            if tile > image:
                raise InputError(
                    f"the tile's {axis} of {tile} px is larger than the image's {image} px; "
                    "choose a smaller --tile-size or a larger --image-size"
                )
            if stride > tile:
                raise InputError(
                    f"the stride of {stride} px is larger than the tile's {axis} of {tile} px "
                    "and would leave pixels uncovered; choose a --stride of at most the tile size"
                )
        if self.rows * self.cols > MOST_TILES:
            raise InputError(
                f"these sizes cut an image into {self.rows * self.cols:,} tiles, more than "
                f"{MOST_TILES:,}; choose a larger --tile-size or --stride"
            )

    @cached_property
    def rows(self):
        """Tiles down: ceil((H - h) / s_h) + 1."""
        return -(-(self.image_size[0] - self.tile_size[0]) // self.stride[0]) + 1

    @cached_property
    def cols(self):
        """Tiles across: ceil((W - w) / s_w) + 1."""
        return -(-(self.image_size[1] - self.tile_size[1]) // self.stride[1]) + 1

    @cached_property
    def padded_size(self):
        """(height, width) in pixels of the zero-padded image that the tiles cover exactly."""
        return (
            (self.rows - 1) * self.stride[0] + self.tile_size[0],
            (self.cols - 1) * self.stride[1] + self.tile_size[1],
        )

    @cached_property
    def origins(self):
        """Top left pixel (a, b) of every tile, row-major: T_00, T_01, ..."""
        return tuple(
            (i * self.stride[0], j * self.stride[1])
            for i in range(self.rows)
            for j in range(self.cols)
        )

    def locations(self):
        """Tile locations (i, j), row-major."""
        return [(i, j) for i in range(self.rows) for j in range(self.cols)]

    def window(self, i, j):
        """The pixels of tile (i, j) that lie inside the image, two slices (Eq. 2).

        Raises IndexError for a location off the grid.
        """
        if not (0 <= i < self.rows and 0 <= j < self.cols):
            raise IndexError(f"no tile ({i}, {j}) in a grid of {self.rows} x {self.cols}")
        top, left = i * self.stride[0], j * self.stride[1]
        (H, W), (h, w) = self.image_size, self.tile_size
        return slice(top, min(top + h, H)), slice(left, min(left + w, W))

    def pad_tile(self, part):
        """(..., <= h, <= w) -> (..., h, w), zeros at the bottom and right where it is smaller."""
        return _pad(part, *self.tile_size)

    def tile(self, images):
        """All tiles of all images.

        Parameters: images (N, C, H, W) or (N, H, W), any dtype, NumPy or torch.
        Returns (rows, cols, N, C, h, w) or (rows, cols, N, h, w): views into one (padded
        where necessary) array, so that overlapping tiles cost no memory.
        Raises InputError for any other image size.
        """
        self.check_image(images)
        (h, w), (sh, sw) = self.tile_size, self.stride
        padded = _pad(images, *self.padded_size)
        if isinstance(padded, torch.Tensor):
            windows = padded.unfold(-2, h, sh).unfold(-2, w, sw)  # (N, C, rows, cols, h, w)
            lead = windows.ndim - 4
            return windows.permute(lead, lead + 1, *range(lead), lead + 2, lead + 3)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (h, w), axis=(-2, -1))
        windows = windows[..., ::sh, ::sw, :, :]  # (N, C, rows, cols, h, w)
        return np.moveaxis(windows, (-4, -3), (0, 1))

    def untile(self, tiles):
        """Merge tiles, averaging where they overlap: the inverse of `tile`.

        The readable specification of untiling, and the form that runs on any device
        (`merging.untile_average` adds the compiled kernel for maps on the host).

        Parameters: tiles (rows, cols, ..., h, w), floating point, NumPy or torch.
        Returns (..., H, W), the padding dropped.
        Order of arithmetic: the covering tiles in row-major order are added in pairs, (0 + 1),
        (2 + 3), ..., the sums in pairs again, and so on, an odd one out carried to the next
        round; then one division by their count, all in the dtype of the tiles. So tiles cut
        from one image reproduce it bit for bit where the count is a power of two and within
        1 ulp elsewhere (adding one after the other would be off by 1/4 ulp a tile).
        Raises InputError for any other shape.
        Source: Sec. 3.3, "a pixel-wise averaging strategy is applied on overlapping regions".
        """
        self.check_tiles(tiles)
        join = torch.cat if isinstance(tiles, torch.Tensor) else np.concatenate
        (H, W), (sh, sw) = self.image_size, self.stride
        bands = []
        for top, bottom, tile_rows in _pieces(H, self.tile_size[0], sh, self.rows):
            pieces = []
            for left, right, tile_cols in _pieces(W, self.tile_size[1], sw, self.cols):
                parts = [
                    tiles[i, j][..., top - i * sh : bottom - i * sh, left - j * sw : right - j * sw]
                    for i in tile_rows
                    for j in tile_cols
                ]
                pieces.append(_pairwise_sum(parts) / len(parts))
            bands.append(join(pieces, -1))  # (..., bottom - top, W)
        return join(bands, -2)

    def untile_window(self, tiles):
        """Merge tiles, each weighted less towards its edges where they overlap.

        The specification of `merging.untile_window`, for any device. On each axis a tile's weight
        is a triangle, 1/2, 3/2, ..., 3/2, 1/2, divided by the sum over the tiles that cover
        the pixel; its weight at a pixel is the product of the two axes.
        Parameters, Returns and Raises: as for `untile`.
        Order of arithmetic: the weights of an axis in float64, rounded to the dtype of the tiles;
        then 0 + weight * tile, tile after tile, row-major, in that dtype. Where one tile covers a
        pixel its weight is 1.
        """
        self.check_tiles(tiles)
        shape, weights = (*tiles.shape[2:-2], *self.image_size), self.window_weights()
        if isinstance(tiles, torch.Tensor):
            out = tiles.new_zeros(shape)
            weights = [torch.from_numpy(part).to(out) for part in weights]
        else:
            out = np.zeros(shape, tiles.dtype)
            weights = [part.astype(out.dtype) for part in weights]
        for i, j in self.locations():
            rows, cols = self.window(i, j)
            height, width = rows.stop - rows.start, cols.stop - cols.start
            weight = weights[0][i, :height, None] * weights[1][j, :width]  # (height, width)
            out[..., rows, cols] += weight * tiles[i, j][..., :height, :width]
        return out

    def window_weights(self):
        """The weights of `untile_window` on the two axes: float64 (rows, h) and (cols, w)."""
        weights = []
        for n, tile, stride in zip((self.rows, self.cols), self.tile_size, self.stride):
            place = np.arange(tile) + 0.5
            triangle = np.minimum(place, tile - place)
            at = stride * np.arange(n)[:, None] + np.arange(tile)  # pixels of each tile
            total = np.zeros((n - 1) * stride + tile)
            for pixels in at:
                total[pixels] += triangle
            weights.append(triangle / total[at])
        return weights

    def scaled(self, factor):
        """The same grid on a feature map that is `factor` times smaller, a whole number >= 1.

        Returns TileGrid, its sizes in positions.
        Raises InputError if tile size or stride is not a multiple of factor, because then
        the feature maps of neighbouring tiles do not lie on one grid.
        """
        for field in ("tile_size", "stride"):
            if any(side % factor for side in getattr(self, field)):
                raise InputError(
                    f"tiled input (ST) needs a {field.replace('_', ' ')} that is a multiple of "
                    f"{factor} px, not {_text(getattr(self, field))}; "
                    "change it or use an ENS setup"
                )
        return TileGrid(
            tuple(-(-side // factor) for side in self.image_size),
            tuple(side // factor for side in self.tile_size),
            tuple(side // factor for side in self.stride),
        )

    def check_image(self, images):
        """Raise InputError unless images (..., H, W), any dtype, have the grid's size."""
        if tuple(images.shape[-2:]) != self.image_size:
            raise InputError(
                f"the grid is for images of {_text(self.image_size)} px, "
                f"got an array of shape {tuple(images.shape)}"
            )

    def check_tiles(self, tiles):
        """Raise InputError unless tiles are (rows, cols, ..., h, w) of this grid, of any dtype."""
        expected = (self.rows, self.cols), self.tile_size
        if tiles.ndim < 4 or (tuple(tiles.shape[:2]), tuple(tiles.shape[-2:])) != expected:
            raise InputError(
                f"the grid has {self.rows} x {self.cols} tiles of {_text(self.tile_size)} px, "
                f"got an array of shape {tuple(tiles.shape)}"
            )


class FeatureUntiler:
    """Merges the feature maps of an image's tiles (the ST setups, Rolih et al. Sec. 4.2).

    Parameters: grid of the input tiles.
    Called with features (T * B, C, h/factor, w/factor), tile-major, and factor, the pixels
    per position; returns (B, C, H/factor, W/factor), overlaps averaged. Differentiable.
    """

    def __init__(self, grid):
        self.grid = grid
        self.n_tiles = grid.rows * grid.cols
        self.tile_size = grid.tile_size

    def __call__(self, features, factor):
        grid = self.grid.scaled(factor)
        shape = grid.rows, grid.cols, features.shape[0] // self.n_tiles, *features.shape[1:]
        return grid.untile(features.reshape(shape))


def _pair(field, value):
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    name = field.replace("_", " ")
    if len(pair) != 2 or any(
        isinstance(side, bool) or not isinstance(side, (int, np.integer)) for side in pair
    ):
        raise InputError(f"the {name} must be one or two whole numbers of pixels, not {value!r}")
    if any(int(side) not in SIDES for side in pair):
        raise InputError(
            f"the {name} must be positive, at most {SIDES[-1]:,} px, not {_text(pair)}"
        )
    return tuple(int(side) for side in pair)


def _pieces(image, tile, stride, n):
    """An axis cut wherever a tile starts or ends: (start, stop, tiles that cover the piece)."""
    borders = {0, image}
    for k in range(n):
        borders |= {k * stride, min(k * stride + tile, image)}
    borders = sorted(borders)
    return [
        (start, stop, [k for k in range(n) if k * stride <= start < k * stride + tile])
        for start, stop in zip(borders[:-1], borders[1:])
    ]


def _pairwise_sum(parts):
    """The sum of a list of arrays: neighbours first, then the sums of neighbours."""
    while len(parts) > 1:
        pairs = [a + b for a, b in zip(parts[::2], parts[1::2])]
        parts = pairs + parts[len(parts) - len(parts) % 2 :]
    return parts[0]


def _pad(images, height, width):
    """Zeros at the bottom and right up to (height, width); the same object if none are missing."""
    missing = height - images.shape[-2], width - images.shape[-1]
    if missing == (0, 0):
        return images
    if isinstance(images, torch.Tensor):
        return torch.nn.functional.pad(images, (0, missing[1], 0, missing[0]))
    return np.pad(images, [(0, 0)] * (images.ndim - 2) + [(0, missing[0]), (0, missing[1])])


def _text(size):
    return f"{size[0]} x {size[1]}"
