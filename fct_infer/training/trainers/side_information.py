"""Train a side-information model without labels, by SimCLR (arXiv 2002.05709)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fct_infer.training.data.augment import Augmentation
from fct_infer.training.data.images import ImageData, LabelledImages, to_batch
from fct_infer.training.losses.image_losses import nt_xent_loss
from fct_infer.training.models.base import Backbone
from fct_infer.training.models.registry import ModelSpec
from fct_infer.training.runs.folder import RunFolder
from fct_infer.training.runs.loop import ProgressCallback, Trained, TrainingConfig, fit, seeded


@dataclass(frozen=True)
class SideInformationConfig:
    """What a side-information model is and how it is trained.

    Attributes:
        model: the backbone.
        training: schedule and devices.
        augmentation: random views of the images; two of one image should be alike, those of two images should not.
        temperature: of SimCLR's softmax over similarities.
        projection_dim: width of what SimCLR compares, the output of a head that is dropped afterwards.
    """

    model: ModelSpec
    training: TrainingConfig
    augmentation: Augmentation
    temperature: float = 0.5
    projection_dim: int = 64


@dataclass(frozen=True)
class TrainedSideInformation(Trained):
    """A trained side-information model: images -> (n, d_side), in eval mode."""

    backbone: Backbone


def train_side_information(
    images: NDArray[Any] | ImageData,
    config: SideInformationConfig,
    on_progress: ProgressCallback | None = None,
    *,
    run: RunFolder | None = None,
) -> TrainedSideInformation:
    """Train a backbone to recognise two views of one image among the views of the batch.

    The projection head that the loss looks at is dropped afterwards; side-information is the backbone's embedding
    (arXiv 2112.02805).

    Args:
        images: what the old model was trained on, as a set or as (n, height, width, 3) uint8; labels are not used.
        config: model, schedule and views.
        on_progress: called after every step.
        run: where metrics and state are kept.

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
    data = LabelledImages.unlabelled(images) if isinstance(images, np.ndarray) else images
    batches = data.batches(training.batch_size, training.seed, views=2)
    generator = torch.Generator().manual_seed(training.seed)

    def loss_of(batch: tuple[Tensor, ...]) -> Tensor:
        views = [config.augmentation(to_batch(images), generator) for images in batch[:2]]
        first, second = network(torch.cat(views)).chunk(2)
        return nt_xent_loss(first, second, config.temperature)

    fitted = fit(network, batches, loss_of, training, on_progress, run=run, generators=(generator,))
    return TrainedSideInformation(backbone, fitted=fitted)
