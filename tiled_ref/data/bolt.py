"""The built-in data set's unaligned object: a bolt on a sheet of felt.

Position, orientation (by 11 degrees to either side), roll about its axis, finish and the sheet
vary. The bolt is a solid of revolution with a thread and a hexagonal head. It is shaded from its
surface normals, so that the light always comes from the same side.
"""

import functools

import numpy as np

from . import drawing as d

SIZE = 1024  # px
HEAD, HEAD_LENGTH = 94.0, 96.0  # px: half the width over flats, length
FLANGE = 110.0  # px, radius
SHANK, LENGTH, BARE = 56.0, 640.0, 150.0  # px: radius, total length, unthreaded length
PITCH, DEPTH = 22.0, 8.0  # px, of the thread
TURN = 0.2  # radians to either side
LAMP = np.array([-0.42, -0.52, 0.74], np.float32)  # light direction: x, y, towards the viewer
STEEL = np.array([0.965, 0.985, 1.0], np.float32)
FELT_SEED = 2
DEFECTS = ("chip", "crushed_thread", "dent", "rust", "scratch", "smear")


@functools.lru_cache(maxsize=1)
def _felt():
    """A sheet of grey felt, larger than the picture, float32 (n, n, 1); always the same."""
    rng = np.random.default_rng(FELT_SEED)
    shape = SIZE + 256, SIZE + 256
    sheet = 201 + 3.5 * d.field(rng, shape, 2.5) + 2.5 * d.field(rng, shape, 9)
    return (sheet + 3 * d.field(rng, shape, 120)).astype(np.float32)[..., None]


class _Bolt:
    """The pose of a bolt, and the pixels around it in bolt coordinates.

    Attributes: index, for picture[index]: rows and columns of n pixels; u, v (n,), px along
    the axis from the top of the head, and across it.
    """

    def __init__(self, rng):
        self.x, self.y = SIZE / 2 + rng.uniform(-24, 24, 2)
        self.angle = -0.7 + rng.uniform(-TURN, TURN)
        self.roll, self.facet = rng.uniform(0, 2 * np.pi), rng.uniform(-0.3, 0.3)
        self.finish = rng.normal(1, 0.035)
        self.marks = rng.normal(0, 1, int(LENGTH))  # turning marks along the axis
        cos, sin = abs(np.cos(self.angle)), abs(np.sin(self.angle))
        half = LENGTH / 2 + 4, 1.2 * HEAD
        reach = cos * half[0] + sin * half[1], sin * half[0] + cos * half[1]
        window = d.Window((SIZE, SIZE), self.x, self.y, reach)
        u, v = window.turned(self.angle)
        near = (np.abs(v) < half[1]) & (np.abs(u) < half[0])
        rows, cols = np.nonzero(near)
        self.index = rows + window.index[0].start, cols + window.index[1].start
        self.u, self.v = u[near] + np.float32(LENGTH / 2), v[near]

    def shape(self):
        """Half the width of the silhouette (n,), and the normal along, across, up, each (n,)."""
        u, v = self.u, self.v
        # The shank: a cylinder, its radius modulated by a helix along the thread.
        side = np.arcsin(np.clip(v / np.float32(SHANK), -1, 1))
        turn = u * np.float32(2 * np.pi / PITCH) + np.float32(self.roll) + side
        ramp = np.clip((u - np.float32(HEAD_LENGTH + BARE)) / 30, 0, 1)  # the thread runs out
        end = np.minimum((np.float32(LENGTH) - u) / 18, 1)  # the point is tapered
        radius = SHANK - ramp * (DEPTH / 2) * (1 - np.cos(turn)) - 14 * (1 - end)
        along = ramp * np.float32(DEPTH * np.pi / PITCH) * np.sin(turn) + 0.8 * (end < 1)
        across = np.clip(v / radius, -1, 1)
        up = np.sqrt(1 - across * across)
        # The head: a hexagon of three visible flats, its top bevelled, on a round flange.
        corner = np.float32(HEAD / np.cos(np.pi / 6))
        tilt = np.arcsin(np.clip(v / corner, -1, 1)) - np.float32(self.facet)
        tilt = np.clip(np.rint(tilt * np.float32(3 / np.pi)), -1, 1) * np.float32(np.pi / 3)
        tilt += np.float32(self.facet)
        half = corner * np.float32(np.cos(self.facet)) - 10 * np.maximum(1 - u / 12, 0)
        kinds = [u < 12, u < HEAD_LENGTH - 12, u < HEAD_LENGTH]  # bevel, flats, flange
        round_ = np.clip(v / FLANGE, -1, 1)
        return np.select(kinds, [half, half, np.float32(FLANGE)], radius), [
            np.select(kinds, [np.float32(-0.7), np.float32(0), np.float32(0)], along),
            np.select(kinds, [np.sin(tilt), np.sin(tilt), round_], across),
            np.select(kinds, [np.cos(tilt), np.cos(tilt), np.sqrt(1 - round_ * round_)], up),
        ]

    def paint(self, picture, width, normal):
        """Paint the bolt into a picture; returns the coverage of each pixel (n,)."""
        na, nc, nz = normal
        length = np.sqrt(na * na + nc * nc + nz * nz)
        cos, sin = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        nx, ny, nz = (na * cos - nc * sin) / length, (na * sin + nc * cos) / length, nz / length
        lit = np.clip(nx * LAMP[0] + ny * LAMP[1] + nz * LAMP[2], 0, 1)
        glance = np.clip(2 * lit * nz - LAMP[2], 0, 1)  # specular reflection of the lamp
        marks = np.interp(self.u, np.arange(int(LENGTH)), self.marks).astype(np.float32)
        shade = 44 + 96 * lit + 34 * nz * nz + 92 * glance**14 + 2.2 * marks
        colour = (shade * np.float32(self.finish))[:, None] * STEEL
        ends = np.abs(self.u - np.float32(LENGTH / 2)) - np.float32(LENGTH / 2)
        cover = d.coverage(np.maximum(np.abs(self.v) - width, ends))
        part = picture[self.index]
        picture[self.index] = part + cover[:, None] * (colour - part)
        return cover

    def shadow(self, picture):
        """Darken the felt next to the bolt, on the side away from the lamp."""
        reach = LENGTH / 2 + 60
        window = d.Window((SIZE, SIZE), self.x + 9, self.y + 11, reach)
        u, v = window.turned(self.angle)
        shank = d.box(u - (HEAD_LENGTH - 20) / 2, v, (LENGTH - HEAD_LENGTH) / 2, SHANK - 6, 20)
        head = d.box(u + (LENGTH - HEAD_LENGTH) / 2, v, HEAD_LENGTH / 2, HEAD, 16)
        dark = d.coverage(np.minimum(shank, head), 44)
        picture[window.index] *= (1 - 0.5 * dark * dark)[..., None]


