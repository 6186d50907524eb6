"""Ticks of a chart's axes."""

import re

import pytest

from tiled_ref.reporting.drawing import axes, svg


def test_ticks_are_round_and_inside():
    assert axes.linear_ticks(0, 100) == [0, 20, 40, 60, 80, 100]
    assert axes.linear_ticks(0.031, 0.079) == [0.04, 0.05, 0.06, 0.07]
    assert axes.linear_ticks(3, 3) == [3]
    assert axes.log_ticks(1, 1000) == [1, 3, 10, 30, 100, 300, 1000]
    assert axes.log_ticks(0.9, 60) == [1, 2, 5, 10, 20, 50]
    assert axes.log_ticks(0.03, 0.08) == axes.linear_ticks(0.03, 0.08)  # else one tick alone
    assert axes.log_ticks(1e-6, 1e3) == pytest.approx([10.0**k for k in range(-6, 4)])


def ticks(text):
    """The texts of the ticks of an SVG's charts, as numbers, but of names."""
    found = re.findall(r'class="soft"[^>]*>([^<]*)</text>', text)
    return [float(t.replace(",", "")) for t in found if re.fullmatch(r"[\d.,]+", t)]


def line_of(chart):
    return re.search(r'class="s0" d="([^"]*)"', chart.svg())[1]


def test_curves_and_recall_end_at_100_percent(made):
    found, _, _ = made
    for name, most in (("curves", 1), ("recall_by_size", 100)):
        drawings = [f.data for f in found.values() if f.name.startswith(name)]
        for text in drawings:
            upright = re.findall(r'text-anchor="end">([\d.]+)</text>', text)
            assert max(map(float, upright)) == most
        assert drawings


@pytest.mark.parametrize("values", [[100, 99, 100], [100], [0.5, 100], [88, 94.5], [1e-3, 100]])
@pytest.mark.parametrize("log", [False, True])
def test_no_axis_of_percentages_or_rates_goes_beyond_100_percent(values, log):
    chart = svg.Chart("", "part in %", "missed, %", log_x=log, log_y=log)
    chart.line(values, values)
    assert 2 <= len(ticks(chart.svg())) and max(ticks(chart.svg())) <= 100
    _, top, _ = map(float, re.search(r"M([\d.]+) ([\d.]+)V([\d.]+)H", chart.svg()).groups())
    highest = min(float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", line_of(chart)))
    assert (highest == pytest.approx(top)) == (max(values) == 100)  # 100 % lies at the very end


@pytest.mark.parametrize("low, high", [(1e-9, 2e-9), (-5, 7), (0.5, 0.5001), (1, 1e7)])
def test_ticks_never_leave_the_axis(low, high):
    ticks = axes.linear_ticks(low, high)
    assert 2 <= len(ticks) <= 12
    room = 1e-9 * (high - low) + 1e-12
    assert all(low - room <= tick <= high + room for tick in ticks)
