"""Charts as SVG text: axes, lines, points, bars, legends, without a plotting package or font file.

Plain attributes draw a chart for light backgrounds in any viewer; a style sheet recolours it where
the reader prefers dark. Series differ in colour (Okabe and Ito's, safe
for colour-blind readers), dash and mark. The legend has its own rows above the axes and never
covers data.
"""

import math
import re
from xml.sax.saxutils import escape

from .axes import linear_ticks, log_ticks, number, scale, value_range

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
LIGHT = {"paper": "#ffffff", "ink": "#1c2128", "soft": "#57606a", "grid": "#dfe3e8"}
DARK = {"paper": "#14181d", "ink": "#e8ebee", "soft": "#a3adb8", "grid": "#2d343c"}
SERIES = (  # light, dark
    ("#0072b2", "#5aa9e6"), ("#d55e00", "#f0803c"), ("#009e73", "#2fc79a"),
    ("#b0568f", "#dd8fbe"), ("#a87900", "#e6b800"), ("#2f93c4", "#8fd0f5"),
    ("#4d4d4d", "#c9c9c9"), ("#7a5195", "#b79ad1"),
)  # fmt: skip
DASHES = ("", "7 4", "2 3", "9 3 2 3", "12 4", "4 2", "1 3", "14 3 4 3")
MARKS = ("circle", "square", "triangle", "diamond", "down", "cross")
TITLE, TEXT, TICK = 15, 12.5, 11.5  # font sizes, px


def style_sheet(selector="svg"):
    """CSS that recolours every chart inside `selector` for a dark background."""
    rules = [f"{selector} .{name}{{fill:{color}}}" for name, color in DARK.items()]
    rules += [f"{selector} .{name}-line{{stroke:{color}}}" for name, color in DARK.items()]
    for k, (_, dark) in enumerate(SERIES):
        rules.append(f"{selector} .s{k}{{stroke:{dark}}}{selector} .f{k}{{fill:{dark}}}")
    return "".join(rules)


def text_width(text, size=TEXT):
    """An upper bound on the width of a text in px, for any sans-serif typeface."""
    narrow = sum(char in "iljtf.,:;'|!()[] " for char in text)
    wide = sum(char in "mwMW@%" for char in text)
    return size * (0.6 * (len(text) - narrow - wide) + 0.36 * narrow + 0.95 * wide)


