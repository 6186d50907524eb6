"""The stages of Reverse Distillation: decoder features, training steps, tile map, tile score."""

from functools import partial

import numpy as np
import torch

from ..models import reverse_distillation as model
from . import formulas
from .backbone import drawn, packed, unpacked
from .compare import close
from .inputs import CHANNELS, Given, given_layers, layers_of, places, size_of, tensor
from .merging import MAP_BLUR_MISTAKES
from .numbers import Numbers
from .padim import score_stage
from .residual import BLOCK_MISTAKES, KERNEL_MISTAKES, NORM_MISTAKES, SAME, Residual
from .stage import Case, Mistake, Stage, Weights
from .training import ADAM_MISTAKES, kept_classes, recorded, train

RATE = model.LEARNING_RATE
DECODED = [f"decoded{k}" for k in (1, 2, 3)]


def student_weights():
    """Draw the weights of bottleneck and decoder, by the bundle's names."""
    width = CHANNELS["layer1"]
    parts = {"bottleneck": model.Bottleneck(width), "decoder": model.Decoder(width)}
    return drawn(torch.nn.ModuleDict(parts), "reverse_distillation")


def _model(inputs, size=(64, 64), **options):
    rd = model.ReverseDistillation(
        Given(given_layers(inputs)), size, seed=0, device="cpu", batch_size=1000, **options
    )
    if "weights" in inputs:
        rd.load_state(unpacked(inputs["weights"]))
    return rd


def _doubled(inputs):
    """Return the three layers and the weights in float64."""
    layers = [tensor(layer).double() for layer in given_layers(inputs)]
    return layers, {name: tensor(array).double() for name, array in inputs["weights"].items()}


def _embedding_cases():
    for name, n, sides, flags in (
        ("square", 1, (16, 16), ()),
        ("not_square", 2, (8, 16), ("not_square", "several")),
        ("rounded_up", 1, (11, 9), ("padding", "not_square")),
    ):
        layers = layers_of(Numbers(f"reverse_distillation.embedding/{name}"), n, sides)
        yield Case(name, {**layers, "weights": Weights("reverse_distillation")}, flags)


def _embedding(inputs):
    with torch.no_grad():
        decoded = _model(inputs).student([tensor(x) for x in given_layers(inputs)])[3:]
    return {name: x.contiguous().numpy() for name, x in zip(DECODED, decoded)}


def _embedding_formula(
    inputs, cut="end", order=(0, 1, 2), relu_between=True, embeds=2, plain=True, **switches
):
    layers, weights = _doubled(inputs)
    net = Residual(weights, **switches)
    decoded = _student(layers, net, cut, order, relu_between, embeds, plain)
    return {name: x.numpy() for name, x in zip(DECODED, decoded)}


def _student(layers, net, cut="end", order=(0, 1, 2), relu_between=True, embeds=2, plain=True):
    """Bottleneck and decoder in plain calls, float64; see FORMAT.md. Switches are mistakes: cut,
    the end that is cropped, "every": after every block; order of the concatenation; relu_between,
    in the fusion; embeds, number of embedding blocks; plain False, no plain decoder blocks."""

    def halved(x, name, k):
        y = net.normalised(net.convolved(x, f"{name}.{k}", 2), f"{name}.{k + 1}")
        return y.relu() if relu_between else y

    first = halved(halved(layers[0], "bottleneck.fuse1", 0), "bottleneck.fuse1", 3)
    fused = [first, halved(layers[1], "bottleneck.fuse2", 0), layers[2]]
    x = torch.cat([fused[k] for k in order], dim=1)
    x = net.block(x, "bottleneck.embed.0", 2)
    x = net.block(x, "bottleneck.embed.1") if embeds == 2 else x
    decoded = []
    for layer in (3, 2, 1):
        x = net.block(x, f"decoder.to_layer{layer}.0", 0.5)
        x = net.block(x, f"decoder.to_layer{layer}.1") if plain else x
        if cut == "every":
            x = x[..., : layers[layer - 1].shape[-2], : layers[layer - 1].shape[-1]]
        decoded.insert(0, x)
    if cut in ("end", "every"):
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
        Mistake(
            "batch normalisation uses the batch's statistics instead of the stored ones",
            training=True,
        ),
        *NORM_MISTAKES,
        *KERNEL_MISTAKES,
        *SAME,
        *BLOCK_MISTAKES,
        Mistake("the next block takes the output after the cut", cut="every"),
        Mistake("the second block of the embedding is left out", embeds=1),
        Mistake("the decoder's plain blocks are left out", plain=False),
        Mistake(
            "the decoder's output is cropped at the top and left, not at the bottom and right",
            cut="start",
        ),
        Mistake("the layers are concatenated in the opposite order", order=(2, 1, 0)),
        Mistake(
            "the kernels of the transposed convolutions are turned by 180 degrees", turned=True
        ),
        Mistake(
            "no ReLU after the convolutions of stride 2 that fuse the layers", relu_between=False
        ),
    ),
)


