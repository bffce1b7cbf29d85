"""Draws charts as SVG text, without a charting library. The page's style sheet colors them, so they follow dark mode.

A chart is 420 units wide and scales with its column, which keeps its text readable on a phone. Colors are the CSS
classes `c0` .. `c9`. With more than ten groups, points also differ in shape and lines in their dashes.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

WIDTH, HEIGHT = 420, 240
COLORS, SHAPES = 10, 4
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 24
# More points than pixels only make the file longer.
_BUCKETS = 300


class Series(NamedTuple):
    """A line of a chart.

    Attributes:
      name: The name in the legend.
      x: [N], ascending.
      y: [N]; values that are not finite leave gaps.
      color: The number of the color.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    color: int = 0


class Level(NamedTuple):
    """A named, dashed horizontal line, such as the chance level of a loss; `color` is a number, or None for gray."""

    name: str
    y: float
    color: int | None = None


def number(value: float) -> str:
    """Formats a number for an axis or a table, in few characters.

    >>> [number(value) for value in (0, 0.25, 1.5, 12.0, 1234.5, 3.2e6, 1e-5)]
    ['0', '0.25', '1.5', '12', '1234', '3.2M', '1e-05']
    """
    size = abs(value)
    if size >= 1e9:
        return f"{value / 1e9:.4g}G"
    if size >= 1e6:
        return f"{value / 1e6:.4g}M"
    if size >= 1e4:
        return f"{value / 1e3:.4g}k"
    return f"{value:.4g}"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns about `count` round numbers within [low, high].

    >>> ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    >>> ticks(13, 99)
    [20.0, 40.0, 60.0, 80.0]
    """
    if not high > low:
        return [float(low)]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((factor * power for factor in (1, 2, 5, 10)), key=lambda size: abs(math.log(size / rough)))
    first = math.ceil(low / step - 1e-9)
    return [float(f"{i * step:.10g}") for i in range(first, math.floor(high / step + 1e-9) + 1)]


def thinned(
    x: np.ndarray, y: np.ndarray, buckets: int = _BUCKETS
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Averages neighboring points if there are more than `buckets`.

    Returns:
      The x, mean, least and greatest y of each bucket; NaN for a bucket without finite values.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(x) <= buckets:
        return x, y, y, y
    rows = []
    for part in np.array_split(np.arange(len(x)), buckets):
        values = y[part][np.isfinite(y[part])]
        rows.append((x[part].mean(), *((values.mean(), values.min(), values.max()) if len(values) else [math.nan] * 3)))
    return tuple(np.array(rows).T)


def _range(values: Sequence[float], whole: tuple[float, float] | None) -> tuple[float, float]:
    if whole is not None:
        return whole
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if high == low:
        pad = abs(high) * 0.1 or 1.0
        return low - pad, high + pad
    pad = 0.05 * (high - low)
    # An axis from zero, unless it would waste more than two fifths of the chart.
    return (0.0 if 0 <= low <= 0.4 * high else low - pad), high + pad


def _open(height: int, label: str, width: int = WIDTH) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(label)}">'


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{html.escape(text)}</text>'


def lines(
    series: Sequence[Series],
    *,
    label: str,
    levels: Sequence[Level] = (),
    y_range: tuple[float, float] | None = None,
    percent: bool = False,
) -> str:
    """Draws lines over steps; where points were averaged, a band spans the least to the greatest of them.

    Args:
      series: The lines.
      label: The description for screen readers.
      levels: Horizontal lines.
      y_range: The range of the y axis; None fits it to the values.
      percent: Whether the y axis is in percent.
    """
    thin = [thinned(one.x, one.y) for one in series]
    ys = [value for _, _, low, high in thin for value in (*low, *high)] + [level.y for level in levels]
    xs = [value for x, *_ in thin for value in (x[:1], x[-1:])]
    x_low, x_high = (float(min(map(min, xs))), float(max(map(max, xs)))) if xs and all(map(len, xs)) else (0.0, 1.0)
    x_high = x_high if x_high > x_low else x_low + 1
    y_low, y_high = _range(ys, y_range)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) * (WIDTH - _LEFT - _RIGHT)
        return _LEFT + across, HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - _TOP - _BOTTOM)

    parts = [_open(HEIGHT, label)]
    for value in ticks(y_low, y_high):
        _, y = place(x_low, value)
        parts.append(f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(_text(_LEFT - 5, y + 4, f"{100 * value:.4g}%" if percent else number(value), anchor="end"))
    for value in ticks(x_low, x_high):
        parts.append(_text(place(value, y_low)[0], HEIGHT - 7, number(value)))
    for level in levels:
        _, y = place(x_low, level.y)
        kind = "" if level.color is None else f" c{level.color % COLORS}"
        parts.append(f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="level{kind}"/>')
        parts.append(_text(WIDTH - _RIGHT - 2, y - 4, level.name, anchor="end"))
    for one, (x, mean, low, high) in zip(series, thin):
        parts.append(f'<g class="c{one.color % COLORS}"><title>{html.escape(one.name)}</title>')
        for run in _runs(mean):
            across = [place(x[i], mean[i]) for i in run]
            if len(run) == 1:
                parts.append(f'<circle cx="{across[0][0]:.1f}" cy="{across[0][1]:.1f}" r="2.5" class="dot"/>')
                continue
            if np.any(high[run] > low[run]):
                edge = [place(x[i], high[i]) for i in run] + [place(x[i], low[i]) for i in reversed(run)]
                parts.append(f'<polygon points="{_points(edge)}" class="band"/>')
            parts.append(f'<polyline points="{_points(across)}" class="line"{_dashes(one.color)}/>')
        parts.append("</g>")
    return "".join(parts) + "</svg>"


def _dashes(color: int) -> str:
    """Returns the dashes that distinguish lines of the same color."""
    pattern = ("", "7 3", "2 3", "9 3 2 3")[color // COLORS % 4]
    return f' stroke-dasharray="{pattern}"' if pattern else ""


def _runs(values: np.ndarray) -> list[np.ndarray]:
    """Returns the indices of each stretch without a gap."""
    known = np.flatnonzero(np.isfinite(values))
    return [run for run in np.split(known, np.flatnonzero(np.diff(known) > 1) + 1) if len(run)]


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def legend(names: Sequence[str], *, shapes: bool = False) -> str:
    """Returns the legend of a chart's colors (and shapes), as HTML."""
    marks = []
    for i, name in enumerate(names):
        mark = _mark(7, 7, 5, i // COLORS if shapes else 1)
        if not shapes and i >= COLORS:
            mark = f'<line x1="0" x2="14" y1="7" y2="7" class="line"{_dashes(i)}/>'
        marks.append(f'<li><svg viewBox="0 0 14 14" class="c{i % COLORS}">{mark}</svg>{html.escape(name)}</li>')
    return f'<ul class="legend">{"".join(marks)}</ul>'


def _mark(x: float, y: float, r: float, shape: int, title: str = "") -> str:
    inside = f"<title>{html.escape(title)}</title>" if title else ""
    if shape % SHAPES == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}" class="dot">{inside}</circle>'
    corners = {
        1: [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        2: [(0, -1.2), (1.1, 0.8), (-1.1, 0.8)],
        3: [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)],
    }[shape % SHAPES]
    edge = _points([(x + r * dx, y + r * dy) for dx, dy in corners])
    return f'<polygon points="{edge}" class="dot">{inside}</polygon>'


