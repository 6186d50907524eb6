"""Memory and latency for bench/cuda.py, measured in a separate process.

    python -m bench.cuda_jobs JOB        JOB: bench/cuda.py's dict, as JSON

Protocol of the latency: one image in host memory; timed are the copy to the device, tiling, all
models, untiling, smoothing, map and score back on the host. Throughput: batches of 16 (8 for
PatchCore). Results are compared with those of float32 in low mode before anything is timed.
"""

import functools
import json
import statistics
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import torch

from bench.cuda_tables import SIDES
from bench.pipeline import THROUGHPUT_BATCH, made_ensemble
from tiled_ref.data import folder, reading, synthetic
from tiled_ref.running.engine import Engine
from tiled_ref.support.devices import full_precision
from tiled_ref.support.files import atomic_write
from tiled_ref.support.memory import PeakMemory

BOUND = 1e-4  # relative deviation of float32 results


def pictures(job, split, n, size):
    """uint8 (at most n, 3, H, W) of the job's category; cached in OUT by the first call."""
    path = Path(job["out"], f"{split}-{n}-{size[0]}px.npy")
    if not path.is_file():
        images = reading.read_images(getattr(category_of(job), split)[:n], size)
        with atomic_write(path, "wb") as file:
            np.save(file, images)
    return np.load(path)


def category_of(job):
    """The Category of the images."""
    if job["root"]:
        return folder.load(job["root"], job["category"])
    return synthetic.load(None, "board", n_train=job["n_train"])


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(function, device):
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def bytes_of(peak, name):
    read = peak.read()
    return {name: read["peak_memory_bytes"], f"{name}_reserved": read["peak_reserved_bytes"]}


def consume(iterable):
    for _ in iterable:
        pass


def measure_memory(job, arch, name):
    """Train, then predict in low mode: peaks in bytes, and seconds of training.

    name: a setup; or a side in px, for which two locations are trained and used for all.
    """
    setup, job, few = name, job | {"arch": arch}, name.isdigit()
    if few:
        side, tile = (int(px) // job["shrink"] for px in (name, SIDES[0]))
        sizes = {"image_size": [side] * 2, "tile_size": [tile] * 2, "stride": [tile] * 2}
        setup, job = "ENS4", job | sizes | {"shrink": 1, "steps": min(3, job["steps"])}
    ensemble = made_ensemble(job, setup)
    size, batch = ensemble.setup.image_size, THROUGHPUT_BATCH.get(arch, 16)
    train = pictures(job, "train", 2 if few else job["n_train"], size)
    train = np.resize(train, (16, *train.shape[1:])) if few else train
    test = np.resize(train, (batch, *train.shape[1:]))
    models = list(ensemble.setup.models)
    some = models[:2] if few else models
    warm = made_ensemble(job | {"steps": 1}, setup)  # the libraries start in their first call
    consume(warm.each_location(train[:2], train[:1], {}, locations=models[:1]))
    del warm
    peak = PeakMemory(ensemble.device)
    row = {"seconds": timed(
        lambda: consume(ensemble.each_location(train, train[:0], locations=some)), ensemble.device
    )}  # fmt: skip
    row |= {"n_train": len(train), "n_models": len(models), "n_trained": len(ensemble.states)}
    row |= bytes_of(peak, "training")
    first = ensemble.states[models[0]]
    ensemble.states = {model: ensemble.states.get(model, first) for model in models}
    peak = PeakMemory(ensemble.device)
    consume(ensemble.each_location(None, test))
    return row | bytes_of(peak, "low")


@functools.lru_cache(maxsize=1)
def fitted(text, arch, setup):
    """An ensemble in float32, an image of the test set and the prediction for it."""
    job = json.loads(text) | {"arch": arch, "steps": 1}  # on which the latency does not depend
    ensemble = made_ensemble(job, setup)
    ensemble.fit(pictures(job, "train", job["n_train"], ensemble.setup.image_size))
    image = pictures(job, "test", 1, ensemble.setup.image_size)
    return ensemble, image, ensemble.predict(image)


def measure_latency(job, arch, setup, precision, mode):
    """Seconds per pass and images per second, after a comparison with float32 in low mode."""
    if job["device"] == "cpu" and (precision == "float16" or mode == "graph"):
        return {"left_out": "needs a GPU"}
    exact, image, expected = fitted(json.dumps(job | {"keys": None}), arch, setup)
    ensemble = made_ensemble(job | {"arch": arch, "steps": 1}, setup, precision)
    ensemble.states = exact.states
    device, batch = ensemble.device, THROUGHPUT_BATCH.get(arch, 16)
    predict = graph_of(ensemble, image) if mode == "graph" else Engine(ensemble, mode).predict
    found = predict(image)
    deviation = float(np.max([abs(f - e).max() / abs(e).max() for f, e in zip(found, expected)]))
    if precision == "float32" and not deviation <= BOUND:
        raise SystemExit(f"off by {deviation:.1e} of the largest value: nothing is timed")
    limit = job["row_seconds"] / 3
    warmup = passes(lambda: predict(image), device, job["passes"][0], limit)
    times = passes(lambda: predict(image), device, job["passes"][1], limit)
    row = {
        "deviation": deviation, "warmup": len(warmup), "passes": len(times), "batch": batch,
        "latency_ms": 1e3 * statistics.mean(times), "images_per_second": None,
        "latency_ms_median": 1e3 * statistics.median(times), "latency_ms_min": 1e3 * min(times),
    }  # fmt: skip
    if mode != "graph":  # the graph is captured for one image
        images = np.resize(image, (batch, *image.shape[1:]))
        passes(lambda: predict(images), device, 1, limit)
        times = passes(lambda: predict(images), device, 50, limit)
        row["images_per_second"] = batch * len(times) / sum(times)
    return row


def passes(function, device, n, limit):
    """The seconds of each of n calls; fewer, but at least one, once `limit` seconds are over."""
    times, end = [], time.perf_counter() + limit
    while len(times) < n and (not times or time.perf_counter() < end):
        times.append(timed(function, device))
    return times


@torch.no_grad()
def captured(function):
    """The result of a function of device tensors, and a CUDA graph that computes it again."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()
    return result, graph


def graph_of(ensemble, image):
    """The resident engine's predict as one CUDA graph: everything between the upload of one image,
    uint8 (1, 3, H, W) like this one, and the download of its maps and scores."""
    engine = Engine(ensemble, "resident")
    resident = engine.resident
    static, found = torch.from_numpy(image).to(ensemble.device), resident.found
    with full_precision():
        result, graph = captured(lambda: list(found(static)))

    def replay(images):
        static.copy_(torch.from_numpy(images))
        graph.replay()
        return result

    resident.found = replay
    return engine.predict


def rows_of(job):
    """Measure the job's keys: a dict each. A failure ends the process."""
    for key in job["keys"]:
        part, *names = key.split("/")
        measure = {"memory": measure_memory, "latency": measure_latency}[part]
        yield {"key": key, "row": measure(job, *names)}


def main(text):
    try:
        for measured in rows_of(json.loads(text)):
            print(json.dumps(measured), flush=True)
    except Exception as error:  # the caller keeps the last of torch's many lines
        traceback.print_exc()
        sys.exit(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")


if __name__ == "__main__":
    main(sys.argv[1])
