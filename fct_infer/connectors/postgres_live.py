"""A table that is upgraded where it is, as its unfinished work has cut it into ranges of keys."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

from fct_infer.connectors.postgres import psycopg
from fct_infer.connectors.postgres_reader import Snapshot
from fct_infer.connectors.postgres_source import TABLE, PostgresSource
from fct_infer.connectors.postgres_table import Bound
from fct_infer.errors import GalleryError
from fct_infer.gallery.ids import IdFacts
from fct_infer.gallery.source import Part


class LiveTable(PostgresSource):
    """A table that is upgraded where it is and lives on meanwhile: its rows may change, its ranges of keys do not.

    Args:
        source: the table.
        bounds: between which keys each part lies, as unfinished work has it; empty for those of the source.
    """

    def __init__(self, source: PostgresSource, bounds: dict[str, tuple[Bound | None, Bound | None]]) -> None:
        vars(self).update(vars(source))
        if bounds:
            self.bounds = bounds
            self._count()

    def refresh(self) -> None:
        """See the table as it is now."""
        self.close()
        self.snapshot = Snapshot(self.url)
        self._count()

    def _count(self) -> None:
        sql, parts, first = psycopg().sql, [], 0
        with self.snapshot.opened() as connection:
            for name, bound in self.bounds.items():
                query = sql.SQL("SELECT count(*) FROM {} WHERE {}").format(self.table.sql, self.table.between(*bound))
                (rows,) = connection.execute(query).fetchone()
                if rows:
                    parts.append(Part(name, rows, first))
                    first += rows
        if not parts:
            raise GalleryError(f"{self.path}: is empty")
        self._parts, self._schema = tuple(parts), replace(self._schema, rows=first)

    def fingerprint(self) -> dict[str, dict[str, Any]]:
        """Return what makes it the same table; what its rows are is followed, not compared."""
        return {TABLE: self.identity()}

    @cached_property
    def id_facts(self) -> IdFacts:
        """What a key promises."""
        return IdFacts("labels" if self.table.has_integer_id else "text")
