"""Linear maps that need no training: solved for, from the statistics of the training rows.

They are what people use today to move between embedding spaces, so they are the baselines of h. All map
x = [old | side], or old alone, to y = new; rows are samples, so a map is y = x W + b with W (d_in, d_out).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np

from fct_infer.errors import UsageError
from fct_infer.maps.affine import affine_program
from fct_infer.maps.recipes import Recipe
from fct_infer.maps.statistics import Float64Array, Statistics
from fct_infer.transformation import Program

DEFAULT_ALPHAS = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class FittedMap:
    """A map as a program, and what was found on the way; ``findings`` is strict JSON."""

    program: Program
    findings: dict[str, Any] = field(default_factory=dict)


def fit_procrustes(
    training: Statistics, validation: Statistics | None = None, *, center: bool = True, scale: bool = False
) -> FittedMap:
    """Orthogonal Procrustes (Schönemann 1966): the rotation or reflection Q with the smallest ||X Q - Y||.

    Q = U V^T with U S V^T the thin SVD of X^T Y. Where the widths differ this is the solution after the narrower of X
    and Y is padded with columns of zeros to the width of the wider, with the padding dropped from the result: from
    narrow to wide Q has orthonormal rows and keeps all distances; from wide to narrow it has orthonormal columns and is
    a rotation followed by a projection.

    Args:
        training: of the rows to fit.
        validation: not used; all maps take it.
        center: move the means onto each other as well.
        scale: multiply Q by the factor with the smallest error.
    """
    del validation
    rows, d_in = training.rows, training.input_dim
    means = training.mean if center else np.zeros_like(training.mean)
    # Without centring the products are about zero, not about the mean.
    about_zero = 0.0 if center else rows * np.outer(training.mean, training.mean)
    scatter = training.scatter + about_zero
    u, singular, vt = np.linalg.svd(scatter[:d_in, d_in:], full_matrices=False)
    weight = u @ vt
    factor = 1.0
    if scale:
        energy = float(np.sum(weight * (scatter[:d_in, :d_in] @ weight)))
        factor = float(singular.sum()) / energy if energy > 0 else 1.0
    weight *= factor
    bias = means[d_in:] - means[:d_in] @ weight
    return FittedMap(affine_program(training, [weight], bias), {"scale": factor})


def fit_ridge(
    training: Statistics, validation: Statistics | None = None, *, alphas: Iterable[float] = DEFAULT_ALPHAS
) -> FittedMap:
    """Ridge regression with an unpenalised intercept: the smallest ||X W + b - Y||^2 + lambda ||W||^2.

    Args:
        training: of the rows to fit.
        validation: of the held-out rows; its error chooses among several alphas.
        alphas: penalties relative to the data: lambda is alpha times the mean squared deviation of one input feature,
            summed over the rows, trace(X^T X) / d_in, so that one list fits any number of rows and any scale of the
            inputs. 0 is ordinary least squares, of smallest norm where that is not unique.

    Raises:
        UsageError: no alpha, one below 0, or several and no validation rows to choose by.
    """
    return _best(training, validation, tuple(alphas), lambda weight, penalty: [weight])


def fit_low_rank(
    training: Statistics,
    validation: Statistics | None = None,
    *,
    rank: int,
    alphas: Iterable[float] = (0.0,),
) -> FittedMap:
    """Reduced-rank regression (Izenman 1975): the affine map with the smallest error whose W has at most ``rank``.

    W is the least-squares (or ridge, as :func:`fit_ridge`) solution projected onto the first ``rank`` right singular
    vectors of its fitted values. As a program it is two layers, d_in -> rank -> d_out.

    Raises:
        UsageError: the rank is not from 1 to the smaller width, or as :func:`fit_ridge`.
    """
    limit = min(training.input_dim, len(training.yy))
    if not 1 <= rank <= limit:
        raise UsageError(f"rank is {rank}, wanted 1 to {limit}, the smaller of input and output width")

    def factors(weight: Float64Array, penalty: float) -> list[Float64Array]:
        fitted = weight.T @ training.xx @ weight + penalty * (weight.T @ weight)
        directions = np.linalg.eigh(fitted)[1][:, ::-1][:, :rank]  # eigenvalues ascend
        return [weight @ directions, directions.T]

    return _best(training, validation, tuple(alphas), factors)


def fit_recipe(
    training: Statistics,
    validation: Statistics | None = None,
    *,
    share: float = 0.0,
    alpha: float = 0.1,
    side_alpha: float | None = None,
    rank: int | None = None,
    unit_deviation: bool = False,
) -> FittedMap:
    """A map of the family that ``fct-fit`` chooses from; arguments as of :class:`~fct_infer.maps.Recipe`.

    Raises:
        UsageError: a share that is not from 0 to 1, an alpha that is not above 0, a rank that cannot be, or beside a
            share.
    """
    del validation
    limit = min(training.input_dim, len(training.yy))
    if not (0 <= share <= 1 and alpha > 0 and (side_alpha is None or side_alpha > 0)):
        raise UsageError(f"share {share}, alpha {alpha}, side_alpha {side_alpha}; wanted 0 to 1, and above 0")
    if rank is not None and (share or not 1 <= rank <= limit):
        raise UsageError(f"rank {rank}, share {share}; wanted 1 to {limit}, and share 0")
    if side_alpha is not None and not training.side_dim:
        raise UsageError(f"side_alpha is {side_alpha}, and there is no side-information")
    return FittedMap(Recipe(share, alpha, side_alpha, rank, unit_deviation).fit(training))


MAPS: dict[str, Callable[..., FittedMap]] = {
    "procrustes": fit_procrustes,
    "ridge": fit_ridge,
    "low_rank": fit_low_rank,
    "recipe": fit_recipe,
}
"""By name: (training, validation, **arguments) -> FittedMap."""


def _best(
    training: Statistics,
    validation: Statistics | None,
    alphas: tuple[float, ...],
    factors_of: Callable[[Float64Array, float], list[Float64Array]],
) -> FittedMap:
    """Return the map of smallest validation error; ``factors_of`` is given W and lambda of each ridge solution."""
    if not alphas or min(alphas) < 0 or (len(alphas) > 1 and validation is None):
        raise UsageError(f"alphas are {list(alphas)}, wanted one of at least 0, or several and validation rows")
    d_in = training.input_dim
    unit = float(np.trace(training.xx)) / d_in
    values, vectors = np.linalg.eigh(training.xx)
    projected = vectors.T @ training.xy
    # Directions without variance are left out, as the pseudo-inverse does.
    kept = values > max(float(values[-1]), 0.0) * d_in * np.finfo(np.float64).eps
    errors: dict[float, float] = {}
    found: dict[float, FittedMap] = {}
    for alpha in alphas:
        ridge = vectors[:, kept] @ (projected[kept] / (values[kept] + alpha * unit)[:, None])
        factors = factors_of(ridge, alpha * unit)
        weight = reduce(np.matmul, factors)
        bias = training.mean[d_in:] - training.mean[:d_in] @ weight
        errors[alpha] = (validation or training).mean_squared_error(weight, bias)
        found[alpha] = FittedMap(affine_program(training, factors, bias), {"alpha": alpha, "lambda": alpha * unit})
    best = found[min(errors, key=lambda alpha: errors[alpha])]
    if validation is not None:
        best.findings["mse_by_alpha"] = {str(alpha): error for alpha, error in errors.items()}
    return best
