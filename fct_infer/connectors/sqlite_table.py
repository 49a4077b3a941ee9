"""Tables of SQLite whose vectors are blobs of float32, as sqlite-vec and others write them.

Triggers note in the writer's own transaction which rows are written while a table is upgraded; the view leaves those
out whose new vector would not be theirs.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors.arrow_arrays import text_ids
from fct_infer.connectors.engine_url import EngineUrl, parse_engine_url
from fct_infer.connectors.keyed_destination import KeyedDestination
from fct_infer.connectors.keyed_source import KeyedSource
from fct_infer.connectors.keyed_store import Field, Keys, Page, Store, Target, find_keyed_columns, make_field, page_of
from fct_infer.connectors.options import SourceOptions, optional
from fct_infer.connectors.sql_tables import BOOKS, DIGEST, SqlTarget, quoted, read_books
from fct_infer.errors import GalleryError, ResourceError, UsageError
from fct_infer.gallery.source import Rows

_WAIT_SECONDS = 60.0  # for another writer's transaction
_FLOAT = np.dtype("<f4")


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
    store = SqliteStore(url, options)
    return store, SqliteTarget(url, store)


def books_of(url: str) -> dict[str, dict[str, Any]]:
    """Return what is recorded of a table's versions; empty without."""
    parsed = parse(url)
    connection = Connection(parsed, is_read=True)
    try:
        found = connection.run("SELECT 1 FROM sqlite_master WHERE name = ?", (BOOKS,))
        return read_books(connection.run, BOOKS, parsed) if found else {}
    finally:
        connection.close()


