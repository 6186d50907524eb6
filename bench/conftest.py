"""Shared by the benchmarks: sizes, and `measure`, which checks a result before timing it."""

import functools
import platform
import re
import shlex
import time

import numpy as np
import pytest
import torch

from tiled_ref.support.arrays import thread_count

MOST_ROUNDS = 30


def pytest_addoption(parser):
    parser.addoption(
        "--sizes", choices=("tiny", "usual", "full"), default="usual",
        help="of the arrays: tiny only shows that everything runs, full is that of the targets",
    )  # fmt: skip


def pytest_benchmark_update_machine_info(config, machine_info):
    """Add what bench/tables.py prints above the tables to what pytest-benchmark records."""
    machine_info["versions"] = {"NumPy": np.__version__, "torch": torch.__version__}
    machine_info["python"] = platform.python_version()
    machine_info["threads"] = {"torch": torch.get_num_threads(), "kernels": thread_count()}
    command = shlex.join(["python", "-m", "pytest", *config.invocation_params.args])
    machine_info["command"] = re.sub(r"(?<![\w.])/\S*/", "", command)  # no paths of this machine


@pytest.fixture(scope="session")
def sized(pytestconfig):
    """sized(tiny=1, usual=8, full=32) returns the number for --sizes."""
    return lambda **numbers: numbers[pytestconfig.getoption("--sizes")]


def check(found, expected, agrees):
    """Raise AssertionError unless a result is the expected one.

    Parameters: found and expected, a number, an array, a tensor, or a list or tuple of them;
    agrees, 0 for equal bits, a relative and absolute tolerance, or a function of both results.
    """
    if callable(agrees):
        agrees(found, expected)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected):
            check(one, other, agrees)
    elif agrees == 0:
        found, expected = np.asarray(found), np.asarray(expected)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tobytes() == expected.tobytes(), "not bit for bit the same"
    else:
        np.testing.assert_allclose(found, expected, rtol=agrees, atol=agrees)


def check_and_time(benchmark, seconds, case, contenders, name):
    """Compare the result of one contender, then time it.

    Parameters
    ----------
    benchmark : pytest-benchmark's fixture
    seconds : for all rounds; a contender that takes longer gets a single round
    case : with a title, which becomes the benchmark's group, and the expected result
    contenders : dict
        Name -> (make, agrees): make(case) returns the function to time, agrees is as for `check`,
        None for a limit without a result. bench/tables.py divides by the times of the first.
    name : of the contender
    """
    make, agrees = contenders[name]
    function = make(case)
    start = time.perf_counter()
    found = function()
    rounds = 1 + int(seconds / (time.perf_counter() - start))
    if agrees is not None:
        check(found, case.expected, agrees)
    benchmark.group = case.title
    benchmark.extra_info.update(contender=name, first=name == next(iter(contenders)))
    benchmark.pedantic(function, rounds=min(MOST_ROUNDS, rounds))


@pytest.fixture
def measure(benchmark, sized):
    """measure(case, contenders, name), see check_and_time."""
    return functools.partial(check_and_time, benchmark, sized(tiny=0, usual=1, full=4))
