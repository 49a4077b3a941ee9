"""``fct-gallery add-column``: an upgraded gallery back into the Lance data set it came from."""

from __future__ import annotations

import json
from pathlib import Path

import click

from fct_infer.cli._common import json_option, show_rows
from fct_infer.cli._progress import progress_on_stderr
from fct_infer.cli._source_options import Place


@click.command("add-column", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("gallery", type=click.Path(path_type=Path))
@click.argument("dataset", type=Place())
@click.argument("name")
@json_option()
def add_column_command(gallery: Path, dataset: Path, name: str, as_json: bool) -> None:
    """Write the new rows of the published GALLERY into DATASET, a Lance data set, as the column NAME.

    DATASET must be what GALLERY was upgraded from, with the same rows still. The column appears by one commit; then
    some rows are read back. All else in DATASET stays as it is.

    \b
    Example:
      fct-gallery add-column DEST items.lance embedding_v2
    """
    from fct_infer.connectors.lance_column import add_column

    with progress_on_stderr() as progress:
        report = add_column(gallery, dataset, name, progress)
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=2, allow_nan=False))
        return
    show_rows(
        {
            "committed": f"{report.dataset}, version {report.version}: {report.rows:,} rows of {report.dim} "
            f"{report.dtype} in column {report.column!r}",
            "undo": report.undo,
        }
    )
