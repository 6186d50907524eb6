"""Ticks of a chart's axes."""

import pytest

from tiled_ref.reporting.drawing import axes


def test_ticks_are_round_and_inside():
    assert axes.linear_ticks(0, 100) == [0, 20, 40, 60, 80, 100]
    assert axes.linear_ticks(0.031, 0.079) == [0.04, 0.05, 0.06, 0.07]
    assert axes.linear_ticks(3, 3) == [3]
    assert axes.log_ticks(1, 1000) == [1, 3, 10, 30, 100, 300, 1000]
    assert axes.log_ticks(0.9, 60) == [1, 2, 5, 10, 20, 50]
    assert axes.log_ticks(0.03, 0.08) == axes.linear_ticks(0.03, 0.08)  # else one tick alone
    assert axes.log_ticks(1e-6, 1e3) == pytest.approx([10.0**k for k in range(-6, 4)])


@pytest.mark.parametrize("low, high", [(1e-9, 2e-9), (-5, 7), (0.5, 0.5001), (1, 1e7)])
def test_ticks_never_leave_the_axis(low, high):
    ticks = axes.linear_ticks(low, high)
    assert 2 <= len(ticks) <= 12
    room = 1e-9 * (high - low) + 1e-12
    assert all(low - room <= tick <= high + room for tick in ticks)
