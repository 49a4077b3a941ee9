"""Which closed forms are tried: a coordinate search over the family of :class:`~fct_infer.maps.Recipe`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fct_infer.fitting.crossfit import Trial
from fct_infer.maps import Recipe

ALPHAS = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
SIDE_ALPHAS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
SHARES = (0.25, 0.5, 0.75, 0.9)
RANKS = (16, 32, 64, 128, 256, 512)
_SPREAD = 6  # of the best that are tried with unit deviation as well


def try_recipes(
    attempt: Callable[[Recipe], Trial], old_dim: int, side_dim: int, new_dim: int, progress: Callable[[int, int], None]
) -> list[Trial]:
    """Try closed forms and return all trials, in the order tried.

    Args:
        attempt: fits and scores one.
        old_dim, side_dim, new_dim: widths; ``side_dim`` 0 without side-information.
        progress: told how many are tried, of about how many.
    """
    found: dict[Recipe, Trial] = {}
    ranks = [rank for rank in RANKS if 2 * rank * (old_dim + new_dim) <= old_dim * new_dim]  # else they save too little
    with_side = len(SIDE_ALPHAS) + 2 + 3 * len(SHARES) if side_dim else 0
    planned = 1 + len(ALPHAS) + with_side + 3 * len(SHARES) + len(ranks) + _SPREAD + 2

    def try_all(recipes: list[Recipe]) -> None:
        for recipe in recipes:
            if recipe not in found:
                found[recipe] = attempt(recipe)
                progress(min(len(found), planned), planned)

    def best(recipes: list[Recipe]) -> Recipe:
        try_all(recipes)
        return max(recipes, key=lambda recipe: found[recipe].scores.mean())

    procrustes = Recipe(share=1)
    try_all([procrustes])
    ridge = best([Recipe(alpha=alpha) for alpha in ALPHAS])
    plain = ridge
    if side_dim:
        beside = best([replace(ridge, side_alpha=alpha) for alpha in SIDE_ALPHAS])
        near = [replace(beside, alpha=beside.alpha * factor) for factor in (0.3, 3)]
        ridge = best([ridge, beside, *near])
    for weaker in dict.fromkeys((ridge, plain)):
        try_all([replace(weaker, alpha=weaker.alpha * by, share=share) for by in (0.3, 1, 3) for share in SHARES])
    try_all([replace(ridge, rank=rank) for rank in ranks])
    leading = sorted(found, key=lambda recipe: -found[recipe].scores.mean())[:_SPREAD]
    try_all([replace(recipe, unit_deviation=True) for recipe in dict.fromkeys((*leading, ridge, procrustes))])
    progress(planned, planned)
    return list(found.values())
