from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.programs import examples, linear_map, paper_h, random_rows

from fct_infer.errors import ArrayError, UsageError
from fct_infer.maps import Statistics, fit_ridge
from fct_infer.maps.chains import apply_by_source, compose, mix
from fct_infer.reference import apply_float64
from fct_infer.training.losses.alignment import measure_alignment
from fct_infer.transformation import Program, Transformation


@pytest.mark.parametrize("name", examples())
def test_a_chain_is_one_after_the_other(name):
    """Every kind of step, twice; the second reads the side-information that the gallery stores."""
    first = examples()[name]
    second = paper_h(first.new_dim, first.dims.get("side", 5), 7, inner=12)
    chain = compose(first, second)
    old, side = random_rows(9, first.dims["old"], 1), random_rows(9, second.dims["side"], 2)
    expected = apply_float64(second, apply_float64(first, old, side), side)
    np.testing.assert_allclose(apply_float64(chain, old, side), expected, rtol=1e-12, atol=1e-12)
    assert chain.flops_per_row == first.flops_per_row + second.flops_per_row
    assert {step.output.partition(".")[0] for step in chain.steps} == {"first", "second"}


def test_a_chain_runs_in_the_core():
    first, second = paper_h(24, 16, 32, inner=48), paper_h(32, 16, 20, inner=48)
    old, side = random_rows(64, 24, 1), random_rows(64, 16, 2)
    computed = Transformation(compose(first, second), "fp32")(old, side)
    in_two = Transformation(second, "fp32")(Transformation(first, "fp32")(old, side), side)
    np.testing.assert_allclose(computed, in_two, rtol=1e-4, atol=1e-5)


def test_chains_can_be_chained():
    programs = [linear_map(6, 5), linear_map(5, 7), linear_map(7, 4)]
    old = random_rows(8, 6)
    left = compose(compose(programs[0], programs[1]), programs[2])
    right = compose(programs[0], compose(programs[1], programs[2]))
    np.testing.assert_allclose(apply_float64(left, old), apply_float64(right, old), rtol=1e-12)


def test_the_seconds_side_can_be_its_own_old_embedding():
    first, second = linear_map(6, 8), paper_h(8, 8, 5, inner=12)
    chain, old = compose(first, second, "old"), random_rows(9, 6)
    middle = apply_float64(first, old)
    np.testing.assert_allclose(apply_float64(chain, old), apply_float64(second, middle, middle), rtol=1e-12)
    assert chain.dims == {"old": 6}


def test_side_information_that_only_the_second_reads_is_an_input_of_the_chain():
    chain = compose(linear_map(6, 8), paper_h(8, 3, 5, inner=12))
    assert chain.dims == {"old": 6, "side": 3}


@pytest.mark.parametrize("name", examples())
@pytest.mark.parametrize("is_first", [True, False])
def test_a_mixture_is_the_weighted_sum(name, is_first):
    """Whatever step comes last."""
    one = examples()[name]
    other = linear_map(one.dims["old"], one.new_dim, seed=5)
    pair = (one, other) if is_first else (other, one)
    old, side = random_rows(9, one.dims["old"], 1), random_rows(9, one.dims.get("side", 1), 2)
    expected = 0.25 * apply_float64(pair[0], old, side) + 0.75 * apply_float64(pair[1], old, side)
    found = mix(*pair, 0.25)
    assert found.dims == one.dims
    np.testing.assert_allclose(apply_float64(found, old, side), expected, rtol=1e-5, atol=1e-5)


def test_only_maps_of_the_same_inputs_into_one_space_are_mixed():
    for other in (linear_map(6, 4), linear_map(7, 5)):
        with pytest.raises(UsageError, match=r"maps .* -> 5 and .* cannot be mixed"):
            mix(linear_map(6, 5), other, 0.5)


