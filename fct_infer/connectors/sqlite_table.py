"""Tables of SQLite whose vectors are blobs of float32, as sqlite-vec and others write them.

Triggers note in the writer's own transaction which rows are written while a table is upgraded; the view leaves those
out whose new vector would not be theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors.arrow_arrays import text_ids
from fct_infer.connectors.engine_url import EngineUrl, parse_engine_url
from fct_infer.connectors.keyed_destination import KeyedDestination
from fct_infer.connectors.keyed_source import KeyedSource
from fct_infer.connectors.keyed_store import Field, Keys, Page, Store, Target, page_of, with_target
from fct_infer.connectors.options import SourceOptions
from fct_infer.connectors.sql_tables import BOOKS, DIGEST, SqlTarget, quoted, read_books
from fct_infer.connectors.sqlite_store import FLOAT, Connection, SqliteStore
from fct_infer.errors import GalleryError, UsageError
from fct_infer.gallery.source import Rows


def parse(url: str) -> EngineUrl:
    """Take a URL apart."""
    return parse_engine_url(url)


def open_table(url: str, options: SourceOptions) -> KeyedSource:
    """Open a table for reading."""
    return KeyedSource(SqliteStore(parse(url), options), options)


def open_destination(url: str) -> KeyedDestination:
    """Return a table as a destination."""
    return KeyedDestination(parse(url), open_target)


def open_target(url: EngineUrl, options: SourceOptions) -> tuple[Store, Target]:
    """Open a table, and the version that a URL names over a connection of its own."""
    return with_target(SqliteStore(url, options), SqliteTarget)


def books_of(url: str) -> dict[str, dict[str, Any]]:
    """Return what is recorded of a table's versions; empty without."""
    parsed = parse(url)
    connection = Connection(parsed, is_read=True)
    try:
        found = connection.run("SELECT 1 FROM sqlite_master WHERE name = ?", (BOOKS,))
        return read_books(connection.run, BOOKS, parsed) if found else {}
    finally:
        connection.close()


