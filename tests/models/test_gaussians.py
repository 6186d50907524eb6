"""Distances from packed Gaussians: Defard et al. Eq. 2, the kernel and its specification."""

import math

import adversarial
import numpy as np
import pytest
import torch

from tiled_ref.models.gaussians import distances, pack, unpack
from tiled_ref.support import arrays
from tiled_ref.support.errors import InputError

kernel = arrays.kernel("_mahalanobis").mahalanobis
IMPLS = ("cython", "numpy")


def symmetric(rng, n, d):
    """Positive definite float32 (n, d, d), exactly symmetric."""
    root = rng.standard_normal((n, d, d)).astype(np.float32)
    matrices = torch.from_numpy(root @ root.swapaxes(1, 2))
    return (matrices + matrices.mT) / 2


def arrays(rng, n_images=3, n=5, d=7):
    x = rng.standard_normal((n_images, n, d)).astype(np.float32)
    mean = rng.standard_normal((n, d)).astype(np.float32)
    return x, mean, pack(symmetric(rng, n, d)).numpy()


def bits(array):
    return array.tobytes()


def test_triangles_row_by_row():
    matrices = torch.tensor([[[1.0, 2.0, 3.0], [2.0, 4.0, 5.0], [3.0, 5.0, 6.0]]])
    assert pack(matrices).tolist() == [[1, 2, 3, 4, 5, 6]]
    assert torch.equal(unpack(pack(matrices)), matrices)


@pytest.mark.parametrize("d", [1, 2, 7, 100])
def test_unpacking_is_the_inverse_of_packing(rng, d):
    matrices = symmetric(rng, 3, d)
    packed = pack(matrices)
    assert packed.shape == (3, d * (d + 1) // 2)
    assert torch.equal(unpack(packed), matrices)


@pytest.mark.parametrize("impl", IMPLS)
def test_distance_by_hand(impl):
    """Sigma^-1 = [[1, 2], [2, 8]], x - mu = (3, 2): 9 + 2 * 2 * 6 + 32 = 65; with diag(1, 4)
    9 + 16 = 25."""
    x = np.array([[[3.0, 2.0], [4.0, 3.0]]], np.float32)
    mean = np.array([[0, 0], [1, 1]], np.float32)
    packed = np.array([[1, 2, 8], [1, 0, 4]], np.float32)
    found = distances(x, mean, packed, impl=impl)
    assert found.dtype == np.float32
    assert found.tolist() == [[np.float32(math.sqrt(65)), 5]]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 8, 9, 15])
def test_distance_is_eq_2(rng, impl, d):
    """Eq. 2 in scalar float64 loops."""
    x, mean, packed = arrays(rng, 2, 4, d)
    whole = unpack(torch.from_numpy(packed)).tolist()
    found = distances(x, mean, packed, impl=impl)
    for b in range(2):
        for p in range(4):
            delta = [float(x[b, p, i]) - float(mean[p, i]) for i in range(d)]
            square = math.fsum(
                delta[i] * whole[p][i][j] * delta[j] for i in range(d) for j in range(d)
            )
            # Largest difference measured: 4e-7.
            assert found[b, p] == pytest.approx(math.sqrt(square), rel=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_square_below_zero_counts_as_zero(impl):
    x = np.ones((1, 1, 1), np.float32)
    assert distances(x, 0 * x[0], np.array([[-1e-9]], np.float32), impl=impl) == 0


@pytest.mark.parametrize("d", [1, 2, 3, 4, 6, 7, 8, 13, 100])
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (3, 129), (2, 5)])
def test_kernel_gives_the_bits_of_the_specification(rng, d, shape):
    x, mean, packed = arrays(rng, *shape, d)
    expected = distances(x, mean, packed, impl="numpy")
    for threads in (1, 2, 3):
        assert bits(distances(x, mean, packed, threads=threads)) == bits(expected)


@pytest.mark.parametrize("name", list(adversarial.values(np.random.default_rng(0), 1, np.float32)))
def test_kernel_gives_the_bits_of_the_specification_on_awkward_values(rng, name):
    """Infinities make NaN, whose bits are the machine's: they are equal as NaN."""
    shapes = (2, 6, 9), (6, 9), (6, 45)
    x, mean, packed = (adversarial.values(rng, shape, np.float32)[name] for shape in shapes)
    with np.errstate(all="ignore"):
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
    for bad in ((x.astype(np.float64), mean, packed), (x, mean, packed.astype(np.int64))):
        with pytest.raises(InputError, match="must be float32, got"):
            distances(*bad)
    with pytest.raises(InputError, match="impl"):
        distances(x, mean, packed, impl="c")


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"x": (3, 5, 0)}, "without entries"),
        ({"mean": (4, 7)}, "x and mean differ"),
        ({"mean": (5, 6)}, "x and mean differ"),
        ({"packed": (4, 28)}, "another size"),
        ({"packed": (5, 27)}, "another size"),
        ({"out": (3, 4)}, "x and out differ"),
        ({"out": (2, 5)}, "x and out differ"),
        ({"delta": (6,)}, "scratch of another size"),
        ({"y": (8,)}, "scratch of another size"),
        ({"start": -1}, "positions out of range"),
        ({"start": 3, "stop": 2}, "positions out of range"),
        ({"stop": 6}, "positions out of range"),
    ],
)
def test_kernel_refuses(changes, sentence):
    shapes = dict(x=(3, 5, 7), mean=(5, 7), packed=(5, 28), out=(3, 5), delta=(7,), y=(7,))
    arguments = {**shapes, "start": 0, "stop": 5, **changes}
    values = [np.zeros(v, np.float32) if isinstance(v, tuple) else v for v in arguments.values()]
    with pytest.raises(ValueError, match=sentence):
        kernel(*values)
