"""One evaluation as one self-contained HTML page, the verdict first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

import numpy as np

from fct_infer import storage
from fct_infer.evaluation.retrieval import Figure, QueryRanks, RetrievalMetrics
from fct_infer.evaluation.study import Study, json_label
from fct_infer.pages import (
    curves_chart,
    histogram,
    html_charts,
    html_figure,
    html_page,
    html_properties,
    html_section,
    html_table,
    html_verdict,
    line_chart,
)

_CURVE_LENGTH = 50
_BINS = 10
_EXAMPLES = 10
_FRAMES = "Green frames are of the query's label, dashed red ones are not; nearest first."


def figures(metrics: RetrievalMetrics, wanted: Iterable[Figure] = ("cmc", "map")) -> dict[str, str]:
    """Return the figures of an evaluation as people read them, by name."""
    shown = {name: f"{100 * share:.2f} %" for name, share in metrics.shares(wanted).items()} | {
        "queries": f"{metrics.queries:,}",
        "queries left out": f"{metrics.skipped_queries:,} (nothing relevant in the gallery)",
        "gallery": f"{metrics.gallery_rows:,} rows",
    }
    if metrics.tied_queries:
        shown["decided by a tie"] = f"{metrics.tied_queries:,} queries: of rows equally far the lower number is first"
    return shown


def write_report(path: str | Path, found: Study, inputs: Mapping[str, str], retrieved: str = "") -> None:
    """Write the page of one study, whole or not at all.

    Args:
        path: the file.
        found: what was measured.
        inputs: what a reader should know of where the arrays came from.
        retrieved: rows of retrieved images, as :func:`retrieved_html` makes them.

    Raises:
        ResourceError: the file cannot be written.
    """
    settings = found.settings
    known = {"metric": settings.metric, "own row excluded": "yes" if settings.exclude_self else "no"}
    for name, labels in (("ignored labels", settings.ignored_labels), ("distractors", settings.distractor_labels)):
        if labels:
            known[name] = ", ".join(str(json_label(label)) for label in labels)
    sections = (
        html_verdict(f"Is it worth it? {found.verdict.sentence}") if found.verdict else "",
        _summary(found),
        _pairs(found),
        _flips(found),
        _backfilling(found),
        _queries(found.ranks),
        html_section("Queries and what they find", f"<p>{_FRAMES}</p>{retrieved}") if retrieved else "",
        _classes(found),
        html_section("What was compared", html_properties({**inputs, **known})),
    )
    storage.write_bytes(path, html_page("Retrieval evaluation", "".join(sections)).encode())


def _summary(found: Study) -> str:
    metrics = found.ranks.metrics()
    return (
        f"<p>For {100 * found.ranks.cmc(1):.1f} % of {metrics.queries:,} queries the nearest gallery item has the "
        f"query's label; mAP is {100 * metrics.mean_average_precision:.1f} %.</p>"
        + html_properties(figures(metrics, found.settings.figures))
    )


def _pairs(found: Study) -> str:
    if len(found.matrix.ranks) < 2:
        return ""
    return html_section(
        "Query model against gallery",
        f'<div class="table">{found.table().html()}</div>'
        + html_figure(found.matrix.svg(), "mAP in %: query model down, gallery across."),
    )


def _flips(found: Study) -> str:
    if found.flips is None:
        return ""
    counts = {
        name: f"{len(rows):,} ({100 * len(rows) / found.flips.queries:.2f} %)"
        + (
            f": queries {', '.join(map(str, rows[:_EXAMPLES]))}" + (" …" if len(rows) > _EXAMPLES else "")
            if len(rows)
            else ""
        )
        for name, rows in (("repaired", found.flips.positive), ("broken", found.flips.negative))
    }
    return html_section(
        "Flips",
        "<p>Queries whose nearest item was wrong in old/old and is right now, and the other way round.</p>"
        + html_properties(counts),
    )


def _backfilling(found: Study) -> str:
    if not found.curves:
        return ""
    shares = next(iter(found.curves.values())).shares
    merits = {name: curve.mean_average_precision for name, curve in found.curves.items()}
    chart = curves_chart(shares, merits, "rows re-embedded", "mAP", "mAP over the share of rows re-embedded, by order")
    areas = {
        name: f"{100 * curve.area:.2f} %" + ("" if curve.area_spread is None else f" ± {100 * curve.area_spread:.2f}")
        for name, curve in found.curves.items()
    }
    caption = f"mAP while the gallery is re-embedded, at {len(shares)} points, by the order of the rows."
    left_out = f"<p>{escape(found.left_out)}.</p>" if found.left_out else ""
    area = "<p>Area: mean mAP over the points.</p>" + html_properties(areas)
    return html_section("Backfilling", html_figure(chart, caption) + area + left_out)


def _queries(ranks: QueryRanks) -> str:
    curve = [ranks.cmc(k) for k in range(1, min(_CURVE_LENGTH, ranks.gallery_rows) + 1)]
    precisions = ranks.average_precision[ranks.first_relevant > 0]
    bins = np.histogram(precisions, bins=_BINS, range=(0, 1))[0] / len(precisions)
    described = f"CMC from {100 * curve[0]:.1f} % at 1 to {100 * curve[-1]:.1f} % at {len(curve)}"
    cmc = html_figure(
        line_chart(curve, "k", "queries", described),
        "CMC: share of queries with an item of their label among the k nearest.",
    )
    by_query = html_figure(
        histogram(bins.tolist(), "average precision", "queries", "Histogram of the queries' average precision"),
        "Share of queries by how well all items of their label are ranked; the mean is the mAP.",
    )
    return html_section("By rank and by query", html_charts(cmc, by_query))


def _classes(found: Study) -> str:
    if not found.per_class:
        return ""
    header, *body = found.by_class()
    return html_section("By label, the worst first", f'<div class="table">{html_table(header, body)}</div>')
