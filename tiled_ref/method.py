"""The whole method on one page: a tiled ensemble of PaDiM models, 512 / 256 / 128 (ENS9).

    python -m tiled_ref.method       prints the AUROC and AUPRO of `python run.py --setup ENS9`

Rolih et al., "Divide and Conquer: High-Resolution Industrial Anomaly Detection via Memory
Efficient Tiled Ensemble", CVPRW 2024. Defard et al., "PaDiM", ICPRW 2021, arXiv:2011.08785.

A small defect is lost when a large image is shrunk, and a model of the large image needs memory in
proportion to its area. So the image is cut into tiles, every tile location gets a model of its own,
and their predictions are merged. Shapes stand at the end of lines: N images of H x W pixels, tiles
of h x w, P positions of a tile's feature map, D channels.
"""

import random

import numpy as np
import torch
import torch.nn.functional as F
import torchvision

from .data import synthetic
from .data.reading import read_images, read_masks
from .metrics import label_regions
from .models.weights import find_weights

IMAGE, TILE, STRIDE = 512, 256, 128  # pixels, Rolih et al. Sec. 4.2
STARTS = range(0, IMAGE - TILE + 1, STRIDE)  # Rolih et al. Eq. 1: floor((H - h)/s) + 1 a side
SEED, D, EPS = 42, 100, 0.01  # the channels drawn, how many, and epsilon, Defard et al. Sec. IV-B
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


def tile(images, i, j):
    """T_ij of Rolih et al. Eq. 2: a window of all images (N, 3, H, W), ImageNet's normalisation."""
    window = images[:, :, i * STRIDE : i * STRIDE + TILE, j * STRIDE : j * STRIDE + TILE]
    pixels = torch.from_numpy(window).float() / 255  # (N, 3, h, w)
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@torch.no_grad()
def embed(net, tiles):
    """Defard et al. Sec. III-A: layers 1-3 on the grid of layer1, D channels, the same ones."""
    chosen = random.Random(SEED).sample(range(64 + 128 + 256), D)
    parts = []
    for x in tiles.contiguous(memory_format=torch.channels_last).split(1):
        layer1 = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(x)))))  # (1, 64, h/4, w/4)
        layer2 = net.layer2(layer1)  # (1, 128, h/8, w/8)
        layer3 = net.layer3(layer2)  # (1, 256, h/16, w/16)
        layers = [F.interpolate(y, layer1.shape[-2:]) for y in (layer1, layer2, layer3)]  # nearest
        parts.append(torch.cat(layers, 1)[:, chosen])
    return torch.cat(parts).flatten(2).permute(2, 0, 1).contiguous()  # (P, N, D), P row by row


def fit(net, tiles):
    """Defard et al. Eq. 1: at each position Sigma = 1/(N-1) sum (x - mu)(x - mu)^T + eps I."""
    x = embed(net, tiles).double()
    mu = x.mean(1, keepdim=True)  # (P, 1, D)
    sigma = (x - mu).mT @ (x - mu) / (x.shape[1] - 1)  # (P, D, D)
    sigma.diagonal(dim1=1, dim2=2).add_(EPS)
    return mu.float(), torch.cholesky_inverse(torch.linalg.cholesky(sigma)).float()


