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

    def upsert(self, ids: NDArray[np.generic], vectors: Rows, *, replacing: Literal["old"] = "old") -> int:
        """Replace the vectors of some rows, of those that still have one: who has written the row since deleted it.

        Args:
            ids: (n,) keys, each once.
            vectors: (n, dim) of the new model.
            replacing: only rows that are there and not written since.

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
                    "CREATE TEMP TABLE fct_better ON COMMIT DROP AS SELECT {key}, {column} FROM {side} LIMIT 0"
                )
            )
            with connection.cursor().copy(names.format("COPY pg_temp.fct_better FROM STDIN")) as copy:
                for key, vector in zip(ids.tolist(), np.asarray(vectors, np.float32).tolist(), strict=True):
                    copy.write_row((str(key), "[" + ",".join(map(repr, vector)) + "]"))
            key = psycopg().sql.Identifier(names.table.key[0])
            done = connection.execute(
                names.format(
                    "UPDATE {side} AS s SET {column} = i.{column} FROM pg_temp.fct_better AS i WHERE i.{one} = s.{one}",
                    one=key,
                )
            )
            connection.execute("COMMIT")
            return int(done.rowcount)