class Chart:
    """One pair of axes: add lines, points, bands and bars, then call `svg`.

    Parameters: title, x_label and y_label, plain text, units in the labels; width and height of
    the whole chart in pixels; x_range and y_range, (low, high) of the axes, by default those of
    the data with a small margin, at most 100 for percentages ("%" in the label); log_x and log_y,
    logarithmic axes, whose values must be positive; x_names, categories instead of numbers, item k
    at x = k; x_ticks, positions of the x axis's ticks; whole_y, integer ticks only, for counts;
    note, a line below the chart.
    """

    def __init__(self, title, x_label, y_label, *, width=640, height=420, x_range=None,
                 y_range=None, log_x=False, log_y=False, x_names=None, x_ticks=None,
                 whole_y=False, note=""):  # fmt: skip
        self.title, self.x_label, self.y_label, self.note = title, x_label, y_label, note
        self.width, self.height = width, height
        if x_names is not None and x_range is None:
            x_range = (-0.6, len(x_names) - 0.4)
        self.x_range, self.y_range = x_range, y_range
        self.log_x, self.log_y = log_x, log_y
        self.x_names, self.x_ticks = x_names, x_ticks
        self.whole_y = whole_y
        self._items = []  # functions that draw, given a function from (x, y) to px
        self._xs, self._ys = [], []
        self._legend = []  # (label, series, kind)

    def line(self, x, y, label=None, series=0, marks=False):
        """A line through points x, y, floats (n,); `series` chooses colour, dash and mark."""
        x, y = _floats(x), _floats(y)
        self._see(x, y, label, series, "marked line" if marks else "line")

        def draw(place):
            points = [place(a, b) for a, b in zip(x, y)]
            return (
                f'<path class="s{_k(series)}" d="{_polyline(points)}" fill="none" '
                f'stroke="{_color(series)}" stroke-width="2"{_dashes(series)} '
                'stroke-linejoin="round"/>'
            ) + "".join(_mark(*point, series) for point in points if marks)

        self._items.append(draw)

    def points(self, x, y, label=None, series=0, names=None):
        """Marks at x, y, floats (n,); `names` become tooltips."""
        x, y = _floats(x), _floats(y)
        self._see(x, y, label, series, "mark")
        names = names or [None] * len(x)
        self._items.append(
            lambda place: "".join(
                _mark(*place(a, b), series, name) for a, b, name in zip(x, y, names)
            )
        )

    def band(self, x, low, high, series=0):
        """A pale area between two lines over x, floats (n,)."""
        x, low, high = _floats(x), _floats(low), _floats(high)
        self._see(x + x, low + high, None, series, "band")

        def draw(place):
            points = [place(*p) for p in zip(x + x[::-1], low + high[::-1])]
            return (
                f'<path class="f{_k(series)}" d="{_polyline(points)}Z" fill="{_color(series)}" '
                'opacity="0.16"/>'
            )

        self._items.append(draw)

    def bars(self, x, heights, label=None, series=0, width=0.8, offset=0.0, names=None):
        """Upright bars centred at x + offset, `width` wide, in units of x."""
        x, heights = _floats(x), _floats(heights)
        edges = [a + offset + side * width / 2 for a in x for side in (-1, 1)]
        self._see(edges, heights + ([] if self.log_y else [0.0]), label, series, "bar")
        names = names or [None] * len(x)

        def draw(place):
            out = []
            bottom = self._y_bottom if self.log_y else 0.0
            for a, h, name in zip(x, heights, names):
                left, top = place(a + offset - width / 2, max(h, bottom))
                right, floor = place(a + offset + width / 2, min(h, bottom))
                out.append(
                    f'<rect class="f{_k(series)}" x="{_n(left)}" y="{_n(top)}" '
                    f'width="{_n(right - left)}" height="{_n(floor - top)}" '
                    f'fill="{_color(series)}" opacity="0.9">{_tooltip(name)}</rect>'
                )
            return "".join(out)

        self._items.append(draw)

    def upright(self, x, label=None):
        """A thin dashed line across the chart at x, labelled in the legend unless label is None."""
        self._see([float(x)], [], label, 0, "rule")

        def draw(place):
            a, _ = place(x, self._y_bottom)
            _, top, _, bottom = self._box
            return _rule(f"M{_n(a)} {_n(top)}V{_n(bottom)}")

        self._items.append(draw)

    def _see(self, x, y, label, series, kind):
        self._xs += [a for a in x if math.isfinite(a)]
        self._ys += [b for b in y if math.isfinite(b)]
        if label is not None:
            self._legend.append((label, series, kind))

    def svg(self):
        """The chart as a complete SVG file."""
        wide = max(self.width, text_width(self.title, TITLE) + 28)
        return document(self.body(), wide, self.height, self.title)

    def body(self):
        """The chart without the <svg> around it, its upper left corner at (0, 0)."""
        rows = self._legend_rows()
        top = (38 if self.title else 14) + 20 * len(rows)
        y_range = self.y_range or value_range(self._ys, self.log_y, _most(self.y_label))
        x_range = self.x_range or value_range(self._xs, self.log_x, _most(self.x_label))
        y_ticks = (log_ticks if self.log_y else linear_ticks)(*y_range)
        if self.whole_y:
            y_ticks = [tick for tick in y_ticks if tick == int(tick)]
        y_texts = [number(tick) for tick in y_ticks]
        left = 34 + max([text_width(text, TICK) for text in y_texts], default=20)
        below, x_marks, turned = self._x_marks(x_range, self.width - left - 18)
        bottom = self.height - below - (18 if self.note else 0)
        self._box = box = (left, top, self.width - 18, bottom)
        self._y_bottom = y_range[0]
        to_x = scale(*x_range, box[0], box[2], self.log_x)
        to_y = scale(*y_range, box[3], box[1], self.log_y)

        def place(x, y):
            return to_x(x), min(max(to_y(y), box[1] - 40), box[3] + 40)

        parts = []
        for tick, text in zip(y_ticks, y_texts):
            y = to_y(tick)
            parts.append(_path(f"M{_n(box[0])} {_n(y)}H{_n(box[2])}", "grid"))
            parts.append(_text(text, box[0] - 7, y + 4, TICK, "soft", ' text-anchor="end"'))
        for tick, text in x_marks:
            x = to_x(tick)
            if self.x_names is None:
                parts.append(_path(f"M{_n(x)} {_n(box[1])}V{_n(box[3])}", "grid"))
            parts.append(_path(f"M{_n(x)} {_n(box[3])}v4", "soft"))
            more, right, down = ' text-anchor="middle"', 0, 17
            if turned:
                more = f' text-anchor="end" transform="rotate(-45 {_n(x)} {_n(box[3] + 13)})"'
                right, down = 3, 13
            parts.append(_text(text, x + right, box[3] + down, TICK, "soft", more))
        parts += [draw(place) for draw in self._items]
        parts.append(_path(f"M{_n(box[0])} {_n(box[1])}V{_n(box[3])}H{_n(box[2])}", "soft"))
        parts += self._words(rows, box)
        return "".join(parts)

    def _words(self, rows, box):
        middle = (box[0] + box[2]) / 2
        lowest = self.height - (18 if self.note else 0)
        parts = [_text(self.x_label, middle, lowest - 8, TEXT, "ink", ' text-anchor="middle"')]
        turn = f' text-anchor="middle" transform="rotate(-90 14 {_n((box[1] + box[3]) / 2)})"'
        parts.append(_text(self.y_label, 14, (box[1] + box[3]) / 2, TEXT, "ink", turn))
        parts.append(_text(self.title, 14, 24, TITLE, "ink", ' font-weight="600"'))
        parts.append(_text(self.note, 14, self.height - 6, TICK, "soft"))
        for k, row in enumerate(rows):
            y = (44 if self.title else 20) + 20 * k
            for x, (label, series, kind) in row:
                parts.append(_sample(x, y - 4, series, kind))
                parts.append(_text(label, x + 32, y, TEXT, "ink"))
        return parts

    def _legend_rows(self):
        rows, x = [], None
        for entry in self._legend:
            wide = 32 + text_width(entry[0]) + 18
            if x is None or x + wide > self.width - 8:
                rows.append([])
                x = 14
            rows[-1].append((x, entry))
            x += wide
        return rows

    def _x_marks(self, x_range, width):
        """(px below the axes, [(x, text)], whether the texts are turned)"""
        if self.x_names is None:
            ticks = self.x_ticks
            if ticks is None:
                ticks = (log_ticks if self.log_x else linear_ticks)(*x_range)
            return 46, [(tick, number(tick)) for tick in ticks], False
        longest = max([text_width(name, TICK) for name in self.x_names], default=0)
        turned = longest + 6 > width / max(1, len(self.x_names))
        return 36 + longest * 0.71 if turned else 46, enumerate(self.x_names), turned