def _parameters_cases():
    layers = layers_of(Numbers("reverse_distillation.parameters/two_steps"), 4, (16, 16))
    inputs = {**layers, "weights": Weights("reverse_distillation"), "steps": np.int64(2)}
    yield Case("two_steps", inputs, ("training", "several"))


def _gradients(values):
    """Convert {parameter: tensor} to the bundle's form: kernels, (2, C) per batch normalisation."""
    tensors = {}
    for name, value in values.items():
        module, _, part = name.rpartition(".")
        if value.ndim == 4:
            tensors[module] = value.contiguous().numpy()
        elif part == "bias":
            tensors[module] = torch.stack([values[f"{module}.weight"], value]).numpy()
    return tensors


def _parameters(inputs):
    rd = _model(inputs, steps=int(inputs["steps"]))
    layers, seen = [tensor(layer) for layer in given_layers(inputs)], recorded(rd, _gradients)
    before = rd.loss_value(layers).numpy()
    rd.fit(places(len(layers[0])))
    after = rd.loss_value(layers).numpy()
    return {"loss_before": before, "loss_after": after, **seen, **packed(rd.state())}


def _cosine_distance(e, d, eps=1e-8):
    norms = e.square().sum(1).sqrt().clamp_min(eps) * d.square().sum(1).sqrt().clamp_min(eps)
    return 1 - (e * d).sum(1) / norms


def _cosine(e, d):
    return 1 - _cosine_distance(e, d)


def _parameters_formula(
    inputs, steps=None, rate=RATE, betas=model.BETAS, flat=False, unbiased=True, momentum=0.1,
    layers_mean=False, moving=(True, True), batch=True, held=False, **switches,
):  # fmt: skip
    layers, values = _doubled(inputs)
    seen = {}  # statistics of the last batch

    def loss(values, training=False):
        net, total = Residual(values, training and batch, unbiased=unbiased, held=held), 0
        for e, d in zip(layers, _student(layers, net)):
            if flat and training:
                e, d = e.flatten(1)[..., None, None], d.flatten(1)[..., None, None]
            total = total + _cosine_distance(e, d).mean()
        seen.update(net.seen)
        return total / 3 if layers_mean else total

    def update_statistics():
        for name, now in seen.items():
            new = torch.tensor([[momentum if there is True else there] for there in moving])
            running = (1 - new) * values[name][2:] + new * now
            values[name] = torch.cat([values[name][:2], running])

    outputs = {"loss_before": loss(values).numpy()}
    steps = int(inputs["steps"]) if steps is None else steps
    seen = train(
        values, list(values), partial(loss, training=True), steps, rate, update_statistics,
        betas=betas, **switches,
    )  # fmt: skip
    seen = {k: v[:2] if v.ndim == 2 else v for k, v in seen.items()}  # statistics have no gradient
    outputs["loss_after"] = loss(values).numpy()
    return {k: np.asarray(v) for k, v in {**outputs, **seen, **values}.items()}

