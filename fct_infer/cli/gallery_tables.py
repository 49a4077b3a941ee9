"""``fct-gallery versions`` and ``rollback`` of a table in a database."""

from __future__ import annotations

import json
from pathlib import Path

import click

from fct_infer.cli._common import json_option
from fct_infer.cli._source_options import place


@click.command("versions")
@click.argument("table", metavar="URL", type=place)
@json_option()
def versions_command(table: Path | str, as_json: bool) -> None:
    """List the versions of a table's embeddings: which there are, which one readers see, which rows wait for it.

    URL is postgresql://user@host/db?table=items.
    """
    from fct_infer.connectors.postgres_versions import versions

    found = versions(_url(table))
    if as_json:
        click.echo(json.dumps([each.as_dict() for each in found], indent=2, allow_nan=False))
        return
    width = max(len(each.version) for each in found)
    for each in found:
        mark = "*" if each.is_current else " "
        when = f" {each.published[:19]}" if each.published else ""
        waiting = f"; {each.waiting:,} rows written since have no new vector yet" if each.waiting else ""
        click.echo(f"{mark} {each.version:{width}}  {each.state}{when}{waiting}")


@click.command("rollback")
@click.argument("table", metavar="URL", type=place)
@click.option("--to", metavar="VERSION", help="[the one published before the one that is shown, or the original]")
@json_option()
def rollback_command(table: Path | str, to: str | None, as_json: bool) -> None:
    """Let readers see another version of a table's embeddings, in one transaction; the same command goes forward again.

    URL is postgresql://user@host/db?table=items.
    """
    from fct_infer.connectors.postgres_versions import rollback

    shown = rollback(_url(table), to)
    click.echo(json.dumps({"shown": shown}) if as_json else f"readers see {shown!r}")


def _url(table: Path | str) -> str:
    from fct_infer.connectors.registry import kind_of
    from fct_infer.errors import UsageError

    if isinstance(table, Path):
        raise UsageError(f"{table}: wanted the URL of a table, postgresql://user@host/db?table=items")
    kind_of(table)
    return table
