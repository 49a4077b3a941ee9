"""Precision auto: the fastest that proves itself on rows, whatever the CPU of this machine has."""

from __future__ import annotations

import re

import numpy as np
import pytest
from support import rounded_core
from support.programs import linear_map, paper_h, random_rows
from support.rounded_core import cancelling

from fct_infer import Transformation, _core, choose_precision
from fct_infer.reference import apply_float64, largest_values


@pytest.fixture
def native_bf16(monkeypatch):
    rounded_core.install(monkeypatch)


ON_THIS_CPU = _core.precisions()


def test_the_fastest_that_passes_is_chosen(native_bf16):
    rows = random_rows(200, 12), random_rows(200, 6, seed=1)
    h = choose_precision(Transformation(paper_h(12, 6, 10, inner=16), "auto"), *rows)
    assert h.precision == "bf16"
    assert h.choice.startswith("chosen by auto, bf16: cosine >= 0.99") and "on 200 rows, wanted 0.999" in h.choice
    assert h(*rows).shape == (200, 10)


def test_what_does_not_pass_is_not(native_bf16):
    half = random_rows(300, 64)
    rows = np.concatenate([half, half], axis=1)
    h = choose_precision(Transformation(cancelling(), "auto"), rows)
    assert h.precision == "fp32"
    assert "bf16: cosine >= " in h.choice and "wanted 0.999" in h.choice
    np.testing.assert_allclose(h(rows), apply_float64(h.program, rows), atol=1e-4)


def test_the_gate_in_force_decides(native_bf16):
    h, rows = Transformation(linear_map(20, 30), "auto"), random_rows(100, 20)
    assert choose_precision(h, rows).precision == "bf16"
    assert choose_precision(h, rows, min_cosine=0.9999999).precision == "fp32"


@pytest.fixture
def native_int8(native_bf16, monkeypatch):
    if "int8" not in ON_THIS_CPU:
        pytest.skip("this CPU has no exact 8-bit products")
    monkeypatch.setattr(_core, "precisions", lambda device="cpu": ["fp32", "bf16", "int8"])


def test_int8_takes_ranges_from_one_half_and_is_proven_on_the_other(native_int8):
    program, rows = linear_map(20, 30), random_rows(300, 20)
    h = choose_precision(Transformation(program, "auto"), rows)
    assert h.precision == "int8" and h.ranges == largest_values(program, rows[::2]) and h.is_calibrated
    assert "int8: cosine >= 0.99" in h.choice and "on 150 rows" in h.choice and "keep their nearest" in h.choice


def test_int8_that_loses_neighbours_is_not_chosen(native_int8):
    rows = random_rows(400, 32) * np.float32(0.02) + 10 * random_rows(1, 32, seed=5)  # all about one mean
    h = choose_precision(Transformation(linear_map(32, 16), "auto"), rows)
    assert h.precision == "bf16"
    refused = choose_precision(Transformation(linear_map(32, 16), "auto"), rows, min_cosine=0.9999999)
    assert refused.precision == "fp32"
    assert re.search(r"int8: cosine >= [0-9.]+ on 200 rows, wanted 0.9999999; bf16: cosine", refused.choice)


def test_a_single_row_is_enough_to_choose_on(native_int8):
    h = choose_precision(Transformation(linear_map(20, 30), "auto"), random_rows(1, 20))
    assert h(random_rows(3, 20)).shape == (3, 30)


def test_a_device_without_another_one(monkeypatch):
    monkeypatch.setattr(_core, "precisions", lambda device="cpu": ["fp32"])
    h = choose_precision(Transformation(linear_map(3, 2), "auto"), random_rows(5, 3))
    assert (h.precision, h.choice) == ("fp32", "chosen by auto, cpu has no faster one natively")


def test_a_precision_that_was_named_is_kept():
    h = Transformation(linear_map(3, 2), "fp32")
    assert choose_precision(h, random_rows(5, 3)) is h


def test_ranges_and_auto_do_not_meet(native_bf16, monkeypatch):
    monkeypatch.setattr(_core, "precisions", lambda device="cpu": ["fp32", "bf16", "fp8"])
    assert choose_precision(Transformation(linear_map(3, 2), "auto"), random_rows(50, 3)).precision == "bf16"
