"""The built-in data set's texture: a close-up of linen in plain weave.

Phase, waviness, thickness and shade of the yarns vary from picture to picture.
"""

import numpy as np

from . import drawing as d

SIZE = 1024  # px
PITCH = 13.0  # px between yarns
LINEN = np.array([190, 178, 155], np.float32)
DEFECTS = ("broken_yarn", "foreign_fibre", "hole", "slub", "stain", "thin_place")


class _Cloth:
    """Two sets of crossing yarns, warp (down) and weft (across).

    Attributes: phase of each, float32 (SIZE, SIZE), in yarns; shade and thickness of each
    yarn, (n,); tone, float32 (SIZE, SIZE).
    """

    def __init__(self, rng):
        size = (SIZE, SIZE)
        place = np.arange(SIZE, dtype=np.float32)
        pitch = (PITCH * (1 + rng.normal(0, 0.01, 2))).astype(np.float32)
        start = 4 + rng.uniform(0, 1, 2).astype(np.float32)
        self.phase = [d.field(rng, size, cell) for cell in ((150, 60), (60, 150))]
        for k, at in enumerate((place[None, :], place[:, None])):  # warp along x, weft along y
            self.phase[k] *= np.float32(0.22)
            self.phase[k] += at / pitch[k] + start[k]
        n = int(SIZE / PITCH * 1.1) + 12
        self.shade = [(1 + rng.normal(0, 0.035, n)).astype(np.float32) for _ in range(2)]
        self.half = [(0.44 * (1 + rng.normal(0, 0.05, n))).astype(np.float32) for _ in range(2)]
        self.tone = 1 + np.float32(0.03) * d.field(rng, size, 90)
        self.tone += np.float32(0.035) * d.field(rng, size, 6)  # yarn is uneven

    def picture(self, index, thickness=(1, 1), missing=(0, 0)):
        """A part of the cloth, float32 (n, m, 3); thickness, missing: factors for warp and weft."""
        offs, numbers, lights = [], [], []
        for k in (0, 1):
            phase = self.phase[k][index]
            yarn = phase.astype(np.int32)
            off = phase - yarn - np.float32(0.5)  # -0.5 to 0.5 across the yarn
            light = off / (self.half[k][yarn] * thickness[k])
            light *= light
            np.subtract(1, light, out=light)
            np.sqrt(np.maximum(light, 0, out=light), out=light)  # round
            light *= self.shade[k][yarn] * (1 - missing[k])
            offs.append(off)
            numbers.append(yarn)
            lights.append(light)
        # Warp is on top where the sum of the yarn numbers is even; a yarn dips between crossings.
        even = ((numbers[0] + numbers[1]) & 1) == 0
        for k, on_top in ((0, even), (1, ~even)):
            dip = offs[1 - k] * offs[1 - k]
            dip *= np.float32(-1.9)
            dip += 1
            lights[k] *= np.where(on_top, dip, np.float32(0.45))
        light = np.maximum(lights[0], lights[1], out=lights[0])
        light = np.maximum(light, np.float32(0.16), out=light)
        light *= self.tone[index]
        return light[..., None] * LINEN


def render(rng, defect=None, defect_rng=None):
    """Draw one picture; parameters and returns as in board.render."""
    cloth = _Cloth(rng)
    picture = np.empty((SIZE, SIZE, 3), np.float32)
    for rows in d.strips(SIZE):
        picture[rows] = cloth.picture((rows, slice(None)))
    if defect is None:
        return picture, None, None
    flawed, cover = picture.copy(), np.zeros((SIZE, SIZE), np.float32)
    for _ in range(d.how_many(defect_rng)):
        _DRAW[defect](cloth, flawed, cover, defect_rng)
    return picture, flawed, cover


# ------------------------------------------------------------------------------- defects
# Each draws one defect into `picture` and its coverage of each pixel into `cover`, (H, W).


def _window(rng, reach):
    return d.Window((SIZE, SIZE), *rng.uniform(40, SIZE - 40, 2), reach)


def _rewoven(cloth, picture, cover, window, alpha, **changes):
    d.paint(picture, cover, window, alpha, cloth.picture(window.index, **changes))


def _along(rng, window, length, width):
    """A spindle shape along warp or weft: its coverage, and the index of the yarns (0 or 1)."""
    k = rng.integers(2)
    u, v = (window.y, window.x) if k == 0 else (window.x, window.y)
    half = width / 2 * np.sqrt(np.clip(1 - (2 * u / length) ** 2, 0, 1))
    return d.coverage(np.abs(v) - half, 1.5) * (np.abs(u) < length / 2), k


def _broken_yarn(cloth, picture, cover, rng):
    """A yarn with a piece missing."""
    length = max(14, d.diameter(rng))
    window = _window(rng, length / 2 + 4)
    alpha, k = _along(rng, window, length, PITCH)
    missing = [0, 0]
    missing[k] = alpha * np.float32(0.95)
    _rewoven(cloth, picture, cover, window, alpha, missing=missing)


def _thin_place(cloth, picture, cover, rng):
    """An area where the yarns are too thin."""
    radius = max(16, d.diameter(rng)) / 2
    window = _window(rng, 2.4 * radius + 4)
    alpha = d.coverage(d.blob(rng, window.x, window.y, radius), 3)
    thin = 1 - np.float32(rng.uniform(0.3, 0.5)) * alpha
    _rewoven(cloth, picture, cover, window, alpha, thickness=(thin, thin))


def _slub(cloth, picture, cover, rng):
    """A lump of loose fibres in a yarn."""
    length = max(12, d.diameter(rng))
    window = _window(rng, length / 2 + 6)
    alpha, k = _along(rng, window, length, PITCH * rng.uniform(0.9, 1.6))
    fluff = 0.92 + 0.06 * d.field(rng, alpha.shape, (3, 3))
    light = fluff * cloth.tone[window.index]
    d.paint(picture, cover, window, alpha, light[..., None] * LINEN, 0.85)


def _hole(cloth, picture, cover, rng):
    """A hole with frayed edges, through which the dark table is visible."""
    radius = d.diameter(rng) / 2
    window = _window(rng, 2.4 * radius + 4)
    alpha = d.coverage(d.blob(rng, window.x, window.y, radius, 0.3), 2)
    d.paint(picture, cover, window, alpha, (36, 33, 30), 0.9)


def _stain(cloth, picture, cover, rng):
    """A soaked-in drop of coffee, oil or ink, through which the weave is visible."""
    radius = max(10, d.diameter(rng)) / 2
    window = _window(rng, 2.4 * radius + 4)
    alpha = d.coverage(d.blob(rng, window.x, window.y, radius, 0.2), 4)
    tint = [(0.62, 0.50, 0.34), (0.72, 0.70, 0.62), (0.45, 0.50, 0.68)][rng.integers(3)]
    d.paint(picture, cover, window, alpha, picture[window.index] * np.array(tint, np.float32))


def _foreign_fibre(cloth, picture, cover, rng):
    """A coloured thread that was woven in or fell on the cloth."""
    points = d.wander(rng, rng.uniform(24, 100))
    window = _window(rng, np.abs(points).max() + 6)
    alpha = d.coverage(d.path(window.x, window.y, points) - rng.uniform(0.8, 1.6), 1.4)
    colour = [(44, 40, 44), (150, 46, 40), (52, 74, 120)][rng.integers(3)]
    d.paint(picture, cover, window, alpha, colour, 0.85)


_DRAW = {
    "broken_yarn": _broken_yarn, "foreign_fibre": _foreign_fibre, "hole": _hole,
    "slub": _slub, "stain": _stain, "thin_place": _thin_place,
}  # fmt: skip
