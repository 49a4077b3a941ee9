"""Rows copied into the table beside, a range of keys in one transaction with the record that it is done."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from fct_infer.connectors.options import SourceOptions
from fct_infer.connectors.postgres import connect, literals, pin_search_path, psycopg, server_errors
from fct_infer.connectors.postgres_rows import HEADER, TRAILER, with_vectors
from fct_infer.connectors.postgres_source import PostgresSource
from fct_infer.errors import ArrayError, GalleryError
from fct_infer.gallery import Part, PartWriter, Source
from fct_infer.gallery.sink import Receipt

if TYPE_CHECKING:
    from fct_infer.connectors.postgres_work import PostgresWork


class TableSink:
    """See :class:`~fct_infer.gallery.sink.Sink`."""

    def __init__(self, work: PostgresWork) -> None:
        self.work = work
        self._connection: Any = None

    def open_part(self, part: Part) -> PartWriter:
        """See :class:`~fct_infer.gallery.sink.Sink`."""
        with server_errors(self.work.url):
            if self._connection is None or self._connection.closed:
                self._connection = connect(self.work.url)
                pin_search_path(self._connection)
            return _PartWriter(self.work, self._connection, part)

    def as_source(self) -> Source:
        """Return the table beside, whose parts are not those of the source."""
        names = self.work.names
        return PostgresSource(replace(self.work.url, table=names.side, schema=names.table.schema), SourceOptions())

    def close(self) -> None:
        """See :class:`~fct_infer.gallery.sink.Sink`."""
        if self._connection is not None:
            self._connection.close()


class _PartWriter:
    """A range of keys, copied in one transaction with the record that it is done."""

    def __init__(self, work: PostgresWork, connection: Any, part: Part) -> None:
        self._work, self._connection, self._part, self._done = work, connection, part, 0
        self._keys = work.source.open_part(part)
        self._stack = ExitStack()
        connection.execute("BEGIN")
        work.fence(connection)
        self._copy = self._stack.enter_context(connection.cursor().copy(work.copy_sql))
        self._copy.write(HEADER)

    def write(self, block: NDArray[Any]) -> None:
        """See :class:`~fct_infer.gallery.sink.PartWriter`."""
        start, stop = self._done, self._done + len(block)
        if stop > self._part.rows:
            raise ArrayError(f"part {self._part.name}: more rows than the {self._part.rows} promised")
        keys = self._keys.read_keys(start, stop)
        if len(keys) != len(block):
            raise GalleryError(f"{self._work.url.name}: {len(keys)} keys in place of {len(block)}")
        with server_errors(self._work.url):
            self._copy.write(with_vectors(keys, len(self._work.names.table.key), block, self._work.field))
        self._done = stop

    def commit(self) -> Receipt:
        """See :class:`~fct_infer.gallery.sink.PartWriter`."""
        if self._done != self._part.rows:
            raise ArrayError(f"part {self._part.name}: {self._done} rows written, promised {self._part.rows}")
        self._keys.close()
        with server_errors(self._work.url):
            self._copy.write(TRAILER)
            self._stack.close()
            self._connection.execute(
                self._work.names.format(
                    "UPDATE {parts} SET done = now(), rows = {rows} WHERE {this} AND part = {part}",
                    rows=literals(self._done),
                    part=literals(self._part.name),
                )
            )
            self._connection.execute("COMMIT")
        return {}

    def abort(self) -> None:
        """See :class:`~fct_infer.gallery.sink.PartWriter`."""
        self._keys.close()
        self._connection.close()  # what was not committed is gone with it
        with suppress(psycopg().Error):
            self._stack.close()
