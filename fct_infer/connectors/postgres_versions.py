"""Versions of the embeddings of a table in PostgreSQL: where each lies, which one readers see, and how to go back.

TABLE_COLUMN           the new vectors beside the table, under its key
TABLE_COLUMN_changes   keys of rows written since; triggers on the table note them and delete their new vectors
TABLE_current          the view that is published: all columns, the embeddings of one version, and which one it is
fct_upgrades           a row for each version, in the table's schema;  fct_upgrade_parts  the ranges of keys of each
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from time import monotonic, sleep
from typing import Any

from fct_infer.connectors.postgres import MAX_NAME, connect, parse_url, pin_search_path, psycopg, server_errors
from fct_infer.connectors.postgres_table import Table, find_table
from fct_infer.errors import OutputError, UsageError

LOCK_SECONDS = 2.0  # that writers may be held up while one who is at work is waited for
LOCK_TRIES = 60
VERSION_SUFFIX = "_version"
_COMMENT = "fct_infer"
# See Note [Blind writers].
_JOINED = (
    " JOIN {shown} AS s ON {same} WHERE NOT EXISTS (SELECT FROM {its_changes} AS c WHERE c.fct_is_blind AND {same_key})"
)
_SECURITY_INVOKER = 150_000  # the first server whose views read with the rights of who asks


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
        for name in (self.changes, self.view_name, self.embedding + VERSION_SUFFIX, _trigger(self, "_truncate")):
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


def has_relation(connection: Any, schema: str, name: str) -> bool:
    """Whether something of that name is there."""
    query = (
        "SELECT 1 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = %s AND c.relname = %s"
    )
    return connection.execute(query, (schema, name)).fetchone() is not None


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
                trigger=sql.Identifier(_trigger(names, suffix)),
                differs=differs,
            )
        )
        if _is_owner(connection, names):  # rows that replication brings are written, too
            connection.execute(
                names.format(
                    "ALTER TABLE {table} ENABLE ALWAYS TRIGGER {trigger}",
                    trigger=sql.Identifier(_trigger(names, suffix)),
                )
            )
    for name in (names.side, names.changes):
        copy_grants(connection, names, name)


def _is_owner(connection: Any, names: Names) -> bool:
    query = "SELECT pg_has_role(relowner, 'USAGE') FROM pg_catalog.pg_class WHERE oid = %s"
    return bool(connection.execute(query, (names.table.oid,)).fetchone()[0])


def _trigger(names: Names, suffix: str) -> str:
    return f"{names.column}_changed{suffix}"


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
        name = sql.Identifier(_trigger(names, suffix))
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


def patience(number: int) -> float:
    """Return for how many seconds a lock is waited for the ``number``-th time: a moment first, then longer."""
    return float(min(LOCK_SECONDS, 0.05 * 1.3**number))


@contextmanager
def locked(connection: Any, names: Names, mode: str) -> Iterator[None]:
    """Do something in one transaction that holds a lock on the table, waiting for it a little at a time.

    Who waits for a lock holds up all who come after; so after a moment it lets them pass and tries again.
    """
    errors = psycopg().errors
    try:
        for number in range(LOCK_TRIES):
            connection.execute("SELECT set_config('lock_timeout', %s, false)", (f"{patience(number) * 1000:.0f}ms",))
            connection.execute("BEGIN")
            try:
                connection.execute(names.format(f"LOCK TABLE {{table}} IN {mode} MODE"))
                break
            except errors.LockNotAvailable:
                connection.execute("ROLLBACK")
                if number == LOCK_TRIES - 1:
                    raise
                sleep(patience(number))
            except BaseException:
                _roll_back(connection)
                raise
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            _roll_back(connection)
            raise
    finally:
        if not connection.closed:
            connection.execute("SET lock_timeout = 0")


def _roll_back(connection: Any) -> None:
    if not connection.closed and not connection.broken:
        connection.rollback()


@dataclass(frozen=True)
class VersionFacts:
    """One version of a table's embeddings.

    Attributes:
        version: its column.
        state: ``original``, ``begun``, ``gate failed``, ``ready`` or ``published``.
        is_current: whether the view shows it.
        published: when, in ISO 8601; None for the original and for what is not.
        waiting: rows that were written since and have no new vector yet.
    """

    version: str
    state: str
    is_current: bool
    published: str | None = None
    waiting: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return it as strict JSON."""
        return asdict(self)


def versions(url: str) -> list[VersionFacts]:
    """Return the versions of a table's embeddings, the original first, then in the order in which they were begun."""
    found: list[VersionFacts] = _with_books(url, _versions)
    return found


