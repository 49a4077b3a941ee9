"""Train the transformation h(old, side_information) -> new on cached embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fct_infer.errors import ArrayError
from fct_infer.training.data.batches import TensorBatches
from fct_infer.training.loop import ProgressCallback, TrainingConfig, fit, seeded
from fct_infer.training.losses import transformation_loss
from fct_infer.training.models.base import TransformationModule
from fct_infer.training.models.registry import ModelSpec


@dataclass(frozen=True)
class TransformationConfig:
    """What h is, ``"paper"`` or ``"mlp"``, and how it is trained; the dims come from the data."""

    model: ModelSpec
    training: TrainingConfig


@dataclass(frozen=True)
class TrainedTransformation:
    """A trained h.

    Attributes:
        module: in eval mode.
        model: how to build it again, dims included.
        losses: mean loss of every epoch.
    """

    module: TransformationModule
    model: ModelSpec
    losses: list[float]


def train_transformation(
    old: NDArray[Any],
    side: NDArray[Any],
    new: NDArray[Any],
    config: TransformationConfig,
    on_progress: ProgressCallback | None = None,
) -> TrainedTransformation:
    """Train h to predict the raw new embedding of an item from its old embedding and its side-information.

    Args:
        old: (n, d_old) float32, the old model's embeddings of the new training set.
        side: (n, d_side) float32, side-information of the same items; pass ``old`` again for FCT without it.
        new: (n, d_new) float32, the new model's embeddings of the same items.
        config: model and schedule.
        on_progress: called after every step.

    Raises:
        UsageError: the configuration names an unknown model or optimizer.
        ArrayError: an array is not float32 (n, d), or they differ in length, or they are fewer than one batch.
        GateError: the loss became NaN or infinite.
    """
    training = config.training
    tensors = [_as_tensor(name, array) for name, array in (("old", old), ("side", side), ("new", new))]
    dims = {f"{name}_dim": array.shape[1] for name, array in (("old", old), ("side", side), ("new", new))}
    model = ModelSpec(config.model.name, {**dims, **config.model.arguments})
    with seeded(training.seed):
        module = model.build(TransformationModule)

    def loss_of(batch: tuple[Tensor, ...]) -> Tensor:
        return transformation_loss(module(batch[0], batch[1]), batch[2])

    batches = TensorBatches(*tensors, batch_size=training.batch_size, seed=training.seed)
    return TrainedTransformation(module, model, fit(module, batches, loss_of, training, on_progress))


def _as_tensor(name: str, array: NDArray[Any]) -> Tensor:
    if array.dtype != np.float32 or array.ndim != 2:
        raise ArrayError(f"{name}: got {array.dtype} {array.shape}, wanted float32 (n, d)")
    return torch.from_numpy(array)
