"""From pairs to the best transformation there is for them, and what it will be worth."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fct_infer.errors import GalleryError, GateError, UsageError
from fct_infer.evaluation import METRICS, Metric
from fct_infer.fitting.crossfit import CrossFit, Split, Trial, choose, is_within_noise, statistics_of, try_recipe
from fct_infer.fitting.forecast import Forecast, Queries, forecast, suspect_share
from fct_infer.fitting.measures import ByLabels, ByTruth, Estimate, Measure, Overlap
from fct_infer.fitting.network_trial import NAME, cross_fit_network, final_network
from fct_infer.fitting.pairs import Int64Array, Pairs, Progress
from fct_infer.fitting.search import search
from fct_infer.maps import Recipe
from fct_infer.transformation import Program

MIN_PAIRS = 50
_SUSPECT, _HOPELESS = 0.05, 0.7  # shares of pairs that look mismatched: said, and refused


@dataclass(frozen=True)
class Settings:
    """How a transformation is fitted.

    Attributes:
        metric: how the gallery will be searched; None takes ``cosine`` where all new rows have length 1, else ``l2``.
        budget: seconds; a network is tried only if all its trainings fit into what is left.
        network: whether one is tried at all.
        seed: of everything drawn.
    """

    metric: Metric | None = None
    budget: float = 300.0
    network: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Fit:
    """A fitted transformation.

    Attributes:
        program: h(old, side) -> new, fitted on all pairs.
        chosen: its trial.
        trials: all candidates, the best first.
        measure: what they were compared by.
        metric: how rows were searched.
        forecast: what is to be expected, measured on queries that did not choose.
        notes: what was found on the way and should be known, one sentence each.
        pairs: how many there were.
        seconds: how long it took.
    """

    program: Program
    chosen: Trial
    trials: tuple[Trial, ...]
    measure: str
    metric: Metric
    forecast: Forecast
    notes: tuple[str, ...]
    pairs: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the weights as strict JSON."""
        return {
            "chosen": self.chosen.as_dict(),
            "candidates": [trial.as_dict() for trial in self.trials],
            "measure": self.measure,
            "metric": self.metric,
            "forecast": self.forecast.as_dict(),
            "notes": list(self.notes),
            "pairs": self.pairs,
            "seconds": self.seconds,
        }


def fit_pairs(
    pairs: Pairs, settings: Settings | None = None, queries: Queries | None = None, progress: Progress | None = None
) -> Fit:
    """Fit candidates from closed forms to a network and return the one that searches best, the cheapest among equals.

    Every candidate transforms rows it was not fitted on and is judged by what a search finds among them: by the
    user's queries where there are any, else by labels, else by the neighbours it has in common with the new model.

    Args:
        pairs: items embedded by both models.
        settings: see :class:`Settings`.
        queries: of the user, with their right rows.
        progress: told about stages.

    Raises:
        GalleryError: too few pairs, or one of the models gives all of them the same vector.
        GateError: the pairs do not belong together: no map finds the new row of an item by its old one.
        UsageError: unknown metric, or queries of another width.
    """
    began, settings, progress = time.monotonic(), settings or Settings(), progress or (lambda stage, done, rows: None)
    _check(pairs, settings, queries)
    is_unit = bool(np.allclose(np.linalg.norm(pairs.new, axis=1), 1, atol=1e-3))
    metric = settings.metric or ("cosine" if is_unit else "l2")
    wanted = None if queries is None else np.unique(queries.truth[queries.truth >= 0])
    split = Split.draw(len(pairs), None if queries is None else len(queries.new), settings.seed, wanted)
    cross_fit, measure = CrossFit(pairs, split), _measure(pairs, split.judged, queries, metric)
    widths = pairs.old.shape[1], 0 if pairs.side is None else pairs.side.shape[1], pairs.new.shape[1]
    attempt = partial(try_recipe, cross_fit, measure)
    trials = search(attempt, *widths, progress=partial(progress, "try maps"))
    chosen = choose(trials, prefer_spread=queries is None)
    recipe = chosen.recipe
    assert recipe is not None
    notes = [*_suspicion(cross_fit, recipe, metric), *_side_notes(trials)]
    transformed, network = cross_fit.transformed(recipe), None
    if settings.network:
        left, stage = settings.budget - (time.monotonic() - began), partial(progress, "try a network")
        found = cross_fit_network(cross_fit, recipe, metric, left, settings.seed, stage)
        if isinstance(found, str):
            notes.append(found)
        else:
            trial = Trial(NAME, measure.scores(found.transformed, split.choosing), found.flops)
            trials.append(trial)
            if not is_within_noise(trial.scores - chosen.scores):
                chosen, network, transformed = trial, found, found.transformed
    if network is None:
        program = recipe.fit(statistics_of(pairs, np.arange(len(pairs))))
    else:
        program = final_network(cross_fit, recipe, network, partial(progress, "train the network"))
    if is_unit:
        program = program.with_normalization()
        notes.append("all new rows have length 1, so those of h are given it, too")
    return Fit(
        program,
        chosen,
        tuple(sorted(trials, key=lambda trial: -trial.scores.mean())),
        measure.name,
        metric,
        forecast(cross_fit, transformed, recipe, measure, queries, metric),
        tuple(notes),
        len(pairs),
        time.monotonic() - began,
    )


