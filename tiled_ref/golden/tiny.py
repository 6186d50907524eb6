"""The first bundle: everything with a tiny backbone, nothing to download."""

from . import (
    ensemble,
    fastflow,
    padim,
    patchcore,
    postprocessing,
    preprocessing,
    reverse_distillation,
    small_model,
)


def stages():
    """All stages in the order of the method."""
    rooms = (
        preprocessing,
        padim,
        patchcore,
        fastflow,
        reverse_distillation,
        postprocessing,
        ensemble,
    )
    return [stage for room in rooms for stage in room.STAGES]


def models():
    """{model: {tensor: array}}."""
    return {
        "backbone": small_model.drawn(small_model.SmallResNet(), "backbone"),
        "fastflow": fastflow.drawn(),
        "reverse_distillation": reverse_distillation.student_weights(),
    }
