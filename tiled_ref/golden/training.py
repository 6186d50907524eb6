"""Training in float64, Adam written out, for the stages of the two trained models."""

import torch


def train(values, names, loss, n_steps, rate, after=None, **switches):
    """Train some of the values, float64 tensors (...) by name, in place.

    Parameters: names, of those that are trained; loss, of such a dict, a scalar; n_steps; rate,
    the learning rate; after, called after every step; switches, those of `adam`.
    """
    moments = {name: (torch.zeros_like(values[name]),) * 2 for name in names}
    for step in range(1, n_steps + 1):
        leaves = {name: v.detach().requires_grad_(name in names) for name, v in values.items()}
        gradients = torch.autograd.grad(loss(leaves), [leaves[name] for name in names])
        for name, gradient in zip(names, gradients):
            moments[name], values[name] = adam(
                values[name], gradient, moments[name], step, rate, **switches
            )
        if after:
            after()


def adam(value, gradient, moments, step, rate, betas=(0.9, 0.999), decay=0.0, corrected=True):
    """One step of Adam (Kingma, Ba, arXiv:1412.6980, Algorithm 1) for one tensor.

    Parameters: value, gradient, float64 tensors (...); moments, m and v of the step before;
    step, from 1; rate, the learning rate; betas; decay, times the value added to the gradient;
    corrected, whether the moments' bias is.
    Returns ((m, v), value).
    """
    value = value.detach()
    gradient = gradient + decay * value
    m = betas[0] * moments[0] + (1 - betas[0]) * gradient
    v = betas[1] * moments[1] + (1 - betas[1]) * gradient.square()
    m_hat, v_hat = m, v
    if corrected:
        m_hat, v_hat = m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)
    return (m, v), value - rate * m_hat / (v_hat.sqrt() + 1e-8)
