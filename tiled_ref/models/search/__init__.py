"""Exact nearest neighbours and the greedy coreset, made fast by a filter with a proof."""
