"""The stages of FastFlow: hidden variables, training steps, tile map, tile score.

The tensors of a layer's flow are stacked over its eight blocks: "layer1.conv1_weight" is
(8, C/2, C/2, 3, 3), "layer1.order" (8, C), and so on.
"""

import numpy as np
import torch
import torch.nn.functional as F

from ..models import fastflow as model
from . import formulas
from .compare import boundary, close
from .inputs import CHANNELS, Given, given_layers, layers_of, tensor
from .numbers import Numbers
from .padim import score_stage
from .stage import Case, Confusion, Stage, Weights
from .training import Counted, adam

SIZE = 16  # px, the tile of the bundle's flows: grids of 4, 2 and 1
RATE = model.LEARNING_RATE
PARTS = {  # name in the bundle -> name in a block
    "conv1_weight": "conv1.weight",
    "conv1_bias": "conv1.bias",
    "conv2_weight": "conv2.weight",
    "conv2_bias": "conv2.bias",
    "global_scale": "global_scale",
    "global_offset": "global_offset",
    "order": "order",
}


def drawn():
    """Weights of the three flows."""
    tensors = {}
    for k, (name, channels) in enumerate(CHANNELS.items()):
        draw = Numbers(f"fastflow/{name}")
        side, half, n = SIZE // 4 >> k, channels // 2, model.N_BLOCKS
        norm = (side, side, channels)
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
            tensors[f"{name}.{part}"] = value.astype(kind)
    return tensors


def _fastflow(inputs, size=(SIZE, SIZE), steps=1):
    fastflow = model.FastFlow(
        Given(given_layers(inputs)), size, seed=0, device="cpu", steps=steps, batch_size=1000
    )
    if "weights" in inputs:
        state = {}
        for k, name in enumerate(CHANNELS):
            own = {
                part: inputs["weights"][f"{name}.{part}"]
                for part in (*PARTS, "norm_weight", "norm_bias")
            }
            for part in ("norm_weight", "norm_bias"):
                state[f"{k}.{part}"] = tensor(own[part])
            for part, inner in PARTS.items():
                for b, value in enumerate(own[part]):
                    state[f"{k}.blocks.{b}.{inner}"] = tensor(value)
                    if part == "order":
                        state[f"{k}.blocks.{b}.back"] = tensor(value).argsort()
        fastflow.load_state(state)
    return fastflow


def _packed(fastflow):
    """Weights as in the bundle, without the permutations, which training leaves alone."""
    state, tensors = fastflow.state(), {}
    for k, name in enumerate(CHANNELS):
        for part in ("norm_weight", "norm_bias"):
            tensors[f"{name}.{part}"] = state[f"{k}.{part}"].numpy()
        for part, inner in PARTS.items():
            if part != "order":
                blocks = [state[f"{k}.blocks.{b}.{inner}"] for b in range(model.N_BLOCKS)]
                tensors[f"{name}.{part}"] = torch.stack(blocks).contiguous().numpy()
    return tensors


# ----------------------------------------------------------------------------- embedding


