"""Where models and tiles are while an ensemble works: one location at a time, or all at once.

    low         one location on the device at a time: memory of one model on one tile, the
                promise of the paper (Sec. 3.2). On a GPU what the location learnt, and the next
                location's tile, come over a second stream while the backbone computes
    resident    all locations on the device: the tiles of an image are one batch of the
                backbone, the heads are batched over locations, and no model moves
    BYTES       as many locations, and as many images at a time, as fit

All give the same bits on a CPU. The backbone is the same in every model of an ensemble, so it
is on the device once; what moves is what a location learnt.
"""

import copy
import ctypes
import gc
import re
from dataclasses import dataclass

import numpy as np
import torch

from .data.images import forget_pages, normalize
from .data.inputs import as_images
from .ensemble import LocationImages, merge
from .errors import InputError
from .memory import PeakMemory, TensorMeter, resident_bytes
from .precision import MixedPrecision, check_precision

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
MODES = ("low", "resident")
MARGIN = 0.10  # of a cap that is left free, for what no measurement saw
SCRATCH = 48 << 20  # bytes of packed weights and buffers of the libraries beside the tensors
VARIES = 4 << 20  # bytes by which the resident memory of two equal processes differs
M_MMAP_THRESHOLD, MMAP_THRESHOLD = -3, 1 << 20  # of the C library, see _return_memory


def parse_memory(text):
    """What --memory says: "low", "resident" or a number of bytes such as 2GiB or 500MB.

    Raises ValueError for anything else.
    """
    if text in MODES:
        return text
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in UNITS:
        raise ValueError(f"{text!r} is neither low, resident nor a number of bytes such as 2GiB")
    return int(float(match[1]) * UNITS[match[2].upper()])


@dataclass(frozen=True)
class Plan:
    """How many locations are on the device together, and how many images at a time.

    Attributes
    ----------
    memory : "low", "resident" or int
        What was asked for.
    residency : int
        Locations whose models are on the device at the same time.
    fit_batch, batch : int or None
        Images at a time in training and prediction; None leaves it to the model.
    base, fit_bytes, predict_bytes : int
        With a cap: bytes that the process held before, and its peaks that are expected.
    """

    memory: object
    residency: int
    fit_batch: int = None
    batch: int = None
    base: int = 0
    fit_bytes: int = 0
    predict_bytes: int = 0

    @property
    def fit_overrides(self):
        """Keyword arguments of the models that are to be trained."""
        return {} if self.fit_batch is None else {"batch_size": self.fit_batch}

    def groups(self, locations):
        """The locations in groups that are on the device together."""
        locations = list(locations)
        return [
            locations[k : k + self.residency] for k in range(0, len(locations), self.residency)
        ]

    def describe(self):
        """The plan as one line for people."""
        if not isinstance(self.memory, int):
            return f"memory: {self.memory}"
        expected = [f"{_mib(self.predict_bytes)} in prediction"]
        if self.fit_bytes:
            expected.insert(0, f"{_mib(self.fit_bytes)} in training")
        return (
            f"memory: cap {_mib(self.memory)}; {self.residency} location"
            f"{'s' if self.residency > 1 else ''} at a time, {self.batch} image"
            f"{'s' if self.batch > 1 else ''} in prediction"
            + (f", {self.fit_batch} in training" if self.fit_batch else "")
            + f"; expected {' and '.join(expected)}, of which {_mib(self.base)} are held already"
        )


