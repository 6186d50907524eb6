"""What `fit` learned at one position, and how the walked image is scored there.

The position is that of the image's largest distance, in the tile with the highest score.
"""

import numpy as np
import torch

from ...data.tiles import LocationImages, OneAfterTheOther
from ...models import fastflow, gaussians, padim, patchcore, reverse_distillation
from ...models.backbone import FEATURE_STRIDE, channels_of
from ...models.maps import upsample_bilinear
from ...models.search.neighbours import nearest
from ..drawing import svg
from .stage import Stage, heat_map, in_a_row

AROUND = 200  # number of vectors of the bank drawn, the nearest to m*
SIDE, SIDE_OF_THREE = 512, 256  # px, to which maps are drawn: one, and three in a row
BIN = 0.5  # width of the histogram's bars
STRIDES = tuple(FEATURE_STRIDE.values())


class Latest(dict):
    """A dict of an ensemble's states that keeps only the last one."""

    def __setitem__(self, location, state):
        self.clear()
        super().__setitem__(location, state)


def watch(found, states, best):
    """Pass on the predictions of `ensemble.each_location` and keep the model of the tile with the
    first image's highest score.

    Parameters: found, the predictions; states, the Latest given to each_location; best, a dict
    that receives "place", "state" and "score". Yields what found yields.
    """
    for place, rows, maps, scores in found:
        if rows.start == 0 and not scores[0] <= best.get("score", -np.inf):
            (state,) = states.values()
            best.update(place=place, state=state, score=scores[0])
        yield place, rows, maps, scores


@torch.no_grad()
def position_stages(ensemble, best, image, train, truth=None):
    """The stages between features and tile maps, which depend on the architecture.

    Parameters: ensemble, a TiledEnsemble; best, see `watch`; image uint8 (3, H, W); train uint8
    (N, 3, H, W), the images that the model was trained on; truth bool (H, W), the defects, or None.
    Returns a list of Stage.
    """
    setup, place = ensemble.setup, best["place"]
    location = next(key for key in setup.models if place in setup.inputs(key))
    model = ensemble.make_model()
    model.load_state(best["state"])

    def seen(images, tiles):
        return LocationImages(images, setup.input_grid, tiles, ensemble.device)

    inputs = setup.inputs(location)
    normal = OneAfterTheOther([seen(train, tiles) for tiles in inputs.values()])
    view = View(ensemble.grid, place, truth, "tile" if len(inputs) > 1 else "image")
    return STAGES[ensemble.recipe.arch](model, seen(image[None], inputs[place])[[0]], normal, view)


