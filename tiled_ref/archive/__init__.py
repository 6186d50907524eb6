"""Trained ensembles on disk: plain tensors and JSON, so reading them never runs code."""
