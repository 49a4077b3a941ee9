"""A table read by its keys, upgraded where it is: in any engine that takes vectors by key.

A new vector is right if and only if the digest beside it is that of its row. So a killed run needs no journal: rows
that have a new vector are done. What was written meanwhile is found by its digest, or by the engine's own triggers.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors.keyed_source import LiveKeys
from fct_infer.connectors.keyed_store import Keys, Page, Target, chunks
from fct_infer.errors import ArrayError, GalleryError, NonFiniteError, OutputError
from fct_infer.gallery import GalleryManifest, Part, PartWriter, Source
from fct_infer.gallery.destination import Job, Progress, check_same_upgrade
from fct_infer.gallery.sink import Receipt
from fct_infer.gallery.source import Rows

ROUNDS = 5  # of comparing all rows, where the engine does not say which were written
_FEW = 64  # changed rows that are left for the last transaction
_AT_ONCE = 4096  # changed rows that are transformed in one transaction


class KeyedWork:
    """See :class:`~fct_infer.gallery.destination.Work`.

    Args:
        target: where new vectors go.
        job: the upgrade.
        restart: drop unfinished work.
        progress: told how far it is.

    Raises:
        OutputError: unfinished work there belongs to other inputs or settings, or something else has the name.
    """

    is_published = False  # what was published is caught up with, and shown again if it is not

    def __init__(self, target: Target, job: Job, *, restart: bool, progress: Progress | None) -> None:
        assert isinstance(job.gallery, LiveKeys)
        self.target, self.job, self.source = target, job, job.gallery
        self.source.with_side = job.reads_side
        self.repeated: list[str] = []
        self.token = secrets.token_hex(8)
        self._progress, self._lock = progress, Lock()
        self._finished: dict[str, dict[str, Any]] = {}
        self._open(restart)

    def _open(self, restart: bool) -> None:
        target, name = self.target, f"{self.target.url.name}: {self.target.url.column!r}"
        target.check_free()
        book = target.book()
        if book and book["identity"] != self.job.identity():
            if book["state"] == "published":
                raise OutputError(
                    f"{name} was published from other inputs or settings; name another column, such as embedding_v3"
                )
            if not restart and book["state"] not in ("gate failed", "making"):
                check_same_upgrade(name, book["identity"], self.job)
            restart = True
        if book and (book["state"] == "making" or (restart and book["state"] != "published")):
            target.drop()
            book = None
        if book is None:
            book = self._make()
        self._book = book | {"token": self.token}
        target.write_book(self._book)
        if not self.is_ready:
            present, _ = target.inputs()
            for part in self.source.parts():
                if np.isin(self.source.keys_of(part, 0, part.rows), present, assume_unique=True).all():
                    self._finished[part.name] = {"rows": part.rows, "files": {}}

    def _make(self) -> dict[str, Any]:
        """Make the version; from the first step on it is recorded, so that what is there half made is known as ours."""
        book = {
            "identity": self.job.identity(),
            "state": "making",
            "infos": {},
            "begun": datetime.now(UTC).isoformat(timespec="microseconds"),
            "published": None,
            "options": [getattr(self.source.options, f"{role}_column") for role in ("embedding", "side", "id")],
        }
        with self.target.transaction():
            self.target.write_book(book | {"token": self.token})
            self.target.create(self.job.new_dim, self.job.dtype, self.job.index_wanted[1])
        return book | {"state": "begun"}

    @property
    def is_ready(self) -> bool:
        """Whether the vectors are verified, so that only the last changes and showing them are missing."""
        return self._book["state"] in ("ready", "published")

    @property
    def finished(self) -> Mapping[str, Mapping[str, Any]]:
        """See :class:`~fct_infer.gallery.destination.Work`."""
        return self._finished

    def open_sink(self) -> KeyedSink:
        """Return what writes parts; any number of them, one part at a time."""
        return KeyedSink(self)

    def record(self, part: Part, receipt: Receipt) -> None:
        """Its rows are the record."""
        with self._lock:
            self._finished[part.name] = {"rows": part.rows, "files": {}}

    def infos(self) -> dict[str, Any]:
        """See :class:`~fct_infer.gallery.destination.Work`."""
        return dict(self._book["infos"])

    def fence(self) -> None:
        """Raise an OutputError if another run has taken this work over."""
        book = self.target.book()
        if book is None or book["token"] != self.token:
            raise OutputError(f"{self.target.url.name}: another upgrade has taken this one over")

    def write(self, page: Page, digests: NDArray[np.int64], new: Rows) -> None:
        """Write new vectors of some rows as one, as far as the engine can."""
        with self._lock, self.target.transaction():
            self.fence()
            self.target.upsert(page, digests, new)

    # -- what was written meanwhile ------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Transform what was written since, until little or nothing is left of that."""
        for _ in range(ROUNDS):
            if self._round() <= (_FEW if self.target.follows_writers else 0):
                return

    def _round(self) -> int:
        """Compare once; return how many rows were transformed or deleted."""
        present, digests = self.target.inputs()
        keys = np.sort(self.source.store.keys())
        gone = np.setdiff1d(present, keys, assume_unique=True)
        for some in chunks(gone, _AT_ONCE):
            with self._lock, self.target.transaction():
                self.fence()
                self.target.delete(some)
        if self.target.follows_writers:
            keys = np.union1d(self.target.changed().astype(keys.dtype), np.setdiff1d(keys, present, assume_unique=True))
        done = len(gone)
        for number, some in enumerate(chunks(keys, _AT_ONCE)):
            self._report("catch up with writers" if self.target.follows_writers else "compare", number * _AT_ONCE)
            done += self._redo(some, None if self.target.follows_writers else (present, digests))
        return done

    def _redo(self, keys: Keys, known: tuple[Keys, NDArray[np.int64]] | None) -> int:
        """Transform rows again; where digests are known only those of another one."""
        if known is not None:
            page = self.source.live_page(keys)
            keys = page.keys[~_have(known, page.keys, page.digests())]
        if not len(keys):
            return 0
        with self._lock, self.target.transaction():
            self.fence()
            self._transform(keys)
        return len(keys)

    def _transform(self, keys: Keys) -> None:
        """Write the new vectors of rows as they are now, and delete those of rows that are gone; in a transaction."""
        page = self.source.live_page(keys)
        if len(page.keys):
            try:
                new = self.job.transform(page.old, page.side)
            except NonFiniteError as error:
                what = (
                    "its transformed value does not fit" if error.array == "result" else f"{error.array} is not finite"
                )
                raise GalleryError(f"{self.source.store.where(page.keys[error.row])}: {what}") from error
            self.target.upsert(page, page.digests(), new)
        if len(gone := np.setdiff1d(keys, page.keys, assume_unique=True)):
            self.target.delete(gone)
        self.target.settled(keys)

    def _report(self, stage: str, done: int) -> None:
        if self._progress:
            self._progress(stage, min(done, self.source.schema.rows), self.source.schema.rows)

    # -- the end -------------------------------------------------------------------------------------------------------

    def read_back(self, rows: int, seed: int) -> tuple[Sequence[int | str], Rows, Rows | None, Rows]:
        """Return rows with their new vectors; those that are being written are left out."""
        present, digests = self.target.inputs()
        rng = np.random.default_rng(seed)
        chosen = np.sort(rng.choice(len(present), min(rows, len(present)), replace=False))
        olds, sides, news, names = [], [], [], []
        for some in chunks(present[chosen], self.source.store.page_rows):
            page, new = self.source.live_page(some), self.target.vectors(some)
            keys, first, second = np.intersect1d(page.keys, new.keys, assume_unique=True, return_indices=True)
            same = page.digests()[first] == digests[np.searchsorted(present, keys)]
            olds.append(page.old[first[same]])
            news.append(new.old[second[same]])
            if page.side is not None:
                sides.append(page.side[first[same]])
            names += [self.source.store.where(key) for key in keys[same]]
        if not names:
            raise GalleryError(f"{self.target.url.name}: no row is left to be checked")
        return names, np.concatenate(olds), np.concatenate(sides) if sides else None, np.concatenate(news)

    def _say(self, **facts: Any) -> None:
        self._book |= facts
        self.target.write_book(self._book)

    def finish(self, infos: dict[str, Any], manifest: GalleryManifest) -> None:
        """Record that all is there but the last changes."""
        self.fence()
        self._say(state="ready", infos=infos)

    def publish(self) -> None:
        """Catch up with the last changes, and let readers see the new vectors."""
        self.settle()
        with self._lock, self.target.transaction():
            self.fence()
            while len(changed := self.target.changed()):
                self._transform(changed[:_AT_ONCE])
            assert self.target.url.column is not None
            self.target.show(self.target.url.column)
            when = self._book["published"] or datetime.now(UTC).isoformat(timespec="microseconds")
            self._say(state="published", published=when)

    def failed_gate(self) -> None:
        """See :class:`~fct_infer.gallery.destination.Work`."""
        self._say(state="gate failed")

    def discard(self) -> None:
        """Nothing: a row that cannot be upgraded is found again when it is corrected, and the rest stays."""

    def close(self) -> None:
        """Nothing: what is open is the source's."""


