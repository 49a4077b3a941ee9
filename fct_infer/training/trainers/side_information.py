"""Train a side-information model without labels, by SimCLR (arXiv 2002.05709)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fct_infer.training.data.augment import Augmentation
from fct_infer.training.data.batches import TensorBatches
from fct_infer.training.data.images import as_images, to_batch
from fct_infer.training.loop import ProgressCallback, TrainingConfig, fit, seeded
from fct_infer.training.losses import nt_xent_loss
from fct_infer.training.models.base import Backbone
from fct_infer.training.models.registry import ModelSpec


@dataclass(frozen=True)
class SideInformationConfig:
    """What a side-information model is and how it is trained."""

    model: ModelSpec
    training: TrainingConfig
    augmentation: Augmentation
    temperature: float = 0.5
    projection_dim: int = 64


@dataclass(frozen=True)
class TrainedSideInformation:
    """A trained side-information model: images -> (n, d_side), in eval mode, and the mean loss of every epoch."""

    backbone: Backbone
    losses: list[float]


def train_side_information(
    images: NDArray[Any], config: SideInformationConfig, on_progress: ProgressCallback | None = None
) -> TrainedSideInformation:
    """Train a backbone to recognise two views of one image among the views of the batch.

    The projection head that the loss looks at is dropped afterwards; side-information is the backbone's embedding
    (arXiv 2112.02805, section 3.3).

    Args:
        images: (n, height, width, 3) uint8, what the old model was trained on.
        config: model, schedule and views.
        on_progress: called after every step.

    Raises:
        UsageError: the configuration names an unknown model or optimizer.
        ArrayError: the images have the wrong dtype or shape, or are fewer than one batch.
        GateError: the loss became NaN or infinite.
    """
    training = config.training
    with seeded(training.seed):
        backbone = config.model.build(Backbone)
        dim = backbone.embedding_dim
        head = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, config.projection_dim))
    network = nn.Sequential(backbone, head)
    batches = TensorBatches(as_images(images), batch_size=training.batch_size, seed=training.seed)
    generator = torch.Generator().manual_seed(training.seed)

    def loss_of(batch: tuple[Tensor, ...]) -> Tensor:
        originals = to_batch(batch[0])
        views = [config.augmentation(originals, generator) for _ in range(2)]
        first, second = network(torch.cat(views)).chunk(2)
        return nt_xent_loss(first, second, config.temperature)

    losses = fit(network, batches, loss_of, training, on_progress)
    return TrainedSideInformation(backbone, losses)
