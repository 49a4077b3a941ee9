"""What an upgrade makes and removes in a database: tables, triggers, and the view that readers search."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fct_infer.connectors.postgres import psycopg
from fct_infer.connectors.postgres_names import VERSION_SUFFIX, Names

_COMMENT = "fct_infer"
# See Note [Blind writers].
_JOINED = (
    " JOIN {shown} AS s ON {same} WHERE NOT EXISTS (SELECT FROM {its_changes} AS c WHERE c.fct_is_blind AND {same_key})"
)
_SECURITY_INVOKER = 150_000  # the first server whose views read with the rights of who asks


def ensure_books(connection: Any, names: Names) -> None:
    """Make the two tables that say what was begun and done, where they are missing."""
    connection.execute(
        names.format(
            "CREATE TABLE IF NOT EXISTS {upgrades} (table_name text, column_name text, embedding text NOT NULL, "
            "view_name text NOT NULL, key_columns text[] NOT NULL, identity jsonb NOT NULL, "
            "state text NOT NULL, token text NOT NULL, "
            "infos jsonb, begun timestamptz NOT NULL DEFAULT now(), published timestamptz, "
            "is_current boolean NOT NULL DEFAULT false, PRIMARY KEY (table_name, column_name))"
        )
    )
    connection.execute(
        names.format(
            "CREATE TABLE IF NOT EXISTS {parts} (table_name text, column_name text, part text, above text[], "
            "upto text[], rows bigint, done timestamptz, PRIMARY KEY (table_name, column_name, part), "
            "FOREIGN KEY (table_name, column_name) REFERENCES {upgrades} ON DELETE CASCADE)"
        )
    )


def create_version(connection: Any, names: Names, inputs: list[str], vector: str) -> None:
    """Make the empty tables of a version and the triggers that keep it honest; in a transaction of the caller's.

    Args:
        connection: in a transaction.
        names: of the version.
        inputs: columns that the new vector is computed from.
        vector: the new column's type.
    """
    sql = psycopg().sql
    for name in (names.side, names.changes):
        connection.execute(
            names.format("CREATE TABLE {new} AS SELECT {key} FROM {table} WITH NO DATA", new=names.sql(name))
        )
    connection.execute(
        names.format(
            "ALTER TABLE {side} ADD COLUMN {column} {vector} NOT NULL, ADD PRIMARY KEY ({key})", vector=sql.SQL(vector)
        )
    )
    connection.execute(
        names.format(
            "ALTER TABLE {changes} ADD COLUMN fct_place bigint GENERATED ALWAYS AS IDENTITY, "
            "ADD COLUMN fct_is_blind boolean NOT NULL DEFAULT false, ADD PRIMARY KEY (fct_place)"
        )
    )
    connection.execute(names.format("CREATE INDEX ON {changes} ({key}) WHERE fct_is_blind"))
    _create_function(connection, names)
    differs = sql.SQL(" OR ").join(
        sql.SQL("OLD.{} IS DISTINCT FROM NEW.{}").format(sql.Identifier(name), sql.Identifier(name))
        for name in dict.fromkeys([*names.table.key, *inputs])
    )
    for suffix, when in (
        ("", "INSERT OR DELETE ON {table} FOR EACH ROW"),
        ("_update", "UPDATE ON {table} FOR EACH ROW WHEN ({differs})"),
        ("_truncate", "TRUNCATE ON {table} FOR EACH STATEMENT"),
    ):
        connection.execute(
            names.format(
                f"CREATE TRIGGER {{trigger}} AFTER {when} EXECUTE FUNCTION {{function}}()",
                trigger=sql.Identifier(names.trigger(suffix)),
                differs=differs,
            )
        )
        if _is_owner(connection, names):  # rows that replication brings are written, too
            connection.execute(
                names.format(
                    "ALTER TABLE {table} ENABLE ALWAYS TRIGGER {trigger}",
                    trigger=sql.Identifier(names.trigger(suffix)),
                )
            )
    for name in (names.side, names.changes):
        copy_grants(connection, names, name)


def _is_owner(connection: Any, names: Names) -> bool:
    query = "SELECT pg_has_role(relowner, 'USAGE') FROM pg_catalog.pg_class WHERE oid = %s"
    return bool(connection.execute(query, (names.table.oid,)).fetchone()[0])


def _create_function(connection: Any, names: Names) -> None:
    """Make what the triggers call. It has its owner's rights, so that who writes rows needs none on our tables.

    Note [Blind writers]: a transaction that is REPEATABLE READ or stricter sees as its own past what was there when it
    began. A new vector that was written since it cannot delete; so it says that it was blind, and the view leaves out
    the rows of blind changes until they are caught up with.
    """
    sql = psycopg().sql

    def row(of: str) -> Any:
        return sql.SQL(", ").join(sql.SQL(f"{of}.{{}}").format(sql.Identifier(name)) for name in names.table.key)

    body = names.format(
        "BEGIN "
        # DELETE, since TRUNCATE would wait for a COPY of ours that may wait for this very transaction.
        "IF TG_OP = 'TRUNCATE' THEN DELETE FROM {side}; DELETE FROM {changes}; RETURN NULL; END IF; "
        "IF TG_OP <> 'INSERT' THEN "
        "DELETE FROM {side} WHERE ({key}) = ({old}); "
        "INSERT INTO {changes} ({key}, fct_is_blind) VALUES ({old}, {blind}); END IF; "
        "IF TG_OP = 'INSERT' OR TG_OP = 'UPDATE' AND ({old}) IS DISTINCT FROM ({new}) THEN "
        "INSERT INTO {changes} ({key}, fct_is_blind) VALUES ({new}, {blind}); END IF; "
        "RETURN NULL; END",
        old=row("OLD"),
        new=row("NEW"),
        blind=sql.SQL("current_setting('transaction_isolation') NOT LIKE 'read %'"),
    ).as_string(connection)
    connection.execute(
        names.format(
            "CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER "
            "SET search_path = pg_catalog, pg_temp AS {body}",
            body=sql.Literal(body),
        )
    )
    connection.execute(names.format("REVOKE ALL ON FUNCTION {function}() FROM PUBLIC"))


def drop_version(connection: Any, names: Names) -> None:
    """Remove a version with all that belongs to it; in a transaction of the caller's."""
    sql = psycopg().sql
    for suffix in ("", "_update", "_truncate"):
        name = sql.Identifier(names.trigger(suffix))
        connection.execute(names.format("DROP TRIGGER IF EXISTS {name} ON {table}", name=name))
    connection.execute(names.format("DROP FUNCTION IF EXISTS {function}()"))
    connection.execute(names.format("DROP TABLE IF EXISTS {side}, {changes}"))
    connection.execute(names.format("DELETE FROM {upgrades} WHERE {this}"))


