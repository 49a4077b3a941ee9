"""What a fitted transformation will be worth, measured on queries that did not choose it, and said in one sentence."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fct_infer.connectors.joining import Int64Array
from fct_infer.evaluation import Verdict, judge
from fct_infer.fitting.crossfit import CrossFit
from fct_infer.fitting.measures import ByLabels, ByTruth, Direction, Measure, Overlap, Search
from fct_infer.fitting.queries import Queries
from fct_infer.fitting.splits import FOLDS, QUERIES
from fct_infer.gallery import sample_rows
from fct_infer.maps import Recipe
from fct_infer.measuring import Estimate, own_ranks
from fct_infer.transformation import Float32Array

CURVE = (0.25, 0.5, 1.0)  # shares of the pairs that the learning curve is measured at
_FEWEST_RANKS = 20  # that say whether pairs belong together
_MOST_DOUBLINGS = 4  # of the pairs that are recommended
_MOST, _HALF = 0.8, 0.5  # shares of the new model's results from which on a gallery is said to give most, and half


@dataclass(frozen=True)
class CurvePoint:
    """How well a map of some of the pairs does."""

    pairs: int
    estimate: Estimate


@dataclass(frozen=True)
class Forecast:
    """What is to be expected.

    Attributes:
        gallery_rows: how many rows were searched; larger galleries have lower figures, whatever the map.
        folds: of how many folds these rows are, each transformed by a map fitted without its own.
        queries, is_independent: how many were asked, and whether they are others than those that chose the map.
        measured: new queries in the transformed gallery (or transformed queries in the old one), by the measure that
            chose.
        old_old, new_new: the same of the old model in the old gallery and of the new in a re-embedded one, if known.
        agreement: share of the ten rows that the target's own model finds, found with the map.
        without_map: the same, found by the other model in its own space.
        recall: rank -> share of rows that find their own counterpart up to there.
        curve: what fewer pairs would have given; of a network's starting point where that was chosen.
        twice: what twice the pairs would add, by the curve; a share, extrapolated.
        verdict: what to do.
    """

    gallery_rows: int
    folds: int
    queries: int
    is_independent: bool
    measured: Estimate
    old_old: Estimate | None
    new_new: Estimate | None
    agreement: Estimate
    without_map: Estimate
    recall: dict[int, Estimate]
    curve: tuple[CurvePoint, ...]
    twice: float
    verdict: Verdict

    def as_dict(self) -> dict[str, Any]:
        """Return everything as strict JSON."""
        return asdict(self) | {"recall": {str(k): asdict(value) for k, value in self.recall.items()}}


def forecast(
    cross_fit: CrossFit,
    transformed: Float32Array,
    recipe: Recipe,
    measure: Measure,
    queries: Queries | None,
    search: Search,
) -> Forecast:
    """Measure a candidate on the reporting queries.

    Args:
        cross_fit: pairs and split.
        transformed: (m, d) judged rows by the candidate, each by a fit without it.
        recipe: the candidate, or the closed form that it starts from.
        measure: what chose it.
        queries: of the user.
        search: how rows are searched, and what is mapped.
    """
    pairs, split = cross_fit.pairs, cross_fit.split
    source, target = pairs.old[split.judged], pairs.new[split.judged]
    reporting = split.reporting if len(split.reporting) else split.choosing
    rows = reporting if split.are_rows else sample_rows(len(target), QUERIES, 1)
    measured = Estimate.of(measure.scores(transformed, reporting))
    old_old, new_new = _compared(measure, (source, target), queries, reporting, search.direction)
    overlap = Overlap(target, *search)
    agreement, without_map = (
        Estimate.of(scores) for scores in (overlap.agreement(transformed, rows), overlap.within(source, rows))
    )
    curve = tuple(
        CurvePoint(
            round(share * len(pairs) * (FOLDS - 1) / FOLDS),
            Estimate.of(measure.scores(cross_fit.transformed(cross_fit.programs(recipe, share)), reporting)),
        )
        for share in CURVE
    )
    growth = Growth.of(curve, len(pairs))
    ranks = _ranks(target, transformed, rows, search)
    if search.direction == "new-to-old":
        verdict = _verdict_on_queries(measured, old_old, agreement, measure.name)
    elif new_new is not None:
        before = None if old_old is None else old_old.mean
        verdict = judge(before, measured.mean, new_new.mean, figure=measure.name)
    else:
        verdict = _verdict_without_truth(agreement, without_map, len(target), growth)
    return Forecast(
        len(target),
        len(np.unique(split.folds[split.judged])),
        len(reporting),
        len(split.reporting) > 0,
        measured,
        old_old,
        new_new,
        agreement,
        without_map,
        {k: Estimate.of((ranks <= k).astype(np.float64)) for k in (1, 10)},
        curve,
        growth.twice,
        verdict,
    )


def suspect_share(target: Float32Array, transformed: Float32Array, search: Search) -> Estimate:
    """Return about which share of the pairs look as if old and new were of different items.

    A row that has nothing to do with its partner is as likely to find it in the farther half of the gallery as in the
    nearer; one that belongs to it hardly ever does, unless one model sees little of what the other does.

    Args:
        target: (m, d) judged rows of the target's model.
        transformed: (m, d) those of the other, by maps fitted without them.
        search: how rows are searched.
    """
    single = np.sort(np.unique(target, axis=0, return_index=True)[1])  # of equal rows nobody can tell whose is whose
    if len(single) < _FEWEST_RANKS:
        return Estimate(0.0, 0.0)
    ranks = _ranks(target[single], transformed[single], sample_rows(len(single), QUERIES, 2), search)
    return Estimate.of(2.0 * np.asarray(ranks > len(single) / 2, np.float64))


def _ranks(target: Float32Array, transformed: Float32Array, rows: Int64Array, search: Search) -> Int64Array:
    pair = (transformed, target) if search.direction == "new-to-old" else (target, transformed)
    return own_ranks(*pair, rows, search.metric)


def _compared(
    measure: Measure,
    spaces: tuple[Float32Array, Float32Array],
    queries: Queries | None,
    reporting: Int64Array,
    direction: Direction,
) -> tuple[Estimate | None, Estimate | None]:
    """Return what the old model and the new model find, each in its own gallery, where right rows are known."""
    old, new = reversed(spaces) if direction == "new-to-old" else spaces
    if isinstance(measure, ByLabels):
        return (
            Estimate.of(measure.between(old, old, reporting)),
            Estimate.of(measure.between(new, new, reporting)),
        )
    if not isinstance(measure, ByTruth) or queries is None:
        return None, None
    before = None if queries.old is None else Estimate.of(measure.between(queries.old, old, reporting))
    return before, Estimate.of(measure.between(queries.new, new, reporting))


@dataclass(frozen=True)
class Growth:
    """How a figure grows with the pairs, if gains go on to shrink as they did.

    Attributes:
        pairs: how many there are.
        gain: what the last doubling added.
        shrinks: what each further one adds of that before it, at most 1.
    """

    pairs: int
    gain: float
    shrinks: float

    @classmethod
    def of(cls, curve: tuple[CurvePoint, ...], pairs: int) -> Growth:
        """Return how a figure grows along a curve of three points, each of twice the pairs of that before it."""
        first, second, third = (point.estimate.mean for point in curve)
        before, last = second - first, third - second
        return cls(pairs, max(last, 0.0), last / before if before > last > 0 else 1.0)

    @property
    def twice(self) -> float:
        """What twice the pairs would add."""
        return self.gain * self.shrinks

    def pairs_for(self, missing: float) -> int | None:
        """Return how many pairs would add so much, None if more than 16 times as many or nothing would."""
        added, gain = 0.0, self.gain
        for doublings in range(1, _MOST_DOUBLINGS + 1):
            gain *= self.shrinks
            added += gain
            if added >= missing:
                return self.pairs << doublings
        return None


def _verdict_on_queries(measured: Estimate, old_old: Estimate | None, agreement: Estimate, name: str) -> Verdict:
    found = f"of the ten nearest rows that old queries find in the old gallery, mapped new queries find {agreement}"
    if old_old is None:
        return Verdict(
            "undecided", None, f"Undecided: {found}. Next: --labels of the rows can tell what that is worth."
        )
    figures = f"{name} of mapped new queries {measured}, of old queries {old_old}"
    if measured.mean >= old_old.mean:
        return Verdict("transform", 0.0, f"Map the queries: no worse than today ({figures}); {found}.")
    return Verdict("keep old", 0.0, f"Keep the old model for queries, too: mapped ones find less ({figures}); {found}.")


def _verdict_without_truth(agreement: Estimate, without_map: Estimate, rows: int, growth: Growth) -> Verdict:
    """Agreement is no quality: rows that are as right as those of the new model count as missing."""
    found = (
        f"of the ten nearest rows that a re-embedded gallery gives, the transformed one gives {agreement}, "
        f"the old model in the old gallery {without_map} (among {rows:,} rows; fewer among more)"
    )
    if agreement.mean >= _MOST:
        return Verdict("transform", 0.0, f"Transform: {found}.")
    measure = "whether the others are as right, --labels or --queries with --truth can tell"
    noise = 2 * max(agreement.standard_error, without_map.standard_error)
    if agreement.mean >= _HALF and agreement.mean - without_map.mean > noise:
        return Verdict("transform and backfill", None, f"Transform, and re-embed rows as you can: {found}; {measure}.")
    wanted = max(_HALF, without_map.mean + noise)
    return Verdict("undecided", None, f"Undecided: {found}. {_next_step(growth, agreement.mean, wanted)}")


def _next_step(growth: Growth, agreement: float, wanted: float) -> str:
    """Say how it could be decided: by searches whose right rows are known, or by more pairs if they would help."""
    ask = (
        "Next: a few hundred real searches decide it, by both models, with the ids of what they should find: "
        "--queries, --old-queries and --truth (or --labels of the rows)"
    )
    pairs = growth.pairs_for(wanted - agreement)
    if pairs is None:
        return f"{ask}. More pairs alone will hardly: twice as many add about {100 * growth.twice:.1f} points."
    return f"{ask}; or about {pairs:,} pairs, with which the map would reach {100 * wanted:.0f} %, by the curve."
