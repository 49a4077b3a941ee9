"""Re-embedding a gallery while it serves: in an order, at a rate, resumable, until it is worth no more."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors.table_versions import TakesRows
from fct_infer.errors import ArrayError, UsageError
from fct_infer.gallery.sampling import sample_rows
from fct_infer.gallery.source import Source
from fct_infer.serving.embedders import Embed, embedded
from fct_infer.serving.forecast import MIN_PROBE, BackfillForecast, forecast_backfill
from fct_infer.serving.loading import all_ids
from fct_infer.serving.mixed_gallery import MixedGallery
from fct_infer.serving.parts import PartFolder, read_backfilled, read_parts
from fct_infer.serving.rows import Ids, find
from fct_infer.transformation import Float32Array, Transformation

Reason: TypeAlias = Literal["all rows", "share reached", "gain too small"]
Progress: TypeAlias = Callable[[str, int, int], None]
_SEED = 0


@dataclass(frozen=True)
class Settings:
    """How a backfill goes.

    Attributes:
        model: version of the new model, written beside every row.
        metric: of the new space.
        batch_rows: ids handed to the embedder at once.
        part_rows: rows written, journalled and, after a crash, repeated as one.
        rate: rows a second at most; None for no limit.
        until: share of the rows, 0 to 1, to stop at.
        stop_gain: stop when another 10 % of the rows would raise the overlap by less, 0 to 1, however far it goes on.
        probe_rows: random rows that are re-embedded first, on which the gain is measured; 0 measures nothing.
    """

    model: str = "new"
    metric: str = "l2"
    batch_rows: int = 256
    part_rows: int = 4096
    rate: float | None = None
    until: float = 1.0
    stop_gain: float | None = None
    probe_rows: int = 1000

    def __post_init__(self) -> None:
        if self.batch_rows < 1 or self.part_rows < 1 or (self.rate is not None and not self.rate > 0):
            raise UsageError("batch_rows and part_rows are at least 1, and a rate is above 0")
        if not 0 <= self.until <= 1:
            raise UsageError(f"until is {self.until}, wanted a share from 0 to 1")
        if self.probe_rows and self.probe_rows < MIN_PROBE:
            raise UsageError(f"probe_rows is {self.probe_rows}, wanted 0 or at least {MIN_PROBE}")
        if self.stop_gain is not None and not self.probe_rows:
            raise UsageError("stop_gain wants probe_rows, on which the gain is measured")


@dataclass(frozen=True)
class BackfillReport:
    """What a call of :meth:`Backfiller.run` did and what there is now.

    Attributes:
        rows: of the gallery.
        new: re-embedded in all.
        left_out: asked for, but the embedder had nothing; they stay as they are.
        embedded: re-embedded in this call.
        seconds: this call took.
        reached: how far down the order all rows are re-embedded, 0 to 1: where the forecast stands. Rows of the probe
            that lie further down count in ``share`` alone.
        reason: why it ended.
        forecast: quality over the share re-embedded; None without a probe.
    """

    rows: int
    new: int
    left_out: int
    embedded: int
    seconds: float
    reached: float
    reason: Reason
    forecast: BackfillForecast | None

    @property
    def share(self) -> float:
        """Of the rows that were asked for, 0 to 1."""
        return (self.new + self.left_out) / self.rows

    def as_dict(self) -> dict[str, Any]:
        """Return everything as strict JSON."""
        names = ("rows", "new", "left_out", "share", "reached", "embedded", "seconds", "reason")
        document: dict[str, Any] = {name: getattr(self, name) for name in names}
        if self.forecast is not None:
            gain, error = self.forecast.gain(self.reached)
            document["overlap"] = self.forecast.at(self.reached)
            document["next_gain"], document["next_gain_error"] = gain, error
            document["curve"] = self.forecast.as_dict()
        return document


class Backfiller:
    """Re-embeds the rows of a gallery, the probe first and then in an order, into a folder that grows by durable parts.

    Run it again with the same arguments after a stop or a crash, and it goes on; at most one part is repeated.

    Args:
        source: the gallery as it is: rows in the new space, or of the old model.
        folder: where new rows go, see :mod:`fct_infer.serving.parts`.
        embed: ids (n,) -> rows (n, dim) by the new model; called by one thread.
        order: (n,) every row number once, in the order in which they are re-embedded.
        h: what brings ``source`` to the new space; None if it is there.
        gallery: what serves meanwhile, or a published version in a database: every part goes there as well, unless the
            row was changed or deleted since.
        settings: see :class:`Settings`.

    Raises:
        ArrayError: ``order`` has not every row number once.
        GalleryError, UnsupportedError: the source cannot be read, or its ids not be told apart.
    """

    def __init__(
        self,
        source: Source,
        folder: str | Path,
        embed: Embed,
        order: NDArray[np.int64],
        *,
        h: Transformation | None = None,
        gallery: MixedGallery | TakesRows | None = None,
        settings: Settings | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self._source, self._folder, self._embed, self._h, self._gallery = source, Path(folder), embed, h, gallery
        self.rows = source.schema.rows
        self.dim = source.schema.old_dim if h is None else h.new_dim
        if order.shape != (self.rows,) or not np.array_equal(np.sort(order), np.arange(self.rows)):
            raise ArrayError(f"order is {order.dtype} {order.shape}, wanted each of the {self.rows} row numbers once")
        self._ids = all_ids(source)
        self._probe = sample_rows(self.rows, self.settings.probe_rows, _SEED)
        if self.settings.probe_rows and len(self._probe) < MIN_PROBE:
            raise UsageError(f"the gallery has {self.rows} rows; a probe wants {MIN_PROBE}, so set probe_rows to 0")
        is_probe = np.zeros(self.rows, bool)
        is_probe[self._probe] = True
        self._sequence = np.concatenate([self._probe, order[~is_probe[order]]])
        self._turns = np.empty(self.rows)  # share of the gallery that comes before each row, were there no probe
        self._turns[order] = np.arange(self.rows) / self.rows

    def run(self, progress: Progress | None = None, *, restart: bool = False) -> BackfillReport:
        """Go on until the end that the settings name.

        Args:
            progress: called as ``progress("re-embed", rows_done, rows)``.
            restart: throw away what the folder holds and begin again.

        Raises:
            StoppedError: the embedder failed; what is done is kept and the same call goes on.
            ArrayError: the embedder gave something else than rows.
            OutputError: the folder is in use, or another backfill was begun there.
            ResourceError: disk full or another I/O error; what is done is kept.
        """
        begun = time.monotonic()
        with PartFolder(self._folder, self._plan(), restart=restart) as parts:
            before = sum(part["rows"] for part in parts.parts)
            if self._gallery is not None:
                for part in read_parts(self._folder):
                    self._write(part["ids"], part["embeddings"], part.get("marks"))
            pace = _Pace(self.settings.rate)
            forecast: BackfillForecast | None = None
            while True:
                asked = sum(part["asked"] for part in parts.parts)
                if progress:
                    progress("re-embed", asked, self.rows)
                if forecast is None and len(self._probe) and asked >= len(self._probe):
                    forecast = self._forecast()
                reason = self._end(asked, forecast)
                if reason is not None:
                    break
                self._part(parts, asked, pace)
            new = sum(part["rows"] for part in parts.parts)
        seconds = time.monotonic() - begun
        reached = self._reached(asked)
        return BackfillReport(self.rows, new, asked - new, new - before, seconds, reached, reason, forecast)

    def _reached(self, asked: int) -> float:
        """Return the share of the order before the next row."""
        return float(self._turns[self._sequence[asked]]) if asked < self.rows else 1.0

    def _plan(self) -> dict[str, Any]:
        digest = hashlib.sha256(self._ids[self._sequence].tobytes())
        plan = {"model": self.settings.model, "metric": self.settings.metric, "dim": self.dim, "rows": self.rows}
        return plan | {"probe": len(self._probe), "order": digest.hexdigest()}

    def _end(self, asked: int, forecast: BackfillForecast | None) -> Reason | None:
        if asked >= self.rows:
            return "all rows"
        if asked < len(self._probe):
            return None
        if asked >= self.settings.until * self.rows:
            return "share reached"
        wanted = self.settings.stop_gain
        if forecast is not None and wanted is not None and not forecast.best_gain(self._reached(asked)) >= wanted:
            return "gain too small"
        return None

    def _part(self, parts: PartFolder, asked: int, pace: _Pace) -> None:
        """Re-embed the next rows, up to the end of the probe, of a part or of what is wanted."""
        end = min(asked + self.settings.part_rows, self.rows)
        if asked < len(self._probe):
            end = min(end, len(self._probe))
        else:
            end = min(end, max(asked + 1, int(np.ceil(self.settings.until * self.rows))))
        marks = self._marks(self._ids[self._sequence[asked:end]])
        ids, rows, is_embedded = [], [], []
        for start in range(asked, end, self.settings.batch_rows):
            batch = self._ids[self._sequence[start : min(start + self.settings.batch_rows, end)]]
            pace.wait(len(batch))
            found, is_there = embedded(self._embed, batch, self.dim)
            ids.append(batch[is_there])
            rows.append(found)
            is_embedded.append(is_there)
        all_of, vectors = np.concatenate(ids), np.concatenate(rows)
        marks = None if marks is None else marks[np.concatenate(is_embedded)]
        parts.append(all_of, vectors, end - asked, marks)
        self._write(all_of, vectors, marks)

    def _marks(self, ids: Ids) -> NDArray[np.int64] | None:
        """Return what tells, once they are embedded, whether rows in a database are still the same."""
        return self._gallery.marks(ids) if isinstance(self._gallery, TakesRows) else None

    def _write(self, ids: Ids, rows: Float32Array, marks: NDArray[np.int64] | None) -> None:
        if isinstance(self._gallery, TakesRows):
            self._gallery.upsert(ids, rows, marks=marks)
        elif self._gallery is not None:
            self._gallery.upsert(ids, rows, replacing="old")

    def _forecast(self) -> BackfillForecast | None:
        """Measure on what was embedded of the probe; None if that is too little."""
        new, done = self._probe_rows()
        if len(done) < MIN_PROBE:
            return None
        old, side = self._source.read_rows(done, with_side=self._h is not None)
        transformed = old.astype(np.float32) if self._h is None else self._h(old, side if self._h.side_dim else None)
        # Its turns are those of the order: the probe itself was drawn by chance.
        return forecast_backfill(transformed, new, self._turns[done], self.settings.metric)

    def _probe_rows(self) -> tuple[Float32Array, NDArray[np.int64]]:
        """Return the new rows of the probe and their numbers, sorted."""
        by_id = self._probe[np.argsort(self._ids[self._probe], kind="stable")]
        known = self._ids[by_id]
        found = np.empty((len(by_id), self.dim), np.float32)
        is_there = np.zeros(len(by_id), bool)
        for ids, rows in read_backfilled(self._folder):
            places = find(ids, known)
            found[places[places >= 0]], is_there[places[places >= 0]] = rows[places >= 0], True
            if is_there.all():
                break
        numbers = by_id[is_there]
        order = np.argsort(numbers)
        return found[is_there][order], numbers[order]


class _Pace:
    """Waits so that no more rows a second are asked for than allowed, counted from the beginning."""

    def __init__(self, rate: float | None) -> None:
        self._rate, self._begun, self._rows = rate, time.monotonic(), 0

    def wait(self, rows: int) -> None:
        """Wait until these many more may be asked for."""
        if self._rate is not None:
            due = self._begun + self._rows / self._rate
            time.sleep(max(0.0, due - time.monotonic()))
            self._rows += rows
