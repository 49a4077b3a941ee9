"""One evaluation as one self-contained HTML page: no scripts, nothing loaded, light or dark, screen or paper."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

import numpy as np

from fct_infer import storage
from fct_infer.evaluation.charts import histogram, line_chart
from fct_infer.evaluation.retrieval import QueryRanks, RetrievalMetrics

_CURVE_LENGTH = 50
_BINS = 10
_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --soft: #5c6670; --rule: #d8dde3; --accent: #1f6feb; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171b; --ink: #e6e9ed; --soft: #9aa4af; --rule: #333a42; --accent: #6ea8fe; }
}
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 44rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.2; }
h2 { font-size: 1.1rem; margin-top: 2rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { padding: .3rem 1rem .3rem 0; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top; }
th { font-weight: 600; white-space: nowrap; }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
thead th { color: var(--soft); }
thead + tbody td { text-align: right; }
figure { margin: 1rem 0; break-inside: avoid; }
figcaption { color: var(--soft); font-size: .9rem; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 14px; }
svg .grid { stroke: var(--rule); }
svg .line { fill: none; stroke: var(--accent); stroke-width: 2; }
svg .dot, svg .bar { fill: var(--accent); }
@media print {
  :root { --paper: #fff; --ink: #000; --soft: #444; --rule: #bbb; --accent: #1f5fbf; }
  main { max-width: none; padding: 0; }
}
"""


def figures(metrics: RetrievalMetrics) -> dict[str, str]:
    """Return the figures of an evaluation as people read them, by name."""
    shares = {f"CMC top-{k}": share for k, share in metrics.cmc.items()} | {"mAP": metrics.mean_average_precision}
    return {name: f"{100 * share:.2f} %" for name, share in shares.items()} | {
        "queries": f"{metrics.queries:,}",
        "queries left out": f"{metrics.skipped_queries:,} (nothing relevant in the gallery)",
        "gallery": f"{metrics.gallery_rows:,} rows",
    }


def write_report(path: str | Path, ranks: QueryRanks, ks: Iterable[int], settings: Mapping[str, str]) -> None:
    """Write the page of one evaluation, whole or not at all; ``settings`` is what a reader should know of its inputs.

    Raises:
        ResourceError: the file cannot be written.
    """
    metrics = ranks.metrics(ks)
    curve = [ranks.cmc(k) for k in range(1, min(_CURVE_LENGTH, metrics.gallery_rows) + 1)]
    precisions = ranks.average_precision[ranks.first_relevant > 0]
    bins = np.histogram(precisions, bins=_BINS, range=(0, 1))[0] / metrics.queries
    first, last = curve[0], curve[-1]
    body = (
        f"<p>For {100 * first:.1f} % of {metrics.queries:,} queries the nearest gallery item has the query's label; "
        f"mAP is {100 * metrics.mean_average_precision:.1f} %.</p>"
        + html_properties(figures(metrics))
        + "<h2>CMC curve</h2>"
        + _figure(
            line_chart(
                curve, "k", "queries", f"CMC from {100 * first:.1f} % at 1 to {100 * last:.1f} % at {len(curve)}"
            ),
            "Share of queries with an item of their label among the k nearest.",
        )
        + "<h2>Average precision by query</h2>"
        + _figure(
            histogram(bins.tolist(), "average precision", "queries", "Histogram of the queries' average precision"),
            "Share of queries by how well all items of their label are ranked; the mean is the mAP.",
        )
        + "<h2>What was compared</h2>"
        + html_properties(settings)
    )
    storage.write_bytes(path, html_page("Retrieval evaluation", body).encode())


def html_page(title: str, body: str) -> str:
    """Return a whole HTML document around ``body`` (HTML), with the reports' style inside it."""
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
