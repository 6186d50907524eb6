"""The stages of PatchCore: embedding, fitted parameters, tile map, tile score."""

import numpy as np

from ..models import patchcore as model
from ..models.search import coreset
from . import formulas
from .compare import EXACT, close
from .inputs import Given, layers_of, places, tensor
from .merging import MAP_BLUR_CONFUSIONS, blur_switches
from .numbers import Numbers
from .stage import Case, Confusion, Stage

SIGMA = model.SIGMA


def _patchcore(layers=None, size=(1, 1), **switches):
    backbone = Given([np.zeros((1, 1, 1, 1), np.float32)] if layers is None else layers)
    return model.PatchCore(backbone, size, seed=0, device="cpu", **switches)


# ----------------------------------------------------------------------------- embedding


def _embedding_cases():
    cases = []
    for name, n, sides, flags in (
        ("square", 1, (12, 12), ()),
        ("not_square", 2, (8, 16), ("not_square", "several")),
        ("rounded_up", 1, (13, 10), ("padding", "not_square")),
    ):
        layers = layers_of(Numbers(f"patchcore.embedding/{name}"), n, sides)
        del layers["layer1"]
        cases.append(Case(name, layers, flags))
    return cases


def _embedding(inputs):
    patchcore = _patchcore([inputs["layer2"], inputs["layer2"], inputs["layer3"]])
    return {"embedding": patchcore.embed(places(len(inputs["layer2"]))).numpy()}


