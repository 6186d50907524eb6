"""Chart axes: ranges, ticks, tick labels, scales."""

import math

MINUS = "\N{MINUS SIGN}"


def number(value):
    """The tick label of value: no exponent between 0.001 and 100,000, a true minus sign.

    >>> number(0.30000000000000004), number(20000), number(1e-5), number(-1.5)
    ('0.3', '20,000', '1e\N{MINUS SIGN}5', '\N{MINUS SIGN}1.5')
    """
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        text = f"{value:,.6f}".rstrip("0").rstrip(".")
    else:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        text = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return text.replace("-", MINUS)


def linear_ticks(low, high):
    """About five round numbers from low to high.

    >>> linear_ticks(0, 1), linear_ticks(82.3, 99.1)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [85.0, 90.0, 95.0])
    """
    if not high > low:
        return [low]
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if raw <= m * power * (1 + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def log_ticks(low, high):
    """Powers of ten from low to high, with values between them if the range is short."""
    decades = math.log10(high / low)
    factors = (1,) if decades > 4 else (1, 3) if decades > 2.2 else (1, 2, 5)
    ticks = [
        factor * 10.0**power
        for power in range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
        for factor in factors
    ]
    ticks = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
    return ticks if len(ticks) >= 3 else [tick for tick in linear_ticks(low, high) if tick > 0]


def value_range(values, log, most=math.inf):
    """(low, high) of an axis that shows `values`, floats, with a small margin, at most `most`;
    log: the axis is logarithmic.

    >>> value_range([90.0, 100.0], False, most=100)
    (89.4, 100)
    """
    if not values:
        return (1.0, 10.0) if log else (0.0, 1.0)
    low, high = min(values), max(values)
    if log:
        room = (high / low) ** 0.05 if high > low else 2.0
        return low / room, min(high * room, most)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (0.0 if 0 <= low <= 0.35 * high else low - room), min(high + room, most)


def scale(low, high, start, stop, log):
    """A function that maps values from low to high to pixels from start to stop."""
    if log:
        low, high = math.log(low), math.log(high)
    span = (high - low) or 1.0

    def pixel(value):
        if log:
            value = math.log(value)
        return start + (value - low) / span * (stop - start)

    return pixel
