"""Exact metrics of scores and maps: AUROC, AUPRO, F1-max and SegF1."""

from .areas import (
    Curve,
    PixelMetrics,
    aupro,
    auroc,
    best_threshold,
    pixel_auroc,
    pixel_curves,
    pixel_f1_max,
    pixel_metrics,
    plain_aupro,
    plain_auroc,
    rank_pixels,
)
from .f1 import image_f1_max, plain_f1_max, seg_f1
from .regions import UndefinedMetricError, label_mask, label_regions

__all__ = [
    "Curve", "PixelMetrics", "UndefinedMetricError", "aupro", "auroc", "best_threshold",
    "image_f1_max", "label_mask", "label_regions", "pixel_auroc", "pixel_curves", "pixel_f1_max",
    "pixel_metrics", "plain_aupro", "plain_auroc", "plain_f1_max", "rank_pixels", "seg_f1",
]  # fmt: skip