def _embedding_cases():
    cases = []
    for name, n, flags in (("one", 1, ()), ("several", 3, ("several",))):
        draw = Numbers(f"fastflow.embedding/{name}")
        layers = layers_of(draw, n, (SIZE // 4, SIZE // 4))
        cases.append(Case(name, {**layers, "weights": Weights("fastflow")}, flags))
    return cases


def _embedding(inputs):
    outputs = {}
    with torch.no_grad():
        for k, (flow, layer) in enumerate(zip(_fastflow(inputs).flows, given_layers(inputs)), 1):
            z, log_det = flow(tensor(layer))
            outputs[f"z{k}"], outputs[f"log_det{k}"] = z.contiguous().numpy(), log_det.numpy()
    return outputs


def _embedding_formula(inputs, **switches):
    outputs = {}
    weights = {k: tensor(v) for k, v in inputs["weights"].items()}
    for k, name in enumerate(CHANNELS, start=1):
        own = {part[len(name) + 1 :]: v for part, v in weights.items() if part.startswith(name)}
        own = {part: v.double() if v.is_floating_point() else v for part, v in own.items()}
        z, log_det = _flow(tensor(inputs[name]).double(), own, **switches)
        outputs[f"z{k}"], outputs[f"log_det{k}"] = z.numpy(), log_det.numpy()
    return outputs


def _flow(
    x,
    own,
    axes=(1, 2, 3),
    biased=True,
    eps=1e-5,
    clamp=2.0,
    damping=0.1,
    squash=torch.tanh,
    back=False,
    swapped=False,
    exchanged=False,
    beta=0.5,
    last_relu=False,
    global_part=True,
    permuted=True,
):
    """LayerNorm and eight blocks in plain calls, float64; see FORMAT.md. Switches are mistakes."""
    mean = x.mean(axes, keepdim=True)
    var = x.var(axes, unbiased=not biased, keepdim=True)
    x = (x - mean) / (var + eps).sqrt()
    x = x * own["norm_weight"].permute(2, 0, 1) + own["norm_bias"].permute(2, 0, 1)
    log_det = x.new_zeros(len(x))
    for b in range(len(own["order"])):
        first, second = x.chunk(2, dim=1)
        if swapped:
            first, second = second, first
        y = F.conv2d(first, own["conv1_weight"][b], own["conv1_bias"][b], padding=1).relu()
        y = damping * F.conv2d(y, own["conv2_weight"][b], own["conv2_bias"][b], padding=1)
        y = y.relu() if last_relu else y
        a, shift = y.chunk(2, dim=1)
        if exchanged:
            a, shift = shift, a
        log_scale = clamp * squash(a)
        second = second * log_scale.exp() + shift
        x = torch.cat([second, first] if swapped else [first, second], dim=1)
        log_det = log_det + log_scale.sum((1, 2, 3))
        if global_part:
            gain = 0.1 * F.softplus(own["global_scale"][b], beta=beta)
            x = x * gain[:, None, None] + own["global_offset"][b][:, None, None]
            log_det = log_det + x.shape[2] * x.shape[3] * gain.log().sum()
        if permuted:
            x = x[:, own["order"][b].argsort() if back else own["order"][b]]
    return x, log_det


FLOW_CONFUSIONS = (
    Confusion(
        "the permutation is applied backwards: channel k goes to order[k], not the reverse",
        {"back": True},
    ),
    Confusion("channels are not permuted", {"permuted": False}),
    Confusion("LayerNorm over channels only instead of the whole map", {"axes": (1,)}),
    Confusion("LayerNorm over positions only instead of the whole map", {"axes": (2, 3)}),
    Confusion("LayerNorm with the unbiased variance (N - 1) instead of N", {"biased": False}),
    Confusion("the scale's logarithm is not clamped by 2 tanh", {"squash": lambda a: a / 2}),
    Confusion("the clamp is 1 instead of 2", {"clamp": 1.0}),
    Confusion(
        "the clamp is 2 * 0.636 atan instead of 2 tanh", {"squash": lambda a: 0.636 * torch.atan(a)}
    ),
    Confusion("the subnet's output is not multiplied by 0.1", {"damping": 1.0}),
    Confusion("the halves are exchanged: the second scales the first", {"swapped": True}),
    Confusion("scale and shift of the subnet's output are exchanged", {"exchanged": True}),
    Confusion("the softplus of the global scale has beta 1 instead of 0.5", {"beta": 1.0}),
    Confusion("global scale and offset are left out", {"global_part": False}),
    Confusion("a ReLU after the subnet's last convolution", {"last_relu": True}),
)

EMBEDDING = Stage(
    "fastflow.embedding",
    "hidden variables of each layer's flow, and the logarithm of its determinant",
    "tiled_ref.models.fastflow.LayerFlow",
    "Yu et al. Sec. 3.3, Dinh et al. Eq. 4-6",
    {
        **{f"z{k}": close(1e-4, 1e-4) for k in (1, 2, 3)},
        **{f"log_det{k}": close(1e-4, 1e-4) for k in (1, 2, 3)},
    },
    _embedding_cases,
    _embedding,
    _embedding_formula,
    FLOW_CONFUSIONS,
)


# ---------------------------------------------------------------------------- parameters


def _parameters_cases():
    draw = Numbers("fastflow.parameters/two_steps")
    layers = layers_of(draw, 4, (SIZE // 4, SIZE // 4))
    inputs = {**layers, "weights": Weights("fastflow"), "steps": np.int64(2)}
    return [Case("two_steps", inputs, ("training", "several"))]


def _loss(inputs, fastflow):
    with torch.no_grad():
        layers = [tensor(layer) for layer in given_layers(inputs)]
        losses = [model.nll(*flow(x)).mean() for flow, x in zip(fastflow.flows, layers)]
    return sum(losses).numpy()


def _parameters(inputs):
    fastflow = _fastflow(inputs, steps=int(inputs["steps"]))
    before = _loss(inputs, fastflow)
    fastflow.fit(Counted(len(inputs["layer1"])))
    return {"loss_before": before, "loss_after": _loss(inputs, fastflow), **_packed(fastflow)}


def _parameters_formula(
    inputs,
    decay=model.WEIGHT_DECAY,
    rate=RATE,
    half=0.5,
    determinant=True,
    mean=True,
    steps=None,
    betas=(0.9, 0.999),
    corrected=True,
):
    """The steps in float64, Adam written out."""
    values = {
        k: tensor(v).double() if v.dtype.kind == "f" else tensor(v)
        for k, v in inputs["weights"].items()
    }
    names = [k for k in values if not k.endswith(".order")]
    layers = {name: tensor(inputs[name]).double() for name in CHANNELS}

    def loss(values, half=0.5, determinant=True):
        total = 0
        for name in CHANNELS:
            own = {k[len(name) + 1 :]: v for k, v in values.items() if k.startswith(name)}
            z, log_det = _flow(layers[name], own)
            one = half * z.square().sum((1, 2, 3)) - (log_det if determinant else 0)
            total = total + (one.mean() if mean else one.sum())
        return total

    before = loss(values)
    moments = {k: (torch.zeros_like(values[k]), torch.zeros_like(values[k])) for k in names}
    for step in range(1, (int(inputs["steps"]) if steps is None else steps) + 1):
        leaves = {k: v.detach().requires_grad_(k in names) for k, v in values.items()}
        gradients = torch.autograd.grad(loss(leaves, half, determinant), [leaves[k] for k in names])
        for k, gradient in zip(names, gradients):
            moments[k], values[k] = adam(
                values[k], gradient, moments[k], step, rate, betas, decay, corrected
            )
    result = {"loss_before": before.numpy(), "loss_after": loss(values).numpy()}
    return {**result, **{k: values[k].detach().numpy() for k in names}}


# The first steps of Adam move every weight by nearly +-rate, by the sign of its gradient: where
# the gradient is nearly zero, rounding decides.
TRAINED = boundary(1e-4, 0.02 * RATE, 0.02, 4 * RATE)

PARAMETERS = Stage(
    "fastflow.parameters",
    "weights after two steps of Adam on one batch, and the loss before and after",
    "tiled_ref.models.fastflow.FastFlow.fit",
    "Yu et al. Sec. 3.3; Adam with learning rate 0.001 and weight decay 0.00001",
    {
        "loss_before": close(1e-5, 1e-3),
        "loss_after": close(1e-5, 1e-2),
        **{
            f"{name}.{part}": TRAINED
            for name in CHANNELS
            for part in (*(p for p in PARTS if p != "order"), "norm_weight", "norm_bias")
        },
    },
    _parameters_cases,
    _parameters,
    _parameters_formula,
    (
        Confusion(
            "the logarithm of the determinant is missing in the loss", {"determinant": False}
        ),
        Confusion("the factor 0.5 of the squares is missing in the loss", {"half": 1.0}),
        Confusion("the learning rate is ten times too high", {"rate": 10 * RATE}),
        Confusion("the learning rate is ten times too low", {"rate": 0.1 * RATE}),
        Confusion("one step instead of two", {"steps": 1}),
        Confusion("Adam without the correction of its moments' bias", {"corrected": False}),
        Confusion("plain signs of the gradient: Adam's first beta is 0", {"betas": (0.0, 0.999)}),
    ),
)


# --------------------------------------------------------------------------- map and score


def _map_cases():
    cases = []
    for name, n, sides, size, flags in (
        ("square", 1, (8, 8), (32, 32), ()),
        ("not_square", 2, (4, 8), (16, 32), ("not_square", "several")),
        ("rounded_up", 1, (6, 5), (22, 18), ("padding", "not_square")),
    ):
        draw = Numbers(f"fastflow.map/{name}")
        inputs, (hf, wf) = {}, sides
        for k, channels in enumerate(CHANNELS.values(), start=1):
            inputs[f"z{k}"] = 2 * draw.bell(n, channels, hf, wf)
            hf, wf = -(-hf // 2), -(-wf // 2)
        inputs["size"] = np.array(size, np.int64)
        cases.append(Case(name, inputs, flags))
    return cases


def _map(inputs):
    layers = [inputs[f"z{k}"] for k in (1, 2, 3)]
    size = tuple(int(v) for v in inputs["size"])
    fastflow = _fastflow(dict(zip(CHANNELS, layers)), size)
    return {"map": fastflow.maps([[tensor(z) for z in layers]])[0].contiguous().numpy()}


def _map_formula(
    inputs,
    combine=np.mean,
    layers=np.mean,
    sign=-1.0,
    power=True,
    mode="bilinear",
    **switches,
):
    size = [int(v) for v in inputs["size"]]
    maps = []
    for k in (1, 2, 3):
        mean = combine(np.square(inputs[f"z{k}"].astype(np.float64)), axis=1)
        one = sign * np.exp(-0.5 * mean) if power else 0.5 * mean
        maps.append(formulas.enlarge(one, size, mode, **switches))
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
        Confusion("the sum over channels instead of the mean", {"combine": np.sum}),
        Confusion("the sum over the layers instead of the mean", {"layers": np.sum}),
        Confusion("the maximum over the layers instead of the mean", {"layers": np.max}),
        Confusion("the product of the layers instead of the mean", {"layers": np.prod}),
        Confusion("the sign: the likelihood itself instead of its negative", {"sign": 1.0}),
        Confusion("the negative log-likelihood: the exponential is missing", {"power": False}),
        Confusion("bilinear enlargement with align_corners", {"align_corners": True}),
        Confusion("nearest enlargement instead of bilinear", {"mode": "nearest"}),
    ),
)

SCORE = score_stage(
    "fastflow.score", "tiled_ref.models.fastflow.FastFlow.predict", "Rolih et al. Eq. 4"
)

STAGES = (EMBEDDING, PARAMETERS, MAP, SCORE)
