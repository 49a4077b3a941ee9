"""``fct-gallery verify``: every byte of a published gallery against its manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fct_infer.cli._common import json_option, show_rows
from fct_infer.cli._executor_options import executor_options
from fct_infer.cli._progress import progress_on_stderr
from fct_infer.cli._source_options import Place
from fct_infer.machine import counted

if TYPE_CHECKING:
    from fct_infer.index.verify import GalleryCheck
    from fct_infer.upgrade.executor import Executor

MAX_NAMED = 100  # damaged files printed as text; --json names all


@click.command("verify")
@click.argument("dest", type=Place())
@executor_options
@json_option()
def verify_command(dest: Path, executor: Executor | None, as_json: bool) -> int:
    """Read every byte of the published gallery DEST and compare it with its manifest.

    Ends with 0 if all is as it was published, with 4 and the name of each damaged file if not. With --executor ray the
    workers of a cluster read, which see DEST under the same name.

    \b
    Example:
      fct-gallery verify DEST
      fct-gallery verify s3://bucket/DEST --executor ray --ray-address auto
    """
    from fct_infer.errors import ArtifactError
    from fct_infer.gallery.jobs import Workers
    from fct_infer.index.verify import verify_gallery

    with progress_on_stderr("bytes") as progress:
        found = verify_gallery(dest, progress, executor if isinstance(executor, Workers) else None)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2, allow_nan=False))
    else:
        show_check(found)
    return ArtifactError.exit_code if found.damaged else 0


def show_check(found: GalleryCheck) -> None:
    """Print what was found; each damaged file goes to stderr, as errors do."""
    for name, damage in list(found.damaged.items())[:MAX_NAMED]:
        click.echo(f"error: {found.dest / name}: is damaged: {damage}", err=True)
    if len(found.damaged) > MAX_NAMED:
        click.echo(f"error: and {len(found.damaged) - MAX_NAMED:,} more; --json names them all", err=True)
    rows = {
        "gallery": f"{found.dest}: {counted(found.rows, 'row')} of {found.dim}",
        "checked": f"{counted(found.files, 'file')}, {found.bytes:,} bytes",
        "damaged": counted(len(found.damaged), "file") if found.damaged else "none",
    }
    if not found.is_sealed:
        rows["note"] = "manifest.json has no seal, as the first release wrote it: what it says is taken on trust"
    if found.surplus:
        rows["surplus"] = (
            f"{counted(len(found.surplus), 'file')} that manifest.json does not list, such as {found.surplus[0]}"
        )
    show_rows(rows)
