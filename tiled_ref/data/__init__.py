"""The data sets, and the arrays that are made of them."""

from .samples import Category, Sample

__all__ = ["Category", "Sample"]
