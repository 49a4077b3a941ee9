"""What the demo found, for the terminal and as one self-contained page."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

import numpy as np
from judging import Figures
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from steps import Steps

from fct_infer.evaluation import (
    ImageFile,
    RetrievedRow,
    criterion,
    gap_closed,
    retrieved_html,
)
from fct_infer.pages import (
    bar_chart,
    curves_chart,
    heat_map,
    html_charts,
    html_figure,
    html_page,
    html_properties,
    html_verdict,
)
from fct_infer.storage import write_bytes

_WORTH_IT = 0.8  # share of the gap from which on the upgrade is called worth it
_SEARCHES = {
    "old/old": "today: old model, old gallery",
    "new/old before": "new model, old gallery as it lies: broken",
    "new/old after": "new model, upgraded gallery, through its index",
}
_STYLE = """
pre { white-space: pre-wrap; overflow-wrap: anywhere; padding: .7rem 1rem; border: 1px solid var(--rule);
  border-radius: .3rem; font-size: .85rem; }
"""


def verdict(figures: Figures) -> str:
    """Say plainly whether the upgrade was worth it, with the figures that decide it."""
    old, new = figures.merit("old/old"), figures.merit("new/new")
    after = figures.merit("new/old after")
    gap = gap_closed(after, old, new)
    if gap is None:
        return f"Not worth it: the new model ({100 * new:.1f} % mAP) is no better than the old ({100 * old:.1f} %)."
    if not criterion(after, old):
        return (
            f"Not worth it: the upgraded gallery reaches {100 * after:.1f} % mAP, the old system has "
            f"{100 * old:.1f} %; keep the old model or re-embed."
        )
    saved = figures.costs["transformed rows/s"] / figures.costs["re-embedded images/s"]
    opening = "Worth it" if gap >= _WORTH_IT else "Worth a part of it: re-embed what matters most"
    return (
        f"{opening}: upgrading the stored rows lifts mAP from {100 * old:.1f} % to {100 * after:.1f} %, "
        f"{100 * gap:.0f} % of what re-embedding everything would gain ({100 * new:.1f} %), "
        f"{saved:.0f} times as fast and without opening an image."
    )


def costs(figures: Figures) -> dict[str, str]:
    """Return the measured costs as people read them."""
    cost = figures.costs
    arithmetic = cost["new model MFLOP"] / cost["transformation MFLOP"]
    speed = cost["transformed rows/s"] / cost["re-embedded images/s"]
    rows = figures.rows[0]["metrics"]["gallery_rows"]
    return {
        "transformation h": f"{cost['transformed rows/s']:,.0f} rows/s, {cost['transformation MFLOP']:.1f} MFLOP a row",
        "re-embedding": f"{cost['re-embedded images/s']:,.0f} images/s, {cost['new model MFLOP']:.1f} MFLOP an image "
        "(new model, the faster of PyTorch and ONNX Runtime, images already decoded)",
        "h against re-embedding": f"{speed:.0f} times as fast, {arithmetic:.0f} times less arithmetic",
        "the whole upgrade": f"{cost['upgrade rows/s']:,.0f} rows/s while streaming; {cost['command seconds']:.1f} s "
        f"for the command: start, {rows:,} rows, index, verification, publishing",
        "CMC-1 through the index": f"{100 * figures.index_cmc_1:.1f} %",
    }


def print_summary(figures: Figures, page_file: Path) -> None:
    """Print the table, the costs and the verdict."""
    console = Console()
    console.print()
    console.print(figures.table().rich("Searching the gallery: query model / gallery model"))
    lines = Table.grid(padding=(0, 2))
    for name, value in costs(figures).items():
        lines.add_row(f"[bold]{name}[/bold]", value)
    console.print(lines)
    console.print(f"\n[bold]Is it worth it?[/bold] {verdict(figures)}", highlight=False)
    console.print(f"\nQueries with their neighbours before and after: {page_file}", highlight=False, soft_wrap=True)


def write_page(path: Path, work: Path, figures: Figures, steps: Steps) -> None:
    """Write the report."""
    data = steps.images("test")
    images = ImageFile(steps.work / "images" / "test_images.npy", len(data.labels))
    command = json.loads((work / "upgraded" / "command.json").read_text())["command"]
    body = (
        f"<style>{_STYLE}</style>"
        + html_verdict(f"Is it worth it? {verdict(figures)}")
        + "<p>A gallery embedded by an old model that knew 20 of 100 classes was moved into the space of a new model, "
        "trained without regard to the old one, by a transformation of the stored rows. No image was read again.</p>"
        f'<div class="table">{figures.table().html()}</div>'
        + html_charts(_matrix(figures), _speeds(figures), _curve(figures))
        + "<h2>What it cost</h2>"
        + html_properties(costs(figures))
        + f"<pre>{escape(command)}</pre>"
        + "<h2>Queries and what they find</h2>"
        + f"<p>{len(figures.queries)} queries drawn at random, and the {len(figures.neighbours['old/old'][0])} "
        "nearest gallery images in each search: green frames are of the query's class, dashed red ones are not.</p>"
        + retrieved_html(_rows(figures, data.labels), images, images)
    )
    write_bytes(path, html_page("A gallery upgraded without re-embedding", body).encode())


def _matrix(figures: Figures) -> str:
    merit, columns = figures.merit, ["old gallery", "upgraded", "new gallery"]
    lines = [
        [merit("old/old"), None, None],
        [merit("new/old before"), merit("new/old after"), merit("new/new")],
    ]
    chart = heat_map(lines, ["old", "new"], columns, "mAP by query model and gallery")
    return html_figure(chart, "mAP in %: query model down, gallery across.")


def _curve(figures: Figures) -> str:
    if not (curve := figures.curve):  # of a run of an earlier version
        return ""
    chart = curves_chart(
        curve["shares"], {"upgraded, then re-embedded": curve["mAP"]}, "rows re-embedded", "mAP", "Backfilling curve"
    )
    return html_figure(chart, "mAP while the upgraded rows are replaced by re-embedded ones, in random order.")


def _speeds(figures: Figures) -> str:
    cost = figures.costs
    speeds = {"h on stored rows": cost["transformed rows/s"], "re-embedding": cost["re-embedded images/s"]}
    chart = bar_chart(speeds, "a second", "Speed of h and of re-embedding")
    return html_figure(chart, "Rows transformed, and images re-embedded, a second.")


def _rows(figures: Figures, labels: NDArray[np.int64]) -> list[RetrievedRow]:
    rows = []
    for number, query in enumerate(figures.queries):
        found = {title: figures.neighbours[search][number] for search, title in _SEARCHES.items()}
        relevant = {title: (labels[items] == labels[query]).tolist() for title, items in found.items()}
        rows.append(RetrievedRow(query, int(labels[query]), found, relevant))
    return rows
