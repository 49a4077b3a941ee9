from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes
from sklearn.linear_model import Ridge

from fct_infer.maps import Recipe, Statistics, recipes
from fct_infer.maps.affine import without_scaling
from fct_infer.reference import apply_float64
from fct_infer.transformation import Program

CLOSE = {"rtol": 1e-4, "atol": 2e-5}


def problem(rows=300, old_dim=6, side_dim=3, new_dim=5, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, old_dim + side_dim)) * np.linspace(1, 3, old_dim + side_dim) + 2
    y = x @ rng.standard_normal((old_dim + side_dim, new_dim)) + rng.standard_normal((rows, new_dim)) + 5
    columns = {"old": x[:, :old_dim], "new": y} | ({"side": x[:, old_dim:]} if side_dim else {})
    return {name: column.astype(np.float32) for name, column in columns.items()}


def applied(recipe, columns):
    program = recipe.fit(Statistics.of_block(columns))
    return program, apply_float64(program, columns["old"], columns.get("side"))


def test_ridge_has_a_penalty_for_each_part():
    """Scikit-learn knows one penalty; columns scaled by the roots of two make them one."""
    columns = problem()
    _, found = applied(Recipe(alpha=0.2, side_alpha=5.0), columns)
    x = {name: columns[name].astype(np.float64) for name in ("old", "side")}
    spread = {name: np.mean(np.sum((part - part.mean(0)) ** 2, axis=0)) for name, part in x.items()}
    scale = {"old": np.sqrt(0.2 * spread["old"]), "side": np.sqrt(5.0 * spread["side"])}
    scaled = np.concatenate([x[name] / scale[name] for name in x], axis=1)
    expected = Ridge(alpha=1.0).fit(scaled, columns["new"].astype(np.float64)).predict(scaled)
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_procrustes_leaves_side_information_out():
    columns = problem(old_dim=5)
    program, found = applied(Recipe(share=1, side_alpha=1.0), columns)
    x, y = (columns[name].astype(np.float64) for name in ("old", "new"))
    rotation, _ = orthogonal_procrustes(x - x.mean(0), y - y.mean(0))
    np.testing.assert_allclose(found, (x - x.mean(0)) @ rotation + y.mean(0), **CLOSE)
    assert program.dims == {"old": 5}


def test_a_blend_lies_between_both_in_the_size_of_the_ridge_weight():
    columns = problem(old_dim=5, side_dim=0)
    weights = {}
    for share in (0.0, 0.25, 1.0):
        program, _ = applied(Recipe(share=share, alpha=0.3), columns)
        weights[share] = program.steps[-1].weight.astype(np.float64)
    size = np.linalg.norm(weights[0.0]) / np.linalg.norm(weights[1.0])
    np.testing.assert_allclose(weights[0.25], 0.75 * weights[0.0] + 0.25 * size * weights[1.0], **CLOSE)


@pytest.mark.parametrize(
    "recipe", [Recipe(), Recipe(share=1), Recipe(share=0.5), Recipe(side_alpha=1.0), Recipe(rank=2)]
)
def test_unit_deviation_sets_every_row_as_far_from_the_mean_as_new_rows_are(recipe):
    columns = problem()
    _, plain = applied(recipe, columns)
    _, spread = applied(Recipe(recipe.share, recipe.alpha, recipe.side_alpha, recipe.rank, True), columns)
    y = columns["new"].astype(np.float64)
    mean, radius = y.mean(0), np.sqrt(np.mean(np.sum((y - y.mean(0)) ** 2, axis=1)))
    deviation = plain - mean
    expected = mean + radius * deviation / np.linalg.norm(deviation, axis=1, keepdims=True)
    np.testing.assert_allclose(spread, expected, rtol=1e-4, atol=1e-4)


def test_a_low_rank_weight_has_that_rank_and_two_layers():
    columns = problem(side_dim=0)
    program, found = applied(Recipe(alpha=1e-9, rank=2), columns)
    assert [step.weight.shape for step in program.steps] == [(2, 6), (5, 2)]
    assert np.linalg.matrix_rank(found - found.mean(0), tol=1e-3) == 2


def test_columns_that_never_vary_do_no_harm():
    columns = problem()
    columns["side"][:] = 3.0
    columns["old"][:, 2] = 1.0
    _, found = applied(Recipe(alpha=0.1, side_alpha=0.1), columns)
    without = {name: columns[name] for name in ("old", "new")}
    np.testing.assert_allclose(found, applied(Recipe(alpha=0.1), without)[1], **CLOSE)


def test_names_say_what_a_recipe_is():
    assert Recipe(share=1, unit_deviation=True).name == "Procrustes, unit deviation"
    assert Recipe(share=0.75, alpha=0.003, side_alpha=0.1).name == "ridge, alpha 0.003, with 75 % Procrustes, side 0.1"
    assert Recipe(rank=32).name == "low rank 32, alpha 0.1"


def test_recipes_that_share_their_penalties_are_solved_for_once(monkeypatch):
    """And none of them changes what the next one is given."""
    solved, solve = [], recipes._solved
    monkeypatch.setattr(recipes, "_solved", lambda *given: solved.append(given[1:]) or solve(*given))
    columns = problem(side_dim=0)
    tried = [Recipe(share=0.5), Recipe(), Recipe(rank=2), Recipe(rank=3), Recipe(alpha=1.0), Recipe(alpha=1.0, rank=2)]
    training = Statistics.of_block(columns)
    programs = [recipe.fit(training) for recipe in tried]
    assert solved == [(0.1, 0.0), (1.0, 0.0)]
    for recipe, program in zip(tried, programs, strict=True):
        assert program.digest == recipe.fit(Statistics.of_block(columns)).digest


def test_only_a_layer_that_scales_unit_vectors_can_be_left_out():
    columns = problem(side_dim=0)
    program, found = applied(Recipe(unit_deviation=True), columns)
    rest, scaling = without_scaling(program)
    unit = apply_float64(rest, columns["old"])
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(unit * scaling.weight.diagonal() + scaling.bias, found, **CLOSE)
    turned = program.steps[-1].weight[:, ::-1].copy()
    others = Program(program.dims, (*program.steps[:-1], replace(scaling, weight=turned)), program.output)
    bent = Program(program.dims, (*program.steps[:-1], replace(scaling, activation="relu")), program.output)
    for each in (others, bent, applied(Recipe(), columns)[0]):
        assert without_scaling(each) == (each, None)
