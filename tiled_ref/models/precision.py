"""Networks in lower precision, on demand.

The convolutional networks (backbone, flows, decoder) predict under torch.autocast; statistics,
distances, likelihoods and training stay in float32.
"""

import contextlib

import torch

from ..support.errors import InputError

PRECISIONS = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}


def check_precision(precision, device):
    """Raise InputError for a precision, a key of PRECISIONS, that the torch.device lacks."""
    if precision not in PRECISIONS:
        raise InputError(
            f"the precision must be one of {', '.join(PRECISIONS)}, not {precision!r}"
        )
    if precision == "float16" and device.type != "cuda":
        raise InputError(
            f"--precision float16 needs a CUDA device, not {device}; use bfloat16 or float32"
        )
    if precision == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise InputError(
            f"--precision bfloat16: {torch.cuda.get_device_name(device)} has no bfloat16; use "
            "float16 or float32"
        )


class MixedPrecision(torch.nn.Module):
    """A backbone computed in a precision, a key of PRECISIONS; its layers are float32."""

    def __init__(self, backbone, precision):
        super().__init__()
        self.backbone = backbone
        self.dtype = PRECISIONS[precision]
        if hasattr(backbone, "channels"):
            self.channels = backbone.channels

    def forward(self, images):
        """images float32 (B, 3, h, w) -> layers as the backbone's, float32."""
        with torch.autocast(images.device.type, self.dtype):
            layers = self.backbone(images)
        return [layer.float() for layer in layers]


def autocast_of(backbone, device):
    """The context in which networks on top of this backbone predict."""
    if isinstance(backbone, MixedPrecision):
        return torch.autocast(torch.device(device).type, backbone.dtype)
    return contextlib.nullcontext()
