"""New vectors of a published version in PostgreSQL, replaced by better ones: those that a new model itself has made."""

from __future__ import annotations

from contextlib import closing
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors.postgres import connect, pin_search_path, psycopg, server_errors
from fct_infer.connectors.postgres_names import Names
from fct_infer.connectors.postgres_versions import with_books
from fct_infer.errors import OutputError, UsageError
from fct_infer.gallery.source import Rows

_MARK = "hashtextextended(s.{column}::text, 0)"


class PostgresVersion:
    """The version that a URL's ``column`` names.

    Raises:
        OutputError: there is none that is published.
        UsageError: its key has several columns.
    """

    def __init__(self, url: str) -> None:
        def names_of(connection: object, names: Names) -> Names:
            query = names.format("SELECT state FROM {upgrades} WHERE {this}")
            found = connection.execute(query).fetchone()  # type: ignore[attr-defined]
            if found is None or found[0] != "published":
                raise OutputError(f"{names.table.url.name}: has no published version {names.column!r}")
            if len(names.table.key) > 1:
                raise UsageError(f"{names.table.url.name}: its key has several columns; wanted one")
            return names

        self._names: Names = with_books(url, names_of)

    def marks(self, ids: NDArray[np.generic]) -> NDArray[np.int64]:
        """Return a hash of the vector that each row (n,) has now; 0 where it has none."""
        names, url = self._names, self._names.table.url
        found = np.zeros(len(ids), np.int64)
        with closing(connect(url)) as connection, server_errors(url):
            pin_search_path(connection)
            connection.execute("BEGIN")
            temporary = "CREATE TEMP TABLE fct_asked ON COMMIT DROP AS SELECT {key}, 0 AS fct_row FROM {side} LIMIT 0"
            connection.execute(names.format(temporary))
            with connection.cursor().copy(names.format("COPY pg_temp.fct_asked FROM STDIN")) as copy:
                for row, key in enumerate(ids.tolist()):
                    copy.write_row((str(key), row))
            one = psycopg().sql.Identifier(names.table.key[0])
            query = f"SELECT i.fct_row, {_MARK} FROM {{side}} AS s JOIN pg_temp.fct_asked AS i ON i.{{one}} = s.{{one}}"
            for row, mark in connection.execute(names.format(query, one=one)):
                found[row] = mark
            connection.execute("COMMIT")
        return found

    def upsert(
        self,
        ids: NDArray[np.generic],
        vectors: Rows,
        *,
        replacing: Literal["old"] = "old",
        marks: NDArray[np.int64] | None = None,
    ) -> int:
        """Replace the vectors of some rows, of those that still have one: who has written the row since deleted it.

        Args:
            ids: (n,) keys, each once.
            vectors: (n, dim) of the new model.
            replacing: only rows that are there and not written since.
            marks: (n,) what :meth:`marks` gave before they were embedded; rows with another one now are left.

        Returns:
            How many there were.

        Raises:
            GalleryError: the server refuses them, as they are of another width.
            ResourceError: the connection is lost, or a lock is not to be had.
        """
        names, url = self._names, self._names.table.url
        with closing(connect(url)) as connection, server_errors(url):
            pin_search_path(connection)
            connection.execute("BEGIN")
            connection.execute(
                names.format(
                    "CREATE TEMP TABLE fct_better ON COMMIT DROP AS "
                    "SELECT {key}, {column}, 0::bigint AS fct_mark FROM {side} LIMIT 0"
                )
            )
            with connection.cursor().copy(names.format("COPY pg_temp.fct_better FROM STDIN")) as copy:
                said = [None] * len(ids) if marks is None else marks.tolist()
                rows = np.asarray(vectors, np.float32).tolist()
                for key, vector, mark in zip(ids.tolist(), rows, said, strict=True):
                    copy.write_row((str(key), "[" + ",".join(map(repr, vector)) + "]", mark))
            key = psycopg().sql.Identifier(names.table.key[0])
            done = connection.execute(
                names.format(
                    "UPDATE {side} AS s SET {column} = i.{column} FROM pg_temp.fct_better AS i WHERE i.{one} = s.{one} "
                    f"AND (i.fct_mark IS NULL OR i.fct_mark = {_MARK})",
                    one=key,
                )
            )
            connection.execute("COMMIT")
            return int(done.rowcount)
