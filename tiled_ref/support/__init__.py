"""Errors, files, arrays, progress, memory: what every room uses and nothing of the method."""
