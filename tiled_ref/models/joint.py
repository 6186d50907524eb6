"""Several models of one architecture as one: their tensors stacked, their networks batched."""

import torch


def stack_states(states, device):
    """States of L models -> name: tensor (L, ...) on the device."""
    return {
        name: torch.stack([state[name].to(device) for state in states]) for name in states[0]
    }


def part_of(tensors, prefix):
    """The tensors whose names start with prefix, without it."""
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


def joint(network, stacked, n_locations, maps):
    """A head for the features of L models at once.

    Parameters: network(tensors, layers) -> list of tensors, for the tensors of one model;
    stacked, those of the L = n_locations models (L, ...); maps(parts), the model's last step.
    Returns a function of features, each (L * B, C, hf, wf), location-major.
    """
    batched = torch.func.vmap(network)

    @torch.no_grad()
    def head(features):
        layers = [layer.unflatten(0, (n_locations, -1)) for layer in features]  # (L, B, ...)
        return maps([[layer.flatten(0, 1) for layer in batched(stacked, layers)]])

    return head
