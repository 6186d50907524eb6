"""Nearest neighbours against brute force: ties, copies, and distances lost in rounding."""

import math

import numpy as np
import pytest
import torch

from tiled_ref.models.search import neighbours
from tiled_ref.models.search.neighbours import NearestIndex, nearest, search_each
from tiled_ref.support.errors import InputError


def brute_force(queries, bank, k):
    """float64, all pairs, ties to the lowest index."""
    delta = queries[:, None].astype(np.float64) - bank[None].astype(np.float64)
    squares = (delta**2).sum(2)
    order = np.argsort(squares, axis=1, kind="stable")[:, :k]
    return np.sqrt(np.take_along_axis(squares, order, 1)), order


@pytest.mark.parametrize("k", [1, 2, 9])
@pytest.mark.parametrize("budget", [1, 50_000, 2**28])
def test_nearest_is_brute_force(k, budget, rng):
    """Far from the origin, where |q|^2 + |b|^2 - 2 q.b alone has no digit left."""
    bank = (1000 + 0.01 * rng.standard_normal((150, 40))).astype(np.float32)
    queries = (1000 + 0.01 * rng.standard_normal((70, 40))).astype(np.float32)
    queries[::7] = bank[:10]
    expected_distances, expected = brute_force(queries, bank, k)
    distances, indices = nearest(torch.from_numpy(queries), torch.from_numpy(bank), k, budget)
    assert distances.dtype == torch.float64 and indices.dtype == torch.int64
    assert np.array_equal(indices.numpy(), expected)
    # Largest relative difference measured: 2e-16, another order of the sum.
    np.testing.assert_allclose(distances.numpy(), expected_distances, rtol=1e-13)


def test_nearest_breaks_ties_by_the_lowest_index(rng):
    """More copies than candidates are measured, and lattice points at equal distances."""
    bank = rng.integers(0, 2, (200, 3)).astype(np.float32)
    queries = rng.integers(0, 3, (50, 3)).astype(np.float32) / 2
    for k in (1, 5, 200):
        expected_distances, expected = brute_force(queries, bank, k)
        distances, indices = nearest(torch.from_numpy(queries), torch.from_numpy(bank), k)
        assert np.array_equal(indices.numpy(), expected)
        # Largest relative difference measured: 2e-16, torch's root of 1/2.
        np.testing.assert_allclose(distances.numpy(), expected_distances, rtol=1e-13)


def test_nearest_finds_what_the_product_cannot_tell(rng, monkeypatch):
    """Clusters so narrow beside their distance that every product inside one is rounding."""
    centres = 1000 * rng.standard_normal((4, 1, 30))
    bank = (centres + 1e-3 * rng.standard_normal((4, 60, 30))).reshape(240, 30).astype(np.float32)
    queries = bank[::3] + np.float32(1e-3)
    searched = []
    search_one = neighbours._search_one
    monkeypatch.setattr(
        neighbours, "_search_one", lambda *a: searched.append(1) or search_one(*a)
    )
    distances, indices = nearest(torch.from_numpy(queries), torch.from_numpy(bank), 2)
    assert np.array_equal(indices.numpy(), brute_force(queries, bank, 2)[1])
    assert searched


def test_on_other_devices_nothing_depends_on_the_data(rng, monkeypatch):
    """No second search: a vector found is farther than the nearest by the product's rounding."""
    bank = rng.standard_normal((300, 64)).astype(np.float32)
    queries = np.concatenate([bank[:20], rng.standard_normal((20, 64)).astype(np.float32)])
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for name in ("_search_one", "search_each"):
        monkeypatch.delattr(neighbours, name)
    monkeypatch.setattr(torch, "nonzero", None)
    banks = neighbours.Banks([torch.from_numpy(bank)], torch.device("cpu"), "cython")
    distances, indices = banks.nearest(torch.from_numpy(queries)[None])
    expected_distances, expected = brute_force(queries, bank, 1)
    assert np.array_equal(indices[0], expected[:, 0])
    np.testing.assert_allclose(distances[0], expected_distances[:, 0], rtol=1e-13)


