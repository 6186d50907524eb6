"""The built-in data set's aligned object: a populated circuit board seen from above.

The layout is the same in every picture. The positions of the parts (by about a pixel), their
shades, the solder highlights, the date codes and the position of the board vary.
One file because it is a single drawing, mostly numbers.
"""

import functools

import numpy as np

from . import drawing as d

SIZE = 1024  # px
MARGIN = 8  # px drawn beyond each side, to allow for the shift of the board
LAYOUT_SEED = 1  # of vias, traces and values printed on parts; fixed: one type of board

GREEN, COPPER_GREEN, SILK = (24, 82, 52), (40, 112, 68), (208, 214, 206)
GOLD, TIN, BLACK = (196, 160, 84), (176, 178, 180), (34, 34, 37)
LABELS = (  # printed part names and their positions
    ("U1", 274, 252), ("U2", 682, 131), ("U3", 500, 653), ("U4", 740, 494), ("Y1", 330, 552),
    ("J1", 82, 276), ("J2", 528, 66), ("C1", 660, 808), ("C2", 810, 776),
    ("D1", 250, 886), ("D2", 310, 886), ("D3", 370, 886),
)  # fmt: skip
DEFECTS = (
    "bridge", "contamination", "cut_trace", "fibre", "misplaced_part", "missing_part",
    "scratch", "solder_ball",
)  # fmt: skip


class _Part:
    """A small machine-placed part, whose position varies slightly from board to board.

    Attributes: kind; x, y of its centre; width, height (px); colour float32 (n, m, 3),
    already multiplied by alpha float32 (n, m); `reach`, half the side of that square.
    """

    def __init__(self, kind, x, y, turned, rng):
        self.kind, self.x, self.y = kind, x, y
        length, breadth = {"R": (34, 20), "C": (32, 20), "r": (24, 14), "c": (24, 14)}[kind]
        self.width, self.height = (breadth, length) if turned else (length, breadth)
        self.reach = length // 2 + 9
        side = 2 * self.reach + 1
        window = d.Window((side, side), self.reach, self.reach, self.reach)
        x, y = (window.y, window.x) if turned else (window.x, window.y)
        body = d.coverage(d.box(x, y, length / 2, breadth / 2, 1.5))
        below = d.box(window.x - 2.5, window.y - 3, self.width / 2, self.height / 2, 3)
        shadow = d.coverage(below, 5)
        colour = np.zeros((side, side, 3), np.float32)
        if kind in "Rr":
            d.blend(colour, window, body, BLACK)
        else:
            d.blend(colour, window, body, (150, 116, 82))
            colour *= (1 - 0.12 * np.abs(y) / (breadth / 2))[..., None]  # rounded
        ends = d.coverage(length / 2 - length * 0.21 - np.abs(x)) * body
        d.blend(colour, window, ends, np.asarray(TIN) * (1 - 0.25 * np.abs(y) / breadth)[..., None])
        if kind == "R":
            value = f"{rng.integers(1, 10)}{rng.integers(0, 10)}{rng.integers(0, 5)}"
            d.letters(colour, value, self.reach, self.reach, 1.6, (190, 190, 185), 0.9, turned)
        self.alpha = body + (1 - body) * 0.45 * shadow
        self.colour = d.soften(colour * body[..., None])
        self.alpha = d.soften(self.alpha[..., None])[..., 0]

    def paste(self, picture, dx=0.0, dy=0.0, gain=1.0, angle=0.0):
        """Draw the part with offset (dx, dy) from its nominal position, rotated by `angle`.

        Returns (index, alpha) of the window it was drawn in.
        """
        x, y = self.x + dx + MARGIN, self.y + dy + MARGIN
        window = d.Window(picture.shape, x, y, self.reach + 6)
        u, v = window.turned(angle)
        layers = np.concatenate([self.colour * np.float32(gain), self.alpha[..., None]], axis=2)
        layers = _sample(layers, u + self.reach, v + self.reach)  # (n, m, 4)
        part = picture[window.index]
        part *= 1 - layers[..., 3:]
        part += layers[..., :3]
        return window.index, layers[..., 3]


