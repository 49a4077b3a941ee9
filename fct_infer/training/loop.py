"""The one training loop: schedule, seeds, progress, abort on NaN."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from fct_infer.errors import GateError, UsageError
from fct_infer.training.data.batches import Batches


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained; the learning rate rises linearly, then falls to zero along a cosine.

    Attributes:
        epochs: passes over the data.
        learning_rate: its peak.
        batch_size: rows a step.
        warmup_epochs: passes over which the learning rate rises; may be a fraction.
        optimizer: ``"sgd"`` (Nesterov momentum) or ``"adam"``.
        momentum: SGD only.
        weight_decay: L2 penalty, in the gradient.
        freeze_batch_norm_from: share of the epochs after which batch norm stops following the batches and uses its
            running statistics; 1 is never. The paper's h is trained with 0.5.
        seed: of the initial weights, the order of the data and the augmentation.
    """

    epochs: int
    learning_rate: float
    batch_size: int = 128
    warmup_epochs: float = 1.0
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.875
    weight_decay: float = 2**-15
    freeze_batch_norm_from: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Progress:
    """Where a training run stands; ``loss`` is the mean over the current epoch so far, ``seconds`` since the start."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    seconds: float


ProgressCallback: TypeAlias = Callable[[Progress], None]


def fit(
    module: nn.Module,
    batches: Batches,
    loss_of: Callable[[tuple[Tensor, ...]], Tensor],
    config: TrainingConfig,
    on_progress: ProgressCallback | None = None,
) -> list[float]:
    """Train ``module`` in place, leave it in eval mode, and return the mean loss of every epoch.

    Raises:
        GateError: the loss became NaN or infinite; the message names epoch and step.
        UsageError: the optimizer is unknown.
    """
    start, losses = time.monotonic(), []
    steps = config.epochs * len(batches)
    optimizer = _optimizer(module, config)
    warmup_steps = config.warmup_epochs * len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_at(step, warmup_steps, steps))
    for epoch in range(config.epochs):
        _set_modes(module, batch_norm_frozen=epoch >= config.freeze_batch_norm_from * config.epochs)
        total = 0.0
        for index, batch in enumerate(batches):
            step = epoch * len(batches) + index + 1
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(batch)
            total += loss.item()
            if not math.isfinite(total):
                raise GateError(
                    f"the loss is {loss.item()} at step {step} of {steps}, epoch {epoch + 1}; lower the learning rate"
                )
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            if on_progress is not None:
                seconds = time.monotonic() - start
                on_progress(Progress(epoch + 1, config.epochs, step, steps, total / (index + 1), seconds))
        losses.append(total / len(batches))
    module.eval()
    return losses


def learning_rate_at(step: int, warmup_steps: float, steps: int) -> float:
    """Return the share of the peak learning rate used at ``step`` (from 0): linear warm-up, then a cosine to zero."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(steps - warmup_steps, 1)))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw initial weights from ``seed`` inside the block, and leave the caller's random state alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _set_modes(module: nn.Module, batch_norm_frozen: bool) -> None:
    module.train()
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.train(not batch_norm_frozen)


def _optimizer(module: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    rate, decay = config.learning_rate, config.weight_decay
    match config.optimizer:
        case "sgd":
            momentum = config.momentum
            return torch.optim.SGD(module.parameters(), rate, momentum, weight_decay=decay, nesterov=momentum > 0)
        case "adam":
            return torch.optim.Adam(module.parameters(), rate, weight_decay=decay)
        case other:
            raise UsageError(f"unknown optimizer {other!r}, wanted 'sgd' or 'adam'")