def _have(known: tuple[Keys, NDArray[np.int64]], keys: Keys, digests: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which of some keys are known with the same digest."""
    present, of_present = known
    places = np.searchsorted(present, keys)
    same = places < len(present)
    at = places[same]
    same[same] = (present[at] == keys[same]) & (of_present[at] == digests[same])
    return same


class KeyedSink:
    """See :class:`~fct_infer.gallery.sink.Sink`."""

    def __init__(self, work: KeyedWork) -> None:
        self._work = work

    def open_part(self, part: Part) -> PartWriter:
        """See :class:`~fct_infer.gallery.sink.Sink`."""
        return _KeyedPart(self._work, part)

    def as_source(self) -> Source:
        """Its rows are read by :meth:`KeyedWork.read_back`."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is open."""


class _KeyedPart:
    """New rows of a part, held until all of them are there."""

    def __init__(self, work: KeyedWork, part: Part) -> None:
        self._work, self._part, self._done = work, part, 0
        self._new = np.empty((part.rows, work.job.new_dim), work.job.dtype)

    def write(self, block: NDArray[Any]) -> None:
        """See :class:`~fct_infer.gallery.sink.PartWriter`."""
        stop = self._done + len(block)
        if stop > self._part.rows:
            raise ArrayError(f"part {self._part.name}: more rows than the {self._part.rows} promised")
        self._new[self._done : stop] = block
        self._done = stop

    def commit(self) -> Receipt:
        """Write them with the digests of what they were computed from; rows that were gone have none."""
        if self._done != self._part.rows:
            raise ArrayError(f"part {self._part.name}: {self._done} rows written, promised {self._part.rows}")
        taken = self._work.source.taken(self._part)
        keys = np.concatenate([each.keys for each in taken])
        if len(keys):
            places = np.concatenate([each.places for each in taken])
            payload = [row for each in taken for row in each.payload]
            page = Page(keys, self._new[places][:, :0], None, payload)
            self._work.write(page, np.concatenate([each.digests for each in taken]), self._new[places])
        return {}

    def abort(self) -> None:
        """Nothing was written."""
