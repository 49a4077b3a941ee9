"""The one training loop: schedule, seeds, devices, progress, resume, abort on NaN."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from fct_infer.errors import GateError, UsageError
from fct_infer.training.data.batches import Batches
from fct_infer.training.runs.devices import TrainingPrecision, launch

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from fct_infer.training.runs.folder import RunFolder


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained; the learning rate rises linearly, then falls along a cosine.

    Attributes:
        epochs: passes over the data.
        learning_rate: its peak.
        batch_size: rows a step.
        warmup_epochs: passes over which the learning rate rises; may be a fraction.
        schedule: when it changes: every ``"step"``, down to zero, or every ``"epoch"``, as in the public FCT code; then
            the last epoch learns, too.
        optimizer: ``"sgd"``, ``"adam"`` or ``"adamw"``.
        momentum: SGD only.
        nesterov: take Nesterov's momentum; the public FCT code does not.
        weight_decay: L2 penalty, in the gradient; of AdamW apart from it.
        freeze_batch_norm_from: share of the epochs after which batch norm stops following the batches and uses its
            running statistics; 1 is never. The paper's h is trained with 0.5.
        seed: of the initial weights, the order of the data and the augmentation.
        accelerator: ``"cpu"``, ``"cuda"``, or what else Lightning Fabric knows; ``"auto"`` is the best there is.
        devices: how many; they share each batch. Each has its own batch statistics.
        precision: ``"fp32"``, or a reduced one where it does no harm (autocast).
        log_every: steps between two rows of a run's metrics.
        result: whose weights are the result: the ``"last"`` epoch's, as in the papers, or the ``"best"`` one's, that of
            the lowest validation loss.

    Raises:
        UsageError: a number is out of its range.
    """

    epochs: int
    learning_rate: float
    batch_size: int = 128
    warmup_epochs: float = 1.0
    schedule: Literal["step", "epoch"] = "step"
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    momentum: float = 0.875
    nesterov: bool = False
    weight_decay: float = 2**-15
    freeze_batch_norm_from: float = 1.0
    seed: int = 0
    accelerator: str = "cpu"
    devices: int = 1
    precision: TrainingPrecision = "fp32"
    log_every: int = 10
    result: Literal["last", "best"] = "last"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "devices", "log_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}: got {getattr(self, name)}, wanted at least 1")
        for name in ("learning_rate", "warmup_epochs", "momentum", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"{name}: got {getattr(self, name)}, wanted a finite number of at least 0")
        if self.nesterov and not self.momentum:
            raise UsageError("nesterov: is a kind of momentum, which is 0")


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

Validate: TypeAlias = Callable[[], Mapping[str, float]]
"""Called after every epoch, the modules in eval mode: figures of held-out data, ``loss`` among them."""


