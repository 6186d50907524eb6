"""Distances from factored Gaussians: Defard et al. Eq. 2, the kernel and its specification."""

import math

import adversarial
import numpy as np
import pytest
import torch

from tiled_ref.models.gaussians import (
    distances,
    factors_of,
    factors_of_inverses,
    pack,
    unpack,
)
from tiled_ref.support import arrays
from tiled_ref.support.errors import InputError

kernel = arrays.kernel("_mahalanobis").mahalanobis
to_float32 = arrays.kernel("_mahalanobis").to_float32
IMPLS = ("cython", "numpy")
STORES = (np.float32, np.float16)


def covariances(rng, n, d):
    """Positive definite float64 (n, d, d), exactly symmetric."""
    roots = torch.from_numpy(rng.standard_normal((n, d, d)))
    return roots @ roots.mT + 0.01 * torch.eye(d)


def arrays(rng, n_images=3, n=5, d=7, store=np.float32):
    x = rng.standard_normal((n_images, n, d)).astype(np.float32)
    mean = rng.standard_normal((n, d)).astype(np.float32)
    return x, mean, rng.standard_normal((n, d * (d + 1) // 2)).astype(store)


def bits(array):
    return array.tobytes()


def test_triangles_row_by_row():
    matrices = torch.tensor([[[1.0, 2.0, 3.0], [0.0, 4.0, 5.0], [0.0, 0.0, 6.0]]])
    assert pack(matrices).tolist() == [[1, 2, 3, 4, 5, 6]]
    assert torch.equal(unpack(pack(matrices)), matrices)


@pytest.mark.parametrize("d", [1, 2, 7, 100])
def test_unpacking_is_the_inverse_of_packing(rng, d):
    matrices = covariances(rng, 3, d).triu()
    packed = pack(matrices)
    assert packed.shape == (3, d * (d + 1) // 2)
    assert torch.equal(unpack(packed), matrices)


@pytest.mark.parametrize("d", [1, 2, 7, 100])
def test_factors_are_the_upper_triangular_roots_of_the_inverse_covariances(rng, d):
    sigma = covariances(rng, 3, d)
    found = factors_of(sigma)
    assert torch.equal(found, found.triu()) and (found.diagonal(dim1=1, dim2=2) > 0).all()
    # Measured: 2e-11, 5e-13.
    torch.testing.assert_close(found @ found.mT @ sigma, torch.eye(d).double().expand(3, d, d),
                               rtol=0, atol=1e-8)  # fmt: skip
    again = unpack(factors_of_inverses(pack(torch.linalg.inv(sigma)), chunk=2))
    torch.testing.assert_close(again, found, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("impl", IMPLS)
def test_distance_by_hand(impl):
    """U = [[1, 2], [0, 3]], x - mu = (3, 2): U^T (x - mu) = (3, 6 + 6), 9 + 144 = 153; with
    diag(1, 2) 9 + 16 = 25."""
    x = np.array([[[3.0, 2.0], [4.0, 3.0]]], np.float32)
    mean = np.array([[0, 0], [1, 1]], np.float32)
    factors = np.array([[1, 2, 3], [1, 0, 2]])
    for store in STORES:
        found = distances(x, mean, factors.astype(store), impl=impl)
        assert found.dtype == np.float32
        assert found.tolist() == [[np.float32(math.sqrt(153)), 5]]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 8, 9, 15])
def test_distance_is_eq_2(rng, impl, d):
    """Eq. 2 in scalar float64 loops."""
    x, mean, _ = arrays(rng, 2, 4, d)
    sigma = covariances(rng, 4, d)
    found = distances(x, mean, pack(factors_of(sigma)).float(), impl=impl)
    whole = torch.linalg.inv(sigma).tolist()
    for b in range(2):
        for p in range(4):
            delta = [float(x[b, p, i]) - float(mean[p, i]) for i in range(d)]
            square = math.fsum(
                delta[i] * whole[p][i][j] * delta[j] for i in range(d) for j in range(d)
            )
            # Largest difference measured: 1e-6.
            assert found[b, p] == pytest.approx(math.sqrt(square), rel=1e-5)


def test_float16_loses_a_thousandth_and_never_the_sign(rng):
    """Also where the vector lies in the direction of the least distance."""
    sigma = covariances(rng, 50, 30)
    least = torch.linalg.eigh(sigma).eigenvectors[:, :, -1:].mT.contiguous()  # (P, 1, D)
    x = torch.cat([least, torch.from_numpy(rng.standard_normal((50, 20, 30)))], 1)
    x = x.transpose(0, 1).float().contiguous()  # (B, P, D)
    factors = pack(factors_of(sigma))
    exact = distances(x, torch.zeros(50, 30), factors.float())
    found = distances(x, torch.zeros(50, 30), factors.half())
    assert (found > 0).all() and (exact > 0).all()
    assert np.abs(found / exact - 1)[1:].max() < 2e-3  # measured: 5e-4
    np.testing.assert_array_equal(
        found, distances(x, torch.zeros(50, 30), factors.half().float())
    )


def test_every_float16_is_converted_alike_with_and_without_the_processors_help():
    """All 65,536 patterns, from every place of a vector of eight; NaN in its quiet form."""
    halves = np.arange(1 << 16, dtype=np.uint16)
    expected = halves.view(np.float16).astype(np.float32)
    found = np.empty((2, len(halves)), np.float32)
    for out, portably in zip(found, (True, False)):
        to_float32(halves, out, portably)
        np.testing.assert_array_equal(np.isnan(out), np.isnan(expected))
        known = ~np.isnan(expected)
        assert bits(out[known]) == bits(expected[known])
    assert bits(found[0]) == bits(found[1])
    for first in range(1, 9):
        to_float32(halves[first : first + 1001], found[1, :1001], False)
        assert bits(found[1, :1001]) == bits(found[0, first : first + 1001])
    with pytest.raises(ValueError, match="out of another size"):
        to_float32(halves, found[0, 1:], True)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("d", [1, 2, 3, 4, 6, 7, 8, 13, 100])
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (3, 129), (2, 5)])
def test_kernel_gives_the_bits_of_the_specification(rng, d, shape, store):
    x, mean, packed = arrays(rng, *shape, d, store)
    expected = distances(x, mean, packed, impl="numpy")
    for threads in (1, 2, 3):
        assert bits(distances(x, mean, packed, threads=threads)) == bits(expected)
    found, scratch = np.empty_like(expected), np.empty((2, d), np.float32)
    wide = np.empty(packed.shape[1], np.float32)
    kernel(x, mean, packed.view(np.uint8), found, *scratch, wide, 0, len(mean), portably=True)
    assert bits(found) == bits(expected)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("name", list(adversarial.values(np.random.default_rng(0), 1, np.float32)))
