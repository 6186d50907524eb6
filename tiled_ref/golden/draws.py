"""The random draws of a run, as data: a port does not need Python's and NumPy's generators."""

import math
import random

import numpy as np

from ..models.padim import channel_choice
from ..models.search.coreset import projected_dimensions, sparse_projection
from .compare import EXACT, close
from .stage import Case, Mistake, Stage


def _cases():
    for name, seed, features, kept, n, flags in (
        ("small", 0, 28, 10, 40, ()),
        ("resnet18", 42, 448, 100, 5, ()),
    ):
        numbers = {"seed": seed, "features": features, "kept": kept, "patches": n}
        yield Case(name, {key: np.int64(value) for key, value in numbers.items()}, flags)


def _numbers(inputs):
    return [int(inputs[key]) for key in ("seed", "features", "kept", "patches")]


def _compute(inputs):
    seed, features, kept, n = _numbers(inputs)
    rng = np.random.default_rng(seed)
    return {
        "channels": np.array(channel_choice(seed, kept, features), np.int64),
        "projection": sparse_projection(features, projected_dimensions(n), rng),
        "first": np.int64(rng.integers(n)),
    }


def _formula(inputs, ordered=False, start_first=False, scaled=True, root=True, order="C"):
    seed, features, kept, n = _numbers(inputs)
    channels = random.Random(seed).sample(range(features), kept)
    rng = np.random.default_rng(seed)
    first = rng.integers(n) if start_first else None
    d = int(4 * math.log(n) / (0.9**2 / 2 - 0.9**3 / 3))
    u = np.array([rng.random() for _ in range(d * features)]).reshape(
        (d, features) if order == "C" else (features, d)
    )
    u, share = (u if order == "C" else u.T), (features**-0.5 if root else 1 / 3)
    signs = (u < share / 2) * 1.0 - ((share / 2 <= u) & (u < share))
    return {
        "channels": np.sort(channels) if ordered else np.array(channels),
        "projection": signs * math.sqrt(1 / share) / (math.sqrt(d) if scaled else 1),
        "first": np.int64(rng.integers(n) if first is None else first),
    }


DRAWS = Stage(
    "draws",
    "what a run draws: PaDiM's channels, PatchCore's projection and start",
    "tiled_ref.models.padim.channel_choice, tiled_ref.models.search.coreset.sparse_projection",
    "Defard et al. Sec. III-A; Li, Hastie, Church, KDD 2006",
    {"channels": EXACT, "projection": close(1e-12, 0.0), "first": EXACT},
    _cases,
    _compute,
    _formula,
    (
        Mistake("the channels are sorted", ordered=True),
        Mistake("the start is drawn before the projection", start_first=True),
        Mistake("the projection is not divided by the root of its dimensions", scaled=False),
        Mistake("the projection's density is 1/3 instead of 1 / sqrt(features)", root=False),
        Mistake("the projection is drawn column by column", order="F"),
    ),
)

STAGES = (DRAWS,)