@dataclass(frozen=True)
class Fitted:
    """What :func:`fit` did.

    Attributes:
        module: what was trained, with the weights that are the result.
        losses: mean training loss of every epoch.
        validation: figures of every epoch; empty without validation.
        result: whose weights they are: ``"last"`` or ``"best"``.
        other: weights of the other one of the two; None without validation.
    """

    module: nn.Module
    losses: list[float]
    validation: list[dict[str, float]]
    result: Literal["last", "best"]
    other: dict[str, Tensor] | None

    @property
    def figures(self) -> dict[str, Any]:
        """What a run reports: training loss, best epoch (from 1), and the validation figures of the result."""
        training = {"first_loss": self.losses[0], "last_loss": self.losses[-1]}
        if not self.validation:
            return training
        best = _best(self.validation)
        own = self.validation[best if self.result == "best" else -1]
        return training | {"best_epoch": best + 1} | {f"validation_{name}": value for name, value in own.items()}

    def save(self, folder: Path, save: Callable[[Path], None]) -> None:
        """Have the result saved in ``folder``, and the weights of the other epoch in ``folder``/best or /last."""
        if self.other is not None:
            own = _copied(self.module)
            self.module.load_state_dict(self.other)
            save(folder / ("best" if self.result == "last" else "last"))
            self.module.load_state_dict(own)
        save(folder)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Base of what trainers return."""

    fitted: Fitted

    @property
    def losses(self) -> list[float]:
        """Mean training loss of every epoch."""
        return self.fitted.losses


def fit(
    module: nn.Module,
    batches: Batches,
    loss_of: Callable[[tuple[Tensor, ...]], Tensor],
    config: TrainingConfig,
    on_progress: ProgressCallback | None = None,
    *,
    run: RunFolder | None = None,
    generators: Sequence[torch.Generator] = (),
    validate: Validate | None = None,
) -> Fitted:
    """Train ``module`` in place and leave it in eval mode on the CPU.

    Args:
        module: what is trained, and all other modules that ``loss_of`` uses.
        batches: the data.
        loss_of: batch -> scalar loss; calls ``module`` or parts of it. Both are on the device when it is called.
        config: schedule and devices.
        on_progress: called after every step, of several processes in the first.
        run: where metrics and state are kept; an unfinished run goes on where it stood.
        generators: what ``loss_of`` draws from.
        validate: see :data:`Validate`; draws nothing.

    Raises:
        GateError: the loss became NaN or infinite; the message names epoch and step.
        UsageError: the optimizer is unknown, or the best epoch is asked for without validation.
        UnsupportedError: the devices are not there.
        MissingExtraError: Lightning Fabric is not installed.
    """
    if config.result == "best" and validate is None:
        raise UsageError("training.result: the best epoch is found by validation, and nothing is held out for it")
    fabric = run.fabric if run else launch(config.accelerator, config.devices, config.precision)
    if fabric.world_size > 1:
        batches.share(fabric.global_rank, fabric.world_size)
    with seeded(config.seed):  # what a model draws itself (dropout)
        training = _Training(fabric, module, loss_of, config, len(batches), (*batches.generators, *generators))
        if run and (state := run.load_state()):
            training.load_state(state)
        for epoch in range(training.epoch, config.epochs):
            training.run_epoch(epoch, batches, on_progress, run)
            if validate is not None:
                training.judge(validate, run)
            if run:
                run.save_state(training.state())
    module.cpu().eval()
    return training.fitted()


class _Objective(nn.Module):
    """Makes the loss one module's forward pass, which is what Fabric can spread over devices and precisions."""

    def __init__(self, module: nn.Module, loss_of: Callable[[tuple[Tensor, ...]], Tensor]) -> None:
        super().__init__()
        self.module, self._loss_of = module, loss_of

    def forward(self, batch: tuple[Tensor, ...]) -> Tensor:
        return self._loss_of(batch)


