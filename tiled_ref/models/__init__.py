"""The anomaly-detection models, and what the ensemble expects of each.

A model sees batches of small images and knows nothing of tile locations. It is made with

    Model(backbone, output_size, seed=..., device=..., untile=None)

and offers

    fit(batches)      batches() returns a fresh iterator over (B, 3, h, w) float32 tensors
                      on the device, normalised; called as often as the model needs
    predict(batch)    (B, 3, h, w) -> maps (B, H, W) float32 and scores (B,) float32
    n_parameters      learnable parameters as Table 3 of the paper counts them (int)
    state()           dict of CPU tensors that differ from model to model
    load_state(state) the inverse of state()
    to(device)        move what state() holds
    BATCH_SIZE        images per batch in the paper's evaluation

For tiled input (ST) a batch holds T tiles of every image, (T * B, 3, h, w), tile-major,
and `untile(features, factor)` turns (T * B, C, h/factor, w/factor) into (B, C, H/factor,
W/factor). `output_size` is the (H, W) of the map in pixels: the tile's, or the image's
where the model untiles.
"""

from .padim import Padim

MODELS = {"padim": Padim}