def _versions(connection: Any, names: Names) -> list[VersionFacts]:
    found = connection.execute(
        names.format(
            "SELECT column_name, state, is_current, published FROM {upgrades} WHERE table_name = {name} ORDER BY begun",
            name=psycopg().sql.Literal(names.table.name),
        )
    ).fetchall()
    listed = []
    for column, state, is_current, published in found:
        log = names.sql(f"{names.table.name}_{column}_changes")
        (waiting,) = connection.execute(names.format("SELECT count(*) FROM {log}", log=log)).fetchone()
        when = None if published is None else published.isoformat(timespec="microseconds")
        listed.append(VersionFacts(column, state, is_current, when, waiting))
    return [VersionFacts(names.embedding, "original", not any(each.is_current for each in listed)), *listed]


def rollback(url: str, to: str | None = None) -> str:
    """Let the view show another version, in one transaction; nothing is lost, so the same call goes forward again.

    Args:
        url: of the table.
        to: the version; by default the one that was published before the one that is shown now, or the original.

    Returns:
        The version that is shown now.

    Raises:
        OutputError: nothing was published, or there is no such version, or it is not published.
        UsageError: the URL is none.
    """

    def run(connection: Any, names: Names) -> str:
        known = _versions(connection, names)
        published = [each for each in known if each.state in ("original", "published")]
        current = next(each for each in known if each.is_current)
        before = [each for each in published if (each.published or "") < (current.published or "")]
        wanted = to or (max(before, key=lambda each: each.published or "").version if before else None)
        if wanted is None:
            raise OutputError(f"{names.table.url.name}: shows {current.version!r}, before which there was none")
        if wanted not in [each.version for each in published]:
            have = ", ".join(repr(each.version) for each in published)
            raise OutputError(f"{names.table.url.name}: has no published version {wanted!r}; it has {have}")
        with closing_transaction(connection):
            show_version(connection, names, wanted)
        return wanted

    shown: str = _with_books(url, run)
    return shown


@contextmanager
def closing_transaction(connection: Any) -> Iterator[None]:
    """Do something in one transaction that waits for readers of a view at most :data:`LOCK_SECONDS`."""
    connection.execute("BEGIN")
    try:
        connection.execute(f"SET LOCAL lock_timeout = '{LOCK_SECONDS * 1000:.0f}ms'")
        yield
        connection.execute("COMMIT")
    except BaseException:
        _roll_back(connection)
        raise


def drop(url: str) -> None:
    """Remove the version that a URL's ``column`` names, with its table and triggers.

    Raises:
        OutputError: there is none, or readers see it.
    """

    def run(connection: Any, names: Names) -> None:
        found = next((each for each in _versions(connection, names) if each.version == names.column), None)
        if found is None or found.state == "original":
            raise OutputError(f"{names.table.url.name}: has no version {names.column!r} that an upgrade made")
        if found.is_current:
            raise OutputError(f"{names.table.url.name}: {names.column!r} is what readers see; roll back first")
        with locked(connection, names, "SHARE ROW EXCLUSIVE"):
            drop_version(connection, names)

    _with_books(url, run)


def _with_books(url: str, run: Callable[[Any, Names], Any]) -> Any:
    table_url = parse_url(url)
    with closing(connect(table_url)) as connection, server_errors(table_url):
        table, found = find_table(connection, table_url, key=("",)), None  # the books say by which key
        pin_search_path(connection)
        if has_relation(connection, table.schema, "fct_upgrades"):
            bare = Names(table, "", "")
            query = (
                "SELECT embedding, view_name, key_columns FROM {upgrades} WHERE table_name = {name} "
                "ORDER BY is_current DESC, begun"
            )
            found = connection.execute(bare.format(query, name=psycopg().sql.Literal(table.name))).fetchone()
        if found is None:
            raise OutputError(f"{table_url.name}: no upgrade was begun here")
        table = replace(table, key=tuple(found[2]))
        return run(connection, Names(table, table_url.column or "", found[0], table_url.view or found[1]))


def take_lock(connection: Any, names: Names, patience: float = 10.0) -> bool:
    """Take the lock of one version for this session; a killed run's is let go once the server has noticed."""
    key = f"fct_infer {names.table.schema}.{names.side}"
    until = monotonic() + patience
    while True:
        if connection.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", (key,)).fetchone()[0]:
            return True
        if monotonic() > until:
            return False
        sleep(0.1)