def test_kernel_gives_the_bits_of_the_specification_on_awkward_values(rng, name, store):
    """Infinities make NaN, whose bits are the machine's: they are equal as NaN."""
    shapes = (2, 6, 9), (6, 9), (6, 45)
    x, mean, packed = (adversarial.values(rng, shape, np.float32)[name] for shape in shapes)
    with np.errstate(all="ignore"):
        packed = packed.astype(store)
        found, expected = (distances(x, mean, packed, impl=impl) for impl in IMPLS)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    assert bits(np.nan_to_num(found)) == bits(np.nan_to_num(expected))


@pytest.mark.parametrize("impl", IMPLS)
def test_any_layout_is_read_and_none_changed(rng, impl):
    given = arrays(rng)
    expected = bits(distances(*given, impl=impl))
    for k in range(3):
        for _, array in adversarial.layouts(given[k]):
            before = array.copy()
            changed = [*given[:k], array, *given[k + 1 :]]
            assert bits(distances(*changed, impl=impl)) == expected
            np.testing.assert_array_equal(array, before)
    assert bits(distances(*map(torch.from_numpy, given), impl=impl)) == expected


@pytest.mark.parametrize("impl", IMPLS)
def test_a_vector_alone_has_the_bits_that_it_has_among_others(rng, impl):
    x, mean, packed = arrays(rng, 4, 6, 10)
    whole = distances(x, mean, packed, impl=impl)
    for b in range(4):
        assert bits(distances(x[b : b + 1], mean, packed, impl=impl)) == bits(whole[b])
    order = [3, 0, 5, 1, 4, 2]
    parts = distances(x[:, order], mean[order], packed[order], impl=impl)
    assert bits(parts) == bits(whole[:, order])


def test_shapes_and_types_that_do_not_fit_are_refused(rng):
    x, mean, packed = arrays(rng)
    for bad in (
        (x[0], mean, packed), (x[..., :0], mean[:, :0], packed[:, :0]), (x, mean[:4], packed),
        (x, mean[:, :6], packed), (x, mean, packed[:, :27]), (x, mean, packed[:4]),
    ):  # fmt: skip
        with pytest.raises(InputError, match="must be .B, P, D., .P, D. and .P, D .D . 1. / 2."):
            distances(*bad)
    for bad in (
        (x.astype(np.float64), mean, packed), (x, mean.astype(np.float16), packed),
        (x, mean, packed.astype(np.int64)), (x, mean, packed.astype(np.float64)),
        (x, mean, packed.astype(np.int16)),
    ):  # fmt: skip
        with pytest.raises(InputError, match="x and mean must be float32 and factors float32 or"):
            distances(*bad)
    with pytest.raises(InputError, match="impl"):
        distances(x, mean, packed, impl="c")


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"x": (3, 5, 0)}, "without entries"),
        ({"mean": (4, 7)}, "x and mean differ"),
        ({"mean": (5, 6)}, "x and mean differ"),
        ({"factors": (4, 112)}, "the factors have another size"),
        ({"factors": (5, 111)}, "the factors have another size"),
        ({"factors": (5, 55)}, "the factors have another size"),
        ({"out": (3, 4)}, "x and out differ"),
        ({"out": (2, 5)}, "x and out differ"),
        ({"delta": (6,)}, "scratch of another size"),
        ({"y": (8,)}, "scratch of another size"),
        ({"wide": (27,)}, "scratch of another size"),
        ({"start": -1}, "positions out of range"),
        ({"start": 3, "stop": 2}, "positions out of range"),
        ({"stop": 6}, "positions out of range"),
    ],
)
def test_kernel_refuses(changes, sentence):
    shapes = dict(
        x=(3, 5, 7), mean=(5, 7), factors=(5, 112), out=(3, 5), delta=(7,), y=(7,), wide=(28,)
    )
    arguments = {**shapes, "start": 0, "stop": 5, **changes}
    kinds = {"factors": np.uint8}
    values = [
        np.zeros(v, kinds.get(name, np.float32)) if isinstance(v, tuple) else v
        for name, v in arguments.items()
    ]
    with pytest.raises(ValueError, match=sentence):
        kernel(*values)
