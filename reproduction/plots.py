"""The pictures of docs/reproduction.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLUE, _GREY = "#4c78a8", "#888888"


def draw_pairs(path: Path, merits: Mapping[str, NDArray[np.float64]]) -> None:
    """Draw the mAP of each pair, (seeds,) shares by name, as bars."""
    figure, axes = _figure(3.6)
    names = list(merits)[::-1]
    means = [100 * merits[name].mean() for name in names]
    bars = axes.barh(names, means, xerr=[100 * merits[name].std() for name in names], color=_BLUE)
    axes.bar_label(bars, fmt="%.1f", padding=6)
    axes.set(xlabel="mAP %", xlim=(0, 105))
    _save(figure, path)


def draw_sizes(path: Path, sizes: Mapping[str, Any], old: NDArray[np.float64], new: NDArray[np.float64]) -> None:
    """Draw the mAP after each h over its arithmetic, between the mAP of old/old and new/new."""
    figure, axes = _figure(3.6)
    by_arithmetic = sorted(sizes.items(), key=lambda item: -item[1]["mflop"].mean())
    for index, (size, figures) in enumerate(by_arithmetic):
        x, shares = figures["mflop"].mean(), 100 * figures["mAP"]
        axes.errorbar(x, shares.mean(), yerr=shares.std(), fmt="o", color=_BLUE, capsize=3)
        below = index % 2 == 0  # neighbours on different sides
        axes.annotate(size, (x, shares.mean()), xytext=(7, -14 if below else 7), textcoords="offset points", fontsize=9)
    for name, level in (("old/old", old), ("new/new", new)):
        axes.axhline(100 * level.mean(), color=_GREY, linestyle="--", linewidth=1)
        axes.annotate(
            name, (0.01, 100 * level.mean()), xycoords=("axes fraction", "data"), va="bottom", color=_GREY, fontsize=9
        )
    axes.set(xlabel="MFLOP a row", ylabel="FCT new/old, mAP %", xscale="log")
    axes.margins(x=0.15, y=0.12)
    _save(figure, path)


def _figure(height: float) -> tuple[Any, Any]:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, height), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.savefig(path, dpi=110)
    pyplot.close(figure)
