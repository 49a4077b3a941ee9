"""Tables of DuckDB. One process has a database open for writing, so nobody else writes while it is upgraded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors import arrow_arrays as arrays
from fct_infer.connectors.engine_url import EngineUrl, parse_engine_url
from fct_infer.connectors.keyed_destination import KeyedDestination
from fct_infer.connectors.keyed_source import KeyedSource
from fct_infer.connectors.keyed_store import Keys, Page, Store, Target, find_keyed_columns, make_field, page_of
from fct_infer.connectors.options import SourceOptions, optional
from fct_infer.connectors.sql_tables import BOOKS, DIGEST, SqlTarget, quoted, read_books
from fct_infer.errors import FctError, GalleryError, OutputError, ResourceError
from fct_infer.gallery.source import Rows

_TEXT = ("VARCHAR", "UUID")
_INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")


def open_table(url: str, options: SourceOptions) -> KeyedSource:
    """Open a table for reading."""
    parsed = parse(url)
    database = Database(parsed, is_read=True)
    try:
        return KeyedSource(DuckStore(parsed, options, database), options)
    except BaseException:
        database.close()
        raise


def open_destination(url: str) -> KeyedDestination:
    """Return a table as a destination."""
    return KeyedDestination(parse(url), open_target)


def open_target(url: EngineUrl, options: SourceOptions) -> tuple[Store, Target]:
    """Open a table and the version that a URL names, in one database."""
    database = Database(url, is_read=False)
    try:
        store = DuckStore(url, options, database)
        return store, DuckTarget(url, store, database)
    except BaseException:
        database.close()
        raise


def parse(url: str) -> EngineUrl:
    """Take a URL apart."""
    return parse_engine_url(url, ("schema",))


def books_of(url: str) -> dict[str, dict[str, Any]]:
    """Return what is recorded of a table's versions; empty without."""
    parsed = parse(url)
    schema = parsed.more.get("schema", "main")
    database = Database(parsed, is_read=True)
    try:
        with duckdb_errors(parsed):
            cursor = database.cursor()
            query = "SELECT 1 FROM duckdb_tables() WHERE schema_name = ? AND table_name = ?"
            if not cursor.execute(query, (schema, BOOKS)).fetchone():
                return {}
            return read_books(
                lambda *asked: list(cursor.execute(*asked).fetchall()), f"{quoted(schema)}.{BOOKS}", parsed
            )
    finally:
        database.close()


@contextmanager
def duckdb_errors(url: EngineUrl) -> Iterator[None]:
    """Turn what DuckDB raises into an error that says what to do."""
    duckdb = optional("duckdb", "duckdb")
    try:
        yield
    except FctError:
        raise
    except duckdb.Error as error:
        words = str(error).splitlines()[0][:300]
        if isinstance(error, duckdb.ConnectionException) or "lock" in words.lower():
            raise OutputError(f"{url.name}: the database is open elsewhere: {words}") from error
        is_full = "No space left" in words or "Could not write" in words
        if is_full or isinstance(error, duckdb.IOException | duckdb.OutOfMemoryException | duckdb.FatalException):
            raise ResourceError(f"{url.name}: {words}; what is committed stays, the same command goes on") from error
        raise GalleryError(f"{url.name}: {words}") from error


class Database:
    """A database, open once; a cursor of its own for each thread that asks."""

    def __init__(self, url: EngineUrl, *, is_read: bool) -> None:
        assert url.path is not None
        if not url.path.is_file():
            raise GalleryError(f"{url.name}: there is no file {url.path}")
        self.url = url
        self._cursors: list[Any] = []
        with duckdb_errors(url):
            self._connection = optional("duckdb", "duckdb").connect(str(url.path), read_only=is_read)
            self._connection.execute("SET preserve_insertion_order = false; SET threads = 1")

    def cursor(self) -> Any:
        """Return a connection of its own to the database."""
        self._cursors.append(self._connection.cursor())
        return self._cursors[-1]

    def close(self) -> None:
        """Close it with all its cursors, each of which keeps it open; a second call does nothing."""
        while self._cursors:
            self._cursors.pop().close()
        self._connection.close()


