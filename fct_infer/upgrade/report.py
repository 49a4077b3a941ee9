"""What an upgrade did, for people and for programs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Verification:
    """Figures measured before publishing.

    Attributes:
        rows: rows recomputed.
        recomputed_by: ``float64``, or the backend itself if no program holds the transformation.
        min_cosine: lowest cosine between a published row and its recomputation.
        mean_cosine: their mean.
        worst_row: row number over all shards where the lowest occurred.
        queries: rows used as queries of the index; 0 without an index.
        recall_at_10: share of the 10 nearest rows by exact search that the index finds; None without an index.
    """

    rows: int
    recomputed_by: str
    min_cosine: float
    mean_cosine: float
    worst_row: int
    queries: int = 0
    recall_at_10: float | None = None


@dataclass(frozen=True)
class UpgradeReport:
    """Result of :func:`fct_infer.upgrade_gallery`.

    Attributes:
        dest: the published folder.
        rows, shards: size of the gallery.
        resumed_rows: rows that an earlier, unfinished run had done already.
        settings: everything that decides the result (precision, kind of device, dtype, index, metric ...).
        timings: seconds by stage; ``read``, ``transform``, ``write`` and ``index`` ran at the same time
            within ``stream``; of several shards at once, their mean.
        verification: what was checked before publishing.
        index: what ``index_infos.json`` says; None without an index.
        device: where the transformation ran: ``cpu``, ``cuda:0 (NVIDIA H200)``, ``cpu (cuda:0 has too little ...)``.
        index_placement: where the index was trained (``train``) and filled (``add``), the card whose memory its rows
            came from (``rows``), and why not on a card (``reason``), as far as they apply; None without an index.
        precision_choice: why it has the precision it has, where ``auto`` was asked for.
        duplicate_ids: rows whose id an earlier row has; see :class:`fct_infer.gallery.ids.IdFacts`.
    """

    dest: Path
    rows: int
    shards: int
    resumed_rows: int
    settings: dict[str, Any]
    timings: dict[str, float]
    verification: Verification
    index: dict[str, Any] | None = field(default=None)
    device: str = "cpu"
    index_placement: dict[str, str] | None = None
    precision_choice: str | None = None
    duplicate_ids: int = 0

    def __repr__(self) -> str:
        checks = self.verification
        index = f", index {self.settings.get('index')}, recall@10 {checks.recall_at_10:.3f}" if self.index else ""
        computed = f"{self.settings.get('precision')} on {self.device}, cosine >= {checks.min_cosine:.6f}"
        return f"UpgradeReport({self.dest}: {self.rows:,} rows in {self.shards:,} shards, {computed}{index})"

    @classmethod
    def load(cls, path: Path) -> UpgradeReport:
        """Read the report back from an ``upgrade_infos.json``."""
        infos = json.loads(path.read_text())
        values = {each.name: infos[each.name] for each in fields(cls) if each.name in infos}
        values |= {"dest": Path(infos["dest"]), "verification": Verification(**infos["verification"])}
        return cls(**values)

    @property
    def rows_per_second(self) -> float:
        """Rows transformed in this run over the seconds from the first read to the last write and index addition."""
        return (self.rows - self.resumed_rows) / max(self.timings["stream"], 1e-9)

    @property
    def overlap(self) -> float:
        """Share of the stages' working time that was hidden behind another stage: 0 one after the other."""
        busy = sum(self.timings[stage] for stage in ("read", "transform", "write", "index"))
        return max(0.0, 1.0 - self.timings["stream"] / busy) if busy else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return everything as strict JSON."""
        return {
            **asdict(self),
            "dest": str(self.dest),
            "rows_per_second": self.rows_per_second,
            "overlap": self.overlap,
        }