def scatter(points: np.ndarray, groups: Sequence[int], titles: Sequence[str], *, label: str) -> str:
    """Draws a map of points.

    Args:
      points: [N, 2], finite, of any scale; both axes are scaled alike.
      groups: [N], the number of each point's color and shape; -1 for gray.
      titles: [N], the text that a point shows under the mouse.
      label: The description for screen readers.
    """
    points = np.asarray(points, np.float64)
    center, extent = (points.max(0) + points.min(0)) / 2, points.max(0) - points.min(0)
    scale = (WIDTH - 20) / max(*extent, 1e-12)
    height = int(extent[1] * scale) + 20
    scaled = (points - center) * scale + (WIDTH / 2, height / 2)
    radius = 3.5 if len(points) <= 400 else 2.5
    parts = [_open(height, label)]
    for (x, y), group, title in zip(scaled, groups, titles):
        color = f"c{group % COLORS}" if group >= 0 else "none"
        parts.append(f'<g class="{color}">{_mark(x, height - y, radius, max(group, 0) // COLORS, title)}</g>')
    return "".join(parts) + "</svg>"


def reliability(bins: Sequence[dict], *, label: str) -> str:
    """Draws accuracy over confidence (Guo et al. 2017); a calibrated classifier lies on the diagonal.

    Args:
      bins: `confidence`, `accuracy` and `examples` of each bin that is not empty; see `metrics.calibration`. Larger
        points have more examples.
      label: The description for screen readers.
    """
    side = WIDTH - _LEFT - _RIGHT

    def place(x: float, y: float) -> tuple[float, float]:
        return _LEFT + x * side, _TOP + (1 - y) * side

    height = _TOP + side + _BOTTOM + 14
    parts = [_open(height, label)]
    for value in ticks(0, 1):
        x, y = place(value, value)
        parts.append(f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(_text(_LEFT - 5, y + 4, f"{100 * value:.0f}%", anchor="end"))
        parts.append(_text(min(x, WIDTH - 18), height - 24, f"{100 * value:.0f}%"))
    parts.append(_text(_LEFT + side / 2, height - 6, "confidence"))
    parts.append(_text(_LEFT + 4, _TOP + 12, "accuracy", anchor="start"))
    parts.append(f'<polyline points="{_points([place(0, 0), place(1, 1)])}" class="level"/>')
    total = sum(row["examples"] for row in bins)
    where = [place(row["confidence"], row["accuracy"]) for row in bins]
    parts.append(f'<g class="c0"><polyline points="{_points(where)}" class="line"/>')
    for row, (x, y) in zip(bins, where):
        sure, right = (f"{100 * row[name]:.0f}%" for name in ("confidence", "accuracy"))
        title = f"{row['examples']} images: confidence {sure}, right {right}"
        parts.append(_mark(x, y, 3 + 14 * math.sqrt(row["examples"] / total), 0, title))
    return "".join(parts) + "</g></svg>"


def confusion(matrix: np.ndarray, names: Sequence[str], *, label: str) -> str:
    """Draws a confusion matrix: rows are true classes, and shades show shares of a row.

    Args:
      matrix: [classes, classes], see `metrics.confusion_matrix`.
      names: The names of the classes, [classes].
      label: The description for screen readers.
    """
    matrix = np.asarray(matrix)
    count = len(matrix)
    left, top = 92, 70
    size = (WIDTH - left - 6) / count
    height = int(top + count * size + 8)
    parts = [_open(height, label)]
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    letters = count <= 26  # More names would overlap.
    for i in range(count):
        if letters:
            parts.append(_text(left - 5, top + (i + 0.5) * size + 4, _short(names[i], 14), anchor="end"))
            x = left + (i + 0.5) * size
            turn = f'transform="rotate(-50 {x:.1f} {top - 6})"'
            parts.append(f'<text x="{x:.1f}" y="{top - 6}" {turn}>{html.escape(_short(names[i], 10))}</text>')
        # Large matrices are mostly zeros, and every cell lengthens the file.
        for j in np.flatnonzero(matrix[i]) if count > 12 else range(count):
            share = shares[i, j]
            title = f"{names[i]} taken for {names[j]}: {matrix[i, j]} ({100 * share:.0f}%)"
            corner = f'x="{left + j * size:.1f}" y="{top + i * size:.1f}" width="{size:.1f}" height="{size:.1f}"'
            color = 2 if i == j else 3
            parts.append(f'<g class="c{color}"><rect {corner} class="heat" fill-opacity="{share:.2f}">')
            parts.append(f"<title>{html.escape(title)}</title></rect></g>")
            if count <= 12 and matrix[i, j]:
                parts.append(_text(left + (j + 0.5) * size, top + (i + 0.5) * size + 4, str(matrix[i, j]), "in"))
    return "".join(parts) + "</svg>"


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