class _Flaws:
    """The defects of a bolt: changes of its surface, and stains on it.

    Attributes: slope (2, n), added to the normal along and across; flat (n,), factor on the
    thread's slope; bite (n,), fraction of each pixel that is broken off; stains, list of
    (alpha (n,), colour); cover (n,), fraction of each pixel covered by any of them.
    """

    def __init__(self, n):
        self.slope = np.zeros((2, n), np.float32)
        self.flat = np.ones(n, np.float32)
        self.bite, self.cover = np.zeros(n, np.float32), np.zeros(n, np.float32)
        self.stains = []

    def covers(self, spot):
        np.maximum(self.cover, spot, out=self.cover)


def render(rng, defect=None, defect_rng=None):
    """Draw one picture; parameters and returns as in board.render."""
    bolt = _Bolt(rng)
    y, x = rng.integers(0, 256, 2)
    picture = np.empty((SIZE, SIZE, 3), np.float32)
    for rows in d.strips(SIZE):
        sheet = _felt()[y + rows.start : y + rows.stop, x : x + SIZE]
        picture[rows] = sheet * np.array([0.985, 0.995, 1.0], np.float32)
    bolt.shadow(picture)
    width, normal = bolt.shape()
    if defect is None:
        bolt.paint(picture, width, normal)
        return picture, None, None
    flawed = picture.copy()
    shape = bolt.paint(picture, width, normal)  # (n,)
    flaws = _Flaws(bolt.u.size)
    for _ in range(d.how_many(defect_rng)):
        _DRAW[defect](bolt, width, flaws, defect_rng)
    felt = flawed[bolt.index]
    normal = [normal[0] * flaws.flat + flaws.slope[0], normal[1] + flaws.slope[1], normal[2]]
    bolt.paint(flawed, width, normal)
    part = flawed[bolt.index]
    for alpha, colour in flaws.stains:
        part += (alpha * shape)[:, None] * (colour - part)
    gone = np.clip(flaws.bite * 1.6 - 0.6, 0, 1)[:, None]
    part *= 1 - 0.5 * flaws.bite[:, None] * (1 - gone)  # the broken edge is dark
    flawed[bolt.index] = part + gone * (felt - part)
    cover = np.zeros((SIZE, SIZE), np.float32)
    cover[bolt.index] = flaws.cover * shape
    return picture, flawed, cover