def _sample(layers, x, y):
    """Interpolate layers (n, n, c) linearly at the points (x, y); zero outside."""
    x, y = np.broadcast_arrays(x, y)
    padded = np.pad(layers, ((1, 2), (1, 2), (0, 0)))
    limit = layers.shape[0]
    x, y = np.clip(x, -1, limit) + 1, np.clip(y, -1, limit) + 1
    left, top = x.astype(int), y.astype(int)
    tx, ty = (x - left)[..., None], (y - top)[..., None]
    upper = padded[top, left] * (1 - tx) + padded[top, left + 1] * tx
    lower = padded[top + 1, left] * (1 - tx) + padded[top + 1, left + 1] * tx
    return upper * (1 - ty) + lower * ty


class _Board:
    """The bare board with its large parts, drawn once, and the list of small parts.

    Attributes: picture float32 (SIZE + 2 MARGIN, same, 3); parts, list of _Part; traces,
    list of (points, width); gaps, list of (x, y, horizontal) between neighbouring pins;
    codes, list of (x, y, upright) where date codes are printed; glints, list of (x, y) on
    solder; taken, list of (x, y, half width, half height) of occupied areas.
    """

    def __init__(self):
        rng = np.random.default_rng(LAYOUT_SEED)
        side = SIZE + 2 * MARGIN
        self.parts, self.traces, self.gaps, self.codes, self.taken = [], [], [], [], []
        self.glints = []
        picture = np.empty((side, side, 3), np.float32)
        picture[:] = (52, 53, 56)  # the table
        picture += 3 * d.field(rng, (side, side), 3)[..., None]
        self.picture = picture
        window = d.Window(picture.shape, side / 2, side / 2, side)
        shadow = d.coverage(d.box(window.x - 5, window.y - 7, 490, 490, 16), 16)
        d.blend(picture, window, 0.6 * shadow, (14, 14, 16))
        board = d.coverage(d.box(window.x, window.y, 486, 486, 14))
        d.blend(picture, window, board, (150, 140, 96))
        inner = d.coverage(d.box(window.x, window.y, 483, 483, 12))
        weave = 1.6 * d.field(rng, (side, side), 2.5) + 2 * d.field(rng, (side, side), 40)
        d.blend(picture, window, inner, np.asarray(GREEN, np.float32) + weave[..., None])
        self._place_large()
        self._place_small(rng)
        self._route(rng)
        for draw in self._large:
            draw()
        self._pads()
        for text, x, y in LABELS:
            d.letters(self.picture, text, x + MARGIN, y + MARGIN, 3, SILK, 0.85)
        self.picture = d.soften(picture)

    # -- layout

    def _place_large(self):
        self._large = []
        self._add(self._quad, 392, 392, 132, 132)
        self._add(self._dual, 742, 250, 88, 110, 10)
        self._add(self._dual, 800, 560, 72, 66, 5)
        self._add(self._dual, 560, 730, 72, 80, 6)
        self._add(self._crystal, 392, 590, 70, 34)
        self._add(self._header, 92, 470, 40, 190)
        self._add(self._socket, 420, 96, 92, 66)
        self._add(self._can, 700, 872, 56, 56)
        self._add(self._can, 850, 840, 56, 56)
        for x in (250, 310, 370):
            self._add(self._lamp, x, 920, 20, 26)
        for x in (84, 940):
            for y in (84, 940):
                self._add(self._hole, x, y, 44, 44)
        self.taken += [(x, y, 14, 10) for _, x, y in LABELS]

    def _add(self, draw, x, y, half_width, half_height, *more):
        self.taken.append((x, y, half_width, half_height))
        self._large.append(functools.partial(draw, x, y, *more))

    def _free(self, x, y, half_width, half_height):
        """Whether a box is inside the board and overlaps nothing on it."""
        inside = 50 + half_width < x < SIZE - 50 - half_width
        inside = inside and 50 + half_height < y < SIZE - 50 - half_height
        return inside and all(
            abs(x - other_x) >= half_width + width or abs(y - other_y) >= half_height + height
            for other_x, other_y, width, height in self.taken
        )

    def _place_small(self, rng):
        for x0, y0, nx, ny, px, py, kind, turned in (
            (208, 232, 1, 7, 1, 44, "C", False), (300, 208, 6, 1, 44, 1, "R", True),
            (560, 330, 2, 6, 48, 40, "R", False), (240, 690, 5, 2, 48, 56, "C", True),
            (620, 130, 1, 4, 1, 46, "c", False), (872, 160, 2, 6, 38, 42, "r", False),
            (690, 420, 6, 2, 40, 42, "r", True), (640, 620, 2, 5, 44, 40, "c", False),
            (480, 860, 4, 2, 40, 50, "R", True), (180, 800, 3, 1, 60, 1, "R", False),
            (890, 660, 1, 4, 1, 44, "R", False), (190, 600, 2, 2, 56, 40, "c", False),
        ):  # fmt: skip
            for row in range(ny):
                for col in range(nx):
                    x, y = x0 + col * px, y0 + row * py
                    if self._free(x, y, 20, 20):
                        self.parts.append(_Part(kind, x, y, turned, rng))
        self.taken += [(p.x, p.y, p.width / 2 + 6, p.height / 2 + 6) for p in self.parts]

    def _route(self, rng):
        """Route traces between random parts in 45-degree steps; put vias in free places."""
        ends = [(p.x, p.y) for p in self.parts]
        for x, y, w, h in self.taken[:7]:
            ends += [(x + s * w, y + rng.uniform(-h, h)) for s in (-1, 1)]
        for _ in range(70):
            (x0, y0), (x1, y1) = (ends[k] for k in rng.choice(len(ends), 2, replace=False))
            if abs(x1 - x0) + abs(y1 - y0) > 420:
                continue
            step = min(abs(x1 - x0), abs(y1 - y0))
            middle = (x0 + np.sign(x1 - x0) * step, y0 + np.sign(y1 - y0) * step)
            width = float(rng.choice([4.0, 5.0, 7.0]))
            self.traces.append(([(x0, y0), middle, (x1, y1)], width))
        for k in range(9):  # a bus from the header
            y, x1 = 300 + 17 * k, 262 + 4 * k
            self.traces.append(([(120, y), (x1 - 30 - k, y), (x1, y + 30)], 4.0))
        for points, width in self.traces:
            self._trace(points, width)
        self.vias = []
        while len(self.vias) < 90:
            x, y = rng.uniform(70, SIZE - 70, 2)
            apart = all((x - a) ** 2 + (y - b) ** 2 > 600 for a, b in self.vias)
            if apart and self._free(x, y, 9, 9):
                self.vias.append((x, y))
                self._ring(x, y, 7.5, 3.2)

    # -- drawing, in board coordinates

    def _shape(self, x, y, reach):
        return d.Window(self.picture.shape, x + MARGIN, y + MARGIN, reach)

    def _box(self, x, y, half_width, half_height, colour, radius=2.0, softness=1.2, opacity=1.0):
        window = self._shape(x, y, max(half_width, half_height) + softness + 1)
        alpha = d.coverage(d.box(window.x, window.y, half_width, half_height, radius), softness)
        d.blend(self.picture, window, alpha * np.float32(opacity), colour)

    def _disc(self, x, y, radius, colour, softness=1.2, opacity=1.0):
        window = self._shape(x, y, radius + softness + 1)
        alpha = d.coverage(d.disc(window.x, window.y, radius), softness)
        d.blend(self.picture, window, alpha * np.float32(opacity), colour)

    def _shadow(self, x, y, half_width, half_height, depth):
        x, y = x + depth * 0.7, y + depth
        self._box(x, y, half_width, half_height, (6, 16, 10), 4, 2 * depth, 0.55)

    def _trace(self, points, width):
        centre = np.mean(points, axis=0)
        window = self._shape(*centre, np.abs(np.subtract(points, centre)).max() + width + 3)
        distance = d.path(window.x, window.y, [tuple(np.subtract(p, centre)) for p in points])
        d.blend(self.picture, window, 0.5 * d.coverage(distance - width / 2 - 1.5, 2), (16, 62, 38))
        d.blend(self.picture, window, d.coverage(distance - width / 2), COPPER_GREEN)

    def _ring(self, x, y, radius, hole):
        self._disc(x, y, radius + 1.5, (18, 66, 42))
        self._disc(x, y, radius, GOLD)
        self._disc(x - 1, y - 1, radius * 0.75, (224, 194, 120), 4, 0.6)
        self._disc(x, y, hole, (14, 16, 15))

    def _pin(self, x, y, half_width, half_height):
        """A tinned leg on its pad: bright along the middle, dark at the edges."""
        self._box(x, y, half_width + 1.5, half_height + 1.5, (150, 146, 130), 1.5)
        self._box(x, y, half_width, half_height, (120, 122, 126), 1.5)
        self._box(x, y, half_width * 0.45, half_height * 0.8, (214, 216, 218), 1, 2.5)

    def _package(self, x, y, half_width, half_height, name):
        self._shadow(x, y, half_width, half_height, 8)
        self._box(x, y, half_width, half_height, (24, 24, 26), 4)
        self._box(x, y, half_width - 3, half_height - 3, (40, 40, 43), 4, 3)
        self._disc(x - half_width + 14, y - half_height + 14, 5.5, (26, 26, 28))
        upright = half_height > half_width * 1.2
        shift = (-9, 0) if upright else (0, -9)
        where = x + MARGIN + shift[0], y + MARGIN + shift[1]
        d.letters(self.picture, name, *where, 2.4, (132, 132, 130), 0.8, upright)
        self.codes.append((x - shift[0], y - shift[1], upright))

    def _quad(self, x, y):
        for k in range(16):
            offset = (k - 7.5) * 13
            for s in (-1, 1):
                self._pin(x + offset, y + s * 121, 3.2, 9)
                self._pin(x + s * 121, y + offset, 9, 3.2)
                if k < 15:
                    self.gaps.append((x + offset + 6.5, y + s * 121, True))
                    self.gaps.append((x + s * 121, y + offset + 6.5, False))
        self._package(x, y, 112, 112, "ARC-4071")

    def _dual(self, x, y, pins):
        half = pins * 10.5
        for k in range(pins):
            for s in (-1, 1):
                self._pin(x + s * 64, y + (k - (pins - 1) / 2) * 20, 14, 4.8)
                if k < pins - 1:
                    self.gaps.append((x + s * 66, y + (k - pins / 2 + 1) * 20, False))
        self._package(x, y, 50, half, {10: "DL-2210", 5: "PA-87", 6: "TC-145"}[pins])

    def _crystal(self, x, y):
        self._shadow(x, y, 62, 26, 9)
        self._box(x, y, 62, 26, (118, 120, 124), 24)
        self._box(x - 1, y - 3, 54, 18, (188, 190, 192), 18, 10)
        d.letters(self.picture, "16-000", x + MARGIN, y + MARGIN, 2.6, (92, 94, 98), 0.8)

    def _header(self, x, y):
        self._shadow(x, y, 32, 178, 9)
        self._box(x, y, 32, 178, (22, 22, 25), 3)
        for k in range(11):
            for s in (-1, 1):
                px, py = x + s * 15, y + (k - 5) * 31
                self._box(px, py, 12, 12, (44, 44, 47), 2, 3)
                self._box(px, py, 5, 5, GOLD, 1.5)
                self._box(px - 1, py - 1, 2.5, 2.5, (244, 220, 160), 1, 2)

    def _socket(self, x, y):
        self._shadow(x, y, 84, 58, 12)
        self._box(x, y, 84, 58, (128, 131, 136), 5)
        self._box(x, y - 4, 78, 48, (182, 185, 190), 5, 14)
        self._box(x, y + 30, 60, 3, (112, 115, 120), 1, 2)
        for s in (-1, 1):
            self._box(x + s * 36, y - 20, 9, 14, (96, 99, 104), 2, 2)

    def _can(self, x, y):
        self._shadow(x, y, 46, 46, 14)
        self._box(x, y, 51, 51, (28, 28, 31), 8)
        self._disc(x, y, 45, (116, 118, 122))
        self._disc(x - 3, y - 4, 40, (196, 198, 201), 8)
        window = self._shape(x, y, 46)
        side = d.coverage(d.disc(window.x, window.y, 41)) * d.coverage(window.x + 24 + 0 * window.y)
        d.blend(self.picture, window, side, (30, 31, 34))
        d.letters(self.picture, "100", x + MARGIN + 8, y + MARGIN - 8, 3.2, (70, 72, 76), 0.9)
        d.letters(self.picture, "25", x + MARGIN + 8, y + MARGIN + 14, 3.2, (70, 72, 76), 0.9)

    def _lamp(self, x, y):
        self._shadow(x, y, 13, 20, 4)
        self._box(x, y, 13, 20, TIN, 2)
        self._box(x, y, 13, 12, (212, 208, 188), 2)
        self._disc(x, y, 8, (236, 222, 130), 3)

    def _hole(self, x, y):
        self._disc(x, y, 36, (168, 140, 78))
        self._disc(x - 2, y - 2, 32, GOLD, 6)
        self._disc(x, y, 23, (88, 74, 44))
        self._disc(x + 1, y + 1, 21, (46, 47, 50))

    def _pads(self):
        """Draw two soldered pads and a printed frame for every small part."""
        for part in self.parts:
            half = np.array([part.width, part.height]) / 2
            window = self._shape(part.x, part.y, part.reach + 4)
            frame = np.abs(d.box(window.x, window.y, *(half + 6), 2)) - 0.8
            d.blend(self.picture, window, 0.7 * d.coverage(frame), SILK)
            along = np.array([1, 0]) if part.width > part.height else np.array([0, 1])
            for s in (-1, 1):
                x, y = np.array([part.x, part.y]) + s * along * (half - 1)
                self._box(x, y, *np.where(along, 6, half + 1), (164, 160, 146), 2.5)
                self._box(x - 0.5, y - 1, *np.where(along, 3, half - 4), (206, 206, 200), 2, 3)
                self.glints.append(tuple(np.array([part.x, part.y]) + s * along * (half + 3)))


