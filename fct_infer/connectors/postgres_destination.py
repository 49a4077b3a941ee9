"""A table in PostgreSQL as the destination of an upgrade: where it is upgraded, and what that promises."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np

from fct_infer.connectors.postgres import connect, parse_url, pin_search_path, server_errors
from fct_infer.connectors.postgres_books import check_free, read_bounds, read_record
from fct_infer.connectors.postgres_index import index_sql
from fct_infer.connectors.postgres_live import LiveTable
from fct_infer.connectors.postgres_names import Names
from fct_infer.connectors.postgres_rows import MAX_DIM, VECTOR_TYPES, VectorField
from fct_infer.connectors.postgres_source import PostgresSource
from fct_infer.connectors.postgres_work import PostgresWork
from fct_infer.errors import UsageError
from fct_infer.gallery import Source
from fct_infer.gallery.destination import Atomicity, Job, Progress


class PostgresDestination:
    """See :class:`~fct_infer.gallery.destination.Destination`.

    Args:
        url: ``postgresql://...?table=items&column=embedding_v2``, the table that is upgraded and its new column.

    Raises:
        UsageError: it names no table or no column.
    """

    atomicity: Atomicity = "transaction"
    holds_index = False

    def __init__(self, url: str) -> None:
        self.url = parse_url(url)
        self.name = self.url.name
        if not self.url.column:
            raise UsageError(f"{self.name}: names no column for the new vectors; add &column=embedding_v2")
        self._names: Names | None = None

    @property
    def names(self) -> Names:
        """What the upgrade makes; known once the source is."""
        assert self._names is not None
        return self._names

    def adopt(self, source: Source) -> LiveTable:
        """Return the table as it is upgraded in place, in the ranges of keys that its unfinished work has.

        Raises:
            UsageError: the source is another table.
        """
        if not isinstance(source, PostgresSource) or not self._is_same(source):
            raise UsageError(
                f"{self.name}: a table is upgraded where it is, so DEST has to name the table that SOURCE is, and its "
                f"new column; SOURCE is {source.path}"
            )
        if not source.table.is_table:
            raise UsageError(f"{source.path}: is no table, so what is written to it cannot be followed; name its table")
        assert self.url.column
        embedding = source.schema.columns["embedding"]
        self._names = Names(source.table, self.url.column, embedding, self.url.view)
        self._names.check()
        with closing(connect(self.url)) as connection, server_errors(self.url):
            bounds = read_bounds(connection, self.names)
        return LiveTable(source, bounds)

    def _is_same(self, source: PostgresSource) -> bool:
        """Ask both what they are, since one server has many names."""
        query = (
            "SELECT current_database(), pg_postmaster_start_time(), (SELECT min(c.oid) FROM pg_catalog.pg_class c "
            "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relname = %s AND n.nspname = %s)"
        )
        found = []
        for url in (source.url, self.url):
            with closing(connect(url)) as connection, server_errors(url):
                found.append(connection.execute(query, (url.table, self.url.schema or source.table.schema)).fetchone())
        return bool(found[0] == found[1] and found[0][2] == source.table.oid)

    def check(self, source: Source, dim: int, dtype: np.dtype[Any]) -> None:
        """See :class:`~fct_infer.gallery.destination.Destination`."""
        if dim > MAX_DIM:
            raise UsageError(f"{self.name}: new rows are {dim:,} wide, pgvector holds {MAX_DIM:,}")
        with closing(connect(self.url)) as connection, server_errors(self.url):
            pin_search_path(connection)
            (found,) = connection.execute("SELECT to_regtype(%s)::text", (VECTOR_TYPES[dtype.name],)).fetchone()
        if found is None:
            raise UsageError(
                f"{self.name}: the database has no type {VECTOR_TYPES[dtype.name]}; "
                "CREATE EXTENSION vector (0.7 or newer)"
            )

    def check_replaceable(self, *, force: bool) -> None:
        """Refuse names that are taken by something else than an upgrade's result."""
        with closing(connect(self.url)) as connection, server_errors(self.url):
            check_free(connection, self.names)

    def check_room(self, wanted: int) -> None:
        """The server's disk is not seen from here; if it fills up, work is kept."""

    def begun_with(self) -> dict[str, Any]:
        """See :class:`~fct_infer.gallery.destination.Destination`."""
        with closing(connect(self.url)) as connection, server_errors(self.url):
            record = read_record(connection, self.names)
        return dict(record["identity"]) if record and record["state"] != "published" else {}

    def promises(self, job: Job) -> dict[str, str]:
        """See :class:`~fct_infer.gallery.destination.Destination`."""
        names = self.names
        field = VectorField(VECTOR_TYPES[job.dtype.name], job.new_dim)
        index = index_sql(*job.index_wanted, field, job.gallery.schema.rows)
        built = f"{index.format(column=names.column)}, built concurrently before publishing" if index else "none"
        return {
            "index": built,
            "writes": f"table {names.side} beside {names.table.name}, with a trigger that follows writers",
            "publishes": f"view {names.view_name}, in one transaction: {names.embedding} and "
            f"{names.embedding}_version of one version in every row",
            "readers": "are never held up; a statement sees the old version or the new one, whole",
            "writers": f"are held up twice for an instant (a lock on {names.table.name}); a row they write has no new "
            "vector until it is caught up with, never a wrong one",
            "resumes": "each range of keys is written in one transaction with its record: exactly once",
            "rollback": f"fct-gallery rollback {self.name!r}",
        }

    def open_work(self, job: Job, *, restart: bool, force: bool, progress: Progress | None) -> PostgresWork:
        """See :class:`~fct_infer.gallery.destination.Destination`."""
        return PostgresWork(self.url, self.names, job, restart=restart, progress=progress)
