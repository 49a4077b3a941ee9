"""New vectors in a table beside the one they belong to, a view over both, and a book of versions, in an SQL engine.

TABLE_COLUMN    the new vectors under the table's key, with the digest of what each was computed from
TABLE_current   the view that readers search: all columns, the embeddings of one version, and which one it is
fct_upgrades    a row for each version
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from fct_infer.connectors.engine_url import EngineUrl
from fct_infer.connectors.keyed_store import Store, Target
from fct_infer.errors import FctError, OutputError, UsageError

VERSION_SUFFIX = "_version"
DIGEST = "fct_input"
BOOKS = "fct_upgrades"


def quoted(name: str) -> str:
    """Return a name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def read_books(run: Callable[..., list[tuple[Any, ...]]], books: str, url: EngineUrl) -> dict[str, dict[str, Any]]:
    """Return what is recorded of a table's versions; see :meth:`Target.books`."""
    rows = run(f"SELECT column_name, book FROM {books} WHERE table_name = ? ORDER BY begun", (url.table,))
    return {name: json.loads(book) for name, book in rows}


class SqlTarget(Target):
    """What DuckDB and SQLite have in common.

    Args:
        url: of the table and the new version.
        store: the table.
        names: of all its columns, in their order.
    """

    begin = "BEGIN"

    def __init__(self, url: EngineUrl, store: Store, names: Sequence[str]) -> None:
        self.url, self.store, self._names = url, store, list(names)
        self.key = str(store.columns.id)
        self.embedding = store.columns.embedding
        self.version = url.column or ""  # without one all versions are looked after
        self.view = url.view or f"{url.table}_current"
        self._depth = 0
        for name in (self.version, self.embedding + VERSION_SUFFIX):
            if name.lower() in (each.lower() for each in names):
                raise UsageError(f"{url.name}: has a column {name!r} already; choose another column=")

    @property
    def original(self) -> str:
        """The column of the old embeddings."""
        return self.embedding

    @abstractmethod
    def run(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run a statement and return its rows."""

    @abstractmethod
    def kind_of(self, name: str) -> tuple[str, str] | None:
        """Return what has a name, ``table`` or ``view``, and the SQL that made it; None if nothing has."""

    @abstractmethod
    def create_side(self, dim: int, dtype: np.dtype[Any]) -> None:
        """Make the table of the new vectors, and what keeps it honest."""

    def drop_side(self) -> None:
        """Remove them."""
        self.run(f"DROP TABLE IF EXISTS {self.named(self.side)}")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """See :class:`Target`; one within another is part of it."""
        if self._depth:
            yield
            return
        self.run(self.begin)
        self._depth = 1
        try:
            yield
            self.run("COMMIT")
        except BaseException:
            with suppress(FctError):
                self.run("ROLLBACK")
            raise
        finally:
            self._depth = 0

    def named(self, name: str) -> str:
        """Return a name in the table's schema, quoted."""
        return quoted(name)

    @property
    def side(self) -> str:
        """The table of the new vectors."""
        return f"{self.url.table}_{self.version}"

    def check_free(self) -> None:
        """See :class:`Target`."""
        taken = [] if self.book() is not None else [self.side]
        found = self.kind_of(self.view)
        if found is not None and not (found[0] == "view" and self.embedding + VERSION_SUFFIX in found[1]):
            taken.append(self.view)
        books = self.kind_of(BOOKS)
        if books is not None and "view_name" not in books[1]:
            taken.append(BOOKS)
        for name in taken:
            if self.kind_of(name) is not None:
                raise OutputError(f"{self.url.name}: {name!r} exists and was not made by an upgrade of this table")

    # -- books ---------------------------------------------------------------------------------------------------------

    def books(self) -> dict[str, dict[str, Any]]:
        """See :class:`Target`."""
        return read_books(self.run, self.named(BOOKS), self.url) if self.kind_of(BOOKS) is not None else {}

    def book(self) -> dict[str, Any] | None:
        """See :class:`Target`."""
        return self.books().get(self.version)

    def write_book(self, book: dict[str, Any]) -> None:
        """See :class:`Target`."""
        self.run(
            f"CREATE TABLE IF NOT EXISTS {self.named(BOOKS)} (table_name TEXT, column_name TEXT, view_name TEXT, "
            "begun TEXT, book TEXT)"
        )
        this = (self.url.table, self.version)
        with self.transaction():
            self.run(f"DELETE FROM {self.named(BOOKS)} WHERE table_name = ? AND column_name = ?", this)
            self.run(
                f"INSERT INTO {self.named(BOOKS)} VALUES (?, ?, ?, ?, ?)",
                (*this, self.view, book["begun"], json.dumps(book, allow_nan=False)),
            )

    # -- what readers see ----------------------------------------------------------------------------------------------

    def create(self, dim: int, dtype: np.dtype[Any], metric: str) -> None:
        """See :class:`Target`."""
        with self.transaction():
            self.create_side(dim, dtype)
            if self.kind_of(self.view) is None:
                self.show(self.embedding)

    def drop(self) -> None:
        """See :class:`Target`."""
        if self.shown() == self.version:
            raise OutputError(f"{self.url.name}: {self.version!r} is what readers see; roll back first")
        with self.transaction():
            self.drop_side()
            self.run(
                f"DELETE FROM {self.named(BOOKS)} WHERE table_name = ? AND column_name = ?",
                (self.url.table, self.version),
            )

    def show(self, version: str) -> None:
        """See :class:`Target`; in a transaction of the caller's, so that readers see one view or the other."""
        is_old = version == self.embedding
        columns = [
            f"s.{quoted(version)} AS {quoted(name)}" if name == self.embedding and not is_old else f"i.{quoted(name)}"
            for name in self._names
        ]
        literal = version.replace("'", "''")
        side = self.named(f"{self.url.table}_{version}")
        joined = f" JOIN {side} AS s ON i.{quoted(self.key)} = s.{quoted(self.key)}{self.shown_where(version)}"
        self.run(f"DROP VIEW IF EXISTS {self.named(self.view)}")
        self.run(
            f"CREATE VIEW {self.named(self.view)} AS SELECT {', '.join(columns)}, "
            f"'{literal}' AS {quoted(self.embedding + VERSION_SUFFIX)} "
            f"FROM {self.named(self.url.table)} AS i{'' if is_old else joined}"
        )

    def shown_where(self, version: str) -> str:
        """Return which rows a view leaves out, as SQL."""
        return ""

    def shown(self) -> str | None:
        """See :class:`Target`."""
        found = self.kind_of(self.view)
        if found is None:
            return None
        marker = self.run(f"SELECT {quoted(self.embedding + VERSION_SUFFIX)} FROM {self.named(self.view)} LIMIT 1")
        return str(marker[0][0]) if marker else self._shown_of_empty(found[1])

    def _shown_of_empty(self, view: str) -> str | None:
        sides = [each for each in self.books() if quoted(f"{self.url.table}_{each}") in view]
        return max(sides, key=len) if sides else self.embedding
