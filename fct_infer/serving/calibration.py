"""Old distances made comparable with new ones by their quantiles, without labels, and what that loses, measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fct_infer.errors import ArrayError
from fct_infer.evaluation.checks import check_embeddings, check_metric
from fct_infer.serving.rows import unit
from fct_infer.transformation import Float32Array

SHARES = (0.25, 0.5, 0.75)
LOSS_K = 10
MIN_ROWS = 100
_KNOTS = 512
_MAX_ROWS = 2000


@dataclass(frozen=True)
class Calibration:
    """A growing function from costs of the old space to costs of the new one: equal quantiles meet.

    Attributes:
        old_costs, new_costs: (knots,) float32, ascending; between them the function is straight.
        old_metric, metric, dim: of the old and of the new space, width of the latter.
        loss: share re-embedded -> expected loss: the share of the ten nearest rows, as a wholly re-embedded gallery
            finds them, that the merged search does not find; measured on rows that the calibration has not seen.
    """

    old_costs: Float32Array
    new_costs: Float32Array
    old_metric: str
    metric: str
    dim: int
    loss: dict[float, float]

    def __call__(self, costs: Float32Array) -> Float32Array:
        """Return new costs of old ones, of any shape; infinite ones stay so."""
        found = np.interp(costs, self.old_costs, self.new_costs)
        # Beyond the knots it goes on with slope one, so that no order is lost.
        found += np.minimum(costs - self.old_costs[0], 0)
        above = np.maximum(costs - self.old_costs[-1], 0)
        calibrated: Float32Array = (found + above).astype(np.float32)
        return calibrated

    def __str__(self) -> str:
        losses = ", ".join(f"{100 * share:.0f} %: {100 * loss:.1f} %" for share, loss in self.loss.items())
        return f"old and new distances merged by quantiles; of the {LOSS_K} nearest rows lost, by share new: {losses}"


def calibrate(
    old: Float32Array, new: Float32Array, *, old_metric: str = "l2", metric: str = "l2", seed: int = 0
) -> Calibration:
    """Calibrate on rows that both models have embedded, and measure the loss.

    Half of the rows make the calibration, the other half measures it.

    Args:
        old: (n, old_dim) float32 or float16; of more than 4,000 rows a sample is taken.
        new: (n, dim) row i the same item.
        old_metric, metric: ``l2``, ``ip`` or ``cosine``.
        seed: of the split.

    Raises:
        ArrayError: fewer than 200 rows, of unequal number, or wrong dtype or shape.
        UsageError: unknown metric.
    """
    for name, rows, each in (("old", old, old_metric), ("new", new, metric)):
        check_metric(each)
        check_embeddings(rows, rows, exclude_self=False)
        if not np.isfinite(rows).all():
            raise ArrayError(f"{name} holds NaN or infinity")
    if len(old) != len(new) or len(old) < 2 * MIN_ROWS:
        raise ArrayError(f"old has {len(old)} rows, new {len(new)}; wanted as many, at least {2 * MIN_ROWS}")
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(old))[: 2 * _MAX_ROWS]
    fit, judge = np.array_split(chosen, 2)
    known, wanted = (_costs(rows[fit].astype(np.float32), of) for rows, of in ((old, old_metric), (new, metric)))
    others = ~np.eye(len(fit), dtype=bool)
    # Dense where neighbours are: of n^2 pairs those of a search are the first few in a thousand.
    levels = np.concatenate([[0], np.geomspace(1 / others.sum(), 1, _KNOTS)])
    pairs = [np.maximum.accumulate(np.quantile(costs[others], levels)).astype(np.float32) for costs in (known, wanted)]
    kept = np.concatenate([[True], np.diff(pairs[0]) > 0])
    found = Calibration(pairs[0][kept], pairs[1][kept], old_metric, metric, new.shape[1], {})
    known, wanted = (_costs(rows[judge].astype(np.float32), of) for rows, of in ((old, old_metric), (new, metric)))
    found.loss.update({share: _loss(found(known), wanted, share, rng) for share in SHARES})
    return found


def _costs(rows: Float32Array, metric: str) -> Float32Array:
    """Return the costs (n, n) between rows."""
    if metric == "cosine":
        rows = unit(rows)
    products: Float32Array = rows @ rows.T
    if metric != "l2":
        return -products
    squares = np.diag(products)
    distances: Float32Array = np.maximum(squares[:, None] + squares - 2 * products, 0)
    return distances


def _loss(calibrated: Float32Array, wanted: Float32Array, share: float, rng: np.random.Generator) -> float:
    is_new = rng.permutation(len(wanted)) < share * len(wanted)
    nearest = []
    for costs in (wanted, np.where(is_new, wanted, calibrated)):
        costs = costs.copy()  # noqa: PLW2901
        np.fill_diagonal(costs, np.inf)
        nearest.append(np.argpartition(costs, LOSS_K, axis=1)[:, :LOSS_K])
    return float(1 - (nearest[0][:, :, None] == nearest[1][:, None, :]).any(axis=2).mean())
