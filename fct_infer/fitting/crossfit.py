"""Every judged row is transformed by a map that was fitted without it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from fct_infer.connectors.joining import Int64Array
from fct_infer.errors import GalleryError
from fct_infer.fitting.measures import Measure
from fct_infer.fitting.pairs import Pairs
from fct_infer.fitting.splits import Split
from fct_infer.maps import Recipe, Statistics
from fct_infer.maps.affine import without_scaling
from fct_infer.maps.statistics import Float64Array
from fct_infer.measuring import Estimate
from fct_infer.transformation import Float32Array, Normalize, Program, Transformation


class CrossFit:
    """Transforms the judged rows by maps fitted on other rows.

    Args:
        pairs: what there is.
        split: see :class:`Split`.
        unit_length: whether transformed rows are given length 1, as the map will give them.
    """

    def __init__(self, pairs: Pairs, split: Split, unit_length: bool = False) -> None:
        self.pairs, self.split, self.unit_length = pairs, split, unit_length
        self._folds = np.unique(split.folds[split.judged])
        self._statistics: list[Statistics] = []

    def statistics(self) -> list[Statistics]:
        """Return those of the rows outside each judged fold."""
        self._statistics = self._statistics or list(self._outside_folds(1.0))
        return self._statistics

    def programs(self, recipe: Recipe, share: float = 1.0) -> list[Program]:
        """Return the maps of each judged fold's rows, fitted on the others, or on those among a share of all pairs."""
        return [recipe.fit(each) for each in (self.statistics() if share == 1 else self._outside_folds(share))]

    def _outside_folds(self, share: float) -> Iterator[Statistics]:
        """Yield the statistics of the rows outside each judged fold, among the first of a fixed random order."""
        rows = len(self.pairs)
        among = np.random.default_rng(0).permutation(rows)[: max(2, round(share * rows))]
        chosen = np.zeros(rows, bool)
        chosen[among] = True
        folds = np.unique(self.split.folds)
        own = [_statistics_of(self.pairs, np.flatnonzero(chosen & (self.split.folds == fold))) for fold in folds]
        # Added up from both ends, so that each row is read once: taken from the sum of all, a fold would leave what
        # rounding made of it, in columns that do not vary elsewhere, too.
        after = [*list(accumulate(own[:0:-1], _merged))[::-1], None]
        before: Statistics | None = None
        for fold in folds:
            mine, rest = own.pop(0), after.pop(0)  # of wide rows each is large
            if fold in self._folds:
                yield _some(_merged(before, rest))
            before = _merged(before, mine)

    def transformed(self, programs: Sequence[Program]) -> Float32Array:
        """Return the judged rows, (m, d_new), each by the map of its fold."""
        judged, folds = self.split.judged, self.split.folds[self.split.judged]
        result = np.empty((len(judged), self.pairs.new.shape[1]), np.float32)
        for fold, program in zip(self._folds, programs, strict=True):
            rows = np.flatnonzero(folds == fold)
            result[rows] = self.apply(program, judged[rows])
        return result

    def apply(self, program: Program, rows: Int64Array) -> Float32Array:
        """Return some pairs' old rows transformed in float32, as an upgrade computes them."""
        # Compiled, a layer that scales would take d_new * d_new weights, for each fold of each candidate.
        program, scaling = without_scaling(program)
        h = Transformation(program, "fp32")
        side = self.pairs.side[rows] if h.side_dim and self.pairs.side is not None else None
        result = h(self.pairs.old[rows], side)
        if scaling is not None:
            result *= scaling.weight.diagonal()
            result += scaling.bias
        return _normalized(result) if self.unit_length else result


@dataclass(frozen=True)
class Trial:
    """A candidate and how it did.

    Attributes:
        name: for people.
        scores: (queries,) of the choosing queries.
        flops: a row.
        recipe: None for what is not a closed form.
    """

    name: str
    scores: Float64Array
    flops: int
    recipe: Recipe | None = None

    @property
    def estimate(self) -> Estimate:
        """Mean and standard error of the scores."""
        return Estimate.of(self.scores)

    def as_dict(self) -> dict[str, Any]:
        """Return the trial as strict JSON, the scores as their mean."""
        return {"name": self.name, "flops_per_row": self.flops, **asdict(self.estimate)}


def statistics_of(pairs: Pairs, rows: Int64Array) -> Statistics:
    """Return the statistics of some pairs, in blocks that bound what is held in float64.

    Raises:
        GalleryError: there are none: nearly all pairs are copies of each other, and all of them are held out.
    """
    return _some(_statistics_of(pairs, rows))


def _statistics_of(pairs: Pairs, rows: Int64Array) -> Statistics | None:
    names = {"old": pairs.old, "new": pairs.new} | ({} if pairs.side is None else {"side": pairs.side})
    return Statistics.of_blocks(
        {name: array[rows[start : start + 16_384]] for name, array in names.items()}
        for start in range(0, len(rows), 16_384)
    )


def _merged(one: Statistics | None, other: Statistics | None) -> Statistics | None:
    return one.merged(other) if one is not None and other is not None else one or other


def _some(found: Statistics | None) -> Statistics:
    if found is None:
        raise GalleryError("nearly all pairs have their old row or their new row in common; wanted different items")
    return found


def _normalized(rows: Float32Array) -> Float32Array:
    """Return rows of length 1, as the core makes them."""
    unit = Program({"old": rows.shape[1]}, (Normalize("old", "unit"),), "unit")
    return Transformation(unit, "fp32")(rows)


def try_recipe(cross_fit: CrossFit, measure: Measure, recipe: Recipe) -> Trial:
    """Return how a recipe does on the choosing queries."""
    programs = cross_fit.programs(recipe)
    scores = measure.scores(cross_fit.transformed(programs), cross_fit.split.choosing)
    return Trial(recipe.name, scores, programs[0].flops_per_row, recipe)


def choose(trials: Sequence[Trial], *, prefer_spread: bool, spread_costs: float = 0.0) -> Trial:
    """Return the best trial, or of those that the queries cannot tell from it the cheapest.

    Two cannot be told apart if their mean difference, query by query, is within its standard error.

    Args:
        trials: at least one, all over the same queries.
        prefer_spread: take one with unit deviation unless all of those are worse. Rows judge only queries like
            themselves; where a user's are of another kind, such as keywords that search for texts, it is unit deviation
            that keeps rows near the mean from being found by all of them.
        spread_costs: share of the best mean that those with unit deviation may lack and still be preferred.
    """
    best = max(trials, key=_mean)
    spread = [trial for trial in trials if trial.recipe is None or trial.recipe.unit_deviation]
    if prefer_spread and spread:
        best_spread = max(spread, key=_mean)
        lost = best.scores - best_spread.scores
        if is_within_noise(lost) or lost.mean() <= spread_costs * _mean(best):
            best, trials = best_spread, spread
    equal = [trial for trial in trials if is_within_noise(best.scores - trial.scores)]
    return min(equal, key=lambda trial: (trial.flops, -_mean(trial)))


def _mean(trial: Trial) -> float:
    return float(trial.scores.mean())


def is_within_noise(difference: Float64Array) -> bool:
    """Return whether the mean of (queries,) differences is at most its standard error."""
    estimate = Estimate.of(difference)
    return estimate.mean <= estimate.standard_error
