"""Backward-compatible training (arXiv 2003.11942): a new model whose embeddings an old gallery understands."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fct_infer.errors import UsageError
from fct_infer.training.data.images import ImageData
from fct_infer.training.features.embedding import embed_data
from fct_infer.training.losses.image_losses import classification_loss
from fct_infer.training.models.base import Backbone
from fct_infer.training.models.classifiers import Classifier
from fct_infer.training.runs.folder import RunFolder
from fct_infer.training.runs.loop import ProgressCallback
from fct_infer.training.trainers.backbone import AddedLoss, BackboneConfig, TrainedBackbone, train_backbone

# Note [Old classifier]
# The influence loss pulls a new embedding to where the old classifier finds its class, so that classifier must find old
# embeddings there itself. Trained weights need only tell their classes apart and leave out what all embeddings share; a
# mean embedding has all of it, and embeddings that come out of a ReLU share much. Side by side, means outvote trained
# weights: no old embedding of a trained class is classified right, and new ones are driven away from them. Cosine and
# ArcFace classifiers are no better. Means of all classes do not clash.

OldClassifier: TypeAlias = Literal["means", "completed"]


@dataclass(frozen=True, kw_only=True)
class BctConfig(BackboneConfig):
    """What a new model is and how it is trained.

    Attributes:
        influence: lambda, the weight of the loss through the old classifier.
        old_classifier: what new embeddings are classified with. ``"means"``: the mean old embedding of every class, the
            pseudo classifier in the public code of the paper's first author. ``"completed"``: the trained weights, and
            means for the classes they lack, as the paper has it; for embeddings that do not come out of a ReLU. See
            Note [Old classifier].
        equal_norms: bring all weights to the mean length of the trained ones; mean embeddings are several times as long
            and would sharpen the softmax as much. A cosine classifier does not see lengths.
    """

    influence: float = 1.0
    old_classifier: OldClassifier = "means"
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
    """Cross entropy of new embeddings under the frozen old classifier (arXiv 2003.11942).

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
    validation: ImageData | None = None,
) -> TrainedBct:
    """Train a new model by classification and, at once, for the old model's classifier.

    Raises:
        UsageError: as of :func:`influence_classifier`, or the configuration names an unknown model.
        ArrayError: the images have the wrong dtype or shape, or are fewer than one batch.
        GateError: the loss became NaN or infinite.
    """
    device = run.fabric.device if run else "cpu"
    classifier, added = influence_classifier(old, data, config.old_classifier, config.equal_norms, device)
    influence = InfluenceLoss(classifier, config.influence, config.label_smoothing)
    trained = train_backbone(data, config, on_progress, run=run, added_loss=influence, validation=validation)
    return TrainedBct(trained, added)


def influence_classifier(
    old: OldModel,
    data: ImageData,
    kind: OldClassifier = "means",
    equal_norms: bool = True,
    device: torch.device | str = "cpu",
) -> tuple[Classifier, int]:
    """Return an old classifier of the classes of ``data`` in their order, and how many of these the old model lacked.

    Args:
        old: the old model; its classifier gives kind, scale and margin.
        data: images that means are taken of.
        kind: what the weights are, see :class:`BctConfig`. Trained weights of classes that ``data`` lacks follow at
            the end: they are what new embeddings can be mistaken for.
        equal_norms: see :class:`BctConfig`.
        device: where images are embedded.

    Raises:
        UsageError: a class whose mean is due has no image, or there is no class whose trained weights are asked for.
    """
    numbers = {name: number for number, name in enumerate(old.class_names)}
    known = {label: numbers[name] for label, name in enumerate(data.class_names) if name in numbers}
    labels = range(len(data.class_names))
    lacking = [label for label in labels if label not in known]
    trained = old.classifier.weight.detach()
    if kind == "means":
        weight = _mean_embeddings(old.backbone, data, list(labels), device)
    elif not known:
        raise UsageError(f"the old model knows none of the {len(labels)} classes, such as {data.class_names[0]!r}")
    else:
        weight = torch.empty(len(labels), trained.shape[1])
        weight[list(known)] = trained[list(known.values())]
        if lacking:
            weight[lacking] = _mean_embeddings(old.backbone, data, lacking, device)
        weight = torch.cat([weight, trained[sorted(set(range(len(trained))) - set(known.values()))]])
    if equal_norms:
        weight = F.normalize(weight, dim=1) * trained.norm(dim=1).mean()
    classifier = deepcopy(old.classifier)
    classifier.weight = nn.Parameter(weight)
    return classifier, len(lacking)


def _mean_embeddings(backbone: Backbone, data: ImageData, classes: list[int], device: torch.device | str) -> Tensor:
    """Return the mean old embedding of the images of some classes, numbers that rise: (classes, d_old) float32."""
    rows = np.flatnonzero(np.isin(data.labels, classes))
    if empty := set(classes) - set(data.labels[rows].tolist()):
        raise UsageError(f"class {data.class_names[min(empty)]!r} has no image to take its mean old embedding from")
    embeddings, kept = embed_data(backbone, data.select(rows, data.labels[rows], data.class_names), device=device)
    places = torch.from_numpy(np.searchsorted(classes, data.labels[rows][kept]))
    sums = torch.zeros(len(classes), embeddings.shape[1]).index_add_(0, places, torch.from_numpy(embeddings))
    return sums / places.bincount(minlength=len(classes)).clamp(min=1)[:, None]  # a class may be all broken images
