"""From pairs to the best transformation there is for them, and what it will be worth."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from fct_infer.connectors.joining import Int64Array, Progress
from fct_infer.errors import GalleryError, GateError, UsageError
from fct_infer.evaluation import METRICS, Metric, nearest
from fct_infer.fitting.compress import Compression, Judge, Stored, Teachers, compress
from fct_infer.fitting.crossfit import (
    CrossFit,
    Split,
    Trial,
    choose,
    is_within_noise,
    items_of,
    statistics_of,
    try_recipe,
)
from fct_infer.fitting.forecast import Forecast, forecast, suspect_share
from fct_infer.fitting.measures import ByLabels, ByTruth, Direction, Measure, Overlap, Search
from fct_infer.fitting.network_trial import NAMES, cross_fit_network, final_network
from fct_infer.fitting.pairs import Pairs
from fct_infer.fitting.queries import Queries
from fct_infer.fitting.search import try_recipes
from fct_infer.gallery import sample_rows
from fct_infer.maps import Recipe
from fct_infer.measuring import Estimate
from fct_infer.pages import html_summary
from fct_infer.transformation import Float32Array, Program

if TYPE_CHECKING:
    from fct_infer.fitting.network import Schedule

MIN_PAIRS = 50
_COPY, _COPY_ROWS = 0.02, 500  # of the rows' root mean square distance from their mean; rows looked at
_SUSPECT, _HOPELESS = 0.05, 0.75  # shares of pairs that look mismatched: said, and refused


@dataclass(frozen=True)
class Settings:
    """How a transformation is fitted.

    Attributes:
        metric: how the gallery will be searched; None takes ``cosine`` where all new rows have length 1, else ``l2``.
        budget: seconds; a network is tried only if all its trainings fit into what is left.
        network: whether one is tried at all.
        seed: of everything drawn, below 2**63.
        direction: ``old-to-new`` maps stored rows; ``new-to-old`` maps new queries, to search the old gallery.
        compress: rows, beside those of the pairs, from which small networks learn what the best map found makes of
            them; the smallest that is as good is returned. None compresses nothing.

    Raises:
        UsageError: no such metric, direction, budget or seed, or a map of queries to compress.
    """

    metric: Metric | None = None
    budget: float = 300.0
    network: bool = True
    seed: int = 0
    direction: Direction = "old-to-new"
    compress: Stored | None = None

    def __post_init__(self) -> None:
        for name, known in (("metric", (None, *METRICS)), ("direction", get_args(Direction))):
            if getattr(self, name) not in known:
                raise UsageError(f"unknown {name} {getattr(self, name)!r}; known: {', '.join(filter(None, known))}")
        if not self.budget > 0 or not 0 <= self.seed < 1 << 63:
            raise UsageError(f"budget is {self.budget}, seed {self.seed}; wanted some seconds, and 0 to 2**63 - 1")
        if self.compress is not None and self.direction == "new-to-old":
            raise UsageError("a map of queries is not compressed: what it costs is next to what a query's search costs")


@dataclass(frozen=True)
class Fit:
    """A fitted transformation.

    Attributes:
        program: h(old, side) -> new, fitted on all pairs, and compressed if that was asked for.
        chosen: its trial, or that of the map it learnt from.
        trials: all candidates, the best first.
        measure: what they were compared by.
        metric: how rows were searched.
        forecast: what is to be expected, measured on queries that did not choose.
        notes: what was found on the way and should be known, one sentence each.
        pairs: how many there were.
        seconds: how long it took.
        compression: how small it may be, if that was asked for and tried.
        network: what a chosen network began as, and how it was trained; None of a closed form.
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
    compression: Compression | None = None
    network: tuple[Recipe, Schedule] | None = None

    def __repr__(self) -> str:
        dims = f"{self.program.dims} -> {self.program.new_dim}"
        return f"Fit({self.chosen.name}, {dims}, {self.pairs:,} pairs, by {self.measure}, {self.metric})"

    def _repr_html_(self) -> str:
        known = {
            "map": f"{self.chosen.name}, {self.program.dims} -> {self.program.new_dim}",
            "fitted on": f"{self.pairs:,} pairs, {self.metric}",
            self.measure: str(self.forecast.measured),
            "worth it?": self.forecast.verdict.sentence,
        }
        return html_summary("Fit", known)

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
            "compression": None if self.compression is None else self.compression.as_dict(),
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
        GalleryError: too few pairs or different items, or one of the models gives all of them the same vector.
        GateError: the pairs do not belong together: no map finds the new row of an item by its old one; or the queries
            do not belong to NEW: they find nothing there.
        UsageError: queries of another width, or for a map of queries.
        ArrayError: queries or truth of another kind or shape, or that name no pair.
    """
    began, settings, progress = time.monotonic(), settings or Settings(), progress or (lambda stage, done, rows: None)
    _check(pairs)
    if settings.direction == "new-to-old":
        if queries is not None:
            raise UsageError("a map of queries is judged by the rows of all pairs or by labels, not by queries")
        pairs = pairs.swapped()
    queries = None if queries is None else queries.checked(pairs)
    if settings.compress is not None:
        settings.compress.check(pairs)
    is_unit = bool(np.allclose(np.linalg.norm(pairs.new, axis=1), 1, atol=1e-3))
    search = Search(settings.metric or ("cosine" if is_unit else "l2"), settings.direction)
    split = _split(pairs, queries, settings.seed)
    cross_fit, measure = CrossFit(pairs, split, is_unit), _measure(pairs, split.judged, queries, search)
    if queries is not None and isinstance(measure, ByTruth):
        queries.refuse_foreign(measure, pairs.old[split.judged], pairs.new[split.judged])
    widths = pairs.old.shape[1], 0 if pairs.side is None else pairs.side.shape[1], pairs.new.shape[1]
    attempt = partial(try_recipe, cross_fit, measure)
    trials = try_recipes(attempt, *widths, progress=partial(progress, "try maps"))
    chosen = choose(trials, prefer_spread=queries is None)
    recipe = chosen.recipe
    assert recipe is not None
    transformed, network = cross_fit.transformed(cross_fit.programs(recipe)), None
    notes = [*_suspicion(pairs.new[split.judged], transformed, search), *_copies(cross_fit), *_side_notes(trials)]
    for model, name in NAMES.items() if settings.network else ():
        left, stage = settings.budget - (time.monotonic() - began), partial(progress, f"try {name}")
        if model == "paper" and settings.compress is not None:
            left /= 2  # students are trained after it
        found = cross_fit_network(cross_fit, recipe, search, left, settings.seed, stage, model)
        if isinstance(found, str):
            notes += [found] if found not in notes else []
        else:
            trial = Trial(name, measure.scores(found.transformed, split.choosing), found.flops)
            trials.append(trial)
            if not is_within_noise(trial.scores - chosen.scores):
                chosen, network, transformed = trial, found, found.transformed
    if network is None:
        program = recipe.fit(statistics_of(pairs, np.arange(len(pairs))))
    else:
        program = final_network(cross_fit, recipe, network, partial(progress, "train the network"))
    compression = None
    if settings.compress is not None:
        of_folds = cross_fit.programs(recipe) if network is None else network.programs
        teachers = Teachers(chosen.name, of_folds[0], program)
        judge = _judge(pairs, split, queries, search)
        left = settings.budget - (time.monotonic() - began)
        small = compress(
            cross_fit, judge, teachers, settings.compress, (left, settings.seed), partial(progress, "compress")
        )
        if isinstance(small, str):
            notes.append(small)
        else:
            program, compression = small
    if is_unit:
        program = program.with_normalization()
        notes.append("all new rows have length 1, so those of h are given it, too")
    return Fit(
        program,
        chosen,
        tuple(sorted(trials, key=lambda trial: -trial.scores.mean())),
        measure.name,
        search.metric,
        forecast(cross_fit, transformed, recipe, measure, queries, search),
        tuple(notes),
        len(pairs),
        time.monotonic() - began,
        compression,
        None if network is None else (recipe, network.schedule),
    )


def _split(pairs: Pairs, queries: Queries | None, seed: int) -> Split:
    items = items_of(pairs)
    if (different := len(np.unique(items))) < MIN_PAIRS:
        raise GalleryError(
            f"there are {different} different items among {len(pairs):,} pairs (the same if their old or their "
            f"new rows are); wanted at least {MIN_PAIRS}"
        )
    if queries is None:
        return Split.draw(len(pairs), None, seed, items=items)
    wanted = np.unique(queries.truth[queries.truth >= 0])
    return Split.draw(len(pairs), len(queries.new), seed, kept=wanted, items=items)


def _measure(pairs: Pairs, judged: Int64Array, queries: Queries | None, search: Search) -> Measure:
    new = pairs.new[judged]
    if queries is not None:
        places = np.full(len(pairs) + 1, -1)  # the last is for -1, no row
        places[judged] = np.arange(len(judged))
        return ByTruth(queries.new, places[queries.truth], search.metric)
    return Overlap(new, *search) if pairs.labels is None else ByLabels(new, pairs.labels[judged], *search)


def _judge(pairs: Pairs, split: Split, queries: Queries | None, search: Search) -> Judge:
    """Return what compares maps that were fitted without the first fold."""
    folds = split.folds[split.judged]
    rows = split.judged[folds == 0]
    if queries is not None:
        measure = _measure(pairs, rows, queries, search)
        asked = np.flatnonzero(np.isin(queries.truth, rows).any(axis=1))
        asked = asked[~np.isin(asked, split.reporting)]
        if len(asked) >= MIN_PAIRS:
            return Judge(rows, measure, asked)
    asked = np.arange(len(rows))
    if split.are_rows:
        asked = asked[~np.isin(np.flatnonzero(folds == 0), split.reporting)]
    return Judge(rows, _measure(pairs, rows, None, search), asked)


def _suspicion(target: Float32Array, transformed: Float32Array, search: Search) -> list[str]:
    share = suspect_share(target, transformed, search)
    if share.mean >= _HOPELESS:
        raise GateError(
            "the pairs do not belong together: h of an item's old row is hardly nearer to its new row than to others "
            f"({100 * min(share.mean, 1):.0f} % as by chance). Are the ids of OLD and NEW those of the same items, "
            "in the order of their rows?"
        )
    if share.mean - 2 * share.standard_error > _SUSPECT:
        return [
            f"about {100 * share.mean:.0f} % of the pairs look as if their two rows were of different items, or as if "
            "one model saw little of what the other does"
        ]
    return []


def _copies(cross_fit: CrossFit) -> list[str]:
    """Say if many items have a near copy among the pairs, by which a map would know them."""
    old = cross_fit.pairs.old[cross_fit.split.judged]
    radius = float(np.sqrt(np.mean(np.sum((old - old.mean(axis=0)) ** 2, axis=1))))
    distances, _ = nearest(old, old, 1, exclude_self=True, query_rows=sample_rows(len(old), _COPY_ROWS, 3))
    share = float(np.mean(distances < _COPY * radius))
    if share <= _SUSPECT:
        return []
    return [
        f"{100 * share:.0f} % of the old rows have a near copy among the pairs: new items will fare worse than these"
    ]


def _side_notes(trials: list[Trial]) -> list[str]:
    """Say what side-information adds to the best closed form that does without it."""
    beside = [trial for trial in trials if trial.recipe is not None and trial.recipe.side_alpha is not None]
    if not beside:
        return []
    best = max(beside, key=lambda trial: trial.scores.mean())
    without = (trial for trial in trials if trial.recipe is not None and trial.recipe.side_alpha is None)
    plain = max(without, key=lambda trial: trial.scores.mean())
    gain = Estimate.of(best.scores - plain.scores)
    if gain.mean > 2 * gain.standard_error:
        return [f"side-information adds {gain} to the best closed form"]
    return [f"side-information adds nothing to the best closed form that can be told from noise ({gain})"]


def _check(pairs: Pairs) -> None:
    if len(pairs) < MIN_PAIRS:
        raise GalleryError(f"there are {len(pairs)} pairs; wanted at least {MIN_PAIRS}")
    for name, rows in (("OLD", pairs.old), ("NEW", pairs.new)):
        if not np.any(rows != rows[0]):
            raise GalleryError(f"{name}: all rows are equal")
    if pairs.labels is not None and not len(ByLabels.repeated(pairs.labels)):
        raise GalleryError("no two items have the same label, so labels cannot say which map is best")
