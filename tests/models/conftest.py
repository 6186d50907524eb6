"""What the tests of the weights share: a hub cache and a pip of their own, and small weights."""

import collections
import os
import subprocess

import pytest
import torch

from tiled_ref.models import weights
from tiled_ref.models.weights import FILE_NAME


@pytest.fixture
def own_hub(tmp_path, monkeypatch):
    """Keep tests away from the user's hub cache and pip configuration."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    (tmp_path / "links").mkdir()


@pytest.fixture
def no_pip(monkeypatch):
    """pip that fails at once, as for an unknown package; the list of its command lines."""
    commands = []

    def run(command, **_):
        commands.append(command)
        text = "Looking in links: links\nERROR: No matching distribution found for it\n"
        return subprocess.CompletedProcess(command, 1, "", text)

    monkeypatch.setattr(weights.subprocess, "run", run)
    return commands


@pytest.fixture
def hub(tmp_path):
    """Where the hub cache keeps the file."""
    return tmp_path / "home" / "hub" / "checkpoints" / FILE_NAME


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(3)
    return collections.OrderedDict(
        {
            "conv.weight": torch.randn(4, 3, 2, 2, generator=generator),
            "bn.running_mean": torch.tensor([-0.0, 1.5]),
            "count": torch.tensor(7),
        }
    )
