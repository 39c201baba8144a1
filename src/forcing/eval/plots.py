"""Line charts as inline SVG: no dependency, and colours that follow the page from light to dark.

A series is coloured by the CSS class of its row (`row-ar`, `row-dmd-2`, ...), defined in report.css.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 360.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 14.0, 28.0, 34.0

DOT, CHAR, TALL, DEEP = 3.6, 6.2, 8.0, 1.0  # radius of a dot; width of a letter of a note, and its reach from its line
# from a dot to the middle of its note's line: where it is put if nothing is in the way, and where else
AROUND = ((0, -7), (0, 15), (10, -5), (10, 11), (-10, -5), (-10, 11), (11, 3), (-11, 3), (0, -17), (0, 25))

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Series:
    """`points` (x, y) of one line. band: (x, low, high) around it. faint: drawn as a background. notes: of each dot."""

    row: str
    label: str
    points: Sequence[Point]
    band: Sequence[tuple[float, float, float]] = ()
    faint: bool = False
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Axes:
    """`title` above, `x` below. percent: y values are shares. floor: y begins at 0."""

    title: str
    x: str
    log_x: bool = False
    log_y: bool = False
    percent: bool = False
    floor: bool = False


def chart(series: Sequence[Series], axes: Axes) -> str:
    """One SVG figure; "" if there is nothing to draw."""
    points = [point for each in series for point in each.points]
    points += [(x, y) for each in series for x, *around in each.band for y in around]
    points = [(x, y) for x, y in points if _drawable(x, axes.log_x) and _drawable(y, axes.log_y)]
    if not points:
        return ""
    noted = any(each.notes for each in series)  # what is written beside the outermost dots needs room
    ordered = sorted(series, key=lambda each: not each.faint)
    across = _Scale.of([x for x, _ in points], LEFT, WIDTH - RIGHT, log=axes.log_x, tight=not noted)
    up = _Scale.of([y for _, y in points], HEIGHT - BOTTOM, TOP, log=axes.log_y, floor=axes.floor)
    parts = [
        f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{escape(axes.title)}" class="chart">',
        f'<text x="0" y="13" class="title">{escape(axes.title)}</text>',
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" class="axis end">{escape(axes.x)}</text>',
        *_grid(across, up, axes),
        *(_band(each, across, up) for each in series if each.band),
        *(_line(each, across, up) for each in ordered),
        *_notes(ordered, across, up),
        "</svg>",
    ]
    return "".join(parts)


def smoothed(points: Sequence[Point], weight: float = 0.8) -> list[Point]:
    """A running average that starts at the first value."""
    out, mean = [], 0.0
    for number, (x, y) in enumerate(points):
        keep = min(weight, number / (number + 1))
        mean = keep * mean + (1 - keep) * y
        out.append((x, mean))
    return out


def thinned(points: Sequence[Point], most: int = 240) -> list[Point]:
    """At most about `most` of the points, the last one always among them."""
    stride = max(1, math.ceil(len(points) / most))
    kept = list(points[::stride])
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]


@dataclass(frozen=True)
class _Scale:
    """Values from `low` to `high` onto pixels from `start` to `stop`."""

    low: float
    high: float
    start: float
    stop: float
    log: bool

    @staticmethod
    def of(
        values: Sequence[float], start: float, stop: float, *, log: bool, floor: bool = False, tight: bool = False
    ) -> "_Scale":
        low, high = min(values), max(values)
        if log:
            pad = 1.0 if tight and high > low else 1.3
            return _Scale(low / pad, high * pad, start, stop, log)
        low = min(0.0, low) if floor else low
        pad = 0.0 if tight and high > low else 0.06 * ((high - low) or abs(high) or 1.0)
        return _Scale(low if floor else low - pad, high + pad, start, stop, log)

    def __call__(self, value: float) -> float:
        if self.log:
            share = math.log(max(value, 1e-30) / self.low) / (math.log(self.high / self.low) or 1.0)
        else:
            share = (value - self.low) / ((self.high - self.low) or 1.0)
        return self.start + share * (self.stop - self.start)

    def ticks(self, about: int) -> list[float]:
        if self.log:
            decades = range(math.floor(math.log10(self.low)) - 1, math.ceil(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if self.high / self.low < 200 else (1,)
            found = [step * 10.0**decade for decade in decades for step in steps]
        else:
            raw = (self.high - self.low) / about
            size = 10 ** math.floor(math.log10(raw))
            step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw)
            found = [
                float(step * number) for number in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)
            ]
        return [value for value in found if self.low * (1 - 1e-9) - 1e-12 <= value <= self.high * (1 + 1e-9) + 1e-12]


def _grid(across: _Scale, up: _Scale, axes: Axes) -> list[str]:
    parts = []
    for value in up.ticks(4):
        y = up(value)
        text = f"{100 * value:.4g} %" if axes.percent else f"{value:.4g}"
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" class="axis end">{text}</text>')
    for value in across.ticks(5):
        text = f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"
        parts.append(f'<text x="{across(value):.1f}" y="{HEIGHT - BOTTOM + 15}" class="axis mid">{text}</text>')
    return parts


def _line(series: Series, across: _Scale, up: _Scale) -> str:
    points = _pixels(series, across, up)
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    faint = " faint" if series.faint else ""
    parts = [f'<polyline points="{path}" class="line row-{series.row}{faint}"><title>{escape(series.label)}</title>']
    parts.append("</polyline>")
    if len(points) == 1:
        parts.append(f'<circle cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="3" class="dot row-{series.row}"/>')
    for x, y in points[: len(series.notes)]:
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{DOT}" class="dot row-{series.row}"/>')
    return "".join(parts)


def _notes(series: Sequence[Series], across: _Scale, up: _Scale) -> list[str]:
    """What is written beside dots, each where it covers least of other notes, dots and lines."""
    lines = [_pixels(each, across, up) for each in series]
    taken = [box for points in lines for box in _along(points)]
    taken += [_box(x, y, DOT) for each, points in zip(series, lines, strict=True) for x, y in points[: len(each.notes)]]
    parts = []
    for each, points in zip(series, lines, strict=True):
        for (x, y), note in zip(points, each.notes, strict=False):
            half = CHAR * len(note) / 2
            places = [(x + right, y + down) for right, down in AROUND]
            boxes = [(at - half, line - TALL, at + half, line + DEEP) for at, line in places]
            covers = [sum(_shared(box, other) for other in taken) + _outside(box) for box in boxes]
            best = covers.index(min(covers))
            taken.append(boxes[best])
            at, line = places[best]
            parts.append(f'<text x="{at:.1f}" y="{line:.1f}" class="note mid row-{each.row}">{escape(note)}</text>')
    return parts


def _along(points: Sequence[Point]) -> list[Box]:
    """Small boxes that a line goes through."""
    boxes = []
    for (x, y), (right, down) in pairwise(points):
        count = max(1, math.ceil(math.hypot(right - x, down - y) / 3))
        boxes += [_box(x + (right - x) * n / count, y + (down - y) * n / count, 1.0) for n in range(count + 1)]
    return boxes


def _box(x: float, y: float, half: float) -> Box:
    return x - half, y - half, x + half, y + half


def _shared(one: Box, other: Box) -> float:
    """Area that two boxes have in common."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    return max(0.0, across) * max(0.0, min(one[3], other[3]) - max(one[1], other[1]))


def _outside(box: Box) -> float:
    left, top, right, bottom = box
    area = (right - left) * (bottom - top)
    return 2 * (area - _shared(box, (LEFT, TOP - TALL, WIDTH, HEIGHT - BOTTOM)))


def _pixels(series: Series, across: _Scale, up: _Scale) -> list[Point]:
    drawn = [(x, y) for x, y in series.points if _drawable(y, up.log) and _drawable(x, across.log)]
    return [(across(x), up(y)) for x, y in drawn]


def _band(series: Series, across: _Scale, up: _Scale) -> str:
    ahead = [f"{across(x):.1f},{up(low):.1f}" for x, low, _ in series.band]
    back = [f"{across(x):.1f},{up(high):.1f}" for x, _, high in reversed(series.band)]
    return f'<polygon points="{" ".join(ahead + back)}" class="band row-{series.row}"/>'


def _drawable(value: float, log: bool) -> bool:
    return math.isfinite(value) and (value > 0 or not log)