class SqliteTarget(SqlTarget):
    """See :class:`~fct_infer.connectors.keyed_store.Target`."""

    follows_writers = True
    begin = "BEGIN IMMEDIATE"  # from here on nobody else writes

    def __init__(self, url: EngineUrl, store: SqliteStore) -> None:
        if not store.is_table:
            raise UsageError(
                f"{url.name}: no trigger can follow what is written to a virtual table or a view; upgrade it into a "
                "folder (-o DEST), or copy the vectors into an ordinary table, upgrade that, and insert from its view"
            )
        super().__init__(url, store, store.names)
        self._store, self._connection = store, Connection(url, is_read=False)
        self.run("PRAGMA cache_spill = OFF")  # what is not committed must not lock out our own readers

    def promises(self) -> dict[str, str]:
        """See :class:`Target`."""
        return {
            "makes": f"tables {self.side!r} and {self.changes!r}, three triggers, view {self.view!r}",
            "readers": "see the one version or the other, whole, from one transaction to the next",
            "writers": "are followed by triggers, and held up while a part is written; their busy timeout allows that",
            "resumes": "rows and the record of them are one transaction",
        }

    @property
    def changes(self) -> str:
        """The table of keys that were written."""
        return f"{self.side}_changes"

    def check_free(self) -> None:
        """See :class:`Target`."""
        super().check_free()
        if self.book() is None and self.kind_of(self.changes) is not None:
            raise GalleryError(f"{self.url.name}: {self.changes!r} exists and was not made by an upgrade of this table")

    def run(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """See :class:`SqlTarget`."""
        return self._connection.run(query, values)

    def kind_of(self, name: str) -> tuple[str, str] | None:
        """See :class:`SqlTarget`."""
        found = self.run("SELECT type, sql FROM sqlite_master WHERE name = ? COLLATE NOCASE", (name,))
        return (str(found[0][0]), str(found[0][1])) if found else None

    def create_side(self, dim: int, dtype: np.dtype[Any]) -> None:
        """Make the tables, and the triggers that note a row's key and delete its new vector when it is written."""
        key, kind = quoted(self.key), self._store.types[self.key]
        self.run(
            f"CREATE TABLE {quoted(self.side)} ({key} {_affinity(kind)} PRIMARY KEY NOT NULL, "
            f"{quoted(self.version)} BLOB NOT NULL, {DIGEST} INTEGER NOT NULL)"
        )
        self.run(f"CREATE TABLE {quoted(self.changes)} ({key} {_affinity(kind)} PRIMARY KEY NOT NULL)")
        inputs = dict.fromkeys(
            [self.key, self.embedding, *([self._store.columns.side] if self._store.columns.side else [])]
        )
        differs = " OR ".join(f"OLD.{quoted(name)} IS NOT NEW.{quoted(name)}" for name in inputs)
        for number, (event, when, rows) in enumerate(
            (
                ("INSERT", "", ("NEW",)),
                ("DELETE", "", ("OLD",)),
                (f"UPDATE OF {', '.join(map(quoted, inputs))}", f" WHEN {differs}", ("OLD", "NEW")),
            )
        ):
            body = "".join(
                f"DELETE FROM {quoted(self.side)} WHERE {key} = {row}.{key}; "
                f"INSERT OR IGNORE INTO {quoted(self.changes)} VALUES ({row}.{key}); "
                for row in rows
            )
            self.run(
                f"CREATE TRIGGER {quoted(f'{self.side}_changed_{number}')} AFTER {event} ON {quoted(self.url.table)} "
                f"FOR EACH ROW{when} BEGIN {body}END"
            )

    def drop_side(self) -> None:
        """See :class:`SqlTarget`."""
        for number in range(3):
            self.run(f"DROP TRIGGER IF EXISTS {quoted(f'{self.side}_changed_{number}')}")
        self.run(f"DROP TABLE IF EXISTS {quoted(self.changes)}")
        super().drop_side()

    def shown_where(self, version: str) -> str:
        """Leave rows out that were written since; their new vector may be of what they were before."""
        changes = quoted(f"{self.url.table}_{version}_changes")
        return f" WHERE NOT EXISTS (SELECT 1 FROM {changes} AS c WHERE c.{quoted(self.key)} = i.{quoted(self.key)})"

    def inputs(self) -> tuple[Keys, NDArray[np.int64]]:
        """See :class:`Target`."""
        rows = self.run(f"SELECT {quoted(self.key)}, {DIGEST} FROM {quoted(self.side)}")
        keys = self._as_keys([key for key, _ in rows])
        order = np.argsort(keys, kind="stable")
        return keys[order], np.array([digest for _, digest in rows], np.int64)[order]

    def _as_keys(self, found: list[Any]) -> Keys:
        return (
            text_ids(found, "U", self.url.name, 0) if found and isinstance(found[0], str) else np.array(found, np.int64)
        )

    def waiting(self, version: str) -> int:
        """See :class:`Target`."""
        return int(self.run(f"SELECT count(*) FROM {quoted(f'{self.url.table}_{version}_changes')}")[0][0])

    def changed(self) -> Keys:
        """See :class:`Target`."""
        return np.sort(self._as_keys([key for (key,) in self.run(f"SELECT * FROM {quoted(self.changes)}")]))

    def upsert(self, page: Page, digests: NDArray[np.int64], new: Rows) -> None:
        """See :class:`Target`."""
        raw = np.ascontiguousarray(new, FLOAT)
        rows = zip(page.keys.tolist(), (row.tobytes() for row in raw), digests.tolist(), strict=True)
        self._connection.run_many(f"INSERT OR REPLACE INTO {quoted(self.side)} VALUES (?, ?, ?)", rows)

    def marks(self, keys: Keys) -> NDArray[np.int64]:
        """See :class:`Target`."""
        rows = dict(self._store.rows_of(keys, self._connection, quoted(self.side), [DIGEST]))
        return np.array([rows.get(key, 0) for key in keys.tolist()], np.int64)

    def replace(self, keys: Keys, new: Rows, marks: NDArray[np.int64] | None = None) -> int:
        """See :class:`Target`; a row that was written since has no new vector, or waits to get one."""
        key, raw = quoted(self.key), np.ascontiguousarray(new, FLOAT)
        before = self.run("SELECT total_changes()")[0][0]
        self._connection.run_many(
            f"UPDATE {quoted(self.side)} SET {quoted(self.version)} = ? WHERE {key} = ? AND length("
            f"{quoted(self.version)}) = {raw.shape[1] * 4} AND {key} NOT IN (SELECT {key} FROM {quoted(self.changes)}) "
            f"AND {DIGEST} = coalesce(?, {DIGEST})",
            zip(
                (row.tobytes() for row in raw),
                keys.tolist(),
                [None] * len(keys) if marks is None else marks.tolist(),
                strict=True,
            ),
        )
        return int(self.run("SELECT total_changes()")[0][0] - before)

    def settled(self, keys: Keys) -> None:
        """Forget that some rows were written: their new vectors are theirs again."""
        self._connection.run_many(
            f"DELETE FROM {quoted(self.changes)} WHERE {quoted(self.key)} = ?", ((key,) for key in keys.tolist())
        )

    def delete(self, keys: Keys) -> None:
        """See :class:`Target`."""
        self._connection.run_many(
            f"DELETE FROM {quoted(self.side)} WHERE {quoted(self.key)} = ?", ((key,) for key in keys.tolist())
        )

    def vectors(self, keys: Keys) -> Page:
        """See :class:`Target`."""
        rows = self._store.rows_of(keys, self._connection, quoted(self.side), [self.version])
        width = len(rows[0][1]) // 4 if rows else 0
        field = Field(self.version, width, np.dtype(np.float32), np.dtype(np.float32))
        return page_of(keys, [row[0] for row in rows], self._store.decoded([row[1] for row in rows], rows, field), None)

    def close(self) -> None:
        """See :class:`Target`."""
        self._connection.close()


def _affinity(kind: str) -> str:
    """Return a type for a key whose values keep their kind; an INTEGER PRIMARY KEY is the row's own number."""
    return (
        "INTEGER" if "INT" in kind.upper() else "TEXT" if "CHAR" in kind.upper() or "TEXT" in kind.upper() else "BLOB"
    )
