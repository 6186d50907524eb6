"""The built-in data set's texture: linen, woven one over one under, photographed close up.

Phase, waviness, thickness and shade of the yarns vary from picture to picture.
"""

import numpy as np

from . import drawing as d

SIZE = 1024  # px
PITCH = 13.0  # px from yarn to yarn
LINEN = np.array([196, 184, 160], np.float32)
DEFECTS = ("broken_yarn", "foreign_fibre", "hole", "slub", "stain", "thin_place")


class _Cloth:
    """Two sets of yarns, warp (down) and weft (across), and how they cross.

    Attributes: phase of each, float32 (SIZE, SIZE), in yarns; width and shade of each yarn.
    """

    def __init__(self, rng):
        size = (SIZE, SIZE)
        place = np.arange(SIZE, dtype=np.float32)
        pitch = PITCH * (1 + rng.normal(0, 0.01, 2))
        self.start = rng.uniform(0, 1, 2)
        wave = [0.22 * d.field(rng, size, (150, 60)), 0.22 * d.field(rng, size, (60, 150))]
        self.phase = [  # warp yarns are counted along x, weft yarns along y
            place[None, :] / np.float32(pitch[0]) + np.float32(self.start[0]) + wave[0],
            place[:, None] / np.float32(pitch[1]) + np.float32(self.start[1]) + wave[1],
        ]
        n = int(SIZE / PITCH * 1.1) + 8
        self.shade = [1 + rng.normal(0, 0.035, n).astype(np.float32) for _ in "xy"]
        self.thick = [1 + rng.normal(0, 0.05, n).astype(np.float32) for _ in "xy"]
        self.uneven = d.field(rng, size, (14, 5)), d.field(rng, size, (5, 14))

    def light(self, index, thickness=(1, 1), missing=(0, 0)):
        """Brightness, about 0 to 1, of a part of the cloth: picture[index].

        thickness and missing, for warp and weft, change yarns: factors and opacities.
        """
        yarns, lift = [], []
        for k in (0, 1):
            phase = self.phase[k][index]
            number = np.floor(phase)
            yarn = np.clip(number.astype(np.int32) + 4, 0, len(self.shade[k]) - 1)
            off = phase - number - np.float32(0.5)  # -0.5 to 0.5 across the yarn
            half = np.float32(0.44) * self.thick[k][yarn] * thickness[k]
            round_ = np.clip(1 - (off / half) ** 2, 0, 1)
            yarns.append((round_, number, self.shade[k][yarn] * (1 + 0.06 * self.uneven[k][index])))
        (warp, i, warp_shade), (weft, j, weft_shade) = yarns
        # Warp is on top where i + j is even; a yarn dips towards its neighbours' gaps.
        even = (i + j) % 2 == 0
        along_x = self.phase[0][index] - i - np.float32(0.5)
        along_y = self.phase[1][index] - j - np.float32(0.5)
        dip_warp = 1 - np.float32(1.9) * along_y * along_y
        dip_weft = 1 - np.float32(1.9) * along_x * along_x
        warp_light = np.sqrt(warp) * np.where(even, dip_warp, 0.45) * warp_shade * (1 - missing[0])
        weft_light = np.sqrt(weft) * np.where(even, 0.45, dip_weft) * weft_shade * (1 - missing[1])
        return np.maximum(np.maximum(warp_light, weft_light), np.float32(0.16))


def render(rng, defect=None, defect_rng=None):
    """One picture; parameters and returns as in board.render."""
    cloth = _Cloth(rng)
    everything = slice(0, SIZE), slice(0, SIZE)
    tone = 1 + 0.03 * d.field(rng, (SIZE, SIZE), 90)
    light = cloth.light(everything) * tone
    picture = (light * np.float32(0.96))[..., None] * LINEN
    if defect is None:
        return picture, None, None
    flawed, cover = picture.copy(), np.zeros((SIZE, SIZE), np.float32)
    _DRAW[defect](cloth, tone, flawed, cover, defect_rng)
    return picture, flawed, cover


# ------------------------------------------------------------------------------- defects
# Each draws one defect into `picture` and writes what it covers into `cover`, (H, W).


