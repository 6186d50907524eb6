"""The stages of FastFlow: hidden variables, training steps, tile map, tile score.

The tensors of a layer's flow are stacked over its eight blocks: "layer1.conv1_weight" is
(8, C/2, C/2, 3, 3), "layer1.order" (8, C), and so on.
"""

from functools import partial

import numpy as np
import torch

from ..models import fastflow as model
from . import formulas
from .compare import close
from .inputs import CHANNELS, Given, given_layers, layers_of, places, size_of, tensor
from .flow import FLOW_MISTAKES, flowed, of_block
from .merging import BILINEAR_MISTAKES
from .numbers import Numbers
from .padim import score_stage
from .stage import Case, Mistake, Stage, Weights
from .training import ADAM_MISTAKES, kept_classes, recorded, train

SIZE = 16, 24  # px, the tile of the bundle's flows: grids of 4 x 6, 2 x 3 and 1 x 2
GRID = SIZE[0] // 4, SIZE[1] // 4  # of layer1
RATE = model.LEARNING_RATE
PARTS = {  # name in the bundle -> name in a block
    "conv1_weight": "conv1.weight",
    "conv1_bias": "conv1.bias",
    "conv2_weight": "conv2.weight",
    "conv2_bias": "conv2.bias",
    "global_scale": "global_scale",
    "global_offset": "global_offset",
}
NORM = ("norm_weight", "norm_bias")


