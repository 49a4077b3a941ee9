"""Backward-compatible training (arXiv 2003.11942): a new model whose embeddings an old gallery understands."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fct_infer.errors import UsageError
from fct_infer.training.data.images import ImageData
from fct_infer.training.embedding import embed_data
from fct_infer.training.loop import ProgressCallback
from fct_infer.training.losses import classification_loss
from fct_infer.training.models.base import Backbone
from fct_infer.training.models.classifiers import Classifier
from fct_infer.training.run import RunFolder
from fct_infer.training.trainers.backbone import AddedLoss, BackboneConfig, TrainedBackbone, train_backbone


@dataclass(frozen=True, kw_only=True)
class BctConfig(BackboneConfig):
    """What a new model is and how it is trained.

    Attributes:
        influence: lambda, the weight of the loss through the old classifier.
        equal_norms: bring the old classifier's weights, those of added classes included, to one length: the mean of
            the trained ones. Mean embeddings are several times as long as a linear classifier's weights; taken as they
            are, added classes win whatever the image, and training collapses. After ArcFace it makes no difference.
    """

    influence: float = 1.0
    equal_norms: bool = True


@dataclass(frozen=True)
class OldModel:
    """The model in production: its backbone, the classifier it was trained with and the names of its classes."""

    backbone: Backbone
    classifier: Classifier
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class TrainedBct:
    """A trained new model, and how many of its classes the old classifier lacked."""

    backbone: TrainedBackbone
    added_classes: int


class InfluenceLoss(AddedLoss):
    """Cross entropy of new embeddings under the frozen old classifier (arXiv 2003.11942, section 3.3).

    Where the widths differ, the classifier sees the first ``d_old`` components of a wider embedding, and zeros after a
    narrower one: what L2 distance and inner product of the zero-padded shorter vector come to.

    Args:
        classifier: (n, d_old) -> (n, at least the new classes), the new classes first.
        weight: lambda.
        label_smoothing: share of each label that is spread over all classes.
    """

    def __init__(self, classifier: Classifier, weight: float, label_smoothing: float) -> None:
        super().__init__()
        self.classifier = classifier.requires_grad_(False)
        self._weight, self._label_smoothing = weight, label_smoothing

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """See the class."""
        surplus = self.classifier.weight.shape[1] - embeddings.shape[1]
        logits = self.classifier(F.pad(embeddings, (0, surplus)), labels)  # a negative padding cuts
        return self._weight * classification_loss(logits, labels, self._label_smoothing)


def train_bct(
    data: ImageData,
    old: OldModel,
    config: BctConfig,
    on_progress: ProgressCallback | None = None,
    *,
    run: RunFolder | None = None,
) -> TrainedBct:
    """Train a new model by classification and, at once, for the old model's classifier.

    Raises:
        UsageError: none of the classes is known to the old model, or the configuration names an unknown model.
        ArrayError: the images have the wrong dtype or shape, or are fewer than one batch.
        GateError: the loss became NaN or infinite.
    """
    device = run.fabric.device if run else "cpu"
    classifier, added = complete_classifier(old, data, config.equal_norms, device)
    influence = InfluenceLoss(classifier, config.influence, config.label_smoothing)
    return TrainedBct(train_backbone(data, config, on_progress, run=run, added_loss=influence), added)


def complete_classifier(
    old: OldModel, data: ImageData, equal_norms: bool = True, device: torch.device | str = "cpu"
) -> tuple[Classifier, int]:
    """Return the old classifier with the classes of ``data`` in their order, and how many of these it lacked.

    A class it lacks gets the mean old embedding of its images as its weight (arXiv 2003.11942, section 3.3). Old
    classes that ``data`` lacks follow at the end: they are what new embeddings can be mistaken for.

    Raises:
        UsageError: no class of ``data`` is known to the old model, by name.
    """
    numbers = {name: number for number, name in enumerate(old.class_names)}
    known = [numbers.get(name) for name in data.class_names]
    if all(number is None for number in known):
        raise UsageError(f"the old model knows none of the {len(known)} classes, such as {data.class_names[0]!r}")
    trained = old.classifier.weight.detach()
    lacking = [label for label, number in enumerate(known) if number is None]
    means = _mean_embeddings(old.backbone, data, lacking, device)
    rows = [means[label] if number is None else trained[number] for label, number in enumerate(known)]
    unseen = sorted(set(range(len(trained))) - {number for number in known if number is not None})
    weight = torch.stack([*rows, *trained[unseen]])
    if equal_norms:
        weight = F.normalize(weight, dim=1) * trained.norm(dim=1).mean()
    classifier = deepcopy(old.classifier)
    classifier.weight = nn.Parameter(weight)
    return classifier, len(lacking)


def _mean_embeddings(
    backbone: Backbone, data: ImageData, classes: list[int], device: torch.device | str
) -> dict[int, Tensor]:
    """Return the mean old embedding of the images of some classes."""
    rows = np.flatnonzero(np.isin(data.labels, classes))
    if not len(rows):
        return {}
    embeddings, kept = embed_data(backbone, data.select(rows, data.labels[rows], data.class_names), device=device)
    labels = data.labels[rows][kept]
    return {label: torch.from_numpy(embeddings[labels == label].mean(axis=0)) for label in classes}