def test_nearest_does_not_trust_a_product_of_lower_precision(rng):
    bank = rng.standard_normal((300, 64)).astype(np.float32)
    queries = rng.standard_normal((40, 64)).astype(np.float32)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        _, indices = nearest(torch.from_numpy(queries), torch.from_numpy(bank), 3)
    finally:
        torch.set_float32_matmul_precision(before)
    assert np.array_equal(indices.numpy(), brute_force(queries, bank, 3)[1])


def hard_banks():
    """(bank, queries): prefixes stored or not, ties, copies, distances lost in rounding."""
    rng = np.random.default_rng(11)
    decay = 0.9 ** np.arange(96)
    spread = rng.standard_normal((700, 96)) * decay
    far = 1000 * rng.standard_normal((4, 1, 96)) + 1e-3 * rng.standard_normal((4, 60, 96))
    ties = rng.integers(0, 2, (500, 3)).astype(float)
    return {
        "stored": (spread, rng.standard_normal((130, 96)) * decay * 3),
        "computed": (spread / decay, rng.standard_normal((130, 96))),
        "bank itself": (spread, spread),
        "far clusters": (far.reshape(240, 96), far.reshape(240, 96)[::3] + 1e-3),
        "ties": (ties, rng.integers(0, 3, (90, 3)) / 2),
        "copies": (np.repeat(spread[:50], 6, axis=0), spread[:60]),
        "one vector": (spread[:1], spread[:20]),
        "zeros": (np.zeros((40, 20)), rng.standard_normal((9, 20))),
        "queries far away": (spread, 1e6 * rng.standard_normal((30, 96))),
    }


@pytest.mark.parametrize("name", list(hard_banks()))
@pytest.mark.parametrize("threads", [1, 3])
def test_index_finds_what_brute_force_finds(name, threads, monkeypatch):
    """Products are off by at most the bound of Higham, Eq. 3.5."""
    monkeypatch.setattr(neighbours, "ROWS", 16)
    monkeypatch.setattr(neighbours, "BLOCK", 100)
    bank, queries = (a.astype(np.float32) for a in hard_banks()[name])
    copies = bank.copy(), queries.copy()
    monkeypatch.setenv("TILED_REF_THREADS", str(threads))
    index = NearestIndex(torch.from_numpy(bank))
    assert index.filter.stored is None or name not in ("computed", "ties", "one vector")
    distances, places = (a[0] for a in search_each([index], torch.from_numpy(queries)[None]))
    expected_distances, expected = brute_force(queries, bank, 1)
    plain_distances, plain = nearest(torch.from_numpy(queries), torch.from_numpy(bank))
    assert np.array_equal(places.numpy(), expected[:, 0])
    assert torch.equal(places, plain[:, 0])
    # Largest relative difference measured: 4e-16, the order of the float64 sum.
    np.testing.assert_allclose(distances.numpy(), expected_distances[:, 0], rtol=1e-13)
    np.testing.assert_allclose(distances.numpy(), plain_distances[:, 0].numpy(), rtol=1e-13)
    assert np.array_equal(bank, copies[0]) and np.array_equal(queries, copies[1])


def test_index_refuses_features_that_are_not_finite(rng):
    index = NearestIndex(torch.from_numpy(rng.standard_normal((9, 4)).astype(np.float32)))
    with pytest.raises(InputError, match="NaN"):
        search_each([index], torch.full((1, 2, 4), math.nan))


def test_nearest_refuses_impossible_arguments():
    bank = torch.zeros(3, 4)
    for queries, k in ((torch.zeros(2, 5), 1), (torch.zeros(2, 4), 0), (torch.zeros(2, 4), 4)):
        with pytest.raises(InputError):
            nearest(queries, bank, k)
