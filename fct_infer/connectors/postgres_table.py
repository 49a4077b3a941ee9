"""What a table in PostgreSQL is: its columns, its key, and ranges of it, as SQL with every name quoted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fct_infer.connectors.options import ID_NAMES, SourceOptions
from fct_infer.connectors.postgres import TableUrl, psycopg, server_errors
from fct_infer.errors import GalleryError, UsageError

_INTEGERS = ("int2", "int4", "int8")
_TABLES = ("r", "p")  # ordinary and partitioned: what has a key, versions of rows, and triggers
_RELATIONS = (*_TABLES, "m", "v", "f")

Bound = tuple[str, ...]
"""A key as text, one for each of its columns."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: as it is.
        kind: the type's name in the catalogue.
        type: the type in SQL, without a length.
        width: what the type says of its length; -1 if it does not.
        is_set: NOT NULL.
    """

    name: str
    kind: str
    type: str
    width: int
    is_set: bool


@dataclass(frozen=True)
class Table:
    """A table, view or foreign table that can be read in the order of a key."""

    url: TableUrl
    oid: int
    schema: str
    name: str
    kind: str
    columns: dict[str, Column]
    key: tuple[str, ...]

    @property
    def has_versions(self) -> bool:
        """Whether each row says which transaction wrote it."""
        return self.kind in (*_TABLES, "m")

    @property
    def is_table(self) -> bool:
        """Whether rows are written to it, so that a trigger can see them."""
        return self.kind in _TABLES

    @property
    def sql(self) -> Any:
        """Its name, quoted."""
        return psycopg().sql.Identifier(self.schema, self.name)

    def key_sql(self, of: str | None = None) -> Any:
        """The key's columns, quoted, with commas."""
        sql = psycopg().sql
        names = (sql.Identifier(name) if of is None else sql.Identifier(of, name) for name in self.key)
        return sql.SQL(", ").join(names)

    @property
    def order_sql(self) -> Any:
        """What rows are sorted by; qualified, as ``id`` alone means ``id::text`` where that is chosen."""
        return self.key_sql(self.name)

    def key_text_sql(self, of: str | None = None) -> Any:
        """The key's columns as text."""
        sql = psycopg().sql
        names = (sql.Identifier(name) if of is None else sql.Identifier(of, name) for name in self.key)
        return sql.SQL(", ").join(sql.SQL("{}::text").format(name) for name in names)

    @property
    def id_sql(self) -> Any:
        """The id of a row: an integer as it is, all else as text, a key of several columns as a JSON array."""
        sql = psycopg().sql
        if len(self.key) > 1:
            return sql.SQL("jsonb_build_array({})::text").format(self.key_sql())
        return sql.SQL("{}::int8" if self.has_integer_id else "{}::text").format(self.key_sql())

    @property
    def has_integer_id(self) -> bool:
        """Whether ids are integers."""
        return len(self.key) == 1 and self.columns[self.key[0]].kind in _INTEGERS

    def literal(self, bound: Bound) -> Any:
        """A key as a row of constants."""
        sql = psycopg().sql
        values = (
            sql.SQL("{}::{}").format(sql.Literal(value), sql.SQL(self.columns[name].type))
            for name, value in zip(self.key, bound, strict=True)
        )
        return sql.SQL("({})").format(sql.SQL(", ").join(values))

    def between(self, above: Bound | None, upto: Bound | None) -> Any:
        """A condition: rows whose key is above one and not above another; None: no limit."""
        sql = psycopg().sql
        key = self.key_sql()
        conditions = [sql.SQL("true")]
        if above is not None:
            conditions.append(sql.SQL("({}) > {}").format(key, self.literal(above)))
        if upto is not None:
            conditions.append(sql.SQL("({}) <= {}").format(key, self.literal(upto)))
        return sql.SQL(" AND ").join(conditions)

    def where(self, key: Sequence[Any]) -> str:
        """Return where a row lies, for people: ``items.id = 42``."""
        if len(key) == 1:
            return f"{self.name}.{self.key[0]} = {key[0]}"
        return f"{self.name}.({', '.join(self.key)}) = ({', '.join(map(str, key))})"


