"""Train an embedding model by classification."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fct_infer.training.data.augment import Augmentation
from fct_infer.training.data.batches import TensorBatches
from fct_infer.training.data.images import LabelledImages, as_images, to_batch
from fct_infer.training.loop import ProgressCallback, TrainingConfig, fit, seeded
from fct_infer.training.losses import classification_loss
from fct_infer.training.models.base import Backbone
from fct_infer.training.models.registry import ModelSpec


@dataclass(frozen=True)
class BackboneConfig:
    """What a backbone is and how it is trained (the paper's recipe, arXiv 2112.02805, appendix, at any size)."""

    model: ModelSpec
    training: TrainingConfig
    label_smoothing: float = 0.1
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass(frozen=True)
class TrainedBackbone:
    """A trained embedding model.

    Attributes:
        backbone: images -> (n, d), in eval mode.
        classifier: (n, d) -> (n, classes), without bias.
        losses: mean loss of every epoch.
    """

    backbone: Backbone
    classifier: nn.Linear
    losses: list[float]


def train_backbone(
    data: LabelledImages, config: BackboneConfig, on_progress: ProgressCallback | None = None
) -> TrainedBackbone:
    """Train a backbone and a linear classifier on it to tell the classes of ``data`` apart.

    Raises:
        UsageError: the configuration names an unknown model or optimizer.
        ArrayError: the images have the wrong dtype or shape, or are fewer than one batch.
        GateError: the loss became NaN or infinite.
    """
    training = config.training
    with seeded(training.seed):
        backbone = config.model.build(Backbone)
        classifier = nn.Linear(backbone.embedding_dim, len(data.class_names), bias=False)
    network = nn.Sequential(backbone, classifier)
    batches = TensorBatches(
        as_images(data.images), torch.from_numpy(data.labels), batch_size=training.batch_size, seed=training.seed
    )
    views = torch.Generator().manual_seed(training.seed)

    def loss_of(batch: tuple[Tensor, ...]) -> Tensor:
        images, labels = batch
        logits = network(config.augmentation(to_batch(images), views))
        return classification_loss(logits, labels, config.label_smoothing)

    losses = fit(network, batches, loss_of, training, on_progress)
    return TrainedBackbone(backbone, classifier, losses)
