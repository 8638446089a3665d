"""MATLAB's bicubic `imresize`, one pixel after the other: slow, plain, and written from its description alone.

For output pixel i (from 1) of a line, with scale factor f: the centre in input pixels is u = i/f + (1 - 1/f)/2; the
kernel h(x) is Keys' cubic (a = -0.5), for f < 1 stretched to f h(f x); the taps start at floor(u - w/2), w the kernel's
width, and are ceil(w) + 2 in number; their weights are divided by their sum; a tap outside the line is mirrored
(symmetric) or takes the end pixel (replicate). Lines along the height go first. With `round_to_uint8`, each of the two
passes ends in rounding half up and clipping to 0..255.
"""

import math


def cubic(x: float) -> float:
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    if x <= 2:
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return 0.0


def resize_line(line: list[float], factor: float, border: str, *, round_to_uint8: bool) -> list[float]:
    shrink = min(factor, 1.0)
    width = 4 / shrink
    length = len(line)
    result = []
    for i in range(1, math.ceil(length * factor) + 1):
        u = i / factor + 0.5 * (1 - 1 / factor)
        first = math.floor(u - width / 2)
        taps = range(first, first + math.ceil(width) + 2)
        weights = [shrink * cubic(shrink * (u - tap)) for tap in taps]
        total = sum(weights)
        value = 0.0
        for tap, weight in zip(taps, weights, strict=True):
            place = tap
            while border == "symmetric" and not 1 <= place <= length:
                place = 1 - place if place < 1 else 2 * length + 1 - place
            value += weight / total * line[min(max(place, 1), length) - 1]
        result.append(min(max(math.floor(value + 0.5), 0), 255) if round_to_uint8 else value)
    return result


def resize(
    channel: list[list[float]], factor: float, border: str = "symmetric", *, round_to_uint8: bool
) -> list[list[float]]:
    """One channel as a list of rows."""
    columns = [resize_line(list(c), factor, border, round_to_uint8=round_to_uint8) for c in zip(*channel, strict=True)]
    rows = [list(r) for r in zip(*columns, strict=True)]
    return [resize_line(row, factor, border, round_to_uint8=round_to_uint8) for row in rows]