class Connection:
    """A connection that threads share."""

    def __init__(self, url: EngineUrl, *, is_read: bool) -> None:
        assert url.path is not None
        if not url.path.is_file():
            raise GalleryError(f"{url.name}: there is no file {url.path}")
        self.url, self._lock = url, RLock()
        with self.errors():
            mode = "ro" if is_read else "rw"
            self._connection = sqlite3.connect(
                f"{url.path.absolute().as_uri()}?mode={mode}",
                uri=True,
                timeout=_WAIT_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what SQLite raises into an error that says what to do."""
        try:
            yield
        except sqlite3.OperationalError as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
                raise ResourceError(
                    f"{self.url.name}: {error}; what is committed stays, the same command goes on"
                ) from error
            raise GalleryError(f"{self.url.name}: {error}") from error
        except sqlite3.Error as error:
            raise GalleryError(f"{self.url.name}: {error}") from error

    def run(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run a statement and return its rows, all of them: an open one would hold up writers."""
        with self._lock, self.errors():
            return self._connection.execute(query, values).fetchall()

    def run_many(self, query: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a statement for each of some rows."""
        with self._lock, self.errors():
            self._connection.executemany(query, rows)

    def load_vec(self) -> None:
        """Load sqlite-vec, without which its tables cannot be read.

        Raises:
            UsageError: this Python's sqlite3 loads no extensions.
        """
        module = optional("sqlite_vec", "sqlite")
        if not hasattr(self._connection, "enable_load_extension"):
            raise UsageError(f"{self.url.name}: is a table of sqlite-vec; this Python's sqlite3 loads no extensions")
        with self.errors():
            self._connection.enable_load_extension(True)
            module.load(self._connection)
            self._connection.enable_load_extension(False)

    def close(self) -> None:
        """Close it; a second call does nothing."""
        with self._lock:
            self._connection.close()


class SqliteStore(Store):
    """A table or view of SQLite.

    Raises:
        GalleryError: there is none, or it has no vectors, or keys of several kinds.
    """

    page_rows = 8192

    def __init__(self, url: EngineUrl, options: SourceOptions) -> None:
        self.url, self._connection = url, Connection(url, is_read=True)
        found = self._connection.run("SELECT type, sql FROM sqlite_master WHERE name = ?", (url.table,))
        if not found or found[0][0] not in ("table", "view"):
            raise GalleryError(f"{url.name}: there is no table {url.table!r}")
        self.is_virtual = str(found[0][1]).upper().startswith("CREATE VIRTUAL")
        self.is_table = found[0][0] == "table" and not self.is_virtual
        if self.is_virtual:
            self._connection.load_vec()
        self._sql = quoted(url.table)
        info = self._connection.run(f"PRAGMA table_xinfo({self._sql})")
        self.names = [row[1] for row in info if row[6] in (0, 2, 3)]
        self.types = {row[1]: row[2] for row in info}
        row = self._connection.run(f"SELECT {', '.join(map(quoted, self.names))} FROM {self._sql} LIMIT 1")
        if not row:
            raise GalleryError(f"{url.name}: is empty, it holds no rows")
        vectors = [
            name for name, value in zip(self.names, row[0], strict=True) if isinstance(value, bytes) and len(value) >= 4
        ]
        primary = [entry[1] for entry in info if entry[5]]
        scalars = [name for name in self.names if name not in vectors]
        key = options.id_column or (primary[0] if len(primary) == 1 and primary[0] in scalars else None)
        self.columns = find_keyed_columns(url, vectors, scalars, replace(options, id_column=key))
        assert self.columns.id is not None
        self._key = quoted(self.columns.id)
        first = dict(zip(self.names, row[0], strict=True))
        self.fields = {
            role: make_field(name, len(first[name]) // 4, np.dtype(np.float32), url.name, options.allow_cast)
            for role, name in (("embedding", self.columns.embedding), ("side", self.columns.side))
            if name is not None
        }

    @property
    def files(self) -> dict[str, Path]:
        """The database, and its log if there is one."""
        assert self.url.path is not None
        log = Path(f"{self.url.path}-wal")
        return {"database": self.url.path} | ({"log": log} if log.exists() and log.stat().st_size else {})

    def keys(self) -> Keys:
        """See :class:`Store`."""
        kinds = self._connection.run(f"SELECT DISTINCT typeof({self._key}) FROM {self._sql}")
        kind = kinds[0][0] if len(kinds) == 1 else None
        if kinds and kind not in ("integer", "text"):
            raise GalleryError(
                f"{self.url.name}: {self.columns.id!r} holds {', '.join(each for (each,) in kinds)}; wanted integers "
                "throughout, or text"
            )
        found = [key for (key,) in self._connection.run(f"SELECT {self._key} FROM {self._sql}")]
        return np.sort(text_ids(found, "U", self.url.name, 0)) if kind == "text" else np.sort(np.array(found, np.int64))

    def page(self, keys: Keys, *, with_side: bool, with_payload: bool = False) -> Page:
        """See :class:`Store`."""
        fields = [self.fields["embedding"], *([self.fields["side"]] if with_side and "side" in self.fields else [])]
        rows = self.rows_of(keys, self._connection, self._sql, [field.name for field in fields])
        outs = [self.decoded([row[place] for row in rows], rows, field) for place, field in enumerate(fields, 1)]
        return page_of(keys, [row[0] for row in rows], outs[0], outs[1] if len(outs) > 1 else None)

    def rows_of(self, keys: Keys, connection: Any, table: str, names: Sequence[str]) -> list[tuple[Any, ...]]:
        """Return the key and some columns of some rows."""
        columns = ", ".join(map(quoted, (str(self.columns.id), *names)))
        query = f"SELECT {columns} FROM {table} WHERE {self._key} IN (SELECT value FROM json_each(?))"
        found: list[tuple[Any, ...]] = connection.run(query, (json.dumps(keys.tolist()),))
        return found

    def decoded(self, values: list[Any], rows: list[tuple[Any, ...]], field: Field) -> Rows:
        """Return blobs as an array.

        Raises:
            GalleryError: one is NULL or of another width; names its key.
        """
        for row, value in enumerate(values):
            if not isinstance(value, bytes) or len(value) != 4 * field.dim:
                what = "is NULL" if value is None else f"is {type(value).__name__}"
                if isinstance(value, bytes):
                    what = f"is {len(value) / 4:g} wide, wanted {field.dim}"
                raise GalleryError(f"{self.where(rows[row][0])}, column {field.name!r}: {what}")
        found = np.frombuffer(b"".join(values), _FLOAT).reshape(len(values), field.dim)
        return np.ascontiguousarray(found, np.float32)

    def close(self) -> None:
        """See :class:`Store`."""
        self._connection.close()


class SqliteTarget(SqlTarget):
    """See :class:`~fct_infer.connectors.keyed_store.Target`."""

    follows_writers = True
    begin = "BEGIN IMMEDIATE"  # from here on nobody else writes

    def __init__(self, url: EngineUrl, store: SqliteStore) -> None:
        if not store.is_table:
            raise UsageError(f"{url.name}: no trigger can follow what is written to it; name an ordinary table")
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
        raw = np.ascontiguousarray(new, _FLOAT)
        rows = zip(page.keys.tolist(), (row.tobytes() for row in raw), digests.tolist(), strict=True)
        self._connection.run_many(f"INSERT OR REPLACE INTO {quoted(self.side)} VALUES (?, ?, ?)", rows)

    def replace(self, keys: Keys, new: Rows) -> int:
        """See :class:`Target`; a row that was written since has no new vector, or waits to get one."""
        key, raw = quoted(self.key), np.ascontiguousarray(new, _FLOAT)
        before = self.run("SELECT total_changes()")[0][0]
        self._connection.run_many(
            f"UPDATE {quoted(self.side)} SET {quoted(self.version)} = ? WHERE {key} = ? AND length("
            f"{quoted(self.version)}) = {raw.shape[1] * 4} AND {key} NOT IN (SELECT {key} FROM {quoted(self.changes)})",
            zip((row.tobytes() for row in raw), keys.tolist(), strict=True),
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
