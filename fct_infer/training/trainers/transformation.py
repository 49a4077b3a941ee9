"""Train the transformation h(old, side_information) -> new on embeddings, in memory or cached on disk."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fct_infer.errors import ArrayError, UsageError
from fct_infer.maps import Statistics
from fct_infer.training.data.batches import Batches, TensorBatches
from fct_infer.training.losses.alignment import alignment_loss
from fct_infer.training.losses.fastfill import fastfill_loss
from fct_infer.training.models.base import TransformationModule
from fct_infer.training.models.classifiers import Classifier
from fct_infer.training.models.registry import ModelSpec
from fct_infer.training.models.transformation import TRANSFORMATIONS, LayeredTransformation
from fct_infer.training.runs.loop import ProgressCallback, Trained, TrainingConfig, Validate, fit, seeded

if TYPE_CHECKING:
    from fct_infer.training.runs.folder import RunFolder

TransformationLoss = Literal["mse", "l1", "cosine", "fastfill"]

LossOf = Callable[[tuple[Tensor, ...]], Tensor]


@dataclass(frozen=True)
class TransformationConfig:
    """What h is and how it is trained; the dims come from the data.

    Attributes:
        model: ``"paper"``, ``"mlp"``, ``"residual_mlp"``, ``"linear"`` or ``"fitted_residual"`` with their arguments.
        training: the schedule.
        loss: against the raw new embedding; ``"fastfill"`` adds FastFill's head and needs labels and a classifier.
        label_smoothing: of FastFill's cross entropy.
        standardize: train between spaces of mean 0 and variance 1, which h's first and last layers bring rows to and
            from, and take the loss there. The paper does not; without it, h learns nothing from embeddings of length 1
            in the paper's steps.
    """

    model: ModelSpec
    training: TrainingConfig
    loss: TransformationLoss = "mse"
    label_smoothing: float = 0.1
    standardize: bool = True


@dataclass(frozen=True)
class TrainedTransformation(Trained):
    """A trained h.

    Attributes:
        module: in eval mode.
        model: how to build it again, dims included.
    """

    module: TransformationModule
    model: ModelSpec


@dataclass(frozen=True)
class Objective:
    """What is minimised, built before the training so that the same loss can be taken on held-out rows.

    Attributes:
        network: h, and the frozen classifier where there is one: what the loss calls.
        module: h, in it.
        model: how to build h again, dims included.
        loss_of: a batch of old, side, new and labels -> scalar.
    """

    network: nn.Module
    module: TransformationModule
    model: ModelSpec
    loss_of: LossOf


def train_transformation(
    old: NDArray[Any],
    side: NDArray[Any] | None,
    new: NDArray[Any],
    config: TransformationConfig,
    on_progress: ProgressCallback | None = None,
    *,
    labels: NDArray[Any] | None = None,
    classifier: Classifier | None = None,
) -> TrainedTransformation:
    """Train h to predict the raw new embedding of an item from its old embedding and its side-information.

    Args:
        old: (n, d_old) float32, the old model's embeddings of the new training set.
        side: (n, d_side) float32, side-information of the same items; None for FCT without it, where the old embedding
            takes its place (arXiv 2112.02805).
        new: (n, d_new) float32, the new model's embeddings of the same items.
        config: model, loss and schedule.
        on_progress: called after every step.
        labels: (n,) int64, for FastFill.
        classifier: the new model's, for FastFill; it is not trained.

    Raises:
        UsageError: the configuration names an unknown model, loss or optimizer, or FastFill lacks what it needs.
        ArrayError: an array is not float32 (n, d), or they differ in length, or they are fewer than two rows.
        GateError: the loss became NaN or infinite.
    """
    arrays = {"old": old, "side": old if side is None else side, "new": new}
    tensors = [_as_tensor(name, array) for name, array in arrays.items()]
    if labels is not None:
        tensors.append(torch.from_numpy(labels.astype(np.int64)))
    dims = {"old_dim": old.shape[1], "side_dim": 0 if side is None else side.shape[1], "new_dim": new.shape[1]}
    objective = build_objective(dims, config, classifier, has_labels=labels is not None)
    training = config.training
    batches = TensorBatches(*tensors, batch_size=training.batch_size, seed=training.seed, keep_rest=True)
    if isinstance(objective.module, LayeredTransformation):
        parts = {"old": old, "new": new} | ({} if side is None else {"side": side})
        objective.module.begin_from(Statistics.of_block(parts))
    if labels is not None and classifier is not None:
        check_labels(labels, len(classifier.weight))
    return train_on_batches(objective, batches, training, on_progress)


def build_objective(
    dims: dict[str, int],
    config: TransformationConfig,
    classifier: Classifier | None = None,
    *,
    has_labels: bool = False,
) -> Objective:
    """Draw the initial weights of h from the seed and put its loss together.

    Args:
        dims: ``old_dim``, ``side_dim`` (0 without side-information) and ``new_dim`` of the data.
        config: model, loss and seed.
        classifier: as of :func:`train_transformation`.
        has_labels: whether batches carry labels.

    Raises:
        UsageError: as :func:`train_transformation`.
        ArrayError: the classifier does not fit the new embeddings.
    """
    extra = {"uncertainty": True} if config.loss == "fastfill" else {}
    model = ModelSpec(config.model.name, {**dims, **config.model.arguments})
    if config.standardize and model.name in TRANSFORMATIONS:
        model = ModelSpec("standardized", {"model": asdict(model), **extra})
    else:
        model = ModelSpec(model.name, {**model.arguments, **extra})
    with seeded(config.training.seed):
        module = model.build(TransformationModule)
    if config.loss != "fastfill":
        loss = alignment_loss(config.loss)

        def plain_loss(batch: tuple[Tensor, ...]) -> Tensor:
            # Of rows of length 1 the squared error is so small that weight decay would outweigh it.
            spread = module.spread if isinstance(module, LayeredTransformation) else 1.0
            return loss(module(batch[0], batch[1]) / spread, batch[2] / spread)

        return Objective(module, module, model, plain_loss)
    if not has_labels or classifier is None or not isinstance(module, LayeredTransformation):
        needed = {"labels": has_labels, "the classifier": classifier is not None}
        missing = [name for name, is_there in needed.items() if not is_there] or [f"such an h; {model.name!r} has none"]
        raise UsageError(
            "FastFill's loss needs labels, the new model's classifier, and an h with a last linear layer; missing: "
            + " and ".join(missing)
        )
    if classifier.weight.shape[1] != dims["new_dim"]:
        raise ArrayError(f"classifier: weight is {tuple(classifier.weight.shape)}, wanted (classes, {dims['new_dim']})")
    frozen = copy.deepcopy(classifier).requires_grad_(False)

    def loss_of(batch: tuple[Tensor, ...]) -> Tensor:
        old, side, new, labels = batch
        transformed, log_variance = module.with_uncertainty(old, side)
        return fastfill_loss(transformed, log_variance, new, frozen(transformed), labels, config.label_smoothing)

    return Objective(nn.ModuleDict({"h": module, "classifier": frozen}), module, model, loss_of)


def train_on_batches(
    objective: Objective,
    batches: Batches,
    training: TrainingConfig,
    on_progress: ProgressCallback | None = None,
    run: RunFolder | None = None,
    validate: Validate | None = None,
) -> TrainedTransformation:
    """Train h on any source of batches; errors as :func:`fct_infer.training.runs.loop.fit`."""
    fitted = fit(objective.network, batches, objective.loss_of, training, on_progress, run=run, validate=validate)
    return TrainedTransformation(objective.module, objective.model, fitted=fitted)


def check_labels(labels: NDArray[Any], classes: int, first_row: int = 0) -> None:
    """Raise an ArrayError if a label is not from 0 to ``classes`` - 1; it names the row, counted from ``first_row``."""
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        row = int(wrong[0])
        raise ArrayError(f"labels: row {first_row + row} is {labels[row]}, the classifier knows 0 to {classes - 1}")


def _as_tensor(name: str, array: NDArray[Any]) -> Tensor:
    if array.dtype != np.float32 or array.ndim != 2:
        raise ArrayError(f"{name}: got {array.dtype} {array.shape}, wanted float32 (n, d)")
    return torch.from_numpy(array)
