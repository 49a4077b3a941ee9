"""From pairs to the best transformation there is for them, and what it will be worth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from fct_infer.connectors.joining import Int64Array, Progress
from fct_infer.errors import GalleryError, UsageError
from fct_infer.evaluation import METRICS, Metric
from fct_infer.fitting.budget import Budget
from fct_infer.fitting.compress import Compression, Judge, Stored, Teachers, compress
from fct_infer.fitting.crossfit import CrossFit, Trial, choose, statistics_of, try_recipe
from fct_infer.fitting.findings import copies, maps_apart, side_notes, suspicion
from fct_infer.fitting.forecast import Forecast, forecast
from fct_infer.fitting.measures import ByLabels, ByTruth, Direction, Measure, Overlap, Search
from fct_infer.fitting.network_trial import NAMES, Network, Screen, Screened, final_network, is_better, screen_network
from fct_infer.fitting.pairs import Pairs
from fct_infer.fitting.queries import Queries
from fct_infer.fitting.search import try_recipes
from fct_infer.fitting.splits import QUERIES, Split, items_of
from fct_infer.maps import Recipe
from fct_infer.pages import html_summary
from fct_infer.transformation import Program

if TYPE_CHECKING:
    from fct_infer.fitting.network import Schedule

MIN_PAIRS = 50
MIN_FINDING = 20  # queries that report and find something by the new model; of fewer any verdict would be chance
_SPREAD_COSTS = 0.05  # of the overlap of rows, which hardly shows what unit deviation is worth to other queries


@dataclass(frozen=True)
class Settings:
    """How a transformation is fitted.

    Attributes:
        metric: how the gallery will be searched; None takes ``cosine`` where all new rows have length 1, else ``l2``.
        budget: seconds; a network is tried only if both its trainings fit into what is left.
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
        trials: all closed forms, the best first.
        measure: what candidates were compared by.
        metric: how rows were searched.
        forecast: what is to be expected, measured on queries that did not choose.
        notes: what was found on the way and should be known, one sentence each.
        pairs: how many there were.
        seconds: how long it took.
        compression: how small it may be, if that was asked for and tried.
        network: what a chosen network began as, how it was trained, and its share, the rest of which is the closed form
            of :attr:`screened`; None of a closed form.
        screened: networks beside the best closed form, on fewer rows; None if none was tried.
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
    network: tuple[Recipe, Schedule, float] | None = None
    screened: Screened | None = None

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
            "networks": None if self.screened is None else self.screened.as_dict(),
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
    Closed forms are fitted five times, each time without a fifth of the rows; networks once, without the first of
    these fifths, where they are compared with the closed form that was chosen.

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
    settings, progress = settings or Settings(), progress or (lambda stage, done, rows: None)
    budget = Budget(settings.budget)
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
    pairs, queries, undirected = _with_direction(pairs, queries, search)
    pairs, queries, few = _enough(pairs, queries, search, settings.seed)
    split = _split(pairs, queries, settings.seed)
    cross_fit, measure = CrossFit(pairs, split, is_unit), _measure(pairs, split.judged, queries, search)
    widths = pairs.old.shape[1], 0 if pairs.side is None else pairs.side.shape[1], pairs.new.shape[1]
    attempt = partial(try_recipe, cross_fit, measure)
    trials = try_recipes(attempt, *widths, progress=partial(progress, "try maps"))
    by_rows = isinstance(measure, Overlap)  # which knows nothing of what users ask
    chosen = choose(trials, prefer_spread=queries is None, spread_costs=_SPREAD_COSTS if by_rows else 0.0)
    recipe = chosen.recipe
    assert recipe is not None
    transformed = cross_fit.transformed(cross_fit.programs(recipe))
    apart = maps_apart(cross_fit, transformed, search) if by_rows else []
    mismatched = suspicion(pairs.new[split.judged], transformed, search)
    notes = [*undirected, *few, *mismatched, *copies(cross_fit), *apart, *side_notes(trials)]
    fold = CrossFit(pairs, split.first_fold(None if queries is None else queries.truth), is_unit)
    screen = Screen(fold, recipe, _measure(pairs, fold.split.judged, queries, search), search)
    network, screened, said = _networks(screen, settings, budget, progress)
    notes += said
    if network is None:
        program = recipe.fit(statistics_of(pairs, np.arange(len(pairs))))
        by = (fold, fold.transformed(fold.programs(recipe))) if apart else (cross_fit, transformed)
        expected = forecast(*by, recipe, screen.measure if apart else measure, queries, search)
    else:
        chosen, program = network.trial, final_network(screen, network, partial(progress, "train the network"))
        expected = forecast(fold, network.transformed, recipe, screen.measure, queries, search)
    compression = None
    if settings.compress is not None:
        (without_fold,) = fold.programs(recipe) if network is None else (network.program,)
        teachers = Teachers(chosen.name, without_fold, program)
        judge = _judge(screen, search)
        small = compress(
            cross_fit, judge, teachers, settings.compress, (budget, settings.seed), partial(progress, "compress")
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
        expected,
        tuple(notes),
        len(pairs),
        budget.spent,
        compression,
        None if network is None else (screen.start, network.schedule, network.share),
        screened,
    )


