"""The stages of PatchCore: embedding, fitted parameters, tile map, tile score."""

import numpy as np

from ..models import patchcore as model
from ..models.search import coreset
from . import formulas
from .compare import EXACT, close
from .inputs import Given, layers_of, places, size_of, tensor
from .merging import BILINEAR_MISTAKES, MAP_BLUR_MISTAKES
from .numbers import Numbers
from .stage import Case, Mistake, Stage


def _patchcore(layers, size=(1, 1), **switches):
    return model.PatchCore(Given(layers), size, seed=0, device="cpu", **switches)


def _embedding_cases():
    for name, n, sides, flags in (
        ("square", 1, (12, 12), ()),
        ("not_square", 2, (8, 16), ("not_square", "several")),
        ("rounded_up", 1, (13, 10), ("padding", "not_square")),
    ):
        layers = layers_of(Numbers(f"patchcore.embedding/{name}"), n, sides)
        del layers["layer1"]
        yield Case(name, layers, flags)


def _embedding(inputs):
    patchcore = _patchcore([inputs["layer2"], inputs["layer2"], inputs["layer3"]])
    return {"embedding": patchcore.embed(places(len(inputs["layer2"]))).numpy()}


def _local(x, combine="mean"):
    """Combine 3 x 3 neighbours of (B, C, hf, wf), float64: "mean", "mean inside", "sum", "max",
    or "none" for the values themselves."""
    x = x.astype(np.float64)
    h, w = x.shape[2:]
    shifts = [np.s_[..., a : a + h, b : b + w] for a in range(3) for b in range(3)]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    inside = np.pad(np.ones((h, w)), 1)
    if combine == "none":
        return x
    if combine == "max":
        return np.max([padded[s] for s in shifts], axis=0)
    count = {"sum": 1, "mean": 9, "mean inside": sum(inside[s] for s in shifts)}[combine]
    return sum(padded[s] for s in shifts) / count


def _embedding_formula(
    inputs, combine="mean", deep=None, after=False, mode="bilinear", reverse=False, **switches
):
    layers = [inputs["layer2"], inputs["layer3"]]
    if not after:
        layers = [_local(x, how) for x, how in zip(layers, (combine, deep or combine))]
    layers[1] = formulas.enlarge(layers[1], layers[0].shape[-2:], mode, **switches)
    if after:
        layers = [_local(x) for x in layers]
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
        Mistake(
            "the mean divides by the neighbours inside the map instead of by 9",
            combine="mean inside",
        ),
        Mistake("no mean over neighbours", combine="none"),
        Mistake("no mean over neighbours in layer3", deep="none"),
        Mistake("the sum of the neighbours: not divided by 9", combine="sum"),
        Mistake("the maximum over neighbours instead of the mean", combine="max"),
        Mistake("layer3 is enlarged first and averaged afterwards", after=True),
        *BILINEAR_MISTAKES,
        Mistake("layer3 is put before layer2", reverse=True),
    ),
)


def _parameters_cases():
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
        inputs = {
            "patches": patches,
            "projection": draw.integers(3, k, d).astype(np.float64) - 1,
            "first": np.int64(draw.integers(n)),
            "count": np.int64(count),
            "include_first": np.bool_(include),
        }
        yield Case(name, inputs, flags)


def _parameters(inputs):
    patches = tensor(inputs["patches"])
    points = coreset.project(patches, np.array(inputs["projection"]))
    count, first = int(inputs["count"]), int(inputs["first"])
    include = bool(inputs["include_first"])
    chosen = coreset.k_centre_greedy(points, count, first, include_first=include)
    return {"chosen": chosen.numpy(), "bank": patches[chosen].numpy()}


