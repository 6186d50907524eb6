"""The stages of PaDiM: embedding, fitted parameters, tile map, tile score."""

import numpy as np
import torch

from ..models import gaussians
from ..models import padim as model
from ..models.gaussians import pack
from . import formulas
from .compare import EXACT, close
from .numbers import Numbers
from .postprocessing import MAP_BLUR_CONFUSIONS, blur_switches
from .stage import Case, Confusion, Stage

CHANNELS = {"layer1": 4, "layer2": 8, "layer3": 16}  # of the bundle's backbone
SIGMA = model.SIGMA


class Given:
    """A backbone that answers with the given layers, or with the given images of them.

    Parameters: layers, list of float32 (B, C, hf, wf) arrays.
    """

    def __init__(self, layers):
        self.layers = [torch.from_numpy(np.array(layer)) for layer in layers]
        self.channels = {f"layer{k}": len(x[0]) for k, x in enumerate(layers, start=1)}

    def __call__(self, images):
        """All layers; images is a tensor whose first numbers are the images' places."""
        places = images[:, 0, 0, 0].long()
        return [layer[places] for layer in self.layers]


def places(n):
    """Images for Given: float32 (n, 1, 1, 1), the numbers 0 to n - 1."""
    return torch.arange(n, dtype=torch.float32)[:, None, None, None]


def layers_of(draw, n, sides, channels=CHANNELS):
    """Feature maps of n images, {layer: (n, C, hf, wf)}; sides of layer1's grid, the others'
    are halved and rounded up, as convolutions of stride 2 do."""
    result, (hf, wf) = {}, sides
    for name, count in channels.items():
        result[name] = draw.uniform(n, count, hf, wf)  # like a ReLU: not negative
        hf, wf = -(-hf // 2), -(-wf // 2)
    return result


def given_layers(inputs):
    """The three layers of a case."""
    return [inputs[name] for name in CHANNELS]


def tensor(array):
    """A copy as a CPU tensor."""
    return torch.from_numpy(np.array(array))


def _padim(backbone, size=(1, 1)):
    return model.Padim(backbone, size, seed=0, device="cpu", n_channels=1)


# ----------------------------------------------------------------------------- embedding


def _embedding_cases():
    cases = []
    for name, n, sides, flags in (
        ("square", 1, (8, 8), ()),
        ("not_square", 2, (8, 4), ("not_square", "several")),
        ("rounded_up", 1, (7, 5), ("padding", "not_square")),
    ):
        draw = Numbers(f"padim.embedding/{name}")
        chosen = np.argsort(draw.bits(28), kind="stable")[:10]
        inputs = {**layers_of(draw, n, sides), "channels": chosen.astype(np.int64)}
        cases.append(Case(name, inputs, flags))
    return cases


def _embedding(inputs):
    padim = _padim(Given(given_layers(inputs)))
    padim.channels = tensor(inputs["channels"])
    return {"embedding": padim.embed(places(len(inputs["layer1"]))).numpy()}


def _embedding_formula(inputs, mode="nearest", order=None, sort=False, **switches):
    layers = given_layers(inputs)
    size = layers[0].shape[-2:]
    layers = [formulas.enlarge(x, size, mode, **switches) for x in layers]
    if order == "reversed":
        layers = layers[::-1]
    channels = np.sort(inputs["channels"]) if sort else inputs["channels"]
    whole = np.concatenate(layers, axis=1)
    if order == "first":
        return {"embedding": whole[:, : len(channels)]}
    return {"embedding": whole[:, channels]}


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
        Confusion("bilinear enlargement instead of nearest", {"mode": "bilinear"}),
        Confusion(
            "bilinear enlargement with align_corners instead of nearest",
            {"mode": "bilinear", "align_corners": True},
        ),
        Confusion("the channels are sorted: their order is that of the list", {"sort": True}),
        Confusion("the layers are concatenated in the opposite order", {"order": "reversed"}),
        Confusion("the first channels are taken instead of the chosen ones", {"order": "first"}),
        Confusion(
            "nearest enlargement takes floor((i + 0.5) n_in / n_out), not floor(i n_in / n_out)",
            {"mode": "nearest_centre"},
        ),
    ),
)


# ---------------------------------------------------------------------------- parameters


