"""Drawing with NumPy for the built-in data set: shapes, stains, lettering, lighting, noise.

A picture is float32 (H, W, 3) on a scale of 0 to 255. A shape is a signed distance in pixels,
negative inside, which `coverage` converts to the fraction of each pixel covered, so that edges are
smooth. Everything is drawn in a window around the shape: x (1, m) and y (n, 1) are the float32
coordinates of its pixels, lengths are in pixels, rng is a numpy.random.Generator.
"""

import numpy as np

FONT = {  # 3 x 5 dots, rows from the top, three bits each
    "0": "75557", "1": "26227", "2": "71747", "3": "71317", "4": "55711", "5": "74717",
    "6": "74757", "7": "71122", "8": "75757", "9": "75717", "A": "25755", "B": "65656",
    "C": "34443", "D": "65556", "E": "74647", "J": "11153", "L": "44447", "M": "57755",
    "P": "65644", "R": "65655", "T": "72222", "U": "55557", "X": "55255", "Y": "55222",
    "-": "00700",
}  # fmt: skip


class Window:
    """The part of a picture within `reach` pixels of (x, y), clipped at the border.

    Parameters: shape of the picture, height first; x, y in pixels; reach, a number or a pair,
    across and down.

    Attributes: index, for picture[window.index]; x (1, m) and y (n, 1), float32, pixels from
    the window's centre; empty if it is outside the picture.
    """

    def __init__(self, shape, x, y, reach):
        rx, ry = reach if isinstance(reach, tuple) else (reach, reach)
        top, left = max(0, int(y - ry)), max(0, int(x - rx))
        bottom = max(top, min(shape[0], int(y + ry) + 2))
        right = max(left, min(shape[1], int(x + rx) + 2))
        self.index = slice(top, bottom), slice(left, right)
        self.y = (np.arange(top, bottom, dtype=np.float32) - np.float32(y))[:, None]
        self.x = (np.arange(left, right, dtype=np.float32) - np.float32(x))[None, :]

    def turned(self, angle):
        """x and y, (n, m), in axes rotated by `angle` radians."""
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        return self.x * cos + self.y * sin, self.y * cos - self.x * sin


def coverage(distance, softness=1.2):
    """Signed distance in px -> fraction of the pixel inside the shape, 0 to 1."""
    return np.clip(0.5 - distance / np.float32(softness), 0, 1)


def box(x, y, half_width, half_height, radius=0.0):
    """Signed distance (n, m) from a rectangle with rounded corners: x (1, m), y (n, 1)."""
    dx, dy = np.abs(x) - (half_width - radius), np.abs(y) - (half_height - radius)
    outside = np.sqrt(np.maximum(dx, 0) ** 2 + np.maximum(dy, 0) ** 2)
    return outside + np.minimum(np.maximum(dx, dy), 0) - radius


def disc(x, y, radius):
    """Signed distance (n, m) from a disc: x (1, m), y (n, 1)."""
    return np.sqrt(x * x + y * y) - radius


def segment(x, y, x0, y0, x1, y1):
    """Distance (n, m) from the segment between two points: x (1, m), y (n, 1)."""
    dx, dy = x1 - x0, y1 - y0
    t = np.clip(((x - x0) * dx + (y - y0) * dy) / max(dx * dx + dy * dy, 1e-6), 0, 1)
    return np.sqrt((x - x0 - t * dx) ** 2 + (y - y0 - t * dy) ** 2)


def path(x, y, points):
    """Distance from a line through points (x, y)."""
    pieces = [segment(x, y, *a, *b) for a, b in zip(points[:-1], points[1:])]
    return np.minimum.reduce(pieces)


def blob(rng, x, y, radius, roughness=0.25):
    """Approximate signed distance (H, W) from a random roundish shape centred on x, y = 0.

    roughness is the variation of the edge relative to the mean radius."""
    angle = np.arctan2(y, x)
    edge = np.float32(1)
    for k in range(1, 7):
        swing, phase = rng.normal(0, roughness / k), rng.uniform(0, 2 * np.pi)
        edge = edge + np.float32(swing) * np.cos(k * angle + np.float32(phase))
    return np.sqrt(x * x + y * y) - radius * np.maximum(edge, 0.35)


def wander(rng, length, bend=0.35):
    """Seven points on a curved line of this length, centred on (0, 0), in a random direction."""
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, bend, 6))
    steps = np.stack([np.cos(heading), np.sin(heading)], axis=1) * (length / 6)
    points = np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
    return points - (points.max(0) + points.min(0)) / 2


def blend(picture, window, alpha, colour):
    """Paint `colour`, (3,) or (n, m, 3), over the window with opacity alpha (n, m)."""
    part = picture[window.index]
    part += alpha[..., None] * (np.asarray(colour, np.float32) - part)


