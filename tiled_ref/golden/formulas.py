"""The stages as plain float64 formulas, independent of the package's own code.

Every function has switches whose defaults are correct; other values are mistakes that ports
make. The checker computes them to see which one explains a port's numbers; the exporter
uses the correct formulas to measure the reference's error.

A linear map along one axis (an enlargement, a blur) is written as its matrix (n_out, n_in),
a separable one on an image as rows @ image @ cols.T.
"""

import math

import numpy as np


def linear_matrix(n_in, n_out, align_corners=False, antialias=False, half=0.5):
    """Bilinear interpolation of n_in samples at n_out positions, float64 (n_out, n_in). half: the
    sampling position within a pixel."""
    scale = n_in / n_out
    places = (np.arange(n_out) + half) * scale - half
    if align_corners:
        places = np.arange(n_out) * ((n_in - 1) / max(1, n_out - 1))
    if antialias and scale > 1:
        weights = np.maximum(0, 1 - np.abs(np.arange(n_in) - places[:, None]) / scale)
        return weights / weights.sum(1, keepdims=True)
    places = np.clip(places, 0, n_in - 1)
    return np.maximum(0, 1 - np.abs(np.arange(n_in) - places[:, None]))


def nearest_matrix(n_in, n_out, mode="nearest"):
    """Nearest neighbour: floor(i n_in / n_out), or another rule of NEAREST."""
    index = NEAREST[mode](np.arange(n_out), n_in, n_out)
    return np.eye(n_in)[np.clip(index, 0, n_in - 1).astype(int)]


NEAREST = {
    "nearest": lambda i, n, m: i * n // m,
    "nearest_centre": lambda i, n, m: (2 * i + 1) * n // (2 * m),
    "nearest_rounded": lambda i, n, m: np.floor(i * n / m + 0.5),
    "nearest_up": lambda i, n, m: np.ceil(i * n / m),
    "nearest_corners": lambda i, n, m: np.floor(i * (n - 1) / max(1, m - 1) + 0.5),
    "cropped": lambda i, n, m: i,
}


def enlarge(maps, size, mode="bilinear", **switches):
    """(..., hf, wf) -> (..., H, W); mode "bilinear" or one of NEAREST."""
    if mode == "bilinear":
        matrices = [linear_matrix(a, b, **switches) for a, b in zip(maps.shape[-2:], size)]
    else:
        matrices = [nearest_matrix(a, b, mode) for a, b in zip(maps.shape[-2:], size)]
    return matrices[0] @ maps.astype(np.float64) @ matrices[1].T


def taps(sigma, span=4, normalised=True, more=0.5, less=0, factor=2.0, power=2):
    """All 2 radius + 1 weights of a Gaussian, in extended precision if the machine supports it;
    radius int(span sigma + more) - less, exponent -k^2 / (factor sigma^power)."""
    radius = int(span * sigma + more) - less
    weights = np.exp(-(np.arange(-radius, radius + 1) ** 2) / np.longdouble(factor * sigma**power))
    return weights / (weights.sum() if normalised else sigma * math.sqrt(2 * math.pi))


def blur_matrix(n, weights, border="reflect"):
    """A blur of n samples as a matrix. border: "reflect" (mirrored, edge not repeated),
    "symmetric" (mirrored, edge repeated), "edge" (edge repeated), "wrap" or "zeros"."""
    radius = len(weights) // 2
    i, k = np.indices((n, len(weights)))
    j = i + k - radius
    weight = np.broadcast_to(weights, j.shape)
    if border == "reflect":
        j = j % max(1, 2 * n - 2)
        j = np.minimum(j, np.maximum(0, 2 * n - 2 - j))
    elif border == "symmetric":
        j = np.minimum(j % (2 * n), 2 * n - 1 - j % (2 * n))
    elif border == "zeros":
        weight = np.where((j >= 0) & (j < n), weight, 0.0)
    j = j % n if border == "wrap" else np.clip(j, 0, n - 1)
    matrix = np.zeros((n, n), np.result_type(weights, np.float64))
    np.add.at(matrix, (i, j), weight)
    return matrix


