"""Trained ensembles on disk: plain tensors and JSON, nothing that runs when it is read."""
