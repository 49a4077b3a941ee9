"""A residual network that starts as the best closed form, so that training can only add to it (extra ``train``)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fct_infer.fitting.pairs import Int64Array, Pairs
from fct_infer.maps import Recipe
from fct_infer.maps.affine import OUTPUT, unit_deviation_steps
from fct_infer.maps.statistics import Float64Array, Statistics
from fct_infer.training.alignment import cosine_loss
from fct_infer.training.losses import transformation_loss
from fct_infer.transformation import Activation, Add, Concat, Float32Array, Linear, Program, Step

STEPS = 3_000
BATCH_ROWS = 256
CHECKS = 10  # times that held-out rows are looked at
_RATE, _DECAY = 1e-3, 1e-2
_DRAWING = threading.Lock()  # PyTorch draws initial weights from one generator for all threads


@dataclass(frozen=True)
class Schedule:
    """How a network is trained; the same numbers give the same network on one machine.

    Attributes:
        hidden: width of its two hidden layers.
        steps: of the whole schedule, over which the learning rate rises and falls.
        stop: after how many steps it ends; ``steps`` unless held-out rows said that earlier was better.
        seed: of weights and batches.
    """

    hidden: int
    steps: int = STEPS
    stop: int = STEPS
    seed: int = 0


class Residual(nn.Module):
    """base(x) + scale * mlp((x - mean) / spread), and unit deviation where the recipe has it.

    The last layer starts at zero: the network begins as the recipe.
    """

    def __init__(self, recipe: Recipe, statistics: Statistics, schedule: Schedule) -> None:
        super().__init__()
        if recipe.side_alpha is None:
            statistics = statistics.without_side
        d_in, mean = statistics.input_dim, statistics.mean
        self.recipe, self.old_dim, self.side_dim = recipe, statistics.old_dim, statistics.side_dim
        self.mean = mean[d_in:]
        self.radius = float(np.sqrt(np.trace(statistics.yy) / statistics.rows))
        base = affine_of(recipe, statistics)
        self.base = nn.Linear(d_in, len(self.mean))
        self.base.load_state_dict({name: torch.from_numpy(value) for name, value in base.items()})
        hidden = schedule.hidden
        self.mlp = nn.Sequential(
            nn.BatchNorm1d(d_in, affine=False, momentum=None),
            nn.Linear(d_in, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, len(self.mean)),
        )
        self.scale = self.radius / len(self.mean) ** 0.5
        for parameter in self.mlp[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Return h(x) - mean, (n, d_new), before it is given unit deviation."""
        deviation: Tensor = self.base(x) + self.scale * self.mlp(x)
        return deviation

    def program(self) -> Program:
        """Return what the network computes in eval mode, batch norm folded in float64."""
        dims, steps, source = {"old": self.old_dim}, list[Step](), "old"
        if self.side_dim:
            dims["side"], source = self.side_dim, "concat"
            steps.append(Concat(("old", "side"), source))
        layers = list(self.mlp)
        first = _after_norm(layers[1], layers[0])
        folded = [
            _before_norm(*first, layers[2]),
            _before_norm(*_numbers(layers[4]), layers[5]),
            tuple(self.scale * part for part in _numbers(layers[7])),
        ]
        weight, bias = _numbers(self.base)
        steps.append(_linear(source, "base", weight, bias if self.recipe.unit_deviation else bias + self.mean))
        value = source
        for index, (weight, bias) in enumerate(folded):
            steps.append(_linear(value, f"mlp.{index}", weight, bias, "none" if index == 2 else "relu"))
            value = f"mlp.{index}"
        steps.append(Add(("base", value), "deviation" if self.recipe.unit_deviation else OUTPUT))
        if self.recipe.unit_deviation:
            steps += unit_deviation_steps("deviation", self.mean, self.radius)
        return Program(dims, tuple(steps), OUTPUT)


def affine_of(recipe: Recipe, statistics: Statistics) -> dict[str, Float32Array]:
    """Return ``weight`` (d_new, d_in) and ``bias`` of a recipe's h(x) - mean before unit deviation."""
    program = Recipe(recipe.share, recipe.alpha, recipe.side_alpha).fit(statistics)
    layer = program.steps[-1]
    assert isinstance(layer, Linear)
    weight = layer.weight
    if statistics.side_dim and weight.shape[1] < statistics.input_dim:  # Procrustes does without side-information
        weight = np.concatenate([weight, np.zeros((len(weight), statistics.side_dim), np.float32)], axis=1)
    bias = layer.bias - statistics.mean[statistics.input_dim :]
    return {"weight": weight, "bias": bias.astype(np.float32)}


