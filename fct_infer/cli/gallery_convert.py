"""``fct-gallery convert``: from vectors in any format to a gallery folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fct_infer.cli._common import json_option, show_rows
from fct_infer.cli._progress import progress_on_stderr
from fct_infer.cli._source_options import columns_text, source_options
from fct_infer.machine import counted

if TYPE_CHECKING:
    from fct_infer.connectors import SourceOptions


@click.command("convert", context_settings={"help_option_names": ["-h", "--help"]})
@source_options
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--rows-per-shard", type=click.IntRange(min=1), help="Rows of one file [default: about 128 MiB].")
@click.option("--dtype", type=click.Choice(["float32", "float16"]), help="[default: as stored]")
@click.option("--force", is_flag=True, help="Replace a gallery that exists once the new one is complete.")
@json_option()
def convert_command(
    source: Path,
    dest: Path,
    rows_per_shard: int | None,
    dtype: Any,
    force: bool,
    as_json: bool,
    options: SourceOptions,
) -> None:
    """Write the vectors of SOURCE as a gallery folder DEST.

    SOURCE is a .npy, .npz, Parquet (a file or a folder of them), Arrow, Feather, fbin, fvecs, HDF5, FAISS or
    safetensors file, or a gallery folder; the format is told by content, then by suffix.

    Work happens in DEST.partial, which the next run replaces if this one is killed.

    \b
    Example:
      fct-gallery convert vectors.h5 GALLERY --embedding-column train
    """
    from fct_infer.connectors.convert import convert

    with progress_on_stderr() as progress:
        report = convert(
            source,
            dest,
            options,
            rows_per_shard=rows_per_shard,
            dtype=dtype,
            force=force,
            progress=progress,
        )
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=2, allow_nan=False))
        return
    dims = f"{report.old_dim}" + (f" + {report.side_dim}" if report.side_dim else "")
    show_rows(
        {
            "published": f"{report.gallery}: {counted(report.rows, 'row')} of {dims} {report.dtype} in "
            + counted(report.shards, "shard"),
            "columns": columns_text(report.columns, report.left_out),
            "ids": report.ids or "none; the row number stands for the id",
            "model": report.model,
            "speed": f"{report.rows / report.seconds:,.0f} rows/s, {report.seconds:.1f} s",
        }
    )
    click.echo(f"\nnext: {report.next_command}")
