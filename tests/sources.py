"""The package's own files, for the tests that read them."""

import pkgutil
from pathlib import Path

import tiled_ref

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "tiled_ref").rglob("*.py"))


def module_of(path):
    """tiled_ref/models/padim.py -> "tiled_ref.models.padim"."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# Modules whose import does no more than define names: compiled kernels are left out.
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(tiled_ref.__path__, "tiled_ref.")
    if not module.name.rpartition(".")[2].startswith("_")
)