def _networks(
    screen: Screen, settings: Settings, budget: Budget, progress: Progress
) -> tuple[Network | None, Screened | None, list[str]]:
    """Try networks within the budget; return the best if it beats the closed form, all of them, and what to say."""
    tried, notes = list[Network](), list[str]()
    for model, name in NAMES.items() if settings.network else ():
        # Students are trained after the paper's h.
        share = 0.5 if model == "paper" and settings.compress is not None else 1.0
        stage = partial(progress, f"try {name}")
        found = screen_network(screen, replace(budget, share=share), settings.seed, stage, model)
        if isinstance(found, str):
            notes += [found] if found not in notes else []
            continue
        tried.append(found)
        if not is_better(found, screen.closed_form):
            notes.append(f"{found.trial.name}: tried, and no better than the best closed form")
    if not tried:
        return None, None, notes
    better = [network for network in tried if is_better(network, screen.closed_form)]
    best = max(better, key=lambda network: network.trial.estimate.mean, default=None)
    return best, Screened(len(screen.fold.split.judged), screen.closed_form, tuple(tried)), notes


def _split(pairs: Pairs, queries: Queries | None, seed: int) -> Split:
    items = items_of(pairs)
    if (different := len(np.unique(items))) < MIN_PAIRS:
        raise GalleryError(
            f"there are {different} different items among {len(pairs):,} pairs (the same if their old or their "
            f"new rows are); wanted at least {MIN_PAIRS}"
        )
    if queries is None:
        return Split.draw(len(pairs), None, seed, items=items, labels=pairs.labels)
    wanted = np.unique(queries.truth[queries.truth >= 0])
    return Split.draw(len(pairs), len(queries.new), seed, kept=wanted, items=items)


def _with_direction(pairs: Pairs, queries: Queries | None, search: Search) -> tuple[Pairs, Queries | None, list[str]]:
    """Leave out pairs that cosine cannot compare, as models make of empty texts, and say so."""
    kept = np.flatnonzero(pairs.old.any(axis=1) & pairs.new.any(axis=1))
    left_out = len(pairs) - len(kept)
    if search.metric != "cosine" or not left_out:
        return pairs, queries, []
    places = np.full(len(pairs) + 1, -1)  # the last is for -1, no row
    places[kept] = np.arange(len(kept))
    pairs = pairs.of(kept)
    if queries is not None:
        queries = replace(queries, truth=places[queries.truth]).checked(pairs)
    _check(pairs)
    return pairs, queries, [f"pairs left out, as a row of length zero has no direction: {left_out:,}"]


def _enough(
    pairs: Pairs, queries: Queries | None, search: Search, seed: int
) -> tuple[Pairs, Queries | None, list[str]]:
    """Leave out queries, or labels, that are too few to choose a map and to say what it is worth, and say so."""
    if queries is None and pairs.labels is None:
        return pairs, queries, []
    split = _split(pairs, queries, seed)
    old, new = pairs.old[split.judged], pairs.new[split.judged]
    measure = _measure(pairs, split.judged, queries, search)
    if queries is not None and isinstance(measure, ByTruth):
        queries.refuse_foreign(measure, old, new)
    finding = int(np.count_nonzero(measure.scores(new, split.reporting))) if len(split.reporting) else 0
    if finding >= MIN_FINDING:
        return pairs, queries, []
    kept, asked = ("labels", "rows that have a label") if queries is None else ("queries", "queries")
    said = (
        f"the {kept} are too few to tell one map from another, or what it is worth: a third of them reports, and "
        f"{finding} of those {asked} find a right row by the new model alone; wanted at least {MIN_FINDING}. Maps are "
        "judged by the rows of all pairs instead"
    )
    return replace(pairs, labels=None), None, [said]


def _measure(pairs: Pairs, judged: Int64Array, queries: Queries | None, search: Search) -> Measure:
    new = pairs.new[judged]
    if queries is not None:
        places = np.full(len(pairs) + 1, -1)  # the last is for -1, no row
        places[judged] = np.arange(len(judged))
        return ByTruth(queries.new, places[queries.truth], search.metric)
    return Overlap(new, *search) if pairs.labels is None else ByLabels(new, pairs.labels[judged], *search)


def _judge(screen: Screen, search: Search) -> Judge:
    """Return what compares maps that were fitted without the first fold: as networks are, if enough queries can."""
    split = screen.fold.split
    if isinstance(screen.measure, Overlap) or len(split.choosing) >= MIN_PAIRS:
        return Judge(split.judged, screen.measure, split.choosing)
    rows = np.arange(len(split.judged))[:QUERIES]
    return Judge(split.judged, Overlap(screen.fold.pairs.new[split.judged], *search), rows)


def _check(pairs: Pairs) -> None:
    if len(pairs) < MIN_PAIRS:
        raise GalleryError(f"there are {len(pairs)} pairs; wanted at least {MIN_PAIRS}")
    for name, rows in (("OLD", pairs.old), ("NEW", pairs.new)):
        if not np.any(rows != rows[0]):
            raise GalleryError(f"{name}: all rows are equal")
    if pairs.labels is not None and not len(ByLabels.repeated(pairs.labels)):
        raise GalleryError("no two items have the same label, so labels cannot say which map is best")