_board = functools.lru_cache(maxsize=1)(_Board)


def render(rng, defect=None, defect_rng=None):
    """Draw one picture of the board.

    Parameters: rng for the variation between boards; defect, one of DEFECTS or None;
    defect_rng for the defect.
    Returns the picture without the defect, float32 (SIZE, SIZE, 3), the picture with it, and the
    coverage of each pixel by it, float32 (SIZE, SIZE); the last two are None without a defect.
    """
    board = _board()
    bare = board.picture.copy()
    for x, y, upright in board.codes:
        code = "".join(str(k) for k in rng.integers(0, 10, 4))
        d.letters(bare, code, x + MARGIN, y + MARGIN, 2.0, (120, 120, 118), 0.7, upright)
    picture = bare.copy()
    n = len(board.parts)
    places = zip(rng.normal(0, 0.7, n), rng.normal(0, 0.7, n), rng.normal(1, 0.06, n))
    for part, place, angle in zip(board.parts, places, rng.normal(0, 0.03, n)):
        part.paste(picture, *place, angle)
    for (x, y), strength in zip(board.glints, rng.uniform(0, 0.8, len(board.glints))):
        window = d.Window(picture.shape, x + MARGIN, y + MARGIN, 5)
        alpha = d.coverage(d.disc(window.x, window.y, 2.2), 3) * np.float32(strength)
        d.blend(picture, window, alpha, (236, 236, 232))
    x, y = MARGIN + rng.normal(0, 0.4, 2)
    clean = d.shifted(picture, x, y, SIZE)
    if defect is None:
        return clean, None, None
    cover = np.zeros((*picture.shape[:2], 1), np.float32)
    for _ in range(d.how_many(defect_rng)):
        _DRAW[defect](board, bare, picture, cover[..., 0], defect_rng)
    return clean, d.shifted(picture, x, y, SIZE), d.shifted(cover, x, y, SIZE)[..., 0]