def _local_mean(x, count_outside=True, how="mean"):
    """Mean, or sum or maximum, of 3 x 3 neighbours of (B, C, hf, wf), float64."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    inside = np.pad(np.ones(x.shape[2:]), 1)
    h, w = x.shape[2:]
    shifts = [(slice(a, a + h), slice(b, b + w)) for a in range(3) for b in range(3)]
    if how == "max":
        return np.max([padded[..., a, b] for a, b in shifts], axis=0)
    total = sum(padded[..., a, b] for a, b in shifts)
    if how == "sum":
        return total
    return total / (9 if count_outside else sum(inside[a, b] for a, b in shifts))


def _embedding_formula(
    inputs, pooled=True, after=False, mode="bilinear", reverse=False, pool=None, **switches
):
    layers = [inputs["layer2"], inputs["layer3"]]
    if pooled and not after:
        layers = [_local_mean(x, **(pool or {})) for x in layers]
    layers[1] = formulas.enlarge(layers[1], layers[0].shape[-2:], mode, **switches)
    if after:
        layers = [_local_mean(x) for x in layers]
    return {"embedding": np.concatenate(layers[::-1] if reverse else layers, axis=1)}


EMBEDDING = Stage(
    "patchcore.embedding",
    "layers 2 and 3 averaged over 3 x 3 neighbours, on the grid of layer2",
    "tiled_ref.models.patchcore.PatchCore.embed",
    "Roth et al. Eq. 1-3",
    {"embedding": close(1e-5, 1e-5)},
    _embedding_cases,
    _embedding,
    _embedding_formula,
    (
        Confusion(
            "the mean divides by the neighbours inside the map instead of by 9",
            {"pool": {"count_outside": False}},
        ),
        Confusion("no mean over neighbours", {"pooled": False}),
        Confusion("the sum of the neighbours: not divided by 9", {"pool": {"how": "sum"}}),
        Confusion("the maximum over neighbours instead of the mean", {"pool": {"how": "max"}}),
        Confusion("layer3 is enlarged first and averaged afterwards", {"after": True}),
        Confusion("nearest enlargement of layer3 instead of bilinear", {"mode": "nearest"}),
        Confusion("align_corners in the enlargement of layer3", {"align_corners": True}),
        Confusion("layer3 is put before layer2", {"reverse": True}),
    ),
)


# ---------------------------------------------------------------------------- parameters


def _parameters_cases():
    cases = []
    for name, n, d, k, count, include, flags in (
        ("excluded", 60, 8, 5, 12, False, ()),
        ("included", 60, 8, 5, 12, True, ("start_included",)),
        ("duplicates", 24, 6, 6, 14, False, ("duplicates", "ties")),
        ("all", 7, 4, 3, 7, False, ()),
    ):
        draw = Numbers(f"patchcore.parameters/{'excluded' if name == 'included' else name}")
        patches = draw.bell(n, d)
        if name == "duplicates":
            patches = draw.integers(3, 8, d)[draw.integers(8, n)].astype(np.float32)
        projection = draw.integers(3, k, d).astype(np.float64) - 1
        inputs = {
            "patches": patches,
            "projection": projection,
            "first": np.int64(draw.integers(n)),
            "count": np.int64(count),
            "include_first": np.bool_(include),
        }
        cases.append(Case(name, inputs, flags))
    return cases


def _parameters(inputs):
    patches = tensor(inputs["patches"])
    points = coreset.project(patches, np.array(inputs["projection"]))
    chosen = coreset.k_centre_greedy(
        points,
        int(inputs["count"]),
        int(inputs["first"]),
        include_first=bool(inputs["include_first"]),
    )
    return {"chosen": chosen.numpy(), "bank": patches[chosen].numpy()}


def _parameters_formula(
    inputs, projected=True, include=None, nearest=False, first=None, last=False, again=False
):
    patches = inputs["patches"].astype(np.float64)
    points = patches @ inputs["projection"].T if projected else patches
    include = bool(inputs["include_first"]) if include is None else include
    start = int(inputs["first"]) if first is None else first
    least = np.square(points - points[start]).sum(1)
    chosen = [start] if include else []
    if include:
        least[start] = -1.0
    while len(chosen) < int(inputs["count"]):
        if nearest:
            best = int(np.argmin(np.where(least < 0, np.inf, least)))
        else:
            best = int(len(least) - 1 - np.argmax(least[::-1]) if last else np.argmax(least))
        chosen.append(best)
        least = np.minimum(least, np.square(points - points[best]).sum(1))
        least[best] = 0.0 if again else -1.0
    return {"chosen": np.array(chosen), "bank": patches[chosen]}


PARAMETERS = Stage(
    "patchcore.parameters",
    "the coreset: greedily the farthest projected patch",
    "tiled_ref.models.search.coreset.k_centre_greedy",
    "Roth et al. Eq. 5",
    {"chosen": EXACT, "bank": EXACT},
    _parameters_cases,
    _parameters,
    _parameters_formula,
    (
        Confusion("distances are taken before the projection", {"projected": False}),
        Confusion(
            "the random start is always the first member, although include_first says otherwise",
            {"include": True},
        ),
        Confusion(
            "the random start is never a member, although include_first says so", {"include": False}
        ),
        Confusion("the nearest patch is chosen instead of the farthest", {"nearest": True}),
        Confusion("the start is patch 0 instead of the given one", {"first": 0}),
        Confusion(
            "the last of equally distant patches is chosen instead of the first", {"last": True}
        ),
        Confusion("patches are chosen more than once", {"again": True}),
    ),
)


# --------------------------------------------------------------------------- map and score


def _map_cases():
    cases = []
    for name, n, d, grid, size, bank, flags in (
        ("square", 1, 6, (5, 5), (40, 40), 20, ("reflect",)),
        ("not_square", 2, 6, (4, 7), (32, 56), 15, ("not_square", "several", "reflect")),
        ("rounded_up", 1, 4, (4, 3), (27, 21), 9, ("padding", "not_square", "reflect")),
    ):
        draw = Numbers(f"patchcore.map/{name}")
        inputs = {
            "embedding": draw.uniform(n, d, *grid),
            "bank": draw.uniform(bank, d),
            "size": np.array(size, np.int64),
        }
        cases.append(Case(name, inputs, flags))
    return cases


def _predicted(inputs, size, n_neighbours):
    patchcore = _patchcore(size=size, n_neighbours=n_neighbours)
    patchcore.embed = lambda embedding: embedding
    patchcore.bank = tensor(inputs["bank"])
    embedding = tensor(inputs["embedding"])
    patchcore.grid = tuple(embedding.shape[-2:])
    return patchcore, embedding, patchcore.predict(embedding)


def _map(inputs):
    size = tuple(int(v) for v in inputs["size"])
    patchcore, embedding, (maps, _) = _predicted(inputs, size, 1)
    patches = embedding.permute(0, 2, 3, 1).flatten(0, 2)
    distances, _ = patchcore.banks.nearest(patches[None])
    distances = distances.float().view(-1, *patchcore.grid)
    return {"distances": distances.numpy(), "map": maps.numpy()}


def _distances(inputs):
    """(B, hf, wf, M), float64."""
    x = inputs["embedding"].astype(np.float64).transpose(0, 2, 3, 1)[:, :, :, None]
    return np.sqrt(np.square(x - inputs["bank"]).sum(-1))


def _map_formula(
    inputs, root=True, combine=np.min, mode="nearest", blurred=True, how=None, metric=2, **switches
):
    distances = combine(_distances(inputs), axis=-1)
    if metric == 1:
        x = inputs["embedding"].astype(np.float64).transpose(0, 2, 3, 1)[:, :, :, None]
        distances = np.abs(x - inputs["bank"]).sum(-1).min(-1)
    if not root:
        distances = distances**2
    maps = formulas.enlarge(distances, [int(v) for v in inputs["size"]], mode, **switches)
    if blurred:
        maps = formulas.blur(maps, **blur_switches(SIGMA, **(how or {})))
    return {"distances": distances, "map": maps}


MAP = Stage(
    "patchcore.map",
    "distances to the nearest bank vector, enlarged and blurred",
    "tiled_ref.models.patchcore.PatchCore.predict",
    "Roth et al. Eq. 6",
    {"distances": close(1e-5, 1e-5), "map": close(1e-5, 1e-5)},
    _map_cases,
    _map,
    _map_formula,
    (
        Confusion("no square root: the squared distance", {"root": False}),
        Confusion("the mean distance to the bank instead of the smallest", {"combine": np.mean}),
        Confusion("the largest distance to the bank instead of the smallest", {"combine": np.max}),
        Confusion(
            "the sum of absolute differences instead of the Euclidean distance", {"metric": 1}
        ),
        Confusion("bilinear enlargement instead of nearest", {"mode": "bilinear"}),
        Confusion(
            "bilinear enlargement with align_corners instead of nearest",
            {"mode": "bilinear", "align_corners": True},
        ),
        Confusion(
            "nearest enlargement takes floor((i + 0.5) n_in / n_out), not floor(i n_in / n_out)",
            {"mode": "nearest_centre"},
        ),
        Confusion("the map is not blurred", {"blurred": False}),
        *(Confusion(c.sentence, {"how": c.switches}) for c in MAP_BLUR_CONFUSIONS),
    ),
)


def _score_cases():
    cases = []
    for name, n, d, grid, bank, b, flags in (
        ("nine", 3, 6, (4, 5), 30, 9, ("several", "not_square")),
        ("one", 2, 6, (4, 4), 12, 1, ("one_neighbour", "several")),
        ("small_bank", 2, 5, (3, 3), 4, 9, ("small_bank", "several")),
        ("two", 1, 4, (5, 3), 10, 2, ()),
    ):
        draw = Numbers(f"patchcore.score/{name}")
        inputs = {
            "embedding": draw.uniform(n, d, *grid),
            "bank": draw.uniform(bank, d),
            "n_neighbours": np.int64(b),
        }
        cases.append(Case(name, inputs, flags))
    return cases


def _score(inputs):
    _, _, (_, scores) = _predicted(inputs, (1, 1), int(inputs["n_neighbours"]))
    return {"score": scores.numpy()}


def _score_formula(inputs, weighted=True, around="bank", kind="one_less", squared=False, extra=0):
    distances = _distances(inputs)
    n, m = len(distances), len(inputs["bank"])
    b = min(int(inputs["n_neighbours"]), m)
    flat = distances.reshape(n, -1, m)
    bank = inputs["bank"].astype(np.float64)
    scores = []
    for image in flat:
        patch = int(image.min(1).argmax())
        star, near = image[patch].min(), int(image[patch].argmin())
        of_bank = np.sqrt(np.square(bank - bank[near]).sum(1))
        order = np.argsort(of_bank if around == "bank" else image[patch], kind="stable")
        chosen = order[extra : b + extra] if extra else order[:b]
        d = image[patch][chosen] ** (2 if squared else 1)
        softmax = np.exp(d - d.max()) / np.exp(d - d.max()).sum()
        weight = {"one_less": 1 - softmax[0], "itself": softmax[0]}[kind]
        scores.append(star if b == 1 or not weighted else weight * star)
    return {"score": np.array(scores)}


SCORE = Stage(
    "patchcore.score",
    "the largest patch distance, re-weighted",
    "tiled_ref.models.patchcore.reweight",
    "Roth et al. Eq. 7",
    {"score": close(1e-5, 1e-6)},
    _score_cases,
    _score,
    _score_formula,
    (
        Confusion("no re-weighting: the largest distance itself", {"weighted": False}),
        Confusion(
            "the neighbours of the patch instead of those of its nearest bank vector",
            {"around": "patch"},
        ),
        Confusion("the softmax itself instead of 1 less the softmax", {"kind": "itself"}),
        Confusion("the softmax of squared distances", {"squared": True}),
        Confusion("the nearest bank vector is not counted among its own neighbours", {"extra": 1}),
    ),
)

STAGES = (EMBEDDING, PARAMETERS, MAP, SCORE)
