"""How ``fct-fit`` trains a residual network that starts as the best closed form, and the paper's h: extra ``train``."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fct_infer.connectors.joining import Int64Array
from fct_infer.fitting.pairs import Pairs
from fct_infer.maps import Recipe
from fct_infer.maps.statistics import Statistics
from fct_infer.training.data.batches import batch_ends
from fct_infer.training.losses.alignment import cosine_loss, transformation_loss
from fct_infer.training.models.residual import FittedResidual
from fct_infer.training.models.standardized import StandardizedTransformation
from fct_infer.training.models.transformation import LayeredTransformation, PaperTransformation
from fct_infer.training.runs.loop import learning_rate_at, set_modes
from fct_infer.training.trainers.transformation_run import PAPER_RECIPE, fitted_to

Model: TypeAlias = Literal["residual", "paper"]
STEPS = 3_000
BATCH_ROWS = 256
CHECKS = 10  # times that held-out rows are looked at
RATE, DECAY = 1e-3, 1e-2  # of AdamW, which trains the residual network
PAPER_WIDTHS = (2048, 1024, 512)  # of the mixer of the paper's h; the first is the paper's
_TIMED = 6  # steps, to know how long all will take
_THREADS = 4  # of one training; two take 0.6 of the time of one
_DRAWING = threading.Lock()  # PyTorch draws initial weights from one generator for all threads


@dataclass(frozen=True)
class Schedule:
    """How a network is trained; the same numbers give the same network on one machine.

    Attributes:
        hidden: width of its hidden layers; of the paper's h that of its mixer.
        steps: of the whole schedule, over which the learning rate rises and falls.
        stop: after how many steps it ends; ``steps`` unless held-out rows said that earlier was better.
        seed: of weights and batches.
        layers: how many hidden ones there are, of a residual network.
        model: what kind of network.
        batch_rows: rows of a step.
    """

    hidden: int
    steps: int = STEPS
    stop: int = STEPS
    seed: int = 0
    layers: int = 2
    model: Model = "residual"
    batch_rows: int = BATCH_ROWS


def train(
    pairs: Pairs,
    rows: Int64Array,
    start: tuple[Recipe, Statistics],
    schedule: Schedule,
    check: Callable[[int, LayeredTransformation], bool] | None = None,
    progress: Callable[[int, int], None] = lambda done, steps: None,
) -> LayeredTransformation:
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
    optimizer, rate = _optimizer(network, schedule)
    frozen_from = schedule.steps * (PAPER_RECIPE.freeze_batch_norm_from if schedule.model == "paper" else 1)
    every, order = max(1, schedule.steps // CHECKS), torch.empty(0, dtype=torch.int64)
    for step in range(1, schedule.stop + 1):
        set_modes(network, batch_norm_frozen=step > frozen_from)
        if len(order) < 2:  # batch norm wants two
            order = torch.randperm(len(rows), generator=generator)
        batch, order = order[: schedule.batch_rows], order[schedule.batch_rows :]
        loss = _loss(network, x[batch], y[batch])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        rate.step()
        progress(step, schedule.stop)
        if check is not None and (step % every == 0 or step == schedule.stop):
            network.eval()
            if not check(step, network):
                break
    return network.eval()


def paper_steps(rows: int) -> tuple[int, int]:
    """Return for how many steps ``fct-train`` trains the paper's h on so many rows, and the rows of a step."""
    recipe = fitted_to(rows, PAPER_RECIPE, {})
    return recipe.epochs * len(batch_ends(rows, recipe.batch_size)), recipe.batch_size


@contextmanager
def few_threads(most: int = _THREADS) -> Iterator[None]:
    """Let PyTorch compute with few threads: of more, products this small lose more by waiting than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(min(most, threads))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def first_steps(
    pairs: Pairs, rows: Int64Array, start: tuple[Recipe, Statistics], schedule: Schedule
) -> tuple[float, LayeredTransformation]:
    """Return how many seconds a step takes here, by the clock, and the network after the first few."""
    began: list[float] = []
    few = replace(schedule, stop=_TIMED)
    network = train(pairs, rows, start, few, progress=lambda *_: began.append(time.monotonic()))
    return float(np.median(np.diff(began))), network


def _optimizer(
    network: LayeredTransformation, schedule: Schedule
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return what moves the weights, and how far by step: the paper's h as ``fct-train`` does, whose decay it needs."""
    optimizer: torch.optim.Optimizer
    if schedule.model == "residual":
        optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
        return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, schedule.steps)
    recipe = PAPER_RECIPE
    optimizer = torch.optim.Adam(network.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    warmup = schedule.steps * recipe.warmup_epochs / recipe.epochs
    return optimizer, torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_at(step, warmup, schedule.steps)
    )


def _initial(start: tuple[Recipe, Statistics], schedule: Schedule) -> LayeredTransformation:
    recipe, statistics = start
    side_dim = 0 if recipe.side_alpha is None else statistics.side_dim
    with _DRAWING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(schedule.seed)
        widths = statistics.old_dim, side_dim, len(statistics.yy)
        network: LayeredTransformation
        if schedule.model == "paper":
            network = StandardizedTransformation(PaperTransformation(*widths, schedule.hidden))
        else:
            network = FittedResidual(*widths, asdict(recipe), schedule.hidden, schedule.layers)
    network.begin_from(statistics)
    return network


def _inputs(pairs: Pairs, rows: Int64Array, side_dim: int) -> Tensor:
    parts = [pairs.old[rows]] + ([pairs.side[rows]] if side_dim and pairs.side is not None else [])
    return torch.from_numpy(np.concatenate(parts, axis=1))


def _loss(network: LayeredTransformation, x: Tensor, wanted: Tensor) -> Tensor:
    """With unit deviation only directions from the mean count; else the squared error as a share of the variance."""
    if isinstance(network, FittedResidual):
        deviation, wanted = network.deviation(x), wanted - network.get_buffer("mean")
        if network.recipe.unit_deviation:
            return cosine_loss(deviation, wanted)
        return transformation_loss(deviation / network.spread, wanted / network.spread)
    parts = torch.split(x, [network.old_dim, network.side_dim], dim=1)
    return transformation_loss(
        network(*parts[: 2 if network.side_dim else 1]) / network.spread, wanted / network.spread
    )