class DuckStore(Store):
    """A table or view of DuckDB.

    Raises:
        GalleryError: there is none, or it has no vectors, or no key.
    """

    page_rows = 16384

    def __init__(self, url: EngineUrl, options: SourceOptions, database: Database) -> None:
        self.url, self.database = url, database
        self.schema = url.more.get("schema", "main")
        self.sql = f"{quoted(self.schema)}.{quoted(url.table)}"
        self._lock = RLock()  # a cursor is for one thread at a time
        with duckdb_errors(url):
            self._cursor = database.cursor()
            found = self._cursor.execute(
                "SELECT column_name, data_type FROM information_schema.columns "
                "WHERE table_catalog = current_database() AND table_schema = ? AND table_name = ? "
                "ORDER BY ordinal_position",
                (self.schema, url.table),
            ).fetchall()
            if not found:
                raise GalleryError(f"{url.name}: there is no table {url.table!r} in schema {self.schema!r}")
            self.kinds = dict(found)
            head = self._arrow(f"SELECT * FROM {self.sql} LIMIT 0").schema
        self._arrow_kinds = {field.name: field.type for field in head}
        vectors = [name for name, kind in self._arrow_kinds.items() if arrays.is_vector(kind)]
        keys = [name for name, kind in self.kinds.items() if kind in (*_TEXT, *_INTEGERS)]
        self.columns = find_keyed_columns(url, vectors, keys, options)
        assert self.columns.id is not None
        self._key = quoted(self.columns.id)
        self._is_text = self.kinds[self.columns.id] in _TEXT
        self._key_sql = f"{self._key}::{'VARCHAR' if self._is_text else 'BIGINT'}"
        self.fields = {}
        for role in ("embedding", "side"):
            if name := self.columns.roles.get(role):
                kind = self._arrow_kinds[name]
                dim = arrays.fixed_dim(kind) or self._first_width(name)
                stored = arrays.stored_dtype(kind)
                self.fields[role] = make_field(name, dim, stored, url.name, options.allow_cast)

    def _arrow(self, query: str, values: Sequence[Any] = ()) -> Any:
        return self._cursor.sql(query, params=list(values)).to_arrow_table()

    def _first_width(self, name: str) -> int:
        with duckdb_errors(self.url):
            found = self._cursor.execute(
                f"SELECT len({quoted(name)}) FROM {self.sql} WHERE {quoted(name)} IS NOT NULL LIMIT 1"
            ).fetchone()
        if found is None:
            raise GalleryError(f"{self.url.name}, column {name!r}: is empty, it holds no vectors")
        return int(found[0])

    @property
    def files(self) -> dict[str, Path]:
        """The database, and its log if there is one."""
        assert self.url.path is not None
        log = Path(f"{self.url.path}.wal")
        return {"database": self.url.path} | ({"log": log} if log.exists() else {})

    def facts(self) -> dict[str, Any]:
        """See :class:`Store`."""
        return {"schema": self.schema}

    def keys(self) -> Keys:
        """See :class:`Store`."""
        with self._lock, duckdb_errors(self.url):
            column = self._arrow(f"SELECT {self._key_sql} AS k FROM {self.sql}").column(0).combine_chunks()
        if column.null_count:
            raise GalleryError(f"{self.url.name}: {self.columns.id!r} is NULL in {column.null_count:,} rows")
        return np.sort(_keys_of(column, self.url))

    def page(self, keys: Keys, *, with_side: bool, with_payload: bool = False) -> Page:
        """See :class:`Store`."""
        roles = ["embedding", *(["side"] if with_side and "side" in self.fields else [])]
        names = ", ".join(quoted(self.fields[role].name) for role in roles)
        found = self.rows_of(keys, f"SELECT {self._key_sql} AS k, {names} FROM {self.sql}", self._key_sql)
        assert self.url.path is not None
        outs = []
        for place, role in enumerate(roles, 1):
            field = self.fields[role]
            column = found.column(place).combine_chunks()
            if column.null_count:
                row = column.is_null().to_pylist().index(True)
                raise GalleryError(f"{self.where(found.column(0)[row].as_py())}, column {field.name!r}: is NULL")
            values = arrays.vectors(column, field.dim, self.url.name, 0, self.url.path)
            with np.errstate(over="ignore"):
                outs.append(np.ascontiguousarray(values, field.dtype))
        found_keys = _keys_of(found.column(0).combine_chunks(), self.url)
        return page_of(keys, found_keys, outs[0], outs[1] if len(outs) > 1 else None)

    def rows_of(self, keys: Keys, select: str, key_sql: str) -> Any:
        """Return rows of some keys as a table of Arrow."""
        values = arrays.pyarrow().table({"k": keys.tolist() if self._is_text else keys})
        low, high = keys[0].item(), keys[-1].item()
        with self._lock, duckdb_errors(self.url):
            self._cursor.register("fct_keys", values)
            try:
                return self._arrow(
                    f"{select} WHERE {key_sql} BETWEEN ? AND ? AND {key_sql} IN (SELECT k FROM fct_keys)", (low, high)
                )
            finally:
                self._cursor.unregister("fct_keys")

    def close(self) -> None:
        """See :class:`Store`."""
        self.database.close()


def _keys_of(column: Any, url: EngineUrl) -> NDArray[Any]:
    if column.type in (arrays.pyarrow().string(), arrays.pyarrow().large_string()):
        return arrays.text_ids(column.to_pylist(), "U", url.name, 0)
    return np.asarray(column.to_numpy(zero_copy_only=False), np.int64)


