"""One upgrade as one self-contained HTML page, the verdict first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fct_infer import storage
from fct_infer.machine import counted, size_text
from fct_infer.measuring import Estimate
from fct_infer.pages import (
    bar_chart,
    html_charts,
    html_figure,
    html_page,
    html_properties,
    html_section,
    html_table,
    html_verdict,
    line_chart,
)
from fct_infer.upgrade.report import NORM_QUANTILES, Meaning, UpgradeReport

_QUANTILE_NAMES = {0.0: "shortest", 0.5: "median", 1.0: "longest"}
_OVERLAPPING = ("read", "transform", "write", "index")  # at the same time, within ``stream``


def write_page(path: str | Path, report: UpgradeReport) -> None:
    """Write the page of one upgrade, whole or not at all.

    Raises:
        ResourceError: the file cannot be written.
    """
    sections = (
        html_verdict(_verdict(report)),
        html_section("What was published", html_properties(_published(report))),
        html_section("Does it mean what it should?", _meaning(report)),
        html_section("Is it exact, and is it found?", _checks(report)),
        html_section("Lengths of rows", _norms(report)),
        html_section("Seconds by stage", _seconds(report)),
    )
    storage.write_bytes(path, html_page("A gallery upgraded", "".join(sections)).encode())


def _verdict(report: UpgradeReport) -> str:
    checks = report.verification
    recall = checks.recall_at_10
    found = "" if recall is None else f", the index finds {_percent(recall)} of neighbours"
    tried = f"those tried are exact (cosine {checks.min_cosine:.6f}){found}"
    said = f"{counted(report.rows, 'row')} published; {tried}."
    if checks.warning:
        said += f" {checks.warning[0].upper()}{checks.warning[1:]}."
    if not report.meaning:
        return f"{said} Whether they mean what the new model's do was not asked: --probe tells."
    first = report.meaning[0]
    chance = _percent(first.recall_by_chance)
    return f"{said} Of {first.rows:,} known {first.name}, {first.recall_at_10} are found among 10 (by chance {chance})."


def _published(report: UpgradeReport) -> dict[str, str]:
    settings = report.settings
    rows = {
        "where": str(report.dest),
        "rows": f"{report.rows:,} in {counted(report.shards, 'shard')}",
        "computed": f"in {settings.get('precision')} on {report.device}",
        "speed": f"{report.rows_per_second:,.0f} rows/s; {report.overlap:.0%} of the work hidden behind other work",
    }
    if report.resumed_rows:
        rows["resumed"] = f"{counted(report.resumed_rows, 'row')} done already"
    if report.index:
        rows["index"] = (
            f"{settings.get('index')} ({settings.get('metric')}), {size_text(report.index['size in bytes'])}"
        )
        rows["a search"] = f"{report.index['avg_search_speed_ms']:.2f} ms on average, one query at a time"
    return rows


def _meaning(report: UpgradeReport) -> str:
    if not report.meaning:
        return "<p>Not checked. Some items embedded by the new model, given as --probe, would tell.</p>"
    return "".join(_probe(found) for found in report.meaning)


def _probe(found: Meaning) -> str:
    lines: list[tuple[str, str, str]] = [
        ("farther rows of other items", str(found.order), "50 %"),
        ("cosine to the own row", _plain(found.cosine), f"{found.cosine_by_chance:.3f}"),
    ]
    if found.overlap is not None and found.overlap_by_chance is not None:
        lines.append((f"overlap@{found.overlap_at}", str(found.overlap), _percent(found.overlap_by_chance)))
    lines.append(("found at rank 1", str(found.recall_at_1), "–"))
    lines.append(("found among 10", str(found.recall_at_10), _percent(found.recall_by_chance)))
    header = (f"{found.rows:,} {found.name}, by {found.searched_by}", "measured", "by chance")
    return f'<div class="table">{html_table(header, lines)}</div>'


def _checks(report: UpgradeReport) -> str:
    checks = report.verification
    rows = {
        "recomputed": f"{checks.rows:,} rows, by {checks.recomputed_by}",
        "cosine": f"lowest {checks.min_cosine:.6f} (row {checks.worst_row}), mean {checks.mean_cosine:.6f}",
    }
    if checks.recall_at_10 is not None:
        rows["recall@10"] = f"{_percent(checks.recall_at_10)} of exact neighbours, {checks.queries:,} queries"
    return html_properties(rows) + html_charts(_recall(report))


def _recall(report: UpgradeReport) -> str:
    tried = report.verification.recall_by_nprobe
    if len(tried) < 2:
        return ""
    chosen = str((report.index or {}).get("index_param", "")).removeprefix("nprobe=")
    names = [f"{nprobe}" for nprobe, _ in tried]
    chart = line_chart([recall for _, recall in tried], "nprobe", "recall@10", "Recall over nprobe", names)
    return html_figure(chart, f"Share of exact neighbours found, by lists visited a query; {chosen} was chosen.")


def _norms(report: UpgradeReport) -> str:
    checks = report.verification
    if not checks.norms_before:
        return "<p>Not measured: an earlier version published this.</p>"
    lines = [
        (_QUANTILE_NAMES.get(share, f"{100 * share:.0f} % are shorter"), f"{before:.4g}", f"{after:.4g}")
        for share, before, after in zip(NORM_QUANTILES, checks.norms_before, checks.norms_after, strict=True)
    ]
    header = (f"of {checks.rows:,} rows", "before", "after")
    return f'<div class="table">{html_table(header, lines)}</div>'


def _seconds(report: UpgradeReport) -> str:
    after = {name: value for name, value in report.timings.items() if name not in _OVERLAPPING}
    within = {name: report.timings[name] for name in _OVERLAPPING if name in report.timings}
    return html_charts(
        html_figure(_bars(after, "Seconds of the stages"), "One after the other."),
        html_figure(_bars(within, "Seconds within stream"), "At the same time, within stream."),
    )


def _bars(seconds: dict[str, Any], description: str) -> str:
    return bar_chart({name.replace("_", " "): value for name, value in seconds.items()}, "s", description)


def _plain(estimate: Estimate) -> str:
    return f"{estimate.mean:.3f} ± {estimate.standard_error:.3f}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
