"""What an upgrade did, for people and for programs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from fct_infer.gallery.places import place_of
from fct_infer.machine import counted
from fct_infer.measuring import Estimate
from fct_infer.pages import html_summary

NORM_QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
_LOW_RECALL = 0.8  # below it is said what could be done
_SUSPECT = 0.05  # share of pairs that look mismatched from which on it is said


def size_of_gallery(rows: int, shards: int) -> str:
    """Return ``1 row in 1 shard``, ``2,000 rows in 3 shards``."""
    return f"{counted(rows, 'row')} in {counted(shards, 'shard')}"


@dataclass(frozen=True)
class Verification:
    """Figures measured before publishing.

    Attributes:
        rows: rows recomputed.
        recomputed_by: ``float64``, or the backend itself if no program holds the transformation.
        min_cosine: lowest cosine between a published row and its recomputation.
        mean_cosine: their mean.
        worst_row: row number over all shards (in a database the table and the key) where the lowest occurred.
        queries: rows used as queries of the index; 0 without an index.
        recall_at_10: share of the 10 nearest rows by exact search that the index finds; None without an index.
        recall_by_nprobe: what it was with each number of lists visited that was tried; empty without lists.
        norms_before, norms_after: lengths of the rows recomputed, as stored and as published: the quantiles
            :data:`NORM_QUANTILES`; empty of upgrades that did not measure them.
    """

    rows: int
    recomputed_by: str
    min_cosine: float
    mean_cosine: float
    worst_row: int | str
    queries: int = 0
    recall_at_10: float | None = None
    recall_by_nprobe: tuple[tuple[int, float], ...] = ()
    norms_before: tuple[float, ...] = ()
    norms_after: tuple[float, ...] = ()

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Verification:
        """Return what ``dataclasses.asdict`` and JSON made a dictionary of."""
        tuples = {name: tuple(found.get(name, ())) for name in ("norms_before", "norms_after")}
        by_nprobe = tuple((int(nprobe), float(recall)) for nprobe, recall in found.get("recall_by_nprobe", ()))
        return cls(**{**found, **tuples, "recall_by_nprobe": by_nprobe})

    @property
    def warning(self) -> str | None:
        """What to know of an index that misses many neighbours, and the ways out; None of others."""
        if self.recall_at_10 is None or self.recall_at_10 >= _LOW_RECALL:
            return None
        finer = "an --index with finer codes (SQ8 or Flat in place of PQ) finds more"
        if self.recall_by_nprobe:
            finer = f"--min-recall {_LOW_RECALL} visits more lists for a search, or refuses; {finer}"
        return f"the index finds only {self.recall_at_10:.0%} of the ten nearest rows; {finer}"


@dataclass(frozen=True)
class Meaning:
    """How near known vectors of the new model are to the rows made for their items; chance is what any rows would give.

    Attributes:
        name: what is known: ``pairs`` (items by both models) or ``queries`` (with their right rows).
        rows, given, left_out: vectors measured with, how many there were, and of how many the gallery has no item.
        order: share of the other items' rows that are farther from a vector than its own item's; by chance one half.
        as_by_chance: twice the share of vectors with more than half of those nearer: about as many look as if the
            row was of another item. 0 of a perfect h, 1 of a wrong one.
        cosine, cosine_by_chance: mean cosine to the own item's row, and to the others'.
        overlap, overlap_at, overlap_by_chance: of pairs, share of the nearest vectors (``overlap_at`` of them) whose
            rows are the nearest, too, among the measured; else None.
        recall_at_1, recall_at_10: share of right ids that a search of all rows finds so far up.
        searches, searched_by: how many, through the ``index`` or by ``exact search``.
        recall_by_chance: of recall_at_10.
    """

    name: str
    rows: int
    given: int
    left_out: int
    order: Estimate
    as_by_chance: Estimate
    cosine: Estimate
    cosine_by_chance: float
    overlap: Estimate | None
    overlap_at: int | None
    overlap_by_chance: float | None
    recall_at_1: Estimate
    recall_at_10: Estimate
    searches: int
    searched_by: str
    recall_by_chance: float

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Meaning:
        """Return what ``dataclasses.asdict`` made a dictionary of."""
        values: dict[str, Any] = {
            key: Estimate(**value) if isinstance(value, dict) else value for key, value in found.items()
        }
        return cls(**values)

    def __str__(self) -> str:
        drawn = f"{self.rows:,} " + (f"of {self.given:,} " if self.rows < self.given else "") + self.name
        drawn += f" ({self.left_out:,} are of no row here)" if self.left_out else ""
        parts = [
            f"nearer to their item's row than to {self.order} of others' (by chance 50 %)",
            f"cosine {self.cosine.mean:.3f} ± {self.cosine.standard_error:.3f} ({self.cosine_by_chance:.3f})",
        ]
        if self.overlap is not None and self.overlap_by_chance is not None:
            chance = f"{100 * self.overlap_by_chance:.1f} %"
            parts.append(f"overlap@{self.overlap_at} of neighbours {self.overlap} ({chance})")
        parts.append(
            f"found by {self.searched_by} at rank 1 {self.recall_at_1}, among 10 {self.recall_at_10} "
            f"({100 * self.recall_by_chance:.2g} %)"
        )
        strange = self.as_by_chance
        if self.name == "pairs" and strange.mean - 2 * strange.standard_error > _SUSPECT:
            parts.append(f"about {strange} look as if their row were of another item, or as if h saw little of them")
        return f"{drawn}: " + "; ".join(parts)


@dataclass(frozen=True)
class UpgradeReport:
    """Result of :func:`fct_infer.upgrade_gallery`.

    Attributes:
        dest: the published folder; in a database its URL, without a password.
        rows, shards: size of the gallery.
        resumed_rows: rows that an earlier, unfinished run had done already.
        settings: everything that decides the result (precision, kind of device, dtype, index, metric ...).
        timings: seconds by stage; ``read``, ``transform``, ``write`` and ``index`` ran at the same time
            within ``stream``; of several shards at once, their mean. ``finish`` saves the index, up to this report.
        verification: what was checked before publishing.
        index: what ``index_infos.json`` says; None without an index.
        device: where the transformation ran: ``cpu``, ``cuda:0 (NVIDIA H200)``, ``cpu (cuda:0 has too little ...)``.
        index_placement: where the index was trained (``train``) and filled (``add``), the device whose memory its rows
            came from (``rows``), why not on a device (``reason``), whose ``kernels`` filled it there if not FAISS's,
            and what came of a warm start (``lists``), as far as they apply; None without an index.
        precision_choice: why it has the precision it has, where ``auto`` was asked for.
        duplicate_ids: rows whose id an earlier row has; see :class:`fct_infer.gallery.ids.IdFacts`.
        meaning: what the probe found, of pairs and of queries; empty where none was given, and the checks above cannot
            tell a right transformation from another one's.
        models: ``old`` and ``new``: whose vectors the rows were, and are; as far as that is known.
    """

    dest: Path | str
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
    meaning: tuple[Meaning, ...] = ()
    models: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        checks = self.verification
        index = f", index {self.settings.get('index')}, recall@10 {checks.recall_at_10:.3f}" if self.index else ""
        computed = f"{self.settings.get('precision')} on {self.device}, cosine >= {checks.min_cosine:.6f}"
        return f"UpgradeReport({self.dest}: {size_of_gallery(self.rows, self.shards)}, {computed}{index})"

    def _repr_html_(self) -> str:
        checks = self.verification
        known = {
            "published": f"{self.dest}: {size_of_gallery(self.rows, self.shards)}",
            "computed": f"in {self.settings.get('precision')} on {self.device}, {self.rows_per_second:,.0f} rows/s",
            "checked": f"{counted(checks.rows, 'row')}: cosine >= {checks.min_cosine:.6f}",
        }
        if checks.recall_at_10 is not None:
            known["index"] = f"{self.settings.get('index')}, recall@10 {checks.recall_at_10:.3f}"
        if checks.warning:
            known["warning"] = checks.warning
        known |= {f"probe of {found.name}": str(found) for found in self.meaning}
        return html_summary("UpgradeReport", known)

    @classmethod
    def load(cls, path: Path) -> UpgradeReport:
        """Read the report back from an ``upgrade_infos.json``."""
        return cls.of(json.loads(path.read_text()))

    @classmethod
    def of(cls, infos: dict[str, Any]) -> UpgradeReport:
        """Take the report out of what ``upgrade_infos.json`` says."""
        values = {each.name: infos[each.name] for each in fields(cls) if each.name in infos}
        values |= {"dest": place_of(infos["dest"]), "verification": Verification.from_dict(infos["verification"])}
        values["meaning"] = tuple(map(Meaning.from_dict, infos.get("meaning", ())))
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
