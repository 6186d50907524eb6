"""The first bundle: everything with a tiny backbone, nothing to download."""

from . import padim, postprocessing


def stages():
    """All stages in the order of the method."""
    return [*padim.STAGES, *postprocessing.STAGES]


def models():
    """{model: {tensor: array}}."""
    return {}
