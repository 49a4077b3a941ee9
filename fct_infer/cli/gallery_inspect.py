"""``fct-gallery inspect``: what lies in a source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fct_infer.cli._common import json_option, show_rows
from fct_infer.cli._progress import progress_on_stderr
from fct_infer.cli._source_options import columns_text, source_options
from fct_infer.machine import counted

if TYPE_CHECKING:
    from fct_infer.connectors import SourceOptions
    from fct_infer.connectors.inspection import Inspection


@click.command("inspect", context_settings={"help_option_names": ["-h", "--help"]})
@source_options
@json_option()
def inspect_command(source: Path, as_json: bool, options: SourceOptions) -> None:
    """Read every row of SOURCE once and say what lies in it: widths, norms, zeros, duplicates, ids.

    \b
    Example:
      fct-gallery inspect items.parquet
    """
    from fct_infer.connectors.inspection import inspect

    with progress_on_stderr() as progress:
        found = inspect(source, options, progress)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2, allow_nan=False))
    else:
        show_rows(_rows(found))


def _rows(found: Inspection) -> dict[str, str]:
    rows = {
        "source": f"{found.source}: {counted(found.rows, 'row')} in {counted(found.parts, 'part')}, {found.format}",
        "columns": columns_text(found.columns, found.other_columns),
        "embeddings": f"{found.old_dim} wide, {found.dtype}",
    }
    rows["model"] = found.model
    if found.side_dim is not None:
        rows["side-information"] = f"{found.side_dim} wide, {found.side_dtype}"
    if found.norm_median is not None:
        rows["norms"] = (
            f"{found.norm_min:.4g} to {found.norm_max:.4g}, median {found.norm_median:.4g}; "
            f"{100 * found.unit_norm:.1f} % of rows have norm 1"
        )
    rows["zero rows"] = f"{found.zero_rows:,}"
    rows["duplicate rows"] = _count(found.duplicate_rows)
    rows["NaN or infinity"] = counted(found.non_finite_rows, "row") + "".join(
        f"\n    {at}" for at in found.first_non_finite
    )
    rows["ids"] = f"{found.ids}, {_count(found.duplicate_ids)} duplicates" if found.ids else "none"
    return rows


def _count(number: int | None) -> str:
    return "not counted, too many rows" if number is None else f"{number:,}"
