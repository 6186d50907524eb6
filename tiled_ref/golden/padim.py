"""The stages of PaDiM: embedding, fitted parameters, tile map, tile score."""

import contextlib
from functools import partial

import numpy as np

from ..models import gaussians
from ..models import padim as model
from . import formulas
from .compare import EXACT, close
from .inputs import Given, given_layers, layers_of, places, size_of, tensor
from .merging import BILINEAR_MISTAKES, MAP_BLUR_MISTAKES
from .numbers import Numbers
from .stage import Case, Mistake, Stage


def _padim(layers, size=(1, 1)):
    return model.Padim(Given(layers), size, seed=0, device="cpu", n_channels=1)


def _padim_of_embeddings(size=(1, 1)):
    """Build a model that takes embeddings in place of images."""
    padim = _padim([np.zeros((1, 1, 1, 1), np.float32)], size)
    padim.embed = lambda embedding: embedding
    return padim


def _embedding_cases():
    for name, n, sides, flags in (
        ("square", 1, (8, 8), ()),
        ("not_square", 2, (8, 4), ("not_square", "several")),
        ("rounded_up", 1, (7, 5), ("padding", "not_square")),
    ):
        draw = Numbers(f"padim.embedding/{name}")
        chosen = np.argsort(draw.bits(28), kind="stable")[:10].astype(np.int64)
        yield Case(name, {**layers_of(draw, n, sides), "channels": chosen}, flags)


def _embedding(inputs):
    padim = _padim(given_layers(inputs))
    padim.channels = inputs["channels"].tolist()
    return {"embedding": padim.embed(places(len(inputs["layer1"]))).numpy()}


def _embedding_formula(
    inputs, mode="nearest", reverse=False, first=False, sort=False, shift=0, **switches
):
    layers = given_layers(inputs)
    layers = [formulas.enlarge(x, layers[0].shape[-2:], mode, **switches) for x in layers]
    channels = np.sort(inputs["channels"]) if sort else inputs["channels"]
    whole = np.concatenate(layers[::-1] if reverse else layers, axis=1)
    channels = (channels + shift) % whole.shape[1]
    return {"embedding": whole[:, : len(channels)] if first else whole[:, channels]}


EMBEDDING = Stage(
    "padim.embedding",
    "three layers on the grid of layer1, the chosen channels of them",
    "tiled_ref.models.padim.Padim.embed",
    "Defard et al. Sec. III-A",
    {"embedding": EXACT},
    _embedding_cases,
    _embedding,
    _embedding_formula,
    (
        Mistake("bilinear enlargement instead of nearest", mode="bilinear"),
        Mistake(
            "bilinear enlargement with align_corners instead of nearest",
            mode="bilinear",
            align_corners=True,
        ),
        Mistake("the channels are sorted instead of kept in list order", sort=True),
        Mistake("channel indices start from 1", shift=-1),
        Mistake("channel indices are one too high", shift=1),
        Mistake("the layers are concatenated in the opposite order", reverse=True),
        Mistake("the first channels are taken instead of the chosen ones", first=True),
        Mistake(
            "nearest enlargement takes floor((i + 0.5) n_in / n_out), not floor(i n_in / n_out)",
            mode="nearest_centre",
        ),
    ),
)


def _parameters_cases():
    for name, n, d, grid, flags in (
        ("many", 12, 5, (3, 4), ("more_images_than_channels", "not_square")),
        ("fewer_than_channels", 4, 7, (2, 2), ()),
        ("two", 2, 3, (1, 2), ("few_images",)),
    ):
        draw = Numbers(f"padim.parameters/{name}")
        shared = draw.bell(n, 1, *grid)  # makes channels correlated
        embedding = draw.bell(n, d, *grid) + shared + 1
        yield Case(name, {"embedding": embedding.astype(np.float32)}, flags)


def _parameters(inputs):
    padim = _padim_of_embeddings()
    padim.fit_embeddings([tensor(inputs["embedding"])], len(inputs["embedding"]))
    return {"mean": padim.mean.numpy(), "factors": padim.factors.numpy()}


def _factor(covariance, invert=np.linalg.inv):
    """Return U, upper triangular, with covariance^-1 = U U^T: (P, D, D) -> the same shape."""
    return invert(_cholesky(covariance)).swapaxes(1, 2)


def _cholesky(covariance):
    """Factor covariances; NaN where a mistake makes one not positive definite."""
    roots = np.full_like(covariance, np.nan)
    for root, matrix in zip(roots, covariance):
        with contextlib.suppress(np.linalg.LinAlgError):
            root[:] = np.linalg.cholesky(matrix)
    return roots


def _places(d, by_columns):
    """Return rows and columns of the upper triangle's entries in packing order."""
    return np.tril_indices(d)[::-1] if by_columns else np.triu_indices(d)


