"""Times of the kernels beside everything they are meant to beat, in one run.

    python bench/kernels.py                     the table that bench/README.md shows
    python bench/kernels.py --only aupro        untile, seams, distances, blur, aupro or memory
    python bench/kernels.py --scale 0.1         fewer images, for a quick look

Every result is compared with the others' before anything is timed. Rows are never dropped:
where a kernel loses, the table says so. Times are the minimum and the median of --repeat
runs, the contenders of a table taking turns, so that a busy moment hits all of them.
"""

import argparse
import importlib
import os
import platform
import statistics
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from tiled_ref import merging, metrics, smoothing  # noqa: E402
from tiled_ref.gaussian import gaussian_taps, reflected  # noqa: E402
from tiled_ref.models import gaussians  # noqa: E402
from tiled_ref.models.maps import gaussian_blur  # noqa: E402
from tiled_ref.setups import SETUPS  # noqa: E402

GRID = SETUPS["ENS9"].input_grid


def table(title, contenders, repeat, baseline):
    """Time {name: (function, runs or None)} in turns; print rows relative to the baselines."""
    times = {name: [] for name in contenders}
    for k in range(repeat):
        for name, (function, runs) in contenders.items():
            if runs is not None and k >= runs:
                continue
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    print(f"\n### {title}\n")
    heads = " | ".join(f"of {name}" for name in baseline)
    print(f"| | min, ms | median, ms | {heads} |")
    print("|---|--:|--:|" + "--:|" * len(baseline))
    for name, seconds in times.items():
        low, middle = min(seconds), statistics.median(seconds)
        ratios = " | ".join(f"{low / min(times[b]):.2f}" for b in baseline)
        print(f"| {name} | {low * 1e3:.1f} | {middle * 1e3:.1f} | {ratios} |", flush=True)


