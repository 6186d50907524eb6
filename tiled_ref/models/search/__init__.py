"""Exact nearest neighbours and the greedy coreset, accelerated by a proven filter."""
