"""The built-in data set's unaligned object: a bolt on a sheet of felt, lying anyhow.

Place, direction, roll about its own axis, finish and the sheet vary. The bolt is a solid of
revolution with a thread and a hexagonal head; it is shaded from its surface normals, so the
light comes from the same side however it lies.
"""

import functools

import numpy as np

from . import drawing as d

SIZE = 1024  # px
HEAD, HEAD_LENGTH = 94.0, 96.0  # px: half the width over flats, length
SHANK, LENGTH, BARE = 56.0, 640.0, 150.0  # px: radius, whole length, length without thread
PITCH, DEPTH = 22.0, 8.0  # px, of the thread
LAMP = np.array([-0.42, -0.52, 0.74], np.float32)  # direction of the light, x, y, towards us
STEEL = np.array([0.965, 0.985, 1.0], np.float32)
DEFECTS = ("chip", "crushed_thread", "dent", "rust", "scratch", "smear")


@functools.lru_cache(maxsize=1)
def _felt():
    """A sheet of grey felt, larger than the picture, float32 (n, n, 1)."""
    rng = np.random.default_rng(2)
    shape = SIZE + 256, SIZE + 256
    sheet = 201 + 3.5 * d.field(rng, shape, 2.5) + 2.5 * d.field(rng, shape, 9)
    return (sheet + 3 * d.field(rng, shape, 120)).astype(np.float32)[..., None]


class _Bolt:
    """How one bolt lies, and the pixels around it in its own coordinates.

    Attributes: index, for picture[index]: rows and columns of n pixels; u, v (n,), px along
    the axis from the top of the head, and across it.
    """

    def __init__(self, rng):
        self.x, self.y = SIZE / 2 + rng.uniform(-70, 70, 2)
        self.angle = rng.uniform(0, 2 * np.pi)
        self.roll, self.facet = rng.uniform(0, 2 * np.pi), rng.uniform(-0.5, 0.5)
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
        """Half the width of the silhouette (n,), and the normal (na, nc, nz), each (n,)."""
        u, v = self.u, self.v
        corner = HEAD / np.cos(np.pi / 6)
        top = np.minimum(u / 12, 1)  # the head's top is chamfered
        end = np.minimum((LENGTH - u) / 18, 1)
        ramp = np.clip((u - HEAD_LENGTH - BARE) / 30, 0, 1)  # the thread runs out
        side = np.arcsin(np.clip(v / SHANK, -1, 1))
        turn = 2 * np.pi * u / np.float32(PITCH) + np.float32(self.roll) + side
        radius = SHANK - ramp * (DEPTH / 2) * (1 - np.cos(turn)) - 14 * (1 - end)
        slope = ramp * np.float32(DEPTH * np.pi / PITCH) * -np.sin(turn) - 0.8 * (end < 1)
        across = np.clip(v / radius, -1, 1)
        normal = [-slope, across, np.sqrt(1 - across * across)]
        facet = np.clip(np.rint((np.arcsin(np.clip(v / corner, -1, 1)) - self.facet) * 3 / np.pi), -1, 1)
        tilt = self.facet + facet * np.float32(np.pi / 3)
        head = u < HEAD_LENGTH
        flange = head & (u > HEAD_LENGTH - 12)
        bevel = np.where(u < 12, np.float32(-0.7), 0)
        normal[0] = np.where(head, bevel, normal[0])
        normal[1] = np.where(head & ~flange, np.sin(tilt), np.where(flange, np.clip(v / 110, -1, 1), normal[1]))
        normal[2] = np.where(head & ~flange, np.cos(tilt), np.where(flange, np.sqrt(1 - normal[1] ** 2), normal[2]))
        width = np.where(flange, 110, np.where(head, corner * np.cos(self.facet) - 10 * (1 - top), radius))
        return width, normal

    def paint(self, picture, width, normal):
        """Put the bolt into a picture; returns the share it covers of each pixel (n,)."""
        na, nc, nz = normal
        length = np.sqrt(na * na + nc * nc + nz * nz)
        cos, sin = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        nx, ny, nz = (na * cos - nc * sin) / length, (na * sin + nc * cos) / length, nz / length
        lit = np.clip(nx * LAMP[0] + ny * LAMP[1] + nz * LAMP[2], 0, 1)
        glance = np.clip(2 * lit * nz - LAMP[2], 0, 1)  # the mirrored lamp towards us
        marks = np.interp(self.u, np.arange(int(LENGTH)), self.marks).astype(np.float32)
        shade = 44 + 96 * lit + 34 * nz * nz + 92 * glance**14 + 2.2 * marks
        colour = (shade * np.float32(self.finish))[:, None] * STEEL
        cover = d.coverage(np.maximum(np.abs(self.v) - width, np.abs(self.u - LENGTH / 2) - LENGTH / 2))
        part = picture[self.index]
        picture[self.index] = part + cover[:, None] * (colour - part)
        return cover

    def shadow(self, picture):
        """Darkens the felt beside the bolt, on the side away from the lamp."""
        reach = LENGTH / 2 + 60
        window = d.Window((SIZE, SIZE), self.x + 9, self.y + 11, reach)
        u, v = window.turned(self.angle)
        shank = d.box(u - (HEAD_LENGTH - 20) / 2, v, (LENGTH - HEAD_LENGTH) / 2, SHANK - 6, 20)
        head = d.box(u + (LENGTH - HEAD_LENGTH) / 2, v, HEAD_LENGTH / 2, HEAD, 16)
        dark = d.coverage(np.minimum(shank, head), 44)
        picture[window.index] *= (1 - 0.5 * dark * dark)[..., None]