# ------------------------------------------------------------------------------- defects
# Each draws one defect into `picture` and writes the fraction of each pixel that it covers into
# `cover`, (H, W).


def _anywhere(rng):
    return rng.uniform(70, SIZE - 70, 2) + MARGIN


def _ball(board, bare, picture, cover, rng):
    """A drop of solder that splashed: a bright sphere."""
    radius = min(d.diameter(rng), 24) / 2
    x, y = _anywhere(rng)
    window = d.Window(picture.shape, x, y, radius + 4)
    u, v = window.x / radius, window.y / radius
    facing = np.sqrt(np.clip(1 - u * u - v * v, 0, 1))
    light = np.clip(0.35 * -u + 0.5 * -v + 0.8 * facing, 0, 1)
    shade = 54 + 96 * light + 60 * light**8
    colour = shade[..., None] * np.array([1, 1.005, 1.01], np.float32)
    d.paint(picture, cover, window, d.coverage(d.disc(window.x, window.y, radius)), colour)


def _bridge(board, bare, picture, cover, rng):
    """Solder between two neighbouring pins."""
    x, y, horizontal = board.gaps[rng.integers(len(board.gaps))]
    x, y = x + MARGIN + rng.normal(0, 1), y + MARGIN + rng.normal(0, 1)
    across, along = rng.uniform(7, 10), rng.uniform(4, 7)
    window = d.Window(picture.shape, x, y, 18)
    u, v = (window.x, window.y) if horizontal else (window.y, window.x)
    u, v = np.broadcast_arrays(u, v)
    alpha = d.coverage(d.blob(rng, u, v * (across / along), across, 0.12))
    shade = 128 + 80 * np.exp(-((v / along) ** 2) * 4)
    d.paint(picture, cover, window, alpha, shade[..., None] * np.array([1, 1, 0.99], np.float32))


