"""Vectors in a table of PostgreSQL, read in the order of its key, all from one snapshot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors.options import Columns, SourceOptions, check_shape, find_columns, read_dtype
from fct_infer.connectors.parted import PART_BYTES, cut
from fct_infer.connectors.postgres import TableUrl, connect, parse_url, psycopg
from fct_infer.connectors.postgres_reader import Snapshot, TableReader, copied
from fct_infer.connectors.postgres_rows import KINDS, VectorField, VectorRows
from fct_infer.connectors.postgres_table import Bound, Table, find_table
from fct_infer.errors import GalleryError, UsageError
from fct_infer.gallery.source import Part, Rows, Schema, Source
from fct_infer.storage.closing import closed_if_refused

_AT_ONCE = 4096  # messages that are decoded together
TABLE = "table"  # its name among the facts of the fingerprint


class PostgresSource(Source):
    """A table, materialised view, view or foreign table.

    Args:
        url: ``postgresql://...?table=NAME``, or that taken apart.
        options: columns; ``id_column`` may name several with commas.

    Raises:
        GalleryError: there is no such table, or it has no vectors, no rows, no key.
        UsageError: the URL names no table, or columns must be named.
        ResourceError: the server cannot be reached.
        MissingExtraError: psycopg is not installed.
    """

    def __init__(self, url: str | TableUrl, options: SourceOptions) -> None:
        self.url = parse_url(url) if isinstance(url, str) else url
        self.path: str = self.url.name
        if options.ids is not None:
            raise UsageError(f"{self.path}: rows of a table have an order only by its key, so no ids lie beside")
        with closing(connect(self.url)) as connection:
            self.table = find_table(connection, self.url, options)
        self._roles = _columns(self.table, options)
        self.snapshot = Snapshot(self.url)
        with closed_if_refused(self):
            self._read_facts(options.allow_cast)

    def _read_facts(self, allow_cast: bool) -> None:
        with self.snapshot.opened() as connection:
            self.fields = self._vector_fields(connection, allow_cast)
            self._schema = self._read_schema(connection, allow_cast)
            most = max(1, PART_BYTES // self._schema.row_bytes)
            self._parts, self.bounds = _ranges(connection, self.table, cut([self._schema.rows], most))

    @property
    def schema(self) -> Schema:
        """See :class:`~fct_infer.gallery.source.Source`."""
        return self._schema

    @property
    def files(self) -> dict[str, Path]:
        """None."""
        return {}

    def parts(self) -> Sequence[Part]:
        """Ranges of the key."""
        return self._parts

    def open_part(self, part: Part) -> TableReader:
        """See :class:`~fct_infer.gallery.source.Source`."""
        return TableReader(self, part)

    def close(self) -> None:
        """Let go of the snapshot, which holds back the server's cleaning up and indexes that are built concurrently."""
        self.snapshot.close()

    def range_of(self, part: Part) -> Any:
        """The condition that a part's rows fulfil."""
        return self.table.between(*self.bounds[part.name])

    def fingerprint(self) -> dict[str, dict[str, Any]]:
        """Return how many rows there are and a sum over which transactions wrote them: any change alters it."""
        return self._facts

    @cached_property
    def _facts(self) -> dict[str, dict[str, Any]]:
        table, sql = self.table, psycopg().sql
        wrote = sql.SQL("xmin") if table.has_versions else table.id_sql
        with self.snapshot.opened() as connection:
            rows, total = connection.execute(
                sql.SQL("SELECT count(*), coalesce(sum(hashtextextended({}::text, 0)), 0)::text FROM {}").format(
                    wrote, table.sql
                )
            ).fetchone()
        return {TABLE: self.identity() | {"rows": rows, "versions": total, "parts": len(self._parts)}}

    def identity(self) -> dict[str, Any]:
        """Return what makes it the same table, read in the same way."""
        names = [name for name in (self._roles.embedding, self._roles.side, *self.table.key) if name is not None]
        columns = {name: self.table.columns[name].type for name in names}
        return {
            "name": f"{self.table.schema}.{self.table.name}",
            "oid": self.table.oid,
            "columns": columns,
            "read as": self._roles.roles,
        }

    def where(self, row: int, role: str = "embedding") -> str:
        """Return the row's key, ``items.id = 42``; how it is counted only where the server is gone."""
        part = self.part_of(row)
        sql = psycopg().sql
        query = sql.SQL("SELECT {} FROM {} WHERE {} ORDER BY {} OFFSET {} LIMIT 1").format(
            self.table.key_text_sql(), self.table.sql, self.range_of(part), self.table.order_sql, row - part.first_row
        )
        with self.snapshot.opened() as connection:
            found = connection.execute(query).fetchone()
        where = f"{self.path}, row {row}" if found is None else self.table.where(found)
        name = None if role == "embedding" else self.schema.columns.get(role)
        return where + (f", column {name!r}" if name and role != "id" else "")

    def column(self, role: str) -> str:
        """See :class:`~fct_infer.gallery.source.Source`."""
        name = self.schema.columns.get(role)
        return f"{self.table.name}.{name}" if name else self.path

    def read_rows(self, rows: NDArray[np.int64], with_side: bool = True) -> tuple[Rows, Rows | None]:
        """See :func:`fct_infer.gallery.rows.read_rows`; the key's index finds them by number."""
        schema = self.schema
        old = np.empty((len(rows), schema.old_dim), schema.embedding_dtype)
        side = np.empty((len(rows), schema.side_dim), schema.side_dtype) if with_side and schema.side_dim else None
        places = np.searchsorted(rows, [part.first_row for part in self._parts] + [schema.rows]).tolist()
        for part, (begin, end) in zip(self._parts, pairwise(places), strict=True):
            if begin < end:
                chosen = rows[begin:end] - part.first_row
                outs = [out[begin:end] for out in (old, side) if out is not None]
                query, numbers = self._numbered(part, chosen, outs), part.first_row + chosen
                with self.snapshot.opened() as connection, copied(connection, query) as got:
                    self.decode(got, outs, lambda place, numbers=numbers: int(numbers[place]))
        return old, side

    def _numbered(self, part: Part, chosen: NDArray[np.int64], outs: Sequence[Rows]) -> Any:
        sql, key = psycopg().sql, self.table.key_sql()
        return sql.SQL(
            "WITH numbered AS (SELECT {key}, row_number() OVER (ORDER BY {key}) - 1 AS fct_number FROM {table} "
            "WHERE {range}), chosen AS (SELECT * FROM numbered JOIN (SELECT unnest({numbers}::int8[]) AS fct_wanted) "
            "AS wanted ON fct_number = fct_wanted) "
            "SELECT {vectors} FROM chosen JOIN {table} AS fct_rows USING ({key}) ORDER BY fct_number"
        ).format(
            key=key,
            table=self.table.sql,
            range=self.range_of(part),
            numbers=sql.Literal(chosen.tolist()),
            vectors=self.vectors_sql(len(outs) > 1, "fct_rows"),
        )

    def vectors_sql(self, with_side: bool, of: str | None = None) -> Any:
        """The columns of the embeddings, and of the side-information if it is wanted."""
        sql = psycopg().sql
        names = [self._roles.embedding] + ([self._roles.side] if with_side and self._roles.side else [])
        return sql.SQL(", ").join(sql.Identifier(*([of] if of else []), name) for name in names)

    def decode(self, messages: Iterator[bytes], outs: Sequence[Rows], number: Any) -> None:
        """Fill arrays with as many rows as they have.

        Args:
            messages: of a COPY of :meth:`vectors_sql`.
            outs: ``old``, and ``side`` if it is read.
            number: takes the place of a row and gives its number over all parts, or its name, for messages.

        Raises:
            GalleryError: a vector is NULL or of another width, or rows are missing.
        """
        layout, done = VectorRows(*list(self.fields.values())[: len(outs)]), 0
        while done < len(outs[0]):
            some = list(islice(messages, min(_AT_ONCE, len(outs[0]) - done)))
            if not some:
                raise GalleryError(f"{self.path}: ends after {done} rows of a part, {len(outs[0])} were counted")
            bad = layout.decode(some, [out[done : done + len(some)] for out in outs])
            if bad is not None:
                field, words = layout.fault(some[bad])
                name = number(done + bad)
                role = list(self.fields)[field]
                where = self.where(name) if isinstance(name, int) else name
                raise GalleryError(f"{where}, column {self.schema.columns[role]!r}: {words}")
            done += len(some)

    def _vector_fields(self, connection: Any, allow_cast: bool) -> dict[str, VectorField]:
        fields = {}
        for role, name in (("embedding", self._roles.embedding), ("side", self._roles.side)):
            if name is not None:
                column = self.table.columns[name]
                read_dtype(KINDS[column.kind][0], self._column_text(name), allow_cast)
                width = column.width if column.width > 0 and not KINDS[column.kind][1] else 0
                fields[role] = VectorField(column.kind, width or self._first_width(connection, name))
        return fields

    def _column_text(self, name: str) -> str:
        return f"{self.path}, column {name!r}"

    def _first_width(self, connection: Any, name: str) -> int:
        sql = psycopg().sql
        is_array = KINDS[self.table.columns[name].kind][1]
        found = connection.execute(
            sql.SQL("SELECT {}({}) FROM {} WHERE {} IS NOT NULL LIMIT 1").format(
                sql.SQL("cardinality" if is_array else "vector_dims"),
                sql.Identifier(name),
                self.table.sql,
                sql.Identifier(name),
            )
        ).fetchone()
        if found is None:
            raise GalleryError(f"{self._column_text(name)}: is empty, it holds no vectors")
        return int(found[0])

    def _read_schema(self, connection: Any, allow_cast: bool) -> Schema:
        rows = connection.execute(psycopg().sql.SQL("SELECT count(*) FROM {}").format(self.table.sql)).fetchone()[0]
        dtypes = {
            role: read_dtype(KINDS[each.kind][0], self._column_text(self._roles.roles[role]), allow_cast)
            for role, each in self.fields.items()
        }
        side = self.fields.get("side")
        for role, each in self.fields.items():
            check_shape(rows, each.dim, self._column_text(self._roles.roles[role]))
        return Schema(
            rows,
            self.fields["embedding"].dim,
            dtypes["embedding"],
            side.dim if side else None,
            dtypes.get("side"),
            np.dtype(np.int64) if self.table.has_integer_id else np.dtype(str),
            self._roles.roles,
            self._roles.other,
        )


