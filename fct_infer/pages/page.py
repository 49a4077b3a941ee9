"""One self-contained HTML page: no scripts, nothing loaded, light or dark, screen or paper."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --soft: #5c6670; --rule: #d8dde3; --accent: #1f6feb; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171b; --ink: #e6e9ed; --soft: #9aa4af; --rule: #333a42; --accent: #6ea8fe; }
}
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 78rem; margin: 0 auto; padding: 1rem clamp(1rem, 3vw, 2.5rem) 3rem; }
p { max-width: 50rem; }
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
.charts { columns: 26rem auto; column-gap: 2rem; }
svg { display: block; width: 100%; max-width: 36rem; height: auto; }
svg text { fill: var(--soft); font-size: 14px; }
svg .grid { stroke: var(--rule); }
svg .line { fill: none; stroke: var(--accent); stroke-width: 2; }
svg text.value { fill: var(--ink); font-weight: 600; }
svg .cell { fill: var(--accent); }
svg .line, svg .dot, svg .bar, svg .series { vector-effect: non-scaling-stroke; }
svg .dot, svg .bar { fill: var(--accent); }
.verdict { max-width: none; border-left: .3rem solid var(--accent); padding: .2rem 0 .2rem 1rem; font-size: 1.1rem; }
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
  table { font-size: .75rem; }
  th, td { padding-right: .4rem; }
  th:last-child, td:last-child { padding-right: 0; }
  thead th { font-size: .68rem; overflow-wrap: anywhere; }
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


def html_table(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Return lines of text as an HTML ``<table>``; the first cell of each names its line."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    lines = (
        f'<tr><th scope="row">{escape(name)}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
        for name, *cells in body
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def html_section(title: str, body: str) -> str:
    """Return a heading (text) and what stands under it (HTML)."""
    return f"<h2>{escape(title)}</h2>{body}"


def html_figure(svg: str, caption: str) -> str:
    """Return a chart (SVG) with its caption (text)."""
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def html_summary(title: str, properties: Mapping[str, str]) -> str:
    """Return what a notebook shows of an object: its kind, and names and values (text); in the notebook's own style."""
    lines = (
        f'<tr><th style="text-align: left">{escape(name)}</th><td style="text-align: left">{escape(value)}</td></tr>'
        for name, value in properties.items()
    )
    return f"<div><strong>{escape(title)}</strong><table><tbody>{''.join(lines)}</tbody></table></div>"


def html_verdict(sentence: str) -> str:
    """Return what a page has to say in one sentence (text), to stand at its top."""
    return f'<p class="verdict">{escape(sentence)}</p>'


def html_charts(*figures: str) -> str:
    """Return figures (HTML) side by side where the screen is wide enough; empty ones are left out."""
    return f'<div class="charts">{"".join(figures)}</div>' if any(figures) else ""
