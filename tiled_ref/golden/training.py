"""Training in float64, Adam written out, for the stages of the two trained models."""

import torch


class Counted:
    """n images for fit whose batches are their places, for Given."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, indices):
        return torch.tensor(indices, dtype=torch.float32)[:, None, None, None]


def adam(value, gradient, moments, step, rate, betas, decay=0.0, corrected=True):
    """One step of Adam (Kingma, Ba, arXiv:1412.6980, Algorithm 1) for one tensor.

    Parameters: value, gradient, float64 tensors; moments, m and v of the step before; step,
    from 1; rate, the learning rate; betas; decay, times the value added to the gradient;
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