def _columns(table: Table, options: SourceOptions) -> Columns:
    vectors = [name for name, column in table.columns.items() if column.kind in KINDS]
    for name in (options.embedding_column, options.side_column):
        if name in table.columns and name not in vectors:
            raise GalleryError(
                f"{table.url.name}: column {name!r} is of type {table.columns[name].type}, wanted vector, halfvec or "
                "an array of real"
            )
    scalars = [name for name in table.columns if name not in vectors and name not in table.key]
    named = SourceOptions(options.embedding_column, options.side_column)
    found = find_columns(table.url.name, [name for name in vectors if name not in table.key], scalars, named)
    other = tuple(name for name in (*found.other, *((found.id,) if found.id else ())))
    return Columns(found.embedding, found.side, ", ".join(table.key), other)


def _ranges(
    connection: Any, table: Table, parts: Sequence[Part]
) -> tuple[tuple[Part, ...], dict[str, tuple[Bound | None, Bound | None]]]:
    """Return the parts, and between which keys each lies: above the first, up to the second."""
    sql = psycopg().sql
    ends = [part.first_row + part.rows for part in parts[:-1]]
    query = sql.SQL(
        "SELECT {} FROM (SELECT {}, row_number() OVER (ORDER BY {}) AS fct_number FROM {}) AS numbered "
        "WHERE fct_number = ANY ({}::int8[]) ORDER BY fct_number"
    ).format(table.key_text_sql(), table.key_sql(), table.key_sql(), table.sql, sql.Literal(ends))
    uppers: list[Bound | None] = [tuple(row) for row in connection.execute(query).fetchall()] if ends else []
    bounds = pairwise([None, *uppers, None])
    return tuple(parts), {part.name: bound for part, bound in zip(parts, bounds, strict=True)}
