"""Benchmarks; a package, so that none of its files hides an installed package of the same name."""
