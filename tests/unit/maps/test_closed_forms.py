from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes
from scipy.stats import ortho_group
from sklearn.linear_model import LinearRegression, Ridge

from fct_infer.errors import UsageError
from fct_infer.maps import MAPS, Statistics, fit_low_rank, fit_procrustes, fit_recipe, fit_ridge
from fct_infer.reference import apply_float64
from fct_infer.transformation import Program

# Maps are float64 until they become float32 programs: relative errors of a few 6e-8.
CLOSE = {"rtol": 1e-4, "atol": 2e-5}


def problem(rows=200, old_dim=6, side_dim=3, new_dim=5, seed=0, noise=0.3) -> dict[str, np.ndarray]:
    """Rows from ``seed``; what maps them is always the same."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(99)
    x = rng.standard_normal((rows, old_dim + side_dim)) + fixed.standard_normal(old_dim + side_dim) * 2
    y = x @ fixed.standard_normal((old_dim + side_dim, new_dim)) + fixed.standard_normal(new_dim)
    y += noise * rng.standard_normal(y.shape)
    columns = {"old": x[:, :old_dim], "new": y} | ({"side": x[:, old_dim:]} if side_dim else {})
    return {name: column.astype(np.float32) for name, column in columns.items()}


def inputs(columns) -> np.ndarray:
    return np.concatenate([columns[name] for name in ("old", "side") if name in columns], axis=1, dtype=np.float64)


def apply(program: Program, columns) -> np.ndarray:
    return apply_float64(program, columns["old"], columns.get("side"))


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 0),
    side_dim=st.integers(0, 3),
    offset=st.floats(-1000, 1000),
    seed=st.integers(0, 99),
)
def test_statistics_of_blocks_are_those_of_the_whole(sizes, side_dim, offset, seed):
    columns = problem(sum(sizes), 3, side_dim, 2, seed)
    columns["old"] += np.float32(offset)
    edges = np.cumsum([0, *sizes])
    blocks = [{name: column[a:b] for name, column in columns.items()} for a, b in pairwise(edges)]
    found = Statistics.of_blocks(blocks)
    z = np.concatenate([inputs(columns), columns["new"]], axis=1, dtype=np.float64)
    centred = z - z.mean(axis=0)
    assert found.rows == len(z)
    np.testing.assert_allclose(found.mean, z.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.scatter, centred.T @ centred, rtol=1e-9, atol=1e-7)
    assert (found.xx.shape, found.xy.shape, found.yy.shape) == ((3 + side_dim,) * 2, (3 + side_dim, 2), (2, 2))


@given(seed=st.integers(0, 99))
def test_the_error_from_statistics_is_the_error_over_the_rows(seed):
    columns, rng = problem(50, seed=seed), np.random.default_rng(seed)
    weight, bias = rng.standard_normal((9, 5)), rng.standard_normal(5)
    expected = np.mean((inputs(columns) @ weight + bias - columns["new"]) ** 2)
    assert Statistics.of_block(columns).mean_squared_error(weight, bias) == pytest.approx(expected, rel=1e-9)


def test_there_are_no_statistics_of_no_rows():
    assert Statistics.of_blocks([problem(0)]) is None


@settings(max_examples=30, deadline=None)
@given(dim=st.integers(2, 8), scale=st.sampled_from([1.0, 2.5]), move=st.booleans(), seed=st.integers(0, 999))
def test_procrustes_recovers_a_rotation(dim, scale, move, seed):
    rng = np.random.default_rng(seed)
    rotation = ortho_group.rvs(dim, random_state=rng)
    old = rng.standard_normal((40, dim)).astype(np.float32)
    new = old.astype(np.float64) @ rotation * scale + (rng.standard_normal(dim) if move else 0)
    statistics = Statistics.of_block({"old": old, "new": new})
    fitted = fit_procrustes(statistics, center=move, scale=scale != 1)
    layer = fitted.program.steps[0]
    np.testing.assert_allclose(layer.weight.T, rotation * scale, rtol=0, atol=1e-6 * scale)
    np.testing.assert_allclose(apply_float64(fitted.program, old), new, rtol=0, atol=2e-5 * scale)
    assert fitted.findings["scale"] == pytest.approx(scale, rel=1e-6)


@settings(max_examples=20, deadline=None)
@given(d_in=st.integers(1, 7), d_out=st.integers(1, 7), seed=st.integers(0, 99))
def test_procrustes_of_different_widths_is_that_of_zero_padded_matrices(d_in, d_out, seed):
    columns = problem(60, d_in, 0, d_out, seed)
    fitted = fit_procrustes(Statistics.of_block(columns), center=False)
    wide = max(d_in, d_out)
    old, new = (np.zeros((60, wide)) for _ in range(2))
    old[:, :d_in], new[:, :d_out] = columns["old"], columns["new"]
    expected = (old @ orthogonal_procrustes(old, new)[0])[:, :d_out]
    np.testing.assert_allclose(apply(fitted.program, columns), expected, **CLOSE)
    weight = fitted.program.steps[0].weight.astype(np.float64)
    gram = weight @ weight.T if d_out <= d_in else weight.T @ weight
    np.testing.assert_allclose(gram, np.eye(min(d_in, d_out)), atol=1e-5)


@pytest.mark.parametrize("side_dim", [0, 3])
@pytest.mark.parametrize("alpha", [0.0, 0.01, 3.0])
def test_ridge_is_scikit_learns(side_dim, alpha):
    columns = problem(side_dim=side_dim)
    fitted = fit_ridge(Statistics.of_block(columns), alphas=[alpha])
    x, y = inputs(columns), columns["new"].astype(np.float64)
    penalty = alpha * np.sum((x - x.mean(axis=0)) ** 2) / x.shape[1]
    reference = Ridge(alpha=penalty).fit(x, y) if alpha else LinearRegression().fit(x, y)
    np.testing.assert_allclose(apply(fitted.program, columns), reference.predict(x), **CLOSE)
    assert fitted.findings["lambda"] == pytest.approx(penalty)
    assert fitted.program.dims == {"old": 6} | ({"side": 3} if side_dim else {})


def test_ridge_takes_the_penalty_that_held_out_rows_like_best():
    """Fourteen rows for nine inputs: without a penalty the noise is fitted."""
    training, validation = problem(14, noise=1.5), problem(400, noise=1.5, seed=1)
    alphas = [0.0, 0.03, 0.3, 100.0]
    fitted = fit_ridge(Statistics.of_block(training), Statistics.of_block(validation), alphas=alphas)
    errors = []
    for alpha in alphas:
        one = fit_ridge(Statistics.of_block(training), alphas=[alpha]).program
        errors.append(np.mean((apply(one, validation) - validation["new"]) ** 2))
    assert fitted.findings["alpha"] == alphas[int(np.argmin(errors))]
    found = fitted.findings["mse_by_alpha"]
    assert found == pytest.approx(dict(zip(map(str, alphas), errors, strict=True)), rel=1e-4)
    assert 0 < fitted.findings["alpha"] < 100


def test_least_squares_of_dependent_inputs_is_the_one_of_smallest_norm():
    columns = problem(side_dim=0)
    columns["side"] = columns["old"].copy()
    program = fit_ridge(Statistics.of_block(columns), alphas=[0.0]).program
    x = inputs(columns)
    centred = x - x.mean(axis=0)
    expected = np.linalg.pinv(centred) @ (columns["new"] - columns["new"].mean(axis=0, dtype=np.float64))
    np.testing.assert_allclose(program.steps[1].weight.T, expected, **CLOSE)


@settings(max_examples=20, deadline=None)
@given(rank=st.integers(1, 5), side_dim=st.sampled_from([0, 3]), seed=st.integers(0, 99))
def test_low_rank_is_the_truncated_svd_of_the_least_squares_fit(rank, side_dim, seed):
    columns = problem(80, 6, side_dim, 5, seed, noise=1.0)
    fitted = fit_low_rank(Statistics.of_block(columns), rank=rank)
    x, y = inputs(columns), columns["new"].astype(np.float64)
    fit = LinearRegression().fit(x, y).predict(x)
    u, s, vt = np.linalg.svd(fit - fit.mean(axis=0), full_matrices=False)
    expected = (u[:, :rank] * s[:rank]) @ vt[:rank] + fit.mean(axis=0)
    np.testing.assert_allclose(apply(fitted.program, columns), expected, rtol=1e-3, atol=1e-4)
    assert fitted.program.flops_per_row == 2 * rank * (x.shape[1] + 5)


def test_more_rank_is_less_error():
    columns = problem(noise=1.0)
    statistics = Statistics.of_block(columns)
    errors = [
        np.mean((apply(fit_low_rank(statistics, rank=rank).program, columns) - columns["new"]) ** 2)
        for rank in range(1, 6)
    ]
    assert errors == sorted(errors, reverse=True)
    full = fit_ridge(statistics, alphas=[0.0]).program
    assert errors[-1] == pytest.approx(np.mean((apply(full, columns) - columns["new"]) ** 2), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("ridge", {"alphas": []}, "wanted one of at least 0"),
        ("ridge", {"alphas": [-1.0]}, "wanted one of at least 0"),
        ("ridge", {"alphas": [0.0, 1.0]}, "several and validation rows"),
        ("low_rank", {"rank": 0}, "wanted 1 to 5"),
        ("low_rank", {"rank": 6}, "wanted 1 to 5"),
    ],
)
def test_what_cannot_be_fitted_is_refused(name, arguments, message):
    with pytest.raises(UsageError, match=message):
        MAPS[name](Statistics.of_block(problem()), **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"share": 1.5}, "share 1.5"),
        ({"alpha": 0.0}, r"alpha 0\.0"),
        ({"alpha": float("nan")}, "alpha nan"),
        ({"rank": 9}, "rank 9"),
        ({"rank": 2, "share": 0.5}, "share 0.5; wanted 1 to 4"),
        ({"side_alpha": 1.0}, "there is no side-information"),
    ],
)
def test_recipes_that_cannot_be_are_refused(arguments, message):
    rng = np.random.default_rng(0)
    training = Statistics.of_block({"old": rng.standard_normal((30, 5)), "new": rng.standard_normal((30, 4))})
    with pytest.raises(UsageError, match=message):
        fit_recipe(training, **arguments)
