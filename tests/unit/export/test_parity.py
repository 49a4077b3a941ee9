from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.programs import random_rows

from fct_infer.errors import GateError
from fct_infer.export.parity import LIMITS, check, compare, random_batches

EXPECTED = random_rows(40, 16).astype(np.float64)
FOUND = EXPECTED.astype(np.float32)


def test_equal_outputs_have_no_error():
    parity, _ = compare(FOUND, FOUND)
    assert (parity.rows, parity.max_abs_error, parity.max_relative_error, parity.min_cosine) == (40, 0, 0, 1)


def test_figures_are_those_of_the_definition():
    found = FOUND.copy()
    found[7] *= -1
    found[3, 2] += 0.5
    parity, worst = compare(EXPECTED, found)
    assert worst == 7
    assert parity.min_cosine == pytest.approx(-1, abs=1e-6)
    assert parity.max_abs_error == pytest.approx(2 * np.abs(EXPECTED[7]).max(), rel=1e-6)
    assert parity.max_relative_error == pytest.approx(parity.max_abs_error / np.abs(EXPECTED).max())


@given(st.floats(0, 10), st.integers(0, 39))
def test_the_limit_on_the_error_holds_at_any_scale(exponent, row):
    scale, limit = 10.0**exponent, LIMITS["fp32"].max_relative_error
    largest = np.abs(EXPECTED).max() * scale
    wanted, found = EXPECTED * scale, EXPECTED * scale
    found[row, 0] += 0.9 * limit * largest
    check(wanted, found.astype(np.float32), "fp32")
    found[row, 0] += 0.3 * limit * largest
    with pytest.raises(GateError, match="relative error"):
        check(wanted, found.astype(np.float32), "fp32")


def test_a_turned_row_is_named_though_its_error_is_small_beside_the_largest_row():
    wanted = EXPECTED.copy()
    wanted[0] *= 1e6
    found = wanted.astype(np.float32)
    found[21] = np.roll(found[21], 1)
    with pytest.raises(GateError, match="row 21 of the probe: cosine"):
        check(wanted, found, "fp32")


def test_rows_of_zeros_agree_with_zeros_only():
    wanted = np.concatenate([EXPECTED, np.zeros((1, 16))])
    assert check(wanted, wanted.astype(np.float32), "fp32").min_cosine == pytest.approx(1)
    found = wanted.astype(np.float32)
    found[40, 0] = 1e-6
    with pytest.raises(GateError, match="row 40 of the probe"):
        check(wanted, found, "fp32")


def test_outputs_that_are_all_zero_agree():
    assert check(np.zeros((3, 2)), np.zeros((3, 2), np.float32), "fp32").min_cosine == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite_fail(bad):
    found = FOUND.copy()
    found[5, 5] = bad
    with pytest.raises(GateError, match="not finite"):
        check(EXPECTED, found, "fp32")


def test_another_shape_fails():
    with pytest.raises(GateError, match=r"of shape \(40, 15\), wanted \(40, 16\)"):
        check(EXPECTED, FOUND[:, :15], "fp32")


def test_random_batches_are_the_same_at_every_call():
    first, second = (random_batches({"old": (3,), "side": (2, 1)}, (1, 5)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert [array.shape for array in one.values()] in ([(1, 3), (1, 2, 1)], [(5, 3), (5, 2, 1)])
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
