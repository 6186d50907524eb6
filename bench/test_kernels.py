"""Kernels on maps and masks, and the resize, beside twins, peers and limits."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tiled_ref import merging, metrics, smoothing
from tiled_ref.data.resizing import resize_image
from tiled_ref.models.maps import convolved, gaussian_blur
from tiled_ref.setups import SETUPS
from tiled_ref.support.gaussian import blur_rows_and_columns, gaussian_taps

GRID = SETUPS["ENS9"].input_grid


def anomalib_tiler():
    """anomalib's tiler for ENS9; skips the contender without anomalib."""
    module = pytest.importorskip(
        "anomalib.pipelines.tiled_ensemble.components.utils.ensemble_tiling"
    )
    return module.EnsembleTiler(tile_size=256, stride=128, image_size=512)


# ----------------------------------------------------------------------------- untiling


@pytest.fixture(scope="module")
def tiles(sized):
    n = sized(tiny=1, usual=16, full=32)
    maps = np.random.default_rng(0).random((3, 3, n, 256, 256), np.float32)
    expected = merging.untile_average(maps, GRID, impl="numpy")
    n_bytes = maps.nbytes + expected.nbytes
    title = (
        f"Untiling: 9 x {n} tiles of 256 x 256 to {n} maps of 512 x 512, float32 "
        f"({n_bytes / 2**20:.0f} MiB in and out)"
    )
    return SimpleNamespace(title=title, maps=maps, expected=expected, n_bytes=n_bytes)


def copying(n_bytes):
    source, target = np.ones(n_bytes, np.uint8), np.ones(n_bytes, np.uint8)
    return lambda: np.copyto(target, source)


def untile(**options):
    return lambda case: lambda: merging.untile_average(case.maps, GRID, **options)


def window(case):
    twin, maps = merging.untile_window(case.maps, GRID, impl="numpy"), case.maps
    assert (merging.untile_window(maps, GRID) == twin).all()
    return lambda: merging.untile_window(maps, GRID, threads=1)


def fold(case):
    n = case.maps.shape[2]
    count = F.fold(F.unfold(torch.ones(1, 1, 512, 512), 256, stride=128), 512, 256, stride=128)
    columns = torch.from_numpy(case.maps).reshape(9, n, -1).permute(1, 2, 0).contiguous()
    return lambda: (F.fold(columns, 512, 256, stride=128) / count)[:, 0]


def anomalib_untile(case):
    tiler = anomalib_tiler()
    tiler.tile(torch.zeros(case.maps.shape[2], 1, 512, 512))
    tiles = torch.from_numpy(case.maps)[:, :, :, None]
    return lambda: tiler.untile(tiles)[:, 0]


