"""Train an embedding model by classification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from fct_infer.errors import UsageError
from fct_infer.training.data.augment import Augmentation
from fct_infer.training.data.images import ImageData, to_batch
from fct_infer.training.losses.image_losses import classification_loss
from fct_infer.training.models.base import Backbone
from fct_infer.training.models.classifiers import Classifier
from fct_infer.training.models.registry import ModelSpec
from fct_infer.training.runs.folder import RunFolder
from fct_infer.training.runs.loop import ProgressCallback, Trained, TrainingConfig, fit, seeded


@dataclass(frozen=True)
class ClassifierConfig:
    """What the embeddings are classified with.

    Attributes:
        kind: ``"linear"``: inner products; ``"cosine"``: scaled cosines; ``"arcface"``: these with a margin.
        scale: of the cosines.
        margin: in radians; ArcFace only.
    """

    kind: Literal["linear", "cosine", "arcface"] = "linear"
    scale: float = 64.0
    margin: float = 0.5

    def model(self, dim: int, classes: int) -> ModelSpec:
        """Return the classifier for embeddings of a width."""
        size: dict[str, float] = {"dim": dim, "classes": classes}
        if self.kind == "linear":
            return ModelSpec("linear_classifier", size)
        margin = self.margin if self.kind == "arcface" else 0.0
        return ModelSpec("cosine_classifier", {**size, "scale": self.scale, "margin": margin})


@dataclass(frozen=True)
class BackboneConfig:
    """What a backbone is and how it is trained (the paper's recipe, arXiv 2112.02805, at any size).

    Attributes:
        model: the backbone.
        training: schedule and devices.
        label_smoothing: share of each label that is spread over all classes.
        augmentation: random views of the images.
        classifier: what the embeddings are classified with.
        embeddings: ``"raw"``, or ``"unit"``: of length 1, also in production.
    """

    model: ModelSpec
    training: TrainingConfig
    label_smoothing: float = 0.1
    augmentation: Augmentation = field(default_factory=Augmentation)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    embeddings: Literal["raw", "unit"] = "raw"


@dataclass(frozen=True)
class TrainedBackbone(Trained):
    """A trained embedding model.

    Attributes:
        backbone: images -> (n, d), in eval mode.
        classifier: (n, d) -> (n, classes).
        model: how to build the backbone again.
        classifier_model: how to build the classifier again.
    """

    backbone: Backbone
    classifier: Classifier
    model: ModelSpec
    classifier_model: ModelSpec


class AddedLoss(nn.Module):
    """What is minimised beside the classification: (n, d) embeddings and (n,) labels -> scalar."""

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """See the class."""
        raise NotImplementedError


def train_backbone(
    data: ImageData,
    config: BackboneConfig,
    on_progress: ProgressCallback | None = None,
    *,
    run: RunFolder | None = None,
    added_loss: AddedLoss | None = None,
    validation: ImageData | None = None,
) -> TrainedBackbone:
    """Train a backbone and a classifier on it to tell the classes of ``data`` apart.

    Args:
        data: images and their classes.
        config: model, loss and schedule.
        on_progress: called after every step.
        run: where metrics and state are kept.
        added_loss: minimised beside the classification.
        validation: held-out images, judged after every epoch; those of classes that ``data`` lacks are left out.

    Raises:
        UsageError: the configuration names an unknown model or optimizer, or no class is in both sets of images.
        ArrayError: the images have the wrong dtype or shape, or are fewer than one batch.
        GateError: the loss became NaN or infinite.
    """
    training = config.training
    model = config.model
    if config.embeddings == "unit":
        model = ModelSpec("unit", {"backbone": {"name": model.name, "arguments": model.arguments}})
    with seeded(training.seed):
        backbone = model.build(Backbone)
        classifier_model = config.classifier.model(backbone.embedding_dim, len(data.class_names))
        classifier = classifier_model.build(Classifier)
    network = nn.ModuleList([backbone, classifier, *([added_loss] if added_loss else [])])
    batches = data.batches(training.batch_size, training.seed)
    views = torch.Generator().manual_seed(training.seed)

    def loss_of(batch: tuple[Tensor, ...]) -> Tensor:
        images, labels = batch
        embeddings = backbone(config.augmentation(to_batch(images), views))
        loss = classification_loss(classifier(embeddings, labels), labels, config.label_smoothing)
        if added_loss is not None:
            loss = loss + added_loss(embeddings, labels)
        return loss

    judge = None
    if validation is not None:
        held_out = _of_classes(validation, data.class_names)
        judge = partial(validate, backbone, classifier, held_out, training.batch_size)
    fitted = fit(network, batches, loss_of, training, on_progress, run=run, generators=(views,), validate=judge)
    return TrainedBackbone(backbone, classifier, model, classifier_model, fitted=fitted)


def validate(backbone: Backbone, classifier: Classifier, data: ImageData, batch_size: int) -> dict[str, float]:
    """Return mean cross entropy ``loss`` and ``accuracy`` on a set of images; both modules are in eval mode."""
    device, labels = classifier.weight.device, torch.from_numpy(data.labels)
    loss, right, count = 0.0, 0, 0
    for images, rows in data.in_order(batch_size):
        logits = classifier(backbone(to_batch(images.to(device))))
        wanted = labels[rows].to(device)
        loss += classification_loss(logits, wanted, 0.0).item() * len(rows)
        right += int((logits.argmax(dim=1) == wanted).sum())
        count += len(rows)
    return {"loss": loss / count, "accuracy": right / count}


def _of_classes(data: ImageData, names: Sequence[str]) -> ImageData:
    """Return the images of the classes ``names``, under their numbers."""
    numbers = {name: number for number, name in enumerate(names)}
    labels = np.array([numbers.get(name, -1) for name in data.class_names], np.int64)[data.labels]
    rows = np.flatnonzero(labels >= 0)
    if not len(rows):
        raise UsageError(f"validation: holds no image of the {len(names)} classes trained, such as {names[0]!r}")
    return data.select(rows, labels[rows], tuple(names))
