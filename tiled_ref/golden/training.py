"""Training in float64 with an explicit Adam: its own stage, and part of both trained models."""

from collections import Counter

import numpy as np
import torch

from .compare import boundary, close
from .inputs import tensor
from .numbers import Numbers
from .stage import Case, Mistake, Stage

KEPT = 4096  # gradients and moments are outputs for tensors of at most this many numbers


def train(values, names, loss, n_steps, rate, after=None, accumulate=False, **switches):
    """Train some of the values, float64 tensors (...) by name, in place.

    Parameters: names, of the trained values; loss, maps such a dict to a scalar; n_steps; rate,
    the learning rate; after, called after every step; accumulate, a mistake: gradients of earlier
    steps are added; switches, those of `adam`.
    Returns {name: tensor}, gradients and moments of every step, named as in `recorded`.
    """
    moments, seen = {name: (torch.zeros_like(values[name]),) * 2 for name in names}, {}
    for step in range(1, n_steps + 1):
        leaves = {name: v.detach().requires_grad_(name in names) for name, v in values.items()}
        gradients = torch.autograd.grad(loss(leaves), [leaves[name] for name in names])
        if accumulate and step > 1:
            gradients = [g + seen[f"gradient{step - 1}.{n}"] for n, g in zip(names, gradients)]
        for name, gradient in zip(names, gradients):
            moments[name], values[name] = adam(
                values[name], gradient, moments[name], step, rate, **switches
            )
            for kind, value in zip(("gradient", "first", "second"), (gradient, *moments[name])):
                seen[f"{kind}{step}.{name}"] = value
        if after:
            after()
    return seen


def recorded(model, pack):
    """Make a TrainedModel's fit record the gradient and Adam's two moments at every step.

    Parameters: model; pack, {parameter: tensor} -> {name in the bundle: array}.
    Returns a dict that fit fills: float32 arrays by "gradient1.NAME", "first1.NAME" and
    "second1.NAME" for step 1, and so on, for tensors of at most KEPT numbers.
    """
    seen, make, steps = {}, model.optimizer, Counter()
    names = {id(value): name for name, value in model.network.named_parameters()}

    def optimizer():
        adam = make()
        parameters = [p for group in adam.param_groups for p in group["params"]]

        def keep(kind, value_of):
            steps[kind] += 1
            values = {names[id(p)]: value_of(p).detach().clone() for p in parameters}
            packed = pack(values).items()
            seen.update({f"{kind}{steps[kind]}.{k}": v for k, v in packed if v.size <= KEPT})

        adam.register_step_pre_hook(lambda *_: keep("gradient", lambda p: p.grad))

        def after(*_):
            keep("first", lambda p: adam.state[p]["exp_avg"])
            keep("second", lambda p: adam.state[p]["exp_avg_sq"])

        adam.register_step_post_hook(after)
        return adam

    model.optimizer = optimizer
    return seen


def kept_classes(tensors, rate, size):
    """Return compare classes for the trained weights and for the outputs of `recorded`.

    The first steps of Adam move every weight by nearly +-rate, by the sign of its gradient: if
    the gradient is nearly zero, rounding decides. The second step starts from such weights.
    Parameters: tensors, the weights {name: array (...)}; rate; size, of the larger gradients.
    Returns {name of an output: Compare}.
    """
    classes = {}
    for name, value in tensors.items():
        if name.endswith(".order"):
            continue
        classes[name] = boundary(1e-4, 0.02 * rate, 0.05, 4 * rate)
        if value.size <= KEPT:
            for step, rtol in ((1, 1e-4), (2, 1e-2)):
                for kind, scale in (("gradient", 1), ("first", 1), ("second", 2e-3 * size)):
                    classes[f"{kind}{step}.{name}"] = close(rtol, scale * size * rtol)
    return classes


def adam(
    value, gradient, moments, step, rate, betas=(0.9, 0.999), decay=0.0, eps=1e-8, corrected=True,
    decoupled=False, reverse="", inside=False, descent=True, damped=True, rooted=True, late=0,
    outside=False, stuck="",
):  # fmt: skip
    """One step of Adam (Kingma, Ba, arXiv:1412.6980, Algorithm 1) for one tensor.

    Parameters: value, gradient, float64 tensors (...); moments, m and v of the previous step;
    step, from 1; rate, the learning rate; betas; decay, multiplies the value added to the gradient;
    eps. The others are mistakes: corrected, bias correction of no moment (False), or only "m" or
    "v"; decoupled, AdamW; reverse, the moments (letters) in which beta and 1 - beta are exchanged;
    inside, eps under the root; descent False, the wrong sign; damped False, the whole
    gradient in m; rooted False, v without its root; late, the number of steps not counted;
    stuck, the moments whose correction is always that of step 1; outside, v's acts on its root.
    Returns ((m, v), value).
    """
    value = value.detach()
    if decoupled:
        value = value * (1 - rate * decay)
    else:
        gradient = gradient + decay * value
    a, b = (1 - beta if name in reverse else beta for name, beta in zip("mv", betas))
    m = a * moments[0] + (1 - a if damped else 1) * gradient
    v = b * moments[1] + (1 - b) * gradient.square()
    counts = (1 if name in stuck else step - late for name in "mv")
    of_m, of_v = (1 - beta**count for beta, count in zip(betas, counts))
    m_hat = m / of_m if corrected in (True, "m") else m
    v_hat = v / of_v ** (2 if outside else 1) if corrected in (True, "v") else v
    root = (v_hat + eps).sqrt() if inside else v_hat.sqrt() + eps
    root = root if rooted else v_hat + eps
    return (m, v), value + (-rate if descent else rate) * m_hat / root