def _parameters_formula(
    inputs, projected=True, include=None, nearest=False, first=None, last=False, again=False,
    ordered=False, latest=False, distance=lambda d: np.square(d).sum(1), combine=np.minimum,
    from_start=True, unit=False,
):  # fmt: skip
    patches = inputs["patches"].astype(np.float64)
    points = patches @ inputs["projection"].T if projected else patches
    points = points / np.linalg.norm(points, axis=1, keepdims=True) if unit else points
    include = bool(inputs["include_first"]) if include is None else include
    start = int(inputs["first"]) if first is None else first
    least = distance(points - points[start]) if from_start else np.full(len(points), np.inf)
    chosen = [start] if include else []
    if include:
        least[start] = -1.0
    while len(chosen) < int(inputs["count"]):
        if nearest:
            best = int(np.argmin(np.where(least < 0, np.inf, least)))
        else:
            best = int(len(least) - 1 - np.argmax(least[::-1]) if last else np.argmax(least))
        chosen.append(best)
        now = distance(points - points[best])
        least = np.where(least < 0, least, now if latest else combine(least, now))
        least[best] = 0.0 if again else -1.0
    chosen = np.sort(chosen) if ordered else np.array(chosen)
    return {"chosen": chosen, "bank": patches[chosen]}


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
        Mistake("distances are taken before the projection", projected=False),
        Mistake(
            "the random start is always the first member, although include_first says otherwise",
            include=True,
        ),
        Mistake(
            "the random start is never a member, although include_first says so", include=False
        ),
        Mistake("the nearest patch is chosen instead of the farthest", nearest=True),
        Mistake("the start is patch 0 instead of the given one", first=0),
        Mistake("the last of equally distant patches is chosen instead of the first", last=True),
        Mistake("patches are chosen more than once", again=True),
        Mistake("the coreset is sorted instead of kept in selection order", ordered=True),
        Mistake("the farthest from the last chosen patch instead of from all", latest=True),
        Mistake("the largest distance to a chosen patch, not the smallest", combine=np.maximum),
        Mistake("sums of absolute differences", distance=lambda d: np.abs(d).sum(1)),
        Mistake("the cosine distance instead of the Euclidean one", unit=True),
        Mistake("distances do not start from the given patch", from_start=False),
    ),
)


def _map_cases():
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
        yield Case(name, inputs, flags)


def _predicted(inputs, size, n_neighbours):
    """Return the model, its embedding, and its maps and scores."""
    patchcore = _patchcore([np.zeros((1, 1, 1, 1), np.float32)], size, n_neighbours=n_neighbours)
    patchcore.embed = lambda embedding: embedding
    patchcore.bank = tensor(inputs["bank"])
    embedding = tensor(inputs["embedding"])
    patchcore.grid = tuple(embedding.shape[-2:])
    return patchcore, embedding, patchcore.predict(embedding)


def _map(inputs):
    patchcore, embedding, (maps, _) = _predicted(inputs, size_of(inputs), 1)
    patches = embedding.permute(0, 2, 3, 1).flatten(0, 2)
    distances, _ = patchcore.banks.nearest(patches[None])
    distances = distances.float().view(-1, *patchcore.grid)
    return {"distances": distances.numpy(), "map": maps.numpy()}


def _euclidean(delta):
    return np.sqrt(np.square(delta).sum(-1))


def _distances(inputs, distance=_euclidean):
    """Return the distances to all bank vectors, (B, hf, wf, M), float64."""
    x = inputs["embedding"].astype(np.float64).transpose(0, 2, 3, 1)
    bank = inputs["bank"].astype(np.float64)
    if distance in ("cosine", "dot"):
        lengths = np.linalg.norm(x, axis=-1)[..., None] * np.linalg.norm(bank, axis=-1)
        return 1 - x @ bank.T / lengths if distance == "cosine" else x @ bank.T
    return distance(x[:, :, :, None] - bank)


