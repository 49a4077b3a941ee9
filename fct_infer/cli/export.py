"""``fct-export``: from a trained model to the files production runs."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from fct_infer.artifacts.manifest import INTERPOLATIONS, KINDS, Interpolation, Parity
from fct_infer.artifacts.precisions import PRECISIONS
from fct_infer.cli._common import json_option, run_cli, say_files_are_code
from fct_infer.cli._verbosity import note

if TYPE_CHECKING:
    from fct_infer.export.options import ExportReport

_WIDTH = 80  # of tables in a file or a pipe


def _split_names(_context: object, _parameter: object, text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = tuple(text.split(","))
    if len(names) != 2 or not all(names):
        raise click.BadParameter(f"{text!r}, wanted two names: old_embedding,side_information")
    return names


def _parse_shapes(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> list[tuple[int, ...]]:
    for value in values:
        if not re.fullmatch(r"[1-9]\d{0,5}(x[1-9]\d{0,5})*", value, re.ASCII):
            raise click.BadParameter(f"{value!r} is not of the form 3x32x32, or 128 for rows")
    return [tuple(map(int, value.split("x"))) for value in values]


def _parse_numbers(_context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        return tuple(float(number) for number in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not of the form 0.485,0.456,0.406", param=parameter) from None


def _split(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in value.split(",")) if value else ()


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", "bundle", type=click.Path(path_type=Path), help="Bundle to write [MODEL.bundle].")
@click.option(
    "--kind",
    type=click.Choice(["auto", *KINDS]),
    default="auto",
    show_default=True,
    help="What MODEL is; auto: as its inputs tell.",
)
@click.option(
    "--targets",
    callback=_split,
    help="Comma-separated: core, onnx, torchscript, pt2, tensorrt, tensorrt-rtx "
    "[core,onnx for a transformation; onnx,torchscript for an image model].",
)
@click.option(
    "--precision",
    "precisions",
    default="fp32",
    show_default=True,
    callback=_split,
    help=f"Of: {', '.join(PRECISIONS)}.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="GALLERY",
    help="Real rows in any format: scales for int8 and fp8, part of every proof. For image models a .npy, prepared.",
)
@click.option(
    "--calibration-rows",
    type=click.IntRange(min=2),
    default=4096,
    show_default=True,
    help="Drawn at random.",
)
@click.option(
    "--input-shape",
    "input_shapes",
    metavar="CxHxW",
    multiple=True,
    callback=_parse_shapes,
    help="Where the file cannot tell: 3x32x32 for images; for rows the width of each input, old then side.",
)
@click.option(
    "--inputs",
    "old_first",
    metavar="NAME,NAME",
    callback=_split_names,
    help="MODEL's own names of the old embedding and the side-information, where they do not tell which is which.",
)
@click.option(
    "--image-mean", callback=_parse_numbers, metavar="R,G,B", help="How images are prepared, on the scale 0 to 1."
)
@click.option("--image-std", callback=_parse_numbers, metavar="R,G,B", help="By what the rest is divided, then.")
@click.option("--image-resize", type=click.IntRange(min=1), help="Shorter side before the centre crop [no crop].")
@click.option(
    "--image-crop-fraction",
    type=click.FloatRange(0, 1, min_open=True),
    help="Instead of --image-resize: share of the shorter side that the crop is.",
)
@click.option(
    "--image-interpolation",
    type=click.Choice(INTERPOLATIONS),
    help="How images are scaled; CLIP, SigLIP, DINO and most ViTs: bicubic [as MODEL tells, else bilinear].",
)
@click.option("--model-version", help="Name of this model [first 12 digits of the file's SHA-256].")
@click.option("--old-model", metavar="NAME", help="Of a transformation: whose vectors it takes [as MODEL says].")
@click.option("--new-model", metavar="NAME", help="Of a transformation: whose vectors it makes [as MODEL says].")
@click.option(
    "--engine-rows", metavar="TYPICAL,MOST", help="Of a call to a TensorRT engine [4096,65536; images: 32,256]."
)
@click.option("--device", default="auto", show_default=True, help="Where files are tried: auto, cpu, cuda or cuda:N.")
@click.option("--allow-unproven", is_flag=True, help="Publish a file that nothing here can run (an engine, no device).")
@click.option(
    "--trust-code", is_flag=True, help="Build a checkpoint's model that is not this project's; its code runs."
)
@click.option("--force", is_flag=True, help="Replace a bundle that exists.")
@json_option()
def command(
    model: Path,
    bundle: Path | None,
    kind: str,
    targets: tuple[str, ...],
    precisions: tuple[str, ...],
    calibration: Path | None,
    calibration_rows: int,
    input_shapes: list[tuple[int, ...]],
    old_first: tuple[str, ...] | None,
    image_mean: tuple[float, ...] | None,
    image_std: tuple[float, ...] | None,
    image_resize: int | None,
    image_crop_fraction: float | None,
    image_interpolation: Interpolation | None,
    model_version: str | None,
    old_model: str | None,
    new_model: str | None,
    engine_rows: str | None,
    device: str,
    allow_unproven: bool,
    trust_code: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Export MODEL as a bundle, each of its files loaded back and compared with MODEL.

    MODEL is a TorchScript or torch.export archive, an ONNX file, one of this project's checkpoints (.safetensors, or
    the folder of an fct-train run), or a bundle to convert onward. The two archives are code: it runs when it is
    loaded, so name only files you trust.

    \b
    Example:
      fct-export h.pt -o h.bundle
      fct-export h.onnx --targets core,onnx --precision fp32,bf16 --calibration GALLERY
    """
    from fct_infer.artifacts.bundle import refuse_existing
    from fct_infer.export.calibration import read_calibration
    from fct_infer.export.checkpoints import is_foreign_code, open_named
    from fct_infer.export.options import Options
    from fct_infer.export.user_files import default_bundle, export_opened, preprocessing_of

    if image_resize is not None and image_crop_fraction is not None:
        raise click.UsageError("--image-resize and --image-crop-fraction say the same; give one")
    bundle = bundle or default_bundle(model)
    inputs_of_bundle = {"model": model} | ({"calibration": calibration} if calibration else {})
    refuse_existing(bundle, inputs_of_bundle, force=force)
    if is_foreign_code(model):
        say_files_are_code(model)
    chosen = next((name for name in KINDS if name == kind), None)
    opened = open_named(model, chosen, input_shapes, old_first, trust_code=trust_code)
    inputs = opened.model.interface.inputs
    options = Options(
        targets=targets,
        precisions=precisions,
        calibration=read_calibration(calibration, inputs, calibration_rows) if calibration else None,
        model_version=model_version,
        old_model=old_model,
        new_model=new_model,
        engine_rows=_parse_rows(engine_rows),
        device=device,
        allow_unproven=allow_unproven,
        force=force,
        progress=note,
    )
    preprocessing = preprocessing_of(
        inputs,
        image_mean,
        image_std,
        image_resize,
        crop_fraction=image_crop_fraction,
        interpolation=image_interpolation,
        known=opened.preprocessing,
    )
    report = export_opened(opened, model, bundle, options, preprocessing)
    for text in report.notes:
        click.echo(f"note: {text}", err=True)
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2, allow_nan=False))
    else:
        _print(report)


