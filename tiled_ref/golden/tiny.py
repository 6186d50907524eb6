"""The first bundle: all stages, with a tiny backbone, so no download is needed."""

from . import backbone, draws, ensemble, fastflow, images, merging, metrics, padim, patchcore
from . import reverse_distillation, thresholds, training


def stages():
    """Return all stages in the order of the method."""
    models = draws, padim, patchcore, training, fastflow, reverse_distillation
    files = images, backbone, *models, merging, thresholds, metrics, ensemble
    return [stage for file in files for stage in file.STAGES]


def models():
    """Return {model: {tensor: array}}."""
    return {
        "backbone": backbone.drawn(backbone.SmallResNet(), "backbone"),
        "fastflow": fastflow.drawn(),
        "fastflow_alternating": fastflow.drawn("fastflow_alternating"),
        "reverse_distillation": reverse_distillation.student_weights(),
    }
