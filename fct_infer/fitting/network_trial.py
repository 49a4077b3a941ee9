"""Whether a network does better than the best closed form, found out fold by fold."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from fct_infer.connectors.joining import Int64Array
from fct_infer.fitting.crossfit import FOLDS, CrossFit, statistics_of
from fct_infer.fitting.measures import Overlap, Search
from fct_infer.machine import usable_cpus
from fct_infer.maps import Recipe
from fct_infer.measuring import Estimate
from fct_infer.transformation import Float32Array, Program

if TYPE_CHECKING:
    from fct_infer.fitting.network import Model, Schedule
    from fct_infer.training.models.transformation import LayeredTransformation

NAMES: dict[Model, str] = {"residual": "residual network", "paper": "the paper's h"}
"""Networks that are tried, in this order."""

MIN_ROWS = 100  # queries that say when to stop, and whether it was worth it


@dataclass(frozen=True)
class Network:
    """A network that did better than its start where both were screened.

    Attributes:
        transformed: (m, d_new) judged rows, each by a network that was trained without it.
        flops: a row.
        schedule: where held-out rows said to stop.
        programs: of each fold, trained on the others.
    """

    transformed: Float32Array
    flops: int
    schedule: Schedule
    programs: tuple[Program, ...]


def cross_fit_network(
    cross_fit: CrossFit,
    recipe: Recipe,
    search: Search,
    budget: float,
    seed: int,
    progress: Callable[[int, int], None],
    model: Model = "residual",
) -> Network | str:
    """Train a network outside the first fold, and outside each if that one is better; or say why there is none.

    Args:
        cross_fit: pairs and split.
        recipe: what the network starts from, and is compared with.
        search: how rows are searched.
        budget: seconds that all trainings together, the last on all pairs among them, may take.
        seed: of weights and batches.
        progress: told steps done, of all that may follow.
        model: what kind of network.
    """
    if find_spec("torch") is None:
        return "no network was tried: that needs PyTorch (pip install 'fct-infer[train]')"
    from fct_infer.fitting.network import PAPER_WIDTH, STEPS, Schedule, one_thread_each, seconds_per_step, train
    from fct_infer.training.models.folding import to_program

    pairs, split = cross_fit.pairs, cross_fit.split
    folds = split.folds[split.judged]
    # By half of the steps the learning rate falls, and with it what training breaks; the paper's h starts from nothing.
    screening = _Screening(cross_fit, recipe, search, patience=STEPS if model == "paper" else STEPS // 2)
    if screening.queries < MIN_ROWS:
        return f"no network was tried: that takes {MIN_ROWS * FOLDS:,} pairs, so that held-out rows tell when to stop"
    is_narrow = max(pairs.old.shape[1], pairs.new.shape[1]) <= 512
    schedule = Schedule(
        PAPER_WIDTH if model == "paper" else 512 if is_narrow else 1024, STEPS, STEPS, seed, model=model
    )
    starts = [(recipe, statistics) for statistics in cross_fit.statistics()]
    rows = [np.flatnonzero(split.folds != fold) for fold in range(FOLDS)]
    at_once = min(FOLDS, usable_cpus())
    with one_thread_each():
        # One after the other: the screening, the folds as many at once as there are cores, and all pairs.
        steps = STEPS * (2 + -(-FOLDS // at_once))
        needed = steps * seconds_per_step(pairs, rows[0], starts[0], schedule)
        if needed > budget:
            return f"{NAMES[model]}: not tried, it takes about {needed:,.0f} s, {max(budget, 0):,.0f} s are left"
        train(pairs, rows[0], starts[0], schedule, screening.check, lambda step, _: progress(step, (1 + FOLDS) * STEPS))
        if not screening.is_better:
            return f"{NAMES[model]}: tried, and no better than the best closed form"
        schedule = replace(schedule, stop=screening.best_step)
        transformed = np.empty((len(split.judged), pairs.new.shape[1]), np.float32)

        def fit_fold(fold: int) -> Program:
            program = to_program(train(pairs, rows[fold], starts[fold], schedule))
            transformed[folds == fold] = cross_fit.apply(program, split.judged[folds == fold])
            return program

        programs = list[Program]()
        with ThreadPoolExecutor(at_once) as pool:
            for each in pool.map(fit_fold, range(FOLDS)):
                programs.append(each)
                progress((1 + len(programs)) * STEPS, (1 + FOLDS) * STEPS)
    return Network(transformed, programs[0].flops_per_row, schedule, tuple(programs))


def final_network(
    cross_fit: CrossFit, recipe: Recipe, network: Network, progress: Callable[[int, int], None]
) -> Program:
    """Train on all pairs as long as was found to be right."""
    from fct_infer.fitting.network import one_thread_each, train
    from fct_infer.training.models.folding import to_program

    rows = np.arange(len(cross_fit.pairs))
    start = recipe, statistics_of(cross_fit.pairs, rows)
    with one_thread_each():
        return to_program(train(cross_fit.pairs, rows, start, network.schedule, progress=progress))


class _Screening:
    """Looks at the first fold's judged rows: half of the queries say when to stop, the others whether it was worth it.

    Queries that report are not among them.
    """

    def __init__(self, cross_fit: CrossFit, recipe: Recipe, search: Search, patience: int) -> None:
        self._cross_fit, split = cross_fit, cross_fit.split
        folds = split.folds[split.judged]
        self._rows: Int64Array = split.judged[folds == 0]
        self._overlap = Overlap(cross_fit.pairs.new[self._rows], *search)
        asked = np.arange(len(self._rows))
        if split.are_rows:
            asked = asked[~np.isin(np.flatnonzero(folds == 0), split.reporting)]
        self.queries = len(asked)
        self._stopping, self._comparing = asked[::2], asked[1::2]
        self._patience = patience
        self.best_step = 0
        if self.queries:
            self._closed_form = cross_fit.apply(recipe.fit(cross_fit.statistics()[0]), self._rows)
            self._best = float(self._overlap.scores(self._closed_form, self._stopping).mean())
            self._transformed = self._closed_form

    def check(self, step: int, network: LayeredTransformation) -> bool:
        """Keep what the network makes of the rows if it is the best so far; False if it is time to give up."""
        from fct_infer.training.models.folding import to_program

        transformed = self._cross_fit.apply(to_program(network), self._rows)
        found = float(self._overlap.scores(transformed, self._stopping).mean())
        if found > self._best:
            self._best, self.best_step, self._transformed = found, step, transformed
        return self.best_step > 0 or step < self._patience

    @property
    def is_better(self) -> bool:
        """Whether the best network beats its start by more than the noise."""
        if not self.best_step:
            return False
        after, before = (self._overlap.scores(rows, self._comparing) for rows in (self._transformed, self._closed_form))
        gain = Estimate.of(after - before)
        return gain.mean > gain.standard_error
