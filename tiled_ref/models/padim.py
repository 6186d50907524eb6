"""PaDiM: one Gaussian per position of the feature map.

Defard, Setkov, Loesch, Audigier, "PaDiM: a Patch Distribution Modeling Framework for
Anomaly Detection and Localization", ICPR 2021 Workshops, arXiv:2011.08785. Read Sec. III
beside this file:

    III-A  embedding   features of three layers, concatenated at the finest grid, and D
                       channels of them drawn at random              -> Padim.embed
    III-B  Eq. 1       Sigma_ij = 1/(N-1) sum_k (x_ij^k - mu_ij)(x_ij^k - mu_ij)^T + eps I
                                                                      -> Padim.fit
    III-C  Eq. 2       M(x_ij) = sqrt((x_ij - mu_ij)^T Sigma_ij^-1 (x_ij - mu_ij))
                                                   -> gaussians.py, batched_mahalanobis
"""

import math
import random

import numpy as np
import torch
import torch.nn.functional as F

from ..support.devices import on_cpu, to_host
from ..support.errors import InputError
from .backbone import CHANNELS, FEATURE_STRIDE, channels_of, chunks
from .base import Model, expected
from .gaussians import distances_each, factors_of, pack, unpack
from .maps import gaussian_blur, upsample_bilinear

N_FEATURES = sum(CHANNELS.values())  # 64 + 128 + 256, layers 1 to 3 of ResNet-18
D = 100  # channels drawn at random for ResNet-18, Defard et al. Sec. IV-B (PaDiM-R18-Rd100)
EPSILON = 0.01  # eps of Defard et al. Eq. 1, its value in Sec. IV-B
SIGMA = 4.0  # px, blur of the anomaly map, Defard et al. Sec. IV-B
STORES = {"float32": torch.float32, "float16": torch.float16}


def channel_choice(seed, n=D, of=N_FEATURES):
    """The n channels that a run keeps.

    Returns distinct ints in [0, of), drawn by Python's Mersenne Twister, so that every tile model
    of a run, and every port that has this generator, keeps the same channels in the same order.
    """
    return random.Random(seed).sample(range(of), n)