def peer(name):
    """An optional package, or None after a line that says it is not there."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        print(f"\nskipped: {name} is not importable here ({error})")
        return None


def bench_untile(scale, repeat):
    n = max(1, int(32 * scale))
    maps = np.random.default_rng(0).random((3, 3, n, 256, 256), np.float32)
    grid_result = merging.untile_average(maps, GRID, impl="numpy")
    out = np.empty_like(grid_result)
    kernel = merging._arrays.kernel("_untile").untile
    kernel(maps, out, 128, 128, 0, n)
    assert out.tobytes() == grid_result.tobytes()
    for threads in (1, 2):
        assert (merging.untile_average(maps, GRID, threads=threads) == grid_result).all()
    total = maps.nbytes + out.nbytes
    source, target = np.ones(total, np.uint8), np.ones(total, np.uint8)
    half, half_target = source[: total // 2], target[: total // 2]

    def into(threads):
        def work(span):
            kernel(maps, out, 128, 128, *span)

        return lambda: merging._arrays.run_threads(
            work, merging._arrays.spans(n, threads), threads
        )

    count = torch.ones(1, 1, 512, 512)
    count = torch.nn.functional.unfold(count, 256, stride=128)
    count = torch.nn.functional.fold(count, 512, 256, stride=128)
    columns = torch.from_numpy(maps).reshape(9, n, -1).permute(1, 2, 0).contiguous()

    def fold():
        return (torch.nn.functional.fold(columns, 512, 256, stride=128) / count)[:, 0]

    assert np.allclose(fold().numpy(), grid_result, atol=1e-6)
    contenders = {
        "numpy.copyto": (lambda: np.copyto(target, source), None),
        "numpy.copyto, half the bytes": (lambda: np.copyto(half_target, half), None),
        "kernel, 1 thread, into a given array": (into(1), None),
        "kernel, 2 threads, into a given array": (into(2), None),
        "untile_average, 1 thread": (
            lambda: merging.untile_average(maps, GRID, threads=1), None),
        "untile_average, 2 threads": (
            lambda: merging.untile_average(maps, GRID, threads=2), None),
        "twin (NumPy)": (lambda: merging.untile_average(maps, GRID, impl="numpy"), 3),
        "torch fold / count": (fold, 3),
    }  # fmt: skip
    anomalib = peer("anomalib.pipelines.tiled_ensemble.components.utils.ensemble_tiling")
    if anomalib:
        tiler = anomalib.EnsembleTiler(tile_size=256, stride=128, image_size=512)
        tiler.tile(torch.zeros(n, 1, 512, 512))
        tiles = torch.from_numpy(maps)[:, :, :, None]
        assert np.allclose(tiler.untile(tiles)[:, 0].numpy(), grid_result, atol=1e-6)
        contenders["anomalib tiler"] = (lambda: tiler.untile(tiles), 3)
    table(
        f"Untiling: 9 x {n} tiles of 256 x 256 to {n} maps of 512 x 512, float32 "
        f"({total / 2**20:.0f} MiB in and out)",
        contenders, repeat, ["numpy.copyto"],
    )  # fmt: skip


def bench_seams(scale, repeat):
    n = max(1, int(32 * scale))
    maps = np.random.default_rng(1).random((n, 512, 512), np.float32)
    expected = smoothing.smooth_seams(maps, GRID, impl="numpy")
    for threads in (1, 2):
        assert smoothing.smooth_seams(maps, GRID, threads=threads).tobytes() == expected.tobytes()
    half = torch.from_numpy(gaussian_taps(2.0, np.float32))
    taps = torch.cat([half.flip(0), half[1:]])
    square = torch.outer(taps, taps)[None, None]
    mask = torch.from_numpy(smoothing.seam_mask(GRID))
    tensor = torch.from_numpy(maps)

    def whole_map():
        padded = torch.nn.functional.pad(tensor[:, None], (8,) * 4, mode="reflect")
        return torch.where(mask, torch.nn.functional.conv2d(padded, square)[:, 0], tensor)

    def separable():
        padded = torch.nn.functional.pad(tensor[:, None], (8,) * 4, mode="reflect")
        rows = torch.nn.functional.conv2d(padded, taps[None, None, :, None])
        both = torch.nn.functional.conv2d(rows, taps[None, None, None, :])[:, 0]
        return torch.where(mask, both, tensor)

    assert np.allclose(whole_map().numpy(), expected, atol=1e-5)
    assert np.allclose(separable().numpy(), expected, atol=1e-5)
    torch_threads = torch.get_num_threads()
    conv, twin = f"conv2d 17 x 17 and mask ({torch_threads} threads)", "twin (NumPy)"
    contenders = {
        conv: (whole_map, 5),
        f"conv2d 17 x 1, 1 x 17 and mask ({torch_threads} threads)": (separable, 5),
        twin: (lambda: smoothing.smooth_seams(maps, GRID, impl="numpy"), 5),
        "smooth_seams, 1 thread": (
            lambda: smoothing.smooth_seams(maps, GRID, threads=1), None),
        "smooth_seams, 2 threads": (
            lambda: smoothing.smooth_seams(maps, GRID, threads=2), None),
    }  # fmt: skip
    anomalib = peer("anomalib.pipelines.tiled_ensemble.components.smoothing")
    tiling = peer("anomalib.pipelines.tiled_ensemble.components.utils.ensemble_tiling")
    if anomalib and tiling:
        tiler = tiling.EnsembleTiler(tile_size=256, stride=128, image_size=512)

        def anomalib_seams():
            batch = SimpleNamespace(anomaly_map=tensor.clone())  # it writes into its input
            anomalib.SmoothingJob("cpu", [batch], 0.1, 2, tiler).run()
            return batch.anomaly_map

        assert np.allclose(anomalib_seams().numpy(), expected, atol=1e-5)
        contenders["anomalib SmoothingJob"] = (anomalib_seams, 3)
    title = f"Seam smoothing: {n} maps of 512 x 512, float32, ENS9's band"
    table(title, contenders, repeat, [conv, twin])


def bench_distances(scale, repeat):
    """PaDiM's distances of one image from the Gaussians of nine locations."""
    n, d, locations = max(1, int(4096 * scale)), 100, 9
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, n, d), np.float32)
    mean = rng.standard_normal((n, d), np.float32)
    whole, packed = [], []
    for _ in range(locations):
        roots = torch.from_numpy(rng.standard_normal((n, d, d), np.float32))
        matrices = roots @ roots.mT + torch.eye(d)
        matrices = (matrices + matrices.mT) / 2
        whole.append(matrices)
        packed.append(gaussians.pack(matrices).numpy())
    delta = torch.from_numpy(x - mean).transpose(0, 1).contiguous()  # (P, 1, D)

    def batched():
        return [(torch.bmm(delta, m) * delta).sum(-1).sqrt() for m in whole]

    def kernel(threads):
        return lambda: [gaussians.mahalanobis(x, mean, m, threads=threads) for m in packed]

    def twin():
        return [gaussians.mahalanobis(x, mean, m, impl="numpy") for m in packed]

    expected = twin()
    for threads in (1, 2):
        for got, wanted in zip(kernel(threads)(), expected):
            assert got.tobytes() == wanted.tobytes(), "kernel and twin differ"
    worst = max(abs(a[:, 0].numpy() / b[0] - 1).max() for a, b in zip(batched(), expected))
    assert worst < 1e-4, f"torch differs by {worst}"
    torch_name = f"torch.bmm with whole matrices, {torch.get_num_threads()} threads"
    reading = f"reading the packed matrices, {torch.get_num_threads()} threads"
    tensors = [torch.from_numpy(m) for m in packed]
    table(
        f"Distances: 1 image, 9 x {n} Gaussians of 100 dimensions, float32 "
        f"({sum(m.nbytes for m in packed) >> 20} MiB packed)",
        {
            torch_name: (batched, None),
            reading: (lambda: [m.sum() for m in tensors], None),
            "kernel, 1 thread": (kernel(1), None),
            "kernel, 2 threads": (kernel(2), None),
            "twin (NumPy)": (twin, 3),
        },
        repeat,
        [torch_name, reading],
    )


