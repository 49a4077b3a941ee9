"""Charts: round ticks, every value at its place."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from fct_infer.pages import bar_chart, line_chart
from fct_infer.pages.charts import y_ticks


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0, 1, [0, 20, 40, 60, 80, 100]),
        (0.413, 0.587, [40, 45, 50, 55, 60]),
        (0.5, 0.5, [50, 51]),
        (1.0, 1.0, [99, 100]),
        (0.0, 0.0, [0, 1]),
        (0.02, 0.93, [0, 20, 40, 60, 80, 100]),
    ],
)
def test_ticks_are_round_and_hold_all_values(low, high, wanted):
    assert [round(100 * tick, 6) for tick in y_ticks(low, high)] == wanted


def test_ticks_of_any_range():
    for low, high in np.sort(np.random.default_rng(0).random((500, 2)), axis=1):
        ticks = y_ticks(low, high)
        assert ticks[0] <= low + 1e-9 and high - 1e-9 <= ticks[-1] <= 1 + 1e-9 and 2 <= len(ticks) <= 6
        assert all(round(100 * tick, 6).is_integer() for tick in ticks)


def test_bars_are_as_long_as_their_values_say():
    svg = ElementTree.fromstring(bar_chart({"read <x>": 1.0, "write": 4.0, "none": 0.0}, "s", "seconds"))
    widths = [float(bar.get("width")) for bar in svg.iter("rect")]
    assert widths[1] == pytest.approx(4 * widths[0], abs=0.3) and widths[2] >= 1
    assert [text.text for text in svg.iter("text")] == ["read <x>", "1 s", "write", "4 s", "none", "0 s"]


def test_a_line_over_names():
    svg = ElementTree.fromstring(line_chart([0.2, 0.4], "nprobe", "recall", "two", ["1", "16"]))
    assert {"1", "16", "nprobe", "recall"} <= {text.text for text in svg.iter("text")}
    assert [tip.text for tip in svg.iter("title")] == ["1: 20.00 %", "16: 40.00 %"]