# ------------------------------------------------------------------------------- defects
# Each adds one defect to `flaws`.


def _spot(rng, first=8.0):
    """A random position on the bolt: u, v."""
    u = rng.uniform(first, LENGTH - 12)
    return u, rng.uniform(-0.8, 0.8) * (HEAD if u < HEAD_LENGTH else SHANK)


def _blob(bolt, rng, place, radius, roughness=0.25, softness=1.2):
    """Coverage of each pixel (n,) by a random roundish shape centred at a position."""
    out = np.zeros_like(bolt.u)
    x, y = bolt.u - np.float32(place[0]), bolt.v - np.float32(place[1])
    near = np.maximum(np.abs(x), np.abs(y)) < 2.4 * radius + 4
    out[near] = d.coverage(d.blob(rng, x[near], y[near], radius, roughness), softness)
    return out


def _chip(bolt, width, flaws, rng):
    """A piece broken out of the edge of the head or of the thread."""
    u = rng.uniform(8, LENGTH - 12)
    edge = rng.choice([-1, 1]) * np.median(width[np.abs(bolt.u - u) < 2])
    bite = _blob(bolt, rng, (u, edge), max(8, d.diameter(rng) * 0.6), 0.3)
    np.maximum(flaws.bite, bite, out=flaws.bite)
    flaws.covers(bite)


def _crushed_thread(bolt, width, flaws, rng):
    """A thread damaged by an impact: its ridges are flat and shiny."""
    place = _spot(rng, HEAD_LENGTH + BARE + 20)
    spot = _blob(bolt, rng, place, max(18, d.diameter(rng)) / 2, 0.2, 3)
    flaws.flat *= 1 - np.float32(0.9) * spot
    flaws.covers(spot)


def _dent(bolt, width, flaws, rng):
    """A hollow knocked into the surface."""
    place = _spot(rng)
    radius = min(max(10, d.diameter(rng)), 30) / 2
    spot = _blob(bolt, rng, place, radius, 0.12, 2)
    steep = spot * np.float32(rng.uniform(1.2, 2.2) / radius)
    flaws.slope[0] -= steep * (bolt.u - np.float32(place[0]))
    flaws.slope[1] -= steep * (bolt.v - np.float32(place[1]))
    flaws.covers(spot)


def _rust(bolt, width, flaws, rng):
    """A grainy brown patch."""
    spot = _blob(bolt, rng, _spot(rng), d.diameter(rng) / 2, 0.25, 3)
    grain = rng.standard_normal((bolt.u.size, 1), np.float32)
    colour = np.array([116, 66, 34], np.float32) + 12 * grain
    flaws.stains.append((spot * np.float32(rng.uniform(0.6, 0.9)), colour))
    flaws.covers(spot)


def _smear(bolt, width, flaws, rng):
    """Grease or old paint, more or less transparent."""
    spot = _blob(bolt, rng, _spot(rng), d.diameter(rng) / 2, 0.25, 3)
    colour = [(38, 34, 28), (208, 196, 150), (62, 84, 120)][rng.integers(3)]
    alpha = spot * np.float32(rng.uniform(0.5, 0.8))
    flaws.stains.append((alpha, np.array(colour, np.float32)))
    flaws.covers(spot)


def _scratch(bolt, width, flaws, rng):
    """A groove with one bright and one dark flank."""
    place = _spot(rng)
    points = d.wander(rng, max(12, d.diameter(rng)), bend=0.05)
    thick = rng.uniform(2, 4)
    x, y = bolt.u - np.float32(place[0]), bolt.v - np.float32(place[1])
    near = np.maximum(np.abs(x), np.abs(y)) < np.abs(points).max() + 8
    spot, dark = np.zeros_like(x), np.zeros_like(x)
    spot[near] = d.coverage(d.path(x[near], y[near], points) - thick / 2)
    dark[near] = d.coverage(d.path(x[near] - 1.2, y[near] - 1.2, points) - thick / 4)
    flaws.stains.append((spot * np.float32(0.85), 236 - 190 * dark[:, None] * STEEL))
    flaws.covers(spot)


_DRAW = {
    "chip": _chip, "crushed_thread": _crushed_thread, "dent": _dent, "rust": _rust,
    "scratch": _scratch, "smear": _smear,
}  # fmt: skip
