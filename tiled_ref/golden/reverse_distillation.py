"""The stages of Reverse Distillation: decoder features, training steps, tile map, tile score."""

import numpy as np
import torch
import torch.nn.functional as F

from ..models import reverse_distillation as model
from . import formulas
from .backbone import WIDTH, drawn, packed, unpacked
from .compare import boundary, close
from .inputs import Given, given_layers, layers_of, tensor
from .merging import MAP_BLUR_CONFUSIONS, blur_switches
from .numbers import Numbers
from .padim import score_stage
from .stage import Case, Confusion, Stage, Weights
from .training import Counted, adam

SIGMA = model.SIGMA
RATE = model.LEARNING_RATE
DECODED = [f"decoded{k}" for k in (1, 2, 3)]


def student_weights():
    """Weights of bottleneck and decoder, by the bundle's names."""
    parts = {"bottleneck": model.Bottleneck(WIDTH), "decoder": model.Decoder(WIDTH)}
    return drawn(torch.nn.ModuleDict(parts), "reverse_distillation")


def _model(inputs, size=(64, 64), steps=1):
    rd = model.ReverseDistillation(
        Given(given_layers(inputs)), size, seed=0, device="cpu", steps=steps, batch_size=1000
    )
    if "weights" in inputs:
        rd.load_state(unpacked(inputs["weights"]))
    return rd


# ----------------------------------------------------------------------------- embedding


def _embedding_cases():
    cases = []
    for name, n, sides, flags in (
        ("square", 1, (16, 16), ()),
        ("not_square", 2, (8, 16), ("not_square", "several")),
        ("rounded_up", 1, (11, 9), ("padding", "not_square")),
    ):
        layers = layers_of(Numbers(f"reverse_distillation.embedding/{name}"), n, sides)
        cases.append(Case(name, {**layers, "weights": Weights("reverse_distillation")}, flags))
    return cases


def _embedding(inputs):
    with torch.no_grad():
        decoded = _model(inputs).student([tensor(x) for x in given_layers(inputs)])[3:]
    return {name: x.contiguous().numpy() for name, x in zip(DECODED, decoded)}


def _embedding_formula(inputs, **switches):
    weights = {k: tensor(v).double() for k, v in inputs["weights"].items()}
    decoded = _student([tensor(x).double() for x in given_layers(inputs)], weights, **switches)
    return {name: x.numpy() for name, x in zip(DECODED, decoded)}


