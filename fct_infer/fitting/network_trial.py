"""Whether a network does better than the closed form it starts from, found out outside one fold."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from fct_infer.connectors.joining import Int64Array
from fct_infer.fitting.budget import Budget
from fct_infer.fitting.crossfit import CrossFit, Trial, statistics_of
from fct_infer.fitting.measures import Measure, Overlap, Search
from fct_infer.fitting.splits import FOLDS
from fct_infer.maps import Recipe
from fct_infer.maps.chains import mix
from fct_infer.measuring import Estimate
from fct_infer.transformation import Float32Array, Program

if TYPE_CHECKING:
    from fct_infer.fitting.network import Model, Schedule
    from fct_infer.training.models.transformation import LayeredTransformation

NAMES: dict[Model, str] = {"residual": "residual network", "paper": "the paper's h"}
"""Networks that are tried, in this order."""

SHARES = (0.25, 0.5, 0.75, 1.0)  # that a network is tried with; the rest of the map is the closed form
MIN_QUERIES = 50  # that say when to stop, and as many that say whether it was worth it
_MIN_PAIRS = 3 * MIN_QUERIES * FOLDS  # a third of the fold reports


class Screen:
    """Compares networks and the closed form they start from on the rows of one fold, all fitted on the others.

    Half of the fold's choosing queries say when a training should have stopped, the others whether it was worth it;
    where a user brings queries, those say the latter and rows the former.

    Args:
        fold: pairs, and a split that judges by the first fold; see :meth:`Split.first_fold`.
        recipe: the closed form; networks start from the same without unit deviation.
        measure: of the fold's rows.
        search: how they are searched.
    """

    def __init__(self, fold: CrossFit, recipe: Recipe, measure: Measure, search: Search) -> None:
        self.fold, self.recipe, self.measure = fold, recipe, measure
        # A network says by a small deviation that it is not sure; in a mixture the closed form decides there.
        self.start = replace(recipe, unit_deviation=False)
        self._overlap = Overlap(fold.pairs.new[fold.split.judged], *search)
        asked = fold.split.choosing
        rows = np.arange(len(fold.split.judged))
        self.stopping, self.comparing = (asked[::2], asked[1::2]) if fold.split.are_rows else (rows, asked)

    @property
    def missing(self) -> str | None:
        """What a screening lacks here, to be said; None if nothing."""
        if len(self.stopping) < MIN_QUERIES:
            who = "pairs" if self.fold.split.labels is None else "pairs that share their label with others"
            return f"that takes {_MIN_PAIRS:,} {who}, so that held-out rows tell when to stop"
        if len(self.comparing) < MIN_QUERIES:
            return (
                f"that takes {MIN_QUERIES} queries that look for rows held out from it and do not report; "
                f"there are {len(self.comparing)}"
            )
        if self.closed_form.scores.min() >= 1:
            return "the best closed form finds all that the new model does"
        return None

    @cached_property
    def closed_form(self) -> Trial:
        """How the closed form does on the comparing queries."""
        (program,) = self.fold.programs(self.recipe)
        return self.trial(self.recipe.name, self.fold.transformed([program]), program.flops_per_row, self.recipe)

    def trial(self, name: str, transformed: Float32Array, flops: int, recipe: Recipe | None = None) -> Trial:
        """Return how (m, d_new) transformed rows of the fold do on the comparing queries."""
        return Trial(name, self.measure.scores(transformed, self.comparing), flops, recipe)

    def raw(self, program: Program) -> Float32Array:
        """Return what a program makes of the fold's rows, (m, d_new), not given length 1."""
        return CrossFit(self.fold.pairs, self.fold.split).transformed([program])

    def stopping_score(self, rows: Float32Array) -> float:
        """Return the overlap of :meth:`raw` rows, by which it is seen when a network was best."""
        if self.fold.unit_length:
            rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))
        return float(self._overlap.scores(np.asarray(rows, np.float32), self.stopping).mean())


@dataclass(frozen=True)
class Network:
    """A network that was trained outside the fold.

    Attributes:
        trial: how it did when and as stopping queries saw it at its best.
        transformed: (m, d_new) rows of the fold at that moment.
        program: which transformed them.
        schedule: that ends then.
        share: of the network in the program; the rest is the closed form.
        expected_seconds: that this training and the one on all pairs were said to take.
    """

    trial: Trial
    transformed: Float32Array
    program: Program
    schedule: Schedule
    share: float
    expected_seconds: float


@dataclass(frozen=True)
class Screened:
    """What one fold says of the networks.

    Attributes:
        rows: of the fold that were searched.
        closed_form: the best one, fitted on the rows that the networks were trained on.
        networks: that were tried.
    """

    rows: int
    closed_form: Trial
    networks: tuple[Network, ...]

    def difference(self, trial: Trial) -> Estimate:
        """Return what a network gains against the closed form, query by query."""
        return Estimate.of(trial.scores - self.closed_form.scores)

    def as_dict(self) -> dict[str, Any]:
        """Return everything but weights and rows as strict JSON."""
        return {
            "rows": self.rows,
            "queries": len(self.closed_form.scores),
            "closed_form": self.closed_form.as_dict(),
            "networks": [
                {
                    **network.trial.as_dict(),
                    "difference": asdict(self.difference(network.trial)),
                    "hidden": network.schedule.hidden,
                    "steps": network.schedule.stop,
                    "share": network.share,
                    "expected_seconds": network.expected_seconds,
                }
                for network in self.networks
            ],
        }


