"""A table of DuckDB as it is read, and its database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors import arrow_arrays as arrays
from fct_infer.connectors.engine_url import EngineUrl
from fct_infer.connectors.keyed_store import Keys, Page, Store, find_keyed_columns, make_field, page_of
from fct_infer.connectors.options import SourceOptions, optional
from fct_infer.connectors.sql_tables import quoted
from fct_infer.errors import FctError, GalleryError, OutputError, ResourceError
from fct_infer.storage.closing import closed_if_refused

TEXT = ("VARCHAR", "UUID")
_INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")


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
    """A database, open once, with cursors of its own.

    A process has a file open for reading or for writing, not for both: who reads lets go of it when somebody here
    wants to write, and opens it again for the next rows, in whichever way it is open then.
    """

    def __init__(self, url: EngineUrl, *, is_read: bool) -> None:
        assert url.path is not None
        if not url.path.is_file():
            raise GalleryError(f"{url.name}: there is no file {url.path}")
        self.url, self.lock = url, RLock()  # a cursor is for one thread at a time
        self._connection: Any = None
        self._reader: Any = None
        self._cursors: list[Any] = []
        self._is_read, self._is_closed = is_read, False
        if is_read:
            _READERS.add(self)
        else:
            for other in list(_READERS):
                if other.url.place[1] == url.place[1]:
                    other.let_go()
        self._open()

    def _open(self) -> None:
        duckdb = optional("duckdb", "duckdb")
        with duckdb_errors(self.url):
            try:
                self._connection = duckdb.connect(str(self.url.path), read_only=self._is_read)
            except duckdb.ConnectionException:
                if not self._is_read:
                    raise
                self._connection = duckdb.connect(str(self.url.path))  # this process has it open for writing
            self._connection.execute("SET preserve_insertion_order = false; SET threads = 1")

    def cursor(self) -> Any:
        """Return a connection of its own to the database."""
        self._cursors.append(self._connection.cursor())
        return self._cursors[-1]

    def reader(self) -> Any:
        """Return the cursor that reads, to be used under :attr:`lock` and not kept."""
        if self._is_closed:
            raise GalleryError(f"{self.url.name}: was closed")
        if self._connection is None:
            self._open()
        if self._reader is None:
            self._reader = self.cursor()
        return self._reader

    def let_go(self) -> None:
        """Close it until the next :meth:`reader`, once nobody reads."""
        with self.lock:
            while self._cursors:
                self._cursors.pop().close()
            if self._connection is not None:
                self._connection.close()
                self._connection, self._reader = None, None

    def close(self) -> None:
        """Close it with all its cursors, each of which keeps it open; a second call does nothing."""
        self.let_go()
        self._is_closed = True


_READERS: WeakSet[Database] = WeakSet()


class DuckStore(Store):
    """A table or view of DuckDB; its database is closed with it.

    Raises:
        GalleryError: there is none, or it has no vectors, or no key.
    """

    page_rows = 16384

    def __init__(self, url: EngineUrl, options: SourceOptions, database: Database) -> None:
        self.url, self.database = url, database
        with closed_if_refused(self):
            self._open(options)

    def _open(self, options: SourceOptions) -> None:
        url, database = self.url, self.database
        self.schema = url.more.get("schema", "main")
        self.sql = f"{quoted(self.schema)}.{quoted(url.table)}"
        with duckdb_errors(url):
            found = (
                database.reader()
                .execute(
                    "SELECT column_name, data_type FROM information_schema.columns "
                    "WHERE table_catalog = current_database() AND table_schema = ? AND table_name = ? "
                    "ORDER BY ordinal_position",
                    (self.schema, url.table),
                )
                .fetchall()
            )
            if not found:
                raise GalleryError(f"{url.name}: there is no table {url.table!r} in schema {self.schema!r}")
            self.kinds = dict(found)
            head = self._arrow(f"SELECT * FROM {self.sql} LIMIT 0").schema
        self._arrow_kinds = {field.name: field.type for field in head}
        vectors = [name for name, kind in self._arrow_kinds.items() if arrays.is_vector(kind)]
        keys = [name for name, kind in self.kinds.items() if kind in (*TEXT, *_INTEGERS)]
        self.columns = find_keyed_columns(url, vectors, keys, options)
        assert self.columns.id is not None
        self._key = quoted(self.columns.id)
        self._is_text = self.kinds[self.columns.id] in TEXT
        self._key_sql = f"{self._key}::{'VARCHAR' if self._is_text else 'BIGINT'}"
        self.fields = {}
        for role in ("embedding", "side"):
            if name := self.columns.roles.get(role):
                kind = self._arrow_kinds[name]
                dim = arrays.fixed_dim(kind) or self._first_width(name)
                stored = arrays.stored_dtype(kind)
                self.fields[role] = make_field(name, dim, stored, url.name, options.allow_cast)

    def _arrow(self, query: str, values: Sequence[Any] = ()) -> Any:
        return self.database.reader().sql(query, params=list(values)).to_arrow_table()

    def _first_width(self, name: str) -> int:
        with duckdb_errors(self.url):
            found = (
                self.database.reader()
                .execute(f"SELECT len({quoted(name)}) FROM {self.sql} WHERE {quoted(name)} IS NOT NULL LIMIT 1")
                .fetchall()  # fetchone would leave the result open, and the next query refused
            )
        if not found:
            raise GalleryError(f"{self.url.name}, column {name!r}: is empty, it holds no vectors")
        return int(found[0][0])

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
        with self.database.lock, duckdb_errors(self.url):
            column = self._arrow(f"SELECT {self._key_sql} AS k FROM {self.sql}").column(0).combine_chunks()
        if column.null_count:
            raise GalleryError(f"{self.url.name}: {self.columns.id!r} is NULL in {column.null_count:,} rows")
        return np.sort(keys_of(column, self.url))

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
            words = partial(self._words, found.column(0), field.name)
            if column.null_count:
                raise GalleryError(f"{words(column.is_null().to_pylist().index(True))}: is NULL")
            values = arrays.vectors(column, field.dim, words, 0, self.url.path)
            with np.errstate(over="ignore"):
                outs.append(np.ascontiguousarray(values, field.dtype))
        found_keys = keys_of(found.column(0).combine_chunks(), self.url)
        return page_of(keys, found_keys, outs[0], outs[1] if len(outs) > 1 else None)

    def _words(self, keys: Any, name: str, row: int) -> str:
        return f"{self.where(keys[row].as_py())}, column {name!r}"

    def rows_of(self, keys: Keys, select: str, key_sql: str) -> Any:
        """Return rows of some keys as a table of Arrow."""
        values = arrays.pyarrow().table({"k": keys.tolist() if self._is_text else keys})
        low, high = keys[0].item(), keys[-1].item()
        with self.database.lock, duckdb_errors(self.url):
            reader = self.database.reader()
            reader.register("fct_keys", values)
            try:
                return self._arrow(
                    f"{select} WHERE {key_sql} BETWEEN ? AND ? AND {key_sql} IN (SELECT k FROM fct_keys)", (low, high)
                )
            finally:
                reader.unregister("fct_keys")

    def close(self) -> None:
        """See :class:`Store`."""
        self.database.close()


def keys_of(column: Any, url: EngineUrl) -> NDArray[Any]:
    """Return a column of keys as an array."""
    if column.type in (arrays.pyarrow().string(), arrays.pyarrow().large_string()):
        return arrays.text_ids(column.to_pylist(), "U", url.name, 0)
    return np.asarray(column.to_numpy(zero_copy_only=False), np.int64)
