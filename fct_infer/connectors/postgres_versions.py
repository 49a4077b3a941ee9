"""Versions of the embeddings of a table in PostgreSQL: which there are, which one readers see, and how to go back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

from fct_infer.connectors.postgres import connect, parse_url, pin_search_path, psycopg, server_errors
from fct_infer.connectors.postgres_ddl import drop_version, show_version
from fct_infer.connectors.postgres_locks import closing_transaction, locked
from fct_infer.connectors.postgres_names import Names, has_relation
from fct_infer.connectors.postgres_table import find_table
from fct_infer.connectors.table_versions import VersionFacts, chosen_version
from fct_infer.errors import OutputError


def versions(url: str) -> list[VersionFacts]:
    """Return the versions of a table's embeddings, the original first, then in the order in which they were begun."""
    found: list[VersionFacts] = with_books(url, _versions)
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
        wanted = chosen_version(names.table.url.name, known, to)
        with closing_transaction(connection):
            show_version(connection, names, wanted)
        return wanted

    shown: str = with_books(url, run)
    return shown


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

    with_books(url, run)


def with_books(url: str, run: Callable[[Any, Names], Any]) -> Any:
    """Call ``run`` with a connection and the names of the version that a URL names, as the books have them."""
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