def _measure(pairs: Pairs, judged: Int64Array, queries: Queries | None, metric: Metric) -> Measure:
    new = pairs.new[judged]
    if queries is not None:
        places = np.full(len(pairs) + 1, -1)  # the last is for -1, no row
        places[judged] = np.arange(len(judged))
        return ByTruth(queries.new, places[queries.truth], metric)
    return Overlap(new, metric) if pairs.labels is None else ByLabels(new, pairs.labels[judged], metric)


def _suspicion(cross_fit: CrossFit, recipe: Recipe, metric: Metric) -> list[str]:
    share = suspect_share(cross_fit, recipe, metric)
    if share >= _HOPELESS:
        raise GateError(
            f"the pairs do not belong together: h of an item's old row is hardly nearer to its new row than to any "
            f"other ({100 * share:.0f} % as by chance). Are the ids of OLD and NEW those of the same items, in the "
            "order of their rows?"
        )
    if share > _SUSPECT:
        return [f"about {100 * share:.0f} % of the pairs look as if their two rows were of different items"]
    return []


def _side_notes(trials: list[Trial]) -> list[str]:
    """Say what side-information adds to the best closed form that does without it."""
    beside = [trial for trial in trials if trial.recipe is not None and trial.recipe.side_alpha is not None]
    if not beside:
        return []
    best = max(beside, key=lambda trial: trial.scores.mean())
    plain = max((trial for trial in trials if trial not in beside), key=lambda trial: trial.scores.mean())
    gain = Estimate.of(best.scores - plain.scores)
    if gain.mean > 2 * gain.standard_error:
        return [f"side-information adds {gain} to the best closed form"]
    return [f"side-information adds nothing to the best closed form that can be told from noise ({gain})"]


def _check(pairs: Pairs, settings: Settings, queries: Queries | None) -> None:
    if settings.metric is not None and settings.metric not in METRICS:
        raise UsageError(f"unknown metric {settings.metric!r}; known: {', '.join(METRICS)}")
    if len(pairs) < MIN_PAIRS:
        raise GalleryError(f"there are {len(pairs)} pairs; wanted at least {MIN_PAIRS}")
    for name, rows in (("OLD", pairs.old), ("NEW", pairs.new)):
        if not np.any(rows != rows[0]):
            raise GalleryError(f"{name}: all rows are equal")
    if queries is None:
        return
    for name, found, width in (
        ("queries", queries.new, pairs.new.shape[1]),
        ("old queries", queries.old, pairs.old.shape[1]),
    ):
        if found is not None and found.shape[1] != width:
            raise UsageError(
                f"{name} are {found.shape[1]} wide, wanted {width}; OLD is {pairs.old.shape[1]} wide, "
                f"NEW {pairs.new.shape[1]}: are they swapped?"
            )
    if not (queries.truth >= 0).any():
        raise GalleryError("no query's right row is among the pairs, so they cannot say which map is best")
