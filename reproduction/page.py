"""docs/reproduction.md and its picture: the figures of all seeds, and where the papers' order appeared or did not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .figures import FIGURES

PICTURE = "reproduction.png"
_ABOUT = (
    "The experiment of both papers and of FastFill, in small: 100 classes of the built-in glyphs, old model trained on "
    "the first 50, 3,000 test images as queries and gallery (each query without itself), L2 distance."
)


def write_page(path: Path, seeds: Sequence[dict[str, Any]], machine: str) -> None:
    """Write the page and, beside it, the picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = _stack(seeds, "rows", lambda figures: [figures[name] for name in FIGURES])
    areas = _stack(seeds, "areas", lambda area: [area])
    lines = [
        "# Reproduction",
        "",
        f"{_ABOUT} Mean and standard deviation over {len(seeds)} seeds. `make reproduce` writes this page.",
        "",
        f"Measured on {machine}.",
        "",
        "| query/gallery | CMC-1 % | CMC-5 % | mAP % |",
        "|---|---|---|---|",
        *(f"| {name} | {' | '.join(_shown(column) for column in values.T)} |" for name, values in rows.items()),
        "",
        "| backfilling, mean mAP over the curve's 22 points | % |",
        "|---|---|",
        *(f"| {name} | {_shown(values[:, 0])} |" for name, values in areas.items()),
        "",
        f"![mAP of each pair]({PICTURE})",
        "",
        "## Do the papers' claims appear?",
        "",
        *_claims({name: values[:, -1] for name, values in (*rows.items(), *areas.items())}, seeds),
        "",
    ]
    path.write_text("\n".join(lines))
    _draw(path.with_name(PICTURE), {name: values[:, -1] for name, values in rows.items()})


def _claims(map_of: dict[str, Any], seeds: Sequence[dict[str, Any]]) -> list[str]:
    """One line a claim: in how many seeds it held, and the figures."""
    with_side, without = (map_of[f"FCT new/old, {kind} side-information"] for kind in ("with", "without"))
    new_new = map_of["new/new, independent"]
    claims = [
        (
            "independent models cannot search each other's galleries",
            map_of["new/old, independent"],
            map_of["old/old"],
            "<",
        ),
        ("BCT keeps its criterion, new/old above old/old", map_of["BCT new/old"], map_of["old/old"], ">"),
        ("BCT costs the new model", map_of["BCT new/new"], new_new, "<"),
        ("FCT without side-information is above BCT", without, map_of["BCT new/old"], ">"),
        ("side-information helps FCT", with_side, without, ">"),
        (
            "FCT closes at least 90 % of the gap",
            np.array([seed["gap_closed"] for seed in seeds]),
            np.full(len(seeds), 0.9),
            ">",
        ),
        (
            "backfilling by uncertainty beats a random order",
            map_of["FastFill, by uncertainty"],
            map_of["FastFill, random"],
            ">",
        ),
    ]
    lines = []
    for text, left, right, sign in claims:
        held = int(((left > right) if sign == ">" else (left < right)).sum())
        verdict = "yes" if held == len(seeds) else "no" if held == 0 else "not always"
        lines.append(f"- **{verdict}** ({held} of {len(seeds)}): {text}: {_shown(left)} against {_shown(right)} %.")
    return lines


def _stack(
    seeds: Sequence[dict[str, Any]], part: str, values: Callable[[Any], list[float]]
) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Return (seeds, figures) by name."""
    return {name: np.array([values(seed[part][name]) for seed in seeds]) for name in seeds[0][part]}


def _shown(shares: Any) -> str:
    spread = f" ± {100 * shares.std():.1f}" if len(shares) > 1 else ""
    return f"{100 * shares.mean():.1f}{spread}"


def _draw(path: Path, rows: dict[str, Any]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3.6), layout="constrained")
    names = list(rows)[::-1]
    means = [100 * rows[name].mean() for name in names]
    bars = axes.barh(names, means, xerr=[100 * rows[name].std() for name in names], color="#4c78a8")
    axes.bar_label(bars, fmt="%.1f", padding=6)
    axes.set(xlabel="mAP %", xlim=(0, 105))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
