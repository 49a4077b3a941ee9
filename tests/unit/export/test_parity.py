from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.programs import random_rows

from fct_infer.artifacts.precisions import LIMITS
from fct_infer.errors import GateError
from fct_infer.export.parity import check, compare, proof
from fct_infer.reference import AS_NEAR

EXPECTED = random_rows(40, 16).astype(np.float64)
FOUND = EXPECTED.astype(np.float32)


def judge(expected: np.ndarray, found: np.ndarray, precision: str = "fp32", real_rows: int = 0):
    difference = compare(expected, found, real_rows)
    check(difference, precision, real_rows)
    return difference


def test_equal_outputs_have_no_error():
    found = compare(FOUND, FOUND)
    assert (found.rows, found.max_abs_error, found.max_relative_error, found.min_cosine) == (40, 0, 0, 1)
    assert found.top1_agreement == 1


def test_figures_are_those_of_the_definition():
    found = FOUND.copy()
    found[7] *= -1
    found[3, 2] += 0.5
    difference = compare(EXPECTED, found)
    assert difference.worst_row == 7
    assert difference.min_cosine == pytest.approx(-1, abs=1e-6)
    assert difference.max_abs_error == pytest.approx(2 * np.abs(EXPECTED[7]).max(), rel=1e-6)
    assert difference.max_relative_error == pytest.approx(difference.max_abs_error / np.abs(EXPECTED).max())


def agreement_by_definition(wanted: np.ndarray, found: np.ndarray) -> float:
    """Row by row, as the manifest's documentation has it."""
    agreeing = 0
    for row in range(len(wanted)):
        right, chosen = (np.linalg.norm(rows - rows[row], axis=1) for rows in (wanted, found))
        right[row] = chosen[row] = np.inf
        agreeing += right[np.argmin(chosen)] <= (1 + AS_NEAR) * right.min()
    return agreeing / len(wanted)


@pytest.mark.parametrize("noise", [0.0, 0.2, 0.6, 3.0])
@pytest.mark.parametrize("real_rows", [0, 1, 2, 25])
def test_agreement_is_that_of_the_definition(noise, real_rows):
    found = FOUND + noise * random_rows(40, 16, 1)
    judged = slice(-real_rows, None) if real_rows else slice(None)
    wanted = 1.0 if real_rows == 1 else agreement_by_definition(EXPECTED[judged], found[judged].astype(np.float64))
    assert compare(EXPECTED, found, real_rows).top1_agreement == wanted


def test_agreement_survives_a_common_offset_and_more_rows_than_are_judged_at_once():
    expected = random_rows(1300, 8).astype(np.float64) * 1e-3 + 1e3
    found = (expected + np.random.default_rng(2).standard_normal(expected.shape) * 5e-5).astype(np.float64)
    wanted = agreement_by_definition(expected, found)
    assert 0.5 < wanted < 1
    assert compare(expected, found).top1_agreement == wanted


def test_lost_neighbours_fail_on_real_rows_only():
    expected = np.repeat(random_rows(10, 16), 4, axis=0) * 100 + random_rows(40, 16, 1) * 0.01  # groups of four
    # Within the limits on the error, but not within the groups.
    found = (expected + random_rows(40, 16, 2) * 0.05).astype(np.float32)
    assert judge(expected, found, "fp16").top1_agreement < LIMITS["fp16"].min_agreement
    with pytest.raises(GateError, match=r"% of 40 rows keep their nearest neighbour, wanted 98%"):
        judge(expected, found, "fp16", real_rows=40)


@given(st.floats(0, 10), st.sampled_from(list(LIMITS)))
def test_the_limit_on_the_error_holds_at_any_scale(exponent, precision):
    scale, limit = 10.0**exponent, LIMITS[precision].max_relative_error
    wanted = np.concatenate([EXPECTED, np.full((1, 16), 10.0)]) * scale  # beside which no cosine falls
    found = wanted.copy()
    found[40, 0] += 0.9 * limit * 10 * scale
    judge(wanted, found.astype(np.float32), precision)
    found[40, 0] += 0.3 * limit * 10 * scale
    with pytest.raises(GateError, match="relative error"):
        judge(wanted, found.astype(np.float32), precision)


def test_a_turned_row_is_named_though_its_error_is_small_beside_the_largest_row():
    wanted = EXPECTED.copy()
    wanted[0] *= 1e6
    found = wanted.astype(np.float32)
    found[21] = np.roll(found[21], 1)
    with pytest.raises(GateError, match=r"cosine .* is below 0\.99999; row 21 of the probe is worst"):
        judge(wanted, found)


def test_rows_of_zeros_agree_with_zeros_only():
    wanted = np.concatenate([EXPECTED, np.zeros((1, 16))])
    assert judge(wanted, wanted.astype(np.float32)).min_cosine == pytest.approx(1)
    found = wanted.astype(np.float32)
    found[40, 0] = 1e-6
    with pytest.raises(GateError, match="row 40 of the probe"):
        judge(wanted, found)


def test_outputs_that_are_all_zero_agree():
    assert judge(np.zeros((3, 2)), np.zeros((3, 2), np.float32)).min_cosine == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite_fail_and_their_row_is_named(bad):
    found = FOUND.copy()
    found[5, 5] = found[9, 0] = bad
    with pytest.raises(GateError, match="row 5 of the probe: its output is not finite"):
        compare(EXPECTED, found)


def test_another_shape_fails():
    with pytest.raises(GateError, match=r"of shape \(40, 15\), wanted \(40, 16\)"):
        compare(EXPECTED, FOUND[:, :15])


def test_the_proof_keeps_the_figures():
    difference = compare(EXPECTED, FOUND + np.float32(1e-3), 5)
    parity = proof(difference, 5, "onnxruntime 1 cpu", 123.0)
    assert (parity.rows, parity.real_rows, parity.runtime, parity.rows_per_second) == (40, 5, "onnxruntime 1 cpu", 123)
    for name in ("max_abs_error", "max_relative_error", "min_cosine", "top1_agreement"):
        assert getattr(parity, name) == getattr(difference, name)
