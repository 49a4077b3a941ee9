"""What ``fct-fit`` finds on the way and says: mismatched pairs, near copies, maps apart, what side-information adds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fct_infer.connectors.joining import Int64Array
from fct_infer.errors import GateError
from fct_infer.evaluation import nearest
from fct_infer.fitting.crossfit import CrossFit, Trial
from fct_infer.fitting.forecast import suspect_share
from fct_infer.fitting.measures import Overlap, Search
from fct_infer.gallery import sample_rows
from fct_infer.maps.statistics import Float64Array
from fct_infer.measuring import Estimate
from fct_infer.transformation import Float32Array

_COPY, _COPY_ROWS = 0.02, 500  # of the rows' root mean square distance from their mean; rows looked at
_SUSPECT, _HOPELESS = 0.05, 0.75  # shares of pairs that look mismatched: said, and refused
_APART = 0.1  # of a row's neighbours, found among rows of its own map only; of 500 ordinary pairs it is up to 0.06


def suspicion(target: Float32Array, transformed: Float32Array, search: Search) -> list[str]:
    """Say if many pairs look as if their rows were of different items.

    Args:
        target: (m, d) judged rows of the target's model.
        transformed: (m, d) those of the other, by maps fitted without them.
        search: how rows are searched.

    Raises:
        GateError: nearly all do.
    """
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


def copies(cross_fit: CrossFit) -> list[str]:
    """Say if many items have a near copy among the pairs, by which a map would know them."""
    old = cross_fit.pairs.old[cross_fit.split.judged]
    radius = float(np.sqrt(np.var(old, axis=0, dtype=np.float64).sum()))
    distances, _ = nearest(old, old, 1, exclude_self=True, query_rows=sample_rows(len(old), _COPY_ROWS, 3))
    share = float(np.mean(distances < _COPY * radius))
    if share <= _SUSPECT:
        return []
    return [
        f"{100 * share:.0f} % of the old rows have a near copy among the pairs: new items will fare worse than these"
    ]


def maps_apart(cross_fit: CrossFit, transformed: Float32Array, search: Search) -> list[str]:
    """Say if the maps of the folds differ by more than rows are apart, so that no gallery of all folds tells the truth.

    Where some rows are far shorter than others, a map that is wrong about long ones moves all short ones together, and
    the map of another fold moves them elsewhere. Elsewhere rows find about as much among those of their fold as among
    as many rows of all folds.

    Args:
        cross_fit: pairs, and a split whose queries are rows.
        transformed: (m, d) judged rows, each by the map of its fold.
        search: how rows are searched.
    """
    if search.direction == "new-to-old":  # each row searches rows that no map moved
        return []
    split = cross_fit.split
    folds, target = split.folds[split.judged], cross_fit.pairs.new[split.judged]
    mixed = np.random.default_rng(5).permutation(folds)

    def found(groups: Int64Array) -> Float64Array:
        scores = np.empty(len(split.choosing))
        for group in np.unique(groups):
            rows, asked = np.flatnonzero(groups == group), groups[split.choosing] == group
            places = np.searchsorted(rows, split.choosing[asked])
            scores[asked] = Overlap(target[rows], *search).scores(transformed[rows], places)
        return scores

    alone, among = found(folds), found(mixed)
    gain = Estimate.of(alone - among)
    if gain.mean <= max(_APART, 2 * gain.standard_error):
        return []
    return [
        "the maps that were fitted without one fold or another differ by more than many rows are apart, as where some "
        f"are far shorter than others: among rows of one map {Estimate.of(alone)} of a row's neighbours are found, "
        f"among as many of all maps {Estimate.of(among)}. What is expected was measured in one fold, by one map; the "
        "figures of the candidates are too low"
    ]


def side_notes(trials: Sequence[Trial]) -> list[str]:
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