def _parameters_cases():
    cases = []
    for name, n, d, grid, flags in (
        ("many", 12, 5, (3, 4), ("more_images_than_channels", "not_square")),
        ("fewer_than_channels", 4, 7, (2, 2), ()),
        ("two", 2, 3, (1, 2), ("few_images",)),
    ):
        draw = Numbers(f"padim.parameters/{name}")
        shared = draw.bell(n, 1, *grid)  # so that channels are correlated
        embedding = draw.bell(n, d, *grid) + shared + 1
        cases.append(Case(name, {"embedding": embedding.astype(np.float32)}, flags))
    return cases


def _parameters(inputs):
    padim = _padim(Given([np.zeros((1, 1, 1, 1), np.float32)]))
    padim.embed = lambda embedding: embedding
    padim.fit(tensor(inputs["embedding"]))
    return {"mean": padim.mean.numpy(), "precision": padim.precision.numpy()}


def _parameters_formula(
    inputs, less=1, epsilon=model.EPSILON, inverse=np.linalg.inv, centred=True, swapped=False
):
    x = inputs["embedding"].astype(np.float64)
    if swapped:
        x = x.swapaxes(2, 3)
    n, d = x.shape[:2]
    x = x.reshape(n, d, -1).transpose(2, 0, 1)  # (P, N, D)
    mean = x.mean(1)
    delta = x - mean[:, None] if centred else x
    covariance = delta.swapaxes(1, 2) @ delta / (n - less) + epsilon * np.eye(d)
    return {"mean": mean, "precision": inverse(covariance)}


def _diagonal(covariance):
    return np.linalg.inv(covariance * np.eye(covariance.shape[-1]))


PARAMETERS = Stage(
    "padim.parameters",
    "mean and inverse covariance at every position",
    "tiled_ref.models.padim.Padim.fit",
    "Defard et al. Eq. 1",
    {"mean": close(1e-6, 1e-6), "precision": close(1e-4, 2e-3)},
    _parameters_cases,
    _parameters,
    _parameters_formula,
    (
        Confusion("biased covariance: divided by N instead of N - 1", {"less": 0}),
        Confusion("0.01 is not added to the diagonal", {"epsilon": 1e-12}),
        Confusion("0.001 is added to the diagonal instead of 0.01", {"epsilon": 1e-3}),
        Confusion("0.1 is added to the diagonal instead of 0.01", {"epsilon": 0.1}),
        Confusion("the covariance is not inverted", {"inverse": lambda c: c}),
        Confusion("the mean is not subtracted", {"centred": False}),
        Confusion(
            "variances only: the covariance between channels is left out", {"inverse": _diagonal}
        ),
        Confusion("rows and columns of the positions are exchanged", {"swapped": True}),
    ),
)


# --------------------------------------------------------------------------- map and score


def _map_cases():
    cases = []
    for name, n, d, grid, size, flags in (
        ("square", 1, 4, (8, 8), (32, 32), ("reflect",)),
        ("not_square", 2, 5, (5, 9), (20, 36), ("not_square", "several", "reflect")),
        ("rounded_up", 1, 3, (6, 5), (22, 17), ("padding", "not_square", "reflect")),
        ("small", 1, 3, (3, 3), (12, 12), ("smaller_than_radius", "reflect")),
    ):
        draw = Numbers(f"padim.map/{name}")
        embedding = draw.uniform(n, d, *grid)
        mean, precision = _gaussians(draw, grid[0] * grid[1], d)
        cases.append(Case(name, _map_inputs(embedding, mean, precision, size), flags))
    draw = Numbers("padim.map/below_zero")
    mean, precision = _gaussians(draw, 4, 2)
    precision[1] = -np.eye(2)
    inputs = _map_inputs(draw.uniform(1, 2, 2, 2), mean, precision, (8, 8))
    cases.append(Case("below_zero", inputs, ("below_zero", "smaller_than_radius")))
    return cases


def _map_inputs(embedding, mean, precision, size):
    size = np.array(size, np.int64)
    return {"embedding": embedding, "mean": mean, "precision": precision, "size": size}


def _gaussians(draw, n, d):
    """Means float32 (n, d) and symmetric positive definite float32 (n, d, d)."""
    root = draw.bell(n, d, d).astype(np.float64)
    precision = 4 * (root @ root.swapaxes(1, 2)) + np.eye(d)  # exact in float64
    return draw.uniform(n, d), precision.astype(np.float32)


