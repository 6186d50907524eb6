"""The six setups of the paper, and any other combination of image, tile and stride.

Source: Rolih et al., Sec. 4.2. All sizes in pixels, (height, width).
"""

from dataclasses import dataclass, replace

from .support.errors import InputError
from .tiling import TileGrid

KINDS = ("SM", "ST", "ENS")


@dataclass(frozen=True)
class Setup:
    """What is trained on what.

    Parameters
    ----------
    name : str
        "SM256", ..., or a name built from the sizes for a setup that is not in the paper.
    kind : {"SM", "ST", "ENS"}
        SM: one model on the whole image. ST: one model on tiled input. ENS: one model per
        tile location (Eq. 3).
    image_size : (int, int)
        Height and width in pixels to which every image is resized. Eq. 1: h, w.
    tile_size : (int, int)
        Height and width of a tile in pixels; equals image_size for SM. Eq. 1: h^t, w^t.
    stride : (int, int)
        Distance in pixels between the starts of neighbouring tiles. Eq. 1: s_h, s_w.

    Raises
    ------
    InputError
        For sizes that make no grid (see TileGrid) or an unknown kind.
    """

    name: str
    kind: str
    image_size: tuple
    tile_size: tuple
    stride: tuple

    def __post_init__(self):
        if self.kind not in KINDS:
            raise InputError(f"setup kind must be one of {', '.join(KINDS)}, not {self.kind!r}")
        self.input_grid  # noqa: B018  an impossible grid is refused here, not in mid-run
        if self.kind == "SM" and self.tile_size != self.image_size:
            raise InputError("an SM setup has no tiles: its tile size is its image size")

    @property
    def input_grid(self):
        """TileGrid that cuts the input image (one tile for SM)."""
        return TileGrid(self.image_size, self.tile_size, self.stride)

    @property
    def ensemble_grid(self):
        """TileGrid of the models: input_grid for ENS, a single location otherwise."""
        if self.kind == "ENS":
            return self.input_grid
        return TileGrid(self.image_size, self.image_size, self.image_size)

    @property
    def models(self):
        """The models, as a dict: location (i, j) in `ensemble_grid` -> list of the locations in
        `input_grid` whose tiles the model sees. One tile each for SM and ENS, all for ST.

        >>> SETUPS["ENS4"].models
        {(0, 0): [(0, 0)], (0, 1): [(0, 1)], (1, 0): [(1, 0)], (1, 1): [(1, 1)]}
        >>> SETUPS["ST4"].models
        {(0, 0): [(0, 0), (0, 1), (1, 0), (1, 1)]}
        """
        tiles = self.input_grid.locations()
        return {tile: [tile] for tile in tiles} if self.kind == "ENS" else {(0, 0): tiles}

    @property
    def n_tiles(self):
        """Tiles an image is cut into."""
        return self.input_grid.rows * self.input_grid.cols

    @property
    def tile_pixels(self):
        """Pixels of all tiles of an image."""
        return self.n_tiles * self.tile_size[0] * self.tile_size[1]

    @property
    def n_models(self):
        """Models trained: one per tile location for ENS, else 1 (Eq. 3)."""
        return len(self.models)

    def with_sizes(self, image_size=None, tile_size=None, stride=None):
        """The same kind of setup with other sizes, named after them.

        Returns a Setup, this one where nothing changes. image_size, tile_size, stride are
        (height, width) in pixels; None keeps this setup's own. For SM the tile follows the
        image. Where only the tile is given, the stride becomes the tile size if it was the tile
        size before, half of it if it was half.
        """
        image = tuple(image_size or self.image_size)
        if self.kind == "SM":
            if tile_size or stride:
                raise InputError(
                    f"{self.name} has no tiles, so --tile-size and --stride do not apply; "
                    "use an ST or ENS setup"
                )
            tile = step = image
        else:
            tile = tuple(tile_size or self.tile_size)
            ratio = [t // s for t, s in zip(self.tile_size, self.stride)]
            step = tuple(stride or [max(1, t // r) for t, r in zip(tile, ratio)])
        if (image, tile, step) == (self.image_size, self.tile_size, self.stride):
            return self
        parts = [image] if self.kind == "SM" else [image, tile, step]
        name = self.kind + "-" + "-".join(_side(p) for p in parts)
        return replace(self, name=name, image_size=image, tile_size=tile, stride=step)


def _side(size):
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"


def _square(name, kind, image, tile, stride):
    return Setup(name, kind, (image, image), (tile, tile), (stride, stride))


# Rolih et al., Sec. 4.2, in the order of Tables 1-4.
SETUPS = {
    setup.name: setup
    for setup in (
        _square("SM256", "SM", 256, 256, 256),
        _square("SM512", "SM", 512, 512, 512),
        _square("ST4", "ST", 512, 256, 256),
        _square("ST9", "ST", 512, 256, 128),
        _square("ENS4", "ENS", 512, 256, 256),
        _square("ENS9", "ENS", 512, 256, 128),
    )
}
