"""docs/reproduction.md: the figures of all seeds, and where the papers' order appeared or did not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import plots
from .figures import FIGURES
from .table import table

Shares: TypeAlias = NDArray[np.float64]
Seeds: TypeAlias = Sequence[dict[str, Any]]

_ABOUT = (
    "The experiments of both papers and of FastFill, in small: 100 classes of the built-in glyphs, old model trained "
    "on the first 20, new model on all, {images:,} test images as queries and gallery (each query without itself), L2 "
    "distance, 128-d embeddings, 64-d side-information by SimCLR on the old model's training images. Mean and standard "
    "deviation over {seeds}. `make reproduce` writes this page."
)


def write_page(path: Path, seeds: Seeds, test_images: int, machine: str) -> None:
    """Write the page and, beside it, its pictures.

    Args:
        path: the page; pictures take its name.
        seeds: what :func:`reproduction.figures.judge` returns, one a seed.
        test_images: how many images were searched.
        machine: when and on what it was computed, in words.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = {what: path.with_name(f"{path.stem}-{what}.png") for what in ("pairs", "sizes")}
    rows, areas = stack(seeds, "rows"), stack(seeds, "areas")
    count = "1 seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
    lines = [
        "# Reproduction",
        "",
        _ABOUT.format(images=test_images, seeds=count),
        "",
        f"Computed {machine}.",
        "",
        *table(
            ["query/gallery", *(f"{figure} %" for figure in FIGURES)],
            ((name, *(shown(figures[figure]) for figure in FIGURES)) for name, figures in rows.items()),
        ),
        "BCT's influence loss goes through the mean old embeddings of all classes; *completed*: through the trained "
        "old classifier, with means for the classes it lacks.",
        "",
        *table(
            ["backfilling, mean mAP over the curve's 22 points", "%"],
            ((name, shown(area)) for name, area in areas.items()),
        ),
        f"![mAP of each pair]({pictures['pairs'].name})",
        "",
        "## Do the papers' claims appear?",
        "",
        *_claims(
            {name: figures["mAP"] for name, figures in rows.items()} | areas,
            stack(seeds, "psi"),
            stack(seeds, "gap_closed"),
        ),
        "",
        *_choices(seeds, pictures["sizes"].name),
        *_across(seeds),
        *_sequence(seeds),
    ]
    path.write_text("\n".join(lines))
    plots.draw_pairs(pictures["pairs"], {name: figures["mAP"] for name, figures in rows.items()})
    sizes, pairs = stack(seeds, "sizes"), (rows["old/old"]["mAP"], rows["new/new, independent"]["mAP"])
    plots.draw_sizes(pictures["sizes"], sizes, *pairs)


def stack(seeds: Seeds, part: str) -> Any:
    """Return one part of the figures with (seeds,) arrays for its numbers."""
    return _stack([seed[part] for seed in seeds])


def shown(shares: Shares) -> str:
    """Return mean and spread in percent."""
    spread = f" ± {100 * shares.std():.1f}" if len(shares) > 1 else ""
    return f"{100 * shares.mean():.1f}{spread}"


def _stack(values: Sequence[Any]) -> Any:
    if isinstance(values[0], Mapping):
        return {name: _stack([value[name] for value in values]) for name in values[0]}
    return np.array(values, np.float64)