def copy_grants(connection: Any, names: Names, to: str) -> None:
    """Let whoever may read the table read what was made beside it."""
    sql = psycopg().sql
    readers = connection.execute(
        "SELECT DISTINCT CASE WHEN a.grantee = 0 THEN NULL ELSE pg_get_userbyid(a.grantee) END "
        "FROM pg_catalog.pg_class c, aclexplode(c.relacl) a "
        "WHERE c.oid = %s AND a.privilege_type = 'SELECT' AND a.grantee <> c.relowner",
        (names.table.oid,),
    ).fetchall()
    owner = connection.execute("SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = %s", (names.table.oid,))
    for (reader,) in {*readers, owner.fetchone()}:
        who = sql.SQL("PUBLIC") if reader is None else sql.Identifier(reader)
        connection.execute(names.format("GRANT SELECT ON {to} TO {who}", to=names.sql(to), who=who))


def show_version(connection: Any, names: Names, version: str, kind: str = "vector") -> None:
    """Let the view give one version's embeddings; in a transaction of the caller's.

    The view's columns keep their names and types, so that what is prepared on it stays valid: the embeddings are shown
    without their width, and a column that the table got since comes last.

    Args:
        connection: in a transaction.
        names: of any version.
        version: the column of the one to be shown.
        kind: type of the embeddings in a view that is not there yet.
    """
    sql = psycopg().sql
    shown = connection.execute(
        "SELECT a.attname, format_type(a.atttypid, NULL) FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c "
        "ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = %s AND c.relname = %s AND a.attnum > 0 ORDER BY a.attnum",
        (names.table.schema, names.view_name),
    ).fetchall()
    marker = names.embedding + VERSION_SUFFIX
    order = [name for name, _ in shown] or [*names.table.columns, marker]
    order += [name for name in names.table.columns if name not in order]
    is_old = version == names.embedding
    kind = dict(shown).get(names.embedding, kind)
    expressions = {
        names.embedding: sql.SQL("{}.{}::{}").format(
            sql.SQL("i" if is_old else "s"), sql.Identifier(version), sql.SQL(kind)
        ),
        marker: sql.SQL("{}::text").format(sql.Literal(version)),
    }
    columns = sql.SQL(", ").join(
        sql.SQL("{} AS {}").format(
            expressions.get(name, sql.SQL("i.{}").format(sql.Identifier(name))), sql.Identifier(name)
        )
        for name in order
    )
    invoker = connection.info.server_version >= _SECURITY_INVOKER
    shown_names = replace(names, column=version)
    connection.execute(
        names.format(
            f"CREATE OR REPLACE VIEW {{view}} {'WITH (security_invoker = true) ' if invoker else ''}AS "
            f"SELECT {{columns}} FROM {{table}} AS i{'' if is_old else _JOINED}",
            columns=columns,
            shown=names.sql(shown_names.side),
            its_changes=names.sql(shown_names.changes),
            same_key=sql.SQL(" AND ").join(
                sql.SQL("c.{} = i.{}").format(sql.Identifier(name), sql.Identifier(name)) for name in names.table.key
            ),
        )
    )
    if not shown:
        copy_grants(connection, names, names.view_name)
        comment = sql.Literal(_COMMENT + " shows one version of the embeddings of a table; see fct_upgrades")
        connection.execute(names.format("COMMENT ON VIEW {view} IS {comment}", comment=comment))
    connection.execute(
        names.format(
            "UPDATE {upgrades} SET is_current = (column_name = {version}) WHERE table_name = {name} "
            "AND view_name = {view_text}",
            version=sql.Literal(version),
            name=sql.Literal(names.table.name),
            view_text=sql.Literal(names.view_name),
        )
    )


def is_our_view(connection: Any, names: Names) -> bool:
    """Whether the view of that name was made here, as its comment says."""
    query = "SELECT starts_with(obj_description(to_regclass(%s), 'pg_class'), %s)"
    name = names.sql(names.view_name).as_string(connection)
    return bool(connection.execute(query, (name, _COMMENT)).fetchone()[0])