def bench_blur(scale, repeat):
    """The models' blur of their maps, sigma 4: products with bands, or convolutions."""
    half = gaussian_taps(4.0, np.float32)
    taps = torch.from_numpy(np.concatenate([half[:0:-1], half]))
    threads = f"{torch.get_num_threads()} threads"
    for n, size in ((max(1, int(9 * scale)), 256), (1, 512)):
        maps = torch.rand(n, size, size, generator=torch.Generator().manual_seed(0))
        places = torch.from_numpy(reflected(size, len(half) - 1))

        def convolved(maps=maps, places=places):
            padded = maps[:, None].index_select(2, places)
            padded = torch.conv2d(padded, taps[None, None, :, None]).index_select(3, places)
            return torch.conv2d(padded, taps[None, None, None])[:, 0]

        assert torch.allclose(gaussian_blur(maps), convolved(), rtol=1e-5)
        name = f"conv2d 33 x 1, 1 x 33, {threads}"
        contenders = {
            name: (convolved, None),
            f"gaussian_blur, {threads}": (lambda maps=maps: gaussian_blur(maps), None),
        }
        table(f"Blur of anomaly maps: {n} x {size} x {size}, float32", contenders, repeat, [name])


def ranking_set(n):
    """n smooth maps of 512 x 512 and masks with one to three regions in two images of three."""
    rng = np.random.default_rng(2)
    maps, masks = np.empty((n, 512, 512), np.float32), np.zeros((n, 512, 512), bool)
    for k in range(n):
        coarse = torch.from_numpy(rng.standard_normal((1, 1, 64, 64)).astype(np.float32))
        fine = torch.nn.functional.interpolate(coarse, size=512, mode="bicubic")[0, 0].numpy()
        maps[k] = 5 + 0.1 * fine + 0.001 * rng.standard_normal((512, 512))
        for _ in range(rng.integers(1, 4) if k % 3 else 0):
            h, w = rng.integers(8, 80, 2)
            y, x = rng.integers(0, 512 - h), rng.integers(0, 512 - w)
            masks[k, y : y + h, x : x + w] = True
        maps[k][masks[k]] += 0.1
    return maps, masks