def find_table(
    connection: Any, url: TableUrl, options: SourceOptions | None = None, key: tuple[str, ...] = ()
) -> Table:
    """Look a table up.

    Args:
        connection: to its database.
        url: that names it.
        options: that may name its key.
        key: its key, where that is known.

    Raises:
        GalleryError: there is none of that name, or no key is found in whose order it could be read.
        UsageError: a named column does not exist.
    """
    with server_errors(url):
        found = connection.execute(
            "SELECT c.oid, n.nspname, c.relname, c.relkind::text FROM pg_catalog.pg_class c "
            "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
            "WHERE c.relname = %(table)s AND (n.nspname = %(schema)s OR %(schema)s::text IS NULL "
            "AND c.oid = to_regclass(quote_ident(%(table)s)))",
            {"table": url.table, "schema": url.schema},
        ).fetchone()
        if found is None or found[3] not in _RELATIONS:
            hint = "; a schema is named by &schema=" if "." in url.table and url.schema is None else ""
            raise GalleryError(f"{url.name}: there is no table {url.table!r} that can be read{hint}")
        columns = _columns(connection, found[0])
        key = key or _key(connection, url, found, columns, options or SourceOptions())
    oid, schema, name, kind = found
    return Table(url, oid, schema, name, kind, columns, key)


def _columns(connection: Any, oid: int) -> dict[str, Column]:
    rows = connection.execute(
        "SELECT a.attname, t.typname, format_type(t.oid, NULL), a.atttypmod, a.attnotnull "
        "FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid "
        "WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
        (oid,),
    )
    return {row[0]: Column(*row) for row in rows}


def _key(
    connection: Any, url: TableUrl, found: tuple[Any, ...], columns: dict[str, Column], options: SourceOptions
) -> tuple[str, ...]:
    """Return the columns that tell the rows apart: those named, else the primary key, else the usual names."""
    if options.id_column is not None:
        one = options.id_column
        named = (one,) if one in columns else tuple(each.strip() for each in one.split(","))
        if missing := [name for name in named if name not in columns]:
            raise UsageError(
                f"{url.name}: has no column {missing[0]!r}; it has {', '.join(map(repr, list(columns)[:12]))}"
            )
    else:
        named = ()
    unique = connection.execute(
        "SELECT i.indisprimary, array(SELECT a.attname::text FROM unnest(i.indkey) WITH ORDINALITY k(n, place) "
        "JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.n "
        "WHERE k.place <= i.indnkeyatts ORDER BY k.place) "
        "FROM pg_catalog.pg_index i WHERE i.indrelid = %s AND i.indisunique AND i.indisvalid AND i.indimmediate "
        "AND i.indpred IS NULL AND i.indexprs IS NULL ORDER BY i.indisprimary DESC",
        (found[0],),
    ).fetchall()
    keys = [(is_primary, tuple(names)) for is_primary, names in unique if all(columns[name].is_set for name in names)]
    if named:
        fitting = [names for _, names in keys if set(names) == set(named)]
    else:
        usual = [(name,) for wanted in ID_NAMES for name in columns if name.lower() == wanted]
        named = usual[0] if usual else ()
        fitting = [names for is_primary, names in keys if is_primary or names in usual]
    if fitting:
        return fitting[0]
    if named and found[3] not in _TABLES:
        _check_unique(connection, url, found, named)
        return named
    raise GalleryError(
        f"{url.name}: no column that is unique and NOT NULL is known to tell its rows apart"
        + (f", {', '.join(map(repr, named))} is not" if named else "")
        + "; add a primary key, or name another one with --id-column"
    )


def _check_unique(connection: Any, url: TableUrl, found: tuple[Any, ...], key: tuple[str, ...]) -> None:
    """Of a view nothing is promised, so its rows are counted."""
    sql = psycopg().sql
    names = sql.SQL(", ").join(map(sql.Identifier, key))
    query = "SELECT count(*), count(DISTINCT ({names})), count(*) FILTER (WHERE NOT ({names}) IS NOT NULL) FROM {table}"
    rows, different, unset = connection.execute(
        sql.SQL(query).format(names=names, table=sql.Identifier(*found[1:3]))
    ).fetchone()
    if rows != different or unset:
        raise GalleryError(f"{url.name}: {', '.join(map(repr, key))} does not tell its rows apart; name another key")
