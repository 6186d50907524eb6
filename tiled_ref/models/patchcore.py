"""PatchCore: a memory bank of normal patches, and the distance to the nearest one.

Roth, Pemula, Zepeda, Schoelkopf, Brox, Gehler, "Towards Total Recall in Industrial Anomaly
Detection", CVPR 2022, arXiv:2106.08265. Read Sec. 3 beside this file:

    3.1  Eq. 1-3  patch features: layers 2 and 3, averaged over 3 x 3 neighbours, layer3
                  enlarged to the grid of layer2                    -> PatchCore.embed
    3.1  Eq. 4    the memory bank M, the patches of all normal images -> PatchCore.fit
    3.2  Eq. 5    its coreset M_C, greedy                           -> coreset.py
    3.3  Eq. 6    s*, the largest distance of a patch to its nearest neighbour
                                                                    -> PatchCore.head
    3.3  Eq. 7    s* re-weighted by the neighbourhood of m*         -> reweight
"""

import math

import torch
import torch.nn.functional as F

from ..support.errors import InputError
from .backbone import CHANNELS, FEATURE_STRIDE, channels_of, chunks
from .base import Model, expected
from .maps import gaussian_blur
from .search.coreset import select_coreset
from .search.neighbours import Banks

N_FEATURES = CHANNELS["layer2"] + CHANNELS["layer3"]  # 384
RATIO = 0.1  # of the patches kept in the bank, anomalib's as in Rolih et al. Sec. 4.2
N_NEIGHBOURS = 9  # b of Eq. 7, anomalib's
SIGMA = 4.0  # px, blur of the anomaly map, Roth et al. Sec. 3.3