def render(rng, defect=None, defect_rng=None):
    """One picture; parameters and returns as in board.render."""
    bolt = _Bolt(rng)
    y, x = rng.integers(0, 256, 2)
    sheet = _felt()[y : y + SIZE, x : x + SIZE]
    picture = sheet * np.array([0.985, 0.995, 1.0], np.float32)
    bolt.shadow(picture)
    bare = picture.copy() if defect is not None else None
    width, normal = bolt.shape()
    cover = bolt.paint(picture, width, normal)
    if defect is None:
        return picture, None, None
    flawed = bare.copy()
    spot = _DRAW[defect](bolt, flawed, width, normal, cover, defect_rng)
    covered = np.zeros((SIZE, SIZE), np.float32)
    covered[bolt.index] = spot
    return picture, flawed, covered


# ------------------------------------------------------------------------------- defects
# Each paints a bolt with one defect into `picture`, which holds the bare felt, and returns
# the share of each of the bolt's pixels that the defect covers, (n,).


def _spot(rng, first=8.0, last=LENGTH - 12, inside=0.8):
    """A random place on the bolt: u, v."""
    u = rng.uniform(first, last)
    return u, rng.uniform(-inside, inside) * (HEAD if u < HEAD_LENGTH else SHANK)


def _blob(bolt, rng, u, v, radius, roughness=0.25, softness=1.2):
    """A random roundish shape around (u, v), the share of each pixel it covers (n,)."""
    out = np.zeros_like(bolt.u)
    x, y = bolt.u - np.float32(u), bolt.v - np.float32(v)
    near = np.maximum(np.abs(x), np.abs(y)) < 2.4 * radius + 4
    out[near] = d.coverage(d.blob(rng, x[near], y[near], radius, roughness), softness)
    return out


def _chip(bolt, picture, width, normal, cover, rng):
    """A piece broken out of the edge of the head or of the thread."""
    u = rng.uniform(8, LENGTH - 12)
    edge = np.median(width[np.abs(bolt.u - u) < 2])
    bite = _blob(bolt, rng, u, rng.choice([-1, 1]) * edge, max(5, d.diameter(rng) * 0.5), 0.3)
    before = picture[bolt.index].copy()
    bolt.paint(picture, width, normal)
    part = picture[bolt.index]
    inner = np.clip(bite * 1.6 - 0.6, 0, 1)[:, None]
    part *= 1 - 0.5 * bite[:, None] * (1 - inner)
    picture[bolt.index] = part + inner * (before - part)
    return bite * (cover > 0)


def _crushed_thread(bolt, picture, width, normal, cover, rng):
    """Thread that was hit: its ridges are flat and shiny."""
    u, v = _spot(rng, HEAD_LENGTH + BARE + 20)
    spot = _blob(bolt, rng, u, v, max(12, d.diameter(rng)) / 2, 0.2, 3)
    normal[0] *= 1 - 0.9 * spot
    bolt.paint(picture, width, normal)
    return spot * (cover > 0.5)


def _dent(bolt, picture, width, normal, cover, rng):
    """A hollow knocked into the surface."""
    u, v = _spot(rng)
    radius = min(max(10, d.diameter(rng)), 50) / 2
    spot = _blob(bolt, rng, u, v, radius, 0.12, 2)
    steep = rng.uniform(0.8, 1.5)
    normal[0] = normal[0] - spot * np.float32(steep / radius) * (bolt.u - np.float32(u))
    normal[1] = normal[1] - spot * np.float32(steep / radius) * (bolt.v - np.float32(v))
    bolt.paint(picture, width, normal)
    return spot * (cover > 0.5)


def _rust(bolt, picture, width, normal, cover, rng):
    """A grainy brown patch."""
    spot = _blob(bolt, rng, *_spot(rng), d.diameter(rng) / 2, 0.25, 3)
    grain = rng.normal(0, 1, bolt.u.size).astype(np.float32)
    colour = np.array([116, 66, 34], np.float32) + 12 * grain[:, None]
    return _stain(bolt, picture, width, normal, cover, spot, colour, rng.uniform(0.6, 0.9))


def _smear(bolt, picture, width, normal, cover, rng):
    """Grease or old paint, more or less transparent."""
    spot = _blob(bolt, rng, *_spot(rng), d.diameter(rng) / 2, 0.3, 3)
    colour = np.array([(38, 34, 28), (208, 196, 150), (62, 84, 120)][rng.integers(3)], np.float32)
    return _stain(bolt, picture, width, normal, cover, spot, colour, rng.uniform(0.5, 0.8))


def _scratch(bolt, picture, width, normal, cover, rng):
    """A groove: a bright flank and a dark one."""
    u, v = _spot(rng)
    points = d.wander(rng, max(12, d.diameter(rng)), bend=0.05)
    thick = rng.uniform(2, 4)
    x, y = bolt.u - np.float32(u), bolt.v - np.float32(v)
    near = np.maximum(np.abs(x), np.abs(y)) < np.abs(points).max() + 8
    spot, dark = np.zeros_like(x), np.zeros_like(x)
    spot[near] = d.coverage(d.path(x[near], y[near], points) - thick / 2)
    dark[near] = d.coverage(d.path(x[near] - 1.2, y[near] - 1.2, points) - thick / 4)
    colour = 236 - 190 * dark[:, None] * STEEL
    return _stain(bolt, picture, width, normal, cover, spot, colour, 0.85)


def _stain(bolt, picture, width, normal, cover, spot, colour, opacity):
    bolt.paint(picture, width, normal)
    part = picture[bolt.index]
    alpha = (spot * cover * np.float32(opacity))[:, None]
    picture[bolt.index] = part + alpha * (colour - part)
    return spot * cover


_DRAW = {
    "chip": _chip, "crushed_thread": _crushed_thread, "dent": _dent, "rust": _rust,
    "scratch": _scratch, "smear": _smear,
}  # fmt: skip
