"""What ``fct-gallery versions`` and ``rollback`` do with a table in a database."""

from __future__ import annotations

import json

import click


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