PARAMETERS = Stage(
    "reverse_distillation.parameters",
    "weights after two steps of Adam on one batch, and the loss before and after",
    "tiled_ref.models.reverse_distillation.ReverseDistillation.fit",
    "Deng and Li Eq. 2; Adam with learning rate 0.005 and betas 0.5, 0.999",
    {
        "loss_before": close(1e-5, 1e-5),
        "loss_after": close(1e-4, 1e-3),
        **kept_classes(student_weights(), RATE, size=0.1),
    },
    _parameters_cases,
    _parameters,
    _parameters_formula,
    (
        Mistake("Adam's first beta is 0.9 instead of 0.5", betas=(0.9, 0.999)),
        Mistake("the learning rate is 0.001 instead of 0.005", rate=1e-3),
        Mistake("one step instead of two", steps=1),
        *(m for m in ADAM_MISTAKES if "m" not in m.switches.get("reverse", "")),  # beta is 0.5
        Mistake("weight decay is applied, but there is none", decay=1e-4),
        Mistake("weight decay is applied, but there is none", decay=1e-5),
        Mistake("the running mean takes 0.9 of the batch's instead of 0.1", moving=(0.9, True)),
        Mistake("the running variance takes 0.9 of the batch's, not 0.1", moving=(True, 0.9)),
        Mistake("the running variance is not updated", moving=(True, 0.0)),
        Mistake("the running mean is not updated", moving=(0.0, True)),
        Mistake("the running statistics are not updated", momentum=0.0),
        Mistake("batch normalisation uses the running statistics in training", batch=False),
        Mistake("the batch's statistics are constants in the gradient", held=True),
        Mistake("the batch's variance is a constant in the gradient", held="variance"),
        Mistake("one cosine of the flattened maps instead of one per position", flat=True),
        Mistake(
            "the running variance takes the biased variance (N) instead of N - 1", unbiased=False
        ),
        Mistake("the running statistics take 0.9 of the batch's instead of 0.1", momentum=0.9),
        Mistake("the loss is the mean over layers instead of the sum", layers_mean=True),
    ),
)


def _loss_cases():
    for name, n, sides, flags in (
        ("square", 1, (6, 6), ()),
        ("not_square", 3, (5, 8), ("not_square", "several")),
    ):
        draw = Numbers(f"reverse_distillation.loss/{name}")
        inputs = layers_of(draw, n, sides)
        inputs.update(zip(DECODED, layers_of(draw, n, sides).values()))
        yield Case(name, inputs, (*flags, "switch"))


def _losses(inputs):
    encoded, decoded = ([tensor(inputs[k]) for k in names] for names in (CHANNELS, DECODED))
    return {name: loss(encoded, decoded).numpy() for name, loss in model.LOSSES.items()}


def _losses_formula(inputs, distance=None, layers=sum, weighted=False, whole=False, flat=True):
    outputs, distance = {"positions": [], "flattened": []}, distance or _cosine_distance
    for names in zip(CHANNELS, DECODED):
        e, d = (tensor(inputs[name]).double() for name in names)
        positions = distance(e, d)
        outputs["positions"].append(positions.sum() if weighted else positions.mean())
        if flat:
            e, d = (x.reshape(1 if whole else len(x), -1, 1, 1) for x in (e, d))
        outputs["flattened"].append(distance(e, d).mean())
    totals = layers(outputs["positions"]), sum(outputs["flattened"])
    return {name: np.asarray(total) for name, total in zip(outputs, totals)}


LOSS = Stage(
    "reverse_distillation.loss",
    "the loss: a cosine per position, and per flattened map (a switch)",
    "tiled_ref.models.reverse_distillation.distillation_loss",
    "Deng and Li Eq. 2; flattened_loss is that of their released code",
    {"positions": close(1e-6, 1e-6), "flattened": close(1e-6, 1e-6)},
    _loss_cases,
    _losses,
    _losses_formula,
    (
        Mistake("the mean over the layers instead of the sum", layers=lambda v: sum(v) / 3),
        Mistake("the sum over positions instead of the mean", weighted=True),
        Mistake("1 is missing: minus the cosine", distance=lambda e, d: -_cosine(e, d)),
        Mistake("one cosine for the whole batch instead of one per image", whole=True),
        Mistake("a cosine per position instead of one of the flattened map", flat=False),
        Mistake("the cosine itself instead of 1 minus it", distance=_cosine),
        Mistake(
            "the squared difference instead of the cosine",
            distance=lambda e, d: (e - d).square().mean(1),
        ),
    ),
)


