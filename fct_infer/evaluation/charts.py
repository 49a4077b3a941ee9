"""Charts as inline SVG: they follow the page's colours, scale to any screen and print sharply."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import ceil

_WIDTH, _HEIGHT = 480, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 28, 16, 48
# plain colours for viewers that do not apply the page's style sheet to a drawing
_LINE = 'class="line" fill="none" stroke="#1f6feb"'
_DOT = 'class="dot" fill="#1f6feb"'
_BAR = 'class="bar" fill="#1f6feb"'
_GRID = 'class="grid" stroke="#d8dde3"'
_PLOT_WIDTH, _PLOT_HEIGHT = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM


def line_chart(ys: Sequence[float], x_label: str, y_label: str, description: str) -> str:
    """Draw shares (0 to 1) over 1, 2, ..., ``len(ys)`` as a line with a dot, and a tooltip, at each."""
    count = len(ys)
    xs = [_x((index + 0.5) / count) for index in range(count)]
    points = [(x, _y(y)) for x, y in zip(xs, ys, strict=True)]
    parts = [f'<polyline {_LINE} points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>']
    parts += [
        f'<circle {_DOT} cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{number}: {100 * share:.2f} %</title></circle>'
        for number, ((x, y), share) in enumerate(zip(points, ys, strict=True), 1)
    ]
    step = max(1, round(count / 10))
    ticks = [1, *(number for number in range(step, count + 1, step) if number > 1)]
    return _frame(parts, [(xs[tick - 1], str(tick)) for tick in ticks], 1.0, x_label, y_label, description)


def histogram(shares: Sequence[float], x_label: str, y_label: str, description: str) -> str:
    """Draw shares (0 to 1) of what falls into equal bins from 0 % to 100 % as bars."""
    count = len(shares)
    top = max(0.1, ceil(10 * max(shares)) / 10)
    parts = []
    for index, share in enumerate(shares):
        left, right, y = _x(index / count), _x((index + 1) / count), _y(share / top)
        tip = f"{100 * index / count:.0f} to {100 * (index + 1) / count:.0f} %: {100 * share:.2f} %"
        parts.append(
            f'<rect {_BAR} x="{left + 1:.1f}" y="{y:.1f}" width="{right - left - 2:.1f}" '
            f'height="{_y(0) - y:.1f}"><title>{tip}</title></rect>'
        )
    ticks = [(_x(index / count), f"{100 * index / count:.0f} %") for index in range(0, count + 1, 2)]
    return _frame(parts, ticks, top, x_label, y_label, description)


def _x(share: float) -> float:
    return _LEFT + share * _PLOT_WIDTH


def _y(share: float) -> float:
    return _TOP + (1 - share) * _PLOT_HEIGHT


def _frame(
    parts: list[str], ticks: list[tuple[float, str]], top: float, x_label: str, y_label: str, description: str
) -> str:
    """Put axes, grid and labels around what is drawn; the y axis runs from 0 to ``top``."""
    grid = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = _y(share)
        grid.append(f'<line {_GRID} x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        grid.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{100 * share * top:g} %</text>')
    below = _HEIGHT - _BOTTOM + 18
    grid += [f'<text x="{x:.1f}" y="{below}" text-anchor="middle">{escape(text)}</text>' for x, text in ticks]
    middle = _TOP + _PLOT_HEIGHT / 2
    labels = (
        f'<text x="{_LEFT + _PLOT_WIDTH / 2:.0f}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text transform="translate(12 {middle:.0f}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(description)}">'
        f"{''.join(grid)}{''.join(parts)}{labels}</svg>"
    )
