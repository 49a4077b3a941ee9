"""``fct-export``: from a trained model to the files production runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from fct_infer.artifacts.loading import is_torchscript
from fct_infer.artifacts.manifest import KINDS
from fct_infer.cli._common import json_option, run_cli, say_torchscript_is_code

if TYPE_CHECKING:
    from fct_infer.export.exporting import ExportReport


def _parse_shapes(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> list[tuple[int, ...]]:
    for value in values:
        if not re.fullmatch(r"[1-9]\d{0,5}(x[1-9]\d{0,5})*", value, re.ASCII):
            raise click.BadParameter(f"{value!r} is not of the form 3x32x32, or 128 for rows")
    return [tuple(map(int, value.split("x"))) for value in values]


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", "bundle", type=click.Path(path_type=Path), help="Bundle to write [MODEL.bundle].")
@click.option("--kind", type=click.Choice(["auto", *KINDS]), default="auto", show_default=True)
@click.option("--targets", help="Comma-separated: core, onnx, torchscript [core,onnx or onnx,torchscript].")
@click.option(
    "--input-shape",
    "input_shapes",
    metavar="CxHxW",
    multiple=True,
    callback=_parse_shapes,
    help="Where the file cannot tell: 3x32x32 for images; for rows the width of each input, old then side.",
)
@click.option("--force", is_flag=True, help="Replace a bundle that exists.")
@json_option()
def command(
    model: Path,
    bundle: Path | None,
    kind: str,
    targets: str | None,
    input_shapes: list[tuple[int, ...]],
    force: bool,
    as_json: bool,
) -> None:
    """Export MODEL as a bundle, each of its files loaded back and compared with MODEL.

    MODEL is a TorchScript archive (a transformation or an image model), or an ONNX file or bundle of a transformation.
    TorchScript is code: it runs when it is loaded, so name only files you trust.
    """
    from fct_infer.export.user_files import export_file

    if is_torchscript(model):
        say_torchscript_is_code(model)
    report = export_file(
        model,
        bundle,
        kind=next((name for name in KINDS if name == kind), None),
        targets=None if targets is None else [name.strip() for name in targets.split(",")],
        input_shapes=input_shapes,
        force=force,
    )
    for note in report.notes:
        click.echo(f"note: {note}", err=True)
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2, allow_nan=False))
    else:
        _print(report)


def _print(report: ExportReport) -> None:
    manifest = report.manifest
    inputs = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in manifest.inputs.items())
    table = Table(box=None, pad_edge=False)
    for column in ("target", "file"):
        table.add_column(column, no_wrap=True)
    for column in ("size", "max error", "min cosine"):
        table.add_column(column, justify="right", no_wrap=True)
    for file in manifest.files:
        parity = file.parity
        size = f"{file.size / 1e6:,.1f} MB"
        table.add_row(file.target, file.name, size, f"{parity.max_abs_error:.1e}", f"{parity.min_cosine:.7f}")
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"{manifest.kind} {manifest.model_version}: {inputs} -> embedding {manifest.output_dim}")
    console.print(table)
    console.print(f"written: {report.bundle}")
    if report.next_command:
        console.print(f"next: {report.next_command}")


def main() -> None:
    """Entry point of ``fct-export``."""
    run_cli(command)
