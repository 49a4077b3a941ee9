"""A table or collection read by its keys, which are held in memory: 8 bytes a row, text as wide as its longest."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors.keyed_store import Keys, Page, Store, Target, check_keys, chunks
from fct_infer.connectors.options import SourceOptions
from fct_infer.connectors.parted import check_buffer, check_range, cut
from fct_infer.errors import ArrayError, GalleryError
from fct_infer.gallery.ids import IdFacts
from fct_infer.gallery.source import Part, Rows, Schema, Source
from fct_infer.storage.closing import closed_if_refused

PART_BYTES = 32 << 20  # of a part's vectors: held in memory until they are written as one


class KeyedSource(Source):
    """See :class:`~fct_infer.gallery.source.Source`.

    Args:
        store: what is read; closed with the source, also where there is none of it.
        options: what the user said.

    Raises:
        GalleryError: there are no rows, or a key is there twice.
    """

    def __init__(self, store: Store, options: SourceOptions) -> None:
        self.store, self.options, self.path = store, options, store.url.name
        with closed_if_refused(self):
            self._read_keys()

    def _read_keys(self) -> None:
        store = self.store
        self._keys = check_keys(store.keys(), store.url, str(store.columns.id))
        embedding, side = store.fields["embedding"], store.fields.get("side")
        self._schema = Schema(
            len(self._keys),
            embedding.dim,
            embedding.dtype,
            side.dim if side else None,
            side.dtype if side else None,
            self._keys.dtype,
            store.columns.roles,
            store.columns.other,
        )
        self._parts = cut([len(self._keys)], max(1, PART_BYTES // self._schema.row_bytes))

    @property
    def schema(self) -> Schema:
        """See :class:`~fct_infer.gallery.source.Source`."""
        return self._schema

    @property
    def files(self) -> dict[str, Path]:
        """Those of the database, where it is files."""
        return self.store.files

    def parts(self) -> Sequence[Part]:
        """Ranges of the sorted keys."""
        return self._parts

    def open_part(self, part: Part) -> KeyedReader:
        """See :class:`~fct_infer.gallery.source.Source`."""
        return KeyedReader(self, part)

    def close(self) -> None:
        """See :class:`~fct_infer.gallery.source.Source`."""
        self.store.close()

    def fingerprint(self) -> dict[str, dict[str, Any]]:
        """Return that of the files, if there are any, and a digest of the keys."""
        keys = check_keys(self.store.keys(), self.store.url, str(self.store.columns.id))
        digest = sha256(keys.tobytes() if keys.dtype.kind == "i" else "\0".join(keys.tolist()).encode()).hexdigest()
        return {**super().fingerprint(), "table": self.identity() | {"rows": len(keys), "keys": digest}}

    def identity(self) -> dict[str, Any]:
        """Return what makes it the same table, read in the same way."""
        return {"place": list(self.store.url.place[::2]), "columns": self.store.columns.roles, **self.store.facts()}

    def where(self, row: int, role: str = "embedding") -> str:
        """Return the row's key: ``items.id = 42``."""
        name = None if role == "embedding" else self.schema.columns.get(role)
        return self.store.where(self._keys[row]) + (f", column {name!r}" if name and role != "id" else "")

    def column(self, role: str) -> str:
        """See :class:`~fct_infer.gallery.source.Source`."""
        name = self.schema.columns.get(role)
        return f"{self.store.url.table}.{name}" if name else str(self.path)

    def keys_of(self, part: Part, start: int, stop: int) -> Keys:
        """Return the keys of rows of a part."""
        return self._keys[part.first_row + start : part.first_row + stop]

    def read_rows(self, rows: NDArray[np.int64], with_side: bool = True) -> tuple[Rows, Rows | None]:
        """See :func:`fct_infer.gallery.rows.read_rows`; they are found by their keys."""
        old, side = self._buffers(len(rows), with_side)
        self.fill(self._keys[rows], old, side)
        return old, side

    def _buffers(self, rows: int, with_side: bool) -> tuple[Rows, Rows | None]:
        schema = self.schema
        side = np.empty((rows, schema.side_dim), schema.side_dtype) if with_side and schema.side_dim else None
        return np.empty((rows, schema.old_dim), schema.embedding_dtype), side

    def fill(self, keys: Keys, old: Rows, side: Rows | None) -> None:
        """Fill arrays with the rows of some keys.

        Raises:
            GalleryError: a row is not there any more.
        """
        done = 0
        for some in chunks(keys, self.store.page_rows):
            page = self.store.page(some, with_side=side is not None)
            if len(page.keys) != len(some):
                raise GalleryError(f"{self.store.where(np.setdiff1d(some, page.keys)[0])}: was deleted meanwhile")
            old[done : done + len(some)] = page.old
            if side is not None:
                side[done : done + len(some)] = page.side
            done += len(some)


