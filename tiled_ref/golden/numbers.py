"""Pseudo-random numbers with the same bits on every machine and in every library version.

All case inputs and weights are drawn from them. They use only integers and powers of two,
so nothing is rounded, and nothing depends on a library's random generator.

Source: SplitMix64 of Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators",
OOPSLA 2014, Fig. 13 and 16 (mix64variant13 of David Stafford).
"""

import hashlib

import numpy as np

SEED = 20240617  # for the whole bundle


class Numbers:
    """A stream of numbers that depends only on SEED and its name, usually a case's name."""

    def __init__(self, name):
        digest = hashlib.sha256(f"{SEED} {name}".encode()).digest()
        self.state = int.from_bytes(digest[:8], "little")

    def bits(self, *shape):
        """Draw uint64 of a shape, every bit random."""
        n = int(np.prod(shape, dtype=np.int64))
        step = 0x9E3779B97F4A7C15
        z = np.uint64(self.state) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(step)
        self.state = (self.state + n * step) % 2**64
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (z ^ (z >> np.uint64(31))).reshape(shape)

    def integers(self, high, *shape):
        """Draw int64 in [0, high), high <= 2^31."""
        return ((self.bits(*shape) >> np.uint64(33)) * np.uint64(high) >> np.uint64(31)).astype(
            np.int64
        )

    def uniform(self, *shape):
        """Draw float32 multiples of 2^-24 in [0, 1)."""
        return ((self.bits(*shape) >> np.uint64(40)).astype(np.float64) / 2**24).astype(np.float32)

    def bell(self, *shape):
        """Draw float32 multiples of 2^-16 in [-2, 2): the sum of four uniform numbers minus 2,
        with a standard deviation of 0.577."""
        parts = self.bits(4, *shape) >> np.uint64(48)
        return (parts.sum(0).astype(np.float64) / 2**16 - 2).astype(np.float32)
