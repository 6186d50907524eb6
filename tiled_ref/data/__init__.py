"""Data sets: modules with `categories(root)`, their names, and `load(root, name)`, a Category."""

from . import folder, mvtec, mvtec2, synthetic, visa
from .samples import Category, Sample

DATASETS = {
    "synthetic": synthetic, "mvtec": mvtec, "mvtec2": mvtec2, "visa": visa, "folder": folder,
}  # fmt: skip

__all__ = ["DATASETS", "Category", "Sample"]