def _contamination(board, bare, picture, cover, rng):
    """A flux residue or smear, more or less transparent."""
    radius = d.diameter(rng) / 2
    x, y = _anywhere(rng)
    window = d.Window(picture.shape, x, y, 2.2 * radius + 4)
    alpha = d.coverage(d.blob(rng, window.x, window.y, radius), 2.5)
    colour = [(148, 112, 50), (206, 200, 178), (20, 18, 16)][rng.integers(3)]
    d.paint(picture, cover, window, alpha, colour, rng.uniform(0.15, 0.5))


def _cut_trace(board, bare, picture, cover, rng):
    """An interrupted trace: the copper is missing down to the laminate."""
    weights = np.array([len(points) for points, _ in board.traces], float)
    for _ in range(100):
        points, width = board.traces[rng.choice(len(board.traces), p=weights / weights.sum())]
        k = rng.integers(len(points) - 1)
        (x0, y0), (x1, y1) = points[k], points[k + 1]
        t = rng.uniform(0.1, 0.9)
        x, y = x0 + t * (x1 - x0), y0 + t * (y1 - y0)
        if np.hypot(x1 - x0, y1 - y0) > 40 and board._free(x, y, 8, 8):
            break
    length = rng.uniform(7, 16)
    window = d.Window(picture.shape, x + MARGIN, y + MARGIN, length + width + 6)
    u, v = window.turned(np.arctan2(y1 - y0, x1 - x0))
    alpha = d.coverage(d.blob(rng, u * (2 * width / length), v, width, 0.15), 1.5)
    colour = [(72, 92, 56), (18, 58, 36)][rng.integers(2)]
    d.paint(picture, cover, window, alpha, colour, 0.85)


