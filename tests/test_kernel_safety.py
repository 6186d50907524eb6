"""The compiled kernels: what they refuse, so that no call can touch memory out of bounds.

Python validates before it calls them; these are the kernels' own checks. The debug build
(TILED_REF_DEBUG=1) runs the whole suite with every index checked.
"""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from adversarial import layouts

from tiled_ref import merging
from tiled_ref.merging import untile_average
from tiled_ref.metrics import aupro, auroc, label_regions
from tiled_ref.models.gaussians import distances
from tiled_ref.models.maps import gaussian_blur
from tiled_ref.models.search.coreset import k_centre_greedy
from tiled_ref.models.search.neighbours import NearestIndex, search_each
from tiled_ref.smoothing import smooth_seams
from tiled_ref.support import arrays
from tiled_ref.support.errors import InputError, KernelNotBuiltError
from tiled_ref.tiling import TileGrid

untile, untile_window = (getattr(arrays.kernel("_untile"), n) for n in ("untile", "untile_window"))
seam_blur = arrays.kernel("_seam_blur").seam_blur
ranks = arrays.kernel("_aupro")

TILES = np.ones((2, 2, 3, 4, 4), np.float32)
I32, U8 = np.int32, np.uint8


def out(*shape):
    return np.empty(shape, np.float32)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ((TILES, out(3, 6, 6), 5, 2, 0, 3), "stride not in 1..tile"),
        ((TILES, out(3, 6, 6), 0, 2, 0, 3), "stride not in 1..tile"),
        ((TILES, out(3, 7, 6), 2, 2, 0, 3), "do not cover the image"),
        ((TILES, out(3, 6, 7), 2, 2, 0, 3), "do not cover the image"),
        ((TILES, out(3, 6, 2), 2, 2, 0, 3), "lies outside the image"),
        ((TILES, out(3, 6, 6), 2, 2, 0, 4), "images out of range"),
        ((TILES, out(3, 6, 6), 2, 2, -1, 3), "images out of range"),
        ((TILES, out(2, 6, 6), 2, 2, 0, 3), "images out of range"),
        ((TILES[:0], out(3, 6, 6), 2, 2, 0, 3), "empty axis"),
    ],
)
def test_untile_refuses(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        untile(*arguments)
    weights = out(2, 4)
    with pytest.raises(ValueError, match=sentence):
        untile_window(*arguments[:2], weights[: len(arguments[0])], weights, *arguments[2:])


@pytest.mark.parametrize(
    "y, x", [((1, 4), (2, 4)), ((2, 3), (2, 4)), ((2, 4), (3, 4)), ((2, 4), (2, 5))]
)
def test_untile_window_refuses_weights_of_another_shape(y, x):
    with pytest.raises(ValueError, match="weights of another number of"):
        untile_window(TILES, out(3, 6, 6), out(*y), out(*x), 2, 2, 0, 3)


def blur(**changes):
    index = np.array([1, 0, 1, 2, 3, 2], np.int64)  # 4 pixels, radius 1
    runs = np.array([[1, 3]], np.int64)
    arguments = dict(
        maps=np.ones((2, 4, 4)), out=np.empty((2, 4, 4)), taps=np.array([0.5, 0.25]),
        row_runs=runs, col_runs=runs, reflect_rows=index, reflect_cols=index,
        line=np.empty(6), blurred=np.empty(6), start=0, stop=2,
    )  # fmt: skip
    arguments.update(changes)
    seam_blur(*arguments.values())
    return arguments["out"]


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"taps": np.empty(0)}, "empty axis"),
        ({"out": np.empty((2, 4, 3))}, "differ in shape"),
        ({"stop": 3}, "images out of range"),
        ({"row_runs": np.array([[1, 5]])}, "runs out of range"),
        ({"col_runs": np.array([[2, 3], [1, 2]])}, "runs out of range or order"),
        ({"col_runs": np.array([[2, 2]])}, "runs out of range"),
        ({"col_runs": np.array([[2]])}, "two columns"),
        ({"reflect_rows": np.array([1, 0, 1, 2, 3])}, "reflection of another size"),
        ({"reflect_rows": np.array([1, 0, 1, 2, 3, 4])}, "reflected row out of range"),
        ({"reflect_cols": np.array([-1, 0, 1, 2, 3, 2])}, "reflected column out of range"),
        ({"line": np.empty(5)}, "scratch of another size"),
        ({"blurred": np.empty(5)}, "scratch of another size"),
    ],
)
def test_seam_blur_refuses(changes, sentence):
    assert blur()[0, 0, 0] == 1
    with pytest.raises(ValueError, match=sentence):
        blur(**changes)