def _map_formula(inputs, distance=_euclidean, combine=np.min, mode="nearest", how=None, **switches):
    distances = combine(_distances(inputs, distance), axis=-1)
    maps = formulas.enlarge(distances, size_of(inputs), mode, **switches)
    return {"distances": distances, "map": formulas.blur(maps, model.SIGMA, **(how or {}))}


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
        Mistake("no square root: the squared distance", distance=lambda d: _euclidean(d) ** 2),
        Mistake("the mean distance to the bank instead of the smallest", combine=np.mean),
        Mistake("the largest distance to the bank instead of the smallest", combine=np.max),
        Mistake("the second smallest distance", combine=lambda d, axis: np.sort(d)[..., 1]),
        Mistake("half of the distance", distance=lambda d: _euclidean(d) / 2),
        Mistake(
            "the sum of absolute differences instead of the Euclidean distance",
            distance=lambda d: np.abs(d).sum(-1),
        ),
        Mistake("the largest difference", distance=lambda d: np.abs(d).max(-1)),
        Mistake(
            "the distance is divided by the root of the number of channels",
            distance=lambda d: np.sqrt(np.square(d).mean(-1)),
        ),
        Mistake("the cosine distance instead of the Euclidean one", distance="cosine"),
        Mistake("the dot product instead of the distance", distance="dot"),
        Mistake("bilinear enlargement instead of nearest", mode="bilinear"),
        Mistake(
            "bilinear enlargement with align_corners instead of nearest",
            mode="bilinear",
            align_corners=True,
        ),
        Mistake(
            "nearest enlargement takes floor((i + 0.5) n_in / n_out), not floor(i n_in / n_out)",
            mode="nearest_centre",
        ),
        *MAP_BLUR_MISTAKES,
    ),
)


def _score_cases():
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
        yield Case(name, inputs, flags)


def _score(inputs):
    _, _, (_, scores) = _predicted(inputs, (1, 1), int(inputs["n_neighbours"]))
    return {"score": scores.numpy()}


def _score_formula(
    inputs, weighted=True, around="bank", itself=False, power=1, extra=0, more=0,
    distance=_euclidean, of="patch", scaled=True, sign=1, farthest=False, one=True, rooted=False,
):  # fmt: skip
    bank = inputs["bank"].astype(np.float64)
    asked = int(inputs["n_neighbours"])
    b = max(1, min(asked, len(bank)) + (more if asked > 1 else 0))
    scores = []
    for image in _distances(inputs, distance).reshape(len(inputs["embedding"]), -1, len(bank)):
        patch = int(image.min(1).argmax())
        star, near = image[patch].min(), int(image[patch].argmin())
        of_bank = _euclidean(bank - bank[near])
        order = np.argsort(of_bank if around == "bank" else image[patch], kind="stable")
        order = order[::-1] if farthest else order
        d = (image[patch] if of == "patch" else of_bank)[order[extra : b + extra]] ** power
        d = d / (bank.shape[1] ** 0.5 if rooted else 1)
        softmax = np.exp(sign * d) / np.exp(sign * d).sum()
        weight = softmax[0] if itself else 1 - softmax[0]
        alone = (asked == 1 and one) or not weighted
        scores.append(star if alone else weight * (star if scaled else 1))
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
        Mistake("no re-weighting: the largest distance itself", weighted=False),
        Mistake(
            "the neighbours of the patch instead of those of its nearest bank vector",
            around="patch",
        ),
        Mistake("the softmax itself instead of 1 minus the softmax", itself=True),
        Mistake("the softmax of squared distances", power=2),
        Mistake("the nearest bank vector is not counted among its own neighbours", extra=1),
        Mistake("the weight alone, not times the distance", scaled=False),
        Mistake("the softmax of distances over the root of the number of channels", rooted=True),
        Mistake("the softmax of negative distances", sign=-1),
        Mistake("the farthest bank vectors instead of the nearest", farthest=True),
        Mistake("a weight with one neighbour too: the score is 0", one=False),
        Mistake("one neighbour too many", more=1),
        Mistake("one neighbour too few", more=-1),
        Mistake("the cosine distance instead of the Euclidean one", distance="cosine"),
        Mistake("the softmax of distances from the nearest bank vector, not the patch", of="bank"),
    ),
)

STAGES = (EMBEDDING, PARAMETERS, MAP, SCORE)
