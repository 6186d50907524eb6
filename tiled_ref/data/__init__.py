"""The data sets: modules with `categories(root)`, names, and `load(root, name)`, a Category."""

from . import folder, mvtec, synthetic, visa
from .samples import Category, Sample

DATASETS = {"synthetic": synthetic, "mvtec": mvtec, "visa": visa, "folder": folder}

__all__ = ["DATASETS", "Category", "Sample"]
