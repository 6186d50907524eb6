"""Exact nearest neighbours and the greedy coreset, made fast by a filter that is proved."""
