"""The anomaly-detection models, and the interface that the ensemble expects.

A model sees batches of small images and knows nothing of tile locations. It is created by

    Model(backbone, output_size, *, seed, device, untile=None, batch_size=None, **switches)

and offers

    fit(images, progress=None)
                      train on normal images. len(images) is N, the number of images, and
                      images[indices], for a list of ints, is a batch: float32 (B, 3, h, w),
                      normalised, on the device. progress(done, total), if given, is called
                      during the work; progress(done, total, name) in a phase before or after
                      the main one, which counts something else
    predict(batch)    (B, 3, h, w) -> maps (B, H, W) float32 and scores (B,) float32: Eq. 4 of
                      the paper, A_ij, s_ij = M_ij(T_ij). The same as head(features(batch))
    features(batch)   list of tensors (B, ...): the part that all models share
    head(features)    maps and scores: the learned part. On a CPU the bits of an image do not
                      depend on the rest of its batch, see backbone.chunks
    n_parameters      learnable parameters as Table 3 of the paper counts them (int)
    n_learnt(n)       numbers that a model stores after training on n images, without the backbone
    state()           the learned part, a dict of CPU tensors
    load_state(state) the inverse of state()
    BATCH_SIZE        images per batch in the paper's evaluation, the default of batch_size

and, if that is faster on a CPU than the heads one after the other,

    joint_head(states)  a function of features (L * B, ...), location-major, that returns the maps
                      (L * B, H, W) and scores (L * B,) of L models with these states

For tiled input (ST) a batch holds T tiles of every image, (T * B, 3, h, w), tile-major (tile 0
of all images, then tile 1, ...), and `untile(features, factor)` turns
(T * B, C, h/factor, w/factor) into (B, C, H/factor, W/factor); `untile.n_tiles` is T and
`untile.tile_size` the tiles' (h, w).
`output_size` is the (H, W) of the map in pixels: the tile's, or the image's if the model
untiles.
"""

from .fastflow import FastFlow
from .padim import Padim
from .patchcore import PatchCore
from .reverse_distillation import ReverseDistillation

MODELS = {
    "padim": Padim,
    "patchcore": PatchCore,
    "fastflow": FastFlow,
    "reverse_distillation": ReverseDistillation,
}