def predict(net, model, tiles):
    """Defard et al. Eq. 2: sqrt((x - mu)^T Sigma^-1 (x - mu)), enlarged, blurred; its maximum."""
    mu, inverse = model
    delta = embed(net, tiles) - mu  # (P, N, D)
    distance = ((delta @ inverse) * delta).sum(2).clamp_min(0).sqrt().T  # (N, P)
    maps = distance.reshape(-1, 1, TILE // 4, TILE // 4)
    maps = blur(F.interpolate(maps, (TILE, TILE), mode="bilinear")[:, 0], 4.0)  # (N, h, w)
    return maps.numpy(), maps.amax((1, 2)).numpy()  # (N, h, w), (N,)


def blur(maps, sigma):
    """A Gaussian down and across, cut off at 4 sigma; mirrored outside, the edge not repeated."""
    radius = int(4 * sigma + 0.5)
    k = torch.arange(-radius, radius + 1, dtype=torch.float64)
    taps = torch.exp(-(k**2) / (2 * sigma**2))
    taps = (taps / taps.sum()).to(maps.dtype)
    x = F.pad(maps[:, None], (radius,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(x, taps.view(1, 1, -1, 1)), taps.view(1, 1, 1, -1))[:, 0]


def untile(tile_maps):
    """Rolih et al. Sec. 3.3: the mean where tiles overlap. tile_maps: (i, j) -> (N, h, w)."""
    n = len(next(iter(tile_maps.values())))
    total, count = np.zeros((n, IMAGE, IMAGE), np.float32), np.zeros((IMAGE, IMAGE), np.float32)
    for (i, j), maps in tile_maps.items():
        rows, cols = (slice(k * STRIDE, k * STRIDE + TILE) for k in (i, j))
        total[:, rows, cols] += maps
        count[rows, cols] += 1
    return total / count  # (N, H, W)


def smooth_seams(maps):
    """Rolih et al. Sec. 3.3: a Gaussian of sigma 2 px within 10 % of a tile beside every seam."""
    band = np.zeros(IMAGE, bool)
    for border in {edge for start in STARTS for edge in (start, start + TILE)} - {0, IMAGE}:
        band[border - TILE // 10 : border + TILE // 10] = True
    return np.where(band[:, None] | band, blur(torch.from_numpy(maps), 2.0).numpy(), maps)


def auroc(scores, labels):
    """The probability that a defective image scores higher than a normal one, ties one half."""
    bad, good = scores[labels == 1][:, None], scores[labels == 0]
    return ((bad > good) + (bad == good) / 2).mean()


def aupro(maps, masks, limit=0.3):
    """Rolih et al. Sec. 4.1: area under mean region overlap against pixel FPR up to 0.3."""
    regions = label_regions(masks).ravel()  # 0, or the number of the 8-connected region
    order = np.argsort(-maps, axis=None)
    scores, regions, sizes = maps.ravel()[order], regions[order], np.bincount(regions)
    fpr = np.cumsum(regions == 0) / sizes[0]
    pro = np.cumsum(np.where(regions > 0, 1 / sizes[regions], 0)) / (len(sizes) - 1)
    last = np.append(scores[1:] != scores[:-1], True)  # equal scores are one point
    fpr, pro = np.append(0, fpr[last]), np.append(0, pro[last])
    x = np.append(fpr[fpr <= limit], limit)
    y = np.append(pro[fpr <= limit], np.interp(limit, fpr, pro))
    return np.sum(np.diff(x) * (y[1:] + y[:-1])) / 2 / limit


def main():
    """Train and test on the built-in data, and print AUROC and AUPRO."""
    data = synthetic.load(None, "board")
    train, test = (read_images(split, (IMAGE, IMAGE)) for split in (data.train, data.test))
    net = torchvision.models.resnet18().eval().to(memory_format=torch.channels_last)
    net.load_state_dict(find_weights("auto").state_dict, strict=False)
    tile_maps, tile_scores = {}, {}
    for i, j in np.ndindex(len(STARTS), len(STARTS)):
        model = fit(net, tile(train, i, j))  # Rolih et al. Eq. 3: M_ij sees T_ij and nothing else
        tile_maps[i, j], tile_scores[i, j] = predict(net, model, tile(test, i, j))  # Eq. 4
        del model  # before the next one is trained
    maps = smooth_seams(untile(tile_maps))
    scores = np.mean(list(tile_scores.values()), axis=0)  # Rolih et al. Eq. 5: the mean of s_ij
    labels = np.array([sample.label for sample in data.test])
    print(f"AUROC {auroc(scores, labels):.6f}")
    print(f"AUPRO {aupro(maps, read_masks(data.test, (IMAGE, IMAGE))):.6f}")


if __name__ == "__main__":
    main()