def _map_cases():
    for name, n, sides, size, flags in (
        ("square", 1, (8, 8), (32, 32), ()),
        ("not_square", 2, (6, 10), (24, 40), ("not_square", "several")),
        ("rounded_up", 1, (6, 5), (22, 17), ("padding", "not_square")),
        ("zero", 1, (4, 4), (16, 16), ("zero_vector", "negative", "smaller_than_radius")),
    ):
        draw = Numbers(f"reverse_distillation.map/{name}")
        inputs = layers_of(draw, n, sides)
        inputs.update(zip(DECODED, layers_of(draw, n, sides).values()))
        if name == "zero":
            inputs["layer1"][0, :, 1, 2] = 0
            inputs["decoded1"][0, :, 2, 1] *= -1
        inputs["size"] = np.array(size, np.int64)
        yield Case(name, inputs, (*flags, "reflect", "switch"))


def _map(inputs):
    layers, maps = [tensor(inputs[name]) for name in (*CHANNELS, *DECODED)], {}
    for name, combine in (("map", "product"), ("map_of_sum", "sum")):
        found, _ = _model(inputs, size_of(inputs), combine=combine).maps([layers])
        maps[name] = found.contiguous().numpy()
    return maps


def _map_formula(
    inputs, combine=np.prod, align_corners=True, mode="bilinear", distance=_cosine_distance,
    how=None,
):  # fmt: skip
    maps = []
    for encoded, decoded in zip(CHANNELS, DECODED):
        e, d = tensor(inputs[encoded]).double(), tensor(inputs[decoded]).double()
        switches = {"align_corners": align_corners} if mode == "bilinear" else {}
        one = distance(e, d).numpy()
        maps.append(formulas.enlarge(one, size_of(inputs), mode, **switches))
    blurred = partial(formulas.blur, sigma=model.SIGMA, **(how or {}))
    return {"map": blurred(combine(maps, axis=0)), "map_of_sum": blurred(np.sum(maps, axis=0))}


MAP = Stage(
    "reverse_distillation.map",
    "product of the layers' cosine distances, enlarged, blurred",
    "tiled_ref.models.reverse_distillation.ReverseDistillation.predict",
    "Deng and Li Eq. 1 and 3; the product is the authors' configuration",
    {"map": close(1e-5, 1e-6), "map_of_sum": close(1e-5, 2e-6)},
    _map_cases,
    _map,
    _map_formula,
    (
        Mistake("bilinear enlargement without align_corners", align_corners=False),
        Mistake("nearest enlargement instead of bilinear", mode="nearest"),
        Mistake("the sum of the layers instead of their product", combine=np.sum),
        Mistake("the mean of the layers instead of their product", combine=np.mean),
        Mistake("negative cosines are 0", distance=lambda e, d: _cosine_distance(e, d).clamp(0, 1)),
        Mistake("the distance is halved", distance=lambda e, d: _cosine_distance(e, d) / 2),
        Mistake("the root of the distance", distance=lambda e, d: _cosine_distance(e, d).sqrt()),
        Mistake("the largest of the layers instead of their product", combine=np.max),
        Mistake("the cosine itself instead of 1 minus it", distance=_cosine),
        Mistake(
            "the dot product: vectors are not divided by their lengths",
            distance=lambda e, d: 1 - (e * d).sum(1),
        ),
        *MAP_BLUR_MISTAKES,
    ),
)

SCORE = score_stage(
    "reverse_distillation.score",
    "tiled_ref.models.reverse_distillation.ReverseDistillation.predict",
    "Rolih et al. Eq. 4",
)

STAGES = (EMBEDDING, LOSS, PARAMETERS, MAP, SCORE)
