"""``fct-train backbone`` and ``fct-train bct``: from a configuration to a checkpoint and its classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fct_infer.errors import ArtifactError
from fct_infer.training.config import from_plain, to_plain
from fct_infer.training.data.images import ImageData, image_shape
from fct_infer.training.data.sources import DataConfig, open_data
from fct_infer.training.data.splits import Split
from fct_infer.training.models.base import Backbone
from fct_infer.training.models.checkpoints import CHECKPOINT, CLASSIFIER, load_checkpoint, save_checkpoint
from fct_infer.training.models.classifiers import Classifier
from fct_infer.training.runs.folder import RunFolder
from fct_infer.training.runs.loop import ProgressCallback
from fct_infer.training.trainers.backbone import BackboneConfig, TrainedBackbone, train_backbone
from fct_infer.training.trainers.bct import BctConfig, OldModel, train_bct


@dataclass(frozen=True, kw_only=True)
class BackboneRunConfig(BackboneConfig):
    """A backbone, its training, and the images.

    Attributes:
        data: the images.
        validation: held-out images, judged after every epoch: a share of ``data``, drawn from ``training.seed``, or a
            set of their own. The default holds none out, as the papers do.
    """

    data: DataConfig
    validation: float | DataConfig = 0.0


@dataclass(frozen=True, kw_only=True)
class BctRunConfig(BctConfig):
    """A new model, its training, the images, and the old model.

    Attributes:
        data: the images.
        validation: held-out images, as of a backbone.
        old: folder of the old model's finished ``fct-train backbone`` or ``bct`` run.
        trust_code: build an old model that is not this project's.
    """

    data: DataConfig
    old: str
    validation: float | DataConfig = 0.0
    trust_code: bool = False


def run_backbone(
    config: Mapping[str, Any], run: RunFolder, on_progress: ProgressCallback | None = None, command: str = "backbone"
) -> dict[str, Any]:
    """Train a backbone into a run's folder, or go on with it, and return its figures.

    Raises:
        UsageError: the configuration is wrong; the message names the key.
        InputError: an image is broken.
        GateError: the loss became NaN or infinite.
    """
    settings = from_plain(BackboneRunConfig, config)
    if (result := run.open(command, settings, settings.training)) is not None:
        return result
    data, validation = _open_images(settings)
    trained = train_backbone(data, settings, on_progress, run=run, validation=validation)
    return _finish(run, trained, data, to_plain(settings), {})


def run_bct(config: Mapping[str, Any], run: RunFolder, on_progress: ProgressCallback | None = None) -> dict[str, Any]:
    """Train a backward-compatible model into a run's folder, or go on with it, and return its figures.

    Raises:
        ArtifactError: the old model's run is not finished, or damaged.

    Other errors are those of :func:`run_backbone`.
    """
    settings = from_plain(BctRunConfig, config)
    if (result := run.open("bct", settings, settings.training)) is not None:
        return result
    old = load_old_model(settings.old, trust_code=settings.trust_code)
    data, validation = _open_images(settings)
    trained = train_bct(data, old, settings, on_progress, run=run, validation=validation)
    dims = old.backbone.embedding_dim, trained.backbone.backbone.embedding_dim
    figures: dict[str, Any] = {"classes_the_old_model_lacked": trained.added_classes}
    if dims[0] != dims[1]:
        how = "its first components" if dims[1] > dims[0] else "it, padded with zeros"
        figures["old_classifier_saw"] = f"of the {dims[1]}-d new embedding {how}, to the old {dims[0]}-d"
    return _finish(run, trained.backbone, data, to_plain(settings), figures)


def load_old_model(folder: str | Path, *, trust_code: bool = False) -> OldModel:
    """Load the backbone and the classifier of a finished run.

    Raises:
        ArtifactError: a file is missing, damaged or malformed.
        UsageError: the model is not this project's, and ``trust_code`` is not set.
    """
    backbone, _ = load_checkpoint(Path(folder) / CHECKPOINT, Backbone, trust_code=trust_code)
    classifier, description = load_checkpoint(Path(folder) / CLASSIFIER, Classifier)
    names = description.config.get("class_names")
    if not isinstance(names, list) or len(names) != len(classifier.weight):
        raise ArtifactError(f"{folder}/{CLASSIFIER}.json: does not name its {len(classifier.weight)} classes")
    return OldModel(backbone, classifier, tuple(map(str, names)))


def _open_images(settings: BackboneRunConfig | BctRunConfig) -> tuple[ImageData, ImageData | None]:
    """Return the images to train on, and those held out, if any."""
    data = open_data(settings.data)
    if isinstance(settings.validation, DataConfig):
        return data, open_data(settings.validation)
    split = Split.draw(len(data.labels), settings.validation, settings.training.seed)
    if not len(split.held_out):
        return data, None
    mask = split.is_held_out(0, split.rows)
    training, held_out = (
        data.select(rows, data.labels[rows], data.class_names) for rows in map(np.flatnonzero, (~mask, mask))
    )
    return training, held_out


def _finish(
    run: RunFolder, trained: TrainedBackbone, data: ImageData, config: dict[str, Any], figures: dict[str, Any]
) -> dict[str, Any]:
    classes = {"class_names": list(data.class_names)}
    described = {**config, "image_shape": list(image_shape(data))}

    def save(folder: Path) -> None:
        save_checkpoint(folder / CLASSIFIER, trained.classifier, trained.classifier_model, classes)
        save_checkpoint(folder / CHECKPOINT, trained.backbone, trained.model, described)

    run.first(lambda: trained.fitted.save(run.path, save))
    return run.finish(
        {
            "checkpoint": str(run.path / f"{CHECKPOINT}.safetensors"),
            "embedding_dim": trained.backbone.embedding_dim,
            "images": len(data.labels),
            "classes": len(data.class_names),
            **trained.fitted.figures,
            **figures,
        }
    )