def blur(maps, sigma, span=4, of=1.0, border="reflect", axes="both", **switches):
    """Separable Gaussian blur of (..., H, W), float64, summed in extended precision. span: the
    radius in sigmas; of: a factor on sigma, or "root"; axes: "both", "rows", "cols" or "none";
    other switches as in taps."""
    weights = taps(sigma**0.5 if of == "root" else sigma * of, span, **switches)
    maps = maps.astype(np.longdouble)
    if axes in ("both", "rows"):
        maps = blur_matrix(maps.shape[-2], weights, border) @ maps
    if axes in ("both", "cols"):
        maps = maps @ blur_matrix(maps.shape[-1], weights, border).T
    return maps.astype(np.float64)


def grid_counts(grid):
    """Return rows and cols of a grid (H, W, h, w, s_h, s_w)."""
    H, W, h, w, sh, sw = grid.tolist()
    return -(-(H - h) // sh) + 1, -(-(W - w) // sw) + 1


def starts(grid, counts, exchanged=False, shifted=()):
    """Return the start positions of tile rows and columns, counts of each. exchanged: stride and
    tile size in "rows", "cols" or both (True), the two strides ("strides"), or the vertical stride
    used for both ("down"); shifted: "rows", "cols", whose last tile is moved into the image."""
    H, W, h, w, sh, sw = grid.tolist()
    down = h if exchanged in (True, "rows") else sw if exchanged == "strides" else sh
    across = w if exchanged in (True, "cols") else sh if exchanged in ("strides", "down") else sw
    tops, lefts = (np.arange(n) * step for n, step in zip(counts, (down, across)))
    tops = np.minimum(tops, H - h) if "rows" in shifted else tops
    return tops, np.minimum(lefts, W - w) if "cols" in shifted else lefts


def cut(
    images, grid, column_major=False, fill=0, inner=False, images_first=False, dropped=(0, 0),
    **switches,
):  # fmt: skip
    """Cut images (N, C, H, W) into tiles (rows, cols, N, C, h, w), any dtype, padded with `fill`.
    inner: a tile's pixels in column order; images_first: in memory; dropped: whether the incomplete
    last row and column are left out; others as in starts."""
    h, w = grid[2:4].tolist()
    rest = (grid[:2] - grid[2:4]) % grid[4:] != 0
    rows, cols = counts = [n - int(d * r) for n, d, r in zip(grid_counts(grid), dropped, rest)]
    tops, lefts = starts(grid, counts, **switches)
    out = np.full((rows, cols, *images.shape[:2], h, w), fill, images.dtype)
    for i in range(rows):
        for j in range(cols):
            part = images[..., tops[i] : tops[i] + h, lefts[j] : lefts[j] + w]
            out[i, j][..., : part.shape[-2], : part.shape[-1]] = part
    if column_major:
        out = out.swapaxes(0, 1).reshape(out.shape)
    if inner:
        out = out.swapaxes(-1, -2).reshape(out.shape)
    return np.moveaxis(out, 2, 0).reshape(out.shape) if images_first else out


def untile(
    tiles, grid, combine="mean", column_major=False, inner=False, images_first=False, **switches
):
    """Merge tile maps (rows, cols, N, h, w) into (N, H, W). combine: "mean", "sum", "max", "min",
    "first", "last", "max mean", "first mean" and "last mean" (divided by the tile count) or "most"
    (the sum divided by the largest tile count of any pixel); others as in cut."""
    H, W, h, w = grid[:4].tolist()
    rows, cols, n = tiles.shape[:3]
    if column_major:
        tiles = tiles.reshape(cols, rows, *tiles.shape[2:]).swapaxes(0, 1)
    if inner:
        tiles = tiles.reshape(rows, cols, n, w, h).swapaxes(-1, -2)
    if images_first:
        tiles = np.moveaxis(tiles.reshape(n, rows, cols, h, w), 0, 2)
    tops, lefts = starts(grid, (rows, cols), **switches)
    total = np.zeros((tiles.shape[2], max(tops) + h + H, max(lefts) + w + W))
    count = np.zeros(total.shape[1:])
    best, least = np.full(total.shape, -np.inf), np.full(total.shape, np.inf)
    first, last = np.zeros(total.shape), np.zeros(total.shape)
    for i in range(rows):
        for j in range(cols):
            where = ..., slice(tops[i], tops[i] + h), slice(lefts[j], lefts[j] + w)
            total[where] += tiles[i, j]
            best[where] = np.maximum(best[where], tiles[i, j])
            least[where] = np.minimum(least[where], tiles[i, j])
            first[where] = np.where(count[where[1:]], first[where], tiles[i, j])
            last[where] = tiles[i, j]
            count[where[1:]] += 1
    merged = {
        "mean": total / np.maximum(count, 1), "sum": total, "max": best, "min": least,
        "max mean": best / np.maximum(count, 1), "first": first, "last": last,
        "last mean": last / np.maximum(count, 1), "first mean": first / np.maximum(count, 1),
        "most": total / count.max(),
    }  # fmt: skip
    return merged[combine][:, :H, :W]


def band(
    grid, width, change=0, borders="ends", sides=2, of="tile", image_edge=False, rounding=int,
    before=0, after=0, square=False,
):  # fmt: skip
    """Return band rows (H,) and columns (W,), bool. change, before, after: pixels added to the
    reach, on both sides or one; borders: "ends" (starts and ends of tiles), "starts", "finish" or
    "tile multiples"; of: the size that width is a fraction of; square: height is tile width."""
    result = []
    of = (of, of) if isinstance(of, str) else of
    for n, tile, stride, count, name in zip(*grid.reshape(3, 2).tolist(), grid_counts(grid), of):
        tile = int(grid[3]) if square else tile
        whole = {"tile": tile, "stride": stride, "image": n}[name]
        reach = max(0, rounding(width * whole) + change)
        begin = [k * stride for k in range(count)]
        finish = [place + tile for place in begin]
        places = {"starts": begin, "finish": finish}.get(borders, begin + finish)
        if borders == "tile multiples":
            places = list(range(tile, n, tile))
        line = np.zeros(n, bool)
        for place in places:
            if 0 < place < n or (image_edge and place in (0, n)):
                low = place if sides == 1 else place - reach - before
                line[max(0, low) : max(0, place + reach + after)] = True
        result.append(line)
    return result


def seam_mask(grid, width, both=False, exchanged=False, **switches):
    """Return the band, bool (H, W). both: only where bands cross; exchanged: rows and columns."""
    rows, cols = band(grid, width, **switches)
    if exchanged:
        rows, cols = (np.resize(cols, rows.size), np.resize(rows, cols.size))
    return rows[:, None] & cols if both else rows[:, None] | cols


def smooth(maps, grid, width, sigma, where="inside", mask=None, **switches):
    """Blur maps (N, H, W) "inside" the band, "outside" it, "everywhere" or "nowhere".
    mask: switches of seam_mask; the others are blur's."""
    inside = seam_mask(grid, width, **(mask or {}))
    chosen = {"inside": inside, "outside": ~inside, "everywhere": True, "nowhere": False}[where]
    return np.where(chosen, blur(maps, sigma, **switches), maps.astype(np.float64))


def f1_threshold(
    scores, labels, strict=False, last=False, beta=1.0, midpoint=False, flipped=False, of="f1",
    fallback=np.max, undefined=math.nan,
):  # fmt: skip
    """Return the threshold and its F1, NaN if undefined; scores, labels (N,)."""
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels) > 0
    if flipped:
        labels = ~labels
    if np.isnan(scores).any() or not scores.size:
        return math.nan, math.nan
    if not labels.any():
        return float(fallback(scores)), undefined
    best = -1.0, 0.0
    values = np.unique(scores)
    for k, value in enumerate(values):
        called = scores > value if strict else scores >= value
        hit, false = int((called & labels).sum()), int((called & ~labels).sum())
        missed = int(labels.sum()) - hit
        f1 = (1 + beta**2) * hit / ((1 + beta**2) * hit + beta**2 * missed + false or 1)
        wrong = missed + false
        if of != "f1":
            f1 = 1 - wrong / labels.size if of == "accuracy" else hit / (hit + wrong)
        if f1 > best[0] or (last and f1 == best[0]):
            place = (value + values[max(0, k - 1)]) / 2 if midpoint else value
            best = f1, float(place)
    return best[1], best[0]


