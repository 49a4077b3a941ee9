"""``fct-embed``: from images to a gallery."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from fct_infer.artifacts.precisions import PRECISIONS
from fct_infer.backends.runner import BACKENDS
from fct_infer.cli._common import json_option, run_cli, say_files_are_code, show_rows
from fct_infer.cli._progress import progress_on_stderr
from fct_infer.machine import counted

if TYPE_CHECKING:
    from fct_infer.backends.embedder import Embedder
    from fct_infer.embedding import EmbedReport


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", required=True, type=click.Path(path_type=Path), help="Bundle of the embedding model.")
@click.option(
    "--side-information",
    "side_information",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Bundle of a side-information model; repeat it to set several side by side.",
)
@click.option("-o", "--output", "dest", required=True, type=click.Path(path_type=Path), help="Gallery to create.")
@click.option("--ids", type=click.Choice(["path", "row"]), help="[default: path for files, row for an array]")
@click.option(
    "--batch-size", default=64, show_default=True, type=click.IntRange(min=1), help="Images a model gets at once."
)
@click.option("--rows-per-shard", type=click.IntRange(min=1), help="Rows of one file [default: about 128 MiB].")
@click.option(
    "--dtype", default="float32", show_default=True, type=click.Choice(["float32", "float16"]), help="Of the gallery."
)
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    type=click.Choice(["auto", *PRECISIONS]),
    help="Of the bundle's file to run; auto: the most exact there is.",
)
@click.option(
    "--backend",
    default="auto",
    show_default=True,
    type=click.Choice(BACKENDS),
    help="Which of its files runs.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--threads", type=click.IntRange(min=1), help="Of the model, and as many that decode [default: all CPUs]."
)
@click.option(
    "--on-error",
    default="fail",
    show_default=True,
    type=click.Choice(["fail", "skip"]),
    help="What to do about an image that cannot be read: stop, or name it and leave it out.",
)
@click.option("--force", is_flag=True, help="Replace a gallery that exists once the new one is complete.")
@json_option()
def command(
    images: tuple[Path, ...],
    dest: Path,
    model: Path,
    side_information: tuple[Path, ...],
    precision: str,
    backend: str,
    device: str,
    threads: int | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Embed IMAGES with a model and write the gallery that fct-upgrade-gallery takes.

    IMAGES are image files, folders of them (walked to the bottom), or one .npy file: uint8 (n, h, w, 3) in RGB, or
    float32 (n, c, h, w) as the model takes them.

    Work happens in GALLERY.partial, which the next run replaces if this one is killed.

    \b
    Example:
      fct-embed photos/ --model old.bundle -o GALLERY
    """
    from fct_infer.artifacts.loading import is_code
    from fct_infer.backends.loading import load_embedder
    from fct_infer.embedding import embed_gallery

    def load(path: Path) -> Embedder:
        if is_code(path):
            say_files_are_code(path)
        # A file that is code was named by the user; of a bundle, code runs only if its backend was asked for.
        trust = is_code(path) or backend != "auto"
        return load_embedder(path, precision, threads, backend, device=device, trust=trust)

    embedder, *side = map(load, (model, *side_information))
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of a file's oddities, without the file's name
    with progress_on_stderr("images") as progress:
        report = embed_gallery(
            images, dest, embedder, side, threads=threads, progress=progress, on_skip=_say_skipped, **settings
        )
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=2, allow_nan=False))
    else:
        _print(report)


def _say_skipped(reason: str) -> None:
    print(f"left out: {reason}", file=sys.stderr, flush=True)


def _print(report: EmbedReport) -> None:
    dims = f"{report.embedding_dim}" + (f" + {report.side_dim}" if report.side_dim else "")
    rows = {
        "published": f"{report.gallery}: {counted(report.rows, 'row')} of {dims} {report.dtype} in "
        + counted(report.shards, "shard"),
        "speed": f"{report.images_per_second:,.0f} images/s, {report.seconds:.1f} s",
    }
    if report.skipped:
        rows["left out"] = f"{counted(report.skipped, 'image')} that could not be read"
    if report.other_files:
        rows["ignored"] = f"{counted(report.other_files, 'file')} that by the suffix hold no image"
    for used in report.models:
        label = "side_information" if used is not report.models[0] else "embeddings"
        about = f"{used.model_version}, {used.dim} wide, {used.backend} on {used.device}, {used.precision}"
        rows[label] = f"{rows[label]}; {about}" if label in rows else about
    show_rows(rows)
    click.echo(f"\nnext: {report.next_command}")


def main() -> NoReturn:
    """Entry point of ``fct-embed``."""
    run_cli(command)


if __name__ == "__main__":
    main()
