"""The data sets, and the arrays that are made of them.

Each data set is a module with `categories(root)`, the names of its categories, and
`load(root, name)`, which returns a Category.
"""

from . import folder, mvtec, synthetic, visa
from .samples import Category, Sample

DATASETS = {"synthetic": synthetic, "mvtec": mvtec, "visa": visa, "folder": folder}

__all__ = ["DATASETS", "Category", "Sample"]