def document(body, width, height, title=""):
    """An SVG file around a drawing."""
    size = f'width="{_n(width)}" height="{_n(height)}" viewBox="0 0 {_n(width)} {_n(height)}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" '
        f'font-family="{FONT}"><title>{escape(title)}</title>'
        f"<style>@media screen and (prefers-color-scheme: dark){{{style_sheet()}}}</style>"
        f'<rect class="paper" width="{_n(width)}" height="{_n(height)}" fill="{LIGHT["paper"]}"/>'
        f"{body}</svg>\n"
    )


def inline(text):
    """An SVG file as an element of class "chart", without its style sheet: the page has one."""
    start = text.index("<style>")
    stop = text.index("</style>") + len("</style>")
    return text[:start].replace("<svg ", '<svg class="chart" ', 1) + text[stop:]


def file_width(text):
    """The width in px of an SVG file written by this module."""
    return float(re.search(r'width="([0-9.]+)"', text)[1])


def page(charts, columns, title, note=""):
    """Arrange charts of equal size in rows under one title; returns an SVG file."""
    width, height = charts[0].width, charts[0].height
    columns = min(columns, len(charts))
    rows = -(-len(charts) // columns)
    head = 40
    parts = [_text(title, 14, 27, TITLE + 1, "ink", ' font-weight="600"')]
    for k, chart in enumerate(charts):
        x, y = k % columns * width, head + k // columns * height
        parts.append(f'<g transform="translate({_n(x)} {_n(y)})">{chart.body()}</g>')
    total = head + rows * height + (22 if note else 0)
    parts.append(_text(note, 14, total - 8, TICK, "soft"))
    wide = max(columns * width, text_width(title, TITLE + 1) + 28, text_width(note, TICK) + 28)
    return document("".join(parts), wide, total, title)


def _most(label):
    return 100.0 if "%" in label else math.inf


def _floats(values):
    return [float(value) for value in values]


def _n(value):
    """A coordinate: two decimals, no trailing zeros."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _polyline(points):
    return "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in points)


def _k(series):
    return series % len(SERIES)


def _color(series):
    return SERIES[_k(series)][0]


def _dashes(series):
    dash = DASHES[series % len(DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""


def _path(d, name):
    return f'<path class="{name}-line" d="{d}" stroke="{LIGHT[name]}" fill="none"/>'


def _rule(d):
    return (
        f'<path class="ink-line" d="{d}" stroke="{LIGHT["ink"]}" stroke-width="1.4" '
        'stroke-dasharray="4 3" fill="none"/>'
    )


def _text(text, x, y, size, name, more=""):
    if not text:
        return ""
    return (
        f'<text class="{name}" x="{_n(x)}" y="{_n(y)}" font-size="{size}" '
        f'fill="{LIGHT[name]}"{more}>{escape(text)}</text>'
    )


def _mark(x, y, series, name=None):
    kind, k, color = MARKS[series % len(MARKS)], _k(series), _color(series)
    s = 4.0  # px, half of its size
    shapes = {
        "square": f"M{_n(x - s)} {_n(y - s)}h{_n(2 * s)}v{_n(2 * s)}h{_n(-2 * s)}Z",
        "triangle": f"M{_n(x)} {_n(y - 1.3 * s)}L{_n(x + 1.2 * s)} {_n(y + s)}H{_n(x - 1.2 * s)}Z",
        "diamond": f"M{_n(x)} {_n(y - 1.4 * s)}L{_n(x + 1.2 * s)} {_n(y)}L{_n(x)} {_n(y + 1.4 * s)}"
        f"L{_n(x - 1.2 * s)} {_n(y)}Z",
        "down": f"M{_n(x)} {_n(y + 1.3 * s)}L{_n(x + 1.2 * s)} {_n(y - s)}H{_n(x - 1.2 * s)}Z",
        "cross": f"M{_n(x - s)} {_n(y - s)}L{_n(x + s)} {_n(y + s)}M{_n(x - s)} {_n(y + s)}"
        f"L{_n(x + s)} {_n(y - s)}",
    }
    tag, drawn = "path", f'class="f{k}" d="{shapes.get(kind)}" fill="{color}"'
    if kind == "circle":
        tag, drawn = "circle", f'class="f{k}" cx="{_n(x)}" cy="{_n(y)}" r="{_n(s)}" fill="{color}"'
    elif kind == "cross":
        drawn = f'class="s{k}" d="{shapes[kind]}" stroke="{color}" stroke-width="2.2" fill="none"'
    return f"<{tag} {drawn}>{_tooltip(name)}</{tag}>"


def _tooltip(name):
    return f"<title>{escape(name)}</title>" if name else ""


def _sample(x, y, series, kind):
    """The line, mark or bar before a legend entry."""
    if kind == "rule":
        return _rule(f"M{_n(x)} {_n(y)}h27")
    if kind == "bar":
        return (
            f'<rect class="f{_k(series)}" x="{_n(x + 6)}" y="{_n(y - 6)}" width="16" height="12" '
            f'fill="{_color(series)}" opacity="0.9"/>'
        )
    out = ""
    if "line" in kind:
        out = (
            f'<path class="s{_k(series)}" d="M{_n(x)} {_n(y)}h27" stroke="{_color(series)}" '
            f'stroke-width="2.2" fill="none"{_dashes(series)}/>'
        )
    if "mark" in kind:
        out += _mark(x + 13.5, y, series)
    return out
