"""The family of closed forms that ``fct-fit`` chooses from: between ridge regression and a rotation, and as spread.

Regression alone draws rows that are hard to predict toward the mean of all, where they come up for every query; a
rotation keeps the distances that the old model knew. Both help, and either can be had with *unit deviation*: every
row's distance from the mean is set to what it is in the new space, mean + r (h - mean) / ||h - mean||.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from fct_infer.maps.affine import affine_program
from fct_infer.maps.statistics import Float64Array, Statistics
from fct_infer.transformation import Program


@dataclass(frozen=True)
class Recipe:
    """How a map is made, from whatever rows.

    Attributes:
        share: of the rotation in the weight: 0 is ridge regression, 1 orthogonal Procrustes (which keeps its scale).
        alpha: ridge penalty of the old embedding's columns relative to their mean squared deviation, above 0.
        side_alpha: the same of the side-information; None does without it.
        rank: of the weight; None for all. Needs ``share`` 0.
        unit_deviation: whether every row is set as far from the mean as new rows are (root mean square).
    """

    share: float = 0.0
    alpha: float = 0.1
    side_alpha: float | None = None
    rank: int | None = None
    unit_deviation: bool = False

    @property
    def name(self) -> str:
        """What people call it."""
        if self.share == 1:
            kind = "Procrustes"
        elif self.rank is not None:
            kind = f"low rank {self.rank}, alpha {self.alpha:g}"
        elif self.share == 0:
            kind = f"ridge, alpha {self.alpha:g}"
        else:
            kind = f"ridge, alpha {self.alpha:g}, with {100 * self.share:.0f} % Procrustes"
        side = "" if self.side_alpha is None else f", side {self.side_alpha:g}"
        return kind + side + (", unit deviation" if self.unit_deviation else "")

    def fit(self, training: Statistics) -> Program:
        """Return the map of some rows as a program with the inputs ``old`` and, if it uses it, ``side``."""
        if self.side_alpha is None or self.share == 1:
            training = training.without_side
        d_in = training.input_dim
        factors = self._factors(training)
        offset = training.mean[d_in:] - np.linalg.multi_dot([training.mean[:d_in], *factors])
        return affine_program(training, factors, offset, unit_deviation=self.unit_deviation)

    def _factors(self, training: Statistics) -> list[Float64Array]:
        if self.share == 1:
            return [training.rotation]
        penalties = self.alpha, self.side_alpha or 0.0
        weight = ridge_weight(training, *penalties)
        if self.rank is not None:
            directions = _directions(training, *penalties)[:, : self.rank]
            return [weight @ directions, directions.T]
        if self.share:
            weight, rotation = weight.copy(), training.rotation
            of_old = weight[: training.old_dim]
            scale = np.linalg.norm(of_old) / np.linalg.norm(rotation)
            of_old += self.share * (scale * rotation - of_old)
        return [weight]


def ridge_weight(training: Statistics, alpha: float, side_alpha: float = 0.0) -> Float64Array:
    """Return the W (d_in, d_out) of the smallest ||X W - Y||^2 + lambda ||W||^2 of centred rows.

    It is kept by the statistics until another one is asked for: recipes that share their penalties follow each other.

    Args:
        training: of the rows.
        alpha, side_alpha: of the columns of ``old`` and of ``side``: lambda is alpha times the mean over these columns
            of their summed squared deviations.
    """
    key = "weight", alpha, side_alpha
    weight = training.solved.get(key)
    if weight is None:
        weight = _solved(training, alpha, side_alpha)
        training.solved.clear()
        training.solved[key] = weight
    return weight


def _directions(training: Statistics, alpha: float, side_alpha: float) -> Float64Array:
    """Return in which directions (d_out, d_out) the fitted values of the ridge solution vary, the most first."""
    key = "directions", alpha, side_alpha
    directions = training.solved.get(key)
    if directions is None:
        weight = ridge_weight(training, alpha, side_alpha)
        directions = np.linalg.eigh(weight.T @ training.xx @ weight)[1][:, ::-1]  # eigenvalues ascend
        training.solved[key] = directions
    return directions


def _solved(training: Statistics, alpha: float, side_alpha: float) -> Float64Array:
    xx = training.xx.copy()
    parts = (slice(0, training.old_dim), alpha), (slice(training.old_dim, training.input_dim), side_alpha)
    diagonal = xx.reshape(-1)[:: len(xx) + 1]
    for columns, penalty in parts:
        own = diagonal[columns]
        if len(own):
            own += penalty * own.mean() or 1.0  # columns that never vary weigh nothing
    return cast(Float64Array, np.linalg.solve(xx, training.xy))
