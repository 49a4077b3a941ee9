"""Judging a new model against an old gallery: the criterion, the update gain and a table of model pairs.

M(query model, gallery model) is any figure of merit, larger being better: mAP or CMC top-k. Written ``new/old``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.markup import escape as escape_markup
from rich.table import Table

from fct_infer.errors import UsageError
from fct_infer.evaluation.retrieval import Figure, RetrievalMetrics
from fct_infer.pages import html_table


def criterion(new_old: float, old_old: float) -> bool:
    """Return whether M(new, old) > M(old, old): searching with the new model pays (BCT, arXiv 2003.11942)."""
    return new_old > old_old


def gap_closed(after: float, old_old: float, new_new: float) -> float | None:
    """Return the share of the way from M(old,old) to M(new,new) that ``after`` has come.

    Of M(new,old), and a new model trained without regard to the old one, it is BCT's update gain (arXiv 2003.11942).
    0 is as good as keeping the old model, 1 as good as backfilling; below 0 the upgrade does harm.
    None if new/new is no better than old/old.
    """
    if new_new <= old_old:
        return None
    return (after - old_old) / (new_new - old_old)


def rich_table(header: Sequence[str], body: Iterable[Sequence[str]], title: str | None = None) -> Table:
    """Return lines of text as a table for a terminal; the first cell of each names its line."""
    table = Table(title=title)
    for index, cell in enumerate(header):
        table.add_column(escape_markup(cell), justify="right" if index else "left", overflow="fold")
    for cells in body:
        table.add_row(*map(escape_markup, cells))
    return table


@dataclass(frozen=True)
class CompatibilityRow:
    """One pair of models, judged.

    Attributes:
        query_model: name of the model that embedded the queries.
        gallery_model: name of the model that embedded the gallery.
        metrics: what was measured.
        note: what sets this pair apart from another of the same models, such as "before".
    """

    query_model: str
    gallery_model: str
    metrics: RetrievalMetrics
    note: str = ""

    @property
    def name(self) -> str:
        """``query/gallery``, and the note."""
        return f"{self.query_model}/{self.gallery_model} {self.note}".rstrip()


@dataclass(frozen=True)
class CompatibilityTable:
    """Pairs of query and gallery model side by side.

    If rows named ``old_old`` and ``new_new`` are among them, the others are judged by the two: whether they meet the
    criterion, and the share of the mAP gap they close. ``figures`` are those shown.

    Raises:
        UsageError: no rows, two rows of one name, or rows that measured CMC at different k.
    """

    rows: tuple[CompatibilityRow, ...]
    old_old: str = "old/old"
    new_new: str = "new/new"
    figures: tuple[Figure, ...] = ("cmc", "map")

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        if not names or len(set(names)) < len(names):
            raise UsageError(f"a compatibility table wants rows of different names, got {names}")
        if len({tuple(row.metrics.cmc) for row in self.rows}) > 1:
            raise UsageError("the rows of a compatibility table must have CMC at the same k")

    def as_dict(self) -> dict[str, Any]:
        """Return the table as strict JSON."""
        return {
            "rows": [
                {
                    "query_model": row.query_model,
                    "gallery_model": row.gallery_model,
                    "note": row.note,
                    **row.metrics.as_dict(),
                    "meets_criterion": meets,
                    "gap_closed": gap,
                }
                for row, meets, gap in self._judged()
            ]
        }

    def rich(self, title: str | None = None) -> Table:
        """Return the table for a terminal."""
        header, *body = self._cells()
        return rich_table(header, body, title)

    def html(self) -> str:
        """Return the table as an HTML ``<table>``."""
        header, *body = self._cells()
        return html_table(header, body)

    def _judged(self) -> list[tuple[CompatibilityRow, bool | None, float | None]]:
        """Return each row with criterion and gap; None where it is a reference itself or there is none."""
        merit = {row.name: row.metrics.mean_average_precision for row in self.rows}
        old, new = merit.get(self.old_old), merit.get(self.new_new)
        judged = []
        for row in self.rows:
            is_reference = row.name in (self.old_old, self.new_new)
            meets = None if old is None or is_reference else criterion(merit[row.name], old)
            gap = None if old is None or new is None or is_reference else gap_closed(merit[row.name], old, new)
            judged.append((row, meets, gap))
        return judged

    def _cells(self) -> list[list[str]]:
        """Return the table as text, header first; percentages, and a dash where a judgement has no meaning."""
        judged = self._judged()
        lines = [["query/gallery", *(f"{name} %" for name in self.rows[0].metrics.shares(self.figures))]]
        lines += [
            [row.name, *(f"{100 * share:.1f}" for share in row.metrics.shares(self.figures).values())]
            for row, _, _ in judged
        ]
        if any(meets is not None for _, meets, _ in judged):
            words = {None: "–", True: "yes", False: "no"}
            lines[0].append("criterion")
            for line, (_, meets, _) in zip(lines[1:], judged, strict=True):
                line.append(words[meets])
        if any(gap is not None for _, _, gap in judged):
            lines[0].append("gap closed %")
            for line, (_, _, gap) in zip(lines[1:], judged, strict=True):
                line.append("–" if gap is None else f"{100 * gap:.1f}")
        return lines
