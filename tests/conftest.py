"""What tests share: the real data beside the repository, a small backbone, strictness on CI."""

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from tiled_ref.models.backbone import ResNet18Features
from tiled_ref.models.weights import find_weights

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
# Set by .ci/run: a skipped kernel test, or a real-data test beside its data, is a failure there.
STRICT = os.environ.get("TILED_REF_STRICT") == "1"

# The arrays of the tests are small: a second thread gains nothing, and on a busy machine two
# threads that wait for one another take ten times as long. Results do not depend on it.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Keep the files of one part, such as 1/2; all parts together are everything, each once."""
    part, n = map(int, os.environ.get("TILED_REF_PART", "1/1").split("/"))
    # The 7 makes the two halves take about as long as one another, by the durations of 2026-11-28.
    items[:] = [i for i in items if (zlib.crc32(f"7{i.path.name}".encode()) + part) % n == 0]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """On CI a skip is a failure, except for what the machine cannot have."""
    outcome = yield
    report = outcome.get_result()
    allowed = item.get_closest_marker("cuda") or item.get_closest_marker("optional")
    if STRICT and report.skipped and not hasattr(report, "wasxfail") and not allowed:
        if item.get_closest_marker("real") and not SHARED.is_dir():
            return
        report.outcome = "failed"
        report.longrepr = f"skipped where TILED_REF_STRICT=1 forbids it: {report.longrepr}"


@pytest.fixture(scope="session")
def shared():
    """Folder with real images and weights beside the repository."""
    if not SHARED.is_dir():
        pytest.skip("no folder ../shared with real images and weights")
    return SHARED


@pytest.fixture(scope="session")
def screw(shared):
    """Root of the MVTec AD copy that holds the category screw."""
    root = shared / "data" / "mvtec_ad_512"
    if not (root / "screw").is_dir():
        pytest.skip("no MVTec AD screw beside the repository")
    return root


@pytest.fixture(scope="session")
def official_weights(shared):
    """Path of the official ResNet-18 weights."""
    path = shared / "weights" / "resnet18-f37072fd.pth"
    if not path.is_file():
        pytest.skip("no official weights beside the repository")
    return path


@pytest.fixture(scope="session")
def tiny_backbone():
    """ResNet-18 with seeded random weights: real shapes, nothing to download."""
    return ResNet18Features(find_weights("random", seed=0).state_dict)


@pytest.fixture
def rng():
    """A generator of its own for every test."""

    return np.random.default_rng(20240617)


@pytest.fixture
def deterministic():
    """torch refuses what is not deterministic, as long as the test runs."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)
