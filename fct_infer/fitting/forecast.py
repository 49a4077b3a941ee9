"""What a fitted transformation will be worth, measured on queries that did not choose it, and said in one sentence."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fct_infer.errors import UsageError
from fct_infer.evaluation import Metric, Verdict, judge
from fct_infer.fitting.crossfit import QUERIES, CrossFit
from fct_infer.fitting.measures import ByLabels, ByTruth, Estimate, Measure, Overlap, own_ranks
from fct_infer.fitting.pairs import Int64Array
from fct_infer.gallery import sample_rows
from fct_infer.maps import Recipe
from fct_infer.transformation import Float32Array

CURVE = (0.25, 0.5, 1.0)  # shares of the pairs that the learning curve is measured at
_MOST, _HALF = 0.8, 0.5  # shares of the new model's results from which on a gallery is said to give most, and half


@dataclass(frozen=True)
class Queries:
    """Queries of the user's own.

    Attributes:
        new: (q, d_new) float32, by the new model.
        truth: (q, t) numbers of the pairs that are right; -1 for none.
        old: (q, d_old) float32, the same by the old model, or None.
    """

    new: Float32Array
    truth: Int64Array
    old: Float32Array | None = None

    def swapped(self) -> Queries:
        """Return the queries for a map from the new space to the old.

        Raises:
            UsageError: there are none by the old model.
        """
        if self.old is None:
            raise UsageError("new-to-old is judged in the old space: --old-queries are missing")
        return Queries(self.old, self.truth, self.new)


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
        measured: new queries in the transformed gallery, by the measure that chose.
        old_old, new_new: the same of the old model in the old gallery and of the new in a re-embedded one, if known.
        agreement: share of the ten rows that a re-embedded gallery would give, given by the transformed one.
        old_agreement: the same, given by the old model in the old gallery.
        recall: rank -> share of new rows that find their own transformed row up to there.
        curve: what fewer pairs would have given; of a network's starting point where that was chosen.
        twice: what twice the pairs would add, by the curve; a share, extrapolated.
        verdict: what to do.
    """

    gallery_rows: int
    measured: Estimate
    old_old: Estimate | None
    new_new: Estimate | None
    agreement: Estimate
    old_agreement: Estimate
    recall: dict[int, Estimate]
    curve: tuple[CurvePoint, ...]
    twice: float | None
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
    metric: Metric,
) -> Forecast:
    """Measure a candidate on the reporting queries.

    Args:
        cross_fit: pairs and split.
        transformed: (m, d_new) judged rows by the candidate, each by a fit without it.
        recipe: the candidate, or the closed form that it starts from.
        measure: what chose it.
        queries: of the user.
        metric: how rows are searched.
    """
    pairs, split = cross_fit.pairs, cross_fit.split
    old, new = pairs.old[split.judged], pairs.new[split.judged]
    reporting = split.reporting if len(split.reporting) else split.choosing
    rows = reporting if queries is None else sample_rows(len(new), QUERIES, 1)
    measured = Estimate.of(measure.scores(transformed, reporting))
    old_old, new_new = _compared(measure, old, new, queries, reporting)
    overlap = Overlap(new, metric)
    agreement = Estimate.of(overlap.agreement(transformed, rows))
    old_agreement = Estimate.of(overlap.scores(old, rows))
    ranks = own_ranks(new, transformed, rows, metric)
    curve = tuple(
        CurvePoint(
            round(share * len(pairs)),
            Estimate.of(measure.scores(cross_fit.transformed(recipe, share), reporting)),
        )
        for share in CURVE
    )
    return Forecast(
        len(new),
        measured,
        old_old,
        new_new,
        agreement,
        old_agreement,
        {k: Estimate.of((ranks <= k).astype(np.float64)) for k in (1, 10)},
        curve,
        _twice([point.estimate.mean for point in curve]),
        _verdict(measured, old_old, new_new, measure.name)
        if new_new is not None
        else _verdict_without_truth(agreement, old_agreement, len(new)),
    )


def suspect_share(cross_fit: CrossFit, recipe: Recipe, metric: Metric) -> float:
    """Return about which share of the pairs look as if old and new were of different items.

    A row that has nothing to do with its partner is as likely to find it in the farther half of the gallery as in the
    nearer; one that belongs to it hardly ever does.
    """
    new = cross_fit.pairs.new[cross_fit.split.judged]
    ranks = own_ranks(new, cross_fit.transformed(recipe), sample_rows(len(new), QUERIES, 2), metric)
    return min(1.0, 2 * float(np.mean(ranks > len(new) / 2)))


def _compared(
    measure: Measure, old: Float32Array, new: Float32Array, queries: Queries | None, reporting: Int64Array
) -> tuple[Estimate | None, Estimate | None]:
    if isinstance(measure, ByLabels):
        return (
            Estimate.of(measure.between(old, old, reporting)),
            Estimate.of(measure.between(new, new, reporting)),
        )
    if not isinstance(measure, ByTruth) or queries is None:
        return None, None
    before = None if queries.old is None else Estimate.of(measure.between(queries.old, old, reporting))
    return before, Estimate.of(measure.between(queries.new, new, reporting))


def _twice(curve: list[float]) -> float | None:
    """Return what a further doubling adds if gains go on to shrink as they did; never more than the last one added."""
    before, last = curve[1] - curve[0], curve[2] - curve[1]
    if last <= 0:
        return 0.0
    return last * min(1.0, last / before) if before > 0 else last


def _verdict(measured: Estimate, old_old: Estimate | None, new_new: Estimate, name: str) -> Verdict:
    return judge(None if old_old is None else old_old.mean, measured.mean, new_new.mean, figure=name)


def _verdict_without_truth(agreement: Estimate, old_agreement: Estimate, rows: int) -> Verdict:
    """Agreement is no quality: rows that are as right as those of the new model count as missing."""
    found = (
        f"of the ten nearest rows that a re-embedded gallery gives, the transformed one gives {agreement}, "
        f"the old model in the old gallery {old_agreement} (among {rows:,} rows; fewer among more)"
    )
    if agreement.mean >= _MOST:
        return Verdict("transform", 0.0, f"Transform: {found}.")
    measure = "whether the others are as right, --labels or --queries with --truth can tell"
    gain = agreement.mean - old_agreement.mean
    if agreement.mean >= _HALF and gain > 2 * max(agreement.standard_error, old_agreement.standard_error):
        return Verdict("transform and backfill", None, f"Transform, and re-embed rows as you can: {found}; {measure}.")
    return Verdict("undecided", None, f"Undecided: {found}; {measure}.")