UNTILE = {
    "numpy.copyto of as many bytes": (lambda case: copying(case.n_bytes), None),
    "numpy.copyto of half the bytes": (lambda case: copying(case.n_bytes // 2), None),
    "untile_average, 1 thread": (untile(threads=1), 0),
    "untile_average, 2 threads": (untile(threads=2), 0),
    "untile_window, 1 thread": (window, None),
    "twin (NumPy)": (untile(impl="numpy"), 0),
    "torch fold / count": (fold, 1e-6),
    "anomalib's tiler": (anomalib_untile, 1e-6),
}


@pytest.mark.parametrize("contender", UNTILE)
def test_untile(measure, tiles, contender):
    measure(tiles, UNTILE, contender)


# ----------------------------------------------------------------------- seam smoothing


@pytest.fixture(scope="module")
def merged(sized):
    n = sized(tiny=1, usual=16, full=32)
    maps = np.random.default_rng(1).random((n, 512, 512), np.float32)
    expected = smoothing.smooth_seams(maps, GRID, impl="numpy")
    title = f"Seam smoothing: {n} maps of 512 x 512, float32, ENS9's band"
    return SimpleNamespace(title=title, maps=maps, expected=expected)


def copying_maps(case):
    maps, target = np.asarray(case.maps), np.ones_like(case.maps)
    return lambda: np.copyto(target, maps)


def smooth(**options):
    return lambda case: lambda: smoothing.smooth_seams(case.maps, GRID, **options)


def convolve_and_mask(*shapes):
    """Blur the whole map with kernels of these shapes, then take the band from it."""
    half = torch.from_numpy(gaussian_taps(2.0, np.float32))
    taps = torch.cat([half.flip(0), half[1:]])
    weights = {(17, 17): torch.outer(taps, taps), (17, 1): taps[:, None], (1, 17): taps[None]}
    mask = torch.from_numpy(smoothing.seam_mask(GRID))

    def make(case):
        maps = torch.from_numpy(case.maps)

        def blur():
            blurred = F.pad(maps[:, None], (8,) * 4, mode="reflect")
            for shape in shapes:
                blurred = F.conv2d(blurred, weights[shape][None, None])
            return torch.where(mask, blurred[:, 0], maps)

        return blur

    return make


def anomalib_seams(case):
    module = pytest.importorskip("anomalib.pipelines.tiled_ensemble.components.smoothing")
    tiler = anomalib_tiler()

    def smoothed():
        batch = SimpleNamespace(anomaly_map=torch.tensor(case.maps))  # it writes to its input
        module.SmoothingJob("cpu", [batch], 0.1, 2, tiler).run()
        return batch.anomaly_map

    return smoothed


SEAMS = {
    "numpy.copyto of the maps": (copying_maps, None),
    "smooth_seams, 1 thread": (smooth(threads=1), 0),
    "smooth_seams, 2 threads": (smooth(threads=2), 0),
    "twin (NumPy)": (smooth(impl="numpy"), 0),
    "torch conv2d 17 x 17 and mask": (convolve_and_mask((17, 17)), 1e-5),
    "torch conv2d 17 x 1, 1 x 17 and mask": (convolve_and_mask((17, 1), (1, 17)), 1e-5),
    "anomalib's SmoothingJob": (anomalib_seams, 1e-5),
}


@pytest.mark.parametrize("contender", SEAMS)
def test_seam_smoothing(measure, merged, contender):
    measure(merged, SEAMS, contender)


# ----------------------------------------------------------------- blur of anomaly maps


@pytest.fixture(scope="module", params=[256, 512])
def anomaly_maps(request, sized):
    """Maps of the nine tiles of one image, or of one whole image."""
    n = sized(tiny=1, usual=9, full=9) if request.param == 256 else 1
    maps = torch.rand(n, request.param, request.param, generator=torch.Generator().manual_seed(0))
    title = f"Blur of anomaly maps: {n} x {request.param} x {request.param}, float32, sigma 4"
    expected = gaussian_blur(maps, impl="numpy").numpy()
    return SimpleNamespace(title=title, maps=maps, expected=expected)


def blur_everything(threads):
    everything = np.ones(512, bool)

    def make(case):
        maps = case.maps.numpy()
        sides = [everything[:side] for side in maps.shape[1:]]
        return lambda: blur_rows_and_columns(maps, 4.0, *sides, threads=threads)

    return make


BLUR = {
    "numpy.copyto of the maps": (copying_maps, None),
    "gaussian_blur, 1 thread": (blur_everything(1), 0),
    "gaussian_blur, 2 threads": (blur_everything(2), 0),
    "twin (NumPy)": (lambda case: lambda: gaussian_blur(case.maps, impl="numpy"), 0),
    "torch conv2d 33 x 1, 1 x 33": (lambda case: lambda: convolved(case.maps, 4.0), 1e-5),
}


@pytest.mark.parametrize("contender", BLUR)
def test_map_blur(measure, anomaly_maps, contender):
    measure(anomaly_maps, BLUR, contender)


# ------------------------------------------------------ labels, AUPRO and pixel AUROC


def ranking_set(n):
    """n smooth maps of 512 x 512 and masks with one to three regions in two images of three."""
    rng = np.random.default_rng(2)
    maps, masks = np.empty((n, 512, 512), np.float32), np.zeros((n, 512, 512), bool)
    for k in range(n):
        coarse = torch.from_numpy(rng.standard_normal((1, 1, 64, 64)).astype(np.float32))
        fine = F.interpolate(coarse, size=512, mode="bicubic")[0, 0].numpy()
        maps[k] = 5 + 0.1 * fine + 0.001 * rng.standard_normal((512, 512))
        for _ in range(rng.integers(1, 4) if k % 3 else 0):
            h, w = rng.integers(8, 80, 2)
            y, x = rng.integers(0, 512 - h), rng.integers(0, 512 - w)
            masks[k, y : y + h, x : x + w] = True
        maps[k][masks[k]] += 0.1
    return maps, masks


@pytest.fixture(scope="module")
def smooth_set(sized):
    return ranking_set(sized(tiny=3, usual=25, full=100))


def described(maps, masks):
    percent = 100 * masks.mean()
    return f"{len(maps)} maps of 512 x 512, {maps.dtype}, {percent:.2g} % of the pixels anomalous"


def case_of(title, maps, masks, expected):
    title = f"{title}: {described(maps, masks)}"
    return SimpleNamespace(title=title, maps=maps, masks=masks, expected=expected)


@pytest.fixture(scope="module")
def masked(smooth_set):
    return case_of("Labels", *smooth_set, metrics.label_regions(smooth_set[1], impl="numpy"))


def copying_masks(case):
    labels = np.ones(case.masks.shape, np.int32)
    return lambda: np.copyto(labels, case.masks)


def label(**options):
    return lambda case: lambda: metrics.label_regions(case.masks, **options)


def scipy_labels(case):
    ndimage = pytest.importorskip("scipy.ndimage")
    across_images = np.zeros((3, 3, 3), int)
    across_images[1] = 1  # 8-connected, and never from one image to the next
    return lambda: ndimage.label(case.masks, across_images)[0]


LABELS = {
    "numpy.copyto of the masks to int32": (copying_masks, None),
    "label_regions, 1 thread": (label(threads=1), 0),
    "label_regions, 2 threads": (label(threads=2), 0),
    "twin (NumPy and Python)": (label(impl="numpy"), 0),
    "scipy.ndimage.label": (scipy_labels, 0),
}


@pytest.mark.parametrize("contender", LABELS)
def test_labels(measure, masked, contender):
    measure(masked, LABELS, contender)


def sorting(case):
    scores = case.maps.ravel()
    return lambda: np.sort(scores)


def aupro(**options):
    return lambda case: lambda: metrics.aupro(case.maps, case.masks, **options)


def streamed(case):
    return lambda: metrics.pixel_metrics(lambda: zip(case.maps, case.masks)).aupro


def anomalib_aupro(case):
    module = pytest.importorskip("anomalib.metrics")
    maps, masks = torch.from_numpy(case.maps), torch.from_numpy(case.masks).int()

    def compute():
        metric = module.aupro._AUPRO(fpr_limit=0.3)
        metric.update(maps, masks)
        return float(metric.compute())

    return compute


def adeval_aupro(case):
    adeval = pytest.importorskip("adeval")
    if not hasattr(np, "trapz"):
        pytest.skip("ADEval calls numpy.trapz, which NumPy 2.4 has no longer")

    def compute():
        low, high = float(case.maps.min()), float(case.maps.max())
        evaluator = adeval.EvalAccumulator(0, 1, low, high)
        evaluator.add_anomap_batch(case.maps, case.masks.view(np.uint8))
        evaluator.add_image([0.0, 1.0], [0, 1])  # it needs image scores too
        return float(evaluator.summary()["p_aupro"])

    return compute


AUPRO = {
    "numpy.sort of the scores": (sorting, None),
    "aupro, 1 thread": (aupro(threads=1), 1e-12),
    "aupro, 2 threads": (aupro(threads=2), 1e-12),
    "pixel_metrics: AUPRO and AUROC, image by image": (streamed, 1e-12),
    "twin (NumPy and Python)": (aupro(impl="numpy"), 1e-12),
    "plain NumPy": (lambda case: lambda: metrics.plain_aupro(case.maps, case.masks), 1e-12),
    "anomalib's AUPRO": (anomalib_aupro, 1e-6),
    "ADEval, 1000 bins": (adeval_aupro, 1e-5),
}


@pytest.fixture(scope="module")
def ranked(smooth_set):
    return case_of("AUPRO", *smooth_set, metrics.plain_aupro(*smooth_set))


@pytest.mark.parametrize("contender", AUPRO)
def test_aupro(measure, ranked, contender):
    measure(ranked, AUPRO, contender)


@pytest.fixture(scope="module", params=["large regions", "noise", "ties", "float64"])
def other_set(request, smooth_set):
    """Harder sets, and an easier one."""
    maps, masks = smooth_set
    if request.param == "large regions":
        masks = np.zeros_like(masks)
        masks[:, 200:260, 100:318] = True
    elif request.param == "noise":
        masks = np.random.default_rng(3).random(masks.shape, np.float32) < 0.5
    elif request.param == "ties":
        maps = np.round(maps, 2)
    else:
        maps = maps.astype(np.float64)
    return case_of(f"AUPRO, {request.param}", maps, masks, metrics.plain_aupro(maps, masks))


FASTEST = dict(list(AUPRO.items())[:3])


@pytest.mark.parametrize("contender", FASTEST)
def test_aupro_of_other_sets(measure, other_set, contender):
    measure(other_set, FASTEST, contender)


def pixel_auroc(**options):
    return lambda case: lambda: metrics.pixel_auroc(case.maps, case.masks, **options)


def plain_auroc(case):
    scores, labels = case.maps.ravel(), case.masks.ravel()
    return lambda: metrics.auroc(scores, labels)


AUROC = {
    "numpy.sort of the scores": (sorting, None),
    "pixel_auroc, 1 thread": (pixel_auroc(threads=1), 0),
    "pixel_auroc, 2 threads": (pixel_auroc(threads=2), 0),
    "twin (NumPy and Python)": (pixel_auroc(impl="numpy"), 0),
    "auroc of all pixels (NumPy)": (plain_auroc, 0),
}


@pytest.fixture(scope="module")
def pooled(smooth_set):
    maps, masks = smooth_set
    return case_of("Pixel AUROC", maps, masks, metrics.auroc(maps.ravel(), masks.ravel()))


@pytest.mark.parametrize("contender", AUROC)
def test_pixel_auroc(measure, pooled, contender):
    measure(pooled, AUROC, contender)


# ------------------------------------------------------------------------------- resize


@pytest.fixture(scope="module", params=["bilinear", "bilinear, halved", "antialiased"])
def photo(request, sized):
    side, to = sized(tiny=64, usual=1024, full=4096), sized(tiny=32, usual=512, full=2048)
    if request.param == "bilinear":  # not halved
        side = sized(tiny=50, usual=700, full=4190)
    antialias = request.param == "antialiased"
    image = np.random.default_rng(4).integers(0, 256, (side, side, 3), np.uint8)
    return SimpleNamespace(
        title=f"Resize: 1 image of {side} x {side} x 3 to {to} x {to}, uint8, {request.param}",
        image=image, size=(to, to), antialias=antialias,
        expected=resize_image(image, (to, to), antialias),
    )  # fmt: skip


def within_one(found, expected):
    """Equal within one level: without OpenCV's integers, or with halves rounded differently."""
    difference = np.abs(np.asarray(found, np.int16) - expected)
    assert difference.max() <= 1


def copying_image(case):
    target = np.ones_like(case.image)
    return lambda: np.copyto(target, case.image)


def torch_resize(case):
    image = torch.from_numpy(case.image).permute(2, 0, 1)[None]

    def resize():
        resized = F.interpolate(
            image.float(), size=case.size, mode="bilinear", antialias=case.antialias
        )
        return resized.round_().to(torch.uint8)[0].permute(1, 2, 0)

    return resize


def pillow_resize(case):
    if not case.antialias:
        pytest.skip("Pillow always antialiases")
    image = Image.fromarray(case.image)
    return lambda: np.asarray(image.resize(case.size[::-1], Image.BILINEAR))


def opencv_resize(case):
    cv2 = pytest.importorskip("cv2")
    if case.antialias:
        pytest.skip("OpenCV's INTER_LINEAR does not antialias")
    return lambda: cv2.resize(case.image, case.size[::-1], interpolation=cv2.INTER_LINEAR)


RESIZE = {
    "numpy.copyto of the image": (copying_image, None),
    "resize_image": (
        lambda case: lambda: resize_image(case.image, case.size, case.antialias), 0),
    "torch interpolate, float32": (torch_resize, within_one),
    "Pillow": (pillow_resize, within_one),
    "OpenCV": (opencv_resize, 0),
}  # fmt: skip


@pytest.mark.parametrize("contender", RESIZE)
def test_resize(measure, photo, contender):
    measure(photo, RESIZE, contender)