def _student(
    layers,
    weights,
    training=False,
    running=None,
    eps=1e-5,
    cut="end",
    order=(0, 1, 2),
    turned=False,
    shortcut=True,
    relu_between=True,
    late=False,
):
    """Bottleneck and decoder in plain calls, float64; see FORMAT.md. training: the batch's
    statistics; running: a dict that then takes the new running mean and variance. The other
    switches are mistakes: eps of the batch normalisation; cut, which end is cut off; order of the
    concatenation; turned, the transposed convolutions' kernels turned by 180 degrees; shortcut,
    late and relu_between, as in a residual block."""

    def normalised(x, name):
        weight, bias, mean, var = weights[name]
        if running is not None:
            of_batch = (
                x.detach().mean((0, 2, 3)),
                x.detach().var((0, 2, 3), unbiased=running["unbiased"]),
            )
            keep = 1 - running["momentum"]
            new = [
                keep * old + (1 - keep) * now
                for old, now in zip((mean.detach(), var.detach()), of_batch)
            ]
            running[name] = torch.stack(new)
        return F.batch_norm(
            x, mean.detach().clone(), var.detach().clone(), weight, bias, training, 0.1, eps
        )

    def resized(x, name, how):
        if how == "up":
            kernel = weights[name].flip(2, 3) if turned else weights[name]
            return F.conv_transpose2d(x, kernel, None, 2)
        kernel = weights[name]
        return F.conv2d(x, kernel, None, 1 if how is None else 2, kernel.shape[-1] // 2)

    def block(x, name, how=None):
        y = normalised(resized(x, f"{name}.conv1", how), f"{name}.bn1").relu()
        y = normalised(F.conv2d(y, weights[f"{name}.conv2"], None, 1, 1), f"{name}.bn2")
        if how is not None:
            x = normalised(resized(x, f"{name}.shortcut.0", how), f"{name}.shortcut.1")
        if not shortcut:
            return y.relu()
        return y.relu() + x if late else (y + x).relu()

    def halved(x, name, k):
        y = normalised(F.conv2d(x, weights[f"{name}.{k}"], None, 2, 1), f"{name}.{k + 1}")
        return y.relu() if relu_between else y

    first = halved(halved(layers[0], "bottleneck.fuse1", 0), "bottleneck.fuse1", 3)
    second = halved(layers[1], "bottleneck.fuse2", 0)
    fused = [first, second, layers[2]]
    x = torch.cat([fused[k] for k in order], dim=1)
    x = block(block(x, "bottleneck.embed.0", "down"), "bottleneck.embed.1")
    decoded = []
    for name in ("decoder.to_layer3", "decoder.to_layer2", "decoder.to_layer1"):
        x = block(block(x, f"{name}.0", "up"), f"{name}.1")
        decoded.insert(0, x)
    if cut == "end":
        return [d[..., : e.shape[-2], : e.shape[-1]] for e, d in zip(layers, decoded)]
    return [d[..., -e.shape[-2] :, -e.shape[-1] :] for e, d in zip(layers, decoded)]


EMBEDDING = Stage(
    "reverse_distillation.embedding",
    "the decoder's answer to the encoder's three layers",
    "tiled_ref.models.reverse_distillation.ReverseDistillation.decode",
    "Deng and Li Sec. 3.1-3.2",
    {name: close(1e-4, 1e-4) for name in DECODED},
    _embedding_cases,
    _embedding,
    _embedding_formula,
    (
        Confusion(
            "batch normalisation uses the batch's statistics instead of the stored ones",
            {"training": True},
        ),
        Confusion(
            "the epsilon of the batch normalisation is 0.001 instead of 0.00001", {"eps": 1e-3}
        ),
        Confusion(
            "what the decoder has too much is cut off at the top and left, not bottom and right",
            {"cut": "start"},
        ),
        Confusion("the layers are concatenated in the opposite order", {"order": (2, 1, 0)}),
        Confusion(
            "the kernels of the transposed convolutions are turned by 180 degrees", {"turned": True}
        ),
        Confusion("the shortcuts are not added", {"shortcut": False}),
        Confusion(
            "the ReLU comes before the sum with the shortcut instead of after", {"late": True}
        ),
        Confusion(
            "no ReLU after the convolutions of stride 2 that fuse the layers",
            {"relu_between": False},
        ),
    ),
)


# ---------------------------------------------------------------------------- parameters


def _parameters_cases():
    draw = Numbers("reverse_distillation.parameters/two_steps")
    layers = layers_of(draw, 4, (16, 16))
    inputs = {**layers, "weights": Weights("reverse_distillation"), "steps": np.int64(2)}
    return [Case("two_steps", inputs, ("training", "several"))]


def _loss(inputs, rd):
    with torch.no_grad():
        layers = [tensor(layer) for layer in given_layers(inputs)]
        return model.distillation_loss(layers, rd.student(layers)[3:]).numpy()


def _parameters(inputs):
    rd = _model(inputs, steps=int(inputs["steps"]))
    before = _loss(inputs, rd)
    rd.fit(Counted(len(inputs["layer1"])))
    return {"loss_before": before, "loss_after": _loss(inputs, rd), **packed(rd.state())}


def _cosine_distance(e, d, eps=1e-8):
    norms = e.square().sum(1).sqrt().clamp_min(eps) * d.square().sum(1).sqrt().clamp_min(eps)
    return 1 - (e * d).sum(1) / norms


def _parameters_formula(
    inputs,
    rate=RATE,
    betas=model.BETAS,
    steps=None,
    corrected=True,
    flat=False,
    unbiased=True,
    momentum=0.1,
    layers_mean=False,
):
    """The steps in float64, Adam written out."""
    values = {k: tensor(v).double() for k, v in inputs["weights"].items()}
    layers = [tensor(layer).double() for layer in given_layers(inputs)]

    def loss(values, **how):
        total = 0
        for e, d in zip(layers, _student(layers, values, **how)):
            if flat and how:
                e, d = e.flatten(1)[..., None, None], d.flatten(1)[..., None, None]
            total = total + _cosine_distance(e, d).mean()
        return total / 3 if layers_mean else total

    before = loss(values)
    moments = {k: (torch.zeros_like(v), torch.zeros_like(v)) for k, v in values.items()}
    for step in range(1, (int(inputs["steps"]) if steps is None else steps) + 1):
        leaves = {k: v.detach().requires_grad_() for k, v in values.items()}
        running = {"unbiased": unbiased, "momentum": momentum}
        gradients = torch.autograd.grad(
            loss(leaves, training=True, running=running), list(leaves.values())
        )
        for k, gradient in zip(values, gradients):
            moments[k], values[k] = adam(
                values[k], gradient, moments[k], step, rate, betas, corrected=corrected
            )
            if k in running:
                values[k] = torch.cat([values[k][:2], running[k]])
    result = {"loss_before": before.numpy(), "loss_after": loss(values).detach().numpy()}
    return {**result, **{k: v.detach().numpy() for k, v in values.items()}}


# See fastflow.TRAINED.
TRAINED = boundary(1e-4, 0.02 * RATE, 0.02, 4 * RATE)

PARAMETERS = Stage(
    "reverse_distillation.parameters",
    "weights after two steps of Adam on one batch, and the loss before and after",
    "tiled_ref.models.reverse_distillation.ReverseDistillation.fit",
    "Deng and Li Eq. 2; Adam with learning rate 0.005 and betas 0.5, 0.999",
    {
        "loss_before": close(1e-5, 1e-5),
        "loss_after": close(1e-4, 1e-3),
        **{name: TRAINED for name in student_weights()},
    },
    _parameters_cases,
    _parameters,
    _parameters_formula,
    (
        Confusion("Adam's first beta is 0.9 instead of 0.5", {"betas": (0.9, 0.999)}),
        Confusion("the learning rate is 0.001 instead of 0.005", {"rate": 1e-3}),
        Confusion("one step instead of two", {"steps": 1}),
        Confusion("Adam without the correction of its moments' bias", {"corrected": False}),
        Confusion("one cosine of the flattened maps instead of one per position", {"flat": True}),
        Confusion(
            "the running variance takes the biased variance (N) instead of N - 1",
            {"unbiased": False},
        ),
        Confusion(
            "the running statistics take 0.9 of the batch's instead of 0.1", {"momentum": 0.9}
        ),
        Confusion("the loss is the mean over layers instead of the sum", {"layers_mean": True}),
    ),
)


# --------------------------------------------------------------------------- map and score


def _map_cases():
    cases = []
    for name, n, sides, size, flags in (
        ("square", 1, (8, 8), (32, 32), ("reflect",)),
        ("not_square", 2, (6, 10), (24, 40), ("not_square", "several", "reflect")),
        ("rounded_up", 1, (6, 5), (22, 17), ("padding", "not_square", "reflect")),
        ("zero", 1, (4, 4), (16, 16), ("zero_vector", "smaller_than_radius", "reflect")),
    ):
        draw = Numbers(f"reverse_distillation.map/{name}")
        inputs = layers_of(draw, n, sides)
        inputs.update(zip(DECODED, layers_of(draw, n, sides).values()))
        if name == "zero":
            inputs["layer1"][0, :, 1, 2] = 0
        inputs["size"] = np.array(size, np.int64)
        cases.append(Case(name, inputs, flags))
    return cases


def _map(inputs):
    rd = _model(inputs, tuple(int(v) for v in inputs["size"]))
    layers = [*given_layers(inputs), *(inputs[name] for name in DECODED)]
    return {"map": rd.maps([[tensor(layer) for layer in layers]])[0].contiguous().numpy()}


def _map_formula(
    inputs,
    combine=np.prod,
    align_corners=True,
    mode="bilinear",
    one_less=True,
    dot=False,
    blurred=True,
    how=None,
):
    maps = []
    for e, d in zip(given_layers(inputs), (inputs[name] for name in DECODED)):
        e, d = torch.from_numpy(np.array(e)).double(), torch.from_numpy(np.array(d)).double()
        one = _cosine_distance(e, d).numpy() if not dot else 1 - (e * d).sum(1).numpy()
        one = one if one_less else 1 - one
        switches = {"align_corners": align_corners} if mode == "bilinear" else {}
        maps.append(formulas.enlarge(one, [int(v) for v in inputs["size"]], mode, **switches))
    maps = combine(maps, axis=0)
    if blurred:
        maps = formulas.blur(maps, **blur_switches(SIGMA, **(how or {})))
    return {"map": maps}


MAP = Stage(
    "reverse_distillation.map",
    "product of the layers' cosine distances, enlarged, blurred",
    "tiled_ref.models.reverse_distillation.ReverseDistillation.predict",
    "Deng and Li Eq. 1 and 3; the product is the authors' configuration",
    {"map": close(1e-5, 1e-6)},
    _map_cases,
    _map,
    _map_formula,
    (
        Confusion("bilinear enlargement without align_corners", {"align_corners": False}),
        Confusion("nearest enlargement instead of bilinear", {"mode": "nearest"}),
        Confusion("the sum of the layers instead of their product", {"combine": np.sum}),
        Confusion("the mean of the layers instead of their product", {"combine": np.mean}),
        Confusion("the largest of the layers instead of their product", {"combine": np.max}),
        Confusion("the cosine itself instead of 1 less the cosine", {"one_less": False}),
        Confusion("the dot product: vectors are not divided by their lengths", {"dot": True}),
        Confusion("the map is not blurred", {"blurred": False}),
        *(Confusion(c.sentence, {"how": c.switches}) for c in MAP_BLUR_CONFUSIONS),
    ),
)

SCORE = score_stage(
    "reverse_distillation.score",
    "tiled_ref.models.reverse_distillation.ReverseDistillation.predict",
    "Rolih et al. Eq. 4",
)

STAGES = (EMBEDDING, PARAMETERS, MAP, SCORE)