def _window(rng, reach):
    return d.Window((SIZE, SIZE), *rng.uniform(40, SIZE - 40, 2), reach)


def _rewoven(cloth, tone, picture, cover, window, alpha, **changes):
    light = cloth.light(window.index, **changes) * tone[window.index] * np.float32(0.96)
    d.blend(picture, window, alpha, light[..., None] * LINEN)
    cover[window.index] = alpha


def _along(rng, window, length, width):
    """A spindle along warp or weft: share of each pixel, and the yarns' index (0 or 1)."""
    k = rng.integers(2)
    u, v = (window.y, window.x) if k == 0 else (window.x, window.y)
    half = width / 2 * np.sqrt(np.clip(1 - (2 * u / length) ** 2, 0, 1))
    return d.coverage(np.abs(v) - half, 1.5) * (np.abs(u) < length / 2), k


def _broken_yarn(cloth, tone, picture, cover, rng):
    """A yarn that is missing over some length."""
    length = max(14, d.diameter(rng))
    window = _window(rng, length / 2 + 4)
    alpha, k = _along(rng, window, length, PITCH)
    missing = [0, 0]
    missing[k] = alpha * np.float32(0.95)
    _rewoven(cloth, tone, picture, cover, window, alpha, missing=missing)


def _thin_place(cloth, tone, picture, cover, rng):
    """Yarns spun too thin over an area."""
    radius = max(16, d.diameter(rng)) / 2
    window = _window(rng, 2.4 * radius + 4)
    alpha = d.coverage(d.blob(rng, window.x, window.y, radius), 3)
    thin = 1 - np.float32(rng.uniform(0.3, 0.5)) * alpha
    _rewoven(cloth, tone, picture, cover, window, alpha, thickness=(thin, thin))


def _slub(cloth, tone, picture, cover, rng):
    """A lump of loose fibres in a yarn."""
    length = max(12, d.diameter(rng))
    window = _window(rng, length / 2 + 6)
    alpha, k = _along(rng, window, length, PITCH * rng.uniform(0.9, 1.6))
    fluff = 0.92 + 0.06 * d.field(rng, alpha.shape, (3, 3))
    light = fluff * tone[window.index]
    d.blend(picture, window, alpha * np.float32(0.85), light[..., None] * LINEN)
    cover[window.index] = alpha


def _hole(cloth, tone, picture, cover, rng):
    """A hole: the dark table is seen through it, frayed ends around."""
    radius = d.diameter(rng) / 2
    window = _window(rng, 2.4 * radius + 4)
    alpha = d.coverage(d.blob(rng, window.x, window.y, radius, 0.3), 2)
    d.blend(picture, window, alpha * np.float32(0.9), (36, 33, 30))
    cover[window.index] = alpha


def _stain(cloth, tone, picture, cover, rng):
    """A drop of coffee, oil or ink that soaked in: the weave shows through."""
    radius = max(10, d.diameter(rng)) / 2
    window = _window(rng, 2.4 * radius + 4)
    alpha = d.coverage(d.blob(rng, window.x, window.y, radius, 0.2), 4)
    tint = [(0.62, 0.50, 0.34), (0.72, 0.70, 0.62), (0.45, 0.50, 0.68)][rng.integers(3)]
    d.blend(picture, window, alpha, picture[window.index] * np.array(tint, np.float32))
    cover[window.index] = alpha


def _foreign_fibre(cloth, tone, picture, cover, rng):
    """A coloured thread that was woven in or fell on the cloth."""
    points = d.wander(rng, rng.uniform(24, 100))
    window = _window(rng, np.abs(points).max() + 6)
    alpha = d.coverage(d.path(window.x, window.y, points) - rng.uniform(0.8, 1.6), 1.4)
    colour = [(44, 40, 44), (150, 46, 40), (52, 74, 120)][rng.integers(3)]
    d.blend(picture, window, alpha * np.float32(0.85), colour)
    cover[window.index] = alpha


_DRAW = {
    "broken_yarn": _broken_yarn, "foreign_fibre": _foreign_fibre, "hole": _hole,
    "slub": _slub, "stain": _stain, "thin_place": _thin_place,
}  # fmt: skip