def plain_aupro(maps, masks, limit=0.3):
    """The MVTec rule in plain NumPy: argsort all pixels, add up, integrate. Labels included."""
    labels = metrics.label_regions(masks)
    area = np.bincount(labels.ravel())
    n_regions = area.size - 1
    order = np.argsort(-maps, axis=None)
    scores, labels = maps.ravel()[order], labels.ravel()[order]
    normal = labels == 0
    weight = np.where(normal, 0.0, 1.0 / area[labels])
    fpr, pro = np.cumsum(normal) / normal.sum(), np.cumsum(weight) / n_regions
    last = np.append(scores[1:] != scores[:-1], True)  # equal scores are one point
    fpr, pro = np.append(0, fpr[last]), np.append(0, pro[last])
    n = np.searchsorted(fpr, limit, "right")
    x, y = fpr[:n], pro[:n]
    if n < fpr.size:
        x = np.append(x, limit)
        y = np.append(y, pro[n - 1] + (pro[n] - pro[n - 1]) * (limit - fpr[n - 1])
                      / (fpr[n] - fpr[n - 1]))  # fmt: skip
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1])) / 2 / limit)


def bench_aupro(scale, repeat):
    n = max(1, int(100 * scale))
    maps, masks = ranking_set(n)
    regions = int(metrics.label_regions(masks).max())
    value, plain = metrics.aupro(maps, masks), plain_aupro(maps, masks)
    print(f"\nAUPRO {value!r}; plain NumPy differs by {abs(value - plain):.1e}")
    assert abs(value - plain) < 1e-12
    assert metrics.aupro(maps, masks, threads=1) == value
    assert metrics.pixel_metrics(lambda: zip(maps, masks)).aupro == value
    assert metrics.aupro(maps, masks, impl="numpy") == value
    flat = maps.ravel()

    def stream(threads):
        return lambda: metrics.pixel_metrics(lambda: zip(maps, masks), threads=threads)

    contenders = {
        "numpy.sort of the scores": (lambda: np.sort(flat), None),
        "plain NumPy": (lambda: plain_aupro(maps, masks), 3),
        "aupro, 1 thread": (lambda: metrics.aupro(maps, masks, threads=1), None),
        "aupro, 2 threads": (lambda: metrics.aupro(maps, masks, threads=2), None),
        "pixel_auroc, 1 thread": (lambda: metrics.pixel_auroc(maps, masks, threads=1), None),
        "pixel_auroc, 2 threads": (lambda: metrics.pixel_auroc(maps, masks, threads=2), None),
        "pixel_metrics (both, streamed), 1 thread": (stream(1), None),
        "pixel_metrics (both, streamed), 2 threads": (stream(2), None),
        "label_regions, 1 thread": (lambda: metrics.label_regions(masks, threads=1), None),
        "label_regions, 2 threads": (lambda: metrics.label_regions(masks, threads=2), None),
        "aupro, twin (NumPy)": (lambda: metrics.aupro(maps, masks, impl="numpy"), 1),
    }
    anomalib = peer("anomalib.metrics")
    if anomalib:
        score_maps, ground = torch.from_numpy(maps), torch.from_numpy(masks).int()

        def anomalib_aupro():
            metric = anomalib.aupro._AUPRO(fpr_limit=0.3)
            metric.update(score_maps, ground)
            return float(metric.compute())

        print(f"anomalib AUPRO {anomalib_aupro()!r}")
        contenders["anomalib AUPRO"] = (anomalib_aupro, 1)
    adeval = peer("adeval")
    if adeval and not hasattr(np, "trapz"):
        print("\nskipped: adeval calls numpy.trapz, which NumPy 2.4 has no longer")
    elif adeval:

        def adeval_aupro():
            evaluator = adeval.EvalAccumulator(0, 1, float(maps.min()), float(maps.max()))
            evaluator.add_anomap_batch(maps, masks.view(np.uint8))
            evaluator.add_image([0.0, 1.0], [0, 1])  # it asks for image scores too
            return float(evaluator.summary()["p_aupro"])

        print(f"ADEval AUPRO {adeval_aupro()!r}")
        contenders["ADEval, 1000 bins"] = (adeval_aupro, 1)
    table(
        f"AUPRO: {n} maps of 512 x 512, float32, {regions} regions, "
        f"{100 * masks.mean():.1f} % of the pixels anomalous",
        contenders, repeat, ["numpy.sort of the scores", "plain NumPy"],
    )  # fmt: skip
    rng = np.random.default_rng(3)
    del contenders
    contenders = {"numpy.sort of the scores": (lambda: np.sort(flat), None)}
    others = {"5 % anomalous": 0.05, "half anomalous, as noise": 0.5}
    for name, part in others.items():
        noise = rng.random(masks.shape, np.float32) < part
        if part < 0.1:
            noise = np.zeros_like(masks)
            noise[:, 200:260, 100:318] = True
        for threads in (1, 2):
            contenders[f"aupro, {name}, {threads} thread{'s'[: threads - 1]}"] = (
                lambda noise=noise, threads=threads: metrics.aupro(maps, noise, threads=threads),
                3,
            )
    ties = np.round(maps, 2)
    contenders["aupro, ties: two decimals, 2 threads"] = (
        lambda: metrics.aupro(ties, masks, threads=2), 3)  # fmt: skip
    wide = maps.astype(np.float64)
    contenders["aupro, float64, 2 threads"] = (lambda: metrics.aupro(wide, masks, threads=2), 3)
    table("AUPRO, other sets of the same size", contenders, repeat, ["numpy.sort of the scores"])