def _fibre(board, bare, picture, cover, rng):
    """A hair or a textile fibre."""
    points = d.wander(rng, rng.uniform(25, 100))
    colours = [(226, 224, 218), (18, 16, 18)]
    _line(picture, cover, rng, points, rng.uniform(1.1, 1.8), colours, 0.5)


def _scratch(board, bare, picture, cover, rng):
    """A scratch through the solder mask down to the copper."""
    points = d.wander(rng, max(10, d.diameter(rng)), bend=0.06)
    colours = [(206, 158, 104), (150, 180, 150)]
    _line(picture, cover, rng, points, rng.uniform(1.2, 2.2), colours, 0.6)


def _line(picture, cover, rng, points, width, colours, opacity):
    x, y = _anywhere(rng)
    window = d.Window(picture.shape, x, y, np.abs(points).max() + width + 3)
    alpha = d.coverage(d.path(window.x, window.y, points) - width / 2, 1.4)
    d.paint(picture, cover, window, alpha, colours[rng.integers(len(colours))], opacity)


def _missing_part(board, bare, picture, cover, rng):
    """A small part that was not placed or fell off: its pads are bare."""
    _remove_part(board.parts[rng.integers(len(board.parts))], bare, picture, cover)


def _misplaced_part(board, bare, picture, cover, rng):
    """A small part that was placed rotated and off its nominal position."""
    part = board.parts[rng.integers(len(board.parts))]
    _remove_part(part, bare, picture, cover)
    angle = rng.choice([-1, 1]) * rng.uniform(0.1, 0.5)
    index, alpha = part.paste(picture, *rng.normal(0, 2.5, 2), 1.0, angle)
    np.maximum(cover[index], alpha, out=cover[index])


def _remove_part(part, bare, picture, cover):
    index, alpha = part.paste(picture)  # at its nominal position; the shadow covers its offset
    alpha = d.widened(alpha)
    part_of = picture[index]
    part_of[alpha > 0] = bare[index][alpha > 0]
    np.maximum(cover[index], alpha, out=cover[index])


_DRAW = {
    "bridge": _bridge, "contamination": _contamination, "cut_trace": _cut_trace,
    "fibre": _fibre, "misplaced_part": _misplaced_part, "missing_part": _missing_part,
    "scratch": _scratch, "solder_ball": _ball,
}  # fmt: skip