def normalize(
    values, threshold, minimum, maximum, clamp=True, shift=0.5, centre=True, spread=1, flat=None
):
    """(x - threshold) / (maximum - minimum) + 0.5 in [0, 1]; values (...) float. flat: a function
    of values - threshold, used if maximum == minimum."""
    values = values.astype(np.float64)
    if maximum == minimum and flat != "divided":
        delta = values - threshold
        result = flat(delta) if flat else np.sign(delta) / 2 + 0.5
    else:
        start = threshold if centre else minimum
        result = (values - start) / (spread * (maximum - minimum) if spread else maximum)
        result = result + (shift if centre else 0)
    if clamp == "sigmoid":
        return 1 / (1 + np.exp(shift - result))
    return np.clip(result, 0, 1) if clamp else result


def label(masks, connectivity=8, column_major=False, per_image=False, above=0, start=1):
    """Number the regions of (N, H, W) in the order of their first pixels, int32, by flood fill.
    above: the largest normal value, or "one": only 1 is anomalous; start: the first number."""
    masks = np.asarray(masks) == 1 if above == "one" else np.asarray(masks) > above
    if start != 1:
        labels = label(masks, connectivity)
        return np.where(labels, labels + start - 1, 0).astype(np.int32)
    if column_major:
        return label(masks.swapaxes(1, 2), connectivity, per_image=per_image).swapaxes(1, 2)
    labels, found = np.zeros(masks.shape, np.int32), 0
    around = [
        (dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if connectivity == 8 or dy * dx == 0
    ]
    for k, y, x in zip(*np.nonzero(masks)):
        if labels[k, y, x]:
            continue
        found = int(labels[k].max()) + 1 if per_image else found + 1
        labels[k, y, x], front = found, [(y, x)]
        while front:
            a, b = front.pop()
            for dy, dx in around:
                c, d = a + dy, b + dx
                if 0 <= c < masks.shape[1] and 0 <= d < masks.shape[2]:
                    if masks[k, c, d] and not labels[k, c, d]:
                        labels[k, c, d] = found
                        front.append((c, d))
    return labels


def auroc(scores, labels, tie=0.5, flipped=False, strict_label=0, win=1.0, all_pairs=False):
    """Share of (normal, anomalous) pairs in which the anomalous score is higher; a tie counts
    `tie`; scores (n,) and labels (n,), float."""
    scores = np.asarray(scores, np.float64).reshape(-1)
    labels = np.asarray(labels).reshape(-1)
    if strict_label == "only":
        scores, labels = scores[labels <= 1], labels[labels <= 1]
    labels = labels == 1 if strict_label in ("one", "only") else labels > strict_label
    labels = ~labels if flipped else labels
    if labels.all() or not labels.any() or np.isnan(scores).any():
        return math.nan
    good, bad = scores[~labels], scores[labels]
    won = win * (bad[:, None] > good).mean() + tie * (bad[:, None] == good).mean()
    return float(won * good.size * bad.size / scores.size**2 if all_pairs else won)


def aupro(maps, masks, limit, connectivity=8, divide=1, interpolate=True, over="normal",
          per_pixel=False, per_image=False, from_zero=True, steps=None, beyond=False,
          ascending=False, skip=0, end=None, **switches):  # fmt: skip
    """Area under the curve of the mean overlap of regions against the FPR, up to a limit.

    Parameters: maps (N, H, W) float; masks (N, H, W), anomalous where not 0; limit of the FPR.
    connectivity: 8 or 4. divide: by this power of the limit. end: where the area is cut, if not at
    the limit. interpolate: False ends at the last point within it. over: FPR over "normal" or "all"
    pixels. per_pixel: recall of pixels instead of regions. per_image: mean of per-image areas.
    from_zero False: without the area before the first point. steps: heights of the point "before"
    or "after". beyond: not cut at the limit. ascending: low scores first. skip: number of regions
    left out. Others as in `curve`.
    Returns float; NaN if there is no region or no normal pixel.
    """
    maps, masks = np.asarray(maps, np.float64), np.asarray(masks) != 0
    if per_image:
        images = [k for k in range(len(maps)) if masks[k].any() and not masks[k].all()]
        images = [] if np.isnan(maps).any() else images
        areas = [aupro(maps[k : k + 1], masks[k : k + 1], limit) for k in images]
        return float(np.mean(areas)) if areas else math.nan
    labels = masks.astype(np.int64) if per_pixel else label(masks, connectivity)
    n_regions = int(labels.max(initial=0))
    if not n_regions or masks.all() or np.isnan(maps).any():
        return math.nan
    area = np.bincount(labels.reshape(-1), minlength=n_regions + 1)[1:]
    share = np.where(masks, 1 / (area * n_regions)[np.maximum(labels, 1) - 1], 0.0).reshape(-1)
    false = np.where(masks, 0.0, 1.0).reshape(-1)
    share[(0 < labels.reshape(-1)) & (labels.reshape(-1) <= skip)] = 0
    x, y = curve(maps.reshape(-1) * (-1 if ascending else 1), false, share, **switches)
    x = np.concatenate([[0.0], x / (masks.size if over == "all" else false.sum())])
    y = np.concatenate([[0.0], y])
    n = x.size if beyond == "all" else int(np.searchsorted(x, end or limit, "right"))
    xs, ys = x[:n], y[:n]
    if interpolate and n < x.size:
        part = 1.0 if beyond else ((end or limit) - x[n - 1]) / (x[n] - x[n - 1])
        xs = np.append(xs, x[n] if beyond else end or limit)
        ys = np.append(ys, y[n - 1] + part * (y[n] - y[n - 1]))
    heights = {"before": ys[:-1], "after": ys[1:]}.get(steps, (ys[1:] + ys[:-1]) / 2)
    total = float(np.sum((np.diff(xs) * heights)[0 if from_zero else 1 :]))
    return total / limit**divide


def curve(scores, false, share, ties="merged", strict=False, points=None):
    """Sum false and share (n,) over the pixels found at each threshold; scores (n,) float.

    ties: "merged", or "first" and "last": equal scores are separate points, in pixel order or in
    reverse. strict: a pixel is found if its score is above, not at, the
    threshold. points: number of thresholds, evenly spaced from highest to lowest score.
    Returns two float64 arrays, one number per threshold.
    """
    order = np.argsort(-scores, kind="stable")
    if ties == "last":
        order = scores.size - 1 - np.argsort(-scores[::-1], kind="stable")
    x, y, falling = np.cumsum(false[order]), np.cumsum(share[order]), scores[order]
    if points is not None:
        levels = np.linspace(scores.max(), scores.min(), points)
        found = np.searchsorted(-falling, -levels, "right") - 1
        return x[found], y[found]
    if ties != "merged":
        return x, y
    end = np.append(falling[1:] != falling[:-1], True)
    end[-1] = not strict  # with >, the lowest score is never found
    return x[end], y[end]
