"""Runs: a cell, a sweep of cells, pieces on disk, several processes, memory modes."""
