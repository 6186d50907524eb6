"""Run a trained ensemble on new images."""

from .predict import Predictor

__all__ = ["Predictor"]
