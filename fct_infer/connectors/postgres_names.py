"""What an upgrade makes in a table's schema, by name; every name is quoted.

TABLE_COLUMN           the new vectors beside the table, under its key
TABLE_COLUMN_changes   keys of rows written since; triggers on the table note them and delete their new vectors
TABLE_current          the view that is published: all columns, the embeddings of one version, and which one it is
fct_upgrades           a row for each version, in the table's schema;  fct_upgrade_parts  the ranges of keys of each
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fct_infer.connectors.postgres import MAX_NAME, psycopg
from fct_infer.connectors.postgres_table import Table
from fct_infer.errors import UsageError

VERSION_SUFFIX = "_version"


@dataclass(frozen=True)
class Names:
    """What belongs to one version of a table's embeddings.

    Args:
        table: whose embeddings they are.
        column: of the new vectors; the version's name.
        embedding: the column of the old ones.
        view: that is published; None for ``TABLE_current``.
    """

    table: Table
    column: str
    embedding: str
    view: str | None = None

    def check(self) -> None:
        """Raise a UsageError for names that the server would cut short, or that are taken in the table itself."""
        for name in (self.changes, self.view_name, self.embedding + VERSION_SUFFIX, self.trigger("_truncate")):
            if len(name.encode()) > MAX_NAME:
                raise UsageError(f"{name!r} is longer than {MAX_NAME} bytes; choose a shorter column= or view=")
        for name in (self.column, self.embedding + VERSION_SUFFIX):
            if name in self.table.columns:
                raise UsageError(f"{self.table.url.name}: has a column {name!r} already; choose another column=")

    @property
    def side(self) -> str:
        """The table of the new vectors."""
        return f"{self.table.name}_{self.column}"

    @property
    def changes(self) -> str:
        """The table of keys that were written."""
        return f"{self.side}_changes"

    @property
    def view_name(self) -> str:
        """The view."""
        return self.view or f"{self.table.name}_current"

    def trigger(self, suffix: str) -> str:
        """One of the triggers on the table."""
        return f"{self.column}_changed{suffix}"

    def sql(self, name: str) -> Any:
        """A name in the table's schema, quoted."""
        return psycopg().sql.Identifier(self.table.schema, name)

    def format(self, text: str, /, **more: Any) -> Any:
        """Return SQL with the names of this version filled in, all of them quoted."""
        sql = psycopg().sql
        known = {
            "table": self.table.sql,
            "side": self.sql(self.side),
            "changes": self.sql(self.changes),
            "function": self.sql(self.side + "_note"),
            "view": self.sql(self.view_name),
            "upgrades": self.sql("fct_upgrades"),
            "parts": self.sql("fct_upgrade_parts"),
            "key": self.table.key_sql(),
            "column": sql.Identifier(self.column),
            "this": sql.SQL("(table_name, column_name) = ({}, {})").format(
                sql.Literal(self.table.name), sql.Literal(self.column)
            ),
            "same": sql.SQL(" AND ").join(
                sql.SQL("i.{} = s.{}").format(sql.Identifier(name), sql.Identifier(name)) for name in self.table.key
            ),
        }
        return sql.SQL(text).format(**{**known, **more})


def has_relation(connection: Any, schema: str, name: str) -> bool:
    """Whether something of that name is there."""
    query = (
        "SELECT 1 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = %s AND c.relname = %s"
    )
    return connection.execute(query, (schema, name)).fetchone() is not None