def make_plan(ensemble, memory, train=None, n_predict=None):
    """Decide how an ensemble is trained and predicts within its memory.

    Parameters
    ----------
    ensemble : TiledEnsemble
    memory : "low", "resident" or int
        A cap in bytes: on a GPU of what torch reserves there, on a CPU of the resident memory
        of the process.
    train : uint8 (N, 3, H, W), optional
        Training images, where there will be training.
    n_predict : int, optional
        Images that will be predicted; no batch is larger.

    Returns
    -------
    Plan. For a cap the sizes are measured: the first location is trained on a few images in
    batches of one and two, and predicts one tile and several, while the bytes of all tensors
    are counted.

    Raises
    ------
    InputError
        The cap is too small for one location and one image; the smallest that works is named.
    """
    n_locations = len(ensemble.grid.locations())
    if memory == "low":
        return Plan(memory, 1)
    if memory == "resident":
        return Plan(memory, n_locations)
    device = ensemble.device
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory / total), device)
    _return_memory()
    sizes = _measure(ensemble, train)
    base = torch.cuda.memory_allocated(device) if device.type == "cuda" else resident_bytes()
    base += sizes.scratch
    room = int(memory * (1 - MARGIN)) - base
    most = min(ensemble.batch_size, n_predict or ensemble.batch_size)
    smallest = max(sizes.fit(1), sizes.predict(1, 1))
    if smallest > room:
        needed = int((base + smallest) / (1 - MARGIN)) + VARIES
        raise InputError(
            f"--memory: a cap of {_mib(memory)} is too small for one tile location of "
            f"{ensemble.arch} and one image; the smallest that works here is {_mib(needed)}"
        )

    def largest(n, fits):
        return max((k for k in range(1, n + 1) if fits(k)), default=1)

    residency = largest(
        n_locations, lambda k: max(sizes.fit(1, k - 1), sizes.predict(k, 1)) <= room
    )
    batch = largest(most, lambda b: sizes.predict(residency, b) <= room)
    fit_batch = None
    if sizes.fit_free and train is not None:
        fit_batch = largest(ensemble.batch_size, lambda b: sizes.fit(b, residency - 1) <= room)
    return Plan(
        memory, residency, fit_batch, batch, base,
        base + sizes.fit(fit_batch or 1, residency - 1) if train is not None else 0,
        base + sizes.predict(residency, batch),
    )  # fmt: skip


@dataclass(frozen=True)
class _Sizes:
    """Measured bytes, see make_plan: of tensors, and of scratch memory beside them."""

    state: int  # what one location learnt
    tile: int  # predicting one tile
    next_tile: int  # every further tile of the batch
    n_tiles: int  # tiles of an image that one model sees
    host: int  # per image and location on the host
    first_fit: int  # training with batches of one image, or the only size there is
    next_fit: int  # every further image of the batch
    fit_free: bool  # whether the batch size of the training is free
    scratch: int

    def predict(self, locations, images):
        """Bytes of predicting so many images by so many locations together."""
        tiles = locations * images * self.n_tiles
        return locations * (self.state + images * self.host) + self.tile + (
            tiles - 1
        ) * self.next_tile

    def fit(self, images, others=0):
        """Bytes of training in batches of so many images, while other locations are held."""
        return self.first_fit + (images - 1) * self.next_fit + others * self.state