def _claims(map_of: Mapping[str, Shares], psi: Mapping[str, Shares], gap_closed: Shares) -> list[str]:
    """One line a claim: in how many seeds it held, and the figures."""
    with_side, without = (map_of[f"FCT new/old, {kind} side-information"] for kind in ("with", "without"))
    old, new, bct = map_of["old/old"], map_of["new/new, independent"], map_of["BCT new/old"]
    completed = {pair: map_of[f"BCT, completed classifier, {pair}"] for pair in ("new/old", "new/new")}
    by_uncertainty, random = (map_of[f"FastFill, {order}"] for order in ("by uncertainty", "random"))
    claims: list[tuple[str, Shares, Shares | float]] = [
        ("independent models cannot search each other's galleries", old, map_of["new/old, independent"]),
        ("BCT keeps its criterion, new/old above old/old", bct, old),
        ("BCT with a completed classifier keeps it", completed["new/old"], old),
        ("BCT costs the new model: independent new/new above BCT's", new, map_of["BCT new/new"]),
        ("BCT with a completed classifier costs the new model", new, completed["new/new"]),
        ("FCT without side-information is above BCT", without, bct),
        ("side-information by SimCLR helps FCT", with_side, without),
        ("side-information by a classifier helps FCT", psi["classifier-64"], psi["none"]),
        ("FCT closes at least 90 % of the gap", gap_closed, 0.9),
        ("FastFill is above FCT", map_of["FastFill new/old"], with_side),
        ("backfilling by uncertainty beats a random order", by_uncertainty, random),
    ]
    return [_claim(*each) for each in claims]


def _claim(text: str, higher: Shares, lower: Shares | float) -> str:
    """Return a line that says in how many seeds one figure was above the other."""
    held = int((higher > lower).sum())
    verdict = "yes" if held == len(higher) else "no" if held == 0 else "not always"
    against = shown(lower) if isinstance(lower, np.ndarray) else f"{100 * lower:.0f}"
    return f"- **{verdict}** ({held} of {len(higher)}): {text}: {shown(higher)} against {against} %."


def _choices(seeds: Seeds, picture: str) -> list[str]:
    sizes = stack(seeds, "sizes")
    by_arithmetic = sorted(sizes.items(), key=lambda item: -item[1]["mflop"].mean())
    return [
        "## Which side-information, and how large an h?",
        "",
        *table(
            ["side-information", "FCT new/old, mAP %"],
            ((name, shown(shares)) for name, shares in stack(seeds, "psi").items()),
        ),
        "The number is the width; `none` feeds the old embedding to both branches.",
        "",
        *table(
            ["h, by its share of the arithmetic of the paper's", "MFLOP a row", "FCT new/old, mAP %"],
            ((name, f"{size['mflop'].mean():.2f}", shown(size["mAP"])) for name, size in by_arithmetic),
        ),
        f"![mAP over arithmetic]({picture})",
        "",
    ]


def _across(seeds: Seeds) -> list[str]:
    columns = ("old/old", "new/new", "FCT new/old", "gap_closed")
    return [
        "## Across architectures, losses and data",
        "",
        *table(
            ["what differs between old and new model", *columns[:3], "gap closed %"],
            (
                (name, *(shown(figures[column]) for column in columns))
                for name, figures in stack(seeds, "across").items()
            ),
        ),
        "mAP %; the new model knows 100 classes, the old one 20.",
        "",
    ]


def _sequence(seeds: Seeds) -> list[str]:
    sequence = stack(seeds, "sequence")
    merits, versions = sequence["merits"], [pair.split("/")[0] for pair in sequence["merits"] if _is_own(pair)]
    cells = [
        [f"v{row}", *(shown(merits[pair]) if (pair := f"{query}/{gallery}") in merits else "" for gallery in versions)]
        for row, query in enumerate(versions, 1)
    ]
    return [
        "## A sequence v1, v2, v3",
        "",
        "Models trained on 20, 50 and 100 classes. Every gallery is brought to the version of the queries.",
        "",
        *table(
            ["mAP %, queries down, galleries across", *(f"v{column + 1}" for column in range(len(versions)))], cells
        ),
        f"v1's gallery searched by v3 after both steps, h(2→3) after h(1→2): {shown(sequence['chained'])} %; directly, "
        f"by h(1→3): {shown(merits[f'{versions[-1]}/{versions[0]}'])} %. Average compatibility (share of pairs above "
        f"the older model's own search): {sequence['average_compatibility'].mean():.2f}.",
        "",
    ]


def _is_own(pair: str) -> bool:
    query, gallery = pair.split("/")
    return query == gallery