MEMORY = """
import sys
sys.path[:0] = ["bench", "."]
import kernels
from tiled_ref import metrics
maps, masks = kernels.ranking_set({n})

def status(field):
    with open("/proc/self/status") as lines:
        return next(int(x.split()[1]) * 1024 for x in lines if x.startswith(field))

before = status("VmRSS:")
with open("/proc/self/clear_refs", "w") as reset:
    reset.write("5")
{call}
high = status("VmHWM:")
print(f"{{(high - before) / maps.nbytes:.2f}} {{high / 2**20:.0f}}")
"""


def bench_memory(scale, repeat):
    n = max(1, int(200 * scale))
    calls = {
        "aupro": "metrics.aupro(maps, masks)",
        "pixel_auroc": "metrics.pixel_auroc(maps, masks)",
        "pixel_metrics, streamed": "metrics.pixel_metrics(lambda: zip(maps, masks))",
    }
    print(f"\n### Memory: {n} maps of 512 x 512, float32\n")
    print("| | beyond the inputs, of the scores | whole process, MiB |\n|---|--:|--:|")
    for name, call in calls.items():
        result = subprocess.run(
            [sys.executable, "-c", MEMORY.format(n=n, call=call)],
            capture_output=True, text=True, check=True,
            cwd=os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."),
        )  # fmt: skip
        part, whole = result.stdout.split()
        print(f"| {name} | {part} | {whole} |", flush=True)


def main():
    benches = {"untile": bench_untile, "seams": bench_seams, "distances": bench_distances,
               "blur": bench_blur, "aupro": bench_aupro, "memory": bench_memory}  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=benches)
    parser.add_argument("--scale", type=float, default=1.0, help="part of the images")
    parser.add_argument("--repeat", type=int, default=15, help="runs of the fast contenders")
    args = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores; Python {platform.python_version()}, "
        f"NumPy {np.__version__}, torch {torch.__version__}"
    )
    for name, bench in benches.items():
        if args.only in (None, name):
            bench(args.scale, args.repeat)


if __name__ == "__main__":
    main()
