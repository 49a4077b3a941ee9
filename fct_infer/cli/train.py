"""``fct-train``: train every model of both papers from a configuration file."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from fct_infer.cli._common import json_option, run_cli, show_rows
from fct_infer.cli._training_progress import TrainingProgress, training_progress_on_stderr
from fct_infer.cli._verbosity import note
from fct_infer.errors import import_error
from fct_infer.threadpools import let_threads_wait_briefly

if TYPE_CHECKING:
    from fct_infer.training.runs.folder import RunFolder

    Trainer = Callable[[dict[str, Any], RunFolder, TrainingProgress], dict[str, Any]]


_EXPORT = "fct-export RUN -o RUN.bundle"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def group() -> None:
    """Train old and new models, side-information and the transformation between them.

    CONFIG is a YAML file that names model, data and schedule, or the name of a recipe that comes along, such as
    imagenet/old. RUN keeps the resolved configuration, metrics, the checkpoint of the last epoch and of the best one,
    and, until it is finished, the state: the same command goes on where it was stopped.

    \b
    Example:
      fct-train backbone imagenet/old -o runs/old --set data.path=/data/imagenet
      fct-train transformation transformation.yaml -o runs/h
    """


def _training_command(
    name: str, text: str, recipe: str, next_step: str
) -> Callable[[Callable[[], Trainer]], click.Command]:
    """Return a decorator: from a function that imports a trainer to its command.

    ``next_step`` is what is done with a finished run: a command in which RUN stands for its folder.
    """

    def decorate(import_trainer: Callable[[], Trainer]) -> click.Command:
        @group.command(name, help=f"{text}\n\n\b\nExample:\n  fct-train {name} {recipe} -o runs/{recipe}")
        @click.argument("config", type=click.Path(path_type=Path))
        @click.option(
            "-o", "--output", "dest", required=True, type=click.Path(path_type=Path), help="Folder of the run."
        )
        @click.option(
            "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As training.epochs=10; repeatable."
        )
        @click.option("--restart", is_flag=True, help="Begin anew instead of going on with the run in the folder.")
        @json_option()
        def command(config: Path, dest: Path, overrides: tuple[str, ...], restart: bool, as_json: bool) -> None:
            from fct_infer.training.config import read_config

            values = read_config(config, overrides)
            try:
                from fct_infer.training.runs.folder import RunFolder

                trainer = import_trainer()
            except ImportError as error:
                raise import_error(error.name or "torch", "train", error) from error
            with RunFolder(dest, restart=restart) as run, training_progress_on_stderr() as progress:
                result = trainer(values, run, progress)
                if run.was_finished:
                    note(f"{dest}: was finished before; nothing was trained (--restart begins anew)")
                if run.is_first:
                    _print(result, as_json, next_step.replace("RUN", shlex.quote(str(dest))))

        return command

    return decorate


@_training_command("backbone", "Train an embedding model by classification.", "imagenet/old", _EXPORT)
def backbone() -> Trainer:
    """Import the trainer."""
    from fct_infer.training.trainers.backbone_run import run_backbone

    return run_backbone


@_training_command(
    "bct", "Train a new embedding model that is compatible with an old one (BCT).", "imagenet/bct", _EXPORT
)
def bct() -> Trainer:
    """Import the trainer."""
    from fct_infer.training.trainers.backbone_run import run_bct

    return run_bct


@_training_command(
    "side-information",
    "Train a side-information model: simclr, autoencoder, classifier or none.",
    "imagenet/side_information",
    f"{_EXPORT} --kind side-information",
)
def side_information() -> Trainer:
    """Import the trainer."""
    from fct_infer.training.trainers.side_information_run import run_side_information

    return run_side_information


@_training_command(
    "transformation",
    "Train h from old embeddings and side-information to new embeddings (FCT, FastFill), cached ones or of images.",
    "imagenet/transformation",
    _EXPORT,
)
def transformation() -> Trainer:
    """Import the trainer."""
    from fct_infer.training.trainers.transformation_run import run_transformation

    return lambda values, run, progress: run_transformation(values, run, progress, progress.on_images)


def _print(result: Mapping[str, Any], as_json: bool, next_command: str) -> None:
    if as_json:
        click.echo(json.dumps({**result, "next_command": next_command}, indent=2, allow_nan=False))
        return
    show_rows({key.replace("_", " "): _shown(value) for key, value in result.items()})
    click.echo(f"\nnext: {next_command}")


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def main() -> NoReturn:
    """Entry point of ``fct-train``."""
    let_threads_wait_briefly()
    run_cli(group, resumes=True)


if __name__ == "__main__":
    main()