class Padim(Model):
    """PaDiM on ResNet-18, layers 1-3.

    Parameters: backbone, output_size and the options of `Model`; seed draws the channels.
    n_channels, D, the number of the backbone's channels to keep. impl, "cython" or "numpy": of
    distances and blur on the CPU. store, a key of STORES: the dtype of the factors.
    Raises InputError for fewer than one channel, more than exist, and an unknown store.

    Attributes after fit, P = hf * wf positions in row-major order
    ----------
    mean : float32 (P, D)
    factors : float32 or float16 (P, D (D + 1) / 2), packed triangles U with Sigma^-1 = U U^T, see
        gaussians.py
    grid : (int, int), hf and wf
    """

    STRIDE = FEATURE_STRIDE["layer1"]  # px per position of the embedding
    FACTOR_CHUNK = 32  # covariance matrices factored at a time

    def __init__(
        self, backbone, output_size, *, n_channels=D, store="float32", impl="cython", **options
    ):
        super().__init__(backbone, output_size, **options)
        of = sum(channels_of(backbone).values())
        if n_channels not in range(1, of + 1):
            raise InputError(f"n_channels must be between 1 and {of}, not {n_channels!r}")
        if store not in STORES:
            raise InputError(f"store must be one of {', '.join(STORES)}, not {store!r}")
        self.impl, self.store, self._channels = impl, store, None
        self.channels = channel_choice(self.seed, n_channels, of)
        self.mean = self.factors = self.grid = None

    @property
    def channels(self):
        """The channels kept, a list of ints, of the concatenation of all layers."""
        return self._channels

    @channels.setter
    def channels(self, chosen):
        """Also record, for each layer, the chosen channels and their places in the embedding:
        two rows of int64 on the device."""
        if chosen != self._channels:
            self._channels, self._places, first = chosen, [], 0
            for width in channels_of(self.backbone).values():
                mine = [k for k, c in enumerate(chosen) if first <= c < first + width]
                places = [chosen[k] - first for k in mine], mine
                self._places.append(torch.tensor(places, dtype=torch.int64).to(self.device))
                first += width

    def n_learnt(self, n_images):
        """Numbers stored after training: a mean and a triangle at every position."""
        positions = math.prod(math.ceil(side / self.STRIDE) for side in self.output_size)
        d = len(self.channels)
        return positions * (d + d * (d + 1) // 2)

    def embed(self, images):
        """Patch embeddings (Defard et al. Sec. III-A).

        Parameters: images (B, 3, h, w) float32, normalised; (T * B, ...) for tiled input.
        Returns float32 (B, D, hf, wf): layers 2 and 3 enlarged to the grid of layer 1 by
        nearest neighbour, concatenated, the chosen channels; untiled for tiled input.
        """
        parts = []
        for chunk in chunks(images):
            layers = self.backbone(chunk)
            size = layers[0].shape[-2:]
            part = images.new_empty(len(chunk), len(self.channels), *size)
            for layer, (source, target) in zip(layers, self._places):
                if len(source):  # enlarge only the chosen channels
                    chosen = layer.index_select(1, source)
                    part.index_copy_(1, target, F.interpolate(chosen, size=size))  # nearest
            parts.append(part)
        embedding = torch.cat(parts)  # (B, D, hf, wf)
        return embedding if self.untile is None else self.untile(embedding, self.STRIDE)

    @torch.no_grad()
    def fit(self, images, progress=None):
        """Mean and factor of the inverse covariance at every position (Defard et al. Eq. 1).

        Deviation D7: the sums are merged batch by batch in float64 (Chan, Golub, LeVeque 1979),
        so that memory does not grow with the number of images:
            mu    <- mu + delta m/(n + m)
            S     <- S + S_b + delta delta^T n m/(n + m),   delta = mu_b - mu
        with n images seen before and m in the batch; Sigma = S / (n - 1) + eps I.

        Parameters: images and progress, see tiled_ref.models; progress counts images, then
        positions, as the part "factors".
        Raises InputError for fewer than two images, and for factors that float16 cannot hold.
        """
        self.fit_embeddings(self.embeddings(images), len(images), progress)

    @torch.no_grad()
    def fit_embeddings(self, embeddings, n_images, progress=None):
        """`fit` from embeddings, an iterable of float32 (B, D, hf, wf), of n_images. Raises
        InputError for fewer than two images, another number of them or unequal shapes."""
        if n_images < 2:
            raise InputError(
                "PaDiM needs at least two normal training images to estimate a covariance, "
                f"got {n_images}; add images to the training folder"
            )
        n, mean, scatter = 0, None, None
        for embedding in expected(embeddings, n_images):  # (B, D, hf, wf)
            self.grid = tuple(embedding.shape[-2:])
            x = by_position(embedding, torch.float64, spare=1)  # (P, B + 1, D)
            m = x.shape[1] - 1
            batch_mean = x[:, :m].mean(1)  # (P, D)
            if mean is None:
                mean = torch.zeros_like(batch_mean)
                scatter = x.new_zeros(*mean.shape, mean.shape[-1])  # (P, D, D)
            delta = batch_mean - mean
            x[:, :m] -= batch_mean[:, None]
            x[:, m] = delta * (n * m / (n + m)) ** 0.5  # the last term as one more row of S_b
            scatter.baddbmm_(x.mT, x)
            mean += delta * (m / (n + m))
            n += m
            if progress:
                progress(n, n_images)
        self.mean = mean.float()
        d = scatter.shape[-1]
        shape, dtype = (len(scatter), d * (d + 1) // 2), STORES[self.store]
        self.factors = torch.empty(shape, dtype=dtype, device=self.device)
        least, size = scatter.new_full((), torch.inf), self.FACTOR_CHUNK  # of all diagonals
        for k, (chunk, out) in enumerate(zip(scatter.split(size), self.factors.split(size)), 1):
            covariance = chunk.div_(n - 1)
            covariance.diagonal(dim1=-2, dim2=-1).add_(EPSILON)
            factors = factors_of(covariance)  # no entry exceeds 1 / sqrt(EPSILON)
            # In place: a list of results, allocated between chunks, would keep their memory.
            torch.minimum(least, factors.diagonal(dim1=-2, dim2=-1).min(), out=least)
            out.copy_(pack(factors))
            if progress:
                progress(min(k * size, len(scatter)), len(scatter), "factors")
        if not to_host(least)[0] >= torch.finfo(dtype).tiny:  # NaN too
            raise InputError(
                f"the features vary so much that {self.store} cannot hold PaDiM's factors; "
                "use --store float32"
            )

    @torch.no_grad()
    def head(self, features):
        """Anomaly maps and scores (Defard et al. Sec. III-C).

        Parameters: features, [embed(images)], float32 (B, D, hf, wf).
        Returns maps float32 (B, H, W) in units of standard deviations, >= 0, and scores
        float32 (B,), the maximum of each map.
        """
        if on_cpu(self.device):
            own = {"mean": self.mean, "factors": self.factors}
            return self._maps(self._distances([own], features[0]))
        x = by_position(features[0], torch.float32)  # (P, B, D)
        return self._maps(batched_mahalanobis(x, self.mean, unpack(self.factors.float())).T)

    def _distances(self, states, embedding):
        """Float32 (L * B, P) of embedding (L * B, D, hf, wf) and L states, on the CPU."""
        rows = embedding.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        rows = rows.flatten(1, 2).numpy()  # (L * B, P, D)
        means, factors = ([state[name] for state in states] for name in ("mean", "factors"))
        found = distances_each(np.split(rows, len(states)), means, factors, impl=self.impl)
        return torch.from_numpy(np.concatenate(found))

    def _maps(self, distances):
        """Distances (B, P) -> maps (B, H, W) and scores (B,)."""
        maps = distances.reshape(-1, *self.grid)  # (B, hf, wf)
        maps = upsample_bilinear(maps, self.output_size)  # (B, H, W)
        maps = gaussian_blur(maps, SIGMA, self.impl)
        return maps, maps.amax((1, 2))

    @torch.no_grad()
    def joint_head(self, states):
        """One function for the heads of the models with these states, on a CPU; see
        tiled_ref.models."""
        self.grid = tuple(states[0]["grid"].tolist())
        self.channels = states[0]["channels"].tolist()
        return torch.no_grad()(lambda features: self._maps(self._distances(states, features[0])))

    def state(self):
        """The result of fit on the CPU: mean, factors, channels, grid."""
        return {
            "mean": self.mean.cpu(),
            "factors": self.factors.cpu(),
            "channels": torch.tensor(self.channels),
            "grid": torch.tensor(self.grid),
        }

    def load_state(self, state):
        """The inverse of state()."""
        self.mean = state["mean"].to(self.device)
        self.factors = state["factors"].to(self.device)
        self.channels = state["channels"].tolist()
        self.grid = tuple(state["grid"].tolist())


def by_position(embedding, dtype, spare=0):
    """embedding (B, D, hf, wf) -> (P, B + spare, D) of dtype, contiguous, for products batched
    over positions; the spare rows are not initialised."""
    # Channels last: on a CPU, copying rows of D numbers is several times as fast as gathering.
    rows = embedding.contiguous(memory_format=torch.channels_last)
    rows = rows.permute(2, 3, 0, 1).flatten(0, 1)  # (P, B, D)
    shape = rows.shape[0], rows.shape[1] + spare, rows.shape[2]
    out = torch.empty(shape, dtype=dtype, device=rows.device)
    out[:, : rows.shape[1]] = rows
    return out


def batched_mahalanobis(x, mean, factors):
    """Distance of each vector from its position's Gaussian, as products batched over positions.

    Defard et al. Eq. 2: M(x_ij) = sqrt((x_ij - mu_ij)^T Sigma_ij^-1 (x_ij - mu_ij)), with
    x = x (P, B, D), mu = mean (P, D), Sigma^-1 = U U^T, U = factors (P, D, D), all floating point.
    Returns (P, B) >= 0.
    """
    return torch.bmm(x - mean[:, None], factors).square().sum(-1).sqrt()