def _map(inputs):
    size = tuple(int(v) for v in inputs["size"])
    padim = _padim(Given([np.zeros((1, 1, 1, 1), np.float32)]), size)
    padim.embed = lambda embedding: embedding
    embedding = tensor(inputs["embedding"])
    padim.mean, padim.precision = tensor(inputs["mean"]), tensor(inputs["precision"])
    padim.grid = tuple(embedding.shape[-2:])
    maps, _ = padim.predict(embedding)
    rows = embedding.permute(0, 2, 3, 1).flatten(1, 2)  # (B, P, D)
    distances = gaussians.distances(rows, padim.mean, pack(padim.precision))
    return {"distances": distances.reshape(-1, *padim.grid), "map": maps.numpy()}


def _map_formula(
    inputs,
    root=True,
    centred=True,
    precise=True,
    column_major=False,
    enlarged=None,
    blurred=True,
    how=None,
):
    x = inputs["embedding"].astype(np.float64)  # (B, D, hf, wf)
    n, d, hf, wf = x.shape
    mean = inputs["mean"].astype(np.float64).reshape(hf, wf, d)
    precision = inputs["precision"].astype(np.float64).reshape(hf, wf, d, d)
    if column_major:
        mean = mean.reshape(wf, hf, d).swapaxes(0, 1)
        precision = precision.reshape(wf, hf, d, d).swapaxes(0, 1)
    delta = x.transpose(0, 2, 3, 1) - (mean if centred else 0)
    if not precise:
        precision = np.broadcast_to(np.eye(d), precision.shape)
    squares = np.maximum(0, np.einsum("nyxi,yxij,nyxj->nyx", delta, precision, delta))
    distances = np.sqrt(squares) if root else squares
    size = [int(v) for v in inputs["size"]]
    maps = formulas.enlarge(distances, size, **(enlarged or {}))
    if blurred:
        maps = formulas.blur(maps, **blur_switches(SIGMA, **(how or {})))
    return {"distances": distances, "map": maps}


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
        Confusion("no square root: the squared Mahalanobis distance", {"root": False}),
        Confusion("the mean is not subtracted", {"centred": False}),
        Confusion("the Euclidean distance: the inverse covariance is left out", {"precise": False}),
        Confusion(
            "rows and columns of the positions are exchanged (column-major order)",
            {"column_major": True},
        ),
        Confusion("bilinear enlargement with align_corners", {"enlarged": {"align_corners": True}}),
        Confusion("nearest enlargement instead of bilinear", {"enlarged": {"mode": "nearest"}}),
        Confusion("the map is not blurred", {"blurred": False}),
        *(Confusion(c.sentence, {"how": c.switches}) for c in MAP_BLUR_CONFUSIONS),
    ),
)


def score_stage(name, function, source):
    """The stage of a score that is the largest value of a map."""

    def cases():
        draw = Numbers(f"{name}/maps")
        tied = draw.integers(4, 2, 5, 6).astype(np.float32)
        return [
            Case("maps", {"map": draw.uniform(3, 7, 9)}, ("several", "not_square")),
            Case(
                "negative",
                {"map": draw.uniform(2, 4, 4) - 1},
                ("negative", "several"),
                "a maximum that starts from 0 is wrong here",
            ),
            Case("ties", {"map": tied}, ("ties", "several")),
            Case("one_pixel", {"map": draw.uniform(1, 1, 1)}, ("one_pixel",)),
        ]

    def formula(inputs, combine=np.max, start=None):
        maps = inputs["map"].astype(np.float64)
        if start is not None:
            maps = np.maximum(maps, start)
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
            Confusion("the mean of the map instead of its maximum", {"combine": np.mean}),
            Confusion("the maximum starts from 0, so negative maps score 0", {"start": 0.0}),
            Confusion("the smallest value of the map instead of the largest", {"combine": np.min}),
            Confusion("the sum of the map instead of its maximum", {"combine": np.sum}),
        ),
    )


SCORE = score_stage("padim.score", "tiled_ref.models.padim.Padim.predict", "Rolih et al. Eq. 4")

STAGES = (EMBEDDING, PARAMETERS, MAP, SCORE)