def drawn(model_name="fastflow"):
    """Draw weights for the three flows; in "fastflow_alternating", every other block has 1 x 1
    kernels, stored as separate tensors."""
    tensors = {}
    for k, (name, channels) in enumerate(CHANNELS.items()):
        draw = Numbers(f"{model_name}/{name}")
        half, n = channels // 2, model.N_BLOCKS
        norm = *(-(-side // (4 << k)) for side in SIZE), channels
        scale = np.float32(2.0 ** -np.floor(np.log2(3 * np.sqrt(half))))
        parts = {
            "norm_weight": 1 + draw.bell(*norm) / 8,
            "norm_bias": draw.bell(*norm) / 8,
            "conv1_weight": draw.bell(n, half, half, 3, 3) * scale,
            "conv1_bias": draw.bell(n, half) / 8,
            "conv2_weight": draw.bell(n, channels, half, 3, 3) * scale * 4,
            "conv2_bias": draw.bell(n, channels) / 8,
            "global_scale": 10 + draw.bell(n, channels) / 4,
            "global_offset": draw.bell(n, channels) / 8,
            "order": np.argsort(draw.bits(n, channels), axis=1, kind="stable"),
        }
        for part, value in parts.items():
            kind = np.int64 if part == "order" else np.float32
            if model_name != "fastflow" and value.ndim == 5:
                tensors[f"{name}.{part}_1x1"] = value[1::2, :, :, :1, :1]
                value = value[::2]
            tensors[f"{name}.{part}"] = value.astype(kind)
    return tensors


def _fastflow(inputs, size=SIZE, steps=1):
    alternating = "layer1.conv1_weight_1x1" in inputs.get("weights", ())
    fastflow = model.FastFlow(
        Given(given_layers(inputs)), size, seed=0, device="cpu", steps=steps, batch_size=1000,
        kernels="alternating" if alternating else "3x3",
    )  # fmt: skip
    if "weights" in inputs:
        state = {}
        for k, name in enumerate(CHANNELS):
            own = _of_layer(inputs["weights"], name)
            state.update({f"{k}.{part}": tensor(own[part]) for part in NORM})
            for b, order in enumerate(own["order"]):
                block = f"{k}.blocks.{b}"
                state[f"{block}.order"], state[f"{block}.back"] = (
                    tensor(order),
                    tensor(order).argsort(),
                )
                for part, inner in PARTS.items():
                    state[f"{block}.{inner}"] = tensor(of_block(own, part, b))
        fastflow.load_state(state)
    return fastflow


def _of_layer(weights, layer):
    """Return the tensors of a layer's flow, named without the layer."""
    start = f"{layer}."
    return {k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)}


def _packed(state):
    """A state dict as in the bundle, without the permutations, which training leaves alone."""
    tensors = {}
    for k, name in enumerate(CHANNELS):
        for part in NORM:
            tensors[f"{name}.{part}"] = state[f"{k}.{part}"].numpy()
        for part, inner in PARTS.items():
            blocks = [state[f"{k}.blocks.{b}.{inner}"] for b in range(model.N_BLOCKS)]
            tensors[f"{name}.{part}"] = torch.stack(blocks).contiguous().numpy()
    return tensors


def packed_with_orders(state):
    """A state dict as in the bundle, the permutations too."""
    tensors = _packed(state)
    for k, name in enumerate(CHANNELS):
        orders = [state[f"{k}.blocks.{b}.order"] for b in range(model.N_BLOCKS)]
        tensors[f"{name}.order"] = torch.stack(orders).numpy()
    return tensors


def _embedding_cases():
    for name, n, weights, flags in (
        ("one", 1, "fastflow", ()),
        ("several", 3, "fastflow", ("several",)),
        ("small_variance", 2, "fastflow", ("several", "small_variance")),
        ("alternating", 2, "fastflow_alternating", ("several", "switch")),
    ):
        layers = layers_of(Numbers(f"fastflow.embedding/{name}"), n, GRID)
        if name == "small_variance":
            layers = {key: x * np.float32(2.0**-8) for key, x in layers.items()}
        yield Case(name, {**layers, "weights": Weights(weights)}, flags)


def _embedding(inputs):
    with torch.no_grad():
        flows = zip(_fastflow(inputs).flows, given_layers(inputs))
        return _hidden(flow(tensor(layer)) for flow, layer in flows)


def _hidden(answers):
    """Return the stage's outputs from one pair (z, log_det) per layer."""
    outputs = {}
    for k, (z, log_det) in enumerate(answers, start=1):
        outputs[f"z{k}"], outputs[f"log_det{k}"] = z.contiguous().numpy(), log_det.numpy()
    return outputs


def _doubled(weights):
    """Convert weights to float64 tensors; permutations stay integers."""
    tensors = {name: tensor(array) for name, array in weights.items()}
    return {name: v.double() if v.is_floating_point() else v for name, v in tensors.items()}


def _embedding_formula(inputs, **switches):
    weights = _doubled(inputs["weights"])
    return _hidden(
        flowed(tensor(inputs[name]).double(), _of_layer(weights, name), **switches)
        for name in CHANNELS
    )


EMBEDDING = Stage(
    "fastflow.embedding",
    "hidden variables of each layer's flow, and the logarithm of its determinant",
    "tiled_ref.models.fastflow.LayerFlow",
    "Yu et al. Sec. 3.3, Dinh et al. Eq. 4-6",
    {f"{name}{k}": close(1e-4, 1e-4) for name in ("z", "log_det") for k in (1, 2, 3)},
    _embedding_cases,
    _embedding,
    _embedding_formula,
    FLOW_MISTAKES,
)


def _loss_cases():
    draw = Numbers("fastflow.loss")
    inputs = {"z": 2 * draw.bell(3, 4, 5, 6), "log_det": 4 * draw.bell(3)}
    yield Case("several", inputs, ("several", "not_square"))


def _losses_formula(inputs, half=0.5, combine=np.sum, sign=1, constant=0.0, each=False):
    squares = np.square(inputs["z"].astype(np.float64)).reshape(len(inputs["z"]), -1)
    loss = half * combine(squares, axis=1) - sign * inputs["log_det"].astype(np.float64)
    n = squares.shape[1]
    return {"loss": (loss + constant * n) / (n if each else 1)}


LOSS = Stage(
    "fastflow.loss",
    "negative log-likelihood of each image, without its constant",
    "tiled_ref.models.fastflow.nll",
    "Yu et al. Sec. 3.3, Dinh et al. Eq. 2-3",
    {"loss": close(1e-5, 1e-5)},
    _loss_cases,
    lambda x: {"loss": model.nll(tensor(x["z"]), tensor(x["log_det"])).numpy()},
    _losses_formula,
    (
        Mistake("the factor 0.5 of the squares is missing", half=1.0),
        Mistake("the mean of the squares instead of their sum", combine=np.mean),
        Mistake("the determinant is added instead of subtracted", sign=-1),
        Mistake("the logarithm of the determinant is missing", sign=0),
        Mistake("the normal density's constant is added", constant=np.log(2 * np.pi) / 2),
        Mistake("the loss per number, not per image", each=True),
    ),
)


def _parameters_cases():
    layers = layers_of(Numbers("fastflow.parameters/two_steps"), 4, GRID)
    inputs = {**layers, "weights": Weights("fastflow"), "steps": np.int64(2)}
    yield Case("two_steps", inputs, ("training", "several"))


def _parameters(inputs):
    fastflow = _fastflow(inputs, steps=int(inputs["steps"]))
    layers, seen = [tensor(layer) for layer in given_layers(inputs)], recorded(fastflow, _packed)
    before = fastflow.loss_value(layers).numpy()
    fastflow.fit(places(len(layers[0])))
    after = fastflow.loss_value(layers).numpy()
    return {"loss_before": before, "loss_after": after, **seen, **_packed(fastflow.state())}


def _parameters_formula(
    inputs, half=0.5, determinant=True, mean=True, steps=None, rate=RATE, flow=None, **switches
):
    values = _doubled(inputs["weights"])
    names = [name for name in values if not name.endswith(".order")]

    def loss(values, half=0.5, determinant=True, mean=True):
        total = 0
        for layer in CHANNELS:
            x, own = tensor(inputs[layer]).double(), _of_layer(values, layer)
            z, log_det = flowed(x, own, **(flow or {}))
            one = half * z.square().sum((1, 2, 3)) - (log_det if determinant else 0)
            total = total + (one.mean() if mean else one.sum())
        return total

    outputs = {"loss_before": loss(values).numpy()}
    steps = int(inputs["steps"]) if steps is None else steps
    wrong = partial(loss, half=half, determinant=determinant, mean=mean)
    switches = {"decay": model.WEIGHT_DECAY, **switches}
    seen = train(values, names, wrong, steps, rate, **switches)
    outputs["loss_after"] = loss(values).numpy()
    return {k: np.asarray(v) for k, v in {**outputs, **seen, **values}.items()}


PARAMETERS = Stage(
    "fastflow.parameters",
    "weights after two steps of Adam on one batch, and the loss before and after",
    "tiled_ref.models.fastflow.FastFlow.fit",
    "Yu et al. Sec. 3.3; Adam with learning rate 0.001 and weight decay 0.00001",
    {
        "loss_before": close(1e-5, 1e-3),
        "loss_after": close(1e-5, 1e-2),
        **kept_classes(drawn(), RATE, size=8),
    },
    _parameters_cases,
    _parameters,
    _parameters_formula,
    (
        Mistake("the logarithm of the determinant is missing in the loss", determinant=False),
        Mistake("the factor 0.5 of the squares is missing in the loss", half=1.0),
        Mistake("tanh is missing in the scale's logarithm", flow={"squash": lambda a: a}),
        Mistake("the learning rate is ten times too high", rate=10 * RATE),
        Mistake("the learning rate is ten times too low", rate=0.1 * RATE),
        Mistake("one step instead of two", steps=1),
        Mistake("the loss is the sum over the images instead of their mean", mean=False),
        *ADAM_MISTAKES,
        Mistake("AdamW: the decay acts on the weight, not on the gradient", decoupled=True),
        Mistake("the weight decay is forgotten", decay=0.0),
        Mistake("the weight decay has the wrong sign", decay=-model.WEIGHT_DECAY),
        Mistake("Adam's second beta is 0.99", betas=(0.9, 0.99)),
        Mistake("Adam's epsilon is missing", eps=0.0),
        Mistake("gradients are added up over the steps", accumulate=True),
        Mistake("plain signs of the gradient: Adam's first beta is 0", betas=(0.0, 0.999)),
    ),
)


def _map_cases():
    for name, n, (hf, wf), size, flags in (
        ("square", 1, (8, 8), (32, 32), ()),
        ("not_square", 2, (4, 8), (16, 32), ("not_square", "several")),
        ("rounded_up", 1, (6, 5), (22, 18), ("padding", "not_square")),
    ):
        draw, inputs = Numbers(f"fastflow.map/{name}"), {}
        for k, channels in enumerate(CHANNELS.values(), start=1):
            inputs[f"z{k}"] = 2 * draw.bell(n, channels, hf, wf)
            hf, wf = -(-hf // 2), -(-wf // 2)
        inputs["size"] = np.array(size, np.int64)
        yield Case(name, inputs, flags)


def _map(inputs):
    layers = [inputs[f"z{k}"] for k in (1, 2, 3)]
    fastflow = _fastflow(dict(zip(CHANNELS, layers)), size_of(inputs))
    return {"map": fastflow.maps([[tensor(z) for z in layers]])[0].contiguous().numpy()}


def _map_formula(
    inputs, combine=np.mean, layers=np.mean, sign=-1.0, power=True, factor=0.5, more=0,
    of=(1, 2, 3), **enlarged,
):  # fmt: skip
    maps = []
    for k in of:
        mean = combine(np.square(inputs[f"z{k}"].astype(np.float64)), axis=1)
        one = more + sign * np.exp(-factor * mean) if power else factor * mean
        maps.append(formulas.enlarge(one, size_of(inputs), **enlarged))
    return {"map": layers(maps, axis=0)}


MAP = Stage(
    "fastflow.map",
    "negative likelihood per position, enlarged, mean over the layers",
    "tiled_ref.models.fastflow.likelihood_map",
    "Yu et al. Sec. 3.3",
    {"map": close(1e-5, 1e-6)},
    _map_cases,
    _map,
    _map_formula,
    (
        Mistake("the sum over channels instead of the mean", combine=np.sum),
        Mistake("the sum over the layers instead of the mean", layers=np.sum),
        Mistake("the maximum over the layers instead of the mean", layers=np.max),
        Mistake("the product of the layers instead of the mean", layers=np.prod),
        Mistake("the sign: the likelihood itself instead of its negative", sign=1.0),
        Mistake("the negative log-likelihood: the exponential is missing", power=False),
        Mistake("the factor 0.5 of the squares is missing", factor=1.0),
        Mistake("1 minus the likelihood instead of its negative", more=1.0),
        Mistake("layer 3 is left out, layer 2 counts twice", of=(1, 2, 2)),
        Mistake("layer 3 is left out", of=(1, 2)),
        *BILINEAR_MISTAKES,
    ),
)

SCORE = score_stage(
    "fastflow.score", "tiled_ref.models.fastflow.FastFlow.predict", "Rolih et al. Eq. 4"
)

STAGES = (EMBEDDING, LOSS, PARAMETERS, MAP, SCORE)
