"""Train a side-information model without labels, as the encoder of an autoencoder (arXiv 2112.02805)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fct_infer.training.data.augment import Augmentation
from fct_infer.training.data.images import ImageData, image_shape, to_batch
from fct_infer.training.losses.image_losses import reconstruction_loss
from fct_infer.training.models.base import Backbone
from fct_infer.training.models.decoder import Decoder
from fct_infer.training.models.registry import ModelSpec
from fct_infer.training.runs.folder import RunFolder
from fct_infer.training.runs.loop import ProgressCallback, TrainingConfig, fit, seeded
from fct_infer.training.trainers.side_information import TrainedSideInformation


@dataclass(frozen=True)
class AutoencoderConfig:
    """What the encoder is and how it is trained.

    Attributes:
        model: the encoder, a backbone.
        training: schedule and devices.
        augmentation: random views of the images.
        decoder_channels: width of the decoder at its start.
    """

    model: ModelSpec
    training: TrainingConfig
    augmentation: Augmentation = field(default_factory=Augmentation)
    decoder_channels: int = 128


def train_autoencoder(
    data: ImageData,
    config: AutoencoderConfig,
    on_progress: ProgressCallback | None = None,
    *,
    run: RunFolder | None = None,
) -> TrainedSideInformation:
    """Train a backbone so that a decoder, dropped afterwards, can tell the image from the embedding.

    Errors are those of :func:`~fct_infer.training.trainers.side_information.train_side_information`.
    """
    training = config.training
    _, height, width = image_shape(data)
    with seeded(training.seed):
        backbone = config.model.build(Backbone)
        decoder = Decoder(backbone.embedding_dim, (height, width), config.decoder_channels)
    batches = data.batches(training.batch_size, training.seed)
    generator = torch.Generator().manual_seed(training.seed)

    def loss_of(batch: tuple[Tensor, ...]) -> Tensor:
        view = config.augmentation(to_batch(batch[0]), generator)
        return reconstruction_loss(decoder(backbone(view)), view)

    network = nn.ModuleList([backbone, decoder])
    fitted = fit(network, batches, loss_of, training, on_progress, run=run, generators=(generator,))
    return TrainedSideInformation(backbone, fitted=fitted)