def _parameters_formula(
    inputs, less=1, epsilon=model.EPSILON, factor=_factor, centred=True, swapped=False,
    by_columns=False, ridge=np.eye, product=False,
):  # fmt: skip
    x = inputs["embedding"].astype(np.float64)
    if swapped:
        x = x.swapaxes(2, 3)
    n, d = x.shape[:2]
    x = x.reshape(n, d, -1).transpose(2, 0, 1)  # (P, N, D)
    mean = x.mean(1)
    delta = x - mean[:, None] if centred else x
    covariance = delta.swapaxes(1, 2) @ delta / (n - less)
    if product:
        covariance = covariance * (1 + epsilon * np.eye(d))
    else:
        covariance = covariance + epsilon * ridge(d)
    rows, cols = _places(d, by_columns)
    return {"mean": mean, "factors": factor(covariance)[:, rows, cols]}


PARAMETERS = Stage(
    "padim.parameters",
    "mean and factor of the inverse covariance at every position",
    "tiled_ref.models.padim.Padim.fit",
    "Defard et al. Eq. 1",
    {"mean": close(1e-6, 1e-6), "factors": close(1e-4, 1e-4)},
    _parameters_cases,
    _parameters,
    _parameters_formula,
    (
        Mistake("biased covariance: divided by N instead of N - 1", less=0),
        Mistake("0.01 is not added to the diagonal", epsilon=1e-12),
        Mistake("0.001 is added to the diagonal instead of 0.01", epsilon=1e-3),
        Mistake("0.1 is added to the diagonal instead of 0.01", epsilon=0.1),
        Mistake("0.01 is added to every entry, not to the diagonal", ridge=lambda d: 1.0),
        Mistake("the diagonal is multiplied by 1.01 instead of added to", product=True),
        Mistake(
            "the covariance is not inverted: its own factor, transposed",
            factor=partial(_factor, invert=lambda root: root),
        ),
        Mistake(
            "the inverse covariance itself, not its factor (right in edition 2 of these files: "
            "FORMAT.md, Editions)",
            factor=np.linalg.inv,
        ),
        Mistake(
            "the other factor: the inverse covariance is U^T U instead of U U^T",
            factor=lambda c: np.linalg.cholesky(np.linalg.inv(c)).swapaxes(1, 2),
        ),
        Mistake("the triangle is packed column by column", by_columns=True),
        Mistake("the mean is not subtracted", centred=False),
        Mistake(
            "variances only: the covariance between channels is left out",
            factor=lambda c: _factor(c * np.eye(c.shape[-1])),
        ),
        Mistake("rows and columns of the positions are exchanged", swapped=True),
    ),
)


def _map_cases():
    for name, n, d, grid, size, flags in (
        ("square", 1, 4, (8, 8), (32, 32), ("reflect",)),
        ("not_square", 2, 5, (5, 9), (20, 36), ("not_square", "several", "reflect")),
        ("rounded_up", 1, 3, (6, 5), (22, 17), ("padding", "not_square", "reflect")),
        ("small", 1, 3, (3, 3), (12, 12), ("smaller_than_radius", "reflect")),
    ):
        draw = Numbers(f"padim.map/{name}")
        embedding = draw.uniform(n, d, *grid)
        mean, factors = _gaussians(draw, grid[0] * grid[1], d)
        inputs = {"embedding": embedding, "mean": mean, "factors": factors}
        yield Case(name, {**inputs, "size": np.array(size, np.int64)}, flags)


def _gaussians(draw, n, d):
    """Draw means float32 (n, d) and packed factors float32 (n, d (d + 1) / 2), diagonals > 0."""
    factor = 2 * draw.bell(n, d, d)
    factor = np.where(np.eye(d, dtype=bool), np.abs(factor) + 1, factor)
    rows, cols = _places(d, by_columns=False)
    return draw.uniform(n, d), factor[:, rows, cols].astype(np.float32)


def _map(inputs):
    padim = _padim_of_embeddings(size_of(inputs))
    embedding = tensor(inputs["embedding"])
    padim.mean, padim.factors = tensor(inputs["mean"]), tensor(inputs["factors"])
    padim.grid = tuple(embedding.shape[-2:])
    maps, _ = padim.predict(embedding)
    rows = embedding.permute(0, 2, 3, 1).flatten(1, 2)  # (B, P, D)
    distances = gaussians.distances(rows, padim.mean, padim.factors)
    return {"distances": distances.reshape(-1, *padim.grid), "map": maps.numpy()}