class _Training:
    """All that changes while a model is trained, and how it is kept and taken up again."""

    def __init__(
        self,
        fabric: Fabric,
        module: nn.Module,
        loss_of: Callable[[tuple[Tensor, ...]], Tensor],
        config: TrainingConfig,
        steps_per_epoch: int,
        generators: Sequence[torch.Generator],
    ) -> None:
        self._fabric, self._module, self._config, self._generators = fabric, module, config, generators
        self._steps_per_epoch, self._steps = steps_per_epoch, config.epochs * steps_per_epoch
        self._optimizer = _optimizer(module, config)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, _shares(config, steps_per_epoch))
        self._objective, self._wrapped_optimizer = fabric.setup(_Objective(module, loss_of), self._optimizer)
        self.epoch, self.losses = 0, list[float]()
        self._validation, self._best = list[dict[str, float]](), dict[str, Tensor]()
        self._start = time.monotonic()

    def run_epoch(
        self, epoch: int, batches: Batches, on_progress: ProgressCallback | None, run: RunFolder | None
    ) -> None:
        """Take one pass over the data."""
        config, count = self._config, self._steps_per_epoch
        set_modes(self._module, batch_norm_frozen=epoch >= config.freeze_batch_norm_from * config.epochs)
        total, logged = 0.0, (0, 0.0)
        for index, batch in enumerate(batches):
            step, rate = epoch * count + index + 1, self._schedule.get_last_lr()[0]
            total += self._step(batch, step, epoch)
            progress = Progress(epoch + 1, config.epochs, step, self._steps, total / (index + 1), self._seconds)
            if run and (step % config.log_every == 0 or index + 1 == count):
                mean = (total - logged[1]) / (index + 1 - logged[0])
                run.log(step, epoch + 1, mean, float(rate), progress.seconds)
                logged = index + 1, total
            if on_progress is not None and self._fabric.is_global_zero:
                on_progress(progress)
        self.losses.append(total / count)
        self.epoch = epoch + 1

    def _step(self, batch: tuple[Tensor, ...], step: int, epoch: int) -> float:
        """Take one step and return the loss, the mean over all devices."""
        self._wrapped_optimizer.zero_grad(set_to_none=True)
        loss = self._objective(self._fabric.to_device(batch))
        mean: Any = self._fabric.all_reduce(loss.detach(), reduce_op="mean")
        value = float(mean)
        if not math.isfinite(value):
            raise GateError(
                f"the loss is {value} at step {step} of {self._steps}, epoch {epoch + 1}; lower the learning rate"
            )
        self._fabric.backward(loss)
        self._wrapped_optimizer.step()
        self._schedule.step()
        return value

    def judge(self, validate: Validate, run: RunFolder | None) -> None:
        """Take the figures of the epoch just done, and keep its weights if they are the best so far."""
        self._module.eval()
        with torch.inference_mode():
            figures = {name: float(value) for name, value in validate().items()}
        if not math.isfinite(figures["loss"]):
            raise GateError(f"the validation loss is {figures['loss']} after epoch {self.epoch}")
        self._validation.append(figures)
        if _best(self._validation) == len(self._validation) - 1:
            self._best = _copied(self._module)
        if run:
            run.log_validation(self.epoch * self._steps_per_epoch, self._validation)

    def fitted(self) -> Fitted:
        """Leave the weights that are the result in the module, and return what was done."""
        result, other = self._config.result, self._best or None
        if result == "best":
            other = _copied(self._module)
            self._module.load_state_dict(self._best)
        return Fitted(self._module, self.losses, self._validation, result, other)

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._start

    def state(self) -> dict[str, Any]:
        """Return all that the next epoch depends on."""
        return {
            "epoch": self.epoch,
            "step": self.epoch * self._steps_per_epoch,
            "losses": self.losses,
            "validation": self._validation,
            "best": self._best,
            "seconds": self._seconds,
            "module": self._module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "precision": self._fabric.strategy.precision.state_dict(),
            "generators": [generator.get_state() for generator in self._generators],
            "own_draws": torch.get_rng_state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state` was taken."""
        self._module.load_state_dict(state["module"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._fabric.strategy.precision.load_state_dict(state["precision"])
        for generator, drawn in zip(self._generators, state["generators"], strict=True):
            generator.set_state(drawn)
        torch.set_rng_state(state["own_draws"])
        self.epoch, self.losses = state["epoch"], list(state["losses"])
        self._validation, self._best = list(state["validation"]), dict(state["best"])
        self._start = time.monotonic() - state["seconds"]


def _best(validation: Sequence[Mapping[str, float]]) -> int:
    """Return the place of the lowest loss, the first of equal ones."""
    return min(range(len(validation)), key=lambda epoch: validation[epoch]["loss"])


def _copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}


def _shares(config: TrainingConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """Return step (from 0) -> the share of the peak learning rate."""
    if config.schedule == "epoch":
        return lambda step: learning_rate_of_epoch(step // steps_per_epoch, config.warmup_epochs, config.epochs)
    warmup_steps, steps = config.warmup_epochs * steps_per_epoch, config.epochs * steps_per_epoch
    return lambda step: learning_rate_at(step, warmup_steps, steps)


def learning_rate_of_epoch(epoch: int, warmup_epochs: float, epochs: int) -> float:
    """Return the share of the peak learning rate used in ``epoch`` (from 0), as in the public FCT code."""
    if epoch < warmup_epochs:
        return min((epoch + 1) / warmup_epochs, 1.0)
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1)))


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


def set_modes(module: nn.Module, batch_norm_frozen: bool) -> None:
    """Put a module into training mode, its batch norms into eval mode if they are to follow the batches no longer."""
    module.train()
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.train(not batch_norm_frozen)


def _optimizer(module: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    rate, decay = config.learning_rate, config.weight_decay
    match config.optimizer:
        case "sgd":
            return torch.optim.SGD(
                module.parameters(), rate, config.momentum, weight_decay=decay, nesterov=config.nesterov
            )
        case "adam":
            return torch.optim.Adam(module.parameters(), rate, weight_decay=decay)
        case "adamw":
            return torch.optim.AdamW(module.parameters(), rate, weight_decay=decay)
        case other:
            raise UsageError(f"unknown optimizer {other!r}, wanted 'sgd', 'adam' or 'adamw'")