class PatchCore(Model):
    """PatchCore on ResNet-18, layers 2 and 3.

    Parameters
    ----------
    backbone, output_size, and the options of `Model`; seed draws the random projection and the
        start of the coreset
    start : {"excluded", "included"}
        Whether the random start of the greedy selection is only the origin of the first
        distances, or the first member of the bank (see k_centre_greedy;
        deviation D8).
    ratio : float, 0 < ratio <= 1
        Fraction of the patches kept in the bank, at least one patch.
    n_neighbours : int >= 1
        b of Eq. 7, 1 for no re-weighting. Lowered to the size of a smaller bank.
    impl : {"cython", "numpy"}
        For the greedy selection, the search and the blur on the CPU: the kernels, or the plain
        algorithms. Equal choices, distances equal within 1e-15.

    Attributes after fit
    ----------
    bank : float32 (M, 384), M = max(1, int(ratio * N * P)) for N images of P positions
    chosen : int64 (M,), the bank's rows as row numbers n * P + p of all patches, in the
        order in which they were chosen
    grid : (int, int), height and width of the feature map
    """

    BATCH_SIZE = 8  # images, Rolih et al. Sec. 4.2
    STRIDE = FEATURE_STRIDE["layer2"]  # px per position of the embedding

    def __init__(
        self, backbone, output_size, *, start="excluded", ratio=RATIO, n_neighbours=N_NEIGHBOURS,
        impl="cython", **options,
    ):  # fmt: skip
        if start not in ("excluded", "included"):
            raise InputError(f"start must be 'excluded' or 'included', not {start!r}")
        if not 0 < ratio <= 1:
            raise InputError(f"the coreset's ratio must lie in (0, 1], not {ratio!r}")
        if n_neighbours < 1:
            raise InputError(f"n_neighbours must be at least 1, not {n_neighbours!r}")
        super().__init__(backbone, output_size, **options)
        self.start, self.ratio, self.n_neighbours = start, ratio, n_neighbours
        self.impl = impl
        self.banks = self.chosen = self.grid = None

    @property
    def bank(self):
        """float32 (M, 384) on the device; None before fit."""
        return self.banks and self.banks.banks[0]

    @bank.setter
    def bank(self, vectors):
        """Set the bank to vectors float32 (M, 384)."""
        self.banks = self._banks([vectors])

    def n_learnt(self, n_images):
        """Numbers stored after training: the vectors of the bank."""
        channels = channels_of(self.backbone)
        return self.n_vectors(n_images) * (channels["layer2"] + channels["layer3"])

    def n_vectors(self, n_images):
        """Vectors of the bank after training on n_images."""
        positions = math.prod(math.ceil(side / self.STRIDE) for side in self.output_size)
        return max(1, int(self.ratio * n_images * positions))

    def embed(self, images):
        """Locally aware patch features (Roth et al. Sec. 3.1).

        Eq. 1-2: phi(N_p(h, w)) = f_agg({phi(a, b) | (a, b) in N_p(h, w)}), N_p(h, w) the
        p x p positions around (h, w), p = 3, f_agg the mean. Deviation D12: positions outside
        the feature map count as zeros, as in the authors' configuration.

        Parameters: images (B, 3, h, w) float32, normalised; (T * B, ...) for tiled input.
        Returns float32 (B, 384, hf, wf): layers 2 and 3 averaged, layer3 enlarged to the
        grid of layer2 (bilinear, align_corners False), concatenated; untiled for tiled input.
        """
        parts = []
        for chunk in chunks(images):
            _, layer2, layer3 = (local_mean(x) for x in self.backbone(chunk))
            layer3 = F.interpolate(layer3, size=layer2.shape[-2:], mode="bilinear")
            parts.append(torch.cat([layer2, layer3], dim=1))
        embedding = torch.cat(parts)  # (B, 384, hf, wf)
        return embedding if self.untile is None else self.untile(embedding, self.STRIDE)

    @torch.no_grad()
    def fit(self, images, progress=None):
        """Fill the memory bank (Roth et al. Eq. 4) and reduce it to its coreset (Eq. 5).

        Parameters: images and progress, see tiled_ref.models; progress counts images, then
        the chosen patches, as the part "coreset".
        Raises InputError without images, KernelNotBuiltError without the kernel.
        """
        self.fit_embeddings(self.embeddings(images), len(images), progress)

    @torch.no_grad()
    def fit_embeddings(self, embeddings, n_images, progress=None):
        """`fit` from embeddings, an iterable of float32 (B, 384, hf, wf), of n_images. Raises
        InputError without images, and for another number of them or unequal shapes."""
        if n_images == 0:
            raise InputError(
                "PatchCore needs at least one normal training image; add images to the "
                "training folder"
            )
        table, row, n = None, 0, 0
        for embedding in expected(embeddings, n_images):  # (B, 384, hf, wf)
            patches = embedding.permute(0, 2, 3, 1).flatten(0, 2)  # (B * P, 384)
            if table is None:
                self.grid = tuple(embedding.shape[-2:])
                n_patches = n_images * self.grid[0] * self.grid[1]
                table = patches.new_empty(n_patches, patches.shape[1])  # (N * P, 384)
            table[row : row + len(patches)] = patches
            row, n = row + len(patches), n + len(embedding)
            if progress:
                progress(n, n_images)
        self.chosen = select_coreset(
            table, self.ratio, self.seed, self.start, self.impl,
            progress and (lambda done, total: progress(done, total, "coreset")),
        )  # fmt: skip
        self.bank = table[self.chosen]  # (M, 384)

    @torch.no_grad()
    def head(self, features):
        """Anomaly maps and scores (Roth et al. Sec. 3.3).

        Eq. 6: m^test,*, m* = argmax_{m^test in P(x^test)} argmin_{m in M} |m^test - m|_2,
        s* = |m^test,* - m*|_2, with P(x^test) = the rows of `patches` and M = bank.

        Parameters: features, [embed(images)], float32 (B, 384, hf, wf).
        Returns maps float32 (B, H, W), the patches' distances enlarged by nearest neighbour
        and blurred with sigma 4 px, and scores float32 (B,), Eq. 7.
        """
        return self._head(self.banks, features[0])

    def joint_head(self, states):
        """One function for the heads of the models with these states, see tiled_ref.models; all
        banks are on the device."""
        banks = self._banks([state["bank"] for state in states])
        return torch.no_grad()(lambda features: self._head(banks, features[0]))

    def _banks(self, banks):
        return Banks(banks, self.device, self.impl)

    def _head(self, banks, embedding):
        """Maps (L * B, H, W) and scores (L * B,) of embedding (L * B, 384, hf, wf)."""
        patches = embedding.permute(0, 2, 3, 1).flatten(1, 2)  # (L * B, P, 384)
        patches = patches.unflatten(0, (len(banks), -1))  # (L, B, P, 384)
        distances, places = banks.nearest(patches.flatten(1, 2))  # (L, B * P), argmin of Eq. 6
        distances = distances.unflatten(1, patches.shape[1:3])  # (L, B, P)
        places = places.unflatten(1, patches.shape[1:3])  # (L, B, P)
        maps = distances.float().view(-1, 1, *embedding.shape[-2:])  # (L * B, 1, hf, wf)
        maps = F.interpolate(maps, size=self.output_size, mode="nearest")[:, 0]  # (L * B, H, W)

        farthest = distances.argmax(2, keepdim=True)  # (L, B, 1)
        star = patches.gather(2, farthest[..., None].expand(-1, -1, -1, patches.shape[-1]))
        around = banks.around(places.gather(2, farthest)[..., 0], self.n_neighbours)  # N_b(m*)
        delta = (star.double() - around.double()).flatten(0, 1)  # (L * B, b, 384)
        parts = [reweight(d.square().sum(-1).sqrt()) for d in chunks(delta, len(delta))]
        return gaussian_blur(maps, SIGMA, self.impl), torch.cat(parts).float()

    def state(self):
        """The result of fit on the CPU: bank, chosen, grid."""
        return {
            "bank": self.bank.cpu(),
            "chosen": self.chosen.cpu(),
            "grid": torch.tensor(self.grid),
        }

    def load_state(self, state):
        """The inverse of state()."""
        self.bank = state["bank"]
        self.chosen = state["chosen"]
        self.grid = tuple(state["grid"].tolist())


def local_mean(features):
    """Mean over 3 x 3 neighbours, zeros outside counted: float (B, C, hf, wf) -> the same."""
    return F.avg_pool2d(features, kernel_size=3, stride=1, padding=1)


def reweight(distances):
    """Image score from the most anomalous patch and the neighbourhood of its neighbour.

    Roth et al. Eq. 7:
        s = (1 - exp|m^test,* - m*|_2 / sum_{m in N_b(m*)} exp|m^test,* - m|_2) * s*
    with |m^test,* - m|_2 = distances (B, b) for the b neighbours m of m* in the bank, m*
    itself first, and s* = |m^test,* - m*|_2 = distances[:, 0]. Deviation D13: b = 1 returns s*
    instead of zero.
    Returns (B,), the dtype of distances. The largest distance is subtracted before the
    exponentials, so that they do not overflow.
    """
    star = distances[:, 0]
    if distances.shape[1] == 1:
        return star
    return (1 - distances.softmax(1)[:, 0]) * star