MASK = np.array([[1, 0, 1], [0, 0, 1]], U8)  # three runs, two regions
SCORES = np.arange(6.0).reshape(2, 3)
F = np.empty


def test_label_runs_by_hand():
    runs, labels = F((3, 2), I32), F(3, I32)
    assert ranks.count_runs(MASK) == (3, 3)
    assert ranks.label_runs(MASK, runs, labels) == 2
    assert runs.tolist() == [[0, 1], [2, 3], [5, 6]] and labels.tolist() == [1, 2, 2]


RUNS = np.array([[0, 1], [2, 3], [5, 6]], I32)
ONES = np.ones(3, I32)


@pytest.mark.parametrize(
    "function, arguments, sentence",
    [
        ("label_runs", (MASK, RUNS[:2].copy(), F(3, I32)), "differ in length"),
        ("label_runs", (MASK, F((3, 1), I32), F(3, I32)), "differ in length"),
        ("label_runs", (MASK, F((2, 2), I32), F(2, I32)), "more runs than labels"),
        ("label_runs", (MASK, F((4, 2), I32), F(4, I32)), "fewer runs than labels"),
        ("paint", (RUNS, ONES, 0, F(5, I32)), "run out of range"),
        ("paint", (RUNS, ONES[:2], 0, F(6, I32)), "differ in length"),
        ("paint", (RUNS - 1, ONES, 0, F(6, I32)), "run out of range"),
        ("paint", (RUNS[:, ::-1].copy(), ONES, 0, F(6, I32)), "run out of range"),
        ("gather", (SCORES[0], RUNS, ONES, 0, F(1, I32), F(3), F(3, I32)), "run out of range"),
        ("gather", (SCORES.ravel(), RUNS, ONES, 0, F(1, I32), F(2), F(2, I32)), "no room"),
        ("gather", (SCORES.ravel(), RUNS, ONES, 0, F(1, I32), F(2), F(3, I32)), "in length"),
        ("gather", (SCORES.ravel(), RUNS, 2 * ONES, 0, F(1, I32), F(3), F(3, I32)), "label out"),
        ("gather", (SCORES.ravel(), RUNS, 0 * ONES, 0, F(1, I32), F(3), F(3, I32)), "label out"),
        ("gather", (SCORES.ravel(), RUNS, ONES[:2], 0, F(1, I32), F(3), F(3, I32)), "in length"),
        ("select", (SCORES[0], 0.0, F(4), 2), "no room"),
        ("select", (SCORES[0], 0.0, F(9), -1), "no room"),
        ("sort_pass", (F(3), F(3, I32), 0, F(3), F(2, I32), F(8, int)), "differ in length"),
        ("sort_pass", (F(3), F(3, I32), 0, F(3), F(3, I32), F(7, int)), "not a power of two"),
        ("tally", (F(3), F(4), np.zeros(6, int)), "2 n . 1 places"),
        ("rank", (F(3), np.zeros(6, int)), "2 n . 1 places"),
    ],
)
def test_ranks_refuse(function, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        getattr(ranks, function)(*arguments)


def test_counts_and_ranks_by_hand():
    """Anomalous 2 2 5; all pixels 1 2 2 2 3 5 9: normal are 1 2 3 9."""
    values, counts = np.array([2.0, 2.0, 5.0]), np.zeros(7, int)
    ranks.tally(values, np.array([1.0, 2, 2, 2, 3]), counts)
    ranks.tally(values, np.array([5.0, 9]), counts)
    assert counts.tolist() == [1, 3, 0, 0, 1, 1, 1]
    ranks.rank(values, counts)  # above 2: 3 and 9; at or above it 2, 3 and 9; above 5: 9
    assert counts[:6].reshape(3, 2).tolist() == [[2, 3], [2, 3], [1, 1]]


def test_select_by_hand():
    out = np.zeros(5)
    assert ranks.select(np.array([1.0, np.nan, 3.0, 2.0]), 2.0, out, 1) == 4
    assert np.array_equal(out[:4], [0, np.nan, 3, 2], equal_nan=True)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_keep_the_order_and_hold_few_items(threads):
    held, most, lock = set(), [0], threading.Lock()

    def items():
        for k in range(40):
            held.add(k)
            with lock:
                most[0] = max(most[0], len(held))
            yield k

    def square(k):
        held.discard(k)
        return k * k

    assert arrays.run_threads(square, items(), threads) == [k * k for k in range(40)]
    assert most[0] <= threads
    assert arrays.run_threads(square, [], threads) == []


def test_threads_raise_the_error_of_the_first_item():
    """Item 0 fails last, after item 1; items after a failure are not begun."""
    failed, begun = threading.Event(), []

    def fail(k):
        begun.append(k)
        if k == 0:
            failed.wait()
            raise ValueError("item 0")
        failed.set()
        raise ValueError(f"item {k}")

    with pytest.raises(ValueError, match="item 0"):
        arrays.run_threads(fail, range(1000), 2)
    assert len(begun) < 1000

    def broken():
        yield 1
        raise KeyError("the iterator itself")

    with pytest.raises(KeyError, match="the iterator itself"):
        arrays.run_threads(str, broken(), 3)


def test_missing_kernel_names_the_command():
    with pytest.raises(KernelNotBuiltError, match="python setup.py build_ext --inplace"):
        arrays.kernel("_no_such_kernel")


def test_debug_build_checks_indices():
    """TILED_REF_DEBUG=1 turns bounds checks and checked division on, and nothing else does."""
    root = Path(__file__).resolve().parent.parent
    script = (
        "import sys; sys.argv = ['setup.py', '--name']\n"
        "import Cython.Build, setuptools\n"
        "seen = {}\n"
        "Cython.Build.cythonize = lambda *a, **k: seen.update(k['compiler_directives']) or []\n"
        "setuptools.setup = lambda **k: None\n"
        "exec(open('setup.py').read())\n"
        "print(seen['boundscheck'], seen['cdivision'])\n"
    )
    for debug, expected in (("1", "True False"), ("0", "False True")):
        result = subprocess.run(
            [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True,
            env={**os.environ, "TILED_REF_DEBUG": debug},
        )  # fmt: skip
        assert result.stdout.strip() == expected


def watched(name, kernel=arrays.kernel):
    """A kernel that asserts what every array that it gets must be."""
    module = kernel(name)

    def guard(function):
        def call(*args):
            for array in args:
                if isinstance(array, np.ndarray):
                    assert array.flags.aligned and array.flags.c_contiguous
            return function(*args)

        return call

    class Watched:
        def __getattr__(self, attribute):
            return guard(getattr(module, attribute))

    return Watched()


def test_kernels_get_aligned_arrays_from_every_caller(monkeypatch):
    """Of NumPy and torch arrays in every layout; x86 would forgive it and give the same bits."""
    monkeypatch.setattr(arrays, "kernel", watched)
    rng, grid = np.random.default_rng(0), TileGrid(8, 4, 2)
    for dtype in (np.float32, np.float64):
        given = {
            "tiles": rng.random((3, 3, 2, 4, 4)), "maps": rng.random((2, 8, 8)),
            "scores": rng.random(16), "points": rng.random((20, 4)), "x": rng.random((3, 5, 4)),
            "mean": rng.random((5, 4)), "factors": rng.random((5, 10)), "queries": rng.random((2, 4)),
        }  # fmt: skip
        every = {key: dict(layouts(array.astype(dtype))) for key, array in given.items()}
        masks, labels = rng.random((2, 8, 8)) > 0.5, np.arange(16) % 2 == 0
        for layout in every["maps"]:
            one = {key: made[layout] for key, made in every.items()}
            assert one["maps"].flags.aligned == (layout != "misaligned")
            untile_average(one["tiles"], grid)
            merging.untile_window(one["tiles"], grid)
            smooth_seams(one["maps"], grid)
            gaussian_blur(torch.from_numpy(one["maps"].copy()), 1.0)
            auroc(one["scores"], labels)
            label_regions(masks)
            aupro(one["maps"], masks)
            if dtype == np.float32:
                k_centre_greedy(one["points"], 3, 0)
                distances(one["x"], one["mean"], one["factors"])
                if layout == "misaligned":
                    points, queries = (torch.from_numpy(one[key]) for key in ("points", "queries"))
                    search_each([NearestIndex(points)], queries[None])
                    gaussian_blur(torch.from_numpy(one["maps"]), 1.0)


@pytest.mark.parametrize("value", [0, -1, arrays.THREADS.stop, 10**30, 1.0, "2", True, None])
def test_thread_count_refuses(value, monkeypatch):
    """As an argument and, as text, in the environment."""
    assert arrays.thread_count(arrays.THREADS[-1]) == arrays.THREADS[-1]
    if value is not None:
        with pytest.raises(InputError, match="threads must be a whole number of at least 1 and at"):
            arrays.thread_count(value)
    monkeypatch.setenv(arrays.THREADS_VARIABLE, {"2": "two"}.get(value, str(value)))
    with pytest.raises(InputError, match="variable TILED_REF_THREADS must be a whole number"):
        arrays.thread_count()
    for text in "9" * 5000, "+1", "\u0663":
        monkeypatch.setenv(arrays.THREADS_VARIABLE, text)
        with pytest.raises(InputError, match="at most"):
            arrays.thread_count()