def _parse_rows(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        typical, most = (int(number) for number in text.split(","))
    except ValueError:
        raise click.BadParameter(f"--engine-rows {text!r} is not of the form 4096,65536") from None
    if not 1 <= typical <= most:
        raise click.BadParameter(f"--engine-rows {text!r}: wanted 1 <= typical <= most")
    return typical, most


def _print(report: ExportReport) -> None:
    manifest = report.manifest
    inputs = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in manifest.inputs.items())
    table = Table(box=None, pad_edge=False)
    for column in ("target", "precision"):
        table.add_column(column, no_wrap=True)
    for column in ("MB", "error", "cosine", "agree", "rows/s"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("run by")
    for file in manifest.files:
        table.add_row(file.target, file.precision, f"{file.size / 1e6:,.1f}", *_figures(file.parity))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    click.echo(f"{manifest.kind} {manifest.model_version}: {inputs} -> embedding {manifest.output_dim}")
    console.print(table)
    click.echo("(error: the largest; cosine: the lowest; agree: share of rows with the same nearest row)")
    click.echo(f"written: {report.bundle}: {', '.join(file.name for file in manifest.files)}")
    click.echo(f"\nnext: {report.next_command}")


def _figures(parity: Parity | None) -> list[str]:
    if parity is None:
        return ["-", "-", "-", "-", "not proven: nothing here can run it"]
    return [
        f"{parity.max_abs_error:.1e}",
        f"{parity.min_cosine:.6f}",
        f"{parity.top1_agreement:.1%}",
        f"{parity.rows_per_second:,.0f}",
        parity.runtime,
    ]


def main() -> None:
    """Entry point of ``fct-export``."""
    run_cli(command)
