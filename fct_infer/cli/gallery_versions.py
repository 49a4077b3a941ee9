"""``fct-gallery versions`` and ``rollback``: what a published gallery was, and making it that again."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from fct_infer.cli._common import json_option, show_rows, show_table
from fct_infer.cli._source_options import Place
from fct_infer.cli.gallery_tables import roll_back_column, roll_back_table, show_table_versions
from fct_infer.errors import UsageError

if TYPE_CHECKING:
    from fct_infer.gallery.versions import GalleryVersion

_HEAD = ("version", "published", "rows", "dim", "transformation", "size", "")
_DIGEST_DIGITS = 12


@click.command("versions")
@click.argument("dest", type=Place())
@click.option("--keep", type=click.IntRange(min=0), help="Drop all kept versions but the last so many.")
@json_option()
def versions_command(dest: Path | str, keep: int | None, as_json: bool) -> None:
    """List what the published gallery DEST is and was: the versions that rollback can go back to.

    Those of a folder lie in DEST.versions, each a whole gallery that can be read and searched there. Of a table,
    postgresql://user@host/db?table=items, they are columns.

    \b
    Example:
      fct-gallery versions DEST
    """
    from fct_infer.gallery.versions import keep_versions, list_versions

    if isinstance(dest, str):
        if keep is not None:
            raise UsageError("--keep drops folders; a column that is not wanted any more is dropped in the database")
        show_table_versions(dest, as_json)
        return
    dropped = [] if keep is None else keep_versions(dest, keep)
    found = list_versions(dest)
    if as_json:
        document = {"dest": str(dest), "versions": [version.as_dict() for version in found]}
        document["dropped"] = [version.version for version in dropped]
        click.echo(json.dumps(document, indent=2, allow_nan=False))
        return
    show_versions(found)
    if keep is not None:
        click.echo(f"\ndropped: {', '.join(version.version for version in dropped) or 'none'}")


@click.command("rollback")
@click.argument("dest", type=Place())
@click.option("--to", metavar="VERSION", help="Id, or how it begins [default: the one before the current one].")
@json_option()
def rollback_command(dest: Path | str, to: str | None, as_json: bool) -> None:
    """Let DEST be a kept version again, in one step; what it is now is kept in its place.

    Readers see the one or the other, whole. A version whose manifest was altered, or that lacks a file, is refused.
    Of a table, postgresql://user@host/db?table=items, readers see another version's column after one transaction. Of a
    Lance data set, DATASET.lance?column=NAME, or a table of LanceDB the column that an upgrade added is taken out again
    by one commit.

    \b
    Example:
      fct-gallery rollback DEST
    """
    from fct_infer.connectors import open_destination
    from fct_infer.gallery.places import scheme_of
    from fct_infer.gallery.versions import rollback
    from fct_infer.upgrade.lance_work import lance_column

    if scheme_of(dest) == "lancedb":
        dest = cast(Path, open_destination(dest))
    if isinstance(dest, str):
        roll_back_table(dest, to, as_json)
        return
    if column := lance_column(dest):
        roll_back_column(*column, to, as_json)
        return
    report = rollback(dest, to)
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=2, allow_nan=False))
        return
    now, before = report.version, report.replaced
    rows = {"gallery": f"{report.dest}: is version {now.version} again, published {now.published}, {now.rows:,} rows"}
    if before is not None:
        rows["kept"] = f"{before.path}: published {before.published}"
    show_rows(rows)
    if before is not None:
        click.echo(f"\nback: fct-gallery rollback {shlex.quote(str(dest))} --to {before.version}")


def show_versions(versions: list[GalleryVersion]) -> None:
    """Print a table of versions, the last first."""
    from fct_infer.machine import size_text

    table = [_HEAD]
    for each in versions:
        marks = [*(["current"] if each.is_current else []), *([f"damaged: {each.damage}"] if each.damage else [])]
        digest = each.transformation[:_DIGEST_DIGITS]
        columns = (each.version, each.published, f"{each.rows:,}", str(each.dim), digest, size_text(each.bytes))
        table.append((*columns, ", ".join(marks)))
    show_table(table, numbers=(2, 3, 5))