def _cases():
    for name, rate, betas, decay, scale, flags in (
        ("fastflow", 0.001, (0.9, 0.999), 1e-5, 1, ()),
        ("reverse_distillation", 0.005, (0.5, 0.999), 0, 1, ()),
        ("decay", 0.01, (0.9, 0.99), 0.125, 1, ()),
        ("near_zero", 0.01, (0.9, 0.999), 0, 2**-26, ("near_zero",)),
    ):
        draw = Numbers(f"adam/{name}")
        inputs = {"value": draw.bell(12), "gradients": draw.bell(2, 12) * np.float32(scale)}
        numbers = {"rate": rate, "betas": betas, "decay": decay, "epsilon": 1e-8}
        inputs.update({key: np.float64(number) for key, number in numbers.items()})
        yield Case(name, inputs, flags)


def _options(inputs):
    betas = tuple(inputs["betas"].tolist())
    return float(inputs["rate"]), betas, float(inputs["decay"]), float(inputs["epsilon"])


def _compute(inputs):
    rate, betas, decay, eps = _options(inputs)
    parameter = torch.nn.Parameter(tensor(inputs["value"]))
    adam = torch.optim.Adam([parameter], rate, betas, eps, decay)
    rows = []
    for gradient in tensor(inputs["gradients"]):
        parameter.grad = gradient.clone()
        adam.step()
        state = adam.state[parameter]
        steps = parameter.detach(), state["exp_avg"], state["exp_avg_sq"]
        rows.append([value.clone() for value in steps])
    names = "values", "first", "second"
    return {name: torch.stack(v).numpy() for name, v in zip(names, zip(*rows))}


def _formula(inputs, decayed=1.0, swapped=False, **switches):
    rate, betas, decay, eps = _options(inputs)
    options = {"betas": betas[:: -1 if swapped else 1], "decay": decay * decayed, "eps": eps}
    value = tensor(inputs["value"]).double()
    moments, rows = (torch.zeros_like(value),) * 2, []
    for step, gradient in enumerate(tensor(inputs["gradients"]).double(), start=1):
        moments, value = adam(value, gradient, moments, step, rate, **{**options, **switches})
        rows.append([value, *moments])
    names = "values", "first", "second"
    return {name: torch.stack(v).numpy() for name, v in zip(names, zip(*rows))}


ADAM_MISTAKES = (
    Mistake("Adam without the correction of its moments' bias", corrected=False),
    Mistake("Adam without the correction of its first moment's bias", corrected="v"),
    Mistake("Adam without the correction of its second moment's bias", corrected="m"),
    Mistake("the correction of the first moment's bias is always that of step 1", stuck="m"),
    Mistake("the correction of the second moment's bias is always that of step 1", stuck="v"),
    Mistake("the correction of the moments' bias is always that of step 1", stuck="mv"),
    Mistake("the second moment's correction divides its root", outside=True),
    Mistake("momentum reversed: the old moment is multiplied by 1 - beta", reverse="mv"),
    Mistake("momentum reversed: the old first moment is multiplied by 1 - beta", reverse="m"),
    Mistake("momentum reversed: the old second moment is multiplied by 1 - beta", reverse="v"),
    Mistake("the second moment's root is missing", rooted=False),
    Mistake("the first moment takes the whole gradient, as SGD's momentum", damped=False),
    Mistake("the sign: the gradient is added, not subtracted", descent=False),
)

ADAM = Stage(
    "adam",
    "two steps of Adam, with its moments",
    "torch.optim.Adam, as in tiled_ref.models.trained.TrainedModel.fit",
    "Kingma and Ba, arXiv:1412.6980, Algorithm 1",
    # 1 - 0.999 in float32 has a relative error of 1.3e-5.
    {"values": close(1e-6, 2e-6), "first": close(1e-5, 1e-8), "second": close(1e-4, 0.0)},
    _cases,
    _compute,
    _formula,
    (
        *ADAM_MISTAKES,
        Mistake("AdamW: the decay acts on the weight, not on the gradient", decoupled=True),
        Mistake("the weight decay is forgotten", decayed=0.0),
        Mistake("the weight decay is doubled", decayed=2.0),
        Mistake("the two betas are exchanged", swapped=True),
        Mistake("Adam's first beta is 0: no momentum", betas=(0.0, 0.999)),
        Mistake("Adam's epsilon is missing", eps=0.0),
        Mistake("Adam's epsilon is 1e-7", eps=1e-7),
        Mistake("Adam's epsilon is added under the root", inside=True),
        Mistake("the weight decay has the wrong sign", decayed=-1.0),
        Mistake("Adam's second beta is 0.99", betas=(0.9, 0.99)),
        Mistake("the correction counts steps from 0", late=1),
    ),
)

STAGES = (ADAM,)
