"""PaDiM's distances and PatchCore's coreset beside plain algorithms and limits."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tiled_ref.models import gaussians
from tiled_ref.models.search.coreset import k_centre_greedy

# ---------------------------------------------------------- distances from Gaussians


@pytest.fixture(scope="module")
def one_image(sized):
    """The features of one image and the Gaussians of nine locations."""
    n, d = sized(tiny=64, usual=1024, full=4096), 100
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, n, d), np.float32)
    mean = rng.standard_normal((n, d), np.float32)
    whole = [torch.from_numpy(rng.standard_normal((n, d, d), np.float32)).triu() for _ in range(9)]
    packed = [gaussians.pack(factors).numpy() for factors in whole]
    halves = [factors.astype(np.float16) for factors in packed]
    size = sum(m.nbytes for m in packed) / 2**20
    title = f"Distances: 1 image, 9 x {n} Gaussians of {d} dimensions, float32 ({size:.0f} MiB)"
    expected = gaussians.distances_each([x] * 9, [mean] * 9, packed, impl="numpy")
    return SimpleNamespace(
        title=title, x=x, mean=mean, whole=whole, packed=packed, halves=halves, expected=expected
    )


def reading(case):
    tensors = [torch.from_numpy(m) for m in case.packed]
    return lambda: [m.sum() for m in tensors]


def distances(factors="packed", **options):
    def make(case):
        xs, means = [case.x] * 9, [case.mean] * 9
        return lambda: gaussians.distances_each(xs, means, getattr(case, factors), **options)

    return make


def batched_products(case):
    delta = torch.from_numpy(case.x - case.mean).transpose(0, 1).contiguous()  # (P, 1, D)
    return lambda: [torch.bmm(delta, m).square().sum(-1).sqrt().mT for m in case.whole]


DISTANCES = {
    "torch sum of the packed matrices (reading them)": (reading, None),
    "distances_each, 1 thread": (distances(threads=1), 0),
    "distances_each, 2 threads": (distances(threads=2), 0),
    "distances_each, float16, 1 thread": (distances("halves", threads=1), 2e-3),
    "distances_each, float16, 2 threads": (distances("halves", threads=2), 2e-3),
    "twin (NumPy)": (distances(impl="numpy"), 0),
    "torch.bmm with whole matrices": (batched_products, 1e-4),
}


@pytest.mark.parametrize("contender", DISTANCES)
def test_distances(measure, one_image, contender):
    measure(one_image, DISTANCES, contender)


# ------------------------------------------------------------ k-centre greedy coreset


@pytest.fixture(scope="module", params=["ellipsoid", "ball"])
def table(request, sized):
    """Gaussian points: a spectrum that decays like that of network features, or equal variances,
    where distances differ so little that almost nothing can be pruned."""
    n, d = sized(tiny=256, usual=8192, full=40960), sized(tiny=32, usual=384, full=384)
    points = np.random.default_rng(0).standard_normal((n, d), dtype=np.float32)
    if request.param == "ellipsoid":
        points *= np.arange(1, d + 1, dtype=np.float32) ** -0.7
    count = n // 10
    return SimpleNamespace(
        title=f"Coreset: {n} x {d} ({request.param}), {count} centres",
        points=points, count=count, expected=k_centre_greedy(points, count, 0),
    )  # fmt: skip


def sweeping(distances_to):
    """A plain sweep: distances_to(points) returns a function from a centre to the squared
    distance of every point to it."""

    def make(case):
        def chosen():
            apart, centre, indices = distances_to(case.points), 0, []
            minimum = np.full(len(case.points), np.inf, np.float32)
            for _ in range(case.count):
                np.minimum(minimum, apart(centre), out=minimum)
                centre = int(minimum.argmax())
                minimum[centre] = -1
                indices.append(centre)
            return np.array(indices)

        return chosen

    return make


def by_products(points):
    """|x|^2 - 2 x.c + |c|^2 by one matrix-vector product: the fastest plain sweep found."""
    x = torch.from_numpy(points)
    x = x - x.mean(0)
    norms, product = x.square().sum(1), torch.empty(len(x))

    def apart(centre):
        torch.mv(x, x[centre], out=product)
        return product.mul_(-2).add_(norms).add_(norms[centre]).numpy()

    return apart


def by_differences(points):
    """sum (x - c)^2 in chunks that stay in the caches."""
    x, out = torch.from_numpy(points), torch.empty(len(points))

    def apart(centre):
        for part, result in zip(x.split(1024), out.split(1024)):
            torch.sum((part - x[centre]).square_(), 1, out=result)
        return out.numpy()

    return apart


def by_pairwise_distance(points):
    """torch.nn.functional.pairwise_distance over the whole table, as anomalib 1.x does."""
    x = torch.from_numpy(points)
    return lambda c: torch.nn.functional.pairwise_distance(x, x[c : c + 1]).numpy()


def greedy(**options):
    return lambda case: lambda: k_centre_greedy(case.points, case.count, 0, **options)


def nearly_all_equal(found, expected):
    """Equal except for near ties, whose order float32 can change."""
    assert np.isin(found, expected).mean() > 0.99


CORESET = {
    "one matrix-vector product a step (torch, float32)": (
        sweeping(by_products), nearly_all_equal),
    "k_centre_greedy, 1 thread, exact": (greedy(threads=1), 0),
    "k_centre_greedy, 2 threads, exact": (greedy(threads=2), 0),
    "differences in cached chunks (torch, float32)": (
        sweeping(by_differences), nearly_all_equal),
    "pairwise_distance (torch, float32), as anomalib 1.x": (
        sweeping(by_pairwise_distance), nearly_all_equal),
    "twin (NumPy), exact": (greedy(impl="numpy"), 0),
}  # fmt: skip


@pytest.mark.parametrize("contender", CORESET)
def test_coreset(measure, table, contender):
    measure(table, CORESET, contender)
