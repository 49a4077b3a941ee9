"""A residual network that starts as the best closed form, so that training can only add to it (extra ``train``)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fct_infer.connectors.joining import Int64Array
from fct_infer.fitting.pairs import Pairs
from fct_infer.maps import Recipe
from fct_infer.maps.affine import OUTPUT, unit_deviation_steps
from fct_infer.maps.statistics import Statistics
from fct_infer.training.alignment import cosine_loss
from fct_infer.training.losses import transformation_loss
from fct_infer.training.models.folding import chain_steps, linear_step
from fct_infer.training.models.transformation import PointwiseBlock
from fct_infer.transformation import Add, Concat, Float32Array, Linear, Program, Step

STEPS = 3_000
BATCH_ROWS = 256
CHECKS = 10  # times that held-out rows are looked at
_RATE, _DECAY = 1e-3, 1e-2
_DRAWING = threading.Lock()  # PyTorch draws initial weights from one generator for all threads


@dataclass(frozen=True)
class Schedule:
    """How a network is trained; the same numbers give the same network on one machine.

    Attributes:
        hidden: width of its hidden layers.
        steps: of the whole schedule, over which the learning rate rises and falls.
        stop: after how many steps it ends; ``steps`` unless held-out rows said that earlier was better.
        seed: of weights and batches.
        layers: how many hidden ones there are.
    """

    hidden: int
    steps: int = STEPS
    stop: int = STEPS
    seed: int = 0
    layers: int = 2


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
        self.base = PointwiseBlock(d_in, len(self.mean), is_last=True)
        widths = [d_in, *[schedule.hidden] * schedule.layers]
        self.mlp = nn.Sequential(
            *(PointwiseBlock(narrow, wide) for narrow, wide in pairwise(widths)),
            PointwiseBlock(widths[-1], len(self.mean), is_last=True),
        )
        self.standardized = nn.BatchNorm1d(d_in, affine=False, momentum=None)
        self.scale = self.radius / len(self.mean) ** 0.5
        self._begin_as(recipe, statistics)

    @torch.no_grad()
    def _begin_as(self, recipe: Recipe, statistics: Statistics) -> None:
        layer = Recipe(recipe.share, recipe.alpha, recipe.side_alpha).fit(statistics).steps[-1]
        assert isinstance(layer, Linear) and self.base.conv.bias is not None
        weight = self.base.conv.weight.zero_()
        weight[:, : layer.weight.shape[1], 0, 0] = torch.from_numpy(layer.weight)  # Procrustes leaves the side out
        self.base.conv.bias.copy_(torch.from_numpy(layer.bias - self.mean))
        for parameter in self.mlp[-1].parameters():
            parameter.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Return h(x) - mean, (n, d_new), before it is given unit deviation."""
        deviation: Tensor = self.base(x) + self.scale * self.mlp(self.standardized(x))
        return deviation

    def program(self) -> Program:
        """Return what the network computes in eval mode, batch norm folded in float64."""
        dims, inputs, source = {"old": self.old_dim}, list[Step](), "old"
        if self.side_dim:
            dims["side"], source = self.side_dim, "concat"
            inputs.append(Concat(("old", "side"), source))
        base = linear_step(self.base, source, "base")
        if not self.recipe.unit_deviation:
            base = replace(base, bias=(base.bias + self.mean).astype(np.float32))
        layers = chain_steps("mlp", self.mlp, source)
        layers[0] = self._with_raw_inputs(layers[0])
        last = layers[-1]
        layers[-1] = replace(last, weight=_float32(last.weight * self.scale), bias=_float32(last.bias * self.scale))
        added = Add(("base", last.output), "deviation" if self.recipe.unit_deviation else OUTPUT)
        steps = [*inputs, base, *layers, added]
        if self.recipe.unit_deviation:
            steps += unit_deviation_steps("deviation", self.mean, self.radius)
        return Program(dims, tuple(steps), OUTPUT)

    def _with_raw_inputs(self, layer: Linear) -> Linear:
        """Return a layer of standardised inputs as one of the inputs as they are."""
        norm = self.standardized
        assert norm.running_var is not None and norm.running_mean is not None
        weight = layer.weight / np.sqrt(norm.running_var.double().numpy() + norm.eps)
        return replace(
            layer, weight=_float32(weight), bias=_float32(layer.bias - weight @ norm.running_mean.double().numpy())
        )


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


def seconds_per_step(
    pairs: Pairs, rows: Int64Array, start: tuple[Recipe, Statistics], hidden: int, layers: int = 2
) -> float:
    """Return how long a step takes here, by the clock."""
    began: list[float] = []
    train(
        pairs, rows, start, Schedule(hidden, 12, 12, layers=layers), progress=lambda *_: began.append(time.monotonic())
    )
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


def _float32(array: NDArray[np.floating[Any]]) -> Float32Array:
    return np.ascontiguousarray(array, np.float32)