def train(
    pairs: Pairs,
    rows: Int64Array,
    start: tuple[Recipe, Statistics],
    schedule: Schedule,
    check: Callable[[int, Residual], bool] | None = None,
    progress: Callable[[int, int], None] = lambda done, steps: None,
) -> Residual:
    """Train on some pairs and return the network in eval mode.

    Args:
        pairs: what there is.
        rows: (n,) pairs to train on.
        start: a recipe and what it is fitted from.
        schedule: see :class:`Schedule`.
        check: called :data:`CHECKS` times with the steps done and the network in eval mode; False ends the training.
        progress: called with steps done and steps in all.
    """
    network, generator = _initial(start, schedule), torch.Generator().manual_seed(schedule.seed)
    x, y = _inputs(pairs, rows, network.side_dim), torch.from_numpy(pairs.new[rows])
    mean = torch.from_numpy(network.mean.astype(np.float32))
    optimizer = torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=_DECAY)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, schedule.steps)
    every, order = max(1, schedule.steps // CHECKS), torch.empty(0, dtype=torch.int64)
    for step in range(1, schedule.stop + 1):
        if len(order) < 2:  # batch norm wants two
            order = torch.randperm(len(rows), generator=generator)
        batch, order = order[:BATCH_ROWS], order[BATCH_ROWS:]
        loss = _loss(network, network(x[batch]), y[batch] - mean)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        rate.step()
        progress(step, schedule.stop)
        if check is not None and (step % every == 0 or step == schedule.stop):
            network.eval()
            if not check(step, network):
                break
            network.train()
    return network.eval()


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Let PyTorch compute with one thread: products this small lose more by waiting for each other than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def seconds_per_step(pairs: Pairs, rows: Int64Array, start: tuple[Recipe, Statistics], hidden: int) -> float:
    """Return how long a step takes here, by the clock."""
    began: list[float] = []
    train(pairs, rows, start, Schedule(hidden, steps=12, stop=12), progress=lambda *_: began.append(time.monotonic()))
    return float(np.median(np.diff(began)))


def _initial(start: tuple[Recipe, Statistics], schedule: Schedule) -> Residual:
    with _DRAWING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(schedule.seed)
        return Residual(*start, schedule)


def _inputs(pairs: Pairs, rows: Int64Array, side_dim: int) -> Tensor:
    parts = [pairs.old[rows]] + ([pairs.side[rows]] if side_dim and pairs.side is not None else [])
    return torch.from_numpy(np.concatenate(parts, axis=1))


def _loss(network: Residual, deviation: Tensor, wanted: Tensor) -> Tensor:
    """With unit deviation only directions from the mean count; else the squared error as a share of the variance."""
    if network.recipe.unit_deviation:
        return cosine_loss(deviation, wanted)
    return transformation_loss(deviation / network.scale, wanted / network.scale)


def _numbers(layer: nn.Module) -> tuple[Float64Array, Float64Array]:
    assert isinstance(layer, nn.Linear)
    return layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()


def _affine(norm: nn.Module) -> tuple[Float64Array, Float64Array]:
    """Return factor and offset of a batch norm in eval mode."""
    assert isinstance(norm, nn.BatchNorm1d) and norm.running_var is not None and norm.running_mean is not None
    factor = 1 / np.sqrt(norm.running_var.double().numpy() + norm.eps)
    offset = -norm.running_mean.double().numpy() * factor
    if norm.affine:
        gain, shift = (part.detach().double().numpy() for part in (norm.weight, norm.bias))
        factor, offset = factor * gain, offset * gain + shift
    return factor, offset


def _after_norm(layer: nn.Module, norm: nn.Module) -> tuple[Float64Array, Float64Array]:
    (weight, bias), (factor, offset) = _numbers(layer), _affine(norm)
    return weight * factor, bias + weight @ offset


def _before_norm(weight: Float64Array, bias: Float64Array, norm: nn.Module) -> tuple[Float64Array, Float64Array]:
    factor, offset = _affine(norm)
    return weight * factor[:, None], bias * factor + offset


def _linear(
    source: str, output: str, weight: Float64Array, bias: Float64Array, activation: Activation = "none"
) -> Linear:
    return Linear(source, output, np.ascontiguousarray(weight, np.float32), bias.astype(np.float32), activation)
