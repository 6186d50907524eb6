"""k-centre greedy: the fast algorithm beside plain sweeps, in one run.

    python bench/coreset.py [--points 40960] [--columns 384] [--steps 100] [--features FILE.npy]

Checks first, then times. The fast algorithm runs to the end, best of --repeat. A plain sweep
does the same work for every centre, so it runs for --steps centres, and its total is counted
twice: from the median step and, in its favour, from its fastest step; the factor is that of
the fastest step. `--full` runs the plain sweeps to the end and compares all indices.
Data: the first rows of FILE.npy (float32), or made here: "ellipsoid", Gaussian with a
spectrum that decays like that of network features, and "ball", Gaussian with equal
variances, where distances differ so little that hardly anything can be pruned.
"""

import argparse
import os
import sys
import time

import numpy as np
import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from tiled_ref._arrays import thread_count  # noqa: E402
from tiled_ref.models.coreset import k_centre_greedy, squared_distances  # noqa: E402


def made(kind, n, d, seed=0):
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((n, d), dtype=np.float32)
    if kind == "ellipsoid":
        points *= np.arange(1, d + 1, dtype=np.float32) ** -0.7
    return points


def sweep_product(points, first):
    """|x|^2 - 2 x.c + |c|^2 in float32 by one matrix-vector product a step (torch, all cores).

    The fastest plain sweep found; its indices differ where two points nearly tie.
    """
    x = torch.from_numpy(points)
    x = x - x.mean(0)
    norms = x.square().sum(1)
    minimum, centre = torch.full_like(norms, np.inf), first
    product = torch.empty_like(norms)
    while True:
        torch.mv(x, x[centre], out=product)
        product.mul_(-2).add_(norms)
        torch.minimum(minimum, product.add_(norms[centre]), out=minimum)
        centre = int(minimum.argmax())
        minimum[centre] = -1
        yield centre


def sweep_difference(points, first):
    """sum (x - c)^2 in float32, torch, in chunks that stay in the caches."""
    x = torch.from_numpy(points)
    minimum, centre = torch.full((len(x),), np.inf), first
    while True:
        for part, least in zip(x.split(1024), minimum.split(1024)):
            torch.minimum(least, (part - x[centre]).square_().sum(1), out=least)
        centre = int(minimum.argmax())
        minimum[centre] = -1
        yield centre


def sweep_pairwise(points, first):
    """torch.nn.functional.pairwise_distance over the whole table, as anomalib 1.x does."""
    x = torch.from_numpy(points)
    minimum, centre = torch.full((len(x),), np.inf), first
    while True:
        distance = torch.nn.functional.pairwise_distance(x, x[centre : centre + 1])
        minimum = torch.minimum(minimum, distance)
        centre = int(minimum.argmax())
        minimum[centre] = -1
        yield centre


def sweep_twin(points, first):
    """The steps of impl="numpy", the specification: float64 in the written order."""
    points = np.asfortranarray(points)
    minimum, centre = np.full(len(points), np.inf), first
    while True:
        minimum = np.minimum(minimum, squared_distances(points, centre))
        centre = int(np.argmax(minimum))
        minimum[centre] = -1
        yield centre


PLAIN = [
    ("plain, x.c products (float32)", sweep_product),
    ("plain, differences (float32)", sweep_difference),
    ("plain, pairwise_distance (float32)", sweep_pairwise),
    ("plain, the twin (float64, exact)", sweep_twin),
]


def run(name, points, args):
    n, d = points.shape
    count = max(1, int(args.ratio * n))
    print(f"\n{name}: {n} x {d}, {count} centres", flush=True)
    check = k_centre_greedy(points, min(args.check, count), 0, impl="numpy")
    if not np.array_equal(check, k_centre_greedy(points, len(check), 0)):
        raise SystemExit("the fast algorithm is wrong; nothing is timed")
    print(f"  first {len(check)} indices equal to the twin's", flush=True)
    best = np.inf
    for _ in range(args.repeat):
        start = time.perf_counter()
        chosen = k_centre_greedy(points, count, 0)
        best = min(best, time.perf_counter() - start)
    print(f"  {'fast, exact':34s} {best:8.2f} s", flush=True)
    for label, sweep in PLAIN:
        steps = count if args.full else min(args.steps, count)
        if sweep is sweep_twin and not args.full:
            steps = max(1, steps // 4)
        indices, times, steps_of = [], [], sweep(points, 0)
        for _ in range(steps):
            start = time.perf_counter()
            indices.append(next(steps_of))
            times.append(time.perf_counter() - start)
        equal = int(np.argmin(np.append(np.array(indices) == chosen[:steps], False)))
        median, fastest = np.median(times) * count, np.min(times) * count
        print(
            f"  {label:34s} {median:8.2f} s  fastest step {fastest:8.2f} s  "
            f"{fastest / best:6.1f} x  {equal} of {steps} indices equal",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--points", type=int, default=40960)
    add("--columns", type=int, default=384)
    add("--ratio", type=float, default=0.1)
    add("--steps", type=int, default=100, help="centres a plain sweep is timed for")
    add("--check", type=int, default=40, help="indices compared with the twin first")
    add("--repeat", type=int, default=3, help="runs of the fast algorithm, best kept")
    add("--full", action="store_true", help="run the plain sweeps to the end")
    add("--features", metavar="FILE.npy", help="float32 table, its first --points rows")
    args = parser.parse_args()
    print(
        f"{os.cpu_count()} cores, {thread_count()} threads for the fast algorithm, "
        f"{torch.get_num_threads()} for torch {torch.__version__}, numpy {np.__version__}"
    )
    if args.features:
        table = np.load(args.features, mmap_mode="r")
        run(os.path.basename(args.features), np.array(table[: args.points], np.float32), args)
    for kind in ("ellipsoid", "ball"):
        run(kind, made(kind, args.points, args.columns), args)


if __name__ == "__main__":
    main()