def screen_network(
    screen: Screen, budget: Budget, seed: int, progress: Callable[[int, int], None], model: Model = "residual"
) -> Network | str:
    """Train a network outside the fold, as wide a one as the budget allows, or say why none was trained.

    Args:
        screen: see :class:`Screen`.
        budget: of this training and one on all pairs together.
        seed: of weights and batches.
        progress: told steps done and steps in all.
        model: what kind of network.
    """
    if find_spec("torch") is None:
        return "no network was tried: that needs PyTorch (pip install 'fct-infer[train]')"
    from fct_infer.fitting.network import few_threads, train

    if screen.missing:
        return f"no network was tried: {screen.missing}"
    pairs, rows = screen.fold.pairs, np.flatnonzero(screen.fold.split.folds != 0)
    start = screen.start, screen.fold.statistics()[0]
    with few_threads():
        for schedule in _schedules(model, screen, seed):
            needed = _seconds(screen, rows, schedule)
            if needed <= budget.left:
                break
        else:
            return f"{NAMES[model]}: not tried, {budget.refuse(needed)}"
        watch = _Watch(screen, schedule)
        train(pairs, rows, start, schedule, watch.check, progress)
    return watch.best(needed)


def is_better(network: Network, closed_form: Trial) -> bool:
    """Whether a network finds more than the closed form by twice the standard error: it costs more, too."""
    gain = Estimate.of(network.trial.scores - closed_form.scores)
    return gain.mean > 2 * gain.standard_error


def final_network(screen: Screen, network: Network, progress: Callable[[int, int], None]) -> Program:
    """Train on all pairs as long as was found to be right."""
    from fct_infer.fitting.network import few_threads, train
    from fct_infer.training.models.folding import to_program

    pairs = screen.fold.pairs
    rows = np.arange(len(pairs))
    start = screen.start, statistics_of(pairs, rows)
    with few_threads():
        program = to_program(train(pairs, rows, start, network.schedule, progress=progress))
    return _with_share(program, screen.recipe.fit(start[1]), network.share)


def _with_share(network: Program, closed_form: Program, share: float) -> Program:
    return network if share == 1 else mix(network, closed_form, share)


def _schedules(model: Model, screen: Screen, seed: int) -> list[Schedule]:
    """Return how networks of a kind are trained, the widest first."""
    from fct_infer.fitting.network import PAPER_WIDTHS, STEPS, Schedule, paper_steps

    pairs = screen.fold.pairs
    if model == "paper":
        steps, batch_rows = paper_steps(int(np.sum(screen.fold.split.folds != 0)))
        return [Schedule(width, steps, steps, seed, model=model, batch_rows=batch_rows) for width in PAPER_WIDTHS]
    is_narrow = max(pairs.old.shape[1], pairs.new.shape[1]) <= 512
    return [Schedule(512 if is_narrow else 1024, STEPS, STEPS, seed, model=model)]


def _seconds(screen: Screen, rows: Int64Array, schedule: Schedule) -> float:
    """Return how long training will take outside the fold, with a look at its rows now and then, and on all pairs."""
    from fct_infer.fitting.network import CHECKS, first_steps

    a_step, network = first_steps(screen.fold.pairs, rows, (screen.start, screen.fold.statistics()[0]), schedule)
    watch = _Watch(screen, schedule)
    began = time.monotonic()
    watch.check(1, network)
    return 2 * schedule.steps * a_step + CHECKS * (time.monotonic() - began)


class _Watch:
    """Looks at a network that is being trained, and keeps it as it was at its best."""

    def __init__(self, screen: Screen, schedule: Schedule) -> None:
        self._screen, self._schedule = screen, schedule
        # By half of the steps the learning rate falls, and with it what training breaks; the paper's h starts from
        # nothing.
        self._patience = schedule.steps if schedule.model == "paper" else schedule.steps // 2
        (self._closed_form,) = screen.fold.programs(screen.recipe)
        self._rows = screen.raw(self._closed_form)
        self._start, self._best = screen.stopping_score(self._rows), -1.0

    def check(self, step: int, network: LayeredTransformation) -> bool:
        """Keep the network if it is the best so far; False if it is time to give up."""
        from fct_infer.training.models.folding import to_program

        program = to_program(network)
        rows = self._screen.raw(program)
        for share in SHARES:
            found = self._screen.stopping_score(share * rows + (1 - share) * self._rows)
            if found > self._best:
                self._best, self._kept = found, (step, share, program)
        return self._best > self._start or step < self._patience

    def best(self, expected_seconds: float) -> Network:
        """Return the network as it was at its best."""
        step, share, program = self._kept
        program = _with_share(program, self._closed_form, share)
        transformed = self._screen.fold.transformed([program])
        name = NAMES[self._schedule.model] + self._width + f", {100 * share:.0f} %" * (share < 1)
        trial = self._screen.trial(name, transformed, program.flops_per_row)
        return Network(trial, transformed, program, replace(self._schedule, stop=step), share, expected_seconds)

    @property
    def _width(self) -> str:
        from fct_infer.fitting.network import PAPER_WIDTHS

        is_narrowed = self._schedule.model == "paper" and self._schedule.hidden < PAPER_WIDTHS[0]
        return f", {self._schedule.hidden:,} instead of {PAPER_WIDTHS[0]:,} wide" * is_narrowed
