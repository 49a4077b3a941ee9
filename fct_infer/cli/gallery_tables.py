"""What ``fct-gallery versions`` and ``rollback`` do with a table in a database."""

from __future__ import annotations

import json
from pathlib import Path

import click

from fct_infer.errors import UsageError


def show_table_versions(url: str, as_json: bool) -> None:
    """Print the versions of a table's embeddings: which there are, which one readers see, which rows wait for it."""
    from fct_infer.connectors.table_versions import versions

    found = versions(url)
    if as_json:
        click.echo(json.dumps([each.as_dict() for each in found], indent=2, allow_nan=False))
        return
    width = max(len(each.version) for each in found)
    for each in found:
        mark = "*" if each.is_current else " "
        when = f" {each.published[:19]}" if each.published else ""
        waiting = f"; {each.waiting:,} rows written since have no new vector yet" if each.waiting else ""
        click.echo(f"{mark} {each.version:{width}}  {each.state}{when}{waiting}")


def roll_back_table(url: str, to: str | None, as_json: bool) -> None:
    """Let readers see another version of a table's embeddings, in one transaction, and print which."""
    from fct_infer.connectors.table_versions import rollback

    shown = rollback(url, to)
    click.echo(json.dumps({"shown": shown}) if as_json else f"readers see {shown!r}")


def roll_back_column(dataset: Path, column: str, to: str | None, as_json: bool) -> None:
    """Take the column that an upgrade added to a Lance data set out again, and print the version without it."""
    from fct_infer.connectors.lance_column import drop_column

    if to is not None:
        raise UsageError("--to names a version of a gallery; of a data set the named column is taken out")
    version = drop_column(dataset, column)
    found = {"dataset": str(dataset), "dropped": column, "version": version}
    click.echo(json.dumps(found) if as_json else f"{dataset}: version {version} is without column {column!r}")