class DuckTarget(SqlTarget):
    """See :class:`~fct_infer.connectors.keyed_store.Target`."""

    def __init__(self, url: EngineUrl, store: DuckStore, database: Database) -> None:
        super().__init__(url, store, list(store.kinds))
        self._store, self._database, self._cursor = store, database, database.cursor()

    def promises(self) -> dict[str, str]:
        """See :class:`Target`."""
        return {
            "makes": f"table {self.side!r}, view {self.view!r}",
            "readers": "see the one version or the other, whole; DuckDB lets no other process in meanwhile",
            "writers": "none: DuckDB gives the database to one process",
            "resumes": "rows and the record of them are one transaction",
        }

    def named(self, name: str) -> str:
        """See :class:`SqlTarget`."""
        return f"{quoted(self._store.schema)}.{quoted(name)}"

    def run(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """See :class:`SqlTarget`."""
        with duckdb_errors(self.url):
            return list(self._cursor.execute(query, values).fetchall())

    def kind_of(self, name: str) -> tuple[str, str] | None:
        """See :class:`SqlTarget`."""
        for kind in ("view", "table"):
            found = self.run(
                f"SELECT sql FROM duckdb_{kind}s() WHERE database_name = current_database() AND schema_name = ? "
                f"AND {kind}_name = ?",
                (self._store.schema, name),
            )
            if found:
                return kind, str(found[0][0])
        return None

    def create_side(self, dim: int, dtype: np.dtype[Any]) -> None:
        """See :class:`SqlTarget`."""
        self.run(
            f"CREATE TABLE {self.named(self.side)} ({quoted(self.key)} {self._store.kinds[self.key]} NOT NULL, "
            f"{quoted(self.version)} FLOAT[{dim}] NOT NULL, {DIGEST} BIGINT NOT NULL)"
        )

    @property
    def _key_sql(self) -> str:
        return f"{quoted(self.key)}::{'VARCHAR' if self._store.kinds[self.key] in _TEXT else 'BIGINT'}"

    def inputs(self) -> tuple[Keys, NDArray[np.int64]]:
        """See :class:`Target`."""
        with duckdb_errors(self.url):
            found = self._arrow(f"SELECT {self._key_sql} AS k, {DIGEST} FROM {self.named(self.side)}")
        keys = _keys_of(found.column(0).combine_chunks(), self.url)
        order = np.argsort(keys, kind="stable")
        return keys[order], np.asarray(found.column(1).to_numpy(), np.int64)[order]

    def _arrow(self, query: str) -> Any:
        return self._cursor.sql(query).to_arrow_table()

    def upsert(self, page: Page, digests: NDArray[np.int64], new: Rows) -> None:
        """Delete and insert, in the caller's transaction: an index to find them by would cost more than both."""
        self.delete(page.keys)
        self._with_rows(page.keys, new, digests, f"INSERT INTO {self.named(self.side)} SELECT k, v, d FROM fct_rows")

    def _with_rows(self, keys: Keys, new: Rows, digests: NDArray[np.int64], query: str) -> list[tuple[Any, ...]]:
        """Run a statement that reads ``fct_rows (k, v, d)``."""
        arrow = arrays.pyarrow()
        values = arrow.array(np.ascontiguousarray(new, np.float32).reshape(-1))
        vectors = arrow.FixedSizeListArray.from_arrays(values, new.shape[1])
        rows = arrow.table({"k": keys.tolist() if keys.dtype.kind == "U" else keys, "v": vectors, "d": digests})
        with duckdb_errors(self.url):
            self._cursor.register("fct_rows", rows)
            try:
                return list(self._cursor.execute(query).fetchall())
            finally:
                self._cursor.unregister("fct_rows")

    def replace(self, keys: Keys, new: Rows) -> int:
        """See :class:`Target`."""
        query = f"UPDATE {self.named(self.side)} SET {quoted(self.version)} = v FROM fct_rows WHERE {self._key_sql} = k"
        return int(self._with_rows(keys, new, np.zeros(len(keys), np.int64), query)[0][0])

    def delete(self, keys: Keys) -> None:
        """See :class:`Target`."""
        rows = arrays.pyarrow().table({"k": keys.tolist() if keys.dtype.kind == "U" else keys})
        with duckdb_errors(self.url):
            self._cursor.register("fct_gone", rows)
            try:
                self._cursor.execute(
                    f"DELETE FROM {self.named(self.side)} WHERE {self._key_sql} IN (SELECT k FROM fct_gone)"
                )
            finally:
                self._cursor.unregister("fct_gone")

    def vectors(self, keys: Keys) -> Page:
        """See :class:`Target`."""
        found = self._store.rows_of(
            keys, f"SELECT {self._key_sql} AS k, {quoted(self.version)} FROM {self.named(self.side)}", self._key_sql
        )
        assert self.url.path is not None
        new = arrays.vectors(found.column(1).combine_chunks(), None, self.url.name, 0, self.url.path)
        return page_of(keys, _keys_of(found.column(0).combine_chunks(), self.url), np.asarray(new), None)

    def close(self) -> None:
        """See :class:`Target`."""
        self._database.close()
