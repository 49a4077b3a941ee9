"""One evaluation as one self-contained HTML page: no scripts, nothing loaded, light or dark, screen or paper."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

import numpy as np

from fct_infer import storage
from fct_infer.evaluation.charts import curves_chart, histogram, line_chart
from fct_infer.evaluation.compatibility import html_table
from fct_infer.evaluation.retrieval import Figure, QueryRanks, RetrievalMetrics
from fct_infer.evaluation.study import Study, json_label

_CURVE_LENGTH = 50
_BINS = 10
_EXAMPLES = 10
_FRAMES = "Green frames are of the query's label, dashed red ones are not; nearest first."
_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --soft: #5c6670; --rule: #d8dde3; --accent: #1f6feb; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171b; --ink: #e6e9ed; --soft: #9aa4af; --rule: #333a42; --accent: #6ea8fe; }
}
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 54rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.2; }
h2 { font-size: 1.1rem; margin-top: 2rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top; }
th { font-weight: 600; }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
thead th { color: var(--soft); vertical-align: bottom; }
thead th + th, thead + tbody td { text-align: right; }
tbody th { white-space: nowrap; position: sticky; left: 0; background: var(--paper); }
figure { margin: 1rem 0; break-inside: avoid; }
figcaption { color: var(--soft); font-size: .9rem; }
svg { display: block; width: 100%; max-width: 36rem; height: auto; }
svg text { fill: var(--soft); font-size: 14px; }
svg .grid { stroke: var(--rule); }
svg .line { fill: none; stroke: var(--accent); stroke-width: 2; }
svg text.value { fill: var(--ink); font-weight: 600; }
svg .cell { fill: var(--accent); }
svg .dot, svg .bar { fill: var(--accent); }
.verdict { border-left: .3rem solid var(--accent); padding: .2rem 0 .2rem 1rem; font-size: 1.1rem; }
.query { display: grid; grid-template-columns: 6rem 1fr; gap: .4rem .9rem; margin: 1.4rem 0; break-inside: avoid; }
.query figure { margin: 0; }
.query img { border-radius: .25rem; display: block; width: 2.9rem; image-rendering: pixelated; }
.query > figure img { width: 5rem; }
.search { margin: 0 0 .2rem; color: var(--soft); font-size: .85rem; }
.found { display: flex; flex-wrap: wrap; gap: .3rem; margin-bottom: .5rem; }
.found img { border: .2rem solid; }
.found .right { border-color: #1a9850; }
.found .wrong { border-color: #d73027; border-style: dashed; }
@media (max-width: 34rem) {
  table { font-size: .8rem; }
  th, td { padding-right: .5rem; }
  tbody th { white-space: normal; }
}
@media print {
  :root { --paper: #fff; --ink: #000; --soft: #444; --rule: #bbb; --accent: #1f5fbf; }
  main { max-width: none; padding: 0; }
  h2, h2 + p { break-after: avoid; }
  tr, .verdict { break-inside: avoid; }
  .table { overflow: visible; }
  table { font-size: .8rem; }
}
"""


def check_report_path(path: str | Path) -> None:
    """Try whether a report can be written at ``path``, so that it is noticed before the work; leaves no file.

    Raises:
        ResourceError: it cannot.
    """
    storage.DurableWriter(path).abort()


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
        _summary(found),
        _pairs(found),
        _flips(found),
        _backfilling(found),
        _queries(found.ranks),
        _section("Queries and what they find", f"<p>{_FRAMES}</p>{retrieved}") if retrieved else "",
        _classes(found),
        _section("What was compared", html_properties({**inputs, **known})),
        _section("Is it worth it?", f'<p class="verdict">{escape(found.verdict.sentence)}</p>')
        if found.verdict
        else "",
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
    return _section(
        "Query model against gallery",
        f'<div class="table">{found.table().html()}</div>'
        + _figure(found.matrix.svg(), "mAP in %: query model down, gallery across."),
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
    return _section(
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
    return _section("Backfilling", _figure(chart, caption) + area + left_out)


def _queries(ranks: QueryRanks) -> str:
    curve = [ranks.cmc(k) for k in range(1, min(_CURVE_LENGTH, ranks.gallery_rows) + 1)]
    precisions = ranks.average_precision[ranks.first_relevant > 0]
    bins = np.histogram(precisions, bins=_BINS, range=(0, 1))[0] / len(precisions)
    described = f"CMC from {100 * curve[0]:.1f} % at 1 to {100 * curve[-1]:.1f} % at {len(curve)}"
    return _section(
        "CMC curve",
        _figure(
            line_chart(curve, "k", "queries", described),
            "Share of queries with an item of their label among the k nearest.",
        ),
    ) + _section(
        "Average precision by query",
        _figure(
            histogram(bins.tolist(), "average precision", "queries", "Histogram of the queries' average precision"),
            "Share of queries by how well all items of their label are ranked; the mean is the mAP.",
        ),
    )


def _classes(found: Study) -> str:
    if not found.per_class:
        return ""
    header, *body = found.by_class()
    return _section("By label, the worst first", f'<div class="table">{html_table(header, body)}</div>')


def _section(title: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>{body}"


def html_page(title: str, body: str) -> str:
    """Return a whole HTML document around ``body`` (HTML), with the reports' style inside it."""
    body = body.replace(" %", "&nbsp;%")  # no line ends between a figure and its sign
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><main><h1>{escape(title)}</h1>\n{body}\n</main></body></html>\n"
    )


def html_properties(properties: Mapping[str, str]) -> str:
    """Return names and values (text) as an HTML table of two columns."""
    lines = (
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in properties.items()
    )
    return f'<div class="table"><table><tbody>{"".join(lines)}</tbody></table></div>'


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"
