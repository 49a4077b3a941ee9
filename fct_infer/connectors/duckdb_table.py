"""Tables of DuckDB. One process has a database open for writing, so nobody else writes while it is upgraded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors import arrow_arrays as arrays
from fct_infer.connectors.duckdb_store import TEXT, Database, DuckStore, duckdb_errors, keys_of
from fct_infer.connectors.engine_url import EngineUrl, parse_engine_url
from fct_infer.connectors.keyed_destination import KeyedDestination
from fct_infer.connectors.keyed_source import KeyedSource
from fct_infer.connectors.keyed_store import Keys, Page, Store, Target, page_of, with_target
from fct_infer.connectors.options import SourceOptions
from fct_infer.connectors.sql_tables import BOOKS, DIGEST, SqlTarget, quoted, read_books
from fct_infer.gallery.source import Rows


def open_table(url: str, options: SourceOptions) -> KeyedSource:
    """Open a table for reading."""
    parsed = parse(url)
    return KeyedSource(DuckStore(parsed, options, Database(parsed, is_read=True)), options)


def open_destination(url: str) -> KeyedDestination:
    """Return a table as a destination."""
    return KeyedDestination(parse(url), open_target)


def open_target(url: EngineUrl, options: SourceOptions) -> tuple[Store, Target]:
    """Open a table and the version that a URL names, in one database."""
    return with_target(DuckStore(url, options, Database(url, is_read=False)), DuckTarget)


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
            if not cursor.execute(query, (schema, BOOKS)).fetchall():
                return {}
            return read_books(
                lambda *asked: list(cursor.execute(*asked).fetchall()), f"{quoted(schema)}.{BOOKS}", parsed
            )
    finally:
        database.close()


class DuckTarget(SqlTarget):
    """See :class:`~fct_infer.connectors.keyed_store.Target`."""

    def __init__(self, url: EngineUrl, store: DuckStore) -> None:
        super().__init__(url, store, list(store.kinds))
        self._store, self._cursor = store, store.database.cursor()

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
        return f"{quoted(self.key)}::{'VARCHAR' if self._store.kinds[self.key] in TEXT else 'BIGINT'}"

    def inputs(self) -> tuple[Keys, NDArray[np.int64]]:
        """See :class:`Target`."""
        with duckdb_errors(self.url):
            found = self._arrow(f"SELECT {self._key_sql} AS k, {DIGEST} FROM {self.named(self.side)}")
        keys = keys_of(found.column(0).combine_chunks(), self.url)
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

    def marks(self, keys: Keys) -> NDArray[np.int64]:
        """See :class:`Target`."""
        select = f"SELECT {self._key_sql} AS k, {DIGEST} FROM {self.named(self.side)}"
        found = self._store.rows_of(keys, select, self._key_sql)
        known = dict(zip(found.column(0).to_pylist(), found.column(1).to_pylist(), strict=True))
        return np.array([known.get(key, 0) for key in keys.tolist()], np.int64)

    def replace(self, keys: Keys, new: Rows, marks: NDArray[np.int64] | None = None) -> int:
        """See :class:`Target`."""
        query = f"UPDATE {self.named(self.side)} SET {quoted(self.version)} = v FROM fct_rows WHERE {self._key_sql} = k"
        if marks is None:
            return int(self._with_rows(keys, new, np.zeros(len(keys), np.int64), query)[0][0])
        return int(self._with_rows(keys, new, marks, f"{query} AND {DIGEST} = d")[0][0])

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
        return page_of(keys, keys_of(found.column(0).combine_chunks(), self.url), np.asarray(new), None)

    def close(self) -> None:
        """See :class:`Target`."""
        self._store.close()
