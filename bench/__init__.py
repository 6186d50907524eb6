"""Benchmarks; a package, so that a file of it never hides another package of its name."""
