"""``fct-train side-information``: from a configuration to a checkpoint of psi."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fct_infer.errors import ArtifactError, UsageError
from fct_infer.storage import copy_file
from fct_infer.training.config import from_plain, to_plain
from fct_infer.training.data.images import image_shape
from fct_infer.training.data.sources import DataConfig, open_data
from fct_infer.training.models.checkpoints import CHECKPOINT, SUFFIXES, save_checkpoint
from fct_infer.training.runs.folder import RunFolder
from fct_infer.training.runs.loop import ProgressCallback
from fct_infer.training.trainers.autoencoder import AutoencoderConfig, train_autoencoder
from fct_infer.training.trainers.backbone_run import BackboneRunConfig, run_backbone
from fct_infer.training.trainers.side_information import (
    SideInformationConfig,
    TrainedSideInformation,
    train_side_information,
)

COMMAND = "side-information"


@dataclass(frozen=True, kw_only=True)
class SimClrRunConfig(SideInformationConfig):
    """SimCLR and the images.

    Attributes:
        data: the images, whose labels are not used.
        kind: says that it is SimCLR.
    """

    data: DataConfig
    kind: Literal["simclr"] = "simclr"


@dataclass(frozen=True, kw_only=True)
class AutoencoderRunConfig(AutoencoderConfig):
    """An autoencoder and the images.

    Attributes:
        data: the images, whose labels are not used.
        kind: says that it is an autoencoder.
    """

    data: DataConfig
    kind: Literal["autoencoder"]


@dataclass(frozen=True)
class NoneRunConfig:
    """No side-information: psi is the old model.

    Attributes:
        kind: says so.
        old: folder of the old model's finished run.
    """

    kind: Literal["none"]
    old: str


def run_side_information(
    config: Mapping[str, Any], run: RunFolder, on_progress: ProgressCallback | None = None
) -> dict[str, Any]:
    """Train a side-information model into a run's folder, or go on with it, and return its figures.

    ``kind`` says how: ``simclr`` and ``autoencoder`` need no labels, ``classifier`` is a backbone trained on other
    classes or labels, ``none`` takes the old model itself. Each has its own keys.

    Raises:
        UsageError: the configuration is wrong; the message names the key.
        InputError: an image is broken.
        GateError: the loss became NaN or infinite.
    """
    match config.get("kind", "simclr"):
        case "simclr":
            return _run_unlabelled(from_plain(SimClrRunConfig, config), run, on_progress)
        case "autoencoder":
            return _run_unlabelled(from_plain(AutoencoderRunConfig, config), run, on_progress)
        case "classifier":
            without_kind = {key: value for key, value in config.items() if key != "kind"}
            from_plain(BackboneRunConfig, without_kind)
            return run_backbone(without_kind, run, on_progress, COMMAND)
        case "none":
            return _copy_old_model(from_plain(NoneRunConfig, config), run)
        case other:
            raise UsageError(f"kind: got {other!r}, wanted 'simclr', 'autoencoder', 'classifier' or 'none'")


def _run_unlabelled(
    settings: SimClrRunConfig | AutoencoderRunConfig, run: RunFolder, on_progress: ProgressCallback | None
) -> dict[str, Any]:
    if (result := run.open(COMMAND, settings, settings.training)) is not None:
        return result
    data = open_data(settings.data)
    trained: TrainedSideInformation
    if isinstance(settings, SimClrRunConfig):
        trained = train_side_information(data, settings, on_progress, run=run)
    else:
        trained = train_autoencoder(data, settings, on_progress, run=run)
    described = {**to_plain(settings), "image_shape": list(image_shape(data))}
    run.first(lambda: save_checkpoint(run.path / CHECKPOINT, trained.backbone, settings.model, described))
    return run.finish(
        {
            "checkpoint": str(run.path / f"{CHECKPOINT}.safetensors"),
            "embedding_dim": trained.backbone.embedding_dim,
            "images": len(data.labels),
            **trained.fitted.figures,
        }
    )


def _copy_old_model(settings: NoneRunConfig, run: RunFolder) -> dict[str, Any]:
    if (result := run.open(COMMAND, settings)) is not None:
        return result

    sources = [Path(settings.old) / f"{CHECKPOINT}{suffix}" for suffix in SUFFIXES]
    for source in sources:
        if not source.is_file():
            raise ArtifactError(f"{source}: no such file; is the old model's run finished?")

    def copy() -> None:
        for source in sources:
            copy_file(source, run.path / source.name)

    run.begin()
    run.first(copy)
    return run.finish({"checkpoint": str(run.path / f"{CHECKPOINT}.safetensors"), "copy_of": settings.old})
