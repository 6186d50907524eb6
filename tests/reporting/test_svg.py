"""Charts: well-formed files, data where the scales put it, nothing that overlaps the axes."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from tiled_ref.reporting.drawing import svg

NAME = "{http://www.w3.org/2000/svg}"


def parsed(chart):
    return ElementTree.fromstring(chart.svg())


def texts(root):
    return [node.text for node in root.iter(f"{NAME}text")]


def test_points_lie_where_the_scales_say():
    """x from 0 to 10 and y from 0 to 1 over the box; the middle is its middle."""
    chart = svg.Chart("t", "x", "y", x_range=(0, 10), y_range=(0, 1))
    chart.points([0, 5, 10], [0, 0.5, 1])
    marks = [(float(c.get("cx")), float(c.get("cy"))) for c in parsed(chart).iter(f"{NAME}circle")]
    left, top, right, bottom = chart._box
    want = [(left, bottom), ((left + right) / 2, (top + bottom) / 2), (right, top)]
    assert marks == [pytest.approx(point, abs=0.01) for point in want]


def test_a_logarithmic_axis_puts_equal_factors_at_equal_distances():
    chart = svg.Chart("t", "x", "y", log_x=True, x_range=(1, 100), y_range=(0, 1))
    chart.points([1, 10, 100], [0, 0, 0])
    x = [float(c.get("cx")) for c in parsed(chart).iter(f"{NAME}circle")]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.02)


def test_bars_start_at_zero_and_have_their_height():
    chart = svg.Chart("t", "x", "y", x_names=["a", "b"], y_range=(0, 4))
    chart.bars([0, 1], [4, 1], "n", names=["four", "one"])
    root = parsed(chart)
    bars = [r for r in root.iter(f"{NAME}rect") if r.find(f"{NAME}title") is not None]
    heights = [float(bar.get("height")) for bar in bars]
    assert heights[0] == pytest.approx(4 * heights[1], abs=0.05)
    lower = [float(bar.get("y")) + float(bar.get("height")) for bar in bars]
    assert lower == pytest.approx([chart._box[3]] * 2, abs=0.02)


def test_the_legend_has_rows_of_its_own_above_the_axes():
    chart = svg.Chart("t", "x", "y", width=400)
    for k in range(9):
        chart.line([0, 1], [k, k], f"a rather long name {k}", k)
    root = parsed(chart)
    lowest = max(
        float(t.get("y")) for t in root.iter(f"{NAME}text") if (t.text or "").startswith("a rather")
    )
    assert lowest + 4 < chart._box[1] < chart._box[3] < chart.height
    right = [
        float(t.get("x")) + svg.text_width(t.text)
        for t in root.iter(f"{NAME}text")
        if (t.text or "").startswith("a rather")
    ]
    assert max(right) <= chart.width


def test_long_category_names_are_turned_and_stay_inside():
    names = [f"category number {k}" for k in range(20)]
    chart = svg.Chart("t", "x", "y", x_names=names, width=600)
    chart.bars(range(20), range(1, 21))
    turned = [t for t in parsed(chart).iter(f"{NAME}text") if "-45" in t.get("transform", "")]
    assert [t.text for t in turned] == names
    longest = svg.text_width(names[-1], svg.TICK)
    assert chart.height - chart._box[3] > 0.7 * longest


def test_names_are_text_not_markup():
    evil = '<script>alert("&")</script>'
    chart = svg.Chart(evil, evil, evil, x_names=[evil], note=evil)
    chart.bars([0], [1], evil, names=[evil])
    root = parsed(chart)
    assert not list(root.iter(f"{NAME}script")) and texts(root).count(evil) == 6
    whole = svg.page([chart], 1, evil, evil)
    assert "<script" not in whole and ElementTree.fromstring(whole) is not None


def test_series_differ_in_colour_dash_and_mark():
    for name, values in (("dash", svg.DASHES), ("mark", svg.MARKS)):
        assert len(set(values[:6])) == 6, name
    for column in (0, 1):
        assert len({pair[column] for pair in svg.SERIES}) == len(svg.SERIES)


def luminance(color):
    """Relative luminance of WCAG 2.1."""
    parts = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [svg.LIGHT, svg.DARK])
def test_text_and_series_can_be_read_on_their_background(theme):
    """WCAG 2.1: 4.5 to 1 for text, 3 to 1 for graphics."""
    assert contrast(theme["ink"], theme["paper"]) > 4.5
    assert contrast(theme["soft"], theme["paper"]) > 4.5
    at = 0 if theme is svg.LIGHT else 1
    assert min(contrast(pair[at], theme["paper"]) for pair in svg.SERIES) > 3


def test_a_file_follows_the_readers_theme_and_a_page_its_own():
    chart = svg.Chart("t", "x", "y")
    chart.line([0, 1], [0, 1], "n")
    text = chart.svg()
    assert "prefers-color-scheme: dark" in text and svg.file_width(text) == 640
    part = svg.inline(text)
    assert part.startswith('<svg class="chart"') and "<style" not in part
    assert ".chart .s0{stroke:" in svg.style_sheet(".chart")


def test_a_page_puts_charts_in_rows():
    charts = [svg.Chart(str(k), "x", "y", width=100, height=80) for k in range(5)]
    text = svg.page(charts, 3, "all")
    moved = re.findall(r"translate\((\d+) (\d+)\)", text)
    assert moved == [("0", "40"), ("100", "40"), ("200", "40"), ("0", "120"), ("100", "120")]


def test_a_title_longer_than_its_chart_is_not_cut():
    title = "a title that is " + "very " * 30 + "long"
    for text in (svg.Chart(title, "x", "y", width=300).svg(),
                 svg.page([svg.Chart("", "x", "y", width=300)], 1, title)):  # fmt: skip
        assert svg.file_width(text) > svg.text_width(title, svg.TITLE)


def test_an_empty_chart_and_one_value_are_drawn():
    for values in ([], [0.0], [7.0, 7.0]):
        chart = svg.Chart("t", "x", "y")
        chart.line(range(len(values)), values) if values else None
        assert "NaN" not in chart.svg() and "nan" not in chart.svg()


def test_what_has_no_text_leaves_none():
    chart = svg.Chart("", "", "y", x_range=(0, 1), y_range=(0, 1))
    root = parsed(chart)
    assert texts(root).count("y") == 1 and all(texts(root))
    page = ElementTree.fromstring(svg.page([chart], 1, ""))
    assert texts(page) == texts(root)


def test_the_same_chart_has_the_same_bytes():
    def draw():
        chart = svg.Chart("t", "x", "y")
        chart.band(np.arange(3), [0, 0, 0], [1, 2, 1])
        chart.upright(1.5, "here")
        return chart.svg()

    assert draw() == draw()


def test_an_axis_that_counts_has_whole_ticks():
    chart = svg.Chart("t", "x", "y", x_names=["a", "b", "c"], whole_y=True)
    chart.bars(range(3), [1, 2, 3])
    assert {text for text in texts(parsed(chart)) if text[0].isdigit()} == {"0", "1", "2", "3"}