def _measure(ensemble, train):
    """Train and predict with little, and count: a _Sizes."""
    location = ensemble.grid.locations()[0]
    free = ensemble.arch in ("padim", "patchcore")  # the optimisers' batches are the method
    first_fit = next_fit = scratch = 0
    if train is not None:
        some = train[: 4 if free else len(train)]
        overrides = {} if free else {"steps": 1}

        def fit(batch_size):
            model = ensemble.make_model(batch_size=batch_size, **overrides)
            return _peak(ensemble.device, lambda: _fitted(ensemble, model, some, location))

        if free:
            model, first_fit, scratch = fit(1)
            model, second, _ = fit(2)
            next_fit = max(0, second - first_fit)
            if ensemble.arch == "patchcore":  # a table of all patches, and what orders them
                model, fewer, _ = _peak(
                    ensemble.device,
                    lambda: _fitted(
                        ensemble, ensemble.make_model(batch_size=1), some[:2], location
                    ),
                )
                first_fit += max(0, first_fit - fewer) * (len(train) - len(some)) // 2
        else:
            model, first_fit, scratch = fit(None)
        state = model.state()
    else:
        state = ensemble.states[location]
        model = ensemble.make_model()
    n_bytes = sum(value.nbytes for value in state.values())
    if ensemble.device.type == "cuda":  # a model may hold more there than its state
        before = torch.cuda.memory_allocated(ensemble.device)
        probe = ensemble.make_model()
        probe.load_state(state)
        n_bytes = max(n_bytes, torch.cuda.memory_allocated(ensemble.device) - before)
        del probe
    if ensemble.arch == "patchcore" and train is not None:
        n_bytes = n_bytes * len(train) // len(some)
    model.load_state(state)
    height, width = ensemble.setup.image_size
    image = np.zeros((3, 3, height, width), np.uint8)
    source = ensemble.location_images(image, location)
    peaks = [
        _peak(ensemble.device, lambda n=n: model.predict(source[list(range(n))])) for n in (1, 3)
    ]
    n_tiles = ensemble.setup.n_tiles if ensemble.setup.kind == "ST" else 1
    tile_pixels = ensemble.grid.tile_size[0] * ensemble.grid.tile_size[1]
    host = 0
    if ensemble.device.type == "cpu":
        host = 3 * 4 * tile_pixels + 3 * 4096 * ensemble.grid.tile_size[0]  # maps, mapped pages
    per_tile = max(0, peaks[1][1] - peaks[0][1]) // (2 * n_tiles)
    return _Sizes(
        n_bytes, peaks[0][1], per_tile, n_tiles, host, first_fit, next_fit, free,
        max(SCRATCH if ensemble.device.type == "cpu" else 0, scratch, *(p[2] for p in peaks)),
    )  # fmt: skip


def _fitted(ensemble, model, images, location):
    model.fit(ensemble.location_images(images, location))
    return model


def _peak(device, work):
    """work(), the peak of the tensors' bytes meanwhile, and on a CPU what was resident beyond."""
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = work()
        return result, torch.cuda.max_memory_allocated(device) - before, 0
    _return_memory()
    before, peak = resident_bytes(), PeakMemory(device)
    with TensorMeter() as meter:
        result = work()
    held = peak.read()["peak_memory_bytes"] - before
    return result, meter.peak, 0 if peak.since_start else max(0, held - meter.peak)


def _return_memory():
    """Give freed memory back to the system, now and from now on at once, where glibc can.

    Without this the resident memory is that of the largest moments of all sizes together.
    """
    library = ctypes.CDLL(None) if hasattr(ctypes, "CDLL") else None
    if hasattr(library, "mallopt") and hasattr(library, "malloc_trim"):
        library.mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD)
        library.malloc_trim(0)


def _mib(n_bytes):
    return f"{-(-n_bytes // 2**20):,} MiB"


class Engine:
    """A trained ensemble, ready to predict images again and again: the latency path.

    Parameters
    ----------
    ensemble : TiledEnsemble
        Fitted or loaded.
    memory : "low", "resident" or int
        A cap in bytes, see make_plan.
    impl, threads
        See `merging.untile_average`.

    Attributes
    ----------
    plan : Plan

    Raises
    ------
    InputError
        Nothing was fitted, or the cap is too small.
    """

    def __init__(self, ensemble, memory="low", *, impl="cython", threads=None):
        if len(ensemble.states) < ensemble.setup.n_models:
            raise InputError("the ensemble has not been trained; call fit before predict")
        self.ensemble = ensemble
        self.impl, self.threads = impl, threads
        self.locations = ensemble.grid.locations()
        self.plan = make_plan(ensemble, memory)
        stay = self.plan.residency
        if stay < len(self.locations):
            stay -= 1  # one place is for those that come and go
        states = ensemble.states
        self.residents = Residents(ensemble, self.locations[:stay], states) if stay else None
        self.visitors = self.locations[stay:]
        self.guest = Guest(ensemble, self.visitors) if self.visitors else None

    def predict(self, images):
        """Merged, smoothed maps float32 (B, H, W) and scores float32 (B,), raw, on the host.

        Parameters: images uint8 (B, 3, H, W) in host memory, or whatever `data.inputs` reads.
        """
        ensemble = self.ensemble
        images = as_images(images, ensemble.setup.image_size, antialias=ensemble.antialias)
        maps, scores = ensemble.allocate(len(images))
        for worker in filter(None, (self.residents, self.guest)):
            for location, rows, *prediction in worker.predict(images, self.plan.batch):
                maps[location][rows], scores[location][rows] = prediction
        return merge(
            maps, scores, ensemble.grid,
            score=ensemble.score, width=ensemble.seam_width, sigma=ensemble.seam_sigma,
            impl=self.impl, threads=self.threads,
        )  # fmt: skip