@pytest.mark.parametrize(
    ("first", "second", "side", "message"),
    [
        (linear_map(6, 8), linear_map(9, 5), "stored", "gives 8 numbers, the second takes 9"),
        (paper_h(6, 3, 8, inner=8), paper_h(8, 4, 5, inner=8), "stored", "3 wide side-information, the second 4"),
        (paper_h(6, 3, 8, inner=8), paper_h(8, 4, 5, inner=8), "old", "cannot take its place"),
        (linear_map(6, 8), linear_map(8, 5), "new", "'stored' or 'old'"),
    ],
)
def test_what_does_not_chain_is_refused(first, second, side, message):
    with pytest.raises(UsageError, match=message):
        compose(first, second, side)


def versions(rows: int, seed: int) -> dict[str, np.ndarray]:
    """Three models of the same items, each sees more of them; the side-information sees what the first misses."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(7)
    item = rng.standard_normal((rows, 12))
    seen = {"v1": item[:, :5], "v2": item[:, :8], "v3": item, "side": item[:, 7:]}
    return {
        name: (part @ fixed.standard_normal((part.shape[1], 8 if name != "side" else 4))).astype(np.float32)
        for name, part in seen.items()
    }


def fitted(old: np.ndarray, side: np.ndarray | None, new: np.ndarray) -> Program:
    columns = {"old": old, "new": new} | ({} if side is None else {"side": side})
    return fit_ridge(Statistics.of_block(columns), alphas=[1e-6]).program


def error(program: Program, columns: dict[str, np.ndarray], old: str = "v1") -> float:
    blocks = [{"old": columns[old], "side": columns["side"], "new": columns["v3"]}]
    return measure_alignment(lambda old, side: apply_float64(program, old, side), blocks).mse


def test_the_direct_way_beats_the_chained_where_the_middle_model_forgets():
    """h(1 -> 3) sees all that v1 and psi know; a chain sees what v2 leaves of them, and psi again."""
    train, test = versions(500, 0), versions(300, 1)
    chained_blind = compose(fitted(train["v1"], train["side"], train["v2"]), fitted(train["v2"], None, train["v3"]))
    chained = compose(fitted(train["v1"], train["side"], train["v2"]), fitted(train["v2"], train["side"], train["v3"]))
    direct = fitted(train["v1"], train["side"], train["v3"])
    errors = {"direct": error(direct, test), "chained": error(chained, test), "blind": error(chained_blind, test)}
    assert errors["direct"] < errors["chained"] < errors["blind"]
    assert errors["direct"] < 0.8 * errors["blind"]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99))
def test_rows_of_each_source_are_transformed_by_their_own(seed):
    rng = np.random.default_rng(seed)
    programs = {"v1": linear_map(6, 4, seed=1), "v2": linear_map(6, 4, seed=2)}
    sources = rng.choice(["v1", "v2"], 30)
    old = random_rows(30, 6, seed)
    transforms = {name: lambda old, side, p=program: apply_float64(p, old, side) for name, program in programs.items()}
    found = apply_by_source(transforms, sources, old)
    for row in range(30):
        expected = apply_float64(programs[sources[row]], old[row : row + 1])[0]
        np.testing.assert_allclose(found[row], expected, rtol=1e-5, atol=1e-6)


def test_one_transformation_per_source_beats_one_for_the_mixture():
    """Rows of v1 and v2 in one gallery: their spaces are different, so one linear map cannot serve both."""
    train, test = versions(500, 0), versions(300, 1)
    own = {name: fitted(train[name], train["side"], train["v3"]) for name in ("v1", "v2")}
    both = Statistics.of_blocks({"old": train[v], "side": train["side"], "new": train["v3"]} for v in ("v1", "v2"))
    mixture = fit_ridge(both, alphas=[1e-6]).program
    for name in ("v1", "v2"):
        assert error(own[name], test, name) < 0.9 * error(mixture, test, name)


def test_a_source_without_a_transformation_is_named():
    with pytest.raises(ArrayError, match=r"row 1 comes from 'v9'; there are transformations of \['v1'\]"):
        apply_by_source({"v1": lambda old, side: old}, np.array(["v1", "v9"]), random_rows(2, 4))
    with pytest.raises(ArrayError, match=r"wanted \(2,\)"):
        apply_by_source({}, np.array(["v1"]), random_rows(2, 4))