def paint(picture, cover, window, alpha, colour, opacity=1.0):
    """`blend` with opacity * alpha, and raise cover (H, W) to alpha."""
    blend(picture, window, alpha * np.float32(opacity), colour)
    np.maximum(cover[window.index], alpha, out=cover[window.index])


def letters(picture, text, x, y, dot, colour, opacity=1.0, upright=False):
    """Write text centred on (x, y) in dots of `dot` pixels; upright rotates it by 90 degrees."""
    width, height = len(text) * 4 - 1, 5
    for n, letter in enumerate(text):
        for row, bits in enumerate(FONT[letter]):
            for col in range(3):
                if int(bits, 8) >> (2 - col) & 1:
                    dx, dy = (4 * n + col - (width - 1) / 2) * dot, (row - (height - 1) / 2) * dot
                    if upright:
                        dx, dy = dy, -dx
                    window = Window(picture.shape, x + dx, y + dy, dot)
                    alpha = coverage(box(window.x, window.y, dot / 2, dot / 2), 1.0)
                    blend(picture, window, alpha * np.float32(opacity), colour)


STRIP = 64  # rows drawn at a time, so that intermediate results stay in the cache


def strips(height):
    """Slices that divide `height` rows into strips of STRIP rows."""
    return [slice(top, min(top + STRIP, height)) for top in range(0, height, STRIP)]


def field(rng, shape, cell):
    """Smooth noise with mean about 0 and standard deviation about 1.

    Parameters: rng; shape (H, W); cell, pixels, a number or one for each axis.
    Returns float32 (H, W): random numbers on a grid of `cell` pixels, interpolated by cubic
    B-splines: sums of four terms in a fixed order; the bits of a matrix product depend on the BLAS.
    """
    cells = cell if isinstance(cell, tuple) else (cell, cell)
    (down, down_weight), (across, across_weight) = map(_spline, shape, cells)
    knots = rng.standard_normal((down[-1] + 4, across[-1] + 4), np.float32)
    # A cubic B-spline averages: its squared weights sum to 0.479 on average.
    knots /= np.float32(0.479)
    lines = sum(knots[down + k] * down_weight[k][:, None] for k in range(4))  # (H, knots)
    out = np.empty(shape, np.float32)
    for rows in strips(shape[0]):
        part = lines[rows]
        np.multiply(part.take(across, 1), across_weight[0], out=out[rows])
        for k in (1, 2, 3):
            out[rows] += part.take(across + k, 1) * across_weight[k]
    return out


def _spline(n, cell):
    """First of the four knots of each pixel, int64 (n,), and their weights (4, n)."""
    position = np.arange(n) / cell
    first = position.astype(np.int64)
    t = position - first
    pieces = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]
    return first, (np.stack(pieces) / 6).astype(np.float32)


def soften(picture):
    """Blur with (1, 2, 1) / 4 down and across, borders unchanged: float32 (H, W, 3)."""
    for axis in (0, 1):
        inner = np.moveaxis(picture, axis, 0)
        out = inner.copy()
        out[1:-1] = 0.25 * inner[:-2] + 0.5 * inner[1:-1] + 0.25 * inner[2:]
        picture = np.moveaxis(out, 0, axis)
    return np.ascontiguousarray(picture)


def shifted(picture, x, y, size):
    """Crop size x size pixels of a picture (H, W, C) at (x, y) >= 0, linearly interpolated."""
    left, top, depth = int(x), int(y), picture.shape[2]
    tx, ty = np.float32(x - left), np.float32(y - top)
    flat = picture.reshape(len(picture), -1)[:, left * depth : (left + size + 1) * depth]
    out = np.empty((size, size * depth), np.float32)
    for rows in strips(size):
        part = flat[top + rows.start : top + rows.stop] * (1 - ty)
        part += flat[top + rows.start + 1 : top + rows.stop + 1] * ty
        np.multiply(part[:, :-depth], 1 - tx, out=out[rows])
        out[rows] += part[:, depth:] * tx
    return out.reshape(size, size, depth)


def widened(alpha):
    """Maximum over the 7 x 7 pixels around each pixel."""
    for axis in (0, 1):
        padded = np.pad(alpha, [(3, 3) if a == axis else (0, 0) for a in (0, 1)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, 7, axis=axis)
        alpha = windows.max(axis=-1)
    return alpha


def diameter(rng):
    """Random size of a defect in px, 8 to 80, mostly small (median 13)."""
    return 8 * 10 ** (rng.uniform() ** 2.2)


def how_many(rng):
    """Random number of spots of a defect: 1 in half the cases, 2 in a quarter, ..., at most 5."""
    return min(int(rng.geometric(0.5)), 5)