class Residents:
    """Models of some locations that are on the device together.

    Where the model has a `joint_head`, it is used on a CPU; else the heads are called one after
    the other.

    Parameters: ensemble; locations; states, location -> what its model learnt, or instead
    models, already trained, one per location.
    """

    def __init__(self, ensemble, locations, states=None, models=None):
        self.ensemble, self.locations = ensemble, list(locations)
        self.model, self.heads, self.joint = ensemble.make_model(), models, None
        if models is None and ensemble.device.type == "cpu" and hasattr(self.model, "joint_head"):
            self.joint = self.model.joint_head([states[location] for location in self.locations])
            return
        if models is None:
            self.heads = []
            for location in self.locations:
                self.heads.append(ensemble.make_model())
                self.heads[-1].load_state(states[location])
        self.model = self.heads[0]

    def predict(self, images, batch=None):
        """Yield (location, rows, maps (b, h, w), scores (b,)), on the host, rows a slice.

        Parameters: images uint8 (B, 3, H, W), on the host; batch, images at a time; by default
        as many as have the tiles of one location's batch, at least one.
        """
        n_locations = len(self.locations)
        step = batch or max(1, self.ensemble.batch_size // n_locations)
        for rows in slices(len(images), step):
            features = self.model.features(self._tiles(images[rows]))
            n = len(features[0]) // n_locations
            if self.joint:
                maps, scores = on_host(self.joint(features))
                n = len(scores) // n_locations
                for k, location in enumerate(self.locations):
                    yield location, rows, maps[k * n : (k + 1) * n], scores[k * n : (k + 1) * n]
                continue
            for k, (location, model) in enumerate(zip(self.locations, self.heads)):
                own = [layer[k * n : (k + 1) * n] for layer in features]
                yield location, rows, *on_host(model.head(own))

    def _tiles(self, images):
        """Tiles on the device, float32 (L * B, 3, h, w), location-major; for ST those of the only
        model's image."""
        ensemble, grid = self.ensemble, self.ensemble.setup.input_grid
        locations = grid.locations() if ensemble.setup.kind == "ST" else self.locations
        windows = [grid.window(*location) for location in locations]
        n_pixels = sum((r.stop - r.start) * (c.stop - c.start) for r, c in windows)
        if n_pixels < images.shape[2] * images.shape[3]:
            source = LocationImages(images, grid, locations, ensemble.device)
            return source[list(range(len(images)))]
        # The image goes to the device once, and a pixel of several tiles is normalised once.
        batch = normalize(on_device(images, ensemble.device))
        forget_pages(images)
        parts = [grid.pad_tile(batch[..., rows, cols]) for rows, cols in windows]
        return torch.cat(parts) if len(parts) > 1 else parts[0]


class Guest:
    """One model's place on the device, taken by one location after the other.

    Parameters: ensemble, whose states are loaded; locations.
    """

    def __init__(self, ensemble, locations):
        self.ensemble, self.locations = ensemble, list(locations)
        self.model = ensemble.make_model()
        self.side = None
        if ensemble.device.type == "cuda":
            self.side = torch.cuda.Stream(ensemble.device)

    def predict(self, images, batch=None):
        """Yield (location, rows, maps (b, h, w), scores (b,)), on the host, rows a slice.

        Parameters: images uint8 (B, 3, H, W), on the host; batch, images at a time, by default
        the ensemble's batch size.

        On a GPU the weights travel while the backbone, which needs none of them, computes, and
        the next tiles travel after them: only one location's weights are on the device.
        """
        steps = [
            (location, rows)
            for location in self.locations
            for rows in slices(len(images), batch or self.ensemble.batch_size)
        ]
        coming, loaded = None, None
        for k, (location, rows) in enumerate(steps):
            if coming is None:
                coming = self._send(images[rows], location)
            if self.side is None:
                if loaded != location:
                    self._load(location)
                    loaded = location
                yield location, rows, *on_host(self.model.predict(self._arrived(coming)))
                coming = None
                forget_pages(images)
                continue
            features = self.model.features(self._arrived(coming))
            if loaded != location:
                self._load(location)
                loaded = location
            coming = None
            if k + 1 < len(steps):
                coming = self._send(images[steps[k + 1][1]], steps[k + 1][0])
            torch.cuda.current_stream(self.ensemble.device).wait_stream(self.side)
            yield location, rows, *on_host(self.model.head(features))  # all streams are done
            del features
            forget_pages(images)

    def _load(self, location):
        state = self.ensemble.states[location]
        if not self.side:
            self.model.load_state(state)
            return
        with torch.cuda.stream(self.side):
            self.model.load_state({name: value.pin_memory() for name, value in state.items()})

    def _send(self, images, location):
        """Uint8 tiles of a location on their way to the device, a list of one part per tile."""
        ensemble, grid = self.ensemble, self.ensemble.setup.input_grid
        locations = grid.locations() if ensemble.setup.kind == "ST" else [location]
        windows = [grid.window(*place) for place in locations]
        if self.side is None:
            return [torch.as_tensor(images[..., rows, cols]) for rows, cols in windows]
        with torch.cuda.stream(self.side):
            return [on_device(images[..., rows, cols], ensemble.device) for rows, cols in windows]

    def _arrived(self, parts):
        """Normalised, padded tiles float32 (T * B, 3, h, w) of what _send sent."""
        grid = self.ensemble.setup.input_grid
        if self.side:
            main = torch.cuda.current_stream(self.ensemble.device)
            main.wait_stream(self.side)
            for part in parts:
                part.record_stream(main)
        tiles = [grid.pad_tile(normalize(part)) for part in parts]
        return torch.cat(tiles) if len(tiles) > 1 else tiles[0]


def slices(n, step):
    """range(n) in slices of step."""
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


def on_device(images, device):
    """uint8 images or tiles as a tensor on the device, by way of pinned memory to a GPU."""
    tensor = torch.as_tensor(images)
    if device.type != "cuda":
        return tensor
    return tensor.contiguous().pin_memory().to(device, non_blocking=True)


def on_host(prediction):
    """Maps and scores as NumPy arrays."""
    return [part.cpu().numpy() for part in prediction]


def precision_deviation(ensemble, images, precision):
    """How far predictions in fewer bits are from float32, with the same learnt states.

    Parameters: ensemble, fitted, float32; images, see `data.inputs.as_samples`; precision, a key
    of precision.PRECISIONS.
    Returns dict: "map" and "score", the largest absolute difference divided by the range of the
    float32 values (of all maps; of all scores, or their largest where there is one image).
    Raises InputError where the device does not have the precision.
    """
    other = copy.copy(ensemble)
    check_precision(precision, ensemble.device)
    other.precision, other.network = precision, MixedPrecision(ensemble.network, precision)
    exact = Engine(ensemble).predict(images)
    found = Engine(other).predict(images)
    result = {}
    for name, a, b in zip(("map", "score"), found, exact):
        scale = float(np.ptp(b)) or float(np.abs(b).max())
        result[name] = float(np.abs(a - b).max()) / scale
    return result
