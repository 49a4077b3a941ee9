"""Charts as inline SVG: they follow the page's colours, scale to any screen and print sharply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, floor

_WIDTH, _HEIGHT = 480, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 28, 16, 48
# plain colours for viewers that do not apply the page's style sheet to a drawing
_LINE = 'class="line" fill="none" stroke="#1f6feb"'
_DOT = 'class="dot" fill="#1f6feb"'
_BAR = 'class="bar" fill="#1f6feb"'
_GRID = 'class="grid" stroke="#d8dde3"'
_COLOURS = ("#1f6feb", "#d9480f", "#2b8a3e", "#9c36b5", "#868e96", "#c2255c")
_DASHES = ("none", "8 4", "2 4")
_LEGEND_LINE = 22
_MATRIX_LEFT = 90
_BAR_LEFT, _BAR_LINE = 130, 28
_LETTER = 9  # wide at most, on average, in bold
_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5, 1.0)  # between lines of the grid
_MOST_STEPS = 5
_MOST_NAMES = 10  # under a chart
_PLOT_WIDTH, _PLOT_HEIGHT = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM


def line_chart(
    ys: Sequence[float], x_label: str, y_label: str, description: str, names: Sequence[str] | None = None
) -> str:
    """Draw shares (0 to 1) over 1, 2, ..., ``len(ys)``, or over names, as a line with a dot, and a tooltip, at each."""
    count = len(ys)
    xs = [_x((index + 0.5) / count) for index in range(count)]
    points = [(x, _y(y)) for x, y in zip(xs, ys, strict=True)]
    shown = list(map(str, range(1, count + 1))) if names is None else names
    parts = [f'<polyline {_LINE} points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>']
    parts += [
        f'<circle {_DOT} cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{escape(name)}: {100 * share:.2f} %</title></circle>'
        for name, (x, y), share in zip(shown, points, ys, strict=True)
    ]
    step = max(1, round(count / 10))
    ticks = [1, *(number for number in range(step, count + 1, step) if number > 1)]
    if names is not None:
        ticks = list(range(1, count + 1, -(-count // _MOST_NAMES)))
    marks = [(xs[tick - 1], shown[tick - 1]) for tick in ticks]
    return _frame(parts, marks, y_ticks(0, 1), x_label, y_label, description)


def histogram(shares: Sequence[float], x_label: str, y_label: str, description: str) -> str:
    """Draw shares (0 to 1) of what falls into equal bins from 0 % to 100 % as bars."""
    count = len(shares)
    levels = y_ticks(0, max(0.1, *shares))
    top = levels[-1]
    parts = []
    for index, share in enumerate(shares):
        left, right, y = _x(index / count), _x((index + 1) / count), _y(share / top)
        tip = f"{100 * index / count:.0f} to {100 * (index + 1) / count:.0f} %: {100 * share:.2f} %"
        parts.append(
            f'<rect {_BAR} x="{left + 1:.1f}" y="{y:.1f}" width="{right - left - 2:.1f}" '
            f'height="{_y(0) - y:.1f}"><title>{tip}</title></rect>'
        )
    ticks = [(_x(index / count), f"{100 * index / count:.0f} %") for index in range(0, count + 1, 2)]
    return _frame(parts, ticks, levels, x_label, y_label, description)


def curves_chart(
    xs: Sequence[float], curves: Mapping[str, Sequence[float]], x_label: str, y_label: str, description: str
) -> str:
    """Draw several curves of shares (0 to 1) over shares ``xs``, with a legend below; the y axis is cut to their range.

    Curves differ in colour and dashes, so that they can be told apart on paper as well.
    """
    values = [y for ys in curves.values() for y in ys]
    levels = y_ticks(min(values), max(values))
    low, high = levels[0], levels[-1]
    parts = []
    for number, (name, ys) in enumerate(curves.items()):
        points = [(_x(x), _y((y - low) / (high - low))) for x, y in zip(xs, ys, strict=True)]
        style = _series_style(number)
        parts.append(f'<polyline {style} points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>')
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="transparent">'
            f"<title>{escape(name)}, {100 * share:.0f} %: {100 * merit:.2f} %</title></circle>"
            for (x, y), share, merit in zip(points, xs, ys, strict=True)
        ]
        line = _HEIGHT + _LEGEND_LINE * number + 8
        parts.append(f'<line {style} x1="{_LEFT}" x2="{_LEFT + 36}" y1="{line}" y2="{line}"/>')
        parts.append(f'<text x="{_LEFT + 44}" y="{line + 5}">{escape(name)}</text>')
    ticks = [(_x(share), f"{100 * share:.0f} %") for share in (0, 0.25, 0.5, 0.75, 1)]
    legend = _LEGEND_LINE * len(curves)
    return _frame(parts, ticks, levels, x_label, y_label, description, legend)


def heat_map(
    values: Sequence[Sequence[float | None]], rows: Sequence[str], columns: Sequence[str], description: str
) -> str:
    """Draw shares (0 to 1) as a table of cells, darker for more; None is an empty cell."""
    top, cell_height = 30, 44
    cell = (_WIDTH - _MATRIX_LEFT) / len(columns)
    height = top + cell_height * len(rows)
    parts = [
        f'<text x="{_MATRIX_LEFT + cell * (column + 0.5):.1f}" y="20" text-anchor="middle">{escape(name)}</text>'
        for column, name in enumerate(columns)
    ]
    for row, (name, line) in enumerate(zip(rows, values, strict=True)):
        y = top + cell_height * row
        parts.append(f'<text x="{_MATRIX_LEFT - 8}" y="{y + 27}" text-anchor="end">{escape(name)}</text>')
        for column, value in enumerate(line):
            x = _MATRIX_LEFT + cell * column
            shade = 0.0 if value is None else 0.08 + 0.6 * value
            text = "–" if value is None else f"{100 * value:.1f}"
            parts.append(
                f'<rect class="cell" fill="#1f6feb" fill-opacity="{shade:.3f}" x="{x + 1:.1f}" y="{y + 1}" '
                f'width="{cell - 2:.1f}" height="{cell_height - 2}"/>'
                f'<text class="value" x="{x + cell / 2:.1f}" y="{y + 27}" text-anchor="middle">{text}</text>'
            )
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(description)}">{"".join(parts)}</svg>'


def bar_chart(values: Mapping[str, float], unit: str, description: str) -> str:
    """Draw amounts of a unit as bars from left to right, one below the other, each with its name and its number."""
    top = max([*values.values(), 1e-9])
    texts = {name: (f"{value:,.0f}" if value >= 100 else f"{value:.3g}") + f" {unit}" for name, value in values.items()}
    room = _WIDTH - _BAR_LEFT - 16 - _LETTER * max(map(len, texts.values()), default=0)
    parts = []
    for number, (name, value) in enumerate(values.items()):
        y, width = _BAR_LINE * number, max(1.0, room * value / top)
        parts.append(f'<text x="{_BAR_LEFT - 8}" y="{y + 18}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect {_BAR} x="{_BAR_LEFT}" y="{y + 4}" width="{width:.1f}" height="{_BAR_LINE - 8}"/>')
        parts.append(f'<text class="value" x="{_BAR_LEFT + width + 6:.1f}" y="{y + 18}">{escape(texts[name])}</text>')
    height = _BAR_LINE * len(values)
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(description)}">{"".join(parts)}</svg>'


def y_ticks(low: float, high: float) -> list[float]:
    """Return two to six round shares, equally far from each other, the first at or below ``low``, the last above."""
    for step in _STEPS:
        first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
        first = min(first, round(1 / step) - 1)  # no line is above 100 %
        if last - first <= _MOST_STEPS:
            return [number * step for number in range(first, max(last, first + 1) + 1)]
    raise ValueError(f"{low} to {high} are no shares")


def _series_style(number: int) -> str:
    colour, dashes = _COLOURS[number % len(_COLOURS)], _DASHES[number // 2 % len(_DASHES)]
    return f'class="series" fill="none" stroke-width="2.5" stroke="{colour}" stroke-dasharray="{dashes}"'


def _x(share: float) -> float:
    return _LEFT + share * _PLOT_WIDTH


def _y(share: float) -> float:
    return _TOP + (1 - share) * _PLOT_HEIGHT


def _frame(
    parts: list[str],
    ticks: list[tuple[float, str]],
    levels: Sequence[float],
    x_label: str,
    y_label: str,
    description: str,
    legend: int = 0,
) -> str:
    """Put axes, grid and labels around what is drawn; the y axis runs over ``levels``, each with a line and its share.

    ``legend`` is the height left below for what was drawn there.
    """
    grid = []
    for level in levels:
        y = _y((level - levels[0]) / (levels[-1] - levels[0]))
        grid.append(f'<line {_GRID} x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        text = f"{round(100 * level, 2):g}&#160;%"
        grid.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    below = _HEIGHT - _BOTTOM + 18
    grid += [f'<text x="{x:.1f}" y="{below}" text-anchor="middle">{escape(text)}</text>' for x, text in ticks]
    middle = _TOP + _PLOT_HEIGHT / 2
    labels = (
        f'<text x="{_LEFT + _PLOT_WIDTH / 2:.0f}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text transform="translate(12 {middle:.0f}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + legend}" role="img" aria-label="{escape(description)}">'
        f"{''.join(grid)}{''.join(parts)}{labels}</svg>"
    )
