"""Rows of a table as COPY gives them, all from one snapshot.

The snapshot is exported by a connection that reads nothing, so that no lock on the table is held between parts; readers
take it over, each for one part.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from fct_infer.connectors.parted import check_buffer, check_range
from fct_infer.connectors.postgres import TableUrl, connect, pin_search_path, psycopg, server_errors
from fct_infer.connectors.postgres_rows import messages_of
from fct_infer.errors import ArrayError, GalleryError, ResourceError
from fct_infer.gallery.source import Part, Rows
from fct_infer.storage.closing import closed_if_refused

if TYPE_CHECKING:
    from fct_infer.connectors.postgres_source import PostgresSource


class Snapshot:
    """What a table holds at one instant, for as many connections as take it over, until it is closed."""

    def __init__(self, url: TableUrl) -> None:
        self._url, self._holder = url, connect(url)
        with closed_if_refused(self), server_errors(url):
            self._holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            (self._name,) = self._holder.execute("SELECT pg_catalog.pg_export_snapshot()").fetchone()

    def close(self) -> None:
        """Let the server clean up behind it; a second call does nothing."""
        self._holder.close()

    @contextmanager
    def opened(self) -> Iterator[Any]:
        """Yield a connection that sees the snapshot."""
        with closing(connect(self._url)) as connection:
            with server_errors(self._url):
                pin_search_path(connection)
                connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                try:
                    connection.execute(psycopg().sql.SQL("SET TRANSACTION SNAPSHOT {}").format(self._name))
                except psycopg().ProgrammingError as error:
                    raise ResourceError(
                        f"{self._url.name}: the connection that kept the table's state is lost; the same command goes "
                        "on if work was begun"
                    ) from error
            with server_errors(self._url):
                yield connection


@contextmanager
def copied(connection: Any, query: Any) -> Iterator[Iterator[bytes]]:
    """Yield the messages of a query's rows; what is not read of them is dropped with the connection."""
    sql = psycopg().sql
    text = sql.SQL("COPY ({}) TO STDOUT (FORMAT BINARY)").format(sql.SQL(query) if isinstance(query, str) else query)
    with connection.cursor().copy(text) as copy:
        messages = messages_of(copy)
        yield messages
        next(messages, None)  # the end, if all rows were taken; else the connection is closed by its owner


class TableReader:
    """One part, read forward; going back, or from the vectors to the ids, begins the part again."""

    def __init__(self, source: PostgresSource, part: Part) -> None:
        self._source, self._part = source, part
        self._rows: Iterator[bytes] | None = None
        self._stack = ExitStack()
        self._what, self._at = "", 0

    def read_into(self, start: int, stop: int, old: Rows, side: Rows | None) -> None:
        """See :class:`~fct_infer.gallery.source.PartReader`."""
        schema, source = self._source.schema, self._source
        check_range(start, stop, self._part.rows)
        check_buffer("old", old, stop - start, schema.old_dim, schema.embedding_dtype)
        outs = [old]
        if side is not None:
            if schema.side_dim is None or schema.side_dtype is None:
                raise ArrayError("side is given, but the source has no side-information")
            check_buffer("side", side, stop - start, schema.side_dim, schema.side_dtype)
            outs.append(side)
        first, columns = self._part.first_row + start, source.vectors_sql(side is not None)
        with server_errors(source.url):
            rows = self._from(start, "old" if side is None else "both", columns)
            source.decode(rows, outs, lambda at: first + at)
        self._at = stop

    def read_ids(self, start: int, stop: int) -> Rows:
        """See :class:`~fct_infer.gallery.source.PartReader`."""
        check_range(start, stop, self._part.rows)
        with server_errors(self._source.url):
            rows = list(islice(self._from(start, "ids", self._source.table.id_sql), stop - start))
        self._at = stop
        if len(rows) != stop - start:
            raise GalleryError(f"{self._source.path}: {len(rows)} ids in place of {stop - start}")
        if self._source.table.has_integer_id:
            fields = np.frombuffer(b"".join(rows), np.dtype([("head", "V6"), ("id", ">i8")]))
            return fields["id"].astype(np.int64)
        return np.array([bytes(row[6:]).decode() for row in rows])

    def read_keys(self, start: int, stop: int) -> list[bytes]:
        """Return the keys of rows as a COPY sends them."""
        with server_errors(self._source.url):
            rows = list(islice(self._from(start, "keys", self._source.table.key_sql()), stop - start))
        self._at = stop
        return rows

    def _from(self, start: int, what: str, columns: Any) -> Iterator[bytes]:
        """Return the rows from one on."""
        if self._rows is None or self._what != what or start < self._at:
            self.close()
            source, sql = self._source, psycopg().sql
            query = sql.SQL("SELECT {} FROM {} WHERE {} ORDER BY {} OFFSET {}").format(
                columns, source.table.sql, source.range_of(self._part), source.table.order_sql, start
            )
            connection = self._stack.enter_context(source.snapshot.opened())
            self._rows, self._what, self._at = self._stack.enter_context(copied(connection, query)), what, start
        for _ in islice(self._rows, start - self._at):
            pass
        return self._rows

    def move_to(self, part: Part) -> bool:
        """See :class:`~fct_infer.gallery.source.PartReader`: another part is another query."""
        return part == self._part

    def close(self) -> None:
        """Close the connection; a second call does nothing."""
        self._rows = None
        with suppress(ResourceError):  # a connection that is lost is closed
            self._stack.close()

    def __enter__(self) -> TableReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
