"""A table of SQLite as it is read, and a connection to its database."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np

from fct_infer.connectors.arrow_arrays import text_ids
from fct_infer.connectors.engine_url import EngineUrl
from fct_infer.connectors.keyed_store import Field, Keys, Page, Store, find_keyed_columns, make_field, page_of
from fct_infer.connectors.options import SourceOptions, optional
from fct_infer.connectors.sql_tables import quoted
from fct_infer.errors import GalleryError, ResourceError, UsageError
from fct_infer.gallery.source import Rows
from fct_infer.storage.closing import closed_if_refused

_WAIT_SECONDS = 60.0  # for another writer's transaction
FLOAT = np.dtype("<f4")
_KINDS = {int: "integer", float: "real", str: "text", bytes: "blob", type(None): "null"}
# columns of sqlite-vec whose blobs hold no floats
_NOT_FLOAT = re.compile(r"([^\s,(]+)\s+(?:int8|i8|bit)\s*\[", re.IGNORECASE)


class Connection:
    """A connection that threads share."""

    def __init__(self, url: EngineUrl, *, is_read: bool) -> None:
        assert url.path is not None
        if not url.path.is_file():
            raise GalleryError(f"{url.name}: there is no file {url.path}")
        self.url, self._lock = url, RLock()
        self._place = f"{url.path.absolute().as_uri()}?mode={'ro' if is_read else 'rw'}"
        self._driver: Any = sqlite3
        self._connection = self._connect()

    def _connect(self) -> Any:
        with self.errors():
            return self._driver.connect(
                self._place, uri=True, timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False
            )

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what SQLite raises into an error that says what to do."""
        try:
            yield
        except self._driver.OperationalError as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
                raise ResourceError(
                    f"{self.url.name}: {error}; what is committed stays, the same command goes on"
                ) from error
            raise GalleryError(f"{self.url.name}: {error}") from error
        except self._driver.Error as error:
            raise GalleryError(f"{self.url.name}: {error}") from error

    def run(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run a statement and return its rows, all of them: an open one would hold up writers."""
        with self._lock, self.errors():
            return list(self._connection.execute(query, values).fetchall())

    def run_many(self, query: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a statement for each of some rows."""
        with self._lock, self.errors():
            self._connection.executemany(query, rows)

    def load_vec(self) -> None:
        """Load sqlite-vec, without which its tables cannot be read.

        Raises:
            UsageError: this Python's sqlite3 loads no extensions, and there is no other.
        """
        module = optional("sqlite_vec", "sqlite")
        if not hasattr(self._connection, "enable_load_extension"):
            try:
                self._driver = import_module("pysqlite3.dbapi2")
            except ImportError as error:
                raise UsageError(
                    f"{self.url.name}: is a table of sqlite-vec; this Python's sqlite3 loads no extensions, that of "
                    "pip install pysqlite3-binary does"
                ) from error
            self._connection.close()
            self._connection = self._connect()
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
        with closed_if_refused(self):
            self._open(options)

    def _open(self, options: SourceOptions) -> None:
        url = self.url
        found = self._connection.run("SELECT type, sql FROM sqlite_master WHERE name = ?", (url.table,))
        if not found or found[0][0] not in ("table", "view"):
            raise GalleryError(f"{url.name}: there is no table {url.table!r}")
        self.is_virtual = str(found[0][1]).upper().startswith("CREATE VIRTUAL")
        self.is_table = found[0][0] == "table" and not self.is_virtual
        if self.is_virtual:
            self._connection.load_vec()
        self._sql = quoted(url.table)
        others = {name.strip('"`[]').lower() for name in _NOT_FLOAT.findall(found[0][1])} if self.is_virtual else ()
        info = self._connection.run(f"PRAGMA table_xinfo({self._sql})")
        self.names = [row[1] for row in info if row[6] in (0, 2, 3)]
        self.types = {row[1]: row[2] for row in info}
        row = self._connection.run(f"SELECT {', '.join(map(quoted, self.names))} FROM {self._sql} LIMIT 1")
        if not row:
            raise GalleryError(f"{url.name}: is empty, it holds no rows")
        vectors = [
            name
            for name, value in zip(self.names, row[0], strict=True)
            if isinstance(value, bytes) and len(value) >= 4 and name.lower() not in others
        ]
        primary = [entry[1] for entry in info if entry[5]] or (["rowid"] if self.is_virtual else [])
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
        found = [key for (key,) in self._connection.run(f"SELECT {self._key} FROM {self._sql}")]
        kinds = set(map(type, found))  # asked of the keys: asking SQLite would read the whole table once more
        if len(kinds) > 1 or not kinds <= {int, str}:
            names = ", ".join(sorted(_KINDS[kind] for kind in kinds))
            raise GalleryError(
                f"{self.url.name}: {self.columns.id!r} holds {names}; wanted integers throughout, or text"
            )
        is_text = kinds == {str}
        return np.sort(text_ids(found, "U", self.url.name, 0) if is_text else np.array(found, np.int64))

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
        found = np.frombuffer(b"".join(values), FLOAT).reshape(len(values), field.dim)
        return np.ascontiguousarray(found, np.float32)

    def close(self) -> None:
        """See :class:`Store`."""
        self._connection.close()
