"""What the books say of the versions of a table's embeddings: what was begun, and which names are taken."""

from __future__ import annotations

from typing import Any

from fct_infer.connectors.postgres import literals
from fct_infer.connectors.postgres_ddl import is_our_view
from fct_infer.connectors.postgres_names import Names, has_relation
from fct_infer.errors import OutputError


def read_record(connection: Any, names: Names) -> dict[str, Any] | None:
    """Return what is recorded of a version; None if it was not begun."""
    if not has_relation(connection, names.table.schema, "fct_upgrades"):
        return None
    found = connection.execute(
        names.format("SELECT state, identity, infos, view_name FROM {upgrades} WHERE {this}")
    ).fetchone()
    return None if found is None else dict(zip(("state", "identity", "infos", "view_name"), found, strict=True))


def read_bounds(connection: Any, names: Names) -> dict[str, tuple[Any, Any]]:
    """Return the ranges of an upgrade that was begun; empty without."""
    if not has_relation(connection, names.table.schema, "fct_upgrade_parts"):
        return {}
    rows = connection.execute(
        names.format("SELECT part, above, upto FROM {parts} WHERE {this} ORDER BY part")
    ).fetchall()
    return {part: (above and tuple(above), upto and tuple(upto)) for part, above, upto in rows}


def check_free(connection: Any, names: Names) -> None:
    """Raise an OutputError if a name is taken by something that no upgrade made."""
    record = read_record(connection, names)
    taken = [] if record else [names.side, names.changes]
    if not is_our_view(connection, names):
        taken.append(names.view_name)
    for name in taken:
        if has_relation(connection, names.table.schema, name):
            raise OutputError(f"{names.table.schema}.{name}: exists and was not made by an upgrade of this table")


def is_published(connection: Any, names: Names) -> bool:
    """Whether the view has shown anything but the original."""
    query = (
        "SELECT 1 FROM {upgrades} WHERE table_name = {table_text} AND view_name = {view_text} AND state = 'published'"
    )
    texts = {"table_text": literals(names.table.name), "view_text": literals(names.view_name)}
    return connection.execute(names.format(query, **texts)).fetchone() is not None