class View:
    """The walked tile: its grid, place (i, j) and truth bool (H, W) or None; unit, "image" or
    "tile", what its model learned from."""

    def __init__(self, grid, place, truth, unit="image"):
        self.size, self.place, self.unit = grid.tile_size, place, unit
        self.truth = None if truth is None else grid.pad_tile(truth[grid.window(*place)])
        where = f" of the highest-scoring tile {place}" if grid.rows * grid.cols > 1 else ""
        self.model = f"the model{where}"

    def heat(self, values, row, col, stride, title, scale=None):
        """Draw values (hf, wf), any dtype, `stride` px per position, or (h, w), and outline the
        position (row, col) of stride px; `scale` px per px, by default whole ones, about SIDE."""
        if values.shape != self.size:
            values = values.repeat(stride, 0).repeat(stride, 1)[: self.size[0], : self.size[1]]
        spot = np.zeros(self.size, bool)
        spot[row * stride : (row + 1) * stride, col * stride : (col + 1) * stride] = True
        scale = scale or max(1, SIDE // max(self.size))
        shown = np.ix_(*((np.arange(int(n * scale)) / scale).astype(int) for n in self.size))
        truth = None if self.truth is None else self.truth[shown]
        return heat_map(values[shown], truth, spot=spot[shown], title=title)

    def layers(self, maps, spots):
        """Draw the maps (3, h, w), any dtype, of three layers and positions, side by side."""
        each, scale = zip(maps, spots, FEATURE_STRIDE.items()), SIDE_OF_THREE / max(self.size)
        return in_a_row([self.heat(m, *spot, step, name, scale) for m, spot, (name, step) in each])


def _padim(model, tile, normal, view):
    x = model.embed(tile).cpu()  # (1, D, hf, wf)
    rows, mean, factors = x.flatten(2).mT, model.mean.cpu(), model.factors.cpu()  # (1, P, D)
    found = gaussians.distances(rows, mean, factors, model.impl)[0]  # (P,)
    p, grid = int(found.argmax()), found.reshape(x.shape[-2:])
    row, col = _largest(grid)
    trained = torch.cat([e.flatten(2)[:, :, p].cpu() for e in model.embeddings(normal)]).numpy()
    mu, test, (n, d) = mean[p].numpy(), rows[0, p].numpy(), trained.shape  # (D,), (D,)
    inverse = np.linalg.inv(gaussians.unpack(factors[p : p + 1].double())[0].numpy())  # U^-1
    sigma = inverse.T @ inverse  # (D, D): Sigma^-1 = U U^T
    values = np.linalg.eigvalsh(sigma)
    layers = channels_of(model.backbone).items()
    every = [f"{layer}, channel {k}" for layer, count in layers for k in range(count)]
    distances = Stage(
        "distances", "Distances from the Gaussians", grid,
        "models.gaussians.distances", "Defard et al. Eq. 2",
        f"A distance per position, in standard deviations, by {view.model}; the largest, "
        f"{found[p]:.4g}, is at position ({row}, {col}) of {x.shape[-2]} x {x.shape[-1]}, framed.",
        view.heat(grid, row, col, model.STRIDE, "distance"),
    )  # fmt: skip
    if d == 1:  # no two channels to draw
        return [distances]
    a, b, near = widest_pair(test - mu, sigma, 2 * padim.EPSILON)
    pair, vary = [a, b], min(sigma[a, a], sigma[b, b]) > 2 * padim.EPSILON
    return [
        distances,
        Stage(
            "covariance", "The covariance of that position", sigma,
            "models.padim.Padim.fit", "Defard et al. Eq. 1",
            f"{d} x {d} channels, estimated from {n} {view.unit}s; Sigma^-1 = U U^T is kept. Its "
            f"eigenvalues run from {values[0]:.3g}"
            f"{f' (epsilon, the variance where these {view.unit}s do not vary)' * (n <= d)} to "
            f"{values[-1]:.3g}. The means of the channels lie between {mu.min():.3g} and "
            f"{mu.max():.3g}.",
            heat_map(np.kron(sigma, np.ones((4, 4))), title="covariance"),
        ),
        Stage(
            "gaussian", "Two of its channels", np.vstack([trained, test])[:, pair],
            "models.padim.Padim.embed", "Defard et al. Eq. 2",
            f"The {n} training {view.unit}s at that position, the Gaussian fitted to them, and the "
            f"walked image (the last row). Mean ({mu[a]:.3g}, {mu[b]:.3g}), variances "
            f"{sigma[a, a]:.3g} and {sigma[b, b]:.3g}, covariance {sigma[a, b]:.3g}. In these two "
            f"channels the image lies {near:.3g} standard deviations out, the most of any two"
            f"{' whose variance is not mostly epsilon' if vary else ''}; in all {d} it is "
            f"{found[p]:.4g}.",
            _gaussian_chart(trained[:, pair], test[pair], mu[pair], sigma[np.ix_(pair, pair)],
                            [every[model.channels[c]] for c in pair], found[p], view.unit),
        ),
    ]  # fmt: skip


def widest_pair(delta, sigma, least=0.0):
    """Find the two channels in which a vector lies farthest from the mean.

    Parameters: delta (D,), its difference from the mean; sigma (D, D), the covariance; floats;
    least, the variance that channels have to exceed, if two or more do.
    Returns (a, b, distance), a < b, in units of standard deviations.
    """
    kept = np.flatnonzero(np.diag(sigma) > least)
    kept = kept if len(kept) > 1 else np.arange(len(sigma))
    delta, sigma = delta[kept], sigma[np.ix_(kept, kept)]
    s = np.diag(sigma)
    det = s[:, None] * s - sigma**2 + np.diag(np.full(len(s), np.inf))
    square = delta[:, None] ** 2 * s - 2 * np.outer(delta, delta) * sigma + delta**2 * s[:, None]
    ratio = np.triu(square / det)
    a, b = np.unravel_index(np.argmax(ratio), ratio.shape)
    return int(kept[a]), int(kept[b]), float(ratio[a, b] ** 0.5)


def _gaussian_chart(trained, test, mu, sigma, names, distance, unit):
    """trained (N, 2), test and mu (2,), sigma (2, 2): the two channels with these names."""
    chart = svg.Chart("The Gaussian of one position", *names, width=560, height=460)
    angles = np.linspace(0, 2 * np.pi, 97)
    circle = np.linalg.cholesky(sigma) @ [np.cos(angles), np.sin(angles)]
    for radius in (1, 2, 3):
        label = "1, 2, 3 standard deviations" if radius == 1 else None
        chart.line(*(mu[:, None] + radius * circle), label, 0)
    chart.line(*np.array([mu, test]).T, f"distance {distance:.4g} in all channels", 7)
    chart.points(*trained.T, f"training {unit}s", 2)
    chart.points(*test[:, None], "walked image", 1)
    return chart.svg()


def _patchcore(model, tile, normal, view):
    x = model.embed(tile)  # (1, C, hf, wf)
    patches = x[0].flatten(1).mT.contiguous()  # (P, C)
    found, places = (part[:, 0].cpu().numpy() for part in nearest(patches, model.bank))  # (P,)
    p, bank = int(found.argmax()), model.bank
    row, col = divmod(p, x.shape[-1])
    star = bank[places[p]]  # m*
    around = bank[nearest(star[None], bank, min(AROUND, len(bank)))[1][0]]  # m* first
    b = min(model.n_neighbours, len(bank))
    apart = (patches[p].double() - around[:b].double()).square().sum(1).sqrt()[None]  # (1, b)
    score = float(patchcore.reweight(apart))
    grid = found.astype(np.float32).reshape(x.shape[-2:])
    vectors = torch.cat([patches[p : p + 1], around]).cpu().numpy()  # (1 + AROUND, C)
    return [
        Stage(
            "distances", "Distances to the memory bank", grid,
            "models.search.neighbours.nearest", "Roth et al. Eq. 6",
            f"From each patch to the nearest of the {len(bank):,} patches that {view.model} keeps; "
            f"the largest, s* = {found[p]:.4g}, is at position ({row}, {col}) of "
            f"{grid.shape[0]} x {grid.shape[1]}, framed in white.",
            view.heat(grid, row, col, model.STRIDE, "distance"),
        ),
        Stage(
            "neighbourhood", "The memory bank near the nearest neighbour", vectors[: 1 + b],
            "models.patchcore.reweight", "Roth et al. Eq. 7",
            f"The farthest patch, its nearest neighbour m* and the {b} nearest to m*, m* included, "
            f"at distances {', '.join(f'{value:.4g}' for value in apart[0].tolist())}. The weight "
            f"{score / max(found[p], 1e-30):.3g} lowers s* to the tile's score {score:.4g}.",
            _bank_chart(vectors, b, found[p]),
        ),
    ]  # fmt: skip


def _bank_chart(vectors, b, distance):
    """vectors (1 + M, C): the patch, then the bank's, m* and its b - 1 neighbours first."""
    centred = vectors.astype(np.float64) - vectors[1]
    first = centred[0] / max(float(np.linalg.norm(centred[0])), 1e-30)  # from m* to the patch
    x = centred @ first
    y = np.linalg.norm(centred - np.outer(x, first), axis=1)
    chart = svg.Chart(
        "The patch and the memory bank", "from m* to the patch", "distance from that line",
        width=560, height=460,
        note="Distances from m* and from the patch are those in all channels.",
    )  # fmt: skip
    chart.points(x[1 + b :], y[1 + b :], "other patches in the bank", 6)
    chart.line(x[:2], y[:2], f"s* = {distance:.4g}", 7)
    chart.points(x[2 : 1 + b], y[2 : 1 + b], "neighbours of m*", 2)
    chart.points(x[1:2], y[1:2], "m*", 3)
    chart.points(x[:1], y[:1], "patch", 1)
    return chart.svg()


def _fastflow(model, tile, normal, view):
    z = model.whole(model.outputs(model.features(tile)))
    maps = [upsample_bilinear(fastflow.likelihood_map(x), model.output_size) for x in z]
    maps = torch.cat(maps).cpu().numpy()  # (3, h, w)
    at = _largest(maps.mean(0))
    spots = _spots(at, z)
    hidden = [x[0, :, r, c].cpu().numpy() for x, (r, c) in zip(z, spots)]  # (C,) each
    spread = ", ".join(f"{np.square(part).mean():.3g}" for part in hidden)
    return [
        Stage(
            "likelihoods", "Likelihoods of the three layers", maps,
            "models.fastflow.likelihood_map", "Yu et al. Sec. 3.3",
            f"-exp(-1/2 mean of z^2) of layers 1 to 3, by {view.model}: -1 is most "
            f"likely, 0 impossible. Their mean is the tile's map, largest at pixel {at}, framed.",
            view.layers(maps, spots),
        ),
        Stage(
            "hidden", "z of that position", np.concatenate(hidden),
            "models.fastflow.Flows", "Yu et al. Sec. 3.3",
            f"The channels of each layer there, against the standard normal distribution, which "
            f"normal positions follow. The mean of z^2, about 1 at normal positions, is {spread}.",
            svg.page([_hidden_chart(f"layer{k}", part) for k, part in enumerate(hidden, 1)], 3,
                     "z of one position (bars) and the standard normal (line)"),
        ),
    ]  # fmt: skip


def _hidden_chart(name, z):
    reach = BIN * np.ceil(max(4.0, np.abs(z).max()) / BIN)
    density, edges = np.histogram(z, np.arange(-reach, reach + BIN, BIN), density=True)
    chart = svg.Chart(f"{name}, {len(z)} channels", "z", "density", width=360, height=300)
    chart.bars(edges[:-1] + BIN / 2, density, width=BIN)
    x = np.linspace(-reach, reach, 121)
    chart.line(x, np.exp(-(x**2) / 2) / (2 * np.pi) ** 0.5, series=1)
    return chart


def _reverse_distillation(model, tile, normal, view):
    layers = model.whole(model.outputs(model.features(tile)))
    encoded, decoded = layers[:3], layers[3:]
    maps = torch.cat([
        upsample_bilinear(reverse_distillation.cosine_distance(e, d), model.output_size, True)
        for e, d in zip(encoded, decoded)
    ]).cpu().numpy()  # (3, h, w)  # fmt: skip
    at = _largest(maps.prod(0) if model.combine == "product" else maps.sum(0))
    spots = _spots(at, encoded, aligned=True)
    pairs = [
        np.stack([x[0, :, r, c].cpu().numpy() for x in both])  # (2, C)
        for both, (r, c) in zip(zip(encoded, decoded), spots)
    ]
    units = [
        pair / np.maximum(np.linalg.norm(pair, axis=1, keepdims=True), 1e-30) for pair in pairs
    ]
    cosines = [1 - float(e @ d) for e, d in units]
    return [
        Stage(
            "cosines", "Encoder against decoder", maps,
            "models.reverse_distillation.cosine_distance", "Deng and Li Eq. 1",
            f"1 - cosine of encoder and decoder in layers 1 to 3, by {view.model}. "
            f"Their {model.combine}, blurred, is the tile's map; before the blur it is largest at "
            f"pixel {at}, framed.",
            view.layers(maps, spots),
        ),
        Stage(
            "vectors", "The two vectors of that position", np.hstack(pairs),
            "models.reverse_distillation.Student", "Deng and Li Sec. 3.1",
            "Channels of the encoder and of the decoder, at unit length, sorted by "
            f"the encoder's values. 1 - cosine: {', '.join(f'{c:.3g}' for c in cosines)}.",
            svg.page([_vector_chart(f"layer{k}: 1 - cosine = {c:.3g}", *unit)
                      for k, c, unit in zip((1, 2, 3), cosines, units)], 3,
                     "Encoder and decoder at one position"),
        ),
    ]  # fmt: skip


def _vector_chart(title, encoded, decoded):
    order, x = np.argsort(-encoded), np.arange(len(encoded))
    chart = svg.Chart(title, "channel, sorted", "value at unit length", width=360, height=320)
    chart.points(x, decoded[order], "decoder", 1)
    chart.line(x, encoded[order], "encoder", 0)
    return chart


def _largest(values):
    return tuple(map(int, np.unravel_index(values.argmax(), values.shape)))


def _spots(at, layers, aligned=False):
    """The position of a pixel in each layer (..., hf, wf), enlarged with aligned corners or not."""
    return [
        tuple(round(a * (n - 1) / (n * stride - 1)) if aligned else min(a // stride, n - 1)
              for a, n in zip(at, layer.shape[-2:])) for stride, layer in zip(STRIDES, layers)
    ]  # fmt: skip


STAGES = {
    "padim": _padim, "patchcore": _patchcore, "fastflow": _fastflow,
    "reverse_distillation": _reverse_distillation,
}  # fmt: skip