def _map_formula(
    inputs, root=True, centred=True, precise=True, column_major=False, transposed=False,
    by_columns=False, how=None, length=None, early=False, **switches,
):  # fmt: skip
    x = inputs["embedding"].astype(np.float64)  # (B, D, hf, wf)
    n, d, hf, wf = x.shape
    mean = inputs["mean"].astype(np.float64).reshape(hf, wf, d)
    factor, (rows, cols) = np.zeros((hf, wf, d, d)), _places(d, by_columns)
    factor[..., rows, cols] = inputs["factors"].reshape(hf, wf, -1)
    if column_major:
        mean = mean.reshape(wf, hf, d).swapaxes(0, 1)
        factor = factor.reshape(wf, hf, d, d).swapaxes(0, 1)
    delta = x.transpose(0, 2, 3, 1) - (mean if centred else 0)
    if not precise:
        factor = np.broadcast_to(np.eye(d), factor.shape)
    if transposed is True:
        factor = factor.swapaxes(2, 3)
    products = np.einsum("nyxi,yxij->nyxj", delta, factor)
    if transposed == "rows":  # each entry of x - mean times the sum of its row
        products = delta * factor.sum(-1)
    distances = np.square(products).sum(-1)
    distances = np.sqrt(distances) if root else distances
    distances = np.abs(products).sum(-1) if length == "L1" else distances
    distances = distances / {"root": d**0.5}.get(length, 1)
    maps = formulas.blur(distances, model.SIGMA) if early else distances
    maps = formulas.enlarge(maps, size_of(inputs), **switches)
    how = {"axes": "none"} if early else how or {}
    return {"distances": distances, "map": formulas.blur(maps, model.SIGMA, **how)}


MAP = Stage(
    "padim.map",
    "Mahalanobis distances, enlarged and blurred",
    "tiled_ref.models.padim.Padim.predict",
    "Defard et al. Eq. 2",
    {"distances": close(1e-5, 1e-5), "map": close(1e-5, 1e-5)},
    _map_cases,
    _map,
    _map_formula,
    (
        Mistake("no square root: the squared Mahalanobis distance", root=False),
        Mistake("the mean is not subtracted", centred=False),
        Mistake("the Euclidean distance: the inverse covariance is left out", precise=False),
        Mistake("U (x - mean) instead of U^T (x - mean)", transposed=True),
        Mistake("the triangle is unpacked column by column", by_columns=True),
        Mistake(
            "rows and columns of the positions are exchanged (column-major order)",
            column_major=True,
        ),
        Mistake("the sum of U's rows times x - mean instead of the product", transposed="rows"),
        Mistake("the sum of absolute values instead of the length", length="L1"),
        Mistake("the distance is divided by the root of the number of channels", length="root"),
        Mistake("the map is blurred before it is enlarged", early=True),
        *BILINEAR_MISTAKES,
        *MAP_BLUR_MISTAKES,
    ),
)


def _percentile(values, axis):
    return np.percentile(values, 99, axis)


def score_stage(name, function, source):
    """Build the stage of a score defined as the largest value of a map."""

    def cases():
        draw = Numbers(f"{name}/maps")
        tied = draw.integers(4, 2, 5, 6).astype(np.float32)
        yield Case("maps", {"map": draw.uniform(3, 7, 9)}, ("several", "not_square"))
        negative, wrong = draw.uniform(2, 4, 4) - 1, "a maximum that starts from 0 is wrong here"
        yield Case("negative", {"map": negative}, ("negative", "several"), wrong)
        yield Case("ties", {"map": tied}, ("ties", "several"))
        yield Case("one_pixel", {"map": draw.uniform(1, 1, 1)}, ("one_pixel",))

    def formula(inputs, combine=np.max, start=-np.inf, of=lambda maps: maps):
        maps = of(np.maximum(inputs["map"].astype(np.float64), start))
        return {"score": combine(maps.reshape(len(maps), -1), axis=1)}

    return Stage(
        name,
        "tile score: the largest value of the map",
        function,
        source,
        {"score": EXACT},
        cases,
        lambda inputs: {"score": tensor(inputs["map"]).amax((1, 2)).numpy()},
        formula,
        (
            Mistake("the mean of the map instead of its maximum", combine=np.mean),
            Mistake("the maximum starts from 0, so negative maps score 0", start=0.0),
            Mistake("the smallest value of the map instead of the largest", combine=np.min),
            Mistake("the sum of the map instead of its maximum", combine=np.sum),
            Mistake("the median of the map instead of its maximum", combine=np.median),
            Mistake("the range of the map instead of its maximum", combine=np.ptp),
            Mistake("the 99th percentile instead of the maximum", combine=_percentile),
            Mistake("the second largest value", combine=lambda v, axis: np.sort(v)[:, -2:][:, 0]),
            Mistake("the first value instead of the largest", combine=lambda v, axis: v[:, 0]),
            Mistake("the largest absolute value", of=np.abs),
            Mistake("the largest value of all maps", of=lambda m: m.max() + 0 * m),
        ),
    )


SCORE = score_stage("padim.score", "tiled_ref.models.padim.Padim.predict", "Rolih et al. Eq. 4")

STAGES = (EMBEDDING, PARAMETERS, MAP, SCORE)
