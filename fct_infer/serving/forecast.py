"""What re-embedding more of a gallery would give, measured beforehand on a random sample that both have embedded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import ArrayError
from fct_infer.evaluation.checks import check_embeddings, check_metric
from fct_infer.serving.rows import unit
from fct_infer.transformation import Float32Array

FORECAST_K = 10
POINTS = 21
MIN_PROBE = 50
STEP = 0.1
"""Of the gallery: the stretch that "another 10 % would give" speaks of."""


@dataclass(frozen=True)
class BackfillForecast:
    """The search's quality over the share of rows re-embedded, in the order they will be.

    The measure needs no labels: of the ten nearest rows that a wholly re-embedded gallery finds, the share that the
    mixed one finds. It is taken within the sample, whose rows lie further apart than those of the gallery.

    Attributes:
        shares: (points,) of the rows, 0 to 1, ascending.
        overlap: (points, rows) of each row of the sample as a query.
    """

    shares: NDArray[np.float64]
    overlap: NDArray[np.float64]

    def at(self, share: float) -> float:
        """Return the quality at a share, 0 to 1."""
        return float(np.interp(share, self.shares, self.overlap.mean(axis=1)))

    def gain(self, share: float) -> tuple[float, float]:
        """Return what another :data:`STEP` of the gallery would give, and the standard error of that."""
        of_rows = self._of_rows(min(share + STEP, 1)) - self._of_rows(share)
        return float(of_rows.mean()), float(of_rows.std(ddof=1) / np.sqrt(len(of_rows)))

    def best_gain(self, share: float) -> float:
        """Return the most that :data:`STEP` would give on average, over going on to any later share.

        In an order without a head the first rows give little and the last ones much: to stop because the next ones
        give little would be wrong then.
        """
        now, curve = self.at(share), self.overlap.mean(axis=1)
        later = self.shares > share
        slopes = (curve[later] - now) / (self.shares[later] - share)
        return float(STEP * slopes.max()) if later.any() else 0.0

    def _of_rows(self, share: float) -> NDArray[np.float64]:
        above = int(np.clip(np.searchsorted(self.shares, share), 1, len(self.shares) - 1))
        low, high = self.shares[above - 1 : above + 1]
        weight = (share - low) / (high - low)
        found: NDArray[np.float64] = (1 - weight) * self.overlap[above - 1] + weight * self.overlap[above]
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return the curve as strict JSON."""
        error = self.overlap.std(axis=1, ddof=1) / np.sqrt(self.overlap.shape[1])
        return {
            "shares": self.shares.tolist(),
            "overlap": self.overlap.mean(axis=1).tolist(),
            "standard_error": error.tolist(),
            "k": FORECAST_K,
            "rows": self.overlap.shape[1],
        }


def forecast_backfill(
    transformed: Float32Array, new: Float32Array, turns: NDArray[np.float64], metric: str = "l2"
) -> BackfillForecast:
    """Measure on a random sample how good the search will be at every share.

    Args:
        transformed: (p, dim) float32, the rows as h gives them; at least :data:`MIN_PROBE`.
        new: (p, dim) the same rows by the new model.
        turns: (p,) share of the gallery, 0 to 1, after which each is re-embedded.
        metric: ``l2``, ``ip`` or ``cosine``.

    Raises:
        ArrayError: too few rows, or wrong dtype or shape.
    """
    check_metric(metric)
    check_embeddings(new, transformed, exclude_self=True)
    if len(new) < MIN_PROBE or turns.shape != (len(new),):
        raise ArrayError(f"the sample has {len(new)} rows and {len(turns)} turns, wanted at least {MIN_PROBE} of each")
    costs = [_costs(new, rows, metric) for rows in (transformed, new)]
    k = min(FORECAST_K, len(new) - 1)
    wanted = np.argpartition(costs[1], k - 1, axis=1)[:, :k]
    shares, found = np.linspace(0, 1, POINTS), []
    for share in shares:
        mixed = np.where(turns < share, costs[1], costs[0])
        nearest = np.argpartition(mixed, k - 1, axis=1)[:, :k]
        found.append((nearest[:, :, None] == wanted[:, None, :]).any(axis=2).mean(axis=1))
    return BackfillForecast(shares, np.stack(found))


def _costs(queries: Float32Array, rows: Float32Array, metric: str) -> Float32Array:
    if metric == "cosine":
        queries, rows = unit(queries), unit(rows)
    costs: Float32Array = -(queries @ rows.T)
    if metric == "l2":
        costs = np.einsum("ij,ij->i", rows, rows) + 2 * costs
    np.fill_diagonal(costs, np.inf)
    return costs