@dataclass(frozen=True)
class Taken:
    """Rows of a part as they were read: keys, places in the part, digests, and what they carry besides."""

    keys: Keys
    places: NDArray[np.int64]
    digests: NDArray[np.int64]
    payload: Sequence[Mapping[str, Any]]


class LiveKeys(KeyedSource):
    """A table that is upgraded where it is and lives on meanwhile.

    What is read of a part is remembered until its new vectors are written, :meth:`taken`: with a row's new vector goes
    the digest of the very row that it was computed from.

    Args:
        store: what is read.
        target: the new version of its vectors; closed with the source.
        options: what the user said.
    """

    def __init__(self, store: Store, target: Target, options: SourceOptions) -> None:
        self.target, self.with_payload, self.with_side = target, target.carries_payload, True
        super().__init__(store, options)
        self._read: dict[str, deque[Taken]] = {}

    def fingerprint(self) -> dict[str, dict[str, Any]]:
        """Return what makes it the same table; what its rows are is followed, not compared."""
        return {"table": self.identity()}

    @cached_property
    def id_facts(self) -> IdFacts:
        """What a key promises."""
        return IdFacts("text" if self.schema.id_dtype is not None and self.schema.id_dtype.kind == "U" else "labels")

    def close(self) -> None:
        """Let go of both."""
        self.target.close()
        super().close()

    def open_part(self, part: Part) -> KeyedReader:
        """Begin a part: what was remembered of it is forgotten."""
        self._read[part.name] = deque()
        return KeyedReader(self, part, self._read[part.name])

    def taken(self, part: Part) -> list[Taken]:
        """Return the rows of a part that were there, as they were read."""
        return list(self._read.pop(part.name))

    def live_page(self, keys: Keys) -> Page:
        """Return rows as they are now, with all that their digest is of."""
        return self.store.page(
            keys, with_side=self.with_side and "side" in self.store.fields, with_payload=self.with_payload
        )


class KeyedReader:
    """Rows of one part, by their keys; those that are gone from a live table are zero."""

    def __init__(self, source: KeyedSource, part: Part, read: deque[Taken] | None = None) -> None:
        self._source, self._part, self._read = source, part, read

    def read_into(self, start: int, stop: int, old: Rows, side: Rows | None) -> None:
        """See :class:`~fct_infer.gallery.source.PartReader`."""
        schema = self._source.schema
        check_range(start, stop, self._part.rows)
        check_buffer("old", old, stop - start, schema.old_dim, schema.embedding_dtype)
        if side is not None:
            if schema.side_dim is None or schema.side_dtype is None:
                raise ArrayError("side is given, but the source has no side-information")
            check_buffer("side", side, stop - start, schema.side_dim, schema.side_dtype)
        keys = self._source.keys_of(self._part, start, stop)
        if self._read is None or not isinstance(self._source, LiveKeys):
            self._source.fill(keys, old, side)
            return
        old[:] = 0
        if side is not None:
            side[:] = 0
        done = 0
        for some in chunks(keys, self._source.store.page_rows):
            page = self._source.live_page(some)
            places = done + np.searchsorted(some, page.keys)
            old[places] = page.old
            if side is not None:
                side[places] = page.side
            self._read.append(Taken(page.keys, places + start, page.digests(), page.payload))
            done += len(some)

    def read_ids(self, start: int, stop: int) -> Rows:
        """See :class:`~fct_infer.gallery.source.PartReader`."""
        check_range(start, stop, self._part.rows)
        return self._source.keys_of(self._part, start, stop).copy()

    def move_to(self, part: Part) -> bool:
        """See :class:`~fct_infer.gallery.source.PartReader`."""
        if self._read is not None and part != self._part:
            return False
        self._part = part
        return True

    def __enter__(self) -> KeyedReader:
        return self

    def __exit__(self, *_: object) -> None:
        pass
