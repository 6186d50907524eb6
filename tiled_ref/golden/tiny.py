"""The first bundle: everything with a tiny backbone, nothing to download."""

from . import (
    backbone,
    ensemble,
    fastflow,
    images,
    merging,
    metrics,
    padim,
    patchcore,
    reverse_distillation,
    thresholds,
)

BEFORE_THE_MODELS = (images, backbone)
MODELS = (padim, patchcore, fastflow, reverse_distillation)
AFTER_THE_MODELS = (merging, thresholds, metrics, ensemble)


def stages():
    """All stages in the order of the method."""
    files = (*BEFORE_THE_MODELS, *MODELS, *AFTER_THE_MODELS)
    return [stage for file in files for stage in file.STAGES]


def models():
    """{model: {tensor: array}}."""
    return {
        "backbone": backbone.drawn(backbone.SmallResNet(), "backbone"),
        "fastflow": fastflow.drawn(),
        "reverse_distillation": reverse_distillation.student_weights(),
    }
